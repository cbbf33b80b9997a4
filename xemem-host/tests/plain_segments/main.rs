//! Plain segments between real processes, through a real broker.
//!
//! The other process is this test program itself, started again by
//! [`peer::Peer`] with a role; what it does is in [`roles`].

#[path = "../two_clients/broker_process.rs"]
mod broker_process;
mod forks;
mod hostile;
mod locks;
mod mapping;
mod moving;
mod peer;
mod roles;
mod sharing;
mod signals;
