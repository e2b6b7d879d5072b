//! The record of every task and its state. A pure state machine: time comes in as an argument.
//!
//! ```text
//! queued ──lease──▶ leased ──result──▶ done | failed
//!    ▲                 │ lost, timed out, retryable: queued again with back-off, up to max_attempts
//!    └─────────────────┴──────────────▶ dead
//! ```
//!
//! Attempts only rise; only the newest attempt of a task may record; the first valid result wins; what comes late is refused
//! with a reason and kept in the task's receipt. An attempt that could not be sent is taken back without blame.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::id::{Attempt, AttemptId, Epoch, Incarnation, NodeId, TaskId};
use crate::wire::{Assignment, LedgerEntry, Outcome, TaskResult, TaskSpec};

/// Refused results kept in a receipt; beyond, only counted.
const MAX_REFUSED: usize = 16;
/// The master's own deadline of an attempt is this much later than the worker's, which tells more.
const GRACE: Duration = Duration::from_secs(5);

/// No wait is longer, whatever a task or a setting says: the clock must not overflow.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Tries kept in a receipt; beyond, the oldest that never reached its worker is forgotten first.
const MAX_TRIES: usize = 100;

/// Bounds and manners of a ledger.
#[derive(Clone, Debug)]
pub struct LedgerSettings {
    /// Queued tasks at the most.
    pub max_queued: usize,
    /// Bytes of queued inputs at the most.
    pub max_queued_bytes: usize,
    /// Finished tasks kept, by count…
    pub keep_finished: usize,
    /// …and by age.
    pub keep_finished_for: Duration,
    /// Wait before the second attempt; doubled for each further one.
    pub retry_wait: Duration,
}

/// A worker in one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId {
    /// Who.
    pub id: NodeId,
    /// Which life.
    pub incarnation: Incarnation,
}

/// How a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for a worker.
    Queued,
    /// The newest attempt is with a worker.
    Leased,
    /// Recorded: the output.
    Done(Bytes),
    /// Recorded: the job said "do not retry".
    Failed(String),
    /// Attempts used up; kept for a person to look at.
    Dead(String),
    /// Cancelled.
    Cancelled,
}

impl State {
    /// Its name in the API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
            Self::Dead(_) => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    fn is_open(&self) -> bool {
        matches!(self, Self::Queued | Self::Leased)
    }
}

/// One try, for the receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// Its token.
    pub attempt: Attempt,
    /// With whom.
    pub worker: WorkerId,
    /// Unix ms on the worker's clock; 0 while unknown.
    pub started_ms: u64,
    /// Unix ms on the worker's clock; 0 while unknown.
    pub finished_ms: u64,
    /// `running`, `done`, `failed`, `retry`, `timed-out`, `lost`, `returned`, `cancelled`.
    pub outcome: &'static str,
}

/// A result that was not recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which attempt.
    pub attempt: Attempt,
    /// Who sent it.
    pub worker: NodeId,
    /// Why.
    pub why: &'static str,
}

/// A task with its history.
#[derive(Clone, Debug)]
pub struct Task {
    /// As submitted.
    pub spec: TaskSpec,
    /// How it stands.
    pub state: State,
    /// Oldest first.
    pub tries: Vec<Try>,
    /// Bounded.
    pub refused: Vec<Refusal>,
    /// Unix ms; 0 while open.
    pub finished_ms: u64,
    seq: u64,
    deadline: Option<Instant>,
    finished_at: Option<Instant>,
}

/// Why a task was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Too many are queued.
    Count(usize),
    /// Their inputs are too large together.
    Bytes(usize),
}

