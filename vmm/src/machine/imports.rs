//! Arenas of others in this enclave: broker → descriptor → read-only memslot.
//!
//! Called by the vCPU thread for the running program. Each program has a
//! connection to the broker of its own, made when it first asks for something:
//! whatever it got ends with the connection, whatever becomes of the program.
//! Its identity is the user of this process.
//!
//! An attached object is checked as every reader checks it (size, seals), mapped
//! readable only, and given to KVM as a read-only memslot in the import window;
//! the descriptor is closed after mapping. Generations are leased here, and what
//! waits here ends when the program is to be killed. What the words of the
//! object mean is the kernel's business.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enclave_abi::addr::{LARGE_PAGE_SIZE, align_up};
use enclave_abi::arena::{GenerationRecord, Geometry};
use enclave_abi::layout::{IMPORT_WINDOW, IMPORT_WINDOW_END};
use enclave_abi::lease::MAX_ARENAS;
use enclave_abi::syscall::{
    FOLLOW_EVERY, FOLLOW_LATEST, MAX_IMPORTS, NO_LIMIT, XEMEM_RDONLY, XEMEM_RDWR,
};
use kvm_bindings::KVM_MEM_READONLY;
use kvm_ioctls::VmFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use xemem_host::wire::{LeaseReply, Want};
use xemem_host::{Access, ApId, Broker, ClientError, Policy, Role, SegId};

use super::arenas::{FIRST_ARENA_SLOT, Mapping, set_memslot};

/// First memslot of imports.
const FIRST_IMPORT_SLOT: u32 = FIRST_ARENA_SLOT + 32;
const _: () = assert!(MAX_ARENAS == 32);
/// Memslots that a machine may need: RAM, lease page, arenas, imports.
pub(crate) const MEMSLOTS: i64 = FIRST_IMPORT_SLOT as i64 + MAX_IMPORTS as i64;

/// One attached object.
#[derive(Debug)]
struct Import {
    apid: ApId,
    gpa: u64,
    object_bytes: u64,
    notify: OwnedFd,
    /// Newest generation that was leased, 0 at first.
    last: u64,
    /// The generation leased now.
    leased: Option<u64>,
    mapping: Mapping,
}

/// What the running program has of others.
#[derive(Debug)]
pub(super) struct ImportTable {
    vm: Arc<VmFd>,
    socket: PathBuf,
    broker: Option<Broker>,
    imports: BTreeMap<u32, Import>,
}

/// What came of asking for a generation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This one is leased.
    Leased(GenerationRecord),
    /// There will be none any more; why.
    Ended(u64),
}

/// An attached object, as the kernel is told: guest-physical address, geometry.
pub(super) type Attached = (u64, Geometry);

impl ImportTable {
    /// Nothing attached.
    pub(super) fn new(vm: Arc<VmFd>, socket: PathBuf) -> Self {
        Self {
            vm,
            socket,
            broker: None,
            imports: BTreeMap::new(),
        }
    }

    /// The program's connection.
    fn broker(&mut self) -> Result<&mut Broker, Errno> {
        let broker = match self.broker.take() {
            Some(broker) => broker,
            None => Broker::connect_as(&self.socket, Role::Consumer).map_err(|e| e.errno())?,
        };
        Ok(self.broker.insert(broker))
    }

    /// Asks the broker. A connection that does not work any more is given up:
    /// the next question begins a new one, which knows nothing of the old.
    fn ask<T>(
        &mut self,
        ask: impl FnOnce(&mut Broker) -> Result<T, ClientError>,
    ) -> Result<T, Errno> {
        let outcome = ask(self.broker()?);
        outcome.map_err(|error| {
            if matches!(error, ClientError::BrokerGone) {
                self.broker = None;
            }
            error.errno()
        })
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
        self.ask(|broker| broker.get_for(SegId(segid), access))
            .map(|apid| apid.0)
    }

    /// Gives access back. Its objects go with it: nobody holds their
    /// generations any more.
    pub(super) fn release(&mut self, apid: u64) -> Result<u64, Errno> {
        let slots: Vec<u32> = self
            .imports
            .iter()
            .filter(|(_, import)| import.apid.0 == apid)
            .map(|(&slot, _)| slot)
            .collect();
        for slot in slots {
            self.forget(slot);
        }
        self.ask(|broker| broker.release(ApId(apid))).map(|()| 0)
    }

    /// Attaches an arena in a slot.
    pub(super) fn attach(&mut self, slot: u64, apid: u64, policy: u64) -> Result<Attached, Errno> {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        if slot as usize >= MAX_IMPORTS || self.imports.contains_key(&slot) {
            return Err(Errno::INVAL);
        }
        let policy = match u32::try_from(policy) {
            Ok(FOLLOW_LATEST) => Policy::Latest,
            Ok(FOLLOW_EVERY) => Policy::Every,
            _ => return Err(Errno::INVAL),
        };
        let apid = ApId(apid);
        let attachment = self.ask(|broker| broker.attach(apid, policy))?;
        let placed = self.place(slot, &attachment.memfd, &attachment.geometry);
        match placed {
            Ok((gpa, mapping)) => {
                let import = Import {
                    apid,
                    gpa,
                    object_bytes: attachment.geometry.object_bytes,
                    notify: attachment.notify,
                    last: 0,
                    leased: None,
                    mapping,
                };
                self.imports.insert(slot, import);
                Ok((gpa, attachment.geometry))
            }
            Err(errno) => {
                // What cannot be told to the broker ends with the connection.
                let _ = self.ask(|broker| broker.detach(apid));
                Err(errno)
            }
        }
    }

