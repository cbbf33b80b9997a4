//! Brokers that are killed, and what their clients see of it: nothing.
//!
//! Real processes, real kills. [`reading`] looks at readers of arenas,
//! [`others`] at everything else that a broker remembers, [`keepers`] at the
//! processes themselves, [`users`] at whose they are.

#[expect(dead_code, reason = "the other tests of this crate use all of it")]
#[path = "../two_clients/broker_process.rs"]
mod broker_process;
#[expect(dead_code, reason = "the other tests of this crate use all of it")]
#[path = "../two_clients/exporter.rs"]
mod exporter;
#[path = "../two_clients/memory.rs"]
mod memory;

mod keepers;
mod others;
mod reading;
mod users;

use broker_process::BrokerProcess;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open};

impl exporter::Exporter {
    /// An enclave and its arena, both called `name`, with `nr_banks` banks.
    fn new(process: &BrokerProcess, name: &str, nr_banks: u32) -> Self {
        Self::open_to(&process.socket(), name, nr_banks, None)
    }
}

/// Kills the broker and waits until it is gone.
fn kill_broker(process: &BrokerProcess) {
    let broker = process.broker();
    let end = pidfd_open(broker, PidfdFlags::empty()).expect("a process");
    kill_process(broker, Signal::KILL).expect("killed");
    let mut fds = [PollFd::new(&end, PollFlags::IN)];
    assert_eq!(poll(&mut fds, None), Ok(1));
}

/// Descriptors of the broker, by what they are.
fn descriptors(process: &BrokerProcess) -> Vec<String> {
    let pid = process.broker().as_raw_nonzero();
    descriptors_of(pid.get().unsigned_abs())
}

/// Memory objects and eventfds of process `pid`, sorted.
fn descriptors_of(pid: u32) -> Vec<String> {
    let dir = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let links = dir.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let names = links.map(|link| link.to_string_lossy().into_owned());
    let mut names: Vec<String> = names
        .filter(|name| {
            let is_journal = name.contains("xemem-journal");
            (name.contains("xemem-") && name.contains("memfd") && !is_journal)
                || name.contains("[eventfd]")
        })
        .collect();
    names.sort_unstable();
    names
}
