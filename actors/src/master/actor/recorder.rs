//! ▶ What MasterActor does with the registry: reads the journal at the start of a reign, sends segments, confirms its epoch for those
//! who read. Decides nothing: the journal and the ledger do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::sync::oneshot;

use super::{MasterActor, now};
use crate::discovery::EpochSeen;
use crate::id::{Epoch, Generation};
use crate::master::journal::{self, Flight, Replayed};
use crate::master::ledger::Committed;
use crate::registry::{Backend, Compare, Op, RegistryError, Txn};

/// After a refusal (a full registry) nothing is sent for this long.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// A segment whose outcome is unknown is sent again after this, doubled up to the second.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_LAST: Duration = Duration::from_millis(500);
/// A journal that could not be read is read again after this.
const LOAD_AGAIN: Duration = Duration::from_millis(200);
/// The registry's history is dropped this often, up to where it was the time before: whoever watches has that long to follow.
const COMPACT_EVERY: Duration = Duration::from_secs(30);
/// …or once so many bytes were written since.
const COMPACT_BYTES: usize = 32 * 1024 * 1024;

/// Where the registry's history may be dropped to, the next time, and what was written since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compacted {
    at: Instant,
    revision: i64,
    bytes: usize,
}

/// Where durable tasks are recorded.
#[derive(Clone)]
pub struct JournalSeed {
    /// The registry; a connection of its own keeps bulk away from leases and heartbeats.
    pub backend: Arc<dyn Backend>,
    /// `/<cluster>/journal/`.
    pub prefix: String,
    /// `/<cluster>/master`.
    pub master_key: String,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is in the registry.
    Recorded,
    /// It is not, and will not be.
    NotRecorded(String),
}

/// Who waits for the segment of this number.
pub(super) type Waiting = (u64, oneshot::Sender<Fate>);

/// What became of a segment that was sent once.
enum Landing {
    Landed(i64),
    /// The master key is not ours any more; its revision, when there is one.
    Fenced(Option<i64>),
    Refused(String),
    Unknown(String),
}

/// Sends a segment's transaction once.
async fn send(backend: Arc<dyn Backend>, flight: Flight, epoch: Epoch) -> Landing {
    let outcome = match backend.txn(flight.txn.clone()).await {
        Ok(outcome) => outcome,
        Err(RegistryError::Refused { why }) => return Landing::Refused(why),
        Err(error) => return Landing::Unknown(error.to_string()),
    };
    if outcome.succeeded {
        return Landing::Landed(outcome.stamp.revision);
    }
    let mut reads = outcome.reads.into_iter();
    let master = reads.next().and_then(|kvs| kvs.into_iter().next());
    let segment = reads.next().and_then(|kvs| kvs.into_iter().next());
    if segment.is_some_and(|kv| kv.value == flight.value) {
        // It got there when it was sent before, though no answer came.
        return Landing::Landed(outcome.stamp.revision);
    }
    match master.map(|kv| kv.mod_revision) {
        Some(revision) if revision == epoch.revision => {
            Landing::Refused("another segment stands under its key".to_owned())
        }
        revision => Landing::Fenced(revision),
    }
}

/// Reads the journal, linearizably, at one revision.
async fn load(seed: JournalSeed) -> Result<Replayed, String> {
    let listing = seed.backend.list(&seed.prefix).await;
    let listing = listing.map_err(|error| error.to_string())?;
    // Decoding is work: not on the thread that also hears heartbeats of the data path.
    let kvs = listing.kvs;
    let replayed = if kvs.len() < 64 || crate::chance::is_seeded() {
        journal::replay(&kvs)
    } else {
        tokio::task::spawn_blocking(move || journal::replay(&kvs))
            .await
            .map_err(|error| error.to_string())?
    };
    replayed.map_err(|(key, why)| format!("{key}: {why}"))
}

impl MasterActor {
    // --- the start of a reign ------------------------------------------------------------------------------------

