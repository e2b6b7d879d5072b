//! The master: makes tasks, keeps the ledger, picks an executor for each, records each result once.
//!
//! It acts only between [`Lead`] and [`StandDown`], and only under that epoch. Promises: an attempt is handed to a worker
//! only within the credit that worker granted; only the newest attempt of a task records; the first valid result wins;
//! a removed worker's attempts are queued again at once; what workers report at the start of a reign is adopted, not run
//! again. A durable task is acknowledged only when its record is in the registry, and so is what becomes of it: a new master
//! reads the journal before it answers anything. Ephemeral tasks live in this ledger alone: what was only queued here dies
//! with the process, but for what the likely heir was told.

pub mod actor;
pub mod balancer;
pub mod generator;
pub mod journal;
pub mod ledger;
pub mod legacy;
pub mod lines;
pub mod placements;
pub mod pulse;
pub mod record;
pub mod reign;
pub mod roster;
pub mod tally;
mod task;
pub mod view;
pub mod waits;

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
    /// …and by bytes…
    pub keep_finished_bytes: usize,
    /// …and by age.
    pub keep_finished_for: Duration,
    /// A new master waits this long for the reports of registered workers.
    pub recovery_wait: Duration,
    /// A task that was executing on so many distinct workers when each died is dead.
    pub max_kills: u32,
    /// The id of a durable task is known for so long after it was made…
    pub idempotency: Duration,
    /// …unless there are more than this many without a receipt: then the oldest are refused as expired sooner.
    pub keep_ids: usize,
    /// Whoever submits is told `unknown` when the registry has not answered for this long.
    pub commit_timeout: Duration,
    /// The registry's history is dropped as the journal goes on. It affects everybody who uses that registry.
    pub compact: bool,
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
            keep_finished_bytes: 64 * 1024 * 1024,
            max_kills: 5,
            idempotency: Duration::from_secs(3600),
            keep_ids: 1_000_000,
            commit_timeout: Duration::from_secs(5),
            compact: true,
        }
    }
}

/// Other knobs from now on; tasks that were accepted keep what they were accepted with.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Reconfigure {
    /// The master's.
    pub settings: MasterSettings,
    /// The generator's.
    pub generator: GeneratorSettings,
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
    /// Whether it must survive the loss of every node.
    pub durable: bool,
    /// Not to be handed out before, unix ms; 0 for at once.
    pub not_before_ms: u64,
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
        if self.durable && self.id.is_some_and(|id| id.0.get_version_num() != 7) {
            return bad(
                "the id of a durable task must be a UUIDv7: it says when it was made, so that it is known when it may be forgotten"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Accept these tasks. One answer each, in order; for durable ones when they are recorded, or it is known that they are not, or
/// after `commit_timeout`.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Vec<Result<Taken, SubmitError>>")]
pub struct Submit(pub Vec<Submission>);

/// As [`Submit`], and then wait until all that were accepted are finished.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Submitted")]
pub struct SubmitAndWait(pub Vec<Submission>);

/// Answer to [`SubmitAndWait`].
#[derive(Debug)]
pub struct Submitted {
    /// One each, in order.
    pub answers: Vec<Result<Taken, SubmitError>>,
    /// How the accepted ones ended, in order, once all have; a sender that is gone means that this node leads no more.
    pub ended: tokio::sync::oneshot::Receiver<Vec<Ended>>,
}

/// A task that was accepted, now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its identity.
    pub id: TaskId,
    /// `queued`, `leased`, `done`, `failed`, `dead` or `cancelled`.
    pub state: &'static str,
}

/// Wait until all of these are finished. `None`: this node does not lead (any more). Whoever drops the future waits no more.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Option<Vec<Ended>>")]
pub struct AwaitTasks(pub Vec<TaskId>);

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Identity.
    pub id: TaskId,
    /// `done`, `failed`, `dead` or `cancelled`.
    pub state: &'static str,
    /// JSON, when it is done and its receipt is kept.
    pub output: Option<Bytes>,
    /// Why it is not done.
    pub error: Option<String>,
}

/// Cancel a task that is not finished: a running attempt is stopped.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<TaskView, ChangeError>")]
pub struct CancelTask(pub TaskId);

/// Give a dead task another chance.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<TaskView, ChangeError>")]
pub struct RetryTask(pub TaskId);

/// Why a task was not cancelled or tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead.
    #[error("this node does not lead")]
    NotMaster,
    /// There is no such task.
    #[error("there is no task {0}")]
    Missing(TaskId),
    /// It cannot be done to a task that stands like this.
    #[error("the task is {state}: {why}")]
    Conflict {
        /// How it stands.
        state: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// It was not recorded, and nothing has changed.
    #[error("not recorded: {0}; try again")]
    NotRecorded(String),
    /// It may yet be recorded.
    #[error("the registry has not answered: it may yet take place; look at the task, or ask again")]
    Unknown,
}

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
    /// It is not recorded and will not be: the registry is away, slow, or refused it.
    #[error("not recorded: {0}; try again")]
    NotRecorded(String),
    /// It may yet be recorded: the same id must be sent again.
    #[error(
        "the registry has not answered: whether the task is recorded is unknown; send the same id again"
    )]
    Unknown,
    /// Its id is not known, and older than what is remembered: it may have been done and forgotten.
    #[error(
        "the id was made too long ago, before {floor}: what was done under such an id is forgotten; use a new one"
    )]
    Expired {
        /// RFC 3339: ids made before are not remembered.
        floor: String,
    },
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
    /// How its executor was chosen; only of one task that is asked for, while this master remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementView>,
}

/// Why an attempt went where it went, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementView {
    /// What chose among the candidates.
    pub balancer: BalancerKind,
    /// Who could have taken it, with what the balancer looked at.
    pub candidates: Vec<CandidateView>,
    /// Members beyond those named here.
    #[serde(default)]
    pub more: usize,
    /// Who could not.
    pub excluded: Vec<ExcludedView>,
}

/// A worker that could have taken an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateView {
    /// Its name.
    pub node: String,
    /// Attempts it had.
    pub outstanding: u32,
    /// Attempts it runs side by side.
    pub capacity: u32,
    /// How many more it accepted.
    pub credit: u32,
    /// Outstanding relative to capacity: the score; the lower, the better.
    pub load_percent: u64,
    /// Whether it was this one.
    pub chosen: bool,
}

/// A member that cannot take a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcludedView {
    /// Its name.
    pub node: String,
    /// In words.
    pub why: String,
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
    /// RFC 3339; absent unless it was to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// What the job last told of its progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What came with it, beside its input; a trace context among it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// The trace that it belongs to: what a `traceparent` said when it was submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Who cannot take it now and why, while it is queued; only of one task that is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<ExcludedView>,
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
    /// Open tasks that are recorded nowhere: they end with this master unless they are handed over.
    #[serde(default)]
    pub ephemeral: u64,
    /// The journal of durable tasks.
    #[serde(default)]
    pub journal: JournalSnapshot,
    /// What became of tasks here since this life of the actor began, in all its reigns.
    #[serde(default)]
    pub tally: tally::Tally,
}

/// How the journal stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JournalSnapshot {
    /// Segments in the registry.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Segments on their way.
    pub in_flight: u64,
    /// Segments committed in this reign.
    pub commits: u64,
    /// How long the last one took, µs.
    pub last_commit_us: u64,
    /// The registry does not answer, or refuses: durable submits are refused.
    pub stalled: bool,
}
