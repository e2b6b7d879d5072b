//! DiscoveryActor: hears sessions, heartbeats and the view; asks the cores; does what they say and tells everybody.

mod hearing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, ResponseActFuture, WrapFuture};

use super::election::{Ballot, Candidate, Decision, Election, Why};
use super::membership::{Challenged, Link, Membership, Peer};
pub use super::ports::{DiscoverySeed, MasterPorts, RegistryPorts, TransportPorts};
use super::suspicion::{LocalHealth, Wakefulness};
use super::verdict::{Evidence, Step, Windows, challenges_in_view, judge};
use super::{EpochSeen, NewMaster, Reborn, Reconfigure, Retire, Retired, StepDown, StepDownError};
use crate::cluster::{Cluster, ClusterChanged, Member, MemberRemoved, MemberState};
use crate::id::{Epoch, Incarnation, NodeId};
use crate::master::{HandOverTo, Lead, MasterReborn, StandDown};
use crate::planted;
use crate::registry::actor::{Challenge, Claim, Condemn, RegistryEvent, Relist, Resend, Resign};
use crate::registry::session::View;
use crate::supervisor::{handling, handling_part};
use crate::time::now;
use crate::transport::{
    AskSessions, Broadcast, Dial, DialOutcome, Heard, Inbound, Incarnated, Peers, Send,
    SessionEvent, TransportReborn,
};
use crate::wire::{Envelope, Fenced, Finding, Heartbeat, Message, Probe, ProbeAnswer, YourTurn};

/// How often the cores look at the clock.
const TICK: Duration = Duration::from_millis(100);
/// Our own timers later than this are a pause of the process: nothing measured across it counts.
const PAUSE: Duration = Duration::from_millis(500);
/// The picture is told this often even when nothing decisive changed (round-trip times, lag).
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row at which MasterActor must be found silent before it counts as hung.
const SILENT_LOOKS: u32 = 3;
/// How long an heir has to take over.
const HEIR_PATIENCE: Duration = Duration::from_secs(2);
/// Candidates that keep a session with everybody, so that a successor is warm.
const WARM: usize = 3;
/// Members named in a heartbeat as unheard, at the most.
const MAX_UNHEARD: usize = 64;

/// See the module page.
pub struct DiscoveryActor {
    seed: DiscoverySeed,
    origin: Instant,
    table: Membership,
    election: Election,
    health: LocalHealth,
    heard: BTreeMap<NodeId, (Incarnation, Heard)>,
    /// `sent_us` of the last heartbeat of each peer and when it came, to be echoed.
    echoes: BTreeMap<NodeId, (u64, Instant)>,
    view: Arc<View>,
    us: Incarnated,
    registry: bool,
    leading: Option<Epoch>,
    led_since: Instant,
    awake_since: Instant,
    /// Ticks in a row at which the master had no turn for too long.
    silent_looks: u32,
    claiming: bool,
    handing_over: bool,
    /// Told when a heartbeat says that its sender is leaving: it will not take over.
    leavers: tokio::sync::watch::Sender<Option<NodeId>>,
    reborn_master: bool,
    /// MasterActor may still lead by what an earlier life of this actor told it.
    old_reign: bool,
    seq: u64,
    nonce: u64,
    last_beat: Option<Instant>,
    told: Option<(Arc<Cluster>, Instant)>,
    master_named: Option<Epoch>,
}

/// Whether a planted bug lets a claim count that was outbid before its answer came.
fn counts_anyway() -> bool {
    planted::is("claim-without-compare") || planted::is("two-masters-after-replacement")
}

impl DiscoveryActor {
    /// A life that knows nothing yet.
    pub fn new(seed: DiscoverySeed) -> Self {
        let now = now();
        Self {
            election: Election::new(seed.settings.stagger, seed.settings.suspect_floor),
            health: LocalHealth::new(TICK, PAUSE, now),
            origin: now,
            table: Membership::default(),
            heard: BTreeMap::new(),
            echoes: BTreeMap::new(),
            view: Arc::default(),
            us: Incarnated {
                incarnation: Incarnation::NONE,
                generation: Default::default(),
            },
            registry: false,
            leading: None,
            led_since: now,
            awake_since: now,
            silent_looks: 0,
            claiming: false,
            handing_over: false,
            leavers: tokio::sync::watch::Sender::new(None),
            reborn_master: false,
            old_reign: true,
            seq: 0,
            nonce: 0,
            last_beat: None,
            told: None,
            master_named: None,
            seed,
        }
    }

