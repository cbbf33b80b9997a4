//! Debian's archive: packages that are downloaded and unpacked, not installed.
//!
//! Called for the kernels and for the emulator that the lanes run. Needs no
//! root; only an index that is not there yet is fetched as root. What comes is
//! compared with the SHA-256 of the signed index, and what is kept with the
//! checksums that were noted when it came.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use crate::failure::Failure;
use crate::{setup, tool};

/// Checksums of what is kept, in the kept folder.
const SUMS: &str = "SHA256SUMS";
/// What this module calls.
const PROGRAMS: [&str; 5] = ["apt-get", "apt-cache", "dpkg", "sha256sum", "xz"];

/// Fails unless packages can be had at all; `wanted` is what for.
///
/// # Errors
/// Names the program that is missing.
pub(super) fn require(wanted: &str) -> anyhow::Result<()> {
    for program in PROGRAMS {
        if !tool::on_path(program) {
            return Err(Failure::error(
                format!("hw-lane: no {wanted}"),
                format!("it comes out of a Debian package, and {program} was not found"),
                "docker run --rm -it -v \"$PWD\":/xasm -w /xasm debian:12",
            ));
        }
    }
    Ok(())
}

/// Asks the index with `query`; as root the index is fetched when it has no
/// answer, since a fresh machine has none yet.
///
/// # Errors
/// What `query` says.
pub(super) fn look_up<T>(query: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    match query() {
        Err(_) if setup::is_root() => {
            tool::run(
                "hw-lane: apt-get update",
                Command::new("apt-get").args(["-q", "update"]),
            )?;
            query()
        }
        found => found,
    }
}

/// Downloads `packages`, compares them with the index, and unpacks them over
/// each other into `folder/unpacked`.
///
/// # Errors
/// When one cannot be had or is not what the index says.
pub(super) fn unpack(packages: &[String], wanted: &str, folder: &Path) -> anyhow::Result<()> {
    let mut query = Command::new("apt-cache");
    query.args(["show", "--no-all-versions"]).args(packages);
    let index = tool::capture("hw-lane: ask the index", &mut query)?;
    let mut download = Command::new("apt-get");
    download.args(["-q", "download"]).args(packages);
    let title = format!("hw-lane: download {}", packages.join(" "));
    eprintln!("==> {title}");
    tool::capture(&title, download.current_dir(folder)).map_err(|error| {
        Failure::error(
            format!("hw-lane: no {wanted}"),
            reason(&error),
            "sudo apt-get update  (and run this again)",
        )
    })?;
    let unpacked = folder.join("unpacked");
    for package in packages {
        let file = fs::read_dir(folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| is_of(path, package))
            .with_context(|| format!("{package} was not downloaded"))?;
        compare(&file, package, sum_of(&index, package))?;
        let mut unpack = Command::new("dpkg");
        unpack.arg("-x").arg(&file).arg(&unpacked);
        tool::capture("hw-lane: unpack a package", &mut unpack)?;
        fs::remove_file(&file).context("remove the package")?;
    }
    Ok(())
}

/// Why a command failed, in one line.
pub(super) fn reason(error: &anyhow::Error) -> String {
    let why = error
        .downcast_ref::<Failure>()
        .map_or_else(|| format!("{error:#}"), |failure| failure.why.clone());
    why.replace('\n', "; ")
}

/// Is `file` a version of `package`? (`NAME_VERSION_ARCHITECTURE.deb`)
fn is_of(file: &Path, package: &str) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split_once('_')
        .is_some_and(|(name, rest)| name == package && rest.ends_with(".deb"))
}

fn compare(file: &Path, package: &str, wanted: Option<&str>) -> anyhow::Result<()> {
    let mut sum = Command::new("sha256sum");
    let found = tool::capture("hw-lane: checksum", sum.arg(file))?;
    let found = found.split_whitespace().next();
    if wanted.is_some() && wanted == found {
        return Ok(());
    }
    Err(Failure::error(
        format!("hw-lane: {package} is not what it should be"),
        format!(
            "SHA-256 {} expected, {} found",
            wanted.unwrap_or("none"),
            found.unwrap_or("none")
        ),
        "sudo apt-get update  (and run this again)",
    ))
}

/// The checksum of `package` in the output of `apt-cache show`.
fn sum_of<'a>(index: &'a str, package: &str) -> Option<&'a str> {
    let field = |stanza: &'a str, name: &str| {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::trim)
    };
    index
        .split("\n\n")
        .find(|stanza| field(stanza, "Package") == Some(package))
        .and_then(|stanza| field(stanza, "SHA256"))
}

/// Notes the checksums of everything in `folder`.
///
/// # Errors
/// When they cannot be computed or written.
pub(super) fn note_sums(folder: &Path) -> anyhow::Result<()> {
    let mut sums = Command::new("sh");
    sums.args(["-c", "find . -type f -exec sha256sum {} +"]);
    let text = tool::capture("hw-lane: checksums", sums.current_dir(folder))?;
    fs::write(folder.join(SUMS), text).context("note the checksums")
}

/// Is there a kept `folder` that holds what it held when it came? Says so when
/// it changed.
pub(super) fn is_kept(folder: &Path) -> bool {
    if !folder.join(SUMS).is_file() {
        return false;
    }
    let mut command = Command::new("sha256sum");
    command.args(["--check", "--status", "--strict", SUMS]);
    let whole = tool::succeeds(command.current_dir(folder));
    if !whole {
        eprintln!(
            "==> hw-lane: {} differs from its checksums and is fetched again",
            folder.display()
        );
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_without_the_command_that_failed() {
        let error = tool::failed("look", &Command::new("apt-get"), "E: a\nE: b");
        assert_eq!(reason(&error), "E: a; E: b");
        assert_eq!(reason(&anyhow::anyhow!("x").context("y")), "y: x");
    }

    #[test]
    fn a_checksum_is_that_of_its_own_package() {
        let index = "Package: a\nDescription: SHA256: no\nSHA256: 0123\n\n\
                     Package: a-b\nSHA256: 4567\n\nPackage: c\n";
        assert_eq!(sum_of(index, "a"), Some("0123"));
        assert_eq!(sum_of(index, "a-b"), Some("4567"));
        assert_eq!(sum_of(index, "c"), None);
        assert_eq!(sum_of(index, "b"), None);
    }

    #[test]
    fn a_package_file_is_known_by_its_whole_name() {
        let file = Path::new("/d/bochs-term_2.7+dfsg-4_amd64.deb");
        assert!(is_of(file, "bochs-term"));
        assert!(!is_of(file, "bochs"));
        assert!(!is_of(Path::new("/d/unpacked"), "unpacked"));
    }

    #[test]
    fn what_is_kept_and_changed_is_not_used() {
        let folder = std::env::temp_dir().join(format!("xtask-sums-{}", std::process::id()));
        fs::create_dir_all(folder.join("deep")).unwrap();
        let before = is_kept(&folder);
        fs::write(folder.join("deep/file"), "image").unwrap();
        note_sums(&folder).unwrap();
        let whole = is_kept(&folder);
        fs::write(folder.join("deep/file"), "imagf").unwrap();
        let changed = is_kept(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((before, whole, changed), (false, true, false));
    }
}
