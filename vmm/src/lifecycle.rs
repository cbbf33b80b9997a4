//! The life of an enclave, from its locks to its last file.
//!
//! ```text
//!  take name      admit        create, start    wait ready
//!  ─────────► reserved ─► admitted ─────► booting ─────► idle ⇄ running
//!                 │           │              │             │      │
//!                 │ refused   │ refused      │ failed,     │ stop,│ signal
//!                 ▼           ▼              ▼ too late    ▼      ▼
//!               (files removed, locks given back, failure told) ◄─┘
//!
//!  idle/running ── kernel or vCPU fails ──► failed (still answers; stop ends it)
//!  anything ── the process dies ──► dead (locks free; files left to tell why)
//! ```
//!
//! Used by `enclave-vmm`; [`Phase`] also by `enclavectl list`. Nothing survives
//! a failure in the upper row: no file, no lock, no process.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::EnclaveConfig;
use crate::confine::{self, Role};
use crate::console_log::ConsoleLog;
use crate::control::Control;
use crate::control::protocol::{Effective, Started};
use crate::control::server::{Ended, Facts, serve};
use crate::failure::{Class, Failure};
use crate::ledger::{Grant, Holdings, Reservation};
use crate::machine::{MachineConfig, MachineState, MemoryNode};
use crate::placement::Placement;
use crate::signals::SignalFd;
use crate::topology::Topology;
use crate::vmm_log::note;

/// How long a kernel may take to report.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long stopping the machine may take; then the process ends regardless,
/// which frees everything just as well.
pub const STOP_TIMEOUT: Duration = Duration::from_millis(300);
/// Bytes of the console shown when a boot fails.
const TAIL_BYTES: u64 = 600;

/// What an enclave is doing, as `list` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its VMM holds the lock and does not serve yet.
    Creating,
    /// The kernel has not reported yet.
    Booting,
    /// Up, nothing to run.
    Idle,
    /// A program runs.
    Running,
    /// Its vCPUs are held.
    Frozen,
    /// The kernel or the vCPU failed.
    Failed,
    /// Stopped, the process is about to end.
    Stopped,
    /// Its VMM lives and does not answer.
    Unresponsive,
    /// Its VMM died.
    Dead,
    /// Its directory cannot be looked into.
    Broken,
}

impl Phase {
    /// The phase of an enclave whose VMM answered with `state`.
    #[must_use]
    pub const fn of_machine(state: &MachineState) -> Self {
        match state {
            MachineState::Booting => Self::Booting,
            MachineState::Idle => Self::Idle,
            MachineState::Running { .. } => Self::Running,
            MachineState::Frozen { .. } => Self::Frozen,
            MachineState::Failed { .. } => Self::Failed,
            MachineState::Stopped => Self::Stopped,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Booting => "booting",
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Unresponsive => "unresponsive",
            Self::Dead => "dead",
            Self::Broken => "broken",
        })
    }
}

/// An enclave that is up.
pub struct Enclave {
    reservation: Reservation,
    listener: UnixListener,
    control: Arc<dyn Control>,
    facts: Facts,
}

