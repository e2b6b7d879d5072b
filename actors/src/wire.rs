//! What nodes say to each other: every message, its number and its class.
//!
//! A frame is `length u32 BE | kind u16 BE | header length u16 BE | header (postcard) | body (postcard)`. Versioning rule:
//! kinds are only added, fields are only appended to a body, trailing bytes are ignored, and a kind nobody knows is
//! answered with [`Unknown`], never fatal. Wire types are apart from domain types; nothing here decides anything.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{AttemptId, Epoch, Incarnation, JobName, NodeId, TaskId};

/// The protocol version this build speaks; the hello carries it first.
pub const PROTOCOL_VERSION: u16 = 1;

/// Largest input or output of a task, bytes.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// Bytes of tasks in one message: half the default frame cap, since a result may carry an input and an output of the largest size.
pub const MAX_BATCH: usize = 512 * 1024;

/// Hybrid logical clock: milliseconds of unix time in the upper 48 bits, a counter in the lower 16.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct Hlc(pub u64);

/// What stands before every body.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Header {
    /// The highest epoch the sender has seen.
    pub epoch: Epoch,
    /// The sender's hybrid logical clock.
    pub hlc: Hlc,
    /// W3C trace context (`traceparent`), when there is one.
    pub trace: Option<String>,
}

/// A message with its header.
#[derive(Clone, PartialEq, Debug)]
pub struct Envelope {
    /// What stands before the body.
    pub header: Header,
    /// The body.
    pub message: Message,
}

/// Whether a frame may wait behind task payloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Never waits behind bulk.
    Control,
    /// Task payloads, in order among themselves.
    Bulk,
}

/// Who handles a message on the receiving node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Desk {
    /// DiscoveryActor.
    Discovery,
    /// MasterActor.
    Master,
    /// WorkerActor.
    Worker,
    /// AdminActor.
    Admin,
    /// TransportActor itself.
    Transport,
}

macro_rules! messages {
    ($($kind:literal $name:ident $class:ident $desk:ident)*) => {
        /// Every message there is.
        #[derive(Clone, PartialEq, Debug)]
        #[allow(missing_docs)]
        pub enum Message { $($name($name),)* }

        impl Message {
            /// The number that stands for this message on the wire.
            pub fn kind(&self) -> u16 { match self { $(Self::$name(_) => $kind,)* } }
            /// Its name, for logs.
            pub fn name(&self) -> &'static str { match self { $(Self::$name(_) => stringify!($name),)* } }
            /// Whether it may wait behind bulk.
            pub fn class(&self) -> Class { match self { $(Self::$name(_) => Class::$class,)* } }
            /// Who handles it.
            pub fn desk(&self) -> Desk { match self { $(Self::$name(_) => Desk::$desk,)* } }
            /// Appends the body's bytes to `out`.
            pub fn encode_body(&self, out: Vec<u8>) -> Result<Vec<u8>, postcard::Error> {
                match self { $(Self::$name(body) => postcard::to_extend(body, out),)* }
            }
            /// Reads a body of this kind; `Ok(None)` for a kind nobody knows. Trailing bytes are ignored.
            pub fn decode_body(kind: u16, bytes: &[u8]) -> Result<Option<Self>, postcard::Error> {
                match kind {
                    $($kind => postcard::take_from_bytes::<$name>(bytes).map(|(body, _)| Some(Self::$name(body))),)*
                    _ => Ok(None),
                }
            }
        }
        $(impl From<$name> for Message { fn from(body: $name) -> Self { Self::$name(body) } })*
    };
}

messages! {
    1 Heartbeat Control Discovery
    2 Probe Control Discovery
    3 ProbeAnswer Control Discovery
    4 YourTurn Bulk Discovery
    5 DialBack Control Discovery
    6 Fenced Control Discovery
    7 Unknown Control Transport
    20 Report Bulk Master
    21 Assign Bulk Worker
    22 Results Bulk Master
    23 Acknowledge Bulk Worker
    24 Cancel Bulk Worker
    25 HandBack Bulk Master
    26 HandOver Bulk Master
    27 Shadow Bulk Master
    28 Started Bulk Master
    29 Progress Bulk Master
    40 ApiRequest Control Admin
    41 ApiResponse Bulk Admin
}

/// "I am alive", with what others decide on. Sent to every session at the heartbeat interval.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Rises by one; per session.
    pub seq: u64,
    /// Sender's monotonic clock at sending, µs.
    pub sent_us: u64,
    /// `sent_us` of the last heartbeat heard from the receiver, and how long it was held before this one, µs.
    pub echo: Option<(u64, u64)>,
    /// How late the sender's own timer fired lately, µs.
    pub lag_us: u64,
    /// "I reach the registry".
    pub registry: bool,
    /// The sender is draining and takes no more work.
    pub draining: bool,
    /// From a master: its epoch and the age of MasterActor's last turn, µs.
    pub master: Option<(Epoch, u64)>,
    /// Members the sender does not hear; at most 64 are named.
    pub unheard: Vec<NodeId>,
}

