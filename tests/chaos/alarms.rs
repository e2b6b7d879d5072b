//! False alarms: a starved machine and short pauses, with and without local health (a slow node doubts itself first).

use std::time::{Duration, Instant};

use crate::env;
use crate::faults::{LOOPS, Loops};
use crate::schedule::{Dice, Means, Plan, Registry};
use crate::world::{Fashion, World};

/// What was said although nobody was away for as long as `discovery.suspect_floor`.
#[derive(Debug, PartialEq, Eq)]
struct Alarms {
    pauses: u64,
    suspicions: u64,
    verdicts: u64,
    takeovers: u64,
}

/// Eight busy loops, nodes of low priority beside them, and pauses of one node after the other.
fn starve(lasting: Duration, local_health: bool) -> Alarms {
    let plan = Plan {
        seed: 0,
        hosts: 5,
        registry: Registry::Etcd,
        clocks: Vec::new(),
        small_disk: None,
        phases: Vec::new(),
    };
    let health = format!("discovery.local_health={local_health}");
    let fashion = Fashion {
        settings: vec![health, "generator.every=1s".to_owned()],
        nice: env("TROUPE_ALARMS_NICE").unwrap_or(19) as u8,
    };
    let means = Means {
        net: false,
        clocks: false,
    };
    let mut world = World::start(&plan, means, &fashion);
    let before = count(&world);
    let loops = Loops::start(LOOPS);
    let mut dice = Dice(1);
    let end = Instant::now() + lasting;
    let mut pauses = 0;
    while Instant::now() < end {
        let at = dice.below(plan.hosts);
        world.freeze(at);
        std::thread::sleep(dice.ms(300, 950));
        world.thaw(at);
        std::thread::sleep(dice.ms(100, 700));
        pauses += 1;
    }
    drop(loops);
    let after = count(&world);
    Alarms {
        pauses,
        suspicions: after[0] - before[0],
        verdicts: after[1] - before[1],
        takeovers: after[2] - before[2],
    }
}

fn count(world: &World) -> [u64; 3] {
    let records = world.records();
    ["peer.suspected", "peer.condemned", "master.promoted"]
        .map(|event| records.iter().filter(|r| r.event == event).count() as u64)
}

#[test]
fn starved_and_paused_nodes_condemn_nobody_because_they_doubt_themselves_first() {
    let Some(seconds) = env("TROUPE_ALARMS_S") else {
        println!(
            "SKIPPED: TROUPE_ALARMS_S says for how many seconds; 60 for the figures of docs/chaos.md"
        );
        return;
    };
    let lasting = Duration::from_secs(seconds);
    let rows = [true, false].map(|on| (on, starve(lasting, on)));
    println!(
        "| local health | seconds | pauses of 300 to 950 ms | suspicions | verdicts | take-overs |\n|---|---|---|---|---|---|"
    );
    for (on, alarms) in &rows {
        let Alarms {
            pauses,
            suspicions,
            verdicts,
            takeovers,
        } = alarms;
        let on = if *on { "on" } else { "off" };
        println!("| {on} | {seconds} | {pauses} | {suspicions} | {verdicts} | {takeovers} |");
    }
    let (with, without) = (&rows[0].1, &rows[1].1);
    assert_eq!(
        (with.verdicts, with.takeovers),
        (0, 0),
        "false alarms with local health"
    );
    assert!(
        without.verdicts > 0,
        "without local health there must be false alarms"
    );
}
