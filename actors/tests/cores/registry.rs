//! The registry's machine: the production store of the embedded registry behind a network, a disk and a clock of its own.
//!
//! A model is only what lies between the nodes and the store: calls and answers that are late, lost or unknown, and watches
//! that tell late, again or not at all. (The gRPC of both ends is in the whole-node simulation.)

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use rand::RngExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use troupe_actors::registry::embedded::direct::Direct;
use troupe_actors::registry::embedded::{Config, Limits};
use troupe_actors::registry::{
    Backend, Change, Lease, Listing, Op, RegistryError, Status, Timeouts, Txn, TxnOutcome,
    WatchBatch, WatchStream,
};

use crate::hub::{Act, Clock, EPOCH_SECONDS, Hub, hub};

/// What goes wrong with the registry itself, while it does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ills {
    /// Answers that are lost, calls that are, of so many: nobody knows what came of them.
    pub unknown: f64,
    /// A call may take this much longer to arrive; beyond its time-out it still does.
    pub late: Duration,
    /// Watches tell this much later.
    pub watch_late: Duration,
    /// They tell again, of so many times.
    pub watch_again: f64,
    /// They do not tell, of so many times.
    pub watch_missing: f64,
}

struct Follower {
    node: usize,
    told: mpsc::UnboundedSender<Result<WatchBatch, RegistryError>>,
    last: Duration,
}

/// See the module page.
pub struct Server {
    store: Direct,
    /// Whether its process runs.
    up: bool,
    /// It is stopped until then.
    stopped: Duration,
    pub clock: Clock,
    origin: Instant,
    followers: BTreeMap<u64, Follower>,
    pub ills: Ills,
    /// How often the disk is synced; without one, nothing waits.
    sync_every: Option<Duration>,
    syncing: bool,
    /// Answers that wait for the disk.
    waiting: Vec<Act>,
    lives: u64,
}

fn config(life: u64, now: Duration) -> Config {
    let micros = u128::from(EPOCH_SECONDS) * 1_000_000 + now.as_micros();
    Config {
        start_revision: i64::try_from(micros).unwrap_or(1),
        cluster_id: 1000 + life,
        progress: Duration::from_secs(5),
        limits: Limits::default(),
    }
}

impl Server {
    pub fn new(sync_every: Option<Duration>, rate: f64, origin: Instant) -> Self {
        Self {
            store: Direct::new(config(1, Duration::ZERO), sync_every.is_some(), origin),
            up: true,
            stopped: Duration::ZERO,
            clock: Clock {
                global: Duration::ZERO,
                local: Duration::ZERO,
                rate,
            },
            origin,
            followers: BTreeMap::new(),
            ills: Ills::default(),
            sync_every,
            syncing: false,
            waiting: Vec::new(),
            lives: 1,
        }
    }
}

type Reply<T> = oneshot::Sender<Result<T, RegistryError>>;

fn unreachable(why: &str) -> RegistryError {
    RegistryError::Unreachable {
        endpoints: "the registry".to_owned(),
        why: why.to_owned(),
    }
}

impl Hub {
    fn registry_now(&self) -> Instant {
        self.server.origin + self.server.clock.local_at(self.now)
    }

    /// The registry begins to be looked after.
    pub fn serve(&mut self) {
        let revision = self.server.store.revision().to_string();
        self.world("registry", "sim.serving", &[("revision", revision)]);
        self.look_after();
    }

    /// Leases end on time, watches are told that nothing happened.
    fn look_after(&mut self) {
        const EVERY: Duration = Duration::from_millis(250);
        if self.server.up && self.server.stopped <= self.now {
            let now = self.registry_now();
            self.server.store.tick(now);
            self.changed();
        }
        self.at(self.now + EVERY, None, Box::new(Self::look_after));
    }

    // --- calls -------------------------------------------------------------------------------------------------------

