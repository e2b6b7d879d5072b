//! What each process must do, as far as its own words show it: whom a worker obeys, what it takes and holds, when a master stops,
//! whom a node lets in, whom it condemns. Pure.
//!
//! It reads what production code says at its most talkative, in the order in which it happened; so it is of use only for traces
//! that one thread wrote.
//!
//! | n  | rule                                                                   | read from                                   |
//! |----|------------------------------------------------------------------------|---------------------------------------------|
//! | 3  | a command below the fence, or below what was seen, is not obeyed       | `worker.obeyed`, `master.changed`           |
//! | 3  | whoever knows of a master has raised the fence to its epoch            | `master.changed`                            |
//! | 3  | whoever is deposed or unregistered stands down at once                 | `master.changed`, `node.deregistered`, `master.demoted` |
//! | 3  | …and hands out and accepts nothing from then on                        | `master.demoted`, `task.*`, `master.*`      |
//! | 4  | a submit is answered after its record, a result after its              | `sim.answered`, `task.created`, `task.acknowledged` |
//! | 4  | a result is held until it is answered                                  | `task.executed`, `task.acknowledged`, `worker.reported` |
//! | 8  | no more is taken than was granted                                      | `worker.reported`, `worker.granted`, `task.taken` |
//! | 10 | a session is with a life of this generation of the registry            | `session.opened`, the registry              |
//! | 12 | nothing panics but what was told to                                 | `actor.failed`                              |
//! | 12 | what waits in the mailbox of an actor that failed is handled later     | `sim.called`, `sim.returned`, `actor.*`     |
//! | 13 | a long pause of its own is noticed by a node                           | `sim.paused`, `sim.healed`, `node.resumed`  |
//! | 13 | no silence is counted that a node did not listen to                    | `sim.paused`, `sim.healed`, `peer.suspected` |
//! | 13 | a verdict removes the life it names, and is by somebody registered     | `registry.condemned`, the registry          |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::trace::Record;
use crate::id::Epoch;

type Place = (String, u32);
type Attempt = (Epoch, u32);
type Broken = Option<(u8, String)>;

/// What follows at once on one thread has happened by then: a few steps of the simulated clock.
const AT_ONCE: Duration = Duration::from_millis(30);
/// An actor that failed may be away for so long, and what hangs on it with it.
const RESTARTING: Duration = Duration::from_secs(5);
/// A session may be made so long after the generation changed between those who have not heard of it.
const UNHEARD: Duration = Duration::from_secs(1);

/// A shorter pause need not be noticed, by a clock that goes at half the rate.
const PAUSE: Duration = Duration::from_millis(1_200);
/// Clocks may go at different rates.
const RATES: u32 = 2;

/// A worker's credit since its last report.
#[derive(Debug, Default)]
struct Credit {
    granted: i64,
    taken: i64,
}

/// A master must stand down by then.
#[derive(Debug)]
struct Duty {
    place: Place,
    epoch: Epoch,
    by: Duration,
    why: &'static str,
}

/// A registration, by the revision that it began with.
#[derive(Debug)]
struct Life {
    key: String,
    /// Generations in which it may be let in; none when that was not seen.
    generations: Vec<i64>,
    ended: Option<i64>,
}

/// A verdict as the one who brought it about tells of it.
#[derive(Clone, Debug)]
struct Verdict {
    key: String,
    incarnation: i64,
    by: i64,
    revision: i64,
}

/// A panic that nobody asked for is a bug, whatever supervision makes of it.
fn by_itself(record: &Record) -> Broken {
    let (actor, err) = (record.get("actor"), record.get("err"));
    let asked = err.is_empty() || err.starts_with("killed by an operator");
    let panicked = record.event == "actor.failed" && !asked;
    panicked.then(|| (12, format!("{actor} panicked by itself: {err}")))
}

