//! Whole processes on a real etcd: a cluster forms, works, loses nodes in every way, and heals.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::{Cluster, Etcd, FAST, LONG, Node, event, until};

const SOON: Duration = Duration::from_secs(5);

fn number_times_three(line: &Value) -> bool {
    let output: Value = match &line["output"] {
        Value::String(text) => serde_json::from_str(text).unwrap(),
        other => other.clone(),
    };
    output["number"].as_u64().unwrap() * 3 == output["result"].as_u64().unwrap()
}

#[test]
fn three_nodes_find_each_other_elect_one_master_and_finish_tasks() {
    let cluster = Cluster::start(3);
    for node in &cluster.nodes {
        assert_eq!(node.master().map(|m| m.0), Some("n1".to_owned()));
    }
    let master = cluster.node("n1");
    for _ in 0..3 {
        let mark = master.process.lines.mark();
        let (_, line) = master.wait_event(mark, "task.finished", LONG);
        assert!(number_times_three(&line), "{line}");
        assert_ne!(
            line["executor"], "n1",
            "the master leaves the work to others: {line}"
        );
    }
}

#[test]
fn a_killed_worker_is_removed_by_verdict_and_its_work_goes_on_elsewhere() {
    let mut cluster = Cluster::start(3);
    let mark = cluster.node("n1").process.lines.mark();
    cluster.node_mut("n3").process.kill();
    let (_, line) = cluster.node("n1").wait_event(mark, "peer.removed", SOON);
    assert_eq!(line["peer"], "n3");
    cluster.wait_task("n1");
    assert!(
        cluster
            .etcd
            .say(&["get", "--prefix", "/troupe/names/"])
            .contains("n2")
    );
    assert!(
        !cluster
            .etcd
            .say(&["get", "--prefix", "/troupe/names/"])
            .contains("n3")
    );
    cluster.node_mut("n3").restart();
    cluster.wait_whole();
    assert_eq!(
        cluster.node("n3").master().map(|m| m.0),
        Some("n1".to_owned())
    );
}

#[test]
fn a_killed_master_is_replaced_and_tasks_go_on() {
    let mut cluster = Cluster::start(3);
    let before = cluster.node("n2").master().unwrap();
    cluster.node_mut("n1").process.kill();
    let after = cluster.node("n2").wait_master_other_than("n1", SOON);
    assert!(after.1 > before.1, "{before:?} {after:?}");
    cluster.wait_task(&after.0);
    cluster.node_mut("n1").restart();
    cluster.wait_whole();
    let still = cluster.node("n1").master().unwrap();
    assert_eq!(still, after, "who comes back unseats nobody");
}

#[test]
fn a_stopped_master_is_replaced_and_on_its_return_has_no_effect_and_works() {
    let cluster = Cluster::start(3);
    let stopped = Instant::now();
    cluster.node("n1").process.signal(Signal::STOP);
    let (name, _) = cluster.node("n2").wait_master_other_than("n1", SOON);
    // Ten seconds asleep, as the issue has it: the clock is the subject here.
    std::thread::sleep(Duration::from_secs(10).saturating_sub(stopped.elapsed()));
    let mark = cluster.node("n1").process.lines.mark();
    cluster.node("n1").process.signal(Signal::CONT);
    cluster.node("n1").wait_event(mark, "master.demoted", SOON);
    cluster.wait_whole();
    assert_eq!(cluster.node("n1").master().map(|m| m.0), Some(name));
    cluster.node("n1").wait_event(mark, "task.started", LONG);
    nothing_under_an_old_epoch_after_a_new_one(&cluster);
}

/// In each node's log: no task.assigned, started or finished under e after its first line under e′ > e.
fn nothing_under_an_old_epoch_after_a_new_one(cluster: &Cluster) {
    for node in &cluster.nodes {
        let mut highest = String::new();
        for (_, line) in node.process.lines.all() {
            let Some(epoch) = line["epoch"].as_str() else {
                continue;
            };
            let acts = ["task.assigned", "task.started", "task.finished"];
            if acts.iter().any(|name| event(&line, name)) {
                assert!(
                    epoch >= highest.as_str(),
                    "{}: {line} after {highest}",
                    node.name
                );
            }
            if epoch > highest.as_str() && !event(&line, "master.demoted") {
                highest = epoch.to_owned();
            }
        }
    }
}

#[test]
fn a_node_that_is_told_to_stop_hands_over_deregisters_at_once_and_exits_0() {
    let mut cluster = Cluster::start(3);
    let mark = cluster.node("n2").process.lines.mark();
    cluster.node("n1").process.signal(Signal::TERM);
    let code = cluster.node_mut("n1").process.wait(LONG);
    assert_eq!(code, Some(0));
    let keys = cluster
        .etcd
        .say(&["get", "--prefix", "/troupe/", "--keys-only"]);
    assert!(!keys.contains("names/n1"), "{keys}");
    cluster.node("n2").wait_event(mark, "peer.removed", SOON);
    let (name, _) = cluster.node("n2").wait_master_other_than("n1", SOON);
    cluster.wait_task(&name);
}

