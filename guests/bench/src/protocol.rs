//! Requests and replies, one line each.
//!
//! ```text
//! host   publish big 10 4
//! guest  ok 61200 58040 …          numbers, their meaning by request
//! guest  error arena big: no such arena
//! ```
//!
//! Written and read by both sides with the same functions. Names contain no
//! white space; nothing here trusts the other side to send a whole line.

use std::fmt;
use std::str::FromStr;

/// What the host asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Makes an arena. → `{bytes of a host page behind it}`
    Make {
        /// Its name.
        name: String,
        /// Payload bytes.
        bytes: u64,
        /// Bytes of a chunk.
        chunk_bytes: u64,
        /// Banks.
        banks: u32,
        /// What a publish does when readers hold all banks.
        full: Full,
        /// Newest generations to keep; 1 if the line does not say.
        retain: u32,
    },
    /// Writes the next step's number to the first word and publishes it. →
    /// generation
    Step {
        /// Its name.
        name: String,
    },
    /// Writes the next number to the first word of several arenas and publishes
    /// them as one step. → that number
    StepSet {
        /// Their names.
        names: Vec<String>,
        /// The number.
        step: u64,
    },
    /// Waits for readers. → readers attached
    WaitReaders {
        /// Its name.
        name: String,
        /// How many.
        readers: u32,
        /// Longest wait in milliseconds; 0 = no limit.
        timeout_ms: u32,
    },
    /// Asks for counters. → newest generation, publishes refused, generations
    /// taken from readers, publishes that waited
    Stats {
        /// Its name.
        name: String,
    },
    /// Ends an arena. → nothing
    End {
        /// Its name.
        name: String,
    },
    /// Writes all of an arena in each of its banks, so that no memory is new
    /// afterwards. → nothing
    Warm {
        /// Its name.
        name: String,
    },
    /// Publishes `count` times, writing to `dirty` chunks before each. →
    /// nanoseconds of each publish
    Publish {
        /// Its name.
        name: String,
        /// Publishes.
        count: u64,
        /// Chunks, spread evenly over the arena.
        dirty: u64,
    },
    /// Publishes, then writes every byte. → nanoseconds of the writing
    RewriteAfterPublish {
        /// Its name.
        name: String,
    },
    /// Writes every byte, then copies the arena to ordinary memory; nothing is
    /// published. → nanoseconds of the writing, of the copy
    RewriteAndCopy {
        /// Its name.
        name: String,
    },
    /// Calls getpid `count` times. → nanoseconds
    GetPid {
        /// Calls.
        count: u64,
    },
    /// Computes without any call. → detours, and nanoseconds of all of them, of
    /// the longest, and of the whole
    Detours {
        /// How long, in milliseconds.
        ms: u64,
    },
    /// Attaches an arena of anybody under its name. → payload bytes, bytes of a
    /// chunk
    Attach {
        /// Its name.
        name: String,
        /// Every generation, not only the newest each time.
        every: bool,
        /// Longest wait for the name in milliseconds.
        timeout_ms: u32,
    },
    /// Waits for the next generation. → 1 generation, step, chunks mapped anew;
    /// first word; or 0 and why the stream ended: 1 closed, 2 died, 3 gone, 4
    /// removed
    Next {
        /// Its name.
        name: String,
        /// Longest wait in milliseconds.
        timeout_ms: u32,
    },
    /// Follows an arena of the checked pattern and checks each generation. →
    /// seen, missed, torn, chunks mapped anew, last generation, end of the
    /// stream as for `next`, 0 if it has not ended
    Follow {
        /// Its name.
        name: String,
        /// Ends with this generation, if the stream does not end before.
        until: u64,
        /// Longest wait for each in milliseconds.
        timeout_ms: u32,
    },
    /// Plays with a program in another enclave: publishes the own arena whenever
    /// the other one has a new generation, `first` without waiting for one. →
    /// rounds; wake-ups
    Rally {
        /// Name of the own arena.
        name: String,
        /// Name of the attached arena.
        other: String,
        /// Whether to begin.
        first: bool,
        /// Generations to publish.
        rounds: u64,
        /// Longest wait for each in milliseconds.
        timeout_ms: u32,
    },
    /// Reads all that was shown last again. → its step, 1 if it is whole, 1 if
    /// the kernel says that it is what was published
    Look {
        /// Its name.
        name: String,
    },
    /// Lets go of what is attached. → nothing
    Detach {
        /// Its name.
        name: String,
    },
    /// Attaches, shows a generation if there is one, lets go, again and again.
    /// → how often a generation was there
    Churn {
        /// Its name.
        name: String,
        /// How often.
        count: u64,
    },
    /// Publishes the checked pattern until `generations` more are out, one
    /// attempt after another. → generations, refused attempts, copy-on-write
    /// faults of the arena, refusals of the arena; both since it was made
    Storm {
        /// Its name.
        name: String,
        /// Generations.
        generations: u64,
        /// Blocks of the pattern rewritten before each attempt.
        touched: u64,
    },
}

