//! The queue: one line for each kind of need, so that a need nobody can meet holds up no other. Pure.
//!
//! A line is ordered by priority, then by acceptance. What is queued again keeps its place before everything accepted later.
//! Who leaves a line out of turn (cancelled, adopted) is only marked: the entry goes when its turn comes, or when the line is
//! mostly such entries.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use super::task::Place;
use crate::id::{JobName, TaskId};

/// Entries that may stand in a line in vain before it is swept.
const SWEEP_ABOVE: usize = 1024;

/// What a task asks of a worker. Tasks that ask the same wait in one line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Needs {
    /// The kind of work.
    pub job: JobName,
    /// Tags.
    pub require: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Rank {
    /// In order of acceptance.
    fresh: VecDeque<(u64, TaskId)>,
    /// Queued again.
    again: BTreeMap<u64, TaskId>,
}

impl Rank {
    fn first(&self) -> Option<(u64, TaskId)> {
        let again = self.again.first_key_value().map(|(seq, id)| (*seq, *id));
        let fresh = self.fresh.front().copied();
        fresh.into_iter().chain(again).min()
    }

    fn pop(&mut self) {
        let again = self.again.first_key_value().map(|(seq, _)| *seq);
        match (self.fresh.front(), again) {
            (Some((fresh, _)), Some(again)) if again <= *fresh => drop(self.again.pop_first()),
            (None, _) => drop(self.again.pop_first()),
            _ => drop(self.fresh.pop_front()),
        }
    }
}

#[derive(Debug)]
struct Line {
    needs: Needs,
    /// Tasks, waiting or not, that belong here.
    tasks: usize,
    /// Those that wait here now.
    waiting: usize,
    /// Entries, in vain or not.
    entries: usize,
    ranks: BTreeMap<Reverse<i32>, Rank>,
}

/// See the module page.
#[derive(Debug, Default)]
pub struct Lines {
    lines: Vec<Option<Line>>,
    free: Vec<u32>,
    known: BTreeMap<Needs, u32>,
    /// The line that was last asked for: most tasks are alike.
    last: Option<u32>,
    waiting: usize,
}

impl Lines {
    /// The line of these needs, which gains a task.
    pub fn join(&mut self, job: &JobName, require: &BTreeMap<String, String>) -> u32 {
        let alike = |line: &&mut Line| line.needs.job == *job && line.needs.require == *require;
        let last = self.last.and_then(|n| self.lines.get_mut(n as usize));
        if let (Some(n), Some(line)) = (self.last, last.and_then(Option::as_mut).filter(alike)) {
            line.tasks += 1;
            return n;
        }
        let needs = Needs {
            job: job.clone(),
            require: require.clone(),
        };
        let n = match self.known.get(&needs) {
            Some(n) => *n,
            None => self.open(needs),
        };
        self.last = Some(n);
        if let Some(line) = self.line(n) {
            line.tasks += 1;
        }
        n
    }

    fn open(&mut self, needs: Needs) -> u32 {
        let line = Line {
            needs: needs.clone(),
            tasks: 0,
            waiting: 0,
            entries: 0,
            ranks: BTreeMap::new(),
        };
        let n = self.free.pop().unwrap_or_else(|| {
            self.lines.push(None);
            u32::try_from(self.lines.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(slot) = self.lines.get_mut(n as usize) {
            *slot = Some(line);
        }
        self.known.insert(needs, n);
        n
    }

    fn line(&mut self, n: u32) -> Option<&mut Line> {
        self.lines.get_mut(n as usize)?.as_mut()
    }

    /// One task less belongs to this line; without any it is closed.
    pub fn part(&mut self, n: u32) {
        let Some(line) = self.line(n) else { return };
        line.tasks = line.tasks.saturating_sub(1);
        if line.tasks > 0 {
            return;
        }
        if let Some(closed) = self.lines.get_mut(n as usize).and_then(Option::take) {
            self.known.remove(&closed.needs);
            self.free.push(n);
        }
        self.last = self.last.filter(|last| *last != n);
    }

    /// A task waits from now on.
    pub fn push(&mut self, n: u32, (priority, seq): Place, id: TaskId) {
        let Some(line) = self.line(n) else { return };
        line.waiting += 1;
        line.entries += 1;
        let rank = line.ranks.entry(priority).or_default();
        if rank.fresh.back().is_none_or(|(last, _)| *last < seq) {
            rank.fresh.push_back((seq, id));
        } else if rank.again.insert(seq, id).is_some() {
            line.entries -= 1;
        }
        self.waiting += 1;
    }

    /// A task waits no more; `waits` tells of each other entry whether it does.
    pub fn leave(&mut self, n: u32, waits: impl Fn(TaskId) -> bool) {
        self.waiting = self.waiting.saturating_sub(1);
        let Some(line) = self.line(n) else { return };
        line.waiting = line.waiting.saturating_sub(1);
        if line.entries > 2 * line.waiting + SWEEP_ABOVE {
            line.entries = 0;
            for rank in line.ranks.values_mut() {
                rank.fresh.retain(|(_, id)| waits(*id));
                rank.again.retain(|_, id| waits(*id));
                line.entries += rank.fresh.len() + rank.again.len();
            }
        }
    }

    /// The first that waits in this line; entries in vain before it go.
    pub fn first(&mut self, n: u32, waits: impl Fn(TaskId) -> bool) -> Option<(Place, TaskId)> {
        let line = self.line(n)?;
        loop {
            let mut best = line.ranks.first_entry()?;
            let priority = *best.key();
            match best.get().first() {
                Some((seq, id)) if waits(id) => return Some(((priority, seq), id)),
                Some(_) => {
                    best.get_mut().pop();
                    line.entries = line.entries.saturating_sub(1);
                }
                None => drop(best.remove()),
            }
        }
    }

    /// Lines in which somebody waits.
    pub fn busy(&self) -> Vec<u32> {
        let lines = self.lines.iter().enumerate();
        let busy = lines.filter(|(_, line)| line.as_ref().is_some_and(|l| l.waiting > 0));
        busy.filter_map(|(n, _)| u32::try_from(n).ok()).collect()
    }

    /// What is asked for in this line.
    pub fn needs(&self, n: u32) -> Option<&Needs> {
        Some(&self.lines.get(n as usize)?.as_ref()?.needs)
    }

    /// Some of those that wait, in no order that matters, entries in vain among them.
    pub fn some(&self) -> impl Iterator<Item = TaskId> + '_ {
        let ranks = self.lines.iter().flatten().flat_map(|l| l.ranks.values());
        ranks.flat_map(|r| {
            r.fresh
                .iter()
                .map(|(_, id)| *id)
                .chain(r.again.values().copied())
        })
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}
