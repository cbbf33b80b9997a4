//! [`Arena`]: memory whose published states readers see without a copy.
//!
//! The Rust form of the library. An arena is one object per name; it ends when
//! it is dropped or when the process ends.
//!
//! Access is by borrow, on purpose: a slice of arena memory cannot be kept
//! across [`Arena::publish`], because the compiler may delay stores through a
//! `&mut` slice past any call that cannot see it, and the snapshot would lack
//! them. [`Array`] handles survive; take the slice anew in each step.

use crate::array::{Array, Element};
use crate::calls;
use crate::errno::Errno;
use crate::heap::{Heap, Usage};
use crate::mapping::Mapping;
use crate::var::{Var, field};
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, align_up};
use enclave_abi::arena::Geometry;
use enclave_abi::syscall::{
    ArenaArgs, ArenaStats, POLICY_BLOCK, POLICY_DISCARD_NEWEST, POLICY_DISCARD_OLDEST,
};
use enclave_arena::Placement;

/// Banks when nothing is said: one live, one published, two for readers.
pub const DEFAULT_BANKS: u32 = 4;

/// Bytes that are copied on the first write after a publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chunk {
    /// 4 KiB: for sparse writes.
    Kib4,
    /// 2 MiB: for arrays that are rewritten in each step.
    #[default]
    Mib2,
}

impl Chunk {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Kib4 => PAGE_SIZE,
            Self::Mib2 => LARGE_PAGE_SIZE,
        }
    }

    /// The chunk of that many bytes, if there is one.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            PAGE_SIZE => Some(Self::Kib4),
            LARGE_PAGE_SIZE => Some(Self::Mib2),
            _ => None,
        }
    }
}

/// What a publish does when readers hold every bank but the live one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueFull {
    /// The state is not published (EAGAIN) and counted as dropped.
    #[default]
    DiscardNewest,
    /// The oldest generation is taken away from its readers, whose `valid()`
    /// says so, and counted as discarded.
    DiscardOldest,
    /// Waits until a reader gives one back; after so many milliseconds (0 = no
    /// limit) ETIMEDOUT, counted as dropped. With three banks or more, readers of
    /// every generation miss none: a publish waits for the broker, too, which
    /// leases them.
    Block {
        /// The limit.
        timeout_ms: u32,
    },
}

/// How an arena is made; [`Options::default`] suits most programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Copy-on-write granularity.
    pub chunk: Chunk,
    /// Versions of a chunk that can exist at once, 2 to 16; memory is
    /// `banks` times the arena. One is live, so the limit of the queue of
    /// published generations is `banks - 1`.
    pub banks: u32,
    /// What happens at that limit.
    pub queue_full: QueueFull,
    /// Newest generations that readers can still get although none of them
    /// holds one, 1 to `banks - 1`.
    pub retain: u32,
    /// Where copies go among the banks.
    pub placement: Placement,
    /// Group that may read besides the owner.
    pub reader_gid: Option<u32>,
    /// Wanted address, a multiple of 512 GiB, or 0 for any.
    pub start: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunk: Chunk::default(),
            banks: DEFAULT_BANKS,
            queue_full: QueueFull::default(),
            retain: 1,
            placement: Placement::default(),
            reader_gid: None,
            start: 0,
        }
    }
}

/// An arena of this process.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
    heap: Heap,
}

impl Arena {
    /// Makes an arena of at least `bytes` (rounded up to whole chunks), zeroed.
    ///
    /// `name` has at most 63 bytes; `/` makes a path.
    ///
    /// # Errors
    /// As [`pack_args`] and [`calls::arena_create`]; ENOSYS without a
    /// backend, EPROTO when the kernel speaks another version.
    pub fn create(name: &str, bytes: u64, options: Options) -> Result<Self, Errno> {
        let args = pack_args(Some(name), bytes, options)?;
        calls::require()?;
        let mapping = Mapping::create(args)?;
        let heap = Heap::open(mapping.slot(), mapping.address(), mapping.bytes())?;
        Ok(Self { mapping, heap })
    }