    fn me(&self) -> NodeId {
        self.seed.identity.id
    }

    fn doubts_itself(&self) -> bool {
        self.seed.settings.local_health && !planted::is("own-pause-ignored")
    }

    fn retired(&self) -> bool {
        self.seed.leaving.load(Ordering::Relaxed)
    }

    // --- the turn ------------------------------------------------------------------------------------------------

    fn tick(&mut self, ctx: &mut Context<Self>) {
        let now = now();
        let wakefulness = self.health.tick(now);
        if let (Wakefulness::Resumed(away), true) = (wakefulness, self.doubts_itself()) {
            log::info!(target: "discovery", event = "node.resumed", duration_ms = away.as_millis() as u64; "this node was away, giving everybody a fresh start");
            self.table.fresh_start(now);
            self.awake_since = now;
            self.silent_looks = 0;
        }
        for (id, (incarnation, heard)) in &self.heard {
            if let Some(peer) = self.table.peer(*id, *incarnation) {
                peer.heard = peer.heard.max(heard.last());
            }
        }
        if self
            .last_beat
            .is_none_or(|at| now.saturating_duration_since(at) >= self.seed.settings.heartbeat)
        {
            self.last_beat = Some(now);
            self.beat(now);
        }
        self.watch_master(ctx, now);
        self.decide(ctx, now);
        let due = self
            .told
            .as_ref()
            .is_none_or(|(_, at)| now.saturating_duration_since(*at) >= TELL_EVERY);
        if due {
            self.tell(now);
        }
    }

