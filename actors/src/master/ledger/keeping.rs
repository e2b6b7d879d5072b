//! How long what is finished is kept, and who is told that it is. Pure.

use std::time::Instant;

use super::{Fate, Ledger, ended, made_ms};
use crate::id::TaskId;
use crate::master::Ended;

impl Ledger {
    /// Drops what was finished too long ago, or is too much.
    pub(super) fn forget(&mut self, now: Instant) {
        let keep = self.settings.clone();
        while let Some(id) = self.finished.front().copied() {
            let at = self
                .tasks
                .get(&id)
                .and_then(|t| t.history.as_ref()?.finished_at);
            let old =
                at.is_none_or(|at| now.saturating_duration_since(at) > keep.keep_finished_for);
            let few = self.finished.len() <= keep.keep_finished;
            if few && self.finished_bytes <= keep.keep_finished_bytes && !old {
                break;
            }
            self.finished.pop_front();
            if let Some(task) = self.tasks.get(&id) {
                self.finished_bytes -= task.weight();
                if task.spec.durable {
                    self.ids.insert(id, Fate::of(&task.state));
                }
                self.drop_task(id);
            }
        }
        while self.dead.len() > self.settings.keep_finished {
            let Some(id) = self.dead.pop_front() else {
                break;
            };
            if self.tasks.get(&id).is_some_and(|t| t.spec.durable) {
                self.ids.insert(id, Fate::Dead);
            }
            self.drop_task(id);
        }
        while self.ids.len() > self.settings.keep_ids {
            if let Some((oldest, _)) = self.ids.pop_first() {
                self.floor_ms = self.floor_ms.max(made_ms(oldest) + 1);
            }
        }
    }

    /// What is older than the window is not remembered.
    pub(super) fn age_ids(&mut self, unix_ms: u64) {
        let window = u64::try_from(self.settings.window.as_millis()).unwrap_or(u64::MAX);
        self.floor_ms = self.floor_ms.max(unix_ms.saturating_sub(window));
        while let Some((oldest, _)) = self.ids.first_key_value() {
            if made_ms(*oldest) >= self.floor_ms {
                break;
            }
            self.ids.pop_first();
        }
    }

    /// Tasks that were finished since the last call, if they were to be watched; and whether they are from now on.
    pub fn take_ended(&mut self, watched: bool) -> Vec<Ended> {
        self.watched = watched;
        std::mem::take(&mut self.ended)
    }

    /// How a task ended; `None` while it has not. Of what is not known it is only known that it is not open.
    pub fn ending(&self, id: TaskId) -> Option<Ended> {
        match self.tasks.get(&id) {
            Some(task) => (!task.state.is_open()).then(|| ended(task)),
            None => Some(Ended {
                id,
                state: self.forgotten(id).map_or("forgotten", Fate::as_str),
                output: None,
                error: None,
            }),
        }
    }
}
