//! A gdb session with an enclave, by the remote serial protocol (GDB manual,
//! appendix E).
//!
//! The machine starts [`serve`] on a thread of its own when `enclavectl gdb`
//! brings a connection. [`packet`] has the framing, [`registers`] the layout
//! that gdb is told of; what happens to the vCPU is behind [`Target`], so that
//! everything here is tested without KVM. Nothing that gdb sends ends more than
//! the session; however it ends, the target is let go as it was.

pub mod packet;
pub mod registers;
mod session;

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

/// Why the target stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At a breakpoint of ours, the instruction not executed.
    Breakpoint,
    /// After a step, or by the program's own trap.
    Trap,
    /// The session has to end: the enclave stops or its program is killed.
    End,
}

/// What a session does with.
pub trait Target {
    /// Stops it wherever it is.
    ///
    /// # Errors
    /// [`TargetError::Stuck`].
    fn stop(&mut self) -> Result<(), TargetError>;
    /// Lets it go on, by one instruction if `step`.
    ///
    /// # Errors
    /// [`TargetError`]; it is still stopped then.
    fn resume(&mut self, step: bool) -> Result<(), TargetError>;
    /// Readable when it may have stopped by itself.
    fn event(&self) -> BorrowedFd<'_>;
    /// Why it stopped by itself, once, if it did.
    fn take_stop(&mut self) -> Option<Stop>;
    /// Its registers, while it is stopped.
    ///
    /// # Errors
    /// [`TargetError::Kvm`].
    fn registers(&mut self) -> Result<Registers, TargetError>;
    /// Sets them.
    ///
    /// # Errors
    /// [`TargetError::Kvm`].
    fn set_registers(&mut self, registers: &Registers) -> Result<(), TargetError>;
    /// Reads memory by the addresses that its code uses now.
    ///
    /// # Errors
    /// [`TargetError::NoMemory`] with the first address that is none.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), TargetError>;
    /// Writes memory, whatever its protection.
    ///
    /// # Errors
    /// As [`Target::read`]; what is before that address is written.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), TargetError>;
    /// Stops it whenever it gets to `address`.
    ///
    /// # Errors
    /// As [`Target::read`].
    fn insert(&mut self, address: u64) -> Result<(), TargetError>;
    /// Takes that back; nothing if it was not there.
    ///
    /// # Errors
    /// As [`Target::read`].
    fn remove(&mut self, address: u64) -> Result<(), TargetError>;
    /// Takes everything back and lets it go on.
    fn let_go(&mut self);
}

/// Serves gdb until it detaches, goes away or the target ends the session.
pub fn serve(input: OwnedFd, output: OwnedFd, target: &mut dyn Target) {
    session::Session::new(input, output, target).run();
}
