//! A registry in memory for tests of actors under a clock that jumps: real transactions, and failures on demand.

#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use troupe_actors::registry::{
    Backend, Compare, Kv, Lease, Listing, Op, RegistryError, Stamp, Status, Txn, TxnOutcome,
    WatchStream,
};

/// How the registry behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    #[default]
    Well,
    /// It does what it is told, and its answer gets lost.
    Mute,
    /// It gets nothing.
    Away,
    /// It refuses every write: its quota is exhausted.
    Full,
}

#[derive(Debug, Default)]
struct Store {
    revision: i64,
    keys: BTreeMap<String, Kv>,
    mood: Mood,
    writes: u64,
}

/// See the module page.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Store>>);

impl Memory {
    /// From now on it behaves like this.
    pub fn mood(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    /// Transactions that wrote.
    pub fn writes(&self) -> u64 {
        self.0.lock().unwrap().writes
    }

    /// Keys under a prefix, and their bytes.
    pub fn size(&self, prefix: &str) -> (usize, usize) {
        let store = self.0.lock().unwrap();
        let keys = store.keys.values().filter(|kv| kv.key.starts_with(prefix));
        keys.fold((0, 0), |(n, bytes), kv| (n + 1, bytes + kv.value.len()))
    }

    /// Puts a key at a new revision, which is answered: mastership as the registry decides it.
    pub fn seat(&self, key: &str) -> i64 {
        let mut store = self.0.lock().unwrap();
        store.revision += 1;
        let revision = store.revision;
        let kv = Kv {
            key: key.to_owned(),
            value: Bytes::new(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        };
        store.keys.insert(key.to_owned(), kv);
        revision
    }

    fn away() -> RegistryError {
        RegistryError::Unreachable {
            endpoints: "memory".to_owned(),
            why: "it is away".to_owned(),
        }
    }
}

impl Store {
    fn holds(&self, when: &Compare) -> bool {
        match when {
            Compare::Created(key, at) => {
                self.keys.get(key).map_or(0, |kv| kv.create_revision) == *at
            }
            Compare::Modified(key, at) => self.keys.get(key).map_or(0, |kv| kv.mod_revision) == *at,
        }
    }

    fn list(&self, prefix: &str) -> Vec<Kv> {
        let keys = self.keys.values().filter(|kv| kv.key.starts_with(prefix));
        keys.cloned().collect()
    }

    fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let succeeded = txn.when.iter().all(|when| self.holds(when));
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        let writes = |op: &Op| !matches!(op, Op::Get(_) | Op::List(_));
        if ops.iter().any(writes) {
            self.revision += 1;
            self.writes += 1;
        }
        let reads = ops.iter().map(|op| self.apply(op)).collect();
        TxnOutcome {
            succeeded,
            stamp: self.stamp(),
            reads,
        }
    }

    fn apply(&mut self, op: &Op) -> Vec<Kv> {
        match op {
            Op::Put { key, value, lease } => {
                let before = self.keys.get(key);
                let kv = Kv {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: before.map_or(self.revision, |kv| kv.create_revision),
                    mod_revision: self.revision,
                    version: before.map_or(1, |kv| kv.version + 1),
                    lease: *lease,
                };
                self.keys.insert(key.clone(), kv);
                Vec::new()
            }
            Op::Delete(key) => {
                self.keys.remove(key);
                Vec::new()
            }
            Op::DeletePrefix(prefix) => {
                self.keys.retain(|key, _| !key.starts_with(prefix));
                Vec::new()
            }
            Op::Get(key) => self.keys.get(key).cloned().into_iter().collect(),
            Op::List(prefix) => self.list(prefix),
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            cluster_id: 1,
            revision: self.revision,
        }
    }
}

impl Backend for Memory {
    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing, RegistryError>> {
        let store = self.0.lock().unwrap();
        let listing = Listing {
            stamp: store.stamp(),
            kvs: store.list(prefix),
        };
        let mood = store.mood;
        async move {
            // As long as a round trip takes.
            tokio::time::sleep(Duration::from_millis(1)).await;
            match mood {
                Mood::Away | Mood::Mute => Err(Self::away()),
                Mood::Well | Mood::Full => Ok(listing),
            }
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'static, Result<TxnOutcome, RegistryError>> {
        let this = self.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut store = this.0.lock().unwrap();
            let writes = txn.then.iter().any(|op| matches!(op, Op::Put { .. }));
            match store.mood {
                Mood::Away => Err(Self::away()),
                Mood::Mute => {
                    store.txn(&txn);
                    Err(Self::away())
                }
                Mood::Full if writes => Err(RegistryError::Refused {
                    why: "database space exceeded".to_owned(),
                }),
                Mood::Well | Mood::Full => Ok(store.txn(&txn)),
            }
        }
        .boxed()
    }

    fn grant(&self, _: Duration) -> BoxFuture<'static, Result<Lease, RegistryError>> {
        std::future::ready(Err(Self::away())).boxed()
    }

    fn renew(&self, _: i64) -> BoxFuture<'static, Result<Duration, RegistryError>> {
        std::future::ready(Err(Self::away())).boxed()
    }

    fn remaining(&self, _: i64) -> BoxFuture<'static, Result<Duration, RegistryError>> {
        std::future::ready(Err(Self::away())).boxed()
    }

    fn revoke(&self, _: i64) -> BoxFuture<'static, Result<(), RegistryError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn watch(&self, _: &str, _: i64) -> BoxFuture<'static, Result<WatchStream, RegistryError>> {
        std::future::ready(Err(Self::away())).boxed()
    }

    fn compact(&self, _: i64) -> BoxFuture<'static, Result<(), RegistryError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn status(&self) -> BoxFuture<'static, Result<Status, RegistryError>> {
        std::future::ready(Err(Self::away())).boxed()
    }
}
