//! Plain segments from Fortran: a program in an enclave shares an array with a
//! process of Linux, both ways, and signals it.
//!
//! Needs /dev/kvm. The archive is the one in `out/` (or `$XASM_OUT`), the
//! compiler is the system's.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/language.rs"]
#[expect(dead_code, reason = "reads no streams, and nothing on Linux")]
mod language;
#[expect(dead_code, reason = "needs no busybox")]
mod support;

use language::{Below, PATIENCE, Run, compile};
use xemem_host::{Access, EndReason, Hugetlb, SegmentRequest, SharedMemory, Target, Waited};

/// The program's array.
const NX: u16 = 64;
const NY: u16 = 32;
/// Where its partner's begins: it attaches the second page, and skips 512 bytes.
const EDGE: usize = 4096 + 512;

fn number(memory: &SharedMemory, at: usize) -> f64 {
    f64::from_bits(memory.load_u64(at).unwrap())
}

#[test]
fn a_fortran_array_is_shared_both_ways() {
    let sources = [
        "fortran/xasm.f90",
        "fortran/xasm_segments.f90",
        "examples/halo.f90",
    ];
    let flags = ["-std=f2018", "-Wall", "-Wextra", "-Werror"];
    let program = compile("gfortran", &flags, &sources);
    let mut run = Run::start(Below::Enclave, &program.0, 0);
    let mut broker = run.connect();
    let edge = SegmentRequest {
        name: "edge".to_owned(),
        size_bytes: 8192,
        hugetlb: Hugetlb::No,
        signallable: true,
        ..SegmentRequest::default()
    };
    let edge = broker.make_segment(&edge).unwrap();
    let ours = edge.memory.as_ref().unwrap();
    ours.write(EDGE, &0.5_f64.to_ne_bytes()).unwrap();

    // Its second name comes when the array is filled.
    let segid = broker.lookup("ready", Some(PATIENCE)).unwrap();
    let info = broker.info(segid).unwrap();
    assert_eq!((info.name.as_str(), info.enclave.as_str()), ("halo", "l"));
    let apid = broker.get_for(segid, Access::ReadWrite).unwrap();
    let bytes = 8 * u64::from(NX) * u64::from(NY);
    let halo = broker.attach_segment(apid, 0, bytes).unwrap();
    let columns = (1..=NY).flat_map(|j| (1..=NX).map(move |i| f64::from(100 * j + i)));
    for (at, wanted) in (0..).step_by(8).zip(columns) {
        assert!((number(&halo.memory, at) - wanted).abs() < 1e-9, "{at}");
    }
    let last = usize::try_from(bytes).unwrap() - 8;
    let word = (-7.5_f64).to_ne_bytes();
    halo.memory.write(last, &word).unwrap();
    broker.signal(Target::Access(apid)).unwrap();
    assert_eq!(run.line(), "halo    -7.5");

    let mut signals = edge.signals.unwrap();
    let waited = signals.wait(Some(PATIENCE)).unwrap();
    assert!(matches!(waited, Waited::Signals(1)), "{waited:?}");
    assert!((number(ours, EDGE) - 101.5).abs() < 1e-9);
    assert!((number(ours, EDGE + 8) - 102.0).abs() < 1e-9);
    broker.signal(Target::Segment(edge.segid)).unwrap();
    assert_eq!(run.line(), "bytes 4096");
    assert_eq!(run.end(), "still   101.0\n");
    let reason = broker.info(segid).unwrap().end_reason;
    assert_eq!(reason, Some(EndReason::Removed));
    assert!((number(&halo.memory, 0) - 101.0).abs() < 1e-9, "it stays");
}
