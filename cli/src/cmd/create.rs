//! `create`: checks the request, makes sure the broker runs, starts the VMM
//! and waits for its one line that says the enclave is up or why not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use enclave_abi::addr::LARGE_PAGE_SIZE;
use enclave_vmm::config::{
    ConfigError, CoreRequest, EnclaveConfig, parse_cores, parse_export, parse_node, parse_size,
};
use enclave_vmm::control::protocol::Started;
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::features::{Features, parse_without};
use enclave_vmm::isolation::{Isolation, Report};
use enclave_vmm::machine::{Backing, Export, Ring};
use enclave_vmm::topology::{Topology, cpu_list};
use serde::Serialize;

use super::{check, isolate, plan, timeline};
use crate::launch::{Launch, Lifetime, Word};
use crate::output::{self, Format};
use crate::part_file::PartFile;
use crate::{cmd, locate};

/// Longest time a VMM may take to come up, touching all memory included.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Give an enclave cores and memory, and boot its kernel.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name: letters, digits, '.', '_' and '-', at most 63.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// Part file, see init; what the command line says goes before it.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Show what it would get, and take nothing.
    #[arg(long)]
    dry_run: bool,
    /// How many cores, or which: a list such as 2,4-5 (2-2 is core 2);
    /// default: 1. Other hardware threads of these cores are kept idle.
    #[arg(long, value_name = "N|LIST", env = "ENCLAVE_CORES", value_parser = parse_cores)]
    cores: Option<CoreRequest>,
    /// Room for so many cores, which `update --add-cores` adds later (default: as
    /// many as at first).
    #[arg(long, value_name = "N", env = "ENCLAVE_MAX_CORES")]
    max_cores: Option<usize>,
    /// Private memory, such as 512M or 1G.
    #[arg(long, value_name = "SIZE", env = "ENCLAVE_MEM", value_parser = parse_size, required_unless_present = "file")]
    mem: Option<u64>,
    /// NUMA node that cores and memory come from (default: any cores, and
    /// memory from their node while it has some).
    #[arg(long, value_name = "N", env = "ENCLAVE_NODE", value_parser = parse_node)]
    node: Option<usize>,
    /// Directory the programs may reach; read-only unless :rw.
    #[arg(long, value_name = "HOST[=GUEST][:rw]", value_parser = parse_export)]
    export: Vec<Export>,
    /// Privilege ring of the kernel (default: auto).
    #[arg(long, value_enum, env = "ENCLAVE_RING")]
    ring: Option<RingChoice>,
    /// Leave processor features off, to find out what one of them does.
    #[arg(long, value_name = "FEATURE,…", value_delimiter = ',', value_parser = parse_without)]
    without: Vec<Features>,
    /// Pages behind the memory: 2 MiB (huge), 1 GiB (huge1g), 4 KiB (small), or
    /// 2 MiB while there are some (auto, the default).
    #[arg(long, value_enum, env = "ENCLAVE_BACKING")]
    backing: Option<BackingChoice>,
    /// Do not touch all memory at create.
    #[arg(long, env = "ENCLAVE_NO_PREFAULT", value_parser = FalseyValueParser::new())]
    no_prefault: bool,
    /// Share cores with other enclaves that do, and with the host.
    #[arg(long, env = "ENCLAVE_SHARE_CORES", value_parser = FalseyValueParser::new())]
    share_cores: bool,
    /// Show where the time went (--json has it under report.phases).
    #[arg(long)]
    timeline: bool,
    /// How far other work of the host is kept off the cores (default: auto, as
    /// far as the host allows; require: no enclave without it).
    #[arg(long, value_enum, env = "ENCLAVE_ISOLATION")]
    isolation: Option<IsolationChoice>,
    /// Kernel image.
    #[arg(long, value_name = "PATH", env = "ENCLAVE_KERNEL")]
    kernel: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RingChoice {
    Auto,
    #[value(name = "0")]
    Ring0,
    #[value(name = "3")]
    Ring3,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackingChoice {
    Auto,
    Huge,
    Huge1g,
    Small,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IsolationChoice {
    Auto,
    Require,
    Off,
}

impl Create {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let begin = Instant::now();
        let config = self.checked()?;
        if self.dry_run {
            return plan::show(&config, format);
        }
        let vmm = locate::program("enclave-vmm")?;
        // Makes the run directory, so that broker and VMM find the same one.
        let run = locate::run_dir()?;
        let (socket, mut broker) = cmd::broker::ensure_running()?;
        let config = EnclaveConfig {
            broker_socket: socket,
            ..config
        };
        make_room(&mut broker, &config);
        let started = start(&vmm, &config)?;
        // By now the VMM has its own connection.
        drop(broker);
        for warning in started
            .effective
            .warnings
            .iter()
            .chain(&started.report.warnings)
        {
            output::warning(warning);
        }
        let isolation = isolate::fresh(&run, &config.name, config.isolation)?;
        match format {
            Format::Json => output::json("enclave", &Fresh { started, isolation }),
            Format::Text => {
                output::line(&summary(&started, isolation.as_ref()))?;
                if self.timeline {
                    let table = timeline::table(&started.report.phases, begin.elapsed());
                    output::bytes(table.as_bytes())?;
                }
                Ok(())
            }
        }
    }

    /// What is asked for, with its files found.
    fn checked(&self) -> Result<EnclaveConfig, Failure> {
        let part = match &self.file {
            Some(path) => check::part_file(path)?,
            None => PartFile::default(),
        };
        let kernel = self.kernel.as_deref().or(part.kernel.as_deref());
        let mut config = self.config(&part)?;
        let what = format!("create enclave {}", config.name);
        // Before looking for files, so that nonsense is called nonsense.
        config
            .check()
            .map_err(|e: ConfigError| e.into_failure(&what))?;
        config.kernel = locate::kernel(kernel)?;
        for export in &mut config.exports {
            export.host = export_directory(export)?;
        }
        Ok(config)
    }

    /// The command line, then the part file, then what suits most.
    fn config(&self, part: &PartFile) -> Result<EnclaveConfig, Failure> {
        let name = self.name.as_ref().or(part.name.as_ref());
        let name = name.ok_or_else(|| self.lacking_in_file("name", "NAME"))?;
        let mem_bytes = self.mem.or(part.mem_bytes);
        let mut exports = self.export.clone();
        let is_new = |other: &&Export| self.export.iter().all(|own| own.guest != other.guest);
        exports.extend(part.exports.iter().filter(is_new).cloned());
        let without = self
            .without
            .iter()
            .fold(part.without.0, |bits, f| bits | f.0);
        Ok(EnclaveConfig {
            name: name.clone(),
            cores: self
                .cores
                .clone()
                .or_else(|| part.cores.clone())
                .unwrap_or(CoreRequest::Count(1)),
            max_cores: self.max_cores.or(part.max_cores),
            share_cores: self.share_cores || part.share_cores.unwrap_or(false),
            isolation: self
                .isolation
                .map(Isolation::from)
                .or(part.isolation)
                .unwrap_or_default(),
            mem_bytes: mem_bytes.ok_or_else(|| self.lacking_in_file("mem", "--mem SIZE"))?,
            node: self.node.or(part.node),
            exports,
            ring: self
                .ring
                .map(Ring::from)
                .or(part.ring)
                .unwrap_or(Ring::Auto),
            backing: self
                .backing
                .map(Backing::from)
                .or(part.backing)
                .unwrap_or(Backing::Auto),
            prefault: !self.no_prefault && part.prefault.unwrap_or(true),
            without: Features(without),
            kernel: PathBuf::new(),
            broker_socket: PathBuf::new(),
            selftest: 0,
        })
    }

    /// A key that neither the command line nor the part file has.
    fn lacking_in_file(&self, key: &str, argument: &str) -> Failure {
        let file = self.file.as_deref().unwrap_or(Path::new("FILE")).display();
        let what = format!("use part file {file}");
        let why = format!("there is no {key} in it, nor on the command line");
        let hint = format!("enclavectl create {argument} -f {file}");
        Failure::new(Class::Usage, what, why).with_hint(hint)
    }
}

impl From<RingChoice> for Ring {
    fn from(choice: RingChoice) -> Self {
        match choice {
            RingChoice::Auto => Self::Auto,
            RingChoice::Ring0 => Self::Ring0,
            RingChoice::Ring3 => Self::Ring3,
        }
    }
}

impl From<IsolationChoice> for Isolation {
    fn from(choice: IsolationChoice) -> Self {
        match choice {
            IsolationChoice::Auto => Self::Auto,
            IsolationChoice::Require => Self::Require,
            IsolationChoice::Off => Self::Off,
        }
    }
}

impl From<BackingChoice> for Backing {
    fn from(choice: BackingChoice) -> Self {
        match choice {
            BackingChoice::Auto => Self::Auto,
            BackingChoice::Huge => Self::Huge2m,
            BackingChoice::Huge1g => Self::Huge1g,
            BackingChoice::Small => Self::Small,
        }
    }
}

/// Has the broker give up what it keeps of ended arenas where the enclave would
/// lack it: memory, or huge pages. What goes may be on another node than the one
/// wanted, so it looks again after each.
fn make_room(broker: &mut xemem_host::Broker, config: &EnclaveConfig) {
    while let Ok(host) = Topology::read(Path::new("/"))
        && let Some((bytes, huge)) = lacking(&host, config.node, config.backing, config.mem_bytes)
    {
        // If it has nothing to give, the VMM says what is missing.
        if !broker
            .make_room(bytes.min(LARGE_PAGE_SIZE), huge)
            .is_ok_and(|freed| freed > 0)
        {
            return;
        }
    }
}

/// Bytes that are missing for the enclave, and whether of huge pages. `None`
/// also where all that is there would not do: then nothing is given up for it.
fn lacking(
    host: &Topology,
    node: Option<usize>,
    backing: Backing,
    wanted: u64,
) -> Option<(u64, bool)> {
    // The broker keeps nothing on pages of 1 GiB.
    if backing == Backing::Huge1g {
        return None;
    }
    let node = node.and_then(|node| host.nodes.get(&node));
    let huge = backing != Backing::Small && host.huge_total > 0;
    let (free, total) = match (huge, node) {
        (true, Some(node)) => (node.huge_free.min(host.huge_free), node.huge_total),
        (true, None) => (host.huge_free, host.huge_total),
        (false, Some(node)) => (node.mem_available_bytes, node.mem_total_bytes),
        (false, None) => (host.mem_available_bytes, host.mem_total_bytes),
    };
    let unit = if huge { LARGE_PAGE_SIZE } else { 1 };
    let missing = wanted.saturating_sub(free.saturating_mul(unit));
    let could = wanted <= total.saturating_mul(unit);
    (missing > 0 && could).then_some((missing, huge))
}

/// The exported directory without links, so that it stays the one meant.
fn export_directory(export: &Export) -> Result<PathBuf, Failure> {
    let what = || format!("export {}", export.host.display());
    let path = std::fs::canonicalize(&export.host).map_err(|e| {
        Failure::io(what(), e).with_hint(format!("mkdir -p {}", export.host.display()))
    })?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(Failure::new(Class::Usage, what(), "it is not a directory")
            .with_hint("enclavectl create --help"))
    }
}

