//! The store, its transactions and its watches, without a server around them.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::Refusal;
use super::range::KeyRange;
use super::store::{Limits, Store};
use super::txn::{Compare, Delete, Done, Expected, Field, Op, Put, Range, Relation, Txn};
use super::watches::{Notice, WatchRequest, Watches};

const START: i64 = 1000;
const FOREVER: Duration = Duration::from_secs(3600);

fn store() -> Store {
    Store::new(START, Limits::default(), Instant::now())
}

fn keys(from: &str, end: &str) -> KeyRange {
    KeyRange::new(Bytes::from(from.to_owned()), Bytes::from(end.to_owned()))
}

fn all() -> KeyRange {
    keys("\0", "\0")
}

fn put_under(key: &str, value: &str, lease: i64) -> Op {
    Op::Put(Put {
        key: Bytes::from(key.to_owned()),
        value: Bytes::from(value.to_owned()),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    })
}

fn put(key: &str, value: &str) -> Op {
    put_under(key, value, 0)
}

fn delete(key: &str) -> Op {
    Op::Delete(Delete {
        keys: keys(key, ""),
        prev_kv: false,
    })
}

fn range(keys: KeyRange, revision: i64) -> Range {
    Range {
        keys,
        limit: 0,
        revision,
        sort_by: Field::Key,
        descending: false,
        keys_only: false,
        count_only: false,
        modified: (0, 0),
        created: (0, 0),
    }
}

fn write(store: &mut Store, ops: Vec<Op>) -> i64 {
    let txn = Txn {
        success: ops,
        ..Txn::default()
    };
    store.txn(txn).expect("it is accepted");
    store.revision()
}

/// `key=value` of everything at a revision; 0 is now.
fn dump(store: &Store, revision: i64) -> Result<String, Refusal> {
    let found = store.range(&range(all(), revision))?;
    let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
    let pairs = found.records.iter();
    let pairs: Vec<_> = pairs
        .map(|r| format!("{}={}", text(&r.key), text(&r.value)))
        .collect();
    Ok(pairs.join(" "))
}

#[test]
fn every_revision_since_the_last_compaction_can_be_read() {
    let mut store = store();
    write(&mut store, vec![put("a", "1"), put("b", "1")]);
    write(&mut store, vec![put("a", "2")]);
    write(&mut store, vec![delete("b")]);
    write(&mut store, vec![put("b", "2")]);
    let history: Vec<_> = (START..=START + 4)
        .map(|r| dump(&store, r).unwrap())
        .collect();
    assert_eq!(history, ["", "a=1 b=1", "a=2 b=1", "a=2", "a=2 b=2"]);
    store.compact(START + 3).unwrap();
    assert_eq!(dump(&store, START + 2), Err(Refusal::Compacted));
    assert_eq!(dump(&store, START + 3).unwrap(), "a=2");
    assert_eq!(dump(&store, 0).unwrap(), "a=2 b=2");
    assert_eq!(dump(&store, START + 5), Err(Refusal::FutureRevision));
}

#[test]
fn an_earlier_life_of_the_registry_counts_as_compacted() {
    assert_eq!(dump(&store(), START - 1), Err(Refusal::Compacted));
}

#[test]
fn a_compaction_keeps_what_is_alive_and_forgets_the_rest() {
    let mut store = store();
    for n in 0..100 {
        write(&mut store, vec![put("a", &n.to_string()), put("gone", "x")]);
    }
    let last = write(&mut store, vec![delete("gone")]);
    store.compact(last).unwrap();
    assert_eq!(dump(&store, 0).unwrap(), "a=99");
    assert!(store.bytes() < 1000, "{} bytes are left", store.bytes());
    assert_eq!(store.compact(last), Err(Refusal::Compacted));
    assert_eq!(store.compact(last + 1), Err(Refusal::FutureRevision));
}

#[test]
fn history_is_bounded_by_revisions_and_by_bytes() {
    for limits in [
        Limits {
            history_revisions: 10,
            ..Limits::default()
        },
        Limits {
            history_bytes: 2000,
            ..Limits::default()
        },
    ] {
        let mut store = Store::new(START, limits, Instant::now());
        for n in 0..1000 {
            write(
                &mut store,
                vec![put("a", &n.to_string()), put(&format!("k{}", n % 7), "")],
            );
        }
        let kept = store.revision() - store.compacted();
        assert!((5..=10).contains(&kept), "{kept} of {limits:?}");
        assert!(store.bytes() < 4000, "{} of {limits:?}", store.bytes());
        assert!(dump(&store, store.compacted()).is_ok());
    }
}

