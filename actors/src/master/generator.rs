//! The article's task generator: every so often a task with a random number. Pure: time and chance are arguments.

use std::time::Instant;

use bytes::Bytes;
use rand::{Rng, RngExt};

use super::GeneratorSettings;

/// When the next task is due, and what it is.
#[derive(Clone, Debug)]
pub struct Generator {
    settings: GeneratorSettings,
    next: Option<Instant>,
}

impl Generator {
    /// The first task is due one period after the first look.
    pub fn new(settings: GeneratorSettings) -> Self {
        Self {
            settings,
            next: None,
        }
    }

    /// Other knobs from now on; the next task is due one period from the next look.
    pub fn configure(&mut self, settings: GeneratorSettings) {
        if settings != self.settings {
            self.settings = settings;
            self.next = None;
        }
    }

    /// The number of the task that is due now, if one is. After a pause only one is due: nobody wants a burst of old ones.
    pub fn due<R: Rng + ?Sized>(&mut self, now: Instant, rng: &mut R) -> Option<u64> {
        if !self.settings.enabled {
            return None;
        }
        let next = *self.next.get_or_insert(now + self.settings.every);
        if now < next {
            return None;
        }
        let after = next + self.settings.every;
        self.next = Some(if after <= now {
            now + self.settings.every
        } else {
            after
        });
        Some(rng.random_range(self.settings.min..=self.settings.max))
    }

    /// When to look again.
    pub fn next(&self) -> Option<Instant> {
        self.next.filter(|_| self.settings.enabled)
    }
}

/// The input of `multiply`.
pub fn input(number: u64) -> Bytes {
    Bytes::from(format!("{{\"number\":{number}}}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_task_every_ten_seconds_with_a_number_from_30_to_60() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut generator = Generator::new(GeneratorSettings::default());
        let start = Instant::now();
        let mut numbers = Vec::new();
        for second in 0..=1000 {
            numbers.extend(generator.due(start + Duration::from_secs(second), &mut rng));
        }
        assert_eq!(numbers.len(), 100);
        assert!(numbers.iter().all(|n| (30..=60).contains(n)));
        assert!(numbers.contains(&30) && numbers.contains(&60));
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut generator = Generator::new(GeneratorSettings::default());
        let start = Instant::now();
        generator.due(start, &mut rng);
        let late = start + Duration::from_secs(3600);
        assert!(generator.due(late, &mut rng).is_some());
        assert!(generator.due(late, &mut rng).is_none());
    }
}
