//! The machine of the registry, and the witness beside it that writes its history into the trace and plays the operator.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use troupe_actors::chance;
use troupe_actors::registry::embedded::trouble::{News, Reply, Trouble};
use troupe_actors::registry::embedded::{Config, Limits, Platter, Service};
use troupe_actors::registry::etcd::EtcdBackend;
use troupe_actors::registry::{
    Backend, Change, Compare, Kv, Listing, Op, RegistryError, Stamp, Timeouts, Txn, WatchStream,
};
use turmoil::net::TcpListener;

use crate::net::{self, Served};
use crate::plan::Misnews;
use crate::stage::{Order, Shared, note, wall_ms};

/// The embedded registry's server, as production serves it. Without a disk (`slowest` is the longest sync of one), or when its
/// data is gone, a new life has a new, empty store.
pub async fn serve(stage: Shared, slowest: Option<Duration>) -> turmoil::Result {
    stage.borrow_mut().enter("registry");
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 2379)).await?;
    let config = Config {
        start_revision: i64::try_from(wall_ms() * 1000)?,
        cluster_id: chance::rng().random::<u64>().max(1),
        progress: Duration::from_secs(5),
        limits: Limits::default(),
    };
    let kept = stage.borrow().platter.clone();
    if kept.is_some() {
        note(&stage, "sim.resumed", &[]);
    } else {
        let revision = config.start_revision.to_string();
        note(&stage, "sim.serving", &[("revision", revision)]);
    }
    let platter = kept.or_else(|| {
        let new = |slowest| Platter::new(config.cluster_id, config.start_revision, slowest);
        slowest.map(new)
    });
    let service = match &platter {
        Some(platter) => Service::on_platter(config, platter),
        None => Service::new(config, None),
    };
    stage.borrow_mut().platter = platter;
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await;
        Some((accepted.map(|(stream, _)| Served(stream)), listener))
    });
    service
        .serve(incoming, std::future::pending::<()>())
        .await?;
    Ok(())
}

