//! Operating real nodes: a drain and its receipt, settings changed while a node runs, SIGHUP.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Cluster, Etcd, FAST, LONG, Node, event, request, until};

fn json_of(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// How a member stands, as this node sees it.
fn member(node: &Node, name: &str) -> Value {
    let (_, view) = node.get("/v1/members").unwrap();
    let members = view["members"].as_array().cloned().unwrap_or_default();
    let found = members.into_iter().find(|m| m["name"] == name);
    found.unwrap_or_default()
}

#[test]
fn a_drain_asked_for_at_another_node_is_answered_with_its_receipt() {
    let mut cluster = Cluster::start(3);
    cluster.wait_task("n1");
    let asked = cluster.node("n2");
    let output = asked.cli(&["--json", "drain", "n1", "--wait"]);
    let receipt = json_of(&output);
    assert_eq!(output.status.code(), Some(0), "{receipt}");
    assert_eq!(receipt["node"], "n1");
    assert_eq!(receipt["lost"], 0, "{receipt}");
    let heir = receipt["heir"].as_str().unwrap().to_owned();
    assert_ne!(heir, "n1");
    let masterless = receipt["masterless_ms"].as_f64().unwrap();
    assert!(masterless > 0.0 && masterless < 2000.0, "{receipt}");
    assert_eq!(asked.wait_master_other_than("n1", LONG).0, heir);
    let drained = cluster.node_mut("n1");
    assert_eq!(drained.process.wait(LONG), Some(0));
    let (_, line) = drained.wait_event(0, "node.drained", LONG);
    for key in ["finished", "handed_back", "handed_over", "lost", "heir"] {
        assert_eq!(line[key], receipt[key], "{key}: {line}");
    }
    assert_eq!(line["clean"], true);
    // A node that is drained by itself answers its own receipt, in words.
    let left = cluster
        .nodes
        .iter()
        .find(|n| n.name != "n1" && n.name != heir);
    let words = left.unwrap().cli(&["drain", "--wait"]);
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(
        words.contains("is gone") && words.contains("lost         0"),
        "{words}"
    );
}

#[test]
fn the_last_node_finishes_its_ephemeral_tasks_or_says_what_is_lost() {
    let etcd = support::Etcd::start();
    let mut node = Node::start_with("n1", &etcd.url(), &FAST);
    node.wait("master.promoted", |l| event(l, "master.promoted"));
    for _ in 0..20 {
        let task = json!({"job": "multiply", "input": {"number": 1}, "durable": false});
        let taken = node.post("/v1/tasks", &task.to_string()).unwrap();
        assert_eq!(taken.0, 202, "{taken:?}");
    }
    node.process.signal(Signal::TERM);
    assert_eq!(node.process.wait(LONG), Some(0));
    let (_, line) = node.wait_event(0, "node.drained", LONG);
    assert_eq!(line["lost"], 0, "{line}");
    // Nobody knows this job: nothing runs, and it is not waited for until the end of the drain.
    let mut node = Node::start_with("n2", &etcd.url(), &FAST);
    node.wait("master.promoted", |l| event(l, "master.promoted"));
    let task = json!({"job": "unheard-of", "input": 1, "durable": false});
    assert_eq!(node.post("/v1/tasks", &task.to_string()).unwrap().0, 202);
    node.process.signal(Signal::TERM);
    assert_eq!(node.process.wait(Duration::from_secs(10)), Some(1));
    let (_, line) = node.wait_event(0, "node.drained", LONG);
    assert_eq!((&line["lost"], &line["clean"]), (&json!(1), &json!(false)));
    assert_eq!(line["level"], "warn");
}

#[test]
fn weight_and_eligibility_change_while_a_node_runs_and_it_stays_the_same_life() {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.node("n1"), cluster.node("n2"));
    let before = member(n1, "n2");
    let output = n1.cli(&["--json", "set", "n2", "weight=7", "tags={\"disk\":\"ssd\"}"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    until("n1 sees what n2 says of itself now", LONG, || {
        let now = member(n1, "n2");
        let same = now["incarnation"] == before["incarnation"] && now["session"] == true;
        let said = now["weight"] == 7 && now["tags"]["disk"] == "ssd";
        (same && said).then_some(()).ok_or_else(|| now.to_string())
    });
    assert_eq!(n1.master().unwrap().0, "n1", "a weight unseats nobody");
    let (name, epoch) = n1.master().unwrap();
    let output = n2.cli(&["set", &name, "eligible=false"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (heir, new) = n2.wait_master_other_than(&name, LONG);
    assert_eq!(heir, "n2");
    assert_ne!(epoch, new);
    assert_eq!(member(n2, "n1")["state"], "alive");
    let refused = n1.cli(&["set", "n1", "node.bind=0.0.0.0:1"]);
    assert_eq!(refused.status.code(), Some(1));
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        words.contains("node.bind") && words.contains("while it runs"),
        "{words}"
    );
    // Its next life of RegistryActor still says what was set.
    n1.cli(&["kill", "registry", "--node", "n2"]);
    n2.wait_event(0, "actor.restarted", LONG);
    n2.cli(&["kill", "discovery", "--node", "n2"]);
    until("n2 keeps its weight", LONG, || {
        let now = member(n1, "n2");
        let kept = now["weight"] == 7 && now["incarnation"] == before["incarnation"];
        kept.then_some(()).ok_or_else(|| now.to_string())
    });
}

#[test]
fn sighup_takes_what_can_change_names_what_cannot_and_a_bad_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("[generator]\nevery = \"1h\"\n");
    let etcd = support::Etcd::start();
    let path = file.to_str().unwrap().to_owned();
    let node = Node::start_with(
        "n1",
        &etcd.url(),
        &["--config", &path, "--set", "registry.renew=500ms"],
    );
    node.wait("master.promoted", |l| event(l, "master.promoted"));

    let mark = node.process.lines.mark();
    write("[generator]\nevery = \"50ms\"\n[worker]\ncapacity = 3\n[log]\nlevel = \"debug\"\n");
    node.process.signal(Signal::HUP);
    let (_, line) = node.wait_event(mark, "config.reloaded", LONG);
    let changed = line["changed"].as_str().unwrap();
    assert!(changed.contains("generator.every = \"50ms\""), "{line}");
    assert!(changed.contains("log.level = \"debug\""), "{line}");
    assert_eq!(line["needs_restart"], "worker.capacity = 3", "{line}");
    node.wait_event(mark, "task.created", LONG);
    // Said at level debug.
    node.wait_event(mark, "registry.renewed", LONG);

    let mark = node.process.lines.mark();
    write("[generator]\nevery = \"never\"\n");
    node.process.signal(Signal::HUP);
    let (_, line) = node.wait_event(mark, "config.rejected", LONG);
    let reason = line["reason"].as_str().unwrap();
    assert!(
        reason.contains("node.toml:2") && reason.contains("generator.every"),
        "{line}"
    );
    let running = json_of(&node.cli(&["--json", "config", "running"]));
    let every = &running["settings"]["generator.every"];
    assert_eq!(
        (&every["value"], &every["live"]),
        (&json!("50ms"), &json!(true))
    );
    assert!(
        every["origin"].as_str().unwrap().ends_with("node.toml:2"),
        "{every}"
    );
    // The same through the API, in words and with an exit code.
    let refused = node.cli(&["reload", "n1"]);
    assert_eq!(refused.status.code(), Some(1));
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("generator.every"), "{words}");
    node.wait_event(node.process.lines.mark(), "task.created", LONG);
}

#[test]
fn no_secret_is_in_the_log_or_in_a_debug_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut secrets = vec!["hunter2-in-the-environment".to_owned()];
    for name in ["secret", "next"] {
        let made = std::process::Command::new(support::TROUPE)
            .args(["keygen", &path(name)])
            .status();
        assert!(made.unwrap().success());
        let secret = std::fs::read_to_string(path(name)).unwrap();
        secrets.push(secret.trim().to_owned());
    }
    let config = format!(
        "[security]\nsecret_file = \"{}\"\naccept_secret_file = \"{}\"\n[jobs.echo]\ncommand = [\"cat\"]\nenv = {{ TOKEN = \"{}\" }}\n",
        path("secret"),
        path("next"),
        secrets[0]
    );
    std::fs::write(path("node.toml"), config).unwrap();
    let file = path("node.toml");
    let cluster = Cluster::start_with(2, &["--config", &file, "--log-level", "trace"]);
    let n1 = cluster.node("n1");
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let words = [
        "--json",
        "submit",
        "echo",
        "1",
        "--wait",
        "--traceparent",
        parent,
    ];
    let task = json_of(&n1.cli(&words));
    assert_eq!(task["state"], "done", "{task}");
    assert_eq!(task["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(task["meta"]["traceparent"], parent);
    n1.process.signal(Signal::HUP);
    n1.wait_event(0, "config.reloaded", LONG);

    let bundle = path("bundle.json");
    let output = n1.cli(&["debug", "--out", &bundle]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let again = n1.cli(&["debug", "--out", &bundle]);
    assert_eq!(again.status.code(), Some(2), "it is not overwritten");
    let text = std::fs::read_to_string(&bundle).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    for name in ["n1", "n2"] {
        let node = &value["nodes"][name];
        let limits = &node["process"]["limits"]["Max open files"];
        assert!(limits.is_string(), "{node}");
        let origin = &node["config"]["security.secret_file"]["origin"];
        assert!(origin.as_str().unwrap().contains("node.toml:2"), "{origin}");
        assert_eq!(node["status"]["node"], name);
        assert!(node["actors"].as_array().unwrap().len() >= 6);
    }
    assert!(value["ledger"]["tasks"]["done"].as_u64() > Some(0));
    assert!(!value["logs"]["records"].as_array().unwrap().is_empty());

    // In words, and as the bytes that a secret stands for.
    for node in &cluster.nodes {
        let lines = node.process.lines.all();
        let traced = lines
            .iter()
            .filter(|(_, l)| l["trace_id"] == task["trace_id"]);
        let events: std::collections::BTreeSet<_> =
            traced.filter_map(|(_, l)| l["event"].as_str()).collect();
        if node.name == "n1" {
            assert!(
                events.contains("task.created") && events.contains("task.finished"),
                "{events:?}"
            );
        }
        for (_, line) in &lines {
            let line = line.to_string();
            for secret in &secrets {
                assert!(!line.contains(secret.as_str()), "{line}");
            }
        }
    }
    for secret in &secrets {
        assert!(
            !text.contains(secret.as_str()),
            "the bundle has a secret in it"
        );
    }
}

#[test]
fn a_handler_that_does_not_return_is_named_within_five_seconds_with_its_message() {
    let cluster = Cluster::start(2);
    let (n1, n2) = (cluster.node("n1"), cluster.node("n2"));
    let mark = n2.process.lines.mark();
    let asked = std::time::Instant::now();
    n1.cli(&["kill", "worker", "--node", "n2", "--how", "hang"]);
    let (at, line) = n2.wait_event(mark, "actor.hung", LONG);
    println!("named after {:?}: {line}", at - asked);
    assert_eq!(line["actor"], "worker");
    assert_eq!(line["message"], "an operator's hang");
    assert!(at - asked < Duration::from_secs(6), "{:?}", at - asked);
    let (_, view) = n1.get("/v1/actors?node=n2").unwrap();
    let actors = view["nodes"][0]["actors"].as_array().unwrap().clone();
    let worker = actors.into_iter().find(|a| a["name"] == "worker").unwrap();
    assert_eq!(
        (&worker["state"], &worker["busy_with"]),
        (&json!("hung"), &json!("an operator's hang"))
    );
}

#[test]
fn keys_are_repaired_by_hand_as_they_were_looked_at_and_binary_ones_are_not_written() {
    let etcd = Etcd::start();
    let mut more = FAST.to_vec();
    more.extend(["--set", "admin.edit_registry=true"]);
    let node = Node::start_with("n1", &etcd.url(), &more);
    node.wait("master.promoted", |l| event(l, "master.promoted"));
    etcd.say(&["put", "/troupe/stray", "old"]);
    let put = node.cli(&["registry", "put", "stray", "new"]);
    assert!(put.status.success(), "{put:?}");
    let value = || etcd.say(&["get", "/troupe/stray", "--print-value-only"]);
    assert_eq!(value().trim(), "new");
    node.wait("who changed it", |l| event(l, "admin.edit_registry"));
    let looked_at_before = "/v1/registry?key=stray&seen=1";
    let (status, refused) = request(&node.admin(), "PUT", looked_at_before, "\"x\"").unwrap();
    assert_eq!(
        (status, &refused["error"]["code"]),
        (409, &json!("changed"))
    );
    let elsewhere = "/v1/registry?key=/other/stray&seen=1";
    let (status, _) = request(&node.admin(), "DELETE", elsewhere, "").unwrap();
    assert_eq!(status, 400);

    let task = json!({ "job": "noop", "input": 1 }).to_string();
    let (status, _) = node.post("/v1/tasks?wait=20s", &task).unwrap();
    assert!(status < 300);
    let keys = etcd.say(&["get", "/troupe/journal/", "--prefix", "--keys-only"]);
    let segment = keys.lines().find(|line| !line.is_empty()).unwrap();
    let before = etcd.say(&["get", segment, "--hex"]);
    let put = node.cli(&["registry", "put", segment, "x"]);
    let said = String::from_utf8_lossy(&put.stderr).into_owned();
    assert!(
        !put.status.success() && said.contains("is binary"),
        "{said}"
    );
    assert_eq!(etcd.say(&["get", segment, "--hex"]), before);

    let removed = node.cli(&["registry", "rm", "stray"]);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(value().trim(), "");
}
