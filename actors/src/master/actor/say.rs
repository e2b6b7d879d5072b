//! ▶ What MasterActor says of tasks, once per decision, sampled when there are many.

use super::MasterActor;
use crate::id::AttemptId;
use crate::master::ledger::{Committed, State, Verdict};
use crate::master::reign::{Origin, Recovered};
use crate::master::task::Change;
use crate::trace;
use crate::wire::{Outcome, TaskResult};

impl MasterActor {
    /// What became of a durable task, once it is recorded.
    pub(super) fn say_committed(&mut self, committed: &Committed) {
        let usual = match &committed.change {
            Change::Accept(_) | Change::Requeue(_) => true,
            Change::Finish(state, _) => matches!(state, State::Done(_)),
            Change::Retry => false,
        };
        let level = self.level();
        if usual && !log::log_enabled!(target: "master", level) {
            return;
        }
        let Some(reign) = &self.reign else { return };
        let Some(task) = reign.ledger.get(committed.task) else {
            return;
        };
        let attempt = task.tries().last().map(|t| t.attempt.to_string());
        let attempt = attempt.unwrap_or_default();
        let (id, job, epoch) = (
            committed.task.to_string(),
            task.spec.job.clone(),
            self.epoch(),
        );
        let trace_id = trace::of(&task.spec.meta).map(str::to_owned);
        let error = match &task.state {
            State::Failed(why) | State::Dead(why) => why.to_string(),
            _ => committed.why.to_owned(),
        };
        let ran = task
            .tries()
            .last()
            .map_or(0, |t| t.finished_ms.saturating_sub(t.started_ms));
        let executor = task.tries().last().map(|t| t.worker.id);
        let output = match &task.state {
            State::Done(output) => String::from_utf8_lossy(output).into_owned(),
            _ => String::new(),
        };
        let executor = executor.map(|id| self.name_of(id)).unwrap_or_default();
        let (id, attempt, epoch) = (id.as_str(), attempt.as_str(), epoch.as_str());
        let (executor, error) = (executor.as_str(), error.as_str());
        match &committed.change {
            Change::Accept(_) => {
                log::log!(target: "master", level, event = "task.created", task = id, job = job.as_str(), trace_id:serde = trace_id, epoch = epoch; "task accepted")
            }
            Change::Finish(State::Done(_), _) => {
                log::log!(target: "master", level, event = "task.finished", task = id, attempt = attempt, executor = executor, output = output.as_str(), duration_ms = ran, trace_id:serde = trace_id, epoch = epoch; "task finished")
            }
            Change::Finish(State::Dead(_), _) => {
                log::warn!(target: "master", event = "task.dead", task = id, attempt = attempt, reason = error, trace_id:serde = trace_id, epoch = epoch; "no further attempt")
            }
            Change::Finish(State::Cancelled, _) => {
                log::info!(target: "master", event = "task.cancelled", task = id, trace_id:serde = trace_id, epoch = epoch; "task cancelled")
            }
            Change::Finish(..) => {
                log::warn!(target: "master", event = "task.failed", task = id, attempt = attempt, executor = executor, reason = error, duration_ms = ran, trace_id:serde = trace_id, epoch = epoch; "task failed")
            }
            Change::Requeue(_) => {
                log::log!(target: "master", level, event = "task.requeued", task = id, attempt = attempt, reason = committed.why, trace_id:serde = trace_id, epoch = epoch; "task queued again")
            }
            Change::Retry => {
                log::info!(target: "master", event = "task.retried", task = id, epoch = epoch; "a dead task is given another chance")
            }
        }
    }

