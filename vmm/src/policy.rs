//! Which NUMA node a mapping's pages come from: mbind(2), nothing else.
//!
//! Called for private RAM and for arenas after they are mapped and before their
//! first page is touched, so that every page comes from the right place at once
//! and none has to move. On 4 KiB memfds the kernel keeps the policy with the
//! object: it holds for whoever faults a page in, the broker or a vCPU. On
//! hugetlb memfds it keeps it with this mapping only, so these are populated
//! through it before anybody else can touch them. Linux's automatic balancing
//! leaves memory with such a policy alone.

// UNSAFETY: mbind has no wrapper; it takes the address of a mapping.
#![expect(unsafe_code)]

use crate::config::MAX_NODE;
use crate::machine::MemoryNode;

/// From linux/mempolicy.h.
const MPOL_PREFERRED: libc::c_int = 1;
const MPOL_BIND: libc::c_int = 2;
const MPOL_MF_STRICT: libc::c_uint = 1;
const MPOL_MF_MOVE: libc::c_uint = 2;

const WORD_BITS: usize = libc::c_ulong::BITS as usize;
const MASK_WORDS: usize = (MAX_NODE + 1) / WORD_BITS;

/// Sets where the pages of `[host, host + len)` come from.
///
/// With [`MemoryNode::Bind`] pages that are there already move or the call
/// fails; with [`MemoryNode::Prefer`] they stay.
///
/// # Errors
/// The system's: EINVAL for a node without memory or outside the cpuset, EIO
/// when a page of elsewhere could not move, EPERM under a filter.
pub(crate) fn apply(host: *mut u8, len: usize, node: MemoryNode) -> std::io::Result<()> {
    let (mode, number, flags) = match node {
        MemoryNode::Any => return Ok(()),
        MemoryNode::Prefer(number) => (MPOL_PREFERRED, number, 0),
        MemoryNode::Bind(number) => (MPOL_BIND, number, MPOL_MF_STRICT | MPOL_MF_MOVE),
    };
    let mask = mask(number).ok_or(std::io::ErrorKind::InvalidInput)?;
    // The kernel reads one bit less than it is told.
    let bits = mask.len() * WORD_BITS + 1;
    // SAFETY: mbind changes no contents; the range is a live mapping of the
    // caller's, and `mask` is as long as `bits` says and outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_mbind, host, len, mode, mask.as_ptr(), bits, flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The node mask with one bit set; `None` for a number no kernel has.
fn mask(number: usize) -> Option<[libc::c_ulong; MASK_WORDS]> {
    let mut mask = [0; MASK_WORDS];
    *mask.get_mut(number / WORD_BITS)? |= 1 << (number % WORD_BITS);
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_holds_every_node_a_kernel_can_have_and_no_more() {
        assert_eq!(mask(0).map(|mask| mask[0]), Some(1));
        let last = mask(MAX_NODE).unwrap();
        assert_eq!(last[MASK_WORDS - 1], 1 << (WORD_BITS - 1));
        assert_eq!(mask(MAX_NODE + 1), None);
    }

    #[test]
    fn a_node_that_is_not_there_is_refused_by_the_kernel() {
        let mut page = [0_u8; 8192];
        let at = page.as_mut_ptr().map_addr(|at| (at + 4095) & !4095);
        assert!(apply(at, 4096, MemoryNode::Bind(MAX_NODE)).is_err());
        assert!(apply(at, 4096, MemoryNode::Bind(MAX_NODE + 1)).is_err());
        assert!(apply(at, 4096, MemoryNode::Any).is_ok());
    }
}