/// "Do you hear this one? If not, dial it." An indirect probe and the second re-dial of a hard verdict in one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Matches the answer to the question.
    pub nonce: u64,
    /// Who is in doubt.
    pub target: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
}

/// What the asked one found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProbeAnswer {
    /// From the question.
    pub nonce: u64,
    /// Who is in doubt.
    pub target: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// What was found.
    pub finding: Finding,
}

/// What a look at a peer found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Finding {
    /// A byte of it arrived within the suspicion floor, or a dial succeeded.
    Heard,
    /// A dial was refused by the peer's own machine.
    Refused,
    /// A dial got no answer.
    Silent,
}

/// From a master that stands down: "take over from this epoch, the ledger is with you".
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct YourTurn {
    /// The epoch that ends.
    pub epoch: Epoch,
    /// Why, in words.
    pub why: String,
}

/// What a peer found when it dialled the advertised address of the receiver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DialBack {
    /// The address that was dialled.
    pub address: String,
    /// `None`: it is right. Otherwise what is wrong, in words.
    pub problem: Option<String>,
}

/// The answer to anything that came under an old epoch: here is the higher one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fenced {
    /// The higher epoch.
    pub epoch: Epoch,
    /// The refused epoch.
    pub refused: Epoch,
    /// The refused message's name.
    pub what: String,
}

/// The answer to a kind that this build does not know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unknown {
    /// The kind.
    pub kind: u16,
}

/// Names with values, which most tasks have none of: then it takes a pointer's room. On the wire it is a map.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
#[allow(
    clippy::box_collection,
    reason = "a map takes three words even when it is empty"
)]
pub struct Labels(Option<Box<BTreeMap<String, String>>>);

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self((!labels.is_empty()).then(|| Box::new(labels)))
    }
}

impl std::ops::Deref for Labels {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl Serialize for Labels {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(from).map(Self::from)
    }
}

/// One piece of work, as it was submitted. JSON payloads are carried opaque.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Identity and idempotency key.
    pub id: TaskId,
    /// The kind of work.
    pub job: JobName,
    /// JSON, at most [`MAX_PAYLOAD`] bytes.
    pub input: Bytes,
    /// Carried beside the payload (trace context).
    pub meta: Labels,
    /// Whether it must survive the loss of every node.
    pub durable: bool,
    /// How long one attempt may take, ms.
    pub timeout_ms: u64,
    /// How many attempts before it is dead.
    pub max_attempts: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Tags a worker must have.
    pub require: Labels,
    /// When it was accepted, unix ms.
    pub created_ms: u64,
    /// Not to be handed out before, unix ms; 0 for at once.
    pub not_before_ms: u64,
}

impl TaskSpec {
    /// About how many bytes it takes in a frame.
    pub fn weight(&self) -> usize {
        let pairs = self.meta.iter().chain(self.require.iter());
        let pairs: usize = pairs.map(|(k, v)| k.len() + v.len() + 8).sum();
        96 + self.job.len() + self.input.len() + pairs
    }
}

/// Splits what would not fit one frame: batches of at most [`MAX_BATCH`] bytes, or of one item.
pub fn batches<T>(items: Vec<T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut batches: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let bytes = weight(&item);
        match batches.last_mut() {
            Some(batch) if bytes <= room => {
                room -= bytes;
                batch.push(item);
            }
            _ => {
                room = MAX_BATCH.saturating_sub(bytes);
                batches.push(vec![item]);
            }
        }
    }
    batches
}

/// An attempt with all a worker (or a new master) needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// Which attempt.
    pub attempt: AttemptId,
    /// The whole task.
    pub spec: TaskSpec,
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The job's output, JSON.
    Done(Bytes),
    /// The job said "do not retry", and why.
    Failed(String),
    /// It went wrong in a way that another try may mend, and how.
    Retry(String),
    /// It was cancelled.
    Cancelled,
    /// It overran its time.
    TimedOut,
}

/// What a worker reports of a finished attempt. Kept until acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskResult {
    /// Which attempt, under the token it was handed out with.
    pub attempt: AttemptId,
    /// How it ended.
    pub outcome: Outcome,
    /// Unix ms on the worker's clock.
    pub started_ms: u64,
    /// Unix ms on the worker's clock.
    pub finished_ms: u64,
    /// The whole task when the receiver may not know it (reports to a new master), else absent.
    pub spec: Option<TaskSpec>,
}

