//! The embedded registry without its server, for simulations that bring a clock, a network and a disk of their own.
//!
//! It is the production store with its transactions, leases, watch history and compaction, driven by calls; left out are gRPC,
//! the lock and the file. With a disk, what was written is durable only after [`Direct::sync`], and nobody may be told before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::{
    Change, Compare, Kv, Lease, Listing, Op, RegistryError, Stamp, Status, Txn, TxnOutcome,
    WatchBatch,
};
use super::Config;
use super::disk::{Found, Write};
use super::error::Refusal;
use super::range::KeyRange;
use super::store::{Record, Store};
use super::txn::{self, Done, Expected, Relation};
use super::watches::{Notice, WatchRequest, Watches};

/// What would be in the file.
#[derive(Debug, Default)]
struct Saved {
    revision: i64,
    records: BTreeMap<Bytes, Record>,
    leases: BTreeMap<i64, i64>,
}

/// See the module page.
#[derive(Debug)]
pub struct Direct {
    config: Config,
    store: Store,
    saved: Option<Saved>,
    watches: BTreeMap<u64, Watches>,
    watched: u64,
    /// The last revision that [`Direct::history`] told.
    told: i64,
}

impl Direct {
    /// A new, empty registry; with `disk` it survives [`Direct::restart`].
    pub fn new(config: Config, disk: bool, now: Instant) -> Self {
        let saved = disk.then(|| Saved {
            revision: config.start_revision,
            ..Saved::default()
        });
        let store = match &saved {
            Some(saved) => Store::restored(saved.found(config.cluster_id), config.limits, now),
            None => Store::new(config.start_revision, config.limits, now),
        };
        Self {
            told: config.start_revision,
            config,
            store,
            saved,
            watches: BTreeMap::new(),
            watched: 0,
        }
    }

    /// The process ends and another one reads the disk: what was not synced never happened, and every watch has ended.
    ///
    /// # Panics
    /// It has no disk.
    #[must_use]
    pub fn restart(self, now: Instant) -> Self {
        let saved = self.saved.expect("a registry with a disk");
        let found = saved.found(self.config.cluster_id);
        Self {
            store: Store::restored(found, self.config.limits, now),
            saved: Some(saved),
            watches: BTreeMap::new(),
            ..self
        }
    }

    /// What was written so far is on disk from now on.
    pub fn sync(&mut self) {
        let (revision, writes) = (self.store.revision(), self.store.take_unsaved());
        if let Some(saved) = &mut self.saved {
            saved.revision = revision;
            writes.into_iter().for_each(|write| saved.take(write));
        }
    }

    /// Whether it has a disk.
    pub fn has_disk(&self) -> bool {
        self.saved.is_some()
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.store.revision()
    }

