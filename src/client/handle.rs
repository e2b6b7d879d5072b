//! [`Client`]: a cluster's tasks from Rust, over the admin API of any of its nodes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use troupe_actors::id::TaskId;
use troupe_actors::master::TaskView;

use super::api::{Api, Failure, Pass, query, segment};
use super::tasks::{MARGIN, ROUND};

/// Between two tries, when nobody said how long.
const AGAIN: Duration = Duration::from_millis(100);
/// Tasks sent at once.
const BATCH: usize = 500;

/// A task to be done. It has its id from the beginning: submitting it twice is submitting it once.
#[derive(Clone, Debug, Serialize)]
pub struct Task {
    id: TaskId,
    job: String,
    input: Value,
    durable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    priority: i32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    require: BTreeMap<String, String>,
}

impl Task {
    /// A durable task of this kind with this input.
    ///
    /// # Errors
    /// The input cannot be JSON.
    pub fn new(job: &str, input: impl Serialize) -> Result<Self, ClientError> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_ms = unix.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
        let input = serde_json::to_value(input);
        Ok(Self {
            id: TaskId::new(unix_ms, &mut rand::rng()),
            job: job.to_owned(),
            input: input.map_err(|why| ClientError::Usage(format!("the input: {why}")))?,
            durable: true,
            timeout: None,
            delay: None,
            max_attempts: None,
            priority: 0,
            require: BTreeMap::new(),
        })
    }

    /// Its identity.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Kept in memory alone: faster, and gone with the nodes that know it.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.durable = false;
        self
    }

    /// How long one attempt may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(in_words(timeout));
        self
    }

    /// Not to be begun before.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(in_words(delay));
        self
    }

    /// Attempts before it is dead.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// Higher goes first; 0 is usual.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Only for workers that have this tag.
    #[must_use]
    pub fn require(mut self, key: &str, value: &str) -> Self {
        self.require.insert(key.to_owned(), value.to_owned());
        self
    }
}

fn in_words(d: Duration) -> String {
    humantime::format_duration(d).to_string()
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// The caller's mistake, in words.
    Usage(String),
    /// No node answered until the patience was over. What was submitted may have been accepted: submit the same task again.
    Nobody(String),
    /// A node said no.
    Refused {
        /// HTTP status.
        status: u16,
        /// Stable code, as in the API's description.
        code: String,
        /// In words.
        message: String,
    },
    /// The answer makes no sense: another version, or no node at all.
    Strange(String),
    /// The task ended, and not well: `failed`, `dead` or `cancelled`, and why.
    Ended(String, String),
    /// The task had not ended when the patience was over.
    Open,
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage(why) => f.write_str(why),
            Self::Nobody(why) => write!(f, "no node answers: {why}"),
            Self::Refused { code, message, .. } => write!(f, "{message} [{code}]"),
            Self::Strange(why) => write!(f, "the answer makes no sense: {why}"),
            Self::Ended(state, why) => write!(f, "the task is {state}: {why}"),
            Self::Open => f.write_str("the task has not ended yet"),
        }
    }
}

impl std::error::Error for ClientError {}

/// A cluster's tasks, over any of its nodes: when one does not answer the next is asked, and what is unknown is sent again, which is
/// safe because a task has its id. Needs a tokio runtime.
pub struct Client {
    nodes: Vec<Api>,
    at: AtomicUsize,
    patience: Duration,
}

impl Client {
    /// Of nodes' admin URLs, such as `http://10.0.0.11:22223`.
    ///
    /// # Errors
    /// None, or one that is no URL.
    pub fn new<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Result<Self, ClientError> {
        Self::with_files(urls, None, None)
    }

    /// As [`Client::new`], with the file of a token, and one with the certificates (PEM) that those of `https://` nodes are
    /// checked by.
    ///
    /// # Errors
    /// The same, and a file that cannot be used.
    pub fn with_files<U: AsRef<str>>(
        urls: impl IntoIterator<Item = U>,
        token: Option<&Path>,
        ca: Option<&Path>,
    ) -> Result<Self, ClientError> {
        let pass = Pass::read(token, ca).map_err(said)?;
        let nodes = urls.into_iter();
        let nodes = nodes.map(|url| Api::new(url.as_ref(), &pass));
        let nodes: Vec<Api> = nodes.collect::<Result<_, _>>().map_err(said)?;
        if nodes.is_empty() {
            return Err(ClientError::Usage("no node is named".to_owned()));
        }
        Ok(Self {
            nodes,
            at: AtomicUsize::new(0),
            patience: Duration::from_secs(60),
        })
    }

    /// How long each call tries before it gives up; a minute unless told.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Gives the cluster a task. When this returns, the task is recorded (durable) or with the master (ephemeral).
    ///
    /// # Errors
    /// [`ClientError::Refused`] for good, [`ClientError::Nobody`] when the fate is not known.
    pub async fn submit(&self, task: &Task) -> Result<TaskId, ClientError> {
        let mut answers = self.submit_all(std::slice::from_ref(task)).await;
        answers.pop().unwrap_or(Err(ClientError::Open))
    }

    /// Gives the cluster many; one answer each, in order.
    pub async fn submit_all(&self, tasks: &[Task]) -> Vec<Result<TaskId, ClientError>> {
        let mut answers = Vec::with_capacity(tasks.len());
        for batch in tasks.chunks(BATCH) {
            match self.send(batch).await {
                Ok(some) => answers.extend(some),
                Err(why) => answers.extend(batch.iter().map(|_| Err(why.clone()))),
            }
        }
        answers
    }

