//! The Rust client and jobs of one's own, against real nodes.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Cluster, Etcd, LONG, Node, Process, TROUPE, event, free_port, free_ports, until};
use troupe::id::TaskId;
use troupe::{Client, ClientError, Task};

const QUICK: [&str; 8] = [
    "--set",
    "generator.enabled=false",
    "--set",
    "worker.delay_min=0ms",
    "--set",
    "worker.delay_max=200ms",
    "--set",
    "worker.capacity=100",
];

fn client(nodes: &[Node]) -> Client {
    // The first never answers.
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let nodes = nodes.iter().map(|node| format!("http://{}", node.admin()));
    Client::new([nobody].into_iter().chain(nodes))
        .unwrap()
        .patience(LONG)
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_done_once_while_the_master_is_killed() {
    let mut cluster = Cluster::start_with(3, &QUICK);
    let client = client(&cluster.nodes);
    let tasks: Vec<Task> = (0..1000)
        .map(|n| Task::new("multiply", json!({ "number": n })).unwrap())
        .collect();
    let (first, rest) = tasks.split_at(500);
    let mut ids = client.submit_all(first).await;
    cluster.nodes[0].process.kill();
    ids.extend(client.submit_all(rest).await);
    // Nobody knows who was asked when: sent again they are the same tasks.
    let again = client.submit_all(&tasks).await;
    assert_eq!(ids, again);
    for (n, task) in tasks.iter().enumerate() {
        let output: Value = client.output(task.id()).await.unwrap();
        assert_eq!(output["result"], 3 * n);
    }
    let known = cluster.nodes[1].get("/v1/status").unwrap().1["tasks"]["done"].clone();
    assert_eq!(known, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_apart() {
    let cluster = Cluster::start_with(1, &QUICK);
    let client = client(&cluster.nodes);
    let bad = Task::new("multiply", "no number").unwrap().max_attempts(1);
    let ended = client.run::<Value>(&bad).await;
    assert!(
        matches!(&ended, Err(ClientError::Ended(state, why)) if state == "failed" && why.contains("number")),
        "{ended:?}"
    );
    let nobody_can = Task::new("paint", ())
        .unwrap()
        .priority(3)
        .require("brush", "fine");
    let id = client.submit(&nobody_can).await.unwrap();
    let cancelled = client.cancel(id).await.unwrap();
    assert_eq!(cancelled.state, "cancelled");
    let unknown = client.receipt(TaskId::new(1, &mut rand::rng())).await;
    assert!(
        matches!(unknown, Err(ClientError::Refused { status: 404, .. })),
        "{unknown:?}"
    );
    let late = Task::new("noop", ())
        .unwrap()
        .delay(Duration::from_secs(600));
    let impatient = Client::new([format!("http://{}", cluster.nodes[0].admin())]);
    let impatient = impatient.unwrap().patience(Duration::from_millis(300));
    assert_eq!(impatient.run::<Value>(&late).await, Err(ClientError::Open));
    let mute = Client::new([format!("http://127.0.0.1:{}", free_port())]).unwrap();
    let mute = mute.patience(Duration::from_millis(300)).receipt(id).await;
    assert!(matches!(mute, Err(ClientError::Nobody(_))), "{mute:?}");
}

/// `examples/own_job.rs`, beside the binary under test; built with all tests, or by `cargo build --examples`.
fn own_job(registry: &str) -> Process {
    let example = Path::new(TROUPE).with_file_name("examples").join("own_job");
    let port = free_ports(2);
    let mut command = Command::new(example);
    command
        .args([
            "run",
            "--registry",
            registry,
            "--name",
            "own",
            "--log-format",
            "json",
        ])
        .args(["--bind", &format!("127.0.0.1:{port}")])
        .args(["--admin", &format!("127.0.0.1:{}", port + 1)]);
    Process::start(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_jobs_of_its_own_does_them_and_tells_how_far_it_is() {
    let etcd = Etcd::start();
    let master = Node::start_with("n1", &etcd.url(), &QUICK);
    master.wait("master.promoted", |line| event(line, "master.promoted"));
    let client = client(std::slice::from_ref(&master));
    let words = Task::new("word-count", "to be or not to be").unwrap();
    // Nobody knows the job yet: it waits.
    client.submit(&words).await.unwrap();
    let _own = own_job(&etcd.url());
    let counts: Value = client.output(words.id()).await.unwrap();
    assert_eq!(counts, json!({"to": 2, "be": 2, "or": 1, "not": 1}));
    // It takes much longer than its time-out, and tells that it is getting on.
    let long = Task::new("primes", 400_000).unwrap();
    let long = long.timeout(Duration::from_millis(600)).max_attempts(1);
    client.submit(&long).await.unwrap();
    until("progress is shown", LONG, || {
        let (_, task) = master
            .get(&format!("/v1/tasks/{}", long.id()))
            .ok_or("no answer")?;
        let told = task["progress"].as_str().unwrap_or_default().to_owned();
        if told.ends_with("of 400000") {
            Ok(())
        } else {
            Err(task.to_string())
        }
    });
    assert_eq!(client.output::<u64>(long.id()).await, Ok(33_860));
}
