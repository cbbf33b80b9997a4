//! The command line.
//!
//! Parsed by hand: the program is a guest and stays small. Every option takes
//! its value as the next argument or after `=`.

use crate::failure::Failure;
use xasm::Chunk;
use xasm::arena::DEFAULT_BANKS;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Discrete-ordinates transport proxy that publishes its flux each time step.

Examples:
  snap-mini                                  the built-in demo deck
  snap-mini --input qasnap.inp --json-summary
  snap-mini --input large.inp --no-snapshots

Usage: snap-mini [OPTIONS]

  --input FILE       SNAP namelist (&invar ... /); - reads standard input
  --output FILE      report; - is standard output [default: -]
  --arena NAME       name of the arena [default: snap/flux]
  --chunk 4K|2M      copy-on-write granularity [default: 2M]
  --banks N          versions of a chunk at once, 2 to 16 [default: 4]
  --no-snapshots     keep the arena, publish nothing
  --check-every N    spectrum and checksum every N steps, 0 never [default: 1]
  --pad-bytes SIZE   enlarge the arena by SIZE (K, M, G) [default: 0]
  --json-summary     end with one line of JSON on standard output
  --help             this text

Exit codes: 0 finished, 1 failed, 2 wrong usage.
";

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Print [`HELP`].
    Help,
    /// Solve a problem.
    Run(Options),
}

/// When to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Snapshots {
    /// After each time step, inside an enclave.
    EachStep,
    /// Never.
    Never,
}

/// Whether the JSON line ends the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Summary {
    /// The report only.
    Text,
    /// The report, then one line of JSON.
    Json,
}

/// The options of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Path of the deck; `None` = the built-in demo.
    pub(crate) input: Option<String>,
    /// Path of the report or `-`.
    pub(crate) output: String,
    /// Name of the arena.
    pub(crate) arena: String,
    /// Copy-on-write granularity.
    pub(crate) chunk: Chunk,
    /// Banks of the arena.
    pub(crate) banks: u32,
    /// When to publish.
    pub(crate) snapshots: Snapshots,
    /// Steps between checks; 0 = never.
    pub(crate) check_every: u64,
    /// Bytes the arena is larger than needed.
    pub(crate) pad_bytes: u64,
    /// Whether the JSON line is wanted.
    pub(crate) summary: Summary,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            input: None,
            output: "-".to_owned(),
            arena: "snap/flux".to_owned(),
            chunk: Chunk::Mib2,
            banks: DEFAULT_BANKS,
            snapshots: Snapshots::EachStep,
            check_every: 1,
            pad_bytes: 0,
            summary: Summary::Text,
        }
    }
}

impl Options {
    /// Reads the arguments, program name excluded.
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, Failure> {
        let mut options = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let (name, inline) = match arg.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (arg, None),
            };
            match (name.as_str(), &inline) {
                ("--help" | "-h", None) => return Ok(Command::Help),
                ("--no-snapshots", None) => options.snapshots = Snapshots::Never,
                ("--json-summary", None) => options.summary = Summary::Json,
                (
                    "--input" | "--output" | "--arena" | "--chunk" | "--banks" | "--check-every"
                    | "--pad-bytes",
                    _,
                ) => {
                    let value = inline.or_else(|| args.next()).ok_or_else(|| {
                        Failure::new(format!("option {name}"), "it needs a value")
                    })?;
                    options.set(&name, value)?;
                }
                _ => {
                    return Err(Failure::new(
                        format!("argument '{name}'"),
                        "no such option, or it takes no value",
                    ));
                }
            }
        }
        Ok(Command::Run(options))
    }

    /// Sets an option that has a value.
    fn set(&mut self, name: &str, value: String) -> Result<(), Failure> {
        let refuse = |why: &str| Failure::new(format!("option {name} '{value}'"), why);
        match name {
            "--input" => self.input = Some(value),
            "--output" => self.output = value,
            "--arena" => self.arena = value,
            "--chunk" => {
                self.chunk = size(&value)
                    .and_then(Chunk::from_bytes)
                    .ok_or_else(|| refuse("a chunk is 4K or 2M"))?;
            }
            "--banks" => {
                self.banks = value
                    .parse()
                    .ok()
                    .filter(|banks| (2..=16).contains(banks))
                    .ok_or_else(|| refuse("an arena has 2 to 16 banks"))?;
            }
            "--check-every" => {
                self.check_every = value
                    .parse()
                    .map_err(|_| refuse("a number of steps, 0 for never"))?;
            }
            _ => {
                self.pad_bytes =
                    size(&value).ok_or_else(|| refuse("a size such as 4096, 64K, 32M, 1G"))?;
            }
        }
        Ok(())
    }
}

/// A size with an optional binary suffix K, M or G.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (text.get(..at)?, 10),
        (at, 'M' | 'm') => (text.get(..at)?, 20),
        (at, 'G' | 'g') => (text.get(..at)?, 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, Failure> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn nothing_is_the_demo_with_snapshots() {
        assert_eq!(parse(""), Ok(Command::Run(Options::default())));
        assert_eq!(parse("--banks 3 --help"), Ok(Command::Help));
    }

    #[test]
    fn every_option_is_taken() {
        let line = "--input a.inp --output=- --arena x/y --chunk 4K --banks=6 \
                    --no-snapshots --check-every 0 --pad-bytes 3M --json-summary";
        let expected = Options {
            input: Some("a.inp".to_owned()),
            output: "-".to_owned(),
            arena: "x/y".to_owned(),
            chunk: Chunk::Kib4,
            banks: 6,
            snapshots: Snapshots::Never,
            check_every: 0,
            pad_bytes: 3 << 20,
            summary: Summary::Json,
        };
        assert_eq!(parse(line), Ok(Command::Run(expected)));
    }

    #[test]
    fn wrong_usage_is_named() {
        for line in [
            "--input",
            "--chunk 8K",
            "--banks 1",
            "--banks 17",
            "--banks x",
            "--check-every -1",
            "--pad-bytes 1T",
            "--pad-bytes 99999999999G",
            "--no-snapshots=1",
            "--frobnicate",
            "deck.inp",
            "--pad-bytes é",
        ] {
            let failure = parse(line).unwrap_err().to_string();
            let option = line.split([' ', '=']).next().unwrap();
            assert!(failure.contains(option), "{line}: {failure}");
            assert_eq!(failure.lines().count(), 3, "{failure}");
        }
    }
}
