//! The kernel's self-tests under KVM, one fresh machine each, in both privilege
//! modes.
//!
//! Needs /dev/kvm. A machine is made in this process, with a real broker beside it. The kernel
//! runs self-test `n` before it reports; a failed one is a failed machine.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use enclave_vmm::console_log::ConsoleLog;
use enclave_vmm::features::Features;
use enclave_vmm::machine::{
    Backing, Machine, MachineConfig, MachineState, MemoryNode, Ring, Selftest,
};
use xemem_host::Broker;

/// Longest time a machine may take to boot where ring 0 is interpreted.
const BOOT: Duration = Duration::from_secs(60);

/// A directory of its own with a broker in it; both go at the end.
struct Host {
    dir: PathBuf,
    broker: Child,
}

impl Host {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xasm-selftest-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let socket = dir.join("xemem.sock");
        let broker = Command::new(broker_program())
            .arg("--socket")
            .arg(&socket)
            .env("ENCLAVE_RUNDIR", &dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let host = Self { dir, broker };
        // Whoever comes first starts it; the other one's ends by itself.
        Broker::connect_or_start(&socket, &broker_program()).unwrap();
        host
    }

    fn boot(&self, ring: Ring, selftest: u32) -> (Machine, Arc<ConsoleLog>, MachineState) {
        let log = Arc::new(ConsoleLog::in_directory(&self.dir).unwrap());
        let config = MachineConfig {
            name: "selftest".into(),
            kernel: kernel_image(),
            mem_bytes: 64 << 20,
            cores: Vec::new(),
            max_cores: 1,
            memory_node: MemoryNode::Any,
            backing: Backing::Small,
            prefault: false,
            ring,
            without: Features::default(),
            broker_socket: self.dir.join("xemem.sock"),
            exports: Vec::new(),
            selftest,
        };
        let machine = Machine::create(&config, Arc::clone(&log)).unwrap();
        machine.start().unwrap();
        let state = machine.wait_ready(BOOT);
        (machine, log, state)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(mut broker) = Broker::connect(&self.dir.join("xemem.sock")) {
            let _ = broker.shutdown(true);
        }
        let _ = self.broker.kill();
        let _ = self.broker.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Built beside this test's own program.
fn broker_program() -> PathBuf {
    let vmm = Path::new(env!("CARGO_BIN_EXE_enclave-vmm"));
    let broker = vmm.with_file_name("xemem-broker");
    assert!(
        broker.is_file(),
        "{} is missing; try: cargo build -p xemem-host",
        broker.display()
    );
    broker
}

fn kernel_image() -> PathBuf {
    let image = std::env::var_os("ENCLAVE_KERNEL").map_or_else(
        || {
            let vmm = Path::new(env!("CARGO_BIN_EXE_enclave-vmm"));
            let target = vmm.ancestors().nth(2).unwrap();
            target.join("x86_64-unknown-none/kernel/enclave-kernel")
        },
        PathBuf::from,
    );
    assert!(
        image.is_file(),
        "{} is missing; try: cargo kernel",
        image.display()
    );
    image
}

/// How many self-tests the kernel says it has.
fn count(host: &Host, ring: Ring) -> u32 {
    let (machine, log, state) = host.boot(ring, 0);
    machine.stop();
    assert_eq!(state, MachineState::Idle, "{}", log.tail(2000));
    assert_eq!(machine.report().selftest, Selftest::None);
    machine.report().selftest_count
}

/// Every self-test passes, or says what this CPU lacks for it.
fn all_pass(ring: Ring, mode: &str) {
    let host = Host::new();
    let count = count(&host, ring);
    assert!(count > 0);
    let mut passed = 0;
    for number in 1..=count {
        let (machine, log, state) = host.boot(ring, number);
        machine.stop();
        let text = log.tail(2000);
        assert_eq!(state, MachineState::Idle, "self-test {number}: {text}");
        let report = machine.report();
        assert_eq!(report.kernel_mode, mode);
        let line = match report.selftest {
            Selftest::Passed => "): passed",
            Selftest::NotCovered => "): not covered: ",
            other => panic!("self-test {number} is {other:?}: {text}"),
        };
        assert!(text.contains(line), "self-test {number}: {text}");
        passed += u32::from(report.selftest == Selftest::Passed);
    }
    assert!(passed > 0);
}

#[test]
fn kernel_self_tests_pass_in_ring3_mode() {
    all_pass(Ring::Ring3, "ring3");
}

#[test]
fn kernel_self_tests_pass_in_ring0_mode() {
    all_pass(Ring::Ring0, "ring0");
}

#[test]
fn a_self_test_that_does_not_exist_fails_the_machine_and_lists_those_that_do() {
    let host = Host::new();
    let count = count(&host, Ring::Auto);
    let (machine, log, state) = host.boot(Ring::Auto, count + 1);
    machine.stop();
    assert!(matches!(state, MachineState::Failed { .. }), "{state:?}");
    assert_eq!(machine.report().selftest, Selftest::Failed);
    let text = log.tail(64 << 10);
    assert!(text.contains("there is no such test"), "{text}");
    for number in 1..=count {
        assert!(text.contains(&format!("self-test {number} (")), "{text}");
    }
}

#[test]
fn a_machine_stops_while_its_kernel_waits() {
    let host = Host::new();
    let (machine, _log, state) = host.boot(Ring::Auto, 0);
    assert_eq!(state, MachineState::Idle);
    machine.stop();
    assert_eq!(machine.state(), MachineState::Stopped);
    machine.stop();
}
