//! Which kind of KVM this host has and what of it is switched off, from files.
//!
//! Called by `enclavectl doctor`. The root is injectable, so that tests show
//! it other hosts. Module parameters are what the module really uses: KVM
//! clears those the processor cannot do. Whether ring 0 is interpreted is not
//! told by any file; [`crate::probe`] finds that out.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The kinds of KVM that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A KVM inside a virtual machine that needs no virtualisation of the
    /// processor: it runs guests on shadow page tables, ring 0 by interpreter.
    Pvm,
    /// AMD's.
    Svm,
    /// Intel's.
    Vmx,
}

impl Kind {
    /// The module that implements it.
    #[must_use]
    pub const fn module(self) -> &'static str {
        match self {
            Self::Pvm => "kvm_pvm",
            Self::Svm => "kvm_amd",
            Self::Vmx => "kvm_intel",
        }
    }

    /// The processor flag it needs, if any.
    const fn flag(self) -> Option<&'static str> {
        match self {
            Self::Pvm => None,
            Self::Svm => Some("svm"),
            Self::Vmx => Some("vmx"),
        }
    }

    /// The parameter that says whether it uses second-level page tables.
    #[must_use]
    pub const fn paging_parameter(self) -> Option<&'static str> {
        match self {
            Self::Pvm => None,
            Self::Svm => Some("npt"),
            Self::Vmx => Some("ept"),
        }
    }

    /// The parameter that says whether the processor delivers interrupts.
    #[must_use]
    pub const fn interrupt_parameter(self) -> Option<&'static str> {
        match self {
            Self::Pvm => None,
            Self::Svm => Some("avic"),
            Self::Vmx => Some("enable_apicv"),
        }
    }
}

/// A host's KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Its kind.
    pub kind: Kind,
    /// Second-level page tables (NPT, EPT) are used; `None`: not told.
    pub nested_paging: Option<bool>,
    /// VMX can run every guest state without an emulator; `None`: not VMX, or
    /// not told.
    pub unrestricted_guest: Option<bool>,
    /// The processor delivers interrupts (AVIC, APICv); `None`: not told.
    pub virtual_interrupts: Option<bool>,
    /// This host is a virtual machine itself.
    pub is_virtual: bool,
}

impl Platform {
    /// Reads the tree below `root`; `None` when no known module is in use.
    ///
    /// A module that was loaded is in use, because a KVM module that cannot
    /// work refuses to be loaded. One that is part of the kernel image is there
    /// on every host, so the processor must have its flag too.
    #[must_use]
    pub fn read(root: &Path) -> Option<Self> {
        let flags = cpu_flags(root);
        let is_loaded = |kind: &Kind| {
            let state = root.join(format!("sys/module/{}/initstate", kind.module()));
            fs::read_to_string(state).is_ok_and(|state| state.trim() == "live")
        };
        let is_built_in = |kind: &Kind| {
            let dir = root.join("sys/module").join(kind.module());
            dir.is_dir()
                && !dir.join("initstate").exists()
                && kind.flag().is_none_or(|flag| flags.contains(flag))
        };
        // The page-table kind last: it works on every host.
        let kinds = [Kind::Vmx, Kind::Svm, Kind::Pvm];
        let kind = kinds
            .into_iter()
            .find(is_loaded)
            .or_else(|| kinds.into_iter().find(is_built_in))?;
        let parameter = |name: Option<&str>| {
            let file = format!("sys/module/{}/parameters/{}", kind.module(), name?);
            read_switch(&root.join(file))
        };
        Some(Self {
            kind,
            nested_paging: parameter(kind.paging_parameter()),
            unrestricted_guest: parameter((kind == Kind::Vmx).then_some("unrestricted_guest")),
            virtual_interrupts: parameter(kind.interrupt_parameter()),
            is_virtual: flags.contains("hypervisor"),
        })
    }
}

/// A module parameter: Y or N, in older kernels 1 or 0.
fn read_switch(path: &Path) -> Option<bool> {
    match fs::read_to_string(path).ok()?.trim() {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}

fn cpu_flags(root: &Path) -> BTreeSet<String> {
    let info = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .map(|(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn read(files: &[(&str, &str)]) -> Option<Platform> {
        let scratch = Scratch::new("platform");
        for (path, text) in files {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Platform::read(scratch.path())
    }

    #[test]
    fn a_loaded_module_names_the_platform_and_its_switches() {
        let svm = read(&[
            ("sys/module/kvm_amd/initstate", "live\n"),
            ("sys/module/kvm_amd/parameters/npt", "N\n"),
            ("sys/module/kvm_amd/parameters/avic", "1\n"),
            ("proc/cpuinfo", "flags\t\t: fpu svm hypervisor\n"),
        ])
        .unwrap();
        assert_eq!(svm.kind, Kind::Svm);
        assert_eq!(svm.nested_paging, Some(false));
        assert_eq!(svm.virtual_interrupts, Some(true));
        assert_eq!((svm.unrestricted_guest, svm.is_virtual), (None, true));
        let vmx = read(&[
            ("sys/module/kvm_intel/initstate", "live\n"),
            ("sys/module/kvm_intel/parameters/ept", "Y\n"),
            ("sys/module/kvm_intel/parameters/unrestricted_guest", "Y\n"),
            ("sys/module/kvm_intel/parameters/enable_apicv", "N\n"),
            ("proc/cpuinfo", "vmx flags\t: ept\nflags\t\t: fpu vmx\n"),
        ])
        .unwrap();
        assert_eq!(vmx.kind, Kind::Vmx);
        assert_eq!(vmx.nested_paging, Some(true));
        assert_eq!(vmx.virtual_interrupts, Some(false));
        assert_eq!(
            (vmx.unrestricted_guest, vmx.is_virtual),
            (Some(true), false)
        );
    }

    #[test]
    fn built_in_modules_count_where_the_processor_has_their_flag() {
        let both = |flags: &str| {
            read(&[
                ("sys/module/kvm_intel/parameters/ept", "N"),
                ("sys/module/kvm_amd/parameters/npt", "Y"),
                ("proc/cpuinfo", &format!("flags\t\t: {flags}\n")),
            ])
        };
        assert_eq!(both("fpu svm").unwrap().kind, Kind::Svm);
        assert_eq!(both("fpu vmx").unwrap().kind, Kind::Vmx);
        assert_eq!(both("fpu"), None);
    }

    #[test]
    fn a_page_table_kvm_needs_no_flag_and_has_no_switches() {
        let pvm = read(&[
            ("sys/module/kvm_pvm/parameters/force", "N"),
            ("proc/cpuinfo", "flags\t\t: fpu hypervisor\n"),
        ])
        .unwrap();
        assert_eq!(pvm.kind, Kind::Pvm);
        assert_eq!((pvm.nested_paging, pvm.virtual_interrupts), (None, None));
    }

    #[test]
    fn nothing_or_nonsense_is_no_platform() {
        assert_eq!(read(&[("proc/cpuinfo", "")]), None);
        let going = [("sys/module/kvm_intel/initstate", "going\n")];
        assert_eq!(read(&going), None);
        let odd = read(&[
            ("sys/module/kvm_amd/initstate", "live"),
            ("sys/module/kvm_amd/parameters/npt", "maybe"),
        ])
        .unwrap();
        assert_eq!((odd.nested_paging, odd.is_virtual), (None, false));
    }
}
