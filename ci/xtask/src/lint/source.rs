//! Rules about single source files.
//!
//! Pure: called by [`super::sources`] with the text of each file. The rules
//! are those of `CONTRIBUTING.md`: file length, an opening `//!`, reasons for
//! unsafe code, no unfinished work, no test that is not run.

use super::Finding;
use super::lexer::{self, Line};

/// Longest file, tests included.
const MAX_LINES: usize = 700;
/// The module documentation starts within this many lines.
const DOC_WITHIN: usize = 12;
/// An argument for safety has at least this many words, or names the function
/// whose argument it repeats.
const MIN_SAFETY_WORDS: usize = 4;

/// Words that mark unfinished work, in comments and code.
const MARKERS: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];
/// Macros and attributes that leave work or tests out.
const UNFINISHED_CODE: &[&str] = &["todo!", "unimplemented!", "#[ignore"];
/// Phrases that stand where an argument should.
const EMPTY_ARGUMENTS: &[&str] = &[
    "no safety requirements",
    "no requirements",
    "no preconditions",
    "trivially safe",
    "this is safe",
    "see above",
];

/// All broken rules of one file.
pub(crate) fn check(place: &str, text: &str) -> Vec<Finding> {
    let lines = lexer::split(text);
    let mut findings = Vec::new();
    if lines.len() > MAX_LINES {
        let message = format!("{} lines, at most {MAX_LINES}", lines.len());
        findings.push(Finding::new(place, 0, message));
    }
    let opening = lines.iter().take(DOC_WITHIN);
    if !opening.clone().any(|line| line.comment.starts_with("//!")) {
        let message = format!("no `//!` in the first {DOC_WITHIN} lines");
        findings.push(Finding::new(place, 1, message));
    }
    for (number, line) in (1..).zip(&lines) {
        findings.extend(unfinished(place, number, line));
    }
    findings.extend(unsafety(place, &lines));
    findings.extend(empty_arguments(place, &lines));
    findings
}

fn unfinished(place: &str, number: usize, line: &Line) -> Vec<Finding> {
    let words = |text: &str, marker: &str| {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|word| word == marker)
    };
    let marked = MARKERS
        .iter()
        .filter(|marker| words(&line.comment, marker) || words(&line.code, marker));
    let left_out = UNFINISHED_CODE
        .iter()
        .filter(|form| line.code.contains(**form));
    marked
        .chain(left_out)
        .map(|form| Finding::new(place, number, format!("`{form}` marks unfinished work")))
        .collect()
}

/// Unsafe code needs the file's (or item's) opt-in, the opt-in a reason.
fn unsafety(place: &str, lines: &[Line]) -> Vec<Finding> {
    let opts_in = |line: &Line| line.code.contains("expect(unsafe_code");
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        if opts_in(line) && !has_reason(lines, index) {
            let message = "`expect(unsafe_code)` without a `// UNSAFETY: reason` above it";
            findings.push(Finding::new(place, index + 1, message));
        }
        if line.code.contains("allow(unsafe_code") {
            let message = "`allow(unsafe_code)`: use `expect` under a `// UNSAFETY: reason`";
            findings.push(Finding::new(place, index + 1, message));
        }
    }
    if !lines.iter().any(opts_in)
        && let Some(index) = lines.iter().position(|line| is_unsafe(&line.code))
    {
        let message = "unsafe code in a file that does not open with `expect(unsafe_code)`";
        findings.push(Finding::new(place, index + 1, message));
    }
    findings
}

fn is_unsafe(code: &str) -> bool {
    ["unsafe {", "unsafe impl", "unsafe extern", "#[unsafe("]
        .iter()
        .any(|form| code.contains(form))
}

/// Is there a reason in the comment lines directly above `index`?
fn has_reason(lines: &[Line], index: usize) -> bool {
    lines
        .iter()
        .take(index)
        .rev()
        .take_while(|line| line.code.trim().is_empty() || line.code.trim().starts_with("#["))
        .find_map(|line| line.comment.split_once("UNSAFETY:"))
        .is_some_and(|(_, reason)| reason.split_whitespace().count() >= 2)
}