    /// Ends leases that are due; answers when to call again at the latest.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        self.store.tick(now);
        self.store.next_deadline()
    }

    /// Changes since the last call, oldest first: what an observer of the store itself sees.
    pub fn history(&mut self) -> Vec<Change> {
        let new = self.store.log_from(self.told + 1);
        let changes = new
            .filter(|entry| entry.revision > self.told)
            .flat_map(|entry| entry.changes.iter().map(|record| change(record)))
            .collect();
        self.told = self.store.revision();
        changes
    }

    /// As [`super::super::Backend::list`].
    pub fn list(&self, prefix: &str) -> Listing {
        let range = below(prefix);
        let found = self.store.alive(&range, self.store.revision());
        Listing {
            stamp: self.stamp(),
            kvs: found.map(|record| kv(record)).collect(),
        }
    }

    /// As [`super::super::Backend::txn`].
    ///
    /// # Errors
    /// It was refused, and changed nothing.
    pub fn txn(&mut self, txn: &Txn) -> Result<TxnOutcome, RegistryError> {
        let lease = txn
            .then
            .iter()
            .chain(&txn.otherwise)
            .find_map(|op| match op {
                Op::Put { lease, .. } if *lease != 0 => Some(*lease),
                _ => None,
            });
        let ops = |ops: &[Op]| ops.iter().map(op).collect();
        let asked = txn::Txn {
            compare: txn.when.iter().map(compare).collect(),
            success: ops(&txn.then),
            failure: ops(&txn.otherwise),
        };
        let done = self.store.txn(asked);
        let done = done.map_err(|refusal| refused(refusal, lease.unwrap_or(0), &self.store))?;
        let reads = done.done.iter().map(|done| match done {
            Done::Range(found) => found.records.iter().map(|record| kv(record)).collect(),
            Done::Put { .. } | Done::Delete { .. } | Done::Txn(_) => Vec::new(),
        });
        Ok(TxnOutcome {
            succeeded: done.succeeded,
            stamp: self.stamp(),
            reads: reads.collect(),
        })
    }

    /// As [`super::super::Backend::grant`], with an id that the caller chose.
    ///
    /// # Errors
    /// It was refused.
    pub fn grant(&mut self, id: i64, ttl: Duration, now: Instant) -> Result<Lease, RegistryError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let granted = self.store.grant(id, seconds, now);
        let ttl = granted.map_err(|refusal| refused(refusal, id, &self.store))?;
        Ok(Lease {
            id,
            ttl: seconds_of(ttl),
        })
    }

    /// As [`super::super::Backend::renew`].
    ///
    /// # Errors
    /// The lease is gone.
    pub fn renew(&mut self, id: i64, now: Instant) -> Result<Duration, RegistryError> {
        let left = self.store.renew(id, now);
        left.map(seconds_of).ok_or(RegistryError::LeaseLost { id })
    }

    /// As [`super::super::Backend::remaining`].
    ///
    /// # Errors
    /// The lease is gone.
    pub fn remaining(&self, id: i64, now: Instant) -> Result<Duration, RegistryError> {
        let info = self.store.lease(id, now);
        info.map(|info| seconds_of(info.remaining))
            .ok_or(RegistryError::LeaseLost { id })
    }

    /// As [`super::super::Backend::revoke`].
    pub fn revoke(&mut self, id: i64) {
        // One that is gone already is fine.
        self.store.end_lease(id).ok();
    }

    /// As [`super::super::Backend::compact`].
    pub fn compact(&mut self, revision: i64) {
        // What is dropped already is fine, and what has not happened is not dropped.
        self.store.compact(revision).ok();
    }

    /// As [`super::super::Backend::status`].
    pub fn status(&self) -> Status {
        Status {
            version: "simulated".to_owned(),
            db_size: self.store.bytes() as u64,
            revision: self.store.revision(),
        }
    }

    /// Begins a watch; answers its number.
    pub fn watch(&mut self, prefix: &str, revision: i64, now: Instant) -> u64 {
        let request = WatchRequest {
            keys: below(prefix),
            start: revision,
            id: 0,
            progress: true,
            prev_kv: false,
            fragment: false,
            no_put: false,
            no_delete: false,
        };
        let mut watches = Watches::default();
        watches.create(request, &self.store, now);
        self.watched += 1;
        self.watches.insert(self.watched, watches);
        self.watched
    }

    /// What a watch is to be told now; an error is its last word.
    pub fn pull(&mut self, watch: u64, now: Instant) -> Vec<Result<WatchBatch, RegistryError>> {
        let stamp = self.stamp();
        let Some(watches) = self.watches.get_mut(&watch) else {
            return Vec::new();
        };
        let (notices, _) = watches.pull(&self.store, now, self.config.progress);
        let at = |revision| Stamp { revision, ..stamp };
        let told = notices.into_iter().filter_map(|notice| match notice {
            Notice::Events {
                revision, events, ..
            } => Some(Ok(WatchBatch {
                stamp: at(revision),
                changes: events.iter().map(|event| change(&event.record)).collect(),
            })),
            Notice::Progress { revision, .. } => Some(Ok(WatchBatch {
                stamp: at(revision),
                changes: Vec::new(),
            })),
            Notice::Compacted { compacted, .. } => {
                Some(Err(RegistryError::Compacted { oldest: compacted }))
            }
            Notice::Created { .. } | Notice::Refused { .. } | Notice::Cancelled { .. } => None,
        });
        told.collect()
    }

    /// Ends a watch.
    pub fn unwatch(&mut self, watch: u64) {
        self.watches.remove(&watch);
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            cluster_id: self.config.cluster_id,
            revision: self.store.revision(),
        }
    }
}

