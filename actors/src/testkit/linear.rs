//! Whether what callers were told of a durable task can have happened in one order (invariant 11). Pure and bounded.
//!
//! A history is what clients asked for and were answered: submit, read, cancel, retry, each with the moments at which it was
//! asked and answered. It is *linearizable* when every call can be given one moment between the two, so that the answers are those
//! of one task that nobody else touches. Tasks have nothing to do with each other, so each is checked alone.
//!
//! The task, as callers may rely on it: absent → open (queued or with a worker) → done | failed | dead | cancelled; only a dead one
//! is opened again, by a retry; a submit of the same id answers the task there is; whatever is finished stays as it is. That
//! an open task ends by itself is no call: it may have ended just before somebody is told so.
//!
//! **Unknown outcomes**: a call whose answer never came, or was "unknown", may have taken place at any time after it was asked,
//! or never. **No effect**: a call that was surely turned away (busy, not master, not recorded) is left out, so a task that
//! shows it all the same is a violation. Reads marked `stale` promise nothing: they are left out too.
//!
//! The search is Wing and Gong's with Lowe's memory, as in porcupine (<https://github.com/anishathalye/porcupine>): take a
//! call that may be next, undo it when that leads nowhere, and never look again at a set of taken calls with the same state.
//! It ends after [`MOST_STEPS`] with [`Finding::Undecided`], which is no violation, and is counted.
//!
//! # For tests of real processes
//! Write down one line per call and hand all of them to [`check_lines`]:
//! `{"task":"…","asked":"submit|read|cancel|retry","began_us":1,"ended_us":2,"answer":"queued"}` with one clock for all
//! callers (a monotonic one of the test's own process), `ended_us` null when no answer came, and as `answer` what
//! [`Answer::parse`] reads.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::trace::Record;

/// Steps of the search for one task.
pub const MOST_STEPS: usize = 200_000;
/// Calls of one task that are looked at; more are not recorded.
pub const MOST_CALLS: usize = 512;

/// How a task stands, as far as callers can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stand {
    /// Nobody knows it.
    Absent,
    /// Queued, or with a worker.
    Open,
    /// With a result.
    Done,
    /// With an answer that is not to be tried again.
    Failed,
    /// Given up.
    Dead,
    /// Given up because somebody asked for it.
    Cancelled,
}

impl Stand {
    /// From the API's word for a state.
    pub fn parse(state: &str) -> Option<Self> {
        Some(match state {
            "absent" => Self::Absent,
            "queued" | "leased" => Self::Open,
            "done" => Self::Done,
            "failed" => Self::Failed,
            "dead" => Self::Dead,
            "cancelled" => Self::Cancelled,
            _ => return None,
        })
    }

    /// Seen like this next: as it is, or ended by itself meanwhile.
    fn seen_as(self, seen: Self) -> Option<Self> {
        let ended_by_itself =
            self == Self::Open && matches!(seen, Self::Done | Self::Failed | Self::Dead);
        (self == seen || ended_by_itself).then_some(seen)
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// That this task be accepted.
    Submit,
    /// How it stands.
    Read,
    /// That it be given up.
    Cancel,
    /// That a dead one be tried again.
    Retry,
}

impl Asked {
    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "submit" => Self::Submit,
            "read" => Self::Read,
            "cancel" => Self::Cancel,
            "retry" => Self::Retry,
            _ => return None,
        })
    }
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is done as asked, and the task stands like this.
    Stands(Stand),
    /// It cannot be done to a task that stands like this.
    Refused(Stand),
    /// It was turned away and surely had no effect.
    Nothing,
    /// Nobody knows, or no answer came.
    Unknown,
}

impl Answer {
    /// `queued`, `leased`, `done`, `failed`, `dead`, `cancelled`, `absent` · `refused STATE` · `nothing` · `unknown`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "nothing" => Self::Nothing,
            "unknown" => Self::Unknown,
            other => match other.strip_prefix("refused ") {
                Some(state) => Self::Refused(Stand::parse(state)?),
                None => Self::Stands(Stand::parse(other)?),
            },
        })
    }
}

/// One call to the API about one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which task.
    pub task: String,
    /// What was asked.
    pub asked: Asked,
    /// When.
    pub began: Duration,
    /// When the answer came; none did.
    pub ended: Option<Duration>,
    /// The answer.
    pub answer: Answer,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let began = self.began.as_secs_f64();
        let (asked, answer) = (self.asked, self.answer);
        match self.ended {
            Some(ended) => {
                let ended = ended.as_secs_f64();
                write!(f, "{began:.3}..{ended:.3} {asked:?} → {answer:?}")
            }
            None => write!(f, "{began:.3}.. {asked:?} → no answer"),
        }
    }
}

