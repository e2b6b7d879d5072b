//! The admin API: what people and programs ask of a node over HTTP, and what one node carries to another for them.
//!
//! This page is the contract of the folder. Promises: any node answers for the cluster (what belongs to the master or to
//! a named node is carried there over the session, once, never on from there); every answer comes within a deadline, and
//! a deaf actor is named (504) instead of waited for; `/livez` depends on nothing; every connection, body, follower and
//! carried request is bounded; a slow follower is told what it missed. It does *not* promise that a write whose carrier
//! fell silent was not done: that is said as `unknown`, and a submit may be sent again under the same id.
//!
//! | file | what it decides |
//! |---|---|
//! | `access` ● | who may ask for what: tokens, hosts, pages of other sites |
//! | `audit` | who asked for what, and what was refused |
//! | `tls` | the certificate, and whose it is |
//! | `process` ⇄ | what the kernel says of this process |
//! | `picture` ● | since when a member or a master is as it is |
//! | `office` | what handlers share: the picture, questions with a deadline, who a request belongs to |
//! | `relay` | carrying a request to another node, and matching the answer |
//! | `follow` | event and log streams |
//! | `gazette` | the records of all members, in one order |
//! | `why` ● | what the recorded decisions say of a node or the master, in words |
//! | `routes/` | one file per group of routes |
//! | `serve` ⇄ | connections: bounded in number and in patience |
//! | `patient` ⇄ | a connection whose writes must get on |
//! | `actor` ▶ | AdminActor |

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Recipient;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::cluster::Identity;
use crate::discovery::{Reborn, StepDown};
use crate::events::EventLog;
use crate::id::{NodeId, TaskId};
use crate::master::{
    AskMaster, AwaitTasks, CancelTask, GetTask, JournalSnapshot, ListTasks, MasterSnapshot,
    RetryTask, Submit, SubmitAndWait, TaskView,
};
use crate::registry::{AskRegistry, EditKey, KeyView, ListKeys, RegistrySnapshot, WatchKeys};
use crate::transport;
use crate::worker::AskWorker;

pub(crate) mod access;
mod actor;
mod audit;
mod follow;
mod gazette;
mod metrics;
mod office;
mod patient;
mod picture;
mod process;
mod relay;
mod reply;
pub mod routes;
mod serve;
pub mod tls;
mod why;

pub use access::{Access, NoToken, Token, Who};
pub use actor::AdminActor;
pub use audit::Audit;
pub use office::{Life, Office};
pub use process::ProcessView;

/// Knobs of the admin API, `[admin]` in `config.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminSettings {
    /// Whether keys of the registry may be changed through the API.
    pub edit_registry: bool,
    /// How long an actor of this node may take to answer.
    pub ask_timeout: Duration,
    /// How long another node may take to answer a carried request.
    pub relay_timeout: Duration,
    /// How long a request for the master waits while there is none.
    pub master_wait: Duration,
    /// How long a step-down or a promotion may take.
    pub step_down_timeout: Duration,
    /// Longest `?wait=` of a task or of events.
    pub max_wait: Duration,
    /// A TLS handshake and a request's head must be done within this; also how long a kept-alive connection may idle.
    pub header_timeout: Duration,
    /// A request's body must arrive within this.
    pub body_timeout: Duration,
    /// A connection whose answer is not taken in for this long is cut.
    pub write_timeout: Duration,
    /// Connections of one address at one time, loopback excepted; further ones are closed at once.
    pub max_per_address: usize,
    /// Headers of one request.
    pub max_headers: usize,
    /// Connections at one time; beyond, new ones wait in the listener's backlog.
    pub max_connections: usize,
    /// Largest body of a request, bytes.
    pub max_body: usize,
    /// Bodies being taken in at one time; with `max_body` this bounds their memory.
    pub max_uploads: usize,
    /// Followers of events and logs at one time.
    pub max_followers: usize,
    /// Requests of other nodes being answered at one time.
    pub max_relayed: usize,
    /// Requests carried to other nodes and not yet answered.
    pub max_carried: usize,
    /// A follower hears something (a comment, an empty line) at least this often.
    pub keep_alive: Duration,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            edit_registry: false,
            ask_timeout: Duration::from_secs(2),
            relay_timeout: Duration::from_secs(5),
            master_wait: Duration::from_secs(2),
            step_down_timeout: Duration::from_secs(15),
            max_wait: Duration::from_secs(60),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            max_per_address: 64,
            max_headers: 64,
            max_connections: 512,
            max_body: 4 * 1024 * 1024,
            max_uploads: 16,
            max_followers: 128,
            max_relayed: 64,
            max_carried: 1024,
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// The supervision tree of this node, as far as the API shows and breaks it.
pub trait Actors: Send + Sync {
    /// How each actor stands. Must not block.
    fn report(&self) -> Vec<ActorView>;
    /// The calls that led to an actor's last panic, one a line; `None` when it had none. May block for a fifth of a second.
    fn trace(&self, name: &str) -> Option<String>;
    /// Breaks an actor on purpose: `panic`, `stop` or `hang`. `Err` says in words why that was not done.
    fn kill(&self, name: &str, how: &str) -> Result<(), String>;
}

