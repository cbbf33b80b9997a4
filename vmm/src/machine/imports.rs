//! Memory of others in this enclave: broker → descriptor → memslot.
//!
//! Called by the vCPU thread for the running program. Each program has a
//! connection to the broker of its own, made when it first asks for something:
//! whatever it got ends with the connection, whatever becomes of the program.
//! Its identity is the user of this process.
//!
//! An attached object is checked as every reader checks it (size, seals), mapped
//! as the access allows, and given to KVM as a memslot in the import window, of
//! an arena always a read-only one; the descriptor is closed after mapping.
//! Generations are leased here, and what waits here ends when the program is to
//! be killed. What the words of an arena mean is the kernel's business. Plain
//! segments are in [`super::segments`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enclave_abi::addr::{LARGE_PAGE_SIZE, align_up};
use enclave_abi::arena::{GenerationRecord, Geometry};
use enclave_abi::boot::Mode;
use enclave_abi::layout::{IMPORT_WINDOW, IMPORT_WINDOW_END};
use enclave_abi::lease::MAX_ARENAS;
use enclave_abi::syscall::{
    FOLLOW_EVERY, FOLLOW_LATEST, MAX_IMPORTS, NO_LIMIT, XEMEM_RDONLY, XEMEM_RDWR,
};
use kvm_bindings::KVM_MEM_READONLY;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use xemem_host::wire::{LeaseReply, Want};
use xemem_host::{
    Access, ApId, Broker, ClientError, Ears, Policy, Role, SegId, SegmentKind, Signals, Target,
};

use super::arenas::{FIRST_ARENA_SLOT, Mapping, set_memslot};
use super::bells::{self, Heard, Listening, Watch};
use super::given_back::Shares;
use super::vm::Vm;
use crate::machine::{Backing, MemoryNode};

/// First memslot of imports.
pub(super) const FIRST_IMPORT_SLOT: u32 = FIRST_ARENA_SLOT + 32;
const _: () = assert!(MAX_ARENAS == 32);
/// First memslot behind those of imports.
pub(super) const AFTER_IMPORTS: u32 = FIRST_IMPORT_SLOT + 16;
const _: () = assert!(MAX_IMPORTS == 16);
/// Memslots that a machine may need: RAM, lease page, arenas, imports.
pub(crate) const MEMSLOTS: i64 = AFTER_IMPORTS as i64;

/// Memory in a slot.
#[derive(Debug)]
pub(super) struct Import {
    source: Source,
    gpa: u64,
    mapping: Mapping,
}

/// Whose memory it is.
#[derive(Debug)]
pub(super) enum Source {
    /// An arena of anybody.
    Arena(Follow),
    /// A piece of a plain segment.
    Piece(ApId),
    /// A plain segment of the program's own.
    Made(SegId),
}

/// Which generation of an arena is leased.
#[derive(Debug)]
pub(super) struct Follow {
    apid: ApId,
    tells: Tells,
    /// Newest generation that was leased, 0 at first.
    last: u64,
    /// The generation leased now.
    leased: Option<u64>,
}

impl Import {
    /// The access it came by.
    fn apid(&self) -> Option<ApId> {
        match self.source {
            Source::Arena(Follow { apid, .. }) | Source::Piece(apid) => Some(apid),
            Source::Made(_) => None,
        }
    }

    /// The eventfds that this thread waits at.
    fn listening(&self) -> Option<&Listening> {
        match &self.source {
            Source::Arena(Follow {
                tells: Tells::Bells(listening),
                ..
            }) => Some(listening),
            _ => None,
        }
    }

    fn follow(&mut self) -> Option<&mut Follow> {
        match &mut self.source {
            Source::Arena(follow) => Some(follow),
            Source::Piece(_) | Source::Made(_) => None,
        }
    }
}

/// How the program hears of generations.
#[derive(Debug)]
enum Tells {
    /// The kernel waits for interrupts, as long as this is kept.
    Interrupts { _heard: Heard },
    /// The kernel has this thread wait ([`ImportTable::await_bell`]).
    Bells(Listening),
    /// There is no bell: this thread waits for the broker's notify.
    Notify(OwnedFd),
}

