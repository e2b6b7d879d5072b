//! TransportActor as others see it: real sockets on loopback (and the in-memory network where time must be told).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::dev::{AsyncContextParts, ContextFut};
use actix::{Actor, Addr, AsyncContext, Context, Handler, ResponseFuture};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use troupe_actors::cluster::{Fence, Identity};
use troupe_actors::discovery::EpochSeen;
use troupe_actors::id::{Epoch, Generation, Incarnation, NodeId};
use troupe_actors::transport::frame::{self, Decoded, Decoder};
use troupe_actors::transport::handshake::{self, Greeting, Me, Prefix, Purpose, RefusalKind};
use troupe_actors::transport::memory::MemoryNetwork;
use troupe_actors::transport::tls::{Credentials, Secret, Tls, TlsNetwork};
use troupe_actors::transport::trust::{Reason, Side};
use troupe_actors::transport::{
    Broadcast, Desks, Dial, DialOutcome, Inbound, Incarnated, Listener, Network, PeerSpec, Peers,
    Send, SendError, SendMany, SessionEvent, Stream, TcpNetwork, TransportActor, TransportReborn,
    TransportSeed, TransportSettings,
};
use troupe_actors::wire::{
    ApiRequest, Cancel, Desk, Header, Heartbeat, Hlc, Message, PROTOCOL_VERSION, Unknown,
};

/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

// ---- a node without the rest of a node ----

/// Stands for every actor the transport talks to, and writes down what it is told.
struct Ear {
    desk: Desk,
    heard: UnboundedSender<(Desk, Inbound)>,
    events: UnboundedSender<SessionEvent>,
    reborn: UnboundedSender<()>,
    epochs: UnboundedSender<Epoch>,
    /// A stuck desk takes a message and never finishes it.
    stuck: bool,
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<Inbound> for Ear {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, inbound: Inbound, _: &mut Context<Self>) -> ResponseFuture<()> {
        self.heard.send((self.desk, inbound)).ok();
        if self.stuck {
            Box::pin(std::future::pending())
        } else {
            Box::pin(std::future::ready(()))
        }
    }
}

impl Handler<SessionEvent> for Ear {
    type Result = ();
    fn handle(&mut self, event: SessionEvent, _: &mut Context<Self>) {
        self.events.send(event).ok();
    }
}

impl Handler<TransportReborn> for Ear {
    type Result = ();
    fn handle(&mut self, _: TransportReborn, _: &mut Context<Self>) {
        self.reborn.send(()).ok();
    }
}

impl Handler<EpochSeen> for Ear {
    type Result = ();
    fn handle(&mut self, EpochSeen(epoch): EpochSeen, _: &mut Context<Self>) {
        self.epochs.send(epoch).ok();
    }
}

struct Node {
    seed: TransportSeed,
    transport: Addr<TransportActor>,
    life: JoinHandle<()>,
    restart: UnboundedSender<()>,
    inbound: UnboundedReceiver<(Desk, Inbound)>,
    events: UnboundedReceiver<SessionEvent>,
    reborn: UnboundedReceiver<()>,
    epochs: UnboundedReceiver<Epoch>,
}

/// What can be different about a node.
struct Plan {
    id: u128,
    listen: &'static str,
    cluster: &'static str,
    generation: u64,
    incarnation: i64,
    advertise: Option<String>,
    settings: TransportSettings,
    memory: Option<MemoryNetwork>,
    stuck: Option<Desk>,
    secret: Option<u8>,
}

impl Plan {
    fn new(id: u128) -> Self {
        Self {
            id,
            listen: "127.0.0.1:0",
            cluster: "demo",
            generation: 7,
            incarnation: i64::try_from(id).unwrap() * 10,
            advertise: None,
            settings: TransportSettings::default(),
            memory: None,
            stuck: None,
            secret: None,
        }
    }

    async fn start(self) -> Node {
        let listener = match &self.memory {
            Some(memory) => memory.listen(self.listen),
            None => Listener::bind(self.listen).await.unwrap(),
        };
        let own = match &self.memory {
            Some(_) => self.listen.to_owned(),
            None => listener.local_addr().to_string(),
        };
        let (heard, inbound) = mpsc::unbounded_channel();
        let (event, events) = mpsc::unbounded_channel();
        let (reborn_tx, reborn) = mpsc::unbounded_channel();
        let (epoch, epochs) = mpsc::unbounded_channel();
        let ear = |desk| {
            Ear {
                desk,
                heard: heard.clone(),
                events: event.clone(),
                reborn: reborn_tx.clone(),
                epochs: epoch.clone(),
                stuck: self.stuck == Some(desk),
            }
            .start()
        };
        let discovery = ear(Desk::Discovery);
        let desks = Desks {
            discovery: discovery.clone().recipient(),
            master: ear(Desk::Master).recipient(),
            worker: ear(Desk::Worker).recipient(),
            admin: ear(Desk::Admin).recipient(),
            events: vec![discovery.clone().recipient()],
        };
        let identity = Identity {
            cluster: self.cluster.to_owned(),
            id: NodeId(self.id),
            name: Arc::new(Mutex::new(format!("node-{}", self.id))),
            address: self.advertise.unwrap_or(own),
        };
        let mut seed = TransportSeed::new(
            identity,
            format!("host-{}", self.id),
            Fence::default(),
            desks,
            listener,
            discovery.clone().recipient(),
            discovery.recipient(),
        );
        seed.settings = self.settings;
        if let Some(memory) = self.memory {
            seed.network = Arc::new(memory);
        }
        if let Some(secret) = self.secret {
            let tls = tls(secret, self.cluster, self.id);
            seed.network = Arc::new(TlsNetwork::new(seed.network, Arc::clone(&tls)));
            seed.tls = Some(tls);
        }
        let (restart, restarts) = mpsc::unbounded_channel();
        let context = Context::new();
        let transport = context.address();
        let life = context.into_future(TransportActor::new(seed.clone()));
        let node = Node {
            seed,
            transport,
            life: actix_rt::spawn(live(life, restarts)),
            restart,
            inbound,
            events,
            reborn,
            epochs,
        };
        if self.incarnation != 0 {
            node.register(self.incarnation, self.generation).await;
        }
        node
    }
}

