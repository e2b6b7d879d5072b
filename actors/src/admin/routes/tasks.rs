//! Tasks: submitting, listing, reading. All of it belongs to the master.
//!
//! A task without an id gets one at the node that was asked, before it is carried: whoever is told that the outcome is
//! unknown is told the id too, and may send it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use futures_util::future::join_all;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{IsCarried, Params, escape, take_body};
use crate::admin::audit::Submits;
use crate::admin::office::{Intent, Office, pass_on};
use crate::admin::relay::Call;
use crate::admin::reply::{Answer, ApiError, ok};
use crate::admin::{Receipt, TasksView};
use crate::id::TaskId;
use crate::master::{
    AwaitTasks, CancelTask, ChangeError, Ended, GetTask, ListTasks, RetryTask, Submission, Submit,
    SubmitAndWait, SubmitError, Taken, TaskView,
};
use crate::time::unix_ms;
use crate::trace::{self, TRACEPARENT, TRACESTATE};
use crate::wire::{ApiResponse, MAX_PAYLOAD};

/// Longest time a task may be made to wait.
const MAX_DELAY: Duration = Duration::from_secs(365 * 24 * 3600);
/// Newline-delimited JSON.
pub(super) const NDJSON: &str = "application/x-ndjson";
/// Tasks in one body; keeps the answer in proportion to the body limit.
const MAX_LINES: usize = 20_000;
/// Bytes of one line: the largest input, with room for all else.
const MAX_LINE: usize = MAX_PAYLOAD + 64 * 1024;
/// Brackets within brackets of an input: what every reader of JSON bears (`serde_json` stops at 128).
const MAX_DEPTH: usize = 100;
/// Entries of `meta` and of `require`.
const MAX_LABELS: usize = 64;
/// Tasks given to the master at once…
const BATCH: usize = 512;
/// …and their bytes: a batch must fit into a frame.
const BATCH_BYTES: usize = 512 * 1024;
/// Bytes of one page of tasks; it must fit into a frame even when its last task is large.
const PAGE_BYTES: usize = 256 * 1024;
/// A waiting read that the master did not answer looks again after this.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The trace context of a request: `traceparent` and `tracestate`.
type Context<'a> = (Option<&'a str>, Option<&'a str>);

/// One task as somebody asks for it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TaskBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<TaskId>,
    job: String,
    #[serde(default)]
    input: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(default)]
    priority: i32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    require: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    durable: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay: Option<Span>,
    /// Unix ms; what `delay` becomes at the node that was asked first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before_ms: Option<u64>,
}

/// A time span in JSON: `"30s"`, `"1m 30s"`, or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match Value::deserialize(from)? {
            Value::String(text) => humantime::parse_duration(&text).map_err(D::Error::custom),
            Value::Number(n) => Duration::try_from_secs_f64(n.as_f64().unwrap_or(-1.0))
                .map_err(|_| D::Error::custom(format!("{n} is no number of seconds"))),
            other => Err(D::Error::custom(format!(
                "{other} is no time span such as \"30s\""
            ))),
        }
        .map(Self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.0.as_secs_f64())
    }
}

impl TaskBody {
    fn parse(json: &[u8], (parent, state): Context<'_>) -> Result<Self, ApiError> {
        if json.len() > MAX_LINE {
            let message = format!(
                "a task has {} bytes; at most {MAX_LINE} are allowed",
                json.len()
            );
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            return Err(ApiError::new(status, "too_large", message));
        }
        let mut task: Self = serde_json::from_slice(json).map_err(ApiError::bad)?;
        trace::adopt(&mut task.meta, parent, state);
        task.id
            .get_or_insert_with(|| TaskId::new(unix_ms(), &mut rand::rng()));
        task.check().map_err(|error| task.named(error))?;
        if let Some(Span(delay)) = task.delay.take() {
            let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            task.not_before_ms = Some(unix_ms().saturating_add(delay));
        }
        Ok(task)
    }

