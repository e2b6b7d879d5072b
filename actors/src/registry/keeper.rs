//! The session with the registry: list, register, watch from the next revision, renew, list again; and the transactions that
//! discovery decides on. All on RegistryActor's thread, which owns it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::actor::{RegistryEvent, RegistrySeed, roll_name};
use super::session::{
    Continuity, Keys, Leftover, Mirror, Registered, Seat, View, amend, claim, clear_leftover,
    condemn, judge_seat, owner_of, register,
};
use super::{
    Compare, EditKey, EditRefused, KeyView, Kv, Lease, Listing, Op, RegistryError, Txn, TxnOutcome,
    WatchBatch, WatchStream, operator,
};
use crate::backoff::Backoff;
use crate::cluster::{MasterRecord, Registration};
use crate::id::{Epoch, Generation, Incarnation};
use crate::planted;
use crate::transport::{Dial, DialOutcome, Incarnated};

/// A transaction whose answer was lost is sent again this often before the caller is told "unknown".
const SETTLE_TRIES: u32 = 8;
/// How long a doubtful owner of our address has to answer a challenge.
const SEAT_WINDOW: Duration = Duration::from_millis(1500);
/// A challenge hangs on a lease of its own, so that a forgotten one goes away.
const CHALLENGE_TTL: Duration = Duration::from_secs(10);
/// The longest wait of somebody wrongly condemned again and again.
const CONDEMNED_WAIT_MAX: Duration = Duration::from_secs(60);
/// A registration that lasted this long forgets earlier verdicts.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// A configured name that is taken is asked for again this often.
const NAME_WAIT: Duration = Duration::from_secs(2);

/// Our registration as it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) incarnation: Incarnation,
    pub(super) lease: i64,
    pub(super) since: Instant,
    pub(super) renewed: Instant,
    /// Renew at once: nobody could while the registry was away.
    pub(super) overdue: bool,
    pub(super) ttl: Duration,
}

/// How our registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// Deleted while its lease lives: somebody's verdict.
    Condemned,
    /// The lease ended.
    Lease,
}

pub(super) struct Shared {
    pub(super) mirror: Mirror,
    pub(super) generation: Generation,
    pub(super) standing: Option<Standing>,
    pub(super) registration: Registration,
    /// It differs from what is in the registry.
    pub(super) amended: bool,
    pub(super) up: bool,
    pub(super) since: Instant,
    pub(super) version: Option<String>,
    pub(super) last_error: Option<String>,
    pub(super) retired: bool,
    pub(super) condemned: u32,
    pub(super) published: Option<Arc<View>>,
    pub(super) bad_values: Vec<String>,
}

/// The loop, and what the handlers do; all on RegistryActor's thread.
pub(super) struct Session {
    pub(super) seed: RegistrySeed,
    pub(super) keys: Keys,
    pub(super) shared: Rc<RefCell<Shared>>,
    pub(super) nudge: Rc<Notify>,
}

impl Session {
    pub(super) async fn run(self) {
        let settings = &self.seed.settings;
        let mut backoff = Backoff::new(settings.retry_min, settings.retry_max);
        let mut why = "begin";
        loop {
            let Err(err) = self.hold(&mut backoff, &mut why).await else {
                return;
            };
            self.went_down(&err);
            if self.shared.borrow().retired {
                return;
            }
            let wait = backoff.next_delay(&mut crate::chance::rng());
            self.sleep_or_nudge(wait).await;
        }
    }

