//! Durable tasks on real processes: what was acknowledged is done, once, whatever is killed, stopped or cut off.
//!
//! Short in a plain run; `TROUPE_TEST_CHAOS_S=180 TROUPE_TEST_STOP_S=30` gives the figures of README.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::RngExt;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Cluster, LONG, Node, on_disk, request, request_as, until};
use troupe_actors::id::TaskId;

/// Workers with room, tasks of 0 to 500 ms, and receipts for all of them.
const ROOMY: [&str; 16] = [
    "--set",
    "generator.enabled=false",
    "--set",
    "worker.delay_min=0ms",
    "--set",
    "worker.delay_max=500ms",
    "--set",
    "worker.capacity=200",
    "--set",
    "master.keep_finished=1000000",
    "--set",
    "master.keep_finished_bytes=1000000000",
    "--set",
    "transport.redial_max=1s",
    "--set",
    "master.retry_wait=100ms",
];

fn seconds(variable: &str, usual: u64) -> Duration {
    let set = std::env::var(variable).ok().and_then(|s| s.parse().ok());
    Duration::from_secs(set.unwrap_or(usual))
}

fn fresh_id() -> TaskId {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    TaskId::new(since.as_millis() as u64, &mut rand::rng())
}

fn multiply(id: TaskId) -> String {
    json!({"id": id, "job": "multiply", "input": {"number": 42}}).to_string()
}

/// Submits lines; answers each line's id or error code. `None`: no answer, so nothing is known.
fn submit(address: &str, lines: &[String]) -> Option<Vec<Result<String, String>>> {
    let body = lines.join("\n");
    let (status, answer) = request_as(address, "POST", "/v1/tasks", "application/x-ndjson", &body)?;
    let outcome = |line: &Value| match line["id"].as_str() {
        Some(id) => Ok(id.to_owned()),
        None => Err(line["error"]["code"].as_str().unwrap_or("?").to_owned()),
    };
    if status != 200 {
        let error = outcome(&answer);
        return Some(vec![error; lines.len()]);
    }
    let text = match answer {
        Value::String(text) => text,
        one => one.to_string(),
    };
    let lines = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap_or(Value::Null));
    Some(lines.map(|l| outcome(&l)).collect())
}

/// Every task the master knows, page by page.
fn all_tasks(node: &Node) -> BTreeMap<String, Value> {
    let mut tasks = BTreeMap::new();
    let mut after = String::new();
    loop {
        let page = until("a page of tasks", LONG, || {
            match node.get(&format!("/v1/tasks?limit=500{after}")) {
                Some((200, page)) => Ok(page),
                other => Err(format!("{other:?}")),
            }
        });
        for task in page["tasks"].as_array().unwrap() {
            tasks.insert(task["id"].as_str().unwrap().to_owned(), task.clone());
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return tasks,
        }
    }
}

/// Tasks that are not finished; `None` while nobody can tell.
fn in_flight(node: &Node) -> Option<u64> {
    let (_, status) = node.get("/v1/status")?;
    let tasks = status["tasks"].as_object()?;
    let count = |state: &str| tasks.get(state).and_then(Value::as_u64).unwrap_or(0);
    Some(count("leased") + count("queued"))
}

/// A client that submits at a steady rate, anywhere, and sends again under the same id what it has no answer for.
struct Client {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    thread: std::thread::JoinHandle<BTreeMap<String, u64>>,
}

