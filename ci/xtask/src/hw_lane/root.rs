//! The root directory that an emulated machine boots into, from parts.
//!
//! A lane makes one, adds modules, programs and scripts, and packs it into an
//! initramfs. It holds busybox and static programs only: the machine has no C
//! library. Gone from the host when dropped.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::linux::Linux;
use super::remove;
use crate::workspace::Workspace;
use crate::{image, tool};

/// Host programs are linked statically.
pub(super) const HOST_TARGET: &str = "x86_64-unknown-linux-musl";
/// Where this lane's sources are.
const SOURCES: &str = "ci/xtask/src/hw_lane";
/// C programs of the project that run in enclaves, with musl.
const GUESTS: [&str; 9] = [
    "tls", "segv", "signals", "spin", "threads", "timers", "cores", "siblings", "grow",
];
/// Those that attack their enclave; unoptimised, or their faults vanish.
const HOSTILE: [&str; 6] = [
    "import",
    "instructions",
    "memory",
    "scribble",
    "segment",
    "vector",
];
/// The guests' end of the matrix of XEMEM's verbs, over `xasm.h`.
const PEER: &str = "cli/tests/matrix/peer.c";
const MUSL: &[&str] = &["musl-gcc", "-O1", "-static", "-no-pie"];
const GLIBC: &[&str] = &["gcc", "-O0", "-fno-stack-protector", "-static", "-no-pie"];

/// A root directory in the making.
#[derive(Debug)]
pub(super) struct Root {
    folder: PathBuf,
    sources: PathBuf,
}

impl Root {
    /// An empty root directory at `folder` with a shell and the programs that
    /// every lane has.
    ///
    /// # Errors
    /// When it cannot be written or a program cannot be compiled.
    pub(super) fn new(workspace: &Workspace, folder: PathBuf) -> anyhow::Result<Self> {
        remove(&folder)?;
        for name in [
            "bin", "dev", "modules", "proc", "programs", "run", "steps", "sys", "tmp",
        ] {
            fs::create_dir_all(folder.join(name))?;
        }
        let root = Self {
            folder,
            sources: workspace.root.join(SOURCES),
        };
        let busybox = tool::capture(
            "hw-lane: find busybox",
            Command::new("sh").args(["-c", "command -v busybox"]),
        )?;
        root.add(Path::new(busybox.trim()), "bin/busybox")?;
        symlink("busybox", root.folder.join("bin/sh"))?;
        compile(
            MUSL,
            &root.sources.join("verdict.c"),
            &root.folder.join("bin/verdict"),
            &[],
        )?;
        Ok(root)
    }

    /// Copies a file to `place`, keeping its permissions.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub(super) fn add(&self, file: &Path, place: &str) -> anyhow::Result<()> {
        let place = self.folder.join(place);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        fs::copy(file, place).with_context(|| format!("copy {}", file.display()))?;
        Ok(())
    }

    /// Writes a file at `place`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, place: &str, text: &str) -> anyhow::Result<()> {
        fs::write(self.folder.join(place), text).with_context(|| format!("write {place}"))
    }

    /// Adds modules; `init` loads them in this order.
    ///
    /// # Errors
    /// When one is not there.
    pub(super) fn add_modules(&self, linux: &Linux, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            self.add(&linux.module(name), &format!("modules/{name}.ko"))?;
        }
        self.write("modules/order", &(names.join("\n") + "\n"))
    }

    /// Builds host programs, kernel and guests and adds them under `/programs`,
    /// side by side as in `out/`.
    ///
    /// # Errors
    /// When a build fails.
    pub(super) fn add_programs(&self, workspace: &Workspace) -> anyhow::Result<()> {
        let host = ["build", "--release", "--bins", "--target", HOST_TARGET];
        let packages = image::HOST_PACKAGES.map(str::to_owned);
        let mut files = image::kernel_and_guests(workspace)?;
        let all = image::arguments(&host, &packages);
        files.extend(image::build(workspace, "hw-lane: host programs", &all)?);
        for file in &files {
            let name = file.file_name().context("program without a name")?;
            self.add(file, &format!("programs/{}", name.to_string_lossy()))?;
        }
        let c = GUESTS.map(|name| (MUSL, "c", name));
        let hostile = HOSTILE.map(|name| (GLIBC, "hostile", name));
        for (compiler, kind, name) in c.into_iter().chain(hostile) {
            let source = format!("guests/programs/{kind}/{name}.c");
            let program = self.folder.join("programs").join(name);
            compile(compiler, &workspace.root.join(source), &program, &[])?;
        }
        let libraries = image::guest_library(workspace)?;
        let library = libraries.iter().find(|file| file.ends_with("libxasm.a"));
        let include = workspace.root.join("guests/libxasm/include");
        compile(
            GLIBC,
            &workspace.root.join(PEER),
            &self.folder.join("programs/peer"),
            &[library.context("no libxasm.a")?, Path::new("-I"), &include],
        )
    }

    /// Adds those files of `steps/` whose names are wanted.
    ///
    /// # Errors
    /// When none does, or one cannot be copied.
    pub(super) fn add_steps(&self, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let mut count = 0;
        for entry in fs::read_dir(self.sources.join("steps"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".sh") && is_wanted(&name) {
                self.add(&path, &format!("steps/{name}"))?;
                count += 1;
            }
        }
        anyhow::ensure!(count > 0, "no file in {SOURCES}/steps has such a name");
        Ok(())
    }

    /// Adds `init`, the steps' shell library and the inputs.
    ///
    /// # Errors
    /// When one cannot be copied.
    pub(super) fn add_init(&self) -> anyhow::Result<()> {
        for name in ["lib.sh", "part.sh"] {
            self.add(&self.sources.join(name), name)?;
        }
        self.add(&self.sources.join("tiny.inp"), "tiny.inp")?;
        self.add(&self.sources.join("init.sh"), "init")?;
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.folder.join("init"), executable).context("make init executable")
    }

    /// Packs everything, without debug information, into the file `initrd`.
    ///
    /// # Errors
    /// When a program of the pack fails.
    pub(super) fn pack(self, initrd: &Path) -> anyhow::Result<()> {
        let script = "find programs -type f -exec strip -g {} + 2>/dev/null; \
                      find . | cpio --quiet -o -H newc -R 0:0 > \"$1\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "pack"]).arg(initrd);
        command.current_dir(&self.folder);
        tool::capture("hw-lane: pack the initramfs", &mut command).map(drop)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // The next run removes what this one could not.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Compiles a C program with `compiler`, its options included, and `more`.
fn compile(compiler: &[&str], source: &Path, program: &Path, more: &[&Path]) -> anyhow::Result<()> {
    let (name, options) = compiler.split_first().context("no compiler")?;
    let mut command = Command::new(name);
    command.args(options).arg("-o").arg(program).arg(source);
    command.args(more);
    tool::capture("hw-lane: compile", &mut command).map(drop)
}
