//! `troupe why`: what was decided and on which evidence, as the nodes recorded it.

use serde_json::{Value, json};
use troupe_actors::admin::{MembersView, RecordsView, WhyView};
use troupe_actors::master::{CandidateView, ExcludedView, PlacementView, TaskView};

use super::api::{Api, Failure, query, segment};
use super::read;
use super::say::{Screen, complain};
use crate::cli::WhyCommand;

/// `troupe why …`.
pub(super) async fn why(api: &Api, screen: &Screen, asked: WhyCommand) -> Result<(), Failure> {
    match asked {
        WhyCommand::Node { name } => {
            let path = format!("/v1/why/node/{}", segment(&name));
            recorded(api, screen, &path).await
        }
        WhyCommand::Master => recorded(api, screen, "/v1/why/master").await,
        WhyCommand::Task { id } => task(api, screen, &id).await,
    }
}

async fn recorded(api: &Api, screen: &Screen, path: &str) -> Result<(), Failure> {
    let answer = api.get(path).await?;
    if !screen.json {
        let view: &WhyView = &serde_json::from_value(answer.0.clone())
            .map_err(|why| Failure::Strange(why.to_string()))?;
        for (node, why) in &view.missing {
            complain(&format!("the evidence of {node} is missing: {why}"));
        }
    }
    screen.answer(answer, |view: &WhyView| view.answer.join("\n"))
}

async fn task(api: &Api, screen: &Screen, id: &str) -> Result<(), Failure> {
    let answer = api.get(&format!("/v1/tasks/{}", segment(id))).await?;
    let task: TaskView = read(answer)?;
    let members: MembersView = read(api.get("/v1/members").await?)?;
    let path = query("/v1/logs", &[("task", Some(id)), ("follow", Some("false"))]);
    let log: RecordsView = read(api.get(&path).await?)?;
    let sentences = of_the_task(&task, &members);
    let value = json!({ "question": format!("why is task {id} {}?", task.state), "answer": sentences, "records": log.records, "missing": log.missing });
    screen.value(&value, || sentences.join("\n"))
}

/// ● What a receipt says, in sentences, and who could run it now.
fn of_the_task(task: &TaskView, members: &MembersView) -> Vec<String> {
    let kind = if task.durable { "durable" } else { "ephemeral" };
    let mut said = vec![format!(
        "{} accepted as a {kind} {} task",
        task.created, task.job
    )];
    for attempt in &task.attempts {
        let started = attempt.started.as_deref().unwrap_or("-");
        said.push(format!(
            "{started} attempt {} at {} under {}: {}",
            attempt.n, attempt.node, attempt.epoch, attempt.outcome
        ));
        said.extend(attempt.placement.as_ref().map(placed));
    }
    for refused in &task.refused {
        said.push(format!(
            "a result of attempt {} from {} was refused: {}",
            refused.n, refused.node, refused.why
        ));
    }
    if let Some(error) = &task.error {
        said.push(format!("error: {error}"));
    }
    said.push(match task.state.as_str() {
        "queued" => waits_for(task, members),
        "leased" => "now: it is with its worker".to_owned(),
        "dead" => {
            "now: its attempts are used up; look at the error, then `troupe tasks retry`".to_owned()
        }
        state => format!("now: {state}, for good"),
    });
    said
}

/// Who could have had it, as the balancer saw them, and who could not.
fn placed(placement: &PlacementView) -> String {
    let candidate = |c: &CandidateView| {
        let chosen = if c.chosen { ", chosen" } else { "" };
        format!(
            "{} ({} of {}: load {} %, accepts {} more{chosen})",
            c.node, c.outstanding, c.capacity, c.load_percent, c.credit
        )
    };
    let candidates: Vec<_> = placement.candidates.iter().map(candidate).collect();
    let more = match placement.more {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let balancer = serde_json::to_value(placement.balancer).unwrap_or_default();
    format!(
        "  placed by {} among {}{more}{}",
        balancer.as_str().unwrap_or_default(),
        candidates.join(", "),
        not(&placement.excluded)
    )
}

fn not(excluded: &[ExcludedView]) -> String {
    let all = excluded.iter().map(|e| format!("{} ({})", e.node, e.why));
    match all.collect::<Vec<_>>().as_slice() {
        [] => String::new(),
        all => format!("; not {}", all.join(", ")),
    }
}

fn waits_for(task: &TaskView, members: &MembersView) -> String {
    waits(task, members) + &not(&task.excluded)
}

fn waits(task: &TaskView, members: &MembersView) -> String {
    let able = members
        .members
        .iter()
        .filter(|m| m.jobs.contains(&task.job));
    let alive: Vec<_> = able.clone().filter(|m| m.state == "alive").collect();
    if able.count() == 0 {
        let mut known: Vec<&str> = members
            .members
            .iter()
            .flat_map(|m| &m.jobs)
            .map(String::as_str)
            .collect();
        known.sort_unstable();
        known.dedup();
        return format!(
            "now: queued, and no member knows the job {}; they know {}",
            task.job,
            known.join(", ")
        );
    }
    let loads = alive.iter().map(|m| {
        let running = m.running.map_or(Value::Null, Value::from);
        format!("{} ({running} of {})", m.name, m.capacity)
    });
    let loads: Vec<_> = loads.collect();
    match loads.as_slice() {
        [] => format!(
            "now: queued; those who know the job {} are not alive",
            task.job
        ),
        _ => format!(
            "now: queued for one of {}: it waits for credit, its delay or its back-off, or for a tag that it requires",
            loads.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(state: &str, job: &str) -> TaskView {
        let task = json!({"id": "0190a000-0000-7000-8000-000000000000", "job": job, "input": 1, "state": state, "output": null,
            "attempts": [{"n": 1, "epoch": "5-7", "node": "n2", "started": "T", "finished": null, "outcome": "lost", "placement": {"balancer": "least-loaded", "more": 0,
                "candidates": [{"node": "n2", "outstanding": 1, "capacity": 4, "credit": 3, "load_percent": 25, "chosen": true}],
                "excluded": [{"node": "n1", "why": "it is draining"}]}}],
            "error": null, "created": "C", "finished": null, "durable": true, "idempotent_until": null, "stale": false,
            "refused": [{"n": 1, "epoch": "5-7", "node": "n2", "why": "superseded"}]});
        serde_json::from_value(task).unwrap()
    }

    #[test]
    fn a_task_tells_its_attempts_its_refusals_and_that_nobody_knows_its_job() {
        let members = MembersView {
            revision: 1,
            members: vec![],
        };
        let said = of_the_task(&task("queued", "paint"), &members);
        assert_eq!(said[0], "C accepted as a durable paint task");
        assert_eq!(said[1], "T attempt 1 at n2 under 5-7: lost");
        assert_eq!(
            said[2],
            "  placed by least-loaded among n2 (1 of 4: load 25 %, accepts 3 more, chosen); not n1 (it is draining)"
        );
        assert!(said[3].contains("refused: superseded"));
        assert!(
            said[4].contains("no member knows the job paint"),
            "{said:?}"
        );
        assert!(of_the_task(&task("dead", "paint"), &members)[4].contains("retry"));
    }
}
