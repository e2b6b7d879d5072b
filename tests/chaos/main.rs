//! Chaos on real processes: nodes and registry members in network namespaces of their own, clients at work, faults from a seed.
//!
//! | file | what |
//! |---|---|
//! | `schedule` | what is done and when, from a seed |
//! | `world`, `store` | nodes and registry as processes that can be broken |
//! | `faults` | how each fault begins and ends |
//! | `alarms` | a starved machine: who is condemned with and without local health |
//! | `history` | clients, and what they asked and were told |
//! | `verdicts` | which verdicts were deserved |
//! | `report` | what rounds found, kept in a file; the table |
//!
//! Afterwards the JSON logs of all lives of all processes go through the same invariants as a simulated run, and every
//! task that was acknowledged is looked up. docs/testing.md has the commands.

mod alarms;
mod faults;
mod history;
mod report;
mod schedule;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod verdicts;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use troupe_actors::id::TaskId;
use troupe_actors::testkit::invariants::{Invariants, Terms};
use troupe_actors::testkit::linear;
use troupe_actors::testkit::trace::Record;

use faults::Struck;
use history::{Call, Clients};
use report::{Findings, Ledger};
use schedule::{Fault, Means, Phase, Plan};
use support::net::Net;
use world::{CAPACITY, Fashion, World, libfaketime};

/// Clients of the API, side by side.
const CLIENTS: usize = 3;
/// How long after all is mended the last accepted task may take.
const FINISHED: Duration = Duration::from_secs(30);

fn env(key: &str) -> Option<u64> {
    std::env::var(key).ok()?.parse().ok()
}

/// What is permitted and installed here, in words too.
fn means() -> Means {
    let wanted = env("TROUPE_CHAOS_LOOPBACK") != Some(1);
    let net = wanted && Net::new(0).is_some();
    if !net {
        eprintln!("on loopback: what needs no links, no resets and no small disk");
    }
    let clocks = libfaketime().is_some();
    if !clocks {
        eprintln!("SKIPPED: wall clocks do not jump, libfaketime is not installed");
    }
    Means { net, clocks }
}

/// A round as it goes.
struct Round {
    plan: Plan,
    world: World,
    findings: Findings,
    next: usize,
}

impl Round {
    fn start(plan: Plan, means: Means) -> Self {
        let world = World::start(&plan, means, &Fashion::default());
        let findings = Findings {
            registry: plan.registry.name(),
            hosts: plan.hosts,
            ..Findings::default()
        };
        Self {
            plan,
            world,
            findings,
            next: 0,
        }
    }

    fn strike(&mut self, fault: Fault) -> Option<Struck> {
        self.next += 1;
        let struck = Struck::begin(&mut self.world, self.next, fault)?;
        *self.findings.faults.entry(fault.name()).or_default() += 1;
        Some(struck)
    }

