//! Tables for people: aligned columns, no frames.

use std::io::IsTerminal;

use serde_json::{Value, json};

/// Whether to use colour.
pub(super) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Columns as wide as their widest cell, two spaces between.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<String>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(head.iter().map(|h| (*h).to_owned()).collect());
    let rows = rows.iter().map(|row| line(row.clone()));
    std::iter::once(head)
        .chain(rows)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A cell: text as it is, nothing as `-`.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn rows<'a>(
    value: &'a Value,
    key: &str,
    row: impl Fn(&'a Value) -> Vec<String>,
) -> Vec<Vec<String>> {
    value[key]
        .as_array()
        .into_iter()
        .flatten()
        .map(row)
        .collect()
}

fn millis(us: &Value) -> String {
    us.as_f64()
        .map_or_else(|| "-".to_owned(), |us| format!("{:.2}ms", us / 1000.0))
}

pub(super) fn members(value: &Value) -> String {
    let rows = rows(value, "members", |m| {
        let master = if m["master"] == true { "master" } else { "" };
        vec![
            cell(&m["name"]),
            cell(&m["state"]),
            master.to_owned(),
            cell(&m["address"]),
            format!("{}/{}", cell(&m["running"]), cell(&m["capacity"])),
            millis(&m["rtt_us"]),
            cell(&m["weight"]),
            cell(&m["host"]),
            cell(&m["pid"]),
            cell(&m["since"]),
        ]
    });
    table(
        &[
            "NAME", "STATE", "", "ADDRESS", "RUNNING", "RTT", "WEIGHT", "HOST", "PID", "SINCE",
        ],
        &rows,
    )
}

pub(super) fn status(value: &Value) -> String {
    let master = &value["master"];
    let registry = &value["registry"];
    let up = if registry["up"] == true { "up" } else { "away" };
    let lines = [
        (
            "node",
            format!("{} ({})", cell(&value["node"]), cell(&value["id"])),
        ),
        ("cluster", cell(&value["cluster"])),
        (
            "master",
            format!(
                "{} under epoch {}",
                cell(&master["name"]),
                cell(&master["epoch"])
            ),
        ),
        ("members", counts(&value["members"])),
        ("tasks", counts(&value["tasks"])),
        (
            "registry",
            format!(
                "{up}, {} at revision {}",
                cell(&registry["version"]),
                cell(&registry["revision"])
            ),
        ),
        (
            "lease",
            format!("{} s left", cell(&registry["lease_remaining_s"])),
        ),
        ("version", cell(&value["version"])),
        ("uptime", format!("{} s", cell(&value["uptime_s"]))),
    ];
    lines
        .map(|(key, value)| format!("{key:<9} {value}"))
        .join("\n")
}

fn counts(value: &Value) -> String {
    let Some(map) = value.as_object().filter(|m| !m.is_empty()) else {
        return "-".to_owned();
    };
    let counts = map.iter().map(|(key, n)| format!("{n} {key}"));
    counts.collect::<Vec<_>>().join(", ")
}

pub(super) fn master(value: &Value) -> String {
    let row = ["name", "epoch", "address", "since"]
        .map(|key| cell(&value[key]))
        .to_vec();
    table(&["NAME", "EPOCH", "ADDRESS", "SINCE"], &[row])
}

pub(super) fn actors(value: &Value) -> String {
    let nodes = value["nodes"].as_array();
    let rows: Vec<Vec<String>> = nodes
        .into_iter()
        .flatten()
        .flat_map(|node| {
            let name = cell(&node["node"]);
            if let Some(why) = node["error"].as_str() {
                return vec![vec![name, "-".to_owned(), why.to_owned()]];
            }
            rows(node, "actors", |a| {
                vec![
                    name.clone(),
                    cell(&a["name"]),
                    cell(&a["state"]),
                    cell(&a["restarts"]),
                    cell(&a["mailbox"]),
                    cell(&a["handled"]),
                    cell(&a["last_failure"]),
                ]
            })
        })
        .collect();
    table(
        &[
            "NODE",
            "ACTOR",
            "STATE",
            "RESTARTS",
            "MAILBOX",
            "HANDLED",
            "LAST FAILURE",
        ],
        &rows,
    )
}

pub(super) fn tasks(value: &Value) -> String {
    let rows = rows(value, "tasks", |t| {
        let last = t["attempts"].as_array().and_then(|a| a.last());
        vec![
            cell(&t["id"]),
            cell(&t["job"]),
            cell(&t["state"]),
            last.map_or_else(|| "-".to_owned(), |a| cell(&a["node"])),
            last.map_or_else(|| "0".to_owned(), |a| cell(&a["n"])),
            cell(&t["input"]),
            cell(&t["output"]),
        ]
    });
    table(
        &[
            "ID", "JOB", "STATE", "EXECUTOR", "ATTEMPTS", "INPUT", "OUTPUT",
        ],
        &rows,
    )
}

