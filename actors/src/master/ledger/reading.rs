//! Reading the ledger. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Fate, Ledger, State, Task, WorkerId};
use crate::id::TaskId;

impl Ledger {
    // --- reading -------------------------------------------------------------------------------------------------

    /// One task, once it is accepted.
    pub fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks
            .get(&id)
            .map(|t| &**t)
            .filter(|t| !t.is_proposed())
    }

    /// How a task ended whose receipt is gone.
    pub fn forgotten(&self, id: TaskId) -> Option<Fate> {
        self.ids.get(&id).copied()
    }

    /// Newest first, below `after`, at most `limit` of those that fit. Walks over all tasks.
    pub fn newest_first(
        &self,
        after: Option<TaskId>,
        limit: usize,
        fits: impl Fn(&Task) -> bool,
    ) -> Vec<&Task> {
        let mut newest: BTreeSet<TaskId> = BTreeSet::new();
        for (id, task) in &self.tasks {
            let below = after.is_none_or(|after| *id < after);
            let small = newest.len() >= limit && newest.first().is_some_and(|first| id < first);
            if below && !small && !task.is_proposed() && fits(task) {
                newest.insert(*id);
                if newest.len() > limit {
                    newest.pop_first();
                }
            }
        }
        newest.iter().rev().filter_map(|id| self.get(*id)).collect()
    }

    /// Waiting for a worker, or to be accepted.
    pub fn queued(&self) -> usize {
        self.lines.waiting() + self.later.len() + self.proposed + self.held.len()
    }

    /// Queued or with a worker.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Queued or with a worker, and recorded nowhere.
    pub fn open_ephemeral(&self) -> usize {
        self.open_ephemeral
    }

    /// With a worker.
    pub fn outstanding(&self) -> BTreeMap<WorkerId, usize> {
        self.leased.iter().map(|(w, t)| (*w, t.len())).collect()
    }

    /// Tasks by state. Walks over what is finished, never over the queue.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let queued = self.queued();
        let leased = self.open.saturating_sub(queued);
        for (state, n) in [
            (State::Queued.as_str(), queued),
            (State::Leased.as_str(), leased),
            ("dead", self.dead.len()),
        ] {
            if n > 0 {
                counts.insert(state.to_owned(), n as u64);
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