    /// Something has happened: decides, and tells the new picture.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        let now = now();
        self.decide(ctx, now);
        self.tell(now);
    }

    /// Asks the cores and does what they say.
    fn decide(&mut self, ctx: &mut Context<Self>, now: Instant) {
        let (reach, windows) = (self.ballot().reach(), self.windows());
        // Without a registration of our own there are no sessions, so nobody's silence means anything.
        let steps = if self.us.incarnation == Incarnation::NONE {
            Vec::new()
        } else {
            judge(&mut self.table, reach, windows, now)
        };
        let changed = !steps.is_empty();
        for step in steps {
            self.perform(step, ctx, now);
        }
        self.elect(ctx, now);
        if changed {
            self.tell(now);
        }
    }

    fn windows(&self) -> Windows {
        let s = &self.seed.settings;
        let factor = if self.doubts_itself() {
            self.health.factor()
        } else {
            1.0
        };
        Windows {
            floor: s.suspect_floor.mul_f64(factor),
            ceiling: s.suspect_ceiling.mul_f64(factor),
            probe: s.probe_timeout.mul_f64(factor),
            challenge: s.challenge_window.mul_f64(factor),
        }
    }

    fn perform(&mut self, step: Step, ctx: &mut Context<Self>, now: Instant) {
        match step {
            Step::Suspect {
                id,
                silent,
                patience,
            } => self.log_suspect(id, silent, patience),
            Step::Cleared(id) => {
                log::info!(target: "discovery", event = "peer.cleared", peer = self.name_of(id); "heard again, no longer suspect");
            }
            Step::Ask { id, witnesses } => self.ask_witnesses(id, &witnesses),
            Step::Challenge(id) => self.challenge(id, ctx),
            Step::Condemn { id, evidence } => self.condemn(id, evidence, ctx, now),
        }
    }

    fn log_suspect(&self, id: NodeId, silent: Duration, patience: Duration) {
        log::warn!(target: "discovery", event = "peer.suspected", peer = self.name_of(id), duration_ms = silent.as_millis() as u64, patience_ms = patience.as_millis() as u64; "silent for longer than is ordinary");
    }

    fn ask_witnesses(&mut self, id: NodeId, witnesses: &[NodeId]) {
        let Some(peer) = self.table.peers.get(&id) else {
            return;
        };
        self.nonce += 1;
        let probe = Probe {
            nonce: self.nonce,
            target: id,
            incarnation: peer.registered.incarnation,
        };
        for to in witnesses {
            self.send(*to, probe.clone());
        }
    }

    fn challenge(&self, id: NodeId, ctx: &mut Context<Self>) {
        let Some(peer) = self.table.peers.get(&id).filter(|_| self.registry) else {
            return;
        };
        let incarnation = peer.registered.incarnation;
        log::info!(target: "discovery", event = "peer.challenged", peer = self.name_of(id); "asking it through the registry whether it lives");
        let put = self.seed.registry.challenge.send(Challenge(incarnation));
        ctx.spawn(put.into_actor(self).map(move |put, act, _| {
            let failed = !matches!(put, Ok(Ok(())));
            if let Some(peer) = act.table.peer(id, incarnation).filter(|_| failed) {
                peer.challenged = Challenged::No;
            }
        }));
    }

    fn condemn(&mut self, id: NodeId, evidence: Evidence, ctx: &mut Context<Self>, now: Instant) {
        let Some(peer) = self.table.peers.get(&id).filter(|_| self.registry) else {
            return;
        };
        let registered = peer.registered.clone();
        let name = registered.registration.name.clone();
        let silent = now.saturating_duration_since(peer.heard);
        let witnesses = peer.witnesses.len();
        let (reached, of) = self.ballot().reach();
        log::warn!(target: "discovery", event = "peer.condemned", peer = name, reason = evidence.as_str(), duration_ms = silent.as_millis() as u64, witnesses = witnesses, reached = reached, of = of, revision = self.view.revision, incarnation = registered.incarnation.0, was_master = self.leads(&registered); "verdict: dead");
        if self.leads(&registered) && evidence != Evidence::Hard {
            self.election.soft_takeover(now);
        }
        let verdict = self.seed.registry.condemn.send(Condemn(registered));
        ctx.spawn(verdict.into_actor(self).map(move |outcome, _, _| {
            if let Ok(Err(err)) = outcome {
                log::warn!(target: "discovery", event = "peer.condemn_failed", peer = name, err = err.to_string(); "the verdict is not in the registry");
            }
        }));
    }

    // --- mastership ----------------------------------------------------------------------------------------------

    fn ballot(&self) -> Ballot {
        let mine = self
            .view
            .members
            .iter()
            .find(|m| m.registration.id == self.me() && m.incarnation == self.us.incarnation);
        let me = mine.map(|m| Candidate {
            id: self.me(),
            incarnation: m.incarnation,
            weight: m.registration.weight,
            eligible: m.registration.eligible && !self.retired(),
            reached: true,
            joining: false,
            dead_in_both_planes: false,
            registry: self.registry,
        });
        let others = self.table.peers.values().map(candidate);
        Ballot {
            me: self.me(),
            members: me.into_iter().chain(others).collect(),
            master_revision: self.view.master_revision(),
            view_revision: self.view.revision,
            seated: self.view.seated().map(|m| (m.record.id, m.epoch)),
            leading: self.leading,
            registry: self.registry,
            retired: self.retired(),
        }
    }

    fn elect(&mut self, ctx: &mut Context<Self>, now: Instant) {
        let ballot = self.ballot();
        if self.claiming && ballot.deposed() && ballot.seats_another() {
            // A claim whose answer does not come is no reason to lead on: another has the key.
            return self.stand_down(Why::Deposed, ctx);
        }
        if self.claiming || self.handing_over {
            return;
        }
        match self.election.decide(&ballot, now) {
            // Only while the key is ours: a reborn MasterActor whose mastership is gone stands down like any other.
            Decision::Wait if self.old_reign && self.registry && ballot.seats_another() => {
                self.end_old_reign("another leads");
            }
            Decision::Wait if self.reborn_master && self.registry => {
                if let Some(epoch) = self.leading {
                    self.claim(epoch.revision, ctx);
                }
            }
            Decision::Wait => {}
            Decision::Claim { expected, .. } => self.claim(expected, ctx),
            Decision::StandDown(why) => self.stand_down(why, ctx),
            Decision::HandOver(why) => {
                let heir = ballot.heir(true).map(|c| c.id);
                if let Some(heir) = heir {
                    let over = self.hand_over(heir, why.to_owned());
                    ctx.spawn(over.map(|_, _, _| ()));
                }
            }
        }
    }

    fn claim(&mut self, expected: i64, ctx: &mut Context<Self>) {
        self.claiming = true;
        let claim = self.seed.registry.claim.send(Claim { expected });
        ctx.spawn(claim.into_actor(self).map(|outcome, act, ctx| {
            act.claiming = false;
            match outcome {
                // Won long ago, and another has won since: this node was away meanwhile.
                Ok(Ok(Some(epoch))) if epoch < act.seed.fence.current() && !counts_anyway() => {
                    let why = format!("{epoch} was won and outbid by {} meanwhile", act.seed.fence.current());
                    log::warn!(target: "discovery", event = "master.claim_failed", err = why; "could not claim mastership");
                    act.seed.registry.relist.do_send(Relist);
                }
                Ok(Ok(Some(epoch))) => {
                    act.become_master(epoch);
                    act.turn(ctx);
                }
                Ok(Ok(None)) => act.seed.registry.relist.do_send(Relist),
                Ok(Err(err)) => log::warn!(target: "discovery", event = "master.claim_failed", err = err.to_string(); "could not claim mastership"),
                // RegistryActor is between two lives; the next tick claims again.
                Err(_) => {}
            }
        }));
    }

    fn become_master(&mut self, epoch: Epoch) {
        debug_assert!(self.leading.is_none_or(|old| old < epoch));
        self.seed.fence.raise(epoch);
        self.leading = Some(epoch);
        self.reborn_master = false;
        self.old_reign = false;
        self.led_since = now();
        let ballot = self.ballot();
        let (reached, of) = ballot.reach();
        let candidates: Vec<_> = ballot
            .ranked()
            .iter()
            .take(WARM)
            .map(|c| self.describe(c))
            .collect();
        log::info!(target: "discovery", event = "master.promoted", epoch = epoch.to_string(), members = self.view.members.len(), revision = self.view.revision, reached = reached, of = of, candidates = candidates.join(", "); "this node is master now");
        self.seed.master.lead.do_send(Lead(epoch));
        self.beat(now());
    }

    /// A candidate with what it is ranked by.
    fn describe(&self, candidate: &Candidate) -> String {
        let name = match candidate.id == self.me() {
            true => self.seed.identity.name(),
            false => self.name_of(candidate.id),
        };
        format!(
            "{name} (weight {}, incarnation {})",
            candidate.weight, candidate.incarnation.0
        )
    }

    fn leads(&self, registered: &crate::registry::session::Registered) -> bool {
        let seated = self.view.seated();
        seated.is_some_and(|m| m.record.incarnation == registered.incarnation)
    }

    fn stand_down(&mut self, why: Why, ctx: &mut Context<Self>) {
        let Some(epoch) = self.leading else { return };
        self.lose_mastership(epoch, why.as_str());
        if why == Why::CutOff && self.registry {
            // The key would keep everybody else from leading.
            let resign = self.seed.registry.resign.send(Resign(epoch));
            ctx.spawn(resign.into_actor(self).map(|_, _, _| ()));
        }
    }

    fn lose_mastership(&mut self, epoch: Epoch, why: &str) {
        self.leading = None;
        // Whoever reads the picture hears of it with the next tick at the latest.
        self.told = None;
        self.reborn_master = false;
        log::warn!(target: "discovery", event = "master.demoted", epoch = epoch.to_string(), seen = self.seed.fence.current().to_string(), reason = why; "this node is no longer master");
        let why = why.to_owned();
        if !planted::is("stand-down-not-told") && !planted::is("old-epoch-obeyed") {
            self.seed.master.stand_down.do_send(StandDown { why });
        }
    }

    /// What an earlier life of this actor told MasterActor holds no more; to one that does not lead this says nothing.
    fn end_old_reign(&mut self, why: &str) {
        self.old_reign = false;
        let why = why.to_owned();
        if !planted::is("stand-down-not-told") {
            self.seed.master.stand_down.do_send(StandDown { why });
        }
    }

    /// Somebody acts under a higher epoch than ours.
    fn epoch_seen(&mut self, epoch: Epoch, ctx: &mut Context<Self>) {
        self.seed.fence.raise(epoch);
        if planted::is("deposed-leads-on") {
            return;
        }
        if let Some(ours) = self.leading.filter(|ours| epoch > *ours && !self.claiming) {
            self.lose_mastership(ours, "a higher epoch was seen");
            self.seed.registry.relist.do_send(Relist);
            self.turn(ctx);
        }
    }

    /// Streams the ledger to the heir, tells it to take over, and waits until it has.
    fn hand_over(
        &mut self,
        heir: NodeId,
        why: String,
    ) -> ResponseActFuture<Self, Result<NewMaster, StepDownError>> {
        let Some(epoch) = self.leading else {
            return Box::pin(actix::fut::ready(Err(StepDownError::NotMaster)));
        };
        self.handing_over = true;
        let name = self.name_of(heir);
        log::info!(target: "discovery", event = "master.handing_over", epoch = epoch.to_string(), peer = name.as_str(), reason = why.as_str(); "handing mastership over");
        let seed = self.seed.clone();
        let mut leavers = self.leavers.subscribe();
        let moved = async move {
            let stopped = now();
            let handed = seed.master.hand_over.send(HandOverTo { epoch, heir }).await;
            let turn = Send {
                to: heir,
                message: YourTurn { epoch, why }.into(),
            };
            let told = seed.transport.send.send(turn).await;
            if !matches!(told, Ok(Ok(()))) {
                return None;
            }
            let deadline = tokio::time::Instant::now() + HEIR_PATIENCE;
            while seed.fence.current() <= epoch {
                let declined = leavers.has_changed().unwrap_or(true)
                    && *leavers.borrow_and_update() == Some(heir);
                if declined || tokio::time::Instant::now() >= deadline {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let masterless = now().saturating_duration_since(stopped);
            Some((seed.fence.current(), handed.unwrap_or(0), masterless))
        };
        Box::pin(moved.into_actor(self).map(move |moved, act, _| {
            act.handing_over = false;
            match moved {
                Some((new, handed_over, masterless)) => {
                    act.election.abstain(now() + act.seed.settings.abstain);
                    if act.leading == Some(epoch) {
                        act.lose_mastership(epoch, "handed over");
                    }
                    Ok(NewMaster {
                        name,
                        epoch: new.to_string(),
                        handed_over,
                        masterless_ms: masterless.as_secs_f64() * 1000.0,
                    })
                }
                None => {
                    if act.leading == Some(epoch) {
                        act.seed.master.lead.do_send(Lead(epoch));
                    }
                    Err(StepDownError::HeirSilent(name))
                }
            }
        }))
    }

    fn pick_heir(&self, wanted: Option<&str>) -> Result<NodeId, StepDownError> {
        let ballot = self.ballot();
        let Some(wanted) = wanted else {
            return ballot.heir(false).map(|c| c.id).ok_or_else(|| {
                StepDownError::NoHeir("no other eligible member has a session with us".to_owned())
            });
        };
        let member = self
            .table
            .peers
            .values()
            .find(|p| p.registered.registration.name == wanted || p.id().to_string() == wanted);
        let Some(peer) = member else {
            return Err(StepDownError::NoHeir(format!(
                "{wanted} is not another member"
            )));
        };
        let candidate = candidate(peer);
        if !candidate.eligible {
            return Err(StepDownError::NoHeir(format!("{wanted} is not eligible")));
        }
        if !candidate.reached {
            return Err(StepDownError::NoHeir(format!("{wanted} is not heard")));
        }
        Ok(candidate.id)
    }

    /// A master whose actor has no turn for too long gives the key back, and the process goes.
    fn watch_master(&mut self, ctx: &mut Context<Self>, now: Instant) {
        let limit = self.seed.settings.master_turn_limit;
        let settled = now.saturating_duration_since(self.awake_since) > limit
            && now.saturating_duration_since(self.led_since) > limit;
        let age = self.seed.master.pulse.age();
        let silent = settled && age > limit;
        // One look proves nothing: the whole process may have been stopped in the middle of this very tick.
        self.silent_looks = if silent { self.silent_looks + 1 } else { 0 };
        let Some(epoch) = self.leading.filter(|_| self.silent_looks >= SILENT_LOOKS) else {
            return;
        };
        log::error!(target: "discovery", event = "actor.hung", hung = "master", epoch = epoch.to_string(), duration_ms = age.as_millis() as u64; "MasterActor had no turn for too long: giving the key back and leaving");
        self.leading = None;
        self.seed.leaving.store(true, Ordering::Relaxed);
        let resign = self.seed.registry.resign.send(Resign(epoch));
        let hung = Arc::clone(&self.seed.hung);
        let gone = async move {
            // Whether or not the key could be given back, this process must not go on leading.
            tokio::time::timeout(Duration::from_secs(2), resign)
                .await
                .ok();
            hung("the master actor hangs".to_owned());
        };
        ctx.spawn(gone.into_actor(self).map(|(), _, _| ()));
    }

    // --- telling -------------------------------------------------------------------------------------------------

    fn beat(&mut self, now: Instant) {
        self.seq += 1;
        let master = self
            .leading
            .map(|epoch| (epoch, self.seed.master.pulse.age().as_micros() as u64));
        let unheard = self.table.peers.values().filter(|p| p.suspect.is_some());
        let beat = Heartbeat {
            seq: self.seq,
            sent_us: self.us_since_origin(now),
            echo: None,
            lag_us: self.health.lag().as_micros() as u64,
            registry: self.registry,
            draining: self.retired(),
            master,
            unheard: unheard.map(Peer::id).take(MAX_UNHEARD).collect(),
        };
        let up = self.table.peers.values().filter(|p| p.link == Link::Up);
        let to: Vec<NodeId> = up.map(Peer::id).chain([self.me()]).collect();
        for id in to {
            let echo = self.echoes.get(&id).map(|(sent, at)| {
                let held = now.saturating_duration_since(*at).as_micros();
                (*sent, held as u64)
            });
            self.send(
                id,
                Heartbeat {
                    echo,
                    ..beat.clone()
                },
            );
        }
    }

    fn us_since_origin(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_micros() as u64
    }

    fn send(&self, to: NodeId, message: impl Into<Message>) {
        let message = message.into();
        self.seed.transport.send.do_send(Send { to, message });
    }

    fn name_of(&self, id: NodeId) -> String {
        let peer = self.table.peers.get(&id);
        peer.map_or_else(
            || id.to_string(),
            |p| p.registered.registration.name.clone(),
        )
    }

    /// Tells everybody the new picture, if it is one.
    fn tell(&mut self, now: Instant) {
        let picture = self.picture();
        let due = match &self.told {
            None => true,
            Some((old, at)) => {
                now.saturating_duration_since(*at) >= TELL_EVERY || old.differs_decisively(&picture)
            }
        };
        if !due {
            return;
        }
        self.name_master(&picture);
        let picture = Arc::new(picture);
        self.told = Some((Arc::clone(&picture), now));
        for recipient in &self.seed.cluster {
            recipient.do_send(ClusterChanged(Arc::clone(&picture)));
        }
    }

    fn name_master(&mut self, picture: &Cluster) {
        let Some(master) = &picture.master else {
            return;
        };
        if self.master_named == Some(master.epoch) {
            return;
        }
        self.master_named = Some(master.epoch);
        let member = picture.member(master.record.id);
        let name = member.map_or("?", |m| m.registration.name.as_str());
        log::info!(target: "discovery", event = "master.changed", epoch = master.epoch.to_string(), fence = picture.epoch.to_string(), peer = name, address = master.record.address.as_str(); "the cluster has a master");
    }

    fn picture(&self) -> Cluster {
        let mut members = self.table.members();
        let mine = self
            .view
            .members
            .iter()
            .find(|m| m.registration.id == self.me());
        if let Some(mine) = mine {
            members.push(Member {
                registration: mine.registration.clone(),
                incarnation: mine.incarnation,
                state: if self.retired() {
                    MemberState::Draining
                } else {
                    MemberState::Alive
                },
                session: true,
                rtt: None,
                lag: self.health.lag(),
                registry: self.registry,
                unheard: self
                    .table
                    .peers
                    .values()
                    .filter(|p| p.suspect.is_some())
                    .map(Peer::id)
                    .collect(),
            });
        }
        members.sort_by_key(|m| m.incarnation);
        Cluster {
            me: self.me(),
            incarnation: self.us.incarnation,
            revision: self.view.revision,
            generation: self.us.generation,
            registry: self.registry,
            epoch: self.seed.fence.current(),
            master: self.view.seated().cloned(),
            leading: self.leading.is_some(),
            members,
        }
    }

    fn tell_peers(&self) {
        let ballot = self.ballot();
        let mut leaders: Vec<NodeId> = ballot.ranked().iter().take(WARM).map(|c| c.id).collect();
        leaders.extend(self.view.seated().map(|m| m.record.id));
        let s = &self.seed.settings;
        let wanted = self.table.wanted(self.me(), &leaders, s.mesh, s.ring);
        self.seed.transport.peers.do_send(Peers(wanted));
    }

    // --- hearing -------------------------------------------------------------------------------------------------

    fn take_view(&mut self, view: Arc<View>, ctx: &mut Context<Self>) {
        let now = now();
        if let Some(master) = &view.master
            && !planted::is("epoch-not-seeded")
        {
            self.seed.fence.raise(master.epoch);
        }
        let suspects: Vec<NodeId> = {
            let peers = self.table.peers.values();
            peers
                .filter(|p| p.suspect.is_some())
                .map(Peer::id)
                .collect()
        };
        let old_master = self.view.seated().map(|m| m.record.id);
        let turnover = self.table.view(self.me(), &view, now);
        for member in &turnover.added {
            let r = &member.registration;
            log::info!(target: "discovery", event = "peer.added", peer = r.name.as_str(), address = r.address(), incarnation = member.incarnation.0; "a member joined");
        }
        for member in turnover.removed {
            let r = &member.registration;
            let suspect = suspects.contains(&r.id);
            if suspect && old_master == Some(r.id) {
                self.election.soft_takeover(now);
            }
            log::info!(target: "discovery", event = "peer.removed", peer = r.name.as_str(), incarnation = member.incarnation.0, suspect = suspect; "a member is gone");
            let gone = MemberRemoved {
                id: r.id,
                incarnation: member.incarnation,
                name: r.name.clone(),
                why: "no longer registered".to_owned(),
            };
            self.echoes.remove(&r.id);
            let told = !planted::is("removal-not-told");
            for recipient in self.seed.removed.iter().filter(|_| told) {
                recipient.do_send(gone.clone());
            }
        }
        challenges_in_view(&mut self.table, &view.challenged, now);
        self.view = view;
        self.tell_peers();
        self.turn(ctx);
    }
}

fn answer(probe: &Probe, finding: Finding) -> ProbeAnswer {
    ProbeAnswer {
        nonce: probe.nonce,
        target: probe.target,
        incarnation: probe.incarnation,
        finding,
    }
}

fn hear_dial_back(back: &crate::wire::DialBack) {
    match &back.problem {
        None => {
            log::debug!(target: "discovery", event = "node.reachable", address = back.address.as_str(); "a peer reached our advertised address");
        }
        Some(problem) => {
            log::error!(target: "discovery", event = "node.unreachable", address = back.address.as_str(), reason = problem.as_str(); "a peer cannot reach our advertised address");
        }
    }
}

fn candidate(peer: &Peer) -> Candidate {
    let r = &peer.registered.registration;
    Candidate {
        id: r.id,
        incarnation: peer.registered.incarnation,
        weight: r.weight,
        eligible: r.eligible && !peer.beat.draining,
        reached: peer.reached(),
        joining: peer.joining(),
        dead_in_both_planes: peer.challenged == Challenged::Failed,
        registry: peer.beat.registry,
    }
}

impl Actor for DiscoveryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.seed.registry.resend.do_send(Resend);
        let sessions = self.seed.transport.sessions.send(AskSessions);
        ctx.spawn(sessions.into_actor(self).map(|sessions, act, _| {
            let now = now();
            for (peer, heard) in sessions.unwrap_or_default() {
                act.heard.insert(peer.id, (peer.incarnation, heard));
                act.table.session_up(peer.id, peer.incarnation, now);
            }
        }));
        ctx.run_interval(TICK, Self::tick);
    }
}

