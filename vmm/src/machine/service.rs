//! Serves what the kernel asks over the command queue.
//!
//! Runs on a vCPU's thread, between two entries into the guest; with several, on
//! one at a time. Every record
//! is data from the guest: unknown kinds get an error answer and are counted,
//! lengths are bounded by the bounce area, addresses by guest RAM. Only a
//! queue whose indices make no sense ends the machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enclave_abi::arena::GenerationRecord;
use enclave_abi::layout::{BOUNCE, BOUNCE_BYTES};
use enclave_abi::queue::{Call, Command, RECORD_VERSION, Record};
use enclave_abi::syscall::{ArenaArgs, SegmentArgs};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

use super::arenas::ArenaTable;
use super::imports::{ImportTable, Next, Wanted};
use super::programs::Running;
use super::queue::{HostQueue, QueueError, current_run, drain_console};
use super::state::{Pending, Shared, Urgency};
use super::vm::Vm;
use super::{MachineState, RunSpec, Selftest};
use crate::console_log::ConsoleLog;
use crate::forward::{self, Exports, Reply};
use crate::memory::Ram;
use crate::stats::KvmStats;

/// Longest pause the kernel may ask for.
const MAX_PAUSE_MS: u64 = 1000;
/// An order that the kernel has not come by after so long interrupts the program.
const ORDER_PATIENCE: Duration = Duration::from_millis(20);
/// What the service made of the queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// Go on running the guest.
    Continue,
    /// The machine is being stopped.
    Stop,
    /// The machine failed.
    Failed(String),
}

/// An exchange of the vCPU's extended state that the kernel waits for.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Number of the call.
    seq: u32,
    /// Where to save it; 0 = nowhere.
    pub(super) save: u64,
    /// Where to load it from; 0 = nowhere.
    pub(super) load: u64,
}

/// Everything the vCPU thread serves from.
pub(super) struct Service {
    pub(super) ram: Ram,
    pub(super) queue: HostQueue,
    pub(super) shared: Arc<Shared>,
    pub(super) log: Arc<ConsoleLog>,
    pub(super) exports: Exports,
    pub(super) arenas: ArenaTable,
    pub(super) imports: ImportTable,
    pub(super) stats: Arc<[KvmStats]>,
    pub(super) running: BTreeMap<u64, Running>,
    /// Programs that the kernel has not fetched.
    pub(super) waiting: VecDeque<(u64, Box<RunSpec>)>,
    /// Who holds the accesses and segments there are, by their ids.
    pub(super) owners: BTreeMap<u64, u64>,
    malformed: u64,
    /// Runs whose kill was posted and which have not ended.
    pub(super) killing: BTreeSet<u64>,
    /// Runs whose signals were posted and not taken.
    pub(super) telling: BTreeSet<u64>,
    /// The kernel was asked for its processes.
    pub(super) is_asking: bool,
    /// When an order for memory was posted that the kernel has not answered yet.
    pub(super) ordered: Option<Instant>,
    /// The last that the kernel said is that it has nothing to do: it looks for
    /// commands when it goes on.
    is_idle: bool,
    vm: Arc<Vm>,
    /// The kernel asked for an interrupt that was not sent yet.
    is_interrupt_wanted: bool,
    /// Where the kernel wants the vCPU's extended state saved to and loaded from.
    extended: Option<Exchange>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    pub(super) fn new(
        ram: Ram,
        shared: Arc<Shared>,
        log: Arc<ConsoleLog>,
        exports: Exports,
        (arenas, imports): (ArenaTable, ImportTable),
        stats: Arc<[KvmStats]>,
        vm: Arc<Vm>,
    ) -> Self {
        Self {
            queue: HostQueue::new(ram.clone()),
            ram,
            shared,
            log,
            exports,
            arenas,
            imports,
            stats,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            owners: BTreeMap::new(),
            malformed: 0,
            killing: BTreeSet::new(),
            telling: BTreeSet::new(),
            is_asking: false,
            ordered: None,
            is_idle: false,
            vm,
            is_interrupt_wanted: false,
            extended: None,
        }
    }

