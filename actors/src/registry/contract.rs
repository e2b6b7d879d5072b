//! What every backend of the registry must do, as named checks. Run by `tests/registry_contract.rs` against the embedded
//! registry and against a real etcd; a new backend is one more [`Subject`] there.
//!
//! Each check has keys of its own, so they may run side by side, except for [`COMPACTING`], which forgets history for all.
//! A check that is not met panics with the reason.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt;

use super::{
    Backend, Change, Compare, Kv, Listing, Op, RegistryError, Txn, TxnOutcome, WatchBatch,
    WatchStream,
};

/// Nothing in a check takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(15);

/// One check.
pub type Check = for<'a> fn(&'a Subject) -> BoxFuture<'a, ()>;

/// Compacts the registry at a revision; no part of [`Backend`].
pub type Compact = Arc<dyn Fn(i64) -> BoxFuture<'static, ()> + Send + Sync>;

/// A registry to be checked.
#[derive(Clone)]
pub struct Subject {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// A second one on the same registry, with connections of its own.
    pub other: Arc<dyn Backend>,
    /// Where this check's keys live; ends with a slash.
    pub prefix: String,
    /// Compacts the registry.
    pub compact: Compact,
}

macro_rules! checks {
    ($list:ident: $($name:ident),* $(,)?) => {
        /// Named checks.
        pub const $list: &[(&str, Check)] = &[$((stringify!($name), |subject| Box::pin($name(subject)))),*];
    };
}

checks! { CHECKS:
    a_key_is_put_only_if_it_is_absent,
    an_overwrite_keeps_the_create_revision_and_raises_the_mod_revision,
    zero_means_absent_for_both_revisions,
    when_a_condition_fails_otherwise_is_done_and_nothing_else,
    a_deleted_key_begins_a_new_life,
    a_leftover_is_deleted_by_its_own_revision_only,
    a_prefix_is_deleted_as_a_whole,
    a_transaction_reads_what_it_wrote,
    an_unknown_key_reads_as_nothing,
    a_key_is_not_deleted_and_put_in_one_transaction,
    more_than_128_operations_are_refused,
    a_value_beyond_the_request_limit_is_refused_and_changes_nothing,
    revisions_only_rise,
    a_listing_shows_what_another_client_just_wrote,
    a_listing_of_many_keys_is_complete_and_of_one_revision,
    a_listing_of_large_values_is_complete,
    the_same_registry_has_the_same_cluster_id,
    a_lease_is_two_seconds_at_the_least,
    a_lease_that_is_not_renewed_takes_its_keys_along,
    a_renewed_lease_lives_on,
    a_lost_lease_is_told_as_lost,
    a_revoked_lease_deletes_its_keys_and_may_be_revoked_twice,
    an_overwrite_without_a_lease_takes_the_key_off_it,
    a_watch_replays_history_from_its_revision,
    a_watch_sees_puts_and_deletes_in_order,
    a_watch_sees_its_prefix_only,
    a_watch_survives_the_end_of_another,
    changes_of_one_transaction_arrive_together,
    a_quiet_watch_shows_signs_of_life,
    a_watch_may_begin_in_the_future,
    status_tells_version_and_revision,
}

checks! { COMPACTING:
    a_watch_from_a_compacted_revision_is_told_so,
    a_listing_works_after_a_compaction,
}

impl Subject {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn put(&self, name: &str, value: &str) -> Op {
        self.put_under(name, value, 0)
    }

    fn put_under(&self, name: &str, value: &str, lease: i64) -> Op {
        Op::Put {
            key: self.key(name),
            value: Bytes::from(value.to_owned()),
            lease,
        }
    }

    fn absent(&self, name: &str) -> Compare {
        Compare::Created(self.key(name), 0)
    }

    async fn when(&self, when: Vec<Compare>, then: Vec<Op>) -> TxnOutcome {
        let txn = Txn {
            when,
            then,
            otherwise: Vec::new(),
        };
        ok(self.backend.txn(txn).await)
    }

    async fn write(&self, then: Vec<Op>) -> i64 {
        self.when(Vec::new(), then).await.stamp.revision
    }

