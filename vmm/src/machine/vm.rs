//! The VM with a list of its memslots, which KVM takes and never tells.
//!
//! Made by [`super::running`]; whoever gives or takes memory does so through
//! [`Vm::set_slot`], so that `debug dump` shows what KVM really has.

// UNSAFETY: KVM memslots.
#![expect(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::dump::{SlotDump, SlotUse};

/// A VM.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    slots: Mutex<BTreeMap<u32, kvm_userspace_memory_region>>,
}

impl Deref for Vm {
    type Target = VmFd;

    fn deref(&self) -> &VmFd {
        &self.fd
    }
}

impl Vm {
    /// A VM without memory.
    #[must_use]
    pub fn new(fd: VmFd) -> Self {
        Self {
            fd,
            slots: Mutex::default(),
        }
    }

    /// Sets a memslot, or removes it if it has no bytes.
    ///
    /// # Errors
    /// KVM's; the slot is as it was before.
    ///
    /// # Safety
    /// The host range stays mapped until the slot is removed or replaced, and
    /// nobody holds references into it.
    pub(super) unsafe fn set_slot(
        &self,
        region: kvm_userspace_memory_region,
    ) -> Result<(), kvm_ioctls::Error> {
        // Held across the call: two threads that change one slot stay in order.
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as the caller promises.
        unsafe { self.fd.set_user_memory_region(region) }?;
        match region.memory_size {
            0 => slots.remove(&region.slot),
            _ => slots.insert(region.slot, region),
        };
        Ok(())
    }

    /// Reads guest memory that is not RAM; false where there is none that can be
    /// read. That of others is not: its owner may have given it back.
    pub(super) fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        // Held while reading: what is in a slot is unmapped after its removal.
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |slot: &&kvm_userspace_memory_region| {
            let offset = gpa.checked_sub(slot.guest_phys_addr);
            let left = offset.and_then(|offset| slot.memory_size.checked_sub(offset));
            left.is_some_and(|left| left >= bytes.len() as u64)
        };
        let slot = slots.values().find(holds);
        let Some(slot) = slot.filter(|slot| SlotUse::of(slot.slot) != SlotUse::Import) else {
            return false;
        };
        let from = (slot.userspace_addr + (gpa - slot.guest_phys_addr)) as *const u8;
        for (at, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: inside the slot's host range by `holds`, which is mapped as
            // long as the slot is listed; shared with the guest, so volatile.
            *byte = unsafe { from.add(at).read_volatile() };
        }
        true
    }

    /// Writes to RAM; false where not all of it is RAM, of which some may be
    /// written then.
    pub(super) fn write(&self, gpa: u64, bytes: &[u8]) -> bool {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut at, mut rest) = (gpa, bytes);
        while !rest.is_empty() {
            let place = slots.values().find_map(|slot| {
                let offset = at.checked_sub(slot.guest_phys_addr)?;
                let left = slot
                    .memory_size
                    .checked_sub(offset)
                    .filter(|&left| left > 0)?;
                (SlotUse::of(slot.slot) == SlotUse::Ram)
                    .then_some((slot.userspace_addr + offset, left))
            });
            let Some((to, left)) = place else {
                return false;
            };
            let len = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (part, after) = rest.split_at(len);
            // SAFETY: inside the slot's host range, which is mapped as long as the
            // slot is listed; nobody holds references into it, and `part` is memory
            // of this process's own.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to as *mut u8, len) };
            at += len as u64;
            rest = after;
        }
        true
    }

    /// Every memslot there is.
    pub(super) fn slots(&self) -> Vec<SlotDump> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let told = slots.values().map(|slot| SlotDump {
            slot: slot.slot,
            gpa: slot.guest_phys_addr,
            bytes: slot.memory_size,
            is_read_only: slot.flags & KVM_MEM_READONLY != 0,
            holds: SlotUse::of(slot.slot),
        });
        told.collect()
    }
}
