//! Running other programs and saying which one failed.
//!
//! Used by every subcommand. A failed program becomes a [`Failure`] whose last
//! line is the command to repeat.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::failure::Failure;

/// Runs `command` with its output on the terminal, under a heading.
///
/// # Errors
/// When it cannot be started or ends with another status than 0.
pub(crate) fn run(what: &str, command: &mut Command) -> anyhow::Result<()> {
    eprintln!("==> {what}");
    let status = command
        .status()
        .with_context(|| format!("start {}", line(command)))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(what, command, &status.to_string()))
}

/// Runs `command` and gives each line of its standard output to `on_line`
/// while it runs.
///
/// # Errors
/// As [`run`]; lines are delivered before the failure is known.
pub(crate) fn run_lines(
    what: &str,
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<()> {
    eprintln!("==> {what}");
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", line(command)))?;
    if let Some(stdout) = child.stdout.take() {
        for text in BufReader::new(stdout).split(b'\n') {
            let text = text.with_context(|| format!("read from {}", line(command)))?;
            on_line(&String::from_utf8_lossy(&text));
        }
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    Err(failed(what, command, &status.to_string()))
}

/// Runs `command` and returns its standard output. Warnings it gave on standard
/// error are passed on.
///
/// # Errors
/// As [`run`]; what it wrote to standard error is part of the reason.
pub(crate) fn capture(what: &str, command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {}", line(command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        eprint!("{stderr}");
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let tail = last_lines(&stderr, 12);
    let why = if tail.is_empty() {
        output.status.to_string()
    } else {
        format!("{}: {tail}", output.status)
    };
    Err(failed(what, command, &why))
}

/// Does `command` run and succeed? Its output is thrown away.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Is a program of that name on the PATH?
pub(crate) fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The failure of a command that ran.
pub(crate) fn failed(what: &str, command: &Command, why: &str) -> anyhow::Error {
    Failure::error(format!("{what}: failed"), why, line(command))
}

/// The command as one would type it in a shell, its own variables first.
pub(crate) fn line(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(key, value)| {
            value.map(|value| format!("{}={}", key.to_string_lossy(), quote(value)))
        })
        .collect();
    let program = command.get_program();
    // Cargo hands itself down by its full path; a person types its name.
    let is_cargo = std::path::Path::new(program).file_name() == Some(OsStr::new("cargo"));
    words.push(if is_cargo {
        "cargo".to_owned()
    } else {
        quote(program)
    });
    words.extend(command.get_args().map(quote));
    words.join(" ")
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The last `count` non-empty lines.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let skip = lines.len().saturating_sub(count);
    lines
        .iter()
        .skip(skip)
        .copied()
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_can_be_pasted_into_a_shell() {
        let mut command = Command::new("/opt/rust/bin/cargo");
        command
            .args(["doc", "it's", "", "a b"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .env_remove("RUSTFLAGS");
        assert_eq!(
            line(&command),
            r"RUSTDOCFLAGS='-D warnings' cargo doc 'it'\''s' '' 'a b'"
        );
    }

    #[test]
    fn a_failing_program_becomes_a_failure_with_its_words() {
        let error = capture(
            "probe",
            Command::new("sh").args(["-c", "echo broken >&2; exit 3"]),
        )
        .unwrap_err();
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.what, "probe: failed");
        assert!(failure.why.ends_with("exit status: 3: broken"));
        assert_eq!(failure.fix, "sh -c 'echo broken >&2; exit 3'");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        assert_eq!(last_lines("a\n\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }
}
