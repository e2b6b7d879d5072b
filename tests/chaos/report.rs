//! What rounds found, a JSON line each, and the table of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// Of this many failovers on, the bounds hold; of a few, one is the 99th percentile.
const ENOUGH: usize = 50;
/// Time without a master, at most, in 99 of 100 cases.
const BOUNDS_MS: [(&str, f64); 3] = [
    ("kill -9 of the master", 500.0),
    ("SIGSTOP of the master", 3000.0),
    ("partition of the master", 3000.0),
];

/// What one round found.
#[derive(Debug, Default)]
pub struct Findings {
    pub registry: &'static str,
    pub hosts: usize,
    pub faults: BTreeMap<&'static str, u64>,
    /// Time without a master after each kind of fault.
    pub failovers: BTreeMap<&'static str, Vec<Duration>>,
    /// Counts by name, summed over rounds.
    pub counts: BTreeMap<&'static str, u64>,
    /// Answers of the API by what was asked.
    pub answers: BTreeMap<String, u64>,
    /// Each makes the round a failed one.
    pub wrongs: Vec<String>,
    pub took: Duration,
}

impl Findings {
    pub fn to_json(&self, seed: u64) -> Value {
        let ms = |all: &Vec<Duration>| -> Vec<f64> {
            let ms = all.iter().map(|d| d.as_secs_f64() * 1e3);
            ms.map(|ms| (ms * 10.0).round() / 10.0).collect()
        };
        let failovers: BTreeMap<&str, Vec<f64>> = self
            .failovers
            .iter()
            .map(|(of, all)| (*of, ms(all)))
            .collect();
        json!({
            "seed": seed,
            "registry": self.registry,
            "hosts": self.hosts,
            "faults": self.faults,
            "failovers_ms": failovers,
            "counts": self.counts,
            "answers": self.answers,
            "wrongs": self.wrongs,
            "seconds": self.took.as_secs_f64().round(),
        })
    }
}

/// Rounds that were played, the newest word on each seed.
pub struct Ledger {
    file: Option<PathBuf>,
    rounds: BTreeMap<u64, Value>,
}

impl Ledger {
    /// From this file, which need not exist yet; none: only what is added.
    pub fn open(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|f| std::fs::read_to_string(f).ok());
        let lines = text.unwrap_or_default();
        let rounds = lines.lines().filter_map(|line| {
            let round: Value = serde_json::from_str(line).ok()?;
            Some((round["seed"].as_u64()?, round))
        });
        Self {
            rounds: rounds.collect(),
            file,
        }
    }

    /// Played, and nothing was wrong.
    pub fn is_done(&self, seed: u64) -> bool {
        let round = self.rounds.get(&seed);
        round.is_some_and(|round| wrongs(round).is_empty())
    }

    pub fn add(&mut self, seed: u64, findings: &Findings) {
        let round = findings.to_json(seed);
        if let Some(path) = &self.file {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path);
            let mut file = file.unwrap_or_else(|err| panic!("{}: {err}", path.display()));
            writeln!(file, "{round}").unwrap();
        }
        self.rounds.insert(seed, round);
    }

    /// Seeds that failed, and why.
    pub fn failed(&self) -> Vec<String> {
        let bad = self
            .rounds
            .iter()
            .filter(|(_, round)| !wrongs(round).is_empty());
        bad.map(|(seed, round)| format!("seed {seed}: {}", wrongs(round).join("; ")))
            .collect()
    }

    /// What was to be measured and is beyond its bound.
    pub fn beyond_bounds(&self) -> Vec<String> {
        let mut beyond = Vec::new();
        for (fault, bound) in BOUNDS_MS {
            let times = self.failovers(fault);
            if times.len() >= ENOUGH && at(&times, 0.99) > bound {
                let p99 = at(&times, 0.99);
                beyond.push(format!(
                    "{fault}: p99 {p99:.0} ms, at most {bound:.0} are allowed"
                ));
            }
        }
        beyond
    }

    /// In Markdown.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let rounds = self.rounds.len();
        let seconds: f64 = self
            .rounds
            .values()
            .filter_map(|r| r["seconds"].as_f64())
            .sum();
        let registries = self.rounds.values().filter_map(|r| r["registry"].as_str());
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        registries.for_each(|kind| *kinds.entry(kind).or_default() += 1);
        out += &format!(
            "{rounds} rounds in {:.1} min; registries: {kinds:?}\n\n",
            seconds / 60.0
        );
        out += "| fault | times |\n|---|---|\n";
        let faults = self.sums("faults");
        for (fault, times) in &faults {
            out += &format!("| {fault} | {times} |\n");
        }
        out += "\n| time without a master after | times | p50 | p99 | worst |\n|---|---|---|---|---|\n";
        for (fault, _) in BOUNDS_MS {
            let times = self.failovers(fault);
            if !times.is_empty() {
                let [p50, p99, worst] = [0.5, 0.99, 1.0].map(|q| at(&times, q));
                let n = times.len();
                out += &format!("| {fault} | {n} | {p50:.1} ms | {p99:.1} ms | {worst:.1} ms |\n");
            }
        }
        for (title, key) in [("what", "counts"), ("calls of the API", "answers")] {
            out += &format!("\n| {title} | sum |\n|---|---|\n");
            for (what, sum) in self.sums(key) {
                out += &format!("| {what} | {sum} |\n");
            }
        }
        let failed = self.failed();
        out += &format!("\nfailed rounds: {}\n", failed.len());
        for why in failed {
            out += &format!("* {why}\n");
        }
        out
    }

    fn failovers(&self, fault: &str) -> Vec<f64> {
        let all = self.rounds.values().map(|r| &r["failovers_ms"][fault]);
        let all = all.filter_map(Value::as_array).flatten();
        let mut times: Vec<f64> = all.filter_map(Value::as_f64).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    fn sums(&self, key: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        let empty = Map::new();
        for round in self.rounds.values() {
            for (what, n) in round[key].as_object().unwrap_or(&empty) {
                *sums.entry(what.clone()).or_default() += n.as_u64().unwrap_or(0);
            }
        }
        sums
    }
}

fn wrongs(round: &Value) -> Vec<&str> {
    let wrongs = round["wrongs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    wrongs.iter().filter_map(Value::as_str).collect()
}

/// Nearest rank.
fn at(sorted: &[f64], q: f64) -> f64 {
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[test]
fn a_ledger_goes_on_where_it_stopped_and_plays_failed_seeds_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let good = Findings {
        failovers: BTreeMap::from([("kill -9 of the master", vec![Duration::from_millis(7)])]),
        counts: BTreeMap::from([("tasks lost", 0), ("accepted", 3)]),
        ..Findings::default()
    };
    let bad = Findings {
        wrongs: vec!["lost".to_owned()],
        ..Findings::default()
    };
    let mut ledger = Ledger::open(Some(path.clone()));
    ledger.add(1, &good);
    ledger.add(2, &bad);
    let mut again = Ledger::open(Some(path));
    assert!(again.is_done(1) && !again.is_done(2) && !again.is_done(3));
    assert_eq!(again.failed(), ["seed 2: lost"]);
    again.add(2, &good);
    assert!(again.failed().is_empty());
    let table = again.table();
    assert!(
        table.contains("| kill -9 of the master | 2 | 7.0 ms"),
        "{table}"
    );
    assert!(table.contains("| accepted | 6 |"), "{table}");
    let unique: BTreeSet<u64> = again.rounds.keys().copied().collect();
    assert_eq!(unique.len(), 2);
}
