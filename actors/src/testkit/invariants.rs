//! The invariants of the design as code that reads the trace, record by record, and names the first that is broken. Pure.
//!
//! | n  | rule                                                    | read from                                                |
//! |----|---------------------------------------------------------|----------------------------------------------------------|
//! | 1  | one owner per epoch                                     | `master.promoted`, what is said under an epoch, the registry |
//! | 2  | epochs and revisions never fall                         | `master.promoted`, `master.changed`, the registry        |
//! | 3  | nothing below a seen epoch has an effect                | `task.started`, journal writes                           |
//! | 4  | no accepted durable task is lost                       | `sim.lost`, `sim.unfinished`                             |
//! | 5  | one recorded result                                     | [`super::tasks`]                                         |
//! | 6  | attempts only rise                                      | [`super::tasks`]                                         |
//! | 7  | started at most once                                    | [`super::tasks`]                                         |
//! | 8  | outstanding within credit; submits add up               | [`super::tasks`], `sim.submitted`, `sim.answered`        |
//! | 9  | after quiet everybody sees the registered, living set   | `sim.view`                                               |
//! | 10 | only fresh lives of this generation are let in          | [`super::conduct`]                                       |
//! | 11 | durable tasks' API histories are linearizable           | [`super::linear`]                                        |
//! | 12 | each death one decision; nothing leaks                  | `actor.*`, `sim.leak`, [`super::conduct`]                |
//! | 13 | no verdict, no takeover without a fault                 | `peer.condemned`, `master.promoted` in calm              |
//! | 14 | liveness, once the faults have ended                    | `sim.unsettled`, `sim.unfinished`                        |
//!
//! What each process says of its own conduct is read by [`super::conduct`]: more of 3, 4, 8, 12 and 13. Of 10, a trace can show
//! that nobody of another generation of the registry is let in; that bytes without the cluster's secret do nothing is for the
//! tests of the handshake, since a simulated run has no stranger.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use super::conduct::Conduct;
use super::linear;
use super::registry::History;
use super::tasks::Tasks;
use super::trace::Record;
use crate::id::Epoch;

type Place = (String, u32);

/// A broken rule, and the record that broke it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Number of the invariant, see the module page.
    pub invariant: u8,
    /// What is wrong, in words.
    pub what: String,
    /// Where and when it showed.
    pub record: Box<Record>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invariant {}: {}\n  at {}",
            self.invariant, self.what, self.record
        )
    }
}

/// What is known of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What each worker grants; 0 when not known.
    pub capacity: usize,
    /// Restarts that supervision allows…
    pub max_restarts: usize,
    /// …within this.
    pub within: Duration,
    /// So long after the last fault nobody may be condemned or deposed; none when the machine itself may be slow.
    pub calm: Option<Duration>,
    /// One thread writes the trace, so that its order is the order of events; otherwise events of different actors may be
    /// written a little out of order.
    pub one_thread: bool,
}

/// One actor's deaths and what was decided.
#[derive(Debug, Default)]
struct Care {
    deaths: VecDeque<Duration>,
    died: usize,
    restarted: usize,
}

/// Reads a trace. See the module page.
#[derive(Debug)]
pub struct Invariants {
    terms: Terms,
    registry: History,
    tasks: Tasks,
    conduct: Conduct,
    calls: linear::History,
    /// Who said that it owns an epoch.
    owners: BTreeMap<Epoch, Place>,
    /// The highest epoch each process has said it saw.
    seen: BTreeMap<Place, Epoch>,
    care: BTreeMap<Place, BTreeMap<String, Care>>,
    gave_up: BTreeMap<Place, bool>,
    last_fault: Option<Duration>,
    had_master: bool,
    submitted: BTreeMap<String, u64>,
    submitted_at: BTreeMap<String, Duration>,
    /// Durable tasks that were accepted, in the registry that there is.
    accepted: Vec<String>,
    /// Since when there is this registry.
    served: Duration,
    counts: BTreeMap<String, u64>,
}

impl Invariants {
    /// Nothing has happened yet.
    pub fn new(terms: Terms) -> Self {
        Self {
            tasks: Tasks::new(terms.capacity),
            terms,
            registry: History::default(),
            conduct: Conduct::default(),
            calls: linear::History::default(),
            owners: BTreeMap::new(),
            seen: BTreeMap::new(),
            care: BTreeMap::new(),
            gave_up: BTreeMap::new(),
            last_fault: None,
            had_master: false,
            submitted: BTreeMap::new(),
            submitted_at: BTreeMap::new(),
            accepted: Vec::new(),
            served: Duration::ZERO,
            counts: BTreeMap::new(),
        }
    }

