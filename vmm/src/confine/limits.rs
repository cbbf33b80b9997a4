//! Capabilities and resource limits.
//!
//! Called once by [`super::enter`]. No capability is kept: KVM, memory objects
//! and affinity take none, and forwarded calls act as the user who created the
//! enclave. For root that means: as the owner of root's files, not as the one
//! whom no mode bit stops.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::ConfineError;

/// Heap, stacks and private mappings. Guest memory and arenas are shared
/// mappings, which do not count.
pub(super) const DATA_BYTES: u64 = 256 << 20;
/// Descriptors: a program's table, connections, arenas with their doorbells.
pub(super) const FILES: u64 = 4096;

/// Gives every capability up, of this thread and those it starts.
pub(super) fn drop_capabilities() -> Result<(), ConfineError> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, sets)
        .map_err(|errno| ConfineError::System("drop capabilities", errno.into()))
}

/// Bounds memory and descriptors, and rules out core files: they would hold
/// the guest's memory.
pub(super) fn bound() -> Result<(), ConfineError> {
    for (resource, most) in [
        (Resource::Data, DATA_BYTES),
        (Resource::Nofile, FILES),
        (Resource::Core, 0),
    ] {
        let lower = |limit: Option<u64>| Some(limit.map_or(most, |now| now.min(most)));
        let maximum = lower(getrlimit(resource).maximum);
        let limit = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(resource, limit)
            .map_err(|errno| ConfineError::System("set a resource limit", errno.into()))?;
    }
    Ok(())
}