    /// One session: ends with the error that broke it, or well when we have retired. `why` is for what all is listed anew.
    async fn hold(
        &self,
        backoff: &mut Backoff,
        why: &mut &'static str,
    ) -> Result<(), RegistryError> {
        if planted::is("no-relist-after-compaction") && *why == "compaction" {
            self.skip().await?;
        } else {
            self.relist().await?;
        }
        log::debug!(target: "registry", event = "registry.listed", reason = *why; "all is listed, and watched from there on");
        // Whatever ends the session but a watch is a question that was not answered.
        *why = "silence";
        backoff.reset();
        self.came_up().await;
        let mut watches = self.open_watches().await?;
        let mut register_at = Some(Instant::now());
        let mut relist_at = Instant::now() + self.seed.settings.relist;
        let mut probe_at = Instant::now() + self.seed.settings.timeouts.keep_alive;
        loop {
            if self.shared.borrow().retired {
                return Ok(());
            }
            if let Some(lost) = self.check_standing() {
                register_at = Some(Instant::now() + self.lost_registration(lost));
            }
            if register_at.is_none() && self.shared.borrow().standing.is_none() {
                register_at = Some(Instant::now());
            }
            self.answer_challenge().await?;
            self.amend().await?;
            self.publish();
            let renew_at = self.renew_at();
            tokio::select! {
                biased;
                batch = watches.next() => {
                    let batch = batch.unwrap_or_else(|| Err(self.unreachable("every watch was closed")));
                    let batch = batch.inspect_err(|err| *why = ended_by(err))?;
                    self.shared.borrow_mut().mirror.apply(batch);
                    self.follow_generation().await?;
                }
                () = self.nudge.notified() => {
                    if !planted::is("never-relist") {
                        self.relist().await?;
                        log::debug!(target: "registry", event = "registry.listed", reason = "doubt"; "all is listed again");
                    }
                }
                () = sleep_until_some(register_at) => {
                    register_at = self.try_register().await?.map(|wait| Instant::now() + wait);
                }
                () = sleep_until_some(renew_at) => {
                    if let Some(lost) = self.renew().await? {
                        register_at = Some(Instant::now() + self.lost_registration(lost));
                    }
                }
                () = sleep_until(probe_at) => {
                    // A frozen registry closes nothing: only a question that stays unanswered shows it.
                    self.seed.backend.list(&self.keys.generation()).await?;
                    probe_at = Instant::now() + self.seed.settings.timeouts.keep_alive;
                }
                () = sleep_until(relist_at) => {
                    if !planted::is("never-relist") {
                        self.relist().await?;
                    }
                    relist_at = Instant::now() + self.seed.settings.relist;
                }
            }
        }
    }

    // --- reading -------------------------------------------------------------------------------------------------

    /// A planted bug: goes on from where the registry is now, whatever happened before.
    async fn skip(&self) -> Result<(), RegistryError> {
        let now = self.seed.backend.list(&self.keys.generation()).await?;
        let nothing = WatchBatch {
            stamp: now.stamp,
            changes: Vec::new(),
        };
        self.shared.borrow_mut().mirror.apply(nothing);
        Ok(())
    }

    async fn relist(&self) -> Result<(), RegistryError> {
        loop {
            let asked_at = self.shared.borrow().mirror.revision();
            let outcome = self.seed.backend.txn(self.keys.read_all()).await?;
            let listing = Listing {
                stamp: outcome.stamp,
                kvs: outcome.reads.into_iter().flatten().collect(),
            };
            let continuity = self.shared.borrow_mut().mirror.replace(listing, asked_at);
            // Only as often as our own transactions overtake it.
            if continuity != Continuity::Outrun {
                return self.settle_generation(continuity).await;
            }
        }
    }

    /// Makes the generation key when it is absent, or anew when the registry was replaced; everybody registers anew then.
    async fn settle_generation(&self, continuity: Continuity) -> Result<(), RegistryError> {
        let known = self.shared.borrow().generation;
        let mut replaced = continuity == Continuity::Replaced;
        let settled = loop {
            let (found, revision) = {
                let shared = self.shared.borrow();
                let key = shared.mirror.get(&self.keys.generation());
                let revision = key.map_or(0, |kv| kv.mod_revision);
                (shared.mirror.generation(&self.keys), revision)
            };
            replaced |= found.0 == 0 || found < known;
            // Whoever made it may have known less, or have a wall clock that is behind.
            if !replaced || found > known {
                break found;
            }
            let value = if planted::is("generation-does-not-rise") && known.0 != 0 {
                known.0
            } else {
                unix_seconds().max(known.0 + 1).max(found.0 + 1)
            };
            let key = self.keys.generation();
            let outcome = self
                .settle(Txn {
                    when: vec![Compare::Modified(key.clone(), revision)],
                    then: vec![Op::Put {
                        key: key.clone(),
                        value: Bytes::from(value.to_string()),
                        lease: 0,
                    }],
                    otherwise: vec![Op::Get(key.clone())],
                })
                .await?;
            self.fold_put(&outcome, &key, Bytes::from(value.to_string()), 0);
            if outcome.succeeded {
                break self.shared.borrow().mirror.generation(&self.keys);
            }
            // Another was first, as often as others write: what it made is looked at like any other, and what it deleted is made again.
            if outcome.reads.iter().flatten().next().is_none() {
                let gone = outcome.stamp.revision;
                self.shared.borrow_mut().mirror.delete(&key, gone);
            }
        };
        let changed = known.0 != 0 && settled != known;
        self.shared.borrow_mut().generation = settled;
        // A registry may be replaced while this actor is between two lives.
        self.seed.generation.store(settled.0, Ordering::Relaxed);
        if changed {
            log::warn!(target: "registry", event = "registry.replaced", reason = format!("generation {} became {}", known.0, settled.0); "the registry was replaced or restored, registering anew");
            self.drop_own_registration().await?;
            self.shared.borrow_mut().standing = None;
            self.tell_incarnation();
        }
        Ok(())
    }

