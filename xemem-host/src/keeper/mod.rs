//! The keeper: a process that holds what a broker must not lose, and starts
//! another broker when one dies.
//!
//! ```text
//!  keeper ── channel ── broker ── connections ── clients
//!    └ duplicates of every descriptor      └ decides, records, answers
//! ```
//!
//! `xemem-broker` starts as the keeper and starts the broker, the same program
//! in another role; their channel is its standard input. The keeper decides
//! nothing and talks to nobody else; it opens nothing that others could connect
//! to. Clients keep their sockets, so their identity, over a broker's death.
//! When the keeper dies the broker starts another one. When both are gone at
//! once everything is, as without them.
//!
//! A keeper that root starts becomes another user ([`crate::user`]) once it has
//! lock and socket; a porter removes the socket for it at the end.

pub(crate) mod channel;
mod porter;

use crate::server::startup::{Claim, Place, claim};
use crate::server::{Options, Server, ServerError, raise_descriptor_limit, signals};
use crate::user::{self, User};
use channel::{Channel, Key, Message, PATIENCE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Brokers that may die within a minute, unless told otherwise.
pub const DEATHS_PER_MINUTE: u32 = 30;
/// This program, even if its file was replaced meanwhile: the one that
/// understands the journal.
const SELF: &str = "/proc/self/exe";

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The first: claims the run directory, keeps, starts a broker.
    First,
    /// A broker for the keeper at standard input.
    Broker,
    /// A keeper for the broker at standard input.
    Keeper,
    /// Removes the socket when all is over.
    Porter,
}

impl Role {
    /// Its name as an argument.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Broker => "broker",
            Self::Keeper => "keeper",
            Self::Porter => "porter",
        }
    }
}

/// How to start this program again.
#[derive(Clone, Debug)]
pub struct Command {
    /// Where to listen.
    pub socket: PathBuf,
    /// How to serve.
    pub options: Options,
    /// Brokers that may die within a minute.
    pub deaths_per_minute: u32,
    /// Who to become, if another user than the one that starts it.
    pub user: Option<User>,
}

impl Command {
    fn start(&self, role: Role, input: Stdio) -> Result<Child, Errno> {
        let mut command = std::process::Command::new(SELF);
        let Options {
            linger,
            rings_per_second,
            retention,
            owner_uid,
        } = self.options;
        let numbers = [
            (
                "--linger-ms",
                u64::try_from(linger.as_millis()).unwrap_or(u64::MAX),
            ),
            ("--rings-per-second", rings_per_second),
            ("--retain-ms", retention.for_ms),
            ("--retain-bytes", retention.bytes_per_user),
            ("--deaths-per-minute", self.deaths_per_minute.into()),
        ];
        for (name, number) in numbers {
            command.arg(name).arg(number.to_string());
        }
        if let Some(uid) = owner_uid {
            command.arg("--owner").arg(uid.to_string());
        }
        let child = command
            .arg0("xemem-broker")
            .args(["--role", role.name(), "--socket"])
            .arg(&self.socket)
            .stdin(input)
            .stdout(Stdio::null())
            .spawn();
        child.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    pub(crate) fn start_keeper(&self, channel: Channel) -> Result<Child, Errno> {
        self.start(Role::Keeper, Stdio::from(channel.into_fd()))
    }

    /// Does what `role` says until it is over. `announce` is called once there
    /// is a broker that serves: this one, or another that was there before.
    ///
    /// # Errors
    /// [`ServerError`]: it cannot begin, or not go on.
    pub fn run(self, role: Role, announce: impl FnOnce()) -> Result<(), ServerError> {
        if self.options.owner_uid.is_some() {
            user::hide().map_err(ServerError::system("hide from others of this user"))?;
        }
        match role {
            Role::First => self.keep(announce),
            Role::Broker => {
                name_process(c"xemem-broker");
                let channel = inherited()?;
                Server::for_keeper(channel, self.options, self)?.run()
            }
            Role::Keeper => self.keep_on(),
            Role::Porter => {
                name_process(c"xemem-porter");
                porter::wait_and_remove(&self.socket)
            }
        }
    }

    fn keep(mut self, announce: impl FnOnce()) -> Result<(), ServerError> {
        if let (Some(_), Some(directory)) = (self.user, self.socket.parent()) {
            crate::rundir::check_root_alone(directory)?;
        }
        let Claim::Ours(listener, place) = claim(&self.socket)? else {
            announce();
            return Ok(());
        };
        let lock = place.lock().try_clone_to_owned();
        let lock = lock.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            ServerError::system("keep the lock")(errno)
        })?;
        let porter = self.become_user()?;
        let held = BTreeMap::from([(Key::Listener, listener), (Key::Lock, lock)]);
        let mut keeper = Keeper::new(self, place, held)?;
        keeper.announce = Some(announce);
        let broker = keeper.start_broker()?;
        let result = keeper.go_on(broker);
        // Nobody has the lock now: whoever waits for our end finds no socket.
        if let Some(porter) = porter {
            has_ended(&porter);
        }
        result
    }

    /// Starts the porter and becomes the user that serves, if there is one.
    fn become_user(&mut self) -> Result<Option<OwnedFd>, ServerError> {
        let Some(user) = self.user else {
            return Ok(None);
        };
        let failed = || ServerError::system("start a porter");
        self.options.owner_uid = Some(rustix::process::geteuid().as_raw());
        let porter = self.start(Role::Porter, Stdio::null()).map_err(failed())?;
        let process = pidfd_open(Pid::from_child(&porter), PidfdFlags::empty());
        user.become_it()?;
        Ok(Some(process.map_err(failed())?))
    }

    /// Takes over from a keeper that died.
    fn keep_on(self) -> Result<(), ServerError> {
        let failed = ServerError::system("take over from the broker");
        let channel = inherited()?;
        let mut held = crate::server::everything(&channel).map_err(failed)?;
        let missing = || ServerError::system("find lock and broker")(Errno::NOENT);
        let process = held.remove(&Key::Broker).ok_or_else(missing)?;
        let lock = held.get(&Key::Lock).ok_or_else(missing)?;
        let lock = lock.try_clone().map_err(|_| missing())?;
        let place = Place::taken_over(&self.socket, lock);
        let broker = Broker {
            channel,
            process,
            child: None,
        };
        let mut keeper = Keeper::new(self, place, held)?;
        keeper.announce = None::<fn()>;
        keeper.go_on(broker)
    }
}

