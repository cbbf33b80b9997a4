//! Whose process a broker is that root starts. Another user can only be told
//! that it cannot become somebody else; what root alone can look at is left out
//! then, aloud.

use crate::broker_process::{BROKER, BrokerProcess, Fresh};
use crate::kill_broker;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use xemem_host::{SegmentRequest, SegmentState};

/// A number that stands for no user.
const UID: u32 = 61_234;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("not root: a broker keeps its user, nothing to look at");
    }
    is_root
}

/// The values of a line of /proc/PID/status.
fn status(pid: Pid, name: &str) -> Vec<String> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(path).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let values = line.expect("a line").split_ascii_whitespace();
    values.map(str::to_owned).collect()
}

fn assert_is(pid: Pid, uid: u32) {
    for line in ["Uid:", "Gid:"] {
        assert_eq!(status(pid, line), vec![uid.to_string(); 4], "{line}");
    }
    assert_eq!(status(pid, "Groups:"), [""; 0]);
    for line in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(status(pid, line), ["0000000000000000"], "{line}");
    }
    assert_eq!(status(pid, "NoNewPrivs:"), ["1"]);
    // Not dumpable: the host kernel gives its files in /proc to root.
    let path = format!("/proc/{}/fd", pid.as_raw_nonzero());
    assert_eq!(std::fs::metadata(path).expect("a process").uid(), 0);
}

fn refused(arguments: &[&str], socket: &Path) -> String {
    let mut command = Command::new(BROKER);
    let Output { status, stderr, .. } = command
        .args(arguments)
        .args(["--linger-ms", "0", "--socket"])
        .arg(socket)
        .output()
        .expect("it runs");
    let said = String::from_utf8(stderr).expect("text");
    assert_eq!(status.code(), Some(1), "{said}");
    let starts: Vec<_> = said.lines().map(|line| line.split(' ').next()).collect();
    let wanted = ["xemem-broker:", "why:", "try:"].map(Some);
    assert_eq!(starts, wanted, "{said}");
    said
}

#[test]
fn keeper_and_broker_are_the_user_that_was_asked_for_over_every_death() {
    if !is_root() {
        return;
    }
    let mut process = BrokerProcess::with(&["--user", &UID.to_string()]);
    let mut client = process.connect();
    let request = SegmentRequest {
        name: "precious".to_owned(),
        size_bytes: 4096,
        ..SegmentRequest::default()
    };
    let made = client.make_segment(&request).expect("made");
    assert_is(Pid::from_child(&process.child), UID);
    for _ in 0..2 {
        assert_is(process.broker(), UID);
        kill_broker(&process);
        assert_eq!(client.lookup("precious", None).expect("found"), made.segid);
    }
    process.child.kill().expect("killed");
    process.child.wait().expect("reaped");
    kill_broker_when_kept(&mut client, &process);
    assert_is(process.broker(), UID);
    let kept = client.status().expect("a status").keeper;
    let kept = Pid::from_raw(kept.try_into().expect("a pid")).expect("a keeper");
    assert_is(kept, UID);
    assert_eq!(client.lookup("precious", None).expect("found"), made.segid);
    let info = client.list().expect("a list").into_iter().next();
    assert_eq!(info.expect("one").state, SegmentState::Live);
}

/// Kills the broker once another keeper has taken over from the one that died.
fn kill_broker_when_kept(client: &mut xemem_host::Broker, process: &BrokerProcess) {
    let dead = process.child.id();
    while client.status().expect("a status").keeper == dead {
        std::thread::yield_now();
    }
    kill_broker(process);
}

#[test]
fn a_broker_of_root_is_not_root_and_leaves_no_socket() {
    if !is_root() {
        return;
    }
    let mut process = BrokerProcess::start();
    let broker = process.broker();
    assert_ne!(status(broker, "Uid:")[0], "0");
    for name in ["xemem.sock", "xemem.lock"] {
        let meta = std::fs::metadata(process.dir.0.join(name)).expect("there");
        assert_eq!(meta.uid(), 0, "{name}");
    }
    let lock = std::fs::metadata(process.dir.0.join("xemem.lock")).expect("there");
    assert_eq!(lock.mode() & 0o777, 0o600);
    kill_process(Pid::from_child(&process.child), Signal::TERM).expect("signalled");
    assert_eq!(process.child.wait().expect("it ends").code(), Some(0));
    assert!(!process.socket().exists());
}

#[test]
fn others_of_the_brokers_user_are_not_its_owner() {
    if !is_root() {
        return;
    }
    let process = BrokerProcess::with(&["--user", &UID.to_string()]);
    let socket = process.socket();
    let stranger = std::thread::spawn(move || {
        let uid = rustix::fs::Uid::from_raw(UID);
        // Of this thread alone.
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("another user");
        let mut client = xemem_host::Broker::connect(&socket).expect("connected");
        client.shutdown(true).expect_err("refused");
        std::fs::remove_file(&socket).expect_err("root's directory");
        std::fs::File::open(socket.with_extension("lock")).expect_err("root's lock");
    });
    stranger.join().expect("as it should be");
    process.connect().status().expect("it serves");
}

#[test]
fn unknown_users_are_refused_in_three_lines() {
    let dir = Fresh::new();
    let said = refused(&["--user", "no-such-user"], &dir.socket());
    assert!(said.contains("no-such-user"), "{said}");
    assert!(!dir.socket().exists());
    if !rustix::process::geteuid().is_root() {
        let said = refused(&["--user", "root"], &dir.socket());
        assert!(said.contains("only root"), "{said}");
    }
}

#[test]
fn a_directory_that_others_could_change_is_refused() {
    if !is_root() {
        return;
    }
    let dir = Fresh::new();
    let (real, link) = (dir.0.join("real"), dir.0.join("link"));
    std::fs::create_dir(&real).expect("made");
    symlink(&real, &link).expect("linked");
    refused(&[], &link.join("xemem.sock"));
    symlink("/etc/passwd", real.join("xemem.lock")).expect("linked");
    refused(&[], &real.join("xemem.sock"));
    std::fs::remove_file(real.join("xemem.lock")).expect("removed");
    symlink("/etc/passwd", real.join("xemem.sock")).expect("linked");
    refused(&[], &real.join("xemem.sock"));
    std::fs::remove_file(real.join("xemem.sock")).expect("removed");
    std::fs::set_permissions(&real, Permissions::from_mode(0o777)).expect("opened");
    refused(&[], &real.join("xemem.sock"));
    std::fs::set_permissions(&real, Permissions::from_mode(0o755)).expect("closed");
    std::os::unix::fs::chown(&real, Some(UID), None).expect("given away");
    refused(&[], &real.join("xemem.sock"));
}