    /// Somebody else found the registry replaced and said so in its generation key: what we hold is of the one before. To go
    /// on under it would be refused by every peer, and an epoch claimed under it would be outbid by the key itself.
    async fn follow_generation(&self) -> Result<(), RegistryError> {
        let told = self.shared.borrow().mirror.generation(&self.keys);
        if told == self.shared.borrow().generation {
            return Ok(());
        }
        self.settle_generation(Continuity::Same).await
    }

    /// A restored registry may hold an old registration of ours: it belongs to another generation.
    async fn drop_own_registration(&self) -> Result<(), RegistryError> {
        let txn = {
            let shared = self.shared.borrow();
            clear_leftover(&shared.mirror, &self.keys, &shared.registration.address())
        };
        self.clear(txn).await
    }

    async fn open_watches(&self) -> Result<SelectAll<WatchStream>, RegistryError> {
        let from = self.shared.borrow().mirror.revision()
            + 1
            + i64::from(planted::is("watch-skips-a-revision"));
        let mut watches = Vec::new();
        for prefix in self.keys.watched() {
            watches.push(self.seed.backend.watch(&prefix, from).await?);
        }
        // One that ends must end the session, though select_all would go on with the others.
        let ended = self.unreachable("a watch was closed");
        Ok(select_all(watches.into_iter().map(move |watch| {
            let end = futures_util::stream::iter([Err(ended.clone())]);
            watch.chain(end).boxed()
        })))
    }

    pub(super) async fn list_keys(&self, prefix: &str) -> Result<Vec<KeyView>, RegistryError> {
        let view = || self.shared.borrow().mirror.view(&self.keys).0;
        operator::list(&*self.seed.backend, &self.keys, prefix, view).await
    }

    pub(super) async fn edit_key(&self, edit: EditKey) -> Result<i64, EditRefused> {
        operator::edit(&*self.seed.backend, &self.keys, edit).await
    }

    pub(super) async fn watch_keys(&self, prefix: &str) -> Result<WatchStream, RegistryError> {
        operator::watch(&*self.seed.backend, &self.keys, prefix).await
    }

    // --- our registration ----------------------------------------------------------------------------------------

    fn check_standing(&self) -> Option<Lost> {
        let mut shared = self.shared.borrow_mut();
        let standing = shared.standing?;
        if planted::is("loss-not-noticed") {
            return None;
        }
        let key = self.keys.service(&shared.registration.address());
        let ours = shared
            .mirror
            .get(&key)
            .is_some_and(|kv| kv.create_revision == standing.incarnation.0);
        if ours {
            if standing.since.elapsed() > FORGIVEN_AFTER {
                shared.condemned = 0;
            }
            return None;
        }
        let expired = standing.renewed.elapsed() > standing.ttl;
        Some(if expired {
            Lost::Lease
        } else {
            Lost::Condemned
        })
    }

    /// Our registration is gone: tells everybody, and answers how long to wait before the next one.
    fn lost_registration(&self, lost: Lost) -> Duration {
        let wait = {
            let mut shared = self.shared.borrow_mut();
            shared.standing = None;
            if lost == Lost::Condemned {
                shared.condemned += 1;
                let doubled = Duration::from_secs(1 << (shared.condemned - 1).min(6));
                doubled.min(CONDEMNED_WAIT_MAX)
            } else {
                Duration::ZERO
            }
        };
        let reason = match lost {
            Lost::Condemned => "removed by the verdict of a peer",
            Lost::Lease => "the lease ended",
        };
        log::warn!(target: "registry", event = "node.deregistered", reason = reason, duration_ms = wait.as_millis() as u64; "our registration is gone, registering again");
        self.tell_incarnation();
        wait
    }

    fn renew_at(&self) -> Option<Instant> {
        if planted::is("lease-not-renewed") {
            return None;
        }
        let standing = self.shared.borrow().standing?;
        if standing.overdue {
            return Some(Instant::now());
        }
        Some(standing.renewed + self.seed.settings.renew.min(standing.ttl / 2))
    }

