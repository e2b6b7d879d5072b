//! TransportActor: performs what [`super::sessions`] decides, and is where everybody hands in what they have to say.
//!
//! A life of it owns every task it starts; when it ends, they end, and with them all sessions. The port does not
//! ([`super::Listener`]), nor the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::{
    Actor, AsyncContext, Context, Handler, MessageResult, Recipient, ResponseFuture, Supervised,
};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use super::frame;
use super::handshake::{
    Greeting, Hello, Me, Purpose, Refusal, RefusalKind, Welcome, dial_back_problem, judge,
};
use super::hlc::HybridClock;
use super::lanes::{LaneFull, Lanes};
use super::reception::{Caller, Reception};
use super::session::{self, Birth, Link, QueueFull, Report, Senses, SessionEnded, Unwelcome};
use super::sessions::{
    Action, Closed, DialFailure, DialToken, Dialled, Offer, SessionKey, SessionTable, Unfit,
};
use super::tls::Tls;
use super::trust::{Distrust, Proof, Reason, Refusals, Side};
use super::{
    AskSessions, Broadcast, Desks, Dial, DialOutcome, Heard, Incarnated, Listener, Network,
    PeerSpec, Peers, Send, SendError, SendMany, SessionEvent, SessionPeer, Stream, TcpNetwork,
    TransportReborn, TransportSettings,
};
use crate::cluster::{Fence, Identity};
use crate::discovery::EpochSeen;
use crate::id::{Incarnation, NodeId};
use crate::supervisor::handling;
use crate::time::{now, unix_ms};
use crate::wire::{Class, DialBack, Envelope, Message as WireMessage};

/// Messages waiting for the actor; whoever hands in more waits (or is told, with `try_send`).
const MAILBOX: usize = 1024;
/// Refusals told so far, so that each is told once; forgotten all at once beyond this.
const MAX_TOLD: usize = 256;
/// Addresses dialled back so far; forgotten all at once beyond this.
const MAX_DIALLED_BACK: usize = 4096;

/// Everything a life of the transport begins with. Cheap to clone.
#[derive(Clone)]
pub struct TransportSeed {
    /// Knobs.
    pub settings: TransportSettings,
    /// Who we are.
    pub identity: Identity,
    /// Our machine's host name, for words to people.
    pub host: String,
    /// The highest epoch seen: put into every header, raised by every header that comes.
    pub fence: Fence,
    /// Where messages and session events go.
    pub desks: Desks,
    /// Our port.
    pub listener: Listener,
    /// How to reach others.
    pub network: Arc<dyn Network>,
    /// TLS for those who dial us; `None`: plain. The network does it for our own dials.
    pub tls: Option<Arc<Tls>>,
    /// How often somebody was refused, and why; outlives the actor.
    pub refusals: Refusals,
    /// Told at the start of each life; answers with [`Incarnated`] and [`Peers`].
    pub reborn: Recipient<TransportReborn>,
    /// Told when a higher epoch was heard.
    pub epoch_seen: Recipient<EpochSeen>,
    /// The node's hybrid logical clock.
    pub clock: HybridClock,
    /// Wall clock, unix ms.
    pub unix_ms: fn() -> u64,
    /// Seeds the jitter of re-dials.
    pub random_seed: u64,
}

impl TransportSeed {
    /// TCP, the system's wall clock, default settings; every field can be changed afterwards.
    pub fn new(
        identity: Identity,
        host: String,
        fence: Fence,
        desks: Desks,
        listener: Listener,
        reborn: Recipient<TransportReborn>,
        epoch_seen: Recipient<EpochSeen>,
    ) -> Self {
        let random_seed = u64::try_from(identity.id.0 & u128::from(u64::MAX)).unwrap_or(0);
        Self {
            settings: TransportSettings::default(),
            identity,
            host,
            fence,
            desks,
            listener,
            network: Arc::new(TcpNetwork),
            tls: None,
            refusals: Refusals::default(),
            reborn,
            epoch_seen,
            clock: HybridClock::default(),
            unix_ms,
            random_seed,
        }
    }
}

