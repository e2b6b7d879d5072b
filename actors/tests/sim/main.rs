//! Whole nodes in a simulated world: one seed is one run, byte for byte. `docs/testing.md` says how to run and replay it.

mod net;
mod node;
mod plan;
mod registry;
mod stage;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use plan::{Fault, Plan};
use troupe_actors::planted;
use world::{Outcome, run, transcript};

/// Records shown of a run that failed; all of them with `SIM_FULL=1`.
const SHOWN: usize = 400;

fn env(key: &str) -> Option<u64> {
    let value = std::env::var(key).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{key} must be a number, not {value:?}")),
    )
}

fn report(outcome: &Outcome) -> Option<String> {
    let violation = outcome.violation.as_ref()?;
    let shown = if env("SIM_FULL").is_some() {
        usize::MAX
    } else {
        SHOWN
    };
    let seed = outcome.plan.seed;
    Some(format!(
        "{}\n{violation}\nreplay it with: SIM_SEED={seed} cargo test -p troupe-actors --test sim replay -- --nocapture\n",
        transcript(outcome, shown)
    ))
}

#[derive(Default)]
struct Sum {
    runs: u64,
    simulated: Duration,
    counts: BTreeMap<String, u64>,
    slowest: Duration,
    failed: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.simulated += outcome.simulated;
        for (event, n) in &outcome.counts {
            *self.counts.entry(event.clone()).or_default() += n;
        }
        self.slowest = self.slowest.max(outcome.settled_after.unwrap_or_default());
        if let Some(said) = report(outcome) {
            self.failed.push((outcome.plan.seed, said));
        }
    }
}

