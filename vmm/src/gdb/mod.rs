//! A gdb session with an enclave, by the remote serial protocol (GDB manual,
//! appendix E).
//!
//! The machine starts [`serve`] on a thread of its own when `enclavectl gdb`
//! brings a connection. [`packet`] has the framing, [`registers`] the layout
//! that gdb is told of, [`threads`] how it names cores, which are its threads. What
//! happens to the vCPUs is behind [`Target`], so that everything here is tested
//! without KVM. Nothing that gdb sends ends more than
//! the session; however it ends, the target is let go as it was.

pub mod packet;
pub mod registers;
mod session;
pub mod threads;

use std::os::fd::{BorrowedFd, OwnedFd};

pub use registers::Registers;

/// Why the target cannot do what is asked: gdb sees an error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No memory there.
    #[error("no memory at {0:#x}")]
    NoMemory(u64),
    /// The vCPU does not leave the guest.
    #[error("the vCPU does not leave the guest")]
    Stuck,
    /// No breakpoint there: the host interprets that code, and cannot stop in it.
    #[error("the host interprets the kernel's code")]
    Interpreted,
    /// KVM refused.
    #[error("KVM refused: error {0}")]
    Kvm(i32),
}

/// Why a core stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At a breakpoint of ours, the instruction not executed.
    Breakpoint,
    /// After a step, or by the program's own trap.
    Trap,
    /// The session has to end: the enclave stops or its program is killed.
    End,
}

/// What becomes of a core when the target goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Go {
    /// It stays where it is.
    #[default]
    Stay,
    /// By one instruction.
    Step,
    /// Until something stops it.
    On,
}

/// What a session does with. All cores stand still or none does by itself: when
/// one stops, the others are stopped as well. Cores are numbered from 0.
pub trait Target {
    /// How many cores it has; at least one.
    fn cores(&self) -> usize;
    /// Stops it wherever it is; a core that computes for the program, if one does.
    ///
    /// # Errors
    /// [`TargetError::Stuck`]; then it runs on.
    fn stop(&mut self) -> Result<usize, TargetError>;
    /// Lets it go on, each core as `each` says; those without a word stay.
    ///
    /// # Errors
    /// [`TargetError`]; it is still stopped then.
    fn resume(&mut self, each: &[Go]) -> Result<(), TargetError>;
    /// Readable when it may have stopped by itself.
    fn event(&self) -> BorrowedFd<'_>;
    /// Which core stopped by itself and why, once, if one did; all are stopped then.
    fn take_stop(&mut self) -> Option<(usize, Stop)>;
    /// Registers of a core, while it is stopped.
    ///
    /// # Errors
    /// [`TargetError::Kvm`], [`TargetError::Stuck`].
    fn registers(&mut self, core: usize) -> Result<Registers, TargetError>;
    /// Sets them.
    ///
    /// # Errors
    /// As [`Target::registers`].
    fn set_registers(&mut self, core: usize, registers: &Registers) -> Result<(), TargetError>;
    /// Reads memory by the addresses that the core's code uses now, or another
    /// core's where there is nothing for this one.
    ///
    /// # Errors
    /// [`TargetError::NoMemory`] with the first address that is none.
    fn read(&mut self, core: usize, address: u64, bytes: &mut [u8]) -> Result<(), TargetError>;
    /// Writes memory, whatever its protection.
    ///
    /// # Errors
    /// As [`Target::read`]; what is before that address is written.
    fn write(&mut self, core: usize, address: u64, bytes: &[u8]) -> Result<(), TargetError>;
    /// Stops any core whenever it gets to `address`.
    ///
    /// # Errors
    /// As [`Target::read`].
    fn insert(&mut self, core: usize, address: u64) -> Result<(), TargetError>;
    /// Takes that back; nothing if it was not there.
    ///
    /// # Errors
    /// As [`Target::read`].
    fn remove(&mut self, core: usize, address: u64) -> Result<(), TargetError>;
    /// Takes everything back and lets it go on.
    fn let_go(&mut self);
}

/// Serves gdb until it detaches, goes away or the target ends the session.
pub fn serve(input: OwnedFd, output: OwnedFd, target: &mut dyn Target) {
    session::Session::new(input, output, target).run();
}