impl Client {
    fn start(addresses: Vec<String>, per_second: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let (halt, heard) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = std::thread::spawn(move || {
            let mut refusals: BTreeMap<String, u64> = BTreeMap::new();
            let mut pending: Vec<TaskId> = Vec::new();
            let (begin, mut made) = (Instant::now(), 0);
            while !halt.load(Ordering::Relaxed) || !pending.is_empty() {
                let due = (begin.elapsed().as_secs_f64() * per_second as f64) as u64;
                if !halt.load(Ordering::Relaxed) {
                    pending.extend((made..due).map(|_| fresh_id()));
                    made = made.max(due);
                }
                if pending.is_empty() {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                let now: Vec<TaskId> = pending.iter().copied().take(500).collect();
                let lines: Vec<String> = now.iter().map(|id| multiply(*id)).collect();
                let at = rand::rng().random_range(0..addresses.len());
                let Some(answers) = submit(&addresses[at], &lines) else {
                    *refusals.entry("no answer".to_owned()).or_default() += lines.len() as u64;
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                };
                let mut done = BTreeSet::new();
                for (id, answer) in now.iter().zip(answers) {
                    match answer {
                        Ok(text) => {
                            assert_eq!(text, id.to_string());
                            heard.lock().unwrap().insert(text);
                            done.insert(*id);
                        }
                        Err(code) => *refusals.entry(code).or_default() += 1,
                    }
                }
                pending.retain(|id| !done.contains(id));
            }
            refusals
        });
        Self {
            stop,
            acknowledged,
            thread,
        }
    }

    /// Stops making tasks, sends what has no answer yet until it has; answers what was acknowledged, and refusals by code.
    fn finish(self) -> (BTreeSet<String>, BTreeMap<String, u64>) {
        self.stop.store(true, Ordering::Relaxed);
        let refusals = self.thread.join().unwrap();
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        (acknowledged, refusals)
    }
}

/// Every acknowledged task is done, with one recorded result.
fn check_all_done(node: &Node, acknowledged: &BTreeSet<String>) -> BTreeMap<String, Value> {
    let tasks = until(
        "everything is finished",
        Duration::from_secs(120),
        || match in_flight(node) {
            Some(0) => Ok(all_tasks(node)),
            open => Err(format!("{open:?} tasks are open")),
        },
    );
    for id in acknowledged {
        let task = tasks.get(id).unwrap_or_else(|| panic!("{id} is lost"));
        assert_eq!(task["state"], "done", "{task:#}");
        assert_eq!(task["output"]["result"], 126);
        let attempts = task["attempts"].as_array().unwrap();
        let recorded = attempts.iter().filter(|a| a["outcome"] == "done").count();
        assert_eq!(recorded, 1, "{task:#}");
    }
    tasks
}

fn executions(tasks: &BTreeMap<String, Value>) -> (usize, usize) {
    let count = |task: &Value, key: &str| task[key].as_array().map_or(0, Vec::len);
    let attempts = tasks.values().map(|t| count(t, "attempts")).sum();
    let refused = tasks.values().map(|t| count(t, "refused")).sum();
    (attempts, refused)
}

#[test]
fn nothing_acknowledged_is_lost_while_nodes_are_killed_every_two_seconds() {
    let etcd = support::Etcd::start();
    kill_every_two_seconds(&etcd.url());
}

#[test]
fn nothing_acknowledged_is_lost_on_the_embedded_registry_either() {
    let dir = tempfile::tempdir().unwrap();
    let port = support::free_port();
    let _registry = on_disk(dir.path(), port);
    kill_every_two_seconds(&format!("http://127.0.0.1:{port}"));
}

fn kill_every_two_seconds(registry: &str) {
    let names = ["n1", "n2", "n3"];
    let start = |name: &&str| Node::start_with(name, registry, &ROOMY);
    let mut nodes: Vec<Node> = names.iter().map(start).collect();
    nodes[0].wait_members(&names, LONG);
    let addresses: Vec<String> = nodes.iter().map(Node::admin).collect();
    let client = Client::start(addresses, 600);
    let end = Instant::now() + seconds("TROUPE_TEST_CHAOS_S", 16);
    let mut kills = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(2));
        let at = rand::rng().random_range(0..nodes.len());
        let other = &nodes[(at + 1) % nodes.len()];
        let (flying, led) = (in_flight(other), other.master());
        let node = &mut nodes[at];
        let what = match led {
            Some((master, _)) if master == node.name => "the master",
            _ => "a worker",
        };
        println!(
            "kill -9 of {what} {}, {flying:?} tasks in flight",
            node.name
        );
        node.restart();
        kills += 1;
    }
    nodes[0].wait_members(&names, LONG);
    let (acknowledged, refusals) = client.finish();
    let tasks = check_all_done(&nodes[0], &acknowledged);
    let (attempts, refused) = executions(&tasks);
    println!(
        "{kills} kills, {} tasks acknowledged and done, {attempts} attempts in their receipts, {refused} late results refused; \
         answers other than yes: {refusals:?}",
        acknowledged.len()
    );
    assert!(tasks.len() >= acknowledged.len());
}

