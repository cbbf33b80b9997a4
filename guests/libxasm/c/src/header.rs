//! Checks that `include/xasm.h` and the Rust side agree.
//!
//! A C file full of static assertions is written from the Rust types and given
//! to the C compiler: a field that moved, a constant that changed or a header
//! that does not compile fails the test with the compiler's own words.

use crate::import::{XasmFound, XememAddr};
use crate::segment::SEGMENT_GID;
use crate::surface::{XasmOptions, XasmVarSpec};
use enclave_abi::syscall::{
    AttachArgs, FOLLOW_EVERY, FOLLOW_LATEST, Imported, NO_LIMIT, SEGMENT_SIGNALS, SegmentArgs,
};
use guest::calls::HostCounters;
use guest::heap::Usage;
use guest::region::{BK_ARENA, VM_READ, VM_USER, VM_WRITE};
use guest::xemem;
use guest::{ArenaStats, Chunk, Copied, Dtype, KernelStats, Placement, Role};
use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

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
    let mut out = String::from("#include \"xasm.h\"\n");
    layout!(out, XasmOptions => "xasm_options" {
        chunk_bytes, start, nr_banks, flags, reader_gid, policy, timeout_ms, retain,
        placement, reserved
    });
    layout!(out, XasmVarSpec => "xasm_var_spec" {
        name, unit, axes, shape, offset, dtype, ndim, order, role, reserved
    });
    layout!(out, ArenaStats => "xasm_stats" {
        generation, dropped, discarded, waited, cow_faults, held, segid, backing_page_bytes
    });
    layout!(out, KernelStats => "xasm_kernel_stats" {
        mode, syscalls, forwarded, interrupts, cow_faults, publishes, free_bytes, flush_method
    });
    layout!(out, HostCounters => "xasm_host_counters" {
        emulated_instructions, exits, guest_page_faults, injected_interrupts
    });
    layout!(out, Usage => "xasm_usage" { used, peak, blocks, largest_free });
    layout!(out, XememAddr => "xemem_addr" { apid, offset });
    layout!(out, AttachArgs => "xasm_attachment" {
        apid, offset, size_bytes, start, policy, nr_banks, chunk_bytes
    });
    layout!(out, SegmentArgs => "xasm_segment" {
        name, size_bytes, page_bytes, start, mode, gid, flags
    });
    layout!(out, Imported => "xasm_imported" {
        generation, step, time_bits, unix_ns, chunks_copied, chunks_mapped, address, size_bytes,
        end_reason
    });
    layout!(out, XasmFound => "xasm_found" {
        data, bytes, shape, strides, dtype, ndim, order, reserved
    });
    layout!(out, Copied => "xasm_copied" { chunk, bank, reserved });
    let constants = [
        ("XEMEM_RDONLY", xemem::RDONLY),
        ("XASM_SEGMENT_SIGNALS", u64::from(SEGMENT_SIGNALS)),
        ("XASM_SEGMENT_GID", u64::from(SEGMENT_GID)),
        ("XEMEM_RDWR", xemem::RDWR),
        ("XASM_LATEST", u64::from(FOLLOW_LATEST)),
        ("XASM_EVERY", u64::from(FOLLOW_EVERY)),
        ("XASM_NO_LIMIT", NO_LIMIT),
        ("XASM_F64", Dtype::F64 as u64),
        ("XASM_F32", Dtype::F32 as u64),
        ("XASM_I64", Dtype::I64 as u64),
        ("XASM_I32", Dtype::I32 as u64),
        ("XASM_I16", Dtype::I16 as u64),
        ("XASM_I8", Dtype::I8 as u64),
        ("XASM_U64", Dtype::U64 as u64),
        ("XASM_U32", Dtype::U32 as u64),
        ("XASM_U16", Dtype::U16 as u64),
        ("XASM_U8", Dtype::U8 as u64),
        ("XASM_C128", Dtype::C128 as u64),
        ("XASM_C64", Dtype::C64 as u64),
        ("XASM_ROLE_COORDINATE", Role::Coordinate as u64),
        ("XASM_ROLE_ELEMENT_FIELD", Role::ElementField as u64),
        ("XASM_ROLE_VERTEX_FIELD", Role::VertexField as u64),
        ("XASM_IN_TURN", u64::from(Placement::InTurn.number())),
        ("XASM_FIRST_FREE", u64::from(Placement::FirstFree.number())),
        ("XASM_PREFERRED", u64::from(Placement::Preferred.number())),
        ("XASM_CHUNK_4K", Chunk::Kib4.bytes()),
        ("XASM_CHUNK_2M", Chunk::Mib2.bytes()),
        ("VM_READ", VM_READ),
        ("VM_WRITE", VM_WRITE),
        ("VM_USER", VM_USER),
        ("BK_ARENA", BK_ARENA),
    ];
    for (name, value) in constants {
        writeln!(out, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    out
}

/// Compiles `source` against the header; the compiler's words on failure.
fn compile(source: &str, extra: &[&str]) -> Result<(), String> {
    use std::io::Write as _;
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include");
    let mut child = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
        .args(extra)
        .arg("-I")
        .arg(include)
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

const C11: [&str; 3] = ["-std=c11", "-pedantic", "-xc"];

#[test]
fn the_header_has_the_layout_of_the_rust_types() {
    let source = assertions();
    assert_eq!(compile(&source, &C11), Ok(()));
    let moved = source.replace("reader_gid) == 24", "reader_gid) == 28");
    assert_ne!(moved, source);
    assert!(
        compile(&moved, &C11)
            .unwrap_err()
            .contains("offset of xasm_options.reader_gid")
    );
}

#[test]
fn the_header_compiles_alone_as_c99() {
    assert_eq!(
        compile("#include \"xasm.h\"\n", &["-std=c99", "-pedantic", "-xc"]),
        Ok(())
    );
}

#[test]
fn every_exported_function_is_declared() {
    let header = include_str!("../../include/xasm.h");
    let rust = concat!(
        include_str!("surface.rs"),
        include_str!("paper.rs"),
        include_str!("policy.rs"),
        include_str!("import.rs"),
        include_str!("memory.rs"),
        include_str!("segment.rs")
    );
    let exported: Vec<&str> = rust
        .split("extern \"C\" fn ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next())
        .collect();
    assert!(exported.len() >= 15, "{exported:?}");
    for name in exported {
        assert!(
            header.contains(&format!("{name}(")),
            "{name} is not in xasm.h"
        );
    }
}