/// What the running program shares with others beside its own arenas.
#[derive(Debug)]
pub(super) struct ImportTable {
    vm: Arc<Vm>,
    /// Of this, what can lose pages.
    shares: Arc<Shares>,
    /// Name of the enclave.
    enclave: String,
    socket: PathBuf,
    pub(super) backing: Backing,
    pub(super) node: MemoryNode,
    /// Whether the kernel takes bells as interrupts: in ring-0 mode.
    interrupts: bool,
    broker: Option<Broker>,
    /// Of its broker, as soon as the kernel waits for interrupts.
    watch: Option<Watch>,
    imports: BTreeMap<u32, Import>,
    /// What each access is for.
    granted: BTreeMap<ApId, SegId>,
    /// Plain segments of the program's own.
    pub(super) made: BTreeSet<SegId>,
    pub(super) signals: BTreeMap<Target, Signals>,
    /// Who hears the program's signals.
    pub(super) ears: BTreeMap<Target, Ears>,
}

/// What came of asking for a generation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This one is leased.
    Leased(GenerationRecord),
    /// There will be none any more; why.
    Ended(u64),
}

/// What was attached, as the kernel is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attached {
    pub(super) gpa: u64,
    pub(super) size_bytes: u64,
    /// Bytes of a chunk, or of a page.
    pub(super) chunk_bytes: u64,
    /// 0 = plain.
    pub(super) nr_banks: u32,
    pub(super) writable: bool,
    /// Whether the kernel is interrupted when there is a generation.
    pub(super) rings: bool,
}

/// What of it the program wants attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) slot: u64,
    pub(super) apid: u64,
    pub(super) policy: u64,
    pub(super) offset: u64,
    /// 0 = all that follows.
    pub(super) size: u64,
}

impl ImportTable {
    /// Nothing attached.
    pub(super) fn new(
        vm: Arc<Vm>,
        enclave: &str,
        socket: PathBuf,
        (backing, node): (Backing, MemoryNode),
        mode: Mode,
    ) -> Self {
        Self {
            interrupts: mode == Mode::Ring0,
            vm,
            shares: Arc::default(),
            enclave: enclave.to_owned(),
            socket,
            backing,
            node,
            broker: None,
            watch: None,
            imports: BTreeMap::new(),
            granted: BTreeMap::new(),
            made: BTreeSet::new(),
            signals: BTreeMap::new(),
            ears: BTreeMap::new(),
        }
    }

    /// The program's connection.
    fn broker(&mut self) -> Result<&mut Broker, Errno> {
        let broker = match self.broker.take() {
            Some(broker) => broker,
            None => self.connect().map_err(|e| e.errno())?,
        };
        Ok(self.broker.insert(broker))
    }

    fn connect(&self) -> Result<Broker, ClientError> {
        let mut broker = Broker::connect_as(&self.socket, Role::Exporter)?;
        match broker.for_enclave(&self.enclave) {
            // A name that it may not have is only one that lists do not show.
            Ok(()) | Err(ClientError::Refused { .. }) => Ok(broker),
            Err(error) => Err(error),
        }
    }

    /// Asks the broker. A connection that does not work any more is given up:
    /// the next question begins a new one, which knows nothing of the old.
    pub(super) fn ask<T>(
        &mut self,
        ask: impl FnOnce(&mut Broker) -> Result<T, ClientError>,
    ) -> Result<T, Errno> {
        let outcome = ask(self.broker()?);
        outcome.map_err(|error| {
            if matches!(error, ClientError::BrokerGone) {
                self.lose();
            }
            error.errno()
        })
    }

    /// Gives the connection up, with all ids that hang on it. What is mapped
    /// stays.
    pub(super) fn lose(&mut self) {
        (self.broker, self.watch) = (None, None);
        self.granted.clear();
        self.made.clear();
        self.signals.clear();
        self.ears.clear();
    }

    /// Finds a segment; waits for its name as long as told.
    pub(super) fn lookup(
        &mut self,
        name: &[u8],
        timeout_ms: u64,
        cancel: BorrowedFd<'_>,
    ) -> Result<u64, Errno> {
        let name = std::str::from_utf8(name).map_err(|_| Errno::INVAL)?;
        let timeout = (timeout_ms != 0).then(|| Duration::from_millis(timeout_ms));
        self.ask(|broker| broker.lookup_unless(name, timeout, cancel))
            .map(|segid| segid.0)
    }