/// Starts the VMM and waits for its report.
fn start(vmm: &Path, config: &EnclaveConfig) -> Result<Box<Started>, Failure> {
    let what = format!("create enclave {}", config.name);
    let mut launch = Launch::start(vmm, config, Lifetime::OfItsOwn)?;
    let word = launch.wait(Instant::now() + CREATE_TIMEOUT, None);
    let failure = match word {
        Ok(Word::Up(started)) => return Ok(started),
        Ok(Word::Refused(failure)) => return Err(failure),
        Ok(Word::Died(end)) => {
            let why = format!("enclave-vmm ended without a report ({end})");
            return Err(Failure::new(Class::Failure, what, why));
        }
        Ok(Word::Late | Word::Called) => {
            let why = format!("enclave-vmm did not report within {CREATE_TIMEOUT:?}");
            Failure::new(Class::Timeout, what, why)
        }
        Err(failure) => failure,
    };
    // It must not come up after we said it did not.
    launch.kill();
    Err(failure)
}

/// What `create --json` tells.
#[derive(Debug, Serialize)]
struct Fresh {
    #[serde(flatten)]
    started: Box<Started>,
    isolation: Option<Report>,
}

fn summary(started: &Started, isolation: Option<&Report>) -> String {
    let cores: Vec<String> = started
        .effective
        .cores
        .iter()
        .map(usize::to_string)
        .collect();
    format!(
        "{}: core {}{}{}, {} of memory in {} pages{}, kernel in {}",
        started.effective.config.name,
        cores.join(","),
        idle_threads(started),
        alone(started, isolation),
        output::size(started.effective.config.mem_bytes),
        output::size(started.report.backing_page_bytes),
        where_it_is(started),
        started.report.kernel_mode,
    )
}