impl Handler<RegistryEvent> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, msg: RegistryEvent, ctx: &mut Self::Context) {
        handling::<RegistryEvent>();
        match msg {
            RegistryEvent::Up => {
                self.registry = true;
                self.turn(ctx);
            }
            RegistryEvent::Down { .. } => {
                self.registry = false;
                self.turn(ctx);
            }
            RegistryEvent::Incarnated(us) => {
                let before = self.us.incarnation;
                if before != Incarnation::NONE && us.incarnation != before {
                    // It was we who closed every session: what was not heard since is nobody's fault. A new life of this actor
                    // has lost nothing: it learns its incarnation after the sessions that stand.
                    self.heard.clear();
                    self.table.forget_sessions(now());
                }
                self.us = us;
                self.seed.transport.incarnated.do_send(us);
                self.turn(ctx);
            }
            RegistryEvent::View(view) => self.take_view(view, ctx),
        }
    }
}

impl Handler<SessionEvent> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, msg: SessionEvent, ctx: &mut Self::Context) {
        handling::<SessionEvent>();
        match msg {
            SessionEvent::Up { peer, heard } => {
                self.heard.insert(peer.id, (peer.incarnation, heard));
                let now = now();
                self.table.session_up(peer.id, peer.incarnation, now);
                if self.table.peers.contains_key(&peer.id) {
                    // The first heartbeat of a session goes at once: it carries the epoch.
                    self.last_beat = Some(now);
                    self.beat(now);
                }
            }
            SessionEvent::Down {
                id, incarnation, ..
            } => {
                self.heard
                    .retain(|known, (i, _)| *known != id || *i != incarnation);
                self.table.session_down(id, incarnation);
            }
            SessionEvent::DialFailed {
                id,
                incarnation,
                outcome,
            } => self.dial_failed(id, incarnation, &outcome),
            SessionEvent::Refused { .. } => {}
        }
        self.turn(ctx);
    }
}

