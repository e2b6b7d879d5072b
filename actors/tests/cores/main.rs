//! Nodes on an event queue of our own, with pauses and clocks that go at different rates: one seed is one run, byte for byte.
//! `docs/testing.md` says what is a model here, and how to run and replay it.

mod ending;
mod hub;
mod net;
mod plan;
mod process;
mod registry;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use plan::{Fault, Plan, Who};
use troupe_actors::testkit::hunt::{hunt, hunt_all};
use troupe_actors::testkit::machine::Make;
use troupe_actors::testkit::runner::{Course, Ran, demand_same_again, number as env};
use troupe_actors::testkit::slices;
use world::{Outcome, run, transcript};

/// Records shown of a run that failed; all of them with `CORES_FULL=1`.
const SHOWN: usize = 400;
/// The name of this simulation in ledgers.
const TIER: &str = "cores";
/// The 2,000 seeds of a test run take a minute of two cores; a machine that needs this long is too slow to say anything.
const SAFETY_NET: Duration = Duration::from_secs(900);

/// Runs one seed for a long run.
fn ran(seed: u64) -> Ran {
    let outcome = run(Plan::of(seed));
    let failure = report(&outcome);
    let broken = failure.is_some();
    Ran {
        tally: outcome.coverage.tally(seed, outcome.simulated, broken),
        failure,
    }
}

/// Runs one seed to see which rule it breaks.
fn broken(seed: u64) -> Option<u8> {
    let violation = run(Plan::of(seed)).violation;
    violation.map(|violation| violation.invariant)
}

fn report(outcome: &Outcome) -> Option<String> {
    let violation = outcome.violation.as_ref()?;
    let shown = env("CORES_FULL").map_or(SHOWN, |_| usize::MAX);
    let seed = outcome.plan.seed;
    Some(format!(
        "{}\n{violation}\nreplay it with: CORES_SEED={seed} cargo test -p troupe-actors --test cores replay -- --nocapture\n",
        transcript(outcome, shown)
    ))
}

fn threads() -> u64 {
    env("CORES_THREADS").unwrap_or(2).max(1)
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    demand_same_again(&[3, 4, 8, 11], |seed| {
        transcript(&run(Plan::of(seed)), usize::MAX)
    });
}

/// 2,000 seeds; `CORES_FROM`, `CORES_SEEDS`, `CORES_SLICE`, `CORES_LEDGER`, `CORES_THREADS` and `CORES_SECONDS` make a long
/// run of it, which must be fast too.
#[test]
fn no_seed_breaks_an_invariant() {
    let asked = env("CORES_SEEDS");
    let within = asked.map_or(SAFETY_NET, |_| Duration::MAX);
    let course = Course {
        tier: TIER,
        first: env("CORES_FROM").unwrap_or(1),
        seeds: asked.unwrap_or(2000),
        slice: env("CORES_SLICE").unwrap_or(2000),
        threads: threads(),
        ledger: std::env::var_os("CORES_LEDGER").map(PathBuf::from),
        within: env("CORES_SECONDS").map_or(within, Duration::from_secs),
    };
    let report = course.run(ran);
    let mut text = String::new();
    slices::coverage(&mut text, &report.sum);
    slices::faults(&mut text, &report.sum);
    println!("{text}");
    report.demand_all();
    if asked.is_some_and(|seeds| seeds >= 1000) && report.sum.seeds > 0 {
        let ratio = report.ratio;
        assert!(ratio >= 100.0, "{ratio:.0} times real time on one core");
    }
}

/// A plan of three nodes with these faults and no others.
fn with(seed: u64, faults: Vec<(u64, Fault)>) -> Plan {
    let at = |(ms, fault)| (Duration::from_millis(ms), fault);
    Plan {
        nodes: 3,
        starts: vec![Duration::ZERO; 3],
        rates: vec![1.0; 4],
        walls: vec![0; 3],
        faults: faults.into_iter().map(at).collect(),
        submits: Vec::new(),
        single: false,
        safety: Duration::from_secs(10),
        ..Plan::of(seed)
    }
}

fn demand(plan: Plan) {
    let outcome = run(plan);
    if let Some(violation) = &outcome.violation {
        panic!("{}{violation}", transcript(&outcome, SHOWN));
    }
}

/// Its owner asked for it again and again, and never looked.
#[test]
fn a_registration_that_is_gone_without_a_word_is_made_anew() {
    for seed in 1..=4 {
        let untold = Fault::Watch {
            late: Duration::ZERO,
            again: 0.0,
            missing: 1.0,
            lasting: Duration::from_secs(7),
        };
        let revoked = Fault::Revoke { who: Who::Node(1) };
        let plan = with(seed, vec![(1000, untold), (2000, revoked)]);
        let make = Make {
            ttl: Duration::from_secs(4),
            relist: Duration::from_secs(30),
            ..plan.make.clone()
        };
        demand(Plan { make, ..plan });
    }
}

/// The one that makes the generation knows of none, and its clock says that it is earlier.
#[test]
fn a_replaced_registry_gets_a_higher_generation_whoever_finds_it_first() {
    for seed in 1..=4 {
        let away = Fault::NoRegistry {
            side: vec![0, 1],
            lasting: Duration::from_secs(3),
        };
        let replaced = Fault::RegistryDown {
            lasting: Duration::from_millis(100),
        };
        let new = Fault::Crash {
            who: Who::Node(2),
            down: Duration::from_millis(200),
        };
        let plan = with(seed, vec![(1000, away), (1050, replaced), (1050, new)]);
        demand(Plan {
            walls: vec![0, 0, -1_000_000],
            disk: None,
            ..plan
        });
    }
}

/// Bugs that the first seeds show: that the simulation can fail at all.
#[test]
fn a_few_planted_bugs_are_caught_at_once() {
    for bug in ["same-attempt-again", "credit-lost"] {
        let found = hunt(TIER, bug, 300, 1, broken);
        assert!(
            !found.caught.is_empty(),
            "{bug} was not caught by 300 seeds"
        );
    }
}

/// The table of `docs/testing.md`: `CORES_PLANTED=1` hunts every planted bug through the standard seeds.
#[test]
fn every_planted_bug_is_hunted() {
    if env("CORES_PLANTED").is_none() {
        return;
    }
    let missed = hunt_all(TIER, 2000, broken);
    // What the other tier is for is not asked of this one alone.
    let both = std::env::var_os("SIM_TABLE").is_some();
    assert!(
        !both || missed.is_empty(),
        "not caught three times: {missed:?}"
    );
    println!("not caught three times: {missed:?}");
}

/// One seed, with everything it said: `CORES_SEED=n`.
#[test]
fn replay() {
    let Some(seed) = env("CORES_SEED") else {
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