/// Unique in the process: a message about a session of an earlier life must not be taken for one of this.
fn next_key() -> SessionKey {
    static LAST: AtomicU64 = AtomicU64::new(0);
    SessionKey(LAST.fetch_add(1, Ordering::Relaxed) + 1)
}

/// Unique in the process: a dial of an earlier life may end in this one, and must not be taken for another's.
fn next_life() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

struct DialTask {
    task: AbortHandle,
    hello_is_out: Arc<AtomicBool>,
}

/// A live session with whom it is.
struct Open {
    peer: SessionPeer,
    heard: Heard,
    link: Link,
}

/// The actor. See the contract page.
pub struct TransportActor {
    seed: TransportSeed,
    life: u64,
    table: SessionTable,
    open: BTreeMap<SessionKey, Open>,
    dials: BTreeMap<DialToken, DialTask>,
    loopback: Lanes,
    outbound: Arc<Semaphore>,
    told: BTreeSet<(String, String)>,
    /// Addresses at which we found the node that advertises them.
    found: BTreeMap<NodeId, String>,
    dialled_back: BTreeMap<NodeId, Incarnation>,
    rng: StdRng,
    alarm: Option<Instant>,
    /// All tasks of this life, except readers and writers, which belong to their session.
    tasks: JoinSet<()>,
}

