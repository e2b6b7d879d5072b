//! What a run went through: the situations that a promise is about, and the faults that led there. Pure.
//!
//! | goal                          | read from                                                                    |
//! |-------------------------------|------------------------------------------------------------------------------|
//! | take-over                     | `master.promoted` after another process was master                           |
//! | adoption                      | `task.adopted`                                                               |
//! | fence refusal                 | `task.refused` because fenced, `master.fenced`                               |
//! | unknown outcome               | `sim.unknown`: a transaction whose answer was lost, `done` before that or not |
//! | re-list                       | `registry.listed`, by its reason                                             |
//! | wrongful verdict              | `peer.condemned` of an incarnation whose process runs                        |
//! | challenge                     | `peer.challenged`, `registry.challenged`, `peer.condemned` for want of an answer |
//! | crash in mid-recovery         | `sim.crashed` of a master that is promoted and has not recovered; `actor.failed`, `actor.stopped` of its MasterActor |
//! | equal halves                  | `sim.fault` of that kind                                                     |
//! | suspicion withdrawn           | `peer.cleared`                                                               |
//!
//! Faults are counted by the `kind` of `sim.fault`. Both tiers of the simulation write these records, so both are counted
//! by the same rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::trace::Record;

/// The kind of a fault that splits the nodes into two halves of the same size; both tiers use this word.
pub const EQUAL_HALVES: &str = "equal halves";

/// What must have been hit often, in the order of the table.
pub const GOALS: [&str; 16] = [
    "take-over",
    "adoption",
    "fence refusal",
    "unknown outcome: it was done",
    "unknown outcome: it was not",
    "re-list after compaction",
    "re-list after a cancelled or broken watch",
    "re-list after silence",
    "wrongful verdict",
    "challenge put",
    "challenge answered",
    "challenge not answered",
    "crash in mid-recovery: process",
    "crash in mid-recovery: actor",
    EQUAL_HALVES,
    "suspicion withdrawn",
];

type Place = (String, u32);

/// How often something was seen, and in how many runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Occurrences.
    pub times: u64,
    /// Runs with at least one.
    pub seeds: u64,
}

/// The sum over runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Runs.
    pub seeds: u64,
    /// Their simulated time.
    pub simulated: Duration,
    /// Seeds that broke a rule.
    pub violations: Vec<u64>,
    /// By goal.
    pub goals: BTreeMap<String, Hits>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
}

impl Tally {
    /// Takes another sum in.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.simulated += other.simulated;
        self.violations.extend(&other.violations);
        for (goal, hits) in &other.goals {
            let sum = self.goals.entry(goal.clone()).or_default();
            sum.times += hits.times;
            sum.seeds += hits.seeds;
        }
        for (kind, times) in &other.faults {
            *self.faults.entry(kind.clone()).or_default() += times;
        }
    }

    /// Times that this goal was hit.
    pub fn times(&self, goal: &str) -> u64 {
        self.goals.get(goal).map_or(0, |hits| hits.times)
    }
}

/// Reads the trace of one run. See the module page.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    goals: BTreeMap<&'static str, u64>,
    faults: BTreeMap<String, u64>,
    /// Which process was last promoted.
    master: Option<Place>,
    /// Promoted, and the workers have not reported yet.
    recovering: BTreeSet<Place>,
    /// The incarnations of processes that run.
    alive: BTreeMap<Place, BTreeSet<String>>,
}

impl Coverage {
    /// Takes one record.
    pub fn observe(&mut self, record: &Record) {
        let place = (record.node.clone(), record.life);
        match record.event.as_str() {
            "sim.fault" => {
                let kind = record.get("kind");
                if !kind.is_empty() {
                    *self.faults.entry(kind.to_owned()).or_default() += 1;
                }
                if kind == EQUAL_HALVES {
                    self.hit(EQUAL_HALVES);
                }
            }
            "sim.unknown" if record.get("done") == "true" => {
                self.hit("unknown outcome: it was done");
            }
            "sim.unknown" => self.hit("unknown outcome: it was not"),
            "node.registered" => {
                let incarnation = record.get("incarnation").to_owned();
                self.alive.entry(place).or_default().insert(incarnation);
            }
            "master.promoted" => self.promoted(place),
            "master.recovered" | "master.demoted" => {
                self.recovering.remove(&place);
            }
            "sim.crashed" => {
                self.alive.remove(&place);
                if self.recovering.remove(&place) {
                    self.hit("crash in mid-recovery: process");
                }
            }
            "actor.failed" | "actor.stopped" => self.actor_ended(&place, record),
            "task.adopted" => self.hit("adoption"),
            "task.refused" if record.get("reason") == "fenced" => self.hit("fence refusal"),
            "master.fenced" => self.hit("fence refusal"),
            "registry.listed" => self.listed(record.get("reason")),
            "peer.challenged" => self.hit("challenge put"),
            "registry.challenged" => self.hit("challenge answered"),
            "peer.condemned" => self.condemned(record),
            "peer.cleared" => self.hit("suspicion withdrawn"),
            _ => {}
        }
    }

