//! What a bug report has to say about a machine: versions, CPU, KVM, memory.
//!
//! Read once by `selftest`, below an injectable root. A file that is missing
//! leaves its fact empty: the report is for machines on which something is
//! wrong. It reads no serial number, address, user or host name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// CPU flags (of /proc/cpuinfo) that the kernel's code asks for or that tell
/// what kind of machine it is.
const FLAGS: [&str; 24] = [
    "vmx",
    "svm",
    "ept",
    "npt",
    "smep",
    "smap",
    "umip",
    "nx",
    "pcid",
    "invpcid",
    "pdpe1gb",
    "x2apic",
    "tsc_deadline_timer",
    "constant_tsc",
    "fsgsbase",
    "syscall",
    "xsave",
    "xsaveopt",
    "avx",
    "avx2",
    "avx512f",
    "pku",
    "la57",
    "erms",
];

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Facts {
    versions: Versions,
    host_kernel: HostKernel,
    cpu: Cpu,
    hypervisor: Option<Hypervisor>,
    kvm: Vec<Module>,
    memory_kib: BTreeMap<String, u64>,
    huge_pages: Vec<HugePages>,
}

#[derive(Debug, Serialize)]
struct Versions {
    program: &'static str,
    /// `git describe` of the tree, where the build knew it.
    built_from: Option<&'static str>,
    control_protocol: u32,
    abi: u32,
}

#[derive(Debug, Serialize)]
struct HostKernel {
    system: String,
    release: String,
    version: String,
    machine: String,
}

#[derive(Debug, Default, Serialize)]
struct Cpu {
    vendor: String,
    name: String,
    family: String,
    model: String,
    stepping: String,
    microcode: String,
    logical_cores: usize,
    has: Vec<&'static str>,
    lacks: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Hypervisor {
    /// The twelve letters of CPUID leaf 0x4000_0000.
    id: String,
    /// Vendor and product of the firmware tables.
    product: String,
}

#[derive(Debug, Serialize)]
struct Module {
    name: String,
    parameters: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct HugePages {
    kib: u64,
    total: u64,
    free: u64,
}

impl Facts {
    /// Reads the files below `root` (`/` in production), and asks CPU and
    /// kernel.
    pub(super) fn read(root: &Path) -> Self {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Self {
            versions: Versions {
                program: env!("CARGO_PKG_VERSION"),
                built_from: option_env!("XASM_BUILT_FROM"),
                control_protocol: enclave_vmm::control::protocol::PROTOCOL,
                abi: enclave_abi::ABI_VERSION,
            },
            host_kernel: HostKernel {
                system: text(uname.sysname()),
                release: text(uname.release()),
                version: text(uname.version()),
                machine: text(uname.machine()),
            },
            cpu: cpu(&fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default()),
            hypervisor: hypervisor(root),
            kvm: modules(root),
            memory_kib: memory(root),
            huge_pages: huge_pages(root),
        }
    }

