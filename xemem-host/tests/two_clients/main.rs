//! Real broker processes, real sockets, real memory: what unit tests cannot
//! show.
//!
//! [`broker_process`] starts and ends brokers in fresh directories,
//! [`exporter`] plays the kernel's part on arena object and lease page,
//! readers are [`xemem_host::Stream`]s, raw sockets or bare descriptors.

mod arenas;
mod broker_process;
mod exporter;
mod hostile;
mod lifecycle;
mod memory;
mod owned;
mod retained;
mod store;
mod streams;

impl exporter::Exporter {
    /// An enclave and its arena, both called `name`, with `nr_banks` banks.
    fn new(process: &broker_process::BrokerProcess, name: &str, nr_banks: u32) -> Self {
        Self::open_to(&process.socket(), name, nr_banks, None)
    }
}
