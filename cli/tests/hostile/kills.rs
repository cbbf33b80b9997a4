//! Processes that are killed in the middle of a time step: whoever is left
//! goes on or ends with a clear message, and nothing stays behind.

use std::io::Read;

use rustix::process::{Signal, kill_process};

use crate::simulation::{await_steps, published, read, simulate, summary};
use crate::stage::{Program, Stage, eventually, pid};

/// What a program said on its standard error, to the end.
fn complaint(program: &mut Program) -> String {
    let mut text = String::new();
    let stderr = program.child.stderr.take();
    stderr.unwrap().read_to_string(&mut text).unwrap();
    text
}

/// Nobody reads, nobody publishes, the broker knows only what it retains, and
/// of nothing once that is removed.
fn forgotten(stage: &Stage) {
    eventually("the broker forgets the arena", || {
        let broker = stage.broker();
        let counts = ["attachments", "leases"];
        broker["segments"] == broker["retained"] && counts.iter().all(|count| broker[count] == 0)
    });
    stage.give_up_retained();
    assert_eq!(stage.broker()["segments"], 0);
}

#[test]
fn a_killed_vmm_leaves_a_dead_enclave_and_a_free_name() {
    let stage = Stage::new();
    stage.create("other");
    let mut reader = read(&stage);
    let mut simulation = simulate(&stage, 400);
    await_steps(&simulation, 5);
    reader.next().unwrap();
    kill_process(stage.vmm("t"), Signal::KILL).unwrap();
    assert_eq!(simulation.code(), 125);
    let end = summary(&reader.rest());
    assert_eq!(end["end"], "its enclave is gone");
    assert_eq!(end["torn"], 0);
    assert_eq!(reader.code(), 0, "{}", complaint(&mut reader));
    let row = stage.row("t");
    assert_eq!(row["state"], "dead");
    assert_ne!(row["reason"], "");
    stage.still_runs("other");
    forgotten(&stage);
    // Over the remains, and again after they are removed.
    stage.create("t");
    stage.still_runs("t");
    kill_process(stage.vmm("t"), Signal::KILL).unwrap();
    eventually("the VMM is dead", || stage.state("t") == "dead");
    stage.destroy("t");
    stage.create("t");
    let mut simulation = simulate(&stage, 5);
    assert_eq!(simulation.code(), 0);
}

#[test]
fn a_killed_broker_stops_neither_simulation_nor_enclaves() {
    const STEPS: u32 = 60;
    let stage = Stage::new();
    let mut reader = read(&stage);
    let mut simulation = simulate(&stage, STEPS);
    await_steps(&simulation, 5);
    reader.next().unwrap();
    kill_process(pid(&stage.broker()["pid"]), Signal::KILL).unwrap();
    let report = simulation.rest();
    assert_eq!(simulation.code(), 0);
    let (done, dropped) = published(&report);
    assert_eq!(done + dropped, u64::from(STEPS));
    let is_step = |line: &&String| line.trim_start().starts_with("solve");
    let last = report.iter().rfind(is_step).unwrap();
    assert!(last.contains("generation"), "{last}");
    reader.rest();
    assert_eq!(reader.code(), 1);
    let said = complaint(&mut reader);
    assert!(said.contains("broker"), "{said}");
    assert_eq!(stage.state("t"), "idle");
    stage.still_runs("t");
    // A new broker serves the old enclave and new ones.
    stage.create("other");
    let mut reader = read(&stage);
    let mut simulation = simulate(&stage, 10);
    let end = summary(&reader.rest());
    assert_eq!((&end["torn"], reader.code()), (&0.into(), 0));
    assert_eq!(simulation.code(), 0);
    stage.destroy("t");
}