impl Call {
    /// From one line of a client's history; see the module page.
    pub fn parse(line: &str) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let us = |key: &str| value.get(key)?.as_u64().map(Duration::from_micros);
        let text = |key: &str| value.get(key)?.as_str();
        let ended = us("ended_us");
        let answer = match ended {
            Some(_) => Answer::parse(text("answer")?)?,
            None => Answer::Unknown,
        };
        Some(Self {
            task: text("task")?.to_owned(),
            asked: Asked::parse(text("asked")?)?,
            began: us("began_us")?,
            ended,
            answer,
        })
    }

    /// The task after this call, if a task that stands like that can have answered so.
    fn step(&self, stand: Stand) -> Option<Stand> {
        match (self.asked, self.answer) {
            // May or may not have taken place: if not now, then later or never.
            (asked, Answer::Unknown) => Some(match (asked, stand) {
                (Asked::Submit, Stand::Absent) => Stand::Open,
                (Asked::Cancel, Stand::Open) => Stand::Cancelled,
                (Asked::Retry, Stand::Dead) => Stand::Open,
                _ => stand,
            }),
            (_, Answer::Nothing) => Some(stand),
            (Asked::Submit, Answer::Stands(seen)) => {
                let there = if stand == Stand::Absent {
                    Stand::Open
                } else {
                    stand
                };
                there.seen_as(seen)
            }
            (Asked::Read, Answer::Stands(seen)) => stand.seen_as(seen),
            (Asked::Cancel, Answer::Stands(_)) => {
                matches!(stand, Stand::Open | Stand::Cancelled).then_some(Stand::Cancelled)
            }
            // What it has become by the time of the answer is no part of the promise.
            (Asked::Retry, Answer::Stands(_)) => {
                matches!(stand, Stand::Dead | Stand::Open).then_some(Stand::Open)
            }
            (Asked::Cancel, Answer::Refused(Stand::Cancelled))
            | (Asked::Retry, Answer::Refused(Stand::Dead))
            | (Asked::Submit | Asked::Read, Answer::Refused(_)) => None,
            (_, Answer::Refused(seen)) => stand.seen_as(seen),
        }
    }

    /// Whether it says anything, or may have done anything.
    fn counts(&self) -> bool {
        match self.answer {
            Answer::Nothing => false,
            Answer::Unknown => self.asked != Asked::Read,
            _ => true,
        }
    }
}

/// What was found of one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// There is an order.
    Linearizable,
    /// There is none; the calls in the order of their beginnings, for people.
    Broken(String),
    /// The search was given up.
    Undecided,
}

/// Checks the calls of one task.
pub fn check_task(calls: &[Call]) -> Finding {
    let mut calls: Vec<&Call> = calls.iter().filter(|call| call.counts()).collect();
    calls.sort_by_key(|call| (call.began, call.ended));
    match Search::new(&calls).run() {
        Some(true) => Finding::Linearizable,
        None => Finding::Undecided,
        Some(false) => {
            let told: Vec<String> = calls.iter().map(ToString::to_string).collect();
            Finding::Broken(told.join("\n    "))
        }
    }
}

/// Checks the calls of many tasks; answers those that are broken, in words, and how many were not decided.
pub fn check(calls: &[Call]) -> (Vec<String>, usize) {
    let mut tasks: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for call in calls {
        tasks.entry(&call.task).or_default().push(call.clone());
    }
    let (mut broken, mut undecided) = (Vec::new(), 0);
    for (task, calls) in tasks {
        match check_task(&calls) {
            Finding::Linearizable => {}
            Finding::Undecided => undecided += 1,
            Finding::Broken(told) => broken.push(format!(
                "what callers were told of task {task} fits no order:\n    {told}"
            )),
        }
    }
    (broken, undecided)
}

/// [`check`] for a client's history in lines of JSON; see the module page.
///
/// # Errors
/// A line that is none.
pub fn check_lines<'a>(
    lines: impl IntoIterator<Item = &'a str>,
) -> Result<(Vec<String>, usize), String> {
    let calls = lines
        .into_iter()
        .map(|line| Call::parse(line).ok_or_else(|| format!("not a call: {line}")))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(check(&calls))
}

/// An end of a call in the order of time.
#[derive(Clone, Copy)]
struct Event {
    call: usize,
    returns: bool,
}