/// Runs seeds from `first` on, on as many threads as told, until there are `count` or the time is over.
fn explore(first: u64, count: u64, threads: usize, within: Duration) -> Sum {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let sum = Mutex::new(Sum::default());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && began.elapsed() < within {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let outcome = catch_unwind(AssertUnwindSafe(|| run(Plan::of(seed))));
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(outcome) => sum.add(&outcome),
                        Err(_) => sum
                            .failed
                            .push((seed, format!("seed {seed} panicked outside of any actor\n"))),
                    }
                    if sum.failed.len() >= 5 {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let real = began.elapsed();
    let ratio = sum.simulated.as_secs_f64() / real.as_secs_f64();
    println!(
        "{} seeds from {first}, {:.0} s simulated in {:.1} s: {ratio:.0} times real time on {threads} threads; slowest agreement {:.1} s",
        sum.runs,
        sum.simulated.as_secs_f64(),
        real.as_secs_f64(),
        sum.slowest.as_secs_f64()
    );
    for (event, n) in &sum.counts {
        println!("  {n:>8} {event}");
    }
    sum
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    for seed in [3, 11] {
        let first = transcript(&run(Plan::of(seed)), usize::MAX);
        let second = transcript(&run(Plan::of(seed)), usize::MAX);
        let differs = first.lines().zip(second.lines()).position(|(a, b)| a != b);
        if let Some(line) = differs {
            let around = |text: &str| {
                let lines = text.lines().skip(line.saturating_sub(3)).take(6);
                lines.collect::<Vec<_>>().join("\n")
            };
            panic!(
                "seed {seed}, line {line}:\n{}\n--- and again:\n{}",
                around(&first),
                around(&second)
            );
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.lines().count() > 50, "seed {seed} tells too little");
    }
}

/// As many seeds as fit into the time of a test run. `SIM_FROM`, `SIM_SEEDS`, `SIM_SECONDS` and `SIM_THREADS` make a long run of it.
#[test]
fn no_seed_breaks_an_invariant() {
    let threads = env("SIM_THREADS").unwrap_or(2) as usize;
    let within = Duration::from_secs(env("SIM_SECONDS").unwrap_or(90));
    let sum = explore(
        env("SIM_FROM").unwrap_or(1),
        env("SIM_SEEDS").unwrap_or(500),
        threads,
        within,
    );
    if let Some((_, said)) = sum.failed.first() {
        let seeds: Vec<u64> = sum.failed.iter().map(|(seed, _)| *seed).collect();
        panic!("{said}failed seeds: {seeds:?}");
    }
    assert!(sum.runs > 0);
}

/// A plan of three nodes with this fault and no other.
fn with_one_fault(seed: u64, fault: Fault) -> Plan {
    Plan {
        nodes: 3,
        starts: vec![Duration::ZERO; 3],
        faults: vec![(Duration::from_secs(4), fault)],
        submits: Vec::new(),
        single: true,
        safety: Duration::from_secs(13),
        ..Plan::of(seed)
    }
}

/// Faults that once led to harm: what was wrong is in the message of the commit that mended it.
#[test]
fn faults_that_once_did_harm_do_none() {
    for seed in 1..=8 {
        for fault in [Fault::Unregister { node: 1 }, Fault::NewGeneration] {
            let outcome = run(with_one_fault(seed, fault));
            if let Some(violation) = &outcome.violation {
                panic!("{}{violation}", transcript(&outcome, SHOWN));
            }
        }
    }
}

/// Runs the standard seeds with a bug in place until it is caught so many times; answers the seeds and the invariants.
fn hunt(bug: &'static str, seeds: u64, times: usize) -> Vec<(u64, u8)> {
    let mut caught = Vec::new();
    for seed in 1..=seeds {
        planted::plant(Some(bug));
        let outcome = catch_unwind(AssertUnwindSafe(|| run(Plan::of(seed))));
        planted::plant(None);
        let violation = match outcome {
            Ok(outcome) => outcome.violation.map(|v| v.invariant),
            // An assertion of production code itself, outside of any actor.
            Err(_) => Some(0),
        };
        caught.extend(violation.map(|invariant| (seed, invariant)));
        if caught.len() >= times {
            break;
        }
    }
    caught
}

/// Bugs that the first seeds show: that the simulation can fail at all.
#[test]
fn a_few_planted_bugs_are_caught_at_once() {
    for bug in [
        "deletes-ignored",
        "same-attempt-again",
        "credit-lost",
        "one-restart-too-few",
        "impatient",
    ] {
        let caught = hunt(bug, 40, 1);
        assert!(!caught.is_empty(), "{bug} was not caught by 40 seeds");
    }
}

/// The table of `docs/testing.md`: `SIM_PLANTED=1` hunts every planted bug through `SIM_SEEDS` seeds.
#[test]
fn every_planted_bug_is_caught() {
    if env("SIM_PLANTED").is_none() {
        return;
    }
    let seeds = env("SIM_SEEDS").unwrap_or(100);
    let threads = env("SIM_THREADS").unwrap_or(2) as usize;
    let next = AtomicU64::new(0);
    let table = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some((bug, _)) = planted::BUGS.get(at) else {
                        return;
                    };
                    let caught = hunt(bug, seeds, 3);
                    println!("{bug}: {caught:?}");
                    table
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(*bug, caught);
                }
            });
        }
    });
    let table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("| bug | what it does | caught by | seeds |\n|---|---|---|---|");
    for (bug, what) in planted::BUGS {
        let caught = &table[bug];
        let by: std::collections::BTreeSet<u8> = caught.iter().map(|(_, n)| *n).collect();
        let seeds: Vec<u64> = caught.iter().map(|(seed, _)| *seed).collect();
        println!("| `{bug}` | {what} | {by:?} | {seeds:?} |");
    }
    let missed: Vec<_> = table
        .iter()
        .filter(|(_, caught)| caught.is_empty())
        .collect();
    assert!(missed.is_empty(), "not caught by {seeds} seeds: {missed:?}");
}

/// One seed, with everything it said: `SIM_SEED=n`.
#[test]
fn replay() {
    let Some(seed) = env("SIM_SEED") else {
        return;
    };
    let outcome = run(Plan::of(seed));
    match report(&outcome) {
        Some(said) => panic!("{said}"),
        None => println!(
            "{}seed {seed} breaks nothing",
            transcript(&outcome, usize::MAX)
        ),
    }
}
