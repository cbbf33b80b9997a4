//! The `enclave-vmm` program before it has a machine: what it refuses, what
//! it says through the ready pipe, and that a refusal leaves nothing.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use enclave_vmm::control::protocol::{Ready, decode};
use enclave_vmm::failure::{Class, Failure};

/// A directory of its own, removed at the end of the test.
struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("enclave-vmm-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Runs the program on a configuration; its ready line and its end.
    fn run(&self, config: &str) -> (Vec<u8>, Output) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        // Inherited under its own number.
        rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_enclave-vmm"))
            .args(["--config", "-", "--ready-fd"])
            .arg(writer.as_raw_fd().to_string())
            .env("ENCLAVE_RUNDIR", self.0.join("run"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(writer);
        // A program that refuses early does not read it all.
        let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
        let mut line = Vec::new();
        reader.read_to_end(&mut line).unwrap();
        (line, child.wait_with_output().unwrap())
    }

    /// Runs, expects a refusal of one class by exit code and ready line.
    fn refused(&self, config: &str, class: Class) -> Failure {
        let (line, output) = self.run(config);
        assert_eq!(output.status.code(), Some(class.exit_code().into()));
        let Ready::Error(failure) = decode(&line).unwrap() else {
            panic!("{}", String::from_utf8_lossy(&line));
        };
        assert_eq!(failure.class, class, "{failure}");
        failure
    }

    fn enclaves(&self) -> usize {
        fs::read_dir(self.0.join("run/enclaves")).map_or(0, Iterator::count)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn config(changes: &[(&str, serde_json::Value)]) -> String {
    let mut config = serde_json::json!({
        "name": "a1",
        "cores": { "count": 1 },
        "share_cores": true,
        "mem_bytes": 32 << 20,
        "ring": "auto",
        "backing": "small",
        "prefault": false,
        "kernel": "/nonexistent/kernel",
        "broker_socket": "/nonexistent/broker",
    });
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config.to_string()
}

#[test]
fn configurations_that_cannot_be_are_usage_errors() {
    let host = Host::new();
    for text in [
        String::new(),
        "{}".to_owned(),
        "[1,2".to_owned(),
        config(&[("colour", 1.into())]),
        config(&[("name", "../x".into())]),
        config(&[("mem_bytes", 1.into())]),
        config(&[("cores", serde_json::json!({ "count": 33 }))]),
    ] {
        host.refused(&text, Class::Usage);
    }
    assert!(!host.0.join("x").exists());
    assert_eq!(host.enclaves(), 0);
}

#[test]
fn what_the_host_does_not_have_is_refused_and_leaves_nothing() {
    let host = Host::new();
    let core = serde_json::json!({ "list": [4095] });
    let failure = host.refused(&config(&[("cores", core)]), Class::Resources);
    assert!(
        failure.why.contains("core 4095 does not exist"),
        "{failure}"
    );
    assert_eq!(host.enclaves(), 0);
}

#[test]
fn a_machine_that_cannot_be_made_leaves_nothing() {
    let host = Host::new();
    let (line, output) = host.run(&config(&[]));
    assert!(matches!(decode(&line), Ok(Ready::Error(_))));
    assert!(!output.status.success());
    assert_eq!(host.enclaves(), 0);
}

#[test]
fn a_name_that_is_taken_names_the_holder() {
    let host = Host::new();
    let (_, _) = host.run(&config(&[]));
    let dir = host.0.join("run/enclaves/a1");
    fs::create_dir(&dir).unwrap();
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let failure = host.refused(&config(&[]), Class::Busy);
    assert_eq!(failure.hint, "enclavectl destroy a1");
    assert!(dir.join("lock").exists());
}

#[test]
fn links_planted_anywhere_in_the_run_directory_are_not_followed() {
    let files = [
        "lock",
        "control.sock",
        "config.json",
        "config.json.new",
        "console.log",
        "console.log.1",
        "vmm.log",
        "crash",
    ];
    let inside = files.map(|file| format!("enclaves/a1/{file}"));
    let ledger = ["ledger/admission.lock", "ledger/core-0.lock"].map(str::to_owned);
    for planted in inside.into_iter().chain(ledger) {
        let host = Host::new();
        for dir in ["run/ledger", "run/enclaves/a1"] {
            fs::create_dir_all(host.0.join(dir)).unwrap();
        }
        let (victim, absent) = (host.0.join("victim"), host.0.join("absent"));
        fs::write(&victim, "precious").unwrap();
        for target in [&victim, &absent] {
            let link = host.0.join("run").join(&planted);
            let _ = fs::remove_file(&link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, &link).unwrap();
            // Core 0 is granted wherever it may be, so its lock is tried.
            let core = serde_json::json!({ "list": [0] });
            let _ = host.run(&config(&[("cores", core)]));
            assert_eq!(fs::read(&victim).unwrap(), b"precious", "{planted}");
            assert!(!absent.exists(), "{planted}");
        }
    }
}

#[test]
fn a_link_in_place_of_a_directory_is_refused() {
    for planted in ["enclaves", "ledger", "enclaves/a1"] {
        let host = Host::new();
        let elsewhere = host.0.join("elsewhere");
        fs::create_dir_all(elsewhere.join("a1")).unwrap();
        let link = host.0.join("run").join(planted);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let (line, output) = host.run(&config(&[]));
        assert!(!output.status.success(), "{planted}");
        assert!(matches!(decode(&line), Ok(Ready::Error(_))), "{planted}");
        assert_eq!(fs::read_dir(elsewhere.join("a1")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "{planted}");
    }
}

#[test]
fn a_ready_descriptor_that_is_not_open_is_a_usage_error() {
    let status = Command::new(env!("CARGO_BIN_EXE_enclave-vmm"))
        .args(["--config", "-", "--ready-fd", "77"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(2));
}
