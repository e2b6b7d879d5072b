//! The actors of a Troupe node.

pub mod backoff;
pub mod id;
pub mod registry;
pub mod supervisor;
