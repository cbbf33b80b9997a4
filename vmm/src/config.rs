//! What a user asks for when creating an enclave, and its checks.
//!
//! Filled from the command line by `enclavectl`, passed as JSON to
//! `enclave-vmm`, checked by both (pure, no system call). Whether the host can
//! give what is asked is decided later, in [`crate::ledger`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use enclave_abi::addr::{GIB, LARGE_PAGE_SIZE, is_aligned};
use enclave_abi::arena::NAME_BYTES;
use enclave_abi::boot::MAX_CORES;
use enclave_abi::layout;
use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};
use crate::features::Features;
use crate::isolation::Isolation;
use crate::machine::{Backing, Export, MachineConfig, MemoryNode, Ring};

/// Least private RAM of an enclave in bytes.
pub const MIN_MEM_BYTES: u64 = 32 << 20;
/// Most private RAM of an enclave in bytes: the low window and the one above
/// 4 GiB, up to the arenas.
pub const MAX_MEM_BYTES: u64 = layout::LOW_RAM_END + (layout::ARENA_WINDOW - layout::HIGH_RAM);
/// Memory of a running enclave grows and shrinks by blocks of this size.
pub const MEMORY_BLOCK_BYTES: u64 = 128 << 20;
/// Highest core number that is understood.
pub const MAX_CORE: usize = 4095;
/// Highest number of a NUMA node that any Linux has.
pub const MAX_NODE: usize = 1023;
/// Most exported directories.
pub const MAX_EXPORTS: usize = 64;

/// Which cores are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoreRequest {
    /// So many, chosen from the highest-numbered free ones.
    Count(usize),
    /// Exactly these, ascending.
    List(Vec<usize>),
}

impl CoreRequest {
    /// How many cores are wanted.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Count(count) => *count,
            Self::List(list) => list.len(),
        }
    }
}

/// The request for one enclave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnclaveConfig {
    /// Enclave name.
    pub name: String,
    /// Cores wanted.
    pub cores: CoreRequest,
    /// Most cores it may have later; `None`: as many as at first.
    #[serde(default)]
    pub max_cores: Option<usize>,
    /// May the cores be shared with other enclaves that say so too?
    #[serde(default)]
    pub share_cores: bool,
    /// How far the rest of the host is to be kept off the cores.
    #[serde(default)]
    pub isolation: Isolation,
    /// Private RAM in bytes.
    pub mem_bytes: u64,
    /// NUMA node that cores and memory have to come from; without one the
    /// memory is rather on the node of the cores than elsewhere.
    #[serde(default)]
    pub node: Option<usize>,
    /// Directories the programs may reach.
    #[serde(default)]
    pub exports: Vec<Export>,
    /// Privilege mode wanted.
    pub ring: Ring,
    /// Processor features to leave off.
    #[serde(default)]
    pub without: Features,
    /// Page size behind private RAM.
    pub backing: Backing,
    /// Touch all private RAM at create?
    pub prefault: bool,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Socket of the XEMEM broker.
    pub broker_socket: PathBuf,
    /// Kernel self-test to run at boot; 0 = none.
    #[serde(default)]
    pub selftest: u32,
}