    /// Sends until no task of it is told to come again.
    async fn send(&self, batch: &[Task]) -> Result<Vec<Result<TaskId, ClientError>>, ClientError> {
        let mut body = String::new();
        for task in batch {
            let line =
                serde_json::to_string(task).map_err(|why| ClientError::Usage(why.to_string()))?;
            // Writing to a string cannot fail.
            writeln!(body, "{line}").ok();
        }
        let until = Instant::now() + self.patience;
        loop {
            let post = async |api: &Api| api.post_lines("/v1/tasks", body.clone()).await;
            let lines = self.ask(until, post).await?;
            let answers: Vec<_> = lines.iter().map(answer).collect();
            if answers.len() != batch.len() {
                return Err(ClientError::Strange(format!(
                    "{} answers to {} tasks",
                    lines.len(),
                    batch.len()
                )));
            }
            let again = |a: &Result<TaskId, ClientError>| {
                matches!(a, Err(ClientError::Refused { status: 503, .. }))
            };
            if !answers.iter().any(again) || Instant::now() + AGAIN >= until {
                return Ok(answers);
            }
            sleep(AGAIN).await;
        }
    }

    /// Waits for a task's output.
    ///
    /// # Errors
    /// [`ClientError::Ended`] when it ended otherwise, [`ClientError::Open`] when it has not ended in time.
    pub async fn output<O: DeserializeOwned>(&self, id: TaskId) -> Result<O, ClientError> {
        let task = self.wait(id).await?;
        match task.state.as_str() {
            "done" => {
                let output = task.output.unwrap_or(Value::Null);
                serde_json::from_value(output)
                    .map_err(|why| ClientError::Strange(format!("the output: {why}")))
            }
            _ => Err(ClientError::Ended(
                task.state,
                task.error.unwrap_or_default(),
            )),
        }
    }

    /// Submits, and waits for the output.
    ///
    /// # Errors
    /// As [`Client::submit`] and [`Client::output`].
    pub async fn run<O: DeserializeOwned>(&self, task: &Task) -> Result<O, ClientError> {
        let id = self.submit(task).await?;
        self.output(id).await
    }

    /// Waits until a task has ended; answers its receipt.
    ///
    /// # Errors
    /// [`ClientError::Open`] when it has not ended in time.
    pub async fn wait(&self, id: TaskId) -> Result<TaskView, ClientError> {
        let until = Instant::now() + self.patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let round = left.min(ROUND);
            let wait = format!("{}ms", round.as_millis().max(1));
            let path = query(&path_of(id), &[("wait", Some(&wait))]);
            let get = async |api: &Api| api.get_within(&path, round + MARGIN).await;
            let task: TaskView = read(self.ask(until, get).await?.0)?;
            if task.state != "queued" && task.state != "leased" {
                return Ok(task);
            }
            if left <= round {
                return Err(ClientError::Open);
            }
        }
    }

    /// A task's receipt as it is now.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with status 404 when nobody knows it.
    pub async fn receipt(&self, id: TaskId) -> Result<TaskView, ClientError> {
        let until = Instant::now() + self.patience;
        let path = path_of(id);
        read(
            self.ask(until, async |api: &Api| api.get(&path).await)
                .await?
                .0,
        )
    }

    /// Cancels a task, and stops it if it runs.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when it has ended already.
    pub async fn cancel(&self, id: TaskId) -> Result<TaskView, ClientError> {
        let until = Instant::now() + self.patience;
        let path = path_of(id);
        read(
            self.ask(until, async |api: &Api| api.delete(&path).await)
                .await?
                .0,
        )
    }

    /// Asks node after node, until one answers or the patience is over.
    async fn ask<T>(
        &self,
        until: Instant,
        ask: impl AsyncFn(&Api) -> Result<T, Failure>,
    ) -> Result<T, ClientError> {
        loop {
            let at = self.at.load(Ordering::Relaxed);
            let wait = match ask(&self.nodes[at % self.nodes.len()]).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Refused {
                    status: 503,
                    retry_after,
                    ..
                }) if Instant::now() < until => retry_after.unwrap_or(AGAIN),
                Err(Failure::Nobody { .. }) if Instant::now() < until => {
                    self.at.store(at.wrapping_add(1), Ordering::Relaxed);
                    AGAIN
                }
                Err(failure) => return Err(said(failure)),
            };
            sleep(wait).await;
        }
    }
}

fn path_of(id: TaskId) -> String {
    format!("/v1/tasks/{}", segment(&id.to_string()))
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, ClientError> {
    serde_json::from_value(value).map_err(|why| ClientError::Strange(why.to_string()))
}

/// One line of the answer to a submit.
fn answer(line: &Value) -> Result<TaskId, ClientError> {
    let error = &line["error"];
    if error.is_null() {
        return read(line["id"].clone());
    }
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    let code = text("code");
    // What may be tried again says when.
    let later = error.get("retry_after_s").is_some() || code == "unknown";
    Err(ClientError::Refused {
        status: if later { 503 } else { 400 },
        message: text("message"),
        code,
    })
}

fn said(failure: Failure) -> ClientError {
    match failure {
        Failure::Usage(why) => ClientError::Usage(why),
        Failure::Nobody { url, why } => ClientError::Nobody(format!("{url}: {why}")),
        Failure::Refused {
            status,
            code,
            message,
            ..
        } => ClientError::Refused {
            status,
            code,
            message,
        },
        Failure::Strange(why) => ClientError::Strange(why),
        Failure::Failed | Failure::Closed => ClientError::Strange("no answer".to_owned()),
    }
}
