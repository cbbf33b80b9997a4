//! The command line with what a derive cannot say: examples for every verb, and
//! names that exist right now where a shell completes one.
//!
//! [`command`] is what `main` parses with, what shells complete from and what
//! the manual pages are made of, so none of them can differ. Every example is
//! parsed by a test.

use clap::{Command, CommandFactory, Id};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};

use crate::{Cli, locate};

/// Examples by verb.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "create",
        &[
            "enclavectl create a1 --cores 1 --mem 512M",
            "enclavectl create sim --cores 2,4-5 --mem 4G --export /data=/data:rw",
            "enclavectl create -f sim.toml --dry-run",
            "enclavectl create t --mem 128M --share-cores --no-prefault --timeline",
        ],
    ),
    (
        "init",
        &["enclavectl init", "enclavectl init sim -o sim.toml"],
    ),
    ("check", &["enclavectl check sim.toml"]),
    (
        "part ls",
        &["enclavectl part ls", "enclavectl part ls --json"],
    ),
    (
        "run",
        &[
            "enclavectl run a1 -- ./snap_mini --steps 100",
            "enclavectl run a1 --limit-mem 64M -- ./analysis",
            "enclavectl run a1 --detach -- ./snap_mini --steps 100000",
            "enclavectl run a1 --timeline -- ./snap_mini --steps 1",
            "enclavectl run a1 --env OMP_NUM_THREADS=1 -- ./solver /data/input > out.txt",
        ],
    ),
    ("list", &["enclavectl list", "enclavectl list --json"]),
    ("ps", &["enclavectl ps a1", "enclavectl ps a1 --json"]),
    (
        "kill",
        &["enclavectl kill a1", "enclavectl kill a1:2 --signal USR1"],
    ),
    ("inspect", &["enclavectl inspect a1"]),
    (
        "stats",
        &[
            "enclavectl stats",
            "enclavectl stats a1 --every 1 --json",
            "enclavectl stats --format openmetrics",
        ],
    ),
    (
        "top",
        &["enclavectl top", "enclavectl top --every 5 --count 1"],
    ),
    (
        "logs",
        &["enclavectl logs -f a1", "enclavectl logs --vmm a1"],
    ),
    ("console", &["enclavectl console a1"]),
    (
        "update",
        &[
            "enclavectl update a1 --add-mem 256M",
            "enclavectl update a1 --remove-mem 128M",
            "enclavectl update a1 --add-cores 1",
            "enclavectl update a1 --remove-cores 1",
        ],
    ),
    ("freeze", &["enclavectl freeze a1"]),
    ("thaw", &["enclavectl thaw a1"]),
    ("reset", &["enclavectl reset a1"]),
    (
        "events",
        &[
            "enclavectl events",
            "enclavectl events --follow --json",
            "enclavectl events a1",
        ],
    ),
    (
        "wait",
        &[
            "enclavectl wait a1 --for idle --timeout 30",
            "enclavectl wait a1 --for gone",
            "enclavectl wait a1 --run 3 --timeout 60",
        ],
    ),
    (
        "debug dump",
        &[
            "enclavectl debug dump a1",
            "enclavectl debug dump a1 --json",
        ],
    ),
    (
        "gdb",
        &[
            "enclavectl gdb a1",
            "enclavectl gdb a1 --listen 127.0.0.1:1234",
        ],
    ),
    (
        "snap ls",
        &["enclavectl snap ls", "enclavectl snap ls flux --json"],
    ),
    (
        "snap read",
        &[
            "enclavectl snap read flux",
            "enclavectl snap read flux --var flux --format npy -o flux.npy",
        ],
    ),
    ("snap diff", &["enclavectl snap diff flux 3 7"]),
    ("snap pool", &["enclavectl snap pool flux"]),
    ("snap retain", &["enclavectl snap retain flux 3"]),
    (
        "snap schema",
        &[
            "enclavectl snap schema flux",
            "enclavectl snap schema flux --format conduit",
        ],
    ),
    (
        "snap rm",
        &["enclavectl snap rm flux", "enclavectl snap rm --all"],
    ),
    ("xemem ls", &["enclavectl xemem ls --json"]),
    ("doctor", &["enclavectl doctor", "enclavectl doctor --json"]),
    ("selftest", &["enclavectl selftest -o report.txt"]),
    (
        "destroy",
        &["enclavectl destroy a1", "enclavectl destroy --all"],
    ),
    ("broker status", &["enclavectl broker status"]),
    ("broker stop", &["enclavectl broker stop"]),
    (
        "completion",
        &[
            "enclavectl completion bash > ~/.local/share/bash-completion/completions/enclavectl",
            "enclavectl completion zsh > ~/.zfunc/_enclavectl",
        ],
    ),
    ("man", &["enclavectl man /usr/local/share/man/man1"]),
    ("version", &["enclavectl version --json"]),
];

