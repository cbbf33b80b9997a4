//! The verbs: one struct of arguments each, with a `run` that does the work.

pub(crate) mod broker;
pub(crate) mod check;
pub(crate) mod completion;
pub(crate) mod create;
pub(crate) mod debug;
pub(crate) mod destroy;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod freeze;
pub(crate) mod isolate;
pub(crate) mod logs;
pub(crate) mod openmetrics;
pub(crate) mod part;
mod plan;
pub(crate) mod pool;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod selftest;
pub(crate) mod show;
pub(crate) mod snap;
pub(crate) mod stats;
pub(crate) mod store;
pub(crate) mod timeline;
pub(crate) mod top;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod xemem;
