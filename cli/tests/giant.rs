//! Enclaves on pages of 1 GiB: the memory is on them and nothing else, and a host
//! without enough of them says so.
//!
//! Needs /dev/kvm, and root for a page of 1 GiB.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "starts no programs that are told things")]
#[path = "support/enclaves.rs"]
mod enclaves;
#[expect(dead_code, reason = "builds no programs")]
mod support;

use std::fs;
use std::io::{Read as _, Write as _};

use enclaves::Enclaves;
use support::BUSYBOX;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";
const GIB: u64 = 1 << 30;

fn pool(file: &str) -> u64 {
    let text = fs::read_to_string(format!("{POOL}/{file}")).unwrap();
    text.trim().parse().unwrap()
}

/// One free page for a test, under a lock; the pool is as before when dropped.
struct Page {
    file: fs::File,
    before: u64,
}

impl Page {
    fn add() -> Self {
        let mut file = fs::File::options()
            .read(true)
            .write(true)
            .open(format!("{POOL}/nr_hugepages"))
            .expect("root may change the pool");
        file.lock().unwrap();
        let mut before = String::new();
        file.read_to_string(&mut before).unwrap();
        let before: u64 = before.trim().parse().unwrap();
        let in_use = before - pool("free_hugepages");
        write!(file, "{}", in_use + 1).unwrap();
        let this = Self { file, before };
        assert_eq!(pool("free_hugepages"), 1, "the host has memory for it");
        this
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = write!(self.file, "{}", self.before);
    }
}

/// The words of a `create` of such an enclave.
fn create<'a>(name: &'a str, mem: &'a str, ring: &'a str) -> [&'a str; 9] {
    let pages = "--backing=huge1g";
    [
        "create",
        name,
        "--mem",
        mem,
        pages,
        "--cores=1",
        "--share-cores",
        "--ring",
        ring,
    ]
}

#[test]
fn all_memory_of_an_enclave_is_on_the_pages_asked_for() {
    let page = Page::add();
    for ring in ["0", "3"] {
        let host = Enclaves::new(ring, &[]);
        let words = create("g", "1G", ring);
        let plan = host.succeeds(&[&words[..], &["--dry-run"]].concat());
        assert!(plan.contains("1G in 1 GiB pages"), "{plan}");
        assert_eq!(pool("free_hugepages"), 1, "a plan takes nothing");
        let said = host.succeeds(&words);
        assert!(said.contains("1G of memory in 1G pages"), "{said}");
        assert_eq!(host.fact("g", "backing_page_bytes"), GIB);
        assert_eq!(pool("free_hugepages"), 0);

        // Nobody else gets one meanwhile.
        let refused = host.ended(&create("h", "1G", ring));
        assert_eq!(refused.code, 6, "{}", refused.stderr);
        let total = pool("nr_hugepages");
        let why = format!("1 huge pages of 1 GiB wanted, 0 of {total} are free");
        let fix = format!("echo {} > {POOL}/nr_hugepages", total + 1);
        assert!(refused.stderr.contains(&why), "{}", refused.stderr);
        assert!(refused.stderr.contains(&fix), "{}", refused.stderr);

        // Programs run on it, blocks of any size come and go, and a fresh kernel
        // stands on the same page.
        let run = ["run", "g", "--", BUSYBOX, "echo", "here"];
        assert_eq!(host.succeeds(&run), "here\n");
        host.succeeds(&["update", "g", "--add-mem", "128M"]);
        host.succeeds(&["update", "g", "--remove-mem", "128M"]);
        host.succeeds(&["reset", "g"]);
        assert_eq!(pool("free_hugepages"), 0);
        assert_eq!(host.succeeds(&run), "here\n");
        host.succeeds(&["destroy", "g"]);
        assert_eq!(pool("free_hugepages"), 1, "given back");
    }
    drop(page);
}

#[test]
fn what_is_no_number_of_pages_is_refused() {
    let host = Enclaves::new("3", &[]);
    for mem in ["512M", "1026M"] {
        let refused = host.ended(&create("g", mem, "3"));
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(
            refused.stderr.contains("pages of 1 GiB"),
            "{}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains("--backing huge"),
            "{}",
            refused.stderr
        );
    }
}
