//! From lists of calls to filters that the kernel runs.
//!
//! Used by [`super::enter`] and [`super::spawn`]. Compiled once, while the
//! process is still free; installed by each thread on itself. A call that no
//! list has raises SIGSYS instead of running (`super::trap`).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::ConfineError;
use super::calls::{Allowed, Only, Role, allowed};

/// The filters of every role.
#[derive(Debug)]
pub(super) struct Filters {
    /// Answers calls that are not there for us with ENOSYS.
    absent: BpfProgram,
    roles: [BpfProgram; Role::ALL.len()],
}

impl Filters {
    /// Compiles them for this process.
    pub(super) fn compile() -> Result<Self, ConfineError> {
        let pid = u64::from(std::process::id());
        let compile = |role| {
            program(
                allowed(role, pid),
                SeccompAction::Trap,
                SeccompAction::Allow,
            )
        };
        let [main, vcpu, helper, update] = Role::ALL;
        // `fchmodat2` and `statx` are asked for by C libraries that go on
        // without; of those only what we do not need is on this list.
        let absent = [libc::SYS_clone3].map(|nr| (nr, Vec::new()));
        let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        Ok(Self {
            absent: program(absent.into(), SeccompAction::Allow, enosys)?,
            roles: [
                compile(main)?,
                compile(vcpu)?,
                compile(helper)?,
                compile(update)?,
            ],
        })
    }

    /// Confines the first thread, from which all others inherit.
    pub(super) fn install_first(&self) -> Result<(), ConfineError> {
        apply(&self.absent)?;
        apply(&self.roles[0])
    }

    /// Confines the calling thread to what `role` needs.
    pub(super) fn narrow(&self, role: Role) -> Result<(), ConfineError> {
        match role {
            Role::Main => Ok(()),
            Role::Vcpu => apply(&self.roles[1]),
            Role::Helper => apply(&self.roles[2]),
            Role::Update => apply(&self.roles[3]),
        }
    }
}

fn apply(program: &BpfProgram) -> Result<(), ConfineError> {
    apply_filter(program).map_err(|error| ConfineError::Calls(error.to_string()))
}

fn program(
    list: Vec<Allowed>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    let failed = |error: seccompiler::BackendError| ConfineError::Calls(error.to_string());
    let mut rules = BTreeMap::new();
    for (nr, forms) in list {
        let forms: Result<Vec<SeccompRule>, _> = forms.into_iter().map(rule).collect();
        rules.insert(nr, forms.map_err(failed)?);
    }
    SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(failed)
}

fn rule(conditions: Vec<Only>) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions: Result<Vec<SeccompCondition>, _> = conditions
        .into_iter()
        .map(|only| {
            // Arguments narrower than a register are compared as the kernel
            // takes them: by their low half.
            let length = match u32::try_from(only.mask) {
                Ok(_) => SeccompCmpArgLen::Dword,
                Err(_) => SeccompCmpArgLen::Qword,
            };
            SeccompCondition::new(
                only.argument,
                length,
                SeccompCmpOp::MaskedEq(only.mask),
                only.value,
            )
        })
        .collect();
    SeccompRule::new(conditions?)
}