    /// Takes room for `len` elements, aligned to a cache line. Their values are
    /// zero, or what an array held that was there before.
    ///
    /// # Errors
    /// ENOMEM when the arena has no room left.
    pub fn alloc<T: Element>(&mut self, len: usize) -> Result<Array<T>, Errno> {
        self.alloc_aligned(len, 0)
    }

    /// Takes room for `len` elements at a multiple of `align` bytes (a power
    /// of two, at least a cache line is used).
    ///
    /// # Errors
    /// ENOMEM when the arena has no room left, EINVAL when `align` is no power
    /// of two.
    pub fn alloc_aligned<T: Element>(&mut self, len: usize, align: u64) -> Result<Array<T>, Errno> {
        let bytes = Array::<T>::at(0, len).nbytes().ok_or(Errno::ENOMEM)?;
        let given = self.heap.allocate(bytes, align)?;
        Ok(Array::at(given.address - self.mapping.address(), len))
    }

    /// Gives an array's room back. Another array may get it; handles to this
    /// one must not be used any more, and a variable that shows it should be
    /// described anew.
    ///
    /// # Errors
    /// EINVAL when it is not (any more) an array that [`Arena::alloc`] handed
    /// out: nothing changes then.
    pub fn free<T: Element>(&mut self, array: Array<T>) -> Result<(), Errno> {
        let address = self.mapping.address().checked_add(array.offset());
        self.heap.release(address.ok_or(Errno::EINVAL)?)
    }

    /// As [`Arena::alloc`], with an owner that gives the room back when it is
    /// dropped; all elements are zero.
    ///
    /// # Errors
    /// As [`Arena::alloc`].
    pub fn alloc_owned<T: Element>(&mut self, len: usize) -> Result<Owned<T>, Errno> {
        let bytes = Array::<T>::at(0, len).nbytes().ok_or(Errno::ENOMEM)?;
        let given = self.heap.allocate(bytes, 0)?;
        let owned = Owned {
            array: Array::at(given.address - self.mapping.address(), len),
            heap: self.heap,
            address: given.address,
        };
        let dirty = usize::try_from(given.dirty).map_err(|_| Errno::EOVERFLOW)?;
        let dirty = Array::<u8>::at(owned.array.offset(), dirty);
        self.get_mut(dirty)?.fill(0);
        Ok(owned)
    }

    /// How much of the arena is allocated.
    ///
    /// # Errors
    /// ENOENT in a forked child, which has no arenas.
    pub fn usage(&self) -> Result<Usage, Errno> {
        self.heap.usage()
    }

    /// Reads an array.
    ///
    /// # Errors
    /// EFAULT when it is not inside this arena, EINVAL when it is misaligned.
    pub fn get<T: Element>(&self, array: Array<T>) -> Result<&[T], Errno> {
        self.mapping.get(array)
    }

    /// Writes an array.
    ///
    /// # Errors
    /// As [`Arena::get`].
    pub fn get_mut<T: Element>(&mut self, array: Array<T>) -> Result<&mut [T], Errno> {
        let [slice] = self.mapping.get_disjoint_mut([array])?;
        Ok(slice)
    }

    /// Writes several arrays at a time.
    ///
    /// # Errors
    /// As [`Arena::get`]; EINVAL when two of them share a byte.
    pub fn get_disjoint_mut<T: Element, const N: usize>(
        &mut self,
        arrays: [Array<T>; N],
    ) -> Result<[&mut [T]; N], Errno> {
        self.mapping.get_disjoint_mut(arrays)
    }

    /// Writes `len` elements at `offset` bytes from the start.
    ///
    /// # Errors
    /// As [`Arena::get`].
    pub fn slice_mut<T: Element>(&mut self, offset: u64, len: usize) -> Result<&mut [T], Errno> {
        self.get_mut(Array::at(offset, len))
    }

