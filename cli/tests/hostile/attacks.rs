//! Guest programs that attack: each dies alone, or at worst its own enclave
//! fails with a reason. The VMM answers, the neighbour notices nothing.

use std::path::Path;

use rustix::process::Signal;

use crate::stage::{Stage, hostile};
use crate::support::{Ended, build};

const SIGILL: i32 = 128 + 4;
const SIGTRAP: i32 = 128 + 5;
const SIGBUS: i32 = 128 + 7;
const SIGFPE: i32 = 128 + 8;
const SIGSEGV: i32 = 128 + 11;

/// Runs an attack that must kill its program and nothing else.
#[track_caller]
fn dies(stage: &Stage, program: &Path, how: &str, codes: &[i32]) {
    let ended = stage.run("t", program, &[how]);
    assert!(
        codes.contains(&ended.code),
        "{how}: {}: {}{}",
        ended.code,
        ended.stdout,
        ended.stderr
    );
    stage.still_runs("t");
}

#[test]
fn memory_that_is_not_the_programs_kills_it() {
    let stage = Stage::new();
    let memory = hostile("memory");
    for how in [
        "null",
        "kernel-text",
        "kernel-hole",
        "noncanonical",
        "arena",
        "text",
        "guard",
        "read-kernel-hole",
        "recurse",
    ] {
        dies(&stage, &memory, how, &[SIGSEGV]);
    }
}

#[test]
fn jumps_and_stacks_outside_the_program_kill_it() {
    let stage = Stage::new();
    let memory = hostile("memory");
    for how in [
        "jump-null",
        "jump-stack",
        "jump-kernel-hole",
        "jump-direct-map",
        "jump-noncanonical",
        "stack-null",
        "stack-kernel",
    ] {
        dies(&stage, &memory, how, &[SIGSEGV]);
    }
}

#[test]
fn privileged_instructions_kill_the_program() {
    let stage = Stage::new();
    let instructions = hostile("instructions");
    for how in [
        "hlt", "cli", "sti", "cr3", "cr0", "wrmsr", "rdmsr", "lgdt", "lidt", "ltr", "invlpg", "in",
        "out", "sysret", "iret",
    ] {
        dies(&stage, &instructions, how, &[SIGSEGV]);
    }
    dies(&stage, &instructions, "xsetbv", &[SIGSEGV, SIGILL]);
}

#[test]
fn software_interrupts_and_invalid_instructions_kill_the_program() {
    let stage = Stage::new();
    let instructions = hostile("instructions");
    dies(&stage, &instructions, "int80", &[SIGILL, SIGSEGV]);
    dies(&stage, &instructions, "int4", &[SIGSEGV, SIGILL]);
    for how in ["int3", "icebp", "trap-flag"] {
        dies(&stage, &instructions, how, &[SIGTRAP]);
    }
    for how in ["ud2", "lock"] {
        dies(&stage, &instructions, how, &[SIGILL]);
    }
}

#[test]
fn forged_signal_frames_and_handlers_without_a_place_hurt_the_program_only() {
    let stage = Stage::new();
    let sigreturn = hostile("sigreturn");
    for how in [
        "handler",
        "noncanonical-handler",
        "kernel-stack",
        "noncanonical-stack",
        "no-stack",
        "read-only-stack",
        "kernel-alternate",
        "kernel-frame",
        "dive",
    ] {
        dies(&stage, &sigreturn, how, &[SIGSEGV]);
    }
    // 3: it survived two thousand frames of noise, or a flood.
    for how in ["forged", "flood", "kernel-info"] {
        dies(&stage, &sigreturn, how, &[3]);
    }
    let faults = [SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE];
    dies(&stage, &sigreturn, "wild", &faults);
}

#[test]
fn hypercalls_reach_nobody() {
    let stage = Stage::new();
    let instructions = hostile("instructions");
    // 3: the host took it for a no-operation.
    for how in ["vmcall", "vmmcall"] {
        dies(&stage, &instructions, how, &[SIGSEGV, SIGILL, 3]);
    }
}

#[test]
fn a_system_call_from_32_bit_code_gains_nothing() {
    let stage = Stage::new();
    let instructions = hostile("instructions");
    dies(&stage, &instructions, "syscall32", &[SIGSEGV, SIGILL]);
}