    /// How often each event was read, for coverage.
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// The registry as told so far.
    pub fn registry(&self) -> &History {
        &self.registry
    }

    /// The tasks as told so far.
    pub fn tasks(&mut self) -> &mut Tasks {
        &mut self.tasks
    }

    /// Durable tasks that were accepted: each must end.
    pub fn accepted(&self) -> Vec<String> {
        self.accepted.clone()
    }

    /// See [`Tasks::oldest_lease`].
    pub fn oldest_lease(&self, epoch: Epoch) -> Option<(&str, Duration)> {
        self.tasks.oldest_lease(epoch)
    }

    /// See [`Tasks::peak`].
    pub fn peak(&self, node: &str, life: u32) -> usize {
        self.tasks.peak(node, life)
    }

    /// Takes one record.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn observe(&mut self, record: &Record) -> Result<(), Violation> {
        *self.counts.entry(record.event.clone()).or_default() += 1;
        let broken = self
            .registry
            .observe(record)
            .map(|what| (registry_rule(record), what))
            .or_else(|| self.tasks.observe(record))
            .or_else(|| self.mastership(record))
            .or_else(|| self.supervision(record))
            .or_else(|| self.of_the_test(record))
            .or_else(|| self.conduct_of(record))
            .or_else(|| Some((11, self.calls.observe(record)?)));
        match broken {
            None => Ok(()),
            Some((invariant, what)) => Err(Violation {
                invariant,
                what,
                record: Box::new(record.clone()),
            }),
        }
    }

    fn conduct_of(&mut self, record: &Record) -> Option<(u8, String)> {
        if self.terms.one_thread {
            self.conduct.observe(record)
        } else {
            None
        }
    }

    fn calm(&self, now: Duration) -> bool {
        let Some(calm) = self.terms.calm else {
            return false;
        };
        let quiet = |fault| now.saturating_sub(fault) > calm;
        self.last_fault.is_none_or(quiet)
    }

    // --- mastership and the fence ----------------------------------------------------------------------------------

    fn mastership(&mut self, record: &Record) -> Option<(u8, String)> {
        let place = (record.node.clone(), record.life);
        let epoch = record.epoch("epoch")?;
        match record.event.as_str() {
            "master.promoted" => self.promoted(place, epoch, record),
            "master.changed" => self.sees(&place, epoch),
            "task.assigned" | "task.created" | "task.finished" | "master.leading" => {
                self.owns(&place, epoch)
            }
            "task.started" => self.acts_under(&place, epoch),
            _ => None,
        }
    }

    fn promoted(&mut self, place: Place, epoch: Epoch, record: &Record) -> Option<(u8, String)> {
        let calm = self.calm(record.at) && std::mem::replace(&mut self.had_master, true);
        if let Some(first) = self.owners.insert(epoch, place.clone()) {
            let (first, second) = (first.0, place.0);
            return Some((
                1,
                format!("epoch {epoch} is owned by {first} and by {second}"),
            ));
        }
        if calm {
            return Some((
                13,
                format!("{} took mastership although nothing was wrong", place.0),
            ));
        }
        self.sees(&place, epoch)
    }

    /// What a process says of the highest epoch may only rise.
    fn sees(&mut self, place: &Place, epoch: Epoch) -> Option<(u8, String)> {
        let seen = self.seen.entry(place.clone()).or_default();
        if epoch < *seen {
            return Some((
                2,
                format!("{} goes by epoch {epoch} after it saw {seen}", place.0),
            ));
        }
        *seen = epoch;
        None
    }

    fn owns(&mut self, place: &Place, epoch: Epoch) -> Option<(u8, String)> {
        match self.owners.get(&epoch) {
            Some(owner) if owner == place => None,
            Some(owner) => Some((
                1,
                format!(
                    "{} acts under epoch {epoch}, which is {}'s",
                    place.0, owner.0
                ),
            )),
            None if self.terms.one_thread => Some((
                1,
                format!("{} acts under epoch {epoch}, which nobody owns", place.0),
            )),
            None => None,
        }
    }

    fn acts_under(&mut self, place: &Place, epoch: Epoch) -> Option<(u8, String)> {
        let seen = self.seen.get(place).copied().unwrap_or(Epoch::NONE);
        if epoch < seen && self.terms.one_thread {
            return Some((
                3,
                format!("{} obeys epoch {epoch} after it saw {seen}", place.0),
            ));
        }
        None
    }

    // --- supervision -------------------------------------------------------------------------------------------------

    fn supervision(&mut self, record: &Record) -> Option<(u8, String)> {
        let place = (record.node.clone(), record.life);
        let actor = record.get("actor").to_owned();
        match record.event.as_str() {
            "sim.crashed" => {
                self.care.remove(&place);
                None
            }
            "actor.failed" if !record.get("reason").is_empty() => {
                self.died(&place, actor, record.at)
            }
            "actor.stopped" if record.get("reason") != "told by its supervisor" => {
                self.died(&place, actor, record.at)
            }
            "actor.restarted" => self.restarted(&place, actor, record),
            "actor.gave_up" => self.gives_up(place, record),
            _ => None,
        }
    }

    fn died(&mut self, place: &Place, actor: String, at: Duration) -> Option<(u8, String)> {
        let care = self
            .care
            .entry(place.clone())
            .or_default()
            .entry(actor.clone())
            .or_default();
        if care.died > care.restarted {
            return Some((
                12,
                format!("{actor} died a second time before it was restarted"),
            ));
        }
        care.died += 1;
        care.deaths.push_back(at);
        while care.deaths.len() > 64 {
            care.deaths.pop_front();
        }
        None
    }

    fn restarted(&mut self, place: &Place, actor: String, record: &Record) -> Option<(u8, String)> {
        if actor == "worker" {
            self.tasks.worker_restarted(record);
        }
        let deaths = self.deaths_within(place, record.at);
        let care = self
            .care
            .entry(place.clone())
            .or_default()
            .entry(actor.clone())
            .or_default();
        care.restarted += 1;
        if care.restarted > care.died {
            return Some((
                12,
                format!(
                    "{actor} was restarted {} times for {} deaths",
                    care.restarted, care.died
                ),
            ));
        }
        if deaths > self.terms.max_restarts {
            return Some((
                12,
                format!(
                    "{actor} was restarted after {deaths} deaths within {:?}, {} are allowed",
                    self.terms.within, self.terms.max_restarts
                ),
            ));
        }
        None
    }

    fn gives_up(&mut self, place: Place, record: &Record) -> Option<(u8, String)> {
        let deaths = self.deaths_within(&place, record.at);
        let twice = self.gave_up.insert(place, true).is_some();
        if twice {
            return Some((12, "supervision gave up twice".to_owned()));
        }
        (deaths <= self.terms.max_restarts).then(|| {
            (
                12,
                format!(
                    "supervision gave up after {deaths} deaths within {:?}, {} are allowed",
                    self.terms.within, self.terms.max_restarts
                ),
            )
        })
    }

    fn deaths_within(&self, place: &Place, now: Duration) -> usize {
        let Some(actors) = self.care.get(place) else {
            return 0;
        };
        let recent = |at: &&Duration| now.saturating_sub(**at) < self.terms.within;
        actors
            .values()
            .map(|care| care.deaths.iter().filter(recent).count())
            .sum()
    }

    // --- what the test itself did and saw ------------------------------------------------------------------------------

    fn of_the_test(&mut self, record: &Record) -> Option<(u8, String)> {
        match record.event.as_str() {
            // A fault that lasts is told again when it ends.
            "sim.fault" | "sim.healed" | "sim.crashed" | "sim.up" => {
                self.last_fault = Some(record.at);
                None
            }
            "peer.condemned" if self.calm(record.at) => Some((
                13,
                format!(
                    "{} was condemned although nothing was wrong: {}",
                    record.get("peer"),
                    record.get("reason")
                ),
            )),
            "sim.false_verdict" => Some((13, record.get("what").to_owned())),
            "sim.submitted" => {
                let task = record.get("task").to_owned();
                self.submitted_at.insert(task, record.at);
                *self
                    .submitted
                    .entry(record.get("task").to_owned())
                    .or_default() += 1;
                None
            }
            "sim.answered" => self.answered(record),
            // What an empty registry took the place of is lost with it.
            "sim.serving" => {
                self.accepted.clear();
                self.served = record.at;
                None
            }
            "sim.lost" => Some((4, record.get("what").to_owned())),
            "sim.view" => Some((9, record.get("what").to_owned())),
            "sim.leak" => Some((12, record.get("what").to_owned())),
            "sim.unsettled" | "sim.unfinished" | "sim.late" => {
                Some((14, record.get("what").to_owned()))
            }
            _ => None,
        }
    }

    fn answered(&mut self, record: &Record) -> Option<(u8, String)> {
        let task = record.get("task").to_owned();
        let open = self.submitted.entry(task.clone()).or_default();
        if *open == 0 {
            return Some((8, format!("the submit of {task} was answered twice")));
        }
        *open -= 1;
        // What was handed in before may be in the registry before.
        let here = self
            .submitted_at
            .get(&task)
            .is_some_and(|at| *at > self.served);
        let accepted = record.get("answer").starts_with("accepted");
        if here && accepted && record.get("durable") == "true" {
            self.accepted.push(task);
        }
        None
    }

    /// At the end of a run: every death was followed by its decision, and what callers were told fits one order.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn finish(&mut self, at: Duration) -> Result<(), Violation> {
        for (place, actors) in &self.care {
            if self.gave_up.contains_key(place) {
                continue;
            }
            for (actor, care) in actors {
                if care.died != care.restarted {
                    return Err(Violation {
                        invariant: 12,
                        what: format!(
                            "{actor} of {} died {} times and was restarted {} times",
                            place.0, care.died, care.restarted
                        ),
                        record: Box::new(Record::new(at, &place.0, place.1, "sim.end")),
                    });
                }
            }
        }
        match self.calls.broken() {
            None => Ok(()),
            Some(what) => Err(Violation {
                invariant: 11,
                what,
                record: Box::new(Record::new(at, "world", 1, "sim.end")),
            }),
        }
    }
}