/// `tests/mixed COMMIT` builds the earlier one and names it in `TROUPE_TEST_OLD`.
#[test]
fn builds_of_two_commits_work_in_one_cluster_and_lose_nothing() {
    let Ok(old) = std::env::var("TROUPE_TEST_OLD") else {
        println!("SKIPPED: TROUPE_TEST_OLD names no earlier build");
        return;
    };
    let mut cluster = Cluster::start_with(3, &ROOMY);
    let addresses: Vec<String> = cluster.nodes.iter().map(Node::admin).collect();
    let client = Client::start(addresses, 300);
    // All old, then new one by one, then old again: each leads, and each follows, beside both.
    for program in [&old, support::TROUPE, &old] {
        for name in ["n1", "n2", "n3"] {
            cluster.node_mut(name).become_program(program);
            cluster.wait_whole();
            let (master, epoch) = until("a master", LONG, || {
                cluster.node(name).master().ok_or("none".to_owned())
            });
            println!("{name} runs {program}; {master} leads under {epoch}");
            // Work goes on in this company for a while.
            std::thread::sleep(Duration::from_secs(2));
        }
    }
    let (acknowledged, refusals) = client.finish();
    let tasks = check_all_done(&cluster.nodes[0], &acknowledged);
    let (attempts, refused) = executions(&tasks);
    println!(
        "{} tasks acknowledged and done, {attempts} attempts in their receipts, {refused} results refused; answers other than yes: {refusals:?}",
        acknowledged.len()
    );
    assert!(acknowledged.len() > 1000);
}

#[test]
fn a_stopped_workers_tasks_finish_elsewhere_and_its_late_results_are_refused() {
    // Long enough that some are seen running, however busy the machine.
    let slow = ROOMY.map(|arg| arg.replace("delay_max=500ms", "delay_max=3s"));
    let cluster = Cluster::start_with(3, &slow.each_ref().map(String::as_str));
    let node = &cluster.nodes[0];
    let ids: Vec<TaskId> = (0..400).map(|_| fresh_id()).collect();
    let lines: Vec<String> = ids.iter().map(|id| multiply(*id)).collect();
    let answers = submit(&node.admin(), &lines).unwrap();
    let acknowledged: BTreeSet<String> = answers.into_iter().map(Result::unwrap).collect();
    // The master hands all to the others.
    let (master, _) = node.master().unwrap();
    let mut others = cluster.nodes[1..].iter();
    let worker = others.find(|other| other.name != master).unwrap();
    until("it works", LONG, || {
        let tasks = all_tasks(node);
        let mut attempts = tasks.values().flat_map(|t| t["attempts"].as_array());
        let runs = |a: &Value| a["node"] == worker.name.as_str() && a["outcome"] == "running";
        let any = attempts.any(|of| of.iter().any(runs));
        any.then_some(()).ok_or("nothing runs there".to_owned())
    });
    worker.process.signal(Signal::STOP);
    let stopped = Instant::now();
    let tasks = check_all_done(node, &acknowledged);
    println!("all done {:?} after SIGSTOP", stopped.elapsed());
    let elsewhere = tasks
        .values()
        .filter(|t| t["attempts"].as_array().unwrap().len() > 1);
    println!("{} tasks were given to another", elsewhere.count());
    let left = seconds("TROUPE_TEST_STOP_S", 5).saturating_sub(stopped.elapsed());
    std::thread::sleep(left);
    worker.process.signal(Signal::CONT);
    let refused = until("late results are refused in receipts", LONG, || {
        let (_, refused) = executions(&all_tasks(node));
        (refused > 0).then_some(refused).ok_or("none".to_owned())
    });
    println!("{refused} late results refused");
    check_all_done(node, &acknowledged);
}

