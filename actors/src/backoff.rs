//! Exponential back-off with jitter: how long to wait before trying again.
//!
//! The n-th delay is `base × factorⁿ`, never above `max`, less a random part of up to `jitter` of itself. Jitter only
//! shortens, so `max` is a hard bound and those that wait at the bound still spread out ("equal jitter" of Marc Brooker,
//! *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015, with the fraction as a parameter).
//!
//! Pure: it neither sleeps nor reads a clock, and the random numbers are the caller's.

use std::time::Duration;

use rand::{Rng, RngExt};

/// A sequence of growing delays. Cheap to copy; the copy carries the count of attempts along.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    factor: f64,
    jitter: f64,
    attempts: u32,
}

impl Backoff {
    /// From `base` up to `max`, doubling, with 20 % jitter.
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max,
            factor: 2.0,
            jitter: 0.2,
            attempts: 0,
        }
    }

    /// No delay at all.
    pub const fn none() -> Self {
        Self::new(Duration::ZERO, Duration::ZERO)
    }

    /// Grows by `factor` instead; below 1 counts as 1 (a delay that does not grow).
    pub const fn factor(mut self, factor: f64) -> Self {
        self.factor = factor.max(1.0);
        self
    }

    /// Shortens each delay by up to this fraction, 0 (exact) to 1 (anything down to zero).
    pub const fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction.clamp(0.0, 1.0);
        self
    }

    /// The delay before the next attempt; the one after it is longer.
    pub fn next_delay<R: Rng + ?Sized>(&mut self, rng: &mut R) -> Duration {
        let delay = self.delay(self.attempts, rng);
        self.attempts = self.attempts.saturating_add(1);
        delay
    }

    /// The `attempt`-th delay, counted from 0, for callers that keep the count themselves.
    pub fn delay<R: Rng + ?Sized>(&self, attempt: u32, rng: &mut R) -> Duration {
        if self.base.is_zero() {
            return Duration::ZERO;
        }
        let exponent = i32::try_from(attempt).unwrap_or(i32::MAX);
        let nominal =
            (self.base.as_secs_f64() * self.factor.powi(exponent)).min(self.max.as_secs_f64());
        Duration::from_secs_f64(nominal * (1.0 - self.jitter * rng.random::<f64>())).min(self.max)
    }

    /// How many delays were handed out since the last [`reset`](Self::reset).
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts over at `base`: what was tried has worked.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn it_doubles_up_to_the_bound_and_starts_over_after_a_reset() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(ms(10), ms(100)).jitter(0.0);
        let delays: Vec<_> = (0..6).map(|_| backoff.next_delay(&mut rng)).collect();
        assert_eq!(delays, [ms(10), ms(20), ms(40), ms(80), ms(100), ms(100)]);
        assert_eq!(backoff.attempts(), 6);
        backoff.reset();
        assert_eq!(backoff.next_delay(&mut rng), ms(10));
    }

    #[test]
    fn no_back_off_never_waits() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(Backoff::none().delay(u32::MAX, &mut rng), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_delay_stays_between_its_jittered_floor_and_the_bound(
            base in 0_u64..10_000, max in 0_u64..100_000, factor in 0.0..10.0_f64, jitter in -1.0..2.0_f64, attempt: u32, seed: u64
        ) {
            let backoff = Backoff::new(ms(base), ms(max)).factor(factor).jitter(jitter);
            let delay = backoff.delay(attempt, &mut StdRng::seed_from_u64(seed));
            let floor = ms(base.min(max)).as_secs_f64() * (1.0 - jitter.clamp(0.0, 1.0));
            prop_assert!(delay <= ms(max));
            prop_assert!(delay.as_secs_f64() >= floor - 1e-6);
        }
    }
}