/// What a supervisor does: drive the actor, and give it a new life on command.
async fn live<C>(mut life: ContextFut<TransportActor, C>, mut restarts: UnboundedReceiver<()>)
where
    C: AsyncContextParts<TransportActor> + Unpin,
    TransportActor: Actor<Context = C>,
{
    loop {
        tokio::select! {
            biased;
            Some(()) = restarts.recv() => { life.restart(); }
            () = &mut life => return,
        }
    }
}

impl Node {
    async fn register(&self, incarnation: i64, generation: u64) {
        let registered = Incarnated {
            incarnation: Incarnation(incarnation),
            generation: Generation(generation),
        };
        self.transport.send(registered).await.unwrap();
    }

    fn id(&self) -> NodeId {
        self.seed.identity.id
    }

    fn spec(&self) -> PeerSpec {
        PeerSpec {
            id: self.id(),
            incarnation: Incarnation(i64::try_from(self.id().0).unwrap() * 10),
            name: self.seed.identity.name(),
            address: self.seed.identity.address.clone(),
        }
    }

    fn own_address(&self) -> String {
        self.seed.listener.local_addr().to_string()
    }

    async fn want(&self, peers: &[&Node]) {
        let specs = peers.iter().map(|peer| peer.spec()).collect();
        self.transport.send(Peers(specs)).await.unwrap();
    }

    async fn send(&self, to: NodeId, message: impl Into<Message>) -> Result<(), SendError> {
        let message = message.into();
        self.transport.send(Send { to, message }).await.unwrap()
    }

    async fn event(&mut self) -> SessionEvent {
        timeout(PATIENCE, self.events.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Waits for an event that `pick` takes; others are skipped.
    async fn until<T>(&mut self, mut pick: impl FnMut(SessionEvent) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.event().await) {
                return picked;
            }
        }
    }

    async fn up(&mut self, with: NodeId) -> Incarnation {
        self.until(|event| match event {
            SessionEvent::Up { peer, .. } if peer.id == with => Some(peer.incarnation),
            _ => None,
        })
        .await
    }

