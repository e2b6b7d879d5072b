//! What a worker has taken, runs and still holds. Pure: it knows no clock and no job.
//!
//! Credit: the worker grants what it can run beyond what it has; each report begins the count anew. While its jobs are short
//! it also grants a *window* of attempts that wait here, so that it is not idle for a round trip: as many as it does in some
//! milliseconds, by measured service time. Once a job takes long, what waits beyond the window is handed back for another. What comes beyond the credit is handed back, never dropped. What spends the credit of an earlier report is dropped:
//! the master has crossed it on the way, and learns from the newer report that it does not run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::id::{Attempt, AttemptId, Epoch, JobName, TaskId};
use crate::wire::{Assign, Assignment, Report, TaskResult, batches};

/// Task ids in one part of a report at the most.
const MAX_RECENT: usize = 8192;
/// Work that may wait here, by measured service time, µs of each slot; and its bound in attempts.
const WINDOW_US: f64 = 10_000.0;
const MAX_WINDOW: u32 = 4096;
/// With jobs longer than this nothing waits here: another worker may be free.
const SHORT_US: f64 = 20_000.0;
/// The weight of the newest measurement in the mean.
const NEWEST: f64 = 1.0 / 16.0;
/// Newest attempts remembered, so that none is started twice.
const MAX_SEEN: usize = 65_536;

/// What to do with an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intake {
    /// It waits for its turn, which may be now.
    Taken(AttemptId),
    /// Give it back: no credit, or leaving.
    HandBack(AttemptId),
    /// It runs, ran, or an equal or newer attempt of it did.
    Known(AttemptId),
}

/// See the module page.
#[derive(Debug)]
pub struct Desk {
    capacity: u32,
    keep_recent: usize,
    serving: Option<Epoch>,
    /// Number of the last report.
    serial: u64,
    granted: u32,
    draining: bool,
    /// All that it has, and when each started (unix ms; 0: it waits).
    running: BTreeMap<AttemptId, (Assignment, u64)>,
    /// Those that wait, in order; some may be gone.
    waiting: VecDeque<AttemptId>,
    executing: u32,
    /// Of them, those of jobs that run only so many side by side.
    limited: BTreeMap<JobName, usize>,
    window: u32,
    /// Mean service time, µs.
    mean_us: Option<f64>,
    held: BTreeMap<AttemptId, (TaskResult, Assignment)>,
    recent: VecDeque<TaskId>,
    seen: BTreeMap<TaskId, Attempt>,
    seen_order: VecDeque<TaskId>,
}

impl Desk {
    /// With nothing on it.
    pub fn new(capacity: u32, keep_recent: usize) -> Self {
        Self {
            capacity,
            keep_recent,
            serving: None,
            serial: 0,
            granted: 0,
            draining: false,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            executing: 0,
            limited: BTreeMap::new(),
            window: 0,
            mean_us: None,
            held: BTreeMap::new(),
            recent: VecDeque::new(),
            seen: BTreeMap::new(),
            seen_order: VecDeque::new(),
        }
    }

    /// The epoch of the master it serves.
    pub fn serving(&self) -> Option<Epoch> {
        self.serving
    }

    /// Number of the last report.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Its master is gone or unreachable: nothing is granted until the next report.
    pub fn unserve(&mut self) {
        self.serving = None;
        self.granted = 0;
    }

    /// No more intake.
    pub fn drain(&mut self) {
        self.draining = true;
        self.granted = 0;
    }

    /// Begins to serve under an epoch: everything it runs and holds, in parts, and fresh credit with the last.
    pub fn report(&mut self, epoch: Epoch) -> Vec<Report> {
        self.serving = Some(epoch);
        self.serial += 1;
        self.granted = self.room();
        let part = Report {
            epoch,
            running: Vec::new(),
            results: Vec::new(),
            recent: Vec::new(),
            credit: 0,
            more: true,
            serial: self.serial,
        };
        let all: Vec<_> = self.running.values().cloned().collect();
        let mut reports: Vec<Report> = batches(all, |(a, _)| a.spec.weight())
            .into_iter()
            .map(|running| Report {
                running,
                ..part.clone()
            })
            .collect();
        // Outputs may be large: one result a part keeps each under a frame.
        reports.extend(self.held.values().map(|(result, assignment)| Report {
            results: vec![TaskResult {
                spec: Some(assignment.spec.clone()),
                ..result.clone()
            }],
            ..part.clone()
        }));
        let recent: Vec<TaskId> = self.recent.iter().copied().collect();
        reports.extend(recent.chunks(MAX_RECENT).map(|recent| Report {
            recent: recent.to_vec(),
            ..part.clone()
        }));
        reports.push(Report {
            credit: self.granted,
            more: false,
            ..part
        });
        reports
    }

