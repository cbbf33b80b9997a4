//! Kernel self-tests and the panic report.
//!
//! A self-test is chosen by number in BootInfo, runs once at boot, and its
//! verdict goes to the VMM with the boot message: one test, one fresh machine.

use alloc::format;
use core::fmt;
use core::panic::PanicInfo;

use enclave_abi::addr::PAGE_SIZE;
use enclave_abi::queue::{
    Call, SELFTEST_FAILED, SELFTEST_NONE, SELFTEST_NOT_COVERED, SELFTEST_PASSED,
};

use crate::arch::{self, checks};
use crate::{console, host, memory, phys};

/// How a self-test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should be.
    Passed,
    /// Not as it should be.
    Failed,
    /// Nothing to see on this CPU or in this mode, and why.
    NotCovered(&'static str),
}

impl From<bool> for Verdict {
    fn from(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }
}

/// Name and body.
type Test = (&'static str, fn() -> Verdict);

/// The self-tests, numbered from 1.
const TESTS: &[Test] = &[
    (
        "the code runs at the privilege level of its mode",
        runs_in_its_ring,
    ),
    ("frames are zero, distinct and come back", frames_come_back),
    ("the heap holds what is put there", heap_holds),
    ("the time-stamp counter runs forward", time_runs),
    ("a host call is answered", host_answers),
    (
        "code and descriptor tables cannot be written",
        checks::code_is_read_only,
    ),
    ("data are not executed (NX)", checks::data_is_not_executed),
    (
        "the kernel does not execute program pages (SMEP)",
        checks::program_code_is_not_executed,
    ),
    (
        "the kernel reaches program memory only on purpose (SMAP)",
        checks::program_memory_needs_leave,
    ),
    (
        "a changed upper entry and a flush take effect",
        checks::flush_forgets,
    ),
    (
        "tagged address spaces stay apart (PCID)",
        checks::tags_keep_spaces_apart,
    ),
    ("1 GiB pages map what they should", checks::huge_pages_map),
    (
        "interrupts to the own core arrive",
        checks::interrupts_arrive,
    ),
];

/// How many self-tests there are, for the boot message.
pub(crate) const fn selftests() -> u64 {
    TESTS.len() as u64
}

/// Runs self-test `number`; the verdict for the boot message. A number past
/// the end fails, and the console lists what there is.
pub(crate) fn run_selftest(number: u32) -> u64 {
    if number == 0 {
        return SELFTEST_NONE;
    }
    let Some((name, test)) = TESTS.get(number as usize - 1) else {
        console::line(format_args!("self-test {number}: there is no such test"));
        for (number, (name, _)) in (1..).zip(TESTS) {
            console::line(format_args!("self-test {number} ({name})"));
        }
        return SELFTEST_FAILED;
    };
    let line = |verdict: fmt::Arguments<'_>| {
        console::line(format_args!("self-test {number} ({name}): {verdict}"));
    };
    match test() {
        Verdict::Passed => {
            line(format_args!("passed"));
            SELFTEST_PASSED
        }
        Verdict::Failed => {
            line(format_args!("FAILED"));
            SELFTEST_FAILED
        }
        Verdict::NotCovered(reason) => {
            line(format_args!("not covered: {reason}"));
            SELFTEST_NOT_COVERED
        }
    }
}

fn runs_in_its_ring() -> Verdict {
    (u64::from(arch::gate_ring()) == arch::mode() as u64).into()
}

fn frames_come_back() -> Verdict {
    let before = memory::free_bytes();
    let (Some(a), Some(b)) = (
        memory::alloc(PAGE_SIZE, PAGE_SIZE),
        memory::alloc(PAGE_SIZE, PAGE_SIZE),
    ) else {
        return Verdict::Failed;
    };
    let clean = phys::read(a) == 0 && phys::read(b + PAGE_SIZE - 8) == 0;
    phys::write(a, 0x5a5a);
    let apart = phys::read(b) == 0;
    memory::free(a, PAGE_SIZE);
    memory::free(b, PAGE_SIZE);
    let again = memory::alloc(2 * PAGE_SIZE, PAGE_SIZE);
    let zeroed = again.is_some_and(|c| phys::read(c) == 0);
    if let Some(c) = again {
        memory::free(c, 2 * PAGE_SIZE);
    }
    (clean && apart && zeroed && memory::free_bytes() == before).into()
}

fn heap_holds() -> Verdict {
    let numbers: alloc::vec::Vec<u64> = (0..1000).map(|n| n * n).collect();
    let text = format!("{}", numbers.iter().sum::<u64>());
    (text == "332833500").into()
}

fn time_runs() -> Verdict {
    let first = arch::rdtsc();
    (0..100).all(|_| arch::rdtsc() >= first).into()
}

fn host_answers() -> Verdict {
    (host::call(Call::HostCounters, [0; 7])[0] == 0).into()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let text = format!("{info}");
    let bytes = host::bounce_text(text.as_bytes());
    loop {
        host::tell(Call::Panic, [bytes, 0, 0, 0, 0, 0, 0]);
    }
}
