//! The master: makes tasks, keeps the ledger, picks an executor for each, records each result once.
//!
//! It acts only between [`Lead`] and [`StandDown`], and only under that epoch. Promises: an attempt is handed to a worker
//! only within the credit that worker granted; only the newest attempt of a task records; the first valid result wins;
//! a removed worker's attempts are queued again at once; what workers report at the start of a reign is adopted, not run
//! again. Ephemeral tasks live in this ledger alone: what was only queued here dies with the process.

pub mod actor;
pub mod balancer;
pub mod generator;
pub mod ledger;
pub mod legacy;
pub mod pulse;
pub mod reign;
pub mod roster;
pub mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use actix::Message;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{Epoch, NodeId, TaskId};
use crate::wire::MAX_PAYLOAD;

use ledger::MAX_TRIES;
pub use pulse::MasterPulse;

/// Bytes of `meta` and `require` of a task together.
const MAX_LABELS: usize = 16 * 1024;
/// Longest time-out of a task.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Knobs of the generator, `[generator]` in `config.toml`; the article's values.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorSettings {
    /// Whether the master makes tasks of its own.
    pub enabled: bool,
    /// A task every so often.
    pub every: Duration,
    /// The number is at least this…
    pub min: u64,
    /// …and at most this.
    pub max: u64,
}

impl Default for GeneratorSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            every: Duration::from_secs(10),
            min: 30,
            max: 60,
        }
    }
}

/// How an executor is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalancerKind {
    /// Any worker with credit, by chance: the article's.
    Random,
    /// One after the other.
    RoundRobin,
    /// Fewest outstanding relative to capacity.
    LeastLoaded,
    /// The less loaded of two drawn by chance.
    TwoChoices,
}

/// When the master gives itself work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MasterWorks {
    /// Only while it is the only worker.
    WhenAlone,
    /// Like any other.
    Always,
    /// Not even when alone.
    Never,
}

/// Knobs of the master, `[master]` in `config.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct MasterSettings {
    /// How an executor is chosen.
    pub balancer: BalancerKind,
    /// When the master gives itself work.
    pub master_works: MasterWorks,
    /// Attempts per task.
    pub max_attempts: u32,
    /// Wait before the second attempt; doubled for each further one, 20 % jitter.
    pub retry_wait: Duration,
    /// How long one attempt may take unless the task says otherwise.
    pub task_timeout: Duration,
    /// Queued tasks; beyond, a submit is answered `busy`.
    pub max_queued: usize,
    /// Bytes of queued inputs; beyond, a submit is answered `busy`.
    pub max_queued_bytes: usize,
    /// Finished tasks kept for reading, by count…
    pub keep_finished: usize,
    /// …and by age.
    pub keep_finished_for: Duration,
    /// A new master waits this long for the reports of registered workers.
    pub recovery_wait: Duration,
}

impl Default for MasterSettings {
    fn default() -> Self {
        Self {
            balancer: BalancerKind::Random,
            master_works: MasterWorks::WhenAlone,
            max_attempts: 3,
            retry_wait: Duration::from_secs(1),
            task_timeout: Duration::from_secs(30),
            max_queued: 1_000_000,
            max_queued_bytes: 512 * 1024 * 1024,
            keep_finished: 10_000,
            keep_finished_for: Duration::from_secs(3600),
            recovery_wait: Duration::from_secs(2),
        }
    }
}

/// From discovery: you lead, under this epoch. A second one with a higher epoch begins a new reign.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Lead(pub Epoch);

/// From discovery: you no longer lead. Drop everything.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct StandDown {
    /// Why, in words.
    pub why: String,
}

/// From discovery: stop acting under this epoch, and stream the ledger to the heir. Answers how many open tasks went over; 0 when not leading.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "usize")]
pub struct HandOverTo {
    /// The epoch that ends.
    pub epoch: Epoch,
    /// Who takes over.
    pub heir: NodeId,
}

/// From a new life of MasterActor to discovery: I know nothing; if this node leads, take over from itself and say [`Lead`].
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct MasterReborn;

/// A task as somebody asks for it; missing options take the master's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The idempotency key; made when absent.
    pub id: Option<TaskId>,
    /// The kind of work.
    pub job: String,
    /// JSON.
    pub input: Bytes,
    /// Carried beside it.
    pub meta: BTreeMap<String, String>,
    /// How long one attempt may take.
    pub timeout: Option<Duration>,
    /// Attempts before it is dead.
    pub max_attempts: Option<u32>,
    /// Higher goes first.
    pub priority: i32,
    /// Tags a worker must have.
    pub require: BTreeMap<String, String>,
}

