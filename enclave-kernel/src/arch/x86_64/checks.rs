//! Self-tests of the processor: does each protection hold, does each flush
//! flush, do interrupts arrive.
//!
//! Called by `report.rs`, one test per boot, and [`upper_store_flushes`] at
//! every boot. Each provokes the very fault it expects; a feature this CPU
//! lacks, or that the privilege mode cannot use, is "not covered".

use enclave_abi::addr::PAGE_SIZE;
use enclave_abi::boot::cpu;
use enclave_abi::layout::{DIRECT_MAP, IDT, KERNEL_IMAGE, KERNEL_VIRT, QUEUE};

use super::paging::{AD, NX, P, PS, ProbeTree, U, W};
use super::probes::{self, Fault};
use super::{UserAccess, apic, flush_tlb, has, ring3};
use crate::report::Verdict;
use crate::{memory, phys};

/// Page-fault error bits (SDM vol. 3 §4.7): present, write, user, fetch.
const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const FETCH: u64 = 1 << 4;
/// `ret`, eight times.
const CODE: u64 = 0xc3c3_c3c3_c3c3_c3c3;
/// A flush that fails now and then must not pass.
const ROUNDS: u64 = 8;

/// The error code of a fault by this mode's kernel.
fn page(bits: u64) -> Option<Fault> {
    Some(Fault::Page(bits | if ring3() { USER } else { 0 }))
}

/// Runs `test` with a zeroed frame mapped with `bits` at the probe address.
fn with_page(bits: u64, test: impl FnOnce(u64) -> bool) -> Verdict {
    let Some(frame) = memory::alloc(PAGE_SIZE, PAGE_SIZE) else {
        return Verdict::Failed;
    };
    let passed = match ProbeTree::new(frame | bits | P | AD) {
        Some(tree) => {
            tree.show();
            flush_tlb();
            let passed = test(frame);
            tree.remove();
            flush_tlb();
            passed
        }
        None => false,
    };
    memory::free(frame, PAGE_SIZE);
    passed.into()
}

const PROBE: u64 = ProbeTree::ADDRESS;

/// Text and descriptor tables cannot be written, whichever way they are mapped.
pub(crate) fn code_is_read_only() -> Verdict {
    let text = [
        KERNEL_VIRT,
        DIRECT_MAP + KERNEL_IMAGE,
        DIRECT_MAP + IDT,
        DIRECT_MAP + enclave_abi::layout::GDT_TSS,
    ];
    text.iter()
        .all(|&at| probes::store(at) == page(PRESENT | WRITE))
        .into()
}

/// NX: data are not executed, be they the kernel's or a program's.
pub(crate) fn data_is_not_executed() -> Verdict {
    if !has(cpu::NX) {
        return Verdict::NotCovered("this CPU has no NX");
    }
    let user = if ring3() { U } else { 0 };
    with_page(W | NX | user, |frame| {
        phys::write(frame, CODE);
        probes::load(PROBE).is_none() && probes::execute(PROBE) == page(PRESENT | FETCH)
    })
}

/// SMEP: the kernel does not execute a program's page.
pub(crate) fn program_code_is_not_executed() -> Verdict {
    if ring3() {
        return Verdict::NotCovered("in ring-3 mode the kernel shares its ring with programs");
    }
    if !has(cpu::SMEP) {
        return Verdict::NotCovered("this CPU has no SMEP");
    }
    with_page(W | U, |frame| {
        phys::write(frame, CODE);
        probes::execute(PROBE) == page(PRESENT | FETCH)
    })
}

/// SMAP: the kernel reaches a program's page only when it says so.
pub(crate) fn program_memory_needs_leave() -> Verdict {
    if ring3() {
        return Verdict::NotCovered("in ring-3 mode the kernel shares its ring with programs");
    }
    if !has(cpu::SMAP) {
        return Verdict::NotCovered("this CPU has no SMAP, or ring 0 is interpreted");
    }
    with_page(W | U | NX, |_| {
        let refused = || {
            probes::load(PROBE) == page(PRESENT) && probes::store(PROBE) == page(PRESENT | WRITE)
        };
        let before = refused();
        let access = UserAccess::open();
        let open = probes::load(PROBE).is_none() && probes::store(PROBE).is_none();
        drop(access);
        before && open && refused()
    })
}

