//! Settling on a made-up host, with real locks that decide who lives.

use std::fs;

use super::*;
use crate::config::EnclaveConfig;
use crate::ledger::Reservation;
use crate::scratch::Scratch;

/// A host of four cores with two interrupts and no cpusets.
struct Host(Scratch);

impl Host {
    fn new() -> Self {
        let this = Self(Scratch::new("isolation"));
        this.put("sys/devices/system/cpu/online", "0-3");
        this.put("sys/devices/system/cpu/present", "0-3");
        this.put("proc/meminfo", "MemTotal: 9 kB\nMemAvailable: 9 kB\n");
        this.put("proc/irq/24/smp_affinity_list", "0-3\n");
        this.put("proc/irq/25/smp_affinity_list", "3\n");
        this.put("proc/irq/25/effective_affinity_list", "3\n");
        this.put("proc/irq/25/nvme0/x", "");
        this.put("proc/irq/default_smp_affinity", "f\n");
        this
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn irqs(&self) -> [String; 3] {
        let read = |name: &str| fs::read_to_string(self.0.path().join("proc/irq").join(name));
        [
            "24/smp_affinity_list",
            "25/smp_affinity_list",
            "default_smp_affinity",
        ]
        .map(|name| read(name).unwrap().trim().to_owned())
    }

    fn run(&self) -> RunDir {
        RunDir::create(&self.0.path().join("run")).unwrap()
    }

    fn settle(&self) -> Vec<String> {
        settle(self.0.path(), &self.run()).unwrap()
    }

    /// An enclave on the core, as long as the value lives.
    fn enclave(&self, name: &str, core: usize, isolation: Isolation) -> Reservation {
        let config: EnclaveConfig = serde_json::from_value(serde_json::json!({
            "name": name,
            "cores": {"list": [core]},
            "isolation": isolation,
            "mem_bytes": 64 << 20,
            "ring": "auto",
            "backing": "auto",
            "prefault": false,
            "kernel": "/k",
            "broker_socket": "/b",
        }))
        .unwrap();
        let topology = Topology::of_nodes(&[(0, &[0, 1, 2, 3])]);
        let mut reservation = Reservation::take_name(self.run(), name).unwrap();
        reservation
            .admit(&config, &topology, &(0..4).collect())
            .unwrap();
        reservation
    }
}

#[test]
fn interrupts_follow_the_enclaves_that_live() {
    let host = Host::new();
    assert_eq!(host.settle(), [""; 0]);
    assert!(!host.run().has_ledger_file(FILE), "nothing to remember");
    let first = host.enclave("a1", 3, Isolation::Auto);
    assert_eq!(host.settle(), [""; 0]);
    assert_eq!(host.irqs(), ["0-2", "0-2", "00000007"]);
    let second = host.enclave("a2", 2, Isolation::Auto);
    host.settle();
    assert_eq!(host.irqs(), ["0-1", "0-1", "00000003"]);
    // Gone without a word, as by kill -9: only the lock is let go of.
    drop(first);
    host.settle();
    assert_eq!(host.irqs(), ["0-1,3", "3", "0000000b"]);
    second.release().unwrap();
    host.settle();
    assert_eq!(host.irqs(), ["0-3", "3", "0000000f"]);
    assert!(!host.run().has_ledger_file(FILE), "nothing to remember");
}

#[test]
fn cores_without_isolation_keep_their_interrupts() {
    let host = Host::new();
    let _enclave = host.enclave("a1", 3, Isolation::Off);
    host.settle();
    assert_eq!(host.irqs(), ["0-3", "3", "f"]);
}

#[test]
fn a_torn_ledger_costs_what_it_held_and_nothing_else() {
    let host = Host::new();
    let enclave = host.enclave("a1", 3, Isolation::Auto);
    host.settle();
    host.put("run/ledger/isolation.json", "{\"isolated\":[3],\"mo");
    host.settle();
    assert_eq!(host.irqs(), ["0-2", "0-2", "00000007"]);
    drop(enclave);
    host.settle();
    assert_eq!(
        host.irqs(),
        ["0-2", "0-2", "00000007"],
        "as somebody set them"
    );
}

#[test]
fn a_report_tells_what_the_kernel_says_and_what_to_change() {
    let host = Host::new();
    let mut record = Record {
        pid: 1,
        cores: vec![3],
        isolated: true,
        ..Record::default()
    };
    let told = report(host.0.path(), "a1", &record);
    let reason = "no cpusets are mounted".to_owned();
    assert_eq!(told.held, Held::Affinity { reason });
    assert_eq!(told.interrupts, ["25 (nvme0)"]);
    host.put("proc/irq/25/smp_affinity_list", "0\n");
    let asked_away = report(host.0.path(), "a1", &record);
    assert_eq!(
        (asked_away.interrupts.len(), &asked_away.leaving),
        (0, &told.interrupts)
    );
    assert!(!told.is_whole() && !told.advice.is_empty());
    record.isolated = false;
    let told = report(host.0.path(), "a1", &record);
    assert!(matches!(told.held, Held::Affinity { reason } if reason.contains("no isolation")));
    record.share_cores = true;
    let told = report(host.0.path(), "a1", &record);
    assert!(matches!(told.held, Held::Affinity { reason } if reason.contains("shared")));
}
