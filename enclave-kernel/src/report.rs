//! Kernel self-tests and the panic report.
//!
//! A self-test is chosen by number in BootInfo, runs once at boot, and its
//! verdict goes to the VMM with the boot message: one test, one fresh machine.

use alloc::format;
use core::panic::PanicInfo;

use enclave_abi::addr::PAGE_SIZE;
use enclave_abi::queue::{Call, SELFTEST_FAILED, SELFTEST_NONE, SELFTEST_PASSED};

use crate::{arch, console, host, memory, phys};

/// Name and body; true = passed.
type Test = (&'static str, fn() -> bool);

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
    let passed = test();
    console::line(format_args!(
        "self-test {number} ({name}): {}",
        if passed { "passed" } else { "FAILED" }
    ));
    if passed {
        SELFTEST_PASSED
    } else {
        SELFTEST_FAILED
    }
}

fn runs_in_its_ring() -> bool {
    u64::from(arch::gate_ring()) == arch::mode() as u64
}

fn frames_come_back() -> bool {
    let before = memory::free_bytes();
    let (Some(a), Some(b)) = (
        memory::alloc(PAGE_SIZE, PAGE_SIZE),
        memory::alloc(PAGE_SIZE, PAGE_SIZE),
    ) else {
        return false;
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
    clean && apart && zeroed && memory::free_bytes() == before
}

fn heap_holds() -> bool {
    let numbers: alloc::vec::Vec<u64> = (0..1000).map(|n| n * n).collect();
    let text = format!("{}", numbers.iter().sum::<u64>());
    text == "332833500"
}

fn time_runs() -> bool {
    let first = arch::rdtsc();
    (0..100).all(|_| arch::rdtsc() >= first)
}

fn host_answers() -> bool {
    host::call(Call::HostCounters, [0; 7])[0] == 0
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let text = format!("{info}");
    let bytes = host::bounce_text(text.as_bytes());
    loop {
        host::tell(Call::Panic, [bytes, 0, 0, 0, 0, 0, 0]);
    }
}