#[test]
fn a_full_store_refuses_puts_in_etcds_words_and_still_deletes() {
    let limits = Limits {
        live_bytes: 1000,
        ..Limits::default()
    };
    let mut store = Store::new(START, limits, Instant::now());
    write(&mut store, vec![put("a", &"x".repeat(800))]);
    let refused = store.write_one(put("b", &"x".repeat(800))).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "etcdserver: mvcc: database space exceeded"
    );
    write(&mut store, vec![delete("a")]);
    write(&mut store, vec![put("b", &"x".repeat(800))]);
}

#[test]
fn a_transaction_that_is_refused_half_way_has_changed_nothing() {
    let mut store = store();
    write(&mut store, vec![put("a", "1")]);
    let before = (store.revision(), dump(&store, 0), store.bytes());
    let ignoring = Op::Put(Put {
        key: Bytes::from("nowhere"),
        value: Bytes::new(),
        lease: 0,
        prev_kv: false,
        ignore_value: true,
        ignore_lease: false,
    });
    let nested = Op::Txn(Txn {
        success: vec![put("c", "1"), put_under("d", "1", 77)],
        ..Txn::default()
    });
    for (last, why) in [
        (put_under("b", "1", 77), Refusal::LeaseNotFound),
        (ignoring, Refusal::KeyNotFound),
        (nested, Refusal::LeaseNotFound),
        (Op::Range(range(all(), START + 99)), Refusal::FutureRevision),
        (Op::Range(range(all(), START - 1)), Refusal::Compacted),
    ] {
        let txn = Txn {
            success: vec![put("a", "2"), last],
            ..Txn::default()
        };
        assert_eq!(store.txn(txn), Err(why));
        assert_eq!((store.revision(), dump(&store, 0), store.bytes()), before);
    }
}

#[test]
fn comparisons_follow_etcds_table() {
    let mut store = store();
    let now = Instant::now();
    store.grant(7, 60, now).unwrap();
    let a = write(&mut store, vec![put_under("a", "m", 7)]);
    write(&mut store, vec![put("b", "z")]);
    use Expected::{Create, Lease, Mod, Value, Version};
    use Relation::{Equal, Greater, Less, NotEqual};
    let value = |v: &'static str| Value(Bytes::from_static(v.as_bytes()));
    for (keys, relation, expected, holds) in [
        (keys("a", ""), Equal, Version(1), true),
        (keys("a", ""), Greater, Version(0), true),
        (keys("a", ""), Less, Version(1), false),
        (keys("a", ""), NotEqual, Create(a), false),
        (keys("a", ""), Equal, Mod(a), true),
        (keys("a", ""), Greater, value("l"), true),
        (keys("a", ""), Less, value("l"), false),
        (keys("a", ""), Equal, Lease(7), true),
        (keys("a", "c"), Greater, Mod(START), true),
        (keys("a", "c"), Equal, Lease(7), false),
        (keys("nowhere", ""), Equal, Create(0), true),
        (keys("nowhere", ""), Equal, Lease(0), true),
        (keys("nowhere", ""), NotEqual, value("x"), false),
        (keys("nowhere", ""), Equal, value(""), false),
        (keys("x", "y"), Equal, Version(0), true),
    ] {
        let compare = Compare {
            keys,
            relation,
            expected,
        };
        let txn = Txn {
            compare: vec![compare.clone()],
            ..Txn::default()
        };
        assert_eq!(store.txn(txn).unwrap().succeeded, holds, "{compare:?}");
    }
}

#[test]
fn nested_conditions_look_at_the_store_as_it_was() {
    let mut store = store();
    let absent = Compare {
        keys: keys("a", ""),
        relation: Relation::Equal,
        expected: Expected::Create(0),
    };
    let inner = Txn {
        compare: vec![absent],
        success: vec![put("b", "then")],
        failure: vec![put("b", "else")],
    };
    let outer = Txn {
        success: vec![put("a", "1"), Op::Txn(inner)],
        ..Txn::default()
    };
    let done = store.txn(outer).unwrap().done;
    assert!(matches!(&done[1], Done::Txn(inner) if inner.succeeded));
    assert_eq!(dump(&store, 0).unwrap(), "a=1 b=then");
}

#[test]
fn a_lease_takes_all_its_keys_in_one_revision_when_its_time_is_over() {
    let start = Instant::now();
    let mut store = Store::new(START, Limits::default(), start);
    store.grant(7, 5, start).unwrap();
    let put = write(
        &mut store,
        vec![
            put_under("a", "1", 7),
            put_under("b", "1", 7),
            put("c", "1"),
        ],
    );
    for second in 1..=4 {
        assert_eq!(store.tick(start + Duration::from_secs(second)), None);
    }
    assert_eq!(dump(&store, 0).unwrap(), "a=1 b=1 c=1");
    store.tick(start + Duration::from_secs(5));
    assert_eq!(dump(&store, 0).unwrap(), "c=1");
    assert_eq!(store.revision(), put + 1);
}

