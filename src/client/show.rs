//! ● Answers as people read them. Pure: the time comes as an argument.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use troupe_actors::admin::{
    ActorsView, FailureView, MasterView, MemberView, MembersView, StatusView,
};
use troupe_actors::master::{AttemptView, TaskView};
use troupe_actors::registry::{KeyView, RegistrySnapshot};

use super::say::{Table, Text};

/// Characters of a JSON value in a cell.
const CELL: usize = 40;

pub(super) fn members(view: &MembersView, now: SystemTime) -> Table {
    let mut table = Table::new([
        "NAME", "STATE", "ROLE", "ADDRESS", "ADMIN", "RUNNING", "WEIGHT", "RTT", "IN STATE", "UP",
        "HOST", "VERSION",
    ]);
    for m in &view.members {
        let running = m.running.map_or("?".to_owned(), |n| n.to_string());
        table.row([
            m.name.clone(),
            state(m),
            role(m).to_owned(),
            m.address.clone(),
            m.admin.clone(),
            format!("{running}/{}", m.capacity),
            m.weight.to_string(),
            m.rtt_us.map(micros).unwrap_or_default(),
            ago(&m.since, now),
            ago(&m.started_at, now),
            m.host.clone(),
            m.version.clone(),
        ]);
    }
    table
}

/// An open node is not to be overlooked.
fn state(member: &MemberView) -> String {
    match member.insecure {
        true => format!("{}, INSECURE", member.state),
        false => member.state.clone(),
    }
}

fn role(member: &MemberView) -> &'static str {
    match (member.master, member.eligible) {
        (true, _) => "master",
        (false, true) => "worker",
        (false, false) => "worker, not eligible",
    }
}

pub(super) fn status(view: &StatusView, now: SystemTime) -> Text {
    let master = match &view.master {
        Some(m) if view.leading => {
            format!("this node, under {}, for {}", m.epoch, ago(&m.since, now))
        }
        Some(m) => format!("{}, under {}, for {}", m.name, m.epoch, ago(&m.since, now)),
        None => "nobody".to_owned(),
    };
    let worker = view.worker.as_ref().map(|w| {
        let held = w.unacknowledged;
        format!(
            "{}/{} running, {} finished, {held} not acknowledged",
            w.running, w.capacity, w.finished
        )
    });
    let unknown = || "unknown".to_owned();
    let mut lines = vec![
        (
            "node",
            format!("{} ({}) at {}", view.node, view.id, view.address),
        ),
        ("cluster", view.cluster.clone()),
        ("version", view.version.clone()),
        ("up", span(Duration::from_secs(view.uptime_s))),
        (
            "registered",
            match view.incarnation {
                0 => "no".to_owned(),
                n => format!("as incarnation {n}"),
            },
        ),
        ("master", master),
        ("members", counts(&view.members)),
        (
            "registry",
            view.registry.as_ref().map_or_else(unknown, registry),
        ),
        ("tasks", view.tasks.as_ref().map_or_else(unknown, counts)),
        ("worker", worker.unwrap_or_else(unknown)),
    ];
    if !view.unanswered.is_empty() {
        lines.push(("silent", view.unanswered.join(", ")));
    }
    pairs(&lines)
}

fn registry(registry: &RegistrySnapshot) -> String {
    let state = if registry.up { "up" } else { "away" };
    let since = span(Duration::from_secs(registry.since_s));
    let mut text = format!("{state} for {since} at {}", registry.endpoints.join(", "));
    if let Some(version) = &registry.version {
        text.push_str(&format!(", version {version}"));
    }
    if let Some(left) = registry.lease_remaining_s {
        text.push_str(&format!(", lease {left} s left"));
    }
    if let Some(err) = registry.last_error.as_ref().filter(|_| !registry.up) {
        text.push_str(&format!(" ({err})"));
    }
    text
}

pub(super) fn master(view: &MasterView, now: SystemTime) -> Table {
    let mut table = Table::new(["NAME", "EPOCH", "FOR", "ADDRESS", "ID"]);
    table.row([
        view.name.clone(),
        view.epoch.clone(),
        ago(&view.since, now),
        view.address.clone(),
        view.id.to_string(),
    ]);
    table
}

pub(super) fn failure(view: &FailureView) -> String {
    let who = format!("{} of {}", view.actor, view.node);
    match (&view.failure, &view.trace) {
        (None, _) => format!("{who} has not failed"),
        (Some(failure), None) => format!("{who}: {failure}"),
        (Some(failure), Some(trace)) => format!("{who}: {failure}\n{trace}"),
    }
}

