//! The scenarios that README tells of, as text that a reviewer can read: what was done (`>`), then what was observed. They are kept
//! in `actors/tests/transcripts`; `UPDATE_TRANSCRIPTS=1 cargo test -p troupe-actors --test sim transcripts` writes them anew, and the
//! diff is the review.
//!
//! Of the trace only decisions are shown, with times to a tenth of a second and with names in place of numbers that chance makes:
//! `e1`, `e2` for epochs, `t1`, `t2` for tasks, in the order in which they appear.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use troupe_actors::testkit::trace::Record;

use crate::plan::{Fault, Plan, Way};
use crate::world::{self, run};
use troupe_actors::testkit::machine::Make;

/// What is shown of which event; what is not here is not shown.
const SHOWN: &[(&str, &[&str])] = &[
    ("sim.answered", &["task", "answer"]),
    ("sim.ended", &["reason"]),
    ("node.registered", &[]),
    ("node.deregistered", &["reason"]),
    ("node.unreachable", &[]),
    ("node.reachable", &[]),
    ("peer.added", &["peer"]),
    ("peer.suspected", &["peer"]),
    ("peer.cleared", &["peer"]),
    ("peer.challenged", &["peer"]),
    ("peer.condemned", &["peer", "reason"]),
    ("peer.removed", &["peer"]),
    ("master.promoted", &["epoch"]),
    ("master.changed", &["peer", "epoch"]),
    ("master.demoted", &["reason"]),
    ("master.handing_over", &["peer", "reason"]),
    ("master.fenced", &["reason"]),
    ("registry.lost", &[]),
    ("registry.connected", &[]),
    ("registry.replaced", &[]),
    ("task.created", &["task", "durable"]),
    ("task.assigned", &["task", "executor", "attempt"]),
    ("task.adopted", &["task", "attempt"]),
    ("task.requeued", &["task", "reason"]),
    ("task.refused", &["task", "reason"]),
    ("task.finished", &["task", "executor"]),
    ("task.dead", &["task", "reason"]),
];

/// Latencies and how long each task takes come from it.
const SEED: u64 = 1;

struct Scenario {
    name: &'static str,
    title: &'static str,
    /// When each node starts, ms since the run began.
    starts: [u64; 3],
    /// All begin two seconds after the cluster has formed.
    faults: Vec<(Fault, &'static str)>,
    /// Tasks handed in, ms after the cluster has formed, and where.
    submits: &'static [(u64, usize)],
    /// The scenario is over, in seconds since the run began; what follows checks that all is well.
    until: u64,
}

/// Node 1 is there first and leads.
const IN_ORDER: [u64; 3] = [0, 100, 200];

fn scenarios() -> Vec<Scenario> {
    let lasting = Duration::from_secs;
    vec![
        Scenario {
            name: "join",
            title: "A node leads alone; two more join, and nobody else is disturbed",
            starts: [0, 2000, 4000],
            faults: vec![],
            submits: &[(500, 0)],
            until: 8,
        },
        Scenario {
            name: "election",
            title: "Three start at once: one claims mastership. Then it gives it up, and another leads under a higher epoch",
            starts: [0, 0, 0],
            faults: vec![(Fault::StepDown { node: 0 }, "n1: step-down")],
            submits: &[(1000, 0), (1900, 0), (4000, 1)],
            until: 8,
        },
        Scenario {
            name: "failover",
            title: "The master's process is killed: two witnesses, a verdict, an heir; what runs on the survivors is adopted",
            starts: IN_ORDER,
            faults: vec![(
                Fault::Crash {
                    node: 0,
                    down: lasting(4),
                },
                "kill -9 n1",
            )],
            submits: &[(1900, 0), (1950, 0), (3000, 2)],
            until: 10,
        },
        Scenario {
            name: "drain",
            title: "The master is told to leave: it hands over, deregisters, and comes back as another process",
            starts: IN_ORDER,
            faults: vec![(Fault::Drain { node: 0 }, "n1: SIGTERM")],
            submits: &[(1900, 0), (1950, 0), (3000, 2)],
            until: 8,
        },
        Scenario {
            name: "partition",
            title: "The master is cut off from the others and from the registry, and the cut is healed",
            starts: IN_ORDER,
            faults: vec![
                (
                    Fault::Split {
                        side: vec![0],
                        way: Way::Hold,
                        lasting: lasting(6),
                    },
                    "n1 and the others do not reach each other",
                ),
                (
                    Fault::NoRegistry {
                        nodes: vec![0],
                        way: Way::Hold,
                        lasting: lasting(6),
                    },
                    "n1 does not reach the registry",
                ),
            ],
            submits: &[(1900, 0), (1950, 0), (5000, 2)],
            until: 16,
        },
        Scenario {
            name: "registry-outage",
            title: "Nobody reaches the registry for eight seconds: nobody is condemned, and the master leads on under its epoch",
            starts: IN_ORDER,
            faults: vec![(
                Fault::NoRegistry {
                    nodes: vec![0, 1, 2],
                    way: Way::Hold,
                    lasting: lasting(8),
                },
                "nobody reaches the registry",
            )],
            submits: &[(1900, 0), (3000, 0), (4000, 0), (7000, 0)],
            until: 16,
        },
    ]
}

fn plan(scenario: &Scenario) -> Plan {
    let ms = Duration::from_millis;
    let base = Plan::of(SEED);
    Plan {
        nodes: scenario.starts.len(),
        make: Make {
            capacity: 2,
            ttl: Duration::from_secs(120),
            relist: Duration::from_secs(30),
            generator: None,
            longest_job: ms(1500),
        },
        latency: (ms(1), ms(2)),
        tick: ms(2),
        random_order: false,
        starts: scenario.starts.iter().map(|at| ms(*at)).collect(),
        faults: scenario
            .faults
            .iter()
            .map(|(fault, _)| (ms(2000), fault.clone()))
            .collect(),
        submits: scenario
            .submits
            .iter()
            .map(|(at, node)| (ms(*at), *node))
            .collect(),
        clients: false,
        safety: Duration::from_secs(scenario.until),
        single: false,
        calm: Duration::from_secs(1),
        ..base
    }
}

/// Numbers that chance makes, by the names that stand for them.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn of(&mut self, kind: char, text: &str) -> String {
        let next = self
            .0
            .values()
            .filter(|name| name.starts_with(kind))
            .count()
            + 1;
        let name = || format!("{kind}{next}");
        self.0.entry(text.to_owned()).or_insert_with(name).clone()
    }

    fn plain(&mut self, key: &str, text: &str) -> String {
        match key {
            "epoch" => self.of('e', text),
            "task" => self.of('t', text),
            "attempt" => match text.split_once('/') {
                Some((epoch, n)) => format!("{}/{n}", self.of('e', epoch)),
                None => text.to_owned(),
            },
            _ if text.contains(' ') => format!("{text:?}"),
            _ => text.to_owned(),
        }
    }
}

