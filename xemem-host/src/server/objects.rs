//! What the broker's ids stand for: memfds, eventfds and mappings.
//!
//! Each method carries out one [`crate::broker::Effect`]. An arena object:
//!
//! ```text
//!  make_arena: memfd, final size, sealed against resizing; doorbell
//!  seal_arena: O_RDONLY descriptor for readers, mode 0400, then
//!              FUTURE_WRITE and SEAL: no new writable mapping for anybody,
//!              while the exporter's own goes on writing
//! ```
//!
//! Reads of shared memory are copies; what they mean the broker judges.

use super::custody::Custody;
use super::plain::PlainObject;
use super::pool;
use crate::broker::{Broker, Counters, EnclaveId, LeaseMemory};
use crate::keeper::channel::Key;
use crate::memory::Mapping;
use crate::signal_page::{self, SignalPage};
use crate::wire::{Access, Hugetlb, SegId, Target};
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE};
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, GENERATION_RECORDS, GENERATIONS_OFFSET, GenerationRecord, Geometry,
};
use enclave_abi::lease::{SLOTS, retain_of, retain_word, slot_word};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, fcntl_get_seals, ftruncate,
    memfd_create,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

/// Bytes of the lease page.
const LEASE_PAGE_BYTES: usize = 4096;
/// Bytes of header and generation ring.
const HEADER_BYTES: usize = 0x2000;
/// Where the kernel says how many 2 MiB pages are free.
const FREE_HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
/// Seals of every object from its first moment.
pub(super) const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
/// Seals of an arena that others may attach.
const ARENA_SEALS: SealFlags = SIZE_SEALS
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

#[derive(Debug)]
struct LeasePage {
    fd: OwnedFd,
    map: Mapping,
}

#[derive(Debug)]
struct Arena {
    page_bytes: u64,
    doorbell: OwnedFd,
    memory: ArenaMemory,
}

#[derive(Debug)]
enum ArenaMemory {
    /// The exporter's descriptor.
    Open(OwnedFd),
    /// The readers' descriptor, and our view of the header.
    Sealed { readers: OwnedFd, header: Mapping },
}

/// Everything that exists.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) custody: Custody,
    pages: BTreeMap<EnclaveId, LeasePage>,
    arenas: BTreeMap<SegId, Arena>,
    segments: BTreeMap<SegId, PlainObject>,
    notifies: BTreeMap<Target, OwnedFd>,
    bells: BTreeMap<(SegId, u8), OwnedFd>,
    signal_pages: BTreeMap<SegId, (OwnedFd, SignalPage)>,
}

impl Objects {
    pub(super) fn make_lease_page(&mut self, enclave: EnclaveId) -> Result<(), Errno> {
        let fd = sealable("xemem-lease", MemfdFlags::empty())?;
        let map = sized(&fd, 4096, SIZE_SEALS | SealFlags::SEAL)
            .and_then(|()| Mapping::read_write(&fd, LEASE_PAGE_BYTES))?;
        self.custody.put(Key::LeasePage(enclave), &fd);
        self.pages.insert(enclave, LeasePage { fd, map });
        Ok(())
    }

    /// Makes the object; returns the bytes of a page behind it.
    pub(super) fn make_arena(
        &mut self,
        segid: SegId,
        object_bytes: u64,
        hugetlb: Hugetlb,
    ) -> Result<u64, Errno> {
        let name = "xemem-arena";
        let (fd, page_bytes) = match hugetlb {
            Hugetlb::No => object(name, object_bytes, PAGE_SIZE)?,
            Hugetlb::Yes => object(name, object_bytes, LARGE_PAGE_SIZE)?,
            Hugetlb::Auto => object(name, object_bytes, LARGE_PAGE_SIZE)
                .or_else(|_| object(name, object_bytes, PAGE_SIZE))?,
        };
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.custody.put(Key::Arena(segid), &fd);
        self.custody.put(Key::Doorbell(segid), &doorbell);
        let memory = ArenaMemory::Open(fd);
        let arena = Arena {
            page_bytes,
            doorbell,
            memory,
        };
        self.arenas.insert(segid, arena);
        Ok(page_bytes)
    }

