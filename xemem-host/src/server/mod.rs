//! The broker in the world: one thread, one epoll, effects become system calls.
//!
//! Called by `xemem-broker`; decisions are [`crate::broker`]'s. Each turn of
//! the loop takes what is ready (at most one packet per connection and turn,
//! so that no client starves another), hands it to the broker and carries out
//! the effects before looking again. Sockets never block: a client that does
//! not read its replies is dropped. A client's mistake ends that client only.

mod carry_out;
mod custody;
mod journal;
mod objects;
mod plain;
mod pool;
pub(crate) mod signals;
pub(crate) mod startup;
mod take_over;

pub(crate) use take_over::everything;

use crate::broker::{Broker, PeerId, Retention, Settings};
use crate::keeper::channel::Key;
use crate::wire::socket::{Packet, discard, peek};
use crate::wire::{Request, SegId, WireError, seq_of};
use journal::Journal;
use objects::Objects;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use startup::{Claim, Place};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// How a server is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long to stay without any client.
    pub linger: Duration,
    /// Doorbell budget, see [`crate::broker::RINGS_PER_SECOND`].
    pub rings_per_second: u64,
    /// For how long and how much ended arenas are retained.
    pub retention: Retention,
    /// Who may do what root may, if it is not the user that serves: a broker of
    /// root's is another user, and others of that user are not trusted.
    pub owner_uid: Option<u32>,
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
    /// It cannot become the user that it should be.
    #[error(transparent)]
    User(#[from] crate::user::UserError),
    /// The directory of the socket is not root's alone.
    #[error("a broker of root's needs a directory that only root can write: {0}")]
    Directory(#[from] crate::rundir::RunDirError),
    /// Brokers die faster than is worth starting them.
    #[error("{deaths} brokers died within a minute, the last of {last}")]
    CrashLoop {
        /// How many.
        deaths: usize,
        /// What became of the last one.
        last: String,
    },
}

impl ServerError {
    pub(crate) fn path(what: &'static str, path: &Path, source: Errno) -> Self {
        let path = path.to_owned();
        Self::Path { what, path, source }
    }

    pub(crate) fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self::System { what, source }
    }
}

/// What an epoll event is about, packed into its 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Listener,
    Signals,
    Keeper,
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
            Self::Keeper => (5, 0),
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
            4 => Self::Process(PeerId(id)),
            _ => Self::Keeper,
        }
    }
}

/// A connection.
#[derive(Debug)]
struct Connected {
    socket: OwnedFd,
    /// Watched, if there is one.
    process: Option<OwnedFd>,
}

/// A broker that listens.
#[derive(Debug)]
pub struct Server {
    broker: Broker,
    objects: Objects,
    connections: BTreeMap<PeerId, Connected>,
    /// What is decided, if there is somebody to keep it.
    journal: Option<Journal>,
    listener: OwnedFd,
    /// Without a keeper.
    place: Option<Place>,
    /// With one.
    kept: Option<Kept>,
    /// Watched by `epoll`.
    _signals: OwnedFd,
    epoll: OwnedFd,
    /// False while there are no descriptors left to accept with.
    accepting: bool,
    last_peer: u64,
    done: bool,
}

/// What it takes to start another keeper.
#[derive(Debug)]
struct Kept {
    lock: OwnedFd,
    command: crate::keeper::Command,
    /// The keeper that started this process.
    parent: Option<OwnedFd>,
    /// One that this process started.
    child: Option<Child>,
}

impl Server {
    /// Starts to listen at `socket`; `None` if another broker serves there.
    /// What it decides ends with this process: see [`crate::keeper`] for one
    /// that can be killed.
    ///
    /// # Errors
    /// [`ServerError`]; nothing is left behind but the lock file.
    pub fn start(socket: &Path, options: Options) -> Result<Option<Self>, ServerError> {
        let Claim::Ours(listener, place) = startup::claim(socket)? else {
            return Ok(None);
        };
        let broker = Broker::new(settings(options), now_ms());
        let mut server = Self::new(listener, broker, Objects::default())?;
        server.place = Some(place);
        Ok(Some(server))
    }

    fn new(listener: OwnedFd, broker: Broker, objects: Objects) -> Result<Self, ServerError> {
        raise_descriptor_limit();
        let signals = signals::termination().map_err(ServerError::system("wait for signals"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(ServerError::system("make an epoll"))?;
        for (fd, source) in [
            (listener.as_fd(), Source::Listener),
            (signals.as_fd(), Source::Signals),
        ] {
            epoll::add(&epoll, fd, source.pack(), epoll::EventFlags::IN)
                .map_err(ServerError::system("watch a descriptor"))?;
        }
        Ok(Self {
            last_peer: broker.last_peer(),
            broker,
            objects,
            connections: BTreeMap::new(),
            journal: None,
            listener,
            place: None,
            kept: None,
            _signals: signals,
            epoll,
            accepting: true,
            done: false,
        })
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
            self.with_broker(None, |broker, env| broker.tick(env));
            self.renew_keeper();
        }
        self.say_goodbye();
        Ok(())
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.done = true,
            Source::Keeper => self.objects.custody.lose(),
            Source::Connection(peer) => self.receive(peer),
            // A forked child may still hold the socket; it must not be taken
            // for the process whose segments and leases these are.
            Source::Process(peer) => self.hang_up(peer),
            Source::Doorbell(segid) => {
                let rings = self.objects.read_doorbell(segid);
                if rings > 0 {
                    self.with_broker(None, |broker, env| broker.doorbell(segid, rings, env));
                }
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE) => {
                // Accept again when somebody leaves.
                self.accepting = epoll::delete(&self.epoll, &self.listener).is_err();
                return;
            }
            Err(_) => return,
        };
        self.last_peer += 1;
        let peer = PeerId(self.last_peer);
        let process = crate::peer::process(&socket);
        let custody = &self.objects.custody;
        custody.put(Key::Connection(peer), &socket);
        if let Some(process) = &process {
            custody.put(Key::Process(peer), process);
        }
        self.welcome(peer, socket, process);
    }

