//! Admission: taking the locks of one enclave, in order.
//!
//! Called once by `enclave-vmm` at start. First the enclave's own lock, then,
//! under the admission lock, the decision over cores and memory, the core
//! locks and the record. All of it lives as long as the [`Reservation`] and is
//! given back by the host kernel if the process dies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use enclave_abi::addr::{GIB, LARGE_PAGE_SIZE};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::cores::{Choice, CoreQuery, Holder, choose};
use super::enclave_dir::write_record;
use super::{EnclaveDir, Occupancy, Record, RunDir};
use crate::config::{CoreRequest, EnclaveConfig, check_cores};
use crate::failure::{Class, Failure};
use crate::isolation::Isolation;
use crate::machine::{Backing, MemoryNode};
use crate::topology::Topology;

/// How long one admission waits for another to finish.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);
const ADMISSION_PAUSE: Duration = Duration::from_millis(5);
/// Tries to make a directory that its last owner is just removing.
const DIRECTORY_TRIES: u32 = 20;

/// What was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Cores, ascending.
    pub cores: Vec<usize>,
    /// The other threads of these physical cores, which stay idle.
    pub idle: Vec<usize>,
    /// Where the memory is to come from.
    pub memory_node: MemoryNode,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The locks of one enclave; dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    run: RunDir,
    dir: EnclaveDir,
    lock: File,
    record: Record,
    core_locks: BTreeMap<usize, File>,
    /// Cores that this process could run on before it kept off its own.
    allowed: BTreeSet<usize>,
    /// The physical cores of the host when the cores were chosen.
    siblings: BTreeMap<usize, BTreeSet<usize>>,
}

impl Reservation {
    /// Takes the enclave's name: its directory and lock.
    ///
    /// # Errors
    /// [`Class::Busy`] when a live VMM has the name.
    pub fn take_name(run: RunDir, name: &str) -> Result<Self, Failure> {
        for _ in 0..DIRECTORY_TRIES {
            let Some(dir) = run.enclave(name, true)? else {
                continue;
            };
            if let Some(lock) = dir.take(&run)? {
                return Ok(Self {
                    run,
                    dir,
                    lock,
                    record: Record::of_this_process(),
                    core_locks: BTreeMap::new(),
                    allowed: BTreeSet::new(),
                    siblings: BTreeMap::new(),
                });
            }
        }
        let why = "its directory is being removed again and again";
        Err(Failure::new(
            Class::Busy,
            format!("create enclave {name}"),
            why,
        ))
    }

    /// Decides over cores and memory and takes them.
    ///
    /// `allowed` are the cores this process may run on.
    ///
    /// # Errors
    /// [`Class::Busy`] or [`Class::Resources`] with names and figures.
    pub fn admit(
        &mut self,
        config: &EnclaveConfig,
        topology: &Topology,
        allowed: &BTreeSet<usize>,
    ) -> Result<Grant, Failure> {
        let _admission = self.admission_lock()?;
        let grant = decide(&self.run, config, topology, allowed)?;
        for &core in grant.cores.iter().chain(&grant.idle) {
            let lock = self.lock_core(core, config.share_cores)?;
            self.core_locks.insert(core, lock);
        }
        self.allowed.clone_from(allowed);
        self.siblings.clone_from(&topology.siblings);
        self.record = Record {
            cores: grant.cores.clone(),
            idle: grant.idle.clone(),
            share_cores: config.share_cores,
            isolated: !config.share_cores && config.isolation != Isolation::Off,
            mem_bytes: config.mem_bytes,
            node: config.node,
            ..Record::of_this_process()
        };
        write_record(&self.lock, &self.record)
            .map_err(|e| Failure::io(format!("record enclave {}", config.name), e))?;
        Ok(grant)
    }

    /// Says that the memory is in use now: the host's own figures show it, so
    /// later admissions need not subtract it again.
    pub fn settle(&mut self) {
        self.record.settled = true;
        // Unsettled only makes later admissions more careful: no error to tell.
        drop(write_record(&self.lock, &self.record));
    }