/// What became of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Recorded: the task is done or failed for good.
    Recorded,
    /// The attempt ended without an answer; the task is queued again.
    Requeued(&'static str),
    /// The attempt ended without an answer; it was the last.
    Dead,
    /// It was recorded before, from this very attempt: the acknowledgement was lost.
    Repeated,
    /// Not recorded, for this reason.
    Refused(&'static str),
}

/// See the module page.
#[derive(Debug)]
pub struct Ledger {
    settings: LedgerSettings,
    tasks: BTreeMap<TaskId, Task>,
    /// Ready now, by priority, then in order of acceptance.
    ready: BTreeMap<(Reverse<i32>, u64), TaskId>,
    /// Ready later.
    later: BTreeMap<(Instant, u64), TaskId>,
    deadlines: BTreeSet<(Instant, TaskId)>,
    leased: BTreeMap<WorkerId, BTreeSet<TaskId>>,
    finished: VecDeque<TaskId>,
    queued_bytes: usize,
    seq: u64,
}

impl Ledger {
    /// Empty.
    pub fn new(settings: LedgerSettings) -> Self {
        Self {
            settings,
            tasks: BTreeMap::new(),
            ready: BTreeMap::new(),
            later: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            leased: BTreeMap::new(),
            finished: VecDeque::new(),
            queued_bytes: 0,
            seq: 0,
        }
    }

    // --- accepting -----------------------------------------------------------------------------------------------

    /// Accepts a task. The same id again is the same task and changes nothing. `wait` is how long it must not be handed out.
    pub fn accept(&mut self, spec: TaskSpec, wait: Duration, now: Instant) -> Result<(), Full> {
        if self.tasks.contains_key(&spec.id) {
            return Ok(());
        }
        let queued = self.queued();
        if queued >= self.settings.max_queued {
            return Err(Full::Count(queued));
        }
        if self.queued_bytes + spec.input.len() > self.settings.max_queued_bytes {
            return Err(Full::Bytes(self.queued_bytes));
        }
        let id = self.insert(spec);
        self.enqueue(id, wait, now);
        Ok(())
    }

    fn insert(&mut self, spec: TaskSpec) -> TaskId {
        let id = spec.id;
        self.seq += 1;
        let task = Task {
            spec,
            state: State::Queued,
            tries: Vec::new(),
            refused: Vec::new(),
            finished_ms: 0,
            seq: self.seq,
            deadline: None,
            finished_at: None,
        };
        self.tasks.insert(id, task);
        id
    }

    fn enqueue(&mut self, id: TaskId, wait: Duration, now: Instant) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.state = State::Queued;
        self.queued_bytes += task.spec.input.len();
        if wait.is_zero() {
            self.ready
                .insert((Reverse(task.spec.priority), task.seq), id);
        } else {
            self.later.insert((now + wait.min(FAR), task.seq), id);
        }
    }

    // --- handing out ---------------------------------------------------------------------------------------------

    /// Makes ready what has waited long enough, and answers what is ready, best first, at most `limit`.
    pub fn ready(&mut self, now: Instant, limit: usize) -> Vec<TaskId> {
        while let Some(entry) = self.later.first_entry().filter(|e| e.key().0 <= now) {
            let ((_, seq), id) = entry.remove_entry();
            if let Some(task) = self.tasks.get(&id) {
                self.ready.insert((Reverse(task.spec.priority), seq), id);
            }
        }
        self.ready.values().take(limit).copied().collect()
    }

    /// Leases a queued task to a worker under a new attempt.
    pub fn lease(
        &mut self,
        id: TaskId,
        worker: WorkerId,
        epoch: Epoch,
        now: Instant,
    ) -> Option<Assignment> {
        if self.tasks.get(&id)?.state != State::Queued {
            return None;
        }
        self.unqueue(id);
        let task = self.tasks.get_mut(&id)?;
        let n = task
            .tries
            .last()
            .map_or(0, |t| t.attempt.n)
            .saturating_add(1);
        if task.tries.len() >= MAX_TRIES {
            let returned = task.tries.iter().position(|t| t.outcome == "returned");
            task.tries.remove(returned.unwrap_or(0));
        }
        let attempt = Attempt { epoch, n };
        task.tries.push(Try {
            attempt,
            worker,
            started_ms: 0,
            finished_ms: 0,
            outcome: "running",
        });
        task.state = State::Leased;
        let assignment = Assignment {
            attempt: AttemptId { task: id, attempt },
            spec: task.spec.clone(),
        };
        self.watch_lease(id, worker, now);
        Some(assignment)
    }

    fn watch_lease(&mut self, id: TaskId, worker: WorkerId, now: Instant) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let timeout = Duration::from_millis(task.spec.timeout_ms).min(FAR);
        let deadline = now + timeout + GRACE;
        task.deadline = Some(deadline);
        self.deadlines.insert((deadline, id));
        self.leased.entry(worker).or_default().insert(id);
    }

    fn end_lease(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Some(deadline) = task.deadline.take() {
            self.deadlines.remove(&(deadline, id));
        }
        let worker = task.tries.last().map(|t| t.worker);
        if let Some(tasks) = worker.and_then(|w| self.leased.get_mut(&w)) {
            tasks.remove(&id);
        }
    }

    /// It has started to execute.
    pub fn started(&mut self, attempt: AttemptId, at_ms: u64) {
        if let Some(last) = self.newest(attempt) {
            last.started_ms = at_ms;
        }
    }

    fn newest(&mut self, attempt: AttemptId) -> Option<&mut Try> {
        let task = self.tasks.get_mut(&attempt.task)?;
        let leased = task.state == State::Leased;
        task.tries
            .last_mut()
            .filter(|t| leased && t.attempt == attempt.attempt)
    }

    /// An attempt that never reached its worker, or was handed back: queued again at once, without blame. Its number is not
    /// used again.
    pub fn take_back(&mut self, attempt: AttemptId, now: Instant) -> bool {
        let Some(last) = self.newest(attempt) else {
            return false;
        };
        last.outcome = "returned";
        self.end_lease(attempt.task);
        self.enqueue(attempt.task, Duration::ZERO, now);
        true
    }

    // --- recording -----------------------------------------------------------------------------------------------

    /// A worker's result.
    pub fn result(&mut self, from: NodeId, result: &TaskResult, now: Instant) -> Verdict {
        let id = result.attempt.task;
        let Some(task) = self.tasks.get_mut(&id) else {
            return Verdict::Refused("no such task is known to this master");
        };
        let newest = task.tries.last().map(|t| (t.attempt, t.worker.id));
        let recorded =
            !task.state.is_open() && task.tries.last().is_some_and(|t| t.finished_ms > 0);
        if recorded && newest == Some((result.attempt.attempt, from)) {
            return Verdict::Repeated;
        }
        let why = match (&task.state, newest) {
            (State::Leased, Some((attempt, worker)))
                if attempt == result.attempt.attempt && worker == from =>
            {
                None
            }
            (State::Leased | State::Queued, _) => Some("a newer attempt superseded it"),
            _ => Some("the task is already finished"),
        };
        if let Some(why) = why {
            if task.refused.len() < MAX_REFUSED {
                task.refused.push(Refusal {
                    attempt: result.attempt.attempt,
                    worker: from,
                    why,
                });
            }
            return Verdict::Refused(why);
        }
        if let Some(last) = task.tries.last_mut() {
            last.started_ms = result.started_ms;
            last.finished_ms = result.finished_ms;
            last.outcome = match &result.outcome {
                Outcome::Done(_) => "done",
                Outcome::Failed(_) => "failed",
                Outcome::Retry(_) => "retry",
                Outcome::TimedOut => "timed-out",
                Outcome::Cancelled => "cancelled",
            };
        }
        self.end_lease(id);
        match &result.outcome {
            Outcome::Done(output) => {
                self.finish(id, State::Done(output.clone()), result.finished_ms, now)
            }
            Outcome::Failed(why) => {
                self.finish(id, State::Failed(why.clone()), result.finished_ms, now)
            }
            Outcome::Cancelled => self.finish(id, State::Cancelled, result.finished_ms, now),
            Outcome::Retry(why) => {
                return self.again(id, why.clone(), "it asked for another try", now);
            }
            Outcome::TimedOut => {
                return self.again(
                    id,
                    "it overran its time".to_owned(),
                    "it overran its time",
                    now,
                );
            }
        }
        Verdict::Recorded
    }

    fn finish(&mut self, id: TaskId, state: State, at_ms: u64, now: Instant) {
        if let Some(task) = self.tasks.get_mut(&id) {
            debug_assert!(task.state.is_open(), "a result is immutable");
            task.state = state;
            task.finished_ms = at_ms;
            task.finished_at = Some(now);
            self.finished.push_back(id);
        }
        self.forget(now);
    }

    /// Queued again with back-off, or dead.
    fn again(&mut self, id: TaskId, error: String, why: &'static str, now: Instant) -> Verdict {
        let Some(task) = self.tasks.get(&id) else {
            return Verdict::Refused("no such task is known to this master");
        };
        let counting = task
            .tries
            .iter()
            .filter(|t| t.outcome != "returned")
            .count();
        if counting >= task.spec.max_attempts as usize {
            let at = task.tries.last().map_or(0, |t| t.finished_ms);
            self.finish(id, State::Dead(error), at, now);
            return Verdict::Dead;
        }
        let doublings = u32::try_from(counting.saturating_sub(1))
            .unwrap_or(16)
            .min(16);
        let wait = self
            .settings
            .retry_wait
            .saturating_mul(1 << doublings)
            .min(FAR);
        let wait = wait * jitter_per_mille(id, counting) / 1000;
        self.enqueue(id, wait, now);
        Verdict::Requeued(why)
    }

    /// Drops what was finished too long ago, or is too much.
    fn forget(&mut self, now: Instant) {
        while let Some(id) = self.finished.front() {
            let old = self
                .tasks
                .get(id)
                .and_then(|t| t.finished_at)
                .is_none_or(|at| {
                    now.saturating_duration_since(at) > self.settings.keep_finished_for
                });
            if self.finished.len() <= self.settings.keep_finished && !old {
                return;
            }
            self.tasks.remove(id);
            self.finished.pop_front();
        }
    }

    // --- losing and finding --------------------------------------------------------------------------------------

    /// A worker is gone: each of its attempts is lost, and the task queued again at once or dead.
    pub fn lose_worker(&mut self, worker: WorkerId, now: Instant) -> Vec<(AttemptId, Verdict)> {
        let lost = self.leased.remove(&worker).unwrap_or_default();
        lost.into_iter()
            .filter_map(|id| self.lose(id, "lost", "its worker is gone", now))
            .collect()
    }

    fn lose(
        &mut self,
        id: TaskId,
        outcome: &'static str,
        why: &'static str,
        now: Instant,
    ) -> Option<(AttemptId, Verdict)> {
        let task = self.tasks.get_mut(&id)?;
        let last = task.tries.last_mut()?;
        let attempt = AttemptId {
            task: id,
            attempt: last.attempt,
        };
        last.outcome = outcome;
        self.end_lease(id);
        let counting = self
            .tasks
            .get(&id)?
            .tries
            .iter()
            .filter(|t| t.outcome != "returned")
            .count();
        let spent = counting >= self.tasks.get(&id)?.spec.max_attempts as usize;
        if spent {
            self.finish(id, State::Dead(why.to_owned()), 0, now);
            return Some((attempt, Verdict::Dead));
        }
        // The loss of a worker is not the task's fault: no back-off.
        self.enqueue(id, Duration::ZERO, now);
        Some((attempt, Verdict::Requeued(why)))
    }

    /// Attempts whose time is long over without a word from the worker.
    pub fn overdue(&mut self, now: Instant) -> Vec<(AttemptId, Verdict)> {
        let mut due = Vec::new();
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, id));
            due.extend(self.lose(id, "timed-out", "no word came within its time", now));
        }
        due
    }

    /// What a worker runs becomes ours, token and all, if it is newer than what we know of the task.
    pub fn adopt(
        &mut self,
        worker: WorkerId,
        assignment: &Assignment,
        started_ms: u64,
        now: Instant,
    ) -> Result<(), &'static str> {
        let id = assignment.attempt.task;
        if !self.tasks.contains_key(&id) {
            self.insert(assignment.spec.clone());
            self.enqueue(id, Duration::ZERO, now);
        }
        let Some(task) = self.tasks.get_mut(&id) else {
            return Err("no such task is known to this master");
        };
        if !task.state.is_open() {
            return Err("the task is already finished");
        }
        let token = assignment.attempt.attempt;
        match task.tries.last_mut() {
            Some(last) if last.attempt > token => return Err("a newer attempt superseded it"),
            Some(last) if last.attempt == token && last.worker != worker => {
                return Err("another worker runs this attempt");
            }
            Some(last) if last.attempt == token => {
                last.started_ms = last.started_ms.max(started_ms);
                last.outcome = "running";
            }
            _ => task.tries.push(Try {
                attempt: token,
                worker,
                started_ms,
                finished_ms: 0,
                outcome: "running",
            }),
        }
        if task.state == State::Queued {
            self.unqueue(id);
        } else {
            self.end_lease(id);
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.state = State::Leased;
        }
        self.watch_lease(id, worker, now);
        Ok(())
    }

    fn unqueue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        self.queued_bytes -= task.spec.input.len();
        let seq = task.seq;
        if self
            .ready
            .remove(&(Reverse(task.spec.priority), seq))
            .is_none()
        {
            self.later.retain(|(_, s), _| *s != seq);
        }
    }

    /// Tasks leased to this worker.
    pub fn leased_to(&self, worker: WorkerId) -> Vec<AttemptId> {
        let ids = self.leased.get(&worker).into_iter().flatten();
        ids.filter_map(|id| {
            let attempt = self.tasks.get(id)?.tries.last()?.attempt;
            Some(AttemptId { task: *id, attempt })
        })
        .collect()
    }

    /// An attempt that its worker does not know (any more): lost.
    pub fn unknown_to_worker(
        &mut self,
        attempt: AttemptId,
        now: Instant,
    ) -> Option<(AttemptId, Verdict)> {
        self.newest(attempt)?;
        self.lose(attempt.task, "lost", "its worker does not know it", now)
    }

    /// The open tasks, to be handed over or shadowed, at most `limit`, and how many there are beyond.
    pub fn entries(&self, limit: usize) -> (Vec<LedgerEntry>, usize) {
        let open = self.tasks.values().filter(|t| t.state.is_open());
        let entries: Vec<LedgerEntry> = open
            .clone()
            .take(limit)
            .map(|t| LedgerEntry {
                spec: t.spec.clone(),
                attempts: t
                    .tries
                    .iter()
                    .map(|a| {
                        let id = AttemptId {
                            task: t.spec.id,
                            attempt: a.attempt,
                        };
                        (id, a.worker.id, a.worker.incarnation)
                    })
                    .collect(),
                leased: t.state == State::Leased,
            })
            .collect();
        let beyond = open.count() - entries.len();
        (entries, beyond)
    }

    /// A task of a ledger that was handed over, or of a dead master's shadow, which nobody reported: queued, keeping its
    /// attempts, so that numbers only rise.
    pub fn inherit(&mut self, entry: LedgerEntry, now: Instant) -> bool {
        if self.tasks.contains_key(&entry.spec.id) {
            return false;
        }
        let id = self.insert(entry.spec);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.tries = entry
                .attempts
                .into_iter()
                .map(|(attempt, worker, incarnation)| Try {
                    attempt: attempt.attempt,
                    worker: WorkerId {
                        id: worker,
                        incarnation,
                    },
                    started_ms: 0,
                    finished_ms: 0,
                    outcome: "returned",
                })
                .collect();
        }
        self.enqueue(id, Duration::ZERO, now);
        true
    }

    // --- reading -------------------------------------------------------------------------------------------------

    /// One task.
    pub fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// Newest first, below `after`.
    pub fn newest_first(&self, after: Option<TaskId>) -> impl Iterator<Item = &Task> {
        let below = self.tasks.values().rev();
        below.filter(move |t| after.is_none_or(|after| t.spec.id < after))
    }

    /// Waiting for a worker.
    pub fn queued(&self) -> usize {
        self.ready.len() + self.later.len()
    }

    /// With a worker.
    pub fn outstanding(&self) -> BTreeMap<WorkerId, usize> {
        self.leased
            .iter()
            .map(|(w, tasks)| (*w, tasks.len()))
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    /// Tasks by state.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for task in self.tasks.values() {
            *counts.entry(task.state.as_str().to_owned()).or_default() += 1;
        }
        counts
    }

    /// When something is due by itself: a deadline, or a task that waits for its time.
    pub fn next_due(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let later = self.later.first_key_value().map(|((at, _), _)| *at);
        deadline.into_iter().chain(later).min()
    }
}