    fn call<T: 'static>(
        &mut self,
        me: usize,
        reply: Reply<T>,
        ask: impl FnOnce(&mut Self, Instant) -> Result<T, RegistryError> + 'static,
    ) {
        let late = self.server.ills.late;
        let late = late.mul_f64(self.rng.random::<f64>());
        let after = self.time() + late;
        let to = self.registry();
        let act = move |hub: &mut Self| hub.execute(me, reply, ask);
        self.send(me, to, after, Box::new(act));
    }

    fn execute<T: 'static>(
        &mut self,
        me: usize,
        reply: Reply<T>,
        ask: impl FnOnce(&mut Self, Instant) -> Result<T, RegistryError> + 'static,
    ) {
        if !self.server.up {
            self.reply(me, reply, Err(unreachable("connection refused")));
            return;
        }
        if self.server.stopped > self.now {
            let then = self.server.stopped;
            self.at(then, None, Box::new(move |hub| hub.execute(me, reply, ask)));
            return;
        }
        let unknown = self.server.ills.unknown;
        let (lost, unheard, silent) = (
            self.rng.random_bool(unknown / 2.0),
            self.rng.random_bool(unknown / 2.0),
            self.rng.random_bool(0.5),
        );
        if lost {
            self.fails(me, reply, silent, false);
            return;
        }
        let now = self.registry_now();
        self.server.store.tick(now);
        let answer = ask(self, now);
        self.changed();
        if unheard {
            self.fails(me, reply, silent, true);
            return;
        }
        self.when_synced(Box::new(move |hub| hub.reply(me, reply, answer)));
    }

    fn fails<T: 'static>(&mut self, me: usize, reply: Reply<T>, silent: bool, done: bool) {
        self.world("registry", "sim.unknown", &[("done", done.to_string())]);
        if silent {
            // It hears nothing until its own time is over.
            let keep = Duration::from_secs(30);
            self.at(self.now + keep, None, Box::new(move |_| drop(reply)));
        } else {
            self.reply(me, reply, Err(unreachable("connection reset")));
        }
    }

    fn reply<T: 'static>(&mut self, me: usize, reply: Reply<T>, answer: Result<T, RegistryError>) {
        let from = self.registry();
        // Nobody waits any more: its time was over, or its process is.
        let act = move |_: &mut Self| drop(reply.send(answer));
        self.send(from, me, Duration::ZERO, Box::new(act));
    }

    // --- what was written ----------------------------------------------------------------------------------------------

    fn when_synced(&mut self, act: Act) {
        match self.server.sync_every {
            None => act(self),
            Some(every) => {
                self.server.waiting.push(act);
                if !std::mem::replace(&mut self.server.syncing, true) {
                    let life = self.server.lives;
                    let sync = move |hub: &mut Self| hub.synced(life);
                    self.at(self.now + every, None, Box::new(sync));
                }
            }
        }
    }

    fn synced(&mut self, life: u64) {
        if life != self.server.lives || !self.server.up {
            return;
        }
        self.server.syncing = false;
        self.server.store.sync();
        for act in std::mem::take(&mut self.server.waiting) {
            act(self);
        }
    }

    /// Whoever watches is told, and the trace is, once it is on disk.
    fn changed(&mut self) {
        self.when_synced(Box::new(Self::tell));
    }

    fn tell(&mut self) {
        for change in self.server.store.history() {
            self.write_down(change);
        }
        let now = self.registry_now();
        let numbers: Vec<u64> = self.server.followers.keys().copied().collect();
        for number in numbers {
            if self.server.followers[&number].told.is_closed() {
                self.server.followers.remove(&number);
                self.server.store.unwatch(number);
                continue;
            }
            // What is not taken is not read from the history either.
            let node = self.server.followers[&number].node;
            if self.is_cut(self.registry(), node) {
                continue;
            }
            for batch in self.server.store.pull(number, now) {
                self.tell_follower(number, batch);
            }
        }
    }

    fn tell_follower(&mut self, number: u64, batch: Result<WatchBatch, RegistryError>) {
        let ills = self.server.ills;
        let changes = batch.as_ref().is_ok_and(|batch| !batch.changes.is_empty());
        if changes && self.rng.random_bool(ills.watch_missing) {
            self.world("registry", "sim.watch", &[("what", "missing".to_owned())]);
            return;
        }
        let again = changes && self.rng.random_bool(ills.watch_again);
        let late = ills.watch_late.mul_f64(self.rng.random::<f64>());
        if let Some(copy) = batch.clone().ok().filter(|_| again) {
            self.world("registry", "sim.watch", &[("what", "again".to_owned())]);
            let later = self.now + late + Duration::from_millis(self.rng.random_range(0..1500));
            self.follow_up(number, Ok(copy), later, false);
        }
        self.follow_up(number, batch, self.now + late, true);
    }

    fn follow_up(
        &mut self,
        number: u64,
        batch: Result<WatchBatch, RegistryError>,
        after: Duration,
        in_order: bool,
    ) {
        let Some(follower) = self.server.followers.get(&number) else {
            return;
        };
        let (node, told) = (follower.node, follower.told.clone());
        let after = if in_order {
            after.max(follower.last)
        } else {
            after
        };
        let from = self.registry();
        let act = move |_: &mut Self| drop(told.send(batch));
        let arrives = self.send(from, node, after, Box::new(act));
        if let (Some(arrives), Some(follower), true) =
            (arrives, self.server.followers.get_mut(&number), in_order)
        {
            follower.last = arrives;
        }
    }

    fn write_down(&mut self, change: Change) {
        let (event, fields) = match change {
            Change::Put(kv) => (
                "sim.put",
                vec![
                    ("key", kv.key),
                    ("value", String::from_utf8_lossy(&kv.value).into_owned()),
                    ("created", kv.create_revision.to_string()),
                    ("modified", kv.mod_revision.to_string()),
                    ("listed", "false".to_owned()),
                ],
            ),
            Change::Delete { key, revision } => (
                "sim.delete",
                vec![("key", key), ("revision", revision.to_string())],
            ),
        };
        self.world("registry", event, &fields);
    }

    // --- faults ------------------------------------------------------------------------------------------------------

    /// Its process ends; connections are closed by its machine.
    pub fn registry_ends(&mut self) {
        self.server.up = false;
        self.server.syncing = false;
        self.server.waiting.clear();
        for (_, follower) in std::mem::take(&mut self.server.followers) {
            let told = follower.told;
            let from = self.registry();
            let gone = move |_: &mut Self| drop(told.send(Err(unreachable("connection reset"))));
            self.send(from, follower.node, follower.last, Box::new(gone));
        }
    }

    /// Another process takes its place: with the disk of the one before, or empty.
    pub fn registry_begins(&mut self) {
        if self.server.up {
            self.registry_ends();
        }
        self.server.lives += 1;
        self.server.up = true;
        let (now, life) = (self.registry_now(), self.server.lives);
        let disk = self.server.store.has_disk();
        let fresh = Direct::new(config(life, self.now), disk, now);
        let old = std::mem::replace(&mut self.server.store, fresh);
        if disk {
            self.server.store = old.restart(now);
            self.world("registry", "sim.restarted", &[]);
        } else {
            let revision = self.server.store.revision().to_string();
            self.world("registry", "sim.replaced", &[]);
            self.world("registry", "sim.serving", &[("revision", revision)]);
        }
    }

    pub fn registry_stops(&mut self, until: Duration) {
        self.server.stopped = self.server.stopped.max(until);
    }

    /// It is stopped no more.
    pub fn registry_goes_on(&mut self) {
        self.server.stopped = self.server.stopped.min(self.now);
    }

    /// As an operator, or somebody else's verdict, would: a lease ends behind its owner's back.
    pub fn revoke(&mut self, node: usize) {
        let key = service(&self.machines[node].name);
        let lease = self.server.store.list(&key).kvs.first().map(|kv| kv.lease);
        if let Some(lease) = lease.filter(|_| self.server.up) {
            self.server.store.revoke(lease);
            self.changed();
        }
    }

    /// A write by nobody: a registration deleted, a generation made.
    pub fn meddle(&mut self, txn: &Txn) {
        if self.server.up {
            // What is refused has changed nothing.
            self.server.store.txn(txn).ok();
            self.changed();
        }
    }

    /// Something is put that concerns nobody, and is deleted again.
    pub fn stir(&mut self) {
        let key = "/sim/challenge/0".to_owned();
        let put = Op::Put {
            key: key.clone(),
            value: Bytes::from_static(b"nobody"),
            lease: 0,
        };
        for op in [put, Op::Delete(key)] {
            self.meddle(&Txn {
                then: vec![op],
                ..Txn::default()
            });
        }
    }

    /// All history is dropped: whoever is behind must list.
    pub fn compact(&mut self) {
        let revision = self.server.store.revision();
        if self.server.up {
            self.drop_before(revision);
        }
    }

    /// What was written before is on disk by then, and in the trace.
    fn drop_before(&mut self, revision: i64) {
        if self.server.syncing {
            self.synced(self.server.lives);
        }
        self.server.store.compact(revision);
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<String> {
        let found = self.server.store.list(key).kvs;
        let kv = found.into_iter().find(|kv| kv.key == key)?;
        Some(String::from_utf8_lossy(&kv.value).into_owned())
    }
}