#[test]
fn a_stopped_masters_running_attempts_are_adopted_and_none_runs_again() {
    let cluster = Cluster::start_with(3, &ROOMY);
    let (old, _) = cluster.nodes[1].master().unwrap();
    let slow: Vec<&Node> = cluster.nodes.iter().filter(|n| n.name != old).collect();
    let ids: Vec<TaskId> = (0..300).map(|_| fresh_id()).collect();
    let lines: Vec<String> = ids.iter().map(|id| multiply(*id)).collect();
    let answers = submit(&slow[0].admin(), &lines).unwrap();
    let acknowledged: BTreeSet<String> = answers.into_iter().map(Result::unwrap).collect();
    cluster.node(&old).process.signal(Signal::STOP);
    let (new, _) = slow[0].wait_master_other_than(&old, LONG);
    let leader = cluster.node(&new);
    check_all_done(leader, &acknowledged);
    cluster.node(&old).process.signal(Signal::CONT);
    cluster.wait_whole();
    let tasks = check_all_done(leader, &acknowledged);
    // The heir itself works no more once it leads: what it ran it goes on running.
    let again = tasks
        .values()
        .filter(|t| t["attempts"].as_array().unwrap().len() > 1);
    let (attempts, refused) = executions(&tasks);
    println!(
        "{attempts} attempts for {} tasks, {refused} refused",
        tasks.len()
    );
    assert_eq!(again.count(), 0, "a running attempt was run again");
}

#[test]
fn a_registry_that_is_away_is_never_answered_with_an_acknowledgement() {
    let mut cluster = Cluster::start_with(3, &ROOMY);
    let addresses: Vec<String> = cluster.nodes.iter().map(Node::admin).collect();
    let client = Client::start(addresses.clone(), 200);
    std::thread::sleep(Duration::from_secs(2));
    cluster.etcd.stop();
    std::thread::sleep(Duration::from_secs(4));
    let before = client.acknowledged.lock().unwrap().len();
    let refused = request(&addresses[0], "POST", "/v1/tasks", &multiply(fresh_id()));
    let (status, answer) = refused.unwrap();
    let code = answer["error"]["code"].as_str().unwrap().to_owned();
    println!("submit without the registry: {status} {answer}");
    assert!(status == 503 && ["not_recorded", "unknown"].contains(&code.as_str()));
    let ephemeral = json!({"job": "multiply", "input": {"number": 1}, "durable": false});
    let taken = request(&addresses[0], "POST", "/v1/tasks", &ephemeral.to_string());
    assert_eq!(taken.unwrap().0, 202, "ephemeral work goes on");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        client.acknowledged.lock().unwrap().len(),
        before,
        "nothing was acknowledged meanwhile"
    );
    cluster.etcd.start_again();
    until("submits are taken again", LONG, || {
        let now = client.acknowledged.lock().unwrap().len();
        (now > before + 100).then_some(()).ok_or(format!("{now}"))
    });
    let (acknowledged, refusals) = client.finish();
    println!(
        "{} acknowledged, and as many found; refusals {refusals:?}",
        acknowledged.len()
    );
    check_all_done(&cluster.nodes[0], &acknowledged);
}

#[test]
fn a_full_queue_answers_busy_and_memory_stays_flat() {
    let mut small = ROOMY.to_vec();
    small.extend([
        "--set",
        "master.max_queued=2000",
        "--set",
        "worker.capacity=4",
    ]);
    let cluster = Cluster::start_with(3, &small);
    let (master, _) = cluster.nodes[0].master().unwrap();
    let node = cluster.node(&master);
    let memory = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", node.process.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let mut busy = 0;
    let mut flood = |until: Instant| {
        while Instant::now() < until {
            let lines: Vec<String> = (0..500).map(|_| multiply(fresh_id())).collect();
            let answers = submit(&node.admin(), &lines).unwrap();
            busy += answers
                .iter()
                .filter(|a| **a == Err("busy".to_owned()))
                .count();
        }
    };
    let overload = seconds("TROUPE_TEST_FLOOD_S", 6);
    flood(Instant::now() + overload / 3);
    let early = memory();
    flood(Instant::now() + overload * 2 / 3);
    let late = memory();
    println!("{busy} submits answered busy; resident {early} kB, then {late} kB");
    assert!(busy > 0 && late < early + early / 4 + 8 * 1024);
    until("one submit is answered busy", LONG, || {
        let lines: Vec<String> = (0..500).map(|_| multiply(fresh_id())).collect();
        submit(&node.admin(), &lines).unwrap();
        let raw = raw_answer(&node.admin(), &multiply(fresh_id()));
        let busy = raw.starts_with("HTTP/1.1 503") && raw.to_lowercase().contains("retry-after: ");
        busy.then_some(()).ok_or(raw)
    });
}

