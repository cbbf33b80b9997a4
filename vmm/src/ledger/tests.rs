//! Admission against real lock files, with second processes that hold them.
//!
//! A holder is this test program run again with [`HOLDER`] set: it reserves,
//! prints one line, and waits to be killed or for its input to end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::config::{CoreRequest, parse_cores};
use crate::machine::Ring;
use crate::scratch::Scratch;

const HOLDER: &str = "ENCLAVE_TEST_HOLDER";

fn config(name: &str, cores: &str) -> EnclaveConfig {
    EnclaveConfig {
        name: name.into(),
        cores: parse_cores(cores).unwrap(),
        max_cores: None,
        share_cores: false,
        isolation: crate::isolation::Isolation::Auto,
        mem_bytes: 64 << 20,
        node: None,
        exports: Vec::new(),
        ring: Ring::Auto,
        without: crate::features::Features::default(),
        backing: Backing::Small,
        prefault: true,
        kernel: "/k".into(),
        broker_socket: "/b".into(),
        selftest: 0,
    }
}

fn topology() -> Topology {
    Topology {
        mem_available_bytes: 256 << 20,
        huge_free: 0,
        huge_total: 0,
        ..Topology::of_nodes(&[(0, &[0, 1, 2, 3])])
    }
}

fn reserve(path: &Path, config: &EnclaveConfig) -> Result<(Reservation, Grant), Failure> {
    let mut reservation = Reservation::take_name(RunDir::create(path)?, &config.name)?;
    let grant = reservation.admit(config, &topology(), &(0..4).collect())?;
    Ok((reservation, grant))
}

/// Run by [`hold`]; does nothing in a normal test run.
#[test]
fn holder_process() {
    let Ok(request) = std::env::var(HOLDER) else {
        return;
    };
    let [path, name, cores] = request.split('|').collect::<Vec<_>>()[..] else {
        panic!("{request}");
    };
    let answer = match reserve(Path::new(path), &config(name, cores)) {
        Ok((reservation, grant)) => {
            println!("\nanswer ok {:?}", grant.cores);
            std::mem::forget(reservation);
            "held"
        }
        Err(failure) => {
            println!("\nanswer {:?}", failure.class);
            "refused"
        }
    };
    std::io::stdin().read_line(&mut String::new()).unwrap();
    assert!(!answer.is_empty());
}

struct Process(Child);

impl Process {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn spawn(path: &Path, name: &str, cores: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "ledger::reserve::tests::holder_process",
            "--nocapture",
        ])
        .env(HOLDER, format!("{}|{name}|{cores}", path.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn answer(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix("answer ").map(str::to_owned))
        .unwrap()
}

fn hold(path: &Path, name: &str, cores: &str) -> Process {
    let mut child = spawn(path, name, cores);
    assert!(answer(&mut child).starts_with("ok"));
    Process(child)
}

#[test]
fn a_second_process_is_refused_and_told_who_holds() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("r");
    let holder = hold(&path, "a1", "2-2");
    let failure = reserve(&path, &config("a1", "1")).unwrap_err();
    assert_eq!(failure.class, Class::Busy);
    assert!(
        failure.why.contains(&holder.0.id().to_string()),
        "{failure}"
    );
    let failure = reserve(&path, &config("a2", "2-2")).unwrap_err();
    assert!(failure.why.contains("enclave a1"), "{failure}");
    let (_, grant) = reserve(&path, &config("a2", "1")).unwrap();
    assert_eq!(grant.cores, [3]);
    holder.kill();
}

#[test]
fn killing_the_holder_frees_name_and_core() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("r");
    hold(&path, "a1", "2-2").kill();
    let run = RunDir::open(&path).unwrap().unwrap();
    let dir = run.enclave("a1", false).unwrap().unwrap();
    assert_eq!(dir.occupancy().unwrap(), Occupancy::Dead("killed".into()));
    let (reservation, grant) = reserve(&path, &config("a2", "2-2")).unwrap();
    assert_eq!(grant.cores, [2]);
    reservation.release().unwrap();
    let (reservation, _) = reserve(&path, &config("a1", "2-2")).unwrap();
    assert!(matches!(dir.occupancy().unwrap(), Occupancy::Live(r) if r.cores == [2]));
    reservation.release().unwrap();
    assert_eq!(run.names().unwrap(), Vec::<String>::new());
}

