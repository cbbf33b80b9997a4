//! Guest library: how a program publishes snapshots, in an enclave or on Linux.
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
//! | [`aspace`] | SMARTMAP: the memory of sibling processes              |
//! | [`mod@backend`] | what is below the program: an enclave, Linux, nothing   |
//! | [`bump`]   | placement of arrays by a program itself                  |
//! | [`calls`]  | the calls by arena slot, for other language forms        |
//! | [`heap`]   | allocations in arenas, for other language forms          |
//! | [`import`] | [`Import`]: reading arenas of other enclaves             |
//! | [`policy`] | [`Copied`]: where copies go as the program decides       |
//! | [`xemem`]  | the importing calls, for other language forms            |
//! | [`region`] | the XASM paper's names, translated                       |
//! | [`var`]    | [`Var`]: what readers see in the variable table          |
//! | `sys`, `mapping` | the instruction, the memory                        |
//! | `linux`    | arenas of a Linux process: what the kernel does elsewhere |
//!
//! Promises: `no_std`, no allocator needed, no threads; every failure is an [`Errno`].
//! With neither an enclave nor a broker every call fails with ENOSYS and
//! [`available`] is false, so that a program can run without snapshots. In an
//! enclave there is no state but which backend it is.
//!
//! Does not do: reading snapshots on Linux (that is `xemem-host`).

#![cfg_attr(not(test), no_std)]

pub mod arena;
pub mod array;
pub mod aspace;
pub mod backend;
pub mod bump;
pub mod calls;
mod environ;
mod errno;
pub mod heap;
pub mod import;
mod linux;
mod mapping;
pub mod policy;
pub mod region;
mod say;
pub mod segment;
mod sys;
pub mod var;
pub mod xemem;

pub use arena::{Arena, Chunk, Options, Owned, QueueFull, publish_set};
pub use array::{Array, Element};
pub use backend::{Backend, Choice, backend, select};
pub use calls::available;
pub use enclave_abi::syscall::{ArenaStats, KernelStats};
pub use enclave_arena::Placement;
pub use errno::Errno;
pub use import::{Follow, Import};
pub use policy::Copied;
pub use segment::{Attachment, Segment};
pub use var::{Dtype, Order, Role, Var};
