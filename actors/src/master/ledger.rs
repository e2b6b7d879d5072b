//! The record of every task and its state. A pure state machine: time comes in as an argument.
//!
//! ```text
//! queued ──lease──▶ leased ──result──▶ done | failed
//!    ▲                 │ lost, timed out, retryable: queued again with back-off, up to max_attempts
//!    ├─────────────────┴──────────────▶ dead ──retry, by a person──▶ queued
//!    └── cancel, of what is queued or leased ──▶ cancelled
//! ```
//!
//! Attempts only rise; only the newest attempt of a task may record; the first valid result wins; what comes late is refused
//! with a reason and kept in the task's receipt. An attempt that could not be sent, or that its worker never began, is
//! taken back without blame.
//!
//! What is decided of a **durable** task first becomes a record for the journal ([`Ledger::take_records`]) and takes place only
//! when that is committed ([`Ledger::committed`]): until then nobody sees it, and no attempt goes out. An ephemeral task knows
//! no such wait.

mod handing;
mod keeping;
mod reading;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Ended;
use super::lines::Lines;
pub use super::lines::Needs;
use super::record::{Record, TryRecord};
pub use super::task::Fate;
use super::task::{Change, FAR, Pending};
pub use super::task::{Ending, MAX_TRIES, Place, Refusal, State, Task, Try, WorkerId};
use crate::id::{Attempt, AttemptId, Epoch, NodeId, TaskId};
use crate::wire::{Assignment, Outcome, TaskResult, TaskSpec};

/// The master's own deadline of an attempt is this much later than the worker's, which tells more.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// Who killed so many distinct workers runs beside no other such, so that the next death has one culprit; with a small
/// `max_kills` it is one less than that, or the innocent would die with the culprit.
const SUSPECT: usize = 2;

/// Bounds and manners of a ledger.
#[derive(Clone, Debug)]
pub struct LedgerSettings {
    /// Queued tasks at the most.
    pub max_queued: usize,
    /// Bytes of queued inputs at the most.
    pub max_queued_bytes: usize,
    /// Finished tasks kept, by count…
    pub keep_finished: usize,
    /// …and by bytes…
    pub keep_finished_bytes: usize,
    /// …and by age. Dead ones are kept apart, by count alone.
    pub keep_finished_for: Duration,
    /// Wait before the second attempt; doubled for each further one, ± 20 %.
    pub retry_wait: Duration,
    /// A task that was executing on so many distinct workers when each died is dead.
    pub max_kills: usize,
    /// An id is known for so long after it was made.
    pub window: Duration,
    /// Ids that are known beyond their receipts, at the most: beyond, the window is shorter.
    pub keep_ids: usize,
}

/// Why a task was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Too many are queued.
    Count(usize),
    /// Their inputs are too large together.
    Bytes(usize),
    /// Its id is unknown and older than what is remembered, unix ms: it may have been finished and forgotten.
    Expired(u64),
}

/// What a new task is to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is queued.
    New,
    /// Its record is on its way; it is queued when that is committed.
    Proposed,
    /// The same id was accepted before.
    Known,
    /// The same id was accepted and finished before, and its receipt is gone.
    Forgotten(Fate),
}

/// What became of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Recorded: the task is done or failed for good.
    Recorded,
    /// It will be what [`Ledger::committed`] says, once its record is in the journal; nothing is acknowledged before.
    Recording,
    /// The attempt ended without an answer; the task is queued again.
    Requeued(&'static str),
    /// The attempt ended without an answer; it was the last.
    Dead,
    /// It was recorded or refused before: the acknowledgement was lost.
    Repeated,
    /// Not recorded, for this reason.
    Refused(&'static str),
}

/// What took place when its record was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Which task.
    pub task: TaskId,
    /// The change.
    pub change: Change,
    /// Who is to be told that its result was taken.
    pub answers: Option<(NodeId, AttemptId)>,
    /// Why, in words.
    pub why: &'static str,
}

/// An attempt that ended without a result.
#[derive(Clone, Copy, Debug)]
struct Loss {
    ending: Ending,
    why: &'static str,
    /// It counts towards `max_attempts`.
    spent: bool,
    /// It was executing when its worker died.
    blamed: bool,
    /// The next one waits.
    back_off: bool,
}

