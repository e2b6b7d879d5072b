//! ▶ Hunts planted bugs through seeds on several threads, until each is caught so many times, and makes the table of it.
//!
//! ```text
//! SIM_SEEDS     seeds that each bug is hunted through, from 1        SIM_THREADS   threads, 2
//! SIM_BUGS      only these, by name, with commas between             SIM_TABLE     a file with what other tiers found:
//! SIM_TIMES     so many catches are enough, 3                                      it is read, and added to
//! ```
//!
//! A bug that other tiers have caught often enough is not hunted again, and catches of all tiers count together. So one command over
//! all tiers makes one table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::planted::{self, BUGS};

/// A seed, and the number of the invariant that caught the bug there: 0 for an assertion of production code itself.
pub type Catch = (u64, u8);

/// What was found of one bug in one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which simulation.
    pub tier: String,
    /// Which bug.
    pub bug: String,
    /// The first seeds that caught it.
    pub caught: Vec<Catch>,
    /// Seeds that were run for that.
    pub of: u64,
}

impl Found {
    /// One line of a table's file.
    pub fn line(&self) -> String {
        let caught: Vec<String> = self
            .caught
            .iter()
            .map(|(s, n)| format!("{s}:{n}"))
            .collect();
        format!(
            "{}\t{}\t{}\t{}",
            self.tier,
            self.bug,
            self.of,
            caught.join(",")
        )
    }

    /// From one line of a table's file.
    pub fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split('\t');
        let (tier, bug, of) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
        let caught = parts.next()?.split(',').filter(|s| !s.is_empty());
        let catch = |s: &str| {
            let (seed, n) = s.split_once(':')?;
            Some((seed.parse().ok()?, n.parse().ok()?))
        };
        Some(Self {
            tier: tier.to_owned(),
            bug: bug.to_owned(),
            caught: caught.map(catch).collect::<Option<_>>()?,
            of,
        })
    }
}

/// Runs seeds from 1 on with a bug in place until it is caught so many times. `run` answers the invariant that is broken.
pub fn hunt(
    tier: &str,
    bug: &'static str,
    seeds: u64,
    times: usize,
    run: impl Fn(u64) -> Option<u8>,
) -> Found {
    let mut found = Found {
        tier: tier.to_owned(),
        bug: bug.to_owned(),
        caught: Vec::new(),
        of: 0,
    };
    for seed in 1..=seeds {
        planted::plant(Some(bug));
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed)));
        planted::plant(None);
        found.of = seed;
        // A panic is an assertion of production code itself, outside of any actor.
        let invariant = outcome.unwrap_or(Some(0));
        found.caught.extend(invariant.map(|n| (seed, n)));
        if found.caught.len() >= times {
            break;
        }
    }
    found
}

/// Hunts every bug of the list, as the environment says; prints the table of all tiers, and answers the bugs that no tier caught
/// often enough.
///
/// # Panics
/// When the table's file cannot be read or written, or `SIM_BUGS` names a bug that there is not.
pub fn hunt_all(tier: &str, seeds: u64, run: impl Fn(u64) -> Option<u8> + Sync) -> Vec<String> {
    let number = |key: &str| std::env::var(key).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = number("SIM_SEEDS").unwrap_or(seeds);
    let times = number("SIM_TIMES").unwrap_or(3) as usize;
    let threads = number("SIM_THREADS").unwrap_or(2);
    let file = std::env::var_os("SIM_TABLE");
    let before: Vec<Found> = file.as_ref().map_or_else(Vec::new, |path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(Found::parse).collect()
    });
    let wanted: Vec<&'static str> = match std::env::var("SIM_BUGS") {
        Err(_) => BUGS.iter().map(|b| b.0).collect(),
        Ok(names) => names
            .split(',')
            .map(|name| {
                let known = BUGS.iter().find(|(known, _)| *known == name);
                known
                    .unwrap_or_else(|| panic!("there is no planted bug {name:?}"))
                    .0
            })
            .collect(),
    };
    let caught = |found: &[Found], bug: &str| -> usize {
        let tiers = found.iter().filter(|f| f.bug == bug);
        tiers.map(|f| f.caught.len()).sum()
    };
    let enough = |bug: &&&str| caught(&before, bug) < times;
    let wanted: Vec<&'static str> = wanted.iter().filter(enough).copied().collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(before));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(bug) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let this = hunt(tier, bug, seeds, times, &run);
                    println!("{}", this.line());
                    if let Some(path) = &file {
                        let mut file = OpenOptions::new().create(true).append(true).open(path);
                        let written = file.as_mut().map(|f| writeln!(f, "{}", this.line()));
                        assert!(matches!(written, Ok(Ok(()))), "{path:?} cannot be written");
                    }
                    found
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(this);
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{}", table(&found));
    let asked = BUGS
        .iter()
        .filter(|(bug, _)| found.iter().any(|f| f.bug == *bug));
    asked
        .filter(|(bug, _)| caught(&found, bug) < times)
        .map(|(bug, _)| format!("{bug} ({} times)", caught(&found, bug)))
        .collect()
}

/// The table, in Markdown, in the order of the list.
pub fn table(found: &[Found]) -> String {
    let mut text = "| bug | what it does | invariant | seeds |\n|---|---|---|---|\n".to_owned();
    for (bug, what) in BUGS {
        let tiers: BTreeMap<&str, &Found> = {
            let of_bug = found.iter().filter(|f| f.bug == *bug);
            of_bug.map(|f| (f.tier.as_str(), f)).collect()
        };
        if tiers.is_empty() {
            continue;
        }
        let rules: BTreeSet<u8> = tiers
            .values()
            .flat_map(|f| f.caught.iter().map(|c| c.1))
            .collect();
        let rules: Vec<String> = rules.iter().map(u8::to_string).collect();
        let seeds: Vec<String> = tiers
            .values()
            .map(|f| {
                let seeds: Vec<String> =
                    f.caught.iter().map(|(seed, _)| seed.to_string()).collect();
                match seeds.is_empty() {
                    true => format!("{}: none of {}", f.tier, f.of),
                    false => format!("{}: {}", f.tier, seeds.join(", ")),
                }
            })
            .collect();
        // Writing to a string does not fail.
        writeln!(
            text,
            "| `{bug}` | {what} | {} | {} |",
            rules.join(", "),
            seeds.join("; ")
        )
        .ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read_as_it_was_written() {
        let found = Found {
            tier: "nodes".to_owned(),
            bug: "credit-lost".to_owned(),
            caught: vec![(3, 8), (17, 14)],
            of: 17,
        };
        assert_eq!(Found::parse(&found.line()), Some(found.clone()));
        let none = Found {
            caught: Vec::new(),
            ..found
        };
        assert_eq!(Found::parse(&none.line()), Some(none.clone()));
        assert!(table(&[none]).contains("none of 17"));
        assert_eq!(Found::parse("nothing"), None);
    }

    #[test]
    fn a_hunt_ends_with_the_catches_that_are_enough_and_a_panic_is_one() {
        let run = |seed: u64| match seed {
            2 => Some(5),
            4 => panic!("an assertion"),
            _ => None,
        };
        let found = hunt("none", "credit-lost", 9, 2, run);
        assert_eq!((found.caught, found.of), (vec![(2, 5), (4, 0)], 4));
        assert!(!planted::is("credit-lost"), "it is gone afterwards");
    }
}
