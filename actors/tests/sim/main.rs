//! Whole nodes in a simulated world: one seed is one run, byte for byte. `docs/testing.md` says how to run and replay it.

mod net;
mod node;
mod plan;
mod registry;
mod stage;
mod transcripts;
mod world;

use std::time::Duration;

use plan::{Fault, Plan};
use troupe_actors::supervisor::How;
use troupe_actors::testkit::hunt::{hunt, hunt_all};
use troupe_actors::testkit::runner::{self, Course, Ran, demand_same_again, number as env};
use troupe_actors::testkit::slices;
use world::{Outcome, run, transcript};

/// Records shown of a run that failed; all of them with `SIM_FULL=1`.
const SHOWN: usize = 400;

/// The name of this simulation in ledgers.
const TIER: &str = "whole nodes";
/// The 500 seeds of a test run take a minute of two cores; a machine that needs this long is too slow to say anything.
const SAFETY_NET: Duration = Duration::from_secs(900);

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

/// Runs one seed for a long run.
fn ran(seed: u64) -> Ran {
    let outcome = run(Plan::of(seed));
    let failure = report(&outcome);
    Ran {
        tally: outcome
            .coverage
            .tally(seed, outcome.simulated, failure.is_some()),
        failure,
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    demand_same_again(&[3, 11], |seed| {
        transcript(&run(Plan::of(seed)), usize::MAX)
    });
}

/// 500 seeds; `SIM_FROM`, `SIM_SEEDS`, `SIM_SLICE`, `SIM_LEDGER` and `SIM_THREADS` make a long run of it.
#[test]
fn no_seed_breaks_an_invariant() {
    let course = Course::from_env(TIER, 500, SAFETY_NET);
    let report = course.run(ran);
    let mut text = String::new();
    slices::coverage(&mut text, &report.sum);
    slices::faults(&mut text, &report.sum);
    println!("{text}");
    report.demand_all();
}

/// What the ledger of `SIM_LEDGER` amounts to, both tiers: the tables of `docs/simulation.md`.
#[test]
fn sums() {
    if let Some(path) = runner::ledger_path() {
        println!("{}", slices::tables(&runner::read(&path)));
    }
}

/// A plan of so many nodes with these faults and no other, the first after four seconds.
fn with(seed: u64, nodes: usize, faults: &[(u64, Fault)]) -> Plan {
    let at = |(ms, fault): &(u64, Fault)| (Duration::from_millis(4000 + ms), fault.clone());
    Plan {
        nodes,
        starts: vec![Duration::ZERO; nodes],
        clocks: vec![0; nodes],
        faults: faults.iter().map(at).collect(),
        submits: Vec::new(),
        single: faults.len() == 1,
        safety: Duration::from_secs(13),
        ..Plan::of(seed)
    }
}

/// Faults that once led to harm: what was wrong is in the message of the commit that mended it.
#[test]
fn faults_that_once_did_harm_do_none() {
    let lasting = Duration::from_secs(3);
    let master_dies = Fault::NewMasters {
        times: 0,
        after: Duration::ZERO,
        whole: false,
        down: Duration::ZERO,
    };
    let once: [(usize, Vec<(u64, Fault)>); 4] = [
        (3, vec![(0, Fault::Unregister { node: 1 })]),
        (3, vec![(0, Fault::NewGeneration)]),
        // Whoever had registered anew before kept that registration in the new generation.
        (
            3,
            vec![
                (0, Fault::Unregister { node: 1 }),
                (3000, Fault::NewGeneration),
            ],
        ),
        // MasterActor began anew and claimed for ever what an empty registry did not have.
        (
            1,
            vec![(0, Fault::RegistryDown { lasting }), (2000, master_dies)],
        ),
    ];
    for seed in 1..=8 {
        for (nodes, faults) in &once {
            keeps_well(with(seed, *nodes, faults));
        }
        // A newcomer with a late clock began an empty registry, and its generation was below what all others went by.
        let late = Fault::RegistryDown { lasting };
        let crash = Fault::Crash {
            node: 2,
            down: Duration::from_millis(2800),
        };
        let mut plan = with(seed, 3, &[(0, late), (0, crash)]);
        plan.clocks[2] = -1_000_000;
        keeps_well(plan);
        // A RegistryActor with a late clock began anew while the registry did, and knew of no generation.
        let down = Fault::RegistryDown { lasting };
        let again = Fault::Kill {
            node: 2,
            actor: "registry",
            how: How::Panic,
            times: 1,
            apart: lasting,
        };
        let mut plan = with(seed, 3, &[(0, down), (2_900, again)]);
        plan.clocks[2] = -1_000_000;
        keeps_well(plan);
    }
}

fn keeps_well(plan: Plan) {
    let outcome = run(plan);
    if let Some(violation) = &outcome.violation {
        panic!("{}{violation}", transcript(&outcome, SHOWN));
    }
}

/// The invariant that a seed breaks with the bug that is in place.
fn broken_by(seed: u64) -> Option<u8> {
    run(Plan::of(seed)).violation.map(|v| v.invariant)
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
        let found = hunt(TIER, bug, 40, 1, broken_by);
        assert!(!found.caught.is_empty(), "{bug} was not caught by 40 seeds");
    }
}

/// The table of `docs/testing.md`: `SIM_PLANTED=1` hunts every planted bug through the standard seeds.
#[test]
fn every_planted_bug_is_caught() {
    if env("SIM_PLANTED").is_none() {
        return;
    }
    let missed = hunt_all(TIER, 500, broken_by);
    if std::env::var_os("SIM_TABLE").is_some() {
        return;
    }
    assert!(missed.is_empty(), "not caught three times: {missed:?}");
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
