//! The VMM's event loop: control socket, signals, and the ends of runs.
//!
//! One thread owns every connection and never blocks on one: bytes go in and
//! out as the sockets allow. What blocks ([`Control::run`], [`Control::wait`])
//! happens on a thread per run, or of a change, which reports back through a channel and an
//! eventfd. At most [`MAX_CONNECTIONS`] connections and as many runs in
//! flight. Nothing a client sends can stop the loop except `stop`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Control;
use super::channel::{Inbox, Line, Progress, send};
use super::protocol::{Change, Effective, Inspection, Reply, Request, decode, encode};
use super::run::{Report, run_failure, run_spec, run_to_end};
use super::runs::{Answer, MAX_REMEMBERED, Runs};
use super::update;
use crate::confine::{self, Confinement, Role};
use crate::console_log::ConsoleLog;
use crate::event_log::{self, Happened};
use crate::failure::{Class, Failure};
use crate::ledger::Holdings;
use crate::machine::{FreezeError, MachineState, RunOutcome};
use crate::placement::Placement;
use crate::signals::{SIGHUP, SignalFd};
use crate::topology::Topology;
use crate::vmm_log::note;

/// Most connections at once, and most runs in flight.
pub const MAX_CONNECTIONS: usize = 16;
/// Most bytes kept for a client that does not read; more drops it.
const MAX_OUTPUT_BYTES: usize = 4 << 20;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A client asked to stop.
    Requested,
    /// A signal came.
    Signal(i32),
    /// Who created the enclave for itself is gone.
    CreatorGone,
}

/// What the server knows of the enclave besides the machine.
#[derive(Debug)]
pub struct Facts {
    /// What was asked and granted.
    pub effective: Effective,
    /// When it was created.
    pub created: Instant,
    /// Its console log.
    pub log: Arc<ConsoleLog>,
}

/// Serves until a client or a signal ends it, or nobody reads `creator` (the
/// writing end of a pipe) any more.
///
/// # Errors
/// When the loop cannot be set up or epoll fails.
pub fn serve(
    listener: UnixListener,
    signals: SignalFd,
    creator: Option<OwnedFd>,
    (control, holdings): (Arc<dyn Control>, Arc<Holdings>),
    facts: Facts,
) -> Result<Ended, Failure> {
    let what = "serve the control socket";
    let epoll = |error| Failure::new(Class::Failure, what, error);
    listener
        .set_nonblocking(true)
        .map_err(|e| Failure::io(what, e))?;
    let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(|e| Failure::io(what, e))?;
    let (reports_in, reports) = mpsc::channel();
    let mut manager = EventManager::new().map_err(epoll)?;
    let server = manager.add_subscriber(Server {
        listener,
        signals,
        creator,
        wake: Arc::new(wake),
        reports,
        reports_in,
        control,
        holdings,
        facts,
        is_updating: false,
        connections: BTreeMap::new(),
        next_id: 0,
        runs_in_flight: 0,
        last_outcome: None,
        runs: Runs::default(),
        ended: None,
        told_failed: false,
    });
    loop {
        manager.run().map_err(epoll)?;
        let server = manager.subscriber_mut(server).map_err(epoll)?;
        if let Some(ended) = server.ended {
            server.farewell();
            return Ok(ended);
        }
    }
}

/// One client.
struct Connection {
    /// Never used again, unlike a descriptor's number.
    id: u64,
    stream: UnixStream,
    inbox: Inbox,
    output: Vec<u8>,
    /// A run was asked for on this connection; its number once accepted.
    run: Option<Option<u64>>,
    /// The run goes on without it.
    is_detached: bool,
    /// Runs that it waits for.
    waits: Vec<u64>,
    /// Close once the output is out.
    closing: bool,
}

struct Server {
    listener: UnixListener,
    signals: SignalFd,
    creator: Option<OwnedFd>,
    wake: Arc<EventFd>,
    reports: mpsc::Receiver<Report>,
    reports_in: mpsc::Sender<Report>,
    control: Arc<dyn Control>,
    holdings: Arc<Holdings>,
    facts: Facts,
    /// A change is under way.
    is_updating: bool,
    connections: BTreeMap<RawFd, Connection>,
    next_id: u64,
    runs_in_flight: usize,
    last_outcome: Option<RunOutcome>,
    runs: Runs,
    ended: Option<Ended>,
    /// That the machine failed has been told.
    told_failed: bool,
}

