//! Memory that is added to a running machine and taken away again, in blocks.
//!
//! Called by the control side through [`Machine`], one change at a time, and by the
//! vCPU threads, which pass orders and answers on. A block
//! is an object of its own in a memslot of its own, so that it goes back to the
//! host as a whole. It lies above all other RAM, below the arenas.
//!
//! ```text
//!  add     allocate all ──► memslots ──► the kernel takes them ──► done
//!             │ short          │ refused      │ refused, or the order withdrawn
//!             ▼                ▼              ▼
//!          (memslots removed, memory given back to the host)
//!  remove  the kernel gives a block up ──► memslot removed ──► given back
//!             │ in use: the next block; too few: all that it gave up return to it
//! ```
//!
//! The kernel is believed in nothing that would hurt others: one that says it gave
//! a block up and uses it hurts itself. An order that it has taken and not answered
//! stays open, and its block with the machine, until it answers.

// UNSAFETY: KVM memslots for blocks.
#![expect(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enclave_abi::layout::{ARENA_WINDOW, HIGH_RAM};
use enclave_abi::queue::{CORE_ADD, CORE_REMOVE, Command, MEMORY_ADD, MEMORY_REMOVE};
use kvm_bindings::kvm_userspace_memory_region;
use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::imports::AFTER_IMPORTS;
use super::queue::QueueError;
use super::service::Service;
use super::state::{Order, OrderAnswer, OrderError};
use super::{Backing, Machine, MachineConfig, MemoryNode};
use crate::config::MEMORY_BLOCK_BYTES;
use crate::failure::Class;
use crate::memory::{MemoryError, PrivateRam, extents};

/// First memslot of blocks; behind all others.
pub(super) const FIRST_BLOCK_SLOT: u32 = AFTER_IMPORTS;
/// Most blocks at a time: all memslots fit the 509 that older hosts have.
pub const MAX_BLOCKS: usize = 448;
/// How long the kernel may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two interrupts.
const PAUSE: Duration = Duration::from_millis(10);

/// Why memory was not added or removed. Unless it says otherwise, nothing has
/// changed.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Not whole blocks.
    #[error(
        "{bytes} bytes are no whole number of blocks: memory comes and goes by {} MiB",
        MEMORY_BLOCK_BYTES >> 20
    )]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// More than a machine can have.
    #[error("it would have {blocks} added blocks, {MAX_BLOCKS} fit beside all else")]
    TooMany {
        /// Blocks there would be.
        blocks: u64,
    },
    /// More than was added.
    #[error(
        "{wanted} blocks of {} MiB are to go, {added} were added; what it was created with stays",
        MEMORY_BLOCK_BYTES >> 20
    )]
    NotAdded {
        /// Blocks to go.
        wanted: u64,
        /// Blocks there are.
        added: u64,
    },
    /// Too few blocks are free.
    #[error(
        "{free} of its {added} added blocks are free, {wanted} are to go; in the others the program \
         uses {} KiB, and {} KiB are page tables and the like",
        of_program >> 10,
        of_kernel >> 10
    )]
    InUse {
        /// Blocks to go.
        wanted: u64,
        /// Blocks there are.
        added: u64,
        /// Blocks nobody uses.
        free: u64,
        /// Bytes that the program uses in the others.
        of_program: u64,
        /// Bytes that the kernel uses there for itself.
        of_kernel: u64,
    },
    /// The host has none.
    #[error("{error}{}", std::error::Error::source(.error).map_or_else(String::new, |e| format!(": {e}")))]
    Memory {
        /// Why.
        error: MemoryError,
    },
    /// KVM.
    #[error("KVM refused a memslot: {0}")]
    Kvm(kvm_ioctls::Error),
    /// It is held.
    #[error("it is frozen")]
    Frozen,
    /// Its kernel is not up, or not any more.
    #[error("its kernel is not up")]
    NotUp,
    /// The kernel does not look at its orders.
    #[error("its kernel did not take the order within {} s", ANSWER_TIMEOUT.as_secs())]
    Stuck,
    /// It looked, and then did not answer: the block stays until it does.
    #[error(
        "its kernel has not answered within {} s; until it does what was to change stays with the enclave",
        ANSWER_TIMEOUT.as_secs()
    )]
    Unanswered,
    /// As before, and now another change was asked for.
    #[error("its kernel has not answered the last change yet")]
    Open,
    /// The kernel refused.
    #[error("its kernel refused: {0}")]
    Refused(Errno),
}