/// Wing and Gong's search: a doubly linked list of events from which calls are lifted as they are taken.
struct Search<'a> {
    calls: &'a [&'a Call],
    events: Vec<Event>,
    /// Index of the event that a call returns with, none when it never does.
    returns: Vec<Option<usize>>,
    next: Vec<usize>,
    prev: Vec<usize>,
    taken: Vec<u64>,
    /// Completed calls that are not taken yet.
    due: usize,
}

impl<'a> Search<'a> {
    fn new(calls: &'a [&'a Call]) -> Self {
        // At the same moment, what begins comes before what ends: then the two are side by side, which allows more.
        let mut ends: Vec<(Duration, bool, usize)> = Vec::new();
        let completed = |call: &Call| call.ended.filter(|_| call.answer != Answer::Unknown);
        for (n, call) in calls.iter().enumerate() {
            ends.push((call.began, false, n));
            ends.extend(completed(call).map(|at| (at.max(call.began), true, n)));
        }
        ends.sort();
        let mut returns = vec![None; calls.len()];
        let events: Vec<Event> = ends
            .iter()
            .map(|(_, returns, call)| Event {
                call: *call,
                returns: *returns,
            })
            .collect();
        for (at, event) in events.iter().enumerate() {
            if event.returns {
                returns[event.call] = Some(at);
            }
        }
        // Places are one more than indices: 0 is the head, the last the tail.
        let places = events.len() + 2;
        Self {
            calls,
            due: returns.iter().flatten().count(),
            returns,
            next: (1..=places).collect(),
            prev: (0..places).map(|at| at.saturating_sub(1)).collect(),
            taken: vec![0; calls.len().div_ceil(64).max(1)],
            events,
        }
    }

    fn lift(&mut self, place: usize) {
        let (before, after) = (self.prev[place], self.next[place]);
        self.next[before] = after;
        self.prev[after] = before;
    }

    fn put_back(&mut self, place: usize) {
        let (before, after) = (self.prev[place], self.next[place]);
        self.next[before] = place;
        self.prev[after] = place;
    }

    /// Whether there is an order; `None` when the search was given up.
    fn run(&mut self) -> Option<bool> {
        let tail = self.events.len() + 1;
        let mut stand = Stand::Absent;
        // Taken calls: where each stood, and how the task stood before it.
        let mut path: Vec<(usize, Stand)> = Vec::new();
        let mut known: HashSet<(Vec<u64>, Stand)> = HashSet::new();
        let mut place = self.next[0];
        for _ in 0..MOST_STEPS {
            if self.due == 0 {
                return Some(true);
            }
            let blocked = place == tail || self.events[place - 1].returns;
            if !blocked {
                let call = self.events[place - 1].call;
                let after = self.calls[call].step(stand);
                if let Some(after) = after.filter(|after| !self.is_idle(place, stand, *after)) {
                    self.taken[call / 64] |= 1 << (call % 64);
                    if known.insert((self.taken.clone(), after)) {
                        path.push((place, stand));
                        stand = after;
                        self.take(place, call);
                        place = self.next[0];
                        continue;
                    }
                    self.taken[call / 64] &= !(1 << (call % 64));
                }
                place = self.next[place];
                continue;
            }
            // An end of a call that has not been taken: one of those before was the wrong choice.
            let Some((last, before)) = path.pop() else {
                return Some(false);
            };
            let call = self.events[last - 1].call;
            stand = before;
            self.taken[call / 64] &= !(1 << (call % 64));
            self.give_back(last, call);
            place = self.next[last];
        }
        None
    }

    /// Whether taking this call, which never returns, is in vain: it changes nothing, or one like it that was asked earlier
    /// will do as well.
    fn is_idle(&self, place: usize, before: Stand, after: Stand) -> bool {
        let call = self.events[place - 1].call;
        if self.returns[call].is_some() {
            return false;
        }
        let like = |at: usize| {
            let other = self.events[at - 1].call;
            self.returns[other].is_none() && self.calls[other].asked == self.calls[call].asked
        };
        let earlier = |at: &usize| (*at != 0).then(|| self.prev[*at]);
        let mut before_it = std::iter::successors(Some(self.prev[place]), earlier);
        before == after || before_it.any(|at| at != 0 && like(at))
    }

    fn take(&mut self, place: usize, call: usize) {
        self.lift(place);
        if let Some(at) = self.returns[call] {
            self.lift(at + 1);
            self.due -= 1;
        }
    }

    fn give_back(&mut self, place: usize, call: usize) {
        if let Some(at) = self.returns[call] {
            self.put_back(at + 1);
            self.due += 1;
        }
        self.put_back(place);
    }
}