/// See the module page.
#[derive(Debug)]
pub struct Ledger {
    pub(super) settings: LedgerSettings,
    // Never walked over for a decision: its order is chance.
    pub(super) tasks: HashMap<TaskId, Box<Task>>,
    pub(super) lines: Lines,
    /// Ready later.
    pub(super) later: BTreeMap<(Instant, u64), TaskId>,
    pub(super) deadlines: BTreeSet<(Instant, TaskId)>,
    pub(super) leased: BTreeMap<WorkerId, BTreeSet<TaskId>>,
    pub(super) finished: VecDeque<TaskId>,
    finished_bytes: usize,
    pub(super) dead: VecDeque<TaskId>,
    pub(super) queued_bytes: usize,
    /// Tasks that are not finished; the ephemeral of them; those whose acceptance is being recorded.
    open: usize,
    open_ephemeral: usize,
    proposed: usize,
    held: BTreeSet<TaskId>,
    seq: u64,
    records: Vec<Record>,
    /// Bytes of durable tasks in the journal that are not in vain, about.
    durable_bytes: usize,
    /// Finished durable tasks whose receipts are gone, and how they ended.
    ids: BTreeMap<TaskId, Fate>,
    /// Ids made before this unix ms are not remembered.
    floor_ms: u64,
    /// Finished since somebody last asked, while anybody waits at all.
    ended: Vec<Ended>,
    watched: bool,
}

impl Ledger {
    /// Other knobs from now on.
    pub fn configure(&mut self, settings: LedgerSettings) {
        self.settings = settings;
    }

    /// Empty.
    pub fn new(settings: LedgerSettings) -> Self {
        Self {
            settings,
            tasks: HashMap::new(),
            lines: Lines::default(),
            later: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            leased: BTreeMap::new(),
            finished: VecDeque::new(),
            finished_bytes: 0,
            dead: VecDeque::new(),
            queued_bytes: 0,
            open: 0,
            open_ephemeral: 0,
            proposed: 0,
            held: BTreeSet::new(),
            seq: 0,
            records: Vec::new(),
            durable_bytes: 0,
            ids: BTreeMap::new(),
            floor_ms: 0,
            ended: Vec::new(),
            watched: false,
        }
    }

    // --- accepting -----------------------------------------------------------------------------------------------

    /// Accepts a task. The same id again is the same task and changes nothing. `wait` is how long it must not be handed out;
    /// `unix_ms` is the time now.
    pub fn accept(
        &mut self,
        spec: TaskSpec,
        wait: Duration,
        unix_ms: u64,
        now: Instant,
    ) -> Result<Accepted, Full> {
        if let Some(known) = self.tasks.get(&spec.id) {
            return Ok(if known.is_proposed() {
                Accepted::Proposed
            } else {
                Accepted::Known
            });
        }
        if spec.durable {
            self.age_ids(unix_ms);
            if let Some(fate) = self.ids.get(&spec.id) {
                return Ok(Accepted::Forgotten(*fate));
            }
            if made_ms(spec.id) < self.floor_ms {
                return Err(Full::Expired(self.floor_ms));
            }
        }
        let queued = self.queued();
        if queued >= self.settings.max_queued {
            return Err(Full::Count(queued));
        }
        if self.queued_bytes + spec.input.len() > self.settings.max_queued_bytes {
            return Err(Full::Bytes(self.queued_bytes));
        }
        let durable = spec.durable;
        let id = self.insert(spec);
        if !durable {
            self.enqueue(id, wait, now);
            return Ok(Accepted::New);
        }
        let bytes = self.tasks.get(&id).map_or(0, |t| t.spec.input.len());
        self.queued_bytes += bytes;
        self.proposed += 1;
        let accept = Pending {
            change: Change::Accept(wait),
            answers: None,
            why: "accepted",
        };
        self.settle(id, accept, now);
        Ok(Accepted::Proposed)
    }