    async fn renew(&self) -> Result<Option<Lost>, RegistryError> {
        let Some(lease) = self.shared.borrow().standing.map(|s| s.lease) else {
            return Ok(None);
        };
        match self.seed.backend.renew(lease).await {
            Ok(ttl) => {
                let mut shared = self.shared.borrow_mut();
                if let Some(standing) = shared.standing.as_mut() {
                    standing.renewed = Instant::now();
                    standing.overdue = false;
                    standing.ttl = ttl;
                }
                log::debug!(target: "registry", event = "registry.renewed", ttl_s = ttl.as_secs(); "lease renewed");
                Ok(None)
            }
            Err(RegistryError::LeaseLost { .. }) => Ok(Some(Lost::Lease)),
            Err(err) => Err(err),
        }
    }

    /// Tries to register; answers how long to wait before the next try, or `None` when it is done.
    async fn try_register(&self) -> Result<Option<Duration>, RegistryError> {
        if self.shared.borrow().standing.is_some() {
            return Ok(None);
        }
        if !self.may_come_back().await {
            return Ok(Some(Duration::from_secs(1)));
        }
        let seat = {
            let shared = self.shared.borrow();
            judge_seat(&shared.mirror, &self.keys, &shared.registration, pid_lives)
        };
        match seat {
            Seat::Ours { incarnation, .. } if self.is_of_before(incarnation) => {
                // What is compared may be old news; names are never watched.
                self.relist().await?;
                self.drop_own_registration().await?;
                Ok(Some(Duration::ZERO))
            }
            Seat::Ours { incarnation, lease } => self.adopt(incarnation, lease).await,
            Seat::Dead(_) | Seat::Doubtful(_) if planted::is("registration-overwritten") => {
                self.put_registration().await
            }
            Seat::Dead(leftover) => self.evict(&leftover).await,
            Seat::Doubtful(leftover) => self.question(&leftover).await,
            Seat::Free => self.put_registration().await,
        }
    }

    /// Somebody condemned comes back once the master answers a hello, or there is none.
    async fn may_come_back(&self) -> bool {
        let (condemned, master) = {
            let shared = self.shared.borrow();
            let view = shared.mirror.view(&self.keys).0;
            (shared.condemned > 0, view.seated().cloned())
        };
        let Some(master) = master.filter(|m| condemned && m.record.id != self.seed.identity.id)
        else {
            return true;
        };
        let address = master.record.address;
        let outcome = self.seed.dial.send(Dial { address }).await;
        matches!(outcome, Ok(DialOutcome::Answered { .. }))
    }

    /// Whether it began before the generation that there is: then it belongs to another.
    fn is_of_before(&self, incarnation: Incarnation) -> bool {
        let shared = self.shared.borrow();
        let generation = shared.mirror.get(&self.keys.generation());
        generation.is_some_and(|kv| incarnation.0 < kv.mod_revision)
    }

    /// An earlier life of ours registered this: its lease must still live.
    async fn adopt(
        &self,
        incarnation: Incarnation,
        lease: i64,
    ) -> Result<Option<Duration>, RegistryError> {
        match self.seed.backend.renew(lease).await {
            Ok(ttl) => {
                let same = {
                    let shared = self.shared.borrow();
                    let mine = &shared.registration;
                    let there = shared.mirror.registered_at(&self.keys, &mine.address());
                    there.is_some_and(|(_, said)| said.as_ref() == Some(mine))
                };
                self.shared.borrow_mut().amended = !same;
                self.stand(incarnation, Lease { id: lease, ttl });
                Ok(None)
            }
            Err(RegistryError::LeaseLost { .. }) => {
                self.drop_own_registration().await?;
                // It may be gone already, and the watch has not said so: only a listing shows it.
                self.relist().await?;
                Ok(Some(Duration::ZERO))
            }
            Err(err) => Err(err),
        }
    }

    async fn evict(&self, leftover: &Leftover) -> Result<Option<Duration>, RegistryError> {
        let name = leftover
            .registration
            .as_ref()
            .map_or("?", |r| r.name.as_str());
        log::info!(target: "registry", event = "registry.leftover", peer = name; "removing the registration that a dead process left at our address");
        self.drop_own_registration().await?;
        self.relist().await?;
        Ok(Some(Duration::ZERO))
    }