impl TransportActor {
    /// A fresh life.
    pub fn new(seed: TransportSeed) -> Self {
        let settings = &seed.settings;
        let me = seed.identity.id;
        Self {
            life: next_life(),
            table: SessionTable::new(me, settings.redial_min, settings.redial_max),
            open: BTreeMap::new(),
            dials: BTreeMap::new(),
            loopback: Lanes::new(me, seed.desks.clone()),
            outbound: Arc::new(Semaphore::new(settings.max_handshakes.max(1))),
            told: BTreeSet::new(),
            found: BTreeMap::new(),
            dialled_back: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed.random_seed),
            alarm: None,
            tasks: JoinSet::new(),
            seed,
        }
    }

    fn me(&self) -> Me {
        let seed = &self.seed;
        Me {
            cluster: seed.identity.cluster.clone(),
            generation: self.table.generation(),
            id: seed.identity.id,
            incarnation: self.table.incarnation(),
            name: seed.identity.name(),
            address: seed.identity.address.clone(),
            host: seed.host.clone(),
            epoch: seed.fence.current(),
            stamp: seed.clock.tick((seed.unix_ms)()),
        }
    }

    fn senses(&self) -> Senses {
        Senses {
            fence: self.seed.fence.clone(),
            epoch_seen: self.seed.epoch_seen.clone(),
            clock: self.seed.clock.clone(),
            unix_ms: self.seed.unix_ms,
        }
    }

    fn tell(&self, event: &SessionEvent) {
        for recipient in &self.seed.desks.events {
            recipient.do_send(event.clone());
        }
    }

    /// Runs a task of this life.
    fn spawn(&mut self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn_local(task)
    }

    fn perform(&mut self, ctx: &mut Context<Self>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Dial { token, spec } => self.dial(ctx, token, &spec),
                Action::Abandon(token) => self.abandon(token),
                Action::Close(closed) => self.close(closed),
            }
        }
        self.set_alarm(ctx);
    }

    /// At the table's next deadline it is asked what is due. An alarm that comes too early does no harm.
    fn set_alarm(&mut self, ctx: &mut Context<Self>) {
        let Some(deadline) = self.table.next_deadline() else {
            return;
        };
        if self.alarm.is_some_and(|alarm| alarm <= deadline) {
            return;
        }
        self.alarm = Some(deadline);
        let wait = deadline.saturating_duration_since(now()) + Duration::from_millis(1);
        ctx.run_later(wait, |act, ctx| {
            act.alarm = None;
            let actions = act.table.tick(now());
            act.perform(ctx, actions);
        });
    }

    fn dial(&mut self, ctx: &mut Context<Self>, token: DialToken, spec: &PeerSpec) {
        let hello = self.me().hello(Purpose::Session, Some(spec.id));
        let hello_is_out = Arc::new(AtomicBool::new(false));
        let given_up = Unwelcome::Outcome(DialOutcome::Silent("the dial broke off".to_owned()));
        let report = Report::new(
            ctx.address().recipient(),
            DialEnded {
                life: self.life,
                token,
                found: Err(given_up),
            },
        );
        let (seed, life, slots) = (self.seed.clone(), self.life, Arc::clone(&self.outbound));
        let (address, is_out) = (spec.address.clone(), Arc::clone(&hello_is_out));
        let task = self.spawn(async move {
            let _slot = slots.acquire_owned().await;
            let network = seed.network.as_ref();
            let found = session::greet(network, &address, hello, &seed.settings, &is_out).await;
            report.tell(DialEnded { life, token, found });
        });
        self.dials.insert(token, DialTask { task, hello_is_out });
    }

    fn abandon(&mut self, token: DialToken) {
        if let Some(dial) = self.dials.remove(&token) {
            dial.task.abort();
        }
    }

    fn close(&mut self, closed: Closed) {
        let Closed {
            key,
            id,
            incarnation,
            why,
        } = closed;
        let Some(open) = self.open.remove(&key) else {
            return;
        };
        log::info!(target: "transport", event = "session.closed", peer = open.peer.name.as_str(), reason = why.as_str(); "session closed");
        // Nothing of the old session may be delivered after this is told.
        drop(open);
        self.tell(&SessionEvent::Down {
            id,
            incarnation,
            why,
        });
    }

    fn break_off(&mut self, ctx: &mut Context<Self>, key: SessionKey, why: String) {
        if let Some((closed, actions)) = self.table.ended(key, why, now(), &mut self.rng) {
            self.close(closed);
            self.perform(ctx, actions);
        }
    }

    /// Brings a session up that the table has let in.
    fn bring_up(
        &mut self,
        ctx: &mut Context<Self>,
        key: SessionKey,
        peer: SessionPeer,
        stream: Stream,
        first: Vec<u8>,
    ) {
        let direction = if peer.inbound { "inbound" } else { "outbound" };
        log::info!(target: "transport", event = "session.opened", peer = peer.name.as_str(), address:display = peer.remote, direction = direction, incarnation = peer.incarnation.0, generation = self.table.generation().0; "session opened");
        self.told.retain(|(name, _)| *name != peer.name);
        let heard = Heard::new(now());
        self.tell(&SessionEvent::Up {
            peer: peer.clone(),
            heard: heard.clone(),
        });
        let birth = Birth {
            key,
            incarnation: peer.incarnation,
            stream,
            first,
            heard: heard.clone(),
            lanes: Lanes::new(peer.id, self.seed.desks.clone()),
            senses: self.senses(),
            ended: ctx.address().recipient(),
        };
        let link = session::start(birth, &self.seed.settings);
        self.open.insert(key, Open { peer, heard, link });
    }

    /// Somebody said hello.
    fn answer(&mut self, ctx: &mut Context<Self>, caller: Caller) {
        let mut me = self.me();
        let Caller {
            hello,
            stream,
            remote,
            slot,
        } = caller;
        let hello = match hello {
            Ok(hello) => hello,
            Err(theirs) => {
                let refusal = me.refuse_version(theirs, &format!("the node at {}", remote.ip()));
                self.seed.refusals.count(Reason::Unfit);
                self.tell_refused(remote.ip().to_string(), &refusal.words);
                return self.hang_up(stream, Greeting::Refusal(refusal), slot);
            }
        };
        if let Some(proof) = &stream.proof {
            if let Err(Distrust { reason, words }) = vouched(proof, &hello) {
                self.seed.refusals.count(reason);
                self.tell_refused(remote.ip().to_string(), &words);
                let refusal = me.refusal(RefusalKind::Unproven, words);
                return self.hang_up(stream, Greeting::Refusal(refusal), slot);
            }
            if proof.is_outlived(me.incarnation) {
                // Registered since the connection was made: what our certificate said then is what can be said on it.
                me.incarnation = Incarnation::NONE;
            }
        }
        let welcome = match judge(&hello, &me) {
            Ok(mut welcome) => {
                let proof = stream.proof.as_ref();
                welcome.extension = proof.map_or(Vec::new(), |p| p.binding(Side::Acceptor));
                welcome
            }
            Err(refusal) => {
                // Of a dial the dialler knows more: whom it meant, and where.
                let told_by_dialler = hello.purpose == Purpose::Dial || hello.id == me.id;
                if refusal.kind.is_for_people() && !told_by_dialler {
                    self.seed.refusals.count(reason_of(refusal.kind));
                    self.tell_refused(hello.name, &refusal.words);
                }
                return self.hang_up(stream, Greeting::Refusal(refusal), slot);
            }
        };
        self.seed.clock.merge(hello.stamp, (self.seed.unix_ms)());
        self.senses().hear_epoch(hello.epoch);
        if hello.purpose == Purpose::Dial {
            return self.hang_up(stream, Greeting::Welcome(welcome), slot);
        }
        let our_dial = self.table.dial_to(hello.id);
        let our_dial = our_dial.and_then(|token| self.dials.get(&token));
        let offer = Offer {
            key: next_key(),
            id: hello.id,
            incarnation: hello.incarnation,
            stamp: hello.stamp,
            dialled: Dialled::ByPeer {
                our_hello_is_out: our_dial.is_some_and(|d| d.hello_is_out.load(Ordering::Relaxed)),
            },
        };
        match (
            self.table.offer(&offer, now()),
            Greeting::Welcome(welcome).encode(),
        ) {
            (Ok(actions), Ok(first)) => {
                self.perform(ctx, actions);
                let peer = SessionPeer {
                    id: hello.id,
                    incarnation: hello.incarnation,
                    name: hello.name,
                    address: hello.address,
                    remote,
                    inbound: true,
                };
                self.bring_up(ctx, offer.key, peer.clone(), stream, first);
                self.dial_back(ctx, &peer);
            }
            (Err(Unfit { kind, words }), _) => {
                let refusal = Greeting::Refusal(me.refusal(kind, words));
                self.hang_up(stream, refusal, slot);
            }
            // Our own name and address do not fit a greeting: nobody can be welcomed.
            (Ok(actions), Err(why)) => {
                self.perform(ctx, actions);
                self.break_off(ctx, offer.key, why.to_string());
            }
        }
    }

    fn hang_up(&mut self, stream: Stream, greeting: Greeting, slot: OwnedSemaphorePermit) {
        let within = self.seed.settings.handshake_timeout;
        self.spawn(async move {
            session::say_and_hang_up(stream, &greeting, within).await;
            drop(slot);
        });
    }

    fn tell_refused(&mut self, peer: String, why: &str) {
        if self.told.len() >= MAX_TOLD {
            self.told.clear();
        }
        if self.told.insert((peer.clone(), why.to_owned())) {
            log::warn!(target: "transport", event = "session.refused", peer = peer.as_str(), reason = why; "session refused");
            self.tell(&SessionEvent::Refused {
                peer,
                why: why.to_owned(),
            });
        }
    }

    /// A dial for a session has ended.
    fn dialled(&mut self, ctx: &mut Context<Self>, ended: DialEnded) {
        let DialEnded { life, token, found } = ended;
        if life != self.life {
            return;
        }
        self.dials.remove(&token);
        let Some(spec) = self.table.dialled(token).cloned() else {
            return;
        };
        match found {
            Ok((welcome, stream)) => self.welcomed(ctx, token, spec, welcome, stream),
            Err(Unwelcome::Refusal(refusal)) => self.turned_away(ctx, token, &spec, refusal),
            Err(Unwelcome::Distrust(Distrust { reason, words })) => {
                self.seed.refusals.count(reason);
                self.tell_refused(spec.name, &format!("at {}: {words}", spec.address));
                self.dial_failed(ctx, token, DialOutcome::Turned(words));
            }
            Err(Unwelcome::Outcome(outcome)) => self.dial_failed(ctx, token, outcome),
        }
    }

    fn welcomed(
        &mut self,
        ctx: &mut Context<Self>,
        token: DialToken,
        spec: PeerSpec,
        welcome: Welcome,
        stream: Stream,
    ) {
        if welcome.id != spec.id {
            let outcome = answered(welcome);
            return self.dial_failed(ctx, token, outcome);
        }
        self.seed.clock.merge(welcome.stamp, (self.seed.unix_ms)());
        self.senses().hear_epoch(welcome.epoch);
        let offer = Offer {
            key: next_key(),
            id: welcome.id,
            incarnation: welcome.incarnation,
            stamp: welcome.stamp,
            dialled: Dialled::ByUs(token),
        };
        match self.table.offer(&offer, now()) {
            Ok(actions) => {
                self.perform(ctx, actions);
                remember(&mut self.found, welcome.id, spec.address);
                let peer = SessionPeer {
                    id: welcome.id,
                    incarnation: welcome.incarnation,
                    name: welcome.name,
                    address: welcome.address,
                    remote: stream.remote,
                    inbound: false,
                };
                self.bring_up(ctx, offer.key, peer, stream, Vec::new());
            }
            Err(Unfit { kind, words }) => {
                let refusal = self.me().refusal(kind, words);
                self.turned_away(ctx, token, &spec, refusal);
            }
        }
    }

    fn turned_away(
        &mut self,
        ctx: &mut Context<Self>,
        token: DialToken,
        spec: &PeerSpec,
        refusal: Refusal,
    ) {
        if refusal.kind == RefusalKind::Duplicate {
            let failure = DialFailure::Duplicate;
            self.table.dial_failed(token, failure, now(), &mut self.rng);
            return self.set_alarm(ctx);
        }
        if refusal.kind.is_for_people() {
            self.seed.refusals.count(reason_of(refusal.kind));
            let why = format!("at {}: {}", spec.address, refusal.words);
            self.tell_refused(spec.name.clone(), &why);
        }
        self.dial_failed(ctx, token, refusal.outcome());
    }

    fn dial_failed(&mut self, ctx: &mut Context<Self>, token: DialToken, outcome: DialOutcome) {
        let failure = match outcome {
            DialOutcome::Refused => DialFailure::Refused,
            _ => DialFailure::Other,
        };
        let failed = self.table.dial_failed(token, failure, now(), &mut self.rng);
        if let Some(spec) = failed {
            log::debug!(target: "transport", peer = spec.name.as_str(), address = spec.address.as_str(), reason:debug = outcome; "dial failed");
            self.tell(&SessionEvent::DialFailed {
                id: spec.id,
                incarnation: spec.incarnation,
                outcome,
            });
        }
        self.set_alarm(ctx);
    }

    /// Whether a node that joined can be reached where it says; told to it in words, once per life of it.
    fn dial_back(&mut self, ctx: &mut Context<Self>, peer: &SessionPeer) {
        let known = self.dialled_back.get(&peer.id) == Some(&peer.incarnation);
        if known || self.found.get(&peer.id) == Some(&peer.address) {
            return;
        }
        remember(&mut self.dialled_back, peer.id, peer.incarnation);
        let (id, address) = (peer.id, peer.address.clone());
        let dialling = self.look(address.clone());
        let report = ctx.address();
        self.spawn(async move {
            let outcome = dialling.await;
            report.do_send(DialledBack {
                id,
                address,
                outcome,
            });
        });
    }

    /// Dials for nothing but to learn who is there.
    fn look(&self, address: String) -> impl Future<Output = DialOutcome> + use<> {
        let hello = self.me().hello(Purpose::Dial, None);
        let (seed, slots) = (self.seed.clone(), Arc::clone(&self.outbound));
        async move {
            let _slot = slots.acquire_owned().await;
            let network = seed.network.as_ref();
            let is_out = AtomicBool::new(false);
            match session::greet(network, &address, hello, &seed.settings, &is_out).await {
                Ok((welcome, _)) => answered(welcome),
                Err(unwelcome) => unwelcome.outcome(),
            }
        }
    }

    fn send(&mut self, ctx: &mut Context<Self>, send: Send) -> Result<(), SendError> {
        let Send { to, message } = send;
        if to == self.seed.identity.id {
            return self.send_to_myself(message);
        }
        let key = self.table.session(to).ok_or(SendError::NoSession)?;
        let class = message.class();
        let frame = self.encode(&message)?;
        match self.queue(ctx, key, class, frame) {
            Ok(()) => Ok(()),
            Err(QueueFull(Class::Bulk)) => Err(SendError::Full),
            Err(QueueFull(Class::Control)) => Err(SendError::NoSession),
        }
    }

    fn send_to_myself(&mut self, message: WireMessage) -> Result<(), SendError> {
        let desk = message.desk();
        let header = self.senses().header();
        let envelope = Envelope { header, message };
        // Not encoded, so its size is not known; the count bounds it.
        let pushed = self
            .loopback
            .try_push(desk, self.table.incarnation(), vec![envelope], 1);
        pushed.map_err(|LaneFull| SendError::Full)
    }

    fn encode(&self, message: &WireMessage) -> Result<Bytes, SendError> {
        let header = self.senses().header();
        frame::encode(&header, message, self.seed.settings.max_frame).map_err(|why| {
            log::warn!(target: "transport", event = "session.message_refused", kind = message.name(), err:display = why; "message not sent");
            SendError::TooLarge
        })
    }

    /// Queues a frame; a full control queue breaks the session.
    fn queue(
        &mut self,
        ctx: &mut Context<Self>,
        key: SessionKey,
        class: Class,
        frame: Bytes,
    ) -> Result<(), QueueFull> {
        let Some(open) = self.open.get(&key) else {
            return Ok(());
        };
        let queued = open.link.outbox.push(class, frame);
        if queued == Err(QueueFull(Class::Control)) {
            let why = "it takes no control messages any more: the queue is full".to_owned();
            self.break_off(ctx, key, why);
        }
        queued
    }
}