    pub(super) fn seal_arena(&mut self, segid: SegId) -> Result<(), Errno> {
        let arena = self.arenas.get_mut(&segid).ok_or(Errno::NOENT)?;
        let ArenaMemory::Open(fd) = &arena.memory else {
            return Err(Errno::BUSY);
        };
        let readers = read_only_twin(fd)?;
        fchmod(fd, Mode::RUSR)?;
        seal(fd, ARENA_SEALS)?;
        if !fcntl_get_seals(&readers)?.contains(ARENA_SEALS) {
            return Err(Errno::PERM);
        }
        self.custody.put(Key::ArenaReaders(segid), &readers);
        arena.memory = sealed(readers, arena.page_bytes)?;
        Ok(())
    }

    /// Makes the object; returns the bytes of a page behind it.
    pub(super) fn make_segment(
        &mut self,
        segid: SegId,
        size_bytes: u64,
        hugetlb: Hugetlb,
    ) -> Result<u64, Errno> {
        let (object, page_bytes) = PlainObject::make(size_bytes, hugetlb)?;
        if let Some(fd) = object.exporters() {
            self.custody.put(Key::Segment(segid), fd);
        }
        self.segments.insert(segid, object);
        Ok(page_bytes)
    }

    pub(super) fn seal_segment(&mut self, segid: SegId, writable: bool) -> Result<(), Errno> {
        let object = self.segments.remove(&segid).ok_or(Errno::NOENT)?;
        let object = object.seal(writable)?;
        if let Some(readers) = object.importers(Access::ReadOnly) {
            self.custody.put(Key::SegmentReaders(segid), readers);
        }
        self.segments.insert(segid, object);
        Ok(())
    }