    /// Takes what was assigned; `Err` when it comes under another epoch than is served, or spends the credit of an earlier
    /// report.
    pub fn assign(&mut self, assign: Assign) -> Result<Vec<Intake>, Epoch> {
        let crossed = self.serving != Some(assign.epoch) || assign.report != self.serial;
        if crossed && !crate::planted::is("old-epoch-obeyed") {
            return Err(assign.epoch);
        }
        let mut assignments = assign.assignments;
        if crate::planted::is("started-again") {
            assignments.extend(assignments.clone());
        }
        Ok(assignments.into_iter().map(|a| self.take(a)).collect())
    }

    fn take(&mut self, assignment: Assignment) -> Intake {
        let attempt = assignment.attempt;
        if self
            .seen
            .get(&attempt.task)
            .is_some_and(|seen| *seen >= attempt.attempt)
            && !crate::planted::is("started-again")
        {
            return Intake::Known(attempt);
        }
        let spent = self.granted == 0 && !crate::planted::is("beyond-credit");
        if spent || self.draining {
            return Intake::HandBack(attempt);
        }
        self.granted = self.granted.saturating_sub(1);
        let full = self.waiting() >= self.window && self.executing >= self.capacity;
        if full && !crate::planted::is("beyond-credit") {
            return Intake::HandBack(attempt);
        }
        self.see(attempt);
        self.running.insert(attempt, (assignment, 0));
        self.waiting.push_back(attempt);
        Intake::Taken(attempt)
    }

    fn waiting(&self) -> u32 {
        let all = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        all.saturating_sub(self.executing)
    }

    /// What it would take beyond what it has.
    fn room(&self) -> u32 {
        if self.draining {
            return 0;
        }
        let all = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let lost = u32::from(crate::planted::is("credit-lost-in-report"));
        (self.capacity + self.window - lost).saturating_sub(all)
    }

    /// Credit to grant beyond what is granted.
    pub fn credit(&mut self) -> u32 {
        if self.serving.is_none() || crate::planted::is("credit-lost") {
            return 0;
        }
        let more = self.room().saturating_sub(self.granted);
        self.granted += more;
        more
    }

    /// The next that is to be started, at this unix ms, if a slot is free; `limit` says how many of a job may run side by side.
    pub fn start(
        &mut self,
        at_ms: u64,
        limit: impl Fn(&JobName) -> Option<usize>,
    ) -> Option<Assignment> {
        if self.executing >= self.capacity {
            return None;
        }
        let mut passed_over = Vec::new();
        let mut next = None;
        while let Some(attempt) = self.waiting.pop_front() {
            let Some((assignment, started)) = self.running.get_mut(&attempt) else {
                continue;
            };
            if let Some(limit) = limit(&assignment.spec.job) {
                let running = self.limited.entry(assignment.spec.job.clone()).or_default();
                if *running >= limit {
                    passed_over.push(attempt);
                    continue;
                }
                *running += 1;
            }
            *started = at_ms.max(1);
            self.executing += 1;
            next = Some(assignment.clone());
            break;
        }
        for attempt in passed_over.into_iter().rev() {
            self.waiting.push_front(attempt);
        }
        next
    }

    /// An execution took this long. Answers what waits here and is better done elsewhere.
    pub fn measured(&mut self, took: Duration) -> Vec<AttemptId> {
        let us = took.as_secs_f64() * 1e6;
        let mean = self.mean_us.map_or(us, |mean| mean + (us - mean) * NEWEST);
        self.mean_us = Some(mean);
        let wanted = if mean > SHORT_US {
            0
        } else {
            // At most twice as much at a time: the first may not be like the others.
            let wanted = f64::from(self.capacity) * WINDOW_US / mean.max(1.0);
            (wanted as u32)
                .min(MAX_WINDOW)
                .min(2 * self.window + self.capacity)
        };
        self.window = wanted;
        let mut back = Vec::new();
        let soon = self.capacity.saturating_sub(self.executing);
        while self.waiting() > self.window.max(1) + soon {
            let Some(last) = self.waiting.pop_back() else {
                break;
            };
            if self.running.remove(&last).is_some() {
                back.push(last);
            }
        }
        back
    }

    /// One that waits is given up.
    pub fn drop_waiting(&mut self, attempt: AttemptId) -> bool {
        let waits = self.running.get(&attempt).is_some_and(|(_, at)| *at == 0);
        if waits {
            self.running.remove(&attempt);
        }
        waits
    }

