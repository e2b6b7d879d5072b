//! What an operator is told when something is wrong: each situation of the table in docs/observing.md is made in earnest, and
//! `troupe doctor`, `troupe why` and the API must name its cause in words.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::net::Net;
use support::{Cluster, Etcd, FAST, LONG, Node, event, free_port, until};

/// What a command says of these nodes; its exit code is another matter.
fn said(node: &Node, args: &[&str]) -> String {
    let output = node.cli(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

/// Until a command says one of these in a line, whole; answers that line.
fn names(node: &Node, args: &[&str], words: &[&str]) -> String {
    let what = format!("`troupe {}` says {words:?}", args.join(" "));
    let line = until(&what, LONG, || {
        let text = said(node, args);
        let all = |line: &&str| words.iter().all(|w| line.contains(w));
        let found = text.lines().find(all).map(str::to_owned);
        found.ok_or(text)
    });
    eprintln!("troupe {}: {}", args.join(" "), line.trim());
    line
}

/// Until the finding of a check that says this is there, in JSON; doctor then exits with 1.
fn doctor(node: &Node, check: &str, words: &[&str]) {
    let what = format!("doctor finds {words:?}");
    let detail = until(&what, LONG, || {
        let output = node.cli(&["--json", "doctor"]);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let findings = value["findings"].as_array().cloned().unwrap_or_default();
        let fits = |f: &&Value| {
            let detail = f["detail"].as_str().unwrap_or_default();
            f["check"] == check && f["ok"] == false && words.iter().all(|w| detail.contains(w))
        };
        let found = findings.iter().find(fits).map(|f| f["detail"].clone());
        let found = found.ok_or_else(|| value.to_string())?;
        assert_eq!(output.status.code(), Some(1));
        Ok(found)
    });
    eprintln!("doctor {check}: {detail}");
}

#[test]
fn a_healthy_cluster_has_no_findings() {
    let cluster = Cluster::start(3);
    let output = cluster.node("n2").cli(&["--json", "doctor"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let wrong = value["findings"].as_array().unwrap().iter();
    // The etcd of Debian is old, and a machine that runs all tests may be late; both are said.
    let wrong: Vec<_> = wrong
        .filter(|f| {
            f["ok"] == false
                && !["registry", "etcd", "slow"].contains(&f["check"].as_str().unwrap())
        })
        .collect();
    assert_eq!(wrong, Vec::<&Value>::new());
}

#[test]
fn a_node_that_is_partitioned_from_its_only_peer_is_named_as_cut_off() {
    let Some(net) = Net::new(2) else { return };
    let etcd = net.etcd();
    let nodes = net.nodes(&etcd);
    // It still reaches the registry, and there is no majority against it: it lives.
    net.cut(1, 2);
    let n1 = &nodes[0];
    names(
        n1,
        &["doctor"],
        &[
            "n2 answers through the registry but not between nodes",
            "something on the network between them drops its traffic",
        ],
    );
    names(
        n1,
        &["why", "node", "n2"],
        &["asks n2 through the registry whether it lives"],
    );
    names(n1, &["members"], &["n2", "cut-off"]);
}

#[test]
fn a_node_that_is_partitioned_from_all_its_peers_is_condemned_and_knows_why_it_is_out() {
    let Some(net) = Net::new(3) else { return };
    let etcd = net.etcd();
    let nodes = net.nodes(&etcd);
    net.cut(3, 1);
    net.cut(3, 2);
    names(
        &nodes[0],
        &["why", "node", "n3"],
        &[
            "condemned n3",
            "silent to the majority and to every witness",
        ],
    );
    doctor(
        &nodes[2],
        "members",
        &["n3", "is no member", "once it reaches the master n1 at 10."],
    );
    names(
        &nodes[2],
        &["why", "node", "n3"],
        &["removed by the verdict of a peer"],
    );
}

#[test]
fn a_node_that_is_partitioned_from_everything_is_condemned_with_the_evidence() {
    let Some(net) = Net::new(3) else { return };
    let etcd = net.etcd();
    let nodes = net.nodes(&etcd);
    net.set_link(3, false);
    names(
        &nodes[0],
        &["why", "node", "n3"],
        &["condemned n3", "of silence", "the accuser reached"],
    );
}

#[test]
fn a_wrong_advertised_address_is_named_with_the_address() {
    let etcd = Etcd::start();
    let n1 = Node::start("n1", &etcd.url());
    n1.wait("master.promoted", |l| event(l, "master.promoted"));
    let wrong = format!("127.0.0.1:{}", free_port());
    let mut args = FAST.to_vec();
    args.extend(["--advertise", &wrong]);
    let _n2 = Node::start_with("n2", &etcd.url(), &args);
    doctor(&n1, "dial-back", &["n2 says it is at", &wrong]);
    names(
        &n1,
        &["why", "node", "n2"],
        &["cannot reach", "where it says it is"],
    );
}

#[test]
fn a_job_that_nobody_knows_is_named_with_those_that_are_known() {
    let cluster = Cluster::start(2);
    let n2 = cluster.node("n2");
    let (_, taken) = n2
        .post(
            "/v1/tasks",
            &json!({ "job": "paint", "input": {} }).to_string(),
        )
        .unwrap();
    let id = taken["id"].as_str().unwrap_or_else(|| panic!("{taken}"));
    names(
        n2,
        &["why", "task", id],
        &[
            "queued",
            "no member knows the job paint",
            "they know",
            "multiply",
        ],
    );
}

#[test]
fn an_actor_that_flaps_is_named_with_its_last_failure() {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.node("n1"), cluster.node("n2"));
    for n in 1..=3 {
        let mark = n2.process.lines.mark();
        assert_eq!(
            n1.cli(&["kill", "worker", "--node", "n2"]).status.code(),
            Some(0)
        );
        let (_, line) = n2.wait_event(mark, "actor.restarted", LONG);
        assert_eq!(
            (&line["restarts"], &line["actor"]),
            (&json!(n), &json!("worker")),
            "{line}"
        );
    }
    doctor(
        n1,
        "actors",
        &[
            "the worker actor of n2 flaps: 3 restarts",
            "killed by an operator",
        ],
    );
    names(
        n1,
        &["why", "node", "n2"],
        &["its worker actor failed", "killed by an operator"],
    );
    names(
        n1,
        &["actors", "worker", "--node", "n2"],
        &["troupe_actors"],
    );
}

#[test]
fn a_registry_that_is_away_is_named_with_its_endpoint() {
    let mut cluster = Cluster::start(2);
    cluster.etcd.stop();
    let url = cluster.etcd.url();
    let n2 = cluster.node("n2");
    doctor(n2, "registry", &["n1 does not reach", &url]);
    doctor(n2, "members", &["does not reach the registry"]);
    names(
        n2,
        &["why", "node", "n1"],
        &["the registry does not answer"],
    );
}

#[test]
fn a_slow_node_is_named_with_how_late_it_is() {
    let cluster = Cluster::start(3);
    let (n1, n3) = (cluster.node("n1"), cluster.node("n3"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A machine that is starved of its processor: it runs 100 ms and waits 400.
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n3.process.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(400));
                n3.process.signal(Signal::CONT);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            doctor(
                n1,
                "slow",
                &[
                    "the timers of n3 fire",
                    "its machine is overloaded or was paused",
                ],
            );
        }));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        looked.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
}