/// The broker, as its keeper sees it.
#[derive(Debug)]
struct Broker {
    channel: Channel,
    /// Readable when it has ended.
    process: OwnedFd,
    /// If this process started it.
    child: Option<Child>,
}

/// How a broker ended.
enum End {
    /// As it should.
    Left,
    /// It did not say goodbye; what became of it.
    Died(String),
    /// It lives and has another keeper.
    Elsewhere,
}

struct Keeper<A> {
    command: Command,
    place: Place,
    held: BTreeMap<Key, OwnedFd>,
    signals: OwnedFd,
    deaths: VecDeque<Instant>,
    /// It was asked to end: a broker that could not hear that is the last.
    is_ending: bool,
    /// To be called when a broker serves.
    announce: Option<A>,
}

impl<A: FnOnce()> Keeper<A> {
    fn new(
        command: Command,
        place: Place,
        held: BTreeMap<Key, OwnedFd>,
    ) -> Result<Self, ServerError> {
        name_process(c"xemem-keeper");
        raise_descriptor_limit();
        let signals = signals::termination().map_err(ServerError::system("wait for signals"))?;
        Ok(Self {
            command,
            place,
            held,
            signals,
            deaths: VecDeque::new(),
            is_ending: false,
            announce: None,
        })
    }

    fn start_broker(&mut self) -> Result<Broker, ServerError> {
        let failed = || ServerError::system("start a broker");
        let (channel, theirs) = Channel::pair().map_err(failed())?;
        let mut child = self
            .command
            .start(Role::Broker, Stdio::from(theirs.into_fd()))
            .map_err(failed())?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(failed())?;
        let mut all = self.held.iter();
        let given = all.try_for_each(|(key, fd)| channel.put(*key, fd));
        if given.and_then(|()| channel.tell(&Message::End)).is_err() {
            // With a part it would believe that the rest is gone. That it died
            // shows at the channel, as ever.
            let _ = child.kill();
        }
        Ok(Broker {
            channel,
            process,
            child: Some(child),
        })
    }

