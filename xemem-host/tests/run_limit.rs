//! A generation in more pieces than a process may map. Alone in its process,
//! because for a moment it uses up all mappings there are.

use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, GENERATIONS_OFFSET, GenerationRecord, Geometry,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use xemem_host::snapshot::{ArenaReader, SnapshotError};
use zerocopy::{FromZeros, IntoBytes};

#[test]
fn a_generation_in_too_many_runs_is_an_error_and_the_next_one_is_read() {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("a limit");
    let limit: u64 = limit.trim().parse().expect("a number");
    let chunks = limit + 1000;
    let geometry = Geometry::new(chunks * 4096, 4096, 2).expect("possible");
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("arena", flags).expect("a memfd");
    ftruncate(&fd, geometry.object_bytes).expect("sized");
    fcntl_add_seals(&fd, SealFlags::SHRINK).expect("sealed");
    let file = File::from(fd);

    let mut header = ArenaHeader::new_zeroed();
    (header.magic, header.abi_version) = (ARENA_MAGIC, ABI_VERSION);
    (header.size_bytes, header.chunk_bytes) = (geometry.size_bytes, 4096);
    header.nr_banks = 2;
    file.write_all_at(header.as_bytes(), 0).expect("written");
    for generation in [1, 2] {
        let record = GenerationRecord {
            generation,
            ..GenerationRecord::default()
        };
        let offset = GENERATIONS_OFFSET + generation * 64;
        file.write_all_at(record.as_bytes(), offset)
            .expect("written");
    }
    // Generation 1 alternates between the banks, generation 2 is in bank 0.
    let births: Vec<u64> = (0..chunks)
        .flat_map(|chunk| if chunk % 2 == 0 { [1, 0] } else { [2, 1] })
        .collect();
    file.write_all_at(births.as_bytes(), geometry.births_offset)
        .expect("written");

    let mut reader = ArenaReader::open(file.into()).expect("an arena");
    let refused = reader.snapshot(1).expect_err("too many runs");
    let SnapshotError::Runs { runs, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(runs as u64, chunks);
    let snapshot = reader.snapshot(2).expect("one run");
    assert_eq!(snapshot.runs(), 1);
    assert!(snapshot.valid());
}