    pub(super) fn make_notify(&mut self, target: Target) -> Result<(), Errno> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.custody.put(Key::Notify(target), &fd);
        self.notifies.insert(target, fd);
        Ok(())
    }

    pub(super) fn make_bell(&mut self, segid: SegId, bell: u8) -> Result<(), Errno> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.custody.put(Key::Bell(segid, bell), &fd);
        self.bells.insert((segid, bell), fd);
        Ok(())
    }

    pub(super) fn make_signal_page(&mut self, segid: SegId) -> Result<(), Errno> {
        let fd = sealable("xemem-signals", MemfdFlags::empty())?;
        let page = sized(&fd, signal_page::BYTES as u64, SIZE_SEALS | SealFlags::SEAL)
            .and_then(|()| SignalPage::new(&fd))?;
        self.custody.put(Key::SignalPage(segid), &fd);
        self.signal_pages.insert(segid, (fd, page));
        Ok(())
    }

    /// The page of `segid` and the wait eventfds of `targets`; `None` if one is
    /// missing.
    pub(super) fn ears(&self, segid: SegId, targets: &[Target]) -> Option<Vec<BorrowedFd<'_>>> {
        let page = self.signal_pages.get(&segid).map(|(fd, _)| fd.as_fd());
        let ears = targets.iter().map(|target| self.notify_fd(*target));
        core::iter::once(page).chain(ears).collect()
    }

    pub(super) fn drop_signal_page(&mut self, segid: SegId) {
        if self.signal_pages.remove(&segid).is_some() {
            self.custody.withdraw(Key::SignalPage(segid));
        }
    }

    fn signal_page(&self, segid: SegId) -> Option<&SignalPage> {
        self.signal_pages.get(&segid).map(|(_, page)| page)
    }

    /// The bells of `segid` that have a bit in `mask`; `None` if one is missing.
    pub(super) fn bells(&self, segid: SegId, mask: u16) -> Option<Vec<BorrowedFd<'_>>> {
        let wanted = (0..16_u8).filter(|bell| mask >> bell & 1 == 1);
        let fd = |bell| self.bells.get(&(segid, bell)).map(OwnedFd::as_fd);
        wanted.map(fd).collect()
    }

    pub(super) fn drop_bell(&mut self, segid: SegId, bell: u8) {
        self.bells.remove(&(segid, bell));
        self.custody.withdraw(Key::Bell(segid, bell));
    }

    pub(super) fn notify(&self, target: Target, count: u64) {
        if let Some(fd) = self.notifies.get(&target) {
            // Full (EAGAIN) means that its holder, who alone could have filled
            // it, has plenty to wake up for.
            let _ = rustix::io::write(fd, &count.to_ne_bytes());
        }
    }

    /// Rings since the last call, 0 if none.
    pub(super) fn read_doorbell(&self, segid: SegId) -> u64 {
        let mut rings = [0; size_of::<u64>()];
        let read = self
            .doorbell(segid)
            .map(|fd| rustix::io::read(fd, &mut rings));
        match read {
            Some(Ok(_)) => u64::from_ne_bytes(rings),
            _ => 0,
        }
    }

    pub(super) fn doorbell(&self, segid: SegId) -> Option<BorrowedFd<'_>> {
        self.arenas.get(&segid).map(|arena| arena.doorbell.as_fd())
    }

    pub(super) fn lease_page(&self, enclave: EnclaveId) -> Option<BorrowedFd<'_>> {
        self.pages.get(&enclave).map(|page| page.fd.as_fd())
    }

    /// The exporter's descriptor, as long as the arena is not sealed.
    pub(super) fn open_arena(&self, segid: SegId) -> Option<BorrowedFd<'_>> {
        match &self.arenas.get(&segid)?.memory {
            ArenaMemory::Open(fd) => Some(fd.as_fd()),
            ArenaMemory::Sealed { .. } => None,
        }
    }

    /// The readers' descriptor, once the arena is sealed.
    pub(super) fn sealed_arena(&self, segid: SegId) -> Option<BorrowedFd<'_>> {
        match &self.arenas.get(&segid)?.memory {
            ArenaMemory::Open(_) => None,
            ArenaMemory::Sealed { readers, .. } => Some(readers.as_fd()),
        }
    }

    /// The exporter's descriptor of a plain segment that is not sealed yet.
    pub(super) fn open_segment(&self, segid: SegId) -> Option<BorrowedFd<'_>> {
        self.segments.get(&segid)?.exporters()
    }

    /// The descriptor of a plain segment for an importer.
    pub(super) fn segment_memory(&self, segid: SegId, access: Access) -> Option<BorrowedFd<'_>> {
        self.segments.get(&segid)?.importers(access)
    }

    pub(super) fn notify_fd(&self, target: Target) -> Option<BorrowedFd<'_>> {
        self.notifies.get(&target).map(OwnedFd::as_fd)
    }

    pub(super) fn drop_notify(&mut self, target: Target) {
        self.notifies.remove(&target);
        self.custody.withdraw(Key::Notify(target));
    }

    pub(super) fn drop_segment(&mut self, segid: SegId) {
        self.segments.remove(&segid);
        self.custody.withdraw(Key::Segment(segid));
        self.custody.withdraw(Key::SegmentReaders(segid));
    }

    pub(super) fn drop_arena(&mut self, segid: SegId) {
        self.arenas.remove(&segid);
        self.custody.withdraw(Key::Arena(segid));
        self.custody.withdraw(Key::ArenaReaders(segid));
        self.custody.withdraw(Key::Doorbell(segid));
    }

    pub(super) fn drop_lease_page(&mut self, enclave: EnclaveId) {
        self.pages.remove(&enclave);
        self.custody.withdraw(Key::LeasePage(enclave));
    }

    /// What was sealed, and recorded as such: the exporter's descriptor goes,
    /// unless importers get it.
    pub(super) fn withdraw_open(&self, segid: SegId) {
        if self.sealed_arena(segid).is_some() {
            self.custody.withdraw(Key::Arena(segid));
        } else if self.segment_memory(segid, Access::ReadWrite).is_none() {
            self.custody.withdraw(Key::Segment(segid));
        }
    }

    /// Everything there is, for another keeper.
    pub(super) fn deposit(&self) {
        let custody = &self.custody;
        for (enclave, page) in &self.pages {
            custody.put(Key::LeasePage(*enclave), &page.fd);
        }
        for (segid, arena) in &self.arenas {
            custody.put(Key::Doorbell(*segid), &arena.doorbell);
            match &arena.memory {
                ArenaMemory::Open(fd) => custody.put(Key::Arena(*segid), fd),
                ArenaMemory::Sealed { readers, .. } => {
                    custody.put(Key::ArenaReaders(*segid), readers);
                }
            }
        }
        for (segid, object) in &self.segments {
            let writers = object.importers(Access::ReadWrite);
            if let Some(fd) = object.exporters().or(writers) {
                custody.put(Key::Segment(*segid), fd);
            }
            if let Some(readers) = object.importers(Access::ReadOnly) {
                custody.put(Key::SegmentReaders(*segid), readers);
            }
        }
        for (target, fd) in &self.notifies {
            custody.put(Key::Notify(*target), fd);
        }
        for (&(segid, bell), fd) in &self.bells {
            custody.put(Key::Bell(segid, bell), fd);
        }
        for (segid, (fd, _)) in &self.signal_pages {
            custody.put(Key::SignalPage(*segid), fd);
        }
    }

    /// What a predecessor left in the keeper's custody, as far as `record` has
    /// a use for it: whether a segment is sealed, and the bytes of its pages.
    /// The rest is withdrawn.
    pub(super) fn take_over(
        custody: Custody,
        mut left: BTreeMap<Key, OwnedFd>,
        record: impl Fn(SegId) -> Option<(bool, u64)>,
    ) -> Self {
        let mut objects = Self {
            custody,
            ..Self::default()
        };
        let keys: Vec<Key> = left.keys().copied().collect();
        for key in keys {
            match key {
                Key::LeasePage(enclave) => objects.take_lease_page(enclave, &mut left),
                Key::Doorbell(segid) => objects.take_arena(segid, &mut left, &record),
                Key::Segment(segid) | Key::SegmentReaders(segid) => {
                    objects.take_segment(segid, &mut left, &record);
                }
                Key::Notify(target) => {
                    let fd = left.remove(&key);
                    objects.notifies.extend(fd.map(|fd| (target, fd)));
                }
                Key::SignalPage(segid) if record(segid).is_some() => {
                    // Without it signals come here again.
                    let fd = left.remove(&key);
                    let page = fd.and_then(|fd| Some((SignalPage::new(&fd).ok()?, fd)));
                    let page = page.map(|(page, fd)| (segid, (fd, page)));
                    objects.signal_pages.extend(page);
                }
                Key::Bell(segid, bell) if record(segid).is_some() => {
                    let fd = left.remove(&key);
                    objects.bells.extend(fd.map(|fd| ((segid, bell), fd)));
                }
                _ => {}
            }
        }
        for key in left.keys() {
            objects.custody.withdraw(*key);
        }
        objects
    }

    /// Lets go of what `broker` needs no more: its predecessor was killed when
    /// it had recorded that and not done it.
    pub(super) fn prune(&mut self, broker: &Broker) {
        let notifies: Vec<Target> = self.notifies.keys().copied().collect();
        for target in notifies {
            if !broker.needs_notify(target) {
                self.drop_notify(target);
            }
        }
        let pages: Vec<EnclaveId> = self.pages.keys().copied().collect();
        for enclave in pages {
            if !broker.needs_lease_page(enclave) {
                self.drop_lease_page(enclave);
            }
        }
    }

    fn take_lease_page(&mut self, enclave: EnclaveId, left: &mut BTreeMap<Key, OwnedFd>) {
        if let Some(fd) = left.remove(&Key::LeasePage(enclave))
            && let Ok(map) = Mapping::read_write(&fd, LEASE_PAGE_BYTES)
        {
            self.pages.insert(enclave, LeasePage { fd, map });
        }
    }

    fn take_arena(
        &mut self,
        segid: SegId,
        left: &mut BTreeMap<Key, OwnedFd>,
        record: impl Fn(SegId) -> Option<(bool, u64)>,
    ) {
        let Some((is_sealed, page_bytes)) = record(segid) else {
            return;
        };
        let memory = if is_sealed {
            let readers = left.remove(&Key::ArenaReaders(segid));
            readers.and_then(|readers| sealed(readers, page_bytes).ok())
        } else {
            left.remove(&Key::Arena(segid)).map(ArenaMemory::Open)
        };
        if let Some(memory) = memory
            && let Some(doorbell) = left.remove(&Key::Doorbell(segid))
        {
            let arena = Arena {
                page_bytes,
                doorbell,
                memory,
            };
            self.arenas.insert(segid, arena);
        }
    }

    fn take_segment(
        &mut self,
        segid: SegId,
        left: &mut BTreeMap<Key, OwnedFd>,
        record: impl Fn(SegId) -> Option<(bool, u64)>,
    ) {
        let Some((is_sealed, _)) = record(segid).filter(|_| !self.segments.contains_key(&segid))
        else {
            return;
        };
        let object = if is_sealed {
            let readers = left.remove(&Key::SegmentReaders(segid));
            readers.map(|readers| PlainObject::Sealed {
                readers,
                writers: left.remove(&Key::Segment(segid)),
            })
        } else {
            left.remove(&Key::Segment(segid)).map(PlainObject::Open)
        };
        self.segments.extend(object.map(|object| (segid, object)));
    }

    fn header(&self, segid: SegId) -> Option<&Mapping> {
        match &self.arenas.get(&segid)?.memory {
            ArenaMemory::Open(_) => None,
            ArenaMemory::Sealed { header, .. } => Some(header),
        }
    }
}

