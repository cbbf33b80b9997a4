//! The connection to the broker: one request, one reply.
//!
//! Called by [`super`] when an arena is made, named or ended; a publish says
//! nothing here. The messages are those of `enclave_abi::exporter`. A broker
//! that takes longer than it may, or breaks the protocol, is as good as gone:
//! the connection is not used again.
//!
//! The process that answers must be ours or root's: the socket's directory may
//! be one that others can write.

use super::os::{self, Fd};
use super::place;
use crate::errno::Errno;
use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{Geometry, NAME_BYTES};
use enclave_abi::exporter::{
    About, ArenaMakeBody, END_CLOSED, ErrorBody, HUGETLB_NO, MessageHeader, Named, Numbers,
    PROTOCOL_VERSION, ROLE_EXPORTER, Words, kind,
};
use enclave_abi::syscall::ArenaArgs;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How long the broker may take to answer.
const ANSWER_WITHIN_MS: u32 = 10_000;
/// Longest reply to an exporter.
const MOST: usize = size_of::<MessageHeader>() + size_of::<ErrorBody>();

/// What a reply says, and the descriptors that came with it.
type Answer = (Words, [Option<Fd>; 2]);

/// A connection that has said hello.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Fd,
    seq: u32,
    is_broken: bool,
}

/// A new arena, before it is mapped.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) segid: u64,
    pub(super) page_bytes: u64,
    pub(super) memory: Fd,
    pub(super) doorbell: Fd,
}

/// Connects; starts a broker first if nobody listens.
pub(super) fn connect() -> Result<Connection, Errno> {
    let socket = place::socket()?;
    match Connection::open(&socket) {
        Err(Absent::Nobody) => {}
        Err(Absent::Other(errno)) => return Err(errno),
        Ok(connection) => return Ok(connection),
    }
    place::start_broker()?;
    Connection::open(&socket).map_err(|absent| match absent {
        Absent::Nobody => Errno::ENOTCONN,
        Absent::Other(errno) => errno,
    })
}

/// Why there is no connection.
enum Absent {
    /// A fresh broker could mend that.
    Nobody,
    Other(Errno),
}

impl From<Errno> for Absent {
    fn from(errno: Errno) -> Self {
        match errno {
            // A broker that was about to end hangs up without an answer.
            Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTCONN => Self::Nobody,
            other => Self::Other(other),
        }
    }
}

impl Connection {
    fn open(socket: &place::Path) -> Result<Self, Absent> {
        let socket = os::connect(socket.as_c(), ANSWER_WITHIN_MS)?;
        let user = os::peer_user(&socket)?;
        if user != 0 && user != os::user_id() {
            return Err(Absent::Other(Errno::EPERM));
        }
        let mut connection = Self {
            socket,
            seq: 0,
            is_broken: false,
        };
        let hello = Numbers {
            first: ROLE_EXPORTER,
            second: ABI_VERSION,
        };
        connection.ask(kind::HELLO, &hello, kind::WELCOME)?;
        Ok(connection)
    }

    /// Whether the broker is still there.
    pub(super) fn is_alive(&self) -> bool {
        !self.is_broken && !os::is_hung_up(self.socket.raw())
    }

    /// Names this process for the broker; returns the lease page.
    pub(super) fn register(&mut self, name: [u8; NAME_BYTES]) -> Result<Fd, Errno> {
        let body = Named {
            id: 0,
            name,
            number: 0,
            pad: 0,
        };
        let (_, fds) = self.ask(kind::REGISTER_ENCLAVE, &body, kind::LEASE_PAGE)?;
        let [page, _] = fds;
        page.ok_or(Errno::EPROTO)
    }

