//! `doctor`: is this host ready, and what to do where it is not.
//!
//! Each check is one line: ok, warn (works, but slower or less safe) or fail
//! (an enclave cannot be created), with the command that mends it. Files are
//! read below an injectable root, so that tests show it other hosts.

mod confinement;
mod platform;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use enclave_vmm::capability::{self, Lack, NEEDED};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::isolation::{Offer, offer};
use enclave_vmm::ledger::allowed_cores;
use enclave_vmm::platform::Platform;
use enclave_vmm::probe;
use enclave_vmm::topology::{Topology, cpu_list};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::broker;
use crate::locate;
use crate::output::{self, Format};

/// Linux's default of mappings per process.
const DEFAULT_MAP_COUNT: u64 = 65_530;
/// Locked memory an unprivileged VMM may come to need.
const MEMLOCK_BYTES: u64 = 64 << 20;
/// Least memory worth making an enclave in.
const LITTLE_MEMORY_BYTES: u64 = 256 << 20;

/// Check whether this host is ready.
#[derive(Debug, Args)]
pub(crate) struct Doctor {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What is checked.
    pub(crate) name: &'static str,
    /// How it is.
    pub(crate) verdict: Verdict,
    /// In words.
    pub(crate) text: String,
    /// Command that mends it; empty if there is nothing to mend.
    pub(crate) fix: String,
}

fn ok(name: &'static str, text: impl Into<String>) -> Check {
    Check {
        name,
        verdict: Verdict::Ok,
        text: text.into(),
        fix: String::new(),
    }
}

fn warn(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Check {
    Check {
        verdict: Verdict::Warn,
        fix: fix.into(),
        ..ok(name, text)
    }
}

fn fail(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Check {
    Check {
        verdict: Verdict::Fail,
        ..warn(name, text, fix)
    }
}

impl Doctor {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let checks = checks();
        match format {
            Format::Json => output::json("checks", &checks)?,
            Format::Text => print(&checks)?,
        }
        let failed: Vec<&str> = checks
            .iter()
            .filter(|check| check.verdict == Verdict::Fail)
            .map(|check| check.name)
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        let why = format!("failed: {}", failed.join(", "));
        Err(Failure::new(Class::Failure, "this host is not ready", why)
            .with_hint("the fixes above, then enclavectl doctor"))
    }
}

/// Every check of this host.
pub(crate) fn checks() -> Vec<Check> {
    let root = Path::new("/");
    let mut checks = host_checks(root);
    checks.push(capabilities(capability::lacks_of_host()));
    let probed = probe::host().map_err(|error| chain(&error));
    checks.extend(platform::checks(Platform::read(root).as_ref(), &probed));
    checks.push(confinement::of_host(root));
    checks.extend(confinement::of_enclaves());
    checks.extend([
        memlock(),
        programs(),
        broker_user(),
        kernel_image(),
        run_directory(),
        the_broker(),
    ]);
    checks
}

fn print(checks: &[Check]) -> Result<(), Failure> {
    for line in checks.iter().flat_map(lines) {
        output::line(&line)?;
    }
    Ok(())
}

/// A check as people read it: one line, and one more with the fix if there is
/// one.
pub(crate) fn lines(check: &Check) -> Vec<String> {
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "fail",
    };
    let mut lines = vec![format!("{verdict:<5} {:<11} {}", check.name, check.text)];
    if !check.fix.is_empty() {
        lines.push(format!("      {:<11} fix: {}", "", check.fix));
    }
    lines
}

/// Everything read from files below `root`.
fn host_checks(root: &Path) -> Vec<Check> {
    let mut checks = vec![kvm(root)];
    match Topology::read(root) {
        Ok(topology) => {
            checks.push(cores(&topology));
            checks.push(smt(&topology));
            checks.push(memory(&topology));
            checks.push(huge_pages(&topology));
            checks.push(nodes(&topology));
        }
        Err(error) => checks.push(fail(
            "topology",
            error.to_string(),
            "mount -t sysfs sysfs /sys",
        )),
    }
    checks.extend([isolation(root), interrupts(root)]);
    checks.extend([map_count(root), tsc(root), udmabuf(root)]);
    checks
}

