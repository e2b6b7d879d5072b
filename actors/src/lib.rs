//! The actors of a Troupe node.

pub mod id;
pub mod registry;
