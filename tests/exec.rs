//! Commands as jobs, with real programs: how each ends is said in the receipt, and nothing of it outlives its attempt or its node.

mod support;

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Cluster, LONG, Node, event, until};

/// What the operator declared. `$1` of no script comes from a task: input is on stdin alone.
const JOBS: &str = r#"
[jobs.upper]
command = ["tr", "a-z", "A-Z"]

[jobs.quiet]
command = ["true"]

[jobs.fails]
command = ["sh", "-c", "echo 'no such picture' >&2; exit 3"]

[jobs.second-try]
command = ["sh", "-c", "[ $TROUPE_ATTEMPT -gt 1 ] && echo $TROUPE_ATTEMPT || { echo 'come again' >&2; exit 75; }"]

[jobs.prose]
command = ["echo", "not json"]

[jobs.floods]
command = ["sh", "-c", "sleep 600 & echo $! > flood.pid; yes"]
max_output = 10_000

[jobs.hangs]
command = ["sh", "-c", "sleep 600 & echo $! > hang.pid; trap '' TERM; wait; sleep 600"]
timeout = "300ms"

[jobs.missing]
command = ["/no/such/program"]

[jobs.elsewhere]
command = ["true"]
cwd = "/no/such/place"

[jobs.shot]
command = ["sh", "-c", "kill -9 $$"]

[jobs.tells]
command = ["sh", "-c", "cat >/dev/null; echo \"\\\"$KIND $TROUPE_TASK ${TROUPE_SECURITY_SECRET_FILE-unset}\\\"\""]
env = { KIND = "small" }

# One in the command's group, one that has left it.
[jobs.sleeps]
command = ["sh", "-c", "sleep 600 & echo $! > group.pid; setsid sh -c 'echo $$ > left.pid; exec sleep 600' & echo $$ > self.pid; wait"]

[jobs.one-by-one]
command = ["sh", "-c", "mkdir alone.lock || exit 1; sleep 0.1; rmdir alone.lock"]
concurrency = 1

[jobs.poison]
command = ["sh", "-c", "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat); sleep 600"]
"#;

/// A directory of a test's own: the commands run there and leave their process ids.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let here = format!("cwd = {:?}\n", dir.path());
        let mut file = String::new();
        for job in JOBS.split("\n\n") {
            file.push_str(job.trim());
            file.push('\n');
            if !job.contains("cwd = ") && job.contains("[jobs.") {
                file.push_str(&here);
            }
        }
        std::fs::write(dir.path().join("config.toml"), file).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self) -> Vec<String> {
        let config = self.path("config.toml").display().to_string();
        let set = [
            "generator.enabled=false",
            "worker.delay_min=0ms",
            "worker.delay_max=50ms",
            "master.retry_wait=50ms",
            "master.max_attempts=2",
            "master.max_kills=2",
            "worker.capacity=8",
            "transport.redial_max=1s",
            "node.drain=500ms",
        ];
        let set = set
            .iter()
            .flat_map(|s| ["--set".to_owned(), (*s).to_owned()]);
        ["--config".to_owned(), config]
            .into_iter()
            .chain(set)
            .collect()
    }

    fn cluster(&self, n: usize) -> Cluster {
        let settings = self.settings();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        Cluster::start_with(n, &settings)
    }

    /// The process that wrote its id there.
    fn pid(&self, name: &str) -> u32 {
        until(name, LONG, || {
            let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
            text.trim().parse().map_err(|_| text)
        })
    }
}

/// Whether a process runs; one that has ended and is not yet buried does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let state = stat
        .ok()
        .and_then(|s| Some(s.rsplit(')').next()?.trim().to_owned()));
    state.is_some_and(|state| !state.starts_with('Z'))
}

fn is_gone(what: &str, pid: u32) {
    until(what, LONG, || match runs(pid) {
        true => Err(format!("process {pid} runs")),
        false => Ok(()),
    });
}

fn submit(node: &Node, job: &str, input: &Value) -> String {
    let body = json!({"job": job, "input": input}).to_string();
    let (status, receipt) = node.post("/v1/tasks", &body).unwrap();
    assert!(status < 300, "{status}: {receipt}");
    receipt["id"].as_str().unwrap().to_owned()
}

fn ended(node: &Node, id: &str) -> Value {
    until(&format!("the end of {id}"), LONG, || {
        let (_, task) = node
            .get(&format!("/v1/tasks/{id}?wait=10s"))
            .ok_or("no answer")?;
        match task["state"].as_str() {
            Some("done" | "failed" | "dead" | "cancelled") => Ok(task),
            _ => Err(task.to_string()),
        }
    })
}