/// What is known of the processes. See the module page.
#[derive(Debug, Default)]
pub struct Conduct {
    seen: BTreeMap<Place, Epoch>,
    leading: BTreeMap<Place, Epoch>,
    demoted: BTreeMap<(Place, Epoch), Duration>,
    duties: Vec<Duty>,
    /// When an actor of a process last failed, or mastership was last handed over.
    upset: BTreeMap<Place, Duration>,
    credit: BTreeMap<Place, Credit>,
    held: BTreeMap<Place, BTreeSet<(String, Attempt)>>,
    durable: BTreeSet<String>,
    submits: BTreeMap<String, u32>,
    created: BTreeSet<String>,
    ended: BTreeSet<(String, Attempt)>,
    /// Results that were refused: told again, they are only said to be known.
    refused: BTreeSet<(String, Attempt)>,
    /// Tasks whose attempts' results nobody waits for any more.
    cancelled: BTreeSet<String>,
    generation: (i64, i64, Duration),
    lives: BTreeMap<i64, Life>,
    verdicts: Vec<Verdict>,
    /// Deaths of MasterActor, and whether it is dead now.
    deaths: BTreeMap<Place, (u32, bool)>,
    /// Calls made while MasterActor was dead, with its deaths so far.
    waiting: BTreeMap<(Place, String), u32>,
    leaving: BTreeSet<Place>,
    /// Machines that stand still, since when; and when those that did for long went on.
    standing: BTreeMap<String, Duration>,
    awake: BTreeMap<String, Duration>,
    /// Processes that run, since when.
    running: BTreeMap<Place, Duration>,
    /// Who must say by when that it was away; who said so, and when.
    notices: BTreeMap<Place, Duration>,
    noticed: BTreeMap<Place, Duration>,
}

impl Conduct {
    /// Takes one record; answers the number of the invariant that is broken, and how.
    pub fn observe(&mut self, record: &Record) -> Broken {
        let place = (record.node.clone(), record.life);
        if let Some(late) = self.duties.iter().find(|duty| duty.by < record.at) {
            let (node, epoch) = (&late.place.0, late.epoch);
            return Some((
                3,
                format!("{node} leads on under {epoch} though {}", late.why),
            ));
        }
        if let Some((late, _)) = self.notices.iter().find(|(_, by)| **by < record.at) {
            let node = &late.0;
            let what = format!("{node} was away for more than {PAUSE:?} and does not notice");
            return Some((13, what));
        }
        let kind = record.event.split('.').next().unwrap_or_default();
        if kind != "sim" {
            self.running.entry(place.clone()).or_insert(record.at);
        }
        match kind {
            "master" => self.mastership(&place, record),
            "task" => self.task(&place, record),
            "worker" => self.worker(&place, record),
            "actor" => {
                self.actor(&place, record);
                by_itself(record)
            }
            "node" | "session" | "registry" => self.node(&place, record),
            "peer" => self.suspects(record),
            "sim" => self.world(&place, record),
            _ => None,
        }
    }

    // --- mastership ------------------------------------------------------------------------------------------------

    fn mastership(&mut self, place: &Place, record: &Record) -> Broken {
        let epoch = record.epoch("epoch")?;
        match record.event.as_str() {
            "master.promoted" => {
                self.duties.retain(|duty| duty.place != *place);
                self.leading.insert(place.clone(), epoch);
                self.sees(place, epoch);
                None
            }
            // Ends the reign by itself, also where discovery has begun anew and does not know that it led.
            "master.fenced" | "master.stood_down" => {
                self.duties.retain(|duty| duty.place != *place);
                self.leading.remove(place);
                None
            }
            "master.demoted" => {
                self.duties.retain(|duty| duty.place != *place);
                self.leading.remove(place);
                self.demoted.insert((place.clone(), epoch), record.at);
                None
            }
            "master.handing_over" => {
                self.duties.retain(|duty| duty.place != *place);
                self.upset.insert(place.clone(), record.at);
                None
            }
            "master.changed" => self.changed(place, epoch, record),
            "master.leading" | "master.recovered" => self.acts(place, record),
            _ => None,
        }
    }