/// Takes calls out of a trace: `sim.called` (call, asked, task) and `sim.returned` (call, answer).
#[derive(Debug, Default)]
pub struct History {
    open: BTreeMap<String, Call>,
    calls: BTreeMap<String, Vec<Call>>,
    /// Tasks of a registry that is gone.
    gone: HashSet<String>,
}

impl History {
    /// Takes one record. `Some` is what is broken of the tasks of a registry that an empty one takes the place of.
    pub fn observe(&mut self, record: &Record) -> Option<String> {
        match record.event.as_str() {
            "sim.called" => self.called(record),
            "sim.returned" => self.returned(record),
            "sim.serving" => {
                let broken = self.broken();
                self.gone
                    .extend(std::mem::take(&mut self.calls).into_keys());
                let open = std::mem::take(&mut self.open);
                self.gone.extend(open.into_values().map(|call| call.task));
                return broken;
            }
            _ => {}
        }
        None
    }

    fn called(&mut self, record: &Record) {
        let task = record.get("task").to_owned();
        let asked = Asked::parse(record.get("asked"));
        let (Some(asked), false) = (asked, self.gone.contains(&task)) else {
            return;
        };
        let call = Call {
            task,
            asked,
            began: record.at,
            ended: None,
            answer: Answer::Unknown,
        };
        self.open.insert(record.get("call").to_owned(), call);
    }

    fn returned(&mut self, record: &Record) {
        let Some(mut call) = self.open.remove(record.get("call")) else {
            return;
        };
        call.ended = Some(record.at);
        // An answer that nobody understands says nothing.
        call.answer = Answer::parse(record.get("answer")).unwrap_or(Answer::Unknown);
        let calls = self.calls.entry(call.task.clone()).or_default();
        if calls.len() < MOST_CALLS {
            calls.push(call);
        }
    }

