//! The registry: where nodes register and where mastership is decided. etcd, or the embedded server that speaks its protocol.
//!
//! This page is the contract of the folder. [`Backend`] is what a registry must offer: one linearizable read, one
//! transaction, leases, one watch. The algorithm (registration, view, claims, verdicts) stays above it, so that a new
//! backend never re-implements an election. Every backend passes [`contract`].
//!
//! Promises of a backend: a transaction that answered has happened or not, as it says; times are bounded by
//! [`Timeouts`]; an error says whether the outcome is unknown. It does *not* promise that a watch is complete: a watch
//! is a hint, and every safety decision sits inside a compare-transaction.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub mod actor;
#[doc(hidden)]
pub mod contract;
pub mod copy;
pub mod embedded;
pub mod etcd;
mod keeper;
pub mod operator;
pub mod session;

/// One key with what the registry knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    /// The key, always UTF-8 under a cluster's prefix.
    pub key: String,
    /// The value, opaque.
    pub value: Bytes,
    /// Revision at which this life of the key began; for a registration, the incarnation.
    pub create_revision: i64,
    /// Revision of its last change; for the master key, the epoch.
    pub mod_revision: i64,
    /// How often this life of the key was put, from 1.
    pub version: i64,
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
}

/// Which registry answered, and as of when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The registry's own cluster id; another one means another registry.
    pub cluster_id: u64,
    /// The store revision of the answer.
    pub revision: i64,
}

/// Everything under a prefix at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Who answered, at which revision.
    pub stamp: Stamp,
    /// Sorted by key.
    pub kvs: Vec<Kv>,
}

/// A condition of a transaction; all must hold. 0 means "the key does not exist".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// `create_revision(key) == revision`.
    Created(String, i64),
    /// `mod_revision(key) == revision`.
    Modified(String, i64),
}

/// A write or read inside a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Put a value under a lease (0 for none).
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The lease, 0 for none.
        lease: i64,
    },
    /// Delete one key.
    Delete(String),
    /// Delete all that starts with this prefix.
    DeletePrefix(String),
    /// Read one key.
    Get(String),
    /// Read all that starts with this prefix.
    List(String),
}

/// IF all `when` THEN `then` ELSE `otherwise`, atomically. At most 128 operations and 1.5 MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub when: Vec<Compare>,
    /// What happens when all hold.
    pub then: Vec<Op>,
    /// What happens when one does not.
    pub otherwise: Vec<Op>,
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Whether all conditions held, so `then` was done.
    pub succeeded: bool,
    /// Who answered; `revision` is that of the transaction when it wrote.
    pub stamp: Stamp,
    /// One entry per operation done, in order; empty for writes.
    pub reads: Vec<Vec<Kv>>,
}

/// A granted lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id, never 0.
    pub id: i64,
    /// The time to live that was granted (etcd grants 2 s at the least).
    pub ttl: Duration,
}

/// One change seen by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was put.
    Put(Kv),
    /// The key was deleted or its lease ended, at this revision.
    Delete {
        /// The key.
        key: String,
        /// Revision of the deletion.
        revision: i64,
    },
}

/// Changes of one registry revision or more, in order. Empty is a sign of life (progress).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// Who answered, at which revision.
    pub stamp: Stamp,
    /// In order of revision.
    pub changes: Vec<Change>,
}

/// A running watch; it ends with an error, or with `None` when the server closed it.
pub type WatchStream = BoxStream<'static, Result<WatchBatch, RegistryError>>;

/// What the registry's process says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Version it reports.
    pub version: String,
    /// Size of its database in bytes.
    pub db_size: u64,
    /// Revision it is at.
    pub revision: i64,
}

/// Bounds on every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a TCP (and TLS) connection.
    pub connect: Duration,
    /// For a unary call, end to end; a listing of many pages is one such call per page.
    pub request: Duration,
    /// HTTP/2 keep-alive of connections with a watch: ping after this much silence (but not before 5.5 s of it, because
    /// etcd cuts who pings more often than every 5 s), give up when this much later there is no answer.
    pub keep_alive: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            request: Duration::from_secs(2),
            keep_alive: Duration::from_secs(1),
        }
    }
}

/// Why a call to the registry did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Nobody answered, or not in time. A write may or may not have happened: send the same conditional transaction again.
    #[error("registry unreachable at {endpoints}: {why}")]
    Unreachable {
        /// Where it was tried.
        endpoints: String,
        /// The last failure, in the transport's words.
        why: String,
    },
    /// The lease is not known (any more); nothing was changed.
    #[error("lease {id} is gone")]
    LeaseLost {
        /// The lease.
        id: i64,
    },
    /// The watched or read revision was compacted away: list again.
    #[error("revision is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// The oldest revision that can still be read.
        oldest: i64,
    },
    /// The registry refused the request itself; nothing was changed. The caller's fault, or the registry's policy.
    #[error("registry refused: {why}")]
    Refused {
        /// The registry's words.
        why: String,
    },
}

