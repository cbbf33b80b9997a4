//! Ending a broker so that nobody goes on where it was.
//!
//! Part of each test crate that names it.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// Kills a broker and its keeper, which would start another one.
pub(crate) fn kill_with_keeper(broker: Pid) {
    let path = format!("/proc/{}/status", broker.as_raw_nonzero());
    let status = fs::read_to_string(path).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let keeper = Pid::from_raw(parent.unwrap().trim().parse().unwrap()).unwrap();
    // It does nothing more between the two deaths.
    kill_process(keeper, Signal::STOP).unwrap();
    kill_process(broker, Signal::KILL).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
}
