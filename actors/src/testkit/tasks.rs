//! What tasks must obey, whoever leads: one result, attempts that only rise, no second start, no more than granted. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::trace::Record;
use crate::id::Epoch;

type Place = (String, u32);
type Attempt = (Epoch, u32);

/// A task as one master tells of it.
#[derive(Debug, Default)]
struct Told {
    newest: Option<Attempt>,
    /// Since when the newest attempt is with a worker.
    leased: Option<Duration>,
    recorded: Option<Attempt>,
}

/// The tasks as told so far.
#[derive(Debug)]
pub struct Tasks {
    /// Per task and epoch: a ledger belongs to a reign.
    told: BTreeMap<(String, Epoch), Told>,
    /// Durable tasks: their results are for all reigns.
    durable: BTreeSet<String>,
    recorded: BTreeMap<String, (Epoch, String)>,
    /// Tasks that somebody asked to be tried again once they are dead.
    retried: BTreeSet<String>,
    /// Attempts started by each process.
    started: BTreeMap<Place, BTreeSet<(String, Attempt)>>,
    running: BTreeMap<Place, BTreeSet<(String, Attempt)>>,
    /// The most that each process ran side by side since [`Tasks::forget_peaks`].
    peaks: BTreeMap<Place, usize>,
    /// Attempts side by side that a worker grants; 0 when not known.
    capacity: usize,
}

impl Tasks {
    /// Nothing yet; `capacity` as every worker of the run has it (0: not checked).
    pub fn new(capacity: usize) -> Self {
        Self {
            told: BTreeMap::new(),
            durable: BTreeSet::new(),
            recorded: BTreeMap::new(),
            retried: BTreeSet::new(),
            started: BTreeMap::new(),
            running: BTreeMap::new(),
            peaks: BTreeMap::new(),
            capacity,
        }
    }

    /// Takes one record; answers the number of the invariant that is broken, and how.
    pub fn observe(&mut self, record: &Record) -> Option<(u8, String)> {
        let task = record.get("task").to_owned();
        let place = (record.node.clone(), record.life);
        if record.event == "sim.crashed" {
            self.running.remove(&place);
            return None;
        }
        if record.event == "sim.submitted" && record.get("durable") == "true" {
            self.durable.insert(task);
            return None;
        }
        // An empty registry knows of no result.
        if record.event == "sim.serving" {
            self.recorded.clear();
            return None;
        }
        if record.event == "sim.called" && record.get("asked") == "retry" {
            self.retried.insert(task);
            return None;
        }
        if let Some(twice) = self.ends(&task, record) {
            return Some(twice);
        }
        if record.event == "task.cancelled" {
            let told = self.told.entry((task, record.epoch("epoch")?)).or_default();
            told.leased = None;
            return None;
        }
        let attempt = record.attempt()?;
        match record.event.as_str() {
            "task.started" => self.start(place, task, attempt),
            "task.executed" => {
                self.running.get_mut(&place)?.remove(&(task, attempt));
                None
            }
            "task.assigned" => {
                let wrong = self.assign(task.clone(), record.epoch("epoch")?, attempt);
                let told = self.told.entry((task, record.epoch("epoch")?)).or_default();
                told.leased = Some(record.at);
                wrong
            }
            "task.adopted" => {
                let told = self.told.entry((task, record.epoch("epoch")?)).or_default();
                told.newest = told.newest.max(Some(attempt));
                told.leased = Some(record.at);
                None
            }
            "task.requeued" | "task.dead" => {
                let told = self.told.entry((task, record.epoch("epoch")?)).or_default();
                told.leased = None;
                None
            }
            "task.finished" | "task.failed" => {
                self.record(task, record.epoch("epoch")?, attempt, &record.event)
            }
            _ => None,
        }
    }

