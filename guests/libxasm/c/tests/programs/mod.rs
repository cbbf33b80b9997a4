//! C programs linked with `libxasm.a`: how they are built.
//!
//! Part of each test crate that names it. The archive is built with the command
//! the crate documents and linked statically: what runs here is the file that
//! runs in an enclave.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub(crate) fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the archive, once; returns the folder that holds it.
fn archive() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xasm-c");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "xasm-c", "--profile", "guest"])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(manifest())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "building libxasm.a: {status}");
        target.join("guest")
    })
}

/// A program that is removed when dropped.
pub(crate) struct Program(pub(crate) PathBuf);

impl Program {
    /// Compiles and links a C program statically with `compiler`.
    pub(crate) fn build(compiler: &str, source: &Path) -> Self {
        let name = source.file_stem().expect("a file").to_str().expect("ASCII");
        let thread = std::thread::current()
            .name()
            .unwrap_or("")
            .replace(':', "-");
        let unique = format!("{name}-{}-{thread}", std::process::id());
        let program = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique));
        let compiled = Command::new(compiler)
            .args([
                "-static",
                "-pthread",
                "-std=gnu11",
                "-O2",
                "-Wall",
                "-Wextra",
            ])
            .arg("-Werror")
            .arg(source)
            .arg("-I")
            .arg(manifest().join("../include"))
            .arg("-L")
            .arg(archive())
            .args(["-lxasm", "-o"])
            .arg(&program.0)
            .output()
            .expect("a C compiler");
        let words = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "{words}");
        program
    }

    /// One of the programs in this folder.
    pub(crate) fn of_tests(name: &str) -> Self {
        let source = manifest().join("tests/programs").join(name);
        Self::build("cc", &source)
    }

    /// One of the examples.
    pub(crate) fn example(compiler: &str, name: &str) -> Self {
        let source = manifest().join("../examples").join(name);
        Self::build(compiler, &source)
    }

    pub(crate) fn command(&self) -> Command {
        Command::new(&self.0)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