#[test]
fn leases_of_a_dead_broker_do_not_starve_the_simulation() {
    let stage = Stage::new();
    let mut reader = read(&stage);
    let simulation = simulate(&stage, 4000);
    reader.next().unwrap();
    // It holds what it has leased, and takes nothing more.
    reader.signal(Signal::STOP);
    let starved = |line: &str| line.contains("every bank is held");
    while !starved(&simulation.await_line("solve")) {}
    let broker = pid(&stage.broker()["pid"]);
    kill_process(broker, Signal::KILL).unwrap();
    while starved(&simulation.await_line("solve")) {}
    await_steps(&simulation, 3);
    reader.signal(Signal::CONT);
    reader.rest();
    assert_eq!(reader.code(), 1);
    stage.destroy("t");
}

#[test]
fn a_killed_reader_gives_back_what_it_held() {
    const STEPS: u32 = 60;
    let stage = Stage::new();
    let reader = read(&stage);
    let mut simulation = simulate(&stage, STEPS);
    await_steps(&simulation, 5);
    reader.next().unwrap();
    reader.signal(Signal::KILL);
    eventually("the broker drops the reader", || {
        let broker = stage.broker();
        broker["attachments"] == 0 && broker["leases"] == 0
    });
    let mut second = read(&stage);
    second.next().unwrap();
    let report = simulation.rest();
    assert_eq!(simulation.code(), 0);
    let (done, dropped) = published(&report);
    assert_eq!(done + dropped, u64::from(STEPS));
    let end = summary(&second.rest());
    assert_eq!((&end["torn"], second.code()), (&0.into(), 0));
    forgotten(&stage);
}

#[test]
fn a_killed_run_takes_its_program_along() {
    let stage = Stage::new();
    let mut reader = read(&stage);
    let simulation = simulate(&stage, 400);
    await_steps(&simulation, 5);
    reader.next().unwrap();
    simulation.signal(Signal::KILL);
    eventually("the enclave is idle", || stage.state("t") == "idle");
    let end = summary(&reader.rest());
    assert_eq!(end["end"], "its program died");
    assert_eq!((&end["torn"], reader.code()), (&0.into(), 0));
    forgotten(&stage);
    stage.still_runs("t");
}

#[test]
fn nothing_is_left_when_everybody_is_killed_at_once() {
    let stage = Stage::new();
    let reader = read(&stage);
    let simulation = simulate(&stage, 400);
    await_steps(&simulation, 5);
    reader.next().unwrap();
    let (vmm, broker) = (stage.vmm("t"), pid(&stage.broker()["pid"]));
    for process in [vmm, broker] {
        kill_process(process, Signal::KILL).unwrap();
    }
    reader.signal(Signal::KILL);
    simulation.signal(Signal::KILL);
    eventually("the VMM is dead", || stage.state("t") == "dead");
    stage.create("t");
    let mut simulation = simulate(&stage, 5);
    assert_eq!(simulation.code(), 0);
}

#[test]
fn a_vmm_that_stands_still_is_told_and_destroyed() {
    let stage = Stage::new();
    stage.create("other");
    let mut simulation = simulate(&stage, 400);
    await_steps(&simulation, 3);
    kill_process(stage.vmm("t"), Signal::STOP).unwrap();
    let row = stage.row("t");
    assert_eq!(row["state"], "unresponsive");
    assert_ne!(row["reason"], "");
    stage.still_runs("other");
    stage.destroy("t");
    assert_eq!(simulation.code(), 125);
    stage.create("t");
    stage.still_runs("t");
}

#[test]
fn a_broker_that_stands_still_does_not_hold_up_destroy() {
    let stage = Stage::new();
    let broker = pid(&stage.broker()["pid"]);
    kill_process(broker, Signal::STOP).unwrap();
    // Waits for its arena.
    let mut simulation = simulate(&stage, 5);
    eventually("the program runs", || stage.state("t") == "running");
    stage.destroy("t");
    assert_eq!(simulation.code(), 125);
    kill_process(broker, Signal::CONT).unwrap();
    stage.create("t");
    let mut simulation = simulate(&stage, 5);
    assert_eq!(simulation.code(), 0);
}
