//! `enclavectl` as a user meets it, on hosts without any enclave: usage
//! errors, exit codes, unknown names, odd things in the run directory.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A run directory of its own, removed at the end of the test.
struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("enclavectl-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn run_dir(&self) -> PathBuf {
        self.0.join("run")
    }

    fn ctl(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_enclavectl"))
            .args(args)
            .env("ENCLAVE_RUNDIR", self.run_dir())
            .env_remove("ENCLAVE_KERNEL")
            .output()
            .unwrap()
    }

    /// Runs, expects the exit code, returns standard error.
    fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.ctl(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{args:?}");
        stderr
    }

    /// Runs, expects success, returns standard output.
    fn succeeds(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes the directory of an enclave whose VMM is dead.
    fn dead(&self, name: &str) -> PathBuf {
        self.succeeds(&["list"]);
        let dir = self.run_dir().join("enclaves").join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("lock"), "").unwrap();
        dir
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn three_lines(stderr: &str) {
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{stderr}");
    assert!(lines[0].starts_with("enclavectl: "), "{stderr}");
    assert!(lines[2].starts_with("  try: "), "{stderr}");
}

#[test]
fn usage_errors_exit_with_2() {
    let host = Host::new();
    for args in [
        &[][..],
        &["fly"],
        &["create"],
        &["create", "a1"],
        &["create", "a1", "--mem", "12MB"],
        &["create", "a1", "--mem", "64M", "--cores", "x"],
        &["create", "a1", "--mem", "64M", "--ring", "1"],
        &["create", "a1", "--mem", "64M", "--export", "relative"],
        &["run", "a1"],
        &["run", "a1", "./program"],
        &["run", "a1", "--env", "=x", "--", "./program"],
        &["destroy"],
        &["destroy", "a1", "--all"],
        &["snap", "read"],
        &["snap", "read", "flux", "--step", "newest"],
        &["snap", "rm"],
        &["snap", "rm", "flux", "--all"],
        &["snap", "diff", "flux", "1"],
        &["snap", "retain", "flux", "0"],
        &["snap", "read", "flux", "--format", "hdf5"],
        &["logs"],
    ] {
        host.fails(args, 2);
    }
}

#[test]
fn values_that_cannot_be_are_usage_errors_in_three_lines() {
    let host = Host::new();
    for (args, word) in [
        (&["create", "../x", "--mem", "64M"][..], "name"),
        (&["create", "a1", "--mem", "1M"], "32 MiB"),
        (&["create", "a1", "--mem", "65M"], "multiple of 2 MiB"),
        (
            &["create", "a1", "--mem", "64M", "--cores", "33"],
            "on 32 at most",
        ),
        (&["create", "a1", "--mem", "64M", "--cores", "0"], "0 cores"),
        (&["inspect", "a/b"], "name"),
    ] {
        let stderr = host.fails(args, 2);
        three_lines(&stderr);
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
}

#[test]
fn unknown_enclaves_are_not_found() {
    let host = Host::new();
    for args in [
        &["inspect", "nobody"][..],
        &["logs", "nobody"],
        &["logs", "-f", "nobody"],
        &["console", "nobody"],
        &["destroy", "nobody"],
    ] {
        let stderr = host.fails(args, 3);
        three_lines(&stderr);
        assert!(stderr.contains("nobody"), "{stderr}");
    }
    host.succeeds(&["destroy", "--ignore-missing", "nobody"]);
    host.succeeds(&["destroy", "--all"]);
}

#[test]
fn run_tells_its_own_failures_from_the_programs() {
    let host = Host::new();
    three_lines(&host.fails(&["run", "nobody", "--", "/bin/true"], 125));
    host.dead("gone");
    let stderr = host.fails(&["run", "gone", "--", "/bin/true"], 125);
    assert!(stderr.contains("dead"), "{stderr}");
}

#[test]
fn a_host_without_enclaves_lists_none() {
    let host = Host::new();
    let text = host.succeeds(&["list"]);
    assert_eq!(
        text,
        "NAME  STATE  CORES  MEM  ARENAS  PROGRAM  UPTIME  REASON\n"
    );
    assert_eq!(host.succeeds(&["list", "-q"]), "");
    let json: serde_json::Value =
        serde_json::from_str(&host.succeeds(&["list", "--json"])).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["enclaves"], serde_json::json!([]));
    let json: serde_json::Value =
        serde_json::from_str(&host.succeeds(&["snap", "ls", "--json"])).unwrap();
    assert_eq!(json["arenas"], serde_json::json!([]));
    let json: serde_json::Value =
        serde_json::from_str(&host.succeeds(&["xemem", "ls", "--json"])).unwrap();
    assert_eq!(json["segments"], serde_json::json!([]));
}

#[test]
fn a_dead_vmm_is_shown_read_and_cleared_away() {
    let host = Host::new();
    let dir = host.dead("a1");
    fs::write(dir.join("console.log.1"), "older\n").unwrap();
    fs::write(dir.join("console.log"), "last words").unwrap();
    fs::write(dir.join("crash"), "it broke\nhere").unwrap();
    let text = host.succeeds(&["list"]);
    assert!(text.contains("a1    dead"), "{text}");
    assert!(text.contains("crashed: it broke"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&host.succeeds(&["inspect", "a1"])).unwrap();
    assert_eq!(json["enclave"]["state"], "dead");
    assert_eq!(json["enclave"]["live"], serde_json::Value::Null);
    assert_eq!(host.succeeds(&["logs", "a1"]), "older\nlast words");
    // The enclave has ended, so following ends too.
    assert_eq!(host.succeeds(&["logs", "-f", "a1"]), "older\nlast words");
    let lines = host.succeeds(&["logs", "--json", "a1"]);
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert_eq!(host.succeeds(&["destroy", "a1"]), "a1\n");
    assert!(!dir.exists());
}

/// A process that holds an enclave's lock as its VMM would; killed when the
/// test ends.
struct Holder(Child);

impl Holder {
    /// Holds the lock of `dir` in a shell that runs `script`.
    fn new(dir: &Path, script: &str) -> Self {
        let mut child = Command::new("flock")
            .args(["--no-fork", "--exclusive"])
            .arg(dir.join("lock"))
            .args(["sh", "-c", &format!("{script}; echo held; exec sleep 1000")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        let record = format!(
            "{{\"pid\":{},\"cores\":[1],\"share_cores\":false,\"mem_bytes\":67108864,\"settled\":true}}",
            child.id()
        );
        // Twice: one alone is one that is being written.
        fs::write(dir.join("lock"), format!("{record}\n{record}\n")).unwrap();
        Self(child)
    }

    /// The signal it died of.
    fn died_of(mut self) -> Option<i32> {
        self.0.wait().unwrap().signal()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_vmm_that_does_not_answer_is_called_unresponsive() {
    let host = Host::new();
    let dir = host.dead("a1");
    let _holder = Holder::new(&dir, "true");
    let _silent = UnixListener::bind(dir.join("control.sock")).unwrap();
    fs::write(dir.join("config.json"), "{}").unwrap();
    let text = host.succeeds(&["list"]);
    assert!(text.contains("a1    unresponsive  1      64M"), "{text}");
    let inspected: serde_json::Value =
        serde_json::from_str(&host.succeeds(&["inspect", "a1"])).unwrap();
    assert_eq!(inspected["enclave"]["state"], "unresponsive");
    let stderr = host.fails(&["run", "a1", "--cwd", "/", "--", "/surely/absent"], 127);
    assert!(stderr.contains("/surely/absent"), "{stderr}");
}

#[test]
fn destroy_asks_first_and_kills_who_does_not_listen() {
    let host = Host::new();
    for (name, script, signal) in [("polite", "true", 15), ("deaf", "trap '' TERM", 9)] {
        let dir = host.dead(name);
        let holder = Holder::new(&dir, script);
        let begin = Instant::now();
        assert_eq!(host.succeeds(&["destroy", name]), format!("{name}\n"));
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(holder.died_of(), Some(signal));
        assert!(!dir.exists());
    }
}

#[test]
fn one_broken_enclave_does_not_hide_the_others() {
    let host = Host::new();
    host.dead("good");
    let bad = host.dead("bad");
    fs::remove_file(bad.join("lock")).unwrap();
    symlink("/etc/passwd", bad.join("lock")).unwrap();
    let text = host.succeeds(&["list"]);
    assert!(text.contains("bad   broken"), "{text}");
    assert!(text.contains("good  dead"), "{text}");
}

#[test]
fn what_is_not_the_enclaves_is_never_removed() {
    let host = Host::new();
    let dir = host.dead("a1");
    fs::write(dir.join("thesis"), "text").unwrap();
    let stderr = host.fails(&["destroy", "a1"], 1);
    three_lines(&stderr);
    assert_eq!(fs::read(dir.join("thesis")).unwrap(), b"text");
}

#[test]
fn files_and_links_in_place_of_directories_are_named() {
    let host = Host::new();
    host.succeeds(&["list"]);
    let enclaves = host.run_dir().join("enclaves");
    fs::write(enclaves.join("filed"), "mine").unwrap();
    symlink("/etc", enclaves.join("linked")).unwrap();
    for name in ["filed", "linked"] {
        for verb in ["inspect", "destroy", "logs"] {
            let stderr = host.fails(&[verb, name], 1);
            three_lines(&stderr);
            assert!(stderr.contains("not a directory"), "{stderr}");
        }
    }
    assert_eq!(fs::read(enclaves.join("filed")).unwrap(), b"mine");
    assert_eq!(host.succeeds(&["list", "-q"]), "");
}

#[test]
fn a_file_in_place_of_the_control_socket_is_kept_and_named() {
    let host = Host::new();
    let dir = host.dead("a1");
    fs::write(dir.join("control.sock"), "mine").unwrap();
    // Somebody holds the lock, so the enclave counts as alive.
    let lock = fs::File::open(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let stderr = host.fails(&["run", "a1", "--", "/bin/true"], 125);
    assert!(stderr.contains("not a socket"), "{stderr}");
    let text = host.succeeds(&["list"]);
    assert!(text.contains("creating"), "{text}");
    assert_eq!(fs::read(dir.join("control.sock")).unwrap(), b"mine");
}

#[test]
fn a_run_directory_that_is_none_is_an_error_of_its_own() {
    let host = Host::new();
    fs::write(host.run_dir(), "a file").unwrap();
    for args in [&["list"][..], &["destroy", "a1"], &["logs", "a1"]] {
        three_lines(&host.fails(args, 1));
    }
    fs::remove_file(host.run_dir()).unwrap();
    fs::create_dir(host.run_dir()).unwrap();
    fs::set_permissions(host.run_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let stderr = host.fails(&["list"], 5);
    assert!(stderr.contains("writable"), "{stderr}");
}

#[test]
fn a_missing_kernel_names_the_command_that_builds_it() {
    let host = Host::new();
    let missing = host.0.join("no-kernel");
    let stderr = host.fails(
        &[
            "create",
            "a1",
            "--mem",
            "64M",
            "--kernel",
            missing.to_str().unwrap(),
        ],
        3,
    );
    three_lines(&stderr);
    assert!(stderr.contains("cargo kernel"), "{stderr}");
}

#[test]
fn a_missing_export_is_not_found_before_anything_starts() {
    let host = Host::new();
    let kernel = host.0.join("kernel");
    fs::write(&kernel, "x").unwrap();
    let kernel = kernel.to_str().unwrap();
    let export = format!("{}/absent", host.0.display());
    let args = [
        "create", "a1", "--mem", "64M", "--kernel", kernel, "--export", &export,
    ];
    let stderr = host.fails(&args, 3);
    assert!(stderr.contains("absent"), "{stderr}");
    assert!(!host.run_dir().exists());
}

#[test]
fn snapshots_without_a_broker_are_not_found() {
    let host = Host::new();
    three_lines(&host.fails(&["snap", "read", "flux"], 3));
    three_lines(&host.fails(&["broker", "status"], 3));
    three_lines(&host.fails(&["snap", "read", "flux", "--format", "npy", "--json"], 2));
}

#[test]
fn programs_that_cannot_run_have_the_codes_of_shells() {
    let host = Host::new();
    let dir = host.dead("a1");
    let lock = fs::File::open(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let plain = host.0.join("plain");
    fs::write(&plain, "text").unwrap();
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    let run = |program: &Path, code| {
        let stderr = host.fails(&["run", "a1", "--", program.to_str().unwrap()], code);
        three_lines(&stderr);
    };
    run(&host.0.join("absent"), 127);
    run(Path::new("surely-not-in-the-path"), 127);
    run(&plain, 126);
    run(&host.0, 126);
}

#[test]
fn version_and_help_speak_of_numbers_and_codes() {
    let host = Host::new();
    let json: serde_json::Value =
        serde_json::from_str(&host.succeeds(&["version", "--json"])).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["version"]["control_protocol"], 1);
    let help = host.succeeds(&["--help"]);
    for word in ["Examples:", "Exit codes:", "126", "ENCLAVE_RUNDIR"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn doctor_reports_every_check_as_json() {
    let host = Host::new();
    let output = host.ctl(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.len() >= 12, "{checks:?}");
    let failed = checks.iter().any(|check| check["verdict"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(failed)));
}