    /// Asks for access.
    pub(super) fn get(&mut self, segid: u64, flags: u64) -> Result<u64, Errno> {
        let access = match flags {
            XEMEM_RDONLY => Access::ReadOnly,
            XEMEM_RDWR => Access::ReadWrite,
            _ => return Err(Errno::INVAL),
        };
        let apid = self.ask(|broker| broker.get_for(SegId(segid), access))?;
        self.granted.insert(apid, SegId(segid));
        Ok(apid.0)
    }

    /// Gives access back. Its objects go with it: nobody holds their
    /// generations any more.
    pub(super) fn release(&mut self, apid: u64) -> Result<u64, Errno> {
        let slots: Vec<u32> = self
            .imports
            .iter()
            .filter(|(_, import)| import.apid() == Some(ApId(apid)))
            .map(|(&slot, _)| slot)
            .collect();
        for slot in slots {
            self.forget(slot);
        }
        self.signals.remove(&Target::Access(ApId(apid)));
        self.ears.remove(&Target::Access(ApId(apid)));
        self.granted.remove(&ApId(apid));
        self.ask(|broker| broker.release(ApId(apid))).map(|()| 0)
    }

    /// `slot`, if there is such a one and nothing is in it.
    pub(super) fn free(&self, slot: u64) -> Result<u32, Errno> {
        let free = |slot: &u32| (*slot as usize) < MAX_IMPORTS && !self.imports.contains_key(slot);
        u32::try_from(slot).ok().filter(free).ok_or(Errno::INVAL)
    }

    /// Attaches an arena, or a piece of a plain segment, in a slot.
    pub(super) fn attach(&mut self, wanted: &Wanted) -> Result<Attached, Errno> {
        let slot = self.free(wanted.slot)?;
        let apid = ApId(wanted.apid);
        let segid = *self.granted.get(&apid).ok_or(Errno::BADF)?;
        let info = self.ask(|broker| broker.info(segid))?;
        match info.kind {
            SegmentKind::Plain => {
                self.attach_piece(slot, apid, wanted.offset, wanted.size, info.size_bytes)
            }
            SegmentKind::Arena if wanted.offset != 0 => Err(Errno::INVAL),
            SegmentKind::Arena => self.attach_arena(slot, apid, wanted.policy),
        }
    }

    fn attach_arena(&mut self, slot: u32, apid: ApId, policy: u64) -> Result<Attached, Errno> {
        let policy = match u32::try_from(policy) {
            Ok(FOLLOW_LATEST) => Policy::Latest,
            Ok(FOLLOW_EVERY) => Policy::Every,
            _ => return Err(Errno::INVAL),
        };
        let attachment = self.ask(|broker| broker.attach(apid, policy))?;
        let Geometry {
            object_bytes,
            size_bytes,
            chunk_bytes,
            nr_banks,
            ..
        } = attachment.geometry;
        let tells = self.listen(apid, attachment.notify);
        let rings = !matches!(tells, Tells::Notify(_));
        let follow = Follow {
            apid,
            tells,
            last: 0,
            leased: None,
        };
        let placed = check_object(&attachment.memfd, object_bytes)
            .and_then(|()| Mapping::read_only(&attachment.memfd, object_bytes))
            .and_then(|map| self.put(slot, Source::Arena(follow), map, KVM_MEM_READONLY));
        match placed {
            Ok((gpa, _)) => Ok(Attached {
                gpa,
                size_bytes,
                chunk_bytes,
                nr_banks,
                writable: false,
                rings,
            }),
            Err(errno) => {
                // What cannot be told to the broker ends with the connection.
                let _ = self.ask(|broker| broker.detach(apid));
                Err(errno)
            }
        }
    }

    /// Has the exporter's bell and the broker's `notify` end the kernel's sleep;
    /// without a bell this thread waits for the broker.
    fn listen(&mut self, apid: ApId, notify: OwnedFd) -> Tells {
        let Ok(bell) = self.ask(|broker| broker.bell(apid)) else {
            return Tells::Notify(notify);
        };
        if !self.interrupts {
            return Tells::Bells(Listening { bell, notify });
        }
        match self.be_interrupted(bell, &notify) {
            Ok(_heard) => Tells::Interrupts { _heard },
            Err(_) => Tells::Notify(notify),
        }
    }