    /// Reads the journal for a reign under this epoch; the reign begins when that is done.
    pub(super) fn load(&mut self, epoch: Epoch, ctx: &mut Context<Self>) {
        self.loading = Some(epoch);
        let load = load(self.seed.journal.clone());
        ctx.spawn(load.into_actor(self).map(move |loaded, act, ctx| {
            if act.loading != Some(epoch) {
                return;
            }
            match loaded {
                Ok(replayed) => {
                    act.loading = None;
                    act.begin(epoch, replayed, ctx);
                }
                Err(why) => {
                    log::warn!(target: "master", event = "journal.unreadable", reason = why.as_str(), epoch = epoch.to_string(); "the journal cannot be read: no task is accepted until it can");
                    ctx.run_later(LOAD_AGAIN, move |act, ctx| {
                        if act.loading == Some(epoch) {
                            act.load(epoch, ctx);
                        }
                    });
                }
            }
        }));
    }

    // --- recording -----------------------------------------------------------------------------------------------

    /// Puts what the ledger decided into segments, and sends those that are due.
    pub(super) fn record(&mut self, ctx: &mut Context<Self>) {
        let now = now();
        let Some(reign) = self.reign.as_mut() else {
            return;
        };
        reign.write(now);
        let epoch = reign.epoch;
        let due: Vec<Flight> = std::iter::from_fn(|| reign.journal.take_off(now)).collect();
        for flight in due {
            self.send_segment(flight, epoch, AGAIN_FIRST, ctx);
        }
    }

    fn send_segment(
        &mut self,
        flight: Flight,
        epoch: Epoch,
        again: Duration,
        ctx: &mut Context<Self>,
    ) {
        let backend = Arc::clone(&self.seed.journal.backend);
        let sent = send(backend, flight.clone(), epoch);
        ctx.spawn(sent.into_actor(self).map(move |landing, act, ctx| {
            if act.reign.as_ref().is_none_or(|r| r.epoch != epoch) {
                return;
            }
            match landing {
                Landing::Landed(revision) => act.landed(&flight, revision, ctx),
                Landing::Refused(why) => act.refused(&flight, &why, ctx),
                Landing::Fenced(found) => act.fenced(epoch, found),
                Landing::Unknown(why) => {
                    log::warn!(target: "master", event = "journal.unknown", reason = why.as_str(), segment = flight.n, epoch = epoch.to_string(); "the registry did not answer a commit; the same transaction is sent again until it does");
                    ctx.run_later(again, move |act, ctx| {
                        if act.reign.as_ref().is_some_and(|r| r.epoch == epoch) {
                            act.send_segment(flight, epoch, (again * 2).min(AGAIN_LAST), ctx);
                        }
                    });
                }
            }
        }));
    }

    fn landed(&mut self, flight: &Flight, revision: i64, ctx: &mut Context<Self>) {
        let now = now();
        let took = now.saturating_duration_since(flight.since);
        let Some(reign) = &mut self.reign else { return };
        let committed = reign.landed(flight.n, now);
        self.commits += 1;
        self.last_commit = took;
        self.tally.commit.observe(took);
        self.wake(flight.n, &Fate::Recorded);
        for change in committed {
            self.took_place(change);
        }
        self.compact(revision, flight.value.len(), now, ctx);
        self.turn(ctx);
    }

    fn took_place(&mut self, committed: Committed) {
        self.count_committed(&committed);
        self.say_committed(&committed);
        if let Some((worker, attempt)) = committed.answers {
            self.acks.entry(worker).or_default().push((attempt, None));
        }
    }

    fn refused(&mut self, flight: &Flight, why: &str, ctx: &mut Context<Self>) {
        log::error!(target: "master", event = "journal.refused", reason = why, segment = flight.n, bytes = flight.value.len(); "the registry refuses to record; durable tasks are not accepted while it does");
        let Some(reign) = &mut self.reign else { return };
        reign.not_recorded(flight.n, now() + REFUSED_PAUSE);
        self.wake(flight.n, &Fate::NotRecorded(why.to_owned()));
        self.turn(ctx);
    }