/// Keeps a map of memories bounded by forgetting all at once: what is forgotten is only found out again.
fn remember<V>(memories: &mut BTreeMap<NodeId, V>, id: NodeId, value: V) {
    if memories.len() >= MAX_DIALLED_BACK {
        memories.clear();
    }
    memories.insert(id, value);
}

/// Whether a caller is whom its certificate names. A dial outside of any session claims no life.
fn vouched(proof: &Proof, hello: &Hello) -> Result<(), Distrust> {
    let life = (hello.purpose == Purpose::Session).then_some(hello.incarnation);
    let (id, name) = (hello.id, hello.name.as_str());
    proof.vouches(Side::Dialler, id, life, name, &hello.extension)
}

/// As which reason a refusal in words is counted.
fn reason_of(kind: RefusalKind) -> Reason {
    match kind {
        RefusalKind::OtherCluster => Reason::OtherCluster,
        RefusalKind::Unproven => Reason::Impostor,
        _ => Reason::Unfit,
    }
}

fn answered(welcome: Welcome) -> DialOutcome {
    DialOutcome::Answered {
        id: welcome.id,
        incarnation: welcome.incarnation,
        name: welcome.name,
        host: welcome.host,
    }
}

/// A dial for a session has ended.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct DialEnded {
    life: u64,
    token: DialToken,
    found: Result<(Welcome, Stream), Unwelcome>,
}