    /// A durable task ends once, whoever leads; a dead one may be tried again.
    fn ends(&mut self, task: &str, record: &Record) -> Option<(u8, String)> {
        const ENDS: [&str; 4] = [
            "task.finished",
            "task.failed",
            "task.dead",
            "task.cancelled",
        ];
        if !self.durable.contains(task) || !ENDS.contains(&record.event.as_str()) {
            return None;
        }
        let (epoch, event) = (record.epoch("epoch")?, &record.event);
        let said = (epoch, event.clone());
        let (first, how) = self.recorded.insert(task.to_owned(), said)?;
        let revived = how == "task.dead" && self.retried.contains(task);
        (!revived).then(|| {
            (
                5,
                format!(
                    "durable task {task} ended twice: {how} under {first}, {event} under {epoch}"
                ),
            )
        })
    }

    /// The attempt that is with a worker for longest under this epoch, and since when.
    pub fn oldest_lease(&self, epoch: Epoch) -> Option<(&str, Duration)> {
        let of_reign = self.told.iter().filter(|((_, e), _)| *e == epoch);
        let leased = of_reign.filter_map(|((task, _), told)| Some((task.as_str(), told.leased?)));
        leased.min_by_key(|(_, since)| *since)
    }

    /// The most that a process ran side by side since [`Tasks::forget_peaks`].
    pub fn peak(&self, node: &str, life: u32) -> usize {
        let peak = self.peaks.get(&(node.to_owned(), life));
        peak.copied().unwrap_or(0)
    }

    /// Measures peaks anew, from what runs now.
    pub fn forget_peaks(&mut self) {
        let running = self.running.iter();
        self.peaks = running.map(|(p, r)| (p.clone(), r.len())).collect();
    }

    /// WorkerActor began anew: what its predecessor ran went with it.
    pub fn worker_restarted(&mut self, record: &Record) {
        self.running.remove(&(record.node.clone(), record.life));
    }

    fn start(&mut self, place: Place, task: String, attempt: Attempt) -> Option<(u8, String)> {
        let this = (task, attempt);
        let running = self.running.entry(place.clone()).or_default();
        running.insert(this.clone());
        let peak = self.peaks.entry(place.clone()).or_default();
        *peak = running.len().max(*peak);
        let (count, limit) = (running.len(), self.capacity);
        if limit != 0 && count > limit {
            return Some((
                8,
                format!("{count} attempts run side by side, {limit} were granted"),
            ));
        }
        let fresh = self.started.entry(place).or_default().insert(this.clone());
        (!fresh).then(|| {
            (
                7,
                format!(
                    "task {} attempt {}/{} was started twice by one process",
                    this.0, attempt.0, attempt.1
                ),
            )
        })
    }

    fn assign(&mut self, task: String, epoch: Epoch, attempt: Attempt) -> Option<(u8, String)> {
        let told = self.told.entry((task.clone(), epoch)).or_default();
        if let Some(recorded) = told.recorded {
            return Some((
                5,
                format!(
                    "task {task} was handed out again under {epoch} after attempt {}/{} had recorded",
                    recorded.0, recorded.1
                ),
            ));
        }
        if told.newest.is_some_and(|newest| attempt <= newest) {
            return Some((
                6,
                format!(
                    "task {task}: attempt {}/{} does not rise",
                    attempt.0, attempt.1
                ),
            ));
        }
        told.newest = Some(attempt);
        None
    }

    fn record(
        &mut self,
        task: String,
        epoch: Epoch,
        attempt: Attempt,
        how: &str,
    ) -> Option<(u8, String)> {
        let told = self.told.entry((task.clone(), epoch)).or_default();
        if let Some(first) = told.recorded {
            return Some((
                5,
                format!(
                    "task {task} recorded a second result ({how}) under {epoch}: first {}/{}, now {}/{}",
                    first.0, first.1, attempt.0, attempt.1
                ),
            ));
        }
        told.recorded = Some(attempt);
        told.leased = None;
        let superseded = told.newest.is_some_and(|newest| attempt < newest);
        superseded.then(|| {
            (
                6,
                format!(
                    "task {task}: superseded attempt {}/{} recorded",
                    attempt.0, attempt.1
                ),
            )
        })
    }
}