    /// Adds or replaces (by name) a variable; returns its index.
    ///
    /// # Errors
    /// As [`Var::pack`] and [`calls::arena_var`].
    pub fn var(&mut self, var: &Var<'_>) -> Result<u32, Errno> {
        calls::arena_var(self.mapping.slot(), &var.pack(self.mapping.bytes())?)
    }

    /// Publishes the present contents as a snapshot; returns its generation.
    ///
    /// Constant time, whatever the size. The memory stays where it is and can
    /// be written at once.
    ///
    /// # Errors
    /// EAGAIN when every bank is held by readers: this state is not published
    /// and counted as dropped, the program goes on and may publish the next;
    /// ETIMEDOUT when it has waited for them ([`QueueFull::Block`]) in vain.
    pub fn publish(&mut self, step: u64, time: f64) -> Result<u64, Errno> {
        calls::arena_publish(self.mapping.slot(), step, time)
    }

    /// Has copies of the chunks that `array` touches go to `bank` if that is
    /// free, from now on; `None` takes the wish back. An arena of
    /// [`Placement::Preferred`] only.
    ///
    /// # Errors
    /// As [`calls::arena_prefer`].
    pub fn prefer<T: Element>(&mut self, array: Array<T>, bank: Option<u32>) -> Result<(), Errno> {
        let bytes = array.nbytes().ok_or(Errno::EFAULT)?;
        calls::arena_prefer(self.mapping.slot(), array.offset(), bytes, bank)
    }

    /// The kernel's number for it.
    pub(crate) fn slot(&self) -> u32 {
        self.mapping.slot()
    }

    /// Waits until `readers` are attached, at most `timeout_ms` milliseconds (0 =
    /// no limit), so that none misses the first generation; returns how many
    /// there are.
    ///
    /// # Errors
    /// ETIMEDOUT when they did not come in time.
    pub fn wait_readers(&self, readers: u32, timeout_ms: u32) -> Result<u32, Errno> {
        calls::arena_wait_readers(self.mapping.slot(), readers, timeout_ms)
    }

    /// Gives the arena a further name; returns the segid.
    ///
    /// # Errors
    /// As [`calls::xemem_make`].
    pub fn make(&self, name: &str) -> Result<u64, Errno> {
        calls::xemem_make(self.mapping.base(), self.mapping.bytes(), name)
    }

    /// Counters of this arena.
    ///
    /// # Errors
    /// As [`calls::arena_stats`].
    pub fn stats(&self) -> Result<ArenaStats, Errno> {
        calls::arena_stats(self.mapping.slot())
    }

    /// Address of the first byte.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.mapping.base()
    }

    /// Bytes of the arena, a multiple of its chunk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.mapping.bytes()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.heap.close();
    }
}

/// An array of an arena that is given back when this is dropped, if the arena
/// is still there; `arena.get(owned.array())` reads it.
#[derive(Debug)]
pub struct Owned<T> {
    array: Array<T>,
    heap: Heap,
    address: u64,
}

impl<T: Element> Owned<T> {
    /// The handle by which the arena is asked; for variables, too.
    #[must_use]
    pub fn array(&self) -> Array<T> {
        self.array
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // The arena may have ended before; then there is nothing to give back.
        let _ = self.heap.release(self.address);
    }
}

/// Publishes one state of several arenas under one step and time: all of them
/// or none, so that a reader who takes the generations of a step from each has
/// what belongs together.
///
/// # Errors
/// As [`Arena::publish`]; EINVAL for an empty set.
pub fn publish_set(arenas: &mut [&mut Arena], step: u64, time: f64) -> Result<(), Errno> {
    const MOST: usize = enclave_abi::lease::MAX_ARENAS;
    let mut slots = [0; MOST];
    let slots = slots.get_mut(..arenas.len()).ok_or(Errno::EINVAL)?;
    for (slot, arena) in slots.iter_mut().zip(arenas.iter()) {
        *slot = arena.mapping.slot();
    }
    calls::arena_publish_set(slots, step, time)
}

