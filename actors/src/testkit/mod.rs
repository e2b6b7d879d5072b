//! What simulation and chaos tests share: the trace of a run and the invariants that read it. Behind the feature `testkit`.
//!
//! A [`trace::Record`] is one thing that happened: an event that production code logged, or something the test itself did
//! or saw (`sim.*`). [`invariants::Invariants`] reads records one by one and names the first rule that was broken. It knows
//! nothing of how a record came about, so the same rules check a simulated run, record by record as it happens, and the
//! JSON logs of real processes afterwards.
//!
//! Long runs of seeds, of either tier: [`runner`] runs them in slices that can be resumed, [`coverage`] counts what they went
//! through, [`slices`] sums it, [`hunt`] hunts planted bugs through them. [`node`] is what they run, on a
//! [`machine`].

pub mod capture;
pub mod conduct;
pub mod coverage;
pub mod fuzz;
pub mod hunt;
pub mod invariants;
pub mod linear;
pub mod machine;
pub mod node;
pub mod registry;
pub mod runner;
pub mod slices;
pub mod tasks;
pub mod trace;