/// A sealed object as the broker uses it.
fn sealed(readers: OwnedFd, page_bytes: u64) -> Result<ArenaMemory, Errno> {
    // Mapped whole pages at a time: on 2 MiB pages this reserves one now,
    // so that reading the header cannot raise SIGBUS later.
    let page = usize::try_from(page_bytes).map_err(|_| Errno::OVERFLOW)?;
    let header = Mapping::read_only(&readers, HEADER_BYTES.max(page))?;
    Ok(ArenaMemory::Sealed { readers, header })
}

/// Adds `seals` unless a broker that was killed just then has done so.
pub(super) fn seal(fd: &OwnedFd, seals: SealFlags) -> Result<(), Errno> {
    if fcntl_get_seals(fd)?.contains(seals) {
        Ok(())
    } else {
        fcntl_add_seals(fd, seals)
    }
}

impl LeaseMemory for Objects {
    fn has_lease_page(&self, enclave: EnclaveId) -> bool {
        self.pages.contains_key(&enclave)
    }

    fn has_object(&self, segid: SegId, is_sealed: bool) -> bool {
        let arena = self.arenas.get(&segid).map(|arena| &arena.memory);
        let arena = arena.map(|memory| matches!(memory, ArenaMemory::Sealed { .. }));
        let segment = self.segments.get(&segid);
        let segment = segment.map(|object| object.exporters().is_none());
        arena.or(segment) == Some(is_sealed)
    }

