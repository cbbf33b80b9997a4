//! What the host orders while the kernel runs: memory and cores that come and go.
//!
//! The VMM orders by [`Command::Change`]; [`host`] keeps the order until there is a
//! good moment: on the way back to the program, between two programs, or, for
//! memory, while the program waits. Each order is answered once, when it has been
//! carried out whole or has changed nothing. What is done is in [`blocks`] and
//! [`cores`].
//!
//! [`Command::Change`]: enclave_abi::queue::Command::Change

use enclave_abi::queue::{CORE_ADD, CORE_REMOVE, Call, MEMORY_ADD, MEMORY_REMOVE};
use enclave_core::errno::Errno;

use crate::cores::Gone;
use crate::{blocks, cores, host};

/// Why an order was refused, with the two words that go along.
pub(crate) type Refused = (Errno, u64, u64);

/// Carries out the order that came, if one did.
pub(crate) fn attend() {
    attend_if(|_| true);
}

/// The same where something of a process may be being changed: memory only.
pub(crate) fn attend_memory() {
    attend_if(|what| [MEMORY_ADD, MEMORY_REMOVE].contains(&what));
}

fn attend_if(is_wanted: impl Fn(u64) -> bool) {
    let Some(order) = host::take_order(is_wanted) else {
        return;
    };
    let [number, what, start, bytes, is_zero, ..] = order;
    let done = match what {
        MEMORY_ADD => blocks::add(start, bytes, is_zero == 1),
        MEMORY_REMOVE => blocks::remove(start, bytes),
        CORE_ADD => cores::add(start).map_err(|errno| (errno, 0, 0)),
        CORE_REMOVE => match cores::remove(start, number) {
            Ok(Gone::Now) => Ok(()),
            // It answers itself.
            Ok(Gone::Soon) => return,
            Err((errno, tid)) => Err((errno, tid, 0)),
        },
        _ => Err((Errno::ENOSYS, 0, 0)),
    };
    answer(number, done);
}

/// Tells the host what became of order `number`.
pub(crate) fn answer(number: u64, done: Result<(), Refused>) {
    let (result, first, second) = match done {
        Ok(()) => (0, 0, 0),
        Err((errno, first, second)) => (errno.to_result(), first, second),
    };
    host::call(Call::ChangeDone, [number, result, first, second, 0, 0, 0]);
}
