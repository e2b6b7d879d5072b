//! What the article's nodes do, ours do: each with the values of `config.toml`. The rest stands in `cluster.rs` (events, a crash
//! and its return, the executor is another) and beside the code (numbers, waits, × 3, the external address).

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use support::{Cluster, Etcd, FAST, LONG, Node, event};

fn promoted(node: &Node) {
    node.wait("master.promoted", |l| event(l, "master.promoted"));
}

#[test]
fn a_node_registers_under_services_with_a_lease_of_120_seconds_and_its_name() {
    let etcd = Etcd::start();
    let node = Node::start_with("n1", &etcd.url(), &[]);
    promoted(&node);
    let key = format!("/troupe/services/127.0.0.1:{}", node.port);
    let kv = etcd.say(&["get", &key, "-w", "json"]);
    let kv: Value = serde_json::from_str(&kv).unwrap();
    let lease = kv["kvs"][0]["lease"].as_i64().unwrap();
    let ttl = etcd.say(&["lease", "timetolive", &format!("{lease:x}")]);
    assert!(ttl.contains("granted with TTL(120s)"), "{ttl}");
    let registration = etcd.say(&["get", &key, "--print-value-only"]);
    let registration: BTreeMap<String, Value> = serde_json::from_str(&registration).unwrap();
    for field in [
        "id",
        "name",
        "ip",
        "port",
        "admin",
        "host",
        "pid",
        "version",
        "protocol",
        "weight",
        "eligible",
        "roles",
        "jobs",
        "capacity",
        "tags",
        "started_at",
    ] {
        assert!(
            registration.contains_key(field),
            "{field} is missing: {registration:?}"
        );
    }
    let owner = etcd.say(&["get", "/troupe/names/n1", "--print-value-only"]);
    assert_eq!(owner.trim(), registration["id"].as_str().unwrap());
}

#[test]
fn the_lease_is_renewed_and_outlives_its_first_time() {
    let etcd = Etcd::start();
    let args: Vec<&str> = FAST
        .into_iter()
        .chain([
            "--set",
            "registry.ttl=2s",
            "--set",
            "registry.renew=500ms",
            "--log-level",
            "debug",
        ])
        .collect();
    let node = Node::start_with("n1", &etcd.url(), &args);
    promoted(&node);
    // Six renewals at 500 ms are longer than the lease's 2 s.
    let mut mark = 0;
    for _ in 0..6 {
        node.wait_event(mark, "registry.renewed", LONG);
        let lines = node.process.lines.all();
        mark += 1 + lines[mark..]
            .iter()
            .position(|(_, l)| event(l, "registry.renewed"))
            .unwrap();
    }
    assert!(etcd.say(&["get", "/troupe/names/n1"]).contains("n1"));
    assert!(
        !node
            .process
            .lines
            .all()
            .iter()
            .any(|(_, l)| event(l, "node.deregistered"))
    );
}

#[test]
fn names_are_rolled_and_unique_and_ids_differ() {
    let etcd = Etcd::start();
    let nodes: Vec<Node> = (0..3)
        .map(|_| Node::start_nameless(&etcd.url(), &FAST))
        .collect();
    let names: Vec<String> = nodes
        .iter()
        .map(|n| {
            let (_, line) = n.wait("node.registered", |l| event(l, "node.registered"));
            line["node"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(names.iter().all(|n| n.contains('-')), "{names:?}");
    assert_ne!(names[0], names[1]);
    assert_ne!(names[1], names[2]);
}

#[test]
fn without_a_worker_tasks_wait_and_that_is_said_and_no_error() {
    let etcd = Etcd::start();
    let idle: Vec<&str> = FAST.into_iter().chain(["--no-worker"]).collect();
    let master = Node::start_with("n1", &etcd.url(), &idle);
    let (_, said) = master.wait("task.waiting", |l| event(l, "task.waiting"));
    assert_eq!(said["reason"], "there is no worker");
    let mark = master.process.lines.mark();
    let _worker = Node::start("n2", &etcd.url());
    let (_, line) = master.wait_event(mark, "task.finished", Duration::from_secs(10));
    assert_eq!(line["executor"], "n2");
}

#[test]
fn the_table_of_nodes_can_be_printed_at_any_time_from_any_node() {
    let cluster = Cluster::start(3);
    for node in &cluster.nodes {
        let output = node.cli(&["members"]);
        assert!(output.status.success());
        let table = String::from_utf8(output.stdout).unwrap();
        for name in ["n1", "n2", "n3"] {
            assert!(table.contains(name), "{table}");
        }
    }
}