#[test]
fn of_two_racing_processes_one_gets_the_core() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("r");
    let mut racers: Vec<Child> = (0..4)
        .map(|n| spawn(&path, &format!("a{n}"), "2-2"))
        .collect();
    let answers: Vec<String> = racers.iter_mut().map(answer).collect();
    for racer in racers {
        Process(racer).kill();
    }
    let won = answers.iter().filter(|a| *a == "ok [2]").count();
    let lost = answers.iter().filter(|a| *a == "Busy").count();
    assert_eq!((won, lost), (1, 3), "{answers:?}");
}

#[test]
fn a_crash_note_is_the_reason_shown() {
    let scratch = Scratch::new("ledger");
    let run = RunDir::create(&scratch.path().join("r")).unwrap();
    let dir = run.enclave("a1", true).unwrap().unwrap();
    let died = |why: &str| Occupancy::Dead(why.into());
    assert_eq!(dir.occupancy().unwrap(), died("its creation was cut off"));
    drop(dir.append_file("lock").unwrap());
    assert_eq!(dir.occupancy().unwrap(), died("killed"));
    dir.append_file("crash")
        .unwrap()
        .write_all(b"boom\nx")
        .unwrap();
    assert_eq!(dir.occupancy().unwrap(), died("crashed: boom"));
    dir.remove_dead(&run).unwrap();
    assert!(run.enclave("a1", false).unwrap().is_none());
}

#[test]
fn foreign_files_in_the_directory_are_kept() {
    let scratch = Scratch::new("ledger");
    let run = RunDir::create(&scratch.path().join("r")).unwrap();
    let dir = run.enclave("a1", true).unwrap().unwrap();
    dir.append_file("thesis.txt").unwrap();
    let failure = dir.remove_dead(&run).unwrap_err();
    assert!(failure.why.contains("kept"), "{failure}");
    assert!(dir.open_file("thesis.txt").is_ok());
}

#[test]
fn a_file_in_place_of_the_socket_is_kept_and_named() {
    let scratch = Scratch::new("ledger");
    let run = RunDir::create(&scratch.path().join("r")).unwrap();
    let dir = run.enclave("a1", true).unwrap().unwrap();
    dir.append_file("control.sock")
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let failure = dir.listen().unwrap_err();
    assert!(failure.why.contains("not a socket"), "{failure}");
    assert!(dir.open_file("control.sock").is_ok());
}

#[test]
fn links_planted_in_the_directory_are_not_followed() {
    let scratch = Scratch::new("ledger");
    let victim = scratch.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let run = RunDir::create(&scratch.path().join("r")).unwrap();
    let dir = run.enclave("a1", true).unwrap().unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("lock")).unwrap();
    assert!(dir.take(&run).is_err());
    std::os::unix::fs::symlink(&victim, dir.path().join("vmm.log")).unwrap();
    assert!(dir.append_file("vmm.log").is_err());
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn memory_that_is_promised_elsewhere_is_not_promised_again() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("r");
    let big = |name| EnclaveConfig {
        mem_bytes: 160 << 20,
        ..config(name, "1")
    };
    let (mut first, _) = reserve(&path, &big("a1")).unwrap();
    let failure = reserve(&path, &big("a2")).unwrap_err();
    assert_eq!(failure.class, Class::Resources);
    assert!(
        failure
            .why
            .contains("160 MiB of memory wanted, 96 MiB available"),
        "{failure}"
    );
    first.settle();
    assert!(reserve(&path, &big("a2")).is_ok());
}