fn kvm(root: &Path) -> Check {
    let path = root.join("dev/kvm");
    match fs::OpenOptions::new().read(true).write(true).open(&path) {
        Ok(_) => ok("kvm", "/dev/kvm can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fail(
            "kvm",
            "/dev/kvm is not there: virtualization is off, or the module is not loaded",
            "modprobe kvm_intel || modprobe kvm_amd",
        ),
        Err(error) => fail(
            "kvm",
            format!("/dev/kvm cannot be opened: {error}"),
            "usermod -aG kvm \"$USER\", then log in again",
        ),
    }
}

/// What KVM answered to the table of needed capabilities.
fn capabilities(lacks: Result<Vec<Lack>, Failure>) -> Check {
    let name = "kvm_api";
    match lacks.as_deref() {
        Ok([]) => ok(
            name,
            format!("has all {} capabilities needed", NEEDED.len()),
        ),
        Ok(lacks @ [first, ..]) => {
            let texts: Vec<String> = lacks.iter().map(Lack::to_string).collect();
            fail(name, texts.join("; "), first.hint())
        }
        Err(failure) => fail(name, failure.to_string(), "see kvm above"),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn cores(topology: &Topology) -> Check {
    let online = topology.online.len();
    let allowed = allowed_cores().unwrap_or_default();
    let usable = topology.online.intersection(&allowed).count();
    match usable {
        0 | 1 => warn(
            "cores",
            format!("{usable} of {online} online cores usable here: none to give away"),
            "enclavectl create --share-cores …",
        ),
        _ => ok(
            "cores",
            format!("{online} online, {usable} usable here, one stays with the host"),
        ),
    }
}

fn smt(topology: &Topology) -> Check {
    if topology.has_smt() {
        return ok(
            "smt",
            "cores have several hardware threads: an enclave gets all of each, and uses \
             those it names",
        );
    }
    ok("smt", "one thread per core")
}

fn isolation(root: &Path) -> Check {
    let name = "isolation";
    match offer(root) {
        Offer::Partition(_) => ok(
            name,
            "cgroup v2: cores of enclaves become isolated partitions",
        ),
        Offer::Exclusive(_) => warn(
            name,
            "cgroup v1: cores of enclaves become exclusive sets, which other work of the \
             host is not kept out of",
            "systemd.unified_cgroup_hierarchy=1 on the host kernel's command line",
        ),
        Offer::Affinity(why) => warn(
            name,
            format!("other work may run on the cores of enclaves: {why}"),
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
    }
}

fn interrupts(root: &Path) -> Check {
    let processes = fs::read_dir(root.join("proc")).into_iter().flatten();
    let mut comms = processes.flatten().map(|entry| entry.path().join("comm"));
    let is_balancer =
        |comm: PathBuf| fs::read_to_string(comm).is_ok_and(|comm| comm.trim() == "irqbalance");
    if comms.any(is_balancer) {
        return warn(
            "interrupts",
            "irqbalance moves interrupts back to the cores of enclaves",
            "systemctl disable --now irqbalance",
        );
    }
    ok(
        "interrupts",
        "they leave the cores of enclaves, as far as devices allow",
    )
}

fn memory(topology: &Topology) -> Check {
    let available = topology.mem_available_bytes;
    let text = format!(
        "{} MiB of {} MiB available",
        available >> 20,
        topology.mem_total_bytes >> 20
    );
    if available < LITTLE_MEMORY_BYTES {
        return warn(
            "memory",
            text,
            "enclavectl list (destroy what is not needed)",
        );
    }
    ok("memory", text)
}

fn huge_pages(topology: &Topology) -> Check {
    let giant = match topology.giant_total {
        0 => String::new(),
        total => format!(", {} of {total} of 1 GiB", topology.giant_free),
    };
    let text = format!(
        "{} of {} huge pages of 2 MiB free{giant}",
        topology.huge_free, topology.huge_total
    );
    if topology.huge_free == 0 {
        return warn(
            "hugepages",
            format!(
                "{text}: enclaves stand on 4 KiB pages, first reads after a snapshot are slower"
            ),
            "echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        );
    }
    ok("hugepages", text)
}

fn nodes(topology: &Topology) -> Check {
    if topology.nodes.len() < 2 {
        return ok("nodes", "one NUMA node");
    }
    let texts: Vec<String> = topology
        .nodes
        .iter()
        .map(|(number, node)| {
            format!(
                "node {number}: cores {}, {} of {} MiB available, {} of {} huge pages free",
                cpu_list(&node.cores),
                node.mem_available_bytes >> 20,
                node.mem_total_bytes >> 20,
                node.huge_free,
                node.huge_total
            )
        })
        .collect();
    ok("nodes", texts.join("; "))
}

fn map_count(root: &Path) -> Check {
    let path = root.join("proc/sys/vm/max_map_count");
    let Some(count) = read_number(&path) else {
        return warn(
            "map_count",
            "vm.max_map_count cannot be read",
            "mount -t proc proc /proc",
        );
    };
    let text = format!("vm.max_map_count is {count}");
    if count < DEFAULT_MAP_COUNT {
        return warn(
            "map_count",
            format!("{text}: large scattered snapshots cannot be attached"),
            "sysctl vm.max_map_count=1048576",
        );
    }
    ok("map_count", text)
}

fn tsc(root: &Path) -> Check {
    let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = fs::read_to_string(root.join(path)).unwrap_or_default();
    let info = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let flags = info
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or("");
    let steady = flags.split_whitespace().any(|flag| flag == "constant_tsc");
    let source = source.trim();
    if steady || source == "tsc" {
        return ok("tsc", format!("steady (host clock source: {source})"));
    }
    warn(
        "tsc",
        format!("may not be steady (host clock source: {source}): clocks in enclaves may drift"),
        "boot with tsc=reliable if the hardware is known to be",
    )
}

fn udmabuf(root: &Path) -> Check {
    match fs::metadata(root.join("dev/udmabuf")) {
        Err(_) => ok(
            "udmabuf",
            "absent: readers cannot make snapshots writable through it",
        ),
        Ok(meta) if meta.permissions().mode() & 0o066 == 0 => ok("udmabuf", "for its owner only"),
        Ok(_) => warn(
            "udmabuf",
            "/dev/udmabuf is open to users: before Linux 6.13 a reader can make a snapshot writable through it",
            "chmod 0600 /dev/udmabuf",
        ),
    }
}

fn memlock() -> Check {
    let limit = getrlimit(Resource::Memlock).current;
    match limit {
        None => ok("memlock", "unlimited"),
        Some(bytes) if bytes >= MEMLOCK_BYTES || rustix::process::geteuid().is_root() => {
            ok("memlock", format!("{} KiB", bytes >> 10))
        }
        Some(bytes) => warn(
            "memlock",
            format!("{} KiB: little for locked memory", bytes >> 10),
            "ulimit -l unlimited",
        ),
    }
}

/// Who the running broker is.
fn broker_user() -> Check {
    let name = "broker user";
    let status = crate::cmd::broker::connect("ask the broker").ok();
    let Some(pid) = status.and_then(|mut it| it.status().ok()).map(|it| it.pid) else {
        return ok(name, "no broker runs; one that root starts is not root");
    };
    match crate::cmd::broker::uid_of(pid) {
        Some(0) => warn(
            name,
            "the broker runs as root",
            "enclavectl broker stop (the next one becomes xemem or nobody)",
        ),
        Some(uid) => ok(name, format!("pid {pid} is uid {uid}")),
        None => ok(name, format!("pid {pid} is not visible from here")),
    }
}

fn programs() -> Check {
    for name in ["enclave-vmm", "xemem-broker"] {
        if let Err(failure) = locate::program(name) {
            return fail("programs", format!("{name}: {}", failure.why), failure.hint);
        }
    }
    ok("programs", "enclave-vmm and xemem-broker are there")
}

fn kernel_image() -> Check {
    let given = std::env::var_os("ENCLAVE_KERNEL").map(PathBuf::from);
    match locate::kernel(given.as_deref()) {
        Ok(path) => ok("kernel", path.display().to_string()),
        Err(failure) => fail("kernel", failure.why, failure.hint),
    }
}

fn run_directory() -> Check {
    match locate::run_dir() {
        Ok(run) => ok("rundir", run.path().display().to_string()),
        Err(failure) => fail("rundir", failure.why, failure.hint),
    }
}

fn the_broker() -> Check {
    match broker::connect("ask the broker") {
        Ok(_) => ok("broker", "runs"),
        Err(failure) if failure.class == Class::NotFound => {
            ok("broker", "does not run; the first create starts it")
        }
        Err(failure) => warn("broker", failure.why, failure.hint),
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host made of files, removed at the end.
    struct Host(PathBuf);

    impl Host {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let name = format!("enclavectl-doctor-{name}-{}", std::process::id());
            let root = std::env::temp_dir().join(name);
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }

        fn verdict(&self, name: &str) -> Verdict {
            let checks = host_checks(&self.0);
            checks
                .iter()
                .find(|check| check.name == name)
                .unwrap()
                .verdict
        }
    }

    impl Drop for Host {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    const MEMINFO: &str = "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n";

    #[test]
    fn a_good_host_has_nothing_to_mend() {
        let huge = "sys/kernel/mm/hugepages/hugepages-2048kB";
        let host = Host::new(
            "good",
            &[
                ("dev/kvm", ""),
                ("sys/devices/system/cpu/online", "0-3"),
                ("sys/devices/system/cpu/present", "0-3"),
                (&format!("{huge}/nr_hugepages"), "8"),
                (&format!("{huge}/free_hugepages"), "8"),
                ("proc/meminfo", MEMINFO),
                ("proc/sys/vm/max_map_count", "65530\n"),
                (
                    "proc/self/mounts",
                    "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
                ),
                ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory\n"),
                ("proc/cpuinfo", "flags\t\t: fpu constant_tsc\n"),
            ],
        );
        for check in host_checks(&host.0) {
            // How many cores this test may use is not the tree's business.
            if check.name != "cores" {
                assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
            }
        }
    }

    #[test]
    fn each_node_is_told_with_its_cores_and_pages() {
        let memory = |kib: u64| {
            [
                ("MemTotal", 4 * kib),
                ("MemFree", kib),
                ("Active(file)", kib),
                ("Inactive(file)", kib),
            ]
            .map(|(name, kib)| format!("Node 0 {name}: {kib} kB\n"))
            .concat()
        };
        let at = "sys/devices/system/node";
        let (memory0, memory1) = (memory(4096), memory(0));
        let host = Host::new(
            "nodes",
            &[
                ("sys/devices/system/cpu/online", "0-3"),
                ("sys/devices/system/cpu/present", "0-3"),
                ("proc/meminfo", MEMINFO),
                (&format!("{at}/online"), "0-1"),
                (&format!("{at}/node0/cpulist"), "0-1"),
                (&format!("{at}/node0/meminfo"), &memory0),
                (&format!("{at}/node1/cpulist"), "2-3"),
                (&format!("{at}/node1/meminfo"), &memory1),
            ],
        );
        let checks = host_checks(&host.0);
        let text = &checks.iter().find(|c| c.name == "nodes").unwrap().text;
        assert!(text.contains("node 0: cores 0-1, 8 of 16 MiB"), "{text}");
        assert!(text.contains("node 1: cores 2-3, 0 of 0 MiB"), "{text}");
    }

    #[test]
    fn an_empty_host_fails_and_every_complaint_has_a_fix() {
        let host = Host::new("empty", &[("dev/null", "")]);
        assert_eq!(host.verdict("kvm"), Verdict::Fail);
        assert_eq!(host.verdict("topology"), Verdict::Fail);
        for check in host_checks(&host.0) {
            assert_eq!(
                check.verdict == Verdict::Ok,
                check.fix.is_empty(),
                "{check:?}"
            );
        }
    }

    #[test]
    fn each_missing_capability_is_one_failed_line_with_a_fix() {
        let check = capabilities(Ok(Vec::new()));
        assert_eq!(check.verdict, Verdict::Ok);
        assert!(check.text.contains(&NEEDED.len().to_string()));
        for needed in NEEDED {
            let lacks = vec![Lack::Capability(needed, 0), Lack::Api(13)];
            let check = capabilities(Ok(lacks));
            assert_eq!(check.verdict, Verdict::Fail);
            assert!(check.text.contains(needed.name), "{}", check.text);
            assert!(check.text.contains("version 13"), "{}", check.text);
            assert!(!check.fix.is_empty());
        }
        let closed = Failure::new(Class::Permission, "open /dev/kvm", "not allowed");
        assert_eq!(capabilities(Err(closed)).verdict, Verdict::Fail);
    }

    #[test]
    fn an_open_udmabuf_and_few_mappings_are_warned_of() {
        let host = Host::new(
            "open",
            &[("dev/udmabuf", ""), ("proc/sys/vm/max_map_count", "1000")],
        );
        let open = fs::Permissions::from_mode(0o666);
        fs::set_permissions(host.0.join("dev/udmabuf"), open).unwrap();
        assert_eq!(host.verdict("udmabuf"), Verdict::Warn);
        assert_eq!(host.verdict("map_count"), Verdict::Warn);
    }
}
