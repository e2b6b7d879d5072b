//! How long the cluster is without a master, measured on real processes, with what must hold meanwhile.
//!
//! Each prints its distribution. The rounds are few in a plain run; `TROUPE_TEST_ROUNDS=20` gives the figures of README.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::{Cluster, Etcd, FAST, LONG, Node, event, until};

fn rounds() -> usize {
    let set = std::env::var("TROUPE_TEST_ROUNDS").ok();
    set.and_then(|n| n.parse().ok()).unwrap_or(5)
}

fn print(what: &str, mut times: Vec<Duration>) -> (Duration, Duration, Duration) {
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    let (median, p95, worst) = (at(0.5), at(0.95), at(1.0));
    println!(
        "{what}: {} rounds, median {median:?}, p95 {p95:?}, worst {worst:?}, all {times:?}",
        times.len()
    );
    (median, p95, worst)
}

/// When another node first said that it was promoted, after `mark`s.
fn promoted(nodes: &[Node], marks: &[usize], but: &str) -> (Instant, String) {
    let deadline = Instant::now() + LONG;
    loop {
        for (node, mark) in nodes.iter().zip(marks) {
            let lines = node.process.lines.all();
            let hit = lines[*mark..]
                .iter()
                .find(|(_, l)| event(l, "master.promoted"));
            if let Some((at, _)) = hit.filter(|_| node.name != but) {
                return (*at, node.name.clone());
            }
        }
        assert!(Instant::now() < deadline, "nobody was promoted");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn marks(nodes: &[Node]) -> Vec<usize> {
    nodes.iter().map(|n| n.process.lines.mark()).collect()
}

fn leader(cluster: &Cluster) -> String {
    until("a master", LONG, || {
        cluster.nodes[0]
            .master()
            .map(|m| m.0)
            .ok_or("none".to_owned())
    })
}

fn tasks(lines: &[(Instant, Value)], name: &str) -> Vec<(String, String)> {
    lines
        .iter()
        .filter(|(_, l)| event(l, name))
        .map(|(_, l)| {
            let text = |key: &str| l[key].as_str().unwrap_or("?").to_owned();
            (text("task"), text("attempt"))
        })
        .collect()
}

#[test]
fn a_killed_master_is_replaced_in_detection_time_and_running_attempts_are_adopted() {
    let _turn = support::turn();
    let mut times = Vec::new();
    let mut adopted_in_all = 0;
    // Several tasks run at any time, for longer than a fail-over takes.
    let busy = [
        "--set",
        "generator.every=50ms",
        "--set",
        "worker.delay_min=200ms",
        "--set",
        "worker.delay_max=600ms",
        "--set",
        "worker.capacity=32",
    ];
    let mut cluster = Cluster::start_with(3, &busy);
    for _ in 0..rounds() {
        let old = leader(&cluster);
        cluster.wait_task(&old);
        let marks = marks(&cluster.nodes);
        let incarnations = incarnations(&cluster, &old);
        let killed = Instant::now();
        cluster.node_mut(&old).process.signal(Signal::KILL);
        let (at, new) = promoted(&cluster.nodes, &marks, &old);
        times.push(at - killed);
        cluster.wait_task(&new);
        adopted_in_all += check_adopted(&cluster, &marks, &old, &new);
        for node in cluster.nodes.iter().filter(|n| n.name != old) {
            let lines = node.process.lines.all();
            let after = &lines[marks[cluster
                .nodes
                .iter()
                .position(|n| n.name == node.name)
                .unwrap()]..];
            let disturbed = after
                .iter()
                .find(|(_, l)| event(l, "actor.restarted") || event(l, "node.registered"));
            assert!(disturbed.is_none(), "{disturbed:?}");
        }
        let mut still = self::incarnations(&cluster, &old);
        still.retain(|name, _| *name != old);
        assert_eq!(still, incarnations, "nobody else registers again");
        cluster.node_mut(&old).restart();
        cluster.wait_whole();
    }
    println!("adopted in all: {adopted_in_all}");
    let (median, _, worst) = print("kill -9 of the master", times);
    assert!(median <= Duration::from_millis(100) && worst <= Duration::from_secs(1));
}

fn incarnations(cluster: &Cluster, but: &str) -> BTreeMap<String, i64> {
    let node = cluster.nodes.iter().find(|n| n.name != but).unwrap();
    let (_, members) = node.get("/v1/members").unwrap();
    let members = members["members"].as_array().cloned().unwrap_or_default();
    members
        .iter()
        .map(|m| {
            (
                m["name"].as_str().unwrap().to_owned(),
                m["incarnation"].as_i64().unwrap(),
            )
        })
        .filter(|(name, _)| name != but)
        .collect()
}

/// What ran on the survivors when the master died finishes exactly once at the new one.
fn check_adopted(cluster: &Cluster, marks: &[usize], old: &str, new: &str) -> usize {
    let mut running = BTreeSet::new();
    for (node, mark) in cluster
        .nodes
        .iter()
        .zip(marks)
        .filter(|(n, _)| n.name != old)
    {
        let lines = node.process.lines.all();
        let before = &lines[..*mark];
        let ended: BTreeSet<_> = tasks(before, "task.executed").into_iter().collect();
        running.extend(
            tasks(before, "task.started")
                .into_iter()
                .filter(|t| !ended.contains(t)),
        );
    }
    let recorded = |lines: &[(Instant, Value)]| -> Vec<String> {
        tasks(lines, "task.finished")
            .into_iter()
            .map(|(task, _)| task)
            .collect()
    };
    for (task, _) in &running {
        let what = format!("{task} finishes once");
        until(&what, LONG, || {
            let at_new = recorded(&cluster.node(new).process.lines.all());
            let at_old = recorded(&cluster.node(old).process.lines.all());
            let times = at_new.iter().chain(&at_old).filter(|t| *t == task).count();
            assert!(times <= 1, "{task} was recorded {times} times");
            (times == 1)
                .then_some(())
                .ok_or_else(|| "not yet".to_owned())
        });
    }
    running.len()
}

#[test]
fn a_stopped_master_is_replaced_within_two_seconds() {
    let _turn = support::turn();
    let mut times = Vec::new();
    for _ in 0..rounds() {
        // A fresh cluster each: soft take-overs in a row are damped on purpose.
        let cluster = Cluster::start(3);
        let old = leader(&cluster);
        let marks = marks(&cluster.nodes);
        let stopped = Instant::now();
        cluster.node(&old).process.signal(Signal::STOP);
        let (at, _) = promoted(&cluster.nodes, &marks, &old);
        times.push(at - stopped);
    }
    let (_, p95, _) = print("SIGSTOP of the master", times);
    assert!(p95 <= Duration::from_secs(2));
}

fn outage() -> Duration {
    let set = std::env::var("TROUPE_TEST_OUTAGE_S").ok();
    Duration::from_secs(set.and_then(|n| n.parse().ok()).unwrap_or(15))
}

fn nobody_was_condemned_and_nobody_promoted(nodes: &[Node], marks: &[usize]) {
    for (node, mark) in nodes.iter().zip(marks) {
        let lines = node.process.lines.all();
        let bad = lines[*mark..].iter().find(|(_, l)| {
            ["peer.condemned", "master.promoted", "peer.removed"]
                .iter()
                .any(|e| event(l, e))
        });
        assert!(bad.is_none(), "{}: {bad:?}", node.name);
    }
}

#[test]
fn without_etcd_tasks_go_on_and_its_return_is_noticed_within_a_second() {
    let _turn = support::turn();
    let mut cluster = Cluster::start(3);
    let marks = marks(&cluster.nodes);
    cluster.etcd.stop();
    let gone = Instant::now();
    let mut finished = 0;
    while gone.elapsed() < outage() {
        cluster.wait_task("n1");
        finished += 1;
    }
    nobody_was_condemned_and_nobody_promoted(&cluster.nodes, &marks);
    cluster.etcd.start_again();
    let back = Instant::now();
    for (node, mark) in cluster.nodes.iter().zip(&marks) {
        let (at, _) = node.wait_event(*mark, "registry.connected", LONG);
        let took = at.saturating_duration_since(back);
        println!(
            "{} is connected {took:?} after etcd answers again",
            node.name
        );
        assert!(took <= Duration::from_secs(1), "{took:?}");
    }
    nobody_was_condemned_and_nobody_promoted(&cluster.nodes, &marks);
    println!(
        "{finished} waits for a task were answered while etcd was stopped for {:?}",
        outage()
    );
}

/// The embedded registry as a process of its own.
struct Embedded {
    process: support::Process,
    port: u16,
}

impl Embedded {
    fn start_on(port: u16) -> Self {
        let mut command = std::process::Command::new(support::TROUPE);
        let listen = format!("127.0.0.1:{port}");
        command.args([
            "registry",
            "serve",
            "--listen",
            &listen,
            "--log-format",
            "json",
        ]);
        support::clean_env(&mut command);
        let process = support::Process::start(&mut command);
        until("the embedded registry listens", LONG, || {
            let up = std::net::TcpStream::connect(&listen);
            up.map(drop).map_err(|err| err.to_string())
        });
        Self { process, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn on_embedded(registry: &Embedded) -> Vec<Node> {
    let nodes: Vec<Node> = (1..=3)
        .map(|i| {
            let node = Node::start_with(&format!("n{i}"), &registry.url(), &FAST);
            if i == 1 {
                node.wait("master.promoted", |l| event(l, "master.promoted"));
            }
            node
        })
        .collect();
    for node in &nodes {
        node.wait_members(&["n1", "n2", "n3"], LONG);
    }
    nodes
}

#[test]
fn a_frozen_embedded_registry_disturbs_nobody() {
    let _turn = support::turn();
    let registry = Embedded::start_on(support::free_port());
    let nodes = on_embedded(&registry);
    let marks = marks(&nodes);
    registry.process.signal(Signal::STOP);
    let frozen = Instant::now();
    while frozen.elapsed() < outage() {
        let mark = nodes[0].process.lines.mark();
        nodes[0].wait_event(mark, "task.finished", LONG);
    }
    registry.process.signal(Signal::CONT);
    let back = Instant::now();
    for (node, mark) in nodes.iter().zip(&marks) {
        node.wait_event(*mark, "registry.lost", LONG);
        let (at, _) = node.wait_event(*mark, "registry.connected", LONG);
        let took = at.saturating_duration_since(back);
        println!(
            "{} is connected {took:?} after the registry goes on",
            node.name
        );
        assert!(took <= Duration::from_secs(1), "{took:?}");
    }
    nobody_was_condemned_and_nobody_promoted(&nodes, &marks);
}

#[test]
fn an_embedded_registry_that_comes_back_empty_gets_everybody_again_under_one_new_epoch() {
    let _turn = support::turn();
    let mut registry = Embedded::start_on(support::free_port());
    let nodes = on_embedded(&registry);
    let marks = marks(&nodes);
    let port = registry.port;
    registry.process.kill();
    let _again = Embedded::start_on(port);
    for (node, mark) in nodes.iter().zip(&marks) {
        node.wait_event(*mark, "node.registered", LONG);
    }
    for node in &nodes {
        node.wait_members(&["n1", "n2", "n3"], LONG);
    }
    let masters: BTreeSet<_> = nodes.iter().map(|n| n.master()).collect();
    assert_eq!(masters.len(), 1, "{masters:?}");
    let promotions: usize = nodes
        .iter()
        .zip(&marks)
        .map(|(n, mark)| {
            let lines = n.process.lines.all();
            lines[*mark..]
                .iter()
                .filter(|(_, l)| event(l, "master.promoted"))
                .count()
        })
        .sum();
    assert_eq!(promotions, 1);
    let (name, _) = nodes[0].master().unwrap();
    let master = nodes.iter().find(|n| n.name == name).unwrap();
    let mark = master.process.lines.mark();
    master.wait_event(mark, "task.finished", LONG);
}

#[test]
fn thirty_nodes_see_each_other_and_replace_their_master() {
    let _turn = support::turn();
    let n = 30;
    let etcd = Etcd::start();
    let nodes: Vec<Node> = (1..=n)
        .map(|i| Node::start(&format!("n{i}"), &etcd.url()))
        .collect();
    let last = Instant::now();
    let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for node in &nodes {
        node.wait_members(&names, 3 * LONG);
    }
    let whole = last.elapsed();
    println!("{n} nodes: all see all {whole:?} after the last start");
    // Thirty unoptimised processes keep two cores busy for longer than that.
    if !cfg!(debug_assertions) {
        assert!(whole <= Duration::from_secs(5), "{whole:?}");
    }
    let (old, _) = until("a master", LONG, || {
        nodes[0].master().ok_or("none".to_owned())
    });
    let marks = marks(&nodes);
    let killed = Instant::now();
    let at = nodes.iter().position(|n| n.name == old).unwrap();
    nodes[at].process.signal(Signal::KILL);
    let (promoted, new) = promoted(&nodes, &marks, &old);
    println!(
        "{n} nodes: {new} leads {:?} after the master's death",
        promoted - killed
    );
    let bound = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 2 });
    assert!(promoted - killed <= bound);
}

#[test]
fn an_idle_node_is_small_and_quiet() {
    let _turn = support::turn();
    let etcd = Etcd::start();
    let started = Instant::now();
    let node = Node::start_with("n1", &etcd.url(), &["--set", "generator.enabled=false"]);
    let (at, _) = node.wait("master.promoted", |l| event(l, "master.promoted"));
    let start = at - started;
    let (before, began) = (cpu(node.process.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let used = (cpu(node.process.pid()) - before) / began.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.pid())).unwrap();
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    let kib: u64 = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
    let size = std::fs::metadata(support::TROUPE).unwrap().len();
    println!(
        "idle node: leads {start:?} after its start, {:.1} MiB resident, {:.2} % of a core, binary {:.1} MiB",
        kib as f64 / 1024.0,
        used * 100.0,
        size as f64 / 1_048_576.0
    );
    if !cfg!(debug_assertions) {
        assert!(kib < 20 * 1024, "{kib} KiB");
        assert!(used < 0.005, "{used}");
    }
}

/// Time that all threads of a process have had on a core so far, seconds.
fn cpu(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = threads.map(|thread| {
        let stat = thread.unwrap().path().join("schedstat");
        let stat = std::fs::read_to_string(stat).unwrap_or_default();
        stat.split_whitespace()
            .next()
            .and_then(|n| n.parse::<f64>().ok())
            .unwrap_or(0.0)
    });
    nanos.sum::<f64>() / 1e9
}
