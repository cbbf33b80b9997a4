//! Guest memory by virtual address, as the page tables in force have it.
//!
//! Called by the debugger while the vCPU is outside the guest. Protection is not
//! looked at: a debugger reads and writes what is mapped. The tables are the
//! guest's and may be nonsense; a walk ends after four steps whatever they say.

use vm_memory::{Bytes, GuestAddress};

use super::vm::Vm;
use crate::memory::Ram;
use crate::tables::pte;

/// Where virtual memory comes from.
#[derive(Debug)]
pub(super) struct VirtualMemory<'a> {
    pub(super) ram: &'a Ram,
    pub(super) vm: &'a Vm,
    /// Top page table.
    pub(super) root: u64,
}

impl VirtualMemory<'_> {
    /// An entry of a page table.
    fn entry(&self, gpa: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let read = self.ram.read_slice(&mut bytes, GuestAddress(gpa));
        (read.is_ok() || self.vm.read(gpa, &mut bytes)).then(|| u64::from_le_bytes(bytes))
    }

    /// Reads; else the first address that could not be read.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), u64> {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (gpa, left) = walk(|at| self.entry(at), self.root, at).ok_or(at)?;
            let len = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (part, after) = rest.split_at_mut(len);
            let read = self.ram.read_slice(part, GuestAddress(gpa));
            if read.is_err() && !self.vm.read(gpa, part) {
                return Err(at);
            }
            at = at.wrapping_add(len as u64);
            rest = after;
        }
        Ok(())
    }

    /// Writes to RAM; else the first address that could not be written.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), u64> {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (gpa, left) = walk(|at| self.entry(at), self.root, at).ok_or(at)?;
            let len = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (part, after) = rest.split_at(len);
            let written = self.ram.write_slice(part, GuestAddress(gpa));
            if written.is_err() && !self.vm.write(gpa, part) {
                return Err(at);
            }
            at = at.wrapping_add(len as u64);
            rest = after;
        }
        Ok(())
    }
}

/// Guest-physical address of `address`, and the bytes from there to the end of
/// its page (SDM vol. 3 §4.5).
fn walk(read: impl Fn(u64) -> Option<u64>, root: u64, address: u64) -> Option<(u64, u64)> {
    let mut table = root & pte::ADDR;
    for level in (1..=4_u32).rev() {
        let shift = 12 + 9 * (level - 1);
        let index = address >> shift & 511;
        let entry = read(table + index * 8)?;
        if entry & pte::P == 0 {
            return None;
        }
        if level == 1 || entry & pte::PS != 0 {
            let bytes = 1_u64 << shift;
            let offset = address & (bytes - 1);
            return Some(((entry & pte::ADDR & !(bytes - 1)) + offset, bytes - offset));
        }
        table = entry & pte::ADDR;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Backing;
    use crate::memory::PrivateRam;
    use crate::tables::TableBuilder;

    #[test]
    fn a_walk_finds_pages_of_every_size_and_only_those() {
        let memory = PrivateRam::new(64 << 20, Backing::Small, false).unwrap();
        let ram = &memory.ram;
        let mut tables = TableBuilder::new(ram, 0x10_0000, 0x20_0000).unwrap();
        let large = 0x20_0000;
        tables.map(0x40_0000, 0x30_0000, 0x2000, 0, 4096).unwrap();
        tables.map(0x80_0000, 0x40_0000, large, 0, large).unwrap();
        let read = |at| ram.read_obj::<u64>(GuestAddress(at)).ok();
        let root = tables.root();
        assert_eq!(walk(read, root, 0x40_1ffe), Some((0x30_1ffe, 2)));
        assert_eq!(
            walk(read, root, 0x80_1000),
            Some((0x40_1000, large - 0x1000))
        );
        assert_eq!(walk(read, root, 0x40_2000), None);
        assert_eq!(walk(read, root, u64::MAX), None);
        assert_eq!(walk(read, 0x7000_0000_0000, 0), None);
        // A table that leads to itself.
        ram.write_obj(0x50_0000_u64 | pte::P, GuestAddress(0x50_0000))
            .unwrap();
        assert_eq!(walk(read, 0x50_0000, 7), Some((0x50_0007, 4089)));
    }
}
