//! Ending a broker so that nobody goes on where it was.
//!
//! Part of each test crate that names it.

use std::fs;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Kills a broker and its keeper, which would start another one.
pub(crate) fn kill_with_keeper(broker: Pid) {
    let path = format!("/proc/{}/status", broker.as_raw_nonzero());
    let status = fs::read_to_string(path).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let keeper = Pid::from_raw(parent.unwrap().trim().parse().unwrap()).unwrap();
    let deaths = [keeper, broker].map(|pid| pidfd_open(pid, PidfdFlags::empty()).unwrap());
    // It does nothing more between the two deaths.
    kill_process(keeper, Signal::STOP).unwrap();
    kill_process(broker, Signal::KILL).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    // Both hold every connection, and a dying process lets go of one after the
    // other: who sees his own end must not believe that others see theirs.
    for death in &deaths {
        let mut fds = [PollFd::new(death, PollFlags::IN)];
        let patience = Timespec::try_from(Duration::from_secs(60)).unwrap();
        assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "it is killed");
    }
}