    /// A process that may be alive elsewhere holds our address: it is asked through the registry.
    async fn question(&self, leftover: &Leftover) -> Result<Option<Duration>, RegistryError> {
        log::info!(target: "registry", event = "registry.leftover", reason = "asking its owner through the registry"; "our address is registered by somebody else");
        self.challenge(leftover.incarnation).await?;
        let asked = Instant::now();
        loop {
            self.relist().await?;
            let (open, same) = {
                let shared = self.shared.borrow();
                let key = self.keys.challenge(leftover.incarnation);
                let seat = self.keys.service(&shared.registration.address());
                let same = shared
                    .mirror
                    .get(&seat)
                    .is_some_and(|kv| kv.create_revision == leftover.incarnation.0);
                (shared.mirror.get(&key).is_some(), same)
            };
            if !same {
                return Ok(Some(Duration::ZERO));
            }
            if !open {
                (self.seed.fatal)(taken_words(&self.shared.borrow().registration, leftover));
                return Ok(Some(CONDEMNED_WAIT_MAX));
            }
            if asked.elapsed() > SEAT_WINDOW {
                return self.evict(leftover).await;
            }
            tokio::time::sleep(SEAT_WINDOW / 10).await;
        }
    }

    async fn put_registration(&self) -> Result<Option<Duration>, RegistryError> {
        let registration = {
            let mut shared = self.shared.borrow_mut();
            shared.amended = false;
            shared.registration.clone()
        };
        let lease = self.seed.backend.grant(self.seed.settings.ttl).await?;
        let txn = register(&self.keys, &registration, lease.id).map_err(refused)?;
        let outcome = self.settle(txn).await?;
        let address_key = self.keys.service(&registration.address());
        if outcome.succeeded {
            let revision = outcome.stamp.revision;
            let value = Bytes::from(serde_json::to_vec(&registration).map_err(refused)?);
            let kv = made(&address_key, value, revision, lease.id);
            self.shared.borrow_mut().mirror.put(kv);
            self.stand(Incarnation(revision), lease);
            return Ok(None);
        }
        let found: Vec<Kv> = outcome.reads.into_iter().flatten().collect();
        let service = found.iter().find(|kv| kv.key == address_key);
        if let Some(kv) = service {
            let ours = serde_json::from_slice::<Registration>(&kv.value)
                .is_ok_and(|r| r.id == registration.id);
            // Ours: an earlier send of this very transaction was done, under this very lease.
            if !ours {
                self.seed.backend.revoke(lease.id).await?;
            }
            self.relist().await?;
            return Ok(Some(Duration::ZERO));
        }
        self.seed.backend.revoke(lease.id).await?;
        let name = found
            .iter()
            .find(|kv| kv.key == self.keys.name(&registration.name));
        self.name_is_taken(&registration.name, name).await
    }

    async fn name_is_taken(
        &self,
        name: &str,
        claimed: Option<&Kv>,
    ) -> Result<Option<Duration>, RegistryError> {
        self.relist().await?;
        let owner = claimed.and_then(owner_of);
        let registered = {
            let view = self.shared.borrow().mirror.view(&self.keys).0;
            view.members
                .iter()
                .any(|m| Some(m.registration.id) == owner)
        };
        if let Some(kv) = claimed.filter(|_| !registered) {
            // Its owner is gone and left the name behind.
            self.clear(Txn {
                when: vec![Compare::Modified(kv.key.clone(), kv.mod_revision)],
                then: vec![Op::Delete(kv.key.clone())],
                otherwise: vec![],
            })
            .await?;
            return Ok(Some(Duration::ZERO));
        }
        if self.seed.name_is_configured {
            log::warn!(target: "registry", event = "registry.name_taken", name = name, duration_ms = NAME_WAIT.as_millis() as u64; "the configured name is taken by a live node, waiting for it");
            return Ok(Some(NAME_WAIT));
        }
        let rolled = roll_name();
        log::info!(target: "registry", event = "registry.name_taken", name = name, rolled = rolled.as_str(); "the rolled name is taken, rolling again");
        self.shared
            .borrow_mut()
            .registration
            .name
            .clone_from(&rolled);
        *self
            .seed
            .identity
            .name
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = rolled;
        Ok(Some(Duration::ZERO))
    }

    fn stand(&self, incarnation: Incarnation, lease: Lease) {
        let now = Instant::now();
        let (address, name) = {
            let mut shared = self.shared.borrow_mut();
            shared.standing = Some(Standing {
                incarnation,
                lease: lease.id,
                since: now,
                renewed: now,
                overdue: false,
                ttl: lease.ttl,
            });
            let r = &shared.registration;
            (r.address(), r.name.clone())
        };
        log::info!(target: "registry", event = "node.registered", node = name, address = address, incarnation = incarnation.0, ttl_s = lease.ttl.as_secs(); "registered");
        self.tell_incarnation();
    }