    fn see(&mut self, attempt: AttemptId) {
        if self.seen.insert(attempt.task, attempt.attempt).is_none() {
            self.seen_order.push_back(attempt.task);
        }
        while self.seen_order.len() > MAX_SEEN {
            if let Some(oldest) = self.seen_order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
    }

    /// It has ended: the result is held until it is acknowledged. Answers whether anything like it ran.
    pub fn finished(&mut self, result: TaskResult) -> bool {
        let Some((assignment, started)) = self.running.remove(&result.attempt) else {
            return false;
        };
        if started > 0 {
            self.executing -= 1;
            if let Some(running) = self.limited.get_mut(&assignment.spec.job) {
                *running = running.saturating_sub(1);
            }
        }
        if !crate::planted::is("result-forgotten") {
            self.held.insert(result.attempt, (result, assignment));
        }
        true
    }

    /// Results that are held, oldest first, at most `limit`: they are told again until they are acknowledged.
    pub fn unacknowledged(&self, limit: usize) -> Vec<TaskResult> {
        let results = self.held.values().map(|(result, _)| result.clone());
        results.take(limit).collect()
    }

    /// The master has recorded or refused it for good.
    pub fn acknowledged(&mut self, attempt: AttemptId) -> bool {
        let held = self.held.remove(&attempt).is_some();
        if held {
            self.recent.push_back(attempt.task);
            while self.recent.len() > self.keep_recent {
                self.recent.pop_front();
            }
        }
        held
    }

    /// What still runs is given up, to be handed back.
    pub fn abandon(&mut self) -> Vec<AttemptId> {
        self.waiting.clear();
        self.executing = 0;
        self.limited.clear();
        std::mem::take(&mut self.running).into_keys().collect()
    }

    /// Attempts it has and has not finished.
    pub fn running(&self) -> Vec<AttemptId> {
        self.running.keys().copied().collect()
    }

    /// Attempts that wait for their turn, to be handed back.
    pub fn abandon_waiting(&mut self) -> Vec<AttemptId> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting
            .into_iter()
            .filter(|attempt| self.running.remove(attempt).is_some())
            .collect()
    }

    /// Whether this attempt runs.
    pub fn runs(&self, attempt: AttemptId) -> bool {
        self.running.contains_key(&attempt)
    }