/// A swapped top-level entry and a flush take effect at once (SDM vol. 3
/// §4.10.4): what every publish depends on.
pub(crate) fn flush_forgets() -> Verdict {
    twins_differ(flush_tlb).into()
}

/// Whether a store to a top-level entry alone takes effect on translations
/// below it.
pub(super) fn upper_store_flushes() -> bool {
    twins_differ(|| ())
}

/// Maps one frame writable and, in a twin, read-only; writes; swaps the entry,
/// flushes as told; writes again. A fault on each second write says yes.
fn twins_differ(flush: impl Fn()) -> bool {
    let Some(frame) = memory::alloc(PAGE_SIZE, PAGE_SIZE) else {
        return false;
    };
    let user = U | NX | P | AD | frame;
    let (writable, frozen) = (ProbeTree::new(user | W), ProbeTree::new(user));
    let mut faults = 0;
    if let (Some(writable), Some(frozen)) = (&writable, &frozen) {
        let _access = UserAccess::open();
        for _ in 0..ROUNDS {
            writable.show();
            flush_tlb();
            let first = probes::store(PROBE);
            frozen.show();
            flush();
            let second = probes::store(PROBE);
            if first.is_none() && second == page(PRESENT | WRITE) {
                faults += 1;
            }
        }
    }
    for tree in [writable, frozen].into_iter().flatten() {
        tree.remove();
    }
    flush_tlb();
    memory::free(frame, PAGE_SIZE);
    faults == ROUNDS
}

/// PCID: two address spaces with tags of their own keep their translations
/// across switches that flush nothing, and never see each other's.
pub(crate) fn tags_keep_spaces_apart() -> Verdict {
    if !has(cpu::PCID) {
        return Verdict::NotCovered("this CPU has no PCID, or ring 0 is interpreted");
    }
    if ring3() {
        return Verdict::NotCovered("in ring-3 mode the kernel does not switch without a flush");
    }
    let frames = memory::alloc(2 * PAGE_SIZE, PAGE_SIZE);
    let Some(frame) = frames else {
        return Verdict::Failed;
    };
    let bits = P | W | NX | AD;
    let trees = (
        ProbeTree::new(frame | bits),
        ProbeTree::new((frame + PAGE_SIZE) | bits),
    );
    let mut passed = false;
    if let (Some(first), Some(second)) = (&trees.0, &trees.1) {
        phys::write(frame, 1);
        phys::write(frame + PAGE_SIZE, 2);
        passed = super::tagged_spaces_differ(first, second);
    }
    for tree in [trees.0, trees.1].into_iter().flatten() {
        tree.remove();
    }
    flush_tlb();
    memory::free(frame, 2 * PAGE_SIZE);
    passed.into()
}

/// 1 GiB pages: one leaf shows low memory as the small pages do.
pub(crate) fn huge_pages_map() -> Verdict {
    if !has(cpu::PAGE_1G) {
        return Verdict::NotCovered("this CPU has no 1 GiB pages, or ring 0 is interpreted");
    }
    let user = if ring3() { U } else { 0 };
    let Some(tree) = ProbeTree::of_1_gib(P | NX | AD | PS | user) else {
        return Verdict::Failed;
    };
    tree.show();
    flush_tlb();
    let same = probes::load(PROBE + QUEUE).is_none()
        && super::read_word(PROBE + QUEUE) == phys::read(QUEUE);
    let frozen = probes::store(PROBE + QUEUE) == page(PRESENT | WRITE);
    tree.remove();
    flush_tlb();
    (same && frozen).into()
}

/// Interrupts that the core sends itself arrive, each once.
pub(crate) fn interrupts_arrive() -> Verdict {
    (apic::interrupt_self(ROUNDS) == ROUNDS).into()
}