    fn be_interrupted(&mut self, bell: OwnedFd, notify: &OwnedFd) -> Result<Heard, Errno> {
        let notice = notify.try_clone().map_err(|_| Errno::MFILE)?;
        if self.watch.is_none() {
            let socket = self.broker()?.socket().try_clone_to_owned();
            let socket = socket.map_err(|_| Errno::MFILE)?;
            self.watch = Some(Watch::new(Arc::clone(&self.vm), socket)?);
        }
        Heard::new(Arc::clone(&self.vm), bell, notice)
    }

    /// Sleeps until a bell of any import rings or the broker has something to say
    /// (which of both), a kill comes, or for `ns` nanoseconds.
    pub(super) fn await_bell(&mut self, ns: u64, cancel: BorrowedFd<'_>) -> (bool, bool) {
        let ears = self.imports.values().filter_map(Import::listening);
        // A broker that is gone shows in what the kernel asks next.
        bells::hear(ears, self.broker.as_ref().map(Broker::socket), ns, cancel)
    }

    /// Gives a mapping to KVM: its guest-physical address and bytes.
    pub(super) fn put(
        &mut self,
        slot: u32,
        source: Source,
        mapping: Mapping,
        flags: u32,
    ) -> Result<(u64, u64), Errno> {
        let bytes = mapping.len() as u64;
        let gpa = self.find_window(bytes).ok_or(Errno::NOSPC)?;
        let host = mapping.start() as u64;
        let memslot = FIRST_IMPORT_SLOT + slot;
        set_memslot(&self.vm, memslot, gpa, bytes, host, flags)?;
        let import = Import {
            source,
            gpa,
            mapping,
        };
        self.imports.insert(slot, import);
        Ok((gpa, bytes))
    }

    /// First gap in the import window, aligned to 2 MiB.
    fn find_window(&self, bytes: u64) -> Option<u64> {
        let mut taken: Vec<(u64, u64)> = self
            .imports
            .values()
            .map(|import| (import.gpa, import.mapping.len() as u64))
            .collect();
        taken.sort_unstable();
        let mut at = IMPORT_WINDOW;
        for (start, len) in taken {
            if at.checked_add(bytes)? <= start {
                break;
            }
            at = align_up(start.checked_add(len)?, LARGE_PAGE_SIZE)?;
        }
        (at.checked_add(bytes)? <= IMPORT_WINDOW_END).then_some(at)
    }

