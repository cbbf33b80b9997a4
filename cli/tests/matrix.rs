//! Every verb of XEMEM in every direction: who exports, who imports, what kind,
//! which pages, to read or to write.
//!
//! Each cell is walked by real programs: in enclaves by `matrix/peer.c` over
//! `xasm.h`, on Linux by this program once more (`matrix/linux_peer.rs`). What
//! comes of it is the table of `docs/xemem.md`, which must say the same;
//! `XASM_WRITE_TABLE=1` writes it there. Programs come from `cargo xtask image`
//! (folder `$XASM_OUT`, else `out/`). Segments on 2 MiB pages need such pages;
//! where none can be had those lines are said to be left out. Needs /dev/kvm.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/broker.rs"]
mod broker;
#[path = "matrix/cells.rs"]
mod cells;
#[path = "matrix/direct.rs"]
mod direct;
#[path = "matrix/harm.rs"]
mod harm;
#[path = "matrix/linux_peer.rs"]
mod linux_peer;
#[path = "matrix/peers.rs"]
mod peers;
mod support;
#[path = "matrix/table.rs"]
mod table;
#[path = "support/threads.rs"]
mod threads;

use cells::{Importer, Kind};
use peers::{Stage, Where};
use table::Table;

const LARGE: u64 = 2 << 20;

#[test]
fn the_other_process_does_as_told() {
    if let Some(socket) = std::env::var_os(linux_peer::SOCKET) {
        linux_peer::play(socket.into());
        return;
    }
    let stage = Stage::new("3", 0);
    let mut peer = stage.peer(Where::Linux);
    assert_eq!(peer.ask("dance x"), Err(38));
    assert_eq!(peer.ask("lookup nobody 0"), Err(2));
}

#[test]
fn every_cell_of_the_table_is_as_documented() {
    let stage = Stage::new("3", 16);
    let mut table = Table::default();
    for exporter in [Where::Linux, Where::Enclave("a")] {
        for kind in [Kind::Plain, Kind::Snapshot] {
            for page_bytes in [4096, LARGE] {
                if kind == Kind::Plain && page_bytes == LARGE && !stage.has_huge_pages() {
                    table.leave_out(exporter, kind, page_bytes);
                    continue;
                }
                let of = |importer| cells::cell(&stage, exporter, importer, kind, page_bytes);
                table.add(exporter, kind, page_bytes, Importer::ALL.map(of));
            }
        }
    }
    table.compare_with_documentation();
}

#[test]
fn a_program_written_for_xpmem_attaches_a_segment_of_an_enclave() {
    let stage = Stage::new("3", 0);
    let mut exporter = stage.peer(Where::Enclave("a"));
    exporter.done("make xpmem 16384 4096 384 0");
    exporter.done("store-own x 8192 22");
    let segid = exporter.number("segid x");
    let ended = stage.xpmem_program(segid);
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (0, "22\n"),
        "{}",
        ended.stderr
    );
    assert_eq!(exporter.number("load-own x 8200"), 44);
    exporter.done("remove x");
    let refused = stage.xpmem_program(segid);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("No such file"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_selection_of_cells_is_the_same_in_ring_0_mode() {
    let stage = Stage::new("0", 0);
    for (exporter, importer) in [
        (Where::Enclave("a"), Importer::OtherEnclave),
        (Where::Linux, Importer::OtherEnclave),
        (Where::Enclave("a"), Importer::Linux),
        (Where::Enclave("a"), Importer::Itself),
    ] {
        let cell = |kind| cells::cell(&stage, exporter, importer, kind, 4096);
        assert_eq!(cell(Kind::Plain), "rw", "{exporter:?} {importer:?}");
        assert_eq!(cell(Kind::Snapshot), "r", "{exporter:?} {importer:?}");
    }
}
