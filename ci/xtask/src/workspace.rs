//! Where things are: the workspace root, cargo's target folder, `out/`.
//!
//! Every command starts from here, so that the current directory of the caller
//! does not matter.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

/// Paths of this checkout.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// Folder of the root manifest.
    pub(crate) root: PathBuf,
    /// Folder that `image` fills.
    pub(crate) out: PathBuf,
}

impl Workspace {
    /// Finds the workspace: that of the running `cargo xtask`, else the one this
    /// program was built from. The two differ when checkouts share a target
    /// folder.
    ///
    /// # Errors
    /// When that folder is gone.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package
            .join("../..")
            .canonicalize()
            .context("find the workspace root")?;
        let out = root.join("out");
        Ok(Self { root, out })
    }

    /// The kernel image that `image` makes.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.out.join("enclave-kernel")
    }

    /// A cargo command in the workspace root.
    ///
    /// RUSTFLAGS variables are taken out of its environment: they would replace
    /// the kernel's own flags without a word.
    pub(crate) fn cargo(&self) -> Command {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(program);
        command
            .current_dir(&self.root)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_RUSTFLAGS");
        command
    }
}