    /// Tells the registry what has changed of our registration; what is not registered yet will be registered so.
    pub(super) async fn amend(&self) -> Result<(), RegistryError> {
        let (registration, standing) = {
            let shared = self.shared.borrow();
            match shared.standing.filter(|_| shared.amended) {
                Some(standing) => (shared.registration.clone(), standing),
                None => return Ok(()),
            }
        };
        let txn = amend(
            &self.keys,
            &registration,
            standing.incarnation,
            standing.lease,
        );
        let outcome = self.settle(txn.map_err(refused)?).await?;
        let mut shared = self.shared.borrow_mut();
        // Changed again meanwhile: then it is for the next one.
        shared.amended = shared.registration != registration;
        if !outcome.succeeded {
            // This life of it is gone; the next look finds that out, and what is registered then is right.
            return Ok(());
        }
        let key = self.keys.service(&registration.address());
        if let Some(mut kv) = shared.mirror.get(&key).cloned() {
            kv.value = Bytes::from(serde_json::to_vec(&registration).map_err(refused)?);
            kv.mod_revision = outcome.stamp.revision;
            kv.version += 1;
            shared.mirror.put(kv);
        }
        log::info!(target: "registry", event = "node.amended", weight = registration.weight, eligible = registration.eligible, incarnation = standing.incarnation.0; "our registration says something else now");
        Ok(())
    }

    async fn answer_challenge(&self) -> Result<(), RegistryError> {
        let key = {
            let shared = self.shared.borrow();
            let Some(standing) = shared.standing else {
                return Ok(());
            };
            let key = self.keys.challenge(standing.incarnation);
            if shared.mirror.get(&key).is_none() || planted::is("challenge-not-answered") {
                return Ok(());
            }
            key
        };
        log::info!(target: "registry", event = "registry.challenged"; "a peer doubts that we live, answering through the registry");
        let txn = Txn {
            then: vec![Op::Delete(key.clone())],
            ..Txn::default()
        };
        let outcome = self.settle(txn).await?;
        let revision = outcome.stamp.revision;
        self.shared.borrow_mut().mirror.delete(&key, revision);
        Ok(())
    }

    pub(super) async fn deregister(&self) -> Result<(), RegistryError> {
        let (standing, txn) = {
            let mut shared = self.shared.borrow_mut();
            shared.retired = true;
            let address = shared.registration.address();
            let txn = clear_leftover(&shared.mirror, &self.keys, &address);
            (shared.standing.take(), txn)
        };
        self.nudge.notify_one();
        let Some(standing) = standing.filter(|_| !planted::is("leaves-without-deregistering"))
        else {
            return Ok(());
        };
        // Mastership first and by its revision; the lease takes whatever is left.
        let cleared = self.clear(txn).await;
        self.seed.backend.revoke(standing.lease).await?;
        log::info!(target: "registry", event = "node.deregistered", reason = "left"; "deregistered");
        cleared
    }

    // --- what discovery decided ----------------------------------------------------------------------------------

    pub(super) async fn claim(&self, expected: i64) -> Result<Option<Epoch>, RegistryError> {
        let (record, lease, generation) = {
            let shared = self.shared.borrow();
            let Some(standing) = shared.standing else {
                return Ok(None);
            };
            let record = MasterRecord {
                id: self.seed.identity.id,
                incarnation: standing.incarnation,
                address: shared.registration.address(),
            };
            (record, standing.lease, shared.generation)
        };
        let txn = claim(&self.keys, expected, &record, lease).map_err(refused)?;
        let outcome = self.settle(txn).await?;
        let key = self.keys.master();
        let value = Bytes::from(serde_json::to_vec(&record).map_err(refused)?);
        self.fold_put(&outcome, &key, value.clone(), lease);
        self.publish();
        let won = if outcome.succeeded {
            Some(outcome.stamp.revision)
        } else {
            // An earlier send of this very transaction may have been done and its answer lost.
            let found = outcome.reads.into_iter().flatten().next();
            found
                .filter(|kv| kv.value == value && kv.mod_revision > expected)
                .map(|kv| kv.mod_revision)
        };
        // Won in a registry that was replaced meanwhile: it counts for nothing.
        let same = self.shared.borrow().generation == generation
            || planted::is("two-masters-after-replacement");
        Ok(won.filter(|_| same).map(|revision| Epoch {
            generation,
            revision,
        }))
    }

