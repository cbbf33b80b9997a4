//! One end of a cell of the matrix, as a process of Linux: does line by line
//! what the test says. The words are those of `peer.c`.
//!
//! It is the test's own program once more. Plain segments and everything that is
//! attached go through `xemem_host`, arenas of its own through the guest library.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use xasm::{Arena, Chunk, Options};
use xemem_host::wire::Policy;
use xemem_host::{
    Access, ApId, Broker, ClientError, Hugetlb, PlainAttachment, SegId, Segment, SegmentKind,
    SegmentRequest, SharedMemory, Signals, Stream, Target, Waited,
};

/// Where the broker listens; makes the program a peer.
pub(crate) const SOCKET: &str = "XASM_TEST_SOCKET";
const PATIENCE: Duration = Duration::from_secs(60);

/// What is attached.
enum Attached {
    Plain(PlainAttachment),
    /// The stream, address and words of what it shows.
    Arena(Box<Stream>, usize, Vec<u64>),
}

struct Peer {
    broker: Broker,
    socket: PathBuf,
    segment: Option<Segment>,
    arena: Option<Arena>,
    found: SegId,
    apid: ApId,
    attached: Option<Attached>,
    signals: Option<Signals>,
}

/// Does what standard input says until it ends.
pub(crate) fn play(socket: PathBuf) {
    let broker = Broker::connect(&socket).unwrap();
    let mut peer = Peer {
        broker,
        socket,
        segment: None,
        arena: None,
        found: SegId(0),
        apid: ApId(0),
        attached: None,
        signals: None,
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<u64> = words[2..]
            .iter()
            .map(|word| word.parse().unwrap())
            .collect();
        let answer = match peer.act(words[0], words[1], &numbers) {
            Ok(number) => format!("@ok {number}"),
            Err(errno) => format!("@error {}", errno.raw_os_error()),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").unwrap();
        out.flush().unwrap();
    }
}

fn broker(error: ClientError) -> Errno {
    error.errno()
}

fn guest(error: xasm::Errno) -> Errno {
    Errno::from_raw_os_error(error.raw())
}

/// The word at `offset` of shared memory.
fn word(memory: &SharedMemory, offset: u64) -> Result<u64, Errno> {
    let offset = usize::try_from(offset).unwrap();
    memory.load_u64(offset).map_err(|_| Errno::RANGE)
}

fn set_word(memory: &SharedMemory, offset: u64, value: u64) -> Result<u64, Errno> {
    let offset = usize::try_from(offset).unwrap();
    let stored = memory.write(offset, &value.to_ne_bytes());
    stored.map(|()| 0).map_err(|_| Errno::RANGE)
}

/// Signals taken; 0 = the end.
fn waited(signals: Option<&mut Signals>, timeout_ms: u64) -> Result<u64, Errno> {
    let signals = signals.ok_or(Errno::NOTCONN)?;
    let timeout = Duration::from_millis(timeout_ms);
    match signals.wait(Some(timeout)).map_err(broker)? {
        Waited::Signals(count) => Ok(count),
        Waited::Ended => Ok(0),
    }
}

/// What the kernel would answer to a store at `address`.
fn store_at(address: usize) -> Result<u64, Errno> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let writable = maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let bound = |hex| usize::from_str_radix(hex, 16).unwrap();
        (bound(start)..bound(end)).contains(&address) && rest.as_bytes()[1] == b'w'
    });
    if writable { Ok(0) } else { Err(Errno::FAULT) }
}

