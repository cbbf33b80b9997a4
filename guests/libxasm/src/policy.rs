//! [`Copied`]: what a program's own placement policy is told.
//!
//! A policy is code of the program. It runs after a publish, in the thread that
//! publishes, like any other function of it: never at a fault, which asks nobody
//! (`docs/adr/0009`). It learns which chunks were written in the step that was
//! just published and where they lie, and fills the table of wishes by
//! [`Arena::prefer`] for the steps to come. [`tell`] is what other language forms
//! call (`xasm-c`).

use crate::arena::Arena;
use crate::calls;
use crate::errno::Errno;
use enclave_abi::arena::split_log_entry;

/// A chunk that was written in the step just published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Copied {
    /// Its number: it begins at so many times the arena's chunk size.
    pub chunk: u64,
    /// The bank it is in now. Its next copy goes to another one.
    pub bank: u32,
    /// Zero.
    pub reserved: u32,
}

/// Most chunks told in one call.
pub const COPIED_AT_A_TIME: usize = 128;

/// Gives `policy` the chunks of the newest generation in the order of their
/// first writes, at most [`COPIED_AT_A_TIME`] in a call; one empty call if there
/// are none.
///
/// # Errors
/// As [`calls::arena_copied`].
pub fn tell(slot: u32, mut policy: impl FnMut(&[Copied])) -> Result<(), Errno> {
    let mut words = [0; COPIED_AT_A_TIME];
    let mut copied = [Copied::default(); COPIED_AT_A_TIME];
    let mut told = 0;
    loop {
        let nr = calls::arena_copied(slot, told, &mut words)?;
        for (one, &word) in copied.iter_mut().zip(words.iter().take(nr)) {
            let (chunk, bank) = split_log_entry(word);
            *one = Copied {
                chunk,
                bank,
                reserved: 0,
            };
        }
        if nr != 0 || told == 0 {
            policy(copied.get(..nr).unwrap_or_default());
        }
        if nr < words.len() {
            return Ok(());
        }
        told += calls::address(nr);
    }
}

impl Arena {
    /// Publishes, then has `policy` fill the table of wishes
    /// ([`Arena::prefer`]) for the steps to come: it is given the chunks that
    /// were written in this step, up to [`COPIED_AT_A_TIME`] in a call, one
    /// empty call if there are none. Other threads that store meanwhile find the
    /// table as far as it is filled.
    ///
    /// Costs one call into the kernel for so many chunks, and what `policy`
    /// does. A publish that fails does not call it; the next one tells what was
    /// written since the last that succeeded.
    ///
    /// # Errors
    /// As [`Arena::publish`]; EINVAL, and nothing is published, for an arena
    /// without [`Placement::Preferred`](crate::Placement::Preferred).
    pub fn publish_placing(
        &mut self,
        step: u64,
        time: f64,
        mut policy: impl FnMut(&mut Self, &[Copied]),
    ) -> Result<u64, Errno> {
        let slot = self.slot();
        check(slot)?;
        let generation = self.publish(step, time)?;
        // What was published stays so: without its log there are no new wishes.
        let _ = tell(slot, |copied| policy(self, copied));
        Ok(generation)
    }
}

/// EINVAL unless the arena's program may have wishes.
///
/// # Errors
/// As [`calls::arena_prefer`], which this asks for no chunk.
pub fn check(slot: u32) -> Result<(), Errno> {
    calls::arena_prefer(slot, 0, 0, None)
}
