//! What this VMM needs of KVM: one table, checked before anything is made.
//!
//! Called by [`crate::machine`] at creation and by `enclavectl doctor`. The
//! check is pure: whoever calls it says how a capability is answered, so that
//! each refusal is tested without a KVM that lacks something. Names, numbers
//! and answers are those of the Linux KVM API documentation
//! (KVM_CHECK_EXTENSION, §4.4). It does not look at processor features: those
//! are found out by trying ([`crate::vcpu`]).
//!
//! Everything in the table is needed: the code has no second way where one is
//! missing. The youngest entry is of Linux 5.14, as old as MADV_POPULATE_WRITE,
//! which the memory needs anyway.

use std::fmt;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_BINARY_STATS_FD, KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
    KVM_CAP_EXT_CPUID, KVM_CAP_GET_TSC_KHZ, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD,
    KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_MAX_VCPUS, KVM_CAP_NR_MEMSLOTS,
    KVM_CAP_READONLY_MEM, KVM_CAP_SIGNAL_MSI, KVM_CAP_SYNC_MMU, KVM_CAP_USER_MEMORY,
    KVM_CAP_VCPU_EVENTS, KVM_CAP_XCRS,
};
use kvm_ioctls::Kvm;

use crate::failure::Failure;
use crate::machine::imports;
use enclave_abi::boot::MAX_CORES;

/// One capability of KVM that this VMM uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name in the API documentation.
    pub name: &'static str,
    /// Its number.
    pub number: u32,
    /// The least answer that will do; 1 where it is a yes or no.
    pub least: i64,
    /// What does not work without it.
    pub purpose: &'static str,
    /// The first Linux release that has it.
    pub since: &'static str,
}

const fn yes(
    name: &'static str,
    number: u32,
    since: &'static str,
    purpose: &'static str,
) -> Capability {
    Capability {
        name,
        number,
        least: 1,
        purpose,
        since,
    }
}

/// Everything that is needed, oldest first.
#[rustfmt::skip]
pub const NEEDED: [Capability; 17] = [
    yes("KVM_CAP_IRQCHIP", KVM_CAP_IRQCHIP, "2.6.24",
        "the vCPU's interrupt controller"),
    yes("KVM_CAP_USER_MEMORY", KVM_CAP_USER_MEMORY, "2.6.25",
        "giving the enclave memory of this process"),
    yes("KVM_CAP_EXT_CPUID", KVM_CAP_EXT_CPUID, "2.6.25",
        "telling the enclave which processor features it has"),
    Capability {
        name: "KVM_CAP_NR_MEMSLOTS",
        number: KVM_CAP_NR_MEMSLOTS,
        least: imports::MEMSLOTS,
        purpose: "memory, lease page and one memslot for each arena and import",
        since: "2.6.26",
    },
    yes("KVM_CAP_SYNC_MMU", KVM_CAP_SYNC_MMU, "2.6.27",
        "letting Linux move a page while the enclave runs on it"),
    yes("KVM_CAP_DESTROY_MEMORY_REGION_WORKS", KVM_CAP_DESTROY_MEMORY_REGION_WORKS, "2.6.29",
        "taking an arena out of the enclave"),
    yes("KVM_CAP_IRQ_ROUTING", KVM_CAP_IRQ_ROUTING, "2.6.30",
        "the interrupts of such bells"),
    yes("KVM_CAP_IOEVENTFD", KVM_CAP_IOEVENTFD, "2.6.32",
        "the doorbells of arenas"),
    yes("KVM_CAP_IRQFD", KVM_CAP_IRQFD, "2.6.32",
        "being interrupted by another enclave without any thread in between"),
    yes("KVM_CAP_VCPU_EVENTS", KVM_CAP_VCPU_EVENTS, "2.6.33",
        "ending a program, not the enclave, after an access KVM cannot emulate"),
    yes("KVM_CAP_XCRS", KVM_CAP_XCRS, "2.6.36",
        "the AVX state of programs"),
    yes("KVM_CAP_GET_TSC_KHZ", KVM_CAP_GET_TSC_KHZ, "3.0",
        "clocks inside the enclave"),
    Capability {
        name: "KVM_CAP_MAX_VCPUS",
        number: KVM_CAP_MAX_VCPUS,
        least: MAX_CORES as i64,
        purpose: "one vCPU for each core",
        since: "3.2",
    },
    yes("KVM_CAP_SIGNAL_MSI", KVM_CAP_SIGNAL_MSI, "3.5",
        "interrupting a program that is to be killed"),
    yes("KVM_CAP_READONLY_MEM", KVM_CAP_READONLY_MEM, "3.7",
        "attaching arenas of other enclaves"),
    yes("KVM_CAP_IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT, "4.11",
        "stopping a vCPU without losing the request"),
    yes("KVM_CAP_BINARY_STATS_FD", KVM_CAP_BINARY_STATS_FD, "5.14",
        "finding out by count whether ring 0 is interpreted"),
];