/// A value that cannot be what the user meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Name empty, too long or with odd characters.
    #[error(
        "name \"{0}\" is not 1 to {max} letters, digits, '.', '_' or '-' starting with a letter or digit",
        max = NAME_BYTES - 1
    )]
    Name(String),
    /// A size that is no number with a unit, or overflows.
    #[error("size \"{0}\" is not a number of bytes, or one followed by K, M, G or T (binary)")]
    Size(String),
    /// A memory size out of range or not in 2 MiB steps.
    #[error("{0} bytes of memory: wanted a multiple of 2 MiB from 32 MiB to 63 GiB")]
    Memory(u64),
    /// Not in whole pages of 1 GiB.
    #[error("{0} bytes of memory: pages of 1 GiB make a multiple of that, as 1G or 2G")]
    Gibibytes(u64),
    /// A core list that cannot be read.
    #[error("cores \"{0}\" is neither a count nor a list such as 2,4-5 (one core by number: 2-2)")]
    Cores(String),
    /// A node that cannot be.
    #[error("node \"{0}\" is not a number from 0 to {MAX_NODE}")]
    Node(String),
    /// No core at all.
    #[error("0 cores: an enclave needs one")]
    NoCore,
    /// More than the kernel has entries for.
    #[error("{0} cores: the kernel runs on {MAX_CORES} at most")]
    TooManyCores(usize),
    /// Room for less than it begins with.
    #[error("room for {most} cores, and {wanted} are wanted")]
    NoRoom {
        /// Room for so many.
        most: usize,
        /// So many to begin with.
        wanted: usize,
    },
    /// An export that cannot be read.
    #[error("export \"{0}\" is not HOST[=GUEST][:rw] with absolute paths without \"..\"")]
    Export(String),
    /// The same guest path twice.
    #[error("two exports have the guest path {0}")]
    ExportTwice(String),
    /// Cores cannot be shared and isolated.
    #[error("cores cannot be shared and isolated at once")]
    SharedAndIsolated,
    /// Too many exports.
    #[error("{0} exports: at most {MAX_EXPORTS} are possible")]
    TooManyExports(usize),
}

impl ConfigError {
    /// The error as the user sees it: a usage failure of `what`.
    #[must_use]
    pub fn into_failure(self, what: impl Into<String>) -> Failure {
        let hint = match self {
            Self::TooManyCores(_) => "--cores 32",
            Self::Gibibytes(_) => "--backing huge",
            _ => "enclavectl create --help",
        };
        Failure::new(Class::Usage, what, self).with_hint(hint)
    }
}

impl EnclaveConfig {
    /// Checks everything that can be checked without looking at the host.
    ///
    /// # Errors
    /// The first value that cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_name(&self.name)?;
        check_memory(self.mem_bytes)?;
        if self.backing == Backing::Huge1g && !is_aligned(self.mem_bytes, GIB) {
            return Err(ConfigError::Gibibytes(self.mem_bytes));
        }
        if let Some(node) = self.node.filter(|node| *node > MAX_NODE) {
            return Err(ConfigError::Node(node.to_string()));
        }
        check_cores(&self.cores)?;
        check_room(self.max_cores, self.cores.count())?;
        if self.share_cores && self.isolation == Isolation::Require {
            return Err(ConfigError::SharedAndIsolated);
        }
        if self.exports.len() > MAX_EXPORTS {
            return Err(ConfigError::TooManyExports(self.exports.len()));
        }
        let mut seen = BTreeSet::new();
        for export in &self.exports {
            if !is_plain_absolute(&export.guest) || !export.host.is_absolute() {
                return Err(ConfigError::Export(export.guest.clone()));
            }
            if !seen.insert(export.guest.as_str()) {
                return Err(ConfigError::ExportTwice(export.guest.clone()));
            }
        }
        Ok(())
    }

    /// What the machine is made from, once `cores` were granted and it is known
    /// where its memory belongs.
    #[must_use]
    pub fn machine(&self, cores: Vec<usize>, memory_node: MemoryNode) -> MachineConfig {
        MachineConfig {
            name: self.name.clone(),
            kernel: self.kernel.clone(),
            mem_bytes: self.mem_bytes,
            max_cores: self.max_cores.unwrap_or(cores.len()).max(cores.len()),
            cores,
            memory_node,
            backing: self.backing,
            prefault: self.prefault,
            ring: self.ring,
            without: self.without,
            broker_socket: self.broker_socket.clone(),
            exports: self.exports.clone(),
            selftest: self.selftest,
        }
    }

    /// The guest path of the host directory `host`, if some export holds it.
    #[must_use]
    pub fn guest_path(&self, host: &Path) -> Option<String> {
        self.exports
            .iter()
            .filter_map(|export| {
                let rest = host.strip_prefix(&export.host).ok()?.to_str()?;
                Some((export.host.as_os_str().len(), join(&export.guest, rest)))
            })
            .max_by_key(|(matched, _)| *matched)
            .map(|(_, guest)| guest)
    }
}