/// What a publish does when readers hold all banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It is refused.
    Newest,
    /// The oldest generation goes.
    Oldest,
    /// It waits, at most so many milliseconds; 0 = no limit.
    Block(u32),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("discard-newest 0"),
            Self::Oldest => f.write_str("discard-oldest 0"),
            Self::Block(timeout_ms) => write!(f, "block {timeout_ms}"),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make {
                name,
                bytes,
                chunk_bytes,
                banks,
                full,
                retain,
            } => write!(
                f,
                "make {name} {bytes} {chunk_bytes} {banks} {full} {retain}"
            ),
            Self::Step { name } => write!(f, "step {name}"),
            Self::StepSet { names, step } => write!(f, "step-set {} {step}", names.join(",")),
            Self::WaitReaders {
                name,
                readers,
                timeout_ms,
            } => write!(f, "wait-readers {name} {readers} {timeout_ms}"),
            Self::Stats { name } => write!(f, "stats {name}"),
            Self::End { name } => write!(f, "end {name}"),
            Self::Warm { name } => write!(f, "warm {name}"),
            Self::Publish { name, count, dirty } => write!(f, "publish {name} {count} {dirty}"),
            Self::RewriteAfterPublish { name } => write!(f, "rewrite-after-publish {name}"),
            Self::RewriteAndCopy { name } => write!(f, "rewrite-and-copy {name}"),
            Self::GetPid { count } => write!(f, "getpid {count}"),
            Self::Detours { ms } => write!(f, "detours {ms}"),
            Self::Attach {
                name,
                every,
                timeout_ms,
            } => {
                let policy = if *every { "every" } else { "latest" };
                write!(f, "attach {name} {policy} {timeout_ms}")
            }
            Self::Next { name, timeout_ms } => write!(f, "next {name} {timeout_ms}"),
            Self::Follow {
                name,
                until,
                timeout_ms,
            } => write!(f, "follow {name} {until} {timeout_ms}"),
            Self::Rally {
                name,
                other,
                first,
                rounds,
                timeout_ms,
            } => {
                let place = if *first { "first" } else { "second" };
                write!(f, "rally {name} {other} {place} {rounds} {timeout_ms}")
            }
            Self::Look { name } => write!(f, "look {name}"),
            Self::Detach { name } => write!(f, "detach {name}"),
            Self::Churn { name, count } => write!(f, "churn {name} {count}"),
            Self::Storm {
                name,
                generations,
                touched,
            } => write!(f, "storm {name} {generations} {touched}"),
        }
    }
}