fn raw_answer(address: &str, body: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_task_sent_again_under_its_id_across_a_fail_over_is_one_task() {
    let mut cluster = Cluster::start_with(3, &ROOMY);
    let ids: Vec<TaskId> = (0..200).map(|_| fresh_id()).collect();
    let lines: Vec<String> = ids.iter().map(|id| multiply(*id)).collect();
    for _ in 0..2 {
        let (master, _) = until("a master", LONG, || {
            let seen = cluster.nodes.iter().find_map(|n| n.master());
            seen.ok_or("none".to_owned())
        });
        let other = cluster
            .nodes
            .iter()
            .find(|n| n.name != master)
            .unwrap()
            .admin();
        // It may be the one that was started a moment ago.
        until("an answer", LONG, || {
            submit(&other, &lines).ok_or("none".to_owned())
        });
        // A node that has just begun to recover dies as well.
        cluster.node_mut(&master).restart();
        let sent = until("all are acknowledged again", LONG, || {
            let answers = submit(&other, &lines).ok_or("no answer")?;
            answers
                .into_iter()
                .collect::<Result<BTreeSet<String>, String>>()
        });
        assert_eq!(sent.len(), 200);
    }
    cluster.wait_whole();
    let acknowledged = ids.iter().map(TaskId::to_string).collect();
    let tasks = check_all_done(&cluster.nodes[0], &acknowledged);
    assert_eq!(tasks.len(), 200, "one task for each id");
    let old = TaskId::new(1_000_000, &mut rand::rng());
    let answer = request(
        &cluster.nodes[0].admin(),
        "POST",
        "/v1/tasks",
        &multiply(old),
    )
    .unwrap();
    assert_eq!(
        (answer.0, &answer.1["error"]["code"]),
        (410, &json!("expired"))
    );
}

#[test]
fn tasks_are_submitted_cancelled_and_tried_again_on_the_command_line() {
    let cluster = Cluster::start_with(2, &ROOMY);
    let node = &cluster.nodes[0];
    let json = |args: &[&str]| -> Value {
        let output = node.cli(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{args:?}: {output:?}"))
    };
    let done = json(&["--json", "submit", "multiply", r#"{"number": 5}"#, "--wait"]);
    assert_eq!(
        (&done["state"], &done["output"]["result"]),
        (&json!("done"), &json!(15))
    );
    assert!(done["durable"] == true && done["idempotent_until"].is_string());
    let later = json(&[
        "--json",
        "submit",
        "multiply",
        r#"{"number": 5}"#,
        "--delay",
        "1h",
    ]);
    let id = later["id"].as_str().unwrap();
    let cancelled = json(&["--json", "tasks", "cancel", id]);
    assert_eq!(cancelled["state"], "cancelled");
    assert!(cancelled["not_before"].is_string());
    let refused = node.cli(&["tasks", "retry", id]);
    assert_eq!(refused.status.code(), Some(1));
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("only a dead task"), "{words}");
    let none = node.cli(&["tasks", "cancel", &fresh_id().to_string()]);
    assert_eq!(none.status.code(), Some(3));
}

#[test]
fn kill_everything_and_start_again_and_every_acknowledged_task_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let port = support::free_port();
    let url = format!("http://127.0.0.1:{port}");
    let ports = support::free_ports(4);
    let mut acknowledged = BTreeSet::new();
    let mut tasks = BTreeMap::new();
    let mut generations = BTreeSet::new();
    for round in 0..3 {
        let mut registry = on_disk(dir.path(), port);
        let mut nodes: Vec<Node> = [("n1", ports), ("n2", ports + 2)]
            .iter()
            .map(|(name, port)| Node::start_at(name, &url, *port, &ROOMY))
            .collect();
        nodes[0].wait_members(&["n1", "n2"], LONG);
        let (_, epoch) = until("a master", LONG, || {
            nodes[0].master().ok_or("none".to_owned())
        });
        generations.insert(epoch.split('-').next().unwrap().to_owned());
        if round == 2 {
            tasks = check_all_done(&nodes[0], &acknowledged);
            continue;
        }
        let client = Client::start(nodes.iter().map(Node::admin).collect(), 400);
        std::thread::sleep(Duration::from_secs(2));
        // All at once, with work in flight.
        registry.kill();
        let (heard, stop) = (Arc::clone(&client.acknowledged), Arc::clone(&client.stop));
        for node in &mut nodes {
            node.process.kill();
        }
        acknowledged.extend(heard.lock().unwrap().iter().cloned());
        stop.store(true, Ordering::Relaxed);
        drop(client);
        println!(
            "round {round}: {} acknowledged when everything was killed",
            acknowledged.len()
        );
    }
    assert!(acknowledged.len() > 200, "{}", acknowledged.len());
    let (attempts, _) = executions(&tasks);
    println!(
        "{} tasks found, {attempts} attempts in their receipts",
        tasks.len()
    );
    assert_eq!(
        generations.len(),
        1,
        "it is the same registry: {generations:?}"
    );
    let second = std::process::Command::new(support::TROUPE)
        .args([
            "registry",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            "/proc/nowhere",
        ])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(78), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("/proc/nowhere"));
}

#[test]
fn the_durable_tasks_of_the_embedded_registry_go_on_with_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let port = support::free_port();
    let embedded = format!("http://127.0.0.1:{port}");
    let _registry = on_disk(dir.path(), port);
    let etcd = support::Etcd::start();
    let copy = |to: &str| {
        let copied = std::process::Command::new(support::TROUPE)
            .args(["registry", "copy", "--from", &embedded, "--to", to])
            .output()
            .unwrap();
        let said = [copied.stdout, copied.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        println!("{said}");
        (copied.status.code(), said)
    };
    let mut node = Node::start_with("n1", &embedded, &ROOMY);
    node.wait_members(&["n1"], LONG);
    let ids: Vec<TaskId> = (0..300).map(|_| fresh_id()).collect();
    let task = |id: &TaskId| {
        json!({"id": id, "job": "multiply", "input": {"number": 42}, "delay": "5s"}).to_string()
    };
    let lines: Vec<String> = ids.iter().map(task).collect();
    let answers = until("they are acknowledged", LONG, || {
        let answers = submit(&node.admin(), &lines).ok_or("no answer")?;
        answers.into_iter().collect::<Result<BTreeSet<_>, _>>()
    });
    assert_eq!(answers.len(), 300);
    let (code, said) = copy(&etcd.url());
    assert_eq!(code, Some(1));
    assert!(
        said.contains("is registered in the registry to copy from"),
        "{said}"
    );
    node.process.signal(Signal::TERM);
    assert_eq!(node.process.wait(LONG), Some(0));
    assert_eq!(copy(&etcd.url()).0, Some(0));
    // Interrupted and done again, it is the same.
    assert_eq!(copy(&etcd.url()).0, Some(0));
    let node = Node::start_with("n2", &etcd.url(), &ROOMY);
    node.wait_members(&["n2"], LONG);
    assert_eq!(copy(&etcd.url()).0, Some(1), "a node is registered there");
    let tasks = check_all_done(&node, &answers);
    assert_eq!(tasks.len(), 300);
    let mine = json!({"job": "noop", "input": 1}).to_string();
    assert!(request(&node.admin(), "POST", "/v1/tasks", &mine).is_some());
    drop(node);
    let own = support::Etcd::start();
    own.say(&["put", "/troupe/journal/0-0/1", "x"]);
    let (code, said) = copy(&own.url());
    assert_eq!(code, Some(1));
    assert!(said.contains("a journal of its own"), "{said}");
}