#[test]
fn a_record_that_is_being_replaced_is_read_whole() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("r");
    let (mut reservation, _) = reserve(&path, &config("a1", "1")).unwrap();
    let run = RunDir::create(&path).unwrap();
    let dir = run.enclave("a1", false).unwrap().unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Longer and shorter in turn.
            for bytes in [7, 1 << 40].into_iter().cycle() {
                reservation.hold(bytes, true);
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
            }
        });
        let seen: Vec<_> = (0..2_000).map(|_| dir.occupancy().unwrap()).collect();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        let is_whole = |now: &Occupancy| matches!(now, Occupancy::Live(r) if r.cores == [3]);
        let broken = seen.iter().find(|now| !is_whole(now));
        assert_eq!(broken, None);
    });
}

#[test]
fn missing_huge_pages_are_told_with_figures() {
    let mut huge = config("a1", "1");
    huge.backing = Backing::Huge2m;
    let with = |huge_free| Topology {
        huge_free,
        huge_total: 40,
        ..topology()
    };
    assert!(check_memory(&huge, &with(32), &[]).is_ok());
    let failure = check_memory(&huge, &with(31), &[]).unwrap_err();
    assert_eq!(failure.class, Class::Resources);
    assert!(
        failure
            .why
            .contains("32 huge pages of 2 MiB wanted, 31 of 40 are free")
    );
    assert!(failure.hint.starts_with("echo 41 >"), "{}", failure.hint);
    huge.backing = Backing::Auto;
    assert!(
        check_memory(&huge, &with(0), &[]).is_ok(),
        "falls back to small pages"
    );
    assert_eq!(huge.cores, CoreRequest::Count(1));
}

/// Two nodes of 1 GiB and 16 huge pages each; cores 0, 1 and 2, 3.
fn two_nodes() -> Topology {
    Topology::of_nodes(&[(0, &[0, 1]), (1, &[2, 3])])
}

fn on_node(node: usize, mem_bytes: u64, backing: Backing) -> EnclaveConfig {
    EnclaveConfig {
        node: Some(node),
        mem_bytes,
        backing,
        ..config("a1", "1")
    }
}

#[test]
fn huge_pages_are_counted_on_the_node_asked_for() {
    let mut host = two_nodes();
    host.nodes.get_mut(&1).unwrap().huge_free = 3;
    let huge = |node, bytes| on_node(node, bytes, Backing::Huge2m);
    assert!(check_memory(&huge(0, 32 << 20), &host, &[]).is_ok());
    let failure = check_memory(&huge(1, 32 << 20), &host, &[]).unwrap_err();
    assert_eq!(failure.class, Class::Resources);
    assert_eq!(
        failure.why,
        "16 huge pages of 2 MiB wanted on node 1, 3 of 16 are free"
    );
    assert_eq!(
        failure.hint,
        "echo 29 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
    );
    // The host has promised all but two of them to somebody.
    host.huge_free = 2;
    assert!(check_memory(&huge(0, 32 << 20), &host, &[]).is_err());
}

#[test]
fn pages_of_1_gib_are_counted_apart() {
    let mut host = two_nodes();
    let wanted = |node| on_node(node, 2 << 30, Backing::Huge1g);
    let node = host.nodes.get_mut(&1).unwrap();
    (node.giant_total, node.giant_free) = (3, 2);
    (host.giant_total, host.giant_free) = (3, 2);
    assert!(check_memory(&wanted(1), &host, &[]).is_ok());
    let failure = check_memory(&wanted(0), &host, &[]).unwrap_err();
    assert_eq!(failure.class, Class::Resources);
    assert_eq!(
        failure.why,
        "2 huge pages of 1 GiB wanted on node 0, 0 of 0 are free"
    );
    assert_eq!(
        failure.hint,
        "echo 2 > /sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages"
    );
    // One of them is promised to somebody.
    host.giant_free = 1;
    assert!(check_memory(&wanted(1), &host, &[]).is_err());
}