    /// Finished and not acknowledged.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Tasks that it runs or holds.
    pub fn tasks(&self) -> BTreeSet<TaskId> {
        let all = self.running.keys().chain(self.held.keys());
        all.map(|a| a.task).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::Generation;
    use crate::wire::{Outcome, TaskSpec};

    fn epoch(revision: i64) -> Epoch {
        Epoch {
            generation: Generation(1),
            revision,
        }
    }

    fn assignment(task: u128, n: u32) -> Assignment {
        let task = TaskId(uuid::Uuid::from_u128(task));
        let attempt = Attempt { epoch: epoch(1), n };
        Assignment {
            attempt: AttemptId { task, attempt },
            spec: TaskSpec {
                id: task,
                job: "noop".into(),
                input: Bytes::new(),
                meta: Default::default(),
                durable: false,
                timeout_ms: 1,
                max_attempts: 1,
                priority: 0,
                require: Default::default(),
                created_ms: 0,
                not_before_ms: 0,
            },
        }
    }

    fn assign(
        desk: &mut Desk,
        under: i64,
        assignments: Vec<Assignment>,
    ) -> Result<Vec<Intake>, Epoch> {
        let report = desk.serial();
        desk.assign(Assign {
            epoch: epoch(under),
            assignments,
            report,
        })
    }

    fn done(a: &Assignment) -> TaskResult {
        TaskResult {
            attempt: a.attempt,
            outcome: Outcome::Done(Bytes::new()),
            started_ms: 0,
            finished_ms: 0,
            spec: None,
        }
    }

    #[test]
    fn an_attempt_is_started_once_whatever_is_sent() {
        let mut desk = Desk::new(4, 8);
        desk.report(epoch(1));
        let a = assignment(1, 1);
        assert_eq!(
            assign(&mut desk, 1, vec![a.clone()]),
            Ok(vec![Intake::Taken(a.attempt)])
        );
        assert_eq!(
            assign(&mut desk, 1, vec![a.clone()]),
            Ok(vec![Intake::Known(a.attempt)])
        );
        desk.finished(done(&a));
        desk.acknowledged(a.attempt);
        assert_eq!(
            assign(&mut desk, 1, vec![a.clone()]),
            Ok(vec![Intake::Known(a.attempt)])
        );
        let newer = assignment(1, 2);
        assert_eq!(
            assign(&mut desk, 1, vec![newer.clone()]),
            Ok(vec![Intake::Taken(newer.attempt)])
        );
    }

    #[test]
    fn nothing_is_taken_beyond_the_credit() {
        let mut desk = Desk::new(1, 8);
        desk.report(epoch(1));
        let (a, b) = (assignment(1, 1), assignment(2, 1));
        let taken = assign(&mut desk, 1, vec![a.clone(), b.clone()]).unwrap();
        assert_eq!(
            taken,
            vec![Intake::Taken(a.attempt), Intake::HandBack(b.attempt)]
        );
        desk.start(1, |_| None);
        assert!(desk.finished(done(&a)));
        assert_eq!(desk.credit(), 1);
        assert_eq!(
            assign(&mut desk, 1, vec![b.clone()]),
            Ok(vec![Intake::Taken(b.attempt)])
        );
    }

    #[test]
    fn nothing_is_taken_under_an_epoch_that_is_not_served() {
        let mut desk = Desk::new(1, 8);
        assert_eq!(assign(&mut desk, 1, vec![assignment(1, 1)]), Err(epoch(1)));
        desk.report(epoch(2));
        assert_eq!(assign(&mut desk, 1, vec![assignment(1, 1)]), Err(epoch(1)));
    }

    #[test]
    fn what_crossed_a_newer_report_is_not_started() {
        let mut desk = Desk::new(1, 8);
        desk.report(epoch(1));
        let crossed = Assign {
            epoch: epoch(1),
            assignments: vec![assignment(1, 1)],
            report: desk.serial(),
        };
        desk.report(epoch(1));
        assert_eq!(desk.assign(crossed), Err(epoch(1)));
        let newer = assignment(1, 2);
        assert_eq!(
            assign(&mut desk, 1, vec![newer.clone()]),
            Ok(vec![Intake::Taken(newer.attempt)])
        );
    }

    #[test]
    fn a_report_of_large_inputs_comes_in_parts_that_fit_a_frame() {
        let mut desk = Desk::new(9, 8);
        desk.report(epoch(1));
        let large = (1..=9).map(|n| {
            let mut large = assignment(n, 1);
            large.spec.input = Bytes::from(vec![b'1'; crate::wire::MAX_PAYLOAD]);
            large
        });
        assign(&mut desk, 1, large.collect()).unwrap();
        let reports = desk.report(epoch(2));
        let running: usize = reports.iter().map(|r| r.running.len()).sum();
        assert_eq!(running, 9);
        for report in reports {
            let bytes = crate::wire::Message::from(report).encode_body(Vec::new());
            assert!(bytes.unwrap().len() < 1024 * 1024);
        }
    }

    #[test]
    fn a_new_master_is_told_of_everything_that_runs_or_is_held() {
        let mut desk = Desk::new(4, 8);
        desk.report(epoch(1));
        let (a, b, c) = (assignment(1, 1), assignment(2, 1), assignment(3, 1));
        assign(&mut desk, 1, vec![a.clone(), b.clone(), c.clone()]).unwrap();
        desk.finished(done(&b));
        desk.finished(done(&c));
        desk.acknowledged(c.attempt);
        let reports = desk.report(epoch(2));
        let (last, parts) = reports.split_last().unwrap();
        assert!(parts.iter().all(|r| r.more) && !last.more);
        let recent: Vec<_> = parts.iter().flat_map(|r| &r.recent).copied().collect();
        assert_eq!((last.credit, recent), (3, vec![c.attempt.task]));
        let running: Vec<_> = parts
            .iter()
            .flat_map(|r| &r.running)
            .map(|(a, _)| a.attempt)
            .collect();
        let held: Vec<_> = parts
            .iter()
            .flat_map(|r| &r.results)
            .map(|r| r.attempt)
            .collect();
        assert_eq!((running, held), (vec![a.attempt], vec![b.attempt]));
        assert!(
            parts
                .iter()
                .flat_map(|r| &r.results)
                .all(|r| r.spec.is_some())
        );
    }

    #[test]
    fn whoever_drains_takes_nothing_and_gives_back_the_rest() {
        let mut desk = Desk::new(4, 8);
        desk.report(epoch(1));
        let (a, b) = (assignment(1, 1), assignment(2, 1));
        assign(&mut desk, 1, vec![a.clone()]).unwrap();
        desk.drain();
        assert_eq!(
            assign(&mut desk, 1, vec![b.clone()]),
            Ok(vec![Intake::HandBack(b.attempt)])
        );
        assert_eq!(desk.abandon(), vec![a.attempt]);
    }
}