#[test]
fn etcd_restarted_disturbs_nobody() {
    let mut cluster = Cluster::start(3);
    let before = cluster.node("n2").master().unwrap();
    let marks: Vec<usize> = cluster
        .nodes
        .iter()
        .map(|n| n.process.lines.mark())
        .collect();
    cluster.etcd.stop();
    for (node, mark) in cluster.nodes.iter().zip(&marks) {
        node.wait_event(*mark, "registry.lost", LONG);
    }
    cluster.wait_task("n1");
    cluster.etcd.start_again();
    for (node, mark) in cluster.nodes.iter().zip(&marks) {
        node.wait_event(*mark, "registry.connected", SOON);
    }
    cluster.wait_whole();
    assert_eq!(cluster.node("n3").master(), Some(before));
    for node in &cluster.nodes {
        let all = node.process.lines.all();
        assert!(!all.iter().any(|(_, l)| event(l, "peer.condemned")));
    }
}

#[test]
fn etcd_compacted_loses_no_change() {
    let mut cluster = Cluster::start(2);
    let status = cluster.etcd.say(&["endpoint", "status", "-w", "json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let revision = status[0]["Status"]["header"]["revision"].as_i64().unwrap();
    cluster.etcd.say(&["compact", &revision.to_string()]);
    let url = cluster.etcd.url();
    cluster.nodes.push(Node::start("n3", &url));
    cluster.wait_whole();
    // Compacted while the watchers are away: they list again.
    for node in &cluster.nodes {
        node.process.signal(Signal::STOP);
    }
    cluster
        .etcd
        .say(&["put", "/troupe/services/bad", "not json"]);
    cluster.etcd.say(&["del", "/troupe/services/bad"]);
    let status = cluster.etcd.say(&["endpoint", "status", "-w", "json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let revision = status[0]["Status"]["header"]["revision"].as_i64().unwrap();
    cluster.etcd.say(&["compact", &revision.to_string()]);
    for node in &cluster.nodes {
        node.process.signal(Signal::CONT);
    }
    cluster.wait_whole();
}

#[test]
fn a_node_that_lost_its_lease_registers_again_as_another_incarnation() {
    let cluster = Cluster::start(3);
    let n3 = cluster.node("n3");
    let key = format!("/troupe/services/127.0.0.1:{}", n3.port);
    let kv = cluster.etcd.say(&["get", &key, "-w", "json"]);
    let kv: Value = serde_json::from_str(&kv).unwrap();
    let lease = kv["kvs"][0]["lease"].as_i64().unwrap();
    let mark = n3.process.lines.mark();
    cluster
        .etcd
        .say(&["lease", "revoke", &format!("{lease:x}")]);
    n3.wait_event(mark, "node.deregistered", SOON);
    n3.wait_event(mark, "node.registered", SOON);
    cluster.wait_whole();
    cluster.wait_task("n1");
}

#[test]
fn two_nodes_that_advertise_one_address_are_told_in_words_naming_both_hosts() {
    let etcd = Etcd::start();
    let first = Node::start("n1", &etcd.url());
    first.wait("master.promoted", |l| event(l, "master.promoted"));
    let taken = format!("127.0.0.1:{}", first.port);
    let args: Vec<&str> = FAST.into_iter().chain(["--advertise", &taken]).collect();
    let mut second = Node::start_with("n2", &etcd.url(), &args);
    assert_eq!(second.process.wait(LONG), Some(78));
    let all = second.process.lines.all();
    let said = all.iter().any(|(_, l)| {
        let text = l.to_string();
        text.contains("n1") && text.contains("n2") && text.contains(&taken)
    });
    assert!(said, "{all:?}");
    assert_eq!(first.members().len(), 1);
}

#[test]
fn a_node_of_another_cluster_is_another_cluster() {
    let etcd = Etcd::start();
    let first = Node::start("n1", &etcd.url());
    first.wait("master.promoted", |l| event(l, "master.promoted"));
    let args: Vec<&str> = FAST.into_iter().chain(["--set", "cluster=other"]).collect();
    let second = Node::start_with("n1", &etcd.url(), &args);
    second.wait("master.promoted", |l| event(l, "master.promoted"));
    assert_eq!((first.members().len(), second.members().len()), (1, 1));
}

#[test]
fn of_two_nodes_the_other_leads_when_the_master_is_stopped() {
    let cluster = Cluster::start(2);
    cluster.node("n1").process.signal(Signal::STOP);
    cluster.node("n2").wait_master_other_than("n1", LONG);
    cluster.wait_task("n2");
    cluster.node("n1").process.signal(Signal::CONT);
    cluster.wait_whole();
    assert_eq!(
        cluster.node("n1").master().map(|m| m.0),
        Some("n2".to_owned())
    );
}

#[test]
fn of_three_nodes_the_last_leads_when_two_are_stopped() {
    let cluster = Cluster::start(3);
    cluster.node("n1").process.signal(Signal::STOP);
    cluster.node("n2").process.signal(Signal::STOP);
    cluster.node("n3").wait_master_other_than("n1", LONG);
    let (name, _) = cluster.node("n3").master().unwrap();
    assert_eq!(name, "n3");
    cluster.wait_task("n3");
    cluster.node("n1").process.signal(Signal::CONT);
    cluster.node("n2").process.signal(Signal::CONT);
    cluster.wait_whole();
    assert_eq!(
        cluster.node("n1").master().map(|m| m.0),
        Some("n3".to_owned())
    );
}

#[test]
fn a_lone_master_killed_and_restarted_leads_again_at_once() {
    let etcd = Etcd::start();
    let mut node = Node::start("n1", &etcd.url());
    node.wait("task.finished", |l| event(l, "task.finished"));
    let restarted = Instant::now();
    node.restart();
    let (at, _) = node.wait("master.promoted", |l| event(l, "master.promoted"));
    let took = at - restarted;
    println!("a lone master leads again {took:?} after its restart");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_hung_master_actor_loses_the_key_and_its_process_leaves_with_70() {
    let mut cluster = Cluster::start(3);
    let killed = cluster
        .node("n2")
        .cli(&["kill", "master", "--node", "n1", "--how", "hang"]);
    assert!(killed.status.success(), "{killed:?}");
    let (name, _) = cluster.node("n2").wait_master_other_than("n1", LONG);
    assert_eq!(cluster.node_mut("n1").process.wait(LONG), Some(70));
    cluster.wait_task(&name);
}

#[test]
fn each_actor_that_panics_or_stops_is_restarted_and_the_cluster_works_on() {
    let cluster = Cluster::start(3);
    for actor in [
        "registry",
        "discovery",
        "transport",
        "worker",
        "admin",
        "master",
    ] {
        for how in ["panic", "stop"] {
            for on in ["n1", "n2"] {
                println!("{actor} {how} {on}");
                let node = cluster.node(on);
                let mark = node.process.lines.mark();
                let killed = cluster
                    .node("n3")
                    .cli(&["kill", actor, "--node", on, "--how", how]);
                assert!(killed.status.success(), "{actor} {how} {on}: {killed:?}");
                let (_, back) = node
                    .process
                    .lines
                    .wait_from(mark, "actor.restarted", SOON, |l| {
                        event(l, "actor.restarted") && l["actor"] == actor
                    });
                let down = back["duration_ms"].as_u64().unwrap();
                assert!(down < 100, "{actor} {how} {on}: {back}");
                cluster.wait_whole();
                let leads = until("a master", SOON, || node.master().ok_or("none".to_owned()));
                cluster.wait_task(&leads.0);
                // Five restarts in ten seconds are the limit; this test is not about it.
                std::thread::sleep(Duration::from_millis(1500));
            }
        }
    }
}

#[test]
fn six_failures_in_ten_seconds_make_the_node_hand_over_and_leave_with_70() {
    let mut cluster = Cluster::start(3);
    let mark = cluster.node("n1").process.lines.mark();
    for n in 0..6 {
        // It may be restarting just now; it must be up to be killed again.
        until("the worker is killed", SOON, || {
            let killed = cluster
                .node("n2")
                .cli(&["kill", "worker", "--node", "n1", "--how", "panic"]);
            killed
                .status
                .success()
                .then_some(())
                .ok_or_else(|| format!("{n}: {killed:?}"))
        });
    }
    cluster.node("n1").wait_event(mark, "actor.gave_up", SOON);
    assert_eq!(cluster.node_mut("n1").process.wait(LONG), Some(70));
    let (name, _) = cluster.node("n2").wait_master_other_than("n1", SOON);
    cluster.wait_task(&name);
}

#[test]
fn a_cluster_waits_for_an_etcd_that_is_still_down_and_joins_when_it_comes() {
    let mut etcd = Etcd::start();
    etcd.stop();
    let node = Node::start("n1", &etcd.url());
    node.wait("registry.lost", |l| event(l, "registry.lost"));
    etcd.start_again();
    node.wait("master.promoted", |l| event(l, "master.promoted"));
}

#[test]
fn mastership_goes_where_it_is_told_and_the_ledger_goes_along() {
    let cluster = Cluster::start(3);
    let promoted = cluster.node("n3").cli(&["promote", "n2"]);
    assert!(promoted.status.success(), "{promoted:?}");
    for node in &cluster.nodes {
        until("n2 leads", SOON, || match node.master() {
            Some((name, _)) if name == "n2" => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    cluster.wait_task("n2");
    let down = cluster.node("n3").cli(&["step-down"]);
    assert!(down.status.success(), "{down:?}");
    let (name, _) = cluster.node("n3").wait_master_other_than("n2", SOON);
    cluster.wait_task(&name);
}