    /// Another leads, or nobody: nothing of ours will ever be recorded. Discovery finds the rest.
    fn fenced(&mut self, epoch: Epoch, found: Option<i64>) {
        let Some(mut reign) = self.reign.take() else {
            return;
        };
        let numbers = reign.journal.fenced();
        log::warn!(target: "master", event = "master.fenced", epoch = epoch.to_string(), reason = found.map_or_else(|| "the master key is gone".to_owned(), |r| format!("the master key is at revision {r}")).as_str(), segments = numbers.len(); "a commit was fenced: this node leads no more");
        self.legacy.led(epoch);
        self.waiting.clear();
        self.forget_waits();
        let generation = Generation(epoch.generation.0);
        if let Some(revision) = found.filter(|r| *r > epoch.revision) {
            let seen = Epoch {
                generation,
                revision,
            };
            self.seed.fence.raise(seen);
            self.seed.epochs.do_send(EpochSeen(seen));
        }
        self.said_waiting = None;
    }

    /// Tells those who wait for a segment.
    fn wake(&mut self, n: u64, fate: &Fate) {
        let waiting = std::mem::take(&mut self.waiting);
        let (these, others): (Vec<Waiting>, _) = waiting.into_iter().partition(|(at, _)| *at == n);
        self.waiting = others;
        for (_, waiter) in these {
            // Whoever asked may have gone.
            waiter.send(fate.clone()).ok();
        }
    }

    /// A future that resolves when the segment of this number is recorded, or surely not; a sender that is dropped means that this
    /// node leads no more.
    pub(super) fn wait_for(&mut self, segment: u64) -> oneshot::Receiver<Fate> {
        let (tell, told) = oneshot::channel();
        self.waiting.push((segment, tell));
        told
    }

    fn compact(&mut self, revision: i64, bytes: usize, now: Instant, ctx: &mut Context<Self>) {
        if !self.seed.settings.compact {
            return;
        }
        let fresh = Compacted {
            at: now,
            revision,
            bytes: 0,
        };
        let last = self.compacted.get_or_insert(fresh);
        last.bytes += bytes;
        let soon = now.saturating_duration_since(last.at) < COMPACT_EVERY;
        if soon && last.bytes < COMPACT_BYTES {
            return;
        }
        let before = std::mem::replace(last, fresh).revision;
        let compact = self.seed.journal.backend.compact(before);
        ctx.spawn(compact.into_actor(self).map(move |done, _, _| match done {
            Ok(()) => log::debug!(target: "master", event = "registry.compacted", revision = before; "the registry's history is dropped"),
            Err(error) => log::warn!(target: "master", event = "registry.compacted", err = error.to_string().as_str(); "the registry's history could not be dropped"),
        }));
    }

    // --- reading -------------------------------------------------------------------------------------------------

    /// Resolves to whether this node surely led at some moment after the call; `None` when the registry does not answer. One read
    /// serves all who ask before it begins.
    pub(super) fn confirm(&mut self, ctx: &mut Context<Self>) -> oneshot::Receiver<Option<bool>> {
        let (tell, told) = oneshot::channel();
        self.doubts.push(tell);
        self.look(ctx);
        told
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let Some(epoch) = self.reign.as_ref().map(|r| r.epoch) else {
            self.doubts.clear();
            return;
        };
        if self.looking || self.doubts.is_empty() {
            return;
        }
        self.looking = true;
        let asked = std::mem::take(&mut self.doubts);
        let seed = &self.seed.journal;
        let read = seed.backend.txn(Txn {
            when: vec![Compare::Modified(seed.master_key.clone(), epoch.revision)],
            then: Vec::new(),
            otherwise: vec![Op::Get(seed.master_key.clone())],
        });
        ctx.spawn(read.into_actor(self).map(move |outcome, act, ctx| {
            act.looking = false;
            let leads = outcome.ok().map(|outcome| outcome.succeeded);
            for doubt in asked {
                doubt.send(leads).ok();
            }
            if leads == Some(false) && act.reign.as_ref().is_some_and(|r| r.epoch == epoch) {
                act.fenced(epoch, None);
            }
            act.look(ctx);
        }));
    }
}
