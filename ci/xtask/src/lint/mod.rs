//! `lint`: the project's rules that no compiler checks.
//!
//! Independent parts: [`source`] reads every Rust file, [`links`] every
//! document, [`graph`] the crate graph, [`disasm`] the machine code of the
//! kernel image. Each returns findings; this file only collects and prints them.

mod disasm;
mod graph;
mod lexer;
mod links;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::failure::Failure;
use crate::image;
use crate::tool;
use crate::workspace::Workspace;

/// Folders below the root that hold no source of ours.
const SKIPPED_FOLDERS: &[&str] = &["target", "out", ".git", "node_modules"];

/// Arguments of `lint`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Kernel image to disassemble [default: `out/enclave-kernel` if it exists].
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// File, package or symbol.
    pub(crate) place: String,
    /// Line number from 1; 0 when the whole place is meant.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) message: String,
}

impl Finding {
    fn new(place: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            place: place.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.place, self.message),
            line => write!(f, "{}:{line}: {}", self.place, self.message),
        }
    }
}

/// Runs all parts; the kernel part only when there is an image.
///
/// # Errors
/// When any rule is broken, after printing every finding.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let read = sources(workspace);
    let image = options.kernel.clone().unwrap_or_else(|| workspace.kernel());
    if options.kernel.is_none() && !image.is_file() {
        eprintln!("==> lint: no kernel image, machine code not checked (cargo xtask image)");
        return read;
    }
    // Both parts print their findings, whatever the other one found.
    let disassembled = kernel(&image);
    read.and(disassembled)
}

/// Checks every source file, every document and the crate graph.
///
/// # Errors
/// When any rule is broken, after printing every finding.
pub(crate) fn sources(workspace: &Workspace) -> anyhow::Result<()> {
    let mut files = Vec::new();
    collect(&workspace.root, &mut files)?;
    let mut findings = Vec::new();
    for file in &files {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let place = file.strip_prefix(&workspace.root).unwrap_or(file);
        let place = place.to_string_lossy();
        if file.extension().is_some_and(|ext| ext == "md") {
            findings.extend(links::check(&workspace.root, &place, &text));
        } else {
            findings.extend(source::check(&place, &text));
        }
    }
    findings.extend(graph::check(&image::metadata(workspace)?));
    report(
        &format!("lint: {} files and the crate graph", files.len()),
        &findings,
    )
}

/// Checks the machine code of a kernel image.
///
/// # Errors
/// When objdump fails or the image holds a refused instruction.
pub(crate) fn kernel(image: &Path) -> anyhow::Result<()> {
    let mut objdump = Command::new("objdump");
    objdump
        .args(["--disassemble", "--no-show-raw-insn"])
        .arg(image);
    let listing = tool::capture("lint: disassemble the kernel", &mut objdump)?;
    let (instructions, findings) = disasm::check(&listing);
    if instructions == 0 {
        return Err(Failure::error(
            "lint: the kernel image holds no code",
            image.display().to_string(),
            "cargo xtask image",
        ));
    }
    report(
        &format!("lint: {instructions} instructions of the kernel"),
        &findings,
    )
}

fn report(what: &str, findings: &[Finding]) -> anyhow::Result<()> {
    for finding in findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() {
        eprintln!("==> {what}: no findings");
        return Ok(());
    }
    Err(Failure::error(
        format!("{what}: rules are broken"),
        format!("{} findings, listed above", findings.len()),
        "cargo xtask lint",
    ))
}

/// Collects all Rust files and documents below `folder`, in a fixed order.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default();
        if path.is_symlink() || SKIPPED_FOLDERS.iter().any(|skipped| name == *skipped) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else if path
            .extension()
            .is_some_and(|ext| ext == "rs" || ext == "md")
        {
            files.push(path);
        }
    }
    Ok(())
}
