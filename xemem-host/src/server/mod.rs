//! The broker in the world: one thread, one epoll, effects become system calls.
//!
//! Called by `xemem-broker`; decisions are [`crate::broker`]'s. Each turn of
//! the loop takes what is ready (at most one packet per connection and turn,
//! so that no client starves another), hands it to the broker and carries out
//! the effects before looking again. Sockets never block: a client that does
//! not read its replies is dropped. A client's mistake ends that client only.

mod objects;
mod plain;
mod signals;
mod startup;

use crate::broker::{Broker, Effect, Env, Fds, PeerId, Retention, Settings, Ticket};
use crate::wire::socket::{Packet, receive, send};
use crate::wire::{Reply, Request, SegId, Target, WireError, seq_of};
use objects::Objects;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use startup::{Claim, Listener};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// How a server is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long to stay without any client.
    pub linger: Duration,
    /// Doorbell budget, see [`crate::broker::RINGS_PER_SECOND`].
    pub rings_per_second: u64,
    /// For how long and how much ended arenas are retained.
    pub retention: Retention,
}

/// Why there is no server, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A system call about a path failed.
    #[error("cannot {what} {path}: {source}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: Errno,
    },
    /// Something that is no socket has its name.
    #[error("{0} is in the way: it is not a socket")]
    NotSocket(PathBuf),
    /// Another system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: Errno,
    },
}

impl ServerError {
    fn path(what: &'static str, path: &Path, source: Errno) -> Self {
        let path = path.to_owned();
        Self::Path { what, path, source }
    }

    fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self::System { what, source }
    }
}

/// What an epoll event is about, packed into its 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Listener,
    Signals,
    Connection(PeerId),
    Doorbell(SegId),
    /// The process that made a connection.
    Process(PeerId),
}

impl Source {
    fn pack(self) -> epoll::EventData {
        let (tag, id) = match self {
            Self::Listener => (0, 0),
            Self::Signals => (1, 0),
            Self::Connection(PeerId(id)) => (2, id),
            Self::Doorbell(SegId(id)) => (3, id),
            Self::Process(PeerId(id)) => (4, id),
        };
        epoll::EventData::new_u64(id << 3 | tag)
    }

    fn unpack(data: epoll::EventData) -> Self {
        let (tag, id) = (data.u64() & 7, data.u64() >> 3);
        match tag {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::Connection(PeerId(id)),
            3 => Self::Doorbell(SegId(id)),
            _ => Self::Process(PeerId(id)),
        }
    }
}

/// A connection.
#[derive(Debug)]
struct Connected {
    socket: OwnedFd,
    /// Watched, if there is one.
    _process: Option<OwnedFd>,
}

/// A broker that listens.
#[derive(Debug)]
pub struct Server {
    broker: Broker,
    objects: Objects,
    connections: BTreeMap<PeerId, Connected>,
    listener: Listener,
    /// Watched by `epoll`.
    _signals: OwnedFd,
    epoll: OwnedFd,
    /// False while there are no descriptors left to accept with.
    accepting: bool,
    last_peer: u64,
    begin: Instant,
    done: bool,
}