/// A worker's first word to a master under an epoch, on each new session: all it runs and holds, and its credit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The master's epoch it speaks to.
    pub epoch: Epoch,
    /// Running attempts with the whole task, and when each started (unix ms; 0: not started yet).
    pub running: Vec<(Assignment, u64)>,
    /// Finished, not yet acknowledged.
    pub results: Vec<TaskResult>,
    /// Tasks whose results were acknowledged lately (bounded), so that a shadow is not run again.
    pub recent: Vec<TaskId>,
    /// Attempts it accepts beyond those it runs.
    pub credit: u32,
    /// Further `Report`s of this snapshot follow.
    pub more: bool,
    /// Number of this report in the worker's life; all parts of one carry the same.
    pub serial: u64,
}

/// Master to worker: run these.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assign {
    /// The master's epoch.
    pub epoch: Epoch,
    /// At most the credit granted.
    pub assignments: Vec<Assignment>,
    /// The report whose credit this spends. A worker that has reported anew since drops it: the master learns from the newer
    /// report that none of it runs.
    pub report: u64,
}

/// Worker to master: these have started to execute.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Started {
    /// The master's epoch.
    pub epoch: Epoch,
    /// Which attempts.
    pub attempts: Vec<AttemptId>,
}

/// Worker to master: this attempt is getting on, and may take its time-out anew.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The master's epoch.
    pub epoch: Epoch,
    /// Which attempt.
    pub attempt: AttemptId,
    /// How far it is, in the job's own words.
    pub told: String,
}

/// Worker to master: these ended; and this much more credit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Results {
    /// The master's epoch.
    pub epoch: Epoch,
    /// May be empty when only credit is granted.
    pub results: Vec<TaskResult>,
    /// Added to what was granted before.
    pub credit: u32,
}

/// Master to worker: recorded, or refused for good; drop your copies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Acknowledge {
    /// The master's epoch.
    pub epoch: Epoch,
    /// Each attempt, and why it was refused if it was.
    pub attempts: Vec<(AttemptId, Option<String>)>,
}

/// Master to worker: stop these.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cancel {
    /// The master's epoch.
    pub epoch: Epoch,
    /// Which attempts.
    pub attempts: Vec<AttemptId>,
    /// Why, in words.
    pub why: String,
}

/// Worker to master: I will not run these (draining, or beyond my credit); give them to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HandBack {
    /// The master's epoch.
    pub epoch: Epoch,
    /// Which attempts.
    pub attempts: Vec<AttemptId>,
    /// Why, in words.
    pub why: String,
}

/// A task of a ledger that is handed over or shadowed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The whole task.
    pub spec: TaskSpec,
    /// The attempts begun so far, newest last: token, worker, its incarnation.
    pub attempts: Vec<(AttemptId, NodeId, Incarnation)>,
    /// Whether the newest attempt is with a worker.
    pub leased: bool,
}

impl LedgerEntry {
    /// About how many bytes it takes in a frame.
    pub fn weight(&self) -> usize {
        self.spec.weight() + 72 * self.attempts.len()
    }
}

/// From a master that stands down to its heir: the running ledger, in parts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HandOver {
    /// The epoch that ends.
    pub epoch: Epoch,
    /// Part of the ledger.
    pub entries: Vec<LedgerEntry>,
    /// Further parts follow.
    pub more: bool,
    /// 0 begins a new stream: what came of an earlier one under the same epoch is void.
    pub part: u32,
}

/// From a master to its likely heir, now and then: its open ephemeral tasks (bounded), so that a crash can name them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shadow {
    /// The master's epoch.
    pub epoch: Epoch,
    /// All open ephemeral tasks up to the bound.
    pub entries: Vec<LedgerEntry>,
    /// How many more there were beyond the bound.
    pub beyond: u64,
}

/// An admin request carried to another node over its session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ApiRequest {
    /// Matches the response to the request.
    pub nonce: u64,
    /// `GET`, `POST`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Body, may be empty.
    pub body: Bytes,
    /// Who asked the sender, and from which address: `operator@10.0.0.9`. Appended: absent from an earlier build, and when
    /// nobody asked.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "appended"
    )]
    pub by: String,
}

/// A field that earlier builds do not write.
fn appended<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(T::deserialize(from).unwrap_or_default())
}

/// The response to an [`ApiRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ApiResponse {
    /// From the request.
    pub nonce: u64,
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// Body.
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carried_request_says_who_asked_and_is_read_from_builds_that_do_not_say() {
        let request = |by: &str| ApiRequest {
            nonce: 5,
            method: "POST".to_owned(),
            path: "/v1/master/step-down".to_owned(),
            body: Bytes::new(),
            by: by.to_owned(),
        };
        let encode = |request: &ApiRequest| postcard::to_allocvec(request).unwrap();
        let named = request("operator@10.0.0.9");
        let bytes = encode(&named);
        assert_eq!(postcard::from_bytes::<ApiRequest>(&bytes).unwrap(), named);
        // An earlier build writes what comes before, and reads no further.
        let earlier = encode(&request(""));
        assert!(bytes.starts_with(&earlier) && bytes.len() > earlier.len());
        let read = postcard::from_bytes::<ApiRequest>(&earlier).unwrap();
        assert_eq!(read, request(""));
    }
}
