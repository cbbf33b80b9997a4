//! Which processor features an enclave gets: a decision on facts, no KVM call.
//!
//! Called by [`crate::machine`] once the privilege mode is known, and by the
//! command line to understand `--without`. [`crate::vcpu`] puts the choice into
//! control registers; the kernel is told in BootInfo.

use enclave_abi::boot::{Mode, cpu};
use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};

/// A set of features, bits of [`enclave_abi::boot::cpu`]; in files and messages
/// a list of names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<String>", try_from = "Vec<String>")]
pub struct Features(pub u64);

impl Features {
    /// Whether all of `bits` are in the set.
    #[must_use]
    pub fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Names as users see them, in a fixed order.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        cpu::NAMES
            .iter()
            .filter(|(bit, _)| self.has(*bit))
            .map(|(_, name)| (*name).to_owned())
            .collect()
    }

    /// What KVM's CPUID answer names.
    #[must_use]
    pub fn of_cpuid(cpuid: &CpuId) -> Self {
        let leaf = |function: u32| {
            cpuid
                .as_slice()
                .iter()
                .find(|entry| entry.function == function && entry.index == 0)
        };
        let (one, seven, extended) = (leaf(1), leaf(7), leaf(0x8000_0001));
        let tests = [
            (cpu::PCID, one.is_some_and(|l| l.ecx >> 17 & 1 == 1)),
            (cpu::X2APIC, one.is_some_and(|l| l.ecx >> 21 & 1 == 1)),
            (cpu::FSGSBASE, seven.is_some_and(|l| l.ebx & 1 == 1)),
            (cpu::SMEP, seven.is_some_and(|l| l.ebx >> 7 & 1 == 1)),
            (cpu::SMAP, seven.is_some_and(|l| l.ebx >> 20 & 1 == 1)),
            (cpu::UMIP, seven.is_some_and(|l| l.ecx >> 2 & 1 == 1)),
            (cpu::NX, extended.is_some_and(|l| l.edx >> 20 & 1 == 1)),
            (cpu::PAGE_1G, extended.is_some_and(|l| l.edx >> 26 & 1 == 1)),
        ];
        Self(
            tests
                .iter()
                .filter(|(_, there)| *there)
                .fold(0, |bits, (bit, _)| bits | bit),
        )
    }
}

impl From<Features> for Vec<String> {
    fn from(features: Features) -> Self {
        features.names()
    }
}

impl TryFrom<Vec<String>> for Features {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        names.iter().try_fold(Self(0), |set, name| {
            match cpu::NAMES.iter().find(|(_, known)| known == name) {
                Some((bit, _)) => Ok(Self(set.0 | bit)),
                None => Err(format!("\"{name}\" is no processor feature")),
            }
        })
    }
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// What CPUID names ([`Features::of_cpuid`]).
    pub named: Features,
    /// What KVM accepted in CR4 when it was tried (SMEP, UMIP, FSGSBASE).
    pub accepted: Features,
    /// Privilege mode of the kernel.
    pub mode: Mode,
    /// Ring 0 is interpreted by the host.
    pub interpreted: bool,
    /// What the user does without.
    pub without: Features,
}

/// The features to switch on.
///
/// SMEP, UMIP and FSGSBASE count as KVM accepts them, because a nested KVM
/// takes some that its CPUID does not name. SMAP, PCID and 1 GiB pages do not
/// work where ring 0 is interpreted, and SMAP cannot be used in ring-3 mode,
/// whose ring-0 stubs run on the kernel's ring-3 stacks. Ring-3 mode reaches
/// the APIC by its page only.
#[must_use]
pub fn choose(facts: &Facts) -> Features {
    let tried = cpu::SMEP | cpu::UMIP | cpu::FSGSBASE;
    let mut bits =
        facts.accepted.0 & tried | facts.named.0 & (cpu::SMAP | cpu::PCID | cpu::PAGE_1G);
    // Long mode needs it, so every CPU that gets here has it; a KVM that hides
    // it in CPUID accepts EFER.NXE all the same.
    bits |= cpu::NX;
    if facts.mode == Mode::Ring0 && (facts.interpreted || facts.named.has(cpu::X2APIC)) {
        bits |= cpu::X2APIC;
    }
    if facts.interpreted {
        bits &= !(cpu::SMAP | cpu::PCID | cpu::PAGE_1G);
    }
    if facts.mode == Mode::Ring3 {
        bits &= !cpu::SMAP;
    }
    Features(bits & !facts.without.0)
}