    fn changed(&mut self, place: &Place, epoch: Epoch, record: &Record) -> Broken {
        let fence = record.epoch("fence");
        if fence.is_some_and(|fence| fence < epoch) {
            let (node, fence) = (&place.0, fence.unwrap_or(Epoch::NONE));
            return Some((
                3,
                format!("{node} knows of a master under {epoch} and its fence is at {fence}"),
            ));
        }
        self.sees(place, epoch);
        let ours = self.leading.get(place).copied();
        if ours.is_some_and(|ours| ours < epoch) {
            self.must_stand_down(place, record.at, "it says that another leads");
        }
        None
    }

    fn sees(&mut self, place: &Place, epoch: Epoch) {
        let seen = self.seen.entry(place.clone()).or_default();
        *seen = epoch.max(*seen);
    }

    fn must_stand_down(&mut self, place: &Place, at: Duration, why: &'static str) {
        let upset = self.upset.get(place);
        let calm = upset.is_none_or(|upset| at.saturating_sub(*upset) > RESTARTING);
        if let (Some(epoch), true) = (self.leading.get(place), calm) {
            self.duties.push(Duty {
                place: place.clone(),
                epoch: *epoch,
                by: at + AT_ONCE,
                why,
            });
        }
    }

    /// Something that only a master does.
    fn acts(&self, place: &Place, record: &Record) -> Broken {
        let epoch = record.epoch("epoch")?;
        let demoted = self.demoted.get(&(place.clone(), epoch))?;
        (record.at > *demoted + AT_ONCE).then(|| {
            let (node, event) = (&place.0, &record.event);
            (
                3,
                format!("{node} goes on ({event}) under {epoch}, which it has given up"),
            )
        })
    }

    // --- tasks and workers -------------------------------------------------------------------------------------------

    fn task(&mut self, place: &Place, record: &Record) -> Broken {
        let task = record.get("task").to_owned();
        match record.event.as_str() {
            "task.created" => {
                self.created.insert(task);
                self.acts(place, record)
            }
            "task.assigned" | "task.adopted" => self.acts(place, record),
            "task.cancelled" => {
                self.cancelled.insert(task);
                None
            }
            "task.finished" | "task.failed" | "task.dead" | "task.requeued" => {
                self.ended.insert((task, record.attempt()?));
                None
            }
            "task.taken" => {
                let credit = self.credit.entry(place.clone()).or_default();
                credit.taken += 1;
                let (taken, granted) = (credit.taken, credit.granted);
                (taken > granted).then(|| {
                    let node = &place.0;
                    (
                        8,
                        format!("{node} took {taken} attempts and had granted {granted}"),
                    )
                })
            }
            "task.executed" if record.get("held") == "true" => {
                let held = self.held.entry(place.clone()).or_default();
                held.insert((task, record.attempt()?));
                None
            }
            "task.acknowledged" => self.acknowledged(place, task, record),
            _ => None,
        }
    }

    fn acknowledged(&mut self, place: &Place, task: String, record: &Record) -> Broken {
        let this = (task, record.attempt()?);
        if let Some(held) = self.held.get_mut(place) {
            held.remove(&this);
        }
        if record.get("refused") == "true" {
            self.refused.insert(this);
            return None;
        }
        // Of another reign's attempt the record may have been made before anybody could say so.
        let same_reign = record.epoch("epoch") == Some(this.1.0);
        let answered = same_reign && !self.refused.contains(&this);
        let answered = answered && !self.cancelled.contains(&this.0);
        let early = answered && self.durable.contains(&this.0) && !self.ended.contains(&this);
        early.then(|| {
            let (task, (epoch, n)) = this;
            (
                4,
                format!("the result of {task} {epoch}/{n} was answered before it was recorded"),
            )
        })
    }

