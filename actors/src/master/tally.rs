//! ● What became of tasks at this node's reigns, in numbers for a metrics page: exact, whatever the log leaves out. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Kinds of work counted by name; a submitter could make up names without end, and the rest is counted together.
const MAX_JOBS: usize = 64;
/// The name of the rest.
const OTHER: &str = "other";
/// Upper bounds of the buckets, seconds: a commit within milliseconds, a task within minutes.
const BOUNDS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Durations by size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many fell into each bucket, not cumulated; the last is beyond all bounds. Empty before the first.
    pub buckets: Vec<u64>,
    /// Of all of them, seconds.
    pub sum: f64,
}

impl Histogram {
    /// Upper bounds of the buckets, seconds.
    pub fn bounds() -> &'static [f64] {
        &BOUNDS
    }

    /// One more.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if self.buckets.is_empty() {
            self.buckets = vec![0; BOUNDS.len() + 1];
        }
        let at = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket += 1;
        }
        self.sum += seconds;
    }

    /// Observations so far.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What became of tasks since this life of MasterActor began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Finished tasks by job and outcome (`done`, `failed`, `dead`, `cancelled`).
    pub tasks: BTreeMap<String, BTreeMap<String, u64>>,
    /// From acceptance (or the time before which it was not to be handed out) to the first hand-out.
    pub wait: Histogram,
    /// How long the attempt ran that gave the answer.
    pub run: Histogram,
    /// From sending a segment of the journal to its commit.
    pub commit: Histogram,
}

impl Tally {
    /// A task is finished.
    pub fn finished(&mut self, job: &str, outcome: &str) {
        let known = self.tasks.contains_key(job) || self.tasks.len() < MAX_JOBS;
        let job = if known { job } else { OTHER };
        let outcomes = match self.tasks.get_mut(job) {
            Some(outcomes) => outcomes,
            None => self.tasks.entry(job.to_owned()).or_default(),
        };
        match outcomes.get_mut(outcome) {
            Some(count) => *count += 1,
            None => drop(outcomes.insert(outcome.to_owned(), 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let mut histogram = Histogram::default();
        for ms in [1, 2, 300, 301_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let filled = histogram.buckets.iter().enumerate();
        let filled: Vec<_> = filled.filter(|(_, n)| **n > 0).map(|(i, _)| i).collect();
        assert_eq!(filled, [0, 1, 7, 15]);
        assert_eq!(histogram.count(), 4);
        assert!((histogram.sum - 301.303).abs() < 1e-9);
    }

    #[test]
    fn names_are_bounded_and_nothing_is_left_out() {
        let mut tally = Tally::default();
        for n in 0..1000 {
            tally.finished(&format!("job-{n}"), "done");
        }
        tally.finished("job-1", "failed");
        assert_eq!(tally.tasks.len(), MAX_JOBS + 1);
        assert_eq!(tally.tasks[OTHER]["done"], 1000 - MAX_JOBS as u64);
        assert_eq!(tally.tasks["job-1"]["failed"], 1);
    }
}
