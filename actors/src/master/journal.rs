//! The journal: which records go into which segment, which segments are on their way, and which old ones can go. Pure.
//!
//! A segment is one value under `journal/<epoch>/<n>`, put if absent by a transaction that the epoch fences. Several are on their
//! way at once; they may land in any order, for each record stands on what was committed before it was made. Segments are
//! read in the order of their names, and a record made later is in a segment of a higher name.
//!
//! Old segments go as a prefix: what is still needed of the oldest is copied forward, and they are deleted with the transaction
//! that puts the last copy. Each task has one *home*, the segment with its acceptance or its last copy; only from there is it
//! copied. Whoever reads finds a copy and what it was made from, or the copy alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ledger::{Fate, Ledger};
use super::record::{self, Record, Snapshot, Unreadable};
use crate::id::{Epoch, TaskId};
use crate::registry::{Compare, Kv, Op, Txn};

/// A segment of so many bytes is full: with the largest record, and with the transaction around it, it stays under etcd's limit of
/// 1.5 MiB.
const FULL: usize = 512 * 1024;
/// Segments on their way at once: enough to keep a registry busy whose answer takes a few milliseconds.
const MAX_FLYING: usize = 4;
/// What is not full waits this long for company, while others are on their way.
const LINGER: Duration = Duration::from_millis(2);
/// A registry that does not answer for so long is away: nothing new is accepted until it does.
const STALLED: Duration = Duration::from_secs(1);
/// Bytes that may lie in vain before the oldest segments are copied forward…
const SLACK: usize = 4 * 1024 * 1024;
/// …and how many small segments may.
const SLACK_COUNT: usize = 256;
const USUAL: usize = 64 * 1024;
/// Segments that one transaction deletes: etcd takes 128 operations.
const MAX_DELETES: usize = 64;

/// A segment in the registry, or on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: usize,
    /// Tasks whose home it is.
    pub homes: Vec<TaskId>,
    landed: bool,
}

/// A segment that is being filled.
#[derive(Debug)]
struct Filling {
    n: u64,
    bytes: Vec<u8>,
    homes: Vec<TaskId>,
    changed: Vec<TaskId>,
    since: Instant,
    deletes: Vec<String>,
    /// Filled on purpose to this point: it goes as it is.
    sealed: bool,
    /// The last copy of what is deleted with it: it goes when everything before has landed.
    last: bool,
}

/// A segment on its way.
#[derive(Clone, Debug)]
pub struct Flight {
    /// Its number under this epoch.
    pub n: u64,
    /// The transaction; sent again as it is when its outcome is unknown.
    pub txn: Txn,
    /// What it puts, to be recognised.
    pub value: Bytes,
    /// When it was first sent.
    pub since: Instant,
    changed: Vec<TaskId>,
    deletes: Vec<String>,
}

/// See the module page.
#[derive(Debug)]
pub struct Journal {
    prefix: String,
    master_key: String,
    epoch: Epoch,
    next: u64,
    segments: VecDeque<Segment>,
    filling: VecDeque<Filling>,
    flying: BTreeMap<u64, Flight>,
    /// Old segments are being copied forward.
    cleaning: bool,
    paused: Option<Instant>,
    bytes: usize,
}

/// What the journal amounts to.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Every task that is not forgotten.
    pub tasks: BTreeMap<TaskId, Snapshot>,
    /// Ids that were finished and forgotten.
    pub ids: BTreeMap<TaskId, Fate>,
    /// Ids made before this unix ms are not remembered.
    pub floor_ms: u64,
    /// Oldest first.
    pub segments: VecDeque<Segment>,
}

/// How large the journal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Segments in the registry.
    pub segments: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Segments on their way.
    pub flying: usize,
    /// Bytes that wait for their turn.
    pub waiting: usize,
}

