//! The store against a model that copies everything at every revision: whatever is done in whatever order, every revision
//! that is kept reads as it was, and a watch from it sees what happened since.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::range::KeyRange;
use super::store::{Limits, Store};
use super::txn::{Delete, Field, Op, Put, Range, Txn};
use super::watches::{Notice, WatchRequest, Watches};

const START: i64 = 50;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const LEASES: [i64; 2] = [7, 8];

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(usize, Option<(u8, usize)>)>),
    Compact(i64),
    EndLease(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let change = proptest::option::weighted(0.7, (any::<u8>(), 0..=LEASES.len()));
    let changes = proptest::collection::btree_map(0..KEYS.len(), change, 1..=KEYS.len());
    prop_oneof![
        8 => changes.prop_map(|changes| Step::Write(changes.into_iter().collect())),
        1 => (0..6i64).prop_map(Step::Compact),
        1 => (0..LEASES.len()).prop_map(Step::EndLease),
    ]
}

/// value, create_revision, version, lease
type Copy = BTreeMap<Bytes, (Bytes, i64, i64, i64)>;

struct Model {
    copies: BTreeMap<i64, Copy>,
    now: i64,
}

impl Model {
    fn change(&mut self, f: impl FnOnce(&mut Copy, i64) -> bool) {
        let mut copy = self.copies[&self.now].clone();
        if f(&mut copy, self.now + 1) {
            self.now += 1;
            self.copies.insert(self.now, copy);
        }
    }
}

fn key(index: usize) -> Bytes {
    Bytes::from_static(KEYS[index].as_bytes())
}

fn op(index: usize, change: Option<(u8, usize)>) -> Op {
    match change {
        None => Op::Delete(Delete {
            keys: KeyRange::new(key(index), Bytes::new()),
            prev_kv: false,
        }),
        Some((value, lease)) => Op::Put(Put {
            key: key(index),
            value: Bytes::from(vec![value]),
            lease: LEASES.get(lease).copied().unwrap_or(0),
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }),
    }
}

fn apply(store: &mut Store, model: &mut Model, step: Step, now: Instant) {
    match step {
        Step::Write(changes) => {
            let success = changes.iter().map(|(k, c)| op(*k, *c)).collect();
            store
                .txn(Txn {
                    success,
                    ..Txn::default()
                })
                .unwrap();
            model.change(|copy, revision| {
                let mut changed = false;
                for (index, change) in changes {
                    changed |= match change {
                        None => copy.remove(&key(index)).is_some(),
                        Some((value, lease)) => {
                            let lease = LEASES.get(lease).copied().unwrap_or(0);
                            let old = copy.get(&key(index));
                            let (created, version) = old.map_or((revision, 0), |o| (o.1, o.2));
                            let value = Bytes::from(vec![value]);
                            copy.insert(key(index), (value, created, version + 1, lease));
                            true
                        }
                    };
                }
                changed
            });
        }
        Step::Compact(back) => {
            let to = model.now - back;
            if store.compact(to).is_ok() {
                model.copies.retain(|revision, _| *revision >= to);
            }
        }
        Step::EndLease(index) => {
            let lease = LEASES[index];
            store.end_lease(lease).unwrap();
            store.grant(lease, 60, now).unwrap();
            model.change(|copy, _| {
                let before = copy.len();
                copy.retain(|_, kv| kv.3 != lease);
                copy.len() < before
            });
        }
    }
}

fn read(store: &Store, revision: i64) -> Copy {
    let range = Range {
        keys: all(),
        limit: 0,
        revision,
        sort_by: Field::Key,
        descending: false,
        keys_only: false,
        count_only: false,
        modified: (0, 0),
        created: (0, 0),
    };
    let found = store.range(&range).unwrap().records;
    let entry = |r: &super::store::Record| {
        let value = (r.value.clone(), r.create_revision, r.version, r.lease);
        (r.key.clone(), value)
    };
    found.iter().map(|r| entry(r)).collect()
}

fn all() -> KeyRange {
    KeyRange::new(Bytes::from_static(&[0]), Bytes::from_static(&[0]))
}

/// Applies what a watch from `revision` sees to the copy before it.
fn replay(store: &Store, mut copy: Copy, revision: i64, now: Instant) -> Copy {
    let mut watches = Watches::default();
    let request = WatchRequest {
        keys: all(),
        start: revision,
        id: 0,
        progress: false,
        prev_kv: false,
        fragment: false,
        no_put: false,
        no_delete: false,
    };
    watches.create(request, store, now);
    let (notices, behind) = watches.pull(store, now, Duration::MAX);
    assert!(!behind);
    for notice in notices {
        let Notice::Events { events, .. } = notice else {
            panic!("{notice:?}");
        };
        for event in events {
            let r = &event.record;
            if r.is_deletion() {
                assert!(copy.remove(&r.key).is_some(), "deleted, but was not there");
            } else {
                let value = (r.value.clone(), r.create_revision, r.version, r.lease);
                copy.insert(r.key.clone(), value);
            }
        }
    }
    copy
}

proptest! {
    #[test]
    fn every_kept_revision_reads_as_it_was_and_replays_to_now(
        steps in proptest::collection::vec(step(), 1..40),
        history in 3..40usize,
    ) {
        let now = Instant::now();
        let limits = Limits { history_revisions: history, ..Limits::default() };
        let mut store = Store::new(START, limits, now);
        for lease in LEASES {
            store.grant(lease, 60, now).unwrap();
        }
        let mut model = Model { copies: BTreeMap::from([(START, Copy::new())]), now: START };
        for step in steps {
            apply(&mut store, &mut model, step, now);
            prop_assert_eq!(store.revision(), model.now);
        }
        model.copies.retain(|revision, _| *revision >= store.compacted());
        let newest = &model.copies[&model.now];
        for (revision, copy) in &model.copies {
            prop_assert_eq!(&read(&store, *revision), copy, "at {}", revision);
            let replayed = replay(&store, copy.clone(), revision + 1, now);
            prop_assert_eq!(&replayed, newest, "from {}", revision);
        }
        for lease in LEASES {
            let keys = store.lease(lease, now).unwrap().keys;
            let expected: Vec<_> = newest.iter().filter(|(_, kv)| kv.3 == lease).map(|(k, _)| k.clone()).collect();
            prop_assert_eq!(keys, expected);
        }
    }
}