/// The argument structure of an arena of at least `bytes`; `name` may be given
/// later.
///
/// # Errors
/// EINVAL for 0 bytes, a size or bank count that cannot be, more generations to
/// retain than banks can hold, an empty name or
/// one with control characters, an address that is no multiple of 512 GiB;
/// ENAMETOOLONG for a name of more than 63 bytes.
pub fn pack_args(name: Option<&str>, bytes: u64, options: Options) -> Result<ArenaArgs, Errno> {
    /// What one top-level page-table entry maps; arenas start there.
    const START_ALIGN: u64 = 512 << 30;
    let chunk_bytes = options.chunk.bytes();
    let size_bytes = align_up(bytes, chunk_bytes).ok_or(Errno::EINVAL)?;
    Geometry::new(size_bytes, chunk_bytes, options.banks).map_err(|_| Errno::EINVAL)?;
    let retain_fits = (1..options.banks).contains(&options.retain);
    if name == Some("") || !options.start.is_multiple_of(START_ALIGN) || !retain_fits {
        return Err(Errno::EINVAL);
    }
    let (policy, timeout_ms) = match options.queue_full {
        QueueFull::DiscardNewest => (POLICY_DISCARD_NEWEST, 0),
        QueueFull::DiscardOldest => (POLICY_DISCARD_OLDEST, 0),
        QueueFull::Block { timeout_ms } => (POLICY_BLOCK, timeout_ms),
    };
    Ok(ArenaArgs {
        name: field(name.unwrap_or(""))?,
        size_bytes,
        chunk_bytes,
        nr_banks: options.banks,
        policy,
        start: options.start,
        reader_gid: options.reader_gid.unwrap_or(u32::MAX),
        timeout_ms,
        retain: options.retain,
        placement: options.placement.number(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(bytes: usize) -> Arena {
        use core::sync::atomic::{AtomicU32, Ordering};
        static SLOT: AtomicU32 = AtomicU32::new(0);
        let mapping = Mapping::ordinary(bytes);
        let slot = SLOT.fetch_add(1, Ordering::Relaxed);
        let heap = Heap::open(slot, mapping.address(), mapping.bytes()).unwrap();
        Arena { mapping, heap }
    }

    #[test]
    fn room_that_was_given_back_is_used_again() {
        let mut arena = arena(4096);
        let a = arena.alloc::<u64>(256).unwrap();
        arena.get_mut(a).unwrap().fill(7);
        assert_eq!(arena.alloc::<u64>(257).unwrap_err(), Errno::ENOMEM);
        assert_eq!(arena.free(a), Ok(()));
        assert_eq!(arena.free(a), Err(Errno::EINVAL));
        assert_eq!(arena.free(Array::<u8>::at(u64::MAX, 1)), Err(Errno::EINVAL));
        let owned = arena.alloc_owned::<u64>(512).unwrap();
        assert_eq!(arena.get(owned.array()).unwrap(), [0; 512]);
        assert_eq!(arena.usage().unwrap().used, 4096);
        drop(owned);
        assert_eq!(arena.usage().unwrap().blocks, 0);
    }

    #[test]
    fn an_owner_that_outlives_its_arena_frees_nothing_of_another() {
        let mut first = arena(4096);
        let owned = first.alloc_owned::<u8>(100).unwrap();
        let slot = u32::try_from(first.heap.slot).unwrap();
        let address = owned.address;
        drop(first);
        let next = Heap::open(slot, address, 4096).unwrap();
        assert_eq!(
            next.allocate(100, 0).map(|given| given.address),
            Ok(address)
        );
        drop(owned);
        assert_eq!(next.size(address), Ok(128));
        next.close();
        assert_eq!(next.size(address), Err(Errno::ENOENT));
    }

    #[test]
    fn without_a_backend_there_are_no_arenas() {
        assert_eq!(crate::select(crate::Choice::Off), Ok(()));
        let made = Arena::create("heat", 4096, Options::default());
        assert_eq!(made.map(|_| ()), Err(Errno::ENOSYS));
    }

    #[test]
    fn sizes_are_rounded_up_to_chunks() {
        let small = Options {
            chunk: Chunk::Kib4,
            ..Options::default()
        };
        assert_eq!(pack_args(Some("a"), 1, small).unwrap().size_bytes, 4096);
        let args = pack_args(Some("snap/flux"), 3 << 20, Options::default()).unwrap();
        assert_eq!((args.size_bytes, args.chunk_bytes), (4 << 20, 2 << 20));
        assert_eq!((args.nr_banks, args.reader_gid), (4, u32::MAX));
        assert_eq!(&args.name[..10], b"snap/flux\0");
    }

    #[test]
    fn impossible_arenas_are_refused_before_the_call() {
        let default = Options::default();
        let refused = |name, bytes, options| pack_args(name, bytes, options).unwrap_err();
        assert_eq!(refused(Some("a"), 0, default), Errno::EINVAL);
        assert_eq!(refused(Some("a"), u64::MAX, default), Errno::EINVAL);
        assert_eq!(refused(Some("a"), 1 << 50, default), Errno::EINVAL);
        assert_eq!(refused(Some(""), 4096, default), Errno::EINVAL);
        let long = "x".repeat(64);
        assert_eq!(refused(Some(&long), 4096, default), Errno::ENAMETOOLONG);
        for banks in [0, 1, 17] {
            let options = Options { banks, ..default };
            assert_eq!(refused(Some("a"), 4096, options), Errno::EINVAL);
        }
        let start = Options {
            start: 4096,
            ..default
        };
        assert_eq!(refused(Some("a"), 4096, start), Errno::EINVAL);
    }

    #[test]
    fn arrays_keep_their_values_and_do_not_overlap() {
        let mut arena = arena(4096);
        let a = arena.alloc::<f64>(10).unwrap();
        let b = arena.alloc::<f64>(20).unwrap();
        let n = arena.alloc::<u64>(1).unwrap();
        arena.get_mut(n).unwrap()[0] = 7;
        let [first, second] = arena.get_disjoint_mut([a, b]).unwrap();
        first.fill(1.0);
        second.fill(2.0);
        assert_eq!(arena.get(a).unwrap(), [1.0; 10]);
        assert_eq!(arena.get(b).unwrap(), [2.0; 20]);
        assert_eq!(arena.get(n).unwrap(), [7]);
        assert_eq!(arena.get_disjoint_mut([a, a]).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn places_outside_or_between_elements_are_refused() {
        let mut arena = arena(4096);
        assert_eq!(arena.slice_mut::<f64>(0, 512).map(|s| s.len()), Ok(512));
        assert_eq!(arena.slice_mut::<f64>(0, 513).unwrap_err(), Errno::EFAULT);
        assert_eq!(arena.slice_mut::<f64>(4096, 1).unwrap_err(), Errno::EFAULT);
        assert_eq!(
            arena.slice_mut::<u8>(u64::MAX, 1).unwrap_err(),
            Errno::EFAULT
        );
        assert_eq!(arena.slice_mut::<f64>(4, 1).unwrap_err(), Errno::EINVAL);
        assert_eq!(
            arena.slice_mut::<f64>(0, usize::MAX).unwrap_err(),
            Errno::EOVERFLOW
        );
        assert_eq!(arena.alloc::<f64>(513).unwrap_err(), Errno::ENOMEM);
        assert_eq!(arena.alloc::<f64>(usize::MAX).unwrap_err(), Errno::ENOMEM);
    }
}
