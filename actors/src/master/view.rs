//! A task of the ledger as the API shows it. Pure.

use std::time::Duration;

use super::ledger::{State, Task, made_ms};
use super::{AttemptView, RefusalView, TaskView};
use crate::cluster::Cluster;
use crate::id::NodeId;
use crate::time::rfc3339;
use crate::trace;

/// See the module page; names come from the picture, ids stand for nodes that have left.
pub fn view(task: &Task, cluster: Option<&Cluster>, window: Duration) -> TaskView {
    let name = |id: NodeId| {
        let member = cluster.and_then(|c| c.member(id));
        member.map_or_else(|| id.to_string(), |m| m.registration.name.clone())
    };
    let at = |ms: u64| (ms > 0).then(|| rfc3339(ms));
    let attempts = task.tries().iter().map(|t| AttemptView {
        n: t.attempt.n,
        epoch: t.attempt.epoch.to_string(),
        node: name(t.worker.id),
        started: at(t.started_ms),
        finished: at(t.finished_ms),
        outcome: t.ending.as_str().to_owned(),
        placement: None,
    });
    let refused = task.refused().iter().map(|r| RefusalView {
        n: r.attempt.n,
        epoch: r.attempt.epoch.to_string(),
        node: name(r.worker),
        why: r.why.to_string(),
    });
    let (output, error) = match &task.state {
        State::Done(output) => (Some(json(output)), None),
        State::Failed(why) | State::Dead(why) => (None, Some(why.to_string())),
        State::Queued | State::Leased | State::Cancelled => (None, None),
    };
    TaskView {
        id: task.spec.id,
        job: task.spec.job.to_string(),
        input: json(&task.spec.input),
        state: task.state.as_str().to_owned(),
        attempts: attempts.collect(),
        output,
        error,
        created: rfc3339(task.spec.created_ms),
        finished: at(task.finished_ms()),
        durable: task.spec.durable,
        idempotent_until: task
            .spec
            .durable
            .then(|| rfc3339(made_ms(task.spec.id).saturating_add(millis(window)))),
        refused: refused.collect(),
        not_before: at(task.spec.not_before_ms),
        progress: task.progress().map(str::to_owned),
        meta: (*task.spec.meta).clone(),
        trace_id: trace::of(&task.spec.meta).map(str::to_owned),
        excluded: Vec::new(),
        stale: false,
    }
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