    /// Maps an object and gives it to KVM, read-only.
    fn place(
        &self,
        slot: u32,
        memfd: &OwnedFd,
        geometry: &Geometry,
    ) -> Result<(u64, Mapping), Errno> {
        let bytes = geometry.object_bytes;
        check_object(memfd, bytes)?;
        let gpa = self.find_window(bytes).ok_or(Errno::NOSPC)?;
        let mapping = Mapping::read_only(memfd, bytes)?;
        let host = mapping.start() as u64;
        set_memslot(
            &self.vm,
            FIRST_IMPORT_SLOT + slot,
            gpa,
            bytes,
            host,
            KVM_MEM_READONLY,
        )?;
        Ok((gpa, mapping))
    }

    /// First gap in the import window, aligned to 2 MiB.
    fn find_window(&self, bytes: u64) -> Option<u64> {
        let mut taken: Vec<(u64, u64)> = self
            .imports
            .values()
            .map(|import| (import.gpa, import.object_bytes))
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
            let import = self.imports.get(&slot).ok_or(Errno::INVAL)?;
            let (apid, after, leased) = (import.apid, import.last, import.leased);
            // Cleared before asking: what comes after shows in the eventfd.
            match rustix::io::read(&import.notify, &mut [0_u8; 8]) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            match self.ask(|broker| broker.lease(apid, Want::After(after)))? {
                LeaseReply::Granted { generation, record } => {
                    self.leased(slot, Some(generation))?;
                    if let Some(import) = self.imports.get_mut(&slot) {
                        import.last = import.last.max(generation);
                    }
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
                LeaseReply::None => self.wait(slot, deadline, cancel)?,
            }
        }
    }

    /// Notes what `slot` has leased now; what it had before goes back.
    fn leased(&mut self, slot: u32, now: Option<u64>) -> Result<(), Errno> {
        let import = self.imports.get_mut(&slot).ok_or(Errno::INVAL)?;
        let apid = import.apid;
        match std::mem::replace(&mut import.leased, now) {
            Some(before) if Some(before) != now => {
                self.ask(|broker| broker.release_lease(apid, before))
            }
            _ => Ok(()),
        }
    }

    /// Waits until it is worth asking again.
    fn wait(
        &mut self,
        slot: u32,
        deadline: Option<Instant>,
        cancel: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let import = self.imports.get(&slot).ok_or(Errno::INVAL)?;
        let broker = self.broker.as_ref().ok_or(Errno::CONNRESET)?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
            // Nothing asked for: this wakes up when the broker hangs up.
            PollFd::from_borrowed_fd(broker.socket(), PollFlags::empty()),
            PollFd::new(&import.notify, PollFlags::IN),
        ];
        let woken = poll(&mut fds, timeout.as_ref());
        let [is_cancelled, is_gone, _] = fds.map(|fd| !fd.revents().is_empty());
        match woken {
            Ok(0) => Err(Errno::TIMEDOUT),
            Ok(_) if is_cancelled => Err(Errno::INTR),
            Ok(_) if is_gone => {
                self.broker = None;
                Err(Errno::CONNRESET)
            }
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes an object out of the enclave, which has unmapped it; the access
    /// stays.
    pub(super) fn detach(&mut self, slot: u64) -> Result<u64, Errno> {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        let apid = self.forget(slot).ok_or(Errno::INVAL)?;
        self.ask(|broker| broker.detach(apid)).map(|()| 0)
    }

    /// The program is over: everything goes.
    pub(super) fn end_all(&mut self) {
        // Leases, attachments and apids end with the connection.
        self.broker = None;
        let slots: Vec<u32> = self.imports.keys().copied().collect();
        for slot in slots {
            self.forget(slot);
        }
    }

    /// Removes memslot and mapping.
    fn forget(&mut self, slot: u32) -> Option<ApId> {
        let import = self.imports.remove(&slot)?;
        if set_memslot(&self.vm, FIRST_IMPORT_SLOT + slot, import.gpa, 0, 0, 0).is_err() {
            // KVM still maps it: keep the mapping rather than let the guest
            // read what comes there next.
            std::mem::forget(import.mapping);
        }
        Some(import.apid)
    }

    /// For `inspect`: how many there are.
    pub(super) fn count(&self) -> usize {
        self.imports.len()
    }
}

/// When to stop waiting; `None` = never.
fn deadline(timeout_ms: u64) -> Option<Instant> {
    (timeout_ms < NO_LIMIT)
        .then(|| Instant::now().checked_add(Duration::from_millis(timeout_ms)))
        .flatten()
}

/// The object must be as large as said, and stay so: a page that went away under
/// a running guest would stop the enclave.
fn check_object(memfd: &OwnedFd, bytes: u64) -> Result<(), Errno> {
    let seals = fcntl_get_seals(memfd.as_fd())?;
    let size = fstat(memfd)?.st_size;
    let fits = u64::try_from(size).is_ok_and(|size| size >= bytes);
    if seals.contains(SealFlags::SHRINK) && fits {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}
