//! Connections and fork(2): ids belong to the process that connected.

// UNSAFETY: fork(2), and the few calls its children make.
#![expect(unsafe_code)]

use crate::broker_process::{BrokerProcess, SOON};
use crate::peer::Peer;
use crate::sharing::importer;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use xemem_host::{Broker, ClientError, SharedMemory, Target, Waited};

/// A child that does nothing but hold what it inherited; its process id.
pub(crate) fn fork_a_holder() -> i32 {
    // SAFETY: the child calls pause(2) only, which is async-signal-safe.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: touches no memory; a signal ends it.
            unsafe { libc::pause() };
        }
    }
    assert!(child > 0, "forked");
    child
}

/// What a child finds when it uses its parent's connection and mapping.
fn in_child(broker: &mut Broker, memory: &SharedMemory) -> i32 {
    // SAFETY: the child makes one request that is refused before anything is
    // sent, reads a word, and leaves by _exit(2).
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = matches!(broker.status(), Err(ClientError::Forked));
        let seen = memory.load_u64(0) == Ok(11);
        // SAFETY: ends the child without running what the parent registered.
        unsafe { libc::_exit(i32::from(refused && seen)) };
    }
    let child = Pid::from_raw(child).expect("forked");
    let waited = waitpid(Some(child), WaitOptions::empty()).expect("reaped");
    let (_, status) = waited.expect("ended");
    status.exit_status().expect("exited")
}

#[test]
fn a_forked_child_keeps_the_mapping_and_not_the_connection() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    assert_eq!(exporter.ask("store 0 11"), "ok");
    let (mut broker, attached) = importer(&process, "x", 0, 4096);
    assert_eq!(in_child(&mut broker, &attached.memory), 1);
    // The parent's goes on as if nothing had been.
    let info = broker.info(attached.segid).expect("info");
    assert_eq!(info.readers, 1);
    assert_eq!(ClientError::Forked.errno(), Errno::STALE);
}

#[test]
fn an_exporter_that_dies_is_missed_even_if_a_child_holds_its_socket() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    let child = exporter.number("fork");
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    let child = child.expect("a process id");
    let (mut broker, attached) = importer(&process, "x", 0, 4096);
    let target = Target::Access(attached.apid);
    let mut signals = broker.subscribe(target).expect("subscribed");
    exporter.kill();
    let told = signals.wait(Some(SOON)).expect("told");
    kill_process(child, Signal::KILL).expect("the child outlived it");
    assert_eq!(told, Waited::Ended);
}
