//! Long runs in slices: what is still to do, one line of the ledger for what is done, and the tables that sum it. Pure.
//!
//! A ledger is a file of JSON lines, one per finished slice. A slice is done when its line names the same tier and the same
//! code; a run that was stopped goes on with the first slice that is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::coverage::{GOALS, Hits, Tally};

/// Seeds that run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice {
    /// The first seed.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// One line of a ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Which simulation: `whole nodes`, `cores`.
    pub tier: String,
    /// The commit, for people.
    pub commit: String,
    /// What was run: the tree of the code under test. Another commit with the same tree is the same run.
    pub code: String,
    /// The first seed.
    pub first: u64,
    /// How many seeds.
    pub count: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Milliseconds it took.
    pub real_ms: u64,
    /// Milliseconds of one core.
    pub cpu_ms: u64,
    /// Seeds that broke a rule.
    pub violations: Vec<u64>,
    /// By goal: times, runs with at least one.
    pub goals: BTreeMap<String, (u64, u64)>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
}

/// What a run is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// See [`Line::tier`].
    pub tier: String,
    /// See [`Line::commit`].
    pub commit: String,
    /// See [`Line::code`].
    pub code: String,
}

impl Line {
    /// What a finished slice puts into the ledger.
    pub fn new(
        of: &Subject,
        slice: Slice,
        tally: &Tally,
        (real, cpu): (Duration, Duration),
    ) -> Self {
        let goals = tally.goals.iter();
        Self {
            tier: of.tier.clone(),
            commit: of.commit.clone(),
            code: of.code.clone(),
            first: slice.first,
            count: slice.count,
            simulated_ms: ms(tally.simulated),
            real_ms: ms(real),
            cpu_ms: ms(cpu),
            violations: tally.violations.clone(),
            goals: goals
                .map(|(g, h)| (g.clone(), (h.times, h.seeds)))
                .collect(),
            faults: tally.faults.clone(),
        }
    }