    /// What is broken so far, of the first task that is.
    pub fn broken(&self) -> Option<String> {
        let calls = self.calls.values().flatten().chain(self.open.values());
        let calls: Vec<Call> = calls.cloned().collect();
        check(&calls).0.into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `began ended asked answer`, `-` for an end that never came.
    fn calls(lines: &[&str]) -> Vec<Call> {
        let call = |line: &&str| {
            let mut words = line.splitn(4, ' ');
            let mut word = || words.next().unwrap();
            let began = Duration::from_millis(word().parse().unwrap());
            let ended = word().parse().ok().map(Duration::from_millis);
            Call {
                task: "t".to_owned(),
                began,
                ended,
                asked: Asked::parse(word()).unwrap(),
                answer: Answer::parse(word()).unwrap(),
            }
        };
        lines.iter().map(call).collect()
    }

    #[test]
    fn histories_that_are_linearizable_are_found_to_be() {
        let rows: &[&[&str]] = &[
            &[],
            &[
                "0 1 read absent",
                "2 3 submit queued",
                "4 5 read queued",
                "6 7 read done",
            ],
            // Side by side, either order will do.
            &["0 9 submit queued", "1 2 read absent", "3 4 read queued"],
            &[
                "0 1 submit queued",
                "2 9 cancel cancelled",
                "3 4 read queued",
                "5 6 read cancelled",
            ],
            // The answer is lost: it may have happened, late, or not.
            &["0 - submit unknown", "1 2 read absent", "3 4 read queued"],
            &["0 - submit unknown", "1 2 read absent", "9 10 read absent"],
            &[
                "0 1 submit queued",
                "2 - cancel unknown",
                "3 4 read queued",
                "8 9 read cancelled",
            ],
            &[
                "0 1 submit queued",
                "2 - cancel unknown",
                "3 4 read done",
                "8 9 read done",
            ],
            // Busy; then it is accepted.
            &["0 1 submit nothing", "2 3 read absent", "4 5 submit queued"],
            // The same id is the same task.
            &["0 1 submit queued", "2 3 read done", "4 5 submit done"],
            &[
                "0 1 submit queued",
                "2 3 read dead",
                "4 5 retry queued",
                "6 7 read leased",
                "8 9 read done",
            ],
            &[
                "0 1 submit queued",
                "2 3 retry refused queued",
                "4 5 cancel cancelled",
                "6 7 cancel refused done",
            ][..3],
            &[
                "0 1 submit queued",
                "2 3 cancel refused done",
                "4 5 read done",
                "6 7 retry refused done",
            ],
            // It died and was tried again, and nobody saw the first.
            &["0 1 submit queued", "2 3 retry queued", "4 5 read failed"],
        ];
        for row in rows {
            assert_eq!(check_task(&calls(row)), Finding::Linearizable, "{row:?}");
        }
    }

    #[test]
    fn histories_that_are_not_linearizable_are_found_not_to_be() {
        let rows: &[&[&str]] = &[
            // Accepted, and not there.
            &["0 1 submit queued", "2 3 read absent"],
            // Turned away, and there.
            &["0 1 submit nothing", "2 3 read queued"],
            &["2 3 read queued"],
            // What is finished goes on, or changes.
            &["0 1 submit queued", "2 3 read done", "4 5 read queued"],
            &["0 1 submit queued", "2 3 read done", "4 5 read failed"],
            &["0 1 submit queued", "2 3 cancel cancelled", "4 5 read done"],
            &["0 1 submit queued", "2 3 read done", "4 5 cancel cancelled"],
            &["0 1 submit queued", "2 3 read dead", "4 5 read queued"],
            &["0 1 submit queued", "2 3 read failed", "4 5 retry queued"],
            // An old answer: another was told that it is done before this was asked.
            &["0 1 submit queued", "2 3 read done", "4 5 submit queued"],
            &[
                "0 1 submit queued",
                "2 3 read dead",
                "4 5 retry queued",
                "6 7 read done",
                "8 9 retry refused dead",
            ],
            // Seen, though only a submit of later can have made it.
            &["0 1 read queued", "2 - submit unknown"],
            // Two who read one after the other.
            &["0 9 submit queued", "1 2 read queued", "3 4 read absent"],
        ];
        for row in rows {
            let found = check_task(&calls(row));
            assert!(matches!(found, Finding::Broken(_)), "{row:?}: {found:?}");
        }
    }

    #[test]
    fn a_long_history_of_many_who_ask_at_once_is_decided_in_bounds() {
        let mut lines = vec!["0 1 submit queued".to_owned()];
        // Thirty cancels whose answers are lost, and readers beside them.
        lines.extend((0..30).map(|n| format!("{} - cancel unknown", 2 + n)));
        lines.extend((0..60).map(|n| format!("{} {} read queued", 10 + n, 200 + n)));
        lines.push("300 301 read cancelled".to_owned());
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(check_task(&calls(&lines)), Finding::Linearizable);
        let mut lines = lines;
        lines.push("302 303 read queued");
        assert!(!matches!(check_task(&calls(&lines)), Finding::Linearizable));
    }

    #[test]
    fn lines_of_a_clients_history_are_checked_task_by_task() {
        let line = |task: &str, began: u64, ended: &str, asked: &str, answer: &str| {
            format!(
                r#"{{"task":"{task}","asked":"{asked}","began_us":{began},"ended_us":{ended},"answer":"{answer}"}}"#
            )
        };
        let lines = [
            line("a", 1, "2", "submit", "queued"),
            line("b", 1, "null", "submit", ""),
            line("a", 3, "4", "read", "done"),
            line("b", 3, "4", "read", "absent"),
            line("a", 5, "6", "read", "leased"),
        ];
        let (broken, undecided) = check_lines(lines.iter().map(String::as_str)).unwrap();
        assert_eq!((broken.len(), undecided), (1, 0));
        assert!(broken[0].contains("task a"), "{broken:?}");
        assert!(check_lines(["no call"]).is_err());
    }

    #[test]
    fn an_empty_registry_in_the_place_of_the_one_before_begins_anew() {
        let said = |at: u64, event: &str| Record::new(Duration::from_secs(at), "n1", 1, event);
        let called = |at, call: &str, asked: &str| {
            let record = said(at, "sim.called").with("task", "t");
            record.with("call", call).with("asked", asked)
        };
        let returned = |at, call: &str, answer: &str| {
            let record = said(at, "sim.returned").with("call", call);
            record.with("answer", answer)
        };
        let mut history = History::default();
        let all = [
            called(1, "1", "submit"),
            returned(2, "1", "queued"),
            said(3, "sim.serving"),
            called(4, "2", "read"),
            returned(5, "2", "absent"),
        ];
        assert!(all.iter().all(|r| history.observe(r).is_none()));
        assert_eq!(history.broken(), None);
        let mut history = History::default();
        let lost = [&all[..2], &all[3..]].concat();
        assert!(lost.iter().all(|r| history.observe(r).is_none()));
        assert!(history.broken().is_some());
    }
}
