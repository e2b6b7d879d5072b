//! Hybrid logical clock: unix milliseconds in the upper 48 bits, a counter in the lower 16.
//!
//! Every stamp this node makes is above all it made before and above all it accepted from others, and stays close to wall
//! time. (Kulkarni, Demirbas et al., *Logical Physical Clocks*, 2014.) Here time is passed in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::Hlc;

/// A stamp from further ahead than this is not followed: one machine with a wrong clock must not drag everybody's along.
/// Order against that machine is then only as good as its clock.
pub const MAX_AHEAD_MS: u64 = 60_000;

const COUNTER_BITS: u32 = 16;

/// The stamp after `last` at this wall time. A counter that is used up runs over into the milliseconds, which keeps the order.
pub fn after(last: Hlc, now_ms: u64) -> Hlc {
    Hlc((now_ms << COUNTER_BITS).max(last.0.saturating_add(1)))
}

/// What a clock at `last` shows once it has seen `remote`.
pub fn merged(last: Hlc, remote: Hlc, now_ms: u64) -> Hlc {
    let ahead = (remote.0 >> COUNTER_BITS).saturating_sub(now_ms);
    if ahead > MAX_AHEAD_MS {
        last
    } else {
        last.max(remote)
    }
}

/// The node's clock. Cheap to clone, shared by all; it outlives the transport's restarts so that stamps never fall.
#[derive(Clone, Debug, Default)]
pub struct HybridClock(Arc<AtomicU64>);

impl HybridClock {
    /// A new stamp, above every one before.
    pub fn tick(&self, now_ms: u64) -> Hlc {
        let step = |last| Some(after(Hlc(last), now_ms).0);
        let last = self.update(step);
        after(Hlc(last), now_ms)
    }

    /// A stamp arrived from another node.
    pub fn merge(&self, remote: Hlc, now_ms: u64) {
        self.update(|last| Some(merged(Hlc(last), remote, now_ms).0));
    }

    fn update(&self, step: impl Fn(u64) -> Option<u64>) -> u64 {
        match self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step)
        {
            Ok(last) | Err(last) => last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_rise_even_when_wall_time_falls() {
        let clock = HybridClock::default();
        let stamps: Vec<Hlc> = [5, 5, 3, 9, 9].map(|now| clock.tick(now)).to_vec();
        assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
        assert_eq!(stamps[3].0 >> 16, 9);
    }

    #[test]
    fn a_reply_is_stamped_after_what_it_answers() {
        let (asks, answers) = (HybridClock::default(), HybridClock::default());
        let question = asks.tick(1_000);
        answers.merge(question, 10);
        assert!(answers.tick(10) > question);
    }

    #[test]
    fn a_clock_that_is_far_ahead_is_not_followed() {
        let clock = HybridClock::default();
        clock.merge(Hlc((MAX_AHEAD_MS + 11) << 16), 10);
        assert_eq!(clock.tick(10), Hlc(10 << 16));
    }

    #[test]
    fn a_used_up_counter_runs_over_into_the_milliseconds() {
        assert_eq!(after(Hlc((7 << 16) | 0xffff), 7), Hlc(8 << 16));
        assert_eq!(after(Hlc(u64::MAX), 7), Hlc(u64::MAX));
    }
}
