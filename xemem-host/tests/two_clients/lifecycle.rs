//! How brokers begin and end, and who serves when several begin at once.

use crate::broker_process::{BROKER, BrokerProcess, Fresh};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use xemem_host::{Broker, ClientError};

fn run(socket: &Path) -> Output {
    let mut command = Command::new(BROKER);
    command.arg("--linger-ms").arg("0").arg("--socket");
    command.arg(socket).output().expect("it runs")
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

#[test]
fn a_broker_without_clients_ends_and_takes_its_socket_along() {
    let mut process = BrokerProcess::with(&["--linger-ms", "20"]);
    let status = process.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(!process.socket().exists());
}

#[test]
fn a_broker_with_a_client_stays() {
    let mut process = BrokerProcess::with(&["--linger-ms", "500"]);
    let mut client = process.connect();
    // Three times as long as it would linger alone.
    while client.status().expect("it serves").uptime_ms < 1500 {
        std::thread::yield_now();
    }
    drop(client);
    assert_eq!(process.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn sigterm_ends_a_broker_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut process = BrokerProcess::start();
        let mut client = process.connect();
        let pid = Pid::from_child(&process.child);
        kill_process(pid, signal).expect("signalled");
        let status = process.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0));
        assert!(!process.socket().exists());
        assert!(matches!(client.status(), Err(ClientError::BrokerGone)));
    }
}

#[test]
fn shutdown_is_refused_while_in_use_unless_forced() {
    let mut process = BrokerProcess::start();
    let mut client = process.connect();
    client.register_enclave("a1").expect("registered");
    let refused = client.shutdown(false).expect_err("in use").refusal();
    assert_eq!(refused, Some(rustix::io::Errno::BUSY));
    client.shutdown(true).expect("forced");
    assert_eq!(process.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_second_broker_leaves_quietly() {
    let process = BrokerProcess::start();
    let second = run(&process.socket());
    assert_eq!(second.status.code(), Some(0));
    assert!(second.stderr.is_empty());
    process.connect().status().expect("the first still serves");
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = Fresh::new();
    drop(UnixListener::bind(dir.socket()).expect("a socket"));
    assert!(is_socket(&dir.socket()));
    let broker = run(&dir.socket());
    assert_eq!(broker.status.code(), Some(0), "{broker:?}");
    assert!(!dir.socket().exists());
}

#[test]
fn anything_else_in_the_way_is_an_error_and_stays() {
    let dir = Fresh::new();
    std::fs::write(dir.socket(), "precious").expect("a file");
    let output = run(&dir.socket());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("not a socket"), "{said}");
    assert!(said.contains("\ntry: "), "{said}");
    let kept = std::fs::read(dir.socket()).expect("still there");
    assert_eq!(kept, b"precious");
}

#[test]
fn a_run_directory_that_is_a_symlink_is_refused_in_three_lines() {
    let dir = Fresh::new();
    let (real, link) = (dir.0.join("real"), dir.0.join("link"));
    std::fs::create_dir(&real).expect("a directory");
    std::os::unix::fs::symlink(&real, &link).expect("a symlink");
    let run_in = |run_dir: &Path| {
        let mut command = Command::new(BROKER);
        command.args(["--linger-ms", "0"]);
        let command = command.env("ENCLAVE_RUNDIR", run_dir);
        command.output().expect("it runs")
    };
    let output = run_in(&link);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].starts_with("xemem-broker: cannot"), "{said}");
    assert!(lines[1].contains("symlink"), "{said}");
    assert!(lines[2].starts_with("try: "), "{said}");
    // Made if it is not there, and used.
    let output = run_in(&real.join("new"));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(real.join("new/xemem.lock").exists());
}

#[test]
fn a_socket_somebody_else_put_there_is_left_alone() {
    let mut process = BrokerProcess::start();
    std::fs::remove_file(process.socket()).expect("removed");
    std::fs::write(process.socket(), "precious").expect("a file");
    let pid = Pid::from_child(&process.child);
    kill_process(pid, Signal::TERM).expect("signalled");
    assert_eq!(process.child.wait().expect("it ends").code(), Some(0));
    assert!(process.socket().exists());
}

#[test]
fn many_clients_start_one_broker() {
    let dir = Fresh::new();
    let exe = Path::new(BROKER);
    let connect = || Broker::connect_or_start(&dir.socket(), exe).expect("connected");
    let mut clients: Vec<Broker> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(connect)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|broker| broker.expect("no panic")).collect()
    });
    let status = clients[0].status().expect("it serves");
    assert_eq!(status.clients, 8);
    for client in &mut clients {
        assert_eq!(client.status().expect("it serves").pid, status.pid);
    }
    clients[0].shutdown(true).expect("ended");
    // Gone with its socket; the next client starts another one.
    while clients[1].status().is_ok() {
        std::thread::yield_now();
    }
    let mut again = connect();
    let pid = again.status().expect("it serves").pid;
    assert_ne!(pid, status.pid);
    again.shutdown(true).expect("ended");
}

#[test]
fn a_broker_that_cannot_start_says_why() {
    let dir = Fresh::new();
    let no_such = dir.0.join("no-such-broker");
    let refused = Broker::connect_or_start(&dir.socket(), &no_such);
    let refused = refused.expect_err("no program").to_string();
    assert!(refused.contains("no-such-broker"), "{refused}");

    let socket = dir.0.join("no/such/dir/xemem.sock");
    let refused = Broker::connect_or_start(&socket, Path::new(BROKER));
    let refused = refused.expect_err("no directory").to_string();
    assert!(refused.contains("exit status: 1"), "{refused}");
}

#[test]
fn help_documents_every_exit_code() {
    let output = Command::new(BROKER)
        .arg("--help")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8_lossy(&output.stdout);
    for line in [
        "  0  ended when it should",
        "  1  could not serve",
        "  2  wrong arguments",
    ] {
        assert!(help.contains(line), "{help}");
    }
    let wrong = Command::new(BROKER).arg("--no-such-option").output();
    assert_eq!(wrong.expect("it runs").status.code(), Some(2));
}