/// Starts the drain of this node; called again while draining, it does nothing.
pub type DrainTrigger = Arc<dyn Fn() + Send + Sync>;

/// What the drain of this node came to; `None` until then. It is said before the node deregisters, so that whoever asked for it,
/// also through another node, can still be told.
pub type DrainOutcome = watch::Receiver<Option<DrainReceipt>>;

/// The settings of this node, as far as the API shows and changes them. No secret is shown.
pub trait Settings: Send + Sync {
    /// Every setting as it is in use.
    fn show(&self) -> BTreeMap<String, SettingView>;
    /// Changes these, all of them or none; they last until the next reload. `Err` says in words why nothing was changed.
    fn set(
        &self,
        values: BTreeMap<String, Value>,
    ) -> BoxFuture<'static, Result<ChangedView, String>>;
    /// Reads the configuration again, as SIGHUP does. `Err` says in words why nothing was changed.
    fn reload(&self) -> BoxFuture<'static, Result<ChangedView, String>>;
}

/// The settings of a node that has none to show or to change.
#[derive(Clone, Copy, Debug)]
pub struct NoSettings;

impl Settings for NoSettings {
    fn show(&self) -> BTreeMap<String, SettingView> {
        BTreeMap::new()
    }

    fn set(&self, _: BTreeMap<String, Value>) -> BoxFuture<'static, Result<ChangedView, String>> {
        self.reload()
    }

    fn reload(&self) -> BoxFuture<'static, Result<ChangedView, String>> {
        Box::pin(async { Err("this node has no settings to change".to_owned()) })
    }
}