    /// Attends to one broker after the other until one leaves.
    fn go_on(mut self, mut broker: Broker) -> Result<(), ServerError> {
        loop {
            match self.attend(&mut broker)? {
                End::Left => return Ok(()),
                End::Elsewhere => {
                    self.place.leave();
                    return Ok(());
                }
                End::Died(_) if self.is_ending => return Ok(()),
                End::Died(last) => {
                    let deaths = self.count_death();
                    let most = usize::try_from(self.command.deaths_per_minute);
                    // The first one never served: whoever waits is to hear why.
                    let is_hopeless = self.announce.is_some();
                    if is_hopeless || most.is_ok_and(|most| deaths > most) {
                        return Err(ServerError::CrashLoop { deaths, last });
                    }
                    log(format_args!(
                        "the broker has died ({last}): another one takes over"
                    ));
                    broker = self.start_broker()?;
                }
            }
        }
    }

    fn count_death(&mut self) -> usize {
        let now = Instant::now();
        self.deaths.push_back(now);
        let is_old = |death: &Instant| now.duration_since(*death) > Duration::from_secs(60);
        while self.deaths.front().is_some_and(is_old) {
            self.deaths.pop_front();
        }
        self.deaths.len()
    }

    /// Does what `broker` says until it ends.
    fn attend(&mut self, broker: &mut Broker) -> Result<End, ServerError> {
        let mut has_left = false;
        loop {
            let mut fds = [
                PollFd::new(&broker.channel, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(ServerError::system("wait for the broker")(errno)),
            }
            let [channel, signals] = fds.map(|fd| !fd.revents().is_empty());
            if signals {
                take_signal(&self.signals);
                self.is_ending = true;
                // Fails if it has ended already.
                let _ = pidfd_send_signal(&broker.process, Signal::TERM);
            }
            if !channel {
                continue;
            }
            match broker.channel.hear() {
                Ok(Some(Message::Leaving)) => has_left = true,
                Ok(Some(message)) => self.obey(message, &broker.channel),
                Ok(None) => return Ok(end_of(broker, has_left)),
                Err(errno) => {
                    log(format_args!("cannot keep what the broker says: {errno}"));
                }
            }
        }
    }

    fn obey(&mut self, message: Message, channel: &Channel) {
        match message {
            Message::Put(key, fd) => drop(self.held.insert(key, fd)),
            Message::Drop(key) => drop(self.held.remove(&key)),
            Message::Sync => {
                // Its death shows at the channel.
                let _ = channel.tell(&Message::Synced);
            }
            Message::Ready => {
                if let Some(announce) = self.announce.take() {
                    announce();
                }
            }
            Message::End | Message::Synced | Message::Leaving => {}
        }
    }
}

/// What became of a broker that hung up.
fn end_of(broker: &mut Broker, has_left: bool) -> End {
    if !has_ended(&broker.process) && !has_left {
        return End::Elsewhere;
    }
    let status = broker.child.as_mut().map(Child::wait);
    match status {
        _ if has_left => End::Left,
        Some(Ok(status)) => End::Died(status.to_string()),
        _ => End::Died("unknown causes".to_owned()),
    }
}

fn take_signal(signals: &OwnedFd) {
    // One signalfd_siginfo; which signal it was makes no difference.
    let _ = rustix::io::read(signals, &mut [0; 128]);
}

/// The channel that is standard input; that is empty from now on.
fn inherited() -> Result<Channel, ServerError> {
    let failed = || ServerError::system("use standard input as the channel");
    let input = std::io::stdin();
    let flags = rustix::io::fcntl_dupfd_cloexec(input.as_fd(), 3);
    let channel = flags.map_err(failed())?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    rustix::stdio::dup2_stdin(null.map_err(failed())?).map_err(failed())?;
    Ok(Channel::from_fd(channel))
}

/// Kills a process and waits for its end, for a while.
pub(crate) fn end(process: &OwnedFd) {
    // Fails if it has ended.
    let _ = pidfd_send_signal(process, Signal::KILL);
    has_ended(process);
}

/// Whether a process ends soon.
fn has_ended(process: &OwnedFd) -> bool {
    let timeout = Timespec::try_from(PATIENCE).ok();
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref())) != Ok(0)
}

/// A descriptor of this process.
pub(crate) fn this_process() -> Result<OwnedFd, Errno> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
}

/// For ps(1), which would call it "exe".
fn name_process(name: &core::ffi::CStr) {
    // Cosmetic: nothing depends on it.
    let _ = rustix::thread::set_name(name);
}

/// One line on standard error, which may be closed.
pub(crate) fn log(what: core::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "xemem-broker: {what}");
}
