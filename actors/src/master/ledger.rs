//! The record of every task and its state. A pure state machine: time comes in as an argument.
//!
//! ```text
//! queued ──lease──▶ leased ──result──▶ done | failed
//!    ▲                 │ lost, timed out, retryable: queued again with back-off, up to max_attempts
//!    └─────────────────┴──────────────▶ dead
//! ```
//!
//! Attempts only rise; only the newest attempt of a task may record; the first valid result wins; what comes late is refused
//! with a reason and kept in the task's receipt. An attempt that could not be sent, or that its worker never began, is
//! taken back without blame.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::id::{Attempt, AttemptId, Epoch, Incarnation, NodeId, TaskId};
use crate::wire::{Assignment, LedgerEntry, Outcome, TaskResult, TaskSpec};

/// Refused results kept in a receipt; beyond, only counted.
const MAX_REFUSED: usize = 16;
/// Tries kept in a receipt, and attempts of a task at the most: those without blame are forgotten first.
pub const MAX_TRIES: usize = 100;
/// The master's own deadline of an attempt is this much later than the worker's, which tells more.
const GRACE: Duration = Duration::from_secs(5);
/// No wait is longer, whatever a task or a setting says: the clock must not overflow.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

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
    /// Wait before the second attempt; doubled for each further one, ± 20 %.
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

/// What a task asks of a worker. Tasks that ask the same wait in one line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Needs {
    /// The kind of work.
    pub job: String,
    /// Tags.
    pub require: BTreeMap<String, String>,
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
    /// Unix ms on the worker's clock; 0 until its result came.
    pub finished_ms: u64,
    /// `running`, `done`, `failed`, `retry`, `timed-out`, `lost`, `superseded`, `returned`, `cancelled`.
    pub outcome: &'static str,
    /// Whether it counts towards `max_attempts`: it may have executed.
    pub spent: bool,
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
    /// Queued, and not ready before.
    waits_until: Option<Instant>,
    deadline: Option<Instant>,
    finished_at: Option<Instant>,
}

impl Task {
    fn new(spec: TaskSpec, seq: u64) -> Self {
        Self {
            spec,
            state: State::Queued,
            tries: Vec::new(),
            refused: Vec::new(),
            finished_ms: 0,
            seq,
            waits_until: None,
            deadline: None,
            finished_at: None,
        }
    }

    /// What it asks of a worker.
    pub fn needs(&self) -> Needs {
        Needs {
            job: self.spec.job.clone(),
            require: self.spec.require.clone(),
        }
    }

    fn place(&self) -> Place {
        (Reverse(self.spec.priority), self.seq)
    }

    fn spent(&self) -> usize {
        self.tries.iter().filter(|t| t.spent).count()
    }

    fn begin(&mut self, attempt: Attempt, worker: WorkerId, started_ms: u64) {
        if self.tries.len() >= MAX_TRIES {
            let blameless = self.tries.iter().position(|t| !t.spent);
            self.tries.remove(blameless.unwrap_or(0));
        }
        self.tries.push(Try {
            attempt,
            worker,
            started_ms,
            finished_ms: 0,
            outcome: "running",
            spent: true,
        });
    }

    /// Twice as long each time, and ± 20 % by the chance that is in the id, so that what failed together does not return
    /// together.
    fn back_off(&self, first: Duration) -> Duration {
        let spent = u32::try_from(self.spent()).unwrap_or(u32::MAX);
        let doublings = spent.saturating_sub(1).min(16);
        let mixed = (self.spec.id.0.as_u128() as u64)
            .wrapping_add(u64::from(spent))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let per_mille = 800 + u32::try_from((mixed >> 32) % 401).unwrap_or(200);
        first.saturating_mul(1 << doublings).min(FAR) * per_mille / 1000
    }
}

/// Higher priority first, then in order of acceptance.
type Place = (Reverse<i32>, u64);

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
    /// It was recorded or refused before: the acknowledgement was lost.
    Repeated,
    /// Not recorded, for this reason.
    Refused(&'static str),
}

/// An attempt that ended without a result.
#[derive(Clone, Copy, Debug)]
struct Loss {
    outcome: &'static str,
    why: &'static str,
    /// It counts towards `max_attempts`.
    spent: bool,
    /// The next one waits.
    back_off: bool,
}