    /// What this run adds to a sum.
    pub fn tally(self, seed: u64, simulated: Duration, broken: bool) -> Tally {
        let once = |times| Hits { times, seeds: 1 };
        let goals = self.goals.into_iter();
        Tally {
            seeds: 1,
            simulated,
            violations: broken.then_some(seed).into_iter().collect(),
            goals: goals.map(|(g, n)| (g.to_owned(), once(n))).collect(),
            faults: self.faults,
        }
    }

    fn hit(&mut self, goal: &'static str) {
        *self.goals.entry(goal).or_default() += 1;
    }

    fn promoted(&mut self, place: Place) {
        if self.master.as_ref().is_some_and(|master| *master != place) {
            self.hit("take-over");
        }
        self.recovering.insert(place.clone());
        self.master = Some(place);
    }

    fn actor_ended(&mut self, place: &Place, record: &Record) {
        let by_itself = record.get("reason") != "told by its supervisor";
        if by_itself && record.get("actor") == "master" && self.recovering.contains(place) {
            self.hit("crash in mid-recovery: actor");
        }
    }

    fn listed(&mut self, reason: &str) {
        match reason {
            "compaction" => self.hit("re-list after compaction"),
            "watch ended" => self.hit("re-list after a cancelled or broken watch"),
            "silence" => self.hit("re-list after silence"),
            _ => {}
        }
    }

    fn condemned(&mut self, record: &Record) {
        let incarnation = record.get("incarnation");
        if self.alive.values().any(|all| all.contains(incarnation)) {
            self.hit("wrongful verdict");
        }
        if record.get("reason").contains("did not answer a challenge") {
            self.hit("challenge not answered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(node: &str, event: &str, fields: &[(&str, &str)]) -> Record {
        let record = Record::new(Duration::ZERO, node, 1, event);
        fields.iter().fold(record, |r, (k, v)| r.with(k, v))
    }

    #[test]
    fn each_goal_is_hit_by_its_own_records_and_sums_count_times_and_seeds() {
        let registered = |node, n| said(node, "node.registered", &[("incarnation", n)]);
        let promoted = |node| said(node, "master.promoted", &[]);
        let condemned = |n, why| {
            said(
                "b",
                "peer.condemned",
                &[("incarnation", n), ("reason", why)],
            )
        };
        let silent = "silent between nodes and did not answer a challenge through the registry";
        let rows = [
            registered("a", "5"),
            promoted("a"),
            said("a", "master.recovered", &[]),
            said("w", "sim.fault", &[("kind", EQUAL_HALVES)]),
            condemned("5", silent),
            said("a", "sim.crashed", &[]),
            condemned("5", "its session broke"),
            promoted("b"),
            said(
                "b",
                "actor.failed",
                &[("actor", "master"), ("reason", "panic")],
            ),
            said("b", "sim.crashed", &[]),
            said("w", "sim.unknown", &[("done", "true")]),
            said("w", "sim.unknown", &[("done", "false")]),
            said("c", "registry.listed", &[("reason", "compaction")]),
            said("c", "task.refused", &[("reason", "fenced")]),
            said("c", "task.refused", &[("reason", "superseded")]),
        ];
        let mut coverage = Coverage::default();
        rows.iter().for_each(|record| coverage.observe(record));
        let tally = coverage.tally(7, Duration::from_secs(3), true);
        let hit: Vec<&str> = GOALS
            .into_iter()
            .filter(|goal| tally.times(goal) == 1)
            .collect();
        assert_eq!(
            hit,
            [
                "take-over",
                "fence refusal",
                "unknown outcome: it was done",
                "unknown outcome: it was not",
                "re-list after compaction",
                "wrongful verdict",
                "challenge not answered",
                "crash in mid-recovery: process",
                "crash in mid-recovery: actor",
                EQUAL_HALVES,
            ]
        );
        let mut sum = tally.clone();
        sum.add(&tally);
        assert_eq!((sum.seeds, sum.violations.len()), (2, 2));
        assert_eq!(sum.goals["take-over"], Hits { times: 2, seeds: 2 });
        assert_eq!(sum.faults[EQUAL_HALVES], 2);
    }
}
