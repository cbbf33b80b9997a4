//! The table of `docs/xemem.md`, as the cells came out.

use std::fs;
use std::path::Path;

use crate::cells::Kind;
use crate::peers::Where;

const BEGIN: &str = "| Exporter | Kind | Pages |";

/// Lines as they are in the documentation.
#[derive(Default)]
pub(crate) struct Table {
    /// `None` = to be taken from the documentation.
    lines: Vec<(String, Option<String>)>,
}

impl Table {
    pub(crate) fn add(&mut self, at: Where, kind: Kind, page_bytes: u64, cells: [String; 4]) {
        let head = head(at, kind, page_bytes);
        let line = format!("{head} {} |", cells.join(" | "));
        self.lines.push((head, Some(line)));
    }

    pub(crate) fn leave_out(&mut self, at: Where, kind: Kind, page_bytes: u64) {
        let head = head(at, kind, page_bytes);
        println!("{head} left out: the host has no huge pages to give");
        self.lines.push((head, None));
    }

    /// Fails where the documentation says something else, unless it is to be
    /// written.
    pub(crate) fn compare_with_documentation(&self) {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let path = repository.join("docs/xemem.md");
        let text = fs::read_to_string(&path).unwrap();
        let start = text.find(BEGIN).unwrap();
        let len = text[start..].find("\n\n").unwrap();
        let documented = &text[start..start + len];
        let table = self.text(documented);
        println!("{table}");
        if std::env::var_os("XASM_WRITE_TABLE").is_some() {
            fs::write(&path, text.replace(documented, &table)).unwrap();
            return;
        }
        assert_eq!(
            table, documented,
            "XASM_WRITE_TABLE=1 rewrites the documentation"
        );
    }

    fn text(&self, documented: &str) -> String {
        let heads = [
            "same process",
            "process of the same enclave",
            "process of another enclave",
            "Linux process",
        ];
        let mut text = format!(
            "{BEGIN} {} |\n|---|---|---|---|---|---|---|",
            heads.join(" | ")
        );
        for (head, line) in &self.lines {
            let old = || documented.lines().find(|line| line.starts_with(head));
            text.push('\n');
            text.push_str(line.as_deref().or_else(old).unwrap_or(head));
        }
        text
    }
}

fn head(at: Where, kind: Kind, page_bytes: u64) -> String {
    let exporter = match at {
        Where::Linux => "Linux process",
        Where::Enclave(_) => "enclave process",
    };
    let kind = match kind {
        Kind::Plain => "plain",
        Kind::Snapshot => "snapshot",
    };
    let pages = if page_bytes == 4096 { "4 KiB" } else { "2 MiB" };
    format!("| {exporter} | {kind} | {pages} |")
}
