//! spectrum: follows an arena and computes its energy spectrum, live.
//!
//! The analytics side of the standard demonstration: attaches what `snap-mini`
//! publishes, zero-copy, while it computes on. From each snapshot it derives
//! the spectrum (per group the sum over cells of flux × cell volume) and checks
//! that the snapshot is whole: checksum and spectrum must be those that the
//! producer stored beside the flux in the same snapshot.
//!
//! | module     | what it holds                                          |
//! |------------|--------------------------------------------------------|
//! | `analysis` | spectrum, checksum, comparison: pure functions         |
//! | `reading`  | one snapshot: its variables found, its analysis        |
//! | `output`   | a table, JSON lines or CSV                             |
//! | `follow`   | the loop over snapshots                                |
//!
//! Exit codes: 0 no snapshot was torn, 1 one was or something failed, 2 wrong
//! usage, 3 the name never appeared, 7 no snapshot came in time.

mod analysis;
mod follow;
mod output;
mod reading;

use clap::{Parser, ValueEnum};
use output::Format;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Energy spectrum of each snapshot of an arena, checked against its producer.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  spectrum snap/flux
  spectrum snap/flux --policy every --json
  spectrum snap/flux --steps 10 --csv > spectrum.csv

Exit codes: 0 no snapshot was torn, 1 one was or something failed,
2 wrong usage, 3 the name never appeared, 7 no snapshot came in time."
)]
struct Arguments {
    /// Name of the arena
    name: String,
    /// Which snapshots: every one while we keep up, or the latest each time
    #[arg(long, value_enum, default_value = "every")]
    policy: PolicyArgument,
    /// Seconds to wait for the name, and for each snapshot
    #[arg(long, default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// Stop after this many snapshots
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// One line of comma-separated values per snapshot
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// One line of JSON per snapshot, one for the summary
    #[arg(long)]
    json: bool,
    /// The broker's socket [default: in the run directory]
    #[arg(long, env = "XEMEM_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyArgument {
    Every,
    Latest,
}

/// Seconds as typed, fractions allowed, up to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0 to 86400 is wanted".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let request = follow::Request {
        name: arguments.name,
        policy: match arguments.policy {
            PolicyArgument::Every => xemem_host::Policy::Every,
            PolicyArgument::Latest => xemem_host::Policy::Latest,
        },
        timeout: arguments.timeout,
        steps: arguments.steps.unwrap_or(u64::MAX),
        socket: arguments.socket,
    };
    let format = match (arguments.csv, arguments.json) {
        (true, _) => Format::Csv,
        (_, true) => Format::Json,
        _ => Format::Table,
    };
    match follow::follow(&request, format) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for text in ["", "-1", "nan", "inf", "1e9", "3s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