impl FromStr for Request {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = Words(line.split_ascii_whitespace());
        let request = match words.text("a request")?.as_str() {
            "make" => Self::Make {
                name: words.text("a name")?,
                bytes: words.number("bytes")?,
                chunk_bytes: words.number("chunk bytes")?,
                banks: words.small("banks")?,
                full: words.full()?,
                retain: words.small_or(1, "generations to keep")?,
            },
            "step" => Self::Step {
                name: words.text("a name")?,
            },
            "step-set" => Self::StepSet {
                names: words.text("names")?.split(',').map(str::to_owned).collect(),
                step: words.number("a step")?,
            },
            "wait-readers" => Self::WaitReaders {
                name: words.text("a name")?,
                readers: words.small("readers")?,
                timeout_ms: words.small("milliseconds")?,
            },
            "stats" => Self::Stats {
                name: words.text("a name")?,
            },
            "end" => Self::End {
                name: words.text("a name")?,
            },
            "warm" => Self::Warm {
                name: words.text("a name")?,
            },
            "publish" => Self::Publish {
                name: words.text("a name")?,
                count: words.number("a count")?,
                dirty: words.number("dirty chunks")?,
            },
            "rewrite-after-publish" => Self::RewriteAfterPublish {
                name: words.text("a name")?,
            },
            "rewrite-and-copy" => Self::RewriteAndCopy {
                name: words.text("a name")?,
            },
            "getpid" => Self::GetPid {
                count: words.number("a count")?,
            },
            "detours" => Self::Detours {
                ms: words.number("milliseconds")?,
            },
            "storm" => Self::Storm {
                name: words.text("a name")?,
                generations: words.number("generations")?,
                touched: words.number("touched blocks")?,
            },
            other => words.importing(other)?,
        };
        match words.0.next() {
            None => Ok(request),
            Some(more) => Err(format!("{more:?} follows a whole request")),
        }
    }
}

/// The words of a line.
struct Words<'a>(std::str::SplitAsciiWhitespace<'a>);

impl Words<'_> {
    fn text(&mut self, what: &str) -> Result<String, String> {
        let word = self.0.next().map(str::to_owned);
        word.ok_or_else(|| format!("{what} is missing"))
    }

    fn small(&mut self, what: &str) -> Result<u32, String> {
        u32::try_from(self.number(what)?).map_err(|error| format!("{what}: {error}"))
    }

    /// The next number, or `otherwise` at the end of the line.
    fn small_or(&mut self, otherwise: u32, what: &str) -> Result<u32, String> {
        match self.0.clone().next() {
            None => Ok(otherwise),
            Some(_) => self.small(what),
        }
    }

    fn full(&mut self) -> Result<Full, String> {
        let policy = self.text("a policy")?;
        let timeout_ms = self.small("milliseconds")?;
        match policy.as_str() {
            "discard-newest" => Ok(Full::Newest),
            "discard-oldest" => Ok(Full::Oldest),
            "block" => Ok(Full::Block(timeout_ms)),
            other => Err(format!("unknown policy {other:?}")),
        }
    }

    /// The requests about arenas of others.
    fn importing(&mut self, request: &str) -> Result<Request, String> {
        let known = [
            "attach", "next", "follow", "rally", "look", "detach", "churn",
        ];
        if !known.contains(&request) {
            return Err(format!("unknown request {request:?}"));
        }
        let name = self.text("a name")?;
        Ok(match request {
            "attach" => Request::Attach {
                name,
                every: match self.text("a policy")?.as_str() {
                    "every" => true,
                    "latest" => false,
                    other => return Err(format!("unknown policy {other:?}")),
                },
                timeout_ms: self.small("milliseconds")?,
            },
            "next" => Request::Next {
                name,
                timeout_ms: self.small("milliseconds")?,
            },
            "follow" => Request::Follow {
                name,
                until: self.number("a generation")?,
                timeout_ms: self.small("milliseconds")?,
            },
            "rally" => Request::Rally {
                name,
                other: self.text("another name")?,
                first: match self.text("first or second")?.as_str() {
                    "first" => true,
                    "second" => false,
                    other => return Err(format!("{other:?} is neither first nor second")),
                },
                rounds: self.number("rounds")?,
                timeout_ms: self.small("milliseconds")?,
            },
            "look" => Request::Look { name },
            "detach" => Request::Detach { name },
            _ => Request::Churn {
                name,
                count: self.number("a count")?,
            },
        })
    }

    fn number(&mut self, what: &str) -> Result<u64, String> {
        let word = self.text(what)?;
        word.parse()
            .map_err(|_| format!("{what}: {word:?} is no number"))
    }
}