    /// Leases the next generation for `slot` and gives the one before back: not
    /// before there is a next one, or it is waited for. At the end of the stream
    /// the last one stays.
    pub(super) fn next(
        &mut self,
        slot: u64,
        timeout_ms: u64,
        cancel: BorrowedFd<'_>,
    ) -> Result<Next, Errno> {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        let deadline = deadline(timeout_ms);
        loop {
            let follow = self.follow(slot)?;
            let (apid, after, leased) = (follow.apid, follow.last, follow.leased);
            if let Tells::Notify(notify) = &follow.tells {
                // Cleared before asking: what comes after shows in the eventfd.
                match rustix::io::read(notify, &mut [0_u8; 8]) {
                    Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            match self.ask(|broker| broker.lease(apid, Want::After(after)))? {
                LeaseReply::Granted { generation, record } => {
                    self.leased(slot, Some(generation))?;
                    let follow = self.follow(slot)?;
                    follow.last = follow.last.max(generation);
                    // The broker reads the record as soon as it leases.
                    return if record.generation == generation {
                        Ok(Next::Leased(record))
                    } else {
                        Err(Errno::IO)
                    };
                }
                LeaseReply::Ended(reason) => return Ok(Next::Ended(reason as u64 + 1)),
                // An exporter without a bank to spare waits for this one.
                LeaseReply::None if leased.is_some() => self.leased(slot, None)?,
                LeaseReply::None => {
                    let import = self.imports.get(&slot).ok_or(Errno::INVAL)?;
                    let Source::Arena(follow) = &import.source else {
                        return Err(Errno::INVAL);
                    };
                    let Tells::Notify(notify) = &follow.tells else {
                        // The kernel waits, and asks again.
                        return Err(Errno::TIMEDOUT);
                    };
                    match self.wait_at(notify.as_fd(), deadline, cancel) {
                        Err(Errno::CONNRESET) => {
                            self.lose();
                            return Err(Errno::CONNRESET);
                        }
                        other => other?,
                    }
                }
            }
        }
    }

    /// The arena in `slot`.
    fn follow(&mut self, slot: u32) -> Result<&mut Follow, Errno> {
        let import = self.imports.get_mut(&slot);
        import.and_then(Import::follow).ok_or(Errno::INVAL)
    }

    /// Notes what `slot` has leased now; what it had before goes back.
    fn leased(&mut self, slot: u32, now: Option<u64>) -> Result<(), Errno> {
        let follow = self.follow(slot)?;
        let apid = follow.apid;
        match std::mem::replace(&mut follow.leased, now) {
            Some(before) if Some(before) != now => {
                self.ask(|broker| broker.release_lease(apid, before))
            }
            _ => Ok(()),
        }
    }

    /// Waits until it is worth looking at `notify` again. ECONNRESET when the
    /// broker is gone.
    pub(super) fn wait_at(
        &self,
        notify: BorrowedFd<'_>,
        deadline: Option<Instant>,
        cancel: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let broker = self.broker.as_ref().ok_or(Errno::CONNRESET)?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
            // Nothing asked for: this wakes up when the broker hangs up.
            PollFd::from_borrowed_fd(broker.socket(), PollFlags::empty()),
            PollFd::from_borrowed_fd(notify, PollFlags::IN),
        ];
        let woken = poll(&mut fds, timeout.as_ref());
        let [is_cancelled, is_gone, _] = fds.map(|fd| !fd.revents().is_empty());
        match woken {
            Ok(0) => Err(Errno::TIMEDOUT),
            Ok(_) if is_cancelled => Err(Errno::INTR),
            Ok(_) if is_gone => Err(Errno::CONNRESET),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes memory out of the enclave, which has unmapped it; an access stays, a
    /// segment of the program's own ends.
    pub(super) fn detach(&mut self, slot: u64) -> Result<u64, Errno> {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        match self.forget(slot).ok_or(Errno::INVAL)? {
            Source::Arena(Follow { apid, .. }) | Source::Piece(apid) => {
                self.ask(|broker| broker.detach(apid)).map(|()| 0)
            }
            // It may have been removed before.
            Source::Made(segid) if self.made.contains(&segid) => self.remove(segid.0),
            Source::Made(_) => Ok(0),
        }
    }

    /// The program is over: everything goes.
    pub(super) fn end_all(&mut self) {
        // Leases, attachments, apids and segments end with the connection.
        self.lose();
        let slots: Vec<u32> = self.imports.keys().copied().collect();
        for slot in slots {
            self.forget(slot);
        }
    }

    /// Removes memslot and mapping.
    pub(super) fn forget(&mut self, slot: u32) -> Option<Source> {
        self.shares.forget(slot);
        let import = self.imports.remove(&slot)?;
        if set_memslot(&self.vm, FIRST_IMPORT_SLOT + slot, import.gpa, 0, 0, 0).is_err() {
            // KVM still maps it: keep the mapping rather than let the guest
            // read what comes there next.
            std::mem::forget(import.mapping);
        }
        Some(import.source)
    }

    /// What can lose pages.
    pub(super) fn shares(&self) -> &Arc<Shares> {
        &self.shares
    }

    /// For `inspect`: how many there are.
    pub(super) fn count(&self) -> usize {
        self.imports.len()
    }
}

/// When to stop waiting; `None` = never.
pub(super) fn deadline(timeout_ms: u64) -> Option<Instant> {
    (timeout_ms < NO_LIMIT)
        .then(|| Instant::now().checked_add(Duration::from_millis(timeout_ms)))
        .flatten()
}

/// The object must be as large as said, and stay so: a page that went away under
/// a running guest would stop the enclave.
pub(super) fn check_object(memfd: &OwnedFd, bytes: u64) -> Result<(), Errno> {
    let seals = fcntl_get_seals(memfd.as_fd())?;
    let size = fstat(memfd)?.st_size;
    let fits = u64::try_from(size).is_ok_and(|size| size >= bytes);
    if seals.contains(SealFlags::SHRINK) && fits {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}
