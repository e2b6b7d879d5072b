//! ✎ A disk for simulations: a sync takes its time, and a power loss keeps what was synced and nothing else. It stands for the
//! file of [`super::disk`], whose thread would bring chance into a simulation.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rand::RngExt;
use tokio::sync::Notify;

use super::disk::{Found, Parcel, Storage, Write};
use super::store::Record;
use crate::chance;

/// What outlives the registry's process. Clones are the same platter.
#[derive(Clone)]
pub struct Platter {
    kept: Arc<Mutex<Kept>>,
    slowest: Duration,
}

#[derive(Default)]
struct Kept {
    revision: i64,
    cluster_id: u64,
    records: BTreeMap<Bytes, Record>,
    leases: BTreeMap<i64, i64>,
}

impl Platter {
    /// An empty one, for a registry that begins at this revision; a sync takes up to `slowest`.
    pub fn new(cluster_id: u64, revision: i64, slowest: Duration) -> Self {
        let kept = Kept {
            revision,
            cluster_id,
            ..Kept::default()
        };
        Self {
            kept: Arc::new(Mutex::new(kept)),
            slowest,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn found(&self) -> Found {
        let kept = self.kept();
        Found {
            revision: kept.revision,
            cluster_id: kept.cluster_id,
            records: kept.records.values().cloned().collect(),
            leases: kept.leases.iter().map(|(id, ttl)| (*id, *ttl)).collect(),
        }
    }

    /// A disk over it; it works on the runtime of whoever calls, and is gone with it.
    pub(super) fn spin(&self) -> Spinning {
        let queue = Arc::new(Queue::default());
        tokio::spawn(write_all(self.clone(), Arc::clone(&queue)));
        Spinning { queue }
    }

    fn sync(&self, group: &[Parcel]) {
        let mut kept = self.kept();
        for parcel in group {
            for write in &parcel.writes {
                match write {
                    Write::Key(record) if record.is_deletion() => {
                        kept.records.remove(&record.key);
                    }
                    Write::Key(record) => {
                        let key = record.key.clone();
                        kept.records.insert(key, Record::clone(record));
                    }
                    Write::Lease(id, ttl) => {
                        kept.leases.insert(*id, *ttl);
                    }
                    Write::LeaseEnded(id) => {
                        kept.leases.remove(id);
                    }
                }
            }
            kept.revision = kept.revision.max(parcel.revision);
        }
    }
}

/// Parcels on their way, and how far they are.
#[derive(Default)]
struct Queue {
    parcels: Mutex<VecDeque<Parcel>>,
    synced: Mutex<u64>,
    more: Notify,
    /// Wakes in order, so that a simulation can be repeated.
    further: Notify,
}

/// See [`Platter::spin`].
pub(super) struct Spinning {
    queue: Arc<Queue>,
}

async fn write_all(platter: Platter, queue: Arc<Queue>) {
    let mut rng = chance::rng();
    loop {
        let group: Vec<Parcel> = {
            let mut parcels = queue.parcels.lock().unwrap_or_else(PoisonError::into_inner);
            parcels.drain(..).collect()
        };
        let Some(last) = group.last().map(|parcel| parcel.number) else {
            queue.more.notified().await;
            continue;
        };
        let slowest = platter.slowest.as_micros() as u64;
        let takes = Duration::from_micros(rng.random_range(0..=slowest));
        // Whoever loses the power in between may find it there or not.
        let early = rng.random_bool(0.5);
        if early {
            platter.sync(&group);
        }
        tokio::time::sleep(takes).await;
        if !early {
            platter.sync(&group);
        }
        *queue.synced.lock().unwrap_or_else(PoisonError::into_inner) = last;
        queue.further.notify_waiters();
    }
}

impl Storage for Spinning {
    fn write(&self, parcel: Parcel) {
        let mut parcels = self
            .queue
            .parcels
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        parcels.push_back(parcel);
        self.queue.more.notify_one();
    }

    fn synced(&self, number: u64) -> BoxFuture<'_, Result<(), String>> {
        let queue = &self.queue;
        let far_enough =
            move || *queue.synced.lock().unwrap_or_else(PoisonError::into_inner) >= number;
        Box::pin(async move {
            loop {
                let further = queue.further.notified();
                if far_enough() {
                    return Ok(());
                }
                further.await;
            }
        })
    }

    fn broken(&self) -> BoxFuture<'_, String> {
        Box::pin(std::future::pending())
    }

    fn size(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(number: u64, key: &'static str) -> Parcel {
        let record = Record {
            key: Bytes::from_static(key.as_bytes()),
            version: 1,
            ..Record::default()
        };
        Parcel {
            number,
            revision: 10 + number as i64,
            writes: vec![Write::Key(Arc::new(record))],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_synced_outlives_the_process_and_what_was_not_does_not() {
        chance::seed(Some(1));
        let platter = Platter::new(42, 10, Duration::from_millis(5));
        let disk = platter.spin();
        disk.write(parcel(1, "a"));
        disk.synced(1).await.unwrap();
        disk.write(parcel(2, "b"));
        drop(disk);
        chance::seed(None);
        let found = platter.found();
        assert_eq!((found.cluster_id, found.revision), (42, 11));
        assert_eq!(found.records.len(), 1);
    }
}