    async fn down(&mut self, with: NodeId) -> String {
        self.until(|event| match event {
            SessionEvent::Down { id, why, .. } if id == with => Some(why),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self) -> String {
        self.until(|event| match event {
            SessionEvent::Refused { why, .. } => Some(why),
            _ => None,
        })
        .await
    }

    async fn dial_failed(&mut self) -> DialOutcome {
        self.until(|event| match event {
            SessionEvent::DialFailed { outcome, .. } => Some(outcome),
            _ => None,
        })
        .await
    }

    async fn hear(&mut self) -> (Desk, Inbound) {
        timeout(PATIENCE, self.inbound.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Waits for so many messages at one desk; those for others are skipped, and what is said about addresses.
    async fn hear_at(&mut self, desk: Desk, count: usize) -> Vec<Message> {
        let mut got = Vec::new();
        while got.len() < count {
            let (at, inbound) = self.hear().await;
            let messages = inbound.envelopes.into_iter().map(|e| e.message);
            if at == desk {
                got.extend(messages.filter(|m| !matches!(m, Message::DialBack(_))));
            }
        }
        got
    }

    /// What a node was told of its advertised address.
    async fn dial_back(&mut self) -> Option<String> {
        loop {
            for envelope in self.hear().await.1.envelopes {
                if let Message::DialBack(told) = envelope.message {
                    return told.problem;
                }
            }
        }
    }

    /// As `kill -9` does: the process is gone, with its sessions and its port.
    async fn kill(self) -> NodeId {
        let id = self.id();
        self.seed.listener.close();
        self.life.abort();
        assert!(self.life.await.unwrap_err().is_cancelled());
        id
    }
}

async fn pair() -> (Node, Node) {
    let (mut a, mut b) = (Plan::new(1).start().await, Plan::new(2).start().await);
    a.want(&[&b]).await;
    assert_eq!(a.up(b.id()).await, Incarnation(20));
    assert_eq!(b.up(a.id()).await, Incarnation(10));
    (a, b)
}

fn beat(seq: u64) -> Heartbeat {
    Heartbeat {
        seq,
        ..Heartbeat::default()
    }
}

/// Bulk for the worker's desk, told apart by its words.
fn bulk(n: usize, size: usize) -> Cancel {
    Cancel {
        epoch: Epoch::NONE,
        attempts: Vec::new(),
        why: format!("{}{n}", " ".repeat(size)),
    }
}

fn number(message: &Message) -> usize {
    match message {
        Message::Cancel(cancel) => cancel.why.trim().parse().unwrap(),
        Message::Heartbeat(heartbeat) => usize::try_from(heartbeat.seq).unwrap(),
        other => panic!("unexpected {}", other.name()),
    }
}

fn numbers(messages: &[Message]) -> Vec<usize> {
    messages.iter().map(number).collect()
}

// ---- a node by hand, for what a well-behaved one never does ----

struct Raw {
    stream: TcpStream,
    decoder: Decoder,
}

fn raw_me(id: u128) -> Me {
    Me {
        cluster: "demo".to_owned(),
        generation: Generation(7),
        id: NodeId(id),
        incarnation: Incarnation(5),
        name: format!("raw-{id}"),
        address: "127.0.0.1:9".to_owned(),
        host: "elsewhere".to_owned(),
        epoch: Epoch::NONE,
        stamp: Hlc(1),
    }
}

async fn read_greeting(stream: &mut TcpStream) -> Greeting {
    let mut prefix = [0; handshake::PREFIX];
    stream.read_exact(&mut prefix).await.unwrap();
    let prefix = Prefix::parse(prefix).unwrap();
    let mut body = vec![0; prefix.body_length()];
    stream.read_exact(&mut body).await.unwrap();
    prefix.read(&body).unwrap()
}

/// Says hello with these bytes and answers what comes back.
async fn greet(node: &Node, hello: &[u8]) -> (TcpStream, Greeting) {
    let mut stream = TcpStream::connect(node.own_address()).await.unwrap();
    stream.write_all(hello).await.unwrap();
    let answer = timeout(PATIENCE, read_greeting(&mut stream)).await.unwrap();
    (stream, answer)
}

fn hello(me: Me) -> Vec<u8> {
    let hello = me.hello(Purpose::Session, None);
    Greeting::Hello(hello).encode().unwrap()
}

impl Raw {
    async fn open(node: &Node, id: u128) -> Self {
        let (stream, answer) = greet(node, &hello(raw_me(id))).await;
        assert!(matches!(answer, Greeting::Welcome(_)), "{answer:?}");
        Self {
            stream,
            decoder: Decoder::new(1 << 20),
        }
    }

    async fn next(&mut self) -> Option<Message> {
        let reading = async {
            loop {
                if let Some(decoded) = self.decoder.next_frame().unwrap() {
                    let Decoded::Envelope { envelope, .. } = decoded else {
                        panic!("{decoded:?}");
                    };
                    return Some(envelope.message);
                }
                match self.stream.read_buf(self.decoder.space(65_536)).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        timeout(PATIENCE, reading).await.unwrap()
    }

    async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }
}

// ---- messages ----

#[actix_rt::test]
async fn messages_of_both_classes_arrive_in_order_at_their_desks() {
    let (mut a, mut b) = pair().await;
    for (from, to) in [(1, 2), (2, 1)] {
        let (sender, receiver) = if from == 1 {
            (&a, &mut b)
        } else {
            (&b, &mut a)
        };
        let mut sends = Vec::new();
        for n in 0..500 {
            let to = NodeId(to);
            sends.push(Send {
                to,
                message: bulk(n, 200).into(),
            });
            sends.push(Send {
                to,
                message: beat(n as u64).into(),
            });
        }
        let answers = sender.transport.send(SendMany(sends)).await.unwrap();
        assert!(answers.iter().all(Result::is_ok));
        let mut got: BTreeMap<Desk, Vec<usize>> = BTreeMap::new();
        while got.values().map(Vec::len).sum::<usize>() < 1000 {
            let (desk, inbound) = receiver.hear().await;
            assert_eq!(inbound.from, NodeId(from));
            assert_eq!(
                inbound.incarnation,
                Incarnation(i64::try_from(from).unwrap() * 10)
            );
            for envelope in &inbound.envelopes {
                if !matches!(envelope.message, Message::DialBack(_)) {
                    got.entry(desk).or_default().push(number(&envelope.message));
                }
            }
        }
        let all: Vec<usize> = (0..500).collect();
        assert_eq!(got[&Desk::Discovery], all);
        assert_eq!(got[&Desk::Worker], all);
    }
}

#[actix_rt::test]
async fn three_nodes_broadcast_to_each_other() {
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Plan::new(id).start().await);
    }
    let specs: Vec<PeerSpec> = nodes.iter().map(Node::spec).collect();
    for node in &nodes {
        node.transport.send(Peers(specs.clone())).await.unwrap();
    }
    for node in &mut nodes {
        let mut missing: Vec<NodeId> = specs.iter().map(|s| s.id).collect();
        missing.retain(|id| *id != node.id());
        while !missing.is_empty() {
            if let SessionEvent::Up { peer, .. } = node.event().await {
                missing.retain(|id| *id != peer.id);
            }
        }
    }
    for (i, node) in nodes.iter().enumerate() {
        let message = beat(100 + i as u64).into();
        node.transport.send(Broadcast(message)).await.unwrap();
    }
    for node in &mut nodes {
        let own = usize::try_from(node.id().0).unwrap() + 99;
        let mut missing: Vec<usize> = (100..103).filter(|n| *n != own).collect();
        while !missing.is_empty() {
            for message in node.hear_at(Desk::Discovery, 1).await {
                if let Message::Heartbeat(beat) = message {
                    missing.retain(|n| *n != usize::try_from(beat.seq).unwrap());
                }
            }
        }
    }
}

#[actix_rt::test]
async fn a_node_talks_to_itself_without_a_session() {
    let mut a = Plan::new(1).start().await;
    let me = a.id();
    for n in 0..100 {
        assert_eq!(a.send(me, bulk(n, 1)).await, Ok(()));
    }
    let got = a.hear_at(Desk::Worker, 100).await;
    assert_eq!(numbers(&got), (0..100).collect::<Vec<_>>());
    a.send(me, beat(1)).await.unwrap();
    let (_, inbound) = a.hear().await;
    assert_eq!((inbound.from, inbound.incarnation), (me, Incarnation(10)));
}

#[actix_rt::test]
async fn a_message_that_cannot_be_taken_is_refused_with_the_reason() {
    let mut plan = Plan::new(1);
    plan.settings.bulk_queue = 8;
    let mut a = plan.start().await;
    assert_eq!(a.send(NodeId(9), beat(1)).await, Err(SendError::NoSession));
    let raw = Raw::open(&a, 9).await;
    a.up(NodeId(9)).await;
    let large = bulk(1, 2 << 20);
    assert_eq!(a.send(NodeId(9), large).await, Err(SendError::TooLarge));
    // The raw node does not read: its socket fills, then the queue.
    let mut sent = 0;
    let full = loop {
        match a.send(NodeId(9), bulk(sent, 500_000)).await {
            Ok(()) => sent += 1,
            Err(why) => break why,
        }
        assert!(sent < 1000, "nothing holds the sender back");
    };
    assert_eq!(full, SendError::Full);
    // A full bulk queue leaves the session alone: control still goes.
    assert_eq!(a.send(NodeId(9), beat(1)).await, Ok(()));
    drop(raw);
}

#[actix_rt::test]
async fn a_full_control_queue_breaks_the_session() {
    let mut plan = Plan::new(1);
    plan.settings.control_queue = 4;
    let mut a = plan.start().await;
    let _raw = Raw::open(&a, 9).await;
    a.up(NodeId(9)).await;
    let to = NodeId(9);
    let message = Message::from(beat(1));
    let flood = vec![Send { to, message }; 50];
    let answers = a.transport.send(SendMany(flood)).await.unwrap();
    assert_eq!(answers[0], Ok(()));
    assert_eq!(answers[49], Err(SendError::NoSession));
    assert!(a.down(to).await.contains("queue is full"));
}

#[actix_rt::test]
async fn control_passes_ahead_of_4000_queued_bulk_frames() {
    let mut a = Plan::new(1).start().await;
    let mut raw = Raw::open(&a, 9).await;
    let to = NodeId(9);
    a.up(to).await;
    // The raw node does not read yet: what the kernel does not take is queued.
    let sends = (0..4000).map(|n| Send {
        to,
        message: bulk(n, 2000).into(),
    });
    let answers = a.transport.send(SendMany(sends.collect())).await.unwrap();
    assert!(answers.iter().all(Result::is_ok));
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    a.send(to, beat(4711)).await.unwrap();
    let mut before = 0;
    loop {
        match raw.next().await.unwrap() {
            Message::Heartbeat(_) => break,
            Message::Cancel(_) => before += 1,
            // The raw node advertises an address at which nobody is.
            Message::DialBack(_) => {}
            other => panic!("unexpected {}", other.name()),
        }
    }
    assert!(before < 3000, "{before} bulk frames came first");
}

#[actix_rt::test]
async fn the_epoch_travels_with_every_message_and_only_rises() {
    let (a, mut b) = pair().await;
    let epoch = |revision| Epoch {
        generation: Generation(7),
        revision,
    };
    a.seed.fence.raise(epoch(5));
    a.send(b.id(), beat(1)).await.unwrap();
    a.send(b.id(), beat(2)).await.unwrap();
    b.hear_at(Desk::Discovery, 2).await;
    assert_eq!(b.seed.fence.current(), epoch(5));
    assert_eq!(b.epochs.try_recv(), Ok(epoch(5)));
    assert!(b.epochs.try_recv().is_err(), "told twice");
}

#[actix_rt::test]
async fn a_kind_that_nobody_knows_is_answered_and_the_session_goes_on() {
    let mut a = Plan::new(1).start().await;
    let mut raw = Raw::open(&a, 9).await;
    let known = frame::encode(&Header::default(), &beat(1).into(), 1000).unwrap();
    let mut unknown = known.to_vec();
    unknown[4..6].copy_from_slice(&999u16.to_be_bytes());
    raw.stream.write_all(&unknown).await.unwrap();
    raw.stream.write_all(&unknown).await.unwrap();
    raw.stream.write_all(&known).await.unwrap();
    assert_eq!(numbers(&a.hear_at(Desk::Discovery, 1).await), [1]);
    loop {
        match raw.next().await.unwrap() {
            Message::DialBack(_) => {}
            message => {
                assert_eq!(message, Unknown { kind: 999 }.into());
                break;
            }
        }
    }
}

// ---- sessions ----

#[actix_rt::test]
async fn a_simultaneous_dial_gives_one_session() {
    for _ in 0..20 {
        let (mut a, mut b) = (Plan::new(1).start().await, Plan::new(2).start().await);
        let (to_a, to_b) = ([&a], [&b]);
        tokio::join!(a.want(&to_b), b.want(&to_a));
        // Once a message of each has arrived at the other and nothing is up in the air, each counts one session.
        let mut open = [0i32; 2];
        let mut heard = [false; 2];
        while heard != [true; 2] || open != [1; 2] {
            for (i, node) in [&mut a, &mut b].into_iter().enumerate() {
                while let Ok(event) = node.events.try_recv() {
                    match event {
                        SessionEvent::Up { .. } => open[i] += 1,
                        SessionEvent::Down { .. } => open[i] -= 1,
                        event => panic!("{event:?}"),
                    }
                    assert!((0..=1).contains(&open[i]));
                }
                while let Ok((_, inbound)) = node.inbound.try_recv() {
                    let is_beat = |m: &Message| matches!(m, Message::Heartbeat(_));
                    heard[i] |= inbound.envelopes.iter().any(|e| is_beat(&e.message));
                }
                let other = NodeId(2 - i as u128);
                node.send(other, beat(1)).await.ok();
            }
        }
    }
}

#[actix_rt::test]
async fn a_killed_peer_is_refused_within_milliseconds() {
    let (mut a, b) = pair().await;
    let killed = Instant::now();
    let id = b.kill().await;
    assert!(a.down(id).await.contains("closed"));
    assert_eq!(a.dial_failed().await, DialOutcome::Refused);
    let took = killed.elapsed();
    println!("refused after {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    // And again, at the shortest wait.
    assert_eq!(a.dial_failed().await, DialOutcome::Refused);
}

#[actix_rt::test]
async fn a_peer_that_comes_back_is_found_again() {
    let (mut a, b) = pair().await;
    let address = b.own_address();
    b.kill().await;
    assert_eq!(a.dial_failed().await, DialOutcome::Refused);
    // Another process, another id, the same address: told who answers, and nothing comes up.
    let mut plan = Plan::new(3);
    plan.listen = Box::leak(address.into_boxed_str());
    let mut c = plan.start().await;
    let answered = loop {
        match a.dial_failed().await {
            DialOutcome::Refused => {}
            outcome => break outcome,
        }
    };
    assert_eq!(
        answered,
        DialOutcome::Answered {
            id: c.id(),
            incarnation: Incarnation(30),
            name: "node-3".to_owned(),
            host: "host-3".to_owned()
        }
    );
    a.want(&[&c]).await;
    a.up(c.id()).await;
    c.up(a.id()).await;
}

#[actix_rt::test]
async fn a_change_of_peers_leaves_the_others_alone() {
    let (mut a, mut b) = pair().await;
    let mut c = Plan::new(3).start().await;
    a.want(&[&b, &c]).await;
    a.up(c.id()).await;
    c.up(a.id()).await;
    a.want(&[&c]).await;
    assert!(a.down(b.id()).await.contains("no longer wanted"));
    b.down(a.id()).await;
    a.send(c.id(), beat(1)).await.unwrap();
    let got = c.hear_at(Desk::Discovery, 1).await;
    assert_eq!(numbers(&got), [1]);
    assert!(c.events.try_recv().is_err(), "c was disturbed");
}

#[actix_rt::test]
async fn registering_anew_closes_and_reopens_the_sessions() {
    let (mut a, mut b) = pair().await;
    a.register(11, 7).await;
    assert!(a.down(b.id()).await.contains("registered anew"));
    a.up(b.id()).await;
    b.down(a.id()).await;
    assert_eq!(b.up(a.id()).await, Incarnation(11));
    a.send(b.id(), beat(1)).await.unwrap();
    let (_, inbound) = b.hear().await;
    assert_eq!(inbound.incarnation, Incarnation(11));
}

#[actix_rt::test]
async fn a_restarted_transport_is_never_refused_and_reopens() {
    let (mut a, mut b) = pair().await;
    b.reborn.recv().await.unwrap();
    a.want(&[]).await;
    a.down(b.id()).await;
    b.down(a.id()).await;
    // b wants a; a's transport fails and begins anew.
    b.want(&[&a]).await;
    a.up(b.id()).await;
    b.up(a.id()).await;
    a.reborn.recv().await.unwrap();
    a.restart.send(()).unwrap();
    a.reborn.recv().await.unwrap();
    b.down(a.id()).await;
    // Not registered yet: it says so, and refuses nothing at the port.
    match b.dial_failed().await {
        DialOutcome::Turned(why) => assert!(why.contains("not registered"), "{why}"),
        outcome => panic!("{outcome:?}"),
    }
    a.register(10, 7).await;
    b.up(a.id()).await;
    a.up(b.id()).await;
    b.send(a.id(), beat(7)).await.unwrap();
    assert_eq!(numbers(&a.hear_at(Desk::Discovery, 1).await), [7]);
}

#[actix_rt::test]
async fn what_a_dial_of_an_earlier_life_found_is_not_taken_for_anothers() {
    tokio::time::pause();
    let memory = MemoryNetwork::default();
    memory.set_silent("nowhere:1", true);
    let plan = |id, listen| {
        let mut plan = Plan::new(id);
        plan.listen = listen;
        plan.memory = Some(memory.clone());
        plan
    };
    let (mut a, b) = (plan(1, "a:1").start().await, plan(2, "b:1").start().await);
    let mut nowhere = b.spec();
    nowhere.address = "nowhere:1".to_owned();
    a.transport.send(Peers(vec![nowhere])).await.unwrap();
    // The new life dials before the old one's dial has come to its end.
    a.restart.send(()).unwrap();
    a.transport.do_send(Incarnated {
        incarnation: Incarnation(10),
        generation: Generation(7),
    });
    a.transport.do_send(Peers(vec![b.spec()]));
    match a.event().await {
        SessionEvent::Up { peer, .. } => assert_eq!(peer.id, b.id()),
        event => panic!("{event:?}"),
    }
}

#[actix_rt::test]
async fn a_fresh_actor_on_the_same_listener_takes_over_the_port() {
    let (mut a, b) = pair().await;
    b.life.abort();
    a.down(b.id()).await;
    // Nobody answers, yet nothing is refused: the dial waits in the queue of the port.
    let successor = TransportActor::new(b.seed.clone()).start();
    let registered = Incarnated {
        incarnation: Incarnation(20),
        generation: Generation(7),
    };
    successor.send(registered).await.unwrap();
    let failed = a
        .until(|event| match event {
            SessionEvent::Up { .. } => Some(None),
            SessionEvent::DialFailed { outcome, .. } => Some(Some(outcome)),
            _ => None,
        })
        .await;
    assert_ne!(failed, Some(DialOutcome::Refused));
    if failed.is_some() {
        a.up(b.id()).await;
    }
}

#[actix_rt::test]
async fn a_frame_above_the_cap_closes_only_its_own_session() {
    let (mut a, mut b) = pair().await;
    let mut raw = Raw::open(&a, 9).await;
    a.up(NodeId(9)).await;
    raw.stream
        .write_all(&(64u32 << 20).to_be_bytes())
        .await
        .unwrap();
    assert!(a.down(NodeId(9)).await.contains("larger than"));
    raw.closed().await;
    b.send(a.id(), beat(3)).await.unwrap();
    assert_eq!(numbers(&a.hear_at(Desk::Discovery, 1).await), [3]);
    assert!(b.events.try_recv().is_err());
}

#[actix_rt::test]
async fn a_body_that_cannot_be_read_closes_the_session() {
    let mut a = Plan::new(1).start().await;
    let mut raw = Raw::open(&a, 9).await;
    a.up(NodeId(9)).await;
    let mut frame = frame::encode(&Header::default(), &beat(1).into(), 1000)
        .unwrap()
        .to_vec();
    let length = u32::try_from(frame.len() - 4 - 3).unwrap();
    frame.truncate(frame.len() - 3);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    raw.stream.write_all(&frame).await.unwrap();
    assert!(a.down(NodeId(9)).await.contains("cannot be read"));
}

#[actix_rt::test]
async fn a_stuck_desk_holds_up_nobody_else_and_breaks_its_session_in_the_end() {
    tokio::time::pause();
    let memory = MemoryNetwork::default();
    let plan = |id, listen, stuck| {
        let mut plan = Plan::new(id);
        plan.listen = listen;
        plan.memory = Some(memory.clone());
        plan.stuck = stuck;
        plan
    };
    let mut a = plan(1, "a:1", None).start().await;
    let mut b = plan(2, "b:1", Some(Desk::Worker)).start().await;
    a.want(&[&b]).await;
    a.up(b.id()).await;
    b.up(a.id()).await;
    a.send(b.id(), bulk(0, 10)).await.unwrap();
    b.hear_at(Desk::Worker, 1).await;
    a.send(b.id(), bulk(1, 10)).await.unwrap();
    a.send(b.id(), beat(1)).await.unwrap();
    assert_eq!(numbers(&b.hear_at(Desk::Discovery, 1).await), [1]);
    // Its lane fills; then the reader pauses, and after a while the session breaks.
    let mut n = 2;
    let why = loop {
        a.send(b.id(), bulk(n, 200_000)).await.ok();
        n += 1;
        tokio::task::yield_now().await;
        if n > 300 {
            break b.down(a.id()).await;
        }
    };
    assert!(why.contains("Worker desk took nothing"), "{why}");
    a.up(b.id()).await;
}

#[actix_rt::test]
async fn a_silent_session_is_broken_after_the_idle_timeout() {
    tokio::time::pause();
    let memory = MemoryNetwork::default();
    let plan = |id, listen| {
        let mut plan = Plan::new(id);
        plan.listen = listen;
        plan.memory = Some(memory.clone());
        plan
    };
    let (mut a, b) = (plan(1, "a:1").start().await, plan(2, "b:1").start().await);
    a.want(&[&b]).await;
    a.up(b.id()).await;
    memory.set_silent("b:1", true);
    assert!(a.down(b.id()).await.contains("no byte"));
    assert!(matches!(a.dial_failed().await, DialOutcome::Silent(_)));
    memory.set_silent("b:1", false);
    a.up(b.id()).await;
}

// ---- handshakes ----

#[actix_rt::test]
async fn nodes_that_do_not_belong_together_are_refused_in_words() {
    type Change = fn(&mut Plan);
    let rows: [(Change, [&str; 2]); 2] = [
        (|plan| plan.cluster = "other", ["\"demo\"", "\"other\""]),
        (|plan| plan.generation = 8, ["generation 7", "knows 8"]),
    ];
    for (change, words) in rows {
        let mut a = Plan::new(1).start().await;
        let mut plan = Plan::new(2);
        change(&mut plan);
        let mut b = plan.start().await;
        a.want(&[&b]).await;
        for node in [&mut a, &mut b] {
            let why = node.refused().await;
            for word in words
                .iter()
                .chain(&["node-1", "node-2", "host-1", "host-2"])
            {
                assert!(why.contains(word), "{why}");
            }
        }
        // Tried again, it is not told again.
        assert!(matches!(a.dial_failed().await, DialOutcome::Turned(_)));
        assert!(matches!(a.dial_failed().await, DialOutcome::Turned(_)));
        assert!(b.events.try_recv().is_err());
    }
}

#[actix_rt::test]
async fn another_version_is_refused_in_words() {
    let mut a = Plan::new(1).start().await;
    let mut bytes = hello(raw_me(9));
    bytes[4..6].copy_from_slice(&(PROTOCOL_VERSION + 1).to_be_bytes());
    let (_, answer) = greet(&a, &bytes).await;
    let Greeting::Refusal(refusal) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(refusal.kind, RefusalKind::OtherVersion);
    let why = a.refused().await;
    assert_eq!(why, refusal.words);
    assert!(why.contains("version 2") && why.contains("node-1"), "{why}");
}

#[actix_rt::test]
async fn half_open_handshakes_time_out_and_do_not_pile_up() {
    let mut plan = Plan::new(1);
    plan.settings.handshake_timeout = Duration::from_millis(100);
    plan.settings.max_handshakes = 4;
    let a = plan.start().await;
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(a.own_address()).await.unwrap();
        stream.write_all(b"TRPE").await.unwrap();
        waiting.push(stream);
    }
    for mut stream in waiting {
        let closed = timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }
    Raw::open(&a, 9).await;
}

#[actix_rt::test]
async fn a_dial_tells_who_is_there() {
    let (a, b) = (Plan::new(1).start().await, Plan::new(2).start().await);
    let dial = |address: String| async { a.transport.send(Dial { address }).await.unwrap() };
    assert_eq!(
        dial(b.own_address()).await,
        DialOutcome::Answered {
            id: b.id(),
            incarnation: Incarnation(20),
            name: "node-2".to_owned(),
            host: "host-2".to_owned()
        }
    );
    let DialOutcome::Turned(why) = dial(a.own_address()).await else {
        panic!("dialled itself");
    };
    assert!(why.contains("leads back to this very node"), "{why}");
    let address = b.own_address();
    b.kill().await;
    assert_eq!(dial(address).await, DialOutcome::Refused);
    assert!(matches!(
        dial("not an address".to_owned()).await,
        DialOutcome::Silent(_)
    ));
}

#[actix_rt::test]
async fn names_and_ipv6_addresses_can_be_dialled() {
    let mut a = Plan::new(1).start().await;
    for (id, listen, host) in [
        (2, "[::1]:0", "[::1]"),
        (3, "localhost:0", "localhost"),
        (4, "[::]:0", "localhost"),
    ] {
        let mut plan = Plan::new(id);
        plan.listen = listen;
        let b = plan.start().await;
        let port = b.seed.listener.local_addr().port();
        let mut spec = b.spec();
        spec.address = format!("{host}:{port}");
        a.transport.send(Peers(vec![spec])).await.unwrap();
        a.up(b.id()).await;
    }
}

#[actix_rt::test]
async fn a_joiner_is_told_whether_it_can_be_reached_where_it_says() {
    let mut a = Plan::new(1).start().await;
    let c = Plan::new(3).start().await;
    // A port that no test is given by the kernel.
    let unused = "127.0.0.1:1".to_owned();
    let rows: [(Option<String>, &[&str]); 4] = [
        (None, &[]),
        (
            Some(c.own_address()),
            &["node-3", "host-3", "node-1", "advertise_cidr"],
        ),
        (
            Some(a.own_address()),
            &["leads back to this very node", "node-1"],
        ),
        (Some(unused), &["nothing listens", "advertise_cidr"]),
    ];
    for (n, (advertise, words)) in rows.into_iter().enumerate() {
        let mut plan = Plan::new(10 + n as u128);
        plan.advertise = advertise;
        let mut joiner = plan.start().await;
        joiner.want(&[&a]).await;
        a.up(joiner.id()).await;
        let told = joiner.dial_back().await;
        assert_eq!(told.is_some(), !words.is_empty(), "{told:?}");
        for word in words {
            assert!(
                told.as_deref().unwrap_or_default().contains(word),
                "{told:?}"
            );
        }
    }
}

#[actix_rt::test]
async fn an_address_that_leads_back_is_told_once_with_the_peer_it_was_meant_for() {
    let mut a = Plan::new(1).start().await;
    let b = Plan::new(2).start().await;
    let mut spec = b.spec();
    let address = a.own_address();
    spec.address = address.clone();
    a.transport.send(Peers(vec![spec])).await.unwrap();
    let peer = a
        .until(|event| match event {
            SessionEvent::Refused { peer, why } => {
                assert!(why.contains("leads back to this very node"), "{why}");
                assert!(why.contains(&address), "{why}");
                Some(peer)
            }
            _ => None,
        })
        .await;
    assert_eq!(peer, "node-2");
}

#[actix_rt::test]
async fn the_actor_may_live_on_another_thread_than_its_port() {
    let mut a = Plan::new(1).start().await;
    let b = Plan::new(2).start().await;
    b.life.abort();
    #[allow(
        clippy::disallowed_methods,
        reason = "the test decides which thread runs what"
    )]
    let arbiter = actix::Arbiter::new();
    let seed = b.seed.clone();
    let handle = arbiter.handle();
    let elsewhere = TransportActor::start_in_arbiter(&handle, |_| TransportActor::new(seed));
    let registered = Incarnated {
        incarnation: Incarnation(20),
        generation: Generation(7),
    };
    elsewhere.send(registered).await.unwrap();
    a.want(&[&b]).await;
    a.up(b.id()).await;
    let (to, message) = (a.id(), beat(5).into());
    let sent = elsewhere.send(Send { to, message }).await.unwrap();
    assert_eq!(sent, Ok(()));
    assert_eq!(numbers(&a.hear_at(Desk::Discovery, 1).await), [5]);
    arbiter.stop();
    a.down(b.id()).await;
}

#[actix_rt::test]
async fn a_large_api_request_passes_in_one_piece() {
    let (a, mut b) = pair().await;
    let request = ApiRequest {
        nonce: 1,
        method: "POST".to_owned(),
        path: "/v1/tasks".to_owned(),
        body: vec![7; 900_000].into(),
        by: String::new(),
    };
    a.send(b.id(), request.clone()).await.unwrap();
    assert_eq!(b.hear_at(Desk::Admin, 1).await, [request.into()]);
}

// ---- with a secret ----

fn tls(secret: u8, cluster: &str, id: u128) -> Arc<Tls> {
    let secrets = vec![Secret::new([secret; 32])];
    Arc::new(Tls::new(Credentials::Secrets(secrets), cluster, NodeId(id)).unwrap())
}

fn with_secret(id: u128, secret: u8) -> Plan {
    Plan {
        secret: Some(secret),
        ..Plan::new(id)
    }
}

/// Somebody who has the cluster's secret and speaks TLS, and says what a test wants.
struct Member(Stream);

impl Member {
    /// With a certificate for this life.
    async fn call(node: &Node, id: u128, incarnation: i64) -> Self {
        let tls = tls(1, "demo", id);
        tls.set_incarnation(Incarnation(incarnation));
        let network = TlsNetwork::new(Arc::new(TcpNetwork), tls);
        Self(network.dial(&node.own_address(), PATIENCE).await.unwrap())
    }

