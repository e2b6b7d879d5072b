//! `troupe debug`: what all members know, gathered into one JSON value for whoever looks for a fault.
//!
//! Inputs and outputs of tasks are left out, and values of the journal: they belong to others. Secrets are not in what the nodes
//! answer; a test holds that.

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};
use troupe_actors::admin::MembersView;

use super::api::{Api, Failure, query};
use super::read;
use super::say::Screen;

/// Fields of a record that are a task's own.
const PAYLOADS: [&str; 3] = ["input", "output", "number"];

pub(super) async fn debug(api: &Api, screen: &Screen, out: Option<&Path>) -> Result<(), Failure> {
    // Before anything is asked: an old bundle is never overwritten.
    let file = out.map(|path| {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path);
        file.map_err(|why| Failure::Usage(format!("--out {}: {why}", path.display())))
    });
    let file = file.transpose()?;
    let view: MembersView = read(api.get("/v1/members").await?)?;
    let mut nodes = Map::new();
    for member in &view.members {
        nodes.insert(member.name.clone(), of_node(api, &member.name).await);
    }
    let bundle = json!({
        "bundle": 1,
        "made": crate::logging::now(),
        "by": { "version": env!("CARGO_PKG_VERSION"), "asked": api.url() },
        "members": view,
        "master": asked(api, "/v1/master").await,
        "ledger": asked(api, "/v1/master/ledger").await,
        "why_master": without_payloads(asked(api, "/v1/why/master").await),
        "registry": without_values(asked(api, "/v1/registry?prefix=").await),
        "logs": without_payloads(asked(api, "/v1/logs?follow=false&limit=10000").await),
        "decisions": without_payloads(asked(api, "/v1/logs?follow=false&decisions=true&limit=10000").await),
        "nodes": nodes,
    });
    match (file, out) {
        (Some(mut file), Some(path)) => {
            let written = writeln!(file, "{bundle:#}").and_then(|()| file.sync_all());
            written.map_err(|why| Failure::Usage(format!("--out {}: {why}", path.display())))?;
            let value = json!({ "file": path, "nodes": view.members.len() });
            screen.value(&value, || {
                format!("{}: {} nodes", path.display(), view.members.len())
            })
        }
        _ => screen.line(&bundle.to_string()),
    }
}

async fn of_node(api: &Api, name: &str) -> Value {
    let at = |path: &str| query(path, &[("node", Some(name))]);
    asked(api, &at("/v1/debug")).await
}

/// An answer, or why there is none: half a bundle is better than none.
async fn asked(api: &Api, path: &str) -> Value {
    match api.get(path).await {
        Ok(answer) => answer.0,
        Err(failure) => json!({ "error": failure.words().unwrap_or_default() }),
    }
}

fn without_payloads(mut answer: Value) -> Value {
    let records = answer.get_mut("records").and_then(Value::as_array_mut);
    for record in records.into_iter().flatten() {
        if let Some(fields) = record.as_object_mut() {
            fields.retain(|key, _| !PAYLOADS.contains(&key.as_str()));
        }
    }
    answer
}

/// The journal's values are tasks.
fn without_values(mut answer: Value) -> Value {
    let keys = answer.get_mut("keys").and_then(Value::as_array_mut);
    for key in keys.into_iter().flatten() {
        let journal = key["key"]
            .as_str()
            .is_some_and(|key| key.contains("/journal/"));
        if journal {
            key["value"] = json!("(a segment of the journal)");
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_tasks_is_left_out() {
        let logs =
            json!({"records": [{"event": "task.finished", "output": "secret", "task": "t"}]});
        let logs = without_payloads(logs).to_string();
        assert!(
            logs.contains("task.finished") && !logs.contains("secret"),
            "{logs}"
        );
        let keys = json!({"keys": [{"key": "/troupe/journal/1/2", "value": "secret"}, {"key": "/troupe/master", "value": {"id": 1}}]});
        let keys = without_values(keys);
        assert!(!keys.to_string().contains("secret"));
        assert_eq!(keys["keys"][1]["value"]["id"], 1);
    }
}