/// Follows the registry from a machine that nothing ever happens to.
pub async fn witness(stage: Shared) -> turmoil::Result {
    stage.borrow_mut().enter("witness");
    let (orders, mut given) = unbounded_channel();
    if let Some(seat) = stage.borrow_mut().seats.get_mut("witness") {
        seat.orders = Some(orders);
    }
    let backend = EtcdBackend::with_dial(
        vec![format!("http://{}", net::REGISTRY)],
        Timeouts::default(),
        net::dial_registry("witness"),
    )?;
    let mut seen = Seen {
        stage,
        keys: BTreeMap::new(),
        stamp: Stamp {
            cluster_id: 0,
            revision: 0,
        },
    };
    loop {
        // It ends when the registry does.
        seen.follow(&backend, &mut given).await.ok();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Puts what nobody cares for; answers the revision.
async fn touch(backend: &EtcdBackend) -> Option<i64> {
    let put = Txn {
        then: vec![Op::Put {
            key: "/elsewhere".to_owned(),
            value: Bytes::new(),
            lease: 0,
        }],
        ..Txn::default()
    };
    // The registry may be away: then there is no news.
    backend.txn(put).await.ok().map(|done| done.stamp.revision)
}

/// As an operator does, or etcd by itself: nothing before now is kept. Two writes more, so that whoever is behind is behind that.
async fn compact(backend: &EtcdBackend) {
    touch(backend).await;
    if let Some(revision) = touch(backend).await {
        // The registry may be away: then nothing is dropped.
        backend.compact(revision).await.ok();
    }
}

/// How the registry wrongs its clients at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mood {
    /// Of a hundred transactions that write, so many are not answered.
    pub lost_replies: u32,
    /// What becomes of news.
    pub news: Option<Misnews>,
}

/// Follows the mood; what the witness hears is always true.
pub struct Moody {
    pub mood: Rc<Cell<Mood>>,
    pub rng: StdRng,
    pub stage: Shared,
}

impl Trouble for Moody {
    fn reply(&mut self) -> Reply {
        let share = self.mood.get().lost_replies;
        if share == 0 || self.rng.random_range(0..100) >= share {
            return Reply::Given;
        }
        let reply = match self.rng.random_range(0..4) {
            0 => Reply::LostBefore,
            1 => Reply::Late(Duration::from_millis(self.rng.random_range(1..2000))),
            _ => Reply::LostAfter,
        };
        let done = (reply == Reply::LostAfter).to_string();
        let how = format!("{reply:?}");
        note(&self.stage, "sim.unknown", &[("done", done), ("how", how)]);
        reply
    }

    fn news(&mut self, key: &[u8]) -> News {
        let Some(how) = self.mood.get().news.filter(|_| key != b"/") else {
            return News::Told;
        };
        match how {
            Misnews::Late => News::Held,
            Misnews::Again if self.rng.random_bool(0.5) => {
                News::Again(self.rng.random_range(1..=5))
            }
            Misnews::Missed if self.rng.random_bool(0.3) => News::Missed,
            Misnews::Again | Misnews::Missed => News::Told,
        }
    }
}

struct Seen {
    stage: Shared,
    keys: BTreeMap<String, Kv>,
    stamp: Stamp,
}

impl Seen {
    async fn follow(
        &mut self,
        backend: &EtcdBackend,
        orders: &mut UnboundedReceiver<Order>,
    ) -> Result<(), RegistryError> {
        let listing = backend.list("/").await?;
        let from = listing.stamp.revision + 1;
        self.listed(listing);
        let mut watch: WatchStream = backend.watch("/", from).await?;
        loop {
            tokio::select! {
                biased;
                batch = watch.next() => {
                    let Some(batch) = batch else { return Ok(()) };
                    for change in batch?.changes {
                        self.changed(change);
                    }
                }
                order = orders.recv() => match order {
                    Some(Order::Revoke(node)) => self.revoke(backend, &node).await,
                    Some(Order::Renew) => self.renew(backend).await,
                    Some(Order::Unregister(node)) => self.unregister(backend, &node).await,
                    Some(Order::Compact) => compact(backend).await,
                    Some(Order::Touch) => drop(touch(backend).await),
                    Some(_) => {}
                    None => return Ok(()),
                }
            }
        }
    }

    async fn revoke(&self, backend: &EtcdBackend, node: &str) {
        let key = format!(
            "/sim/services/{node}:{}",
            troupe_actors::testkit::machine::PORT
        );
        note(&self.stage, "sim.revoked", &[("machine", node.to_owned())]);
        if let Some(kv) = self.keys.get(&key) {
            // The registry may be away: then there is nothing to revoke.
            backend.revoke(kv.lease).await.ok();
        }
    }

    /// As a node does that finds a restored registry.
    async fn renew(&self, backend: &EtcdBackend) {
        let key = "/sim/generation".to_owned();
        let found = self.keys.get(&key);
        let revision = found.map_or(0, |kv| kv.mod_revision);
        let known = found.and_then(|kv| String::from_utf8_lossy(&kv.value).parse::<u64>().ok());
        let next = known.unwrap_or(0).max(wall_ms() / 1000) + 1;
        let put = Txn {
            // As nodes do: who knew less than there is has come too late.
            when: vec![Compare::Modified(key.clone(), revision)],
            then: vec![Op::Put {
                key,
                value: Bytes::from(next.to_string()),
                lease: 0,
            }],
            ..Txn::default()
        };
        // The registry may be away: then nobody finds anything.
        backend.txn(put).await.ok();
    }

    async fn unregister(&self, backend: &EtcdBackend, node: &str) {
        let key = format!(
            "/sim/services/{node}:{}",
            troupe_actors::testkit::machine::PORT
        );
        note(
            &self.stage,
            "sim.unregistered",
            &[("machine", node.to_owned())],
        );
        let delete = Txn {
            then: vec![Op::Delete(key)],
            ..Txn::default()
        };
        // The registry may be away: then there is nothing to delete.
        backend.txn(delete).await.ok();
    }

    fn listed(&mut self, listing: Listing) {
        if self.stamp.cluster_id != 0 && self.stamp.cluster_id != listing.stamp.cluster_id {
            note(&self.stage, "sim.replaced", &[]);
            self.keys.clear();
        }
        let mut kvs = listing.kvs;
        kvs.sort_by_key(|kv| kv.mod_revision);
        let gone: Vec<String> = {
            let known = |key: &String| kvs.iter().any(|kv| &kv.key == key);
            self.keys
                .keys()
                .filter(|key| !known(key))
                .cloned()
                .collect()
        };
        for kv in kvs {
            let known = self.keys.get(&kv.key);
            if known.is_none_or(|known| known.mod_revision < kv.mod_revision) {
                self.put(kv, true);
            }
        }
        for key in gone {
            self.delete(key, listing.stamp.revision, true);
        }
        self.stamp = listing.stamp;
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Put(kv) => self.put(kv, false),
            Change::Delete { key, revision } => self.delete(key, revision, false),
        }
    }

    /// `listed`: it is only known to be gone by this revision.
    fn delete(&mut self, key: String, revision: i64, listed: bool) {
        self.keys.remove(&key);
        let fields = [
            ("key", key),
            ("revision", revision.to_string()),
            ("listed", listed.to_string()),
        ];
        note(&self.stage, "sim.delete", &fields);
    }

    fn put(&mut self, kv: Kv, listed: bool) {
        let fields = [
            ("key", kv.key.clone()),
            ("value", String::from_utf8_lossy(&kv.value).into_owned()),
            ("created", kv.create_revision.to_string()),
            ("modified", kv.mod_revision.to_string()),
            ("listed", listed.to_string()),
        ];
        note(&self.stage, "sim.put", &fields);
        self.keys.insert(kv.key.clone(), kv);
    }
}