impl Submission {
    /// Whether the task itself is acceptable.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn check(&self) -> Result<(), SubmitError> {
        let bad = |why: String| Err(SubmitError::Invalid(why));
        if self.job.is_empty() || self.job.len() > 128 {
            return bad("job must be a name of 1 to 128 bytes".to_owned());
        }
        if self.input.len() > MAX_PAYLOAD {
            return bad(format!(
                "input has {} bytes, at most {MAX_PAYLOAD} are taken",
                self.input.len()
            ));
        }
        if serde_json::from_slice::<serde::de::IgnoredAny>(&self.input).is_err() {
            return bad("input must be JSON".to_owned());
        }
        let labels = self.meta.iter().chain(&self.require);
        let labels: usize = labels.map(|(k, v)| k.len() + v.len()).sum();
        if labels > MAX_LABELS {
            return bad(format!(
                "meta and require have {labels} bytes together, at most {MAX_LABELS} are taken"
            ));
        }
        let attempts = |n: u32| (1..=MAX_TRIES).contains(&(n as usize));
        if !self.max_attempts.is_none_or(attempts) {
            return bad(format!("max_attempts must be 1 to {MAX_TRIES}"));
        }
        let fits = |timeout| (Duration::from_millis(1)..=MAX_TIMEOUT).contains(&timeout);
        if !self.timeout.is_none_or(fits) {
            return bad("timeout must be at least 1 ms and at most a year".to_owned());
        }
        Ok(())
    }
}

/// Accept these tasks (ephemeral). One answer each, in order.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Vec<Result<TaskView, SubmitError>>")]
pub struct Submit(pub Vec<Submission>);

/// Why a task was not accepted; nothing was recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SubmitError {
    /// This node does not lead.
    #[error("this node does not lead")]
    NotMaster,
    /// The queue is full.
    #[error("the queue is full ({queued} tasks), retry in {retry_after_s} s")]
    Busy {
        /// Tasks queued now.
        queued: usize,
        /// When to come again, seconds.
        retry_after_s: u64,
    },
    /// The task itself is not acceptable.
    #[error("{0}")]
    Invalid(String),
}

/// One try at a task, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptView {
    /// Number, from 1.
    pub n: u32,
    /// The epoch it was handed out under.
    pub epoch: String,
    /// Name of the executor.
    pub node: String,
    /// RFC 3339, when known.
    pub started: Option<String>,
    /// RFC 3339, when known.
    pub finished: Option<String>,
    /// `running`, `done`, `failed`, `lost`, `timed-out`, …
    pub outcome: String,
}

/// A refused result, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalView {
    /// Attempt number.
    pub n: u32,
    /// Its epoch.
    pub epoch: String,
    /// Who sent it.
    pub node: String,
    /// Why it was refused.
    pub why: String,
}

/// A task as the API shows it (SURFACE).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskView {
    /// Identity.
    pub id: TaskId,
    /// The kind of work.
    pub job: String,
    /// JSON.
    pub input: serde_json::Value,
    /// `queued`, `leased`, `done`, `failed`, `dead` or `cancelled`.
    pub state: String,
    /// Oldest first.
    pub attempts: Vec<AttemptView>,
    /// JSON, once done.
    pub output: Option<serde_json::Value>,
    /// Why it failed or is dead.
    pub error: Option<String>,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339, once finished.
    pub finished: Option<String>,
    /// Whether it survives the loss of every node.
    pub durable: bool,
    /// RFC 3339; absent for ephemeral tasks.
    pub idempotent_until: Option<String>,
    /// Results that came too late or from the wrong attempt.
    pub refused: Vec<RefusalView>,
    /// Whether the answer may be old.
    pub stale: bool,
}

/// List tasks of this master's ledger, newest first.
#[derive(Clone, Debug, Default, Message)]
#[rtype(result = "Option<Vec<TaskView>>")]
pub struct ListTasks {
    /// Only this state.
    pub state: Option<String>,
    /// Only this kind of work.
    pub job: Option<String>,
    /// At most this many.
    pub limit: usize,
    /// Only those with ids below this one.
    pub after: Option<TaskId>,
}

/// Read one task: `None` when this node does not lead, `Some(None)` when there is no such task.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Option<Option<TaskView>>")]
pub struct GetTask(pub TaskId);

/// Counts and workers, for status.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "MasterSnapshot")]
pub struct AskMaster;

/// Answer to [`AskMaster`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, actix::MessageResponse)]
pub struct MasterSnapshot {
    /// Whether it acts as master, and under which epoch.
    pub leading: Option<String>,
    /// Whether it still waits for reports.
    pub recovering: bool,
    /// Tasks by state.
    pub tasks: BTreeMap<String, u64>,
    /// Outstanding attempts by worker name.
    pub outstanding: BTreeMap<String, u64>,
    /// Results refused in this reign, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Attempts adopted in this reign.
    pub adopted: u64,
}