fn join(guest: &str, rest: &str) -> String {
    let base = guest.trim_end_matches('/');
    match (base, rest) {
        ("", "") => "/".to_owned(),
        (base, "") => base.to_owned(),
        (base, rest) => format!("{base}/{rest}"),
    }
}

/// Checks an enclave name: it becomes a directory name and a kernel field.
///
/// # Errors
/// [`ConfigError::Name`].
pub fn check_name(name: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || name.len() >= NAME_BYTES || !name.chars().all(allowed) {
        return Err(ConfigError::Name(name.to_owned()));
    }
    Ok(())
}

/// Checks a size of private RAM.
///
/// # Errors
/// [`ConfigError::Memory`].
pub fn check_memory(bytes: u64) -> Result<(), ConfigError> {
    let in_range = (MIN_MEM_BYTES..=MAX_MEM_BYTES).contains(&bytes);
    if in_range && is_aligned(bytes, LARGE_PAGE_SIZE) {
        return Ok(());
    }
    Err(ConfigError::Memory(bytes))
}

/// Checks how many cores are asked for.
///
/// # Errors
/// [`ConfigError::NoCore`], [`ConfigError::TooManyCores`].
pub fn check_cores(cores: &CoreRequest) -> Result<(), ConfigError> {
    match cores.count() {
        0 => Err(ConfigError::NoCore),
        1..=MAX_CORES => Ok(()),
        more => Err(ConfigError::TooManyCores(more)),
    }
}

/// Checks `--max-cores`.
///
/// # Errors
/// [`ConfigError::TooManyCores`], [`ConfigError::NoRoom`].
pub fn check_room(most: Option<usize>, wanted: usize) -> Result<(), ConfigError> {
    match most {
        Some(most) if most > MAX_CORES => Err(ConfigError::TooManyCores(most)),
        Some(most) if most < wanted => Err(ConfigError::NoRoom { most, wanted }),
        _ => Ok(()),
    }
}

/// Reads a size: digits, then nothing, or one of K M G T with or without
/// "iB" (all binary). "MB" and its like are refused: they mean two things.
///
/// # Errors
/// [`ConfigError::Size`], also when the value does not fit.
pub fn parse_size(text: &str) -> Result<u64, ConfigError> {
    let wrong = || ConfigError::Size(text.to_owned());
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Reads `--cores`: a lone number is a count, anything with ',' or '-' a list.
///
/// # Errors
/// [`ConfigError::Cores`].
pub fn parse_cores(text: &str) -> Result<CoreRequest, ConfigError> {
    let wrong = || ConfigError::Cores(text.to_owned());
    if text.contains([',', '-']) {
        let list = parse_cpu_list(text).ok_or_else(wrong)?;
        return Ok(CoreRequest::List(list.into_iter().collect()));
    }
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(count) if plain && count <= MAX_CORE => Ok(CoreRequest::Count(count)),
        _ => Err(wrong()),
    }
}

/// Reads `--node`.
///
/// # Errors
/// [`ConfigError::Node`].
pub fn parse_node(text: &str) -> Result<usize, ConfigError> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(node) if plain && node <= MAX_NODE => Ok(node),
        _ => Err(ConfigError::Node(text.to_owned())),
    }
}