    fn check(&self) -> Result<(), ApiError> {
        if self.delay.is_some_and(|delay| delay.0 > MAX_DELAY) {
            return Err(ApiError::bad("delay must be at most a year"));
        }
        if self.delay.is_some() && self.not_before_ms.is_some() {
            return Err(ApiError::bad(
                "delay and not_before_ms say the same; one of them is enough",
            ));
        }
        if self.job.is_empty() {
            return Err(ApiError::bad("job must name a kind of work"));
        }
        let size = self.input.as_ref().map_or(0, |input| input.get().len());
        if size > MAX_PAYLOAD {
            let message = format!("the input has {size} bytes; at most {MAX_PAYLOAD} are allowed");
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                message,
            ));
        }
        if self
            .input
            .as_ref()
            .is_some_and(|i| depth(i.get()) > MAX_DEPTH)
        {
            let message = format!("the input is nested deeper than {MAX_DEPTH}");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "too_deep", message));
        }
        if self.meta.len() > MAX_LABELS || self.require.len() > MAX_LABELS {
            let message = format!("meta and require have at most {MAX_LABELS} entries");
            return Err(ApiError::bad(message));
        }
        Ok(())
    }

    /// The same error, saying which task it is about.
    fn named(&self, error: ApiError) -> ApiError {
        match self.id {
            Some(id) => error.with("id", json!(id)),
            None => error,
        }
    }

    fn submission(&self) -> Submission {
        let input = self.input.as_ref().map_or("null", |input| input.get());
        Submission {
            id: self.id,
            job: self.job.clone(),
            input: Bytes::copy_from_slice(input.as_bytes()),
            meta: self.meta.clone(),
            timeout: self.timeout.map(|span| span.0),
            max_attempts: self.max_attempts,
            priority: self.priority,
            require: self.require.clone(),
            durable: self.durable.unwrap_or(true),
            not_before_ms: self.not_before_ms.unwrap_or(0),
        }
    }

    fn size(&self) -> usize {
        let input = self.input.as_ref().map_or(0, |input| input.get().len());
        // Names, numbers and tags; a guess on the safe side.
        input + self.job.len() + 256 + 64 * (self.meta.len() + self.require.len())
    }
}

/// How deep brackets stand within brackets.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// What became of one task.
type Outcome = Result<Receipt, ApiError>;

/// `POST /v1/tasks`: one object → 202 and its receipt; NDJSON → 200 and a line each, `{"id","state"}` or `{"error":…}`.
pub(super) async fn submit(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(Wait { wait }): Params<Wait>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let wait = parse_wait(&office, wait.as_deref())?;
    let bytes = take_body(&office, body).await?;
    let kind = headers.get(header::CONTENT_TYPE);
    let lines = kind.is_some_and(|kind| kind.as_bytes().starts_with(NDJSON.as_bytes()));
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let trace = (text(TRACEPARENT), text(TRACESTATE));
    if carried || lines {
        return submit_lines(&office, carried, wait, trace, &bytes).await;
    }
    let task = TaskBody::parse(&bytes, trace)?;
    let outcome = submit_batch(&office, false, wait, std::slice::from_ref(&task)).await;
    let receipt = outcome
        .and_then(|mut outcomes| {
            outcomes
                .pop()
                .unwrap_or_else(|| Err(ApiError::not_master()))
        })
        .map_err(|error| task.named(error))?;
    let submits = Submits {
        accepted: 1,
        refused: 0,
        task: Some(receipt.id),
    };
    let finished = !["queued", "leased"].contains(&receipt.state.as_str());
    let status = if finished && !wait.is_zero() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let mut response = (status, Json(receipt)).into_response();
    response.extensions_mut().insert(submits);
    Ok(response)
}

async fn submit_lines(
    office: &Office,
    carried: bool,
    wait: Duration,
    trace: Context<'_>,
    bytes: &[u8],
) -> Answer {
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    if lines.is_empty() || lines.len() > MAX_LINES {
        let message = format!(
            "1 to {MAX_LINES} tasks fit into a body, not {}",
            lines.len()
        );
        return Err(ApiError::bad(message));
    }
    let mut good = Vec::new();
    let parsed = lines.into_iter().map(|line| TaskBody::parse(line, trace));
    let slots: Vec<Option<ApiError>> = parsed
        .map(|task| task.map(|task| good.push(task)).err())
        .collect();
    let mut outcomes = Vec::new();
    // All at once, so that a batch is on its way while another is waited for; answers in order.
    let batches = batches(&good).into_iter();
    let asked = batches
        .map(|batch| async move { (batch, submit_batch(office, carried, wait, batch).await) });
    for (batch, answer) in join_all(asked).await {
        match answer {
            Ok(done) => outcomes.extend(done),
            // Whoever carried it here must learn that nothing of it was taken.
            Err(error) if carried => return Err(error),
            Err(error) => {
                outcomes.extend(batch.iter().map(|task| Err(task.named(error.clone()))));
            }
        }
    }
    let mut outcomes = outcomes.into_iter();
    let in_order = slots.into_iter().map(|slot| match slot {
        Some(error) => Err(error),
        None => outcomes
            .next()
            .unwrap_or_else(|| Err(ApiError::not_master())),
    });
    let in_order: Vec<Outcome> = in_order.collect();
    match refused_whole(&in_order) {
        Some(error) if !carried => Err(error),
        _ => {
            let lines = to_lines(&in_order);
            let mut response = ([(header::CONTENT_TYPE, NDJSON)], lines).into_response();
            response.extensions_mut().insert(sum(&in_order));
            Ok(response)
        }
    }
}