/// Something this VMM needs and KVM does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Another version of the whole interface.
    Api(i32),
    /// A capability, and what KVM answered.
    Capability(Capability, i32),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(version) => write!(
                f,
                "KVM speaks version {version} of its interface, {KVM_API_VERSION} is needed \
                 (Linux 2.6.22 and later)"
            ),
            Self::Capability(missing, answer) if missing.least > 1 => write!(
                f,
                "KVM answers {answer} to {}, at least {} are needed for {} (Linux {} and later)",
                missing.name, missing.least, missing.purpose, missing.since
            ),
            Self::Capability(missing, _) => write!(
                f,
                "KVM has no {}, which {} needs (Linux {} and later)",
                missing.name, missing.purpose, missing.since
            ),
        }
    }
}

impl std::error::Error for Lack {}

impl Lack {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Api(_) => "modprobe kvm_intel || modprobe kvm_amd".to_owned(),
            Self::Capability(..) => {
                // The release that has everything, not just this one.
                let youngest = NEEDED.last().map_or("", |last| last.since);
                format!("uname -r (the KVM of Linux {youngest} and later has all that is needed)")
            }
        }
    }
}

/// Everything in the table that is missing; of another interface only that.
pub fn lacks(api_version: i32, answer: impl Fn(&Capability) -> i32) -> Vec<Lack> {
    if api_version != KVM_API_VERSION.cast_signed() {
        return vec![Lack::Api(api_version)];
    }
    let answers = NEEDED.iter().map(|needed| (*needed, answer(needed)));
    answers
        .filter(|(needed, got)| i64::from(*got) < needed.least)
        .map(|(needed, got)| Lack::Capability(needed, got))
        .collect()
}

/// Checks the table against an open `/dev/kvm`.
///
/// # Errors
/// The first [`Lack`].
pub fn check(kvm: &Kvm) -> Result<(), Lack> {
    let missing = lacks(kvm.get_api_version(), |needed| {
        kvm.check_extension_raw(needed.number.into())
    });
    missing.first().map_or(Ok(()), |lack| Err(*lack))
}

/// Everything that this host's KVM lacks.
///
/// # Errors
/// When `/dev/kvm` cannot be opened.
pub fn lacks_of_host() -> Result<Vec<Lack>, Failure> {
    let kvm = Kvm::new().map_err(|error| {
        let cause = std::io::Error::from_raw_os_error(error.errno());
        Failure::io("open /dev/kvm", cause).with_hint("enclavectl doctor")
    })?;
    Ok(lacks(kvm.get_api_version(), |needed| {
        kvm.check_extension_raw(needed.number.into())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const API: i32 = KVM_API_VERSION.cast_signed();

    fn just_enough(needed: &Capability) -> i32 {
        needed.least.try_into().unwrap()
    }

    fn all_but(number: u32, instead: i32) -> Vec<Lack> {
        lacks(API, |needed| {
            if needed.number == number {
                instead
            } else {
                just_enough(needed)
            }
        })
    }

    #[test]
    fn a_kvm_with_just_enough_lacks_nothing() {
        assert_eq!(lacks(API, just_enough), []);
        assert_eq!(lacks(API, |_| i32::MAX), []);
        assert_eq!(lacks(API, |_| 0).len(), NEEDED.len());
    }

    #[test]
    fn each_missing_capability_is_refused_by_name_purpose_and_release() {
        for needed in &NEEDED {
            // -1: the ioctl itself failed.
            for answer in [just_enough(needed) - 1, 0, -1] {
                let missing = all_but(needed.number, answer);
                let [lack] = missing[..] else {
                    panic!("{missing:?}")
                };
                let text = lack.to_string();
                for part in [needed.name, needed.purpose, needed.since] {
                    assert!(text.contains(part), "{text}");
                }
                assert!(lack.hint().contains("5.14"), "{}", lack.hint());
            }
        }
    }

    #[test]
    fn too_few_are_told_with_both_numbers() {
        let text = all_but(KVM_CAP_NR_MEMSLOTS, 32)[0].to_string();
        assert!(
            text.contains("answers 32 to KVM_CAP_NR_MEMSLOTS, at least 51"),
            "{text}"
        );
    }

    #[test]
    fn another_api_is_refused_before_anything_else() {
        for version in [-1, 0, API - 1, API + 1, i32::MIN] {
            let missing = lacks(version, |_| 0);
            assert_eq!(missing, [Lack::Api(version)]);
            assert!(missing[0].to_string().contains(&version.to_string()));
            assert!(!missing[0].hint().is_empty());
        }
    }

    #[test]
    fn the_table_names_each_once_and_ends_with_the_youngest() {
        let release = |text: &str| -> Vec<u32> {
            text.split('.').map(|part| part.parse().unwrap()).collect()
        };
        for pair in NEEDED.windows(2) {
            assert!(release(pair[0].since) <= release(pair[1].since));
        }
        let numbers: std::collections::BTreeSet<u32> = NEEDED.iter().map(|c| c.number).collect();
        assert_eq!(numbers.len(), NEEDED.len());
    }
}
