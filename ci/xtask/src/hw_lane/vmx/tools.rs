//! Bochs and what makes a disc that it boots, out of Debian's packages.
//!
//! Everything is unpacked into `target/hw-lane/bochs`, the libraries that this
//! host lacks included; nothing is installed, so no root is needed. Remove the
//! folder to get the newest packages. Runs nothing but its own check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Failure;
use crate::hw_lane::{archive, console, remove};
use crate::tool;

/// `bochs-term` is the display that needs no screen; see [`Tools::bochs`].
const PACKAGES: [&str; 7] = [
    "bochs",
    "bochs-term",
    "bochsbios",
    "genisoimage",
    "isolinux",
    "syslinux-common",
    "vgabios",
];
/// The processor with VMX that Linux gets on with best (`docs/platforms.md`).
pub(super) const MODEL: &str = "broadwell_ult";
/// Where a 64-bit Debian has its libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The unpacked packages.
#[derive(Debug)]
pub(super) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// The packages kept in `folder/bochs`, else fresh ones.
    ///
    /// # Errors
    /// When they cannot be downloaded, or Bochs does not start.
    pub(super) fn get(folder: &Path) -> anyhow::Result<Self> {
        let place = folder.join("bochs");
        if !archive::is_kept(&place) {
            archive::require("Bochs")?;
            remove(&place)?;
            let download = folder.join("download");
            remove(&download)?;
            fs::create_dir_all(&download)?;
            archive::unpack(&archive::look_up(packages)?, "Bochs", &download)?;
            archive::note_sums(&download.join("unpacked"))?;
            fs::rename(download.join("unpacked"), &place)?;
            remove(&download)?;
        }
        let tools = Self { folder: place };
        tools.check()?;
        Ok(tools)
    }

    /// Does Bochs start here, and does it have the processor?
    fn check(&self) -> anyhow::Result<()> {
        let refused = |why: String| {
            Failure::error(
                "hw-lane: Bochs does not start",
                why.replace('\n', "; "),
                format!("rm -r {}  (and run this again)", self.folder.display()),
            )
        };
        let mut help = self.program("bochs-bin");
        help.args(["--help", "cpu"]);
        let output = help.output().map_err(|error| refused(error.to_string()))?;
        // It writes its help to standard error.
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if text.contains(MODEL) {
            return Ok(());
        }
        Err(refused(format!(
            "it knows no {MODEL}: {}",
            tool::last_lines(&text, 3)
        )))
    }

    /// A file of a package, by its path without the first slash.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.file("usr/bin").join(name));
        command.env("LD_LIBRARY_PATH", self.file(LIBRARIES));
        command
    }

    /// The program that makes discs.
    pub(super) fn genisoimage(&self) -> Command {
        self.program("genisoimage")
    }

    /// Bochs, with standard output as its descriptor 3 and what its debugger
    /// writes, at most 2 GiB, in the file `debugger`.
    ///
    /// The display draws with curses, which wants a terminal's name, on
    /// standard output, which nobody looks at.
    pub(super) fn bochs(&self, debugger: &Path) -> Command {
        let script = "ulimit -f 4194304; trace=$1; shift; exec \"$@\" 3>&1 > \"$trace\"";
        let mut command = console::bound("sh");
        command.args(["-c", script, "sh"]).arg(debugger);
        command.arg(self.file("usr/bin/bochs-bin"));
        command.env("LD_LIBRARY_PATH", self.file(LIBRARIES));
        let plugins = self.file(LIBRARIES).join("bochs/plugins");
        command.env("LTDL_LIBRARY_PATH", plugins);
        command.env("BXSHARE", self.file("usr/share/bochs"));
        command.env("TERM", "vt100");
        command
    }
}

/// [`PACKAGES`] and everything they need that this host lacks.
fn packages() -> anyhow::Result<Vec<String>> {
    let mut query = Command::new("apt-get");
    query.args(["-qq", "--no-install-recommends", "--reinstall"]);
    query.args(["--print-uris", "install"]).args(PACKAGES);
    let text = tool::capture("hw-lane: look for Bochs", &mut query).map_err(|error| {
        Failure::error(
            "hw-lane: no Bochs",
            archive::reason(&error),
            "sudo apt-get update  (and run this again)",
        )
    })?;
    let names = named(&text);
    if PACKAGES
        .iter()
        .all(|wanted| names.iter().any(|name| name == wanted))
    {
        return Ok(names);
    }
    Err(Failure::error(
        "hw-lane: no Bochs",
        format!("apt offers only: {}", names.join(", ")),
        "sudo apt-get update  (and run this again)",
    ))
}

/// Names of the packages in lines of the form `'URI' NAME_VERSION_ARCH.deb …`.
fn named(uris: &str) -> Vec<String> {
    uris.lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.split_once('_'))
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named_in_the_second_column() {
        let text = "'http://h/b%2b_1.deb' bochs_2.7+dfsg-4_amd64.deb 94064 MD5Sum:b5\n\n\
                    'http://h/g.deb' genisoimage_9%3a1.1_amd64.deb 1 MD5Sum:0\nnothing\n";
        assert_eq!(named(text), ["bochs", "genisoimage"]);
    }
}
