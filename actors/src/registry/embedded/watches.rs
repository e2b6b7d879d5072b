//! The watches of one client stream: what each has seen and what it is to be told next. Pure.
//!
//! Nothing is queued for a watch. It remembers the next revision it has not seen, and [`Watches::pull`] reads from the
//! store's log. So the log is the only buffer, it is bounded, and a watcher that is slower than the history is long is
//! cancelled as compacted, as one that comes too late is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::range::KeyRange;
use super::store::{Record, Store};
use super::trouble::{self, News};

/// Watches on one stream; a node needs one, so this many is a client that leaks.
const MAX_WATCHES: usize = 10_000;
/// One response stays under this, unless one revision alone is larger: half of what gRPC clients accept by default.
const BATCH_BYTES: usize = 2 << 20;
/// One response holds at most this many revisions (etcd's `watchBatchMaxRevs`).
const BATCH_REVISIONS: usize = 1000;
/// A fragment is cut at etcd's request limit.
const FRAGMENT_BYTES: usize = 1536 << 10;

/// What a client asks to watch.
#[derive(Clone, Debug)]
pub(crate) struct WatchRequest {
    pub(crate) keys: KeyRange,
    /// The first revision to see; 0 is the next one.
    pub(crate) start: i64,
    /// The id wanted; 0 lets the server choose.
    pub(crate) id: i64,
    pub(crate) progress: bool,
    pub(crate) prev_kv: bool,
    pub(crate) fragment: bool,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
}

/// One change as a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) record: Arc<Record>,
    pub(crate) prev: Option<Arc<Record>>,
}

/// One message to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The watch runs; `revision` is the store's.
    Created { id: i64, revision: i64 },
    /// It does not, for this reason (etcd's words).
    Refused { revision: i64, why: &'static str },
    /// All changes up to `revision`, or, with `fragment`, a first part of them.
    Events {
        id: i64,
        revision: i64,
        events: Vec<Event>,
        fragment: bool,
    },
    /// The client ended the watch.
    Cancelled { id: i64, revision: i64 },
    /// What it had to see next is forgotten; the watch is over.
    Compacted {
        id: i64,
        revision: i64,
        compacted: i64,
    },
    /// It has seen everything up to `revision`. Id -1 speaks for the whole stream.
    Progress { id: i64, revision: i64 },
}

#[derive(Debug)]
struct Watch {
    request: WatchRequest,
    next: i64,
    told: Instant,
    /// It is not told what it is owed; in simulations only.
    held: bool,
}

/// All watches of one stream.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    next_id: i64,
    watches: BTreeMap<i64, Watch>,
}

impl Watches {
    /// Begins a watch.
    pub(crate) fn create(&mut self, request: WatchRequest, store: &Store, now: Instant) -> Notice {
        let revision = store.revision();
        if let Some(why) = self.refusal(&request) {
            return Notice::Refused { revision, why };
        }
        let id = if request.id == 0 {
            self.free_id()
        } else {
            request.id
        };
        let next = match request.start {
            ..=0 => revision + 1,
            start => start,
        };
        let watch = Watch {
            request,
            next,
            told: now,
            held: false,
        };
        self.watches.insert(id, watch);
        Notice::Created { id, revision }
    }

    fn refusal(&self, request: &WatchRequest) -> Option<&'static str> {
        if request.keys.is_empty() {
            return Some("mvcc: watcher range is empty");
        }
        if request.id != 0 && self.watches.contains_key(&request.id) {
            return Some("mvcc: duplicate watch ID provided on the WatchStream");
        }
        (self.watches.len() >= MAX_WATCHES).then_some("etcdserver: too many requests")
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1).max(0);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(0);
        id
    }

    /// Ends a watch; one that is not known is nobody's loss.
    pub(crate) fn cancel(&mut self, id: i64, store: &Store) -> Option<Notice> {
        let revision = store.revision();
        self.watches
            .remove(&id)
            .map(|_| Notice::Cancelled { id, revision })
    }

    /// What the watches are to be told now, at most one batch each. `true` when there is more to pull.
    pub(crate) fn pull(
        &mut self,
        store: &Store,
        now: Instant,
        progress_every: Duration,
    ) -> (Vec<Notice>, bool) {
        let mut notices = Vec::new();
        let mut behind = false;
        self.watches.retain(|id, watch| {
            let told = notices.len();
            let keep = watch.pull(*id, store, &mut notices);
            behind |= watch.next <= store.revision() && keep && !watch.held;
            if notices.len() > told {
                watch.told = now;
            } else if watch.owes_progress(store, now, progress_every) {
                watch.told = now;
                let revision = store.revision();
                notices.push(Notice::Progress { id: *id, revision });
            }
            keep
        });
        (notices, behind)
    }

    /// Answers a client's own question; right only when `pull` has nothing more.
    pub(crate) fn progress(&self, store: &Store) -> Notice {
        Notice::Progress {
            id: -1,
            revision: store.revision(),
        }
    }
}