impl Server {
    /// Starts to listen at `socket`; `None` if another broker serves there.
    ///
    /// # Errors
    /// [`ServerError`]; nothing is left behind but the lock file.
    pub fn start(socket: &Path, options: Options) -> Result<Option<Self>, ServerError> {
        let Claim::Ours(listener) = startup::claim(socket)? else {
            return Ok(None);
        };
        raise_descriptor_limit();
        let signals = signals::termination().map_err(ServerError::system("wait for signals"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(ServerError::system("make an epoll"))?;
        for (fd, source) in [
            (listener.fd.as_fd(), Source::Listener),
            (signals.as_fd(), Source::Signals),
        ] {
            epoll::add(&epoll, fd, source.pack(), epoll::EventFlags::IN)
                .map_err(ServerError::system("watch a descriptor"))?;
        }
        let settings = Settings {
            owner_uid: rustix::process::geteuid().as_raw(),
            pid: std::process::id(),
            linger_ms: millis(options.linger),
            rings_per_second: options.rings_per_second,
            retention: options.retention,
        };
        Ok(Some(Self {
            broker: Broker::new(settings, 0),
            objects: Objects::default(),
            connections: BTreeMap::new(),
            listener,
            _signals: signals,
            epoll,
            accepting: true,
            last_peer: 0,
            begin: Instant::now(),
            done: false,
        }))
    }

    /// Serves until it has been without clients for long enough, is told to
    /// end, or a SIGTERM or SIGINT comes.
    ///
    /// # Errors
    /// The event loop itself failed.
    pub fn run(mut self) -> Result<(), ServerError> {
        let mut events = Vec::with_capacity(EVENTS);
        while !self.done {
            let timeout = self.timeout();
            events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(ServerError::system("wait for events")(errno)),
            }
            for event in &events {
                let data = event.data;
                self.serve(Source::unpack(data));
            }
            self.with_broker(|broker, env| broker.tick(env));
        }
        Ok(())
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.done = true,
            Source::Connection(peer) => self.receive(peer),
            // A forked child may still hold the socket; it must not be taken
            // for the process whose segments and leases these are.
            Source::Process(peer) => self.hang_up(peer),
            Source::Doorbell(segid) => {
                let rings = self.objects.read_doorbell(segid);
                if rings > 0 {
                    self.with_broker(|broker, env| broker.doorbell(segid, rings, env));
                }
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(&self.listener.fd, flags) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE) => {
                // Accept again when somebody leaves.
                self.accepting = epoll::delete(&self.epoll, &self.listener.fd).is_err();
                return;
            }
            Err(_) => return,
        };
        let Ok(credentials) = crate::peer::credentials(&socket) else {
            return;
        };
        self.last_peer += 1;
        let peer = PeerId(self.last_peer);
        let source = Source::Connection(peer).pack();
        if epoll::add(&self.epoll, &socket, source, epoll::EventFlags::IN).is_ok() {
            let process = crate::peer::process(&socket).filter(|process| {
                let source = Source::Process(peer).pack();
                epoll::add(&self.epoll, process, source, epoll::EventFlags::IN).is_ok()
            });
            let connected = Connected {
                socket,
                _process: process,
            };
            self.connections.insert(peer, connected);
            self.with_broker(|broker, _| broker.connected(peer, credentials));
        }
    }

    fn receive(&mut self, peer: PeerId) {
        let Some(connected) = self.connections.get(&peer) else {
            return;
        };
        match receive(&connected.socket) {
            Ok(packet) if packet.bytes.is_empty() && packet.fds.is_empty() => self.hang_up(peer),
            Ok(packet) => match request(&packet) {
                Ok((seq, request)) => {
                    self.with_broker(|broker, env| broker.handle(peer, seq, &request, env));
                }
                Err(error) => {
                    let seq = seq_of(&packet.bytes);
                    self.with_broker(|broker, env| broker.protocol_error(peer, seq, &error, env));
                }
            },
            Err(Errno::AGAIN) => {}
            Err(_) => self.hang_up(peer),
        }
    }

    /// The connection is of no more use.
    fn hang_up(&mut self, peer: PeerId) {
        self.close(peer);
        self.with_broker(|broker, env| broker.disconnected(peer, env));
    }

    fn close(&mut self, peer: PeerId) {
        self.connections.remove(&peer);
        if !self.accepting {
            let source = Source::Listener.pack();
            let flags = epoll::EventFlags::IN;
            self.accepting = epoll::add(&self.epoll, &self.listener.fd, source, flags).is_ok();
        }
    }