impl BlockError {
    /// Its exit class.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Size { .. } | Self::NotAdded { .. } => Class::Usage,
            Self::InUse { .. } | Self::Frozen | Self::NotUp | Self::Open => Class::Busy,
            Self::TooMany { .. } | Self::Memory { .. } => Class::Resources,
            Self::Stuck | Self::Unanswered => Class::Timeout,
            Self::Kvm(_) | Self::Refused(_) => Class::Failure,
        }
    }
}

impl From<OrderError> for BlockError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Frozen => Self::Frozen,
            OrderError::NotUp => Self::NotUp,
        }
    }
}

/// One block.
#[derive(Debug)]
pub(super) struct Block {
    slot: u32,
    gpa: u64,
    /// Mapped as long as the slot is there.
    pub(super) memory: PrivateRam,
}

/// An order that the kernel took and has not answered.
#[derive(Debug)]
struct Open {
    number: u64,
    what: u64,
    start: u64,
    bytes: u64,
}

/// The blocks of a machine.
#[derive(Debug)]
pub(super) struct Blocks {
    backing: Backing,
    prefault: bool,
    node: MemoryNode,
    /// Where blocks begin.
    start: u64,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
pub(super) struct List {
    /// By address.
    blocks: Vec<Block>,
    open: Option<Open>,
}

impl Blocks {
    /// None yet.
    pub(super) fn new(config: &MachineConfig) -> Self {
        let ends = extents(config.mem_bytes).into_iter();
        let end = ends.map(|(start, len)| start.saturating_add(len)).max();
        let start = end.unwrap_or(0).max(HIGH_RAM);
        Self {
            backing: config.backing.of_blocks(),
            prefault: config.prefault,
            node: config.memory_node,
            start: start
                .checked_next_multiple_of(MEMORY_BLOCK_BYTES)
                .unwrap_or(u64::MAX),
            list: Mutex::default(),
        }
    }

    /// All of them, for the next machine; this one runs no more.
    pub(super) fn take(&self) -> Vec<Block> {
        let mut list = self.lock();
        list.open = None;
        std::mem::take(&mut list.blocks)
    }

    /// Held while anything is being changed.
    pub(super) fn lock(&self) -> MutexGuard<'_, List> {
        // What a panic leaves is listed or was given back by its owner's end.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    /// The lowest room for `count` blocks in a row from `start` on.
    fn room(&self, start: u64, count: u64) -> Option<u64> {
        let bytes = count.checked_mul(MEMORY_BLOCK_BYTES)?;
        let mut at = start;
        for block in &self.blocks {
            if block.gpa >= at.checked_add(bytes)? {
                break;
            }
            at = at.max(block.gpa.checked_add(MEMORY_BLOCK_BYTES)?);
        }
        (at.checked_add(bytes)? <= ARENA_WINDOW).then_some(at)
    }

    /// The lowest memslot that no block has.
    fn slot(&self) -> u32 {
        let is_free = |slot: &u32| self.blocks.iter().all(|block| block.slot != *slot);
        (FIRST_BLOCK_SLOT..)
            .find(is_free)
            .unwrap_or(FIRST_BLOCK_SLOT)
    }