    async fn refusal(&self, then: Vec<Op>) -> RegistryError {
        let txn = Txn {
            then,
            ..Txn::default()
        };
        match self.backend.txn(txn).await {
            Err(error) => error,
            Ok(outcome) => panic!("should have been refused: {outcome:?}"),
        }
    }

    async fn list(&self) -> Listing {
        ok(self.backend.list(&self.prefix).await)
    }

    async fn get(&self, name: &str) -> Option<Kv> {
        let outcome = self.when(vec![], vec![Op::Get(self.key(name))]).await;
        outcome.reads.into_iter().flatten().next()
    }

    async fn watch(&self, revision: i64) -> WatchStream {
        ok(self.backend.watch(&self.prefix, revision).await)
    }

    async fn lease(&self, seconds: u64) -> i64 {
        let lease = ok(self.backend.grant(Duration::from_secs(seconds)).await);
        assert_ne!(lease.id, 0, "a lease has an id");
        lease.id
    }
}

fn ok<T>(result: Result<T, RegistryError>) -> T {
    result.unwrap_or_else(|error| panic!("unexpected: {error} ({error:?})"))
}

async fn next(watch: &mut WatchStream) -> WatchBatch {
    let item = tokio::time::timeout(PATIENCE, watch.next()).await;
    match item {
        Ok(Some(batch)) => ok(batch),
        Ok(None) => panic!("the watch ended"),
        Err(_) => panic!("nothing was seen for {PATIENCE:?}"),
    }
}

/// The next `count` changes; signs of life are passed over.
async fn changes(watch: &mut WatchStream, count: usize) -> Vec<Change> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(next(watch).await.changes);
    }
    assert_eq!(seen.len(), count, "{seen:?}");
    seen
}

fn key_of(change: &Change) -> &str {
    match change {
        Change::Put(kv) => &kv.key,
        Change::Delete { key, .. } => key,
    }
}

fn revision_of(change: &Change) -> i64 {
    match change {
        Change::Put(kv) => kv.mod_revision,
        Change::Delete { revision, .. } => *revision,
    }
}

// --- keys

async fn a_key_is_put_only_if_it_is_absent(s: &Subject) {
    let first = s.when(vec![s.absent("a")], vec![s.put("a", "1")]).await;
    let second = s.when(vec![s.absent("a")], vec![s.put("a", "2")]).await;
    assert!(first.succeeded && !second.succeeded);
    let kv = s.get("a").await.expect("it was put");
    assert_eq!(kv.value, "1");
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version, kv.lease),
        (first.stamp.revision, first.stamp.revision, 1, 0)
    );
}

async fn an_overwrite_keeps_the_create_revision_and_raises_the_mod_revision(s: &Subject) {
    let born = s.write(vec![s.put("a", "1")]).await;
    let changed = s.write(vec![s.put("a", "2")]).await;
    let kv = s.get("a").await.expect("it was put");
    assert!(changed > born);
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (born, changed, 2)
    );
    let created = |r| Compare::Created(s.key("a"), r);
    let modified = |r| Compare::Modified(s.key("a"), r);
    for (compare, holds) in [
        (created(born), true),
        (created(changed), false),
        (modified(changed), true),
        (modified(born), false),
    ] {
        let outcome = s.when(vec![compare.clone()], vec![]).await;
        assert_eq!(outcome.succeeded, holds, "{compare:?}");
    }
}

async fn zero_means_absent_for_both_revisions(s: &Subject) {
    s.write(vec![s.put("there", "1")]).await;
    for (name, absent) in [("there", false), ("nowhere", true)] {
        for compare in [
            Compare::Created(s.key(name), 0),
            Compare::Modified(s.key(name), 0),
        ] {
            let outcome = s.when(vec![compare.clone()], vec![]).await;
            assert_eq!(outcome.succeeded, absent, "{compare:?}");
        }
    }
}

async fn when_a_condition_fails_otherwise_is_done_and_nothing_else(s: &Subject) {
    s.write(vec![s.put("a", "1"), s.put("b", "1")]).await;
    let txn = Txn {
        when: vec![s.absent("nowhere"), s.absent("a")],
        then: vec![s.put("b", "then")],
        otherwise: vec![Op::Delete(s.key("a")), Op::Get(s.key("b"))],
    };
    let outcome = ok(s.backend.txn(txn).await);
    assert!(!outcome.succeeded);
    assert_eq!(outcome.reads.len(), 2, "one entry per operation done");
    assert!(outcome.reads[0].is_empty(), "a write reads nothing");
    assert_eq!(outcome.reads[1][0].value, "1");
    assert_eq!(s.get("a").await, None);
}