    fn worker(&mut self, place: &Place, record: &Record) -> Broken {
        match record.event.as_str() {
            "worker.reported" => {
                let credit = self.credit.entry(place.clone()).or_default();
                *credit = Credit {
                    granted: record.number("credit"),
                    taken: 0,
                };
                let held = self.held.get(place).map_or(0, BTreeSet::len);
                let told = record.number("held");
                (i64::try_from(held).ok() != Some(told)).then(|| {
                    let node = &place.0;
                    (
                        4,
                        format!(
                            "{node} has {held} results that nobody answered and tells of {told}"
                        ),
                    )
                })
            }
            "worker.granted" => {
                let credit = self.credit.entry(place.clone()).or_default();
                credit.granted += record.number("credit");
                None
            }
            "worker.obeyed" => {
                let epoch = record.epoch("epoch")?;
                let fence = record.epoch("fence")?;
                let seen = self
                    .seen
                    .get(place)
                    .copied()
                    .unwrap_or(Epoch::NONE)
                    .max(fence);
                if epoch < seen {
                    let (node, what) = (&place.0, record.get("what"));
                    return Some((
                        3,
                        format!("{node} obeys {what} under {epoch} after it saw {seen}"),
                    ));
                }
                self.sees(place, epoch);
                None
            }
            _ => None,
        }
    }

    // --- supervision ---------------------------------------------------------------------------------------------------

    fn actor(&mut self, place: &Place, record: &Record) {
        let actor = record.get("actor");
        let told = record.get("reason") == "told by its supervisor";
        let died = match record.event.as_str() {
            "actor.failed" => !record.get("reason").is_empty(),
            "actor.stopped" => !told,
            _ => false,
        };
        if died || told {
            self.upset.insert(place.clone(), record.at);
            self.notices.remove(place);
            self.duties.retain(|duty| duty.place != *place);
        }
        // Before its next life says anything.
        if actor == "worker" && (died || told) {
            self.held.remove(place);
            self.credit.remove(place);
        }
        if actor == "master" && died {
            let deaths = self.deaths.entry(place.clone()).or_default();
            *deaths = (deaths.0 + 1, true);
        }
        if actor == "master" && record.event == "actor.restarted" {
            self.deaths.entry(place.clone()).or_default().1 = false;
        }
        if record.event == "actor.gave_up" || told {
            self.leaving.insert(place.clone());
        }
    }

    fn returned(&mut self, place: &Place, record: &Record) -> Broken {
        let before = self
            .waiting
            .remove(&(place.clone(), record.get("call").to_owned()))?;
        let (deaths, _) = self.deaths.get(place).copied().unwrap_or_default();
        let lost =
            record.get("lost") == "true" && deaths == before && !self.leaving.contains(place);
        lost.then(|| {
            let node = &place.0;
            (
                12,
                format!(
                    "what waited for MasterActor of {node} while it was dead was never handled"
                ),
            )
        })
    }

    // --- nodes, sessions, the registry -----------------------------------------------------------------------------------

    fn node(&mut self, place: &Place, record: &Record) -> Broken {
        match record.event.as_str() {
            "node.resumed" => {
                self.notices.remove(place);
                self.noticed.insert(place.clone(), record.at);
                None
            }
            "node.deregistered" => {
                if record.get("reason") != "left" {
                    self.must_stand_down(place, record.at, "its registration is gone");
                }
                None
            }
            "session.opened" => {
                let (incarnation, ours) =
                    (record.number("incarnation"), record.number("generation"));
                let life = self.lives.get(&incarnation)?;
                let fits =
                    ours == 0 || life.generations.is_empty() || life.generations.contains(&ours);
                (!fits).then(|| {
                    let (node, peer) = (&place.0, record.get("peer"));
                    let theirs = &life.generations;
                    (
                        10,
                        format!("{node}, of generation {ours}, let in a life of {peer} that registered in {theirs:?}"),
                    )
                })
            }
            "registry.condemned" => {
                let verdict = Verdict {
                    key: record.get("key").to_owned(),
                    incarnation: record.number("incarnation"),
                    by: record.number("by"),
                    revision: record.number("revision"),
                };
                let wrong = self.judge(&verdict);
                self.verdicts.push(verdict);
                wrong
            }
            _ => None,
        }
    }

