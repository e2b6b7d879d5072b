//! The worker: takes attempts by credit, runs them, keeps each result until the master has acknowledged it.
//!
//! Promises: a given (task, attempt) is started at most once in a life of the node; nothing is taken beyond the granted
//! credit; commands under an epoch below the fence are refused and answered with the higher one; a new master is told of
//! everything that runs and everything unacknowledged, in one `Report`. Results do not survive this process.

pub mod actor;
pub mod intake;

use std::time::Duration;

use actix::Message;
use serde::Serialize;

use crate::id::{AttemptId, Epoch};

/// Knobs of the worker, `[worker]` in `config.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerSettings {
    /// Whether this node takes work.
    pub enabled: bool,
    /// Attempts side by side; 0 means 2 × cores.
    pub capacity: u32,
    /// `multiply` waits at least this long…
    pub delay_min: Duration,
    /// …and at most this long.
    pub delay_max: Duration,
    /// How many acknowledged task ids are remembered for a new master.
    pub recent: usize,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            capacity: 0,
            delay_min: Duration::from_secs(1),
            delay_max: Duration::from_secs(15),
            recent: 1024,
        }
    }
}

/// Stop intake, hand back what has not started, let the rest finish until the deadline; then hand back the remainder too.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "WorkerDrained")]
pub struct DrainWorker {
    /// How long running attempts may go on.
    pub within: Duration,
}

/// Receipt of a drained worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, actix::MessageResponse)]
pub struct WorkerDrained {
    /// Attempts that finished while draining.
    pub finished: usize,
    /// Attempts handed back to a master, to run elsewhere.
    pub handed_back: usize,
    /// Attempts and results that no master was there to be told of: durable ones run again, once somebody leads.
    pub untold: usize,
}

/// What the worker is doing.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "WorkerSnapshot")]
pub struct AskWorker;

/// Answer to [`AskWorker`].
#[derive(Clone, Debug, Default, actix::MessageResponse)]
pub struct WorkerSnapshot {
    /// Running attempts.
    pub running: Vec<AttemptId>,
    /// Finished, not yet acknowledged.
    pub unacknowledged: usize,
    /// Under which epoch it serves.
    pub epoch: Epoch,
    /// Attempts it runs side by side.
    pub capacity: u32,
    /// Attempts started in this life.
    pub started: u64,
    /// Results acknowledged in this life.
    pub finished: u64,
}
