//! Many tasks: the registry stays small however many are done, and memory for those that wait is bounded.
//!
//! Small in a plain run; `TROUPE_TEST_TASKS=1000000 cargo test --release --test volume -- --nocapture --test-threads 1` gives the
//! figures of `docs/figures.md`.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Cluster, LONG, Node, on_disk, request_as, until};

/// A generator that is silent, little kept.
const PLAIN: [&str; 4] = [
    "--set",
    "generator.enabled=false",
    "--set",
    // What is remembered of finished tasks for so long is no more than a tenth of them.
    "master.keep_ids=100000",
];
const ROUNDS: u64 = 10;

fn many(usual: u64) -> u64 {
    let set = std::env::var("TROUPE_TEST_TASKS")
        .ok()
        .and_then(|s| s.parse().ok());
    set.unwrap_or(usual)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

fn bench(node: &Node, tasks: u64) {
    let tasks = tasks.to_string();
    let done = node.cli(&["bench", "--durable", "--tasks", &tasks]);
    assert!(done.status.success(), "{done:?}");
}

fn journal(node: &Node) -> Value {
    let (_, status) = node.get("/v1/status").unwrap();
    status["journal"].clone()
}

/// Sizes after each tenth; the later ones must not be above the earlier ones by more than what is written between two compactions.
fn bounded(what: &str, sizes: &[u64]) {
    let (early, late) = sizes.split_at(sizes.len() / 2);
    let (early, late) = (early.iter().max().unwrap(), late.iter().max().unwrap());
    let slack = 64 * 1024 * 1024;
    assert!(
        *late <= early + early / 2 + slack,
        "{what} grows: {sizes:?}"
    );
}

#[test]
fn etcd_stays_small_over_many_durable_tasks() {
    let tasks = many(10_000);
    let cluster = Cluster::start_with(3, &PLAIN);
    let (mut sizes, mut in_use) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        bench(&cluster.nodes[0], tasks / ROUNDS);
        let said = cluster
            .etcd
            .say(&["endpoint", "status", "--write-out=json"]);
        let status: Value = serde_json::from_str(&said).unwrap();
        let size = |key: &str| status[0]["Status"][key].as_u64().unwrap();
        sizes.push(size("dbSize"));
        in_use.push(size("dbSizeInUse"));
        println!(
            "{} durable tasks: etcd {:.1} MiB, in use {:.1} MiB; journal {}",
            tasks / ROUNDS * round,
            megabytes(size("dbSize")),
            megabytes(size("dbSizeInUse")),
            journal(&cluster.nodes[0])
        );
    }
    bounded("etcd", &sizes);
    bounded("what etcd uses", &in_use);
}

#[test]
fn the_embedded_registry_stays_small_over_many_durable_tasks() {
    let tasks = many(10_000);
    let dir = tempfile::tempdir().unwrap();
    let port = support::free_port();
    let registry = on_disk(dir.path(), port);
    let url = format!("http://127.0.0.1:{port}");
    let nodes = ["n1", "n2", "n3"].map(|name| Node::start_with(name, &url, &PLAIN));
    nodes[0].wait_members(&["n1", "n2", "n3"], LONG);
    let mut sizes = Vec::new();
    for round in 1..=ROUNDS {
        bench(&nodes[0], tasks / ROUNDS);
        let size = on_disk_bytes(dir.path());
        sizes.push(size);
        println!(
            "{} durable tasks: {:.1} MiB on disk, {:.1} MiB resident; journal {}",
            tasks / ROUNDS * round,
            megabytes(size),
            megabytes(resident(registry.pid())),
            journal(&nodes[0])
        );
    }
    bounded("the embedded registry", &sizes);
}

fn on_disk_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum()
}

/// Bytes of memory a process has.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[test]
fn many_tasks_wait_and_are_done() {
    let tasks = many(50_000);
    let idle = ["--set", "master.master_works=never"];
    let idle: Vec<&str> = PLAIN.into_iter().chain(idle).collect();
    let cluster = Cluster::start_with(1, &idle);
    let master = &cluster.nodes[0];
    let input = "x".repeat(98);
    let line = json!({"job": "noop", "durable": false, "input": input});
    let body = vec![line.to_string(); 1000].join("\n");
    let fill = |tasks: u64| {
        for _ in 0..tasks / 1000 {
            let (to, kind) = (master.admin(), "application/x-ndjson");
            let (status, answer) = request_as(&to, "POST", "/v1/tasks", kind, &body).unwrap();
            assert_eq!(status, 200, "{answer}");
        }
        resident(master.process.pid())
    };
    // What does not grow with the tasks is there after the first tenth.
    let early = fill(tasks / 10);
    let grown = fill(tasks - tasks / 10).saturating_sub(early);
    let each = grown as f64 / (tasks - tasks / 10) as f64;
    println!("{tasks} tasks of 100 B wait: {each:.0} B of memory each");
    assert!(each <= 400.0, "{each:.0} B for each task that waits");
    let begin = Instant::now();
    let _worker = Node::start_with("worker", &cluster.etcd.url(), &PLAIN);
    until("all are done", Duration::from_secs(120), || {
        let (_, status) = master.get("/v1/status").ok_or("no answer")?;
        let open = ["queued", "leased"].map(|state| status["tasks"][state].as_u64().unwrap_or(0));
        if open == [0, 0] {
            Ok(())
        } else {
            Err(format!("{open:?}"))
        }
    });
    println!(
        "drained {:.1} s after a worker was started",
        begin.elapsed().as_secs_f64()
    );
}
