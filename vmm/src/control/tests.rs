//! The server on real sockets with a faked machine, well and ill treated.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::channel::send_all;
use super::client::Client;
use super::fake::FakeMachine;
use super::protocol::{Effective, MAX_LINE_BYTES, Reply, Request, encode};
use super::server::{Ended, Facts, MAX_CONNECTIONS, serve};
use crate::config::{CoreRequest, EnclaveConfig, parse_export};
use crate::console_log::ConsoleLog;
use crate::failure::{Class, Failure};
use crate::ledger::{EnclaveDir, RunDir};
use crate::machine::{Backing, MemoryNode, Ring, RunOutcome};
use crate::scratch::Scratch;
use crate::signals::SignalFd;

const TIMEOUT: Duration = Duration::from_secs(20);

struct Served {
    scratch: Scratch,
    dir: EnclaveDir,
    machine: Arc<FakeMachine>,
    thread: Option<JoinHandle<Result<Ended, Failure>>>,
}

fn effective(scratch: &Scratch) -> Effective {
    Effective {
        config: EnclaveConfig {
            name: "a1".into(),
            cores: CoreRequest::Count(1),
            max_cores: None,
            share_cores: false,
            isolation: crate::isolation::Isolation::Auto,
            mem_bytes: 64 << 20,
            node: None,
            exports: vec![parse_export(&format!("{}=/data", scratch.path().display())).unwrap()],
            ring: Ring::Auto,
            without: crate::features::Features::default(),
            backing: Backing::Auto,
            prefault: true,
            kernel: "/k".into(),
            broker_socket: "/b".into(),
            selftest: 0,
        },
        cores: vec![1],
        idle: Vec::new(),
        memory_node: MemoryNode::Any,
        warnings: Vec::new(),
        added_bytes: 0,
        pid: 1,
        created_unix_ms: 1,
    }
}

fn start() -> Served {
    let scratch = Scratch::new("control");
    let run = RunDir::create(&scratch.path().join("r")).unwrap();
    let dir = run.enclave("a1", true).unwrap().unwrap();
    let listener = dir.listen().unwrap();
    let machine = Arc::new(FakeMachine::default());
    let facts = Facts {
        effective: effective(&scratch),
        created: Instant::now(),
        log: Arc::new(ConsoleLog::create(dir.fd()).unwrap()),
    };
    let control = Arc::clone(&machine);
    let thread = std::thread::spawn(move || {
        let signals = SignalFd::new(&[libc::SIGUSR1]).unwrap();
        serve(listener, signals, None, (control, Arc::default()), facts)
    });
    Served {
        scratch,
        dir,
        machine,
        thread: Some(thread),
    }
}

impl Served {
    fn client(&self) -> Client {
        Client::connect(&self.dir, TIMEOUT).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.socket_path()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Sends bytes that are no good; the answer must be an error of class
    /// `class`, then the end, and the server must go on.
    fn rejects(&self, bytes: &[u8], class: &str) {
        let mut stream = self.raw();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\"reply\":\"error\""), "{answer}");
        assert!(
            answer.contains(&format!("\"class\":\"{class}\"")),
            "{answer}"
        );
        self.is_alive();
    }

    fn is_alive(&self) {
        assert!(matches!(
            self.client().call(&Request::Ping {}).unwrap(),
            Reply::Ok
        ));
    }

    fn program(&self, text: &str) -> File {
        let path = self.scratch.path().join("program");
        std::fs::write(&path, text).unwrap();
        File::open(path).unwrap()
    }

    fn stop(mut self) -> Ended {
        self.client().call(&Request::Stop {}).unwrap();
        self.thread.take().unwrap().join().unwrap().unwrap()
    }
}

fn run_request(cwd: Option<&str>, host_cwd: &str) -> Request {
    Request::Run {
        path: "/bin/p".into(),
        argv: vec!["p".into()],
        envp: Vec::new(),
        cwd: cwd.map(str::to_owned),
        host_cwd: host_cwd.into(),
        stack_bytes: 0,
        limit_bytes: 0,
        detached: false,
    }
}