    /// Admits `bytes` more memory of the kind `config` asks for. The record says
    /// that it is held from then on; [`Reservation::hold`] says what came of it.
    ///
    /// # Errors
    /// [`Class::Resources`] with figures.
    pub fn grow(
        &mut self,
        config: &EnclaveConfig,
        bytes: u64,
        topology: &Topology,
    ) -> Result<(), Failure> {
        let what = format!("add memory to enclave {}", config.name);
        let _admission = self.admission_lock().map_err(|failure| Failure {
            what: what.clone(),
            ..failure
        })?;
        let wanted = EnclaveConfig {
            mem_bytes: bytes,
            backing: config.backing.of_blocks(),
            ..config.clone()
        };
        // Its own promise counts, too.
        let all = live(&self.run)?;
        check_memory(&wanted, topology, &all).map_err(|failure| {
            let is_about_pages = wanted.backing == Backing::Huge2m;
            let hint = if is_about_pages {
                failure.hint
            } else {
                "enclavectl part ls".into()
            };
            Failure {
                what,
                hint,
                ..failure
            }
        })?;
        self.hold(self.record.mem_bytes.saturating_add(bytes), false);
        Ok(())
    }

    /// Says how much is held now, and whether the host's own figures show it.
    pub fn hold(&mut self, bytes: u64, is_settled: bool) {
        self.record.mem_bytes = bytes;
        self.record.settled = is_settled;
        // A record that says too much makes others more careful, and one that says
        // too little is made up for by the host's figures.
        drop(write_record(&self.lock, &self.record));
    }

    /// Decides over more cores for the enclave and takes them. The record says that
    /// they are held from then on; [`Reservation::keep_cores`] says what came of it.
    ///
    /// # Errors
    /// As [`Reservation::admit`].
    pub fn take_cores(
        &mut self,
        config: &EnclaveConfig,
        request: &CoreRequest,
        topology: &Topology,
    ) -> Result<Choice, Failure> {
        let what = format!("add cores to enclave {}", config.name);
        let as_ours = |failure: Failure| Failure {
            what: what.clone(),
            ..failure
        };
        check_cores(request).map_err(|error| error.into_failure(&what))?;
        let _admission = self.admission_lock().map_err(as_ours)?;
        let held = holders(&live(&self.run)?);
        // Not what this thread may run on: it keeps off cores that the enclave had.
        let mut open = self.allowed.clone();
        open.retain(|core| !self.core_locks.contains_key(core));
        if let CoreRequest::List(list) = request
            && let Some(own) = list.iter().find(|core| self.core_locks.contains_key(core))
        {
            let why = format!("core {own} is one of its cores already");
            let hint = format!("enclavectl inspect {}", config.name);
            return Err(Failure::new(Class::Usage, what, why).with_hint(hint));
        }
        let own = self.record.cores.iter().copied().collect();
        let choice = choose(&CoreQuery {
            enclave: &config.name,
            request,
            shares: config.share_cores,
            node: config.node,
            beside: &own,
            topology,
            allowed: &open,
            held: &held,
        })
        .map_err(as_ours)?;
        let mut fresh = BTreeMap::new();
        for &core in choice.cores.iter().chain(&choice.idle) {
            let lock = self.lock_core(core, config.share_cores).map_err(as_ours)?;
            fresh.insert(core, lock);
        }
        self.core_locks.extend(fresh);
        self.siblings.clone_from(&topology.siblings);
        let mut cores = self.record.cores.clone();
        cores.extend(&choice.cores);
        self.keep_cores(&cores);
        Ok(choice)
    }

