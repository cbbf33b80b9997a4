//! Takes out of a text what tells who runs it where: names of user and host,
//! directories.
//!
//! Everything that `selftest` prints passes through here once. Paths of the
//! system (`/dev`, `/sys`, `/proc`) say nothing of anybody and stay; of other
//! paths only the names of our own programs and of source files do. It cannot
//! know a person's name that stands in a text for another reason.

use std::path::Path;

use serde_json::Value;

/// Names shorter than this are words rather than names.
const SHORTEST_NAME: usize = 3;
/// Where paths are the same on every machine.
const SYSTEM: [&str; 3] = ["/dev/", "/proc/", "/sys/"];
/// Files whose names tell what a message is about.
const PROGRAMS: [&str; 6] = [
    "enclavectl",
    "enclave-vmm",
    "enclave-kernel",
    "xemem-broker",
    "snap-mini",
    "spectrum",
];
/// Members of a report that hold words of ours.
const OURS: [&str; 2] = ["verdict", "ring"];

/// What to take out.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// Directory and what to write in its place, longest first.
    directories: Vec<(String, &'static str)>,
    /// Name and what to write in its place.
    names: Vec<(String, &'static str)>,
}

impl Scrub {
    /// For this process: its user, host and directories, and `private`.
    pub(super) fn of_this_process(private: &Path, run_dir: Option<&Path>) -> Self {
        let mut scrub = Self::default();
        scrub.directory(Some(private), "[private]");
        scrub.directory(run_dir, "[rundir]");
        scrub.directory(std::env::home_dir().as_deref(), "[home]");
        scrub.directory(std::env::current_dir().ok().as_deref(), "[here]");
        let exe = std::env::current_exe().ok();
        scrub.directory(exe.as_deref().and_then(Path::parent), "[programs]");
        for variable in ["USER", "LOGNAME"] {
            if let Ok(name) = std::env::var(variable) {
                scrub.name(&name, "[user]");
            }
        }
        let uname = rustix::system::uname();
        let host = uname.nodename().to_string_lossy();
        scrub.name(&host, "[host]");
        scrub.name(host.split('.').next().unwrap_or_default(), "[host]");
        scrub
    }

    fn directory(&mut self, path: Option<&Path>, instead: &'static str) {
        let Some(path) = path.and_then(Path::to_str) else {
            return;
        };
        // The root would be found everywhere.
        if path.len() > 1 {
            self.directories.push((path.to_owned(), instead));
            self.directories
                .sort_by_key(|(path, _)| usize::MAX - path.len());
        }
    }

    fn name(&mut self, name: &str, instead: &'static str) {
        // Every machine has a root.
        if name.len() >= SHORTEST_NAME && name != "root" {
            self.names.push((name.to_owned(), instead));
        }
    }

    /// `text` without them.
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (path, instead) in &self.directories {
            text = replace_whole(&text, path, instead, is_of_path);
        }
        text = paths(&text);
        for (name, instead) in &self.names {
            text = replace_whole(&text, name, instead, is_of_name);
        }
        text
    }

    /// Every text in a document without them; member names are ours.
    pub(super) fn document(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.document(item)),
            Value::Object(members) => {
                for (key, member) in members {
                    if !OURS.contains(&key.as_str()) {
                        self.document(member);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '-' || c == '_'
}

/// Whether `c` continues a path's last component; a '/' goes on to the next.
fn is_of_path(c: char) -> bool {
    is_of_name(c) || c == '.'
}

/// Replaces `name` where it does not stand inside a longer one.
fn replace_whole(text: &str, name: &str, instead: &str, is_of: fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        let (before, found) = rest.split_at(at);
        let after = &found[name.len()..];
        out.push_str(before);
        let continues =
            out.chars().next_back().is_some_and(is_of) || after.chars().next().is_some_and(is_of);
        out.push_str(if continues { name } else { instead });
        rest = after;
    }
    out + rest
}

/// Shortens the absolute paths in `text`.
fn paths(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let ends = |c: char| c.is_whitespace() || "\"'()<>[],;=|".contains(c);
        let length = found.find(ends).unwrap_or(found.len());
        let path = found[..length].trim_end_matches([':', '.']);
        // Relative ones, fractions and the like begin earlier.
        let begins = !before.ends_with(|c: char| is_of_path(c) || c == ']');
        out.push_str(&if begins {
            shortened(path)
        } else {
            path.to_owned()
        });
        rest = &found[path.len()..];
    }
    out + rest
}

fn shortened(path: &str) -> String {
    if path.len() < 2 || SYSTEM.iter().any(|system| path.starts_with(system)) {
        return path.to_owned();
    }
    let last = path.rsplit('/').next().unwrap_or_default();
    if PROGRAMS.contains(&last) || last.contains(".rs") {
        return format!("[path]/{last}");
    }
    "[path]".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scrub() -> Scrub {
        let mut scrub = Scrub::default();
        scrub.directory(Some(Path::new("/home/alice b")), "[home]");
        scrub.directory(Some(Path::new("/home/alice b/xasm/out")), "[programs]");
        scrub.name("alice", "[user]");
        scrub.name("node17", "[host]");
        scrub.name("root", "[user]");
        scrub.name("ab", "[user]");
        scrub
    }

    #[test]
    fn names_go_and_words_around_them_stay() {
        let text = scrub().text("alice on node17, malice, node17-x, ab, root: alice's");
        assert_eq!(
            text,
            "[user] on [host], malice, node17-x, ab, root: [user]'s"
        );
    }

    #[test]
    fn of_paths_only_what_tells_nothing_of_anybody_stays() {
        for (text, wanted) in [
            ("open /dev/kvm: denied", "open /dev/kvm: denied"),
            (
                "at /home/alice b/xasm/out/enclave-vmm or",
                "at [programs]/enclave-vmm or",
            ),
            ("/home/alice b/secret", "[home]/secret"),
            ("read \"/data/carol/x.toml\"", "read \"[path]\""),
            (
                "/opt/carol/bin/enclave-vmm: gone",
                "[path]/enclave-vmm: gone",
            ),
            (
                "panicked at /home/bob/.cargo/a/src/b.rs:12:5:",
                "panicked at [path]/b.rs:12:5:",
            ),
            ("vmm/src/exit.rs:3", "vmm/src/exit.rs:3"),
            ("1/2 and / and a /", "1/2 and / and a /"),
            ("PATH=/home/bob/bin", "PATH=[path]"),
            (
                "/sys/module/kvm/parameters/x",
                "/sys/module/kvm/parameters/x",
            ),
        ] {
            assert_eq!(scrub().text(text), wanted);
        }
    }

    #[test]
    fn a_document_keeps_its_form_and_our_words() {
        let mut scrub = scrub();
        scrub.name("passed", "[user]");
        let mut value = json!({"verdict": "passed", "n": 1, "why": ["passed by alice"]});
        scrub.document(&mut value);
        assert_eq!(
            value,
            json!({"verdict": "passed", "n": 1, "why": ["[user] by [user]"]})
        );
    }
}
