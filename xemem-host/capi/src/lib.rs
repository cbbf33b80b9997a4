//! `libxemem`: the reader's side of XEMEM for C programs on Linux.
//!
//! The functions of `include/xemem.h`, where they are documented for their
//! users:
//!
//! | module     | what it holds                                             |
//! |------------|-----------------------------------------------------------|
//! | `stream`   | `xemem_stream_*`: following an arena                      |
//! | `snapshot` | `xemem_snapshot_*`: one generation and its variables      |
//! | `verbs`    | XEMEM's own names, those of `xasm.h`                      |
//! | `process`  | what this process has got and attached by them            |
//! | `answer`   | errno, negative results, and words for each thread        |
//!
//! All work is done by `xemem-host`. Promises: prints nothing, never ends the
//! program, may be called from any thread, and is worth nothing to a forked
//! child but for what is mapped.

mod answer;
#[cfg(test)]
mod header;
mod process;
pub mod snapshot;
pub mod stream;
pub mod verbs;

pub use answer::xemem_error;