async fn a_deleted_key_begins_a_new_life(s: &Subject) {
    let first = s.write(vec![s.put("a", "1")]).await;
    s.write(vec![Op::Delete(s.key("a"))]).await;
    let second = s.write(vec![s.put("a", "1")]).await;
    let kv = s.get("a").await.expect("it was put");
    assert_eq!((kv.create_revision, kv.version), (second, 1));
    let stale = s
        .when(vec![Compare::Created(s.key("a"), first)], vec![])
        .await;
    assert!(!stale.succeeded, "the first life is over");
}

async fn a_leftover_is_deleted_by_its_own_revision_only(s: &Subject) {
    let old = s.write(vec![s.put("a", "1")]).await;
    let new = s.write(vec![s.put("a", "2")]).await;
    let delete = |revision| {
        s.when(
            vec![Compare::Modified(s.key("a"), revision)],
            vec![Op::Delete(s.key("a"))],
        )
    };
    assert!(!delete(old).await.succeeded);
    assert!(s.get("a").await.is_some());
    assert!(delete(new).await.succeeded);
    assert_eq!(s.get("a").await, None);
}

async fn a_prefix_is_deleted_as_a_whole(s: &Subject) {
    s.write(vec![s.put("x/1", "1"), s.put("x/2", "1"), s.put("y", "1")])
        .await;
    s.write(vec![Op::DeletePrefix(s.key("x/"))]).await;
    let keys: Vec<_> = s.list().await.kvs.into_iter().map(|kv| kv.key).collect();
    assert_eq!(keys, [s.key("y")]);
}

async fn a_transaction_reads_what_it_wrote(s: &Subject) {
    let ops = vec![
        Op::Get(s.key("a")),
        s.put("a", "1"),
        Op::Get(s.key("a")),
        Op::List(s.prefix.clone()),
    ];
    let outcome = s.when(vec![], ops).await;
    let found: Vec<_> = outcome.reads.iter().map(Vec::len).collect();
    assert_eq!(found, [0, 0, 1, 1]);
    assert_eq!(outcome.reads[2][0].mod_revision, outcome.stamp.revision);
}

async fn an_unknown_key_reads_as_nothing(s: &Subject) {
    assert_eq!(s.get("nowhere").await, None);
    let listing = s.list().await;
    assert!(listing.kvs.is_empty());
    assert!(listing.stamp.revision > 0 && listing.stamp.cluster_id != 0);
    let outcome = s.when(vec![], vec![Op::Delete(s.key("nowhere"))]).await;
    assert!(outcome.succeeded, "deleting nothing is fine");
}

async fn a_key_is_not_deleted_and_put_in_one_transaction(s: &Subject) {
    s.write(vec![s.put("a", "1")]).await;
    for ops in [
        vec![Op::Delete(s.key("a")), s.put("a", "2")],
        vec![s.put("a", "2"), Op::DeletePrefix(s.prefix.clone())],
        vec![s.put("a", "2"), s.put("a", "3")],
    ] {
        let error = s.refusal(ops).await;
        let why = "etcdserver: duplicate key given in txn request".to_owned();
        assert_eq!(error, RegistryError::Refused { why });
    }
    assert_eq!(s.get("a").await.expect("untouched").version, 1);
}

async fn more_than_128_operations_are_refused(s: &Subject) {
    let ops = |count| (0..count).map(|n| s.put(&format!("{n}"), "1")).collect();
    let error = s.refusal(ops(129)).await;
    let why = "etcdserver: too many operations in txn request".to_owned();
    assert_eq!(error, RegistryError::Refused { why });
    s.write(ops(128)).await;
    assert_eq!(s.list().await.kvs.len(), 128);
}