pub(super) fn actors(view: &ActorsView) -> Table {
    let mut table = Table::new([
        "NODE",
        "ACTOR",
        "STATE",
        "RESTARTS",
        "MAILBOX",
        "HANDLED",
        "UP",
        "LAST FAILURE",
    ]);
    for node in &view.nodes {
        if let Some(state) = &node.state {
            let unknown = String::new;
            table.row([
                node.node.clone(),
                unknown(),
                state.clone(),
                unknown(),
                unknown(),
                unknown(),
                unknown(),
                node.error.clone().unwrap_or_default(),
            ]);
        }
        for a in &node.actors {
            table.row([
                node.node.clone(),
                a.name.clone(),
                a.state.clone(),
                a.restarts.to_string(),
                a.mailbox.map(|n| n.to_string()).unwrap_or_default(),
                a.handled.to_string(),
                span(Duration::try_from_secs_f64(a.uptime_s).unwrap_or_default()),
                cut(a.last_failure.as_deref().unwrap_or_default(), 2 * CELL),
            ]);
        }
    }
    table
}

pub(super) fn tasks(tasks: &[TaskView], now: SystemTime) -> Table {
    let mut table = Table::new([
        "ID", "JOB", "STATE", "ATTEMPTS", "NODE", "AGE", "INPUT", "OUTPUT",
    ]);
    for t in tasks {
        let node = t.attempts.last().map(|a| a.node.clone());
        let output = match (&t.output, &t.error) {
            (Some(output), _) => output.to_string(),
            (None, error) => error.clone().unwrap_or_default(),
        };
        table.row([
            t.id.to_string(),
            t.job.clone(),
            t.state.clone(),
            t.attempts.len().to_string(),
            node.unwrap_or_default(),
            ago(&t.created, now),
            cut(&t.input.to_string(), CELL),
            cut(&output, CELL),
        ]);
    }
    table
}

pub(super) fn task(task: &TaskView, now: SystemTime) -> Text {
    let mut lines = vec![
        ("id", task.id.to_string()),
        ("job", task.job.clone()),
        ("state", task.state.clone()),
        (
            "created",
            format!("{} ({} ago)", task.created, ago(&task.created, now)),
        ),
        ("input", task.input.to_string()),
    ];
    if let Some(finished) = &task.finished {
        lines.push((
            "finished",
            format!("{finished} ({} ago)", ago(finished, now)),
        ));
    }
    if let Some(output) = &task.output {
        lines.push(("output", output.to_string()));
    }
    if let Some(error) = &task.error {
        lines.push(("error", error.clone()));
    }
    if task.stale {
        lines.push(("stale", "this answer may be old".to_owned()));
    }
    let mut parts = vec![pairs(&lines)];
    if !task.attempts.is_empty() {
        parts.push(Text::Plain(String::new()));
        parts.push(attempts(&task.attempts).into());
    }
    if !task.refused.is_empty() {
        let mut refused = Table::new(["REFUSED", "EPOCH", "NODE", "WHY"]);
        for r in &task.refused {
            refused.row([
                r.n.to_string(),
                r.epoch.clone(),
                r.node.clone(),
                r.why.clone(),
            ]);
        }
        parts.push(Text::Plain(String::new()));
        parts.push(refused.into());
    }
    Text::Parts(parts)
}

fn attempts(attempts: &[AttemptView]) -> Table {
    let mut table = Table::new(["ATTEMPT", "EPOCH", "NODE", "OUTCOME", "STARTED", "FINISHED"]);
    for a in attempts {
        table.row([
            a.n.to_string(),
            a.epoch.clone(),
            a.node.clone(),
            a.outcome.clone(),
            a.started.clone().unwrap_or_default(),
            a.finished.clone().unwrap_or_default(),
        ]);
    }
    table
}

pub(super) fn receipts(receipts: &[Value]) -> Text {
    let mut table = Table::new(["ID", "STATE"]);
    for receipt in receipts {
        let text = |key: &str| receipt[key].as_str().unwrap_or_default().to_owned();
        table.row([text("id"), text("state")]);
    }
    table.into()
}

pub(super) fn keys(keys: &[KeyView]) -> Table {
    let mut table = Table::new([
        "KEY", "OWNER", "TTL", "LEASE", "CREATED", "CHANGED", "STALE", "VALUE",
    ]);
    for key in keys {
        let lease = match key.lease {
            0 => String::new(),
            lease => format!("{lease:x}"),
        };
        table.row([
            key.key.clone(),
            key.owner.clone().unwrap_or_default(),
            key.ttl_s.map(|s| format!("{s}s")).unwrap_or_default(),
            lease,
            key.create_revision.to_string(),
            key.mod_revision.to_string(),
            key.stale.clone().unwrap_or_default(),
            cut(&plain(&key.value), CELL),
        ]);
    }
    table
}

