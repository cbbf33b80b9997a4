//! Requests that cannot be met: refused with the documented code and a reason,
//! and what was there before is untouched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;

use crate::stage::{Program, Stage, eventually, light};
use crate::support::BUSYBOX;

#[test]
fn more_than_the_host_has_is_refused_with_figures() {
    let stage = Stage::empty();
    let create = |args: &[&'static str]| {
        let mut all = vec![
            "create",
            "big",
            "--no-prefault",
            "--share-cores",
            "--backing",
            "small",
        ];
        all.extend(args);
        all
    };
    for (args, code, word) in [
        (&["--mem", "128M", "--cores", "4000"][..], 2, "4000 cores"),
        (&["--mem", "128M", "--cores", "4095-4095"], 6, "4095"),
        (&["--mem", "60G"], 6, "available"),
        (&["--mem", "16777216T"], 2, "size"),
        (&["--mem", "16777215T"], 2, "63 GiB"),
        (&["--mem", "1T"], 2, "63 GiB"),
        (&["--mem", "0"], 2, "32 MiB"),
        (&["--mem", "18446744073709551615"], 2, "2 MiB"),
        (&["--mem", "-1"], 2, ""),
        (&["--mem", "128M", "--cores", "0-4096"], 2, "cores"),
        (&["--mem", "128M", "--cores", "1-0"], 2, "cores"),
        (&["--mem", "128M", "--turbo"], 2, "--turbo"),
        (&["--mem", "128M", "--mem", "256M"], 2, "--mem"),
    ] {
        let ended = stage.ended(&create(args));
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(stage.succeeds(&["list", "--quiet"]), "");
}

#[test]
fn a_core_that_is_taken_is_refused_until_it_is_given_back() {
    let stage = Stage::empty();
    let on_core_0 = |name: &'static str| {
        let size = ["--mem", "128M", "--no-prefault", "--backing", "small"];
        let mut args = vec!["create", name, "--cores", "0-0"];
        args.extend(size);
        args
    };
    stage.succeeds(&on_core_0("owner"));
    let said = stage.refused(&on_core_0("second"), 4);
    assert!(said.contains("owner"), "{said}");
    let mut sharing = on_core_0("third");
    sharing.push("--share-cores");
    let said = stage.refused(&sharing, 4);
    assert!(said.contains("owner"), "{said}");
    stage.still_runs("owner");
    stage.destroy("owner");
    stage.succeeds(&on_core_0("second"));
}

#[test]
fn a_name_in_use_is_refused_and_its_owner_goes_on() {
    let stage = Stage::new();
    let before = stage.vmm("t");
    let said = stage.refused(&light(&["create", "t"]), 4);
    assert!(said.contains('t'), "{said}");
    assert_eq!(stage.vmm("t"), before);
    stage.still_runs("t");
}

#[test]
fn things_in_the_place_of_a_socket_or_directory_are_named() {
    for (place, is_directory) in [
        ("run", false),
        ("run/enclaves", false),
        ("run/ledger", false),
        ("run/enclaves/t", false),
        ("run/xemem.sock", false),
        ("run/xemem.sock", true),
        ("run/xemem.lock", true),
        ("run/enclaves/t/control.sock", true),
    ] {
        let stage = Stage::empty();
        let path = stage.home.join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for directory in path.ancestors().skip(1) {
            if directory.starts_with(&stage.home) {
                let private = fs::Permissions::from_mode(0o700);
                fs::set_permissions(directory, private).unwrap();
            }
        }
        if is_directory {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, "in the way").unwrap();
        }
        let ended = stage.ended(&light(&["create", "t"]));
        assert!(ended.code != 0, "{place}");
        // The broker says it in its log, which is named.
        let log = fs::read_to_string(stage.run_dir().join("xemem.log")).unwrap_or_default();
        let said = format!("{}{log}", ended.stderr);
        assert!(said.contains(path.to_str().unwrap()), "{place}: {said}");
        assert!(path.exists(), "{place} was removed");
        if is_directory {
            fs::remove_dir(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        stage.create("t");
        stage.still_runs("t");
    }
}

#[test]
fn a_kernel_image_that_is_none_is_refused_and_leaves_nothing() {
    let stage = Stage::empty();
    let noise = stage.home.join("noise");
    fs::write(&noise, [0x5a; 70_000]).unwrap();
    for image in [noise.as_path(), Path::new(BUSYBOX), Path::new("/dev/null")] {
        let mut args = light(&["create", "t"]);
        args.extend(["--kernel", image.to_str().unwrap()]);
        let ended = stage.ended(&args);
        assert_eq!(ended.code, 1, "{}: {}", image.display(), ended.stderr);
        assert_eq!(stage.succeeds(&["list", "--quiet"]), "");
    }
    stage.create("t");
}

#[test]
fn running_where_nothing_can_run_is_refused() {
    let stage = Stage::new();
    let busybox = Path::new(BUSYBOX);
    let ended = stage.run("nobody", busybox, &["true"]);
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("nobody"), "{}", ended.stderr);
    let mut first = stage.start("t", busybox, &["cat"]);
    first.send("here\n");
    assert_eq!(first.next().as_deref(), Some("here"));
    // A second one runs beside it.
    let ended = stage.run("t", busybox, &["true"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    first.send("still here\n");
    assert_eq!(first.next().as_deref(), Some("still here"));
    drop(first.stdin.take());
    assert_eq!(first.code(), 0);
    stage.still_runs("t");
}

#[test]
fn arguments_that_do_not_fit_are_refused_by_their_size() {
    let stage = Stage::new();
    let long = "x".repeat(100_000);
    let many = [long.as_str(); 12];
    let ended = stage.run("t", Path::new(BUSYBOX), &[&["true"], &many[..]].concat());
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("bytes"), "{}", ended.stderr);
    let ended = stage.run("t", Path::new(BUSYBOX), &["echo", "-n", &long]);
    assert_eq!((ended.code, ended.stdout), (0, long));
    let mut empty = vec![""; 5000];
    empty[0] = "true";
    let ended = stage.run("t", Path::new(BUSYBOX), &empty);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    stage.still_runs("t");
}

#[test]
fn of_many_who_want_a_name_at_once_one_gets_it() {
    let stage = Stage::empty();
    let mut tries: Vec<Program> = (0..6)
        .map(|_| Program::start(stage.ctl(&light(&["create", "t"]))))
        .collect();
    let mut codes: Vec<i32> = tries.iter_mut().map(Program::code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 4, 4, 4, 4, 4]);
    stage.still_runs("t");
}

#[test]
fn a_create_that_is_killed_leaves_a_whole_enclave_or_none() {
    let stage = Stage::empty();
    let directory = stage.run_dir().join("enclaves/t");
    for _ in 0..8 {
        let create = Program::start(stage.ctl(&light(&["create", "t"])));
        eventually("its VMM has the name", || directory.exists());
        create.signal(Signal::KILL);
        let settled = || {
            let list = stage.succeeds(&["list", "--json"]);
            !list.contains("creating") && !list.contains("booting")
        };
        eventually("it is decided", settled);
        // A VMM that nobody waited for answers no more, listed as it may still be.
        if stage.ended(&["inspect", "t"]).code == 0 {
            stage.still_runs("t");
        }
        stage.succeeds(&["destroy", "t", "--ignore-missing"]);
    }
}