/// `SAFETY:` comments that argue nothing.
fn empty_arguments(place: &str, lines: &[Line]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((before, first)) = line.comment.split_once("SAFETY:") else {
            continue;
        };
        if before.ends_with("UN") {
            continue;
        }
        let rest = lines
            .iter()
            .skip(index + 1)
            .take_while(|line| line.code.trim().is_empty() && !line.comment.is_empty())
            .map(|line| line.comment.trim_start_matches(['/', '!', '*', ' ']));
        let mut argument = first.to_ascii_lowercase();
        for text in rest {
            argument.push(' ');
            argument.push_str(&text.to_ascii_lowercase());
        }
        let words = argument.split_whitespace().count();
        let short = words < MIN_SAFETY_WORDS && !argument.contains('`');
        let hollow = EMPTY_ARGUMENTS.iter().any(|form| argument.contains(form));
        if hollow || short {
            let message = format!("`SAFETY:{first}` argues nothing");
            findings.push(Finding::new(place, index + 1, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<(usize, String)> {
        check("a.rs", text)
            .into_iter()
            .map(|finding| (finding.line, finding.message))
            .collect()
    }

    #[test]
    fn a_decent_file_passes() {
        let text = "//! What it is.\n\n// UNSAFETY: maps guest memory.\n\
                    #![expect(unsafe_code)]\n\nfn f() {\n    \
                    // SAFETY: the mapping lives as long as self.\n    unsafe { g() }\n}\n";
        assert_eq!(messages(text), []);
    }

    #[test]
    fn the_length_limit_is_exact() {
        let at = format!("//! A.\n{}", "fn f() {}\n".repeat(MAX_LINES - 1));
        assert_eq!(messages(&at), []);
        let over = format!("{at}fn g() {{}}\n");
        assert_eq!(messages(&over), [(0, "701 lines, at most 700".to_owned())]);
    }

    #[test]
    fn the_module_doc_must_come_early() {
        let late = format!("{}//! Late.\n", "use a;\n".repeat(DOC_WITHIN));
        assert_eq!(messages(&late).len(), 1);
        let early = format!("{}//! Early.\n", "use a;\n".repeat(DOC_WITHIN - 1));
        assert_eq!(messages(&early), []);
    }

    #[test]
    fn unfinished_work_is_found_in_comments_and_code() {
        for spoilt in [
            "// FIXME later",
            "fn f() { todo!() }",
            "#[ignore]",
            "// XXX",
        ] {
            let text = format!("//! A.\n{spoilt}\n");
            assert_eq!(messages(&text).len(), 1, "{spoilt}");
        }
        assert_eq!(messages("//! A.\nconst M: &str = \"FIXME\"; // XXXL\n"), []);
    }

    #[test]
    fn unsafe_code_needs_the_opt_in() {
        let text = "//! A.\nfn f() { unsafe { g() } }\n";
        assert_eq!(messages(text).len(), 1);
        assert_eq!(messages("//! A.\n// unsafe { }\n"), []);
    }

    #[test]
    fn the_opt_in_needs_a_reason() {
        let bare = "//! A.\n#![expect(unsafe_code)]\n";
        let empty = "//! A.\n// UNSAFETY:\n#![expect(unsafe_code)]\n";
        let far = "//! A.\n// UNSAFETY: maps memory.\nuse a;\n#![expect(unsafe_code)]\n";
        for text in [bare, empty, far] {
            assert_eq!(messages(text).len(), 1, "{text}");
        }
    }

    #[test]
    fn hollow_safety_arguments_are_refused() {
        for hollow in [
            "no safety requirements.",
            "",
            "safe",
            "See above for this one.",
        ] {
            let text = format!("//! A.\n// SAFETY: {hollow}\nfn f() {{}}\n");
            assert_eq!(messages(&text).len(), 1, "{hollow}");
        }
        assert_eq!(
            messages("//! A.\n// SAFETY: as in `read`.\nfn f() {}\n"),
            []
        );
        let wrapped = "//! A.\n// SAFETY: the\n// page belongs to us alone.\nfn f() {}\n";
        assert_eq!(messages(wrapped), []);
    }
}
