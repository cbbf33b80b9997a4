//! `debug dump`: what a machine is doing at this moment, below what its kernel
//! says of itself.
//!
//! The types are messages of the control protocol; the functions fill them.
//! Nothing here changes the guest.

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use enclave_abi::layout::{CONSOLE, QUEUE};
use enclave_abi::queue::{ConsoleRing, QueuePage, Ring};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::MachineState;
use super::arenas::{FIRST_ARENA_SLOT, LEASE_SLOT};
use super::gate::Gate;
use super::imports::FIRST_IMPORT_SLOT;
use super::memory_blocks::FIRST_BLOCK_SLOT;
use crate::memory::Ram;

/// Everything that is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// The vCPUs in order.
    pub vcpus: Vec<VcpuDump>,
    /// Command queue and console.
    pub queue: QueueDump,
    /// What KVM has as the guest's memory.
    pub slots: Vec<SlotDump>,
}

/// Where a vCPU was when it was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the guest, which was left for the look.
    Guest,
    /// On the host: its thread serves a call, or has not run yet.
    Host,
    /// Nowhere: its thread has ended.
    Ended,
    /// In the guest, and it could not be left: no registers.
    #[default]
    Stuck,
}

/// One vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuDump {
    /// Its number.
    pub index: usize,
    /// Where it was.
    pub place: Place,
    /// Registers by name; empty if KVM does not give them.
    pub registers: Vec<(String, u64)>,
    /// The last exits, oldest first.
    pub last_exits: Vec<LastExit>,
}

/// An exit to user space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// Number since the machine was made, from 1.
    pub nr: u64,
    /// Why.
    pub reason: String,
    /// Guest-physical address, port or privilege level, as the reason has it.
    pub detail: u64,
}

/// Free-running indices of the shared rings, as they stand in guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDump {
    /// Records the kernel has posted, and of these taken by the VMM.
    pub to_host: [u32; 2],
    /// Records the VMM has posted, and of these taken by the kernel.
    pub to_guest: [u32; 2],
    /// Command interrupts taken by the kernel.
    pub interrupts_taken: u32,
    /// Console bytes written, and of these taken.
    pub console: [u32; 2],
    /// Console bytes lost.
    pub console_dropped: u64,
}

/// What a memslot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotUse {
    /// Private memory.
    Ram,
    /// The page with the leases of all arenas.
    Leases,
    /// An arena of the program.
    Arena,
    /// Memory of others.
    Import,
}

impl SlotUse {
    /// By number: the tables of arenas and imports take fixed ranges.
    pub(super) const fn of(slot: u32) -> Self {
        match slot {
            ..LEASE_SLOT => Self::Ram,
            LEASE_SLOT => Self::Leases,
            FIRST_ARENA_SLOT..FIRST_IMPORT_SLOT => Self::Arena,
            FIRST_IMPORT_SLOT..FIRST_BLOCK_SLOT => Self::Import,
            FIRST_BLOCK_SLOT.. => Self::Ram,
        }
    }

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Leases => "leases",
            Self::Arena => "arena",
            Self::Import => "import",
        }
    }
}

/// One memslot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotDump {
    /// Its number.
    pub slot: u32,
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub bytes: u64,
    /// The guest cannot write it.
    pub is_read_only: bool,
    /// What it is for.
    pub holds: SlotUse,
}

/// The vCPU behind `gate` of a machine in `state`; `kick` makes it leave the
/// guest.
pub(super) fn vcpu(number: usize, gate: &Gate, kick: impl Fn(), state: &MachineState) -> VcpuDump {
    let looked = gate.look(kick, |vcpu| registers(vcpu));
    let place = match (&looked, state) {
        (None, _) => Place::Stuck,
        (_, MachineState::Failed { .. } | MachineState::Stopped) => Place::Ended,
        (Some(looked), _) if looked.was_inside => Place::Guest,
        (Some(_), _) => Place::Host,
    };
    VcpuDump {
        index: number,
        place,
        registers: looked.map(|looked| looked.answer).unwrap_or_default(),
        last_exits: gate.last_exits(),
    }
}

/// The registers of a vCPU that is outside the guest; what KVM refuses is left
/// out.
fn registers(vcpu: &VcpuFd) -> Vec<(String, u64)> {
    let mut list: Vec<(&str, u64)> = Vec::new();
    if let Ok(r) = vcpu.get_regs() {
        list.extend([
            ("rip", r.rip),
            ("rflags", r.rflags),
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rbp", r.rbp),
            ("rsp", r.rsp),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
        ]);
    }
    if let Ok(s) = vcpu.get_sregs() {
        list.extend([
            ("cs", s.cs.selector.into()),
            ("ss", s.ss.selector.into()),
            ("fs.base", s.fs.base),
            ("gs.base", s.gs.base),
            ("gdt.base", s.gdt.base),
            ("idt.base", s.idt.base),
            ("tr.base", s.tr.base),
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("cr8", s.cr8),
            ("efer", s.efer),
            ("apic.base", s.apic_base),
        ]);
    }
    let owned = list
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    owned.collect()
}

/// The rings' indices. They are in guest memory: any value can stand there.
pub(super) fn queue(ram: &Ram) -> QueueDump {
    let word = |at: u64, offset: usize| {
        let at = GuestAddress(at + offset as u64);
        // In guest RAM, which cannot vanish.
        ram.load(at, Ordering::Acquire).unwrap_or(0)
    };
    let ring = |at: usize| {
        let at = QUEUE + at as u64;
        [offset_of!(Ring, head), offset_of!(Ring, tail)].map(|offset| word(at, offset))
    };
    let console = [offset_of!(ConsoleRing, head), offset_of!(ConsoleRing, tail)];
    let dropped = GuestAddress(CONSOLE + offset_of!(ConsoleRing, dropped) as u64);
    QueueDump {
        to_host: ring(offset_of!(QueuePage, to_host)),
        to_guest: ring(offset_of!(QueuePage, to_guest)),
        interrupts_taken: word(QUEUE, offset_of!(QueuePage, interrupts_taken)),
        console: console.map(|offset| word(CONSOLE, offset)),
        console_dropped: ram.load(dropped, Ordering::Relaxed).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_told_apart_by_number() {
        let uses = [
            0,
            1,
            2,
            3,
            FIRST_IMPORT_SLOT - 1,
            FIRST_IMPORT_SLOT,
            FIRST_BLOCK_SLOT - 1,
            FIRST_BLOCK_SLOT,
        ];
        let names = uses.map(|slot| SlotUse::of(slot).name());
        let expected = [
            "ram", "ram", "leases", "arena", "arena", "import", "import", "ram",
        ];
        assert_eq!(names, expected);
    }
}
