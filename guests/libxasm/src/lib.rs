//! Guest library: how a program inside an enclave publishes snapshots.
//!
//! Linked by Rust programs as this crate and by C programs as `libxasm.a`
//! (crate `xasm-c`, in `c/`; header `include/xasm.h`). Three calls are enough:
//!
//! ```no_run
//! use xasm::{Arena, Options, Order, Var};
//!
//! # fn main() -> Result<(), xasm::Errno> {
//! let (nx, ny) = (512, 512);
//! let mut arena = Arena::create("heat", 4 << 20, Options::default())?;
//! let field = arena.alloc::<f64>(nx * ny)?;
//! arena.var(&Var::array("temperature", field, &[512, 512], Order::C).unit("K"))?;
//! for step in 0..100 {
//!     for cell in arena.get_mut(field)? {
//!         *cell += 1.0;
//!     }
//!     arena.publish(step, step as f64 * 0.5)?;
//! }
//! # Ok(()) }
//! ```
//!
//! | module     | what it holds                                            |
//! |------------|----------------------------------------------------------|
//! | [`arena`]  | [`Arena`], [`Options`]: create, publish, statistics      |
//! | [`mod@array`] | [`Array`]: a typed place inside an arena                 |
//! | [`bump`]   | placement of arrays inside an arena                      |
//! | [`calls`]  | the system calls by arena slot, for other language forms |
//! | [`region`] | the XASM paper's names, translated                       |
//! | [`var`]    | [`Var`]: what readers see in the variable table          |
//! | `sys`, `mapping` | the two unsafe modules: the instruction, the memory |
//!
//! Promises: `no_std`, no allocation, no threads, no global state; every
//! failure is an [`Errno`]. Under plain Linux every call fails with ENOSYS and
//! [`available`] is false, so that a program can run without snapshots.
//!
//! Does not do: reading snapshots (that is `xemem-host`), and emulating arenas
//! on plain Linux.

#![cfg_attr(not(test), no_std)]

pub mod arena;
pub mod array;
pub mod bump;
pub mod calls;
mod errno;
mod mapping;
pub mod region;
mod sys;
pub mod var;

pub use arena::{Arena, Chunk, Options, QueueFull, publish_set};
pub use array::{Array, Element};
pub use calls::available;
pub use enclave_abi::syscall::{ArenaStats, KernelStats};
pub use errno::Errno;
pub use var::{Dtype, Order, Role, Var};