pub(super) fn task(value: &Value) -> String {
    let keys = [
        "id", "job", "state", "input", "output", "error", "created", "finished", "durable",
    ];
    let head = keys
        .map(|key| format!("{key:<9} {}", cell(&value[key])))
        .join("\n");
    let attempts = rows(value, "attempts", |a| {
        ["n", "node", "epoch", "started", "finished", "outcome"]
            .map(|key| cell(&a[key]))
            .to_vec()
    });
    let refused = rows(value, "refused", |r| {
        ["n", "node", "epoch", "why"]
            .map(|key| cell(&r[key]))
            .to_vec()
    });
    let mut text = format!(
        "{head}\n\n{}",
        table(
            &["N", "NODE", "EPOCH", "STARTED", "FINISHED", "OUTCOME"],
            &attempts
        )
    );
    if !refused.is_empty() {
        text.push_str(&format!(
            "\n\nrefused results\n{}",
            table(&["N", "NODE", "EPOCH", "WHY"], &refused)
        ));
    }
    text
}

fn key_row(k: &Value) -> Vec<String> {
    vec![
        cell(&k["key"]),
        cell(&k["owner"]),
        cell(&k["ttl_s"]),
        cell(&k["create_revision"]),
        cell(&k["mod_revision"]),
        cell(&k["stale"]),
    ]
}

const KEY_HEAD: [&str; 6] = ["KEY", "OWNER", "TTL", "CREATED", "MODIFIED", "STALE"];

pub(super) fn keys(value: &Value) -> String {
    table(&KEY_HEAD, &rows(value, "keys", key_row))
}

pub(super) fn keys_with_values(value: &Value) -> String {
    let keys = value["keys"].as_array();
    let shown = keys
        .into_iter()
        .flatten()
        .map(|k| format!("{}\n{}", cell(&k["key"]), cell(&k["value"])));
    shown.collect::<Vec<_>>().join("\n")
}

/// What differs between two readings.
pub(super) fn changes(old: &Value, new: &Value) -> Vec<Value> {
    let find = |all: &Value, key: &Value| {
        let keys = all["keys"].as_array();
        keys.into_iter()
            .flatten()
            .find(|k| k["key"] == *key)
            .cloned()
    };
    let put = new["keys"].as_array().into_iter().flatten().filter(|k| {
        find(old, &k["key"]).is_none_or(|before| before["mod_revision"] != k["mod_revision"])
    });
    let gone = old["keys"].as_array().into_iter().flatten();
    let gone = gone.filter(|k| find(new, &k["key"]).is_none());
    put.map(|k| json!({ "change": "put", "key": k["key"], "value": k["value"], "mod_revision": k["mod_revision"] }))
        .chain(gone.map(|k| json!({ "change": "delete", "key": k["key"] })))
        .collect()
}

pub(super) fn change(value: &Value) -> String {
    format!(
        "{:<6} {} {}",
        cell(&value["change"]),
        cell(&value["key"]),
        value.get("value").map_or_else(String::new, cell)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_absent_values_are_dashes() {
        let value = json!({ "members": [
            { "name": "brave-lion", "state": "alive", "master": true, "address": "10.0.0.1:22222", "running": 2,
              "capacity": 4, "rtt_us": 250, "weight": 0, "host": "a", "pid": 7, "since": "2026-11-23T18:00:00Z" },
            { "name": "x", "state": "suspect", "master": false, "address": "10.0.0.2:22222", "running": null,
              "capacity": 4, "rtt_us": null, "weight": 5, "host": "b", "pid": 8, "since": "2026-11-23T18:00:01Z" },
        ] });
        let expected = "\
NAME        STATE            ADDRESS         RUNNING  RTT     WEIGHT  HOST  PID  SINCE
brave-lion  alive    master  10.0.0.1:22222  2/4      0.25ms  0       a     7    2026-11-23T18:00:00Z
x           suspect          10.0.0.2:22222  -/4      -       5       b     8    2026-11-23T18:00:01Z";
        assert_eq!(members(&value), expected);
    }

    #[test]
    fn a_change_is_a_put_with_another_revision_or_a_key_that_is_gone() {
        let old = json!({ "keys": [{ "key": "a", "mod_revision": 1 }, { "key": "b", "mod_revision": 1 }] });
        let new = json!({ "keys": [{ "key": "a", "mod_revision": 2, "value": 3 }] });
        let changes = changes(&old, &new);
        assert_eq!(
            changes.iter().map(change).collect::<Vec<_>>(),
            ["put    a 3", "delete b "]
        );
    }
}
