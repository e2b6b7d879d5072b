//! Hunting planted bugs through the seeds of a simulation: which invariant catches each, and how soon.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::planted;

/// A bug that is caught this often needs no more seeds.
const TIMES: usize = 3;

/// Runs the seeds with a bug in place until it is caught so many times; `run` answers the invariant that was broken. Answers
/// the seeds and the invariants.
pub fn hunt(
    bug: &str,
    seeds: RangeInclusive<u64>,
    times: usize,
    run: impl Fn(u64) -> Option<u8>,
) -> Vec<(u64, u8)> {
    let mut caught = Vec::new();
    for seed in seeds {
        planted::plant(Some(bug));
        let broken = catch_unwind(AssertUnwindSafe(|| run(seed)));
        planted::plant(None);
        // An assertion of production code itself, outside of any actor.
        let broken = broken.unwrap_or(Some(0));
        caught.extend(broken.map(|invariant| (seed, invariant)));
        if caught.len() >= times {
            break;
        }
    }
    caught
}

/// Hunts every planted bug and prints a table; answers those that were not caught at all.
pub fn hunt_all(
    seeds: RangeInclusive<u64>,
    threads: u64,
    run: impl Fn(u64) -> Option<u8> + Sync,
) -> Vec<&'static str> {
    let next = AtomicUsize::new(0);
    let table = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some((bug, _)) = planted::BUGS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let caught = hunt(bug, seeds.clone(), TIMES, &run);
            println!("{bug}: {caught:?}");
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.insert(*bug, caught);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("| bug | what it does | caught by | seeds |\n|---|---|---|---|");
    for (bug, what) in planted::BUGS {
        let caught = &table[bug];
        let by: BTreeSet<u8> = caught.iter().map(|(_, n)| *n).collect();
        let seeds: Vec<u64> = caught.iter().map(|(seed, _)| *seed).collect();
        println!("| `{bug}` | {what} | {by:?} | {seeds:?} |");
    }
    let missed = table.into_iter().filter(|(_, caught)| caught.is_empty());
    missed.map(|(bug, _)| bug).collect()
}
