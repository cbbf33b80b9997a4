//! Cores that are added to a running machine and taken away again.
//!
//! Called by the control side through [`Machine`], one change at a time, as memory
//! is ([`super::memory_blocks`]). All vCPUs that there may be are made with the
//! machine; one without a core of the host is *parked*: its thread waits, and the
//! kernel does not know of it.
//!
//! ```text
//!  add     thread gets its core ──► the kernel uses it ──► done
//!                                       │ refused, or the order withdrawn
//!                                       ▼
//!                                    parked again
//!  remove  the kernel does without it ──► thread parks ──► the host has it back
//!             │ refused: those that it gave up return to it
//! ```
//!
//! A vCPU parks where its kernel sleeps: elsewhere it may have the kernel's lock. So
//! one whose kernel said that it gave the core up, and goes on there, does not park,
//! and the enclave has that core until it is destroyed.

use std::time::Duration;

use enclave_abi::queue::{CORE_ADD, CORE_REMOVE};

use super::cores::Seat;
use super::memory_blocks::List;
use super::{BlockError, Machine};
use crate::config::CoreRequest;
use crate::failure::Class;

/// How long a thread may take to leave the guest.
const PARK_TIMEOUT: Duration = Duration::from_secs(1);

/// Why cores were not added or removed. Unless it says otherwise, nothing has
/// changed.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// As for memory.
    #[error(transparent)]
    Order(#[from] BlockError),
    /// More than there are vCPUs for.
    #[error("it has {has} cores and room for {room}: {wanted} more do not fit")]
    NoRoom {
        /// Cores it has.
        has: usize,
        /// vCPUs that were made.
        room: usize,
        /// Cores wanted.
        wanted: usize,
    },
    /// More than it could do without.
    #[error("it has {has} cores, and the first one stays: {wanted} cannot go")]
    TooFew {
        /// Cores it has.
        has: usize,
        /// Cores that are to go.
        wanted: usize,
    },
    /// Programs are loaded and ended there.
    #[error("core {0} is its first one, which stays")]
    First(usize),
    /// Not one of its own.
    #[error("core {core} is not one of its cores, {own:?}")]
    NotOwn {
        /// Asked for.
        core: usize,
        /// What it has.
        own: Vec<usize>,
    },
    /// A thread may run nowhere else.
    #[error("thread {tid} may run on core {core} alone (sched_setaffinity)")]
    Pinned {
        /// Its number in the enclave.
        tid: u64,
        /// Core of the host.
        core: usize,
    },
}

impl CoreError {
    /// Its exit class.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Order(error) => error.class(),
            Self::NoRoom { .. } => Class::Resources,
            Self::Pinned { .. } => Class::Busy,
            Self::TooFew { .. } | Self::First(_) | Self::NotOwn { .. } => Class::Usage,
        }
    }
}

/// Which vCPUs lose their core, the last ones first.
fn leaving(seats: &[Seat], request: &CoreRequest) -> Result<Vec<(usize, usize)>, CoreError> {
    let held: Vec<(usize, usize)> = held(seats);
    match request {
        CoreRequest::Count(wanted) => {
            let others = held.iter().rev().filter(|(number, _)| *number != 0);
            let chosen: Vec<_> = others.take(*wanted).copied().collect();
            if chosen.len() < *wanted {
                return Err(CoreError::TooFew {
                    has: held.len(),
                    wanted: *wanted,
                });
            }
            Ok(chosen)
        }
        CoreRequest::List(list) => list
            .iter()
            .map(|core| match held.iter().find(|(_, host)| host == core) {
                Some((0, host)) => Err(CoreError::First(*host)),
                Some(&found) => Ok(found),
                None => Err(CoreError::NotOwn {
                    core: *core,
                    own: held.iter().map(|(_, host)| *host).collect(),
                }),
            })
            .collect(),
    }
}

/// The vCPUs that have a core of the host, with it.
fn held(seats: &[Seat]) -> Vec<(usize, usize)> {
    let each = seats.iter().enumerate();
    each.filter_map(|(number, seat)| match seat {
        Seat::On(Some(host)) | Seat::Leaving(Some(host)) => Some((number, *host)),
        _ => None,
    })
    .collect()
}

impl Machine {
    /// The cores of the host that it has, ascending.
    #[must_use]
    pub fn host_cores(&self) -> Vec<usize> {
        let held = held(&self.cores.seats());
        let mut cores: Vec<usize> = held.into_iter().map(|(_, host)| host).collect();
        cores.sort_unstable();
        cores
    }

    /// The same in the order of its vCPUs, for a machine that comes after it.
    pub(super) fn cores_by_vcpu(&self) -> Vec<usize> {
        let held = held(&self.cores.seats());
        held.into_iter().map(|(_, host)| host).collect()
    }