    /// Takes what the kernel printed.
    pub(super) fn drain_console(&mut self) {
        // The ring is in guest RAM, which cannot vanish.
        if let Ok((bytes, dropped)) = drain_console(&self.ram) {
            if !bytes.is_empty() {
                self.log.write(&bytes);
            }
            if dropped != 0 {
                self.shared
                    .update_report(|report| report.console_dropped = dropped);
            }
        }
    }

    /// Serves every record there is.
    pub(super) fn serve(&mut self) -> Served {
        self.drain_console();
        loop {
            match self.queue.take() {
                Ok(None) => return self.deliver(),
                Ok(Some(record)) => match self.one(&record) {
                    Ok(Served::Continue) => {}
                    Ok(other) => return other,
                    Err(error) => return Served::Failed(error.to_string()),
                },
                Err(error) => return Served::Failed(error.to_string()),
            }
        }
    }

    /// Posts commands that arrived meanwhile.
    pub(super) fn deliver(&mut self) -> Served {
        while let Some(pending) = self.shared.take_pending() {
            if let Err(error) = self.post(pending) {
                return Served::Failed(error.to_string());
            }
        }
        Served::Continue
    }

    /// Whether the kernel is to be interrupted: a kill was posted whose program
    /// has not ended yet, or a signal that it has not taken, or it asked for it; or
    /// there is a program, a question or, for a while, an order that it has not taken,
    /// unless it waits for such anyway.
    pub(super) fn wants_interrupt(&self) -> bool {
        let is_told = !self.killing.is_empty() || !self.telling.is_empty();
        let is_late = |posted: Instant| posted.elapsed() >= ORDER_PATIENCE;
        let is_ordered = self.ordered.is_some_and(is_late);
        let is_asked = !self.waiting.is_empty() || self.is_asking || is_ordered;
        is_told || self.is_interrupt_wanted || (is_asked && !self.is_idle)
    }

    /// What is to be done to the vCPU's extended state before it goes on, once.
    pub(super) fn take_extended(&mut self) -> Option<Exchange> {
        self.extended.take()
    }

    /// Answers what [`Service::take_extended`] gave.
    pub(super) fn answer_extended(
        &mut self,
        exchange: &Exchange,
        done: Result<(), Errno>,
    ) -> Result<(), QueueError> {
        let answer = [result(done.map(|()| 0)), 0, 0, 0, 0, 0, 0];
        self.queue
            .post(Call::ExtendedState as u16, exchange.seq, answer)
    }

    /// Notes that an interrupt was sent.
    pub(super) fn interrupt_sent(&mut self) {
        self.is_interrupt_wanted = false;
    }

    /// Posts a command.
    fn post(&mut self, pending: Pending) -> Result<(), QueueError> {
        match pending {
            Pending::Signal(run, urgency, signal) => self.post_signal(run, urgency, signal),
            Pending::Run(run, spec) => {
                self.waiting.push_back((run, spec));
                self.queue.post(Command::Run as u16, 0, [0; 7])
            }
            // One question at a time: the queue is short.
            Pending::List if std::mem::replace(&mut self.is_asking, true) => Ok(()),
            Pending::List => self.queue.post(Command::List as u16, 0, [0; 7]),
            Pending::Change(number, order) => self.post_order(number, order),
        }
    }

    fn post_signal(&mut self, run: u64, urgency: Urgency, signal: u8) -> Result<(), QueueError> {
        let may_handle = urgency == Urgency::Tell;
        if may_handle {
            self.telling.insert(run);
        } else {
            self.killing.insert(run);
        }
        self.queue.post(
            Command::Kill as u16,
            0,
            [run, u64::from(signal), u64::from(may_handle), 0, 0, 0, 0],
        )
    }

