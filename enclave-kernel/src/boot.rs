//! Start-up: from the first instruction to the command loop.
//!
//! Called once by `entry.S` with the address of BootInfo. Never returns.

use enclave_abi::ABI_VERSION;
use enclave_abi::boot::{BOOT_MAGIC, BootInfo, Mode};
use spin::Once;

use crate::{arch, console, cores, host, memory, phys, process, report};

static INFO: Once<BootInfo> = Once::new();

/// What the VMM told us. Panics before [`start`] ran.
pub(crate) fn info() -> &'static BootInfo {
    match INFO.get() {
        Some(info) => info,
        None => panic!("BootInfo is read before it was taken"),
    }
}

/// Takes over the machine.
pub(crate) fn start(address: u64) -> ! {
    let info = INFO.call_once(|| phys::read_boot_info(address));
    assert!(info.magic == BOOT_MAGIC, "BootInfo is not there");
    assert!(
        info.abi_version == ABI_VERSION,
        "VMM and kernel disagree on the ABI"
    );
    let mode = match Mode::try_from(info.mode) {
        Ok(mode) => mode,
        Err(other) => panic!("unknown privilege mode {other}"),
    };
    memory::init(info);
    cores::init(info.nr_cpus as usize, info.nr_online as usize);
    arch::init(mode, info);
    assert!(
        u64::from(arch::gate_ring()) == mode as u64,
        "the VMM started us in another ring than it says"
    );
    let flush = arch::choose_flush();
    console::line(format_args!(
        "enclave-kernel {}: {} mode, {}flush by {}, {} MiB free",
        env!("CARGO_PKG_VERSION"),
        arch::mode_name(),
        Cores(cores::all().count_ones()),
        arch::flush_name(),
        memory::free_bytes() >> 20,
    ));
    let verdict = report::run_selftest(info.selftest);
    host::booted(mode, verdict, flush, report::selftests());
    process::serve()
}

/// How many cores, where it is worth a word.
struct Cores(u32);

impl core::fmt::Display for Cores {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.0 > 1 {
            write!(f, "{} cores, ", self.0)?;
        }
        Ok(())
    }
}
