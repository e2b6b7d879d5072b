//! The multi-version store: keys, their history, the log of changes, compaction. Pure: no clock, no socket, no task.
//!
//! ```text
//! keys  key -> [record@rev, record@rev, …]     a record of version 0 is a deletion
//! log   [rev n: records] [rev n+1: records] …  what a watch replays; contiguous, because each writing transaction is
//!                                              one revision
//! ```
//!
//! Invariants: a revision only rises, by one per writing transaction; the log holds every revision from `compacted`
//! on; for each key the newest record at or below `compacted` is kept unless it is a deletion; a key changes at most
//! once per revision (transactions that would are refused); everything is checked before the first write, so nothing
//! can fail half-way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::{Found, Write};
use super::error::Refusal;
use super::lease::{LeaseInfo, Leases};
use super::range::KeyRange;

/// One key as of one revision, in etcd's shape. A deletion has version 0 and nothing but key and `mod_revision`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Record {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
}

impl Record {
    /// Whether this records that the key was deleted.
    pub(crate) fn is_deletion(&self) -> bool {
        self.version == 0
    }

    /// Approximate bytes it takes, for the bounds.
    fn cost(&self) -> usize {
        self.key.len() + self.value.len() + 96
    }
}

/// Bounds of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many revisions of history are kept for watches. Beyond it the store compacts itself: an embedded registry has
    /// no operator who would. 100,000 is hours of a cluster's life and a few tens of MB of small records.
    pub history_revisions: usize,
    /// How many bytes of history are kept, because 100,000 values of a megabyte would not fit anywhere.
    pub history_bytes: usize,
    /// How many bytes of live keys are accepted before puts are refused with etcd's "database space exceeded".
    pub live_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history_revisions: 100_000,
            history_bytes: 128 << 20,
            live_bytes: 512 << 20,
        }
    }
}

/// A gap between two ticks beyond which the server itself was away (suspended, starved), not its clients.
const AWAY_AFTER: Duration = Duration::from_secs(2);

/// The store. See the module page.
#[derive(Debug)]
pub(crate) struct Store {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Bytes, Vec<Arc<Record>>>,
    log: VecDeque<LogEntry>,
    log_bytes: usize,
    live_bytes: usize,
    limits: Limits,
    leases: Leases,
    ticked: Instant,
    /// What is to be on disk, if there is one.
    unsaved: Option<Vec<Write>>,
}

#[derive(Debug)]
pub(crate) struct LogEntry {
    pub(crate) revision: i64,
    pub(crate) changes: Vec<Arc<Record>>,
    cost: usize,
}

impl Store {
    /// An empty store at `revision`; all before it counts as compacted, so that whoever watched an earlier life of this
    /// registry is told to list again.
    pub(crate) fn new(revision: i64, limits: Limits, now: Instant) -> Self {
        Self {
            revision,
            compacted: revision,
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            log_bytes: 0,
            live_bytes: 0,
            limits,
            leases: Leases::default(),
            ticked: now,
            unsaved: None,
        }
    }

    /// The store as it was found on disk; from now on its changes are to be saved. Every lease begins its time anew.
    pub(crate) fn restored(found: Found, limits: Limits, now: Instant) -> Self {
        let mut store = Self::new(found.revision, limits, now);
        for (id, ttl) in found.leases {
            // Within the bounds it was granted in.
            store.leases.grant(id, ttl, now).ok();
        }
        for record in found.records {
            store.live_bytes += record.cost();
            store.leases.attach(record.lease, &record.key);
            let record = Arc::new(record);
            store.keys.insert(record.key.clone(), vec![record]);
        }
        store.unsaved = Some(Vec::new());
        store
    }

    /// Changes since the last call that are to be on disk before anybody hears of them.
    pub(crate) fn take_unsaved(&mut self) -> Vec<Write> {
        self.unsaved
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn save(&mut self, write: impl FnOnce() -> Write) {
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.push(write());
        }
    }