    /// As people read it.
    pub(super) fn lines(&self) -> Vec<String> {
        let Self {
            versions,
            host_kernel,
            cpu,
            ..
        } = self;
        let mut lines = vec![
            format!(
                "versions   enclavectl {} (control protocol {}, ABI {}), built from {}",
                versions.program,
                versions.control_protocol,
                versions.abi,
                versions.built_from.unwrap_or("an unknown tree")
            ),
            format!(
                "kernel     {} {} {} {}",
                host_kernel.system, host_kernel.release, host_kernel.version, host_kernel.machine
            ),
            format!(
                "cpu        {} ({}), family {} model {} stepping {} microcode {}, {} logical cores",
                cpu.name,
                cpu.vendor,
                cpu.family,
                cpu.model,
                cpu.stepping,
                cpu.microcode,
                cpu.logical_cores
            ),
            format!("           has {}", cpu.has.join(" ")),
            format!("           lacks {}", cpu.lacks.join(" ")),
            self.hypervisor.as_ref().map_or_else(
                || "hypervisor none seen".to_owned(),
                |seen| {
                    format!("hypervisor {} {}", seen.id, seen.product)
                        .trim_end()
                        .to_owned()
                },
            ),
        ];
        for Module { name, parameters } in &self.kvm {
            let parameters: Vec<String> = parameters
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            lines.push(format!("kvm        {name}: {}", parameters.join(" ")));
        }
        let memory: Vec<String> = self
            .memory_kib
            .iter()
            .map(|(key, kib)| format!("{key} {} MiB", kib >> 10))
            .collect();
        lines.push(format!("memory     {}", memory.join(", ")));
        for pages in &self.huge_pages {
            let HugePages { kib, total, free } = pages;
            lines.push(format!(
                "hugepages  {free} of {total} free of {} MiB",
                kib >> 10
            ));
        }
        lines
    }
}

fn cpu(info: &str) -> Cpu {
    // Cores are told one by one, in paragraphs; ours are all alike.
    let first = info.split("\n\n").next().unwrap_or_default();
    let get = |wanted: &str| {
        let mut pairs = first.lines().filter_map(|line| line.split_once(':'));
        let found = pairs.find(|(key, _)| key.trim_end() == wanted);
        found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let flags = get("flags");
    // What a virtual machine monitor can use is told apart.
    let more = get("vmx flags");
    let is_there = |flag: &&str| flags.split(' ').chain(more.split(' ')).any(|f| f == *flag);
    let (has, lacks) = FLAGS.iter().partition(|flag| is_there(flag));
    Cpu {
        vendor: get("vendor_id"),
        name: get("model name"),
        family: get("cpu family"),
        model: get("model"),
        stepping: get("stepping"),
        microcode: get("microcode"),
        logical_cores: info
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count(),
        has,
        lacks,
    }
}

/// What this machine runs under, if it says so (Intel SDM volume 2, CPUID
/// leaf 1, ECX bit 31; the vendor leaf is a convention of hypervisors).
fn hypervisor(root: &Path) -> Option<Hypervisor> {
    const IS_GUEST: u32 = 1 << 31;
    if core::arch::x86_64::__cpuid(1).ecx & IS_GUEST == 0 {
        return None;
    }
    let leaf = core::arch::x86_64::__cpuid(0x4000_0000);
    let letters = [leaf.ebx, leaf.ecx, leaf.edx]
        .map(u32::to_le_bytes)
        .concat();
    let id = letters
        .into_iter()
        .map(char::from)
        .filter(char::is_ascii_graphic)
        .collect();
    let dmi = |name: &str| read_line(&root.join("sys/class/dmi/id").join(name));
    let product = [dmi("sys_vendor"), dmi("product_name")].join(" ");
    Some(Hypervisor {
        id,
        product: product.trim().to_owned(),
    })
}

/// The KVM modules that are loaded, with the parameters that can be read.
fn modules(root: &Path) -> Vec<Module> {
    let folder = root.join("sys/module");
    names(&folder)
        .into_iter()
        .filter(|name| name == "kvm" || name.starts_with("kvm_"))
        .map(|name| {
            let parameters = folder.join(&name).join("parameters");
            let value = |key: String| {
                let value = read_line(&parameters.join(&key));
                (key, value)
            };
            let parameters = names(&parameters).into_iter().map(value);
            Module {
                parameters: parameters.filter(|(_, value)| !value.is_empty()).collect(),
                name,
            }
        })
        .collect()
}

fn memory(root: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let wanted = ["MemTotal", "MemAvailable"];
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            let kib = value.split_whitespace().next()?.parse().ok()?;
            wanted.contains(&key).then(|| (key.to_owned(), kib))
        })
        .collect()
}

fn huge_pages(root: &Path) -> Vec<HugePages> {
    let folder = root.join("sys/kernel/mm/hugepages");
    let mut sizes: Vec<HugePages> = names(&folder)
        .into_iter()
        .filter_map(|name| {
            let kib = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let number = |file: &str| read_line(&folder.join(&name).join(file)).parse().ok();
            let (total, free) = (number("nr_hugepages")?, number("free_hugepages")?);
            Some(HugePages { kib, total, free })
        })
        .collect();
    sizes.sort_by_key(|size| size.kib);
    sizes
}

/// What is in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The first line of a small file; empty if it cannot be read.
fn read_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_core_speaks_for_all() {
        let text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n\
                    model name\t: AMD EPYC\nstepping\t: 1\nmicrocode\t: 0x1\nflags\t\t: svm nx\n\
                    vmx flags\t: ept\n\nprocessor\t: 1\nvendor_id\t: Other\n";
        let cpu = cpu(text);
        assert_eq!(
            (cpu.vendor.as_str(), cpu.model.as_str()),
            ("AuthenticAMD", "2")
        );
        assert_eq!(cpu.logical_cores, 2);
        assert_eq!(cpu.has, ["svm", "ept", "nx"]);
        assert_eq!(cpu.has.len() + cpu.lacks.len(), FLAGS.len());
    }

    #[test]
    fn a_machine_that_says_nothing_gives_an_empty_report() {
        let facts = Facts::read(Path::new("/nonexistent"));
        assert!(facts.kvm.is_empty() && facts.huge_pages.is_empty());
        assert_eq!(facts.cpu.logical_cores, 0);
        assert!(facts.lines().iter().any(|line| line.starts_with("cpu ")));
    }
}
