//! When MasterActor last had a turn: stamped by it, read by discovery on another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by MasterActor and discovery. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MasterPulse {
    origin: Instant,
    last_us: Arc<AtomicU64>,
}

impl Default for MasterPulse {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            last_us: Arc::default(),
        }
    }
}

impl MasterPulse {
    /// It has a turn now.
    pub fn beat(&self) {
        let us = self.origin.elapsed().as_micros();
        self.last_us
            .store(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago that was.
    pub fn age(&self) -> Duration {
        let last = Duration::from_micros(self.last_us.load(Ordering::Relaxed));
        self.origin.elapsed().saturating_sub(last)
    }
}