async fn a_value_beyond_the_request_limit_is_refused_and_changes_nothing(s: &Subject) {
    let before = s.write(vec![s.put("a", "1")]).await;
    for size in [1600 << 10, 3 << 20] {
        let error = s
            .refusal(vec![s.put("b", "1"), s.put("a", &"x".repeat(size))])
            .await;
        assert!(matches!(error, RegistryError::Refused { .. }), "{error:?}");
    }
    assert_eq!(s.get("a").await.expect("untouched").mod_revision, before);
    assert_eq!(s.get("b").await, None);
    s.write(vec![s.put("a", &"x".repeat(1400 << 10))]).await;
}

async fn revisions_only_rise(s: &Subject) {
    let mut last = 0;
    for n in 0..20 {
        let written = s.write(vec![s.put("a", &n.to_string())]).await;
        assert!(written > last, "{written} after {last}");
        last = written;
        let listed = s.list().await.stamp.revision;
        assert!(listed >= last, "{listed} after {last}");
    }
}

async fn a_listing_shows_what_another_client_just_wrote(s: &Subject) {
    for n in 0..50 {
        let written = s.write(vec![s.put("a", &n.to_string())]).await;
        let listing = ok(s.other.list(&s.prefix).await);
        assert!(listing.stamp.revision >= written);
        assert_eq!(listing.kvs[0].value, n.to_string());
    }
}

async fn a_listing_of_many_keys_is_complete_and_of_one_revision(s: &Subject) {
    const KEYS: usize = 2500;
    let names: Vec<String> = (0..KEYS).map(|n| format!("{n:06}")).collect();
    for some in names.chunks(125) {
        s.write(some.iter().map(|name| s.put(name, name)).collect())
            .await;
    }
    // Writes meanwhile: each moves the first and the last key at once, so a torn listing shows two different values.
    let writer = async {
        for n in 0..200 {
            let value = n.to_string();
            s.write(vec![s.put("000000", &value), s.put("002499", &value)])
                .await;
        }
    };
    let reader = async {
        for _ in 0..5 {
            let kvs = s.list().await.kvs;
            assert_eq!(kvs.len(), KEYS);
            assert!(kvs.is_sorted_by(|a, b| a.key < b.key));
            let (first, last) = (&kvs[0], &kvs[KEYS - 1]);
            let untouched = first.value == "000000";
            assert!(
                untouched || first.value == last.value,
                "torn: {first:?} {last:?}"
            );
        }
    };
    futures_util::future::join(writer, reader).await;
}

async fn a_listing_of_large_values_is_complete(s: &Subject) {
    let value = "x".repeat(1 << 20);
    for n in 0..24 {
        s.write(vec![s.put(&format!("{n:02}"), &value)]).await;
    }
    let kvs = s.list().await.kvs;
    assert_eq!(kvs.len(), 24);
    assert!(kvs.iter().all(|kv| kv.value.len() == 1 << 20));
    s.write(vec![Op::DeletePrefix(s.prefix.clone())]).await;
}

async fn the_same_registry_has_the_same_cluster_id(s: &Subject) {
    let mine = s.list().await.stamp.cluster_id;
    let theirs = ok(s.other.list(&s.prefix).await).stamp.cluster_id;
    let written = s.when(vec![], vec![s.put("a", "1")]).await;
    assert_eq!((mine, theirs), (theirs, written.stamp.cluster_id));
}

async fn status_tells_version_and_revision(s: &Subject) {
    let written = s.write(vec![s.put("a", "1")]).await;
    let status = ok(s.backend.status().await);
    assert!(!status.version.is_empty());
    assert!(status.revision >= written);
    assert!(status.db_size > 0);
}

// --- leases

async fn a_lease_is_two_seconds_at_the_least(s: &Subject) {
    let short = ok(s.backend.grant(Duration::from_millis(1)).await);
    assert_eq!(short.ttl, Duration::from_secs(2));
    let long = ok(s.backend.grant(Duration::from_millis(59_500)).await);
    assert_eq!(long.ttl, Duration::from_secs(60));
    let left = ok(s.backend.remaining(long.id).await);
    assert!(
        left <= long.ttl && left >= Duration::from_secs(55),
        "{left:?}"
    );
    ok(s.backend.revoke(long.id).await);
}

