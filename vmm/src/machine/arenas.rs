//! Arenas of one enclave on the host: broker object → mapping → memslot.
//!
//! Called by the vCPU thread when the kernel makes, names or ends an arena.
//! Order at birth: the broker makes the memfd, we map and prefault it, KVM gets
//! the memslot and the doorbell, and only then is the broker told that it is
//! mapped (it seals the object and makes it visible). The memfd is closed after
//! mapping. A broker that has gone is looked for again at the next make; what
//! it leased is given back at once (`leases`).

// UNSAFETY: mappings that KVM is given as memslots; eventfds from the broker.
#![expect(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use enclave_abi::addr::{GIB, LARGE_PAGE_SIZE, align_up};
use enclave_abi::arena::{Geometry, NAME_BYTES, text};
use enclave_abi::layout::{ARENA_WINDOW, ARENA_WINDOW_END, DOORBELL_PAGE, LEASE_PAGE};
use enclave_abi::lease::MAX_ARENAS;
use enclave_abi::queue::doorbell;
use enclave_abi::syscall::ArenaArgs;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::IoEventAddress;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use vmm_sys_util::eventfd::EventFd;
use xemem_host::{
    Access, ArenaGrant, ArenaRequest, Broker, ClientError, EndReason, Hugetlb, SegId,
};

use super::bells::Rung;
use super::leases::{LEASE_BYTES, LeasePage, Link};
use super::vm::Vm;
use crate::machine::{Backing, MemoryNode};
use crate::memory::{Supply, populate};
use crate::policy;

/// Memslot numbers: RAM uses 0 and 1.
pub(super) const LEASE_SLOT: u32 = 2;
pub(crate) const FIRST_ARENA_SLOT: u32 = 3;

