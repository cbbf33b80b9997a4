//! Documents name files that exist.
//!
//! Called by [`super::sources`] with the text of each Markdown file. Only
//! `code spans` count that start with a folder of the root and look like a
//! path; an example such as `out/demo.inp` therefore stays free.

use std::path::Path;

use super::Finding;

/// Folders of the root whose contents documents refer to.
const FOLDERS: &[&str] = &[
    ".ci/",
    "ci/",
    "cli/",
    "docs/",
    "enclave-kernel/",
    "guests/",
    "vmm/",
    "xemem-host/",
];

/// Paths that a document names and that are not below `root`.
pub(crate) fn check(root: &Path, place: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for path in named_paths(line) {
            if !root.join(path).exists() {
                findings.push(Finding::new(
                    place,
                    number,
                    format!("`{path}` does not exist"),
                ));
            }
        }
    }
    findings
}

/// The code spans of a line that are paths of this repository.
fn named_paths(line: &str) -> Vec<&str> {
    line.split('`')
        .skip(1)
        .step_by(2)
        .filter(|span| FOLDERS.iter().any(|folder| span.starts_with(folder)))
        .filter(|span| !span.contains([' ', '*', '<', '{', '…', '$']))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_the_repository_are_looked_up() {
        let line = "See `vmm/src/exit.rs` and `docs/adr/`, not `cargo xtask` or `ci/* files`.";
        assert_eq!(named_paths(line), ["vmm/src/exit.rs", "docs/adr/"]);
    }

    #[test]
    fn a_missing_file_is_named_with_its_line() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let text = "`ci/xtask/src/main.rs`\n`ci/xtask/src/never.rs`\n";
        let findings = check(&root, "a.md", text);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 2);
    }
}