impl Handler<Inbound> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, msg: Inbound, ctx: &mut Self::Context) {
        handling::<Inbound>();
        for envelope in msg.envelopes {
            handling_part(envelope.message.name());
            let epoch = envelope.header.epoch;
            self.hear(msg.from, msg.incarnation, envelope, ctx);
            self.epoch_seen(epoch, ctx);
        }
    }
}

impl Handler<EpochSeen> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, msg: EpochSeen, ctx: &mut Self::Context) {
        handling::<EpochSeen>();
        self.epoch_seen(msg.0, ctx);
    }
}

impl Handler<TransportReborn> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, _: TransportReborn, ctx: &mut Self::Context) {
        handling::<TransportReborn>();
        self.heard.clear();
        self.table.forget_sessions(now());
        self.seed.transport.incarnated.do_send(self.us);
        self.tell_peers();
        self.turn(ctx);
    }
}

impl Handler<MasterReborn> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, _: MasterReborn, ctx: &mut Self::Context) {
        handling::<MasterReborn>();
        // It takes over from itself before it reads anything: what its predecessor still had in flight is fenced.
        self.reborn_master = self.leading.is_some();
        self.told = None;
        self.turn(ctx);
    }
}

impl Handler<Reborn> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, _: Reborn, _: &mut Self::Context) {
        handling::<Reborn>();
        self.told = None;
        self.tell(now());
    }
}