    /// Gives all cores back but `cores` and the other threads of these. The record
    /// says so before the locks are gone.
    pub fn keep_cores(&mut self, cores: &[usize]) {
        let mut cores = cores.to_vec();
        cores.sort_unstable();
        let siblings = cores.iter().filter_map(|core| self.siblings.get(core));
        let mut idle: BTreeSet<usize> = siblings.flatten().copied().collect();
        idle.retain(|core| !cores.contains(core) && self.core_locks.contains_key(core));
        let idle: Vec<usize> = idle.into_iter().collect();
        if (&self.record.cores, &self.record.idle) == (&cores, &idle) {
            return;
        }
        (self.record.cores, self.record.idle) = (cores, idle);
        // One that says too much keeps others off; the locks have the last word.
        drop(write_record(&self.lock, &self.record));
        let taken: BTreeSet<usize> = self.record.taken().collect();
        self.core_locks.retain(|core, _| taken.contains(core));
    }

    /// Keeps this thread and the process's first one, which makes the others, off
    /// the enclave's cores: they are its vCPUs', as far as that leaves another one.
    pub fn stay_off(&self) {
        if self.record.share_cores {
            return;
        }
        let mut set = rustix::thread::CpuSet::new();
        self.allowed.iter().for_each(|&core| set.set(core));
        self.record.taken().for_each(|core| set.unset(core));
        if set.count() > 0 {
            for thread in [None, Some(rustix::process::getpid())] {
                // Only where they run is at stake, and `inspect` shows it.
                let _ = rustix::thread::sched_setaffinity(thread, &set);
            }
        }
    }

    /// Its cores and the other threads of these.
    #[must_use]
    pub fn cores(&self) -> (Vec<usize>, Vec<usize>) {
        (self.record.cores.clone(), self.record.idle.clone())
    }

    /// The run directory.
    #[must_use]
    pub fn run(&self) -> &RunDir {
        &self.run
    }

    /// The enclave's directory.
    #[must_use]
    pub fn dir(&self) -> &EnclaveDir {
        &self.dir
    }

    /// Removes the enclave's files and gives everything back.
    ///
    /// # Errors
    /// When something in the directory is not the enclave's.
    pub fn release(self) -> Result<(), Failure> {
        self.dir.remove_owned(&self.run, &self.lock)
    }

    /// Waits for the admission lock.
    fn admission_lock(&self) -> Result<File, Failure> {
        let what = || format!("create enclave {}", self.dir.name());
        let file = self.run.ledger_file("admission.lock")?;
        let deadline = Instant::now() + ADMISSION_TIMEOUT;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(ADMISSION_PAUSE);
                }
                Err(Errno::WOULDBLOCK) => {
                    let why = "another enclave has been in admission for 10 s";
                    return Err(Failure::new(Class::Timeout, what(), why));
                }
                Err(error) => return Err(Failure::io(what(), error)),
            }
        }
    }

    /// Takes the lock of one core. The records said it is open; the lock has
    /// the last word.
    fn lock_core(&self, core: usize, shared: bool) -> Result<File, Failure> {
        let what = || format!("create enclave {}", self.dir.name());
        let mut file = self.run.ledger_file(&format!("core-{core}.lock"))?;
        let operation = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Only for the message: an unreadable holder is "another".
                drop((&mut file).take(256).read_to_string(&mut holder));
                let why = format!("core {core} is taken ({})", holder.trim());
                return Err(Failure::new(Class::Busy, what(), why).with_hint("enclavectl list"));
            }
            Err(error) => return Err(Failure::io(what(), error)),
        }
        let pid = rustix::process::getpid();
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{} pid {pid}", self.dir.name()));
        written.map_err(|e| Failure::io(what(), e))?;
        Ok(file)
    }
}

/// What an enclave would be granted now. Takes nothing: the next moment may
/// change it.
///
/// # Errors
/// As [`Reservation::take_name`] and [`Reservation::admit`].
pub fn plan(
    run: &RunDir,
    config: &EnclaveConfig,
    topology: &Topology,
    allowed: &BTreeSet<usize>,
) -> Result<Grant, Failure> {
    if let Some(dir) = run.enclave(&config.name, false)?
        && let Occupancy::Live(record) = dir.occupancy()?
    {
        return Err(dir.exists(record.pid));
    }
    decide(run, config, topology, allowed)
}