#[test]
fn a_system_call_does_not_need_the_programs_stack() {
    let stage = Stage::new();
    dies(&stage, &hostile("instructions"), "syscall-nowhere", &[3]);
}

#[test]
fn stores_that_cannot_be_emulated_kill_the_program() {
    let stage = Stage::new();
    let vector = hostile("vector");
    // 3: they could be; 4: this processor has no such register.
    for how in ["sse", "avx", "avx512", "x87", "string"] {
        dies(&stage, &vector, how, &[SIGSEGV, 3, 4]);
    }
    let null = stage.run("t", &vector, &["avx", "0"]);
    assert_eq!(null.code, SIGSEGV, "{}", null.stderr);
    stage.still_runs("t");
}

#[test]
fn output_by_the_megabyte_passes_and_the_log_stays_bounded() {
    const BYTES: usize = 10_000_000;
    let stage = Stage::new();
    let ended = stage.run("t", &hostile("flood"), &["output", &BYTES.to_string()]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stdout.len(), BYTES);
    let log = stage.succeeds(&["logs", "t"]);
    assert!(log.len() < BYTES / 2, "{} bytes", log.len());
    stage.still_runs("t");
}

#[test]
fn a_flood_of_unknown_calls_is_answered_and_logged_briefly() {
    let stage = Stage::new();
    let ended = stage.run("t", &hostile("flood"), &["unknown-calls", "100000"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let log = stage.succeeds(&["logs", "t"]);
    assert!(log.len() < 1_000_000, "{} bytes", log.len());
    stage.succeeds(&["inspect", "t"]);
    stage.still_runs("t");
}

/// A million stores to `doorbell`, cut short by destroy.
fn flood(doorbell: &str) {
    let stage = Stage::new();
    stage.create("other");
    let args = ["doorbell", doorbell, "1000000"];
    let mut program = stage.start("t", &hostile("flood"), &args);
    program.await_line("flooding");
    assert_eq!(stage.state("t"), "running");
    stage.still_runs("other");
    assert_eq!(stage.broker()["protocol_errors"], 0);
    stage.destroy("t");
    // 125: the enclave ended under it.
    assert_eq!(program.code(), 125);
    stage.create("t");
    stage.still_runs("t");
}

#[test]
fn a_flood_of_the_queue_doorbell_holds_nobody_up() {
    flood("0");
}

#[test]
fn a_flood_of_the_arena_doorbells_holds_nobody_up() {
    flood("0x100");
}

#[test]
fn a_program_that_floods_a_doorbell_can_be_killed() {
    let stage = Stage::new();
    let args = ["doorbell", "0", "1000000"];
    let mut program = stage.start("t", &hostile("flood"), &args);
    program.await_line("flooding");
    program.signal(Signal::INT);
    assert_eq!(program.code(), 128 + 2);
    stage.still_runs("t");
}

/// Runs an attack on the enclave's own insides. Afterwards the enclave is as
/// good as new, or has failed and says why; destroy works, the neighbour works.
#[track_caller]
fn own_enclave_at_most(how: &str) -> (String, Ended) {
    let stage = Stage::new();
    stage.create("other");
    let ended = stage.run("t", &hostile("scribble"), &[how]);
    let row = stage.row("t");
    let state = row["state"].as_str().unwrap();
    match state {
        "idle" => stage.still_runs("t"),
        "failed" => {
            assert_ne!(row["reason"], "", "{how}");
            assert_eq!(ended.code, 125, "{how}: {}", ended.stderr);
            let again = stage.run("t", Path::new(crate::support::BUSYBOX), &["true"]);
            assert_eq!(again.code, 125, "{how}: {}", again.stderr);
        }
        other => panic!("{how}: {other}"),
    }
    stage.still_runs("other");
    stage.destroy("t");
    stage.create("t");
    stage.still_runs("t");
    (state.to_owned(), ended)
}

#[test]
fn a_corrupt_command_queue_fails_its_enclave_with_a_reason() {
    for how in ["queue-noise", "queue-index", "queue-replies"] {
        let (state, ended) = own_enclave_at_most(how);
        assert_eq!(state, "failed", "{how}");
        assert!(ended.stderr.contains("queue"), "{how}: {}", ended.stderr);
    }
}

#[test]
fn a_second_boot_report_changes_nothing() {
    let (state, ended) = own_enclave_at_most("queue-booted");
    assert_eq!((state.as_str(), ended.code), ("idle", 3));
}

#[test]
fn records_of_every_kind_and_version_are_answered_or_refused() {
    let (state, ended) = own_enclave_at_most("queue-kinds");
    assert_eq!((state.as_str(), ended.code), ("idle", 3));
}

#[test]
fn file_calls_sent_past_the_kernel_stay_inside_the_exports() {
    let (state, ended) = own_enclave_at_most("forward-noise");
    assert_eq!((state.as_str(), ended.code), ("idle", 3));
}

#[test]
fn a_forged_end_of_the_program_is_believed_for_that_program_only() {
    own_enclave_at_most("queue-exit");
}

#[test]
fn shared_pages_full_of_noise_hurt_nobody_else() {
    for how in ["console", "bounce", "lease", "apic", "idt", "gdt"] {
        own_enclave_at_most(how);
    }
}

#[test]
fn a_kernel_whose_memory_is_noise_hurts_nobody_else() {
    let stage = Stage::new();
    stage.create("other");
    let other = stage.vmm("other");
    for seed in ["1", "2", "3", "4"] {
        let before = stage.vmm("t");
        let mut program = stage.start("t", &hostile("scribble"), &["tables", seed]);
        program.await_line("scribbling");
        // How it ends is open: in ring-3 mode nothing keeps a program from its
        // own kernel. The host's side is not.
        stage.still_runs("other");
        assert_eq!(stage.vmm("t"), before);
        stage.destroy("t");
        program.code();
        stage.create("t");
    }
    stage.still_runs("t");
    assert_eq!(stage.vmm("other"), other);
}

#[test]
fn arenas_asked_for_behind_the_kernels_back_end_with_their_program() {
    let stage = Stage::new();
    let ended = stage.run("t", &hostile("scribble"), &["arena-noise"]);
    assert_eq!(ended.code, 3, "{}", ended.stderr);
    assert_eq!(stage.row("t")["arenas"], 0);
    assert_eq!(stage.broker()["segments"], 0);
    stage.still_runs("t");
}

#[test]
fn an_enclave_without_a_kernel_left_does_not_hold_up_destroy() {
    let stage = Stage::new();
    stage.create("other");
    let mut program = stage.start("t", &hostile("scribble"), &["everything"]);
    program.await_line("scribbling");
    stage.still_runs("other");
    stage.destroy("t");
    program.code();
    stage.create("t");
    stage.still_runs("t");
}

#[test]
fn a_kernel_that_takes_no_kill_is_a_failed_enclave() {
    let stage = Stage::new();
    let mut program = stage.start("t", &hostile("scribble"), &["everything"]);
    program.await_line("scribbling");
    program.signal(Signal::TERM);
    // It may also have died of what it did, which the enclave outlives.
    if program.code() == 125 {
        assert_eq!(stage.row("t")["state"], "failed");
        assert_ne!(stage.row("t")["reason"], "");
    }
    stage.destroy("t");
    stage.create("t");
    stage.still_runs("t");
}

#[test]
fn a_program_that_sends_its_own_kernel_to_sleep_can_be_killed() {
    let stage = Stage::new();
    let mut program = stage.start("t", &hostile("scribble"), &["queue-idle"]);
    program.await_line("scribbling");
    program.signal(Signal::TERM);
    assert_eq!(program.code(), 128 + 15);
    stage.still_runs("t");
}

#[test]
fn an_enclave_outlives_many_programs_that_die() {
    let stage = Stage::new();
    let segv = build("c/abort.c", "abort-glibc", &["gcc", "-O2", "-static"]);
    let memory = hostile("memory");
    for _ in 0..20 {
        let ended = stage.run("t", &memory, &["null"]);
        assert_eq!(ended.code, SIGSEGV, "{}", ended.stderr);
        let ended = stage.run("t", &segv, &[]);
        assert_eq!(ended.code, 128 + 6, "{}", ended.stderr);
    }
    stage.still_runs("t");
}