/// What every life of AdminActor is made from.
#[derive(Clone)]
pub struct AdminSeed {
    /// Knobs.
    pub settings: AdminSettings,
    /// Who this node is.
    pub identity: Identity,
    /// Bound by the node; outlives the actor, each life serves a clone of it.
    pub listener: Arc<TcpListener>,
    /// Start of the process, unix ms.
    pub started_at: u64,
    /// Start of the process on the monotonic clock.
    pub started: Instant,
    /// Recent records of this node.
    pub events: EventLog,
    /// Whom the transport refused, for the metrics.
    pub refusals: transport::Refusals,
    /// The supervision tree.
    pub actors: Arc<dyn Actors>,
    /// Starts this node's drain.
    pub drain: DrainTrigger,
    /// What it came to.
    pub drained: DrainOutcome,
    /// Its settings.
    pub config: Arc<dyn Settings>,
    /// Who is let in.
    pub access: Access,
    /// Who asked for what; goes on over the lives of the actor.
    pub audit: Audit,
    /// The certificate; without one the API is in the clear.
    pub tls: Option<Arc<tls::ServerTls>>,
    /// MasterActor: counts.
    pub ask_master: Recipient<AskMaster>,
    /// MasterActor: tasks.
    pub list_tasks: Recipient<ListTasks>,
    /// MasterActor: one task.
    pub get_task: Recipient<GetTask>,
    /// Takes tasks in and waits for them.
    pub submit_and_wait: Recipient<SubmitAndWait>,
    /// Waits for tasks to finish.
    pub await_tasks: Recipient<AwaitTasks>,
    /// Cancels one task.
    pub cancel_task: Recipient<CancelTask>,
    /// Gives a dead task another chance.
    pub retry_task: Recipient<RetryTask>,
    /// MasterActor: new tasks.
    pub submit: Recipient<Submit>,
    /// WorkerActor: counts.
    pub ask_worker: Recipient<AskWorker>,
    /// RegistryActor: how it stands.
    pub ask_registry: Recipient<AskRegistry>,
    /// RegistryActor: keys.
    pub list_keys: Recipient<ListKeys>,
    /// RegistryActor: change a key.
    pub edit_key: Recipient<EditKey>,
    /// RegistryActor: changes of keys.
    pub watch_keys: Recipient<WatchKeys>,
    /// DiscoveryActor: give up mastership.
    pub step_down: Recipient<StepDown>,
    /// DiscoveryActor: send the picture again.
    pub reborn: Recipient<Reborn>,
    /// TransportActor: carry a message.
    pub send: Recipient<transport::Send>,
}

/// `GET /v1/status`: one summary. What an actor did not answer in time is absent and named in `unanswered`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Name of the node that answers.
    pub node: String,
    /// Its identity.
    pub id: NodeId,
    /// Name of the cluster.
    pub cluster: String,
    /// What it advertises to other nodes.
    pub address: String,
    /// Version of its binary.
    pub version: String,
    /// Start of its process, RFC 3339.
    pub started_at: String,
    /// Since then, seconds.
    pub uptime_s: u64,
    /// Its clock, RFC 3339.
    #[serde(default)]
    pub now: String,
    /// Which life of it; 0 while unregistered.
    pub incarnation: i64,
    /// Registry revision of its view.
    pub revision: i64,
    /// The highest epoch it has seen.
    pub epoch: String,
    /// Who leads.
    pub master: Option<MasterView>,
    /// Whether it leads itself.
    pub leading: bool,
    /// Members by state.
    pub members: BTreeMap<String, u64>,
    /// How the registry and its registration stand.
    pub registry: Option<RegistrySnapshot>,
    /// Tasks by state, as the master counts them.
    pub tasks: Option<BTreeMap<String, u64>>,
    /// The journal of durable tasks, as the master knows it.
    #[serde(default)]
    pub journal: Option<JournalSnapshot>,
    /// Its worker.
    pub worker: Option<WorkerView>,
    /// What did not answer in time.
    pub unanswered: Vec<String>,
}

/// The worker in [`StatusView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Attempts running now.
    pub running: usize,
    /// Finished, not yet acknowledged.
    pub unacknowledged: usize,
    /// Attempts it runs side by side.
    pub capacity: u32,
    /// Attempts started in this life.
    pub started: u64,
    /// Results acknowledged in this life.
    pub finished: u64,
    /// Under which epoch it serves.
    pub epoch: String,
}