/// What an enclave gets as things are.
fn decide(
    run: &RunDir,
    config: &EnclaveConfig,
    topology: &Topology,
    allowed: &BTreeSet<usize>,
) -> Result<Grant, Failure> {
    let mut others = live(run)?;
    others.retain(|(name, _)| *name != config.name);
    let held = holders(&others);
    let choice = choose(&CoreQuery {
        enclave: &config.name,
        request: &config.cores,
        shares: config.share_cores,
        node: config.node,
        beside: &BTreeSet::new(),
        topology,
        allowed,
        held: &held,
    })?;
    check_memory(config, topology, &others)?;
    Ok(Grant {
        memory_node: memory_node(config, topology, &choice.cores),
        cores: choice.cores,
        idle: choice.idle,
        warnings: choice.warnings,
    })
}

/// The enclaves whose VMM lives, with what each was granted.
///
/// # Errors
/// When the run directory cannot be read.
pub fn live(run: &RunDir) -> Result<Vec<(String, Record)>, Failure> {
    let mut all = Vec::new();
    for name in run.names()? {
        // A directory that cannot be looked into cannot be a live enclave of
        // ours; the locks still protect its cores.
        let Ok(Some(dir)) = run.enclave(&name, false) else {
            continue;
        };
        if let Ok(Occupancy::Live(record)) = dir.occupancy() {
            all.push((name, record));
        }
    }
    Ok(all)
}

/// The cores other enclaves have.
fn holders(others: &[(String, Record)]) -> BTreeMap<usize, Vec<Holder>> {
    let mut held: BTreeMap<usize, Vec<Holder>> = BTreeMap::new();
    for (name, record) in others {
        for core in record.taken() {
            held.entry(core).or_default().push(Holder {
                enclave: name.clone(),
                pid: record.pid,
                shares: record.share_cores,
            });
        }
    }
    held
}

/// Where the memory of an enclave on `cores` comes from: the node asked for,
/// else rather the node of its cores.
fn memory_node(config: &EnclaveConfig, topology: &Topology, cores: &[usize]) -> MemoryNode {
    // Without NUMA in the kernel there is one node and no policy to set.
    if !topology.has_numa {
        return MemoryNode::Any;
    }
    if let Some(node) = config.node {
        return MemoryNode::Bind(node);
    }
    let has_memory = |number: &usize| {
        let node = topology.nodes.get(number);
        node.is_some_and(|node| node.is_allowed && node.mem_total_bytes > 0)
    };
    topology
        .common_node(cores)
        .filter(has_memory)
        .map_or(MemoryNode::Any, MemoryNode::Prefer)
}

/// What there is to take memory from.
struct Supply {
    /// " on node 1", or nothing for the whole host.
    place: String,
    available_bytes: u64,
    /// Pages of 2 MiB.
    huge: Pool,
    /// Pages of 1 GiB.
    giant: Pool,
}

/// A pool of huge pages.
struct Pool {
    free: u64,
    total: u64,
    page_bytes: u64,
    /// The file that sets the number of its pages.
    file: String,
}

impl Pool {
    /// `pages` are those free and all, below `folder`.
    fn new((free, total): (u64, u64), page_bytes: u64, folder: &str) -> Self {
        let kib = page_bytes >> 10;
        Self {
            free,
            total,
            page_bytes,
            file: format!("{folder}/hugepages/hugepages-{kib}kB/nr_hugepages"),
        }
    }

    fn free_bytes(&self) -> u64 {
        self.free.saturating_mul(self.page_bytes)
    }

    /// Why an enclave cannot have all its memory from here, and what to do.
    fn lacks(&self, config: &EnclaveConfig, place: &str) -> Option<(String, String)> {
        if config.mem_bytes <= self.free_bytes() {
            return None;
        }
        let pages = config.mem_bytes / self.page_bytes;
        let size = match self.page_bytes {
            GIB => "1 GiB",
            _ => "2 MiB",
        };
        let Self { free, total, .. } = self;
        let why = format!("{pages} huge pages of {size} wanted{place}, {free} of {total} are free");
        let more = total.saturating_sub(*free).saturating_add(pages);
        Some((why, format!("echo {more} > {}", self.file)))
    }
}