    /// Strikes the master of a whole cluster, times its successor, lets the others follow, and mends everything.
    fn phase(&mut self, phase: &Phase) {
        let marks = self.world.marks();
        let since = Instant::now();
        let Some(first) = self.strike(phase.first) else {
            panic!("a whole cluster has no master");
        };
        let struck = first.host.expect("the master is a host");
        match self.world.promoted_after(since, struck, &marks) {
            Some(after) => {
                let of_fault = self.findings.failovers.entry(phase.first.name());
                of_fault.or_default().push(after);
            }
            None => self.wrong(format!("nobody led after {}", phase.first.name())),
        }
        let begin = Instant::now();
        let mut lasting = vec![(phase.lasting, first)];
        let mut due = phase.drawn.clone();
        due.sort_by_key(|drawn| drawn.at);
        while !due.is_empty() || !lasting.is_empty() {
            let now = begin.elapsed();
            while due.first().is_some_and(|drawn| drawn.at <= now) {
                let drawn = due.remove(0);
                let struck = self.strike(drawn.fault);
                lasting.extend(struck.map(|struck| (now + drawn.lasting, struck)));
            }
            for (_, struck) in &mut lasting {
                struck.go_on(&mut self.world);
            }
            for over in lasting.extract_if(.., |(until, _)| *until <= now) {
                over.1.end(&mut self.world);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.world.store.mend();
        self.world.wait_whole();
    }

    fn wrong(&mut self, what: String) {
        eprintln!("WRONG: {what}");
        self.findings.wrongs.push(what);
    }

    fn play(&mut self) {
        let (began, admins) = (self.world.began, self.world.admins());
        let clients = Clients::start(CLIENTS, self.plan.seed, began, &admins);
        for phase in self.plan.phases.clone() {
            self.phase(&phase);
        }
        let calls = clients.finish();
        self.look_up(&calls);
        self.check_history(&calls);
        self.read_logs(&calls);
        self.findings.answers = history::answers(&calls);
        self.findings.took = began.elapsed();
    }

    fn count(&mut self, what: &'static str, n: usize) {
        *self.findings.counts.entry(what).or_default() += n as u64;
    }

    /// Every acknowledged durable task is finished, with one recorded result.
    fn look_up(&mut self, calls: &[Call]) {
        let accepted = history::accepted(calls, true);
        self.count("durable tasks accepted", accepted.len());
        self.count(
            "ephemeral tasks accepted",
            history::accepted(calls, false).len(),
        );
        let deadline = Instant::now() + FINISHED;
        let (mut lost, mut unfinished, mut double) = (0, 0, 0);
        for task in accepted {
            match self.finished(task, deadline) {
                None => {
                    lost += 1;
                    self.wrong(format!("{task} is lost"));
                }
                Some(receipt) if !is_over(&receipt) => {
                    unfinished += 1;
                    self.wrong(format!("{task} is not finished: {receipt}"));
                }
                Some(receipt) => {
                    let attempts = receipt["attempts"]
                        .as_array()
                        .map_or(&[][..], Vec::as_slice);
                    let done = attempts.iter().filter(|a| a["outcome"] == "done").count();
                    let once = match receipt["state"].as_str() {
                        Some("done") => done == 1 && receipt["output"]["result"] == 126,
                        _ => done == 0,
                    };
                    if !once {
                        double += 1;
                        self.wrong(format!("{task} has {done} recorded results: {receipt}"));
                    }
                }
            }
        }
        self.count("durable tasks lost", lost);
        self.count("durable tasks not finished", unfinished);
        self.count("double results", double);
    }

    /// The receipt, once it is finished or the deadline has passed; `None` when there is no such task.
    fn finished(&self, task: TaskId, deadline: Instant) -> Option<Value> {
        let path = format!("/v1/tasks/{task}?wait=1s");
        let mut at = 0;
        loop {
            let host = &self.world.hosts[at % self.world.hosts.len()];
            at += 1;
            match host.get(&path) {
                Some((200, receipt)) if is_over(&receipt) || Instant::now() >= deadline => {
                    return Some(receipt);
                }
                Some((404, _)) => return None,
                other if Instant::now() >= deadline => panic!("{task}: {other:?}"),
                _ => {}
            }
        }
    }

    /// What callers were told of each durable task fits one order.
    fn check_history(&mut self, calls: &[Call]) {
        let calls = history::of_durable(calls);
        let (broken, undecided) = linear::check(&calls);
        self.count("calls checked for linearizability", calls.len());
        self.count("tasks whose history was not decided", undecided);
        for task in broken {
            self.wrong(task);
        }
    }

    /// The invariants, and the verdicts.
    fn read_logs(&mut self, calls: &[Call]) {
        let mut records = self.world.records();
        for wrong in verdicts::undeserved(&records, &self.world.excuses()) {
            self.count("false verdicts", 1);
            self.wrong(format!("a false verdict: {wrong}"));
        }
        self.count("false verdicts", 0);
        records.extend(history::records(calls));
        records.sort_by_key(|record| record.at);
        let counts = match check(&records) {
            Ok(counts) => counts,
            Err(broken) => return self.wrong(broken),
        };
        for (what, event) in [
            ("verdicts", "peer.condemned"),
            ("promotions", "master.promoted"),
            ("attempts adopted", "task.adopted"),
            ("results refused", "task.refused"),
            ("tasks finished", "task.finished"),
            ("actors restarted", "actor.restarted"),
            ("challenges through the registry", "peer.challenged"),
        ] {
            self.count(what, counts.get(event).copied().unwrap_or(0) as usize);
        }
        let left = std::mem::take(&mut self.world.left);
        self.count("nodes that left by themselves", left.len());
        for who in left {
            println!("left by itself: {who}");
        }
    }
}

fn is_over(receipt: &Value) -> bool {
    ["done", "cancelled"]
        .iter()
        .any(|state| receipt["state"] == *state)
}

fn check(records: &[Record]) -> Result<BTreeMap<String, u64>, String> {
    let mut invariants = Invariants::new(Terms {
        capacity: CAPACITY,
        max_restarts: 5,
        within: Duration::from_secs(10),
        // The machine that runs the tests may itself be late.
        calm: None,
        one_thread: false,
    });
    for record in records {
        let observed = invariants.observe(record);
        observed.map_err(|violation| violation.to_string())?;
    }
    Ok(invariants.counts().clone())
}

/// Plays one round on a thread of its own, which enters its network and ends with it.
fn play(seed: u64, means: Means) -> Findings {
    let plan = Plan::of(seed, means);
    println!(
        "seed {seed}: {} hosts, {}, clocks of {:?}, small disk {:?}",
        plan.hosts,
        plan.registry.name(),
        plan.clocks,
        plan.small_disk
    );
    for phase in &plan.phases {
        let drawn = phase
            .drawn
            .iter()
            .map(|d| format!("{:?} after {:?} for {:?}", d.fault, d.at, d.lasting));
        println!(
            "  {:?}, then {}",
            phase.first,
            drawn.collect::<Vec<_>>().join(", ")
        );
    }
    let round = std::thread::spawn(move || {
        let began = Instant::now();
        let mut round = Round::start(plan, means);
        let formed = began.elapsed();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| round.play())) {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or(panic.downcast_ref::<&str>().copied());
            round.wrong(words.unwrap_or("a panic without words").to_owned());
        }
        if !round.findings.wrongs.is_empty() || env("TROUPE_CHAOS_KEEP") == Some(1) {
            let dir = support::out_dir().join(format!("chaos-{seed}"));
            std::fs::remove_dir_all(&dir).ok();
            std::fs::create_dir_all(&dir).unwrap();
            round.world.keep_logs(&dir);
            println!("the logs of seed {seed} are in {}", dir.display());
        }
        round.findings.took = began.elapsed();
        println!(
            "seed {seed}: formed in {formed:.1?}, took {:.1?}",
            round.findings.took
        );
        println!("seed {seed}: {}", round.findings.to_json(seed));
        round.findings
    });
    round.join().expect("the cluster formed")
}

#[test]
fn no_schedule_of_faults_breaks_an_invariant() {
    let means = means();
    let mut ledger = Ledger::open(std::env::var_os("TROUPE_CHAOS_LEDGER").map(PathBuf::from));
    let seeds = match env("TROUPE_CHAOS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = env("TROUPE_CHAOS_FROM").unwrap_or(1);
            first..first + env("TROUPE_CHAOS_ROUNDS").unwrap_or(2)
        }
    };
    for seed in seeds {
        if ledger.is_done(seed) {
            continue;
        }
        ledger.add(seed, &play(seed, means));
    }
    println!("{}", ledger.table());
    assert!(ledger.failed().is_empty(), "{:#?}", ledger.failed());
    assert!(
        ledger.beyond_bounds().is_empty(),
        "{:#?}",
        ledger.beyond_bounds()
    );
}