impl Saved {
    fn take(&mut self, write: Write) {
        match write {
            Write::Key(record) if record.is_deletion() => {
                self.records.remove(&record.key);
            }
            Write::Key(record) => {
                self.records
                    .insert(record.key.clone(), Record::clone(&record));
            }
            Write::Lease(id, seconds) => {
                self.leases.insert(id, seconds);
            }
            Write::LeaseEnded(id) => {
                self.leases.remove(&id);
            }
        }
    }

    fn found(&self, cluster_id: u64) -> Found {
        Found {
            revision: self.revision,
            cluster_id,
            records: self.records.values().cloned().collect(),
            leases: self.leases.iter().map(|(id, ttl)| (*id, *ttl)).collect(),
        }
    }
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kv(record: &Record) -> Kv {
    Kv {
        key: text(&record.key),
        value: record.value.clone(),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        lease: record.lease,
    }
}

fn change(record: &Record) -> Change {
    if record.is_deletion() {
        return Change::Delete {
            key: text(&record.key),
            revision: record.mod_revision,
        };
    }
    Change::Put(kv(record))
}

fn only(key: &str) -> KeyRange {
    KeyRange::new(Bytes::from(key.to_owned()), Bytes::new())
}

/// All that starts with a prefix, which is text and so never ends in 255.
fn below(prefix: &str) -> KeyRange {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => return KeyRange::new(Bytes::from_static(&[0]), Bytes::from_static(&[0])),
    }
    KeyRange::new(Bytes::from(prefix.to_owned()), Bytes::from(end))
}

fn range(keys: KeyRange) -> txn::Op {
    txn::Op::Range(txn::Range {
        keys,
        limit: 0,
        revision: 0,
        sort_by: txn::Field::Key,
        descending: false,
        keys_only: false,
        count_only: false,
        modified: (0, 0),
        created: (0, 0),
    })
}

fn op(op: &Op) -> txn::Op {
    let delete = |keys| {
        txn::Op::Delete(txn::Delete {
            keys,
            prev_kv: false,
        })
    };
    match op {
        Op::Put { key, value, lease } => txn::Op::Put(txn::Put {
            key: Bytes::from(key.clone()),
            value: value.clone(),
            lease: *lease,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }),
        Op::Delete(key) => delete(only(key)),
        Op::DeletePrefix(prefix) => delete(below(prefix)),
        Op::Get(key) => range(only(key)),
        Op::List(prefix) => range(below(prefix)),
    }
}

fn compare(compare: &Compare) -> txn::Compare {
    let (key, expected) = match compare {
        Compare::Created(key, revision) => (key, Expected::Create(*revision)),
        Compare::Modified(key, revision) => (key, Expected::Mod(*revision)),
    };
    txn::Compare {
        keys: only(key),
        relation: Relation::Equal,
        expected,
    }
}

fn refused(refusal: Refusal, lease: i64, store: &Store) -> RegistryError {
    match refusal {
        Refusal::LeaseNotFound => RegistryError::LeaseLost { id: lease },
        Refusal::Compacted => RegistryError::Compacted {
            oldest: store.compacted(),
        },
        other => RegistryError::Refused {
            why: other.to_string(),
        },
    }
}