/// A joiner's advertised address was dialled.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct DialledBack {
    id: NodeId,
    address: String,
    outcome: DialOutcome,
}

impl Actor for TransportActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(MAILBOX);
        let port = Arc::clone(&self.seed.listener.incoming);
        let reception = Reception::new(
            &self.seed.settings,
            ctx.address().recipient(),
            self.seed.tls.clone(),
            self.seed.refusals.clone(),
        );
        self.spawn(reception.receive(port));
        self.seed.reborn.do_send(TransportReborn);
    }
}

impl Supervised for TransportActor {
    fn restarting(&mut self, _: &mut Context<Self>) {
        *self = Self::new(self.seed.clone());
    }
}

impl Handler<Peers> for TransportActor {
    type Result = ();

    fn handle(&mut self, Peers(peers): Peers, ctx: &mut Context<Self>) {
        handling::<Peers>();
        let actions = self.table.set_peers(peers, now());
        self.perform(ctx, actions);
    }
}

impl Handler<Incarnated> for TransportActor {
    type Result = ();

    fn handle(&mut self, registered: Incarnated, ctx: &mut Context<Self>) {
        handling::<Incarnated>();
        if let Some(tls) = &self.seed.tls {
            tls.set_incarnation(registered.incarnation);
        }
        let actions = self.table.set_incarnation(registered, now());
        self.perform(ctx, actions);
    }
}