/// 800 to 1200, by the chance that is in the id: what failed together does not come back together.
fn jitter_per_mille(id: TaskId, try_number: usize) -> u32 {
    let mixed = (id.0.as_u128() as u64)
        .wrapping_add(try_number as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    800 + ((mixed >> 32) % 401) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const EPOCH: Epoch = Epoch {
        generation: crate::id::Generation(1),
        revision: 5,
    };

    fn ledger() -> Ledger {
        Ledger::new(LedgerSettings {
            max_queued: 100,
            max_queued_bytes: 10_000,
            keep_finished: 50,
            keep_finished_for: Duration::from_secs(60),
            retry_wait: Duration::from_secs(1),
        })
    }

    fn id(n: u128) -> TaskId {
        TaskId(uuid::Uuid::from_u128(n))
    }

    fn spec(n: u128) -> TaskSpec {
        TaskSpec {
            id: id(n),
            job: "multiply".to_owned(),
            input: Bytes::from_static(b"{}"),
            meta: BTreeMap::new(),
            durable: false,
            timeout_ms: 1000,
            max_attempts: 3,
            priority: 0,
            require: BTreeMap::new(),
            created_ms: 0,
            not_before_ms: 0,
        }
    }

    fn worker(n: u128) -> WorkerId {
        WorkerId {
            id: NodeId(n),
            incarnation: Incarnation(n as i64),
        }
    }

    fn result(attempt: AttemptId, outcome: Outcome) -> TaskResult {
        TaskResult {
            attempt,
            outcome,
            started_ms: 1,
            finished_ms: 2,
            spec: None,
        }
    }

    fn done(attempt: AttemptId) -> TaskResult {
        result(attempt, Outcome::Done(Bytes::from_static(b"1")))
    }

    #[test]
    fn a_task_is_handed_out_and_recorded_once() {
        let now = Instant::now();
        let mut ledger = ledger();
        ledger.accept(spec(1), Duration::ZERO, now).unwrap();
        let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        assert_eq!(ledger.lease(id(1), worker(2), EPOCH, now), None);
        assert_eq!(
            ledger.result(NodeId(1), &done(a.attempt), now),
            Verdict::Recorded
        );
        let again = ledger.result(NodeId(1), &done(a.attempt), now);
        assert_eq!(again, Verdict::Repeated);
        let other = ledger.result(NodeId(2), &done(a.attempt), now);
        assert_eq!(other, Verdict::Refused("the task is already finished"));
        assert_eq!(ledger.get(id(1)).unwrap().refused.len(), 1);
    }

    #[test]
    fn a_lost_worker_queues_its_tasks_again_and_its_late_result_is_refused() {
        let now = Instant::now();
        let mut ledger = ledger();
        ledger.accept(spec(1), Duration::ZERO, now).unwrap();
        let first = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        let lost = ledger.lose_worker(worker(1), now);
        assert_eq!(
            lost,
            vec![(first.attempt, Verdict::Requeued("its worker is gone"))]
        );
        let second = ledger.lease(id(1), worker(2), EPOCH, now).unwrap();
        assert!(second.attempt.attempt > first.attempt.attempt);
        let late = ledger.result(NodeId(1), &done(first.attempt), now);
        assert_eq!(late, Verdict::Refused("a newer attempt superseded it"));
        assert_eq!(
            ledger.result(NodeId(2), &done(second.attempt), now),
            Verdict::Recorded
        );
    }

    #[test]
    fn a_retry_waits_twice_as_long_each_time_and_the_last_one_is_dead() {
        let mut now = Instant::now();
        let mut ledger = ledger();
        ledger.accept(spec(1), Duration::ZERO, now).unwrap();
        for (n, wait) in [1, 2].into_iter().enumerate() {
            assert_eq!(ledger.ready(now, 9), vec![id(1)], "attempt {n}");
            let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
            let retry = result(a.attempt, Outcome::Retry("no".to_owned()));
            assert!(matches!(
                ledger.result(NodeId(1), &retry, now),
                Verdict::Requeued(_)
            ));
            let wait = Duration::from_secs(wait);
            assert!(
                ledger
                    .ready(now + wait * 8 / 10 - Duration::from_millis(1), 9)
                    .is_empty()
            );
            now += wait * 12 / 10;
        }
        ledger.ready(now, 9);
        let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        let retry = result(a.attempt, Outcome::Retry("no".to_owned()));
        assert_eq!(ledger.result(NodeId(1), &retry, now), Verdict::Dead);
        assert_eq!(
            ledger.get(id(1)).unwrap().state,
            State::Dead("no".to_owned())
        );
    }

    #[test]
    fn what_could_not_be_sent_is_no_attempt_but_its_number_is_used() {
        let now = Instant::now();
        let mut ledger = ledger();
        ledger.accept(spec(1), Duration::ZERO, now).unwrap();
        for n in 1..10 {
            let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
            assert_eq!(a.attempt.attempt.n, n);
            assert!(ledger.take_back(a.attempt, now));
        }
        assert_eq!(ledger.queued(), 1);
    }

    #[test]
    fn an_adopted_attempt_keeps_its_token_and_finishes_once() {
        let now = Instant::now();
        let mut old = ledger();
        old.accept(spec(1), Duration::ZERO, now).unwrap();
        let running = old.lease(id(1), worker(1), EPOCH, now).unwrap();
        let mut new = ledger();
        new.adopt(worker(1), &running, 7, now).unwrap();
        assert_eq!(new.queued(), 0);
        assert_eq!(
            new.result(NodeId(1), &done(running.attempt), now),
            Verdict::Recorded
        );
        let again = new.adopt(worker(1), &running, 7, now);
        assert_eq!(again, Err("the task is already finished"));
    }

    #[test]
    fn an_older_attempt_is_not_adopted_over_a_newer_one() {
        let now = Instant::now();
        let mut old = ledger();
        old.accept(spec(1), Duration::ZERO, now).unwrap();
        let first = old.lease(id(1), worker(1), EPOCH, now).unwrap();
        old.take_back(first.attempt, now);
        let second = old.lease(id(1), worker(2), EPOCH, now).unwrap();
        let mut new = ledger();
        new.adopt(worker(2), &second, 0, now).unwrap();
        assert_eq!(
            new.adopt(worker(1), &first, 0, now),
            Err("a newer attempt superseded it")
        );
        let mut other_order = ledger();
        other_order.adopt(worker(1), &first, 0, now).unwrap();
        other_order.adopt(worker(2), &second, 0, now).unwrap();
        let late = other_order.result(NodeId(1), &done(first.attempt), now);
        assert!(matches!(late, Verdict::Refused(_)));
    }

    #[test]
    fn an_attempt_without_a_word_is_given_up_after_its_time_and_a_grace() {
        let now = Instant::now();
        let mut ledger = ledger();
        ledger.accept(spec(1), Duration::ZERO, now).unwrap();
        ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        let due = now + Duration::from_secs(1) + GRACE;
        assert!(ledger.overdue(due - Duration::from_millis(1)).is_empty());
        assert_eq!(ledger.overdue(due).len(), 1);
    }

    #[test]
    fn higher_priority_goes_first_and_equals_in_order() {
        let now = Instant::now();
        let mut ledger = ledger();
        for (n, priority) in [(1, 0), (2, 5), (3, 0), (4, 5)] {
            let spec = TaskSpec {
                priority,
                ..spec(n)
            };
            ledger.accept(spec, Duration::ZERO, now).unwrap();
        }
        assert_eq!(ledger.ready(now, 9), [2, 4, 1, 3].map(id).to_vec());
    }

    #[test]
    fn the_queue_is_bounded_by_count_and_bytes_and_finished_tasks_by_count_and_age() {
        let now = Instant::now();
        let mut ledger = ledger();
        for n in 0..100 {
            ledger.accept(spec(n), Duration::ZERO, now).unwrap();
        }
        assert_eq!(
            ledger.accept(spec(100), Duration::ZERO, now),
            Err(Full::Count(100))
        );
        for n in 0..100 {
            let a = ledger.lease(id(n), worker(1), EPOCH, now).unwrap();
            ledger.result(NodeId(1), &done(a.attempt), now);
        }
        assert_eq!(ledger.counts()["done"], 50);
        let big = TaskSpec {
            input: Bytes::from(vec![0; 10_001]),
            ..spec(200)
        };
        assert_eq!(ledger.accept(big, Duration::ZERO, now), Err(Full::Bytes(0)));
        let late = now + Duration::from_secs(61);
        ledger.accept(spec(201), Duration::ZERO, late).unwrap();
        let a = ledger.lease(id(201), worker(1), EPOCH, late).unwrap();
        ledger.result(NodeId(1), &done(a.attempt), late);
        assert_eq!(ledger.counts()["done"], 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Accept(u128),
        Lease(u128, u128),
        Result(usize, bool),
        TakeBack(usize),
        Lose(u128),
        Later(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..8u128).prop_map(Step::Accept),
            (0..8u128, 1..4u128).prop_map(|(t, w)| Step::Lease(t, w)),
            (any::<usize>(), any::<bool>()).prop_map(|(a, ok)| Step::Result(a, ok)),
            any::<usize>().prop_map(Step::TakeBack),
            (1..4u128).prop_map(Step::Lose),
            (0..290u64).prop_map(Step::Later),
        ]
    }

    proptest! {
        /// Whatever happens: one result a task, immutable; attempts only rise; every task in exactly one place.
        #[test]
        fn random_histories_keep_the_invariants(steps in prop::collection::vec(step(), 0..200)) {
            let mut now = Instant::now();
            let mut ledger = ledger();
            let mut given: Vec<(AttemptId, WorkerId)> = Vec::new();
            let mut recorded: BTreeMap<TaskId, AttemptId> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Accept(n) => ledger.accept(spec(n), Duration::ZERO, now).unwrap(),
                    Step::Lease(t, w) => {
                        ledger.ready(now, 99);
                        if let Some(a) = ledger.lease(id(t), worker(w), EPOCH, now) {
                            let before = given.iter().filter(|(g, _)| g.task == id(t)).map(|(g, _)| g.attempt).max();
                            prop_assert!(before.is_none_or(|b| a.attempt.attempt > b));
                            given.push((a.attempt, worker(w)));
                        }
                    }
                    Step::Result(at, ok) if !given.is_empty() => {
                        let (attempt, w) = given[at % given.len()];
                        let outcome = if ok { Outcome::Done(Bytes::from(attempt.attempt.n.to_string())) } else { Outcome::Retry(String::new()) };
                        let newest = given.iter().filter(|(g, _)| g.task == attempt.task).map(|(g, _)| g.attempt).max();
                        let verdict = ledger.result(w.id, &result(attempt, outcome), now);
                        if !matches!(verdict, Verdict::Refused(_) | Verdict::Repeated) {
                            prop_assert_eq!(newest, Some(attempt.attempt), "only the newest records");
                        }
                        if verdict == Verdict::Recorded {
                            prop_assert!(recorded.insert(attempt.task, attempt).is_none(), "recorded once");
                        }
                    }
                    Step::TakeBack(at) if !given.is_empty() => {
                        let (attempt, _) = given[at % given.len()];
                        ledger.take_back(attempt, now);
                    }
                    Step::Lose(w) => drop(ledger.lose_worker(worker(w), now)),
                    Step::Later(ms) => {
                        now += Duration::from_millis(ms);
                        ledger.overdue(now);
                    }
                    _ => {}
                }
                let counts = ledger.counts();
                let open: u64 = ["queued", "leased"].iter().filter_map(|s| counts.get(*s)).sum();
                let leased: usize = ledger.outstanding().values().sum();
                prop_assert_eq!(open as usize, ledger.queued() + leased);
                for (task, attempt) in &recorded {
                    let expected = State::Done(Bytes::from(attempt.attempt.n.to_string()));
                    prop_assert_eq!(&ledger.get(*task).unwrap().state, &expected);
                }
            }
        }
    }
}
