//! Reading tasks.

use std::time::{Duration, SystemTime};

use serde_json::json;
use troupe_actors::admin::TasksView;
use troupe_actors::master::TaskView;

use super::api::{Api, Failure, Json, query, segment};
use super::say::Screen;
use super::{read, show};

/// Tasks asked for at once.
const PAGE: usize = 500;
/// The longest a node waits in one request…
pub(super) const ROUND: Duration = Duration::from_secs(30);
/// …and what the request may take beyond.
pub(super) const MARGIN: Duration = Duration::from_secs(15);

/// `troupe tasks ls`: pages until there are enough.
pub(super) async fn list(
    api: &Api,
    screen: &Screen,
    state: Option<String>,
    job: Option<String>,
    limit: usize,
) -> Result<(), Failure> {
    let mut tasks: Vec<TaskView> = Vec::new();
    let mut after = None;
    loop {
        let page = (limit - tasks.len().min(limit)).clamp(1, PAGE).to_string();
        let path = query(
            "/v1/tasks",
            &[
                ("state", state.as_deref()),
                ("job", job.as_deref()),
                ("limit", Some(&page)),
                ("after", after.as_deref()),
            ],
        );
        let view: TasksView = read(api.get(&path).await?)?;
        tasks.extend(view.tasks);
        after = view.next.map(|id| id.to_string());
        if after.is_none() || tasks.len() >= limit {
            break;
        }
    }
    tasks.truncate(limit);
    let value = json!({ "tasks": tasks, "next": after });
    screen.value(&value, || show::tasks(&tasks, SystemTime::now()))
}

/// `troupe tasks get`.
pub(super) async fn get(
    api: &Api,
    screen: &Screen,
    id: &str,
    wait: Option<&str>,
) -> Result<(), Failure> {
    let wait = wait.map(humantime::parse_duration).transpose();
    let wait = wait.map_err(|why| Failure::Usage(format!("--wait: {why}")))?;
    let answer = read_task(api, id, wait.unwrap_or_default()).await?;
    show_task(screen, answer).map(|_| ())
}

/// `troupe tasks cancel`.
pub(super) async fn cancel(api: &Api, screen: &Screen, id: &str) -> Result<(), Failure> {
    let answer = api.delete(&format!("/v1/tasks/{}", segment(id))).await?;
    show_task(screen, answer).map(|_| ())
}

/// `troupe tasks retry`.
pub(super) async fn retry(api: &Api, screen: &Screen, id: &str) -> Result<(), Failure> {
    let path = format!("/v1/tasks/{}/retry", segment(id));
    let answer = api.post(&path, String::new()).await?;
    show_task(screen, answer).map(|_| ())
}

/// Shows a task; answers whether it is done.
pub(super) fn show_task(screen: &Screen, answer: Json) -> Result<bool, Failure> {
    let done = answer.0["state"] == "done";
    screen.answer(answer, |task: &TaskView| {
        show::task(task, SystemTime::now())
    })?;
    Ok(done)
}

/// Reads a task, waiting until it is finished or the time is up; in rounds, since a node waits only so long.
pub(super) async fn read_task(api: &Api, id: &str, wait: Duration) -> Result<Json, Failure> {
    let start = tokio::time::Instant::now();
    loop {
        let left = wait.saturating_sub(start.elapsed());
        let round = left.min(ROUND);
        let text = (!round.is_zero()).then(|| format!("{}ms", round.as_millis().max(1)));
        let path = format!("/v1/tasks/{}", segment(id));
        let path = query(&path, &[("wait", text.as_deref())]);
        let answer = api.get_within(&path, round + MARGIN).await?;
        let open = answer.0["state"] == "queued" || answer.0["state"] == "leased";
        if !open || left <= round {
            return Ok(answer);
        }
    }
}