impl Journal {
    /// Goes on after these segments, under `prefix` (`/<cluster>/journal/`), fenced by the `mod_revision` of `master_key`.
    pub fn new(prefix: &str, master_key: &str, epoch: Epoch, segments: VecDeque<Segment>) -> Self {
        Self {
            prefix: format!("{prefix}{}/", epoch_key(epoch)),
            master_key: master_key.to_owned(),
            epoch,
            next: 0,
            bytes: segments.iter().map(|s| s.bytes).sum(),
            segments,
            filling: VecDeque::new(),
            flying: BTreeMap::new(),
            cleaning: false,
            paused: None,
        }
    }

    // --- filling -------------------------------------------------------------------------------------------------

    /// Adds a record; answers the number of the segment it goes with.
    pub fn append(&mut self, record: &Record, floor_ms: u64, now: Instant) -> u64 {
        let filling = self.open(floor_ms, now);
        let lost = crate::planted::is("journal-loses-an-update")
            && matches!(record, Record::Finished { .. });
        if !lost {
            record::append(&mut filling.bytes, record);
        }
        match record {
            Record::Accepted(spec) => {
                filling.homes.push(spec.id);
                filling.changed.push(spec.id);
            }
            Record::Finished { task, .. }
            | Record::Requeued { task, .. }
            | Record::Retried { task } => filling.changed.push(*task),
            Record::Snapshot(snapshot) => filling.homes.push(snapshot.spec.id),
            Record::Ids(ids) => filling.homes.extend(ids.iter().map(|(id, _)| *id)),
        }
        filling.n
    }

    /// The segment that takes the next record.
    fn open(&mut self, floor_ms: u64, now: Instant) -> &mut Filling {
        let room = |f: &Filling| !f.sealed && f.bytes.len() < FULL;
        if !self.filling.back().is_some_and(room) {
            self.filling.push_back(Filling {
                n: self.next,
                bytes: record::begin(floor_ms),
                homes: Vec::new(),
                changed: Vec::new(),
                since: now,
                deletes: Vec::new(),
                sealed: false,
                last: false,
            });
            self.next += 1;
        }
        let at = self.filling.len() - 1;
        &mut self.filling[at]
    }

    /// The segments that changes of these tasks go with, while they are not known to be in the registry.
    pub fn segments_of(&self, tasks: &BTreeSet<TaskId>) -> Vec<(u64, TaskId)> {
        let filling = self.filling.iter().map(|f| (f.n, &f.changed));
        let flying = self.flying.iter().map(|(n, f)| (*n, &f.changed));
        let all = flying.chain(filling);
        all.flat_map(|(n, changed)| changed.iter().map(move |task| (n, *task)))
            .filter(|(_, task)| tasks.contains(task))
            .collect()
    }

    /// Copies the oldest segments forward when too much lies in vain. Call once a turn.
    pub fn clean(&mut self, ledger: &Ledger, now: Instant) {
        let live = ledger.durable_bytes();
        let much = self.bytes > 2 * live + SLACK;
        let many = self.segments.len() > SLACK_COUNT + self.bytes / USUAL;
        if self.cleaning || !(much || many) {
            return;
        }
        let mut group: Vec<String> = Vec::new();
        let mut homes: Vec<TaskId> = Vec::new();
        let mut bytes = 0;
        for oldest in self
            .segments
            .iter()
            .take_while(|s| s.landed)
            .take(MAX_DELETES)
        {
            if !group.is_empty() && bytes + oldest.bytes > FULL {
                break;
            }
            bytes += oldest.bytes;
            group.push(oldest.key.clone());
            homes.extend(&oldest.homes);
        }
        if group.is_empty() {
            return;
        }
        self.cleaning = true;
        self.seal();
        let before = self.filling.len();
        let mut ids = Vec::new();
        for home in homes {
            match ledger.copy_forward(home) {
                Some(Record::Ids(forgotten)) => ids.extend(forgotten),
                Some(copy) => drop(self.append(&copy, ledger.floor_ms(), now)),
                None => {}
            }
        }
        if !ids.is_empty() || self.filling.len() == before {
            self.append(&Record::Ids(ids), ledger.floor_ms(), now);
        }
        let parts = self.filling.len() - before;
        self.seal();
        if let Some(last) = self.filling.back_mut() {
            last.deletes = group;
            last.last = parts > 1;
        }
    }