    /// The newest revision.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// The oldest revision that can be read or watched.
    pub(crate) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Approximate bytes held, live and history.
    pub(crate) fn bytes(&self) -> usize {
        self.live_bytes + self.log_bytes
    }

    /// Approximate bytes of live keys.
    pub(crate) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Whether `more` bytes of live keys still fit.
    pub(super) fn has_room_for(&self, more: usize) -> bool {
        self.live_bytes.saturating_add(more) <= self.limits.live_bytes
    }

    // --- reading

    /// The records alive in `range` at `revision`, sorted by key.
    pub(super) fn alive<'a>(
        &'a self,
        range: &'a KeyRange,
        revision: i64,
    ) -> impl Iterator<Item = &'a Arc<Record>> {
        range
            .bounds()
            .into_iter()
            .flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
            .filter_map(move |(_, history)| at(history, revision))
            .filter(|record| !record.is_deletion())
    }

    /// The key as it is now.
    pub(super) fn current(&self, key: &[u8]) -> Option<&Arc<Record>> {
        self.keys
            .get(key)
            .and_then(|history| history.last())
            .filter(|record| !record.is_deletion())
    }

    /// The key as it was before `revision`, if that is still known.
    pub(crate) fn before(&self, key: &[u8], revision: i64) -> Option<&Arc<Record>> {
        at(self.keys.get(key)?, revision - 1).filter(|record| !record.is_deletion())
    }

    /// Whether `revision` can be read; 0 stands for the newest.
    pub(super) fn check_revision(&self, revision: i64) -> Result<(), Refusal> {
        match revision {
            ..=0 => Ok(()),
            r if r > self.revision => Err(Refusal::FutureRevision),
            r if r < self.compacted => Err(Refusal::Compacted),
            _ => Ok(()),
        }
    }

    /// The log from `revision` on, which must not be compacted.
    pub(crate) fn log_from(&self, revision: i64) -> impl Iterator<Item = &LogEntry> {
        let first = self.log.front().map_or(revision, |entry| entry.revision);
        let skip = usize::try_from(revision.saturating_sub(first)).unwrap_or(0);
        self.log.range(skip.min(self.log.len())..)
    }

    // --- writing; only `txn` and the leases below use these, and only after all checks

    /// Writes a record of the next revision; answers what it replaced.
    pub(super) fn put(&mut self, key: Bytes, value: Bytes, lease: i64, changes: &mut Changes) {
        let revision = self.revision + 1;
        let old = self.current(&key);
        let record = Record {
            create_revision: old.map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.map_or(1, |old| old.version + 1),
            lease,
            value,
            key,
        };
        self.leases.attach(lease, &record.key);
        self.write(record, changes);
    }

    /// Records the deletion of a key that is alive.
    pub(super) fn delete(&mut self, key: Bytes, changes: &mut Changes) {
        let record = Record {
            key,
            mod_revision: self.revision + 1,
            ..Record::default()
        };
        self.write(record, changes);
    }

    fn write(&mut self, record: Record, changes: &mut Changes) {
        let old = self.current(&record.key).cloned();
        if let Some(old) = old {
            self.live_bytes -= old.cost();
            if old.lease != record.lease {
                self.leases.detach(old.lease, &record.key);
            }
        }
        if !record.is_deletion() {
            self.live_bytes += record.cost();
        }
        let record = Arc::new(record);
        let history = self.keys.entry(record.key.clone()).or_default();
        history.push(Arc::clone(&record));
        changes.0.push(record);
    }

    /// Makes what was written a revision, if anything was.
    pub(super) fn commit(&mut self, changes: Changes) {
        let Changes(changes) = changes;
        if changes.is_empty() {
            return;
        }
        self.revision += 1;
        for record in &changes {
            self.save(|| Write::Key(Arc::clone(record)));
        }
        let cost = changes.iter().map(|record| record.cost()).sum();
        self.log_bytes += cost;
        self.log.push_back(LogEntry {
            revision: self.revision,
            changes,
            cost,
        });
        self.bound_history();
    }

    // --- compaction

    /// Forgets what was before `revision`.
    pub(crate) fn compact(&mut self, revision: i64) -> Result<(), Refusal> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.compact_to(revision);
        Ok(())
    }

    fn bound_history(&mut self) {
        while self.log.len() > 1
            && (self.log.len() > self.limits.history_revisions
                || self.log_bytes > self.limits.history_bytes)
        {
            let oldest = self.log.front().map_or(self.revision, |e| e.revision);
            self.compact_to(oldest + 1);
        }
    }

    fn compact_to(&mut self, revision: i64) {
        self.compacted = revision;
        while self.log.front().is_some_and(|e| e.revision < revision) {
            let Some(entry) = self.log.pop_front() else {
                break;
            };
            self.log_bytes -= entry.cost;
            for record in &entry.changes {
                self.prune(&record.key);
            }
        }
        // What changed at `revision` itself stays in the log, but what it replaced is history now.
        let at: Vec<Bytes> = match self.log.front() {
            Some(entry) if entry.revision == revision => {
                entry.changes.iter().map(|r| r.key.clone()).collect()
            }
            _ => Vec::new(),
        };
        for key in at {
            self.prune(&key);
        }
    }

    /// Drops the records of a key that nobody can read any more.
    fn prune(&mut self, key: &Bytes) {
        let Some(history) = self.keys.get_mut(key) else {
            return;
        };
        let readable = history.partition_point(|record| record.mod_revision <= self.compacted);
        let mut superseded = readable.saturating_sub(1);
        if history
            .get(superseded)
            .is_some_and(|r| r.is_deletion() && r.mod_revision <= self.compacted)
        {
            superseded += 1;
        }
        history.drain(..superseded);
        if history.is_empty() {
            self.keys.remove(key);
        }
    }

    // --- leases

    /// Ends leases whose time is over; every request and a timer call it first. Answers how long the server was away.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Duration> {
        let gap = now.saturating_duration_since(self.ticked);
        self.ticked = self.ticked.max(now);
        let away = (gap > AWAY_AFTER).then_some(gap);
        if let Some(away) = away {
            self.leases.forgive(away);
        }
        for id in self.leases.due(now) {
            self.end_lease(id).ok();
        }
        away
    }

    /// When the next lease ends.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.leases.next_deadline()
    }

    /// Grants a lease; answers its time to live in seconds.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Instant) -> Result<i64, Refusal> {
        let granted = self.leases.grant(id, ttl, now)?;
        self.save(|| Write::Lease(id, granted));
        Ok(granted)
    }

    /// Renews a lease; answers its time to live in seconds, `None` when it is gone.
    pub(crate) fn renew(&mut self, id: i64, now: Instant) -> Option<i64> {
        self.leases.renew(id, now)
    }

    /// Ends a lease and deletes its keys, all in one revision.
    pub(crate) fn end_lease(&mut self, id: i64) -> Result<(), Refusal> {
        let mut changes = Changes::default();
        for key in self.leases.remove(id)? {
            self.delete(key, &mut changes);
        }
        self.commit(changes);
        self.save(|| Write::LeaseEnded(id));
        Ok(())
    }

    /// What is known of a lease.
    pub(crate) fn lease(&self, id: i64, now: Instant) -> Option<LeaseInfo> {
        self.leases.info(id, now)
    }

    /// All leases, the one that ends first at the front.
    pub(crate) fn lease_ids(&self) -> Vec<i64> {
        self.leases.ids()
    }

    /// Whether a put may hang on this lease; 0 is none.
    pub(super) fn has_lease(&self, id: i64) -> bool {
        id == 0 || self.leases.contains(id)
    }
}

/// Records written but not committed yet.
#[derive(Debug, Default)]
pub(crate) struct Changes(Vec<Arc<Record>>);

impl Changes {
    /// Whether nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The record of a history that holds at `revision`.
fn at(history: &[Arc<Record>], revision: i64) -> Option<&Arc<Record>> {
    let after = history.partition_point(|record| record.mod_revision <= revision);
    after.checked_sub(1).and_then(|i| history.get(i))
}
