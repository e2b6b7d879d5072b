//! What people wish of a task: that it be cancelled, or tried again. Pure.

use std::time::{Duration, Instant};

use super::{Ending, Ledger, Pending, State, WorkerId, durable_weight};
use crate::id::{AttemptId, TaskId};
use crate::master::task::Change;

impl Ledger {
    // --- people's wishes -----------------------------------------------------------------------------------------

    /// Cancels what is queued or with a worker. Answers the attempt that is to be stopped, if one runs.
    pub fn cancel(
        &mut self,
        id: TaskId,
        at_ms: u64,
        now: Instant,
    ) -> Result<Option<(AttemptId, WorkerId)>, &'static str> {
        let task = self.tasks.get(&id).filter(|t| !t.is_proposed());
        let task = task.ok_or("no such task")?;
        if !task.state.is_open() {
            return Err("it is already finished");
        }
        if task.pending().is_some() {
            return Err("how its last attempt ended is being recorded");
        }
        let running = self.holder(id);
        if running.is_some() {
            if let Some(last) = self
                .tasks
                .get_mut(&id)
                .and_then(|t| t.history().tries.last_mut())
            {
                last.ending = Ending::Cancelled;
            }
            self.end_lease(id);
        } else {
            // Not in the queue any more, whatever the journal will say.
            self.unqueue(id, State::Queued);
        }
        let cancel = Pending {
            change: Change::Finish(State::Cancelled, at_ms),
            answers: None,
            why: "somebody cancelled it",
        };
        self.settle(id, cancel, now);
        Ok(running)
    }

    /// Gives a dead task another chance: its attempts count from zero.
    pub fn retry(&mut self, id: TaskId, now: Instant) -> Result<(), &'static str> {
        let task = self.tasks.get(&id).ok_or("no such task")?;
        if !matches!(task.state, State::Dead(_)) {
            return Err(
                "only a dead task can be tried again: a result is immutable, and what is open is tried anyway",
            );
        }
        if task.pending().is_some() {
            return Ok(());
        }
        let retry = Pending {
            change: Change::Retry,
            answers: None,
            why: "somebody gave it another chance",
        };
        self.settle(id, retry, now);
        Ok(())
    }

    pub(super) fn revive(&mut self, id: TaskId, now: Instant) {
        self.dead.retain(|dead| *dead != id);
        if let Some(task) = self.tasks.get_mut(&id) {
            self.durable_bytes -= durable_weight(task);
            task.state = State::Queued;
            let history = task.history();
            (history.finished_ms, history.finished_at) = (0, None);
            for t in &mut history.tries {
                (t.spent, t.blamed) = (false, false);
            }
            self.durable_bytes += durable_weight(task);
            self.open += 1;
            self.open_ephemeral += usize::from(!task.spec.durable);
        }
        self.enqueue(id, Duration::ZERO, now);
    }
}