    pub(super) async fn condemn(&self, peer: Registered) -> Result<bool, RegistryError> {
        let (txn, key, mine) = {
            let shared = self.shared.borrow();
            let Some(standing) = shared.standing else {
                return Ok(false);
            };
            let address = shared.registration.address();
            let me = (address.as_str(), standing.incarnation);
            let key = self.keys.service(&peer.registration.address());
            (condemn(&self.keys, me, &peer), key, standing.incarnation)
        };
        let outcome = self.settle(txn).await?;
        if outcome.succeeded {
            let revision = outcome.stamp.revision;
            log::debug!(target: "registry", event = "registry.condemned", key = key.as_str(), incarnation = peer.incarnation.0, by = mine.0, revision = revision; "the verdict is in the registry");
            self.shared.borrow_mut().mirror.delete(&key, revision);
            self.publish();
        } else {
            self.nudge.notify_one();
        }
        Ok(outcome.succeeded)
    }

    pub(super) async fn challenge(&self, incarnation: Incarnation) -> Result<(), RegistryError> {
        let key = self.keys.challenge(incarnation);
        if self.shared.borrow().mirror.get(&key).is_some() {
            return Ok(());
        }
        let lease = self.seed.backend.grant(CHALLENGE_TTL).await?;
        let value = Bytes::from(self.seed.identity.id.to_string());
        let txn = Txn {
            when: vec![Compare::Created(key.clone(), 0)],
            then: vec![Op::Put {
                key: key.clone(),
                value: value.clone(),
                lease: lease.id,
            }],
            otherwise: vec![Op::Get(key.clone())],
        };
        let outcome = self.settle(txn).await?;
        self.fold_put(&outcome, &key, value, lease.id);
        self.publish();
        Ok(())
    }

    pub(super) async fn resign(&self, epoch: Epoch) -> Result<bool, RegistryError> {
        let key = self.keys.master();
        let txn = Txn {
            when: vec![Compare::Modified(key.clone(), epoch.revision)],
            then: vec![Op::Delete(key.clone())],
            otherwise: vec![],
        };
        let outcome = self.settle(txn).await?;
        if outcome.succeeded {
            let revision = outcome.stamp.revision;
            self.shared.borrow_mut().mirror.delete(&key, revision);
            self.publish();
        }
        Ok(outcome.succeeded)
    }

    // --- telling -------------------------------------------------------------------------------------------------

    pub(super) fn tell(&self, event: RegistryEvent) {
        self.seed.discovery.do_send(event);
    }

    pub(super) fn tell_incarnation(&self) {
        let shared = self.shared.borrow();
        let incarnation = shared.standing.map_or(Incarnation::NONE, |s| s.incarnation);
        let generation = shared.generation;
        self.tell(RegistryEvent::Incarnated(Incarnated {
            incarnation,
            generation,
        }));
    }

    pub(super) fn publish(&self) {
        let mut shared = self.shared.borrow_mut();
        let (view, bad) = shared.mirror.view(&self.keys);
        if bad != shared.bad_values {
            for why in &bad {
                log::warn!(target: "registry", event = "registry.bad_value", reason = why.as_str(); "a value in the registry is not what it should be");
            }
            shared.bad_values = bad;
        }
        let old = shared.published.as_ref();
        let same = old.is_some_and(|old| {
            old.members == view.members
                && old.master == view.master
                && old.challenged == view.challenged
                && old.generation == view.generation
        });
        if !same {
            let view = Arc::new(view);
            shared.published = Some(Arc::clone(&view));
            self.tell(RegistryEvent::View(view));
        }
    }

    async fn came_up(&self) {
        let first = {
            let mut shared = self.shared.borrow_mut();
            shared.last_error = None;
            let was = std::mem::replace(&mut shared.up, true);
            if !was {
                shared.since = Instant::now();
            }
            !was
        };
        if first {
            let status = self.seed.backend.status().await.ok();
            let version = status.map(|s| s.version);
            log::info!(target: "registry", event = "registry.connected", endpoints = self.seed.settings.endpoints.join(","), version = version.as_deref().unwrap_or("?"); "connected to the registry");
            self.shared.borrow_mut().version = version;
            self.tell(RegistryEvent::Up);
        }
        let renew_now = self
            .shared
            .borrow()
            .standing
            .is_some_and(|s| s.renewed.elapsed() > self.seed.settings.renew / 4);
        if renew_now && let Some(standing) = self.shared.borrow_mut().standing.as_mut() {
            standing.overdue = true;
        }
    }