async fn a_lease_that_is_not_renewed_takes_its_keys_along(s: &Subject) {
    let lease = s.lease(2).await;
    let put = vec![s.put_under("a", "1", lease), s.put_under("b", "1", lease)];
    let revision = s.write(put).await;
    assert_eq!(s.get("a").await.expect("it was put").lease, lease);
    let mut watch = s.watch(revision + 1).await;
    let seen = changes(&mut watch, 2).await;
    let keys: Vec<_> = seen.iter().map(key_of).collect();
    assert_eq!(keys, [s.key("a"), s.key("b")]);
    assert!(seen.iter().all(|c| matches!(c, Change::Delete { .. })));
    assert_eq!(
        s.backend.renew(lease).await,
        Err(RegistryError::LeaseLost { id: lease })
    );
}

async fn a_renewed_lease_lives_on(s: &Subject) {
    let lease = s.lease(2).await;
    s.write(vec![s.put_under("a", "1", lease)]).await;
    // Twice the time to live, counted by another lease that is not renewed.
    for round in ["first", "second"] {
        let clock = s.lease(2).await;
        let revision = s.write(vec![s.put_under(round, "1", clock)]).await;
        let mut watch = ok(s.backend.watch(&s.key(round), revision + 1).await);
        loop {
            let left = ok(s.backend.renew(lease).await);
            assert_eq!(left, Duration::from_secs(2));
            let ended = tokio::time::timeout(Duration::from_millis(500), watch.next());
            match ended.await {
                Ok(Some(Ok(batch))) if batch.changes.is_empty() => {}
                Ok(Some(Ok(_))) => break,
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        }
    }
    assert!(s.get("a").await.is_some());
    ok(s.backend.revoke(lease).await);
}

async fn a_lost_lease_is_told_as_lost(s: &Subject) {
    let lease = s.lease(60).await;
    ok(s.backend.revoke(lease).await);
    let lost = RegistryError::LeaseLost { id: lease };
    assert_eq!(s.backend.renew(lease).await, Err(lost.clone()));
    assert_eq!(s.backend.remaining(lease).await, Err(lost.clone()));
    let ops = vec![s.put("b", "1"), s.put_under("a", "1", lease)];
    assert_eq!(s.refusal(ops).await, lost);
    assert!(s.list().await.kvs.is_empty(), "nothing was changed");
}

async fn a_revoked_lease_deletes_its_keys_and_may_be_revoked_twice(s: &Subject) {
    let lease = s.lease(60).await;
    s.write(vec![s.put_under("a", "1", lease), s.put("b", "1")])
        .await;
    ok(s.backend.revoke(lease).await);
    ok(s.backend.revoke(lease).await);
    assert_eq!(s.get("a").await, None);
    assert!(s.get("b").await.is_some());
}

async fn an_overwrite_without_a_lease_takes_the_key_off_it(s: &Subject) {
    let lease = s.lease(60).await;
    s.write(vec![s.put_under("a", "1", lease)]).await;
    s.write(vec![s.put("a", "2")]).await;
    ok(s.backend.revoke(lease).await);
    let kv = s.get("a").await.expect("it stays");
    assert_eq!((kv.lease, kv.version), (0, 2));
}

// --- watches

async fn a_watch_replays_history_from_its_revision(s: &Subject) {
    let first = s.write(vec![s.put("a", "1")]).await;
    s.write(vec![s.put("a", "2")]).await;
    s.write(vec![Op::Delete(s.key("a"))]).await;
    let mut all = s.watch(first).await;
    let seen = changes(&mut all, 3).await;
    assert!(matches!(&seen[0], Change::Put(kv) if kv.value == "1" && kv.mod_revision == first));
    assert!(matches!(&seen[1], Change::Put(kv) if kv.value == "2" && kv.version == 2));
    assert!(matches!(&seen[2], Change::Delete { .. }));
    let mut rest = s.watch(first + 1).await;
    assert_eq!(changes(&mut rest, 2).await, seen[1..]);
}

async fn a_watch_sees_puts_and_deletes_in_order(s: &Subject) {
    let revision = s.list().await.stamp.revision;
    let mut watch = s.watch(revision + 1).await;
    for n in 0..50 {
        s.write(vec![s.put("a", &n.to_string())]).await;
        s.write(vec![Op::Delete(s.key("a"))]).await;
    }
    let mut seen = Vec::new();
    let mut covered = revision;
    while seen.len() < 100 {
        let batch = next(&mut watch).await;
        assert!(batch.stamp.revision >= covered, "the stamp does not fall");
        covered = batch.stamp.revision;
        let newest = batch.changes.iter().map(revision_of).max();
        assert!(newest <= Some(covered), "the stamp covers the changes");
        seen.extend(batch.changes);
    }
    assert!(seen.is_sorted_by(|a, b| revision_of(a) < revision_of(b)));
    let deletions = seen.iter().skip(1).step_by(2);
    assert!(
        deletions
            .into_iter()
            .all(|c| matches!(c, Change::Delete { .. }))
    );
}

async fn a_watch_sees_its_prefix_only(s: &Subject) {
    let revision = s.list().await.stamp.revision;
    let mut watch = ok(s.backend.watch(&s.key("in/"), revision + 1).await);
    s.write(vec![s.put("in", "1"), s.put("in0", "1")]).await;
    s.write(vec![s.put("in/a", "1")]).await;
    let seen = changes(&mut watch, 1).await;
    assert_eq!(key_of(&seen[0]), s.key("in/a"));
}

async fn a_watch_survives_the_end_of_another(s: &Subject) {
    let revision = s.list().await.stamp.revision;
    let mut watch = s.watch(revision + 1).await;
    for n in 0..10 {
        let mut brief = s.watch(revision + 1).await;
        s.write(vec![s.put("a", &n.to_string())]).await;
        changes(&mut brief, n + 1).await;
        drop(brief);
    }
    assert_eq!(changes(&mut watch, 10).await.len(), 10);
}

async fn changes_of_one_transaction_arrive_together(s: &Subject) {
    let revision = s.list().await.stamp.revision;
    let mut watch = s.watch(revision + 1).await;
    s.write((0..100).map(|n| s.put(&format!("{n:03}"), "1")).collect())
        .await;
    let batch = loop {
        let batch = next(&mut watch).await;
        if !batch.changes.is_empty() {
            break batch;
        }
    };
    assert_eq!(batch.changes.len(), 100);
}

async fn a_quiet_watch_shows_signs_of_life(s: &Subject) {
    let revision = s.write(vec![s.put("a", "1")]).await;
    let mut watch = s.watch(revision + 1).await;
    let batch = next(&mut watch).await;
    assert_eq!(batch.changes, []);
    assert!(batch.stamp.revision >= revision);
}

async fn a_watch_may_begin_in_the_future(s: &Subject) {
    let revision = s.write(vec![s.put("a", "1")]).await;
    // Far enough that what the other checks write meanwhile does not get there.
    let mut watch = s.watch(revision + 1_000_000).await;
    s.write(vec![s.put("a", "2")]).await;
    let soon = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
    let early = match soon {
        Ok(Some(Ok(batch))) => batch.changes,
        Ok(other) => panic!("{other:?}"),
        Err(_) => Vec::new(),
    };
    assert_eq!(early, []);
}

// --- compaction

async fn a_watch_from_a_compacted_revision_is_told_so(s: &Subject) {
    let old = s.write(vec![s.put("a", "1")]).await;
    let kept = s.write(vec![s.put("a", "2")]).await;
    (s.compact)(kept).await;
    let told = match s.backend.watch(&s.prefix, old).await {
        Err(error) => error,
        Ok(mut watch) => loop {
            match tokio::time::timeout(PATIENCE, watch.next()).await {
                Ok(Some(Err(error))) => break error,
                Ok(Some(Ok(batch))) if batch.changes.is_empty() => {}
                other => panic!("{other:?}"),
            }
        },
    };
    assert_eq!(told, RegistryError::Compacted { oldest: kept });
    let mut watch = s.watch(kept + 1).await;
    s.write(vec![s.put("a", "3")]).await;
    assert_eq!(changes(&mut watch, 1).await.len(), 1);
}

async fn a_listing_works_after_a_compaction(s: &Subject) {
    s.write(vec![s.put("a", "1"), s.put("gone", "1")]).await;
    s.write(vec![Op::Delete(s.key("gone"))]).await;
    let last = s.write(vec![s.put("b", "1")]).await;
    (s.compact)(last).await;
    let keys: Vec<_> = s.list().await.kvs.into_iter().map(|kv| kv.key).collect();
    assert_eq!(keys, [s.key("a"), s.key("b")]);
}
