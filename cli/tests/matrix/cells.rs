//! One cell: every verb, in an order in which each step shows that the one
//! before took effect.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use crate::peers::{Peer, Stage, Where};

const ENOENT: i32 = Errno::NOENT.raw_os_error();
const EBADF: i32 = Errno::BADF.raw_os_error();
const EACCES: i32 = Errno::ACCESS.raw_os_error();
const EFAULT: i32 = Errno::FAULT.raw_os_error();
const EINVAL: i32 = Errno::INVAL.raw_os_error();
const EIDRM: i32 = Errno::IDRM.raw_os_error();
const ETIMEDOUT: i32 = Errno::TIMEDOUT.raw_os_error();
/// Longest wait for what must come, in milliseconds.
const SOON: u64 = 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Snapshot,
}

/// Who attaches, seen from the exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Importer {
    Itself,
    SameEnclave,
    OtherEnclave,
    Linux,
}

impl Importer {
    pub(crate) const ALL: [Self; 4] = [
        Self::Itself,
        Self::SameEnclave,
        Self::OtherEnclave,
        Self::Linux,
    ];
}

/// Exporter and importer, which may be one and the same.
struct Pair {
    exporter: Peer,
    importer: Option<Peer>,
    page_bytes: u64,
    /// Each cell's own: the name of an arena that ended finds it for a while.
    name: String,
}

impl Pair {
    fn of(&mut self) -> &mut Peer {
        &mut self.exporter
    }

    fn by(&mut self) -> &mut Peer {
        self.importer.as_mut().unwrap_or(&mut self.exporter)
    }
}

/// Walks a cell; what the table says of it.
pub(crate) fn cell(
    stage: &Stage,
    exporter: Where,
    importer: Importer,
    kind: Kind,
    page_bytes: u64,
) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    println!("{exporter:?} to {importer:?}, {kind:?}, {page_bytes}");
    let at = match (importer, exporter) {
        (Importer::SameEnclave, Where::Linux) => return "-".to_owned(),
        (Importer::SameEnclave, same) => Some(same),
        (Importer::Itself, _) => None,
        (Importer::OtherEnclave, _) => Some(Where::Enclave("b")),
        (Importer::Linux, _) => Some(Where::Linux),
    };
    let mut pair = Pair {
        exporter: stage.peer(exporter),
        importer: at.map(|at| stage.peer(at)),
        page_bytes,
        name: format!("cell-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
    };
    match kind {
        Kind::Plain => {
            plain(&mut pair, false);
            plain(&mut pair, true);
            "rw".to_owned()
        }
        Kind::Snapshot => {
            snapshot(&mut pair);
            "r".to_owned()
        }
    }
}