    fn went_down(&self, err: &RegistryError) {
        let why = err.to_string();
        let first = {
            let mut shared = self.shared.borrow_mut();
            let first = shared.up || shared.last_error.is_none();
            if shared.up {
                shared.since = Instant::now();
            }
            shared.up = false;
            shared.last_error = Some(why.clone());
            first
        };
        match err {
            RegistryError::Compacted { oldest } => {
                log::info!(target: "registry", event = "registry.compacted", revision = *oldest; "the watch fell behind a compaction, listing again");
            }
            _ if first => {
                log::warn!(target: "registry", event = "registry.lost", err = why.as_str(), endpoints = self.seed.settings.endpoints.join(","); "the registry does not answer, trying again");
                self.tell(RegistryEvent::Down { why });
            }
            _ => {
                log::debug!(target: "registry", event = "registry.retry", err = why.as_str(); "the registry still does not answer")
            }
        }
    }

    // --- transactions --------------------------------------------------------------------------------------------

    /// Sends the same conditional transaction again until it answers.
    async fn settle(&self, txn: Txn) -> Result<TxnOutcome, RegistryError> {
        let settings = &self.seed.settings;
        let mut backoff = Backoff::new(settings.retry_min, settings.retry_max);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.seed.backend.txn(txn.clone()).await {
                Err(RegistryError::Unreachable { .. }) if tries < SETTLE_TRIES => {
                    let wait = backoff.next_delay(&mut crate::chance::rng());
                    tokio::time::sleep(wait).await;
                }
                answer => return answer,
            }
        }
    }

    /// Deletes by compare; a failed compare means that the keys changed under us: the next listing shows how.
    async fn clear(&self, txn: Txn) -> Result<(), RegistryError> {
        if txn.then.is_empty() {
            return Ok(());
        }
        let deletes = txn.then.clone();
        let outcome = self.settle(txn).await?;
        if outcome.succeeded {
            let mut shared = self.shared.borrow_mut();
            for op in deletes {
                if let Op::Delete(key) = op {
                    shared.mirror.delete(&key, outcome.stamp.revision);
                }
            }
        }
        Ok(())
    }

    /// Folds what a put-or-get transaction found or did into the mirror.
    fn fold_put(&self, outcome: &TxnOutcome, key: &str, value: Bytes, lease: i64) {
        let mut shared = self.shared.borrow_mut();
        if outcome.succeeded {
            shared
                .mirror
                .put(made(key, value, outcome.stamp.revision, lease));
        }
        for kv in outcome.reads.iter().flatten() {
            shared.mirror.put(kv.clone());
        }
    }

    fn unreachable(&self, why: &str) -> RegistryError {
        RegistryError::Unreachable {
            endpoints: self.seed.settings.endpoints.join(","),
            why: why.to_owned(),
        }
    }

    async fn sleep_or_nudge(&self, wait: Duration) {
        // A nudge cuts the wait short; a time-out is the plain case.
        timeout(wait, self.nudge.notified()).await.ok();
    }
}

/// The key as it stands after our own put; its `create_revision` is right for a new key, and for the master key nobody reads it.
fn made(key: &str, value: Bytes, revision: i64, lease: i64) -> Kv {
    Kv {
        key: key.to_owned(),
        value,
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease,
    }
}

fn taken_words(me: &Registration, leftover: &Leftover) -> String {
    let (name, host) = leftover
        .registration
        .as_ref()
        .map_or(("?", "?"), |r| (r.name.as_str(), r.host.as_str()));
    format!(
        "{} on host {} advertises {}, and so does the live node {name} on host {host}: \
         two nodes cannot share one address; set advertise, interface or advertise_cidr",
        me.name,
        me.host,
        me.address()
    )
}

/// What ended a watch.
fn ended_by(err: &RegistryError) -> &'static str {
    match err {
        RegistryError::Compacted { .. } => "compaction",
        _ => "watch ended",
    }
}

fn refused(err: serde_json::Error) -> RegistryError {
    RegistryError::Refused {
        why: err.to_string(),
    }
}

fn unix_seconds() -> u64 {
    crate::time::unix_ms() / 1000
}

/// Whether a process of this machine lives; when it cannot be told, it is taken to live.
fn pid_lives(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return false;
    };
    // A zombie has exited, though it still has an entry.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    if let Ok(stat) = stat {
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        return state != Some('Z') && state != Some('X');
    }
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
