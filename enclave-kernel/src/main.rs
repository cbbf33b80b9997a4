//! The lightweight kernel (LWK) of an enclave.
//!
//! Processes that take turns, each with as many threads as it likes on all cores,
//! no timer tick, no demand paging. The VMM
//! has built page tables, descriptor tables and system-call MSRs before the
//! first instruction (`enclave-abi/boot.rs`), so start-up is: take the memory,
//! check the privilege mode, report, wait for a program.
//!
//! ```text
//! kernel_main ─► memory, arch self-test ─► host::booted
//!       └─► loop: host::idle ─► process::run ─► enter_user … leave_user ─► report exit
//! programs come back through arch/x86_64/entry.S:
//!       syscall_entry ─► syscall::dispatch        fault_entry ─► fault::page_fault
//! ```
//!
//! The privilege mode (`Mode::Ring0` or `Mode::Ring3`) is fixed at boot and
//! known to `arch` only. Everything that decides lives in `enclave-core`.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(
    target_os = "none",
    expect(
        clippy::cast_possible_truncation,
        reason = "usize has 64 bits on the only target; narrower casts stand behind a bound or mask"
    )
)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("enclave-kernel: built for the host by mistake; build it with `cargo kernel`");
    std::process::exit(1);
}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod arch;
#[cfg(target_os = "none")]
mod arenas;
#[cfg(target_os = "none")]
mod bells;
#[cfg(target_os = "none")]
mod blocks;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod cores;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
mod host;
#[cfg(target_os = "none")]
mod imports;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod orders;
#[cfg(target_os = "none")]
mod phys;
#[cfg(target_os = "none")]
mod process;
#[cfg(target_os = "none")]
mod processes;
#[cfg(target_os = "none")]
mod report;
#[cfg(target_os = "none")]
mod signals;
#[cfg(target_os = "none")]
mod syscall;
#[cfg(target_os = "none")]
mod threads;
#[cfg(target_os = "none")]
mod timers;
#[cfg(target_os = "none")]
mod user;
#[cfg(target_os = "none")]
mod windows;
