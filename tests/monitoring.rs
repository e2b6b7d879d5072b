//! What Prometheus and Grafana are given, checked by promtool: the metrics page of live nodes, the alert rules and their unit tests, every
//! expression of the Grafana dashboard, and that each metric that is asked for is there.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::{Cluster, LONG, until};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/monitoring")
        .join(name)
}

/// Whether promtool is here; says that the test is skipped when not.
fn has_promtool() -> bool {
    let here = Command::new("promtool").arg("--version").output().is_ok();
    if !here {
        eprintln!("SKIPPED: promtool (Debian: prometheus) is not installed");
    }
    here
}

fn promtool(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new("promtool")
        .args(args)
        .current_dir(file(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = child.stdin.take().unwrap();
    let text = stdin.to_owned();
    let writer = std::thread::spawn(move || to.write_all(text.as_bytes()).ok());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn assert_fine(output: &Output, what: &str) {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&said)
    );
}

/// Names of metrics in an expression.
fn metrics_in(expr: &str) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expr.split(|c| !word(c));
    let ours = words.filter(|w| w.starts_with("troupe_") || w.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// Every expression of the Grafana dashboard, with variables as Grafana fills them in.
fn expressions() -> Vec<String> {
    let text = std::fs::read_to_string(file("grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|p| p["targets"].as_array().unwrap());
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    let all = targets
        .chain(annotations)
        .map(|t| t["expr"].as_str().unwrap());
    all.map(|expr| expr.replace("$instance", ".*")).collect()
}

fn alert_expressions() -> Vec<String> {
    let text = std::fs::read_to_string(file("alerts.yaml")).unwrap();
    let lines = text.lines().filter_map(|l| l.trim().strip_prefix("expr: "));
    lines.map(str::to_owned).collect()
}

/// The page of a node, as text.
fn page(node: &support::Node) -> String {
    match node.get("/metrics") {
        Some((200, Value::String(text))) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn live_metrics_are_well_formed_and_have_all_that_is_promised_and_asked_for() {
    let cluster = Cluster::start(2);
    let master = cluster.node("n1");
    for (job, durable) in [("noop", true), ("noop", false), ("a \"job\"\\", true)] {
        let task = json!({"job": job, "input": 1, "durable": durable, "require": {}});
        assert_eq!(master.post("/v1/tasks", &task.to_string()).unwrap().0, 202);
    }
    let text = until("durable and ephemeral tasks are counted", LONG, || {
        let text = page(master);
        let done = "troupe_tasks_total{job=\"noop\",outcome=\"done\"} 2";
        let commits = !text.contains("troupe_journal_commit_seconds_count 0");
        match text.contains(done) && commits {
            true => Ok(text),
            false => Err(text),
        }
    });
    // As SURFACE names them.
    for name in [
        "troupe_build_info",
        "troupe_has_master",
        "troupe_epoch",
        "troupe_master_changes_total",
        "troupe_members",
        "troupe_heartbeat_lag_seconds",
        "troupe_peer_rtt_seconds",
        "troupe_actor_restarts_total",
        "troupe_mailbox_depth",
        "troupe_tasks_total",
        "troupe_tasks_queued",
        "troupe_tasks_running",
        "troupe_task_wait_seconds",
        "troupe_task_run_seconds",
        "troupe_refused_total",
        "troupe_journal_commit_seconds",
        "troupe_registry_up",
        "troupe_lease_remaining_seconds",
    ] {
        assert!(
            text.contains(&format!("# TYPE {name} ")),
            "{name} is not there:\n{text}"
        );
    }
    let there: BTreeSet<String> = metrics_in(&text).into_iter().collect();
    for expr in expressions().into_iter().chain(alert_expressions()) {
        for name in metrics_in(&expr) {
            assert!(there.contains(&name), "{name} of {expr} is not on the page");
        }
    }
    let worker = page(cluster.node("n2"));
    if has_promtool() {
        for text in [&text, &worker] {
            assert_fine(&promtool(&["check", "metrics"], text), "check metrics");
        }
    }
}

#[test]
fn alert_rules_are_right_and_fire_for_what_they_are_for() {
    if has_promtool() {
        assert_fine(
            &promtool(&["check", "config", "prometheus.yaml"], ""),
            "prometheus.yaml",
        );
        assert_fine(
            &promtool(&["check", "rules", "alerts.yaml"], ""),
            "alerts.yaml",
        );
        assert_fine(
            &promtool(&["test", "rules", "alerts_test.yaml"], ""),
            "alerts_test.yaml",
        );
    }
    // Each alert has a test in which it fires.
    let tests = std::fs::read_to_string(file("alerts_test.yaml")).unwrap();
    let rules = std::fs::read_to_string(file("alerts.yaml")).unwrap();
    for alert in rules
        .lines()
        .filter_map(|l| l.trim().strip_prefix("- alert: "))
    {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n          - exp_labels");
        assert!(tests.contains(&fires), "{alert} is not tested");
    }
}

#[test]
fn every_expression_of_the_grafana_dashboard_is_one() {
    let expressions = expressions();
    assert!(expressions.len() > 20, "{}", expressions.len());
    if !has_promtool() {
        return;
    }
    // Older promtools parse expressions only within rules.
    let rules: Vec<Value> = expressions
        .iter()
        .enumerate()
        .map(|(n, expr)| json!({"record": format!("panel:{n}"), "expr": expr}))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("panels.yaml");
    let groups = json!({"groups": [{"name": "panels", "rules": rules}]});
    std::fs::write(&path, groups.to_string()).unwrap();
    let output = promtool(&["check", "rules", path.to_str().unwrap()], "");
    assert_fine(&output, "grafana.json");
}