    fn seal(&mut self) {
        if let Some(open) = self.filling.back_mut() {
            open.sealed = true;
        }
    }

    // --- on the way ----------------------------------------------------------------------------------------------

    /// The next segment that is to be sent now.
    pub fn take_off(&mut self, now: Instant) -> Option<Flight> {
        if self.paused.is_some_and(|until| now < until) {
            return None;
        }
        let next = self.filling.front()?;
        let room = self.flying.len() < MAX_FLYING;
        let due = next.sealed
            || next.bytes.len() >= FULL
            || self.flying.is_empty()
            || now.saturating_duration_since(next.since) >= LINGER;
        let in_turn = !next.last || self.flying.is_empty();
        if !(room && due && in_turn) {
            return None;
        }
        let filled = self.filling.pop_front()?;
        let key = format!("{}{:016x}", self.prefix, filled.n);
        let value = Bytes::from(filled.bytes);
        self.bytes += value.len();
        self.segments.push_back(Segment {
            key: key.clone(),
            bytes: value.len(),
            homes: filled.homes,
            landed: false,
        });
        let put = Op::Put {
            key: key.clone(),
            value: value.clone(),
            lease: 0,
        };
        let deletes = filled.deletes.iter().cloned().map(Op::Delete);
        let mut flight = Flight {
            n: filled.n,
            txn: Txn {
                when: vec![
                    Compare::Modified(self.master_key.clone(), self.epoch.revision),
                    Compare::Created(key.clone(), 0),
                ],
                then: std::iter::once(put).chain(deletes).collect(),
                otherwise: vec![Op::Get(self.master_key.clone()), Op::Get(key)],
            },
            value,
            since: now,
            changed: filled.changed,
            deletes: filled.deletes,
        };
        if crate::planted::is("journal-not-fenced") {
            flight.txn.when.remove(0);
        }
        self.flying.insert(flight.n, flight.clone());
        Some(flight)
    }

    /// A segment is in the registry. Answers the tasks whose changes it holds, in order.
    pub fn landed(&mut self, n: u64) -> Vec<TaskId> {
        let Some(flight) = self.flying.remove(&n) else {
            return Vec::new();
        };
        let key = format!("{}{n:016x}", self.prefix);
        if let Some(segment) = self.segments.iter_mut().rev().find(|s| s.key == key) {
            segment.landed = true;
        }
        if !flight.deletes.is_empty() {
            self.cleaning = false;
            for _ in &flight.deletes {
                let gone = self.segments.pop_front();
                self.bytes -= gone.map_or(0, |s| s.bytes);
            }
        }
        flight.changed
    }

    /// A segment is not in the registry and never will be: the registry refused it. Nothing is sent before `until`. Answers the
    /// tasks whose changes it held: each is to be withdrawn or recorded again.
    pub fn refused(&mut self, n: u64, until: Instant) -> Vec<TaskId> {
        self.paused = Some(until);
        let Some(flight) = self.flying.remove(&n) else {
            return Vec::new();
        };
        let key = format!("{}{n:016x}", self.prefix);
        // What it was to delete stays for another time; copies that landed are copies of what is there.
        if !flight.deletes.is_empty() {
            self.cleaning = false;
        }
        if let Some(at) = self.segments.iter().position(|s| s.key == key) {
            let gone = self.segments.remove(at);
            self.bytes -= gone.map_or(0, |s| s.bytes);
        }
        flight.changed
    }