    /// Watches a connection, and lets the broker know it unless it does.
    fn welcome(&mut self, peer: PeerId, socket: OwnedFd, process: Option<OwnedFd>) {
        let watch = |fd: BorrowedFd<'_>, source: Source| {
            epoll::add(&self.epoll, fd, source.pack(), epoll::EventFlags::IN).is_ok()
        };
        let process = process.filter(|fd| watch(fd.as_fd(), Source::Process(peer)));
        let is_watched = watch(socket.as_fd(), Source::Connection(peer));
        let credentials = crate::peer::credentials(&socket);
        self.connections.insert(peer, Connected { socket, process });
        match credentials {
            Ok(credentials) if is_watched => {
                if !self.broker.knows(peer) {
                    self.with_broker(None, |broker, _| broker.connected(peer, credentials));
                }
            }
            _ => self.hang_up(peer),
        }
    }

    /// Serves one request, which stays in the socket until what follows from
    /// it is recorded and said: should we die before, our successor finds it.
    fn receive(&mut self, peer: PeerId) {
        self.answer(peer);
        if let Some(connected) = self.connections.get(&peer) {
            // What can be peeked at can be taken; if not, it shows next time.
            let _ = discard(&connected.socket);
        }
    }

    /// Does what the request in a socket asks for, if there is one, and leaves it
    /// there.
    fn answer(&mut self, peer: PeerId) {
        let Some(connected) = self.connections.get(&peer) else {
            return;
        };
        match peek(&connected.socket) {
            Ok(packet) if packet.bytes.is_empty() && packet.fds.is_empty() => self.hang_up(peer),
            Ok(packet) => match request(&packet) {
                Ok((seq, request)) => {
                    let served = Some((peer, seq));
                    self.with_broker(served, |broker, env| {
                        broker.handle(peer, seq, &request, env);
                    });
                }
                Err(error) => {
                    let seq = seq_of(&packet.bytes);
                    self.with_broker(None, |broker, env| {
                        broker.protocol_error(peer, seq, &error, env);
                    });
                }
            },
            Err(Errno::AGAIN) => {}
            Err(_) => self.hang_up(peer),
        }
    }

    /// The connection is of no more use.
    fn hang_up(&mut self, peer: PeerId) {
        self.with_broker(None, |broker, env| broker.disconnected(peer, env));
        self.close(peer);
    }

    fn close(&mut self, peer: PeerId) {
        if let Some(connected) = self.connections.remove(&peer) {
            // The request that this is the end of; left there, it would make
            // the kernel report a reset before our last words.
            let _ = discard(&connected.socket);
            // The keeper has a descriptor, too, and so may a forked child: by
            // closing ours nothing ends, nor does epoll forget it.
            let _ = shutdown(&connected.socket, Shutdown::Both);
            let _ = epoll::delete(&self.epoll, &connected.socket);
            if let Some(process) = &connected.process {
                let _ = epoll::delete(&self.epoll, process);
            }
            let custody = &self.objects.custody;
            custody.withdraw(Key::Connection(peer));
            if connected.process.is_some() {
                custody.withdraw(Key::Process(peer));
            }
        }
        if !self.accepting {
            let source = Source::Listener.pack();
            let flags = epoll::EventFlags::IN;
            self.accepting = epoll::add(&self.epoll, &self.listener, source, flags).is_ok();
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let deadline_ms = self.broker.next_deadline()?;
        let left = deadline_ms.saturating_sub(now_ms());
        Timespec::try_from(Duration::from_millis(left)).ok()
    }
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

/// Milliseconds since this host started, the same for every process.
fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).map_or(0, millis)
}

fn settings(options: Options) -> Settings {
    Settings {
        owner_uid: options
            .owner_uid
            .unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        pid: std::process::id(),
        keeper: 0,
        linger_ms: millis(options.linger),
        rings_per_second: options.rings_per_second,
        retention: options.retention,
    }
}

/// Every reader costs an eventfd: use what the administrator allows.
pub(crate) fn raise_descriptor_limit() {
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
            Source::Keeper,
        ] {
            assert_eq!(Source::unpack(source.pack()), source);
        }
    }
}