/// Which rule the registry's history breaks.
fn registry_rule(record: &Record) -> u8 {
    if record.get("key").contains("/journal/") {
        3
    } else if record.get("key").ends_with("/master") {
        1
    } else {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        capacity: 2,
        max_restarts: 5,
        within: Duration::from_secs(10),
        calm: Some(Duration::from_secs(20)),
        one_thread: true,
    };

    fn said(at: u64, node: &str, event: &str) -> Record {
        Record::new(Duration::from_secs(at), node, 1, event)
    }

    fn broken(records: &[Record]) -> Option<u8> {
        let mut invariants = Invariants::new(TERMS);
        let mut all = records.iter();
        all.find_map(|r| invariants.observe(r).err())
            .map(|v| v.invariant)
    }

    fn of(record: Record, epoch: &str, attempt: &str) -> Record {
        let record = record.with("task", "t").with("epoch", epoch);
        record.with("attempt", attempt)
    }

    #[test]
    fn each_rule_is_broken_by_what_breaks_it_and_by_nothing_less() {
        let promoted = |at, node, epoch| said(at, node, "master.promoted").with("epoch", epoch);
        let fault = |at| said(at, "world", "sim.fault");
        let assigned = |n, attempt| of(said(1, n, "task.assigned"), "7-10", attempt);
        let finished = |attempt| of(said(1, "a", "task.finished"), "7-10", attempt);
        let started = |epoch, attempt| of(said(1, "b", "task.started"), epoch, attempt);
        let first = promoted(0, "a", "7-10");
        let rows: Vec<(Option<u8>, Vec<Record>)> = vec![
            (
                None,
                vec![first.clone(), fault(1), promoted(2, "b", "7-20")],
            ),
            (
                Some(1),
                vec![first.clone(), fault(1), promoted(2, "b", "7-10")],
            ),
            (
                Some(2),
                vec![first.clone(), fault(1), promoted(2, "a", "7-9")],
            ),
            (
                Some(13),
                vec![first.clone(), fault(1), promoted(60, "b", "7-20")],
            ),
            (Some(1), vec![first.clone(), assigned("b", "7-10/1")]),
            (
                Some(3),
                vec![
                    said(0, "b", "master.changed").with("epoch", "7-11"),
                    started("7-10", "7-10/1"),
                ],
            ),
            (
                None,
                vec![
                    first.clone(),
                    assigned("a", "7-10/1"),
                    assigned("a", "7-10/2"),
                    finished("7-10/2"),
                ],
            ),
            (
                Some(6),
                vec![
                    first.clone(),
                    assigned("a", "7-10/2"),
                    assigned("a", "7-10/1"),
                ],
            ),
            (
                Some(6),
                vec![
                    first.clone(),
                    assigned("a", "7-10/1"),
                    assigned("a", "7-10/2"),
                    finished("7-10/1"),
                ],
            ),
            (
                Some(5),
                vec![
                    first.clone(),
                    assigned("a", "7-10/1"),
                    finished("7-10/1"),
                    finished("7-10/1"),
                ],
            ),
            (
                Some(7),
                vec![started("7-10", "7-10/1"), started("7-10", "7-10/1")],
            ),
            (
                Some(8),
                vec![
                    started("7-10", "7-10/1"),
                    started("7-10", "7-10/2"),
                    started("7-10", "7-10/3"),
                ],
            ),
            (Some(13), vec![said(30, "a", "peer.condemned")]),
            (None, vec![fault(15), said(30, "a", "peer.condemned")]),
            (
                Some(9),
                vec![said(1, "a", "sim.view").with("what", "sees nobody")],
            ),
            (
                Some(4),
                vec![said(1, "a", "sim.lost").with("what", "a task is gone")],
            ),
            (
                Some(12),
                vec![said(1, "a", "sim.leak").with("what", "a session too many")],
            ),
            (
                Some(14),
                vec![said(1, "a", "sim.unsettled").with("what", "nobody leads")],
            ),
            (
                Some(8),
                vec![
                    said(0, "a", "sim.submitted").with("task", "t"),
                    said(1, "a", "sim.answered").with("task", "t"),
                    said(2, "a", "sim.answered").with("task", "t"),
                ],
            ),
        ];
        for (expected, records) in rows {
            assert_eq!(broken(&records), expected, "{records:#?}");
        }
    }

    #[test]
    fn a_durable_task_ends_once_unless_a_dead_one_was_to_be_tried_again() {
        let promoted = said(0, "a", "master.promoted").with("epoch", "7-10");
        let durable = said(0, "a", "sim.submitted").with("task", "t");
        let before = [promoted, durable.with("durable", "true")];
        let ended = |event: &str, n: u32| of(said(1, "a", event), "7-10", &format!("7-10/{n}"));
        let retry = said(1, "a", "sim.called").with("asked", "retry");
        let retry = retry.with("task", "t").with("call", "1");
        let with = |more: &[Record]| broken(&[&before[..], more].concat());
        assert_eq!(with(&[ended("task.dead", 1)]), None);
        let dead_and_done = [ended("task.dead", 1), ended("task.finished", 2)];
        assert_eq!(with(&dead_and_done), Some(5));
        let [dead, done] = dead_and_done;
        assert_eq!(with(&[dead, retry, done.clone()]), None);
        assert_eq!(with(&[ended("task.cancelled", 1), done]), Some(5));
    }

    #[test]
    fn what_callers_were_told_must_fit_one_order() {
        let call = |n: &str, asked: &str| {
            let record = said(1, "a", "sim.called").with("task", "t");
            record.with("call", n).with("asked", asked)
        };
        let told = |n: &str, answer: &str| {
            said(2, "a", "sim.returned")
                .with("call", n)
                .with("answer", answer)
        };
        let mut invariants = Invariants::new(TERMS);
        for record in [call("1", "submit"), told("1", "queued")] {
            invariants.observe(&record).unwrap();
        }
        assert!(invariants.finish(Duration::from_secs(9)).is_ok());
        let mut later = call("2", "read");
        later.at += Duration::from_secs(9);
        invariants.observe(&later).unwrap();
        let mut absent = told("2", "absent");
        absent.at += Duration::from_secs(9);
        invariants.observe(&absent).unwrap();
        let broken = invariants.finish(Duration::from_secs(19)).unwrap_err();
        assert_eq!(broken.invariant, 11);
    }

    #[test]
    fn each_death_is_one_restart_and_a_sixth_within_the_window_is_none() {
        let died = |at| {
            said(at, "a", "actor.failed")
                .with("actor", "worker")
                .with("reason", "panic")
        };
        let back = |at| said(at, "a", "actor.restarted").with("actor", "worker");
        assert_eq!(broken(&[died(1), back(1)]), None);
        assert_eq!(broken(&[died(1), back(1), back(1)]), Some(12));
        assert_eq!(broken(&[died(1), died(1)]), Some(12));
        let five: Vec<Record> = (0..5).flat_map(|n| [died(n), back(n)]).collect();
        assert_eq!(broken(&five), None);
        assert_eq!(
            broken(&[five.clone(), vec![died(5), back(5)]].concat()),
            Some(12)
        );
        assert_eq!(
            broken(&[five, vec![died(5), said(5, "a", "actor.gave_up")]].concat()),
            None
        );
        assert_eq!(broken(&[died(1), said(1, "a", "actor.gave_up")]), Some(12));
        let mut open = Invariants::new(TERMS);
        assert!(open.observe(&died(1)).is_ok());
        assert!(open.finish(Duration::from_secs(9)).is_err());
    }
}