/// What a registry must offer. See the module page for its promises.
pub trait Backend: Send + Sync {
    /// Reads everything under `prefix` (a key itself counts), linearizably, at one revision; in pages under the reply limit.
    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing, RegistryError>>;
    /// Does one transaction.
    fn txn(&self, txn: Txn) -> BoxFuture<'static, Result<TxnOutcome, RegistryError>>;
    /// Grants a lease of at least `ttl`.
    fn grant(&self, ttl: Duration) -> BoxFuture<'static, Result<Lease, RegistryError>>;
    /// Renews a lease once; answers its new remaining time, or [`RegistryError::LeaseLost`].
    fn renew(&self, lease: i64) -> BoxFuture<'static, Result<Duration, RegistryError>>;
    /// Remaining time of a lease, or [`RegistryError::LeaseLost`].
    fn remaining(&self, lease: i64) -> BoxFuture<'static, Result<Duration, RegistryError>>;
    /// Ends a lease and deletes its keys. A lease that is already gone is fine.
    fn revoke(&self, lease: i64) -> BoxFuture<'static, Result<(), RegistryError>>;
    /// Watches `prefix` from `revision` on (inclusive). Answers when the server has confirmed.
    fn watch(
        &self,
        prefix: &str,
        revision: i64,
    ) -> BoxFuture<'static, Result<WatchStream, RegistryError>>;
    /// Drops the history before `revision`, for everybody who uses this registry. One that is dropped already is fine.
    fn compact(&self, revision: i64) -> BoxFuture<'static, Result<(), RegistryError>>;
    /// What the registry says of itself.
    fn status(&self) -> BoxFuture<'static, Result<Status, RegistryError>>;
}

/// Knobs of the registry's client side, `[registry]` in `config.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistrySettings {
    /// `http://host:port` of each member; empty means the embedded registry of this machine.
    pub endpoints: Vec<String>,
    /// Time to live of the registration's lease.
    pub ttl: Duration,
    /// The lease is renewed this often.
    pub renew: Duration,
    /// Bounds on every call.
    pub timeouts: Timeouts,
    /// The view is listed again this often even when the watch seems fine.
    pub relist: Duration,
    /// First and longest wait between tries while the registry is away.
    pub retry_min: Duration,
    /// See `retry_min`.
    pub retry_max: Duration,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            ttl: Duration::from_secs(120),
            renew: Duration::from_secs(60),
            timeouts: Timeouts::default(),
            relist: Duration::from_secs(30),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_millis(500),
        }
    }
}

/// Read keys for an operator, with what is left of their leases.
#[derive(Clone, Debug, actix::Message)]
#[rtype(result = "Result<Vec<KeyView>, RegistryError>")]
pub struct ListKeys {
    /// Relative to the cluster's prefix unless it starts with `/`.
    pub prefix: String,
}

/// Change or delete one key, if it still is as it was seen.
#[derive(Clone, Debug, actix::Message)]
#[rtype(result = "Result<i64, EditRefused>")]
pub struct EditKey {
    /// Relative to the cluster's prefix unless it starts with `/`.
    pub key: String,
    /// Its `mod_revision` when it was looked at.
    pub seen: i64,
    /// What it becomes; `None` deletes it.
    pub value: Option<Bytes>,
}

/// Why a key was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditRefused {
    /// It is no key of this cluster; nothing was changed.
    #[error("{key} is not below {prefix}: only keys of this cluster are changed here")]
    Foreign {
        /// The key.
        key: String,
        /// Where the cluster's keys are.
        prefix: String,
    },
    /// Somebody changed it meanwhile, or it is gone (0); nothing was changed.
    #[error(
        "{key} was changed since it was looked at: seen at revision {seen}, now at {is} (0: it is gone); look again"
    )]
    Changed {
        /// The key.
        key: String,
        /// The revision that was seen.
        seen: i64,
        /// The revision it is at, or the registry's.
        is: i64,
    },
    /// It is binary, and what an operator writes is text; nothing was changed.
    #[error("{key} is binary: it can be deleted, not written")]
    Binary {
        /// The key.
        key: String,
    },
    /// The registry did not answer: it may have been done.
    #[error("{0}; whether it was done is unknown: look again")]
    Unknown(RegistryError),
    /// The registry did not do it.
    #[error("{0}")]
    Registry(#[from] RegistryError),
}

/// Watch keys for an operator.
#[derive(Clone, Debug, actix::Message)]
#[rtype(result = "Result<WatchStream, RegistryError>")]
pub struct WatchKeys {
    /// Relative to the cluster's prefix unless it starts with `/`.
    pub prefix: String,
}

/// One key as the API shows it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct KeyView {
    /// The key.
    pub key: String,
    /// The value; JSON when it is JSON, else a string.
    pub value: serde_json::Value,
    /// Revision at which this life of the key began.
    pub create_revision: i64,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// The lease, 0 for none, hex elsewhere in etcd.
    pub lease: i64,
    /// What is left of the lease, seconds.
    pub ttl_s: Option<u64>,
    /// Name of the node it belongs to, when that is known.
    pub owner: Option<String>,
    /// Why it looks stale (`owner is not registered`, …), when it does.
    pub stale: Option<String>,
    /// Whether the value is no text: what is shown of it is not what it is.
    #[serde(default)]
    pub binary: bool,
}

/// How the registry and our registration stand.
#[derive(Clone, Copy, Debug, actix::Message)]
#[rtype(result = "RegistrySnapshot")]
pub struct AskRegistry;

/// Answer to [`AskRegistry`].
#[derive(
    Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, actix::MessageResponse,
)]
pub struct RegistrySnapshot {
    /// Where it is.
    pub endpoints: Vec<String>,
    /// Whether it answers now.
    pub up: bool,
    /// Since when it does or does not, seconds.
    pub since_s: u64,
    /// What it says is its version, once known.
    pub version: Option<String>,
    /// Our incarnation; 0 while unregistered.
    pub incarnation: i64,
    /// What is left of our lease as last told, seconds.
    pub lease_remaining_s: Option<u64>,
    /// Last revision seen.
    pub revision: i64,
    /// The last error, in words.
    pub last_error: Option<String>,
}