    fn one(&mut self, record: &Record) -> Result<Served, QueueError> {
        let kind = Call::try_from(record.kind);
        let Ok(call) = kind.map_err(drop).and_then(|call| {
            if record.version == RECORD_VERSION {
                Ok(call)
            } else {
                Err(())
            }
        }) else {
            return self.refuse(record);
        };
        let a = record.args;
        self.is_idle = call == Call::Idle;
        let answer = match call {
            Call::Idle => return self.idle(),
            // Once: later ones are a program's, which writes where it should not.
            Call::Booted if self.shared.state() != MachineState::Booting => {
                return self.refuse(record);
            }
            Call::Booted => {
                self.booted(a);
                return Ok(Served::Continue);
            }
            Call::ProcessExit => {
                self.process_exit(a);
                return Ok(Served::Continue);
            }
            Call::Panic => {
                let text = self.bounce_text(a[0]);
                self.log.write(format!("kernel panic: {text}\n").as_bytes());
                return Ok(Served::Failed(format!("kernel panic: {text}")));
            }
            Call::Report => return Ok(Served::Continue),
            Call::ImageRead => [result(self.image_read(a)), 0, 0, 0, 0, 0, 0],
            Call::Forward => [self.forward(a), 0, 0, 0, 0, 0, 0],
            Call::ArenaMake => self.arena_make(a[0]),
            Call::ArenaEnd => {
                let ended = self.arenas.end(a[0], a[1] == 1).map(|()| 0);
                self.list_arenas();
                [result(ended), 0, 0, 0, 0, 0, 0]
            }
            Call::ArenaName => {
                let named = self
                    .bounce_bytes(a[1])
                    .and_then(|name| self.arenas.name(a[0], &name));
                self.list_arenas();
                [result(named), 0, 0, 0, 0, 0, 0]
            }
            Call::ImportLookup
            | Call::ImportGet
            | Call::ImportAttach
            | Call::ImportNext
            | Call::ImportDetach
            | Call::ImportRelease
            | Call::SegmentMake
            | Call::SegmentName
            | Call::SegmentRemove
            | Call::SegmentSignal
            | Call::SegmentSubscribe
            | Call::SegmentWait => {
                let answer = self.import(call, a);
                self.note_owner(call, a, answer);
                if matches!(
                    call,
                    Call::ImportAttach
                        | Call::ImportDetach
                        | Call::ImportRelease
                        | Call::SegmentMake
                ) {
                    self.list_arenas();
                    // Its memory may be such that somebody has to look at it.
                    self.shared.wake();
                }
                answer
            }
            Call::HostCounters => self.counters(),
            Call::Pause => {
                self.shared
                    .pause(Duration::from_millis(a[0].min(MAX_PAUSE_MS)));
                [0; 7]
            }
            Call::ArenaBells => {
                let bells = self.arenas.bells(a[0]);
                self.list_arenas();
                match bells {
                    Ok(mask) => [0, mask, 0, 0, 0, 0, 0],
                    Err(errno) => [result(Err(errno)), 0, 0, 0, 0, 0, 0],
                }
            }
            Call::AwaitBell => {
                let cancel = self.shared.cancel_fd();
                let (bell, notice) = self.imports.await_bell(a[0], cancel);
                [0, bell.into(), notice.into(), 0, 0, 0, 0]
            }
            Call::ExtendedState => {
                // Answered by the vCPU thread, which does it.
                let [save, load, ..] = a;
                let seq = record.seq;
                self.extended = Some(Exchange { seq, save, load });
                return Ok(Served::Continue);
            }
            Call::SignalsTaken => {
                self.telling.remove(&a[0]);
                self.shared.signals_taken(a[0]);
                [0; 7]
            }
            Call::ChangeDone => {
                self.order_done(a);
                [0; 7]
            }
            Call::Alarm => {
                self.shared.alarms.set(a[0], a[1]);
                [0; 7]
            }
            Call::TakeRun => self.take_run()?,
            Call::Processes => {
                self.processes(a[0]);
                [0; 7]
            }
            Call::Interrupt => {
                self.is_interrupt_wanted |= a[0] == 1;
                [0; 7]
            }
        };
        self.queue.post(record.kind, record.seq, answer)?;
        Ok(Served::Continue)
    }

    /// An unknown or wrongly versioned record: an answer that says so, so that
    /// the kernel does not wait for ever.
    fn refuse(&mut self, record: &Record) -> Result<Served, QueueError> {
        self.malformed += 1;
        if record.seq != 0 {
            let errno = result(Err(Errno::NOSYS));
            self.queue
                .post(record.kind, record.seq, [errno, 0, 0, 0, 0, 0, 0])?;
        }
        Ok(Served::Continue)
    }