/// `GET /v1/members`: the view, as the answering node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MembersView {
    /// Registry revision of the view.
    pub revision: i64,
    /// Oldest first.
    pub members: Vec<MemberView>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its label.
    pub name: String,
    /// Its identity.
    pub id: NodeId,
    /// Where other nodes reach it.
    pub address: String,
    /// Its admin API.
    pub admin: String,
    /// Which life of it.
    pub incarnation: i64,
    /// `alive`, `suspect`, `cut-off`, `joining` or `draining`.
    pub state: String,
    /// Whether it leads.
    pub master: bool,
    /// Preference at an election.
    pub weight: i32,
    /// Whether it may lead.
    pub eligible: bool,
    /// Kinds of work it knows.
    pub jobs: Vec<String>,
    /// Labels for placement.
    pub tags: BTreeMap<String, String>,
    /// Attempts it runs side by side.
    pub capacity: u32,
    /// Attempts outstanding with it, as the master counts them; absent while the master does not say.
    pub running: Option<u64>,
    /// Version of its binary.
    pub version: String,
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Since when the answering node sees it in this state, RFC 3339.
    pub since: String,
    /// Start of its process, RFC 3339.
    pub started_at: String,
    /// Whether it lets in whoever reaches its port (`--insecure`).
    #[serde(default)]
    pub insecure: bool,
    /// Whether a session to it is up.
    pub session: bool,
    /// Smoothed round-trip time, µs.
    pub rtt_us: Option<u64>,
    /// How late its own timers are, as it says, µs.
    pub lag_us: u64,
    /// Whether it reaches the registry, as it says.
    pub registry: bool,
    /// Names (ids of strangers) of members it does not hear, as it says.
    pub unheard: Vec<String>,
}

/// `GET /v1/master`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterView {
    /// Its label.
    pub name: String,
    /// Its identity.
    pub id: NodeId,
    /// Where other nodes reach it.
    pub address: String,
    /// The fence it acts under.
    pub epoch: String,
    /// Since when the answering node sees it lead, RFC 3339.
    pub since: String,
}

/// `GET /v1/actors`: the supervision trees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActorsView {
    /// One entry per member, oldest first.
    pub nodes: Vec<NodeActors>,
}

/// The actors of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeActors {
    /// Its label.
    pub node: String,
    /// In start order.
    pub actors: Vec<ActorView>,
    /// `unreachable` when it did not answer; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why not, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActorView {
    /// `registry`, `discovery`, …
    pub name: String,
    /// `running`, `restarting`, `stopped` or `hung`.
    pub state: String,
    /// Restarts since the start of the process.
    pub restarts: u64,
    /// The last failure, in words.
    pub last_failure: Option<String>,
    /// Messages waiting, when that is known.
    pub mailbox: Option<usize>,
    /// Messages handled.
    pub handled: u64,
    /// Age of this life, seconds.
    pub uptime_s: f64,
    /// The message whose handler does not return, while it is hung.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_with: Option<String>,
}

/// `GET /v1/actors/{name}/failure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureView {
    /// The node.
    pub node: String,
    /// The actor.
    pub actor: String,
    /// Its last failure, in words; absent when it never failed.
    pub failure: Option<String>,
    /// The calls that led to its last panic, one a line.
    pub trace: Option<String>,
}

/// Body of `POST /v1/actors/{name}/kill`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillBody {
    /// `panic`, `stop` or `hang`.
    #[serde(default = "KillBody::panic")]
    pub how: String,
}

impl KillBody {
    fn panic() -> String {
        "panic".to_owned()
    }
}

/// Answer of `POST /v1/actors/{name}/kill`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KilledView {
    /// On which node.
    pub node: String,
    /// Which actor.
    pub actor: String,
    /// How.
    pub how: String,
}

/// Answer of `POST /v1/members/{name}/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// Which node.
    pub node: String,
    /// Always true: the drain has begun.
    pub draining: bool,
}

/// What a drain came to: answer of `POST /v1/members/{name}/drain?wait=`, and the fields of `node.drained`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrainReceipt {
    /// Which node.
    pub node: String,
    /// Its identity.
    pub id: NodeId,
    /// Attempts that ran when it began, and finished.
    pub finished: u64,
    /// Attempts handed back to the master, to run elsewhere.
    pub handed_back: u64,
    /// Attempts and results that no master was there to be told of: durable ones run again.
    pub untold: u64,
    /// Who leads instead; absent when this node did not lead, or nobody took over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heir: Option<String>,
    /// Under which epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// Open ephemeral tasks that went over to the heir.
    pub handed_over: u64,
    /// Open ephemeral tasks that were this node's alone, and end with it. Durable ones never do.
    pub lost: u64,
    /// For how long nobody led; absent when this node did not lead, or nobody took over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masterless_ms: Option<f64>,
    /// How long it took so far; deregistering and stopping come after it.
    pub duration_ms: u64,
    /// What was not as it should be, in words; empty for a clean drain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<String>,
}