impl Peer {
    fn act(&mut self, word: &str, name: &str, n: &[u64]) -> Result<u64, Errno> {
        match word {
            "make" => self.make(name, n[0], n[1], n[2], n[3] == 1),
            "snapshot" => self.snapshot(name, n[0], n[1]),
            "publish" => self.publish(n[0]),
            "name" => {
                let segid = self.segment().segid;
                self.broker.arena_name(segid, name).map_err(broker)?;
                Ok(0)
            }
            "lookup" => {
                let wait = (n[0] != 0).then(|| Duration::from_millis(n[0]));
                self.found = self.broker.lookup(name, wait).map_err(broker)?;
                Ok(0)
            }
            "get" => {
                let access = match n[0] {
                    0 => Access::ReadOnly,
                    _ => Access::ReadWrite,
                };
                let apid = self.broker.get_for(self.found, access);
                self.apid = apid.map_err(broker)?;
                Ok(0)
            }
            "attach" => self.attach(n[0], n[1]),
            "next" => self.next(),
            "load" => self.load(n[0]),
            "store" => match &self.attached {
                Some(Attached::Plain(plain)) => set_word(&plain.memory, n[0], n[1]),
                _ => Err(Errno::INVAL),
            },
            "load-own" => word_of(self.segment(), n[0]),
            "store-own" => set_word(self.segment().memory.as_ref().unwrap(), n[0], n[1]),
            "poke" => match &self.attached {
                Some(Attached::Plain(plain)) => store_at(plain.memory.as_ptr().addr()),
                Some(Attached::Arena(_, address, _)) => store_at(*address),
                None => Err(Errno::INVAL),
            },
            "subscribe" => {
                let signals = self.broker.subscribe(Target::Access(self.apid));
                self.signals = Some(signals.map_err(broker)?);
                Ok(0)
            }
            "signal" => self.signal(Target::Access(self.apid)),
            "signal-own" => self.signal(Target::Segment(self.segment().segid)),
            "wait" => waited(self.signals.as_mut(), n[0]),
            "wait-own" => waited(self.segment.as_mut().unwrap().signals.as_mut(), n[0]),
            "detach" => self.detach(),
            "release" => {
                self.signals = None;
                self.broker.release(self.apid).map_err(broker)?;
                Ok(0)
            }
            "remove" if self.arena.is_some() => {
                self.arena = None;
                Ok(0)
            }
            "remove" => {
                let segid = self.segment().segid;
                self.broker.remove(segid).map_err(broker)?;
                Ok(0)
            }
            "free" => {
                self.segment = None;
                Ok(0)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn segment(&self) -> &Segment {
        self.segment.as_ref().unwrap()
    }

    fn signal(&mut self, target: Target) -> Result<u64, Errno> {
        self.broker.signal(target).map_err(broker)?;
        Ok(0)
    }

    fn make(
        &mut self,
        name: &str,
        size_bytes: u64,
        page_bytes: u64,
        mode: u64,
        signallable: bool,
    ) -> Result<u64, Errno> {
        let request = SegmentRequest {
            name: name.to_owned(),
            size_bytes,
            mode: u32::try_from(mode).unwrap(),
            gid: None,
            hugetlb: match page_bytes {
                4096 => Hugetlb::No,
                _ => Hugetlb::Yes,
            },
            signallable,
        };
        let segment = self.broker.make_segment(&request).map_err(broker)?;
        assert_eq!(segment.page_bytes, page_bytes);
        self.segment = Some(segment);
        Ok(0)
    }

    fn snapshot(&mut self, name: &str, bytes: u64, chunk: u64) -> Result<u64, Errno> {
        let chunk = match chunk {
            4096 => Chunk::Kib4,
            _ => Chunk::Mib2,
        };
        let options = Options {
            chunk,
            banks: 3,
            ..Options::default()
        };
        self.arena = Some(Arena::create(name, bytes, options).map_err(guest)?);
        Ok(0)
    }

    fn publish(&mut self, value: u64) -> Result<u64, Errno> {
        let arena = self.arena.as_mut().unwrap();
        let words = usize::try_from(arena.size_bytes() / 8).unwrap();
        let all = arena.slice_mut::<u64>(0, words).map_err(guest)?;
        all.iter_mut().step_by(512).for_each(|word| *word = value);
        arena.publish(value, 0.0).map_err(guest)?;
        Ok(0)
    }

    fn attach(&mut self, offset: u64, len: u64) -> Result<u64, Errno> {
        let info = self.broker.info(self.found).map_err(broker)?;
        if info.kind == SegmentKind::Plain {
            let len = match len {
                0 => info.size_bytes,
                len => len,
            };
            let plain = self.broker.attach_segment(self.apid, offset, len);
            self.attached = Some(Attached::Plain(plain.map_err(broker)?));
            return Ok(len);
        }
        if offset != 0 {
            let piece = self.broker.attach_segment(self.apid, offset, len.max(1));
            return piece.map(|_| 0).map_err(broker);
        }
        let broker_of_its_own = Broker::connect(&self.socket).map_err(broker)?;
        let stream = Stream::over(broker_of_its_own, self.found, Policy::Latest);
        let stream = Box::new(stream.map_err(broker)?);
        self.attached = Some(Attached::Arena(stream, 0, Vec::new()));
        self.next()?;
        Ok(info.size_bytes)
    }

    fn next(&mut self) -> Result<u64, Errno> {
        let Some(Attached::Arena(stream, address, words)) = &mut self.attached else {
            return Err(Errno::INVAL);
        };
        let Some(snapshot) = stream.next(Some(PATIENCE)).map_err(broker)? else {
            return Ok(0);
        };
        let bytes = snapshot.as_slice();
        *address = bytes.as_ptr().addr();
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
        *words = bytes.chunks_exact(8).map(word).collect();
        Ok(1)
    }

    fn load(&self, offset: u64) -> Result<u64, Errno> {
        match &self.attached {
            Some(Attached::Plain(plain)) => word(&plain.memory, offset),
            Some(Attached::Arena(_, _, words)) => {
                let index = usize::try_from(offset / 8).unwrap();
                words.get(index).copied().ok_or(Errno::RANGE)
            }
            None => Err(Errno::INVAL),
        }
    }

    fn detach(&mut self) -> Result<u64, Errno> {
        if let Some(Attached::Plain(plain)) = self.attached.take() {
            // After the end of the segment there is nothing to say to the broker.
            self.broker.detach_segment(plain).map_err(broker)?;
        }
        Ok(0)
    }
}

fn word_of(segment: &Segment, offset: u64) -> Result<u64, Errno> {
    word(segment.memory.as_ref().unwrap(), offset)
}