/// Features that a user may do without, by name.
pub const OPTIONAL: u64 =
    cpu::SMEP | cpu::SMAP | cpu::UMIP | cpu::PCID | cpu::PAGE_1G | cpu::X2APIC;

/// Understands one name of a feature to do without.
///
/// # Errors
/// A name that is unknown or cannot be done without, with those that can.
pub fn parse_without(name: &str) -> Result<Features, String> {
    let optional = cpu::NAMES.iter().filter(|(bit, _)| OPTIONAL & bit != 0);
    match optional.clone().find(|(_, known)| *known == name) {
        Some((bit, _)) => Ok(Features(*bit)),
        None => {
            let known: Vec<&str> = optional.map(|(_, name)| *name).collect();
            Err(format!("it is none of {}", known.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features = Features(0xff);

    fn facts(mode: Mode, interpreted: bool) -> Facts {
        Facts {
            named: ALL,
            accepted: ALL,
            mode,
            interpreted,
            without: Features::default(),
        }
    }

    #[test]
    fn ring_0_on_hardware_gets_all_that_the_cpu_has() {
        assert_eq!(choose(&facts(Mode::Ring0, false)), ALL);
        let mut poor = facts(Mode::Ring0, false);
        poor.named = Features(cpu::NX);
        poor.accepted = Features(cpu::SMEP);
        assert_eq!(choose(&poor), Features(cpu::NX | cpu::SMEP));
    }

    #[test]
    fn an_interpreted_ring_0_has_neither_smap_nor_pcid_nor_1_gib_pages() {
        for mode in [Mode::Ring0, Mode::Ring3] {
            let chosen = choose(&facts(mode, true));
            assert_eq!(chosen.0 & (cpu::SMAP | cpu::PCID | cpu::PAGE_1G), 0);
            assert!(chosen.has(cpu::SMEP | cpu::NX));
        }
    }

    #[test]
    fn ring_3_mode_has_neither_smap_nor_x2apic() {
        let chosen = choose(&facts(Mode::Ring3, false));
        assert_eq!(chosen.0 & (cpu::SMAP | cpu::X2APIC), 0);
        assert!(chosen.has(cpu::PCID | cpu::PAGE_1G));
    }

    #[test]
    fn what_the_user_does_without_stays_off() {
        let mut wish = facts(Mode::Ring0, false);
        wish.without = Features(
            ["x2apic", "smap"]
                .map(|n| parse_without(n).unwrap().0)
                .iter()
                .sum(),
        );
        assert_eq!(choose(&wish).0, ALL.0 & !(cpu::X2APIC | cpu::SMAP));
        assert_eq!(choose(&wish).names().len(), 6);
    }

    #[test]
    fn a_feature_nobody_can_do_without_is_refused_by_name() {
        let text = serde_json::to_string(&Features(cpu::SMAP | cpu::NX)).unwrap();
        assert_eq!(text, r#"["smap","nx"]"#);
        assert!(serde_json::from_str::<Features>(r#"["mmx"]"#).is_err());
        for name in ["nx", "fsgsbase", "SMAP", ""] {
            let error = parse_without(name).unwrap_err();
            assert!(
                error.contains("smep, smap, umip, pcid, page1g, x2apic"),
                "{error}"
            );
        }
    }
}
