//! What all services of one embedded server share: the store behind a lock, the clock, the news that it changed.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::proto::PbResponseHeader;
use tokio::sync::{broadcast, watch};
use tonic::Status;

use super::disk::{Parcel, Storage};
use super::store::Store;

/// The only raft term of a registry that has no raft; etcd's first.
const RAFT_TERM: u64 = 2;
/// Without leases the clock is still looked at this often, so that the store notices when the process was suspended.
const TICK: Duration = Duration::from_millis(500);

/// See the module page.
pub(super) struct Shared {
    store: Mutex<Store>,
    disk: Option<Box<dyn Storage>>,
    /// Number of the last writes that were handed to the disk; changed under the store's lock alone.
    written: AtomicU64,
    cluster_id: u64,
    /// Interval of progress notices to watches that asked for them.
    pub(super) progress_every: Duration,
    /// The newest revision that was told.
    told: AtomicI64,
    /// That there is a newer one; watches sleep on it. Not a `watch`: that one wakes its sleepers by chance, this one in the
    /// order in which they fell asleep, so that all watchers are served alike and a simulation can be repeated.
    changed: broadcast::Sender<()>,
    /// Set once, at the end; streams that would never end by themselves sleep on it.
    closing: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(
        store: Store,
        disk: Option<Box<dyn Storage>>,
        cluster_id: u64,
        progress_every: Duration,
    ) -> Self {
        Self {
            disk,
            written: AtomicU64::new(0),
            told: AtomicI64::new(store.revision()),
            changed: broadcast::Sender::new(1),
            store: Mutex::new(store),
            cluster_id,
            progress_every,
            closing: watch::Sender::new(false),
        }
    }

    /// Does one thing with the store, after ending leases that are due. The lock is held for `f` alone, and `f` does no
    /// I/O.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Store, Instant) -> T) -> T {
        let now = tokio::time::Instant::now().into_std();
        // The core checks before it writes, so a panic of a reader cannot have left it half-written.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let away = store.tick(now);
        let answer = f(&mut store, now);
        let revision = store.revision();
        if let Some(disk) = &self.disk {
            let writes = store.take_unsaved();
            if !writes.is_empty() {
                let number = self.written.load(Ordering::Relaxed) + 1;
                self.written.store(number, Ordering::Release);
                disk.write(Parcel {
                    number,
                    revision,
                    writes,
                });
            }
        }
        if self.told.swap(revision, Ordering::Relaxed) != revision {
            // Nobody watching is no error.
            self.changed.send(()).ok();
        }
        drop(store);
        if let Some(away) = away {
            log::warn!(event = "registry_was_away", away_ms = away.as_millis() as u64; "the registry's process was suspended or starved, all leases were extended by as much");
        }
        answer
    }

    /// Resolves when all that anybody may have seen so far is on disk. Nothing is answered before.
    pub(super) async fn synced(&self) -> Result<(), Status> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let number = self.written.load(Ordering::Acquire);
        let synced = disk.synced(number).await;
        synced.map_err(|why| Status::unavailable(format!("etcdserver: the disk failed: {why}")))
    }

    /// Resolves when nothing can be written any more, with the reason; never without a disk.
    pub(super) async fn broken(&self) -> String {
        match &self.disk {
            Some(disk) => disk.broken().await,
            None => std::future::pending().await,
        }
    }

    /// Bytes on disk.
    pub(super) fn disk_size(&self) -> Option<u64> {
        self.disk.as_ref().map(|disk| disk.size())
    }

    /// A header as of `revision`.
    pub(super) fn header(&self, revision: i64) -> Option<PbResponseHeader> {
        Some(PbResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id(),
            revision,
            raft_term: RAFT_TERM,
        })
    }

    /// The one member of this registry.
    pub(super) fn member_id(&self) -> u64 {
        self.cluster_id.rotate_left(32) | 1
    }

    /// News of revisions.
    pub(super) fn changes(&self) -> broadcast::Receiver<()> {
        self.changed.subscribe()
    }

    /// Ends every stream.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits for [`Shared::close`].
    pub(super) async fn closed(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        self.closing
            .subscribe()
            .wait_for(|closing| *closing)
            .await
            .ok();
    }

    /// Ends leases on time, for as long as it is polled.
    pub(super) async fn keep_time(&self) {
        loop {
            let next = self.with(|store, now| {
                let due = store.next_deadline().unwrap_or(now + TICK);
                due.clamp(now, now + TICK)
            });
            tokio::time::sleep_until(next.into()).await;
        }
    }
}
