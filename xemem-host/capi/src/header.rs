//! Checks that `include/xemem.h` and the Rust side agree.
//!
//! A C file full of static assertions is written from the Rust types and given
//! to the C compiler: a field that moved, a constant that changed or a header
//! that does not compile fails the test with the compiler's own words.

use crate::snapshot::{XememRange, XememSnapshotAbout, XememVariable};
use crate::stream::{EVERY, LATEST, LIVE, XememGeneration, XememStreamAbout, end_number};
use crate::verbs::{RDONLY, RDWR, XememAddr};
use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;
use xemem_host::EndReason;

/// Appends the assertions for one structure.
macro_rules! layout {
    ($out:ident, $type:ty => $c:literal { $($field:ident),* }) => {
        let size = size_of::<$type>();
        writeln!($out, "_Static_assert(sizeof(struct {}) == {size}, \"size of {}\");", $c, $c)
            .unwrap();
        $(writeln!(
            $out,
            "_Static_assert(offsetof(struct {}, {}) == {}, \"offset of {}.{}\");",
            $c, stringify!($field), offset_of!($type, $field), $c, stringify!($field),
        ).unwrap();)*
    };
}

fn assertions() -> String {
    let mut out = String::from("#include \"xemem.h\"\n");
    layout!(out, XememGeneration => "xemem_generation" { generation, step, time, is_leased });
    layout!(out, XememRange => "xemem_range" { offset, nbytes });
    layout!(out, XememStreamAbout => "xemem_stream_about" {
        segid, nbytes, chunk_bytes, page_bytes, nr_banks, missed, runs_mapped, chunks_mapped,
        chunks_reused, end_reason
    });
    layout!(out, XememSnapshotAbout => "xemem_snapshot_about" {
        data, nbytes, generation, step, time, unix_ns, chunks_copied, publish_cycles, runs
    });
    layout!(out, XememVariable => "xemem_variable" {
        data, nbytes, shape, strides, dtype, lanes, ndim, order, role, reserved, name, unit, axes
    });
    layout!(out, XememAddr => "xemem_addr" { apid, offset });
    let constants = [
        ("XEMEM_LATEST", i64::from(LATEST)),
        ("XEMEM_EVERY", i64::from(EVERY)),
        ("XEMEM_LIVE", i64::from(LIVE)),
        ("XEMEM_RDONLY", i64::from(RDONLY)),
        ("XEMEM_RDWR", i64::from(RDWR)),
        ("XEMEM_NO_LIMIT", i64::from(crate::answer::NO_LIMIT)),
    ];
    for (name, value) in constants {
        writeln!(out, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    for (name, reason) in [
        ("XEMEM_CLOSED", EndReason::ClosedByProgram),
        ("XEMEM_PROGRAM_DIED", EndReason::ProgramDied),
        ("XEMEM_EXPORTER_GONE", EndReason::ExporterGone),
        ("XEMEM_REMOVED", EndReason::Removed),
    ] {
        let number = end_number(Some(reason));
        writeln!(out, "_Static_assert({name} == {number}, \"{name}\");").unwrap();
    }
    out
}

/// Compiles `source` against the headers; the compiler's words on failure.
fn compile(source: &str, extra: &[&str]) -> Result<(), String> {
    use std::io::Write as _;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut child = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
        .args(extra)
        .arg("-I")
        .arg(here.join("include"))
        .arg("-I")
        .arg(here.join("../../guests/libxasm/include"))
        .arg("-")
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("a C compiler named cc");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(source.as_bytes())
        .expect("the compiler reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the compiler ends");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(())
    } else {
        Err(words)
    }
}

const C99: [&str; 3] = ["-std=c99", "-pedantic", "-xc"];
const C11: [&str; 3] = ["-std=c11", "-pedantic", "-xc"];

#[test]
fn the_header_has_the_layout_of_the_rust_types() {
    let source = assertions();
    assert_eq!(compile(&source, &C11), Ok(()));
    let moved = source.replace(
        "xemem_variable, lanes) == 148",
        "xemem_variable, lanes) == 8",
    );
    assert_ne!(moved, source);
    assert!(
        compile(&moved, &C11)
            .unwrap_err()
            .contains("offset of xemem_variable.lanes")
    );
}

#[test]
fn the_header_compiles_alone_and_as_cpp() {
    assert_eq!(compile("#include \"xemem.h\"\n", &C99), Ok(()));
    assert_eq!(compile("#include \"xemem.h\"\n", &["-xc++"]), Ok(()));
}

/// One source for both sides: the verbs have one declaration and one meaning.
#[test]
fn the_header_agrees_with_the_guests() {
    for (first, second) in [("xemem.h", "xasm.h"), ("xasm.h", "xemem.h")] {
        let both = format!(
            "#include \"{first}\"\n#include \"{second}\"\n\
             #define SAME(a) _Static_assert((int)XEMEM_##a == (int)XASM_##a, #a)\n\
             SAME(F64); SAME(F32); SAME(I64); SAME(I32); SAME(I16); SAME(I8); SAME(U64);\n\
             SAME(U32); SAME(U16); SAME(U8); SAME(C128); SAME(C64); SAME(LATEST); SAME(EVERY);\n\
             SAME(NO_LIMIT);\n"
        );
        assert_eq!(compile(&both, &C11), Ok(()), "{first} first");
    }
}

/// The exported functions, as the sources have them.
fn exported() -> Vec<&'static str> {
    let rust = concat!(
        include_str!("answer.rs"),
        include_str!("snapshot.rs"),
        include_str!("stream.rs"),
        include_str!("verbs.rs")
    );
    rust.split("extern \"C\" fn ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next())
        .collect()
}

#[test]
fn the_header_declares_exactly_what_is_exported() {
    let header = include_str!("../include/xemem.h");
    let mut exported = exported();
    exported.sort_unstable();
    for name in &exported {
        assert!(header.contains(&format!("{name}(")), "{name} is missing");
    }
    let declared = header.lines().filter_map(|line| {
        let is_code = !line.starts_with([' ', '*', '\t', '/']);
        let name = line.split('(').next()?.rsplit([' ', '*']).next()?;
        (is_code && line.contains('(') && name.starts_with("xemem_")).then_some(name)
    });
    let mut declared: Vec<&str> = declared.collect();
    declared.sort_unstable();
    assert_eq!(declared, exported);
}