impl fmt::Debug for Enclave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enclave")
            .field("reservation", &self.reservation)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Enclave {
    /// Brings the enclave up: admits it, has `make` build the machine, boots.
    ///
    /// # Errors
    /// The first step that fails; then nothing is left.
    pub fn bring_up(
        mut reservation: Reservation,
        config: EnclaveConfig,
        topology: &Topology,
        allowed: &BTreeSet<usize>,
        make: impl FnOnce(&MachineConfig, Arc<ConsoleLog>) -> Result<Arc<dyn Control>, Failure>,
    ) -> Result<(Self, Started), Failure> {
        let built = reservation
            .admit(&config, topology, allowed)
            .and_then(|grant| boot(&mut reservation, config, grant, make));
        match built {
            Ok((control, mut facts, listener)) => {
                let placement = Placement::read(Path::new("/proc/self"), topology);
                match misplaced(&facts.effective, &placement) {
                    Ok(warning) => facts.effective.warnings.extend(warning),
                    Err(failure) => {
                        stop(control);
                        drop(reservation.release());
                        return Err(failure);
                    }
                }
                let mut report = control.report();
                let micros = facts.created.elapsed().as_micros();
                let micros = u64::try_from(micros).unwrap_or(u64::MAX);
                report.phases.push(("booted".into(), micros));
                let started = Started {
                    effective: facts.effective.clone(),
                    machine: control.state(),
                    report,
                    placement,
                };
                let enclave = Self {
                    reservation,
                    listener,
                    control,
                    facts,
                };
                Ok((enclave, started))
            }
            Err(failure) => {
                // The first failure is the one to tell.
                drop(reservation.release());
                Err(failure)
            }
        }
    }

    /// Serves until asked or told to end, or until nobody reads `creator` any
    /// more; then stops the machine and removes the files.
    ///
    /// # Errors
    /// When serving fails, or files cannot be removed. The machine is stopped
    /// in every case.
    pub fn serve(self, signals: SignalFd, creator: Option<OwnedFd>) -> Result<Ended, Failure> {
        let Self {
            reservation,
            listener,
            control,
            facts,
        } = self;
        let holdings = Arc::new(Holdings::new(reservation));
        let shared = (Arc::clone(&control), Arc::clone(&holdings));
        let served = serve(listener, signals, creator, shared, facts);
        stop(control);
        let released = holdings.release();
        let ended = served?;
        released?;
        Ok(ended)
    }

    /// Ends an enclave nobody wants any more.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub fn abandon(self) -> Result<(), Failure> {
        stop(self.control);
        self.reservation.release()
    }
}

/// Creates and boots the machine of an admitted enclave.
fn boot(
    reservation: &mut Reservation,
    config: EnclaveConfig,
    grant: Grant,
    make: impl FnOnce(&MachineConfig, Arc<ConsoleLog>) -> Result<Arc<dyn Control>, Failure>,
) -> Result<(Arc<dyn Control>, Facts, UnixListener), Failure> {
    let created = Instant::now();
    // And those it will make; the vCPUs' go there by themselves.
    reservation.stay_off();
    let what = format!("create enclave {}", config.name);
    let log = ConsoleLog::create(reservation.dir().fd()).map_err(|e| Failure::io(&what, e))?;
    let log = Arc::new(log);
    let machine_config = config.machine(grant.cores.clone(), grant.memory_node);
    let control = make(&machine_config, Arc::clone(&log))?;
    if config.prefault {
        reservation.settle();
    }
    control.start()?;
    match control.wait_ready(BOOT_TIMEOUT) {
        MachineState::Idle | MachineState::Running { .. } => {}
        // Who runs a self-test wants to see the machine that failed it.
        MachineState::Failed { .. } if config.selftest != 0 => {}
        state => {
            let failure = boot_failure(&config.name, &state, &log);
            stop(control);
            return Err(failure);
        }
    }
    let effective = Effective {
        config,
        cores: grant.cores,
        idle: grant.idle,
        memory_node: grant.memory_node,
        warnings: grant.warnings,
        added_bytes: 0,
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        created_unix_ms: unix_ms(),
    };
    let text = serde_json::to_string_pretty(&effective)
        .map_err(|e| Failure::new(Class::Failure, &what, e))?;
    let published = reservation
        .dir()
        .write_config(&text)
        .map_err(|e| Failure::io(&what, e))
        .and_then(|()| reservation.dir().listen());
    let listener = match published {
        Ok(listener) => listener,
        Err(failure) => {
            stop(control);
            return Err(failure);
        }
    };
    let facts = Facts {
        effective,
        created,
        log,
    };
    Ok((control, facts, listener))
}

/// A warning when memory lies elsewhere than on the node it is preferred on; a
/// failure when it had to be there.
fn misplaced(effective: &Effective, placement: &Placement) -> Result<Option<String>, Failure> {
    let astray = placement.astray(effective.memory_node);
    let texts: Vec<String> = astray
        .iter()
        .map(|(node, bytes)| format!("{} KiB on node {node}", bytes >> 10))
        .collect();
    let texts = texts.join(", ");
    match effective.memory_node {
        _ if astray.is_empty() => Ok(None),
        MemoryNode::Bind(wanted) => {
            let what = format!("create enclave {}", effective.config.name);
            let why = format!("its memory has to be on node {wanted}, the kernel put {texts}");
            Err(Failure::new(Class::Resources, what, why).with_hint("enclavectl doctor"))
        }
        _ => Ok(Some(format!(
            "the node of the cores has too little memory: {texts} (slower to reach)"
        ))),
    }
}