    fn insert(&mut self, block: Block) {
        let at = self.blocks.partition_point(|other| other.gpa < block.gpa);
        self.blocks.insert(at, block);
    }
}

/// Whole blocks, at least one.
fn count_of(bytes: u64) -> Result<u64, BlockError> {
    if bytes == 0 || !bytes.is_multiple_of(MEMORY_BLOCK_BYTES) {
        return Err(BlockError::Size { bytes });
    }
    Ok(bytes / MEMORY_BLOCK_BYTES)
}

impl Machine {
    /// Bytes that were added and have not been removed.
    #[must_use]
    pub fn added_bytes(&self) -> u64 {
        self.blocks.lock().blocks.len() as u64 * MEMORY_BLOCK_BYTES
    }

    /// Gives the machine `bytes` more memory while it runs; what the user should
    /// know of it.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn add_memory(&self, bytes: u64) -> Result<Vec<String>, BlockError> {
        let count = count_of(bytes)?;
        let mut list = self.blocks.lock();
        self.close_order(&mut list)?;
        self.shared.takes_orders()?;
        let blocks = count.saturating_add(list.blocks.len() as u64);
        let too_many = BlockError::TooMany { blocks };
        if blocks > MAX_BLOCKS as u64 {
            return Err(too_many);
        }
        let Some(start) = list.room(self.blocks.start, count) else {
            return Err(too_many);
        };
        let mut fresh = Vec::new();
        let mut warnings = Vec::new();
        for gpa in (0..count).map(|n| start + n * MEMORY_BLOCK_BYTES) {
            let blocks = &self.blocks;
            let place = (gpa, MEMORY_BLOCK_BYTES);
            let memory = PrivateRam::block(place, blocks.backing, blocks.prefault, blocks.node)
                .map_err(|error| BlockError::Memory { error })?;
            warnings.extend(memory.warnings.iter().cloned());
            fresh.push((gpa, memory));
        }
        warnings.dedup();
        for (gpa, memory) in fresh {
            if let Err(error) = self.insert_block(&mut list, gpa, memory) {
                self.drop_blocks(&mut list, start, bytes);
                return Err(BlockError::Kvm(error));
            }
        }
        match self.order(&mut list, MEMORY_ADD, (start, bytes), true) {
            Ok(answer) if answer.errno == 0 => Ok(warnings),
            Ok(answer) => {
                self.drop_blocks(&mut list, start, bytes);
                let errno = Errno::from_raw_os_error(answer.errno);
                Err(BlockError::Refused(errno))
            }
            Err(BlockError::Unanswered) => Err(BlockError::Unanswered),
            Err(error) => {
                self.drop_blocks(&mut list, start, bytes);
                Err(error)
            }
        }
    }

    /// Takes over the blocks of the machine before it, which are zero. One that the
    /// kernel does not take goes back to the host.
    ///
    /// # Errors
    /// [`BlockError`] of the last one that was not taken.
    pub(super) fn adopt_blocks(&self, blocks: Vec<Block>) -> Result<(), BlockError> {
        let mut list = self.blocks.lock();
        let mut done = Ok(());
        for block in blocks {
            let gpa = block.gpa;
            let taken = self
                .insert_block(&mut list, gpa, block.memory)
                .map_err(BlockError::Kvm)
                .and_then(|()| self.order(&mut list, MEMORY_ADD, (gpa, MEMORY_BLOCK_BYTES), true));
            done = match taken {
                Ok(answer) if answer.errno == 0 => continue,
                Ok(answer) => Err(BlockError::Refused(Errno::from_raw_os_error(answer.errno))),
                Err(error) => Err(error),
            };
            self.drop_blocks(&mut list, gpa, MEMORY_BLOCK_BYTES);
        }
        done
    }

    /// Puts a block into a memslot.
    fn insert_block(
        &self,
        list: &mut List,
        gpa: u64,
        memory: PrivateRam,
    ) -> Result<(), kvm_ioctls::Error> {
        let slot = list.slot();
        let host = memory.ram.iter().next();
        let host = host.and_then(|region| region.get_host_address(MemoryRegionAddress(0)).ok());
        let host = host.map_or(0, |host| host as u64);
        self.set_block(slot, gpa, MEMORY_BLOCK_BYTES, host)?;
        list.insert(Block { slot, gpa, memory });
        Ok(())
    }