#[test]
fn memory_is_counted_on_the_node_asked_for() {
    let host = two_nodes();
    let small = |bytes| on_node(1, bytes, Backing::Small);
    let record = |node| Record {
        mem_bytes: 512 << 20,
        node,
        ..Record::of_this_process()
    };
    let other = |node| [("a2".to_owned(), record(node))];
    assert!(check_memory(&small(1 << 30), &host, &[]).is_ok());
    let failure = check_memory(&small(1 << 30), &host, &other(Some(1))).unwrap_err();
    assert!(
        failure
            .why
            .contains("1024 MiB of memory wanted on node 1, 512 MiB available"),
        "{failure}"
    );
    assert!(failure.hint.contains("--node 1"), "{}", failure.hint);
    assert!(check_memory(&small(1 << 30), &host, &other(None)).is_err());
    assert!(check_memory(&small(1 << 30), &host, &other(Some(0))).is_ok());
    let mut anywhere = small(2 << 30);
    anywhere.node = None;
    assert!(check_memory(&anywhere, &host, &[]).is_ok());
}

#[test]
fn memory_follows_the_node_asked_for_or_that_of_the_cores() {
    let host = two_nodes();
    let asked = on_node(0, 64 << 20, Backing::Small);
    let free = config("a1", "1");
    assert_eq!(memory_node(&asked, &host, &[0]), MemoryNode::Bind(0));
    assert_eq!(memory_node(&free, &host, &[2, 3]), MemoryNode::Prefer(1));
    assert_eq!(memory_node(&free, &host, &[1, 2]), MemoryNode::Any);
    let mut poor = two_nodes();
    poor.nodes.get_mut(&1).unwrap().mem_total_bytes = 0;
    assert_eq!(memory_node(&free, &poor, &[2]), MemoryNode::Any);
    let mut kernel_without = Topology::of_nodes(&[(0, &[0, 1])]);
    kernel_without.has_numa = false;
    assert_eq!(memory_node(&asked, &kernel_without, &[0]), MemoryNode::Any);
}

#[test]
fn a_grant_names_the_node_of_cores_and_memory() {
    let scratch = Scratch::new("ledger");
    let run = RunDir::create(&scratch.path().join("r")).unwrap();
    let mut reservation = Reservation::take_name(run, "a1").unwrap();
    let request = on_node(0, 64 << 20, Backing::Small);
    let grant = reservation
        .admit(&request, &two_nodes(), &(0..4).collect())
        .unwrap();
    assert_eq!(grant.cores, [1]);
    assert_eq!(grant.memory_node, MemoryNode::Bind(0));
    let absent = on_node(7, 64 << 20, Backing::Small);
    let run = RunDir::create(&scratch.path().join("r")).unwrap();
    let mut reservation = Reservation::take_name(run, "a2").unwrap();
    let failure = reservation
        .admit(&absent, &two_nodes(), &(0..4).collect())
        .unwrap_err();
    assert!(failure.why.contains("node 7 does not exist"), "{failure}");
}

#[test]
fn cores_that_went_come_again_although_the_process_keeps_off_its_own() {
    let scratch = Scratch::new("ledger");
    let wanted = config("a1", "2");
    let (mut reservation, grant) = reserve(scratch.path(), &wanted).unwrap();
    assert_eq!(grant.cores, [2, 3]);
    let before = rustix::thread::sched_getaffinity(None).unwrap();
    reservation.stay_off();
    for _ in 0..2 {
        reservation.keep_cores(&[3]);
        reservation.stay_off();
        assert_eq!(reservation.cores().0, [3]);
        let two = CoreRequest::Count(2);
        let choice = reservation.take_cores(&wanted, &two, &topology()).unwrap();
        assert_eq!(choice.cores, [1, 2]);
        reservation.stay_off();
        assert_eq!(reservation.cores().0, [1, 2, 3]);
    }
    for thread in [None, Some(rustix::process::getpid())] {
        rustix::thread::sched_setaffinity(thread, &before).unwrap();
    }
    let last = CoreRequest::List(vec![0]);
    let failure = reservation
        .take_cores(&wanted, &last, &topology())
        .unwrap_err();
    assert!(failure.why.contains("the last core"), "{failure}");
    assert_eq!(failure.hint, "enclavectl create --share-cores …");
}
