//! Clients that speak nonsense to the broker and to the control socket while a
//! simulation publishes: they are dropped, and nobody else notices.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use enclave_vmm::control::channel::send_all;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use xemem_host::wire::socket::send;

use crate::simulation::{published, read, simulate, summary};
use crate::stage::{PATIENCE, Stage, eventually};
use crate::support::BUSYBOX;

const STEPS: u32 = 80;

/// Bytes without meaning, always the same.
fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Runs `disturb` while a simulation publishes and a reader reads; both must
/// come to their ends as if nothing had been.
fn undisturbed(disturb: impl FnOnce(&Stage)) {
    let stage = Stage::new();
    let mut reader = read(&stage);
    let mut simulation = simulate(&stage, STEPS);
    reader.next().unwrap();
    disturb(&stage);
    let report = simulation.rest();
    assert_eq!(simulation.code(), 0);
    let (done, dropped) = published(&report);
    assert_eq!(done + dropped, u64::from(STEPS));
    let end = summary(&reader.rest());
    assert_eq!(reader.code(), 0, "{end}");
    assert_eq!(end["torn"], 0, "{end}");
    assert_eq!(end["end"], "closed by its program");
    stage.still_runs("t");
}

fn to_broker(stage: &Stage) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let address = SocketAddrUnix::new(stage.run_dir().join("xemem.sock")).unwrap();
    connect(&socket, &address).unwrap();
    socket
}

#[test]
fn nonsense_at_the_broker_disturbs_nobody() {
    undisturbed(|stage| {
        for seed in 0..200 {
            let socket = to_broker(stage);
            let length = usize::try_from(seed).unwrap() * 23 % 4096;
            // It may have hung up on the first of them.
            for part in 0..3 {
                send(&socket, &noise(length, seed * 3 + part), &[]).ok();
            }
        }
        assert_ne!(stage.broker()["protocol_errors"], 0);
    });
}

#[test]
fn idle_and_silent_connections_to_the_broker_disturb_nobody() {
    undisturbed(|stage| {
        let idle: Vec<OwnedFd> = (0..100).map(|_| to_broker(stage)).collect();
        assert_eq!(stage.state("t"), "running");
        drop(idle);
    });
}

fn to_control(stage: &Stage) -> UnixStream {
    let path = stage.run_dir().join("enclaves/t/control.sock");
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything the control server answers before it hangs up.
#[track_caller]
fn answer(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        // What we sent and it did not read makes its close a reset.
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn nonsense_at_the_control_socket_disturbs_nobody() {
    undisturbed(|stage| {
        let deep = "[".repeat(100_000);
        let long = "x".repeat(2 << 20);
        for text in [
            "\n",
            "{}\n",
            "{\"protocol\":9,\"body\":{\"op\":\"stop\"}}\n",
            "{\"protocol\":1,\"body\":{\"op\":\"fly\"}}\n",
            "{\"protocol\":1,\"body\":{\"op\":\"kill\",\"run\":1,\"signal\":0}}\n",
            "{\"protocol\":1,\"body\":{\"op\":\"kill\",\"run\":99,\"signal\":300}}\n",
            &format!("{deep}\n"),
            &long,
        ] {
            let mut stream = to_control(stage);
            // It may hang up before it has read everything.
            stream.write_all(text.as_bytes()).ok();
            stream.shutdown(std::net::Shutdown::Write).ok();
            let said = answer(&mut stream);
            assert!(
                said.is_empty() || said.contains("error"),
                "{text:.60}: {said}"
            );
        }
        for seed in 0..100 {
            let mut stream = to_control(stage);
            stream.write_all(&noise(3000, seed)).ok();
        }
    });
}

#[test]
fn idle_and_deaf_connections_to_the_control_socket_disturb_nobody() {
    undisturbed(|stage| {
        // Few enough to leave room for others.
        let _idle: Vec<UnixStream> = (0..8).map(|_| to_control(stage)).collect();
        let mut deaf = to_control(stage);
        let briefly = Some(Duration::from_millis(20));
        deaf.set_write_timeout(briefly).unwrap();
        let ask = b"{\"protocol\":1,\"body\":{\"op\":\"inspect\"}}\n";
        // More than it will ever read, until its socket is full.
        while deaf.write_all(ask).is_ok() {}
        let answers = || stage.state("t") != "unresponsive";
        eventually("the enclave answers others", answers);
    });
}

/// A `run` with these descriptors; what is answered.
fn run_with(stage: &Stage, fds: &[BorrowedFd<'_>], more: &str) -> String {
    let mut stream = to_control(stage);
    let text = format!(
        "{{\"protocol\":1,\"body\":{{\"op\":\"run\",\"path\":\"/x\",\"argv\":[\"x\"],\
         \"envp\":[],\"cwd\":null,\"host_cwd\":\"/\",\"stack_bytes\":0{more}}}}}\n"
    );
    send_all(&stream, text.as_bytes(), fds).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    answer(&mut stream)
}

#[test]
fn runs_with_the_wrong_descriptors_are_refused() {
    let stage = Stage::new();
    let null = File::open("/dev/null").unwrap();
    let busybox = File::open(BUSYBOX).unwrap();
    let directory = File::open("/").unwrap();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let (good, other) = (busybox.as_fd(), null.as_fd());
    for (fds, more) in [
        (&[][..], ""),
        (&[good], ""),
        (&[good, other, other], ""),
        (&[other, other, other, other], ""),
        (&[reader.as_fd(), other, other, other], ""),
        (&[directory.as_fd(), other, other, other], ""),
        (&[good, other, other, other], ",\"turbo\":true"),
    ] {
        let said = run_with(&stage, fds, more);
        assert!(
            said.contains("error") || said.contains("refused"),
            "{} descriptors, {more}: {said}",
            fds.len()
        );
        stage.still_runs("t");
    }
}
