//! Part files and plans by `enclavectl`: `init`, `check`, `create -f`,
//! `create --dry-run`, `part ls`.
//!
//! The last test needs /dev/kvm and the kernel beside `enclavectl`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "runs no guest programs")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{Ended, enclavectl, finish, require_programs, unique_dir};

/// A run directory with room for part files, removed at the end of the test.
struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        Self(unique_dir("part"))
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.0.join("part.toml");
        fs::write(&path, text).unwrap();
        path
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.0).args(args), b"")
    }

    /// Runs with the part file last, expects the exit code.
    fn with(&self, args: &[&str], file: &Path, code: i32) -> Ended {
        let ended = finish(enclavectl(&self.0).args(args).arg(file), b"");
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        ended
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            self.ctl(arguments);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_wrong_file_is_refused_with_every_place_and_a_way_out() {
    let host = Host::new();
    let file = host.file("name = \"sim\"\ncoers = 1\nmem = \"512MB\"\n");
    let shown = file.display();
    for args in [
        &["check"][..],
        &["create", "-f"],
        &["create", "a1", "--mem", "64M", "-f"],
    ] {
        let stderr = host.with(args, &file, 2).stderr;
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 4, "{stderr}");
        let second = format!("  {shown}:2:1: there is no key \"coers\"; write cores");
        assert_eq!(lines[1], second);
        assert!(
            lines[2]
                .trim_start()
                .starts_with(&format!("{shown}:3:7: size \"512MB\""))
        );
        assert!(lines[2].ends_with("write mem = \"512M\""), "{stderr}");
        let hint = if args[0] == "check" {
            "+2 "
        } else {
            "enclavectl check "
        };
        assert!(
            lines[3].starts_with("  try: ") && lines[3].contains(hint),
            "{stderr}"
        );
    }
    let ended = host.with(&["check", "--json"], &file, 2);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    let problems = document["check"]["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2);
    assert_eq!(
        (&problems[0]["line"], &problems[0]["column"]),
        (&2.into(), &1.into())
    );
}

#[test]
fn files_that_cannot_be_part_files_are_refused() {
    let host = Host::new();
    let none = host.0.join("none.toml");
    host.with(&["check"], &none, 3);
    host.with(&["create", "-f"], &none, 3);
    let file = host.0.join("part.toml");
    fs::write(&file, b"name = \"\xff\"").unwrap();
    let stderr = host.with(&["check"], &file, 2).stderr;
    assert!(
        stderr.contains("part.toml:1:9: this is no UTF-8"),
        "{stderr}"
    );
    fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    let stderr = host.with(&["check"], &file, 2).stderr;
    assert!(stderr.contains("larger than 1 MiB"), "{stderr}");
    let folder = host.0.join("folder");
    fs::create_dir(&folder).unwrap();
    host.with(&["check"], &folder, 1);
    // What a file leaves out has to come from somewhere.
    let empty = host.file("");
    let stderr = host.with(&["check"], &empty, 2).stderr;
    assert!(
        stderr.contains("part.toml:1:1: there is no mem"),
        "{stderr}"
    );
    let stderr = host.with(&["create", "-f"], &empty, 2).stderr;
    assert!(stderr.contains("there is no name in it"), "{stderr}");
    let stderr = host.with(&["create", "a1", "-f"], &empty, 2).stderr;
    assert!(stderr.contains("there is no mem in it"), "{stderr}");
}

#[test]
fn init_writes_a_file_that_is_right_and_replaces_none() {
    let host = Host::new();
    let printed = host.ctl(&["init", "a1"]);
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert!(
        printed.stdout.contains("name = \"a1\""),
        "{}",
        printed.stdout
    );
    let file = host.0.join("new.toml");
    host.with(&["init", "a1", "--output"], &file, 0);
    // Huge pages may have come or gone between the two.
    let is_fact = |line: &&str| !line.starts_with("#   node") && !line.starts_with("mem =");
    let written = fs::read_to_string(&file).unwrap();
    let facts = |text: &str| text.lines().filter(is_fact).count();
    assert_eq!(facts(&written), facts(&printed.stdout));
    host.with(&["check"], &file, 0);
    host.with(&["init", "--output"], &file, 4);
    assert_eq!(fs::read_to_string(&file).unwrap(), written);
    assert_eq!(host.ctl(&["init", "../x"]).code, 2);
}

#[test]
fn a_plan_takes_nothing_and_a_file_makes_what_was_planned() {
    require_programs();
    let host = Host::new();
    let data = host.0.join("data");
    fs::create_dir(&data).unwrap();
    let file = host.file(&format!(
        "name = \"sim\"\nmem = \"96M\"\nbacking = \"small\"\nprefault = false\n\
         share-cores = true\nexport = [\"{}=/data:rw\"]\n",
        data.display()
    ));
    let plan = |args: &[&str]| -> Value {
        let mut all = vec!["create", "--dry-run", "--json"];
        all.extend(args);
        all.push("-f");
        let ended = host.with(&all, &file, 0);
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["plan"].clone()
    };
    let planned = plan(&[]);
    let config = &planned["config"];
    assert_eq!(
        (&config["name"], &config["backing"]),
        (&"sim".into(), &"small".into())
    );
    assert_eq!(config["exports"][0]["guest"], "/data");
    // The command line goes first.
    let other = plan(&["a2", "--mem", "64M", "--backing", "auto"]);
    assert_eq!(other["config"]["name"], "a2");
    assert_eq!(other["config"]["mem_bytes"], 64 << 20);
    // The environment goes between them.
    let with_environment = |args: &[&str]| -> Value {
        let mut command = enclavectl(&host.0);
        command
            .args(["create", "--dry-run", "--json", "-f"])
            .arg(&file);
        command.args(args);
        command.envs([("ENCLAVE_MEM", "160M"), ("ENCLAVE_RING", "3")]);
        let ended = finish(command.env("ENCLAVE_SHARE_CORES", "1"), b"");
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["plan"]["config"].clone()
    };
    let config = with_environment(&[]);
    assert_eq!(
        (&config["mem_bytes"], &config["ring"]),
        (&(160 << 20).into(), &"ring3".into())
    );
    assert_eq!(with_environment(&["--mem", "64M"])["mem_bytes"], 64 << 20);
    let nonsense = finish(
        enclavectl(&host.0)
            .args(["create", "a2"])
            .env("ENCLAVE_MEM", "1MB"),
        b"",
    );
    assert_eq!(nonsense.code, 2, "{}", nonsense.stderr);
    let text = host.with(&["create", "--dry-run", "-f"], &file, 0).stdout;
    assert!(text.contains("96M in 4 KiB pages"), "{text}");
    assert!(text.contains("as /data (rw)"), "{text}");
    let listed = host.ctl(&["list", "--quiet"]);
    assert_eq!(listed.stdout, "", "nothing was taken");

    host.with(&["create", "-f"], &file, 0);
    let listed = host.ctl(&["part", "ls", "--json"]);
    let partition: Value = serde_json::from_str(&listed.stdout).unwrap();
    let partition = &partition["partition"];
    let owner = &partition["enclaves"][0];
    assert_eq!(
        (&owner["enclave"], &owner["cores"]),
        (&"sim".into(), &planned["cores"])
    );
    assert_eq!(
        (&owner["mem_bytes"], &owner["share_cores"]),
        (&(96 << 20).into(), &true.into())
    );
    let core = &owner["cores"][0];
    let mut of_host = partition["nodes"].as_array().unwrap().iter();
    assert!(of_host.all(|node| !node["host_cores"].as_array().unwrap().contains(core)));
    let table = host.ctl(&["part", "ls"]).stdout;
    assert!(
        table.lines().any(|line| line.starts_with("sim ")),
        "{table}"
    );
    // It is there now: neither made nor planned again.
    for args in [&["create", "-f"][..], &["create", "--dry-run", "-f"]] {
        let stderr = host.with(args, &file, 4).stderr;
        assert!(stderr.contains("it exists already"), "{stderr}");
    }
}