    /// What a verdict removed, as far as the registry has told yet.
    fn judge(&self, verdict: &Verdict) -> Broken {
        let Verdict {
            key,
            incarnation,
            by,
            revision,
        } = verdict;
        let removed = self
            .lives
            .iter()
            .find(|(_, l)| l.ended == Some(*revision) && l.key == *key);
        if let Some((other, _)) = removed.filter(|(other, _)| *other != incarnation) {
            return Some((
                13,
                format!(
                    "the verdict on incarnation {incarnation} of {key} removed incarnation {other}"
                ),
            ));
        }
        let gone = self
            .lives
            .get(by)
            .and_then(|l| l.ended)
            .filter(|ended| ended < revision);
        gone.map(|ended| {
            (
                13,
                format!(
                    "incarnation {by}, gone since revision {ended}, condemned {key} at {revision}"
                ),
            )
        })
    }

    fn put(&mut self, record: &Record) {
        let (key, created) = (record.get("key"), record.number("created"));
        if key.ends_with("/generation") {
            let generation = record.get("value").parse().unwrap_or(0);
            self.generation = (generation, self.generation.0, record.at);
        } else if key.contains("/services/") && created == record.number("modified") {
            let (now, before, since) = self.generation;
            let seen = record.get("listed") != "true" && now != 0;
            let mut generations = Vec::new();
            generations.extend(seen.then_some(now));
            let lately = record.at.saturating_sub(since) < UNHEARD;
            generations.extend((seen && lately && before != 0).then_some(before));
            let life = Life {
                key: key.to_owned(),
                generations,
                ended: None,
            };
            self.lives.insert(created, life);
        }
    }

    fn deleted(&mut self, record: &Record) -> Broken {
        let (key, revision) = (record.get("key"), record.number("revision"));
        let mut lives = self.lives.values_mut().rev();
        let life = lives.find(|life| life.key == key && life.ended.is_none())?;
        // A listing after a gap tells that it is gone, not since when.
        if record.get("listed") != "true" {
            life.ended = Some(revision);
        }
        let verdicts = self.verdicts.iter().rev().take(32);
        let about = verdicts.filter(|v| v.revision >= revision);
        about
            .cloned()
            .collect::<Vec<_>>()
            .iter()
            .find_map(|v| self.judge(v))
    }

    // --- what the test itself did and saw ----------------------------------------------------------------------------------

    fn world(&mut self, place: &Place, record: &Record) -> Broken {
        match record.event.as_str() {
            "sim.put" => {
                self.put(record);
                None
            }
            "sim.delete" => self.deleted(record),
            "sim.replaced" | "sim.serving" => {
                self.generation = (0, 0, record.at);
                None
            }
            "sim.crashed" | "sim.ended" => {
                self.duties.retain(|duty| duty.place != *place);
                self.notices.remove(place);
                self.running.remove(place);
                self.leading.remove(place);
                self.leaving.insert(place.clone());
                None
            }
            "sim.paused" => {
                let machine = record.get("machine");
                self.standing.insert(machine.to_owned(), record.at);
                self.paused(machine, record.at);
                None
            }
            "sim.healed" => {
                let machine = record.get("machine");
                let since = self.standing.remove(machine)?;
                if record.at > since + PAUSE && record.get("clock") == "went on" {
                    self.awake.insert(machine.to_owned(), record.at);
                    self.must_notice(machine, since, record.at);
                }
                None
            }
            "sim.submitted" => {
                let task = record.get("task").to_owned();
                if record.get("durable") == "true" {
                    self.durable.insert(task.clone());
                }
                *self.submits.entry(task).or_default() += 1;
                None
            }
            "sim.answered" => self.answered(record),
            "sim.called" => {
                if let Some((deaths, true)) = self.deaths.get(place) {
                    let call = (place.clone(), record.get("call").to_owned());
                    self.waiting.insert(call, *deaths);
                }
                None
            }
            "sim.returned" => self.returned(place, record),
            _ => None,
        }
    }

