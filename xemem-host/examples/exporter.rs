//! An exporter that does what it is told, for tests in other languages.
//!
//! `exporter SOCKET NAME BANKS` makes an enclave and an arena of 64 chunks of
//! 4 KiB, both called NAME, then obeys one command a line and answers each
//! with one line:
//!
//! ```text
//! describe HEX               the variable table, as `VarDesc`s   ok
//! write OFFSET HEX           stores of whole words               ok
//! publish                    what was written            a number, or dropped
//! leased                     generations that are leased         numbers
//! spoil CHUNK GENERATION     breaks the promise of a lease       ok
//! end                        ends the arena                      ok
//! ```
//!
//! The end of its input is the exporter's death. Real broker, real memory;
//! only the kernel is played. No error handling: a test that says nonsense
//! fails.

#[expect(dead_code, reason = "the tests of this crate use all of it")]
#[path = "../tests/two_clients/exporter.rs"]
mod exporter;
#[path = "../tests/two_clients/memory.rs"]
mod memory;

use enclave_abi::arena::VarDesc;
use exporter::Exporter;
use std::io::{BufRead, Write};
use std::path::Path;
use zerocopy::FromBytes;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, name, banks] = arguments.as_slice() else {
        panic!("SOCKET NAME BANKS, not {arguments:?}");
    };
    let banks = banks.parse().expect("a number of banks");
    let mut exporter = Exporter::open_to(Path::new(socket), name, banks, None);
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready").expect("a reader");
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = obey(&mut exporter, &words);
        writeln!(out, "{answer}").expect("a reader");
    }
}

fn obey(exporter: &mut Exporter, words: &[&str]) -> String {
    match words {
        ["describe", hex] => {
            let table = bytes(hex);
            let entries = table.chunks_exact(size_of::<VarDesc>());
            let vars = entries.map(|bytes| VarDesc::read_from_bytes(bytes).expect("a VarDesc"));
            exporter.describe(&vars.collect::<Vec<_>>());
        }
        ["write", offset, hex] => exporter.write(number(offset), &bytes(hex)),
        ["publish"] => {
            let generation = exporter.publish_as_is();
            return generation.map_or("dropped".to_owned(), |generation| generation.to_string());
        }
        ["leased"] => {
            let leased = exporter.leased().into_iter();
            return leased.map(|g| g.to_string()).collect::<Vec<_>>().join(" ");
        }
        ["spoil", chunk, generation] => exporter.spoil(number(chunk), number(generation)),
        ["end"] => exporter.end(),
        other => panic!("no command: {other:?}"),
    }
    "ok".to_owned()
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}
