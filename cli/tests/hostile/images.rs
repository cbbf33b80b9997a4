//! Files that are no program for an enclave: refused with a reason, and the
//! enclave runs the next good one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::stage::Stage;
use crate::support::BUSYBOX;

/// Offsets in the header of a 64-bit ELF file (elf(5)).
const E_MACHINE: usize = 18;
const E_ENTRY: usize = 24;
const E_PHOFF: usize = 32;
const E_PHNUM: usize = 56;
/// Bytes of a program header, and offsets in it.
const PHENT: usize = 56;
const P_OFFSET: usize = 8;
const P_VADDR: usize = 16;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;
const PT_LOAD: u32 = 1;

/// An executable file with `bytes`.
fn file(stage: &Stage, name: &str, bytes: &[u8]) -> PathBuf {
    let path = stage.home.join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Where the headers of the loaded segments stand in the file.
fn loaded(bytes: &[u8]) -> Vec<usize> {
    let first = usize::try_from(word(bytes, E_PHOFF)).unwrap();
    let count = usize::from(bytes[E_PHNUM]);
    (0..count)
        .map(|n| first + n * PHENT)
        .filter(|&at| bytes[at..at + 4] == PT_LOAD.to_le_bytes())
        .collect()
}

/// Tries `path` as a program: the exit code and what was said.
fn tried(stage: &Stage, path: &Path) -> (i32, String) {
    let ended = stage.run("t", path, &[]);
    assert_eq!(ended.stdout, "");
    assert!(
        ended.stderr.lines().count() <= 3,
        "{}: {}",
        path.display(),
        ended.stderr
    );
    (ended.code, ended.stderr)
}

#[track_caller]
fn refused(stage: &Stage, path: &Path, code: i32, word: &str) {
    let (got, said) = tried(stage, path);
    assert_eq!(got, code, "{}: {said}", path.display());
    assert!(said.contains(word), "{}: {said}", path.display());
}

#[test]
fn files_that_are_no_static_program_are_refused_with_a_reason() {
    let stage = Stage::new();
    let good = fs::read(BUSYBOX).unwrap();
    refused(&stage, Path::new("/bin/ls"), 126, "dynamic");
    refused(&stage, &file(&stage, "empty", b""), 126, "cut off");
    let script = file(&stage, "script", b"#!/bin/sh\nexit 0\n");
    refused(&stage, &script, 126, "ELF");
    refused(&stage, &file(&stage, "magic", b"\x7fELF"), 126, "cut off");
    let object = file(&stage, "noise", &[0x5a; 9000]);
    refused(&stage, &object, 126, "ELF");
    refused(&stage, &stage.home, 126, "regular file");
    refused(&stage, Path::new("/dev/null"), 126, "regular file");
    refused(&stage, &stage.home.join("absent"), 127, "No such file");
    let plain = stage.home.join("plain");
    fs::write(&plain, &good).unwrap();
    refused(&stage, &plain, 126, "not executable");
    stage.still_runs("t");
}

#[test]
fn programs_with_broken_headers_are_refused_with_a_reason() {
    let stage = Stage::new();
    let good = fs::read(BUSYBOX).unwrap();
    let loads = loaded(&good);
    let patched = |name: &str, patch: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        patch(&mut bytes);
        file(&stage, name, &bytes)
    };
    let arm = patched("arm", &|bytes| bytes[E_MACHINE] = 183);
    refused(&stage, &arm, 126, "AArch64");
    let cut = patched("cut", &|bytes| bytes.truncate(bytes.len() / 2));
    refused(&stage, &cut, 126, "file");
    let head = patched("head", &|bytes| bytes.truncate(100));
    refused(&stage, &head, 126, "header");
    let overlapping = patched("overlapping", &|bytes| {
        let first = word(bytes, loads[0] + P_VADDR);
        put(bytes, loads[1] + P_VADDR, first);
    });
    refused(&stage, &overlapping, 126, "");
    let wrapping = patched("wrapping", &|bytes| {
        put(bytes, loads[1] + P_MEMSZ, u64::MAX - 4095);
    });
    refused(&stage, &wrapping, 126, "");
    let kernel_half = patched("kernel-half", &|bytes| {
        put(bytes, loads[0] + P_VADDR, 0xffff_ffff_8020_0000);
    });
    refused(&stage, &kernel_half, 126, "");
    let beyond = patched("beyond", &|bytes| put(bytes, loads[1] + P_OFFSET, 1 << 62));
    refused(&stage, &beyond, 126, "");
    let shrinking = patched("shrinking", &|bytes| {
        let larger = word(bytes, loads[1] + P_FILESZ) + 1;
        put(bytes, loads[1] + P_FILESZ, larger);
        put(bytes, loads[1] + P_MEMSZ, larger - 1);
    });
    refused(&stage, &shrinking, 126, "");
    let huge = patched("huge", &|bytes| put(bytes, loads[1] + P_MEMSZ, 1 << 40));
    refused(&stage, &huge, 126, "");
    let headers = patched("headers", &|bytes| {
        bytes[E_PHNUM..E_PHNUM + 2].copy_from_slice(&[0xff, 0xff]);
    });
    refused(&stage, &headers, 126, "");
    stage.still_runs("t");
}

#[test]
fn an_entry_point_outside_the_program_ends_the_program_only() {
    let stage = Stage::new();
    let good = fs::read(BUSYBOX).unwrap();
    for (name, entry) in [
        ("null", 0),
        ("kernel", 0xffff_ffff_8020_0000),
        ("noncanonical", 1 << 47),
    ] {
        let mut bytes = good.clone();
        put(&mut bytes, E_ENTRY, entry);
        let (code, said) = tried(&stage, &file(&stage, name, &bytes));
        assert!(code == 126 || code == 128 + 11, "{name}: {code}: {said}");
        stage.still_runs("t");
    }
}