    fn has_notify(&self, target: Target) -> bool {
        self.notifies.contains_key(&target)
    }

    fn words(&self, enclave: EnclaveId, slot: u32) -> [u64; SLOTS] {
        let page = self.pages.get(&enclave);
        core::array::from_fn(|index| {
            page.zip(word_offset(slot, index))
                .and_then(|(page, offset)| page.map.load(offset))
                .unwrap_or(0)
        })
    }

    fn exchange(&self, enclave: EnclaveId, slot: u32, index: usize, old: u64, new: u64) -> bool {
        let page = self.pages.get(&enclave);
        page.zip(word_offset(slot, index))
            .is_some_and(|(page, offset)| page.map.exchange(offset, old, new))
    }

    fn clear(&self, enclave: EnclaveId, slot: u32) {
        for index in 0..SLOTS {
            if let Some((page, offset)) = self.pages.get(&enclave).zip(word_offset(slot, index)) {
                page.map.store(offset, 0);
            }
        }
    }

    fn signal_version(&self, segid: SegId) -> Option<u64> {
        self.signal_page(segid).map(SignalPage::version)
    }

    fn renew_subscribers(&self, segid: SegId) {
        if let Some(page) = self.signal_page(segid) {
            page.renew();
        }
    }

    fn direct_signals(&self, segid: SegId) -> u64 {
        self.signal_page(segid).map_or(0, SignalPage::signals)
    }

