//! When MasterActor last had a turn: stamped by it, read by discovery on another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::time::now;

/// Shared by MasterActor and discovery. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MasterPulse {
    origin: Instant,
    last_us: Arc<AtomicU64>,
}

impl Default for MasterPulse {
    fn default() -> Self {
        Self {
            origin: now(),
            last_us: Arc::default(),
        }
    }
}

impl MasterPulse {
    /// It has a turn now.
    pub fn beat(&self) {
        let us = now().saturating_duration_since(self.origin).as_micros();
        self.last_us
            .store(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago that was.
    pub fn age(&self) -> Duration {
        let last = Duration::from_micros(self.last_us.load(Ordering::Relaxed));
        now()
            .saturating_duration_since(self.origin)
            .saturating_sub(last)
    }
}
