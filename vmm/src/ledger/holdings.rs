//! What a live enclave holds, as its threads see it: the record in the ledger that
//! grows and shrinks while it runs.
//!
//! Made from the [`Reservation`] when the enclave is up; used by the control side.
//! The record always says at least what is held: it grows before memory is taken
//! and shrinks after it was given back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Reservation;
use super::cores::Choice;
use crate::config::{CoreRequest, EnclaveConfig};
use crate::failure::Failure;
use crate::topology::Topology;

/// The reservation of a live enclave, until it is released.
#[derive(Debug, Default)]
pub struct Holdings(Mutex<Option<Reservation>>);

impl Holdings {
    /// Those of `reservation`.
    #[must_use]
    pub fn new(reservation: Reservation) -> Self {
        Self(Mutex::new(Some(reservation)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Reservation>> {
        // Each change of it is whole or harmless.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits `bytes` more, of the kind the enclave was created with.
    ///
    /// # Errors
    /// [`crate::failure::Class::Resources`] with figures when the host does not
    /// have them.
    pub fn grow(
        &self,
        config: &EnclaveConfig,
        bytes: u64,
        topology: &Topology,
    ) -> Result<(), Failure> {
        match self.lock().as_mut() {
            Some(reservation) => reservation.grow(config, bytes, topology),
            None => Ok(()),
        }
    }

    /// Says that `bytes` are held now.
    pub fn hold(&self, bytes: u64, is_settled: bool) {
        if let Some(reservation) = self.lock().as_mut() {
            reservation.hold(bytes, is_settled);
        }
    }

    /// Admits more cores and takes their locks.
    ///
    /// # Errors
    /// As [`Reservation::take_cores`].
    pub fn take_cores(
        &self,
        config: &EnclaveConfig,
        request: &CoreRequest,
        topology: &Topology,
    ) -> Result<Choice, Failure> {
        match self.lock().as_mut() {
            Some(reservation) => reservation.take_cores(config, request, topology),
            None => Ok(Choice::default()),
        }
    }

    /// Gives all cores back but `cores` and the other threads of these.
    pub fn keep_cores(&self, cores: &[usize]) {
        if let Some(reservation) = self.lock().as_mut() {
            reservation.keep_cores(cores);
        }
    }

    /// Keeps the process's own threads off its cores, as far as they are not vCPUs'.
    pub fn stay_off(&self) {
        if let Some(reservation) = self.lock().as_ref() {
            reservation.stay_off();
        }
    }

    /// Its cores and the other threads of these, while it is there.
    #[must_use]
    pub fn cores(&self) -> Option<(Vec<usize>, Vec<usize>)> {
        self.lock().as_ref().map(Reservation::cores)
    }

    /// Removes the enclave's files and gives everything back.
    ///
    /// # Errors
    /// As [`Reservation::release`].
    pub fn release(&self) -> Result<(), Failure> {
        match self.lock().take() {
            Some(reservation) => reservation.release(),
            None => Ok(()),
        }
    }
}
