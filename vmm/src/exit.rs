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
    /// The guest's core has nothing to do for so many nanoseconds.
    Sleep(u64),
    /// The guest's core waits for another one.
    GiveWay,
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

/// Where the entry for debuggers stores.
const DEBUG: u64 = DOORBELL_PAGE + doorbell::DEBUG;

/// Names of the kinds of exits, by [`Exit::code`].
const NAMES: [&str; 15] = [
    "queue-doorbell",
    "mmio-write",
    "mmio-read",
    "port-write",
    "port-read",
    "interrupted",
    "halted",
    "shutdown",
    "internal-error",
    "memory-fault",
    "entry-failed",
    "other",
    "debug-trap",
    "sleep",
    "give-way",
];

/// What the vCPU loop does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve the command queue, then go on.
    ServeQueue,
    /// Nothing to do; loads read zero.
    Continue,
    /// A debugger's trap: stop there if there is one.
    DebugTrap,
    /// Sleep so many nanoseconds at most, or until somebody wakes the core.
    Sleep(u64),
    /// Let the host's scheduler run somebody else.
    GiveWay,
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
    /// A store of `bytes` to a guest-physical address without memory.
    #[must_use]
    pub fn store(address: u64, bytes: &[u8]) -> Self {
        const SLEEP: u64 = DOORBELL_PAGE + doorbell::SLEEP;
        const GIVE_WAY: u64 = DOORBELL_PAGE + doorbell::GIVE_WAY;
        match (address, <[u8; 8]>::try_from(bytes)) {
            (SLEEP, Ok(ns)) => Self::Sleep(u64::from_le_bytes(ns)),
            (GIVE_WAY, _) => Self::GiveWay,
            _ => Self::MmioWrite(address),
        }
    }

    /// The name under which exits are counted.
    #[must_use]
    pub fn name(&self) -> &'static str {
        Self::name_of(self.code())
    }

    /// The name of the exits of `code`.
    #[must_use]
    pub fn name_of(code: u8) -> &'static str {
        NAMES.get(usize::from(code)).copied().unwrap_or("other")
    }

    /// The kind as a number, for where a name is too long: see
    /// [`Exit::name_of`].
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::MmioWrite(address) if is_queue_doorbell(*address) => 0,
            Self::MmioWrite(DEBUG) => 12,
            Self::MmioWrite(_) => 1,
            Self::MmioRead(_) => 2,
            Self::PortWrite(_) => 3,
            Self::PortRead(_) => 4,
            Self::Interrupted => 5,
            Self::Halted => 6,
            Self::Shutdown => 7,
            Self::InternalError { .. } => 8,
            Self::MemoryFault => 9,
            Self::EntryFailed(_) => 10,
            Self::Other(_) => 11,
            Self::Sleep(_) => 13,
            Self::GiveWay => 14,
        }
    }

    /// What it was about: a guest-physical address, a port, a privilege level;
    /// 0 where there is nothing.
    #[must_use]
    pub fn detail(&self) -> u64 {
        match self {
            Self::MmioWrite(address) | Self::MmioRead(address) => *address,
            Self::PortWrite(port) | Self::PortRead(port) => u64::from(*port),
            Self::InternalError { cpl } => u64::from(*cpl),
            _ => 0,
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
            Self::MmioWrite(DEBUG) => Action::DebugTrap,
            Self::MmioWrite(_) | Self::MmioRead(_) | Self::PortWrite(_) | Self::PortRead(_) => {
                Action::Continue
            }
            Self::Sleep(ns) => Action::Sleep(*ns),
            Self::GiveWay => Action::GiveWay,
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
    fn every_kind_has_a_code_and_a_name() {
        let kinds = [
            (Exit::MmioWrite(DOORBELL_PAGE), "queue-doorbell"),
            (Exit::MmioWrite(1), "mmio-write"),
            (Exit::MmioRead(1), "mmio-read"),
            (Exit::PortWrite(1), "port-write"),
            (Exit::PortRead(1), "port-read"),
            (Exit::Interrupted, "interrupted"),
            (Exit::Halted, "halted"),
            (Exit::Shutdown, "shutdown"),
            (Exit::InternalError { cpl: 3 }, "internal-error"),
            (Exit::MemoryFault, "memory-fault"),
            (Exit::EntryFailed(String::new()), "entry-failed"),
            (Exit::Other(String::new()), "other"),
            (Exit::MmioWrite(DEBUG), "debug-trap"),
            (Exit::Sleep(1), "sleep"),
            (Exit::GiveWay, "give-way"),
        ];
        for (exit, name) in &kinds {
            assert_eq!(exit.name(), *name);
        }
        assert_eq!(kinds.len(), NAMES.len());
        assert_eq!(Exit::name_of(200), "other");
    }

    #[test]
    fn only_the_queue_doorbell_serves_the_queue() {
        assert_eq!(Exit::MmioWrite(DOORBELL_PAGE).action(), Action::ServeQueue);
        for address in [0, DOORBELL_PAGE + 1, DOORBELL_PAGE + 4096, u64::MAX] {
            assert_eq!(Exit::MmioWrite(address).action(), Action::Continue);
            assert_eq!(Exit::MmioRead(address).action(), Action::Continue);
        }
    }

    #[test]
    fn a_core_sleeps_by_one_whole_word() {
        let at = DOORBELL_PAGE + doorbell::SLEEP;
        assert_eq!(Exit::store(at, &[7, 1, 0, 0, 0, 0, 0, 0]), Exit::Sleep(263));
        for odd in [&[7, 0, 0, 0][..], &[]] {
            assert_eq!(Exit::store(at, odd).action(), Action::Continue);
        }
        let way = DOORBELL_PAGE + doorbell::GIVE_WAY;
        assert_eq!(Exit::store(way, &[1, 0, 0, 0]), Exit::GiveWay);
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