/// See the module page.
#[derive(Debug)]
pub struct Ledger {
    settings: LedgerSettings,
    tasks: BTreeMap<TaskId, Task>,
    open: BTreeSet<TaskId>,
    /// Ready now: a line for each kind of need, so that one nobody can meet holds up no other.
    ready: BTreeMap<Needs, BTreeMap<Place, TaskId>>,
    ready_count: usize,
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
            open: BTreeSet::new(),
            ready: BTreeMap::new(),
            ready_count: 0,
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
        self.tasks.insert(id, Task::new(spec, self.seq));
        self.open.insert(id);
        id
    }

    fn enqueue(&mut self, id: TaskId, wait: Duration, now: Instant) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.state = State::Queued;
        self.queued_bytes += task.spec.input.len();
        if wait.is_zero() {
            self.line_up(id);
        } else {
            let at = now + wait.min(FAR);
            task.waits_until = Some(at);
            self.later.insert((at, task.seq), id);
        }
    }

    fn line_up(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.waits_until = None;
        let line = self.ready.entry(task.needs()).or_default();
        line.insert(task.place(), id);
        self.ready_count += 1;
    }

    fn unqueue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        self.queued_bytes -= task.spec.input.len();
        if let Some(at) = task.waits_until.take() {
            self.later.remove(&(at, task.seq));
            return;
        }
        let needs = task.needs();
        let Some(line) = self.ready.get_mut(&needs) else {
            return;
        };
        self.ready_count -= usize::from(line.remove(&task.place()).is_some());
        if line.is_empty() {
            self.ready.remove(&needs);
        }
    }

    // --- handing out ---------------------------------------------------------------------------------------------

    /// Makes ready what has waited long enough, and drops what was finished too long ago.
    pub fn ripen(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry().filter(|e| e.key().0 <= now) {
            let id = entry.remove();
            self.line_up(id);
        }
        self.forget(now);
    }

    /// The task that is next, leaving out those whose needs nobody can meet now.
    pub fn best(&self, unmet: &BTreeSet<Needs>) -> Option<&Task> {
        let lines = self
            .ready
            .iter()
            .filter(|(needs, _)| !unmet.contains(needs));
        let heads = lines.filter_map(|(_, line)| line.first_key_value());
        let (_, id) = heads.min_by_key(|(place, _)| **place)?;
        self.tasks.get(id)
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
        let before = task.tries.last().map_or(0, |t| t.attempt.n);
        let n = before.max(1) + u32::from(before > 0 && !crate::planted::is("same-attempt-again"));
        let attempt = Attempt { epoch, n };
        task.begin(attempt, worker, 0);
        let assignment = Assignment {
            attempt: AttemptId { task: id, attempt },
            spec: task.spec.clone(),
        };
        self.begin_lease(id, worker, now);
        Some(assignment)
    }

    fn begin_lease(&mut self, id: TaskId, worker: WorkerId, now: Instant) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.state = State::Leased;
        let deadline = now + Duration::from_millis(task.spec.timeout_ms).min(FAR) + GRACE;
        task.deadline = Some(deadline);
        self.deadlines.insert((deadline, id));
        self.leased.entry(worker).or_default().insert(id);
    }

    /// Before anything changes in `tries`: the newest one names the worker that holds the lease.
    fn end_lease(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Some(deadline) = task.deadline.take() {
            self.deadlines.remove(&(deadline, id));
        }
        let Some(worker) = task.tries.last().map(|t| t.worker) else {
            return;
        };
        if let Some(tasks) = self.leased.get_mut(&worker) {
            tasks.remove(&id);
            if tasks.is_empty() {
                self.leased.remove(&worker);
            }
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
        last.spent = false;
        self.end_lease(attempt.task);
        self.enqueue(attempt.task, Duration::ZERO, now);
        true
    }

    // --- recording -----------------------------------------------------------------------------------------------

    /// A worker's result.
    pub fn result(&mut self, from: NodeId, result: &TaskResult, now: Instant) -> Verdict {
        let id = result.attempt.task;
        let token = result.attempt.attempt;
        let Some(task) = self.tasks.get_mut(&id) else {
            return Verdict::Refused("no such task is known to this master");
        };
        let heard = |t: &Try| t.attempt == token && t.worker.id == from && t.finished_ms > 0;
        if task.tries.iter().any(heard) {
            if crate::planted::is("result-recorded-twice") {
                return Verdict::Recorded;
            }
            return Verdict::Repeated;
        }
        let refused = |r: &Refusal| r.attempt == token && r.worker == from;
        if task.refused.iter().any(refused) {
            return Verdict::Repeated;
        }
        if let Some(why) = unfit(task, token, from) {
            if task.refused.len() < MAX_REFUSED {
                task.refused.push(Refusal {
                    attempt: token,
                    worker: from,
                    why,
                });
            }
            return Verdict::Refused(why);
        }
        // 0 stands for "no result came".
        let finished_ms = result.finished_ms.max(1);
        if let Some(last) = task.tries.last_mut() {
            last.started_ms = result.started_ms;
            last.finished_ms = finished_ms;
            last.outcome = match &result.outcome {
                Outcome::Done(_) => "done",
                Outcome::Failed(_) => "failed",
                Outcome::Retry(_) => "retry",
                Outcome::TimedOut => "timed-out",
                Outcome::Cancelled => "cancelled",
            };
        }
        self.end_lease(id);
        let state = match &result.outcome {
            Outcome::Done(output) => State::Done(output.clone()),
            Outcome::Failed(why) => State::Failed(why.clone()),
            Outcome::Cancelled => State::Cancelled,
            Outcome::Retry(why) => {
                let reason = "it asked for another try";
                return self.again(id, why.clone(), reason, true, finished_ms, now);
            }
            Outcome::TimedOut => {
                let reason = "it overran its time";
                return self.again(id, reason.to_owned(), reason, true, finished_ms, now);
            }
        };
        self.finish(id, state, finished_ms, now);
        Verdict::Recorded
    }

    fn finish(&mut self, id: TaskId, state: State, at_ms: u64, now: Instant) {
        if let Some(task) = self.tasks.get_mut(&id) {
            debug_assert!(task.state.is_open(), "a result is immutable");
            task.state = state;
            task.finished_ms = at_ms;
            task.finished_at = Some(now);
            self.open.remove(&id);
            self.finished.push_back(id);
        }
        self.forget(now);
    }

    /// Queued again, with back-off or at once, or dead.
    fn again(
        &mut self,
        id: TaskId,
        error: String,
        why: &'static str,
        back_off: bool,
        at_ms: u64,
        now: Instant,
    ) -> Verdict {
        let Some(task) = self.tasks.get(&id) else {
            return Verdict::Refused("no such task is known to this master");
        };
        if task.spent() >= (task.spec.max_attempts as usize).min(MAX_TRIES) {
            self.finish(id, State::Dead(error), at_ms, now);
            return Verdict::Dead;
        }
        let wait = if back_off {
            task.back_off(self.settings.retry_wait)
        } else {
            Duration::ZERO
        };
        self.enqueue(id, wait, now);
        Verdict::Requeued(why)
    }

    /// Drops what was finished too long ago, or is too much.
    fn forget(&mut self, now: Instant) {
        let keep_for = self.settings.keep_finished_for;
        while let Some(id) = self.finished.front() {
            let at = self.tasks.get(id).and_then(|t| t.finished_at);
            let old = at.is_none_or(|at| now.saturating_duration_since(at) > keep_for);
            if self.finished.len() <= self.settings.keep_finished && !old {
                return;
            }
            self.tasks.remove(id);
            self.finished.pop_front();
        }
    }

    // --- losing and finding --------------------------------------------------------------------------------------

    /// A worker is gone: each of its attempts is lost, and the task queued again at once or dead. `at_ms` is the unix time.
    pub fn lose_worker(
        &mut self,
        worker: WorkerId,
        at_ms: u64,
        now: Instant,
    ) -> Vec<(AttemptId, Verdict)> {
        // The loss of a worker is not the task's fault: no back-off.
        let loss = Loss {
            outcome: "lost",
            why: "its worker is gone",
            spent: true,
            back_off: false,
        };
        if crate::planted::is("lost-worker-keeps-tasks") {
            return Vec::new();
        }
        let lost = self.leased_to(worker).into_iter();
        lost.filter_map(|attempt| self.lose(attempt, loss, at_ms, now))
            .collect()
    }

    fn lose(
        &mut self,
        attempt: AttemptId,
        loss: Loss,
        at_ms: u64,
        now: Instant,
    ) -> Option<(AttemptId, Verdict)> {
        let last = self.newest(attempt)?;
        last.outcome = loss.outcome;
        last.spent = loss.spent;
        self.end_lease(attempt.task);
        let error = loss.why.to_owned();
        let verdict = self.again(attempt.task, error, loss.why, loss.back_off, at_ms, now);
        Some((attempt, verdict))
    }

    /// Attempts whose time is long over without a word from the worker, and with whom they are.
    pub fn overdue(&mut self, at_ms: u64, now: Instant) -> Vec<(AttemptId, WorkerId, Verdict)> {
        let loss = Loss {
            outcome: "timed-out",
            why: "no word came within its time",
            spent: true,
            back_off: true,
        };
        let mut due = Vec::new();
        while let Some((_, id)) = self.deadlines.first().filter(|(at, _)| *at <= now).copied() {
            let Some((attempt, worker)) = self.holder(id) else {
                self.deadlines.pop_first();
                continue;
            };
            let lost = self.lose(attempt, loss, at_ms, now);
            due.extend(lost.map(|(attempt, verdict)| (attempt, worker, verdict)));
        }
        due
    }

    fn holder(&self, id: TaskId) -> Option<(AttemptId, WorkerId)> {
        let task = self.tasks.get(&id)?;
        let last = task.tries.last().filter(|_| task.state == State::Leased)?;
        let attempt = last.attempt;
        Some((AttemptId { task: id, attempt }, last.worker))
    }

    /// What a worker runs becomes ours, token and all, if it is newer than what we know of the task. `reign` is the epoch of
    /// this ledger: no token can be above it.
    pub fn adopt(
        &mut self,
        worker: WorkerId,
        assignment: &Assignment,
        started_ms: u64,
        reign: Epoch,
        now: Instant,
    ) -> Result<(), &'static str> {
        let id = assignment.attempt.task;
        let token = assignment.attempt.attempt;
        if token.epoch > reign || token.n == u32::MAX || assignment.spec.id != id {
            return Err("no master can have handed it out");
        }
        if let Some(task) = self.tasks.get(&id) {
            if !task.state.is_open() {
                return Err("the task is already finished");
            }
            let last = task.tries.last();
            let newer = last.is_some_and(|last| last.attempt > token);
            if newer && !crate::planted::is("adopts-the-superseded") {
                return Err("a newer attempt superseded it");
            }
            let same = last.filter(|last| last.attempt == token);
            if same.is_some_and(|last| last.finished_ms > 0) {
                return Err("its result is known");
            }
            // The same node may come back under another incarnation, with what it runs.
            if same.is_some_and(|last| last.worker.id != worker.id) {
                return Err("another worker runs this attempt");
            }
            if task.state == State::Leased {
                self.end_lease(id);
            } else {
                self.unqueue(id);
            }
        } else {
            self.insert(assignment.spec.clone());
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            match task.tries.last_mut() {
                Some(last) if last.attempt == token => {
                    last.worker = worker;
                    last.started_ms = last.started_ms.max(started_ms);
                    last.outcome = "running";
                    last.spent = true;
                }
                last => {
                    if let Some(last) = last.filter(|last| last.outcome == "running") {
                        last.outcome = "superseded";
                    }
                    task.begin(token, worker, started_ms);
                }
            }
        }
        self.begin_lease(id, worker, now);
        Ok(())
    }

    /// Tasks leased to this worker.
    pub fn leased_to(&self, worker: WorkerId) -> Vec<AttemptId> {
        let ids = self.leased.get(&worker).into_iter().flatten();
        ids.filter_map(|id| Some(self.holder(*id)?.0)).collect()
    }

    /// How many attempts this worker has.
    pub fn load(&self, worker: WorkerId) -> u32 {
        let tasks = self.leased.get(&worker).map_or(0, BTreeSet::len);
        u32::try_from(tasks).unwrap_or(u32::MAX)
    }

    /// An attempt that its worker does not know (any more): lost, or never begun and then without blame.
    pub fn unknown_to_worker(
        &mut self,
        attempt: AttemptId,
        at_ms: u64,
        now: Instant,
    ) -> Option<(AttemptId, Verdict)> {
        let began = self.newest(attempt)?.started_ms > 0;
        let loss = Loss {
            outcome: if began { "lost" } else { "returned" },
            why: "its worker does not know it",
            spent: began,
            back_off: false,
        };
        self.lose(attempt, loss, at_ms, now)
    }

    /// The open tasks, to be handed over or shadowed, at most `limit`, and how many there are beyond.
    pub fn entries(&self, limit: usize) -> (Vec<LedgerEntry>, usize) {
        let open = self.open.iter().take(limit);
        let entries: Vec<LedgerEntry> = open
            .filter_map(|id| Some(entry(self.tasks.get(id)?)))
            .collect();
        let beyond = self.open.len() - entries.len();
        (entries, beyond)
    }

    /// For the reign after this one on the same node: what is open is taken out, what is finished stays.
    pub fn take_open(&mut self) -> Vec<LedgerEntry> {
        let (entries, _) = self.entries(usize::MAX);
        let mut rest = Self::new(self.settings.clone());
        for id in std::mem::take(&mut self.open) {
            self.tasks.remove(&id);
        }
        rest.tasks = std::mem::take(&mut self.tasks);
        rest.finished = std::mem::take(&mut self.finished);
        rest.seq = self.seq;
        *self = rest;
        entries
    }

    /// A task of a ledger that was handed over, or of a dead master's shadow, which nobody reported: queued, keeping its
    /// attempts, so that numbers only rise. `wait` is how long it must not be handed out; `reign` is the epoch of this ledger.
    pub fn inherit(
        &mut self,
        entry: LedgerEntry,
        wait: Duration,
        reign: Epoch,
        now: Instant,
    ) -> bool {
        let usable = |(id, ..): &(AttemptId, NodeId, Incarnation)| {
            id.attempt.n < u32::MAX && id.attempt.epoch <= reign
        };
        if self.tasks.contains_key(&entry.spec.id) || !entry.attempts.iter().all(usable) {
            return false;
        }
        let id = self.insert(entry.spec);
        if let Some(task) = self.tasks.get_mut(&id) {
            for (attempt, worker, incarnation) in entry.attempts {
                let worker = WorkerId {
                    id: worker,
                    incarnation,
                };
                task.begin(attempt.attempt, worker, 0);
            }
            // How each ended is not handed on: none is blamed.
            for past in &mut task.tries {
                past.outcome = "returned";
                past.spent = false;
            }
            if let Some(last) = task.tries.last_mut().filter(|_| entry.leased) {
                last.outcome = "lost";
                last.spent = true;
            }
        }
        self.enqueue(id, wait, now);
        true
    }

    // --- reading -------------------------------------------------------------------------------------------------

    /// One task.
    pub fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// Newest first, below `after`.
    pub fn newest_first(&self, after: Option<TaskId>) -> impl Iterator<Item = &Task> {
        use std::ops::Bound::{Excluded, Unbounded};
        let below = after.map_or(Unbounded, Excluded);
        self.tasks
            .range((Unbounded, below))
            .rev()
            .map(|(_, task)| task)
    }

    /// Waiting for a worker.
    pub fn queued(&self) -> usize {
        self.ready_count + self.later.len()
    }

    /// Queued or with a worker.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// With a worker.
    pub fn outstanding(&self) -> BTreeMap<WorkerId, usize> {
        self.leased.iter().map(|(w, t)| (*w, t.len())).collect()
    }

    /// Tasks by state. Walks over what is finished, never over the queue.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let leased: usize = self.leased.values().map(BTreeSet::len).sum();
        for (state, n) in [(State::Queued, self.queued()), (State::Leased, leased)] {
            if n > 0 {
                counts.insert(state.as_str().to_owned(), n as u64);
            }
        }
        for task in self.finished.iter().filter_map(|id| self.tasks.get(id)) {
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

/// Why a result of this token may not be recorded.
fn unfit(task: &Task, token: Attempt, from: NodeId) -> Option<&'static str> {
    if crate::planted::is("late-result-accepted") && task.state.is_open() {
        return None;
    }
    if !task.state.is_open() {
        return Some("the task is already finished");
    }
    match task.tries.last() {
        Some(last) if last.attempt == token && last.worker.id == from => {
            (task.state != State::Leased).then_some("it was given up before its result came")
        }
        Some(last) if last.attempt > token => Some("a newer attempt superseded it"),
        _ => Some("this master did not hand it out"),
    }
}

fn entry(task: &Task) -> LedgerEntry {
    let id = task.spec.id;
    let attempt = |t: &Try| {
        let attempt = t.attempt;
        (
            AttemptId { task: id, attempt },
            t.worker.id,
            t.worker.incarnation,
        )
    };
    LedgerEntry {
        spec: task.spec.clone(),
        attempts: task.tries.iter().map(attempt).collect(),
        leased: task.state == State::Leased,
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