fn told(scenario: &Scenario, trace: &[Record]) -> String {
    let mut text = format!("{}\n\n", scenario.title);
    let mut names = Names::default();
    let until = Duration::from_secs(scenario.until);
    for record in trace.iter().take_while(|r| r.at <= until) {
        let at = record.at.as_secs_f64();
        let of = |what: &str| {
            let mut faults = scenario.faults.iter();
            let found = faults.find(|(fault, _)| format!("{fault:?}") == what);
            found.map_or_else(|| what.to_owned(), |(_, words)| (*words).to_owned())
        };
        let done = match record.event.as_str() {
            "sim.up" => Some(format!("start {}", record.get("machine"))),
            "sim.fault" => Some(of(record.get("what"))),
            "sim.healed" => Some(format!("no more: {}", of(record.get("what")))),
            "sim.submitted" => {
                let (task, durable) = (names.of('t', record.get("task")), record.get("durable"));
                let kind = if durable == "true" {
                    "durable"
                } else {
                    "ephemeral"
                };
                Some(format!("submit {task} at {}, {kind}", record.node))
            }
            _ => None,
        };
        if let Some(done) = done {
            writeln!(text, "{at:>5.1}  > {done}").ok();
            continue;
        }
        let Some((event, keys)) = SHOWN.iter().find(|(event, _)| *event == record.event) else {
            continue;
        };
        write!(text, "{at:>5.1}  {:<4} {event:<20}", record.node).ok();
        for key in keys.iter().filter(|key| !record.get(key).is_empty()) {
            let value = names.plain(key, record.get(key));
            write!(text, " {key}={value}").ok();
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[test]
fn transcripts_are_as_kept() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let rewrite = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let mut differ = String::new();
    for scenario in scenarios() {
        let outcome = run(plan(&scenario));
        if let Some(violation) = &outcome.violation {
            panic!(
                "{}: {violation}\n{}",
                scenario.name,
                world::transcript(&outcome, 400)
            );
        }
        let now = told(&scenario, &outcome.trace);
        let path = dir.join(format!("{}.txt", scenario.name));
        if rewrite {
            std::fs::write(&path, now).unwrap();
            continue;
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        if kept == now {
            continue;
        }
        let (old, new): (Vec<_>, Vec<_>) = (kept.lines().collect(), now.lines().collect());
        let at = (0..).find(|at| old.get(*at) != new.get(*at)).unwrap_or(0);
        writeln!(
            differ,
            "{}.txt, line {}:\n  kept: {}\n  now:  {}",
            scenario.name,
            at + 1,
            old.get(at).unwrap_or(&"(no more)"),
            new.get(at).unwrap_or(&"(no more)")
        )
        .ok();
    }
    assert!(
        differ.is_empty(),
        "{differ}if that is as it should be: UPDATE_TRANSCRIPTS=1 cargo test -p troupe-actors --test sim transcripts, and read the diff"
    );
}
