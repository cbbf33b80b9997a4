//! The running machine of one enclave, seen from the host side of the VMM.
//!
//! Called by the lifecycle and control code; hides KVM. Every method may be
//! called from any thread. A machine never panics on guest behaviour: it ends
//! in a [`MachineState`] that says why.

mod alarm;
pub mod arenas;
mod attached;
mod bells;
mod core_changes;
mod cores;
mod debugger;
pub mod dump;
mod extended;
mod frozen;
mod gate;
mod given_back;
pub(crate) mod imports;
mod kick;
mod leases;
mod memory_blocks;
mod programs;
pub mod queue;
mod reset;
mod running;
mod segments;
mod service;
mod starts;
mod state;
mod telling;
mod vcpu_loop;
mod virtual_memory;
mod vm;

pub use core_changes::CoreError;
pub use memory_blocks::{BlockError, MAX_BLOCKS};
pub use reset::{Renewable, ResetError};
pub(crate) use running::add_ram;
pub use running::{Machine, MachineError};
pub use starts::StartPhases;
pub use vm::Vm;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use enclave_abi::queue::{SELFTEST_NONE, SELFTEST_NOT_COVERED, SELFTEST_PASSED};
use serde::{Deserialize, Serialize};

use crate::features::Features;

/// What a machine is made from.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Enclave name.
    pub name: String,
    /// Kernel image (ELF).
    pub kernel: PathBuf,
    /// Private RAM in bytes, multiple of 2 MiB.
    pub mem_bytes: u64,
    /// Host cores; the vCPU thread of index i is pinned to `cores[i]`.
    pub cores: Vec<usize>,
    /// Most cores that it can have, with those that come later.
    pub max_cores: usize,
    /// Where private RAM and arenas come from.
    pub memory_node: MemoryNode,
    /// Which page size backs private RAM.
    pub backing: Backing,
    /// Touch all private RAM at create.
    pub prefault: bool,
    /// Privilege mode wanted.
    pub ring: Ring,
    /// Processor features to leave off.
    pub without: Features,
    /// Socket of the XEMEM broker.
    pub broker_socket: PathBuf,
    /// Directories the programs may reach.
    pub exports: Vec<Export>,
    /// Kernel self-test to run at boot; 0 = none.
    pub selftest: u32,
}

/// NUMA node that memory comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryNode {
    /// Wherever the kernel takes it.
    #[default]
    Any,
    /// From this node while it has some.
    Prefer(usize),
    /// From this node alone.
    Bind(usize),
}

/// Page size behind private RAM and arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// hugetlb 2 MiB when enough are free, else 4 KiB with a warning.
    Auto,
    /// hugetlb 2 MiB or fail.
    Huge2m,
    /// Private RAM on hugetlb 1 GiB or fail; all else as [`Backing::Auto`], which
    /// comes in smaller pieces.
    Huge1g,
    /// 4 KiB pages.
    Small,
}

impl Backing {
    /// Of memory that is added to a running enclave, in blocks of any size.
    #[must_use]
    pub fn of_blocks(self) -> Self {
        match self {
            Self::Huge1g => Self::Auto,
            Self::Auto | Self::Huge2m | Self::Small => self,
        }
    }
}

/// Privilege mode asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ring {
    /// Ring 3 where the host interprets ring 0, else ring 0.
    Auto,
    /// Kernel in ring 0.
    Ring0,
    /// Kernel in ring 3.
    Ring3,
}

/// A host directory programs may reach under a guest path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Directory on the host.
    pub host: PathBuf,
    /// Absolute path in the enclave.
    pub guest: String,
    /// May programs write?
    pub writable: bool,
}

/// A program to run.
#[derive(Debug)]
pub struct RunSpec {
    /// The program image, open for reading.
    pub image: OwnedFd,
    /// Path shown as AT_EXECFN and in reports.
    pub path: String,
    /// Argument strings, the program's name first.
    pub argv: Vec<String>,
    /// Environment, `KEY=value`.
    pub envp: Vec<String>,
    /// Working directory (guest path).
    pub cwd: String,
    /// Standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Stack bytes; 0 = default.
    pub stack_bytes: u64,
    /// Most bytes of memory it may have; 0 = no limit of its own.
    pub limit_bytes: u64,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RunOutcome {
    /// By exit or exit_group.
    Exited {
        /// 0..=255.
        code: u8,
    },
    /// By a signal; the kernel's report where there is one.
    Signaled {
        /// Signal number.
        signal: u8,
        /// Address, RIP, nearest region; empty if none.
        report: String,
    },
    /// It never started: the image was refused.
    Refused {
        /// Why, for the user.
        reason: String,
    },
    /// The machine stopped under it.
    MachineStopped {
        /// Why.
        reason: String,
    },
}

/// One process, as its kernel tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// The number of its run.
    pub run: u64,
    /// Its number in the enclave; 0 = it is about to start.
    pub pid: u32,
    /// Its program's path.
    pub program: String,
    /// Its threads.
    pub threads: u32,
    /// What it does.
    pub state: ProcessState,
    /// Bytes of memory behind what it has mapped, arenas and imports not counted.
    pub memory_bytes: u64,
    /// Nanoseconds that its threads ran.
    pub cpu_ns: u64,
}

