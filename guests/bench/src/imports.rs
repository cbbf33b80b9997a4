//! Arenas of others: attach, follow, check.
//!
//! Called by [`crate::work`] for the requests that import. Each generation that
//! is followed is checked whole, against the pattern that a storm writes.

use std::collections::BTreeMap;
use std::time::Duration;

use xasm::import::End;
use xasm::{Errno, Follow, Import};
use xasm_bench::pattern::Layout;
use xasm_bench::protocol::Request;

/// Attached arenas by name.
#[derive(Default)]
pub(crate) struct Imports {
    attached: BTreeMap<String, Import>,
}

impl Imports {
    /// Does what is asked and returns its numbers.
    pub(crate) fn serve(&mut self, request: &Request) -> Result<Vec<u64>, String> {
        match request {
            Request::Attach {
                name,
                every,
                timeout_ms,
            } => self.attach(name, *every, milliseconds(*timeout_ms)),
            Request::Next { name, timeout_ms } => self.next(name, milliseconds(*timeout_ms)),
            Request::Follow {
                name,
                until,
                timeout_ms,
            } => self.follow(name, *until, milliseconds(*timeout_ms)),
            Request::Look { name } => self.look(name),
            Request::Detach { name } => {
                let gone = self.attached.remove(name);
                gone.map(|_| Vec::new()).ok_or_else(|| unknown(name))
            }
            Request::Churn { name, count } => churn(name, *count),
            other => Err(format!("{other} is no import")),
        }
    }

    pub(crate) fn named(&mut self, name: &str) -> Result<&mut Import, String> {
        self.attached.get_mut(name).ok_or_else(|| unknown(name))
    }

    fn attach(&mut self, name: &str, every: bool, timeout: Duration) -> Result<Vec<u64>, String> {
        let follow = if every { Follow::Every } else { Follow::Latest };
        let import = Import::attach(name, follow, Some(timeout));
        let import = import.map_err(|errno| format!("attach {name}: {errno}"))?;
        let numbers = vec![import.size_bytes(), import.chunk_bytes()];
        self.attached.insert(name.to_owned(), import);
        Ok(numbers)
    }

    fn next(&mut self, name: &str, timeout: Duration) -> Result<Vec<u64>, String> {
        let import = self.named(name)?;
        let next = import.next(Some(timeout));
        let Some(snapshot) = next.map_err(|errno| format!("next of {name}: {errno}"))? else {
            return Ok(vec![0, ended(import)]);
        };
        let word = snapshot.as_slice().first_chunk().copied();
        let record = snapshot.record();
        let step = snapshot.step();
        Ok(vec![
            1,
            record.generation,
            step,
            record.chunks_mapped,
            u64::from_le_bytes(word.unwrap_or_default()),
        ])
    }

    fn follow(&mut self, name: &str, until: u64, timeout: Duration) -> Result<Vec<u64>, String> {
        let import = self.named(name)?;
        let layout = layout(import)?;
        let [mut seen, mut torn, mut mapped, mut last, mut end] = [0; 5];
        while last < until {
            let next = import.next(Some(timeout));
            let Some(snapshot) = next.map_err(|errno| format!("next of {name}: {errno}"))? else {
                end = ended(import);
                break;
            };
            seen += 1;
            last = snapshot.generation();
            mapped += snapshot.record().chunks_mapped;
            let step = snapshot.step();
            let whole = layout.check(snapshot.as_slice(), step).is_ok();
            // What was taken away while it was read need not be whole.
            torn += u64::from(!whole && snapshot.valid());
        }
        Ok(vec![seen, import.missed(), torn, mapped, last, end])
    }

    fn look(&mut self, name: &str) -> Result<Vec<u64>, String> {
        let import = self.named(name)?;
        let layout = layout(import)?;
        let last = import.last();
        let snapshot = last.ok_or_else(|| format!("{name} goes on, or showed nothing"))?;
        let whole = layout.check(snapshot.as_slice(), snapshot.step()).is_ok();
        Ok(vec![
            snapshot.step(),
            u64::from(whole),
            u64::from(snapshot.valid()),
        ])
    }
}

fn churn(name: &str, count: u64) -> Result<Vec<u64>, String> {
    let mut seen = 0;
    for round in 0..count {
        let failed = |errno: Errno| format!("round {round} on {name}: {errno}");
        let mut import =
            Import::attach(name, Follow::Latest, Some(Duration::ZERO)).map_err(failed)?;
        match import.next(Some(Duration::ZERO)) {
            Ok(Some(snapshot)) => seen += u64::from(!snapshot.as_slice().is_empty()),
            Ok(None) | Err(Errno::ETIMEDOUT) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(vec![seen])
}

fn layout(import: &Import) -> Result<Layout, String> {
    let layout = Layout::new(import.size_bytes(), import.chunk_bytes());
    layout.ok_or_else(|| "the arena is too small for the pattern".to_owned())
}

fn ended(import: &Import) -> u64 {
    match import.end() {
        None => 0,
        Some(End::Closed) => 1,
        Some(End::Died) => 2,
        Some(End::Gone) => 3,
        Some(End::Removed) => 4,
    }
}

fn milliseconds(milliseconds: u32) -> Duration {
    Duration::from_millis(milliseconds.into())
}

fn unknown(name: &str) -> String {
    format!("nothing attached under {name}")
}
