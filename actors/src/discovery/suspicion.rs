//! When silence becomes suspicion. Pure: time comes in as an argument.
//!
//! Two halves. [`Detector`]: per peer, from the statistics of its heartbeats' inter-arrival times, with a floor and a
//! ceiling (Hayashibara et al., "The φ accrual failure detector", 2004, reduced to mean + 6 σ). [`LocalHealth`]: a slow
//! node doubts itself first (Dadgar et al., "Lifeguard", 2017): while its own timers are late, every time-out widens,
//! and after a pause of its own everybody gets a fresh start.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many intervals are remembered: 16 s of the default heartbeat.
const WINDOW: usize = 64;
/// Fewer intervals than this say nothing about the spread.
const ENOUGH: usize = 8;
/// How many standard deviations beyond the mean are still ordinary.
const SIGMAS: f64 = 6.0;

/// Inter-arrival statistics of one peer.
#[derive(Clone, Debug, Default)]
pub struct Detector {
    last: Option<Instant>,
    intervals: VecDeque<Duration>,
}

impl Detector {
    /// A heartbeat arrived.
    pub fn beat(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            if self.intervals.len() == WINDOW {
                self.intervals.pop_front();
            }
            self.intervals
                .push_back(now.saturating_duration_since(last));
        }
    }

    /// The interval in progress was disturbed by our own pause: it must not count.
    pub fn forget_last(&mut self) {
        self.last = None;
    }

    /// How much silence is still ordinary, between `floor` and `ceiling`.
    pub fn patience(&self, floor: Duration, ceiling: Duration) -> Duration {
        if self.intervals.len() < ENOUGH {
            return floor;
        }
        let n = self.intervals.len() as f64;
        let mean = self
            .intervals
            .iter()
            .map(Duration::as_secs_f64)
            .sum::<f64>()
            / n;
        let variance = self
            .intervals
            .iter()
            .map(|d| (d.as_secs_f64() - mean).powi(2))
            .sum::<f64>()
            / n;
        let ordinary = mean + SIGMAS * variance.sqrt();
        Duration::from_secs_f64(ordinary.min(ceiling.as_secs_f64())).clamp(floor, ceiling)
    }
}

/// How far this node may trust its own clock and ears.
#[derive(Clone, Debug)]
pub struct LocalHealth {
    tick: Duration,
    /// Lateness beyond this is a pause: nothing measured across it counts.
    pause: Duration,
    last: Instant,
    lag: Duration,
}

/// What a tick says of ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakefulness {
    /// Nothing special.
    Fine,
    /// We were away for this long: give everybody a fresh start.
    Resumed(Duration),
}

impl LocalHealth {
    /// Ticks are expected every `tick` from `now` on; one that is later than `pause` is a pause, the very first one too.
    pub fn new(tick: Duration, pause: Duration, now: Instant) -> Self {
        Self {
            tick,
            pause,
            last: now,
            lag: Duration::ZERO,
        }
    }

    /// A tick of our own timer.
    pub fn tick(&mut self, now: Instant) -> Wakefulness {
        let last = std::mem::replace(&mut self.last, now);
        let late = now
            .saturating_duration_since(last)
            .saturating_sub(self.tick);
        self.late(late);
        if late > self.pause {
            Wakefulness::Resumed(late)
        } else {
            Wakefulness::Fine
        }
    }

    /// Something of our own (a timer, a message to ourselves) came this much late. Rises at once, falls by an eighth a tick.
    pub fn late(&mut self, late: Duration) {
        self.lag = late.max(self.lag - self.lag / 8);
    }

    /// How late we are lately.
    pub fn lag(&self) -> Duration {
        self.lag
    }

    /// By how much every time-out widens: 1 when healthy, at most 8.
    pub fn factor(&self) -> f64 {
        let doubt = self.lag.as_secs_f64() / (2.0 * self.tick.as_secs_f64());
        (1.0 + (doubt - 0.5).max(0.0)).min(8.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Duration = Duration::from_secs(1);
    const CEILING: Duration = Duration::from_secs(10);

    fn detector(intervals_ms: &[u64]) -> Detector {
        let mut at = Instant::now();
        let mut detector = Detector::default();
        detector.beat(at);
        for ms in intervals_ms {
            at += Duration::from_millis(*ms);
            detector.beat(at);
        }
        detector
    }

    #[test]
    fn a_regular_peer_is_given_the_floor() {
        assert_eq!(detector(&[250; 20]).patience(FLOOR, CEILING), FLOOR);
    }

    #[test]
    fn an_irregular_peer_is_given_more_and_never_beyond_the_ceiling() {
        let irregular = detector(&[100, 900].repeat(10)).patience(FLOOR, CEILING);
        assert!(
            irregular > 2 * FLOOR && irregular < CEILING,
            "{irregular:?}"
        );
        let wild = detector(&[100, 20_000].repeat(10)).patience(FLOOR, CEILING);
        assert_eq!(wild, CEILING);
    }

    #[test]
    fn a_late_timer_widens_time_outs_and_recovers() {
        let tick = Duration::from_millis(50);
        let mut now = Instant::now();
        let mut health = LocalHealth::new(tick, Duration::from_millis(500), now);
        now += Duration::from_millis(250);
        assert_eq!(health.tick(now), Wakefulness::Fine);
        assert!(health.factor() > 2.0);
        for _ in 0..60 {
            now += tick;
            health.tick(now);
        }
        assert!((health.factor() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_pause_is_noticed_on_resuming() {
        let now = Instant::now();
        let pause = Duration::from_millis(500);
        let mut health = LocalHealth::new(Duration::from_millis(50), pause, now);
        let away = health.tick(now + Duration::from_secs(10));
        assert!(matches!(away, Wakefulness::Resumed(d) if d > Duration::from_secs(9)));
    }
}