/// What a process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessState {
    /// Its kernel has not loaded it yet.
    #[default]
    Starting,
    /// It has the cores.
    Running,
    /// It would run, but another one has the cores.
    Ready,
    /// All its threads wait.
    Waiting,
}

/// State of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum MachineState {
    /// The kernel has not reported yet.
    Booting,
    /// Up, nothing to run.
    Idle,
    /// Programs run.
    Running {
        /// Their paths, with commas between them.
        program: String,
    },
    /// Its vCPUs are held; kernel, memory and what is attached stay.
    Frozen {
        /// Paths of the programs that run, empty if none.
        program: String,
    },
    /// The kernel or the vCPU failed; the VMM still answers.
    Failed {
        /// Why.
        reason: String,
    },
    /// Stopped on request.
    Stopped,
}

/// Why a run was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// More at once than its kernel has room for.
    #[error("the enclave already runs {most} programs")]
    Busy {
        /// How many may run.
        most: usize,
    },
    /// It has to be thawed first.
    #[error("the enclave is frozen")]
    Frozen,
    /// The machine is not up.
    #[error("the enclave is not running: {0}")]
    NotRunning(String),
    /// Strings too long for the bounce area.
    #[error("arguments and environment take {got} bytes, at most {max} fit")]
    ArgumentsTooLong {
        /// Bytes wanted.
        got: usize,
        /// Bytes that fit.
        max: usize,
    },
}

/// Why a machine was not frozen or thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    /// It is so already.
    #[error("it is frozen already")]
    Frozen,
    /// There is nothing to thaw.
    #[error("it is not frozen")]
    NotFrozen,
    /// Its kernel is not up, or not any more.
    #[error("its kernel is not up")]
    NotUp,
    /// A vCPU did not leave the guest; nothing has changed.
    #[error("a vCPU did not stop within {} s", FREEZE_TIMEOUT.as_secs())]
    Stuck,
}

/// How long the vCPUs may take to leave the guest.
pub const FREEZE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// How the self-test asked for at boot ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selftest {
    /// None was asked for, or the kernel has not reported yet.
    #[default]
    None,
    /// Passed.
    Passed,
    /// Failed, or the kernel has none of that number.
    Failed,
    /// The CPU lacks what it is about; the console says what.
    NotCovered,
}

impl Selftest {
    /// From the number in the kernel's boot message; an unknown one is no pass.
    pub(crate) const fn from_verdict(verdict: u64) -> Self {
        match verdict {
            SELFTEST_NONE => Self::None,
            SELFTEST_PASSED => Self::Passed,
            SELFTEST_NOT_COVERED => Self::NotCovered,
            _ => Self::Failed,
        }
    }
}

/// Bells between enclaves: see `docs/xemem.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BellCounts {
    /// Importers whose bells a publish here rings.
    pub rung: usize,
    /// Sleeps ended by bells of attached arenas, in ring-0 mode by the timer, too.
    pub taken: u32,
    /// Sleeps ended by the broker.
    pub notices: u32,
    /// Bells taken that were about nothing new.
    pub idle: u32,
    /// Times that bells were held off because they rang for nothing.
    pub paused: u32,
}

/// Counters and facts shown by `inspect` and used by the benchmarks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MachineReport {
    /// "ring0" or "ring3"; empty before boot.
    pub kernel_mode: String,
    /// "nested" (ring 0 is interpreted) or "hardware".
    pub platform: String,
    /// "upper-store" or "cr3".
    pub flush: String,
    /// How the self-test asked for ended.
    #[serde(default)]
    pub selftest: Selftest,
    /// Number of self-tests the kernel has; 0 before boot.
    #[serde(default)]
    pub selftest_count: u32,
    /// Bytes of a page behind private RAM.
    pub backing_page_bytes: u64,
    /// Processor features in force, read back from the vCPU.
    #[serde(default)]
    pub cpu_features: Vec<String>,
    /// Warnings given at create (such as 4 KiB backing).
    pub warnings: Vec<String>,
    /// Create phases in order: name, microseconds since the VMM started.
    pub phases: Vec<(String, u64)>,
    /// From the request for the first program to its first instruction, once that
    /// has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_program: StartPhases,
    /// KVM statistics of the vCPUs together by name (exact counts).
    pub kvm: std::collections::BTreeMap<String, u64>,
    /// The same of each vCPU, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpus: Vec<std::collections::BTreeMap<String, u64>>,
    /// Exits to user space by reason.
    pub exits: std::collections::BTreeMap<String, u64>,
    /// Forwarded calls by name.
    pub forwarded: std::collections::BTreeMap<String, u64>,
    /// Bytes the kernel's console ring dropped.
    pub console_dropped: u64,
    /// Arenas: (slot, name, segid, bytes of the object, page bytes behind it).
    pub arenas: Vec<(u32, String, u64, u64, u64)>,
    /// Arenas of others that the program has attached.
    #[serde(default)]
    pub imports: usize,
    /// Bells between this enclave and others.
    #[serde(default)]
    pub bells: BellCounts,
}