/// Reads a list in the form of the Linux CPU files (`0-3,8`); an empty list
/// is allowed. `None` for anything else, and for numbers above [`MAX_CORE`].
#[must_use]
pub fn parse_cpu_list(text: &str) -> Option<BTreeSet<usize>> {
    let mut cores = BTreeSet::new();
    let text = text.trim();
    if text.is_empty() {
        return Some(cores);
    }
    let number = |digits: &str| -> Option<usize> {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|&n| plain && n <= MAX_CORE)
    };
    for piece in text.split(',') {
        let (first, last) = match piece.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(piece)?, number(piece)?),
        };
        if first > last {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

/// Reads `--export HOST[=GUEST][:rw]`; without GUEST the paths are the same.
///
/// # Errors
/// [`ConfigError::Export`].
pub fn parse_export(text: &str) -> Result<Export, ConfigError> {
    let wrong = || ConfigError::Export(text.to_owned());
    let (paths, writable) = match text.strip_suffix(":rw") {
        Some(paths) => (paths, true),
        None => (text.strip_suffix(":ro").unwrap_or(text), false),
    };
    let (host, guest) = paths.split_once('=').unwrap_or((paths, paths));
    if !Path::new(host).is_absolute() || !is_plain_absolute(guest) {
        return Err(wrong());
    }
    Ok(Export {
        host: PathBuf::from(host),
        guest: guest.to_owned(),
        writable,
    })
}

/// Whether a guest path is absolute, without "..", "." and control characters.
fn is_plain_absolute(path: &str) -> bool {
    path.starts_with('/')
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| part != ".." && part != ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn config() -> EnclaveConfig {
        EnclaveConfig {
            name: "a1".into(),
            cores: CoreRequest::Count(1),
            max_cores: None,
            share_cores: false,
            isolation: Isolation::Auto,
            mem_bytes: 64 << 20,
            node: None,
            exports: Vec::new(),
            ring: Ring::Auto,
            without: Features::default(),
            backing: Backing::Auto,
            prefault: true,
            kernel: "/k".into(),
            broker_socket: "/b".into(),
            selftest: 0,
        }
    }

    #[test]
    fn sizes_are_binary_and_checked() {
        for (text, want) in [
            ("4096", 4096),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("1G", 1 << 30),
            ("2g", 2 << 30),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        for text in [
            "",
            "M",
            "-1",
            "+1",
            "1.5G",
            "12MB",
            "1 G",
            "16777216T",
            "99999999999999999999",
        ] {
            assert_eq!(
                parse_size(text),
                Err(ConfigError::Size(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn a_lone_number_is_a_count_and_the_rest_a_list() {
        assert_eq!(parse_cores("3"), Ok(CoreRequest::Count(3)));
        assert_eq!(parse_cores("2-2"), Ok(CoreRequest::List(vec![2])));
        assert_eq!(parse_cores("2,4-5"), Ok(CoreRequest::List(vec![2, 4, 5])));
        assert_eq!(parse_cores("5,2,2"), Ok(CoreRequest::List(vec![2, 5])));
        for text in [
            "", "a", "-", "5-2", "1,,2", "1-2-3", "+1", "-1", "0-4096", "99999",
        ] {
            assert!(parse_cores(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_is_a_plain_number_that_linux_could_have() {
        assert_eq!(parse_node("0"), Ok(0));
        assert_eq!(parse_node("1023"), Ok(MAX_NODE));
        for text in [
            "",
            "-1",
            "+1",
            "1024",
            "0x1",
            "one",
            "0,1",
            "99999999999999999999",
        ] {
            assert_eq!(
                parse_node(text),
                Err(ConfigError::Node(text.into())),
                "{text}"
            );
        }
        let with = |node| EnclaveConfig { node, ..config() }.check();
        assert_eq!(with(Some(MAX_NODE)), Ok(()));
        assert_eq!(
            with(Some(usize::MAX)),
            Err(ConfigError::Node(usize::MAX.to_string()))
        );
    }

    #[test]
    fn cpu_files_of_the_kernel_are_read() {
        assert_eq!(parse_cpu_list("\n"), Some(BTreeSet::new()));
        assert_eq!(
            parse_cpu_list("0-2,8\n"),
            Some(BTreeSet::from([0, 1, 2, 8]))
        );
        assert_eq!(parse_cpu_list("0-18446744073709551615"), None);
    }

    #[test]
    fn exports_have_a_host_a_guest_and_rights() {
        let same = parse_export("/data").unwrap();
        assert_eq!((same.guest.as_str(), same.writable), ("/data", false));
        let other = parse_export("/data/run=/out:rw").unwrap();
        assert_eq!(other.host, Path::new("/data/run"));
        assert_eq!((other.guest.as_str(), other.writable), ("/out", true));
        for text in [
            "",
            "data",
            "/data=out",
            "/data=/a/../b",
            "=/out",
            "/data=/a\n",
        ] {
            assert!(parse_export(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_could_leave_the_run_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "-a", ".hidden", "a b", "ä", "a\0b"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name(&"a".repeat(63)).is_ok());
        assert!(check_name(&"a".repeat(64)).is_err());
    }

    #[test]
    fn memory_limits_hold_at_their_edges() {
        let with = |mem_bytes| {
            EnclaveConfig {
                mem_bytes,
                ..config()
            }
            .check()
        };
        assert_eq!(with(32 << 20), Ok(()));
        assert_eq!(with(MAX_MEM_BYTES), Ok(()));
        for bytes in [
            0,
            30 << 20,
            (64 << 20) + 4096,
            MAX_MEM_BYTES + (2 << 20),
            u64::MAX,
        ] {
            assert_eq!(with(bytes), Err(ConfigError::Memory(bytes)));
        }
    }

    #[test]
    fn pages_of_1_gib_are_whole() {
        let with = |mem_bytes, backing| {
            let changed = EnclaveConfig {
                mem_bytes,
                backing,
                ..config()
            };
            changed.check()
        };
        for bytes in [512 << 20, (1 << 30) + (2 << 20)] {
            let refused = Err(ConfigError::Gibibytes(bytes));
            assert_eq!(with(bytes, Backing::Huge1g), refused);
            assert_eq!(with(bytes, Backing::Huge2m), Ok(()));
        }
        assert_eq!(with(5 << 30, Backing::Huge1g), Ok(()));
    }

    #[test]
    fn as_many_cores_as_the_kernel_runs_on_and_no_more() {
        let with = |cores| EnclaveConfig { cores, ..config() }.check();
        assert_eq!(with(CoreRequest::Count(0)), Err(ConfigError::NoCore));
        assert_eq!(with(CoreRequest::List(vec![2, 3])), Ok(()));
        assert_eq!(with(CoreRequest::Count(MAX_CORES)), Ok(()));
        let error = with(CoreRequest::Count(MAX_CORES + 1)).unwrap_err();
        assert!(error.to_string().contains("on 32 at most"));
        assert_eq!(error.into_failure("create a1").class, Class::Usage);
    }

    #[test]
    fn host_directories_map_through_the_longest_export() {
        let mut config = config();
        config.exports = vec![
            parse_export("/data").unwrap(),
            parse_export("/data/deep=/d:rw").unwrap(),
            parse_export("/srv=/").unwrap(),
        ];
        let guest = |host: &str| config.guest_path(Path::new(host));
        assert_eq!(guest("/data/x"), Some("/data/x".into()));
        assert_eq!(guest("/data/deep/y"), Some("/d/y".into()));
        assert_eq!(guest("/srv"), Some("/".into()));
        assert_eq!(guest("/srv/z"), Some("/z".into()));
        assert_eq!(guest("/database"), None);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = serde_json::to_string(&config()).unwrap();
        assert_eq!(
            serde_json::from_str::<EnclaveConfig>(&text).unwrap(),
            config()
        );
        let more = text.replacen('{', "{\"colour\":1,", 1);
        assert!(serde_json::from_str::<EnclaveConfig>(&more).is_err());
    }
}
