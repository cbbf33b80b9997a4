//! Plain segments of XEMEM: make, name, remove, signal, wait.
//!
//! The host asks the broker and puts the memory into the import window
//! ([`crate::imports`]); attaching is in [`super::import`]. What the host refuses
//! is passed on as it is.

use enclave_abi::addr::{PAGE_SIZE, is_aligned};
use enclave_abi::arena::{NAME_BYTES, name_field, text};
use enclave_abi::layout::BOUNCE;
use enclave_abi::queue::Call;
use enclave_abi::syscall as ours;
use enclave_abi::syscall::SegmentArgs;
use enclave_core::aspace::Prot;
use enclave_core::errno::Errno;
use zerocopy::IntoBytes;

use super::import::{ask, ask_patiently, bounce_name, forget_region, is_id, reserve};
use super::{Outcome, answer};
use crate::imports::{self, Source};
use crate::{host, phys, user};

/// Serves a call of plain segments.
pub(super) fn serve(nr: u64, a: [u64; 6]) -> Outcome {
    match nr {
        ours::XEMEM_SEGMENT => make(a[0]),
        ours::XEMEM_REMOVE if is_id(a[0]) => ask(Call::SegmentRemove, [a[0], 0, 0]),
        ours::XEMEM_SIGNAL => by_id(Call::SegmentSignal, a[0], a[1], 0),
        ours::XEMEM_SUBSCRIBE => by_id(Call::SegmentSubscribe, a[0], a[1], 0),
        ours::XEMEM_WAIT => by_id(Call::SegmentWait, a[0], a[1], a[2]),
        ours::XEMEM_REMOVE => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

fn by_id(call: Call, id: u64, by: u64, timeout_ms: u64) -> Outcome {
    let known = matches!(by, ours::XEMEM_BY_APID | ours::XEMEM_BY_SEGID);
    if !is_id(id) || !known || timeout_ms > ours::NO_LIMIT {
        return Err(Errno::EINVAL);
    }
    ask_patiently(timeout_ms, Errno::ETIMEDOUT, |timeout_ms| {
        ask(call, [id, by, timeout_ms])
    })
}

fn make(args_at: u64) -> Outcome {
    let mut args: SegmentArgs = user::read(args_at)?;
    let named = args.name != [0; NAME_BYTES];
    if named && text(&args.name).and_then(name_field).is_none() {
        return Err(Errno::EINVAL);
    }
    if !is_aligned(args.size_bytes, PAGE_SIZE) || args.size_bytes > imports::IMPORT_SPAN {
        return Err(Errno::EINVAL);
    }
    let slot = imports::free_slot().ok_or(Errno::ENOSPC)?;
    let start = imports::address(slot);
    if args.start != 0 && args.start != start {
        return Err(Errno::EINVAL);
    }
    user::check_writable(args_at, size_of::<SegmentArgs>() as u64)?;
    phys::write_bytes(BOUNCE, args.as_bytes());
    let [result, segid, base, page_bytes, ..] =
        host::call(Call::SegmentMake, [slot as u64, 0, 0, 0, 0, 0, 0]);
    answer(result)?;
    if args.size_bytes != 0 {
        let source = Source::Segid(segid);
        if let Err(errno) = put(slot, source, base, args.size_bytes, Prot::READ_WRITE) {
            let _ = ask(Call::ImportDetach, [slot as u64, 0, 0]);
            return Err(errno);
        }
    }
    args.start = if args.size_bytes == 0 { 0 } else { start };
    args.page_bytes = page_bytes;
    user::write(args_at, &args)?;
    Ok(segid)
}

/// Shows plain memory at `base` to the program, in `slot`.
pub(super) fn put(
    slot: usize,
    source: Source,
    base: u64,
    size_bytes: u64,
    prot: Prot,
) -> Result<(), Errno> {
    reserve(slot, size_bytes, prot)?;
    if imports::install_plain(slot, source, base, size_bytes, prot) {
        return Ok(());
    }
    forget_region(slot);
    Err(Errno::ENOMEM)
}

/// A further name for the program's own segment at `address`.
pub(super) fn name(address: u64, len: u64, name: u64, name_len: u64) -> Outcome {
    let (segid, size_bytes) = imports::made_at(address).ok_or(Errno::EINVAL)?;
    if len == 0 || len > size_bytes {
        return Err(Errno::EINVAL);
    }
    bounce_name(name, name_len)?;
    ask(Call::SegmentName, [segid, name_len, 0])
}