    /// Takes `bytes` of what was added away again, the highest free blocks.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn remove_memory(&self, bytes: u64) -> Result<(), BlockError> {
        let wanted = count_of(bytes)?;
        let mut list = self.blocks.lock();
        self.close_order(&mut list)?;
        self.shared.takes_orders()?;
        let added = list.blocks.len() as u64;
        if wanted > added {
            return Err(BlockError::NotAdded { wanted, added });
        }
        let places: Vec<u64> = list.blocks.iter().rev().map(|block| block.gpa).collect();
        let mut given_up = Vec::new();
        let (mut of_program, mut of_kernel) = (0_u64, 0_u64);
        for gpa in places {
            if given_up.len() as u64 == wanted {
                break;
            }
            match self.order(&mut list, MEMORY_REMOVE, (gpa, MEMORY_BLOCK_BYTES), false) {
                Ok(answer) if answer.errno == 0 => given_up.push(gpa),
                Ok(answer) if answer.errno == libc::EBUSY => {
                    of_program = of_program.saturating_add(answer.of_program);
                    let rest = answer.used.saturating_sub(answer.of_program);
                    of_kernel = of_kernel.saturating_add(rest);
                }
                Ok(answer) => {
                    self.return_blocks(&mut list, &given_up)?;
                    let errno = Errno::from_raw_os_error(answer.errno);
                    return Err(BlockError::Refused(errno));
                }
                Err(error) => {
                    self.return_blocks(&mut list, &given_up)?;
                    return Err(error);
                }
            }
        }
        let free = given_up.len() as u64;
        if free < wanted {
            self.return_blocks(&mut list, &given_up)?;
            return Err(BlockError::InUse {
                wanted,
                added,
                free,
                of_program,
                of_kernel,
            });
        }
        for gpa in given_up {
            self.drop_blocks(&mut list, gpa, MEMORY_BLOCK_BYTES);
        }
        Ok(())
    }

    /// Gives the kernel back what it gave up, dirty as it may be.
    fn return_blocks(&self, list: &mut List, given_up: &[u64]) -> Result<(), BlockError> {
        for &gpa in given_up {
            let answer = self.order(list, MEMORY_ADD, (gpa, MEMORY_BLOCK_BYTES), false)?;
            if answer.errno != 0 {
                return Err(BlockError::Refused(Errno::from_raw_os_error(answer.errno)));
            }
        }
        Ok(())
    }

    /// Orders the kernel and waits for its answer.
    pub(super) fn order(
        &self,
        list: &mut List,
        what: u64,
        (start, bytes): (u64, u64),
        is_zero: bool,
    ) -> Result<OrderAnswer, BlockError> {
        let number = self.shared.submit_order(Order {
            what,
            start,
            bytes,
            is_zero,
        })?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            self.rouse();
            if let Some(answer) = self.shared.wait_order(number, PAUSE)? {
                return Ok(answer);
            }
            if Instant::now() < deadline {
                continue;
            }
            if self.shared.withdraw(number) {
                return Err(BlockError::Stuck);
            }
            list.open = Some(Open {
                number,
                what,
                start,
                bytes,
            });
            return Err(BlockError::Unanswered);
        }
    }

    /// Does what an answer that came late asks for.
    pub(super) fn close_order(&self, list: &mut List) -> Result<(), BlockError> {
        let Some(open) = list.open.take() else {
            return Ok(());
        };
        match self.shared.wait_order(open.number, Duration::ZERO)? {
            None => {
                list.open = Some(open);
                Err(BlockError::Open)
            }
            // What was to come and did not, or was to go and did.
            Some(answer) => {
                match (open.what, answer.errno == 0) {
                    (MEMORY_ADD, false) | (MEMORY_REMOVE, true) => {
                        self.drop_blocks(list, open.start, open.bytes);
                    }
                    (CORE_ADD, false) | (CORE_REMOVE, true) => self.park(open.start),
                    _ => {}
                }
                Ok(())
            }
        }
    }

    /// Gives the blocks in this range, which the kernel does not use, back to the
    /// host.
    fn drop_blocks(&self, list: &mut List, start: u64, bytes: u64) {
        list.blocks.retain(|block| {
            let goes = (start..start.saturating_add(bytes)).contains(&block.gpa);
            // KVM removes any slot there is; one it would not stays mapped.
            !(goes && self.set_block(block.slot, block.gpa, 0, 0).is_ok())
        });
    }

    fn set_block(
        &self,
        slot: u32,
        gpa: u64,
        bytes: u64,
        host: u64,
    ) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: bytes,
            userspace_addr: host,
        };
        // SAFETY: the range is the whole mapping of a block, which is unmapped
        // only after its slot was removed, or with the machine, whose threads have
        // ended then; nobody holds references into it.
        unsafe { self.vm.set_slot(region) }
    }
}