    pub(super) fn say_verdict(&mut self, attempt: AttemptId, verdict: &Verdict) {
        if *verdict == Verdict::Dead {
            self.count(attempt.task, "dead");
        }
        let level = self.level();
        if *verdict != Verdict::Dead && !log::log_enabled!(target: "master", level) {
            return;
        }
        let epoch = self.epoch();
        let trace_id = self.trace_of(attempt);
        let (task, attempt) = (attempt.task.to_string(), attempt.attempt.to_string());
        match verdict {
            Verdict::Requeued(why) => {
                log::log!(target: "master", level, event = "task.requeued", task = task, attempt = attempt, reason = *why, trace_id:serde = trace_id, epoch = epoch; "task queued again");
            }
            Verdict::Dead => {
                log::warn!(target: "master", event = "task.dead", task = task, attempt = attempt, trace_id:serde = trace_id, epoch = epoch; "its attempts are used up");
            }
            Verdict::Recorded | Verdict::Recording | Verdict::Repeated | Verdict::Refused(_) => {}
        }
    }

    fn trace_of(&self, attempt: AttemptId) -> Option<String> {
        let task = self.reign.as_ref()?.ledger.get(attempt.task)?;
        trace::of(&task.spec.meta).map(str::to_owned)
    }

    /// Each task that only the master before knew is named.
    pub(super) fn say_inherited(&mut self, recovered: &Recovered) {
        let epoch = self.epoch();
        for (task, leased) in &recovered.queued {
            let what = if *leased {
                "its attempt is with no worker that reported"
            } else {
                "it was only queued"
            };
            let (level, reason) = match &recovered.origin {
                Origin::Own => (self.level(), format!("{what} here, under the epoch before")),
                Origin::Handed(by) => (self.level(), format!("{what}; handed over by {by}")),
                // Bounded by what a shadow holds.
                Origin::Shadow(dead) => (
                    log::Level::Warn,
                    format!("{what} at the dead master {dead}"),
                ),
            };
            log::log!(target: "master", level, event = "task.requeued", task = task.to_string(), reason = reason.as_str(), epoch = epoch.as_str(); "a task of the reign before is queued again");
        }
    }

    pub(super) fn say_result(
        &mut self,
        executor: &str,
        result: &TaskResult,
        verdict: &Verdict,
        epoch: &str,
    ) {
        let usual = matches!(
            (verdict, &result.outcome),
            (Verdict::Recorded, Outcome::Done(_))
        );
        let level = self.level();
        if usual && !log::log_enabled!(target: "master", level) {
            return;
        }
        let task = result.attempt.task.to_string();
        let attempt = result.attempt.attempt.to_string();
        let duration = result.finished_ms.saturating_sub(result.started_ms);
        let trace_id = self.trace_of(result.attempt);
        match (verdict, &result.outcome) {
            (Verdict::Recorded, Outcome::Done(output)) => {
                let output = String::from_utf8_lossy(output);
                log::log!(target: "master", level, event = "task.finished", task = task, attempt = attempt, executor = executor, output = &*output, started = crate::time::rfc3339(result.started_ms), finished = crate::time::rfc3339(result.finished_ms), duration_ms = duration, trace_id:serde = trace_id, epoch = epoch; "task finished");
            }
            (Verdict::Recorded, outcome) => {
                log::warn!(target: "master", event = "task.failed", task = task, attempt = attempt, executor = executor, reason:debug = outcome, duration_ms = duration, trace_id:serde = trace_id, epoch = epoch; "task failed");
            }
            // It was stopped because it ran in vain.
            (Verdict::Refused(_), Outcome::Cancelled) => {}
            (Verdict::Refused(why), _) => {
                log::warn!(target: "master", event = "task.refused", task = task, attempt = attempt, executor = executor, reason = *why, trace_id:serde = trace_id, epoch = epoch; "a result is refused");
            }
            (other, _) => self.say_verdict(result.attempt, other),
        }
    }

    /// No worker is no error: it is said once, and the tasks wait.
    pub(super) fn say_waiting(&mut self, why: Option<String>) {
        if self.said_waiting == why {
            return;
        }
        let queued = self.reign.as_ref().map_or(0, |r| r.ledger.queued());
        if let Some(why) = &why {
            log::warn!(target: "master", event = "task.waiting", reason = why.as_str(), queued = queued; "tasks wait for a worker");
        }
        self.said_waiting = why;
    }
}