    /// What is answered to this hello; without a binding of its own, it carries that of this session.
    async fn say(&mut self, me: Me, binding: Option<Vec<u8>>) -> Greeting {
        let own = self.0.proof.as_ref().unwrap().binding(Side::Dialler);
        let mut hello = me.hello(Purpose::Session, None);
        hello.extension = binding.unwrap_or(own);
        let hello = Greeting::Hello(hello).encode().unwrap();
        self.0.writer.write_all(&hello).await.unwrap();
        self.0.writer.flush().await.unwrap();
        let mut prefix = [0; handshake::PREFIX];
        self.0.reader.read_exact(&mut prefix).await.unwrap();
        let prefix = Prefix::parse(prefix).unwrap();
        let mut body = vec![0; prefix.body_length()];
        self.0.reader.read_exact(&mut body).await.unwrap();
        prefix.read(&body).unwrap()
    }
}

fn refusals(node: &Node, reason: Reason) -> u64 {
    let all = node.seed.refusals.all();
    all.get(&reason).copied().unwrap_or(0)
}

#[actix_rt::test]
async fn nodes_of_one_secret_meet_and_those_of_another_are_refused_and_counted() {
    let mut a = with_secret(1, 1).start().await;
    let mut b = with_secret(2, 1).start().await;
    a.want(&[&b]).await;
    assert_eq!(a.up(b.id()).await, Incarnation(20));
    assert_eq!(b.up(a.id()).await, Incarnation(10));
    a.send(b.id(), beat(1)).await.unwrap();
    b.hear_at(Desk::Discovery, 1).await;
    let mut c = with_secret(3, 2).start().await;
    c.want(&[&a]).await;
    let DialOutcome::Turned(why) = c.dial_failed().await else {
        panic!("it was answered");
    };
    assert!(why.contains("another secret"), "{why}");
    assert!(refusals(&c, Reason::OtherSecret) > 0);
    let mut plain = Plan::new(4).start().await;
    plain.want(&[&a]).await;
    plain.dial_failed().await;
    assert!(refusals(&a, Reason::NoTls) > 0);
}

#[actix_rt::test]
async fn a_certificate_lets_in_whom_it_names_in_this_session_and_nobody_else() {
    let mut a = with_secret(1, 1).start().await;
    let mut fits = Member::call(&a, 9, 5).await;
    let welcome = fits.say(raw_me(9), None).await;
    assert!(matches!(welcome, Greeting::Welcome(_)), "{welcome:?}");
    let binding = fits.0.proof.as_ref().unwrap().binding(Side::Dialler);
    let told = |greeting| match greeting {
        Greeting::Refusal(refusal) => (refusal.kind, refusal.words),
        other => panic!("{other:?}"),
    };
    let other_id = Member::call(&a, 8, 5).await.say(raw_me(9), None).await;
    let (kind, words) = told(other_id);
    assert_eq!(kind, RefusalKind::Unproven);
    assert!(words.contains("troupe://demo/node/"), "{words}");
    let other_life = Member::call(&a, 9, 2).await.say(raw_me(9), None).await;
    assert_eq!(told(other_life).0, RefusalKind::Unproven);
    assert_eq!(refusals(&a, Reason::Impostor), 2);
    let mut replaying = Member::call(&a, 9, 5).await;
    let (kind, words) = told(replaying.say(raw_me(9), Some(binding)).await);
    assert_eq!(kind, RefusalKind::Unproven);
    assert!(words.contains("not made for this session"), "{words}");
    assert_eq!(refusals(&a, Reason::Unbound), 1);
    assert!(a.refused().await.contains("its certificate is for"));
}

#[actix_rt::test]
async fn registering_anew_gives_a_certificate_of_the_new_life() {
    let mut a = with_secret(1, 1).start().await;
    let mut b = with_secret(2, 1).start().await;
    a.want(&[&b]).await;
    b.up(a.id()).await;
    a.register(11, 7).await;
    assert_eq!(b.up(a.id()).await, Incarnation(11));
    a.up(b.id()).await;
}

#[actix_rt::test]
async fn one_address_that_says_nothing_does_not_keep_another_out() {
    let mut plan = with_secret(1, 1);
    plan.settings.max_handshakes = 4;
    plan.settings.max_handshakes_per_address = 2;
    let mut a = plan.start().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.66:0".parse().unwrap()).unwrap();
        let address = a.own_address().parse().unwrap();
        silent.push(socket.connect(address).await.unwrap());
    }
    let b = with_secret(2, 1).start().await;
    b.want(&[&a]).await;
    a.up(b.id()).await;
    assert!(refusals(&a, Reason::Crowded) >= 16);
}