impl Service {
    /// Posts an order to the kernel.
    pub(super) fn post_order(&mut self, number: u64, order: Order) -> Result<(), QueueError> {
        let Order {
            what,
            start,
            bytes,
            is_zero,
        } = order;
        self.ordered = Some(Instant::now());
        self.queue.post(
            Command::Change as u16,
            0,
            [number, what, start, bytes, is_zero.into(), 0, 0],
        )
    }

    /// The kernel's answer to an order.
    pub(super) fn order_done(&mut self, a: [u64; 7]) {
        let [number, result, used, of_program, ..] = a;
        self.ordered = None;
        // Any word may stand there; what is no errno is a failure as well.
        let errno = result.wrapping_neg();
        let errno = i32::try_from(errno).unwrap_or(libc::EIO);
        let answer = OrderAnswer {
            errno,
            used,
            of_program,
        };
        self.shared.order_done(number, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(places: &[u64]) -> List {
        let mut list = List::default();
        for &gpa in places {
            let slot = list.slot();
            let memory = PrivateRam::block((gpa, 2 << 20), Backing::Small, false, MemoryNode::Any);
            let memory = memory.unwrap();
            list.insert(Block { slot, gpa, memory });
        }
        list
    }

    const BLOCK: u64 = MEMORY_BLOCK_BYTES;

    #[test]
    fn only_whole_blocks_are_counted() {
        for bytes in [0, 1, BLOCK - 1, BLOCK + 4096, u64::MAX] {
            assert!(
                matches!(count_of(bytes), Err(BlockError::Size { .. })),
                "{bytes}"
            );
        }
        assert_eq!(count_of(3 * BLOCK).unwrap(), 3);
    }

    #[test]
    fn room_is_the_lowest_gap_that_is_large_enough() {
        let start = HIGH_RAM;
        assert_eq!(list(&[]).room(start, 2), Some(start));
        let some = list(&[start + 3 * BLOCK, start, start + 4 * BLOCK]);
        assert_eq!(some.room(start, 2), Some(start + BLOCK));
        assert_eq!(some.room(start, 3), Some(start + 5 * BLOCK));
        assert_eq!(some.room(start, 1 << 40), None);
        assert_eq!(some.room(start, u64::MAX), None);
        assert_eq!(some.room(ARENA_WINDOW - BLOCK, 2), None);
    }

    #[test]
    fn a_memslot_is_used_again_when_its_block_has_gone() {
        let mut some = list(&[HIGH_RAM, HIGH_RAM + BLOCK]);
        assert_eq!(some.slot(), FIRST_BLOCK_SLOT + 2);
        some.blocks.remove(0);
        assert_eq!(some.slot(), FIRST_BLOCK_SLOT);
    }
}
