//! Who waits for which tasks to finish. Pure.

use std::collections::HashMap;

use super::Ended;
use crate::id::TaskId;

/// Somebody who waits for some tasks, and what is known of them so far.
#[derive(Debug)]
struct Group<T> {
    whom: T,
    left: usize,
    ended: Vec<Option<Ended>>,
}

/// See the module page. `T` is how the one who waits is told.
#[derive(Debug)]
pub struct Waits<T> {
    // Never walked over: its order is chance.
    tasks: HashMap<TaskId, Vec<(u64, usize)>>,
    groups: HashMap<u64, Group<T>>,
    next: u64,
}

impl<T> Default for Waits<T> {
    fn default() -> Self {
        Self {
            tasks: HashMap::new(),
            groups: HashMap::new(),
            next: 0,
        }
    }
}

impl<T> Waits<T> {
    /// Nobody waits for anything.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Somebody waits for these; `known` tells of those that are finished. Answers at once when all are.
    pub fn wait(
        &mut self,
        whom: T,
        ids: &[TaskId],
        known: impl Fn(TaskId) -> Option<Ended>,
    ) -> Option<(T, Vec<Ended>)> {
        let group = self.next;
        let mut left = 0;
        let mut ended = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate() {
            let known = known(*id);
            if known.is_none() {
                left += 1;
                self.tasks.entry(*id).or_default().push((group, at));
            }
            ended.push(known);
        }
        if left == 0 {
            return Some((whom, ended.into_iter().flatten().collect()));
        }
        self.next += 1;
        self.groups.insert(group, Group { whom, left, ended });
        None
    }

    /// A task is finished: whoever waited for nothing else is told.
    pub fn ended(&mut self, task: &Ended) -> Vec<(T, Vec<Ended>)> {
        let mut told = Vec::new();
        for (group, at) in self.tasks.remove(&task.id).unwrap_or_default() {
            let Some(waiting) = self.groups.get_mut(&group) else {
                continue;
            };
            if let Some(slot) = waiting.ended.get_mut(at).filter(|slot| slot.is_none()) {
                *slot = Some(task.clone());
                waiting.left -= 1;
            }
            if waiting.left == 0
                && let Some(done) = self.groups.remove(&group)
            {
                told.push((done.whom, done.ended.into_iter().flatten().collect()));
            }
        }
        told
    }

    /// Those who have gone are forgotten.
    pub fn retain(&mut self, here: impl Fn(&T) -> bool) {
        self.groups.retain(|_, group| here(&group.whom));
        let groups = &self.groups;
        self.tasks.retain(|_, waiting| {
            waiting.retain(|(group, _)| groups.contains_key(group));
            !waiting.is_empty()
        });
    }

    /// Nobody is told anything any more.
    pub fn clear(&mut self) {
        self.tasks.clear();
        self.groups.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> TaskId {
        TaskId(uuid::Uuid::from_u128(n))
    }

    fn done(n: u128) -> Ended {
        Ended {
            id: id(n),
            state: "done",
            output: None,
            error: None,
        }
    }

    #[test]
    fn whoever_waits_is_told_once_when_the_last_has_ended() {
        let mut waits = Waits::default();
        assert!(waits.wait("a", &[id(1), id(2), id(1)], |_| None).is_none());
        assert!(waits.wait("b", &[id(2)], |_| None).is_none());
        assert!(waits.ended(&done(1)).is_empty());
        let told: Vec<_> = waits
            .ended(&done(2))
            .into_iter()
            .map(|(t, e)| (t, e.len()))
            .collect();
        assert_eq!(told, [("a", 3), ("b", 1)]);
        assert!(waits.ended(&done(2)).is_empty() && waits.is_empty());
    }

    #[test]
    fn what_is_finished_already_is_not_waited_for() {
        let mut waits = Waits::default();
        let told = waits.wait("a", &[id(1)], |id| Some(Ended { id, ..done(1) }));
        assert_eq!(told.map(|(t, e)| (t, e.len())), Some(("a", 1)));
        assert!(waits.is_empty());
    }

    #[test]
    fn those_who_have_gone_leave_nothing_behind() {
        let mut waits = Waits::default();
        waits.wait("a", &[id(1)], |_| None);
        waits.retain(|_| false);
        assert!(waits.is_empty() && waits.tasks.is_empty());
    }
}