    /// Gives the machine these cores of the host as well.
    ///
    /// # Errors
    /// [`CoreError`].
    pub fn add_cores(&self, hosts: &[usize]) -> Result<(), CoreError> {
        let mut list = self.blocks.lock();
        self.close_order(&mut list)?;
        self.shared.takes_orders().map_err(BlockError::from)?;
        let seats = self.cores.seats();
        let free = seats.iter().enumerate();
        let free = free.filter_map(|(number, seat)| (*seat == Seat::Parked).then_some(number));
        let free: Vec<usize> = free.take(hosts.len()).collect();
        if free.len() < hosts.len() {
            return Err(CoreError::NoRoom {
                has: held(&seats).len(),
                room: seats.len(),
                wanted: hosts.len(),
            });
        }
        let mut added = Vec::new();
        for (&number, &host) in free.iter().zip(hosts) {
            self.cores.seat(number, host);
            if let Err(error) = self.use_core(&mut list, number) {
                for number in added {
                    // What the kernel keeps stays.
                    drop(self.give_up(&mut list, number));
                }
                return Err(error);
            }
            added.push(number);
        }
        Ok(())
    }

    /// Takes cores away, the last ones or those named; which.
    ///
    /// # Errors
    /// [`CoreError`].
    pub fn remove_cores(&self, request: &CoreRequest) -> Result<Vec<usize>, CoreError> {
        let mut list = self.blocks.lock();
        self.close_order(&mut list)?;
        self.shared.takes_orders().map_err(BlockError::from)?;
        let leaving = leaving(&self.cores.seats(), request)?;
        let mut gone = Vec::new();
        for (number, host) in leaving {
            match self.give_up(&mut list, number) {
                Ok(()) => gone.push((number, host)),
                Err(error) => {
                    for (number, host) in gone {
                        self.cores.seat(number, host);
                        self.use_core(&mut list, number)?;
                    }
                    return Err(match error {
                        Refusal::Pinned(tid) => CoreError::Pinned { tid, core: host },
                        Refusal::Order(error) => error.into(),
                    });
                }
            }
        }
        Ok(gone.into_iter().map(|(_, host)| host).collect())
    }

    /// Has the kernel use a core that has its seat; else it is parked again.
    fn use_core(&self, list: &mut List, number: usize) -> Result<(), CoreError> {
        let done = self.order(list, CORE_ADD, (number as u64, 0), false);
        let error = match done {
            Ok(answer) if answer.errno == 0 => return Ok(()),
            Ok(answer) => refused(answer.errno),
            // The kernel may yet take it.
            Err(BlockError::Unanswered) => return Err(BlockError::Unanswered.into()),
            Err(error) => error,
        };
        self.park(number as u64);
        Err(error.into())
    }

    /// Has the kernel do without a core, and parks it.
    fn give_up(&self, list: &mut List, number: usize) -> Result<(), Refusal> {
        let answer = self.order(list, CORE_REMOVE, (number as u64, 0), false)?;
        match answer.errno {
            0 => {
                self.park(number as u64);
                Ok(())
            }
            libc::EBUSY => Err(Refusal::Pinned(answer.used)),
            errno => Err(refused(errno).into()),
        }
    }

    /// Takes its seat from a core that the kernel does not use.
    pub(super) fn park(&self, number: u64) {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        if !self.cores.unseat(number, PARK_TIMEOUT) {
            crate::vmm_log::note(format_args!("the thread of vCPU {number} does not park"));
        }
    }
}

/// Why the kernel keeps a core.
enum Refusal {
    Pinned(u64),
    Order(BlockError),
}

impl From<BlockError> for Refusal {
    fn from(error: BlockError) -> Self {
        Self::Order(error)
    }
}

fn refused(errno: i32) -> BlockError {
    BlockError::Refused(rustix::io::Errno::from_raw_os_error(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEATS: [Seat; 5] = [
        Seat::On(Some(6)),
        Seat::On(Some(2)),
        Seat::Parked,
        Seat::On(Some(4)),
        Seat::Parked,
    ];

    #[test]
    fn the_last_cores_go_first_and_the_first_one_stays() {
        let last = leaving(&SEATS, &CoreRequest::Count(1)).unwrap();
        assert_eq!(last, [(3, 4)]);
        let both = leaving(&SEATS, &CoreRequest::Count(2)).unwrap();
        assert_eq!(both, [(3, 4), (1, 2)]);
        let refused = leaving(&SEATS, &CoreRequest::Count(3));
        assert!(matches!(
            refused,
            Err(CoreError::TooFew { has: 3, wanted: 3 })
        ));
    }

    #[test]
    fn cores_are_named_by_the_hosts_numbers() {
        let named = leaving(&SEATS, &CoreRequest::List(vec![2, 4])).unwrap();
        assert_eq!(named, [(1, 2), (3, 4)]);
        let first = leaving(&SEATS, &CoreRequest::List(vec![2, 6]));
        assert!(matches!(first, Err(CoreError::First(6))));
        let other = leaving(&SEATS, &CoreRequest::List(vec![3]));
        assert!(matches!(other, Err(CoreError::NotOwn { core: 3, .. })));
    }
}
