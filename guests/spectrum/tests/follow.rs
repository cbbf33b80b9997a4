//! The program against a real broker and an arena written by hand.
//!
//! The exporter here plays kernel and simulation for two generations, all of
//! it written before the broker seals the arena; variables are described by the
//! guest library, so that both ends of the variable table meet in one test.

use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, GENERATIONS_OFFSET, GenerationRecord, Geometry, VARS_OFFSET, VarDesc,
    log_entry, name_field, state,
};
use enclave_abi::lease::{Slot, slot_word};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use xasm::{Array, Order, Var};
use xemem_host::broker::Retention;
use xemem_host::server::{Options, Server};
use xemem_host::{ArenaRequest, Broker, EndReason, Hugetlb, SegId};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of a chunk; the arena has two.
const CHUNK: u64 = 4096;
/// Shape of the flux: 2 × 2 × 2 cells, 2 groups.
const SHAPE: [u64; 4] = [2, 2, 2, 2];
/// Volume of a cell.
const VOLUME: f64 = 0.25;

const FLUX: Array<f64> = Array::at(0, 16);
const CELL_VOLUME: Array<f64> = Array::at(256, 1);
const SPECTRUM: Array<f64> = Array::at(320, 2);
const CHECKSUM: Array<u64> = Array::at(384, 1);
const CHECKSUM_STEP: Array<u64> = Array::at(448, 1);