impl Handler<Send> for TransportActor {
    type Result = Result<(), SendError>;

    fn handle(&mut self, send: Send, ctx: &mut Context<Self>) -> Self::Result {
        handling::<Send>();
        self.send(ctx, send)
    }
}

impl Handler<SendMany> for TransportActor {
    type Result = MessageResult<SendMany>;

    fn handle(&mut self, SendMany(sends): SendMany, ctx: &mut Context<Self>) -> Self::Result {
        handling::<SendMany>();
        let answers = sends.into_iter().map(|send| self.send(ctx, send));
        MessageResult(answers.collect())
    }
}

impl Handler<Broadcast> for TransportActor {
    type Result = ();

    fn handle(&mut self, Broadcast(message): Broadcast, ctx: &mut Context<Self>) {
        handling::<Broadcast>();
        // Encoded once for all. Why it may fail is logged there.
        let Ok(frame) = self.encode(&message) else {
            return;
        };
        let keys: Vec<SessionKey> = self.open.keys().copied().collect();
        for key in keys {
            // A full bulk queue goes without; a full control queue has broken the session, which tells.
            self.queue(ctx, key, message.class(), frame.clone()).ok();
        }
    }
}

impl Handler<Dial> for TransportActor {
    type Result = ResponseFuture<DialOutcome>;