    /// Whoever was away has not heard anybody meanwhile, and that says nothing of them.
    fn suspects(&self, record: &Record) -> Broken {
        let awake = self.awake.get(&record.node)?;
        let silent = u64::try_from(record.number("duration_ms")).ok()?;
        let listened = (record.at.saturating_sub(*awake) + AT_ONCE) * RATES;
        let counted = record.event == "peer.suspected" && Duration::from_millis(silent) > listened;
        counted.then(|| {
            let (node, peer) = (&record.node, record.get("peer"));
            let what = format!(
                "{node} suspects {peer} for {silent} ms of silence, and went on {listened:?} ago"
            );
            (13, what)
        })
    }

    /// Whoever ran calmly before the pause says that it was away; an actor that was just begun knows of none.
    fn must_notice(&mut self, machine: &str, since: Duration, at: Duration) {
        let calm = |from: Option<&Duration>| from.is_none_or(|from| *from + RESTARTING < since);
        let here = self.running.iter().filter(|(p, _)| p.0 == machine);
        let here = here.filter(|(p, from)| calm(Some(from)) && calm(self.upset.get(*p)));
        let here = here.filter(|(p, _)| !self.leaving.contains(*p));
        // Its first turn may come before the world has said that it goes on.
        let here = here.filter(|(p, _)| self.noticed.get(*p).is_none_or(|when| *when < since));
        let all: Vec<_> = here.map(|(p, _)| (p.clone(), at + PAUSE)).collect();
        self.notices.extend(all);
    }

    /// What was to follow at once follows later.
    fn paused(&mut self, machine: &str, at: Duration) {
        self.notices.retain(|place, _| place.0 != machine);
        self.duties.retain(|duty| duty.place.0 != machine);
        let places: Vec<Place> = self.leading.keys().cloned().collect();
        for place in places.into_iter().filter(|place| place.0 == machine) {
            self.upset.insert(place, at);
        }
        self.demoted
            .retain(|(place, _), since| place.0 != machine || *since + AT_ONCE < at);
    }