    /// The epoch is over: nothing that is on its way or waits will ever be recorded. Answers their tasks, and the segments'
    /// numbers.
    pub fn fenced(&mut self) -> Vec<u64> {
        let flying = std::mem::take(&mut self.flying).into_keys();
        let filling = std::mem::take(&mut self.filling);
        flying.chain(filling.into_iter().map(|f| f.n)).collect()
    }

    /// The registry has not answered for a while: what is submitted now had better come again.
    pub fn is_stalled(&self, now: Instant) -> bool {
        let paused = self.paused.is_some_and(|until| now < until);
        let oldest = self.flying.values().map(|f| f.since).min();
        paused || oldest.is_some_and(|since| now.saturating_duration_since(since) >= STALLED)
    }

    /// When something is to be sent that nothing else brings about.
    pub fn next_due(&self) -> Option<Instant> {
        let next = self.filling.front()?;
        if self.flying.len() >= MAX_FLYING || (next.last && !self.flying.is_empty()) {
            return None;
        }
        let due = next.since + LINGER;
        Some(self.paused.map_or(due, |until| due.max(until)))
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        Size {
            segments: self.segments.len(),
            bytes: self.bytes,
            flying: self.flying.len(),
            waiting: self.filling.iter().map(|f| f.bytes.len()).sum(),
        }
    }
}

/// Sorts as epochs do.
fn epoch_key(epoch: Epoch) -> String {
    format!("{:016x}-{:016x}", epoch.generation.0, epoch.revision)
}

/// Reads what a journal amounts to out of its segments, sorted by key.
///
/// # Errors
/// The key that cannot be read, and why: a task may be in it, so nobody may lead without it.
pub fn replay(segments: &[Kv]) -> Result<Replayed, (String, Unreadable)> {
    let mut replayed = Replayed::default();
    let mut homes: BTreeMap<TaskId, usize> = BTreeMap::new();
    for (at, kv) in segments.iter().enumerate() {
        let (floor, records) = record::read(&kv.value).map_err(|why| (kv.key.clone(), why))?;
        replayed.floor_ms = replayed.floor_ms.max(floor);
        for record in records {
            replayed.apply(record, |id| {
                homes.insert(id, at);
            });
        }
    }
    let mut by_segment: Vec<Vec<TaskId>> = vec![Vec::new(); segments.len()];
    for (id, at) in homes {
        by_segment[at].push(id);
    }
    replayed.segments = segments
        .iter()
        .zip(by_segment)
        .map(|(kv, homes)| Segment {
            key: kv.key.clone(),
            bytes: kv.value.len(),
            homes,
            landed: true,
        })
        .collect();
    Ok(replayed)
}

impl Replayed {
    fn apply(&mut self, record: Record, mut home: impl FnMut(TaskId)) {
        match record {
            Record::Accepted(spec) => {
                home(spec.id);
                self.ids.remove(&spec.id);
                self.tasks.insert(spec.id, Snapshot::new(spec));
            }
            Record::Snapshot(snapshot) => {
                home(snapshot.spec.id);
                self.ids.remove(&snapshot.spec.id);
                self.tasks.insert(snapshot.spec.id, *snapshot);
            }
            // A change of a task without a home is of one that was finished and forgotten since.
            Record::Finished {
                task,
                tried,
                answer,
                at_ms,
            } => {
                if let Some(known) = self.tasks.get_mut(&task) {
                    known.tried(tried);
                    (known.answer, known.finished_ms) = (answer, at_ms);
                }
            }
            Record::Requeued { task, tried } => {
                if let Some(known) = self.tasks.get_mut(&task) {
                    known.tried(tried);
                }
            }
            Record::Retried { task } => {
                if let Some(known) = self.tasks.get_mut(&task) {
                    known.retried();
                }
            }
            Record::Ids(ids) => {
                for (id, fate) in ids {
                    home(id);
                    self.tasks.remove(&id);
                    self.ids.insert(id, fate);
                }
            }
        }
    }
}