#[test]
fn a_server_that_slept_does_not_end_leases_at_once() {
    let start = Instant::now();
    let mut store = Store::new(START, Limits::default(), start);
    store.grant(7, 5, start).unwrap();
    let hour = Duration::from_secs(3600);
    assert_eq!(store.tick(start + hour), Some(hour));
    assert!(store.lease(7, start + hour).is_some());
}

fn watch(start: i64) -> WatchRequest {
    WatchRequest {
        keys: all(),
        start,
        id: 0,
        progress: false,
        prev_kv: false,
        fragment: false,
        no_put: false,
        no_delete: false,
    }
}

#[test]
fn a_watcher_slower_than_the_history_is_cancelled_as_compacted() {
    let now = Instant::now();
    let limits = Limits {
        history_revisions: 10,
        ..Limits::default()
    };
    let mut store = Store::new(START, limits, now);
    let mut watches = Watches::default();
    watches.create(watch(0), &store, now);
    for _ in 0..50 {
        write(&mut store, vec![put("a", "1")]);
    }
    let (notices, behind) = watches.pull(&store, now, FOREVER);
    let (revision, compacted) = (store.revision(), store.compacted());
    assert_eq!(
        notices,
        [Notice::Compacted {
            id: 0,
            revision,
            compacted
        }]
    );
    assert!(!behind);
    write(&mut store, vec![put("a", "2")]);
    assert_eq!(watches.pull(&store, now, FOREVER), (vec![], false));
}

#[test]
fn a_large_backlog_comes_in_batches_and_each_says_how_far_it_goes() {
    let now = Instant::now();
    let mut store = store();
    for _ in 0..10 {
        write(&mut store, vec![put("a", &"x".repeat(1 << 20))]);
    }
    let mut watches = Watches::default();
    watches.create(watch(START + 1), &store, now);
    let (mut seen, mut covered) = (0, START);
    loop {
        let (notices, behind) = watches.pull(&store, now, FOREVER);
        for notice in notices {
            let Notice::Events {
                revision, events, ..
            } = notice
            else {
                panic!("{notice:?}");
            };
            assert!(events.len() <= 2);
            seen += events.len();
            covered += events.len() as i64;
            assert_eq!(revision, covered);
        }
        if !behind {
            break;
        }
    }
    assert_eq!(seen, 10);
}

#[test]
fn fragments_carry_one_revision_in_pieces() {
    let now = Instant::now();
    let mut store = store();
    for key in ["a", "b", "c", "d"] {
        write(&mut store, vec![put_under(key, &"x".repeat(1 << 20), 0)]);
    }
    let mut watches = Watches::default();
    let request = WatchRequest {
        fragment: true,
        prev_kv: true,
        ..watch(0)
    };
    watches.create(request, &store, now);
    let ops = ["a", "b", "c", "d"].map(delete).to_vec();
    write(&mut store, ops);
    let (notices, _) = watches.pull(&store, now, FOREVER);
    let flags: Vec<_> = notices
        .iter()
        .map(|n| match n {
            Notice::Events {
                events, fragment, ..
            } => (events.len(), *fragment),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(flags, [(1, true), (1, true), (1, true), (1, false)]);
}

#[test]
fn progress_is_told_when_a_watch_was_quiet_and_has_seen_everything() {
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    let mut store = store();
    let mut watches = Watches::default();
    let every = Duration::from_secs(5);
    watches.create(
        WatchRequest {
            progress: true,
            ..watch(0)
        },
        &store,
        start,
    );
    watches.create(watch(0), &store, start);
    watches.create(
        WatchRequest {
            progress: true,
            ..watch(START + 99)
        },
        &store,
        start,
    );
    assert_eq!(watches.pull(&store, at(4), every).0, []);
    let quiet = Notice::Progress {
        id: 0,
        revision: START,
    };
    assert_eq!(watches.pull(&store, at(5), every).0, [quiet]);
    assert_eq!(watches.pull(&store, at(9), every).0, []);
    write(&mut store, vec![put("a", "1")]);
    assert_eq!(
        watches.pull(&store, at(9), every).0.len(),
        2,
        "two see the event"
    );
    assert_eq!(
        watches.pull(&store, at(12), every).0,
        [],
        "the event was a sign of life"
    );
}