/// Every verb on a plain segment of four pages.
fn plain(pair: &mut Pair, writable: bool) {
    let (page, name) = (pair.page_bytes, pair.name.clone());
    let (mode, access) = if writable { (0o600, 1) } else { (0o400, 0) };
    pair.by().refused(&format!("lookup {name} 0"), ENOENT);
    pair.of()
        .done(&format!("make {name} {} {page} {mode} 1", 4 * page));
    pair.of().done(&format!("name {name}-too"));
    pair.of().done("store-own x 8 11");
    pair.of().done(&format!("store-own x {} 22", 2 * page));
    // Lookup and get.
    pair.by().done(&format!("lookup {name}-too {SOON}"));
    pair.by().done(&format!("lookup {name} {SOON}"));
    if !writable {
        pair.by().refused("get x 1", EACCES);
    }
    pair.by().done(&format!("get x {access}"));
    // The whole.
    let bytes = pair.by().number("attach x 0 0");
    assert_eq!(bytes, 4 * page);
    assert_eq!(pair.by().number("load x 8"), 11);
    assert_eq!(pair.by().number(&format!("load x {}", 2 * page)), 22);
    pair.of().done("store-own x 8 33");
    assert_eq!(pair.by().number("load x 8"), 33, "it is the same memory");
    stores(pair, writable, 16);
    pair.by().done("detach x");
    // A piece.
    pair.by()
        .refused(&format!("attach x {} {page}", 4 * page), EINVAL);
    pair.by().refused(&format!("attach x 8 {page}"), EINVAL);
    pair.by()
        .refused(&format!("attach x {page} {}", u64::MAX), EINVAL);
    let bytes = pair.by().number(&format!("attach x {} {page}", 2 * page));
    assert_eq!(bytes, page);
    assert_eq!(pair.by().number("load x 0"), 22);
    stores(pair, writable, 0);
    signals(pair);
    // The end.
    pair.of().done("remove x");
    pair.by().refused(&format!("lookup {name} 0"), ENOENT);
    pair.by().refused(&format!("lookup {name}-too 0"), ENOENT);
    pair.by().refused("get x 0", EIDRM);
    pair.by().refused("signal x", EIDRM);
    assert_eq!(pair.by().number(&format!("wait x {SOON}")), 0, "the end");
    let last = if writable { 44 } else { 22 };
    assert_eq!(pair.by().number("load x 0"), last, "what is mapped stays");
    pair.by().done("detach x");
    pair.by().done("release x");
    pair.by().refused("release x", EBADF);
    pair.of().done("free x");
}

/// A store of the importer arrives, or is refused by its kernel.
fn stores(pair: &mut Pair, writable: bool, offset: u64) {
    if !writable {
        pair.by().refused(&format!("poke x {offset}"), EFAULT);
        return;
    }
    let at = if offset == 0 {
        2 * pair.page_bytes
    } else {
        offset
    };
    pair.by().done(&format!("store x {offset} 44"));
    assert_eq!(pair.of().number(&format!("load-own x {at}")), 44);
}

/// Either end signals; neither hears itself.
fn signals(pair: &mut Pair) {
    pair.by().done("subscribe x");
    pair.by().refused("wait x 0", ETIMEDOUT);
    pair.by().done("signal x");
    assert_eq!(pair.of().number(&format!("wait-own x {SOON}")), 1);
    pair.by().refused("wait x 0", ETIMEDOUT);
    pair.of().done("signal-own x");
    pair.of().done("signal-own x");
    let mut taken = 0;
    while taken < 2 {
        taken += pair.by().number(&format!("wait x {SOON}"));
    }
    assert_eq!(taken, 2);
    pair.of().refused("wait-own x 0", ETIMEDOUT);
}

/// Every verb on an arena of four chunks.
fn snapshot(pair: &mut Pair) {
    let (chunk, name) = (pair.page_bytes, pair.name.clone());
    pair.by().refused(&format!("lookup {name} 0"), ENOENT);
    pair.of()
        .done(&format!("snapshot {name} {} {chunk}", 4 * chunk));
    pair.of().done("publish x 1");
    pair.by().done(&format!("lookup {name} {SOON}"));
    pair.by().refused("get x 1", EACCES);
    pair.by().done("get x 0");
    pair.by()
        .refused(&format!("attach x {chunk} {chunk}"), EINVAL);
    assert_eq!(pair.by().number("attach x 0 0"), 4 * chunk);
    let last = 3 * chunk;
    let see = |pair: &mut Pair, value: u64| {
        assert_eq!(pair.by().number("load x 0"), value);
        assert_eq!(pair.by().number(&format!("load x {last}")), value);
    };
    see(pair, 1);
    pair.by().refused("poke x 0", EFAULT);
    pair.by().refused("signal x", EINVAL);
    pair.of().done("publish x 2");
    see(pair, 1);
    assert_eq!(pair.by().number("next x"), 1);
    see(pair, 2);
    pair.of().done("remove x");
    assert_eq!(pair.by().number("next x"), 0, "the end of the stream");
    see(pair, 2);
    pair.by().done("detach x");
    pair.by().done("release x");
    pair.by().refused("release x", EBADF);
}
