//! The shared library as linkers and loaders see it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The shared library of this build. Not the one a folder higher, which `cargo
/// test` leaves as the last `cargo build` made it.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("this program has a path");
    let path = test.parent().expect("a folder").join("libxemem.so");
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .arg(library())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_library_exports_what_the_header_declares_and_nothing_else() {
    let flags = ["--dynamic", "--defined-only", "--format=just-symbols"];
    let symbols = output("nm", &flags);
    let mut symbols: Vec<&str> = symbols.lines().collect();
    symbols.sort_unstable();
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/xemem.h");
    let header = std::fs::read_to_string(header).expect("the header");
    assert_eq!(symbols.len(), 25, "{symbols:?}");
    for symbol in symbols {
        let is_declared = header.contains(&format!("{symbol}("));
        assert!(is_declared && symbol.starts_with("xemem_"), "{symbol}");
    }
}

#[test]
fn programs_ask_for_the_library_by_its_versioned_name() {
    let dynamic = output("readelf", &["-d"]);
    assert!(dynamic.contains("soname: [libxemem.so.0]"), "{dynamic}");
}