    fn tally(&self) -> Tally {
        let hits = |(times, seeds): (u64, u64)| Hits { times, seeds };
        let goals = self.goals.iter();
        Tally {
            seeds: self.count,
            simulated: Duration::from_millis(self.simulated_ms),
            violations: self.violations.clone(),
            goals: goals.map(|(g, h)| (g.clone(), hits(*h))).collect(),
            faults: self.faults.clone(),
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Reads a ledger.
///
/// # Errors
/// A line that is none, with its number; but for the last, which a run that was killed may have left half-written.
pub fn parse(text: &str) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    let last = text.lines().count();
    for (n, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line)) {
        match serde_json::from_str(line) {
            Ok(line) => lines.push(line),
            Err(_) if n == last && !text.ends_with('\n') => {}
            Err(why) => return Err(format!("line {n}: {why}")),
        }
    }
    Ok(lines)
}

/// Cuts the seeds into slices; the last may be shorter.
pub fn cut(first: u64, seeds: u64, size: u64) -> Vec<Slice> {
    let size = size.max(1);
    (0..seeds.div_ceil(size))
        .map(|n| Slice {
            first: first + n * size,
            count: size.min(seeds - n * size),
        })
        .collect()
}

/// Which of these slices are not in the ledger yet.
pub fn remaining(slices: Vec<Slice>, of: &Subject, ledger: &[Line]) -> Vec<Slice> {
    let done: BTreeSet<Slice> = ledger
        .iter()
        .filter(|line| line.tier == of.tier && line.code == of.code)
        .map(|line| Slice {
            first: line.first,
            count: line.count,
        })
        .collect();
    slices.into_iter().filter(|s| !done.contains(s)).collect()
}

/// The ledger as it stands in the documents: a table of runs, one of coverage, one of faults, per tier.
pub fn tables(ledger: &[Line]) -> String {
    let mut tiers: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in ledger {
        tiers.entry(&line.tier).or_default().push(line);
    }
    let mut text = String::new();
    for (tier, lines) in tiers {
        writeln!(text, "### {tier}\n").ok();
        runs(&mut text, &lines);
        let mut sum = Tally::default();
        lines.iter().for_each(|line| sum.add(&line.tally()));
        coverage(&mut text, &sum);
        faults(&mut text, &sum);
    }
    text
}

/// One row per code that was run.
fn runs(text: &mut String, lines: &[&Line]) {
    writeln!(text, "| commit | seeds | how many | simulated | took | CPU | simulated to CPU | violations |\n|---|---|---|---|---|---|---|---|").ok();
    let mut by_code: Vec<(&str, Vec<&Line>)> = Vec::new();
    for line in lines {
        match by_code.iter_mut().find(|(code, _)| *code == line.code) {
            Some((_, of)) => of.push(line),
            None => by_code.push((&line.code, vec![line])),
        }
    }
    for (_, of) in by_code {
        let sum = |part: fn(&Line) -> u64| of.iter().map(|line| part(line)).sum::<u64>();
        let (simulated, real, cpu) = (
            sum(|l| l.simulated_ms),
            sum(|l| l.real_ms),
            sum(|l| l.cpu_ms),
        );
        let first = of.iter().map(|l| l.first).min().unwrap_or(0);
        let last = of.iter().map(|l| l.first + l.count - 1).max().unwrap_or(0);
        let broken: Vec<u64> = of.iter().flat_map(|l| l.violations.clone()).collect();
        let broken = match broken.as_slice() {
            [] => "0".to_owned(),
            seeds => format!("{}: {seeds:?}", seeds.len()),
        };
        let commit = of.last().map_or("", |line| line.commit.as_str());
        writeln!(
            text,
            "| {commit} | {first} to {last} | {} | {:.1} h | {:.1} min | {:.1} min | {} | {broken} |",
            sum(|l| l.count),
            simulated as f64 / 3_600_000.0,
            real as f64 / 60_000.0,
            cpu as f64 / 60_000.0,
            times(simulated, cpu),
        )
        .ok();
    }
}

/// `n ×`, or nothing when nothing was measured.
fn times(simulated: u64, real: u64) -> String {
    if real == 0 {
        return "?".to_owned();
    }
    format!("{:.0} ×", simulated as f64 / real as f64)
}

/// What a sum of runs has hit, as a table.
pub fn coverage(text: &mut String, sum: &Tally) {
    writeln!(text, "\n| situation | times | in seeds |\n|---|---|---|").ok();
    for goal in GOALS {
        let hits = sum.goals.get(goal).copied().unwrap_or_default();
        writeln!(text, "| {goal} | {} | {} |", hits.times, hits.seeds).ok();
    }
}

/// The faults of a sum of runs, as a table.
pub fn faults(text: &mut String, sum: &Tally) {
    writeln!(text, "\n| fault | times |\n|---|---|").ok();
    for (kind, times) in &sum.faults {
        writeln!(text, "| {kind} | {times} |").ok();
    }
    let all: u64 = sum.faults.values().sum();
    writeln!(text, "| all | {all} |\n").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(code: &str) -> Subject {
        Subject {
            tier: "cores".to_owned(),
            commit: "abc".to_owned(),
            code: code.to_owned(),
        }
    }

    fn line(code: &str, first: u64, count: u64) -> Line {
        let tally = Tally {
            seeds: count,
            simulated: Duration::from_secs(count),
            goals: [("adoption".to_owned(), Hits { times: 3, seeds: 2 })].into(),
            faults: [("pause".to_owned(), 5)].into(),
            ..Tally::default()
        };
        let took = (Duration::from_millis(20), Duration::from_millis(10));
        Line::new(&subject(code), Slice { first, count }, &tally, took)
    }

    #[test]
    fn a_run_goes_on_with_the_slices_that_its_code_has_not_finished() {
        let slices = cut(1, 25, 10);
        assert_eq!(slices.len(), 3);
        assert_eq!(
            slices[2],
            Slice {
                first: 21,
                count: 5
            }
        );
        let ledger = [line("x", 1, 10), line("y", 11, 10), line("x", 21, 3)];
        let left = remaining(slices, &subject("x"), &ledger);
        assert_eq!(left.iter().map(|s| s.first).collect::<Vec<_>>(), [11, 21]);
        assert!(cut(1, 0, 10).is_empty());
    }

    #[test]
    fn a_ledger_is_read_as_it_was_written_and_a_torn_last_line_is_not_a_slice() {
        let written = line("x", 1, 10);
        let mut text = serde_json::to_string(&written).unwrap();
        text.push('\n');
        assert_eq!(parse(&text), Ok(vec![written.clone()]));
        let torn = format!("{text}{{\"tier\":\"co");
        assert_eq!(parse(&torn), Ok(vec![written]));
        let broken = format!("nonsense\n{text}");
        assert!(parse(&broken).unwrap_err().starts_with("line 1:"));
    }

    #[test]
    fn tables_sum_each_tier_with_its_violations() {
        let mut bad = line("x", 11, 10);
        bad.violations.push(13);
        let text = tables(&[line("x", 1, 10), bad]);
        for row in [
            "| abc | 1 to 20 | 20 | 0.0 h | 0.0 min | 0.0 min | 1000 × | 1: [13] |",
            "| adoption | 6 | 4 |",
            "| take-over | 0 | 0 |",
            "| pause | 10 |",
        ] {
            assert!(text.contains(row), "{row} is missing in\n{text}");
        }
    }
}