#[test]
fn every_way_a_command_ends_is_said_in_the_receipt() {
    let place = Place::new();
    let cluster = place.cluster(1);
    let node = &cluster.nodes[0];
    // Job, state, what its output or its error says.
    let table = [
        ("upper", "done", r#"{"A":"B; RM -RF /"}"#),
        ("quiet", "done", "null"),
        ("second-try", "done", "2"),
        (
            "fails",
            "failed",
            "it ended with 3; it said: no such picture",
        ),
        ("prose", "failed", "its output is not JSON"),
        ("floods", "failed", "it printed more than 10000 bytes"),
        ("missing", "failed", "/no/such/program: No such file"),
        ("elsewhere", "failed", "cannot be started in /no/such/place"),
        ("shot", "dead", "signal 9 ended it"),
        ("hangs", "dead", "it ran longer than its 300ms"),
    ];
    let input = json!({"a": "b; rm -rf /"});
    let ids = table.map(|(job, _, _)| submit(node, job, &input));
    for (id, (job, state, says)) in ids.iter().zip(table) {
        let task = ended(node, id);
        assert_eq!(task["state"], state, "{job}: {task:#}");
        let said = match state {
            "done" => task["output"].to_string(),
            _ => task["error"].to_string(),
        };
        assert!(
            said.contains(says),
            "{job} says {said}, not {says}: {task:#}"
        );
    }
    let told = submit(node, "tells", &input);
    let output = ended(node, &told)["output"].to_string();
    assert_eq!(output, format!("\"small {told} unset\""));
    is_gone("what flooded", place.pid("flood.pid"));
    is_gone("what hung", place.pid("hang.pid"));
}

#[test]
fn no_more_of_a_command_run_side_by_side_than_declared() {
    let place = Place::new();
    let cluster = place.cluster(1);
    let node = &cluster.nodes[0];
    let ids: Vec<String> = (0..6)
        .map(|_| submit(node, "one-by-one", &Value::Null))
        .collect();
    for id in ids {
        let task = ended(node, &id);
        assert_eq!(task["state"], "done", "{task:#}");
    }
}

/// Starts the sleeping command; answers its three processes.
fn sleeping(place: &Place, node: &Node) -> (String, [u32; 3]) {
    let id = submit(node, "sleeps", &Value::Null);
    let pids = ["self.pid", "group.pid", "left.pid"].map(|name| place.pid(name));
    assert!(pids.iter().all(|pid| runs(*pid)));
    (id, pids)
}

#[test]
fn cancel_ends_the_whole_group() {
    let place = Place::new();
    let cluster = place.cluster(1);
    let node = &cluster.nodes[0];
    let (id, pids) = sleeping(&place, node);
    let cancelled = node.cli(&["tasks", "cancel", &id]);
    assert!(cancelled.status.success(), "{cancelled:?}");
    assert_eq!(ended(node, &id)["state"], "cancelled");
    pids.iter()
        .for_each(|pid| is_gone("what was cancelled", *pid));
}

#[test]
fn a_node_that_stops_leaves_no_command_behind() {
    let place = Place::new();
    let mut cluster = place.cluster(1);
    let (_, pids) = sleeping(&place, &cluster.nodes[0]);
    cluster.nodes[0].process.signal(Signal::TERM);
    assert_eq!(cluster.nodes[0].process.wait(LONG), Some(0));
    pids.iter()
        .for_each(|pid| is_gone("what a stopped node ran", *pid));
}

#[test]
fn a_node_that_is_killed_leaves_no_command_behind() {
    let place = Place::new();
    let mut cluster = place.cluster(1);
    let (_, pids) = sleeping(&place, &cluster.nodes[0]);
    cluster.nodes[0].process.kill();
    pids.iter()
        .for_each(|pid| is_gone("what a killed node ran", *pid));
}

#[test]
fn a_task_that_kills_its_workers_is_dead_and_innocents_are_done() {
    let place = Place::new();
    let mut cluster = place.cluster(4);
    let innocents: Vec<String> = (0..40)
        .map(|n| submit(&cluster.nodes[0], "multiply", &json!({"number": n})))
        .collect();
    let poison = submit(&cluster.nodes[0], "poison", &Value::Null);
    let mut killed = 0;
    let task = until("the poison is dead", LONG, || {
        for node in &mut cluster.nodes {
            if !node.process.runs() {
                killed += 1;
                node.restart();
            }
        }
        let (_, task) = cluster.nodes[0]
            .get(&format!("/v1/tasks/{poison}"))
            .ok_or("no answer")?;
        match task["state"].as_str() {
            Some("dead") => Ok(task),
            _ => Err(task.to_string()),
        }
    });
    println!("killed {killed} nodes: {}", task["error"]);
    assert!((1..=3).contains(&killed), "{killed} nodes died: {task:#}");
    for id in &innocents {
        let task = ended(&cluster.nodes[0], id);
        assert_eq!(task["state"], "done", "{task:#}");
    }
    // Whoever died after the last look comes back too.
    for node in &mut cluster.nodes {
        if !node.process.runs() {
            node.restart();
        }
    }
    cluster.wait_whole();
    let master = &cluster.nodes[0];
    master.wait("task.dead", |line| event(line, "task.dead"));
}