    fn handle(&mut self, Dial { address }: Dial, _: &mut Context<Self>) -> Self::Result {
        handling::<Dial>();
        Box::pin(self.look(address))
    }
}

impl Handler<AskSessions> for TransportActor {
    type Result = MessageResult<AskSessions>;

    fn handle(&mut self, _: AskSessions, _: &mut Context<Self>) -> Self::Result {
        handling::<AskSessions>();
        let up = self.open.values();
        MessageResult(up.map(|o| (o.peer.clone(), o.heard.clone())).collect())
    }
}

impl Handler<Caller> for TransportActor {
    type Result = ();

    fn handle(&mut self, caller: Caller, ctx: &mut Context<Self>) {
        handling::<Caller>();
        self.answer(ctx, caller);
    }
}

impl Handler<DialEnded> for TransportActor {
    type Result = ();

    fn handle(&mut self, ended: DialEnded, ctx: &mut Context<Self>) {
        handling::<DialEnded>();
        self.dialled(ctx, ended);
    }
}

impl Handler<SessionEnded> for TransportActor {
    type Result = ();

    fn handle(&mut self, SessionEnded { key, why }: SessionEnded, ctx: &mut Context<Self>) {
        handling::<SessionEnded>();
        self.break_off(ctx, key, why);
    }
}

impl Handler<DialledBack> for TransportActor {
    type Result = ();

    fn handle(&mut self, found: DialledBack, ctx: &mut Context<Self>) {
        handling::<DialledBack>();
        let DialledBack {
            id,
            address,
            outcome,
        } = found;
        let problem = dial_back_problem(&address, id, &outcome, &self.me());
        if let Some(problem) = &problem {
            let name = self.table.session(id).and_then(|key| self.open.get(&key));
            let name = name.map_or("", |open| open.peer.name.as_str());
            log::warn!(target: "transport", event = "session.dial_back_failed", peer = name, reason = problem.as_str(); "a node cannot be reached where it says");
        } else {
            remember(&mut self.found, id, address.clone());
        }
        let message = WireMessage::from(DialBack { address, problem });
        // Gone again: it is told when it comes back.
        if self.send(ctx, Send { to: id, message }).is_err() {
            self.dialled_back.remove(&id);
        }
    }
}