    fn booted(&self, a: [u64; 7]) {
        let mode = if a[0] == 3 { "ring3" } else { "ring0" };
        let flush = if a[2] == 0 { "upper-store" } else { "cr3" };
        let selftest = Selftest::from_verdict(a[1]);
        self.shared.update_report(|report| {
            report.kernel_mode = mode.into();
            report.flush = flush.into();
            report.selftest = selftest;
            report.selftest_count = u32::try_from(a[4]).unwrap_or(u32::MAX);
        });
        let failed = (selftest == Selftest::Failed).then(|| "a kernel self-test failed".to_owned());
        self.shared.booted(failed);
    }

    /// Blocks until there is something to do.
    fn idle(&mut self) -> Result<Served, QueueError> {
        match self.shared.wait_pending() {
            None => Ok(Served::Stop),
            Some(pending) => {
                self.post(pending)?;
                Ok(Served::Continue)
            }
        }
    }

    pub(super) fn bounce_bytes(&self, len: u64) -> Result<Vec<u8>, Errno> {
        bounce_bytes(&self.ram, len)
    }

    pub(super) fn bounce_text(&self, len: u64) -> String {
        let bytes = self.bounce_bytes(len.min(4096)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads a piece of the program file into private RAM.
    fn image_read(&self, a: [u64; 7]) -> Result<u64, Errno> {
        const PART: u64 = 1 << 20;
        let running = self.running.get(&a[0]).ok_or(Errno::SRCH)?;
        let (offset, target, len) = (a[1], a[2], a[3]);
        let mut done = 0;
        while done < len {
            let part = usize::try_from((len - done).min(PART)).map_err(|_| Errno::INVAL)?;
            let mut bytes = vec![0; part];
            let at = offset.checked_add(done).ok_or(Errno::INVAL)?;
            let got = running
                .image
                .read_at(&mut bytes, at)
                .map_err(|_| Errno::IO)?;
            if got == 0 {
                break;
            }
            let to = target.checked_add(done).ok_or(Errno::FAULT)?;
            let part = bytes.get(..got).unwrap_or_default();
            let written = self.ram.write_slice(part, GuestAddress(to));
            if written.is_err() && !self.vm.write(to, part) {
                return Err(Errno::FAULT);
            }
            done += got as u64;
        }
        Ok(done)
    }

    /// Serves a forwarded system call; the result for the kernel.
    fn forward(&mut self, a: [u64; 7]) -> u64 {
        let [nr, a0, a1, a2, a3, a4, bytes] = a;
        // Numbers come from the guest: unknown ones share one counter.
        self.shared
            .count_forwarded(forward::name(nr).unwrap_or("unknown"));
        let input = match self.bounce_bytes(bytes) {
            Ok(input) => input,
            Err(errno) => return result(Err(errno)),
        };
        let run = current_run(&self.ram).unwrap_or(0);
        let reply = match self.running.get_mut(&run) {
            Some(running) => {
                let args = [a0, a1, a2, a3, a4];
                running
                    .session
                    .call(nr, args, &input, self.shared.cancel_fd())
            }
            None => Reply {
                result: -i64::from(Errno::SRCH.raw_os_error()),
                ..Reply::default()
            },
        };
        self.put_back(&reply)
    }

    fn put_back(&self, reply: &Reply) -> u64 {
        let end = reply.data_offset.saturating_add(reply.data.len()) as u64;
        if end > BOUNCE_BYTES {
            return result(Err(Errno::OVERFLOW));
        }
        let at = GuestAddress(BOUNCE + reply.data_offset as u64);
        match self.ram.write_slice(&reply.data, at) {
            Ok(()) => reply.result.cast_unsigned(),
            Err(_) => result(Err(Errno::FAULT)),
        }
    }

    fn arena_make(&mut self, slot: u64) -> [u64; 7] {
        let made = self
            .bounce_bytes(size_of::<ArenaArgs>() as u64)
            .and_then(|bytes| ArenaArgs::read_from_bytes(&bytes).map_err(|_| Errno::INVAL))
            .and_then(|args| self.arenas.make(slot, &args));
        self.list_arenas();
        match made {
            Ok([gpa, segid, bytes, page_bytes]) => [0, gpa, segid, bytes, page_bytes, 0, 0],
            Err(errno) => [result(Err(errno)), 0, 0, 0, 0, 0, 0],
        }
    }

    /// What the program shares with others beside its own arenas.
    fn import(&mut self, call: Call, a: [u64; 7]) -> [u64; 7] {
        if self.is_anothers(call, a) {
            return [result(Err(Errno::ACCESS)), 0, 0, 0, 0, 0, 0];
        }
        let cancel = self.shared.cancel_fd();
        let imports = &mut self.imports;
        let single = match call {
            Call::ImportLookup => {
                let name = bounce_bytes(&self.ram, a[0]);
                name.and_then(|name| imports.lookup(&name, a[1], cancel))
            }
            Call::ImportGet => imports.get(a[0], a[1]),
            Call::ImportDetach => imports.detach(a[0]),
            Call::ImportRelease => imports.release(a[0]),
            Call::SegmentName => {
                let name = bounce_bytes(&self.ram, a[1]);
                name.and_then(|name| imports.name(a[0], &name))
            }
            Call::SegmentRemove => imports.remove(a[0]),
            Call::SegmentSignal => imports.signal(a[0], a[1]),
            Call::SegmentSubscribe => imports.subscribe(a[0], a[1]),
            Call::SegmentWait => imports.wait_for((a[0], a[1]), a[2], cancel),
            Call::SegmentMake => {
                match segment_args(&self.ram).and_then(|args| imports.make(a[0], &args)) {
                    Ok([segid, gpa, page_bytes]) => return [0, segid, gpa, page_bytes, 0, 0, 0],
                    Err(errno) => Err(errno),
                }
            }
            Call::ImportNext => match imports.next(a[0], a[1], cancel) {
                Ok(Next::Leased(r)) => {
                    let GenerationRecord {
                        generation,
                        step,
                        time_bits,
                        unix_ns,
                        log_head,
                        chunks_copied,
                        ..
                    } = r;
                    return [
                        generation,
                        step,
                        time_bits,
                        unix_ns,
                        log_head,
                        chunks_copied,
                        0,
                    ];
                }
                Ok(Next::Ended(reason)) => return [0, reason, 0, 0, 0, 0, 0],
                Err(errno) => Err(errno),
            },
            _ => {
                let [slot, apid, policy, offset, size, ..] = a;
                let wanted = Wanted {
                    slot,
                    apid,
                    policy,
                    offset,
                    size,
                };
                match imports.attach(&wanted) {
                    Ok(at) => {
                        let (banks, writable) = (at.nr_banks.into(), at.writable.into());
                        let (size, chunk) = (at.size_bytes, at.chunk_bytes);
                        return [0, at.gpa, size, chunk, banks, writable, at.rings.into()];
                    }
                    Err(errno) => Err(errno),
                }
            }
        };
        [result(single), 0, 0, 0, 0, 0, 0]
    }

    pub(super) fn list_arenas(&self) {
        let (list, imports) = (self.arenas.list(), self.imports.count());
        let rung = self.arenas.count_bells();
        self.shared.update_report(|report| {
            report.bells.rung = rung;
            report.arenas = list;
            report.imports = imports;
        });
    }

    fn counters(&self) -> [u64; 7] {
        let get = |name| self.stats.iter().map(|stats| stats.get(name)).sum();
        [
            0,
            get("insn_emulation"),
            get("exits"),
            get("pf_guest"),
            get("irq_injections"),
            0,
            0,
        ]
    }
}

impl Shared {
    fn cancel_fd(&self) -> BorrowedFd<'_> {
        super::running::borrow(self.cancel())
    }
}

/// What a plain segment is to be, from the bounce area.
fn segment_args(ram: &Ram) -> Result<SegmentArgs, Errno> {
    let bytes = bounce_bytes(ram, size_of::<SegmentArgs>() as u64)?;
    SegmentArgs::read_from_bytes(&bytes).map_err(|_| Errno::INVAL)
}

/// Bytes of the bounce area, copied.
fn bounce_bytes(ram: &Ram, len: u64) -> Result<Vec<u8>, Errno> {
    if len > BOUNCE_BYTES {
        return Err(Errno::INVAL);
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| Errno::INVAL)?];
    ram.read_slice(&mut bytes, GuestAddress(BOUNCE))
        .map_err(|_| Errno::FAULT)?;
    Ok(bytes)
}

/// A value, or a negative errno as the kernel expects it.
fn result(outcome: Result<u64, Errno>) -> u64 {
    outcome.unwrap_or_else(|errno| (-i64::from(errno.raw_os_error())).cast_unsigned())
}