/// Why a boot failed, with the end of the console.
fn boot_failure(name: &str, state: &MachineState, log: &ConsoleLog) -> Failure {
    let (class, mut why) = match state {
        MachineState::Failed { reason } => (Class::Failure, reason.clone()),
        MachineState::Booting => {
            let seconds = BOOT_TIMEOUT.as_secs();
            let why = format!("the kernel did not report within {seconds} s");
            (Class::Timeout, why)
        }
        other => (Class::Failure, format!("the machine is {other:?}")),
    };
    let tail = log.tail(TAIL_BYTES);
    if !tail.trim().is_empty() {
        why.push_str("; the console ends: ");
        why.push_str(tail.trim());
    }
    Failure::new(class, format!("boot enclave {name}"), why).with_hint("enclavectl doctor")
}

/// Stops the machine, but not longer than [`STOP_TIMEOUT`].
fn stop(control: Arc<dyn Control>) {
    let (done, wait) = mpsc::channel();
    let body = move || {
        control.stop();
        // Nobody listens when the time was over.
        let _ = done.send(());
    };
    // It closes the machine's connections, which helpers may not.
    let spawned = confine::spawn(Role::Vcpu, "stop", body);
    if spawned.is_ok() && wait.recv_timeout(STOP_TIMEOUT).is_err() {
        note(format_args!("the machine did not stop in {STOP_TIMEOUT:?}"));
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CoreRequest;
    use crate::control::client::Client;
    use crate::control::fake::FakeMachine;
    use crate::control::protocol::Request;
    use crate::ledger::RunDir;
    use crate::machine::{Backing, Ring};
    use crate::placement::{MemoryPlace, NodeBytes};
    use crate::scratch::Scratch;

    fn config() -> EnclaveConfig {
        EnclaveConfig {
            name: "a1".into(),
            cores: CoreRequest::Count(1),
            max_cores: None,
            share_cores: false,
            isolation: crate::isolation::Isolation::Auto,
            mem_bytes: 64 << 20,
            node: None,
            exports: Vec::new(),
            ring: Ring::Auto,
            without: crate::features::Features::default(),
            backing: Backing::Auto,
            prefault: true,
            kernel: "/k".into(),
            broker_socket: "/b".into(),
            selftest: 0,
        }
    }

    fn bring_up(scratch: &Scratch, machine: FakeMachine) -> Result<(Enclave, Started), Failure> {
        bring_up_as(scratch, config(), machine)
    }

    fn bring_up_as(
        scratch: &Scratch,
        config: EnclaveConfig,
        machine: FakeMachine,
    ) -> Result<(Enclave, Started), Failure> {
        let run = RunDir::create(&scratch.path().join("r"))?;
        let reservation = Reservation::take_name(run, "a1")?;
        let topology = Topology::of_nodes(&[(0, &[0, 1])]);
        let allowed = (0..2).collect();
        Enclave::bring_up(
            reservation,
            config,
            &topology,
            &allowed,
            |machine_config, log| {
                assert_eq!(machine_config.cores, [1]);
                log.write(b"kernel says hello\n");
                Ok(Arc::new(machine))
            },
        )
    }

    fn names(scratch: &Scratch) -> Vec<String> {
        let run = RunDir::open(&scratch.path().join("r")).unwrap().unwrap();
        run.names().unwrap()
    }

    #[test]
    fn an_enclave_lives_serves_and_leaves_nothing() {
        let scratch = Scratch::new("lifecycle");
        let (enclave, started) = bring_up(&scratch, FakeMachine::default()).unwrap();
        assert_eq!(started.effective.cores, [1]);
        let run = RunDir::open(&scratch.path().join("r")).unwrap().unwrap();
        let dir = run.enclave("a1", false).unwrap().unwrap();
        assert!(dir.open_file("config.json").is_ok());
        let mut client = Client::connect(&dir, Duration::from_secs(20)).unwrap();
        let serving = std::thread::spawn(move || {
            let signals = SignalFd::new(&[libc::SIGUSR1]).unwrap();
            enclave.serve(signals, None)
        });
        client.call(&Request::Stop {}).unwrap();
        assert_eq!(serving.join().unwrap().unwrap(), Ended::Requested);
        assert_eq!(names(&scratch), Vec::<String>::new());
    }

    #[test]
    fn a_kernel_that_does_not_come_up_leaves_its_words_and_no_files() {
        let scratch = Scratch::new("lifecycle");
        let failure = bring_up(&scratch, FakeMachine::failing("triple fault")).unwrap_err();
        assert!(failure.why.contains("triple fault"), "{failure}");
        assert!(failure.why.contains("kernel says hello"), "{failure}");
        assert_eq!(names(&scratch), Vec::<String>::new());
    }

    #[test]
    fn an_enclave_ends_with_the_creator_it_is_bound_to() {
        let scratch = Scratch::new("lifecycle");
        let (enclave, _) = bring_up(&scratch, FakeMachine::default()).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let serving = std::thread::spawn(move || {
            let signals = SignalFd::new(&[libc::SIGUSR1]).unwrap();
            enclave.serve(signals, Some(writer.into()))
        });
        let run = RunDir::open(&scratch.path().join("r")).unwrap().unwrap();
        let dir = run.enclave("a1", false).unwrap().unwrap();
        let mut client = Client::connect(&dir, Duration::from_secs(20)).unwrap();
        client.call(&Request::Ping {}).unwrap();
        assert!(!serving.is_finished());
        drop(reader);
        assert_eq!(serving.join().unwrap().unwrap(), Ended::CreatorGone);
        assert_eq!(names(&scratch), Vec::<String>::new());
    }

    #[test]
    fn a_machine_that_fails_its_self_test_is_kept_to_be_looked_at() {
        let scratch = Scratch::new("lifecycle");
        let wanted = EnclaveConfig {
            selftest: 1,
            ..config()
        };
        let machine = FakeMachine::failing("a kernel self-test failed");
        let (enclave, started) = bring_up_as(&scratch, wanted, machine).unwrap();
        assert!(matches!(started.machine, MachineState::Failed { .. }));
        enclave.abandon().unwrap();
        assert_eq!(names(&scratch), Vec::<String>::new());
    }

    #[test]
    fn a_machine_that_does_not_stop_holds_nobody_up() {
        let scratch = Scratch::new("lifecycle");
        let (enclave, _) = bring_up(&scratch, FakeMachine::never_stopping()).unwrap();
        let begin = Instant::now();
        enclave.abandon().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(names(&scratch), Vec::<String>::new());
    }

    #[test]
    fn memory_on_another_node_is_a_failure_only_where_it_was_asked_for() {
        let with = |memory_node, node: usize| {
            let effective = Effective {
                config: config(),
                cores: vec![2],
                idle: Vec::new(),
                memory_node,
                warnings: Vec::new(),
                added_bytes: 0,
                pid: 1,
                created_unix_ms: 1,
            };
            let placement = Placement {
                memory: vec![MemoryPlace {
                    nodes: vec![NodeBytes {
                        node,
                        bytes: 2 << 20,
                    }],
                    ..MemoryPlace::default()
                }],
                ..Placement::default()
            };
            misplaced(&effective, &placement)
        };
        assert_eq!(with(MemoryNode::Bind(1), 1), Ok(None));
        assert_eq!(with(MemoryNode::Any, 0), Ok(None));
        let failure = with(MemoryNode::Bind(1), 0).unwrap_err();
        assert_eq!(failure.class, Class::Resources);
        assert!(failure.why.contains("2048 KiB on node 0"), "{failure}");
        let warning = with(MemoryNode::Prefer(1), 0).unwrap().unwrap();
        assert!(warning.contains("2048 KiB on node 0"), "{warning}");
    }

    #[test]
    fn phases_follow_the_machine() {
        let program = "/p".to_owned();
        let running = MachineState::Running { program };
        assert_eq!(Phase::of_machine(&running), Phase::Running);
        assert_eq!(format!("{:<8}|", Phase::Idle), "idle    |");
    }
}