    fn insert(&mut self, spec: TaskSpec) -> TaskId {
        let id = spec.id;
        self.seq += 1;
        let line = self.lines.join(&spec.job, &spec.require);
        self.open += 1;
        self.open_ephemeral += usize::from(!spec.durable);
        let task = Box::new(Task::new(spec, self.seq, line));
        self.durable_bytes += durable_weight(&task);
        self.tasks.insert(id, task);
        id
    }

    /// It is not in the journal and never will be: forgotten as if it had never been submitted.
    pub fn withdraw(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id).filter(|t| t.is_proposed()) else {
            return;
        };
        self.proposed -= 1;
        self.queued_bytes -= task.spec.input.len();
        self.open -= 1;
        if self.watched {
            self.ended.push(Ended {
                id,
                state: "forgotten",
                output: None,
                error: None,
            });
        }
        self.drop_task(id);
    }

    fn drop_task(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.remove(&id) {
            self.durable_bytes -= durable_weight(&task);
            self.lines.part(task.line);
        }
    }

    fn enqueue(&mut self, id: TaskId, wait: Duration, now: Instant) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.state = State::Queued;
        self.queued_bytes += task.spec.input.len();
        if wait.is_zero() {
            self.lines.push(task.line, task.place(), id);
        } else {
            let at = now + wait.min(FAR);
            task.history().waits_until = Some(at);
            self.later.insert((at, task.seq), id);
        }
    }

    /// Out of the queue, into this state.
    fn unqueue(&mut self, id: TaskId, to: State) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.state = to;
        if std::mem::take(&mut task.held) {
            self.held.remove(&id);
            return;
        }
        self.queued_bytes -= task.spec.input.len();
        let waited = task.history.as_mut().and_then(|h| h.waits_until.take());
        match waited {
            Some(at) => drop(self.later.remove(&(at, task.seq))),
            None => {
                let line = task.line;
                let tasks = &self.tasks;
                self.lines.leave(line, |id| in_line(tasks, id));
            }
        }
    }

    // --- handing out ---------------------------------------------------------------------------------------------

    /// Makes ready what has waited long enough, and drops what was finished too long ago.
    pub fn ripen(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry().filter(|e| e.key().0 <= now) {
            let id = entry.remove();
            if let Some(task) = self.tasks.get_mut(&id) {
                task.history().waits_until = None;
                self.lines.push(task.line, task.place(), id);
            }
        }
        self.forget(now);
    }

    /// Lines in which somebody waits.
    pub fn busy_lines(&self) -> Vec<u32> {
        self.lines.busy()
    }

    /// What is asked for in a line.
    pub fn needs(&self, line: u32) -> Option<&Needs> {
        self.lines.needs(line)
    }

    /// What a task that is open asks for.
    pub fn needs_of(&self, task: &Task) -> Option<&Needs> {
        self.needs(task.line)
    }

    /// The task that is next in a line, and its place among all.
    pub fn first(&mut self, line: u32) -> Option<(Place, &Task)> {
        let tasks = &self.tasks;
        let (place, id) = self.lines.first(line, |id| in_line(tasks, id))?;
        Some((place, self.tasks.get(&id)?))
    }

    /// Leases a queued task to a worker under a new attempt.
    pub fn lease(
        &mut self,
        id: TaskId,
        worker: WorkerId,
        epoch: Epoch,
        now: Instant,
    ) -> Option<Assignment> {
        let task = self.tasks.get(&id)?;
        if task.state != State::Queued || task.pending().is_some() || task.held {
            return None;
        }
        self.unqueue(id, State::Leased);
        let task = self.tasks.get_mut(&id)?;
        let before = task.tries().last().map_or(0, |t| t.attempt.n);
        let next = before > 0 && !crate::planted::is("same-attempt-again");
        // A journal may hold any number. The epoch goes before it, so it need not rise further.
        let n = before.max(1).saturating_add(u32::from(next));
        let attempt = Attempt { epoch, n };
        task.begin(attempt, worker, 0);
        let assignment = Assignment {
            attempt: AttemptId { task: id, attempt },
            spec: task.spec.clone(),
        };
        self.begin_lease(id, worker, now);
        Some(assignment)
    }

    /// It must not be handed out for a while, though it is its turn.
    pub fn postpone(&mut self, id: TaskId, wait: Duration, now: Instant) {
        if in_line(&self.tasks, id) {
            self.unqueue(id, State::Leased);
            self.enqueue(id, wait, now);
        }
    }

    fn begin_lease(&mut self, id: TaskId, worker: WorkerId, now: Instant) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.state = State::Leased;
        let deadline = now + Duration::from_millis(task.spec.timeout_ms).min(FAR) + GRACE;
        task.history().deadline = Some(deadline);
        self.deadlines.insert((deadline, id));
        self.leased.entry(worker).or_default().insert(id);
    }

    /// Before anything changes in the tries: the newest one names the worker that holds the lease.
    fn end_lease(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Some(deadline) = task.history().deadline.take() {
            self.deadlines.remove(&(deadline, id));
        }
        task.history().progress = None;
        let Some(worker) = task.tries().last().map(|t| t.worker) else {
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

    /// It goes on: its time begins anew. Answers whether it is the newest attempt.
    pub fn progress(&mut self, attempt: AttemptId, told: Option<&str>, now: Instant) -> bool {
        if self.newest(attempt).is_none() {
            return false;
        }
        let Some(task) = self.tasks.get_mut(&attempt.task) else {
            return false;
        };
        let deadline = now + Duration::from_millis(task.spec.timeout_ms).min(FAR) + GRACE;
        let before = task.history().deadline.replace(deadline);
        if let Some(told) = told {
            task.history().progress = Some(told.into());
        }
        if let Some(before) = before {
            self.deadlines.remove(&(before, attempt.task));
        }
        self.deadlines.insert((deadline, attempt.task));
        true
    }

    fn newest(&mut self, attempt: AttemptId) -> Option<&mut Try> {
        let task = self.tasks.get_mut(&attempt.task)?;
        let leased = task.state == State::Leased && task.pending().is_none();
        let last = task.history.as_mut()?.tries.last_mut();
        last.filter(|t| leased && t.attempt == attempt.attempt)
    }

    /// An attempt that never reached its worker, or was handed back: queued again at once, without blame. Its number is not
    /// used again.
    pub fn take_back(&mut self, attempt: AttemptId, now: Instant) -> bool {
        let Some(last) = self.newest(attempt) else {
            return false;
        };
        last.ending = Ending::Returned;
        last.spent = false;
        self.end_lease(attempt.task);
        self.enqueue(attempt.task, Duration::ZERO, now);
        true
    }

    // --- recording -----------------------------------------------------------------------------------------------

    /// Takes place at once for an ephemeral task; becomes a record for a durable one.
    fn settle(&mut self, id: TaskId, pending: Pending, now: Instant) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if !task.spec.durable {
            return self.apply(id, pending.change, now);
        }
        let record = record(task, &pending.change);
        task.history().pending = Some(pending);
        self.records.push(record);
    }

    /// Records for the journal, oldest first.
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// The record of a change that did not get into the journal, to be tried again; `None` when nothing is pending.
    pub fn record_again(&self, id: TaskId) -> Option<Record> {
        let task = self.tasks.get(&id)?;
        Some(record(task, &task.pending()?.change))
    }

    /// The record of what is pending for this task is in the journal: it takes place.
    pub fn committed(&mut self, id: TaskId, now: Instant) -> Option<Committed> {
        let task = self.tasks.get_mut(&id)?;
        let pending = task.history.as_mut()?.pending.take()?;
        if matches!(pending.change, Change::Accept(_)) {
            self.proposed -= 1;
            self.queued_bytes -= task.spec.input.len();
            // Most tasks only wait: they carry no history.
            task.history = None;
        }
        self.apply(id, pending.change.clone(), now);
        Some(Committed {
            task: id,
            change: pending.change,
            answers: pending.answers,
            why: pending.why,
        })
    }

    fn apply(&mut self, id: TaskId, change: Change, now: Instant) {
        match change {
            Change::Accept(wait) | Change::Requeue(wait) => self.enqueue(id, wait, now),
            Change::Finish(state, at_ms) => self.finish(id, state, at_ms, now),
            Change::Retry => self.revive(id, now),
        }
    }

    /// A worker's result.
    pub fn result(&mut self, from: NodeId, result: &TaskResult, now: Instant) -> Verdict {
        let id = result.attempt.task;
        let token = result.attempt.attempt;
        let Some(task) = self.tasks.get_mut(&id) else {
            if self.ids.contains_key(&id) {
                return Verdict::Refused("the task is already finished");
            }
            return Verdict::Refused("no such task is known to this master");
        };
        let heard = |t: &Try| t.attempt == token && t.worker.id == from && t.finished_ms > 0;
        if task.tries().iter().any(heard) {
            if crate::planted::is("result-recorded-twice") {
                return Verdict::Recorded;
            }
            return if task.pending().is_some() {
                Verdict::Recording
            } else {
                Verdict::Repeated
            };
        }
        let refused = |r: &Refusal| r.attempt == token && r.worker == from;
        if task.refused().iter().any(refused) {
            return Verdict::Repeated;
        }
        if let Some(why) = unfit(task, token, from) {
            task.refuse(token, from, why);
            return Verdict::Refused(why);
        }
        // 0 stands for "no result came".
        let finished_ms = result.finished_ms.max(1);
        if let Some(last) = task.history().tries.last_mut() {
            last.started_ms = result.started_ms;
            last.finished_ms = finished_ms;
            last.ending = match &result.outcome {
                Outcome::Done(_) => Ending::Done,
                Outcome::Failed(_) => Ending::Failed,
                Outcome::Retry(_) => Ending::Retry,
                Outcome::TimedOut => Ending::TimedOut,
                Outcome::Cancelled => Ending::Cancelled,
            };
        }
        self.end_lease(id);
        let answers = Some((from, result.attempt));
        let state = match &result.outcome {
            Outcome::Done(output) => State::Done(output[..].into()),
            Outcome::Failed(why) => State::Failed(why.as_str().into()),
            Outcome::Cancelled => State::Cancelled,
            Outcome::Retry(why) => {
                let reason = "it asked for another try";
                return self.again(id, why, reason, true, (answers, finished_ms), now);
            }
            Outcome::TimedOut => {
                let reason = "it overran its time";
                return self.again(id, reason, reason, true, (answers, finished_ms), now);
            }
        };
        let finish = Pending {
            change: Change::Finish(state, finished_ms),
            answers,
            why: "a result came",
        };
        self.settle(id, finish, now);
        self.taken(id, Verdict::Recorded)
    }

    /// This verdict, or that it is being recorded.
    fn taken(&self, id: TaskId, verdict: Verdict) -> Verdict {
        let pending = self.tasks.get(&id).is_some_and(|t| t.pending().is_some());
        if pending { Verdict::Recording } else { verdict }
    }

    fn finish(&mut self, id: TaskId, state: State, at_ms: u64, now: Instant) {
        if let Some(task) = self.tasks.get_mut(&id) {
            debug_assert!(task.state.is_open(), "a result is immutable");
            let dead = matches!(state, State::Dead(_));
            self.durable_bytes -= durable_weight(task);
            task.state = state;
            let history = task.history();
            history.finished_ms = at_ms;
            history.finished_at = Some(now);
            self.durable_bytes += durable_weight(task);
            self.open -= 1;
            self.open_ephemeral -= usize::from(!task.spec.durable);
            if self.watched {
                self.ended.push(ended(task));
            }
            if dead {
                self.dead.push_back(id);
            } else {
                self.finished_bytes += task.weight();
                self.finished.push_back(id);
            }
        }
        self.forget(now);
    }

    /// Queued again, with back-off or at once, or dead.
    fn again(
        &mut self,
        id: TaskId,
        error: &str,
        why: &'static str,
        back_off: bool,
        (answers, at_ms): (Option<(NodeId, AttemptId)>, u64),
        now: Instant,
    ) -> Verdict {
        let Some(task) = self.tasks.get_mut(&id) else {
            return Verdict::Refused("no such task is known to this master");
        };
        // Whatever comes, it is with no worker any more.
        task.state = State::Queued;
        let kills = task.kills();
        let used_up = task.spent() >= (task.spec.max_attempts as usize).min(MAX_TRIES);
        let dead = if kills >= self.settings.max_kills {
            Some(format!(
                "it was executing on {kills} workers when each of them died"
            ))
        } else {
            used_up.then(|| error.to_owned())
        };
        let (change, verdict) = match dead {
            Some(error) => {
                let state = State::Dead(error.into());
                (Change::Finish(state, at_ms), Verdict::Dead)
            }
            None if back_off => {
                let wait = task.back_off(self.settings.retry_wait);
                (Change::Requeue(wait), Verdict::Requeued(why))
            }
            None => (Change::Requeue(Duration::ZERO), Verdict::Requeued(why)),
        };
        let pending = Pending {
            change,
            answers,
            why,
        };
        self.settle(id, pending, now);
        self.taken(id, verdict)
    }

    // --- losing and finding --------------------------------------------------------------------------------------

    /// A worker is gone: each of its attempts is lost, and the task queued again at once or dead. Only what was executing is
    /// blamed; and if one of that was suspect already, it alone. `at_ms` is the unix time.
    pub fn lose_worker(
        &mut self,
        worker: WorkerId,
        at_ms: u64,
        now: Instant,
    ) -> Vec<(AttemptId, Verdict)> {
        if crate::planted::is("lost-worker-keeps-tasks") {
            return Vec::new();
        }
        let lost = self.leased_to(worker);
        let began = |a: &AttemptId| self.tasks.get(&a.task).is_some_and(|t| executes(t));
        let suspect = |a: &AttemptId| self.is_suspect(a.task);
        let began: BTreeSet<AttemptId> = lost.iter().filter(|a| began(a)).copied().collect();
        // A job may kill its worker before anybody was told that it began: then it is one of all that were there.
        let executing: BTreeSet<AttemptId> = if began.is_empty() {
            lost.iter().copied().collect()
        } else {
            began.clone()
        };
        let suspects: BTreeSet<AttemptId> =
            executing.iter().filter(|a| suspect(a)).copied().collect();
        let blamed = if suspects.is_empty() {
            &executing
        } else {
            &suspects
        };
        // The loss of a worker is not the task's fault: no back-off, and it does not count towards its attempts.
        let loss = |attempt: &AttemptId| Loss {
            ending: if began.contains(attempt) {
                Ending::Lost
            } else {
                Ending::Returned
            },
            why: "its worker is gone",
            spent: false,
            blamed: blamed.contains(attempt),
            back_off: false,
        };
        let losses: Vec<(AttemptId, Loss)> = lost.iter().map(|a| (*a, loss(a))).collect();
        losses
            .into_iter()
            .filter_map(|(attempt, loss)| self.lose(attempt, loss, at_ms, now))
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
        last.ending = loss.ending;
        last.spent = loss.spent;
        last.blamed = loss.blamed;
        self.end_lease(attempt.task);
        let verdict = self.again(
            attempt.task,
            loss.why,
            loss.why,
            loss.back_off,
            (None, at_ms),
            now,
        );
        Some((attempt, verdict))
    }

    /// Attempts whose time is long over without a word from the worker, and with whom they are.
    pub fn overdue(&mut self, at_ms: u64, now: Instant) -> Vec<(AttemptId, WorkerId, Verdict)> {
        let loss = Loss {
            ending: Ending::TimedOut,
            why: "no word came within its time",
            spent: true,
            blamed: false,
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
        let leased = task.state == State::Leased && task.pending().is_none();
        let last = task.tries().last().filter(|_| leased)?;
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
            let last = task.tries().last();
            let newer = last.is_some_and(|last| last.attempt > token);
            if newer && !crate::planted::is("adopts-the-superseded") {
                return Err("a newer attempt superseded it");
            }
            let same = last.filter(|last| last.attempt == token);
            if same.is_some_and(|last| last.finished_ms > 0) {
                return Err("its result is known");
            }
            if task.pending().is_some() {
                return Err("how it goes on is being recorded");
            }
            // The same node may come back under another incarnation, with what it runs.
            if same.is_some_and(|last| last.worker.id != worker.id) {
                return Err("another worker runs this attempt");
            }
            if task.state == State::Leased {
                self.end_lease(id);
            } else {
                self.unqueue(id, State::Leased);
            }
        } else if self.ids.contains_key(&id) {
            return Err("the task is already finished");
        } else if assignment.spec.durable {
            // Handed out only after its record was committed: whoever knows it no more has finished and forgotten it.
            return Err("it is not in the journal");
        } else {
            self.insert(assignment.spec.clone());
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            match task.history().tries.last_mut() {
                Some(last) if last.attempt == token => {
                    last.worker = worker;
                    last.started_ms = last.started_ms.max(started_ms);
                    last.ending = Ending::Running;
                    last.spent = true;
                    last.blamed = false;
                }
                last => {
                    if let Some(last) = last.filter(|last| last.ending == Ending::Running) {
                        last.ending = Ending::Superseded;
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

    /// Whether a task should run beside no other that may kill its worker, and those workers that have one.
    pub fn suspicion(&self, id: TaskId) -> Option<BTreeSet<WorkerId>> {
        self.is_suspect(id).then(|| {
            let suspect = |id: &TaskId| self.is_suspect(*id);
            let busy = self
                .leased
                .iter()
                .filter(|(_, ids)| ids.iter().any(suspect));
            busy.map(|(worker, _)| *worker).collect()
        })
    }

    fn is_suspect(&self, id: TaskId) -> bool {
        let enough = self.settings.max_kills.saturating_sub(1).clamp(1, SUSPECT);
        self.tasks.get(&id).is_some_and(|t| t.kills() >= enough)
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
            ending: if began {
                Ending::Lost
            } else {
                Ending::Returned
            },
            why: "its worker does not know it",
            spent: began,
            blamed: false,
            back_off: false,
        };
        self.lose(attempt, loss, at_ms, now)
    }
}

fn ended(task: &Task) -> Ended {
    let (output, error) = match &task.state {
        State::Done(output) => (Some(Bytes::copy_from_slice(output)), None),
        State::Failed(why) | State::Dead(why) => (None, Some(why.to_string())),
        State::Queued | State::Leased | State::Cancelled => (None, None),
    };
    Ended {
        id: task.spec.id,
        state: task.state.as_str(),
        output,
        error,
    }
}

/// Whether it stands in its line.
fn in_line(tasks: &HashMap<TaskId, Box<Task>>, id: TaskId) -> bool {
    tasks.get(&id).is_some_and(|task| {
        let history = task.history.as_ref();
        let idle = history.is_none_or(|h| h.waits_until.is_none() && h.pending.is_none());
        task.state == State::Queued && !task.held && idle
    })
}

/// Whether its newest attempt is known to have begun.
fn executes(task: &Task) -> bool {
    task.tries().last().is_some_and(|t| t.started_ms > 0)
}

fn durable_weight(task: &Task) -> usize {
    if task.spec.durable {
        task.weight_of_answer()
    } else {
        0
    }
}

/// When an id was made, unix ms: a UUIDv7 says so.
pub fn made_ms(id: TaskId) -> u64 {
    u64::try_from(id.0.as_u128() >> 80).unwrap_or(0)
}

fn record(task: &Task, change: &Change) -> Record {
    let tried = task.tries().last().map(TryRecord::from);
    let id = task.spec.id;
    match change {
        Change::Accept(_) => Record::Accepted(task.spec.clone()),
        Change::Finish(state, at_ms) => Record::Finished {
            task: id,
            tried,
            answer: state.into(),
            at_ms: *at_ms,
        },
        Change::Requeue(_) => Record::Requeued { task: id, tried },
        Change::Retry => Record::Retried { task: id },
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
    if let Some(pending) = task.pending() {
        return Some(match pending.change {
            Change::Finish(State::Cancelled, _) => "the task is being cancelled",
            Change::Finish(..) => "the task is already finished",
            _ => "it was given up before its result came",
        });
    }
    match task.tries().last() {
        Some(last) if last.attempt == token && last.worker.id == from => {
            (task.state != State::Leased).then_some("it was given up before its result came")
        }
        Some(last) if last.attempt > token => Some("a newer attempt superseded it"),
        _ => Some("this master did not hand it out"),
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
