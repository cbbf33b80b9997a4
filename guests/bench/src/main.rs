//! xasm-bench: does one block of measured work for each line it reads.
//!
//! Runs inside an enclave, driven by the host's `bench` program over standard
//! input and output ([`xasm_bench::protocol`]); natively it serves the
//! requests that need no enclave, getpid and detours. Build it as one static file:
//!
//! ```text
//! cargo rustc -p xasm-bench --release --bin xasm-bench -- \
//!     -C target-feature=+crt-static -C relocation-model=static
//! ```
//!
//! Every error is an answer; the program ends when its input does. It measures
//! and judges nothing: ratios and bounds are the host's business.

mod detours;
mod imports;
mod work;

use std::io::Write as _;
use std::process::ExitCode;
use work::Work;
use xasm_bench::protocol;

fn main() -> ExitCode {
    let mut work = Work::default();
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lines() {
        let outcome = match line {
            Ok(line) => line.parse().and_then(|request| work.serve(&request)),
            Err(error) => {
                eprintln!("xasm-bench: reading requests\n  {error}\ntry: bench --help");
                return ExitCode::FAILURE;
            }
        };
        let answer = protocol::reply(&outcome);
        if writeln!(output, "{answer}")
            .and_then(|()| output.flush())
            .is_err()
        {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