/// Arguments that are the name of an enclave, by verb.
const ENCLAVES: &[(&str, &str)] = &[
    ("run", "name"),
    ("ps", "name"),
    ("inspect", "name"),
    ("stats", "name"),
    ("logs", "name"),
    ("console", "name"),
    ("events", "name"),
    ("wait", "name"),
    ("debug dump", "name"),
    ("update", "name"),
    ("freeze", "name"),
    ("thaw", "name"),
    ("reset", "name"),
    ("gdb", "name"),
    ("destroy", "names"),
];

/// Arguments that are the name of an arena, by verb.
const ARENAS: &[&str] = &["ls", "read", "diff", "pool", "retain", "schema", "rm"];

/// The whole command line.
pub(crate) fn command() -> Command {
    let mut command = Cli::command();
    for (path, examples) in EXAMPLES {
        let text = format!("Examples:\n  {}", examples.join("\n  "));
        command = at(command, path, |verb| verb.after_help(text));
    }
    for &(verb, argument) in ENCLAVES {
        command = at(command, verb, |verb| {
            complete(verb, argument, ArgValueCandidates::new(enclaves))
        });
    }
    command.mut_subcommand("snap", |snap| {
        ARENAS.iter().fold(snap, |snap, verb| {
            snap.mut_subcommand(verb, |verb| {
                complete(verb, "name", ArgValueCandidates::new(arenas))
            })
        })
    })
}

/// Has `argument` of `verb` completed from `candidates`. clap moves an argument
/// that is changed to the end, so all positional ones are, in their order.
fn complete(verb: Command, argument: &str, candidates: ArgValueCandidates) -> Command {
    let positional: Vec<Id> = verb
        .get_positionals()
        .map(|it| it.get_id().clone())
        .collect();
    positional.into_iter().fold(verb, |verb, id| {
        let is_meant = id == argument;
        let candidates = candidates.clone();
        verb.mut_arg(id, |it| if is_meant { it.add(candidates) } else { it })
    })
}

/// Applies `change` to the verb at `path`, its words apart by spaces.
fn at(command: Command, path: &str, change: impl FnOnce(Command) -> Command) -> Command {
    match path.split_once(' ') {
        None => command.mut_subcommand(path, change),
        Some((first, rest)) => command.mut_subcommand(first, |verb| at(verb, rest, change)),
    }
}

/// The enclaves that are there. A shell that completes wants no complaints.
fn enclaves() -> Vec<CompletionCandidate> {
    let names = locate::run_dir().and_then(|run| run.names());
    let names = names.unwrap_or_default().into_iter();
    names.map(CompletionCandidate::new).collect()
}

/// The arenas that can be read now.
fn arenas() -> Vec<CompletionCandidate> {
    let segments = crate::cmd::xemem::segments("complete a name").unwrap_or_default();
    let mut names: Vec<String> = segments
        .into_iter()
        .map(|segment| segment.name)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verbs without verbs below them, by path.
    fn leaves(command: &Command, path: &str) -> Vec<String> {
        let below: Vec<&Command> = command.get_subcommands().collect();
        if below.is_empty() {
            return vec![path.trim().to_owned()];
        }
        below
            .into_iter()
            .filter(|verb| verb.get_name() != "help")
            .flat_map(|verb| leaves(verb, &format!("{path} {}", verb.get_name())))
            .collect()
    }

    #[test]
    fn every_verb_has_examples_and_every_example_a_verb() {
        let verbs = leaves(&command(), "");
        let with: Vec<&str> = EXAMPLES.iter().map(|(path, _)| *path).collect();
        for verb in &verbs {
            assert!(with.contains(&verb.as_str()), "{verb} has no example");
        }
        assert_eq!(with.len(), verbs.len());
    }

    #[test]
    fn every_example_is_a_command_line_of_its_verb() {
        let of_main = crate::EXAMPLES.lines().skip(1).map(|line| ("", line));
        let of_verbs = EXAMPLES
            .iter()
            .flat_map(|(path, examples)| examples.iter().map(|line| (*path, *line)));
        for (path, line) in of_main.chain(of_verbs) {
            let line = line.split(" > ").next().unwrap_or_default().trim();
            assert!(line.starts_with(&format!("enclavectl {path}")), "{line}");
            let parsed = command().try_get_matches_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    /// Command lines of a unit, with what systemd would put in.
    fn unit_lines(unit: &str) -> Vec<String> {
        let lines = unit.lines().filter(|line| line.starts_with("Exec"));
        let commands = lines.filter_map(|line| line.split_once("=/usr/bin/"));
        commands
            .map(|(_, command)| command.replace("%i", "a1"))
            .collect()
    }

    #[test]
    fn units_call_what_there_is() {
        let lines = unit_lines(include_str!("../../ci/systemd/enclave@.service"));
        assert_eq!(lines.len(), 2);
        for line in lines {
            let parsed = command().try_get_matches_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
        let broker = unit_lines(include_str!("../../ci/systemd/xemem-broker.service"));
        assert!(
            broker[0].starts_with("xemem-broker --socket "),
            "{broker:?}"
        );
        // The broker itself becomes another user, once it has lock and socket.
        let unit = include_str!("../../ci/systemd/xemem-broker.service");
        assert!(!unit.lines().any(|line| line.starts_with("User=")));
    }
}