/// A broker in this process, in a directory of its own.
struct Host {
    directory: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Host {
    fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("spectrum-test-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).expect("a fresh directory");
        let options = Options {
            linger: Duration::from_secs(3600),
            rings_per_second: 1000,
            retention: Retention::NONE,
            owner_uid: None,
        };
        let server = Server::start(&directory.join("xemem.sock"), options)
            .expect("it starts")
            .expect("it is the only one");
        let server = std::thread::spawn(move || server.run().expect("it serves"));
        Self {
            directory,
            server: Some(server),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("xemem.sock")
    }

    /// Starts the program under test.
    fn spectrum(&self, arguments: &[&str]) -> Reader {
        let mut child = Command::new(env!("CARGO_BIN_EXE_spectrum"))
            .args(["test/flux", "--json", "--socket"])
            .arg(self.socket())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Reader { child, lines }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let asked = Broker::connect(&self.socket()).and_then(|mut broker| broker.shutdown(true));
        if let (Ok(()), Some(server)) = (asked, self.server.take()) {
            let _ = server.join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The running program.
struct Reader {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Reader {
    fn line(&mut self) -> Value {
        let line = self.lines.next().expect("a line").expect("text");
        serde_json::from_str(&line).expect("JSON")
    }

    fn exit_code(mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

/// An enclave with one arena and two generations.
struct Exporter {
    broker: Broker,
    segid: SegId,
    doorbell: File,
    leases: File,
}

impl Exporter {
    /// Makes the arena; `checksum_off_by` falsifies the second generation's.
    fn new(socket: &Path, checksum_off_by: u64) -> Self {
        let mut broker = Broker::connect(socket).expect("the broker answers");
        let leases = File::from(broker.register_enclave("test").expect("registered"));
        let grant = broker
            .arena_make(&ArenaRequest {
                slot: 0,
                name: "test/flux".to_owned(),
                size_bytes: 2 * CHUNK,
                chunk_bytes: CHUNK,
                nr_banks: 3,
                hugetlb: Hugetlb::No,
                reader_gid: None,
                retain: 1,
            })
            .expect("an arena");
        let object = Object {
            file: File::from(grant.memfd),
            geometry: grant.geometry,
        };
        object.describe();
        object.generation(1, 0, 0);
        object.generation(2, 1, checksum_off_by);
        drop(object);
        broker.arena_mapped(grant.segid).expect("sealed");
        Self {
            broker,
            segid: grant.segid,
            doorbell: File::from(grant.doorbell),
            leases,
        }
    }

    /// Publishes a generation that was written before.
    fn publish(&mut self, generation: u64) {
        let slot = usize::try_from(generation).expect("small") - 1;
        let word = slot_word(0, slot).expect("a slot") as u64 * 8;
        let value = Slot::Published(generation).encode();
        self.leases
            .write_all_at(&value.to_le_bytes(), word)
            .expect("written");
        self.doorbell.write_all(&1u64.to_ne_bytes()).expect("rung");
    }

    fn end(mut self) {
        self.broker
            .arena_end(self.segid, EndReason::ClosedByProgram)
            .expect("ended");
    }
}

/// The arena object while it may be written.
struct Object {
    file: File,
    geometry: Geometry,
}

impl Object {
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("written");
    }

    /// Header, variables, and where the frames are: chunk 0 moves to bank 1 in
    /// generation 2, chunk 1 stays in bank 0.
    fn describe(&self) {
        let vars = [
            Var::array("flux", FLUX, &SHAPE, Order::Fortran),
            Var::scalar("cell_volume", CELL_VOLUME),
            Var::array("spectrum", SPECTRUM, &SHAPE[3..], Order::C),
            Var::scalar("checksum", CHECKSUM),
            Var::scalar("checksum_step", CHECKSUM_STEP),
        ];
        let mut offset = VARS_OFFSET;
        for var in &vars {
            let desc: VarDesc = var.pack(2 * CHUNK).expect("it fits");
            self.write(offset, desc.as_bytes());
            offset += 512;
        }
        for (chunk, bank, birth) in [(0, 0, 1u64), (1, 0, 1), (0, 1, 2)] {
            let offset = self.geometry.birth_offset(chunk, bank).expect("in range");
            self.write(offset, &birth.to_le_bytes());
        }
        self.write(
            self.geometry.log_entry_offset(0),
            &log_entry(0, 1).to_le_bytes(),
        );
        let mut header = ArenaHeader::new_zeroed();
        header.magic = ARENA_MAGIC;
        header.abi_version = ABI_VERSION;
        header.state = state::LIVE;
        header.size_bytes = 2 * CHUNK;
        header.chunk_bytes = CHUNK;
        header.nr_banks = 3;
        header.nr_vars = u32::try_from(vars.len()).expect("small");
        header.latest_generation = 2;
        header.log_head = 1;
        header.name = name_field("test/flux").expect("a name");
        self.write(0, header.as_bytes());
    }

    /// Record and contents of a generation; its values are its number.
    fn generation(&self, generation: u64, bank: u32, checksum_off_by: u64) {
        let record = GenerationRecord {
            generation,
            step: 10 * generation,
            time_bits: (generation as f64).to_bits(),
            log_head: generation - 1,
            chunks_copied: generation - 1,
            publish_cycles: 777,
            ..GenerationRecord::default()
        };
        self.write(GENERATIONS_OFFSET + generation * 64, record.as_bytes());
        let value = generation as f64;
        let flux = [value; 16];
        let checksum = flux.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, value| {
            (sum ^ value.to_bits()).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let frame = self.geometry.frame_offset(0, bank).expect("in range");
        self.write(frame + FLUX.offset(), flux.as_bytes());
        self.write(frame + CELL_VOLUME.offset(), VOLUME.as_bytes());
        self.write(
            frame + SPECTRUM.offset(),
            [value * 8.0 * VOLUME; 2].as_bytes(),
        );
        self.write(
            frame + CHECKSUM.offset(),
            (checksum + checksum_off_by).as_bytes(),
        );
        self.write(frame + CHECKSUM_STEP.offset(), record.step.as_bytes());
    }
}

#[test]
fn whole_snapshots_are_verified_until_the_program_closes() {
    let host = Host::start();
    let mut exporter = Exporter::new(&host.socket(), 0);
    let mut reader = host.spectrum(&[]);
    for generation in [1u64, 2] {
        exporter.publish(generation);
        let line = reader.line();
        assert_eq!(line["generation"], generation);
        assert_eq!(line["step"], 10 * generation);
        assert_eq!(line["time"], generation as f64);
        assert_eq!(line["spectrum"][1], generation as f64 * 2.0);
        assert_eq!(line["runs"], generation, "chunk 0 moves");
        assert_eq!(
            (&line["checksum_ok"], &line["spectrum_ok"]),
            (&true.into(), &true.into())
        );
        assert_eq!(line["publish_cycles"], 777);
    }
    exporter.end();
    let summary = reader.line();
    assert_eq!(
        (&summary["verified"], &summary["torn"]),
        (&2.into(), &0.into())
    );
    assert_eq!(summary["end"], "closed by its program");
    assert_eq!(reader.exit_code(), Some(0));
}

#[test]
fn a_snapshot_that_is_not_its_producers_is_torn() {
    let host = Host::start();
    let mut exporter = Exporter::new(&host.socket(), 1);
    let mut reader = host.spectrum(&["--steps", "2"]);
    exporter.publish(1);
    assert_eq!(reader.line()["checksum_ok"], true);
    exporter.publish(2);
    let line = reader.line();
    assert_eq!(
        (&line["checksum_ok"], &line["spectrum_ok"]),
        (&false.into(), &true.into())
    );
    assert_eq!(reader.line()["torn"], 1);
    assert_eq!(reader.exit_code(), Some(1));
}

#[test]
fn waiting_in_vain_has_its_own_exit_codes() {
    let host = Host::start();
    let nobody = host.spectrum(&["--timeout", "0.1"]);
    assert_eq!(nobody.exit_code(), Some(3), "the name never appeared");
    let _exporter = Exporter::new(&host.socket(), 0);
    let mut silent = host.spectrum(&["--timeout", "0.1"]);
    assert!(
        silent.line()["end"]
            .as_str()
            .is_some_and(|end| end.starts_with("no snapshot"))
    );
    assert_eq!(silent.exit_code(), Some(7), "no snapshot came");
}
