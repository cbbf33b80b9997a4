//! What libraries for programs in other languages have in common.
//!
//! Such a library lives in a program that knows nothing of brokers: it finds
//! or starts one without the program's help ([`reach`]), and survives the
//! program's forks ([`PerProcess`]). Used by `libxpmem` and `libxemem`. Prints
//! nothing and ends nothing.

mod nearby;
mod slot;

pub use nearby::{ReachError, reach};
pub use slot::PerProcess;