    /// Makes an arena in `slot`.
    pub(super) fn arena_make(
        &mut self,
        slot: u32,
        args: &ArenaArgs,
        geometry: &Geometry,
    ) -> Result<Grant, Errno> {
        let body = ArenaMakeBody {
            name: args.name,
            size_bytes: args.size_bytes,
            chunk_bytes: args.chunk_bytes,
            slot,
            nr_banks: args.nr_banks,
            // 2 MiB pages refuse the second mapping that a chunk is swung by.
            hugetlb: HUGETLB_NO,
            reader_gid: args.reader_gid,
            retain: args.retain,
            pad: 0,
        };
        let (words, fds) = self.ask(kind::ARENA_MAKE, &body, kind::ARENA)?;
        match fds {
            [Some(memory), Some(doorbell)] if words.b == geometry.object_bytes => Ok(Grant {
                segid: words.a,
                page_bytes: words.c,
                memory,
                doorbell,
            }),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Tells that the object is mapped: it is sealed, and readers find it.
    pub(super) fn mapped(&mut self, segid: u64) -> Result<(), Errno> {
        self.about(kind::MAPPED, segid, 0)
    }

    /// Ends an arena.
    pub(super) fn arena_end(&mut self, segid: u64) -> Result<(), Errno> {
        self.about(kind::ARENA_END, segid, END_CLOSED)
    }

    /// Gives an arena a further name.
    pub(super) fn name(&mut self, segid: u64, name: [u8; NAME_BYTES]) -> Result<(), Errno> {
        let body = Named {
            id: segid,
            name,
            number: 0,
            pad: 0,
        };
        self.ask(kind::NAME, &body, kind::OK).map(drop)
    }

    fn about(&mut self, what: u16, id: u64, choice: u32) -> Result<(), Errno> {
        let body = About {
            id,
            number: 0,
            choice,
            pad: 0,
        };
        self.ask(what, &body, kind::OK).map(drop)
    }

    /// One request, one reply of the kind `wanted`, or the broker's refusal.
    fn ask<B: IntoBytes + Immutable>(
        &mut self,
        what: u16,
        body: &B,
        wanted: u16,
    ) -> Result<Answer, Errno> {
        if self.is_broken {
            return Err(Errno::ENOTCONN);
        }
        self.seq = self.seq.wrapping_add(1);
        let header = MessageHeader {
            version: PROTOCOL_VERSION,
            kind: what,
            seq: self.seq,
        };
        let answer = self.exchange(header, body.as_bytes(), wanted);
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => Err(refusal),
            Err(errno) => {
                self.is_broken = true;
                Err(errno)
            }
        }
    }

    /// The inner result is the broker's, the outer one the connection's.
    fn exchange(
        &self,
        header: MessageHeader,
        body: &[u8],
        wanted: u16,
    ) -> Result<Result<Answer, Errno>, Errno> {
        // A broker that has hung up may have said why before: receive anyway.
        let _ = os::send(&self.socket, header.as_bytes(), body);
        let mut bytes = [0; MOST];
        let (reply, len, fds) = loop {
            let received = match os::receive(&self.socket, &mut bytes) {
                Ok(received) if received.len > 0 => received,
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                _ => return Err(Errno::ENOTCONN),
            };
            let bytes = bytes.get(..received.len).ok_or(Errno::EPROTO)?;
            let reply = MessageHeader::read_from_prefix(bytes);
            let (reply, _) = reply.map_err(|_| Errno::EPROTO)?;
            if received.cut || reply.version != PROTOCOL_VERSION {
                return Err(Errno::EPROTO);
            }
            // A broker that was killed just when it had answered leaves that
            // to its successor, who answers again.
            if !(1..header.seq).contains(&reply.seq) {
                break (reply, received.len, received.fds);
            }
        };
        if reply.seq != header.seq {
            return Err(Errno::EPROTO);
        }
        let rest = bytes.get(size_of::<MessageHeader>()..len);
        let rest = rest.ok_or(Errno::EPROTO)?;
        if reply.kind == kind::ERROR {
            let error = ErrorBody::read_from_bytes(rest).map_err(|_| Errno::EPROTO)?;
            let errno = i32::try_from(error.errno).ok().and_then(Errno::from_raw);
            return Ok(Err(errno.ok_or(Errno::EPROTO)?));
        }
        let words = Words::read_from_bytes(rest).map_err(|_| Errno::EPROTO)?;
        if reply.kind == wanted {
            Ok(Ok((words, fds)))
        } else {
            Err(Errno::EPROTO)
        }
    }
}