impl MutEventSubscriber for Server {
    fn init(&mut self, ops: &mut EventOps) {
        let fds = [
            self.listener.as_raw_fd(),
            self.signals.as_raw_fd(),
            self.wake.as_raw_fd(),
        ];
        // A pipe without a reader is an error of its writing end, which epoll
        // tells unasked.
        let creator = self
            .creator
            .iter()
            .map(|fd| (fd.as_raw_fd(), EventSet::empty()));
        let fds = fds.into_iter().map(|fd| (fd, EventSet::IN));
        for (fd, wanted) in fds.chain(creator) {
            if let Err(error) = ops.add(Events::new_raw(fd, wanted)) {
                note(format_args!("watch descriptor {fd}: {error}"));
                // Deaf to stop requests it must not run on.
                self.ended = Some(Ended::Requested);
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.listener.as_raw_fd() {
            self.accept(ops);
        } else if fd == self.signals.as_raw_fd() {
            if let Ok(Some(signal)) = self.signals.next() {
                self.ended.get_or_insert(Ended::Signal(signal));
            }
        } else if fd == self.wake.as_raw_fd() {
            // The count does not matter: the channel holds the reports.
            drop(self.wake.read());
            self.take_reports(ops);
        } else if self
            .creator
            .as_ref()
            .is_some_and(|pipe| pipe.as_raw_fd() == fd)
        {
            self.ended.get_or_insert(Ended::CreatorGone);
        } else {
            self.connection_event(fd, ops);
        }
    }
}

impl Server {
    fn accept(&mut self, ops: &mut EventOps) {
        while let Ok((stream, _)) = self.listener.accept() {
            let fd = stream.as_raw_fd();
            let refusal = self.refusal(&stream);
            let set = stream.set_nonblocking(true);
            if set.is_err() || ops.add(Events::new_raw(fd, EventSet::IN)).is_err() {
                continue;
            }
            self.next_id += 1;
            self.connections.insert(
                fd,
                Connection {
                    id: self.next_id,
                    stream,
                    inbox: Inbox::default(),
                    output: Vec::new(),
                    run: None,
                    is_detached: false,
                    waits: Vec::new(),
                    closing: false,
                },
            );
            if let Some(failure) = refusal {
                self.reply_and_close(fd, failure, ops);
            }
        }
    }

    /// Why a new connection is not served, if it is not.
    fn refusal(&self, stream: &UnixStream) -> Option<Failure> {
        let what = "use the control socket";
        let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else {
            return Some(Failure::new(Class::Permission, what, "the peer is unknown"));
        };
        let euid = rustix::process::geteuid();
        if peer.uid != euid && !peer.uid.is_root() {
            let why = format!("it belongs to uid {}", euid.as_raw());
            return Some(Failure::new(Class::Permission, what, why));
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let why = format!("{MAX_CONNECTIONS} connections are open already");
            return Some(Failure::new(Class::Busy, what, why));
        }
        None
    }

    fn connection_event(&mut self, fd: RawFd, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&fd) else {
            return;
        };
        if !connection.output.is_empty() {
            self.flush(fd, ops);
        }
        // One read per event: level-triggered epoll comes back for the rest,
        // and no client keeps the others waiting.
        let Some(connection) = self.connections.get_mut(&fd) else {
            return;
        };
        let progress = connection.inbox.receive(connection.stream.as_fd());
        match progress {
            Ok(Progress::Closed) => return self.drop_connection(fd, ops),
            Ok(Progress::Read | Progress::Empty) => {}
            Err(error) => return self.protocol_error(fd, &error.to_string(), ops),
        }
        self.take_lines(fd, ops);
    }

    fn take_lines(&mut self, fd: RawFd, ops: &mut EventOps) {
        while let Some(connection) = self.connections.get_mut(&fd) {
            if connection.closing {
                return;
            }
            match connection.inbox.next_line() {
                Ok(Some(line)) => self.request(fd, line, ops),
                Ok(None) => return,
                Err(error) => return self.protocol_error(fd, &error.to_string(), ops),
            }
        }
    }

    fn request(&mut self, fd: RawFd, line: Line, ops: &mut EventOps) {
        let request = match decode::<Request>(&line.bytes) {
            Ok(request) => request,
            Err(failure) => return self.reply_and_close(fd, failure, ops),
        };
        let takes_fds = matches!(request, Request::Run { .. } | Request::Gdb {});
        if !takes_fds && !line.fds.is_empty() {
            return self.protocol_error(fd, "descriptors with a message that takes none", ops);
        }
        match request {
            Request::Ping {} => self.reply(fd, &Reply::Ok, ops),
            Request::Inspect {} => {
                self.tell_failure();
                let inspection = Box::new(self.inspect());
                self.reply(fd, &Reply::Inspection(inspection), ops);
            }
            Request::Processes {} => {
                let list = self.control.processes();
                self.reply(fd, &Reply::Processes { list }, ops);
            }
            Request::Placement {} => {
                let placement = Box::new(placement());
                self.reply(fd, &Reply::Placement(placement), ops);
            }
            Request::Dump {} => {
                let dump = Box::new(self.control.dump());
                self.reply(fd, &Reply::Dump(dump), ops);
            }
            Request::Gdb {} => {
                let Ok([input, output]) = <[OwnedFd; 2]>::try_from(line.fds) else {
                    return self.protocol_error(fd, "gdb takes two descriptors", ops);
                };
                match self.control.debug(input, output) {
                    Ok(()) => self.reply(fd, &Reply::Ok, ops),
                    Err(failure) => self.reply_and_close(fd, failure, ops),
                }
            }
            Request::Kill { run, signal } => {
                if !(1..=64).contains(&signal) {
                    return self.protocol_error(fd, &format!("signal {signal}"), ops);
                }
                self.control.signal(run, signal);
                self.reply(fd, &Reply::Ok, ops);
            }
            Request::Wait { run } => self.start_wait(fd, run, ops),
            Request::Freeze {} => {
                let frozen = self.control.freeze();
                self.answer_freeze(fd, "freeze", frozen, ops);
            }
            Request::Thaw {} => {
                let thawed = self.control.thaw();
                self.answer_freeze(fd, "thaw", thawed, ops);
            }
            Request::Update(change) => self.start_update(fd, change, ops),
            Request::Stop {} => {
                self.reply(fd, &Reply::Ok, ops);
                self.ended.get_or_insert(Ended::Requested);
            }
            run @ Request::Run { .. } => self.start_run(fd, run, line.fds, ops),
        }
    }

    fn answer_freeze(
        &mut self,
        fd: RawFd,
        verb: &str,
        done: Result<(), FreezeError>,
        ops: &mut EventOps,
    ) {
        let name = &self.facts.effective.config.name;
        let hint = match done {
            Ok(()) => return self.reply(fd, &Reply::Ok, ops),
            Err(FreezeError::Frozen) => format!("enclavectl thaw {name}"),
            Err(FreezeError::NotFrozen) => format!("enclavectl freeze {name}"),
            Err(_) => format!("enclavectl inspect {name}"),
        };
        if let Err(error) = done {
            let class = match error {
                FreezeError::Stuck => Class::Timeout,
                _ => Class::Busy,
            };
            let failure = Failure::new(class, format!("{verb} enclave {name}"), error);
            self.reply(fd, &Reply::Error(failure.with_hint(hint)), ops);
        }
    }

    fn inspect(&self) -> Inspection {
        let uptime = self.facts.created.elapsed().as_millis();
        Inspection {
            effective: self.facts.effective.clone(),
            machine: self.control.state(),
            report: self.control.report(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            console_dropped: self.facts.log.dropped(),
            last_outcome: self.last_outcome.clone(),
            confinement: Confinement::of_self(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn start_run(&mut self, fd: RawFd, request: Request, fds: Vec<OwnedFd>, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&fd) else {
            return;
        };
        if connection.run.is_some() {
            return self.protocol_error(fd, "a second run on one connection", ops);
        }
        if self.runs_in_flight >= MAX_CONNECTIONS {
            let why = format!("{MAX_CONNECTIONS} runs are waiting already");
            let failure = Failure::new(Class::Busy, "run a program", why);
            return self.reply_and_close(fd, failure, ops);
        }
        let id = connection.id;
        let is_detached = matches!(request, Request::Run { detached: true, .. });
        let spec = match run_spec(request, fds, &self.facts.effective) {
            Ok(spec) => spec,
            Err(failure) => return self.reply_and_close(fd, failure, ops),
        };
        connection.run = Some(None);
        connection.is_detached = is_detached;
        let control = Arc::clone(&self.control);
        let reports = self.reports_in.clone();
        let wake = Arc::clone(&self.wake);
        let body = move || run_to_end(&*control, id, (spec, is_detached), &reports, &wake);
        match confine::spawn(Role::Helper, "run", body) {
            Ok(_) => self.runs_in_flight += 1,
            Err(error) => self.reply_and_close(fd, Failure::io("run a program", error), ops),
        }
    }

    fn start_wait(&mut self, fd: RawFd, run: u64, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&fd) else {
            return;
        };
        if connection.waits.len() >= MAX_CONNECTIONS {
            return self.protocol_error(fd, "too many waits on one connection", ops);
        }
        let why = match self.runs.wait(run, connection.id) {
            Answer::Waits => return connection.waits.push(run),
            Answer::Ended(outcome) => {
                let phases = Vec::new();
                let finished = Reply::Finished {
                    run,
                    outcome,
                    phases,
                };
                return self.reply(fd, &finished, ops);
            }
            Answer::Forgotten => {
                format!("it ended, and {MAX_REMEMBERED} others after it: how is forgotten")
            }
            Answer::Unknown => "there has been no such run".to_owned(),
        };
        let name = &self.facts.effective.config.name;
        let what = format!("wait for run {run} of enclave {name}");
        let failure = Failure::new(Class::NotFound, what, why);
        let hint = format!("enclavectl events {name}");
        self.reply(fd, &Reply::Error(failure.with_hint(hint)), ops);
    }

    fn start_update(&mut self, fd: RawFd, change: Change, ops: &mut EventOps) {
        let what = format!("update enclave {}", self.facts.effective.config.name);
        if self.is_updating {
            let failure = Failure::new(Class::Busy, what, "another change is under way");
            return self.reply(fd, &Reply::Error(failure), ops);
        }
        let Some(id) = self.connections.get(&fd).map(|connection| connection.id) else {
            return;
        };
        let (control, holdings) = (Arc::clone(&self.control), Arc::clone(&self.holdings));
        let config = self.facts.effective.config.clone();
        let (reports, wake) = (self.reports_in.clone(), Arc::clone(&self.wake));
        let wanted = change.clone();
        let body = move || {
            let result = update::carry_out(&*control, &holdings, &config, &wanted);
            // The loop may have ended already; then nobody needs the report.
            drop(reports.send(Report::Updated { id, result }));
            drop(wake.write(1));
        };
        // A new machine takes what the first one took.
        let role = match change {
            Change::Reset {} => Role::Vcpu,
            _ => Role::Update,
        };
        match confine::spawn(role, "update", body) {
            Ok(_) => self.is_updating = true,
            Err(error) => self.reply(fd, &Reply::Error(Failure::io(what, error)), ops),
        }
    }

    /// Takes note of the cores that it has now, and keeps off them. On this thread:
    /// the one of a change may not say where threads run.
    fn note_cores(&mut self) {
        self.holdings.stay_off();
        if let Some((cores, idle)) = self.holdings.cores() {
            let effective = &mut self.facts.effective;
            (effective.cores, effective.idle) = (cores, idle);
        }
    }

    fn take_reports(&mut self, ops: &mut EventOps) {
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Accepted {
                    id,
                    run,
                    program,
                    is_detached,
                } => {
                    self.runs.started(run);
                    event_log::tell(Happened::ProgramStarted { run, program });
                    match self.by_id(id) {
                        Some((fd, connection)) => {
                            connection.run = Some(Some(run));
                            self.reply(fd, &Reply::Accepted { run }, ops);
                        }
                        None if is_detached => {}
                        None => self.control.kill(run, hangup()),
                    }
                }
                Report::Refused { id, error } => {
                    self.runs_in_flight -= 1;
                    if let Some((fd, _)) = self.by_id(id) {
                        self.reply_and_close(fd, run_failure(&error), ops);
                    }
                }
                Report::Updated { id, result } => {
                    self.is_updating = false;
                    self.told_failed &= matches!(self.control.state(), MachineState::Failed { .. });
                    self.facts.effective.added_bytes = self.control.added_bytes();
                    self.note_cores();
                    if let Some((fd, _)) = self.by_id(id) {
                        let reply = result.map_or_else(Reply::Error, Reply::Updated);
                        self.reply(fd, &reply, ops);
                    }
                }
                Report::Finished {
                    id,
                    run,
                    outcome,
                    phases,
                } => {
                    self.runs_in_flight -= 1;
                    self.last_outcome = Some(outcome.clone());
                    event_log::tell(Happened::ProgramEnded {
                        run,
                        outcome: outcome.clone(),
                    });
                    self.tell_failure();
                    let waiters = self.runs.ended(run, outcome.clone());
                    for id in waiters.into_iter().chain([id]) {
                        if let Some((fd, connection)) = self.by_id(id) {
                            connection.waits.retain(|waited| *waited != run);
                            if connection.run == Some(Some(run)) {
                                connection.run = None;
                            }
                            let finished = Reply::Finished {
                                run,
                                outcome: outcome.clone(),
                                phases: phases.clone(),
                            };
                            self.reply(fd, &finished, ops);
                        }
                    }
                }
            }
        }
    }

    /// Writes down that the machine failed, once.
    fn tell_failure(&mut self) {
        if let MachineState::Failed { reason } = self.control.state()
            && !std::mem::replace(&mut self.told_failed, true)
        {
            event_log::tell(Happened::Failed { reason });
        }
    }

    fn by_id(&mut self, id: u64) -> Option<(RawFd, &mut Connection)> {
        self.connections
            .iter_mut()
            .find(|(_, connection)| connection.id == id)
            .map(|(&fd, connection)| (fd, connection))
    }

    fn reply(&mut self, fd: RawFd, reply: &Reply, ops: &mut EventOps) {
        let line = match encode(reply) {
            Ok(line) => line,
            Err(failure) => encode(&Reply::Error(failure)).unwrap_or_default(),
        };
        let Some(connection) = self.connections.get_mut(&fd) else {
            return;
        };
        if connection.output.len() + line.len() > MAX_OUTPUT_BYTES {
            return self.drop_connection(fd, ops);
        }
        connection.output.extend_from_slice(&line);
        self.flush(fd, ops);
    }

    fn reply_and_close(&mut self, fd: RawFd, failure: Failure, ops: &mut EventOps) {
        if let Some(connection) = self.connections.get_mut(&fd) {
            connection.closing = true;
        }
        self.reply(fd, &Reply::Error(failure), ops);
    }

    fn protocol_error(&mut self, fd: RawFd, why: &str, ops: &mut EventOps) {
        let failure = Failure::new(Class::Protocol, "read a control message", why);
        self.reply_and_close(fd, failure, ops);
    }

    /// Sends what the socket takes and watches for room if some is left.
    fn flush(&mut self, fd: RawFd, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&fd) else {
            return;
        };
        while !connection.output.is_empty() {
            match send(connection.stream.as_fd(), &connection.output, &[]) {
                Ok(count) => {
                    connection.output.drain(..count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return self.drop_connection(fd, ops),
            }
        }
        if connection.closing && connection.output.is_empty() {
            return self.drop_connection(fd, ops);
        }
        let mut wanted = EventSet::IN;
        if !connection.output.is_empty() {
            wanted |= EventSet::OUT;
        }
        if ops.modify(Events::new_raw(fd, wanted)).is_err() {
            self.drop_connection(fd, ops);
        }
    }

    /// Tells those who wait for a program that the enclave ends under it; who
    /// does not take it at once finds the connection closed.
    fn farewell(&mut self) {
        for connection in self.connections.values_mut() {
            let own = connection.run.flatten();
            for run in own.into_iter().chain(connection.waits.drain(..)) {
                let outcome = RunOutcome::MachineStopped {
                    reason: "the enclave was stopped".to_owned(),
                };
                let phases = Vec::new();
                let finished = Reply::Finished {
                    run,
                    outcome,
                    phases,
                };
                if let Ok(line) = encode(&finished) {
                    connection.output.extend_from_slice(&line);
                    let _ = send(connection.stream.as_fd(), &connection.output, &[]);
                }
            }
        }
    }

    /// Forgets a client; a program it still runs is hung up on.
    fn drop_connection(&mut self, fd: RawFd, ops: &mut EventOps) {
        let Some(connection) = self.connections.remove(&fd) else {
            return;
        };
        if let Err(error) = ops.remove(Events::empty_raw(fd)) {
            note(format_args!("forget connection {fd}: {error}"));
        }
        self.runs.forget(connection.id);
        if let Some(Some(run)) = connection.run
            && !connection.is_detached
        {
            self.control.kill(run, hangup());
        }
    }
}

/// Where this process really is. Nodes come and go, so they are read again.
fn placement() -> Placement {
    let topology = Topology::read(Path::new("/")).unwrap_or_default();
    Placement::read(Path::new("/proc/self"), &topology)
}

/// SIGHUP as the machine takes it.
fn hangup() -> u8 {
    u8::try_from(SIGHUP).unwrap_or(1)
}