/// The line that answers a request.
#[must_use]
pub fn reply(outcome: &Result<Vec<u64>, String>) -> String {
    match outcome {
        Ok(numbers) => numbers
            .iter()
            .fold("ok".to_owned(), |line, n| format!("{line} {n}")),
        Err(why) => format!("error {}", why.replace('\n', "; ")),
    }
}

/// The numbers in a reply.
///
/// # Errors
/// What the guest says went wrong, or that the line is no reply.
pub fn parse_reply(line: &str) -> Result<Vec<u64>, String> {
    let line = line.trim_end();
    if let Some(why) = line.strip_prefix("error ") {
        return Err(why.to_owned());
    }
    let numbers = line
        .strip_prefix("ok")
        .map(|rest| rest.split_ascii_whitespace().map(str::parse).collect());
    match numbers {
        Some(Ok(numbers)) => Ok(numbers),
        _ => Err(format!("no reply: {line:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_their_line() {
        let name = || "big".to_owned();
        for request in [
            Request::Make {
                name: name(),
                bytes: 1 << 28,
                chunk_bytes: 4096,
                banks: 2,
                full: Full::Block(30),
                retain: 1,
            },
            Request::Make {
                name: name(),
                bytes: 4096,
                chunk_bytes: 4096,
                banks: 2,
                full: Full::Oldest,
                retain: 2,
            },
            Request::Step { name: name() },
            Request::StepSet {
                names: vec![name(), "small".to_owned()],
                step: 7,
            },
            Request::WaitReaders {
                name: name(),
                readers: 2,
                timeout_ms: 0,
            },
            Request::Stats { name: name() },
            Request::End { name: name() },
            Request::Warm { name: name() },
            Request::Publish {
                name: name(),
                count: 10,
                dirty: 4,
            },
            Request::RewriteAfterPublish { name: name() },
            Request::RewriteAndCopy { name: name() },
            Request::GetPid { count: 1000 },
            Request::Detours { ms: 1000 },
            Request::Attach {
                name: name(),
                every: true,
                timeout_ms: 9,
            },
            Request::Attach {
                name: name(),
                every: false,
                timeout_ms: 0,
            },
            Request::Next {
                name: name(),
                timeout_ms: 9,
            },
            Request::Follow {
                name: name(),
                until: 300,
                timeout_ms: 9,
            },
            Request::Rally {
                name: name(),
                other: name(),
                first: true,
                rounds: 10,
                timeout_ms: 9,
            },
            Request::Rally {
                name: name(),
                other: name(),
                first: false,
                rounds: 0,
                timeout_ms: 0,
            },
            Request::Look { name: name() },
            Request::Detach { name: name() },
            Request::Churn {
                name: name(),
                count: 100,
            },
            Request::Storm {
                name: name(),
                generations: 1000,
                touched: 3,
            },
        ] {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
    }

    #[test]
    fn short_long_and_unknown_lines_are_refused() {
        for line in [
            "",
            "explode",
            "publish big 10",
            "publish big ten 4",
            "end big big",
            "make a 1 1 99999999999",
            "make a 1 1 2",
            "make a 1 1 2 sometimes 0",
            "make a 1 1 2 block 0 many",
            "wait-readers a -1 0",
            "attach a 0",
            "attach a sometimes 0",
            "follow a 1",
            "detach",
        ] {
            assert!(line.parse::<Request>().is_err(), "{line:?}");
        }
    }

    #[test]
    fn replies_survive_their_line() {
        for outcome in [
            Ok(vec![]),
            Ok(vec![1, u64::MAX]),
            Err("arena big: no such arena".to_owned()),
        ] {
            assert_eq!(parse_reply(&reply(&outcome)), outcome);
        }
        assert_eq!(
            parse_reply(&reply(&Err("a\nb".to_owned()))),
            Err("a; b".to_owned())
        );
        assert!(parse_reply("ok 1 x").is_err());
        assert!(parse_reply("").is_err());
    }
}