    /// Lets the broker decide and carries out what it wants, also what
    /// follows from the outcome.
    fn with_broker(&mut self, decide: impl FnOnce(&mut Broker, Env<'_>)) {
        let now_ms = millis(self.begin.elapsed());
        decide(&mut self.broker, env(&self.objects, now_ms));
        let mut effects: VecDeque<Effect> = self.broker.take_effects().into();
        while let Some(effect) = effects.pop_front() {
            match self.carry_out(effect) {
                Outcome::Done => continue,
                Outcome::Finished(ticket, result) => {
                    self.broker
                        .finish(ticket, result, env(&self.objects, now_ms));
                }
                Outcome::Unreachable(peer) => {
                    self.close(peer);
                    self.broker.disconnected(peer, env(&self.objects, now_ms));
                }
            }
            effects.extend(self.broker.take_effects());
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Outcome {
        match effect {
            Effect::Send {
                peer,
                seq,
                reply,
                fds,
            } => return self.send(peer, seq, &reply, fds),
            Effect::MakeLeasePage { ticket, enclave } => {
                let made = self.objects.make_lease_page(enclave);
                return Outcome::Finished(ticket, made.map(|()| 0));
            }
            Effect::MakeArena {
                ticket,
                segid,
                object_bytes,
                hugetlb,
            } => {
                let made = self.objects.make_arena(segid, object_bytes, hugetlb);
                return Outcome::Finished(ticket, made);
            }
            Effect::SealArena { ticket, segid } => {
                let sealed = self.objects.seal_arena(segid);
                let watched = sealed.and_then(|()| self.watch(segid));
                return Outcome::Finished(ticket, watched.map(|()| 0));
            }
            Effect::MakeSegment {
                ticket,
                segid,
                size_bytes,
                hugetlb,
            } => {
                let made = self.objects.make_segment(segid, size_bytes, hugetlb);
                return Outcome::Finished(ticket, made);
            }
            Effect::SealSegment {
                ticket,
                segid,
                writable,
            } => {
                let sealed = self.objects.seal_segment(segid, writable);
                return Outcome::Finished(ticket, sealed.map(|()| 0));
            }
            Effect::MakeNotify { ticket, target } => {
                let made = self.objects.make_notify(target);
                return Outcome::Finished(ticket, made.map(|()| 0));
            }
            Effect::Notify { target, count } => self.objects.notify(target, count),
            Effect::PauseDoorbell(segid) => {
                if let Some(fd) = self.objects.doorbell(segid) {
                    // Not watched if the arena never was sealed.
                    let _ = epoll::delete(&self.epoll, fd);
                }
            }
            Effect::ResumeDoorbell(segid) => {
                // Out of memory at worst; the reader's next request advances.
                let _ = self.watch(segid);
            }
            Effect::DropNotify(target) => self.objects.drop_notify(target),
            Effect::DropArena(segid) => self.objects.drop_arena(segid),
            Effect::DropSegment(segid) => self.objects.drop_segment(segid),
            Effect::DropLeasePage(enclave) => self.objects.drop_lease_page(enclave),
            Effect::Disconnect(peer) => self.close(peer),
            Effect::Exit => self.done = true,
        }
        Outcome::Done
    }

    fn watch(&self, segid: SegId) -> Result<(), Errno> {
        let doorbell = self.objects.doorbell(segid).ok_or(Errno::NOENT)?;
        let source = Source::Doorbell(segid).pack();
        epoll::add(&self.epoll, doorbell, source, epoll::EventFlags::IN)
    }

    fn send(&self, peer: PeerId, seq: u32, reply: &Reply, fds: Fds) -> Outcome {
        let objects = &self.objects;
        let fds = match fds {
            Fds::None => Some(Vec::new()),
            Fds::LeasePage(enclave) => objects.lease_page(enclave).map(|page| vec![page]),
            Fds::Arena(segid) => objects
                .open_arena(segid)
                .zip(objects.doorbell(segid))
                .map(|(memory, doorbell)| vec![memory, doorbell]),
            Fds::Attachment(segid, apid) => objects
                .sealed_arena(segid)
                .zip(objects.notify_fd(Target::Access(apid)))
                .map(|(memory, notify)| vec![memory, notify]),
            Fds::Segment(segid) => objects.open_segment(segid).map(|memory| vec![memory]),
            Fds::Memory(segid, access) => objects
                .segment_memory(segid, access)
                .map(|memory| vec![memory]),
            Fds::Wait(target) => objects.notify_fd(target).map(|wait| vec![wait]),
        };
        let connected = self.connections.get(&peer);
        let sent = connected.zip(fds).map(|(connected, fds)| {
            debug_assert_eq!(fds.len(), reply.nr_fds(), "descriptors of {reply:?}");
            send(&connected.socket, &reply.encode(seq), &fds)
        });
        match sent {
            Some(Ok(())) => Outcome::Done,
            _ => Outcome::Unreachable(peer),
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let deadline_ms = self.broker.next_deadline()?;
        let left = deadline_ms.saturating_sub(millis(self.begin.elapsed()));
        Timespec::try_from(Duration::from_millis(left)).ok()
    }
}

fn env(memory: &Objects, now_ms: u64) -> Env<'_> {
    Env { memory, now_ms }
}

/// What came of an effect.
enum Outcome {
    Done,
    Finished(Ticket, Result<u64, Errno>),
    Unreachable(PeerId),
}

/// The request in a packet, which must carry no descriptors (they are closed
/// with the packet).
fn request(packet: &Packet) -> Result<(u32, Request), WireError> {
    if packet.fds_cut || !packet.fds.is_empty() {
        let got = packet.fds.len() + usize::from(packet.fds_cut);
        return Err(WireError::Fds { got, want: 0 });
    }
    Request::decode(&packet.bytes)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Every reader costs an eventfd: use what the administrator allows.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_packing() {
        for source in [
            Source::Listener,
            Source::Signals,
            Source::Connection(PeerId(1 << 40)),
            Source::Doorbell(SegId(7)),
            Source::Process(PeerId(3)),
        ] {
            assert_eq!(Source::unpack(source.pack()), source);
        }
    }
}