impl Watch {
    /// One batch; `false` when the watch is over.
    fn pull(&mut self, id: i64, store: &Store, notices: &mut Vec<Notice>) -> bool {
        if self.next > store.revision() {
            return true;
        }
        self.held = false;
        match trouble::news(self.request.keys.from()) {
            News::Told => {}
            News::Held => {
                self.held = true;
                return true;
            }
            News::Again(revisions) => self.next = (self.next - revisions).max(store.compacted()),
            News::Missed => {
                self.next = store.revision() + 1;
                return true;
            }
        }
        if self.next < store.compacted() {
            notices.push(Notice::Compacted {
                id,
                revision: store.revision(),
                compacted: store.compacted(),
            });
            return false;
        }
        let events = self.batch(store);
        if !events.is_empty() {
            self.tell(id, events, notices);
        }
        true
    }

    /// Events of whole revisions, up to a batch; moves on past them.
    fn batch(&mut self, store: &Store) -> Vec<Event> {
        let mut events = Vec::new();
        let (mut bytes, mut revisions) = (0, 0);
        for entry in store.log_from(self.next) {
            let before = events.len();
            let wanted = entry.changes.iter().filter(|r| self.wants(r));
            events.extend(wanted.map(|record| self.event(record, store)));
            self.next = entry.revision + 1;
            bytes += events[before..].iter().map(Event::bytes).sum::<usize>();
            revisions += usize::from(events.len() > before);
            if bytes >= BATCH_BYTES || revisions >= BATCH_REVISIONS {
                return events;
            }
        }
        self.next = self.next.max(store.revision() + 1);
        events
    }

    fn wants(&self, record: &Record) -> bool {
        let filtered = if record.is_deletion() {
            self.request.no_delete
        } else {
            self.request.no_put
        };
        !filtered && self.request.keys.contains(&record.key)
    }

    fn event(&self, record: &Arc<Record>, store: &Store) -> Event {
        let prev = if self.request.prev_kv {
            store.before(&record.key, record.mod_revision).cloned()
        } else {
            None
        };
        Event {
            record: Arc::clone(record),
            prev,
        }
    }

    fn tell(&self, id: i64, events: Vec<Event>, notices: &mut Vec<Notice>) {
        let revision = self.next - 1;
        let parts = if self.request.fragment {
            fragments(events)
        } else {
            vec![events]
        };
        let last = parts.len() - 1;
        for (i, events) in parts.into_iter().enumerate() {
            notices.push(Notice::Events {
                id,
                revision,
                events,
                fragment: i < last,
            });
        }
    }

    fn owes_progress(&self, store: &Store, now: Instant, every: Duration) -> bool {
        self.request.progress
            && self.next == store.revision() + 1
            && now.saturating_duration_since(self.told) >= every
    }
}

impl Event {
    fn bytes(&self) -> usize {
        let of = |r: &Arc<Record>| r.key.len() + r.value.len() + 32;
        of(&self.record) + self.prev.as_ref().map_or(0, of)
    }
}

/// Cuts at [`FRAGMENT_BYTES`]; never empty.
fn fragments(events: Vec<Event>) -> Vec<Vec<Event>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for event in events {
        let cost = event.bytes();
        if bytes > 0 && bytes + cost > FRAGMENT_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += cost;
        if let Some(part) = parts.last_mut() {
            part.push(event);
        }
    }
    parts
}
