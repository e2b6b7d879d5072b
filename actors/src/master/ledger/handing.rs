//! What of the ledger goes to another reign, and comes from one: hand-over, shadow, journal. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Ending, Fate, Ledger, Refusal, State, Task, Try, WorkerId, in_line, made_ms};
use crate::id::{AttemptId, Epoch, NodeId, TaskId};
use crate::master::record::{Record, Snapshot};
use crate::master::task::Change;
use crate::wire::LedgerEntry;

impl Ledger {
    // --- handing on ----------------------------------------------------------------------------------------------

    /// Open ephemeral tasks, to be handed over or shadowed, at most `limit`, and how many there are beyond. Those that wait
    /// come first: what is with a worker, the worker reports.
    pub fn entries(&self, limit: usize) -> (Vec<LedgerEntry>, usize) {
        let waiting = self.lines.some().filter(|id| in_line(&self.tasks, *id));
        let leased = self.leased.values().flatten().copied();
        let all = waiting.chain(self.later.values().copied()).chain(leased);
        let mut seen = BTreeSet::new();
        let ephemeral = all.filter_map(|id| self.tasks.get(&id).filter(|t| !t.spec.durable));
        let entries: Vec<LedgerEntry> = ephemeral
            .filter(|t| seen.insert(t.spec.id))
            .take(limit)
            .map(|t| entry(t))
            .collect();
        let beyond = self.open_ephemeral.saturating_sub(entries.len());
        (entries, beyond)
    }

    /// For the reign after this one on the same node: open ephemeral tasks are taken out, finished ones stay; durable ones are
    /// read from the journal again.
    pub fn take_open(&mut self) -> (Vec<LedgerEntry>, Self) {
        let (entries, _) = self.entries(usize::MAX);
        let mut rest = Self::new(self.settings.clone());
        let finished = std::mem::take(&mut self.finished).into_iter();
        let dead = std::mem::take(&mut self.dead);
        for id in finished.chain(dead) {
            if let Some(mut task) = self.tasks.remove(&id).filter(|t| !t.spec.durable) {
                task.line = rest.lines.join(&task.spec.job, &task.spec.require);
                if matches!(task.state, State::Dead(_)) {
                    rest.dead.push_back(id);
                } else {
                    rest.finished_bytes += task.weight();
                    rest.finished.push_back(id);
                }
                rest.tasks.insert(id, task);
            }
        }
        rest.seq = self.seq;
        (entries, rest)
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
        let usable = |(id, ..): &(AttemptId, NodeId, crate::id::Incarnation)| {
            id.attempt.n < u32::MAX && id.attempt.epoch <= reign
        };
        let known = self.tasks.contains_key(&entry.spec.id) || entry.spec.durable;
        if known || !entry.attempts.iter().all(usable) {
            return false;
        }
        let id = self.insert(entry.spec);
        if let Some(task) = self
            .tasks
            .get_mut(&id)
            .filter(|_| !entry.attempts.is_empty())
        {
            for (attempt, worker, incarnation) in entry.attempts {
                let worker = WorkerId {
                    id: worker,
                    incarnation,
                };
                task.begin(attempt.attempt, worker, 0);
            }
            // How each ended is not handed on: none is blamed.
            let tries = &mut task.history().tries;
            for past in tries.iter_mut() {
                past.ending = Ending::Returned;
                past.spent = false;
            }
            if let Some(last) = tries.last_mut().filter(|_| entry.leased) {
                last.ending = Ending::Lost;
                last.spent = true;
            }
        }
        self.enqueue(id, wait, now);
        true
    }

    /// A task as the journal has it. What is open is kept aside until [`Ledger::release`]: a worker may report it.
    pub fn restore(&mut self, snapshot: Snapshot, unix_ms: u64, now: Instant) {
        let id = snapshot.spec.id;
        if self.tasks.contains_key(&id) {
            return;
        }
        self.insert(snapshot.spec);
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if !snapshot.tries.is_empty() || !snapshot.refused.is_empty() {
            let history = task.history();
            history.tries = snapshot.tries.iter().map(Try::from).collect();
            history.refused = snapshot
                .refused
                .into_iter()
                .map(|(attempt, worker, why)| Refusal {
                    attempt,
                    worker,
                    why: why.into(),
                })
                .collect();
        }
        let state = State::from(&snapshot.answer);
        if state.is_open() {
            task.held = true;
            self.held.insert(id);
        } else {
            let ago = Duration::from_millis(unix_ms.saturating_sub(snapshot.finished_ms));
            let at = now.checked_sub(ago).unwrap_or(now);
            self.finish(id, state, snapshot.finished_ms, at);
        }
    }

    /// Ids that were finished and forgotten, and since when such are remembered.
    pub fn restore_ids(&mut self, ids: impl IntoIterator<Item = (TaskId, Fate)>, floor_ms: u64) {
        self.floor_ms = self.floor_ms.max(floor_ms);
        let floor = self.floor_ms;
        self.ids
            .extend(ids.into_iter().filter(|(id, _)| made_ms(*id) >= floor));
    }

    /// The workers have reported: what is still kept aside is queued. Answers which, and whether each was handed out before.
    pub fn release(&mut self, unix_ms: u64, now: Instant) -> Vec<(TaskId, bool)> {
        let mut released = Vec::new();
        for id in std::mem::take(&mut self.held) {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.held = false;
                let wait = task.spec.not_before_ms.saturating_sub(unix_ms);
                released.push((id, !task.tries().is_empty()));
                self.enqueue(id, Duration::from_millis(wait), now);
            }
        }
        released
    }

    // --- for the journal -----------------------------------------------------------------------------------------

    /// What of this task must be copied forward when the segment that holds it is deleted: all of it as it stands or is about
    /// to stand, or that its id was used, or nothing.
    pub fn copy_forward(&self, id: TaskId) -> Option<Record> {
        let Some(task) = self.tasks.get(&id).filter(|t| t.spec.durable) else {
            let fate = self.ids.get(&id)?;
            return Some(Record::Ids(vec![(id, *fate)]));
        };
        let mut snapshot = Snapshot::of(task, &task.state, task.finished_ms());
        match task.pending().map(|p| &p.change) {
            Some(Change::Finish(state, at_ms)) => snapshot = Snapshot::of(task, state, *at_ms),
            Some(Change::Retry) => snapshot.retried(),
            // Its record is not in any segment yet.
            Some(Change::Accept(_)) => return None,
            Some(Change::Requeue(_)) | None => {}
        }
        Some(Record::Snapshot(Box::new(snapshot)))
    }

    /// Bytes that the journal cannot do without, about.
    pub fn durable_bytes(&self) -> usize {
        self.durable_bytes + 20 * self.ids.len()
    }

    /// Ids made before this unix ms are not remembered.
    pub fn floor_ms(&self) -> u64 {
        self.floor_ms
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
        attempts: task.tries().iter().map(attempt).collect(),
        leased: task.state == State::Leased,
    }
}