/// The key of a node's registration.
pub fn service(name: &str) -> String {
    format!(
        "/sim/services/{name}:{}",
        troupe_actors::testkit::machine::PORT
    )
}

/// The registry as one node's client sees it.
pub struct Remote {
    pub me: usize,
    pub timeouts: Timeouts,
}

impl Remote {
    fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Hub, Instant) -> Result<T, RegistryError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, RegistryError>> {
        let (me, within) = (self.me, self.timeouts.request);
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            hub(|hub| hub.call(me, reply, ask));
            match timeout(within, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => Err(unreachable("no answer in time")),
            }
        })
    }
}

impl Backend for Remote {
    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing, RegistryError>> {
        let prefix = prefix.to_owned();
        self.ask(move |hub, _| Ok(hub.server.store.list(&prefix)))
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'static, Result<TxnOutcome, RegistryError>> {
        self.ask(move |hub, _| hub.server.store.txn(&txn))
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'static, Result<Lease, RegistryError>> {
        self.ask(move |hub, now| {
            let id = hub.rng.random_range(1..i64::MAX);
            hub.server.store.grant(id, ttl, now)
        })
    }

    fn renew(&self, lease: i64) -> BoxFuture<'static, Result<Duration, RegistryError>> {
        self.ask(move |hub, now| hub.server.store.renew(lease, now))
    }

    fn remaining(&self, lease: i64) -> BoxFuture<'static, Result<Duration, RegistryError>> {
        self.ask(move |hub, now| hub.server.store.remaining(lease, now))
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'static, Result<(), RegistryError>> {
        self.ask(move |hub, _| {
            hub.server.store.revoke(lease);
            Ok(())
        })
    }

    fn watch(
        &self,
        prefix: &str,
        revision: i64,
    ) -> BoxFuture<'static, Result<WatchStream, RegistryError>> {
        let (me, prefix) = (self.me, prefix.to_owned());
        let (told, changes) = mpsc::unbounded_channel();
        let confirmed = self.ask(move |hub, now| {
            let number = hub.server.store.watch(&prefix, revision, now);
            let follower = Follower {
                node: me,
                told,
                last: Duration::ZERO,
            };
            hub.server.followers.insert(number, follower);
            Ok(())
        });
        Box::pin(async move {
            confirmed.await?;
            let next = |mut changes: mpsc::UnboundedReceiver<_>| async move {
                Some((changes.recv().await?, changes))
            };
            Ok(stream::unfold(changes, next).boxed())
        })
    }

    fn compact(&self, revision: i64) -> BoxFuture<'static, Result<(), RegistryError>> {
        self.ask(move |hub, _| {
            hub.drop_before(revision);
            Ok(())
        })
    }

    fn status(&self) -> BoxFuture<'static, Result<Status, RegistryError>> {
        self.ask(|hub, _| Ok(hub.server.store.status()))
    }
}
