//! What `doctor` says of the platform: its name, the privilege mode that
//! follows, what is protected, and what is slower than it could be.
//!
//! Pure: from the files that [`Platform`] read and the answer of the ring-0
//! probe to lines of the report.

use enclave_abi::boot::cpu;
use enclave_vmm::features::Features;
use enclave_vmm::platform::{Kind, Platform};
use enclave_vmm::probe::Host;

use super::{Check, fail, ok, warn};

/// What the throw-away machine told, or why it did not run.
pub(super) type Probed = Result<Host, String>;

/// All lines about the platform.
pub(super) fn checks(platform: Option<&Platform>, probed: &Probed) -> Vec<Check> {
    let mut checks = vec![name(platform, probed)];
    if let Ok(host) = probed {
        checks.push(protection(host.interpreted));
        checks.push(features(host));
    }
    if let Some(platform) = platform {
        checks.push(paging(platform));
        checks.extend(interrupts(platform));
        if platform.is_virtual {
            checks.push(warn(
                "host",
                "a virtual machine itself: what leaves an enclave passes another hypervisor, \
                 and times are not those of hardware",
                "measure on a physical host",
            ));
        }
    }
    checks
}

fn name(platform: Option<&Platform>, probed: &Probed) -> Check {
    let name = match platform.map(|platform| platform.kind) {
        Some(Kind::Pvm) => "nested, on page tables alone (kvm_pvm)",
        Some(Kind::Svm) => "SVM (kvm_amd)",
        Some(Kind::Vmx) => "VMX (kvm_intel)",
        None => "unknown (neither kvm_intel nor kvm_amd nor kvm_pvm)",
    };
    let interpreted = probed.as_ref().map(|host| host.interpreted);
    match (platform, interpreted) {
        (_, Ok(true)) => ok(
            "platform",
            format!("{name}: ring 0 is interpreted, so kernels run in ring 3"),
        ),
        (_, Ok(false)) => ok(
            "platform",
            format!("{name}: ring 0 runs natively, so kernels run in ring 0"),
        ),
        (Some(_), Err(why)) => fail(
            "platform",
            format!("{name}: a throw-away machine did not run: {why}"),
            "dmesg | grep -i kvm",
        ),
        (None, Err(why)) => fail(
            "platform",
            format!("{name}: a throw-away machine did not run: {why}"),
            "modprobe kvm_intel || modprobe kvm_amd",
        ),
    }
}

fn protection(interpreted: bool) -> Check {
    if interpreted {
        return warn(
            "protection",
            "a program can reach the kernel of its own enclave (both are in ring 3), \
             never another enclave or the host",
            "one enclave for each user; a host with kvm_intel or kvm_amd",
        );
    }
    ok(
        "protection",
        "a program can reach neither its kernel nor another enclave nor the host",
    )
}

/// What the processor and KVM give an enclave of the features XASM knows.
fn features(host: &Host) -> Check {
    let all = cpu::NAMES.iter().fold(0, |all, (bit, _)| all | bit);
    let lacking = Features(all & !host.features.0).names();
    let mut text = format!("on in enclaves: {}", host.features.names().join(", "));
    if !lacking.is_empty() {
        text = format!("{text}; not there or not usable: {}", lacking.join(", "));
    }
    if host.features.has(cpu::FSGSBASE) {
        return ok("features", text);
    }
    fail(
        "features",
        format!("{text}: kernels need fsgsbase"),
        "a processor with FSGSBASE",
    )
}

fn paging(platform: &Platform) -> Check {
    let module = platform.kind.module();
    let Some(parameter) = platform.kind.paging_parameter() else {
        return warn(
            "paging",
            "shadow page tables: faults and table changes leave the enclave, \
             and there are no 1 GiB pages",
            "arenas with chunks of 2 MiB; a host with kvm_intel or kvm_amd",
        );
    };
    match (platform.nested_paging, platform.unrestricted_guest) {
        (Some(true), Some(false)) => warn(
            "paging",
            format!("nested ({parameter}), but no unrestricted guest: no test of XASM runs so"),
            reload(module, "unrestricted_guest"),
        ),
        (Some(true), _) => ok(
            "paging",
            format!("nested ({parameter}): faults of programs stay in the enclave"),
        ),
        (Some(false), _) => warn(
            "paging",
            format!(
                "shadow page tables ({module} has {parameter} off): \
                 faults and table changes leave the enclave"
            ),
            reload(module, parameter),
        ),
        (None, _) => warn(
            "paging",
            format!("{module} does not say whether {parameter} is on"),
            format!("cat /sys/module/{module}/parameters/{parameter}"),
        ),
    }
}

/// Only where the platform has a switch for it.
fn interrupts(platform: &Platform) -> Option<Check> {
    let parameter = platform.kind.interrupt_parameter()?;
    let module = platform.kind.module();
    let is_on = platform.virtual_interrupts?;
    let what = "interrupts, their ends and those between cores";
    Some(if is_on {
        ok(
            "interrupts",
            format!("by the processor ({parameter}): {what} stay in the enclave"),
        )
    } else {
        warn(
            "interrupts",
            format!("by KVM ({module} has {parameter} off): {what} leave the enclave"),
            reload(module, parameter),
        )
    })
}

