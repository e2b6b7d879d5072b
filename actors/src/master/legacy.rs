//! What another master left with this node: its shadow, or the ledger it handed over. Pure.
//!
//! It is worth something only for the reign right after: once anybody else has led since, its tasks may be long finished.

use crate::id::Epoch;
use crate::wire::{HandOver, LedgerEntry, Shadow};

/// See the module page.
#[derive(Debug, Default)]
pub struct Legacy {
    /// The highest epoch that anybody is known to have led under.
    preceding: Epoch,
    will: Option<Will>,
}

/// The ledger of a master, as it was last told.
#[derive(Debug)]
pub struct Will {
    /// The epoch it was under.
    pub epoch: Epoch,
    /// The master's name.
    pub master: String,
    /// Handed over on purpose; otherwise a shadow, told in case of a crash.
    pub handed: bool,
    /// Its open tasks, as far as told.
    pub entries: Vec<LedgerEntry>,
    /// Open tasks that were too many or too large to be told.
    pub beyond: u64,
}

impl Legacy {
    /// Somebody leads, or led, under this epoch: what is from before is void.
    pub fn led(&mut self, epoch: Epoch) {
        self.preceding = self.preceding.max(epoch);
        if self.will.as_ref().is_some_and(|w| w.epoch < self.preceding) {
            self.will = None;
        }
    }

    /// A master's shadow replaces the one before; it does not replace what that master handed over.
    pub fn shadow(&mut self, master: String, shadow: Shadow) {
        let handed = |w: &Will| w.epoch == shadow.epoch && w.handed;
        if shadow.epoch < self.preceding || self.will.as_ref().is_some_and(handed) {
            return;
        }
        self.led(shadow.epoch);
        self.will = Some(Will {
            epoch: shadow.epoch,
            master,
            handed: false,
            entries: shadow.entries,
            beyond: shadow.beyond,
        });
    }

    /// Part of a ledger that is handed over; the first part begins anew. Answers whether it was taken.
    pub fn part(&mut self, master: String, part: HandOver) -> bool {
        if part.epoch < self.preceding {
            return false;
        }
        self.led(part.epoch);
        let goes_on = |w: &&mut Will| w.handed && w.epoch == part.epoch && part.part > 0;
        match self.will.as_mut().filter(goes_on) {
            Some(will) => will.entries.extend(part.entries),
            None => {
                self.will = Some(Will {
                    epoch: part.epoch,
                    master,
                    handed: true,
                    entries: part.entries,
                    beyond: 0,
                });
            }
        }
        true
    }

    /// What there is for a reign that begins under this epoch.
    pub fn take(&mut self, reign: Epoch) -> Option<Will> {
        self.will.take().filter(|will| will.epoch < reign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Generation, TaskId};
    use crate::wire::TaskSpec;

    fn epoch(revision: i64) -> Epoch {
        Epoch {
            generation: Generation(1),
            revision,
        }
    }

    fn entry(n: u128) -> LedgerEntry {
        LedgerEntry {
            spec: TaskSpec {
                id: TaskId(uuid::Uuid::from_u128(n)),
                job: "noop".into(),
                input: bytes::Bytes::new(),
                meta: Default::default(),
                durable: false,
                timeout_ms: 1,
                max_attempts: 1,
                priority: 0,
                require: Default::default(),
                created_ms: 0,
                not_before_ms: 0,
            },
            attempts: Vec::new(),
            leased: false,
        }
    }

    fn shadow(revision: i64, tasks: &[u128]) -> Shadow {
        Shadow {
            epoch: epoch(revision),
            entries: tasks.iter().map(|n| entry(*n)).collect(),
            beyond: 0,
        }
    }

    fn part(revision: i64, part: u32, tasks: &[u128]) -> HandOver {
        HandOver {
            epoch: epoch(revision),
            entries: tasks.iter().map(|n| entry(*n)).collect(),
            more: true,
            part,
        }
    }

    fn tasks(legacy: &mut Legacy, reign: i64) -> Vec<u128> {
        let entries = legacy
            .take(epoch(reign))
            .map_or_else(Vec::new, |w| w.entries);
        entries.iter().map(|e| e.spec.id.0.as_u128()).collect()
    }

    #[test]
    fn the_newest_shadow_is_kept() {
        let mut legacy = Legacy::default();
        legacy.shadow("a".to_owned(), shadow(1, &[1, 2]));
        legacy.shadow("a".to_owned(), shadow(1, &[2, 3]));
        assert_eq!(tasks(&mut legacy, 2), [2, 3]);
        assert_eq!(tasks(&mut legacy, 2), []);
    }

    #[test]
    fn a_shadow_is_void_once_another_has_led() {
        let mut legacy = Legacy::default();
        legacy.shadow("a".to_owned(), shadow(1, &[1]));
        legacy.led(epoch(2));
        assert_eq!(tasks(&mut legacy, 3), []);
        legacy.shadow("a".to_owned(), shadow(1, &[1]));
        assert_eq!(tasks(&mut legacy, 3), []);
    }

    #[test]
    fn a_ledger_handed_over_is_not_replaced_by_a_shadow_and_a_second_stream_begins_anew() {
        let mut legacy = Legacy::default();
        legacy.shadow("a".to_owned(), shadow(1, &[9]));
        assert!(legacy.part("a".to_owned(), part(1, 0, &[1])));
        assert!(legacy.part("a".to_owned(), part(1, 1, &[2])));
        legacy.shadow("a".to_owned(), shadow(1, &[9]));
        assert_eq!(tasks(&mut legacy, 2), [1, 2]);
        assert!(legacy.part("a".to_owned(), part(1, 0, &[1, 2])));
        assert!(legacy.part("a".to_owned(), part(1, 0, &[3])));
        assert_eq!(tasks(&mut legacy, 2), [3]);
    }
}
