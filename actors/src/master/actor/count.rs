//! ▶ What MasterActor counts of tasks: every one, whatever the log leaves out.

use std::time::Duration;

use super::MasterActor;
use crate::id::TaskId;
use crate::master::ledger::{Committed, State, Verdict};
use crate::master::task::Change;
use crate::time::unix_ms;
use crate::wire::{Assignment, Outcome, TaskResult};

impl MasterActor {
    /// A task is handed out: its first wait is over.
    pub(super) fn count_wait(&mut self, assignment: &Assignment) {
        if assignment.attempt.attempt.n > 1 {
            return;
        }
        let spec = &assignment.spec;
        let since = spec.created_ms.max(spec.not_before_ms);
        let waited = unix_ms().saturating_sub(since);
        self.tally.wait.observe(Duration::from_millis(waited));
    }

    /// What an ephemeral task came to; a durable one is counted once it is recorded.
    pub(super) fn count_result(&mut self, result: &TaskResult, verdict: &Verdict) {
        let outcome = match (verdict, &result.outcome) {
            (Verdict::Recorded, Outcome::Done(_)) => "done",
            (Verdict::Recorded, Outcome::Cancelled) => "cancelled",
            (Verdict::Recorded, _) => "failed",
            // Dead is counted where it is said: it is also found without a result.
            _ => return,
        };
        let ran = result.finished_ms.saturating_sub(result.started_ms);
        self.tally.run.observe(Duration::from_millis(ran));
        self.count(result.attempt.task, outcome);
    }

    /// What became of a durable task.
    pub(super) fn count_committed(&mut self, committed: &Committed) {
        let Change::Finish(state, _) = &committed.change else {
            return;
        };
        let outcome = state.as_str();
        if matches!(state, State::Done(_) | State::Failed(_)) {
            let ledger = self.reign.as_ref().map(|reign| &reign.ledger);
            let task = ledger.and_then(|ledger| ledger.get(committed.task));
            let last = task.and_then(|task| task.tries().last());
            let ran = last.map_or(0, |t| t.finished_ms.saturating_sub(t.started_ms));
            self.tally.run.observe(Duration::from_millis(ran));
        }
        self.count(committed.task, outcome);
    }

    pub(super) fn count(&mut self, task: TaskId, outcome: &str) {
        let ledger = self.reign.as_ref().map(|reign| &reign.ledger);
        if let Some(task) = ledger.and_then(|ledger| ledger.get(task)) {
            self.tally.finished(&task.spec.job, outcome);
        }
    }
}