pub(super) fn values(keys: &[KeyView]) -> String {
    let lines = keys
        .iter()
        .map(|key| format!("{}\n{}", key.key, plain(&key.value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// A string without its quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn pairs(lines: &[(&str, String)]) -> Text {
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines = lines
        .iter()
        .map(|(key, value)| format!("{key:<width$}  {value}"));
    Text::Plain(lines.collect::<Vec<_>>().join("\n"))
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    let shown = counts.iter().filter(|(_, n)| **n > 0);
    let shown: Vec<_> = shown.map(|(state, n)| format!("{n} {state}")).collect();
    match shown.as_slice() {
        [] => "none".to_owned(),
        shown => shown.join(", "),
    }
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// How long ago, roughly; nothing for what is no time.
pub(super) fn ago(rfc3339: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(rfc3339) {
        // Clocks of two machines differ: the future is now.
        Ok(then) => span(now.duration_since(then).unwrap_or_default()),
        Err(_) => String::new(),
    }
}

/// A time span by its largest unit that has at least two of it, so that it is right within a half.
fn span(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0 => format!("{}ms", time.as_millis()),
        1..120 => format!("{s}s"),
        120..7_200 => format!("{}m", s / 60),
        7_200..172_800 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..1_000_000 => format!("{:.1}ms", us as f64 / 1_000.0),
        _ => format!("{:.1}s", us as f64 / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> SystemTime {
        humantime::parse_rfc3339("2026-01-01T01:00:00.000Z").unwrap()
    }

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[track_caller]
    fn golden(text: impl Into<Text>, expected: &str) {
        let got = text.into().render(false);
        let expected = expected.trim_start_matches('\n');
        let margin = expected.len() - expected.trim_start().len();
        let lines = expected.lines().map(|l| l.get(margin..).unwrap_or(""));
        let expected = lines.collect::<Vec<_>>().join("\n");
        assert_eq!(got, expected.trim_end(), "got:\n{got}\n");
    }

    #[test]
    fn members_are_a_row_each() {
        let member = |name: &str, master: bool| {
            json!({
                "name": name, "id": "00000000000000000000000000000001", "address": "10.0.0.1:22222", "admin": "127.0.0.1:22223",
                "incarnation": 7, "state": "alive", "master": master, "weight": 0, "eligible": true, "jobs": ["multiply"],
                "tags": {}, "capacity": 8, "running": if master { Value::Null } else { json!(3) }, "version": "0.1.0",
                "host": "node-a", "pid": 9, "since": "2026-01-01T00:59:00.000Z", "started_at": "2025-12-31T01:00:00.000Z",
                "session": true, "rtt_us": if master { Value::Null } else { json!(1234) }, "lag_us": 0, "registry": true, "unheard": []
            })
        };
        let members_json = json!({"revision": 1, "members": [member("brave-lion", true), member("odd-cat", false)]});
        golden(
            members(&read(members_json), now()),
            "
            NAME        STATE  ROLE    ADDRESS         ADMIN            RUNNING  WEIGHT  RTT    IN STATE  UP   HOST    VERSION
            brave-lion  alive  master  10.0.0.1:22222  127.0.0.1:22223  ?/8      0       -      60s       24h  node-a  0.1.0
            odd-cat     alive  worker  10.0.0.1:22222  127.0.0.1:22223  3/8      0       1.2ms  60s       24h  node-a  0.1.0
            ",
        );
    }

    #[test]
    fn a_status_is_a_line_per_fact() {
        let view = json!({
            "node": "odd-cat", "id": "00000000000000000000000000000002", "cluster": "troupe", "address": "10.0.0.2:22222",
            "version": "0.1.0", "started_at": "2026-01-01T00:00:00.000Z", "uptime_s": 3600, "incarnation": 12, "revision": 40,
            "epoch": "5-9", "master": {"name": "brave-lion", "id": "00000000000000000000000000000001", "address": "a",
            "epoch": "5-9", "since": "2026-01-01T00:59:59.500Z"}, "leading": false, "members": {"alive": 2, "suspect": 1},
            "registry": {"endpoints": ["http://127.0.0.1:2379"], "up": false, "since_s": 5, "version": "3.4.23",
            "incarnation": 12, "lease_remaining_s": 61, "revision": 40, "last_error": "refused"},
            "tasks": null, "worker": {"running": 1, "unacknowledged": 0, "capacity": 8, "started": 4, "finished": 3, "epoch": "5-9"},
            "unanswered": ["master"]
        });
        golden(
            status(&read(view), now()),
            "
            node        odd-cat (00000000000000000000000000000002) at 10.0.0.2:22222
            cluster     troupe
            version     0.1.0
            up          60m
            registered  as incarnation 12
            master      brave-lion, under 5-9, for 500ms
            members     2 alive, 1 suspect
            registry    away for 5s at http://127.0.0.1:2379, version 3.4.23, lease 61 s left (refused)
            tasks       unknown
            worker      1/8 running, 3 finished, 0 not acknowledged
            silent      master
            ",
        );
    }

    #[test]
    fn the_master_and_the_actors_are_tables() {
        let view = json!({"name": "odd-cat", "id": "00000000000000000000000000000002", "address": "a:1", "epoch": "5-9", "since": "2026-01-01T00:00:00.000Z"});
        golden(
            master(&read(view), now()),
            "
            NAME     EPOCH  FOR  ADDRESS  ID
            odd-cat  5-9    60m  a:1      00000000000000000000000000000002
            ",
        );
        let view = json!({"nodes": [
            {"node": "odd-cat", "actors": [
                {"name": "master", "state": "running", "restarts": 2, "last_failure": "panicked\nat x", "mailbox": 0, "handled": 9, "uptime_s": 1.5},
                {"name": "admin", "state": "hung", "restarts": 0, "last_failure": null, "mailbox": null, "handled": 1, "uptime_s": 7200.0}]},
            {"node": "brave-lion", "actors": [], "state": "unreachable", "error": "no session to that node"}
        ]});
        golden(
            actors(&read(view)),
            "
            NODE        ACTOR   STATE        RESTARTS  MAILBOX  HANDLED  UP  LAST FAILURE
            odd-cat     master  running      2         0        9        1s  panicked at x
            odd-cat     admin   hung         0         -        1        2h  -
            brave-lion  -       unreachable  -         -        -        -   no session to that node
            ",
        );
    }

    fn a_task() -> TaskView {
        read(json!({
            "id": "0190a000-0000-7000-8000-000000000000", "job": "multiply", "input": {"number": 42}, "state": "done",
            "attempts": [
                {"n": 1, "epoch": "5-7", "node": "brave-lion", "started": null, "finished": null, "outcome": "lost"},
                {"n": 2, "epoch": "5-9", "node": "odd-cat", "started": "2026-01-01T00:59:01.000Z", "finished": "2026-01-01T00:59:02.000Z", "outcome": "done"}],
            "output": 126, "error": null, "created": "2026-01-01T00:59:00.000Z", "finished": "2026-01-01T00:59:02.000Z",
            "durable": false, "idempotent_until": null,
            "refused": [{"n": 1, "epoch": "5-7", "node": "brave-lion", "why": "superseded"}], "stale": false
        }))
    }

    #[test]
    fn tasks_are_a_row_each_and_one_is_told_whole() {
        golden(
            tasks(&[a_task()], now()),
            "
            ID                                    JOB       STATE  ATTEMPTS  NODE     AGE  INPUT          OUTPUT
            0190a000-0000-7000-8000-000000000000  multiply  done   2         odd-cat  60s  {\"number\":42}  126
            ",
        );
        golden(
            task(&a_task(), now()),
            "
            id        0190a000-0000-7000-8000-000000000000
            job       multiply
            state     done
            created   2026-01-01T00:59:00.000Z (60s ago)
            input     {\"number\":42}
            finished  2026-01-01T00:59:02.000Z (58s ago)
            output    126

            ATTEMPT  EPOCH  NODE        OUTCOME  STARTED                   FINISHED
            1        5-7    brave-lion  lost     -                         -
            2        5-9    odd-cat     done     2026-01-01T00:59:01.000Z  2026-01-01T00:59:02.000Z

            REFUSED  EPOCH  NODE        WHY
            1        5-7    brave-lion  superseded
            ",
        );
    }

    #[test]
    fn keys_are_a_row_each_and_values_are_whole() {
        let view: Vec<KeyView> = read(json!([
            {"key": "/troupe/master", "value": {"id": "x".repeat(60)}, "create_revision": 1, "mod_revision": 2, "lease": 255, "ttl_s": 100, "owner": "odd-cat", "stale": null},
            {"key": "/troupe/names/a", "value": "text", "create_revision": 3, "mod_revision": 3, "lease": 0, "ttl_s": null, "owner": null, "stale": "owner is not registered"}
        ]));
        golden(
            keys(&view),
            "
            KEY              OWNER    TTL   LEASE  CREATED  CHANGED  STALE                    VALUE
            /troupe/master   odd-cat  100s  ff     1        2        -                        {\"id\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
            /troupe/names/a  -        -     -      3        3        owner is not registered  text
            ",
        );
        assert!(values(&view).ends_with("/troupe/names/a\ntext"));
    }

    #[test]
    fn spans_are_rough_and_clocks_may_differ() {
        for (s, text) in [
            (0, "0ms"),
            (119, "119s"),
            (120, "2m"),
            (7200, "2h"),
            (172_800, "2d"),
        ] {
            assert_eq!(span(Duration::from_secs(s)), text);
        }
        assert_eq!(ago("2030-01-01T00:00:00.000Z", now()), "0ms");
        assert_eq!(ago("soon", now()), "");
    }
}
