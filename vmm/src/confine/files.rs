//! Which files the process can still open (Landlock).
//!
//! Called once by [`super::enter`]. Paths are only ever opened below exports
//! anyway (`openat2`); this holds even when somebody else decides what this
//! process opens. Kernels without Landlock, or with its first version, which
//! cannot tell renames apart, go on without; `inspect` says so.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, make_bitflags,
};

use super::{ConfineError, Needs};

/// The newest version that this program knows how to use.
const NEWEST: ABI = ABI::V6;

/// Restricts this process to `needs`; the version in force, 0 for none.
pub(super) fn restrict(needs: &Needs<'_>) -> Result<u32, ConfineError> {
    let failed = |error: RulesetError| ConfineError::Files(error.to_string());
    // Without the second version every rename between directories would fail.
    let Ok(ruleset) = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V2))
    else {
        return Ok(0);
    };
    let ruleset = ruleset
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    let status = add_rules(ruleset, needs)
        .and_then(RulesetCreated::restrict_self)
        .map_err(failed)?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => {
            let why = "the kernel took the rules and enforces none";
            Err(ConfineError::Files(why.to_owned()))
        }
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            Ok((effective_abi as u32).min(NEWEST as u32))
        }
        _ => Ok(0),
    }
}

/// The newest version of Landlock that this kernel has and this program uses;
/// 0: none. Restricts nothing.
#[must_use]
pub fn landlock_of_host() -> u32 {
    let has = |abi: &ABI| {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(*abi))
            .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(*abi)))
            .and_then(|ruleset| ruleset.scope(Scope::from_all(*abi)))
            .is_ok()
    };
    let versions = [NEWEST, ABI::V5, ABI::V4];
    let older = [ABI::V3, ABI::V2];
    let files_only = |abi: &ABI| {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(*abi))
            .is_ok()
    };
    let newest = versions.into_iter().find(has);
    let found = newest.or_else(|| older.into_iter().find(files_only));
    found.map_or(0, |abi| abi as u32)
}

fn add_rules(mut rules: RulesetCreated, needs: &Needs<'_>) -> Result<RulesetCreated, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let device = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
    let own = read
        | make_bitflags!(AccessFs::{
            WriteFile | Truncate | MakeReg | MakeSock | MakeDir | RemoveFile | RemoveDir | Refer
        });
    // As `own`, without sockets.
    let writable = own ^ AccessFs::MakeSock;
    let fixed: [(&str, BitFlags<AccessFs>); 7] = [
        // Topology, huge pages, this process's own status and descriptors.
        ("/proc", read),
        ("/sys", read),
        ("/dev/kvm", device),
        ("/dev/null", device),
        ("/dev/zero", device),
        ("/dev/urandom", device),
        // A caller's terminal is opened a second time (`forward::stream`).
        ("/dev/pts", device | AccessFs::ReadDir),
    ];
    for (path, access) in fixed {
        rules = add(rules, Path::new(path), access)?;
    }
    rules = add(rules, needs.run_dir, own)?;
    rules = add(rules, needs.kernel, AccessFs::ReadFile.into())?;
    for export in needs.exports {
        let access = if export.writable { writable } else { read };
        rules = add(rules, &export.host, access)?;
    }
    Ok(rules)
}

/// Allows `access` beneath `path`. What is not there needs no rule: whoever
/// opens it later says so better.
fn add(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, access)),
        Err(_) => Ok(rules),
    }
}