/// The supply of the host, or of the node asked for ([`choose`] has seen that
/// it exists).
fn supply(config: &EnclaveConfig, topology: &Topology) -> Supply {
    let pools = |huge: (u64, u64), giant: (u64, u64), folder: &str| {
        let huge = Pool::new(huge, LARGE_PAGE_SIZE, folder);
        (huge, Pool::new(giant, GIB, folder))
    };
    let of_host = || {
        let huge = (topology.huge_free, topology.huge_total);
        let giant = (topology.giant_free, topology.giant_total);
        let (huge, giant) = pools(huge, giant, "/sys/kernel/mm");
        Supply {
            place: String::new(),
            available_bytes: topology.mem_available_bytes,
            huge,
            giant,
        }
    };
    match config
        .node
        .map(|number| (number, topology.nodes.get(&number)))
    {
        Some((number, Some(node))) if topology.has_numa => {
            // What the host has promised to others may be of any node.
            let huge = (node.huge_free.min(topology.huge_free), node.huge_total);
            let giant = (node.giant_free.min(topology.giant_free), node.giant_total);
            let folder = format!("/sys/devices/system/node/node{number}");
            let (huge, giant) = pools(huge, giant, &folder);
            Supply {
                place: format!(" on node {number}"),
                available_bytes: node.mem_available_bytes,
                huge,
                giant,
            }
        }
        _ => of_host(),
    }
}

/// Checks that the memory asked for can be had.
fn check_memory(
    config: &EnclaveConfig,
    topology: &Topology,
    others: &[(String, Record)],
) -> Result<(), Failure> {
    let what = || format!("create enclave {}", config.name);
    let supply = supply(config, topology);
    let place = &supply.place;
    let pool = match config.backing {
        Backing::Huge2m => Some(&supply.huge),
        Backing::Huge1g => Some(&supply.giant),
        Backing::Auto | Backing::Small => None,
    };
    if let Some(pool) = pool {
        return pool.lacks(config, place).map_or(Ok(()), |(why, hint)| {
            Err(Failure::new(Class::Resources, what(), why).with_hint(hint))
        });
    }
    if config.backing == Backing::Auto && config.mem_bytes <= supply.huge.free_bytes() {
        return Ok(());
    }
    // An enclave without a node may get its memory from this one.
    let may_take = |record: &Record| {
        config.node.is_none() || record.node.is_none() || record.node == config.node
    };
    let promised: u64 = others
        .iter()
        .filter(|(_, record)| !record.settled && may_take(record))
        .fold(0, |sum, (_, record)| sum.saturating_add(record.mem_bytes));
    let available = supply.available_bytes.saturating_sub(promised);
    if config.mem_bytes > available {
        let why = format!(
            "{} MiB of memory wanted{place}, {} MiB available ({} MiB free{}, {} MiB promised to other enclaves)",
            config.mem_bytes >> 20,
            available >> 20,
            supply.available_bytes >> 20,
            if place.is_empty() {
                " on the host"
            } else {
                place
            },
            promised >> 20
        );
        let node = config.node.map(|node| format!(" --node {node}"));
        return Err(
            Failure::new(Class::Resources, what(), why).with_hint(format!(
                "enclavectl create {}{} --mem {}M …",
                config.name,
                node.unwrap_or_default(),
                usable_mib(available)
            )),
        );
    }
    Ok(())
}

/// The largest size to suggest: what is available less an eighth.
fn usable_mib(available: u64) -> u64 {
    let mib = (available - available / 8) >> 20;
    mib - mib % 2
}

/// The cores the calling thread may run on.
///
/// # Errors
/// That of the operating system.
pub fn allowed_cores() -> Result<BTreeSet<usize>, Failure> {
    let set = rustix::thread::sched_getaffinity(None)
        .map_err(|e| Failure::io("read the cpuset of this process", e))?;
    let cores = 0..rustix::thread::CpuSet::MAX_CPU;
    Ok(cores.filter(|&core| set.is_set(core)).collect())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
