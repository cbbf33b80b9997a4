//! Processes that are killed in the middle of a time step: whoever is left
//! goes on or ends with a clear message, and nothing stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;

use rustix::process::{Signal, kill_process};

use crate::broker::kill_with_keeper;
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
fn without_broker_and_keeper_simulation_and_enclaves_go_on() {
    const STEPS: u32 = 60;
    let stage = Stage::new();
    let mut reader = read(&stage);
    let mut simulation = simulate(&stage, STEPS);
    await_steps(&simulation, 5);
    reader.next().unwrap();
    kill_with_keeper(pid(&stage.broker()["pid"]));
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
fn a_broker_that_was_stopped_is_gone_and_its_keeper_too() {
    let stage = Stage::new();
    // Each keeper in turn: the one that was there first, and its successor.
    for is_renewed in [false, true] {
        let first = stage.broker();
        if is_renewed {
            kill_process(pid(&first["keeper"]), Signal::KILL).unwrap();
            eventually("another keeper", || {
                stage.broker()["keeper"] != first["keeper"]
            });
        }
        let broker = stage.broker();
        stage.succeeds(&["broker", "stop", "--force"]);
        for role in ["pid", "keeper"] {
            // One that nobody has reaped yet has no command line.
            let left = fs::read(format!("/proc/{}/cmdline", broker[role]));
            assert_eq!(left.unwrap_or_default(), b"", "{role}");
        }
        stage.create(if is_renewed { "c" } else { "b" });
    }
}

#[test]
fn brokers_killed_under_load_are_noticed_by_nobody() {
    const STEPS: u32 = 120;
    const KILLS: usize = 10;
    let stage = Stage::new();
    let mut readers: Vec<Program> = (0..8).map(|_| read(&stage)).collect();
    let mut simulation = simulate(&stage, STEPS);
    await_steps(&simulation, 3);
    let mut brokers = BTreeSet::new();
    for _ in 0..KILLS {
        let broker = pid(&stage.broker()["pid"]);
        kill_process(broker, Signal::KILL).unwrap();
        brokers.insert(broker.as_raw_nonzero());
        await_steps(&simulation, 3);
    }
    assert_eq!(brokers.len(), KILLS, "each one is another process");
    let report = simulation.rest();
    assert_eq!(simulation.code(), 0);
    let (done, dropped) = published(&report);
    assert_eq!(done + dropped, u64::from(STEPS));
    for reader in &mut readers {
        let end = summary(&reader.rest());
        assert_eq!(end["torn"], 0);
        assert_eq!(end["end"], "closed by its program");
        assert_eq!(reader.code(), 0, "{}", complaint(reader));
    }
    forgotten(&stage);
    stage.still_runs("t");
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
    kill_with_keeper(pid(&stage.broker()["pid"]));
    while starved(&simulation.await_line("solve")) {}
    await_steps(&simulation, 3);
    reader.signal(Signal::CONT);
    reader.rest();
    assert_eq!(reader.code(), 1);
    stage.destroy("t");
}

#[test]
fn a_killed_reader_gives_back_what_it_held() {
    // So many that it still runs when the second reader comes, on a busy machine, too.
    const STEPS: u32 = 300;
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