impl Handler<Reconfigure> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, Reconfigure(settings): Reconfigure, ctx: &mut Self::Context) {
        handling::<Reconfigure>();
        self.election
            .configure(settings.stagger, settings.suspect_floor);
        self.seed.settings = settings;
        self.turn(ctx);
    }
}

impl Handler<StepDown> for DiscoveryActor {
    type Result = ResponseActFuture<Self, Result<NewMaster, StepDownError>>;

    fn handle(&mut self, msg: StepDown, _: &mut Self::Context) -> Self::Result {
        handling::<StepDown>();
        if self.leading.is_none() {
            return Box::pin(actix::fut::ready(Err(StepDownError::NotMaster)));
        }
        match self.pick_heir(msg.heir.as_deref()) {
            Ok(heir) => self.hand_over(heir, msg.why),
            Err(err) => Box::pin(actix::fut::ready(Err(err))),
        }
    }
}

impl Handler<Retire> for DiscoveryActor {
    type Result = ResponseActFuture<Self, Retired>;

    fn handle(&mut self, _: Retire, ctx: &mut Self::Context) -> Self::Result {
        handling::<Retire>();
        self.seed.leaving.store(true, Ordering::Relaxed);
        self.beat(now());
        self.tell(now());
        // One that is being handed over already is told of to whoever asked for that.
        let leads = self.leading.is_some() && !self.handing_over;
        match (leads, self.pick_heir(None)) {
            (true, Ok(heir)) => {
                let over = self.hand_over(heir, "the master is leaving".to_owned());
                Box::pin(over.map(|over, _, _| match over {
                    Ok(new) => Retired::HandedOver(new),
                    Err(why) => Retired::NoHeir(why),
                }))
            }
            (_, heir) => {
                self.turn(ctx);
                let alone = heir.err().filter(|_| leads);
                let outcome = alone.map_or(Retired::Follower, Retired::NoHeir);
                Box::pin(actix::fut::ready(outcome))
            }
        }
    }
}