/// The command that switches a parameter on, where the processor can.
fn reload(module: &str, parameter: &str) -> String {
    format!("modprobe -r {module} && modprobe {module} {parameter}=1 (if the processor can)")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const NATIVE: Host = Host {
        interpreted: false,
        features: Features(cpu::SMEP | cpu::SMAP | cpu::NX | cpu::FSGSBASE),
    };
    const INTERPRETED: Host = Host {
        interpreted: true,
        features: Features(cpu::SMEP | cpu::NX | cpu::FSGSBASE),
    };

    fn platform(kind: Kind) -> Platform {
        Platform {
            kind,
            nested_paging: kind.paging_parameter().map(|_| true),
            unrestricted_guest: (kind == Kind::Vmx).then_some(true),
            virtual_interrupts: kind.interrupt_parameter().map(|_| true),
            is_virtual: false,
        }
    }

    fn line<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn hardware_with_everything_on_has_nothing_to_mend() {
        for (kind, word) in [(Kind::Svm, "SVM"), (Kind::Vmx, "VMX")] {
            let checks = checks(Some(&platform(kind)), &Ok(NATIVE));
            assert_eq!(checks.len(), 5, "{checks:?}");
            assert!(checks.iter().all(|check| check.verdict == Verdict::Ok));
            let text = &line(&checks, "platform").text;
            assert!(
                text.contains(word) && text.contains("run in ring 0"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_nested_host_names_the_mode_and_what_it_costs() {
        let mut host = platform(Kind::Pvm);
        host.is_virtual = true;
        let checks = checks(Some(&host), &Ok(INTERPRETED));
        let text = &line(&checks, "platform").text;
        assert!(
            text.contains("nested") && text.contains("in ring 3"),
            "{text}"
        );
        assert!(line(&checks, "protection").text.contains("its own enclave"));
        assert!(line(&checks, "paging").text.contains("no 1 GiB pages"));
        assert_eq!(line(&checks, "host").verdict, Verdict::Warn);
    }

    #[test]
    fn the_probe_decides_over_the_name_of_the_module() {
        let checks = checks(Some(&platform(Kind::Svm)), &Ok(INTERPRETED));
        assert!(line(&checks, "platform").text.contains("in ring 3"));
        assert_eq!(line(&checks, "protection").verdict, Verdict::Warn);
    }

    #[test]
    fn each_switch_that_is_off_is_named_with_the_command_that_sets_it() {
        let off = |kind, change: fn(&mut Platform)| {
            let mut host = platform(kind);
            change(&mut host);
            checks(Some(&host), &Ok(NATIVE))
        };
        let cases = [
            (
                off(Kind::Svm, |p| p.nested_paging = Some(false)),
                "paging",
                "npt=1",
            ),
            (
                off(Kind::Vmx, |p| p.nested_paging = Some(false)),
                "paging",
                "ept=1",
            ),
            (
                off(Kind::Vmx, |p| p.unrestricted_guest = Some(false)),
                "paging",
                "unrestricted_guest=1",
            ),
            (
                off(Kind::Svm, |p| p.virtual_interrupts = Some(false)),
                "interrupts",
                "avic=1",
            ),
            (
                off(Kind::Vmx, |p| p.virtual_interrupts = Some(false)),
                "interrupts",
                "enable_apicv=1",
            ),
            (
                off(Kind::Svm, |p| p.nested_paging = None),
                "paging",
                "parameters/npt",
            ),
        ];
        for (checks, name, command) in &cases {
            let check = line(checks, name);
            assert_eq!(check.verdict, Verdict::Warn);
            assert!(check.fix.contains(command), "{check:?}");
        }
    }

    #[test]
    fn a_host_without_a_working_kvm_is_not_ready() {
        let why = Err("KVM_CREATE_VM: Device or resource busy".to_owned());
        for host in [None, Some(platform(Kind::Vmx))] {
            let checks = checks(host.as_ref(), &why);
            let check = line(&checks, "platform");
            assert_eq!(check.verdict, Verdict::Fail);
            assert!(check.text.contains("busy") && !check.fix.is_empty());
        }
        let checks = checks(None, &Ok(NATIVE));
        assert!(line(&checks, "platform").text.contains("unknown"));
    }

    #[test]
    fn features_are_told_with_those_that_are_not_there() {
        let told = features(&INTERPRETED);
        assert_eq!(told.verdict, Verdict::Ok);
        assert!(
            told.text.contains("on in enclaves: smep, nx, fsgsbase;"),
            "{told:?}"
        );
        assert!(
            told.text.contains("smap, umip, pcid, page1g, x2apic"),
            "{told:?}"
        );
        let old = Host {
            features: Features(cpu::NX),
            ..NATIVE
        };
        assert_eq!(features(&old).verdict, Verdict::Fail);
        assert!(!features(&old).fix.is_empty());
    }
}
