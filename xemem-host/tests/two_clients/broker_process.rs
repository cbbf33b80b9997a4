//! A broker process in a directory of its own; both go with the value.

use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use xemem_host::Broker;

/// The program under test.
pub(crate) const BROKER: &str = env!("CARGO_BIN_EXE_xemem-broker");
/// Longest wait for anything that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A fresh directory, removed when dropped.
pub(crate) struct Fresh(pub(crate) PathBuf);

impl Fresh {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("xemem-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a fresh directory");
        Self(path)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join(xemem_host::SOCKET_NAME)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A broker that serves.
pub(crate) struct BrokerProcess {
    pub(crate) child: Child,
    pub(crate) dir: Fresh,
}

impl BrokerProcess {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A broker that stays until it is killed, unless `arguments` say else.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self::in_dir(Fresh::new(), arguments)
    }

    pub(crate) fn in_dir(dir: Fresh, arguments: &[&str]) -> Self {
        let mut command = Command::new(BROKER);
        command.arg("--detach").arg("--socket").arg(dir.socket());
        if !arguments.contains(&"--linger-ms") {
            command.args(["--linger-ms", "3600000"]);
        }
        command.args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the broker starts");
        let mut said = String::new();
        let out = child.stdout.as_mut().expect("a pipe");
        out.read_to_string(&mut said).expect("the broker speaks");
        assert_eq!(said, "ready\n");
        Self { child, dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.socket()
    }

    pub(crate) fn connect(&self) -> Broker {
        Broker::connect(&self.socket()).expect("the broker answers")
    }

    /// Keeper and broker at once: nobody is left to go on.
    pub(crate) fn kill(&mut self) {
        let (keeper, broker) = (Pid::from_child(&self.child), self.broker());
        kill_process(keeper, Signal::STOP).expect("stopped");
        kill_process(broker, Signal::KILL).expect("killed");
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// The process that serves now.
    pub(crate) fn broker(&self) -> Pid {
        let pid = self.connect().status().expect("a status").pid;
        Pid::from_raw(pid.try_into().expect("a pid")).expect("a pid")
    }
}

impl Drop for BrokerProcess {
    /// Ends both; a keeper that was killed has left a broker behind.
    fn drop(&mut self) {
        let keeper = Pid::from_child(&self.child);
        for signal in [Signal::TERM, Signal::CONT] {
            let _ = kill_process(keeper, signal);
        }
        let _ = self.child.wait();
        if let Ok(mut broker) = Broker::connect(&self.socket()) {
            let _ = broker.shutdown(true);
        }
    }
}
