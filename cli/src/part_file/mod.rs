//! Part files: what an enclave shall have, written in TOML.
//!
//! Read by `create -f` and `check`, written by `init` ([`template`]). Keys are
//! the names of `create`'s flags. Reading finds every problem at once, each with
//! line, column and what to write instead; a file with one is not used at all.
//! Pure but for [`PartFile::load`]; what the host can give is not looked at.

mod keys;
mod problem;
pub(crate) mod template;
mod values;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use enclave_vmm::config::CoreRequest;
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::features::Features;
use enclave_vmm::isolation::Isolation;
use enclave_vmm::machine::{Backing, Export, Ring};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use problem::Lines;
pub(crate) use problem::Problem;
use values::Wrong;

/// Longest part file that is read.
const MAX_BYTES: u64 = 1 << 20;
/// Most problems that are told of one file.
const MAX_PROBLEMS: usize = 20;

/// What a part file says; `None` = nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartFile {
    pub(crate) name: Option<String>,
    pub(crate) cores: Option<CoreRequest>,
    pub(crate) mem_bytes: Option<u64>,
    pub(crate) max_cores: Option<usize>,
    pub(crate) node: Option<usize>,
    pub(crate) exports: Vec<Export>,
    pub(crate) ring: Option<Ring>,
    pub(crate) without: Features,
    pub(crate) backing: Option<Backing>,
    pub(crate) prefault: Option<bool>,
    pub(crate) share_cores: Option<bool>,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) kernel: Option<PathBuf>,
}

impl PartFile {
    /// Reads the file at `path`: its contents, or what is wrong with them.
    ///
    /// # Errors
    /// It cannot be read, or is larger than a part file can be.
    pub(crate) fn load(path: &Path) -> Result<Result<Self, Vec<Problem>>, Failure> {
        let what = || format!("read part file {}", path.display());
        let hint = "enclavectl init > part.toml";
        let mut bytes = Vec::new();
        let read =
            File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        let read = read.map_err(|e| Failure::io(what(), e).with_hint(hint))?;
        if u64::try_from(read).is_ok_and(|read| read > MAX_BYTES) {
            let why = "it is larger than 1 MiB, which no part file is";
            return Err(Failure::new(Class::Usage, what(), why).with_hint(hint));
        }
        Ok(match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text),
            Err(error) => {
                let (valid, _) = bytes.split_at(error.valid_up_to());
                let text = String::from_utf8_lossy(valid);
                let at = text.len()..text.len();
                let wrong = Wrong::new("this is no UTF-8", "save the file as UTF-8 text");
                Err(vec![Lines::of(&text).problem(at, wrong)])
            }
        })
    }

    /// Reads a part file's text; all problems in the order of their places.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let lines = Lines::of(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut problems: Vec<Problem> = errors
            .iter()
            .map(|error| {
                let wrong = Wrong::new(error.message(), "write KEY = VALUE, text in \"quotes\"");
                lines.problem(error.span().unwrap_or_default(), wrong)
            })
            .collect();
        let mut file = Self::default();
        if problems.is_empty() {
            for (key, value) in table.get_ref() {
                if let Err((span, wrong)) = file.set(key, value) {
                    problems.push(lines.problem(span, wrong));
                }
            }
        }
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems.truncate(MAX_PROBLEMS);
        match problems.is_empty() {
            true => Ok(file),
            false => Err(problems),
        }
    }

    /// A key that nothing else makes up for.
    pub(crate) fn missing(&self) -> Option<Problem> {
        let (what, fix) = (
            "there is no mem".to_owned(),
            "write mem = \"512M\"".to_owned(),
        );
        self.mem_bytes.is_none().then_some(Problem {
            line: 1,
            column: 1,
            what,
            fix,
        })
    }

    /// Takes over one key, or says where it is wrong.
    fn set(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), (std::ops::Range<usize>, Wrong)> {
        let at = |wrong| (value.span(), wrong);
        match key.get_ref().as_ref() {
            "name" => self.name = Some(values::name(value.get_ref()).map_err(at)?),
            "cores" => self.cores = Some(values::cores(value.get_ref()).map_err(at)?),
            "mem" => self.mem_bytes = Some(values::memory(value.get_ref()).map_err(at)?),
            "max-cores" => self.max_cores = Some(values::room(value.get_ref()).map_err(at)?),
            "node" => self.node = Some(values::node(value.get_ref()).map_err(at)?),
            "export" => self.exports = values::exports(value)?,
            "ring" => self.ring = Some(values::ring(value.get_ref()).map_err(at)?),
            "without" => self.without = values::without(value)?,
            "backing" => self.backing = Some(values::backing(value.get_ref()).map_err(at)?),
            "prefault" => self.prefault = Some(values::yes_no(value.get_ref()).map_err(at)?),
            "share-cores" => self.share_cores = Some(values::yes_no(value.get_ref()).map_err(at)?),
            "isolation" => self.isolation = Some(values::isolation(value.get_ref()).map_err(at)?),
            "kernel" => self.kernel = Some(values::path(value.get_ref()).map_err(at)?),
            other => return Err((key.span(), keys::unknown(other))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