fn sum(outcomes: &[Outcome]) -> Submits {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    Submits {
        accepted: count(accepted),
        refused: count(outcomes.len() - accepted),
        task: None,
    }
}

/// The refusal, when all were refused for the same passing reason.
fn refused_whole(outcomes: &[Outcome]) -> Option<ApiError> {
    let first = outcomes.first()?.as_ref().err()?;
    let same = |o: &Outcome| o.as_ref().is_err_and(|e| e.code == first.code);
    let passing = first.status == StatusCode::SERVICE_UNAVAILABLE;
    (passing && outcomes.iter().all(same)).then(|| {
        let mut error = first.clone();
        error.extra.remove("id");
        error.with("refused", json!(outcomes.len()))
    })
}

fn batches(tasks: &[TaskBody]) -> Vec<&[TaskBody]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, task) in tasks.iter().enumerate() {
        let full = i - start >= BATCH || bytes + task.size() > BATCH_BYTES;
        if full && i > start {
            batches.push(&tasks[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += task.size();
    }
    if start < tasks.len() {
        batches.push(&tasks[start..]);
    }
    batches
}

/// Gives a batch to the master, wherever it is. `Err`: nothing of it was taken, as far as the error's code says.
async fn submit_batch(
    office: &Office,
    carried: bool,
    wait: Duration,
    batch: &[TaskBody],
) -> Result<Vec<Outcome>, ApiError> {
    let margin = office.seed.settings.relay_timeout;
    let call = |left: Duration| {
        let lines = batch.iter().map(|task| json_line(&task));
        let path = match wait.min(left.saturating_sub(margin)).as_millis() {
            0 => "/v1/tasks".to_owned(),
            wait => format!("/v1/tasks?wait={wait}ms"),
        };
        Call::post(path, lines.collect::<String>())
    };
    let local = |left: Duration| async move {
        let submissions = batch.iter().map(TaskBody::submission).collect();
        if wait.is_zero() {
            let to = &office.seed.submit;
            let answers = office.ask_for("master", to, Submit(submissions)).await?;
            return outcomes(batch, answers);
        }
        let to = &office.seed.submit_and_wait;
        let submitted = office
            .ask_for("master", to, SubmitAndWait(submissions))
            .await?;
        let mut outcomes = outcomes(batch, submitted.answers)?;
        let wait = wait.min(left.saturating_sub(margin));
        match tokio::time::timeout(wait, submitted.ended).await {
            Ok(Ok(ended)) => {
                let receipts = outcomes.iter_mut().filter_map(|o| o.as_mut().ok());
                for (receipt, ended) in receipts.zip(ended) {
                    fill_in(receipt, ended);
                }
            }
            // Asked again, wherever the master is now: the same ids are the same tasks.
            Ok(Err(_)) => return Err(ApiError::not_master()),
            // They are accepted, and as they stand.
            Err(_) => {}
        }
        Ok(outcomes)
    };
    let within = margin + wait;
    let asked = office.at_master(carried, Intent::Write, within, call, from_lines, local);
    asked.await
}

fn outcomes(
    batch: &[TaskBody],
    answers: Vec<Result<Taken, SubmitError>>,
) -> Result<Vec<Outcome>, ApiError> {
    if answers.contains(&Err(SubmitError::NotMaster)) {
        return Err(ApiError::not_master());
    }
    let tasks = batch.iter().zip(answers);
    Ok(tasks.map(|(task, answer)| outcome(task, answer)).collect())
}

fn fill_in(receipt: &mut Receipt, ended: Ended) {
    ended.state.clone_into(&mut receipt.state);
    receipt.error = ended.error;
    let text = ended
        .output
        .and_then(|o| String::from_utf8(o.to_vec()).ok());
    receipt.output = text.and_then(|text| RawValue::from_string(text).ok());
}

pub(super) fn parse_wait(office: &Office, wait: Option<&str>) -> Result<Duration, ApiError> {
    match wait.map(humantime::parse_duration) {
        None => Ok(Duration::ZERO),
        Some(Ok(wait)) => Ok(wait.min(office.seed.settings.max_wait)),
        Some(Err(why)) => Err(ApiError::bad(format!("wait: {why}"))),
    }
}

fn outcome(task: &TaskBody, answer: Result<Taken, SubmitError>) -> Outcome {
    let refused = |why: SubmitError| match why {
        SubmitError::NotMaster => ApiError::not_master(),
        SubmitError::Busy {
            queued,
            retry_after_s,
        } => ApiError::unavailable("busy", &why, retry_after_s).with("queued", json!(queued)),
        SubmitError::Invalid(message) => {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_task", message)
        }
        SubmitError::NotRecorded(_) => ApiError::unavailable("not_recorded", &why, 1),
        SubmitError::Unknown => ApiError::unavailable("unknown", &why, 1),
        SubmitError::Expired { ref floor } => {
            ApiError::new(StatusCode::GONE, "expired", &why).with("floor", json!(floor))
        }
    };
    answer
        .map(|taken| Receipt {
            id: taken.id,
            state: taken.state.to_owned(),
            output: None,
            error: None,
        })
        .map_err(|why| task.named(refused(why)))
}

fn json_line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

fn to_lines(outcomes: &[Outcome]) -> String {
    let lines = outcomes.iter().map(|outcome| match outcome {
        Ok(receipt) => json_line(receipt),
        Err(error) => {
            let mut value = error.to_json();
            value["error"]["status"] = json!(error.status.as_u16());
            json_line(&value)
        }
    });
    lines.collect()
}

fn from_lines(answer: ApiResponse) -> Result<Vec<Outcome>, ApiError> {
    let body = answer.body.clone();
    pass_on(answer)?;
    let lines = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    Ok(lines.map(from_line).collect())
}

fn from_line(line: &[u8]) -> Outcome {
    if let Ok(receipt) = serde_json::from_slice::<Receipt>(line) {
        return Ok(receipt);
    }
    let value: Value = serde_json::from_slice(line).unwrap_or_default();
    let status = value["error"]["status"].as_u64();
    let status = status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let mut error = ApiError::from_json(
        status.unwrap_or(StatusCode::BAD_GATEWAY),
        value.get("error"),
    );
    error.extra.remove("status");
    Err(error)
}

/// `?state=&job=&limit=&after=`.
#[derive(Deserialize)]
pub(super) struct Page {
    state: Option<String>,
    job: Option<String>,
    limit: Option<usize>,
    after: Option<TaskId>,
}

/// `GET /v1/tasks`.
pub(super) async fn list(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(page): Params<Page>,
) -> Answer {
    let states = ["queued", "leased", "done", "failed", "dead", "cancelled"];
    if let Some(state) = page.state.as_deref().filter(|s| !states.contains(s)) {
        let message = format!("state is one of {}, not {state:?}", states.join(", "));
        return Err(ApiError::bad(message));
    }
    let limit = page.limit.unwrap_or(50).clamp(1, 500);
    let call = |_| Call::get(page_path(&page, limit));
    let local = |_| async {
        let ask = ListTasks {
            state: page.state.clone(),
            job: page.job.clone(),
            // One more tells whether there is a further page.
            limit: limit + 1,
            after: page.after,
        };
        let tasks = office.ask("master", &office.seed.list_tasks, ask).await?;
        ok(cut_page(tasks.ok_or_else(ApiError::not_master)?, limit))
    };
    let within = office.seed.settings.relay_timeout;
    let asked = office.at_master(carried, Intent::Read, within, call, pass_on, local);
    asked.await
}

fn page_path(page: &Page, limit: usize) -> String {
    let mut path = format!("/v1/tasks?limit={limit}");
    let after = page.after.map(|id| id.to_string());
    for (key, value) in [
        ("state", &page.state),
        ("job", &page.job),
        ("after", &after),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", escape(value)));
        }
    }
    path
}

/// A page is bounded by count and by bytes, and holds one task at least.
fn cut_page(mut tasks: Vec<TaskView>, limit: usize) -> TasksView {
    let mut bytes = 0;
    let fitting = tasks.iter().take(limit).take_while(|task| {
        let fits = bytes < PAGE_BYTES;
        bytes += serde_json::to_string(task).map_or(0, |json| json.len());
        fits
    });
    let kept = fitting.count();
    let more = kept < tasks.len();
    tasks.truncate(kept);
    let last = tasks.last().map(|task| task.id);
    TasksView {
        tasks,
        next: last.filter(|_| more),
    }
}

/// `?wait=30s`.
#[derive(Deserialize)]
pub(super) struct Wait {
    wait: Option<String>,
}

/// `GET /v1/tasks/{id}[?wait=]`: with a wait, answers once the task is finished or the time is up.
pub(super) async fn read(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Path(id): Path<String>,
    Params(Wait { wait }): Params<Wait>,
) -> Answer {
    let id: TaskId = id.parse().map_err(ApiError::bad)?;
    let wait = parse_wait(&office, wait.as_deref())?;
    let margin = office.seed.settings.relay_timeout;
    let call = |left: Duration| {
        let wait = left.saturating_sub(margin).as_millis();
        Call::get(format!("/v1/tasks/{id}?wait={wait}ms"))
    };
    let local = |left: Duration| read_here(&office, id, left.saturating_sub(margin));
    let within = wait + margin;
    let asked = office.at_master(carried, Intent::Read, within, call, pass_on, local);
    asked.await
}

/// `DELETE /v1/tasks/{id}`: cancels what is not finished → the task.
pub(super) async fn cancel(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Path(id): Path<String>,
) -> Answer {
    let id: TaskId = id.parse().map_err(ApiError::bad)?;
    let call = |_| Call::delete(format!("/v1/tasks/{id}"));
    let local = |_| async {
        let to = &office.seed.cancel_task;
        changed(office.ask_for("master", to, CancelTask(id)).await?)
    };
    let within = office.seed.settings.relay_timeout;
    // Asked for twice, it is done once.
    let asked = office.at_master(carried, Intent::Read, within, call, pass_on, local);
    asked.await
}

/// `POST /v1/tasks/{id}/retry`: gives a dead task another chance → the task.
pub(super) async fn retry(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Path(id): Path<String>,
) -> Answer {
    let id: TaskId = id.parse().map_err(ApiError::bad)?;
    let call = |_| Call::post(format!("/v1/tasks/{id}/retry"), String::new());
    let local = |_| async {
        let to = &office.seed.retry_task;
        changed(office.ask_for("master", to, RetryTask(id)).await?)
    };
    let within = office.seed.settings.relay_timeout;
    let asked = office.at_master(carried, Intent::Write, within, call, pass_on, local);
    asked.await
}

fn changed(answer: Result<TaskView, ChangeError>) -> Answer {
    match answer {
        Ok(task) => ok(task),
        Err(why @ ChangeError::Missing(_)) => Err(ApiError::missing("no_such_task", why)),
        Err(ChangeError::NotMaster) => Err(ApiError::not_master()),
        Err(why @ ChangeError::Conflict { state, .. }) => {
            let error = ApiError::new(StatusCode::CONFLICT, "conflict", why);
            Err(error.with("state", json!(state)))
        }
        Err(why @ ChangeError::NotRecorded(_)) => {
            Err(ApiError::unavailable("not_recorded", why, 1))
        }
        Err(why @ ChangeError::Unknown) => Err(ApiError::unavailable("unknown", why, 1)),
    }
}

async fn read_here(office: &Office, id: TaskId, wait: Duration) -> Answer {
    let until = Instant::now() + wait;
    loop {
        let to = &office.seed.get_task;
        let found = office.ask("master", to, GetTask(id)).await?;
        let Some(task) = found.ok_or_else(ApiError::not_master)? else {
            let message = format!("there is no task {id}");
            return Err(ApiError::missing("no_such_task", message));
        };
        let open = ["queued", "leased"].contains(&task.state.as_str());
        if !open || Instant::now() >= until {
            return ok(task);
        }
        let ended = office.seed.await_tasks.send(AwaitTasks(vec![id]));
        if !matches!(timeout_at(until, ended).await, Ok(Ok(Some(_))) | Err(_)) {
            // It does not lead any more, or was restarted: what it says next will tell.
            sleep_until(until.min(Instant::now() + LOOK_EVERY)).await;
        }
    }
}
