//! How many lines a second may be said about tasks: counters stay exact, logs do not grow with the load. Pure.

use std::time::{Duration, Instant};

/// Lines a second that may stand above debug: some 50 tasks, with a few lines each.
const LINES: u32 = 200;

/// Admits the first lines of each second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampler {
    since: Option<Instant>,
    said: u32,
}

impl Sampler {
    /// Whether a line may be said now.
    pub fn admits(&mut self, now: Instant) -> bool {
        let over = |since: Instant| now.saturating_duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(over) {
            self.since = Some(now);
            self.said = 0;
        }
        self.said = self.said.saturating_add(1);
        self.said <= LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_second_and_no_more() {
        let mut sampler = Sampler::default();
        let now = Instant::now();
        let said = (0..1000).filter(|_| sampler.admits(now)).count();
        assert_eq!(said, 200);
        assert!(sampler.admits(now + Duration::from_secs(1)));
    }
}
