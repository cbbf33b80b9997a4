//! How commands fail: three lines that say what, why and what to do.
//!
//! Built wherever a command knows the remedy, printed once by `main`. Errors
//! without a known remedy are ordinary `anyhow` chains and are printed as
//! what and why.

use std::fmt;

/// A failure whose remedy is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What could not be done.
    pub(crate) what: String,
    /// The reason, with values.
    pub(crate) why: String,
    /// A command to copy.
    pub(crate) fix: String,
}

impl Failure {
    /// Builds the error to return.
    pub(crate) fn error(
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> anyhow::Error {
        anyhow::Error::new(Self {
            what: what.into(),
            why: why.into(),
            fix: fix.into(),
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  why: {}\n  try: {}", self.what, self.why, self.fix)
    }
}

impl std::error::Error for Failure {}

/// Prints an error to standard error.
pub(crate) fn print(error: &anyhow::Error) {
    eprintln!("{}", render(error));
}

fn render(error: &anyhow::Error) -> String {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return format!("xtask: {failure}");
    }
    let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    if causes.is_empty() {
        format!("xtask: {error}")
    } else {
        format!("xtask: {error}\n  why: {}", causes.join(": "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_known_remedy_is_three_lines() {
        let error = Failure::error("no enclave", "/dev/kvm: missing", "modprobe kvm_amd");
        assert_eq!(
            render(&error),
            "xtask: no enclave\n  why: /dev/kvm: missing\n  try: modprobe kvm_amd"
        );
    }

    #[test]
    fn a_chain_keeps_its_causes() {
        let error = Err::<(), _>(anyhow::anyhow!("disk full"))
            .context("write out/kernel")
            .unwrap_err();
        assert_eq!(render(&error), "xtask: write out/kernel\n  why: disk full");
    }
}