    fn take_signal(&self, segid: SegId, rate: u64) -> bool {
        self.signal_page(segid).is_none_or(|page| page.take(rate))
    }

    fn set_retain(&self, enclave: EnclaveId, slot: u32, told: u32, readers: u32) {
        let word = usize::try_from(slot).ok().and_then(retain_word);
        if let Some((page, word)) = self.pages.get(&enclave).zip(word) {
            page.map
                .store(word * size_of::<u64>(), retain_of(told, readers));
            // The kernel publishes, then looks at this word; see `bells::QUIET`.
            fence(Ordering::SeqCst);
        }
    }

    fn counters(&self, segid: SegId) -> Counters {
        let header = self.header(segid);
        header
            .and_then(|map| map.copy::<ArenaHeader>(0))
            .filter(|header| header.magic == ARENA_MAGIC)
            .map_or_else(Counters::default, |header| Counters {
                latest_generation: header.latest_generation,
                dropped: header.dropped,
                discarded: header.discarded,
                waited: header.waited,
                policy: header.policy,
                placement: header.placement,
            })
    }

    fn frames_used(&self, segid: SegId, geometry: &Geometry) -> Option<u64> {
        pool::frames_used(self.sealed_arena(segid)?, geometry)
    }

    fn record(&self, segid: SegId, generation: u64) -> Option<GenerationRecord> {
        crate::snapshot::read_record(self.header(segid)?, generation)
    }
}

fn word_offset(slot: u32, index: usize) -> Option<usize> {
    let slot = usize::try_from(slot).ok()?;
    slot_word(slot, index).map(|word| word * size_of::<u64>())
}

/// A memfd of fixed size on pages of `page_bytes`, and those bytes.
pub(super) fn object(
    name: &str,
    object_bytes: u64,
    page_bytes: u64,
) -> Result<(OwnedFd, u64), Errno> {
    let flags = if page_bytes == LARGE_PAGE_SIZE {
        if free_hugepages() < object_bytes.div_ceil(LARGE_PAGE_SIZE) {
            return Err(Errno::NOMEM);
        }
        MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB
    } else {
        MemfdFlags::empty()
    };
    let fd = sealable(name, flags)?;
    sized(&fd, object_bytes, SIZE_SEALS)?;
    Ok((fd, page_bytes))
}

/// A read-only descriptor of the same object.
pub(super) fn read_only_twin(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Not-executable where the kernel knows that (6.3), else plain.
fn sealable(name: &str, flags: MemfdFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        other => other,
    }
}

fn sized(fd: &OwnedFd, bytes: u64, seals: SealFlags) -> Result<(), Errno> {
    ftruncate(fd, bytes)?;
    fcntl_add_seals(fd, seals)
}

/// A number that others may take from at any time: a hint, not a promise.
fn free_hugepages() -> u64 {
    let text = std::fs::read_to_string(FREE_HUGEPAGES).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

const _: () = assert!(GENERATIONS_OFFSET + (GENERATION_RECORDS * 64) as u64 == HEADER_BYTES as u64);