fn run(client: &mut Client, image: &File) {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let null = null.as_fd();
    let fds: [BorrowedFd<'_>; 4] = [image.as_fd(), null, null, null];
    client.send(&run_request(None, "/nowhere"), &fds).unwrap();
}

fn accepted(client: &mut Client) -> u64 {
    match client.receive().unwrap() {
        Reply::Accepted { run } => run,
        other => panic!("{other:?}"),
    }
}

fn finished(client: &mut Client) -> RunOutcome {
    match client.receive().unwrap() {
        Reply::Finished { outcome, .. } => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_is_accepted_finishes_and_is_remembered() {
    let served = start();
    let mut client = served.client();
    run(&mut client, &served.program("exit 7"));
    accepted(&mut client);
    assert_eq!(finished(&mut client), RunOutcome::Exited { code: 7 });
    let inspection = served.client().inspect().unwrap();
    assert_eq!(inspection.report.kernel_mode, "fake");
    assert_eq!(
        inspection.last_outcome,
        Some(RunOutcome::Exited { code: 7 })
    );
    assert_eq!(served.stop(), Ended::Requested);
}

#[test]
fn the_same_connection_can_kill_and_run_again() {
    let served = start();
    let mut client = served.client();
    run(&mut client, &served.program("loop"));
    let number = accepted(&mut client);
    client
        .send(
            &Request::Kill {
                run: number,
                signal: 15,
            },
            &[],
        )
        .unwrap();
    let (mut oks, mut outcome) = (0, None);
    for _ in 0..2 {
        match client.receive().unwrap() {
            Reply::Ok => oks += 1,
            Reply::Finished { outcome: o, .. } => outcome = Some(o),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(oks, 1);
    assert!(matches!(
        outcome,
        Some(RunOutcome::Signaled { signal: 15, .. })
    ));
    run(&mut client, &served.program("exit 0"));
    accepted(&mut client);
    assert_eq!(finished(&mut client), RunOutcome::Exited { code: 0 });
    served.stop();
}

#[test]
fn a_client_that_disappears_hangs_up_its_program() {
    let served = start();
    let mut client = served.client();
    run(&mut client, &served.program("loop"));
    let number = accepted(&mut client);
    drop(client);
    let outcome = served.machine.outcome(number);
    assert!(
        matches!(outcome, RunOutcome::Signaled { signal: 1, .. }),
        "{outcome:?}"
    );
    served.stop();
}

#[test]
fn a_client_gone_before_the_answer_hangs_up_too() {
    let served = start();
    let mut client = served.client();
    run(&mut client, &served.program("loop"));
    drop(client);
    // The first run of this machine, whether it is over by now or not.
    let outcome = served.machine.outcome(1);
    assert!(
        matches!(outcome, RunOutcome::Signaled { signal: 1, .. }),
        "{outcome:?}"
    );
    served.stop();
}

#[test]
fn a_program_too_many_is_told_how_many_run() {
    let served = start();
    let mut first = served.client();
    run(&mut first, &served.program("loop"));
    accepted(&mut first);
    let mut second = served.client();
    run(&mut second, &served.program("exit 0"));
    let failure = second.receive().unwrap_err();
    assert_eq!(failure.class, Class::Busy);
    assert!(failure.why.contains("already runs 1"), "{failure}");
    served.stop();
}

#[test]
fn stop_ends_the_loop_while_a_program_runs() {
    let served = start();
    let mut client = served.client();
    run(&mut client, &served.program("loop"));
    accepted(&mut client);
    assert_eq!(served.stop(), Ended::Requested);
    let outcome = finished(&mut client);
    assert!(
        matches!(outcome, RunOutcome::MachineStopped { .. }),
        "{outcome:?}"
    );
}

#[test]
fn the_working_directory_follows_the_exports() {
    let served = start();
    let here = served.scratch.path().join("sub");
    let null = File::open("/dev/null").unwrap();
    let null = null.as_fd();
    for (cwd, host) in [
        (None, here.to_str().unwrap()),
        (None, "/nowhere"),
        (Some("/given"), "/nowhere"),
    ] {
        let image = served.program("exit 0");
        let mut client = served.client();
        client
            .send(&run_request(cwd, host), &[image.as_fd(), null, null, null])
            .unwrap();
        accepted(&mut client);
        finished(&mut client);
    }
    assert_eq!(served.machine.cwds(), ["/data/sub", "/", "/given"]);
    served.stop();
}

#[test]
fn hostile_bytes_get_an_error_and_the_door() {
    let served = start();
    served.rejects(b"hello\n", "protocol");
    served.rejects(b"\0\0\0\0\n", "protocol");
    served.rejects(b"\n", "protocol");
    served.rejects(b"{\"protocol\":2,\"body\":{}}\n", "protocol");
    served.rejects(
        b"{\"protocol\":1,\"body\":{\"op\":\"kill\",\"run\":1,\"signal\":0}}\n",
        "protocol",
    );
    served.stop();
}

#[test]
fn a_line_without_end_is_cut_off() {
    let served = start();
    let mut stream = served.raw();
    let junk = vec![b'x'; 64 << 10];
    let mut sent = 0;
    // The server closes somewhere after the limit; writing then fails.
    while sent < 4 * MAX_LINE_BYTES && stream.write_all(&junk).is_ok() {
        sent += junk.len();
    }
    assert!(sent < 4 * MAX_LINE_BYTES, "{sent} bytes were swallowed");
    served.is_alive();
    served.stop();
}

#[test]
fn wrong_numbers_of_descriptors_are_refused() {
    let served = start();
    let null = File::open("/dev/null").unwrap();
    for count in [0, 3, 5] {
        let stream = served.raw();
        let fds = vec![null.as_fd(); count];
        let line = encode(&run_request(None, "/")).unwrap();
        let sent = if count > 4 {
            // More than one message carries: two of them.
            send_all(&stream, &line[..1], &fds[..3]).unwrap();
            send_all(&stream, &line[1..], &fds[3..])
        } else {
            send_all(&stream, &line, &fds)
        };
        sent.unwrap();
        let mut answer = String::new();
        (&stream).read_to_string(&mut answer).unwrap();
        assert!(
            answer.contains("\"class\":\"protocol\""),
            "{count}: {answer}"
        );
        served.is_alive();
    }
    let stream = served.raw();
    let line = encode(&Request::Ping {}).unwrap();
    send_all(&stream, &line, &[null.as_fd()]).unwrap();
    let mut answer = String::new();
    (&stream).read_to_string(&mut answer).unwrap();
    assert!(answer.contains("takes none"), "{answer}");
    served.stop();
}

#[test]
fn an_image_that_is_no_file_is_refused() {
    let served = start();
    let mut client = served.client();
    run(&mut client, &File::open("/dev/null").unwrap());
    let failure = client.receive().unwrap_err();
    assert!(failure.why.contains("not a regular file"), "{failure}");
    served.stop();
}

#[test]
fn one_connection_too_many_is_told_so() {
    let served = start();
    let idle: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| served.client()).collect();
    let failure = served.client().receive().unwrap_err();
    assert_eq!(failure.class, Class::Busy);
    drop(idle);
    // The server notices the closed ones before it accepts more.
    while served.client().call(&Request::Ping {}).is_err() {}
    served.stop();
}

#[test]
fn a_client_that_never_reads_does_not_stop_the_others() {
    let served = start();
    let mut deaf = served.raw();
    deaf.set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let line = encode(&Request::Inspect {}).unwrap();
    // Until its own socket is full or the server lost patience.
    for _ in 0..50_000 {
        if deaf.write_all(&line).is_err() {
            break;
        }
    }
    served.is_alive();
    served.stop();
}

#[test]
fn nobody_listening_is_not_found() {
    let scratch = Scratch::new("control");
    let run = RunDir::create(&scratch.path().join("r")).unwrap();
    let dir = run.enclave("a1", true).unwrap().unwrap();
    drop(dir.listen().unwrap());
    let failure = Client::connect(&dir, TIMEOUT).unwrap_err();
    assert_eq!(failure.class, Class::NotFound);
}