    fn answered(&mut self, record: &Record) -> Broken {
        let task = record.get("task");
        // Asked for a second time it may be known from a master that had no time to say so.
        let once = self.submits.get(task) == Some(&1);
        let accepted = record.get("answer").starts_with("accepted");
        let early = once && accepted && self.durable.contains(task) && !self.created.contains(task);
        early.then(|| {
            (
                4,
                format!("task {task} was accepted before its record was in the journal"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `at_ms place event key=value…`
    fn record(line: &str) -> Record {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        let at = Duration::from_millis(word().parse().unwrap());
        let (place, event) = (word(), word());
        words.fold(Record::new(at, place, 1, event), |record, pair| {
            let (key, value) = pair.split_once('=').unwrap();
            record.with(key, value.replace('_', " "))
        })
    }

    fn broken(lines: &[&str]) -> Option<u8> {
        let mut conduct = Conduct::default();
        let mut records = lines.iter().map(|line| record(line));
        records.find_map(|r| conduct.observe(&r)).map(|(n, _)| n)
    }

    /// A trace that breaks nothing, and what must not follow it.
    fn rule(n: u8, well: &[&str], wrong: &[&str]) {
        assert_eq!(broken(well), None, "{well:#?}");
        let both: Vec<&str> = well.iter().chain(wrong).copied().collect();
        assert_eq!(broken(&both), Some(n), "{both:#?}");
    }

    #[test]
    fn a_command_below_what_was_seen_or_below_the_fence_is_not_obeyed() {
        let seen = "0 b master.changed epoch=7-20 fence=7-20";
        rule(
            3,
            &[seen, "1 b worker.obeyed what=Assign epoch=7-20 fence=7-20"],
            &["2 b worker.obeyed what=Assign epoch=7-10 fence=7-10"],
        );
        rule(
            3,
            &[],
            &["2 b worker.obeyed what=Cancel epoch=7-10 fence=7-11"],
        );
    }

    #[test]
    fn whoever_knows_of_a_master_has_raised_the_fence() {
        let well = ["0 b master.changed epoch=7-20 fence=7-21"];
        rule(3, &well, &["1 b master.changed epoch=7-30 fence=7-21"]);
    }

    #[test]
    fn whoever_is_deposed_or_unregistered_stands_down_at_once_and_does_nothing_more() {
        let promoted = "0 a master.promoted epoch=7-10";
        let deposed = "100 a master.changed epoch=7-20 fence=7-20";
        let down = "101 a master.demoted epoch=7-10";
        rule(
            3,
            &[promoted, deposed, down, "900 a peer.added"],
            &["901 a task.assigned epoch=7-10 task=t attempt=7-10/1"],
        );
        rule(3, &[promoted, deposed], &["900 a peer.added"]);
        let gone = "100 a node.deregistered reason=the_lease_ended";
        rule(3, &[promoted, gone], &["200 a peer.added"]);
        // It takes over from itself; its actors had just failed; it leaves on purpose.
        for well in [
            [
                promoted,
                gone,
                "110 a master.promoted epoch=7-30",
                "200 a peer.added",
            ],
            [
                promoted,
                "90 a actor.failed actor=discovery reason=panic",
                gone,
                "200 a peer.added",
            ],
            [
                promoted,
                "90 a node.deregistered reason=left",
                down,
                "200 a peer.added",
            ],
        ] {
            assert_eq!(broken(&well), None, "{well:#?}");
        }
    }

    #[test]
    fn nothing_is_answered_before_its_record() {
        let submitted = "0 a sim.submitted task=t durable=true";
        let created = "1 a task.created task=t epoch=7-10";
        let accepted = "2 a sim.answered task=t answer=accepted_as_queued durable=true";
        assert_eq!(broken(&[submitted, created, accepted]), None);
        assert_eq!(broken(&[submitted, accepted]), Some(4));
        // The second who asks may ask a master that could not say so.
        assert_eq!(broken(&[submitted, submitted, accepted]), None);
        let acked = "4 b task.acknowledged task=t attempt=7-10/1 epoch=7-10 refused=false";
        let finished = "3 a task.finished task=t attempt=7-10/1 epoch=7-10";
        assert_eq!(broken(&[submitted, created, finished, acked]), None);
        assert_eq!(broken(&[submitted, created, acked]), Some(4));
        let refused = "4 b task.acknowledged task=t attempt=7-10/1 epoch=7-10 refused=true";
        assert_eq!(broken(&[submitted, created, refused, acked]), None);
    }

    #[test]
    fn a_result_is_held_until_it_is_answered() {
        let executed = "0 b task.executed task=t attempt=7-10/1 held=true";
        let acked = "1 b task.acknowledged task=t attempt=7-10/1 epoch=7-10 refused=false";
        let told = |n| format!("2 b worker.reported epoch=7-20 report=2 credit=1 held={n}");
        assert_eq!(broken(&[executed, &told(1)]), None);
        assert_eq!(broken(&[executed, acked, &told(0)]), None);
        assert_eq!(broken(&[executed, &told(0)]), Some(4));
        let died = "1 b actor.failed actor=worker reason=panic";
        assert_eq!(broken(&[executed, died, &told(0)]), None);
    }

    #[test]
    fn no_more_is_taken_than_was_granted() {
        let taken = "2 b task.taken task=t attempt=7-10/1 epoch=7-10";
        rule(
            8,
            &[
                "0 b worker.reported epoch=7-10 report=1 credit=1 held=0",
                taken,
                "3 b worker.granted epoch=7-10 credit=1",
                taken,
            ],
            &[taken],
        );
    }

    #[test]
    fn nobody_of_another_generation_is_let_in() {
        let well = [
            "0 w sim.put key=/c/generation value=7 created=1 modified=1 listed=false",
            "9000 w sim.put key=/c/services/n1 value= created=5 modified=5 listed=false",
            "9001 b session.opened peer=n1 incarnation=5 generation=7",
        ];
        rule(
            10,
            &well,
            &["9002 b session.opened peer=n1 incarnation=5 generation=8"],
        );
    }

    #[test]
    fn nothing_panics_by_itself() {
        rule(
            12,
            &["0 a actor.failed actor=worker reason=panic err=killed_by_an_operator:_x"],
            &["1 a actor.failed actor=worker reason=panic err=index_out_of_bounds"],
        );
    }

    #[test]
    fn a_pause_of_ones_own_is_no_silence_of_others() {
        let well = [
            "0 world sim.paused machine=a",
            "2000 world sim.healed machine=a clock=went_on",
            "3100 a peer.suspected peer=b duration_ms=1100",
        ];
        rule(
            13,
            &well,
            &["3101 a peer.suspected peer=c duration_ms=3101"],
        );
    }

    #[test]
    fn a_long_pause_of_ones_own_is_noticed() {
        let well = [
            "0 a node.registered",
            "6000 world sim.paused machine=a",
            "8000 world sim.healed machine=a clock=went_on",
            "8010 a node.resumed duration_ms=2000",
            "14000 world sim.paused machine=a",
            "16000 a node.resumed duration_ms=2000",
            "16000 world sim.healed machine=a clock=went_on",
            "18000 a node.registered",
            "20000 world sim.paused machine=a",
            "22000 world sim.healed machine=a clock=went_on",
        ];
        rule(13, &well, &["23300 b node.registered"]);
        let killed = "22500 a actor.failed actor=discovery reason=panic err=killed_by_an_operator";
        let excused = [&well[..], &[killed, "23300 b node.registered"]].concat();
        assert_eq!(broken(&excused), None);
    }

    #[test]
    fn what_waits_in_a_mailbox_outlives_the_actor() {
        let died = "0 a actor.failed actor=master reason=panic";
        let called = "1 a sim.called call=1 asked=read task=t";
        let back = "2 a actor.restarted actor=master";
        let lost = "3 a sim.returned call=1 answer=unknown lost=true";
        assert_eq!(broken(&[died, called, back, lost]), Some(12));
        assert_eq!(
            broken(&[
                died,
                called,
                back,
                "3 a sim.returned call=1 answer=done lost=false"
            ]),
            None
        );
        // It was being handled when the actor failed, or failed again.
        assert_eq!(broken(&[called, died, back, lost]), None);
        assert_eq!(broken(&[died, called, back, died, lost]), None);
    }

    #[test]
    fn a_verdict_removes_the_life_it_names_and_is_by_somebody_registered() {
        let put = |at: i64, key: &str, created: i64| {
            format!(
                "{at} w sim.put key=/c/services/{key} value= created={created} modified={created} listed=false"
            )
        };
        let (n1, n2, again) = (put(0, "n1", 5), put(0, "n2", 6), put(2, "n1", 9));
        let gone = |key: &str, revision: i64| {
            format!("3 w sim.delete key=/c/services/{key} revision={revision} listed=false")
        };
        let (n1_gone, n1_gone_again, n2_gone) = (gone("n1", 8), gone("n1", 12), gone("n2", 10));
        let verdict = |incarnation: i64, revision: i64| {
            format!(
                "4 b registry.condemned key=/c/services/n1 incarnation={incarnation} by=6 revision={revision}"
            )
        };
        assert_eq!(broken(&[&n1, &n2, &n1_gone, &verdict(5, 8)]), None);
        assert_eq!(broken(&[&n1, &n2, &verdict(5, 8), &n1_gone]), None);
        let twice = [&n1, &n2, &n1_gone, &again, &n1_gone_again].map(String::as_str);
        let wrong = verdict(5, 12);
        assert_eq!(broken(&[&twice[..], &[wrong.as_str()]].concat()), Some(13));
        let wrong = verdict(5, 12);
        assert_eq!(
            broken(&[&n1, &n2, &wrong, &n1_gone, &again, &n1_gone_again]),
            Some(13)
        );
        assert_eq!(broken(&[&n1, &n2, &n2_gone, &verdict(5, 12)]), Some(13));
    }
}