impl DrainReceipt {
    /// Nothing is lost, and every step was done in its time.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.wrong.is_empty()
    }
}

/// One setting, in `GET /v1/config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingView {
    /// Its value; `null` when it is not set.
    pub value: Value,
    /// Where it came from.
    pub origin: String,
    /// Whether it can be changed while the node runs.
    pub live: bool,
}

/// `GET /v1/config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigView {
    /// Which node.
    pub node: String,
    /// By key.
    pub settings: BTreeMap<String, SettingView>,
}

/// Answer of `POST /v1/config` and `POST /v1/config/reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedView {
    /// Which node.
    pub node: String,
    /// What is in use now, `key = value`.
    pub changed: Vec<String>,
    /// What differs and needs a restart, `key = value`.
    pub needs_restart: Vec<String>,
}

/// `GET /v1/registry`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegistryView {
    /// Sorted by key.
    pub keys: Vec<KeyView>,
    /// How the registry stands, seen from the answering node; absent when that was not answered in time.
    pub registry: Option<RegistrySnapshot>,
    /// Whether keys may be changed through the answering node (`admin.edit_registry`).
    #[serde(default)]
    pub editable: bool,
}

/// `GET /v1/tasks`: a page, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TasksView {
    /// The page.
    pub tasks: Vec<TaskView>,
    /// `?after=` of the next page; absent on the last one.
    pub next: Option<TaskId>,
}

/// Answer per accepted task of `POST /v1/tasks`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// Its identity; the same id again is the same task.
    pub id: TaskId,
    /// Its state now.
    pub state: String,
    /// What it gave, when somebody waited for it and it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Box<RawValue>>,
    /// Why it is not done, when somebody waited for it and it ended otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `GET /v1/events?follow=false` and `/v1/logs?follow=false`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordsView {
    /// Oldest first; each the fields of its log line and its `seq` at its node.
    pub records: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Records that are lost or did not fit.
    #[serde(default)]
    pub missed: u64,
    /// Nodes that did not answer, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, String>,
}

/// `GET /v1/why/node/{name}` and `GET /v1/why/master`: what was decided, and on which evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyView {
    /// What was asked.
    pub question: String,
    /// The answer, a sentence each, oldest first; the last one says how it stands now.
    pub answer: Vec<String>,
    /// The recorded decisions with their inputs, as logged.
    pub records: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Nodes that did not answer, and why: their evidence is not in here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, String>,
}

/// `GET /v1/debug`: what a node says of itself for a debug bundle. No secret is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DebugView {
    /// Its status.
    pub status: StatusView,
    /// Its actors.
    pub actors: Vec<ActorView>,
    /// The view as it sees it.
    pub members: Value,
    /// Its settings in use.
    pub config: BTreeMap<String, SettingView>,
    /// What the kernel says of its process.
    pub process: ProcessView,
    /// The master's counts, as this node knows them: all zero unless it leads.
    pub ledger: Option<MasterSnapshot>,
    /// Followers of its events and logs.
    pub followers: u64,
    /// Records logged since its start.
    pub log_records: u64,
    /// Version of the protocol it speaks.
    pub protocol: u16,
}

/// `GET /readyz?verbose`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyView {
    /// Whether all checks hold.
    pub ready: bool,
    /// What was looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckView>,
}

/// One check of [`ReadyView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// What was looked at.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was found, in words.
    pub detail: String,
}