/// How far it has its cores alone, where they are not shared.
fn alone(started: &Started, isolation: Option<&Report>) -> String {
    let asked = started.effective.config.isolation != Isolation::Off;
    let report = isolation.filter(|_| asked && !started.effective.config.share_cores);
    report.map_or_else(String::new, |report| format!(" {}", isolate::words(report)))
}

/// The threads that nobody uses, so that the enclave has its cores alone.
fn idle_threads(started: &Started) -> String {
    let idle: BTreeSet<usize> = started.effective.idle.iter().copied().collect();
    match idle.is_empty() {
        true => String::new(),
        false => format!(" ({} idle beside it)", cpu_list(&idle)),
    }
}

/// " on node 1" when a node was asked for: where the kernel says that the
/// memory is, else (nothing touched yet, no NUMA) the node it will come from.
fn where_it_is(started: &Started) -> String {
    let Some(wanted) = started.effective.config.node else {
        return String::new();
    };
    let memory = started.placement.memory.iter();
    let parts = memory.flat_map(|memory| &memory.nodes);
    let mut nodes: Vec<usize> = parts.map(|part| part.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes.is_empty() {
        nodes.push(wanted);
    }
    let nodes: Vec<String> = nodes.iter().map(usize::to_string).collect();
    format!(" on node {}", nodes.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use enclave_vmm::topology::Node;

    #[test]
    fn room_is_made_where_it_lacks_and_would_do() {
        let node = |free| Node {
            huge_total: 8,
            huge_free: free,
            ..Node::default()
        };
        let mut host = Topology {
            mem_total_bytes: 100 * LARGE_PAGE_SIZE,
            mem_available_bytes: 10 * LARGE_PAGE_SIZE,
            huge_total: 16,
            huge_free: 9,
            nodes: [(0, node(1)), (1, node(8))].into(),
            ..Topology::default()
        };
        let lacks = |host: &Topology, node, pages: u64, backing| {
            let lacking = lacking(host, node, backing, pages * LARGE_PAGE_SIZE);
            lacking.map(|(bytes, huge)| (bytes / LARGE_PAGE_SIZE, huge))
        };
        assert_eq!(lacks(&host, None, 9, Backing::Auto), None);
        assert_eq!(lacks(&host, None, 10, Backing::Auto), Some((1, true)));
        assert_eq!(lacks(&host, Some(0), 4, Backing::Huge2m), Some((3, true)));
        assert_eq!(lacks(&host, Some(1), 8, Backing::Huge2m), None);
        assert_eq!(lacks(&host, Some(1), 9, Backing::Huge2m), None, "never");
        assert_eq!(lacks(&host, None, 12, Backing::Small), Some((2, false)));
        assert_eq!(lacks(&host, None, 101, Backing::Small), None, "never");
        host.huge_total = 0;
        assert_eq!(lacks(&host, None, 12, Backing::Auto), Some((2, false)));
    }
}
