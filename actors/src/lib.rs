//! The actors of a Troupe node.

pub mod admin;
pub mod backoff;
pub mod chance;
pub mod cluster;
pub mod discovery;
pub mod events;
pub mod id;
pub mod job;
pub mod master;
pub mod planted;
pub mod registry;
pub mod sample;
pub mod supervisor;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod time;
pub mod trace;
pub mod transport;
pub mod wire;
pub mod worker;