/// A mapping of our own that is unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory; this type hands out its address
// and no references into it.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing of the type changes through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of `fd` for reading and writing.
    pub(super) fn new(fd: &OwnedFd, bytes: u64) -> Result<Self, Errno> {
        Self::with(fd, 0, bytes, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// Maps the first `bytes` of `fd` for reading.
    pub(super) fn read_only(fd: &OwnedFd, bytes: u64) -> Result<Self, Errno> {
        Self::with(fd, 0, bytes, ProtFlags::READ)
    }

    /// Maps `bytes` at `offset` of `fd` as `access` allows; whole pages of it.
    pub(super) fn piece(
        fd: &OwnedFd,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Self, Errno> {
        let prot = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        Self::with(fd, offset, bytes, prot)
    }

    fn with(fd: &OwnedFd, offset: u64, bytes: u64, prot: ProtFlags) -> Result<Self, Errno> {
        let len = usize::try_from(bytes).map_err(|_| Errno::NOMEM)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                MapFlags::SHARED,
                fd.as_fd(),
                offset,
            )
        }?;
        let start = NonNull::new(at.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, len })
    }

    /// Its first byte.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Has its pages come from `node`; what is only preferred may fail (the
    /// private RAM has warned then).
    pub(super) fn place(&self, node: MemoryNode) -> Result<(), Errno> {
        match policy::apply(self.start.as_ptr(), self.len, node) {
            Err(_) if matches!(node, MemoryNode::Bind(_)) => Err(Errno::NOMEM),
            _ => Ok(()),
        }
    }

    pub(super) fn populate(&self) -> std::io::Result<()> {
        populate(self.start.as_ptr(), self.len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; its memslot was removed
        // first (ArenaTable::end) or the VM is gone.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// One arena.
#[derive(Debug)]
struct Arena {
    name: String,
    segid: SegId,
    gpa: u64,
    object_bytes: u64,
    page_bytes: u64,
    doorbell: EventFd,
    bells: Rung,
    mapping: Mapping,
}

/// Everything the host holds for an enclave's arenas.
#[derive(Debug)]
pub struct ArenaTable {
    vm: Arc<Vm>,
    enclave: String,
    socket: PathBuf,
    backing: Backing,
    node: MemoryNode,
    broker: Option<Link>,
    lease: Option<Arc<LeasePage>>,
    arenas: BTreeMap<u32, Arena>,
}

/// An enclave's place at the broker: its name is its own as long as this is there.
#[derive(Debug)]
pub(super) struct Registered {
    link: Link,
    page: Arc<LeasePage>,
}

/// Answer to the kernel: result, guest-physical address, segid, object bytes,
/// page bytes.
pub type MakeAnswer = Result<[u64; 4], Errno>;

impl ArenaTable {
    /// Connects to the broker, or takes over what was `kept`, and installs the lease
    /// page.
    ///
    /// # Errors
    /// The broker's or KVM's, as text for the user.
    pub(super) fn new(
        vm: Arc<Vm>,
        enclave: &str,
        socket: PathBuf,
        (backing, node): (Backing, MemoryNode),
        kept: Option<Registered>,
    ) -> Result<Self, String> {
        let mut this = Self {
            vm,
            enclave: enclave.into(),
            socket,
            backing,
            node,
            broker: None,
            lease: None,
            arenas: BTreeMap::new(),
        };
        match kept {
            Some(Registered { link, page }) => this.share_lease_page(page, link)?,
            None => this.connect()?,
        }
        Ok(this)
    }

    /// Leaves the broker to the table of the machine that comes after this one's.
    pub(super) fn leave(&mut self) -> Option<Registered> {
        let (link, page) = self.broker.take().zip(self.lease.take())?;
        Some(Registered { link, page })
    }

    /// Registers with the broker and puts its lease page into the guest.
    fn connect(&mut self) -> Result<(), String> {
        let mut broker = Broker::connect(&self.socket).map_err(|error| {
            format!(
                "cannot reach the broker at {}: {error}",
                self.socket.display()
            )
        })?;
        let fd = broker
            .register_enclave(&self.enclave)
            .map_err(|error| format!("the broker refused enclave {}: {error}", self.enclave))?;
        let page =
            LeasePage::new(&fd).map_err(|error| format!("cannot map the lease page: {error}"))?;
        let page = Arc::new(page);
        let link = Link::new(broker, Arc::clone(&page))
            .map_err(|error| format!("cannot watch the broker: {error}"))?;
        self.share_lease_page(page, link)
    }

    /// Puts the lease page into the guest.
    fn share_lease_page(&mut self, page: Arc<LeasePage>, link: Link) -> Result<(), String> {
        if self.lease.is_some() {
            self.set_slot(LEASE_SLOT, LEASE_PAGE, 0, 0)
                .map_err(|error| format!("cannot replace the lease page: {error}"))?;
        }
        self.set_slot(LEASE_SLOT, LEASE_PAGE, LEASE_BYTES, page.host_address())
            .map_err(|error| format!("cannot install the lease page: {error}"))?;
        self.lease = Some(page);
        self.broker = Some(link);
        Ok(())
    }

    fn set_slot(&self, slot: u32, gpa: u64, bytes: u64, host: u64) -> Result<(), Errno> {
        set_memslot(&self.vm, slot, gpa, bytes, host, 0)
    }

    /// Makes the arena that the kernel describes, in its slot.
    ///
    /// # Errors
    /// What the program gets to see.
    pub fn make(&mut self, slot: u64, args: &ArenaArgs) -> MakeAnswer {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        if slot as usize >= MAX_ARENAS || self.arenas.contains_key(&slot) {
            return Err(Errno::INVAL);
        }
        let name = text(&args.name).ok_or(Errno::INVAL)?;
        let geometry = Geometry::new(args.size_bytes, args.chunk_bytes, args.nr_banks)
            .map_err(|_| Errno::INVAL)?;
        // Prefaulting would find out too, after minutes and at the cost of
        // everybody else on the host.
        let mut supply = Supply::read(self.node);
        if geometry.object_bytes > supply.bytes() {
            // Arenas that ended may still be kept for their readers.
            let _ = self.tell(|broker| broker.make_room(geometry.object_bytes, false));
            supply = Supply::read(self.node);
        }
        let huge_bytes = supply.huge_pages.saturating_mul(LARGE_PAGE_SIZE);
        if geometry.object_bytes > supply.bytes() {
            return Err(Errno::NOMEM);
        }
        // The broker counts the pages of the whole host.
        let too_few =
            matches!(self.node, MemoryNode::Bind(_)) && geometry.object_bytes > huge_bytes;
        let hugetlb = if self.backing == Backing::Small || too_few {
            Hugetlb::No
        } else {
            Hugetlb::Auto
        };
        let mut request = ArenaRequest {
            slot,
            name: name.into(),
            size_bytes: args.size_bytes,
            chunk_bytes: args.chunk_bytes,
            nr_banks: args.nr_banks,
            hugetlb,
            reader_gid: (args.reader_gid != u32::MAX).then_some(args.reader_gid),
            retain: args.retain,
        };
        let grant = self.ask(&request)?;
        match self.install(slot, name, grant) {
            // The huge pages were taken by somebody else meanwhile.
            Err(Errno::NOMEM) if hugetlb == Hugetlb::Auto => {
                request.hugetlb = Hugetlb::No;
                let grant = self.ask(&request)?;
                self.install(slot, name, grant)
            }
            other => other,
        }
    }

    /// Asks the broker for an object; once more over a new connection when the
    /// old broker has gone.
    fn ask(&mut self, request: &ArenaRequest) -> Result<ArenaGrant, Errno> {
        for _ in 0..2 {
            if self.broker.is_none() && self.connect().is_err() {
                return Err(Errno::CONNREFUSED);
            }
            match self
                .broker
                .as_mut()
                .map(|link| link.broker.arena_make(request))
            {
                Some(Ok(grant)) => return Ok(grant),
                Some(Err(error)) => {
                    if let Some(errno) = error.refusal() {
                        return Err(errno);
                    }
                    self.broker = None;
                }
                None => {}
            }
        }
        Err(Errno::CONNREFUSED)
    }

    fn install(&mut self, slot: u32, name: &str, grant: ArenaGrant) -> MakeAnswer {
        let segid = grant.segid;
        let made = self.map_and_ring(slot, name, grant);
        let sealed = made.and_then(
            |answer| match self.tell(|broker| broker.arena_mapped(segid)) {
                Ok(()) => Ok(answer),
                Err(_) => Err(Errno::IO),
            },
        );
        if sealed.is_err() {
            self.forget(slot);
            // The broker may be the reason: then there is nothing to take back.
            let _ = self.tell(|broker| broker.arena_end(segid, EndReason::ClosedByProgram));
        }
        sealed
    }

    /// Maps, prefaults and gives the object and its doorbell to KVM.
    fn map_and_ring(&mut self, slot: u32, name: &str, grant: ArenaGrant) -> MakeAnswer {
        let bytes = grant.geometry.object_bytes;
        let gpa = self.find_window(bytes).ok_or(Errno::NOSPC)?;
        let mapping = Mapping::new(&grant.memfd, bytes)?;
        // Nobody has touched the object yet: the broker looks into it only when
        // it is told that it is mapped.
        mapping.place(self.node)?;
        mapping.populate().map_err(|_| Errno::NOMEM)?;
        let raw = grant.doorbell.into_raw_fd();
        // SAFETY: `raw` was just taken out of its owner.
        let doorbell = unsafe { EventFd::from_raw_fd(raw) };
        let at = doorbell_address(slot);
        self.vm
            .register_ioevent(&doorbell, &at, 1u32)
            .map_err(|error| Errno::from_raw_os_error(error.errno()))?;
        if let Err(errno) = self.set_slot(
            FIRST_ARENA_SLOT + slot,
            gpa,
            bytes,
            mapping.start.as_ptr() as u64,
        ) {
            let _ = self.vm.unregister_ioevent(&doorbell, &at, 1u32);
            return Err(errno);
        }
        let answer = [gpa, grant.segid.0, bytes, grant.page_bytes];
        let arena = Arena {
            name: name.into(),
            segid: grant.segid,
            gpa,
            object_bytes: bytes,
            page_bytes: grant.page_bytes,
            doorbell,
            bells: Rung::default(),
            mapping,
        };
        self.arenas.insert(slot, arena);
        Ok(answer)
    }

    /// First gap in the arena window, aligned to 1 GiB.
    fn find_window(&self, bytes: u64) -> Option<u64> {
        let mut taken: Vec<(u64, u64)> = self
            .arenas
            .values()
            .map(|arena| (arena.gpa, arena.gpa + arena.object_bytes))
            .collect();
        taken.sort_unstable();
        let mut at = ARENA_WINDOW;
        for (start, end) in taken {
            if at.checked_add(bytes)? <= start {
                break;
            }
            at = align_up(end, GIB)?;
        }
        (at.checked_add(bytes)? <= ARENA_WINDOW_END).then_some(at)
    }

    fn tell<T>(
        &mut self,
        ask: impl FnOnce(&mut Broker) -> Result<T, ClientError>,
    ) -> Result<T, Errno> {
        let Some(link) = self.broker.as_mut() else {
            return Err(Errno::CONNREFUSED);
        };
        match ask(&mut link.broker) {
            Ok(value) => Ok(value),
            Err(error) => match error.refusal() {
                Some(errno) => Err(errno),
                None => {
                    self.broker = None;
                    Err(Errno::CONNREFUSED)
                }
            },
        }
    }

    /// Puts the bells that the broker has for an arena in force; which ones
    /// there are.
    ///
    /// # Errors
    /// ENOENT without such an arena; the broker's. There are none then.
    pub(super) fn bells(&mut self, slot: u64) -> Result<u64, Errno> {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        let segid = self.arenas.get(&slot).ok_or(Errno::NOENT)?.segid;
        let told = self.tell(|broker| broker.bells(segid));
        let arena = self.arenas.get_mut(&slot).ok_or(Errno::NOENT)?;
        match told {
            Ok(bells) => Ok(arena.bells.replace(&self.vm, slot, bells)),
            Err(errno) => {
                arena.bells.clear(&self.vm, slot);
                Err(errno)
            }
        }
    }

    /// Bells that publishes ring.
    pub(super) fn count_bells(&self) -> usize {
        self.arenas.values().map(|arena| arena.bells.count()).sum()
    }

    /// Gives an arena a further name.
    ///
    /// # Errors
    /// What the program gets to see.
    pub fn name(&mut self, slot: u64, name: &[u8]) -> Result<u64, Errno> {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        let segid = self.arenas.get(&slot).ok_or(Errno::NOENT)?.segid;
        let name = std::str::from_utf8(name)
            .map_err(|_| Errno::INVAL)?
            .to_owned();
        if name.len() >= NAME_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        self.tell(|broker| broker.arena_name(segid, &name))?;
        if let Some(arena) = self.arenas.get_mut(&slot)
            && arena.name.is_empty()
        {
            arena.name = name;
        }
        Ok(segid.0)
    }

    /// Takes an arena out of the guest and ends it at the broker.
    ///
    /// # Errors
    /// ENOENT when there is none.
    pub fn end(&mut self, slot: u64, died: bool) -> Result<(), Errno> {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        let segid = self.forget(slot).ok_or(Errno::NOENT)?;
        let reason = if died {
            EndReason::ProgramDied
        } else {
            EndReason::ClosedByProgram
        };
        // Without a broker there is nobody to tell.
        let _ = self.tell(|broker| broker.arena_end(segid, reason));
        Ok(())
    }

    /// Ends whatever is left when a program is over. A kernel ends its arenas
    /// itself; a program may have asked for some behind the kernel's back.
    pub fn end_all(&mut self, died: bool) {
        let slots: Vec<u32> = self.arenas.keys().copied().collect();
        for slot in slots {
            // They are there: we have just listed them.
            let _ = self.end(u64::from(slot), died);
        }
    }

    /// Removes memslot, doorbell and mapping.
    fn forget(&mut self, slot: u32) -> Option<SegId> {
        let mut arena = self.arenas.remove(&slot)?;
        arena.bells.clear(&self.vm, slot);
        let _ = self
            .vm
            .unregister_ioevent(&arena.doorbell, &doorbell_address(slot), 1u32);
        let removed = self.set_slot(FIRST_ARENA_SLOT + slot, arena.gpa, 0, 0);
        if removed.is_err() {
            // KVM still maps it: keep the memory rather than let the guest
            // write into whatever comes there next.
            std::mem::forget(arena.mapping);
        }
        Some(arena.segid)
    }

    /// For `inspect`: (slot, name, segid, object bytes, page bytes).
    #[must_use]
    pub fn list(&self) -> Vec<(u32, String, u64, u64, u64)> {
        self.arenas
            .iter()
            .map(|(&slot, a)| {
                (
                    slot,
                    a.name.clone(),
                    a.segid.0,
                    a.object_bytes,
                    a.page_bytes,
                )
            })
            .collect()
    }
}

/// Sets a memslot; size 0 removes it. `flags` are KVM's. The host range is that
/// of a [`Mapping`] which the caller keeps until its slot is removed or replaced.
pub(super) fn set_memslot(
    vm: &Vm,
    slot: u32,
    gpa: u64,
    bytes: u64,
    host: u64,
    flags: u32,
) -> Result<(), Errno> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: bytes,
        userspace_addr: host,
    };
    // SAFETY: the host range stays mapped until its slot is removed (both
    // tables' `forget`) or replaced (`connect`), and nobody holds references
    // into it.
    unsafe { vm.set_slot(region) }.map_err(|error| Errno::from_raw_os_error(error.errno()))
}

fn doorbell_address(slot: u32) -> IoEventAddress {
    IoEventAddress::Mmio(DOORBELL_PAGE + doorbell::ARENA_BASE + 8 * u64::from(slot))
}
