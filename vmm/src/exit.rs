//! What an exit from the guest means: pure and total.
//!
//! Called by the vCPU loop ([`crate::vcpu`]) with a plain description of the
//! exit; returns an [`Action`]. Promises: every value has an action, none
//! panics, whatever the guest did.

use enclave_abi::addr::PAGE_SIZE;
use enclave_abi::layout::DOORBELL_PAGE;
use enclave_abi::queue::doorbell;

/// An exit, reduced to what decisions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A store to a guest-physical address without memory.
    MmioWrite(u64),
    /// A load from a guest-physical address without memory.
    MmioRead(u64),
    /// Port output.
    PortWrite(u16),
    /// Port input.
    PortRead(u16),
    /// The vCPU was kicked or got a signal.
    Interrupted,
    /// The guest halted with nothing to wake it.
    Halted,
    /// Triple fault.
    Shutdown,
    /// KVM could not emulate an instruction at this privilege level.
    InternalError {
        /// Current privilege level.
        cpl: u8,
    },
    /// The host has no memory where the guest has some.
    MemoryFault,
    /// KVM_RUN failed or could not enter the guest.
    EntryFailed(String),
    /// Anything else, by name.
    Other(String),
}

/// What the vCPU loop does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve the command queue, then go on.
    ServeQueue,
    /// Nothing to do; loads read zero.
    Continue,
    /// Look at pending commands and stop requests.
    CheckPending,
    /// Give the program a general-protection fault and go on.
    InjectFault,
    /// Wait for the memory, or for the end of the program.
    AwaitMemory,
    /// End the machine with this reason.
    Stop(String),
}

impl Exit {
    /// The name under which exits are counted.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::MmioWrite(address) if is_queue_doorbell(*address) => "queue-doorbell",
            Self::MmioWrite(_) => "mmio-write",
            Self::MmioRead(_) => "mmio-read",
            Self::PortWrite(_) => "port-write",
            Self::PortRead(_) => "port-read",
            Self::Interrupted => "interrupted",
            Self::Halted => "halted",
            Self::Shutdown => "shutdown",
            Self::InternalError { .. } => "internal-error",
            Self::MemoryFault => "memory-fault",
            Self::EntryFailed(_) => "entry-failed",
            Self::Other(_) => "other",
        }
    }

    /// Decides what to do.
    ///
    /// Accesses to holes and ports without a device are harmless to everyone
    /// but the guest: they are counted and ignored, as a bus would.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::MmioWrite(address) if is_queue_doorbell(*address) => Action::ServeQueue,
            Self::MmioWrite(_) | Self::MmioRead(_) | Self::PortWrite(_) | Self::PortRead(_) => {
                Action::Continue
            }
            Self::Interrupted => Action::CheckPending,
            Self::Halted => Action::Stop("the kernel halted".into()),
            Self::Shutdown => Action::Stop("triple fault".into()),
            // Vector stores to a hole cannot be emulated: the program's fault.
            Self::InternalError { cpl: 3 } => Action::InjectFault,
            Self::InternalError { cpl } => Action::Stop(format!(
                "KVM cannot emulate an instruction at privilege level {cpl}"
            )),
            Self::MemoryFault => Action::AwaitMemory,
            Self::EntryFailed(reason) => {
                Action::Stop(format!("KVM cannot enter the guest: {reason}"))
            }
            Self::Other(name) => Action::Stop(format!("unexpected exit {name}")),
        }
    }
}

fn is_queue_doorbell(address: u64) -> bool {
    address == DOORBELL_PAGE + doorbell::QUEUE
}

const _: () =
    assert!(doorbell::ARENA_BASE + 8 * enclave_abi::lease::MAX_ARENAS as u64 <= PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_queue_doorbell_serves_the_queue() {
        assert_eq!(Exit::MmioWrite(DOORBELL_PAGE).action(), Action::ServeQueue);
        for address in [0, DOORBELL_PAGE + 1, DOORBELL_PAGE + 4096, u64::MAX] {
            assert_eq!(Exit::MmioWrite(address).action(), Action::Continue);
            assert_eq!(Exit::MmioRead(address).action(), Action::Continue);
        }
    }

    #[test]
    fn an_unemulatable_program_instruction_kills_the_program_only() {
        assert_eq!(Exit::InternalError { cpl: 3 }.action(), Action::InjectFault);
        assert!(matches!(
            Exit::InternalError { cpl: 0 }.action(),
            Action::Stop(_)
        ));
    }

    #[test]
    fn fatal_exits_carry_a_reason() {
        for exit in [
            Exit::Halted,
            Exit::Shutdown,
            Exit::Other("KVM_EXIT_TPR".into()),
        ] {
            let Action::Stop(reason) = exit.action() else {
                panic!("{exit:?} did not stop")
            };
            assert!(!reason.is_empty());
        }
    }
}
