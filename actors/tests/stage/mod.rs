//! A stage for master and workers: real actors, a network and a registry in memory, and a clock that jumps.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use troupe_actors::cluster::{
    Cluster, ClusterChanged, Fence, Identity, Master, MasterRecord, Member, MemberRemoved,
    MemberState, Registration,
};
use troupe_actors::discovery::{EpochSeen, Reborn};
use troupe_actors::id::{AttemptId, Epoch, Generation, Incarnation, NodeId, TaskId};
use troupe_actors::job::multiply::Multiply;
use troupe_actors::job::noop::Noop;
use troupe_actors::job::{Job, JobContext, JobError, Jobs};
use troupe_actors::master::actor::{JournalSeed, MasterActor, MasterSeed};
use troupe_actors::master::{
    AskMaster, GeneratorSettings, GetTask, Lead, ListTasks, MasterPulse, MasterReborn,
    MasterSettings, MasterSnapshot, Submission, Submit, TaskView,
};
use troupe_actors::transport::{Heard, Inbound, Send, SendError, SessionEvent, SessionPeer};
use troupe_actors::wire::{Desk, Envelope, Header, Message};
use troupe_actors::worker::actor::{WorkerActor, WorkerSeed};
use troupe_actors::worker::{AskWorker, WorkerSettings, WorkerSnapshot};

use crate::memory::Memory;

// ---- the network ----

/// What stands for the registry, discovery and the transport of every node.
#[derive(Default)]
pub struct Net {
    pub desks: BTreeMap<NodeId, Desks>,
    /// Pairs that have no session.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes whose queues are full.
    pub full: BTreeSet<NodeId>,
    /// Kinds of message that vanish on the way.
    pub vanish: BTreeSet<&'static str>,
    pub said: Vec<(NodeId, NodeId, Message)>,
    pub reborn: usize,
}

pub struct Desks {
    pub incarnation: Incarnation,
    pub fence: Fence,
    pub master: Addr<MasterActor>,
    pub worker: Addr<WorkerActor>,
}

pub type SharedNet = Rc<RefCell<Net>>;

/// The transport of one node.
pub struct Wire {
    pub me: NodeId,
    pub net: SharedNet,
}

impl Actor for Wire {
    type Context = Context<Self>;
}

impl Handler<Send> for Wire {
    type Result = Result<(), SendError>;

    fn handle(&mut self, send: Send, _: &mut Context<Self>) -> Self::Result {
        let Send { to, message } = send;
        let mut net = self.net.borrow_mut();
        let pair = (self.me.min(to), self.me.max(to));
        let known = |id| net.desks.contains_key(id);
        if net.cut.contains(&pair) || !known(&self.me) || !known(&to) {
            return Err(SendError::NoSession);
        }
        if net.full.contains(&to) && message.desk() != Desk::Discovery {
            return Err(SendError::Full);
        }
        let body = message.encode_body(Vec::new()).unwrap();
        assert!(body.len() < 1024 * 1024, "{} is too large", message.name());
        let message = Message::decode_body(message.kind(), &body)
            .unwrap()
            .unwrap();
        net.said.push((self.me, to, message.clone()));
        if net.vanish.contains(message.name()) {
            return Ok(());
        }
        let mine = &net.desks[&self.me];
        let theirs = &net.desks[&to];
        let epoch = mine.fence.current();
        theirs.fence.raise(epoch);
        let desk = message.desk();
        let header = Header {
            epoch,
            ..Header::default()
        };
        let inbound = Inbound {
            from: self.me,
            incarnation: mine.incarnation,
            envelopes: vec![Envelope { header, message }],
        };
        match desk {
            Desk::Master => theirs.master.do_send(inbound),
            Desk::Worker => theirs.worker.do_send(inbound),
            _ => {}
        }
        Ok(())
    }
}

/// Stands for discovery.
pub struct Ear(SharedNet);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<MasterReborn> for Ear {
    type Result = ();
    fn handle(&mut self, _: MasterReborn, _: &mut Context<Self>) {
        self.0.borrow_mut().reborn += 1;
    }
}

impl Handler<EpochSeen> for Ear {
    type Result = ();
    fn handle(&mut self, _: EpochSeen, _: &mut Context<Self>) {}
}

impl Handler<Reborn> for Ear {
    type Result = ();
    fn handle(&mut self, _: Reborn, _: &mut Context<Self>) {}
}

// ---- jobs ----

/// Waits until it is released, and counts every execution.
#[derive(Clone)]
pub struct Gate {
    pub open: watch::Receiver<bool>,
    pub runs: Arc<Mutex<BTreeMap<AttemptId, u32>>>,
}

impl Job for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn run(
        &self,
        input: Bytes,
        context: JobContext,
    ) -> BoxFuture<'static, Result<Bytes, JobError>> {
        *self
            .runs
            .lock()
            .unwrap()
            .entry(context.attempt())
            .or_default() += 1;
        let mut open = self.open.clone();
        Box::pin(async move {
            open.wait_for(|open| *open).await.ok();
            Ok(input)
        })
    }
}

pub struct Panics;

impl Job for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn run(&self, _: Bytes, _: JobContext) -> BoxFuture<'static, Result<Bytes, JobError>> {
        Box::pin(async { panic!("on purpose") })
    }
}

// ---- the stage ----

pub struct Node {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub fence: Fence,
    pub master: Addr<MasterActor>,
    pub worker: Addr<WorkerActor>,
}

/// A few nodes, and the picture they are shown.
pub struct Stage {
    pub net: SharedNet,
    pub nodes: BTreeMap<u128, Node>,
    pub epoch: Epoch,
    pub leader: Option<u128>,
    pub settings: MasterSettings,
    pub generator: GeneratorSettings,
    pub capacity: u32,
    pub gate: watch::Sender<bool>,
    pub runs: Arc<Mutex<BTreeMap<AttemptId, u32>>>,
    pub next_incarnation: i64,
    pub registry: Memory,
}

impl Stage {
    /// Stops the clock.
    pub fn new() -> Self {
        tokio::time::pause();
        Self::again()
    }

    /// Another one in the same test.
    pub fn again() -> Self {
        Self {
            net: SharedNet::default(),
            nodes: BTreeMap::new(),
            epoch: Epoch {
                generation: Generation(1),
                revision: 1,
            },
            leader: None,
            settings: MasterSettings::default(),
            generator: GeneratorSettings {
                enabled: false,
                ..GeneratorSettings::default()
            },
            capacity: 4,
            gate: watch::channel(false).0,
            runs: Arc::default(),
            next_incarnation: 0,
            registry: Memory::default(),
        }
    }

    /// Nodes 1 to `n`; node 1 leads.
    pub async fn with(mut self, n: u128) -> Self {
        for node in 1..=n {
            self.join(node);
        }
        self.lead(1).await;
        self
    }

    pub fn identity(id: NodeId) -> Identity {
        Identity {
            cluster: "test".to_owned(),
            id,
            name: Arc::new(Mutex::new(name(id.0))),
            address: String::new(),
        }
    }

    pub fn master_seed(&self, id: NodeId, fence: &Fence) -> MasterSeed {
        let wire = Wire {
            me: id,
            net: Rc::clone(&self.net),
        };
        let ear = Ear(Rc::clone(&self.net)).start();
        MasterSeed {
            settings: self.settings.clone(),
            generator: self.generator.clone(),
            identity: Self::identity(id),
            fence: fence.clone(),
            transport: wire.start().recipient(),
            discovery: ear.clone().recipient(),
            epochs: ear.recipient(),
            pulse: MasterPulse::default(),
            journal: JournalSeed {
                backend: Arc::new(self.registry.clone()),
                prefix: "/test/journal/".to_owned(),
                master_key: "/test/master".to_owned(),
            },
        }
    }

    pub fn jobs(&self) -> Jobs {
        let gate = Gate {
            open: self.gate.subscribe(),
            runs: Arc::clone(&self.runs),
        };
        Jobs::default()
            .with(Multiply::new(
                Duration::from_millis(10),
                Duration::from_millis(150),
            ))
            .with(Noop)
            .with(gate)
            .with(Panics)
    }

    pub fn join(&mut self, n: u128) {
        let id = NodeId(n);
        self.next_incarnation += 1;
        let incarnation = Incarnation(self.next_incarnation);
        let fence = Fence::default();
        let wire = Wire {
            me: id,
            net: Rc::clone(&self.net),
        };
        let ear = Ear(Rc::clone(&self.net)).start();
        let worker = WorkerActor::new(WorkerSeed {
            settings: WorkerSettings {
                capacity: self.capacity,
                ..WorkerSettings::default()
            },
            identity: Self::identity(id),
            fence: fence.clone(),
            transport: wire.start().recipient(),
            epochs: ear.clone().recipient(),
            reborn: ear.recipient(),
            jobs: self.jobs(),
        })
        .start();
        let master = MasterActor::new(self.master_seed(id, &fence))
            .seeded(n as u64)
            .start();
        let node = Node {
            id,
            incarnation,
            fence: fence.clone(),
            master: master.clone(),
            worker: worker.clone(),
        };
        self.nodes.insert(n, node);
        let desks = Desks {
            incarnation,
            fence,
            master,
            worker,
        };
        self.net.borrow_mut().desks.insert(id, desks);
    }

    /// What node `me` is shown.
    pub fn picture(&self, me: u128) -> Cluster {
        let net = self.net.borrow();
        let members = self.nodes.values().map(|node| Member {
            registration: Registration {
                id: node.id,
                name: name(node.id.0),
                ip: "10.0.0.1".to_owned(),
                port: 1,
                admin: String::new(),
                host: String::new(),
                boot: String::new(),
                pid: 1,
                version: String::new(),
                protocol: 1,
                weight: 0,
                eligible: true,
                roles: vec!["worker".to_owned()],
                jobs: self.jobs().names(),
                capacity: self.capacity,
                tags: BTreeMap::from([("node".to_owned(), name(node.id.0))]),
                started_at: 0,
                insecure: false,
            },
            incarnation: node.incarnation,
            state: MemberState::Alive,
            session: {
                let (a, b) = (NodeId(me), node.id);
                !net.cut.contains(&(a.min(b), a.max(b)))
            },
            rtt: None,
            lag: Duration::ZERO,
            registry: true,
            unheard: Vec::new(),
        });
        let leader = self.leader.and_then(|n| self.nodes.get(&n));
        Cluster {
            epoch: self.epoch,
            leading: self.leader == Some(me),
            members: members.collect(),
            master: leader.map(|node| Master {
                record: MasterRecord {
                    id: node.id,
                    incarnation: node.incarnation,
                    address: String::new(),
                },
                epoch: self.epoch,
            }),
            ..Cluster::empty(NodeId(me))
        }
    }

    pub async fn publish(&self) {
        for n in self.nodes.keys() {
            self.show(*n);
        }
        settle().await;
    }

    pub fn show(&self, n: u128) {
        let picture = ClusterChanged(Arc::new(self.picture(n)));
        self.nodes[&n].master.do_send(picture.clone());
        self.nodes[&n].worker.do_send(picture);
    }

    /// Node `n` leads under the next epoch, and everybody who has a session with it knows.
    pub async fn lead(&mut self, n: u128) {
        self.epoch.revision = self.registry.seat("/test/master");
        self.leader = Some(n);
        for (other, node) in &self.nodes {
            let pair = (NodeId(n.min(*other)), NodeId(n.max(*other)));
            if !self.net.borrow().cut.contains(&pair) {
                node.fence.raise(self.epoch);
                self.show(*other);
            }
        }
        self.nodes[&n].master.do_send(Lead(self.epoch));
        settle().await;
    }

    /// As if killed: it is gone from the network and from the picture, and the verdict is told.
    pub async fn kill(&mut self, n: u128) -> Node {
        let node = self.nodes.remove(&n).unwrap();
        self.net.borrow_mut().desks.remove(&node.id);
        if self.leader == Some(n) {
            self.leader = None;
        }
        self.condemn(&node);
        self.publish().await;
        node
    }

    pub fn condemn(&self, node: &Node) {
        for other in self.nodes.values() {
            other.master.do_send(MemberRemoved {
                id: node.id,
                incarnation: node.incarnation,
                name: name(node.id.0),
                why: "a test".to_owned(),
            });
        }
    }

    /// The session between two nodes breaks.
    pub async fn cut(&self, a: u128, b: u128) {
        let pair = (NodeId(a.min(b)), NodeId(a.max(b)));
        self.net.borrow_mut().cut.insert(pair);
        for (at, other) in [(a, b), (b, a)] {
            self.nodes[&at].worker.do_send(SessionEvent::Down {
                id: NodeId(other),
                incarnation: self.nodes[&other].incarnation,
                why: "a test".to_owned(),
            });
            self.show(at);
        }
        settle().await;
    }

    pub async fn mend(&self, a: u128, b: u128) {
        let pair = (NodeId(a.min(b)), NodeId(a.max(b)));
        self.net.borrow_mut().cut.remove(&pair);
        for (at, other) in [(a, b), (b, a)] {
            self.show(at);
            self.nodes[&at].worker.do_send(SessionEvent::Up {
                peer: SessionPeer {
                    id: NodeId(other),
                    incarnation: self.nodes[&other].incarnation,
                    name: name(other),
                    address: String::new(),
                    remote: ([127, 0, 0, 1], 1).into(),
                    inbound: false,
                },
                heard: Heard::new(std::time::Instant::now()),
            });
        }
        settle().await;
    }

    // ---- asking ----

    pub fn leader(&self) -> &Node {
        &self.nodes[&self.leader.expect("somebody leads")]
    }

    pub async fn submit(&self, submissions: Vec<Submission>) -> Vec<TaskId> {
        let answers = self
            .leader()
            .master
            .send(Submit(submissions))
            .await
            .unwrap();
        let ids = answers.into_iter().map(|task| task.unwrap().id).collect();
        settle().await;
        ids
    }

    pub async fn task(&self, id: TaskId) -> TaskView {
        let task = self.leader().master.send(GetTask(id)).await.unwrap();
        task.expect("it leads").expect("the task is known")
    }

    pub async fn tasks(&self) -> Vec<TaskView> {
        let all = ListTasks {
            limit: usize::MAX,
            ..ListTasks::default()
        };
        self.leader().master.send(all).await.unwrap().unwrap()
    }

    pub async fn snapshot(&self) -> MasterSnapshot {
        self.leader().master.send(AskMaster).await.unwrap()
    }

    pub async fn count(&self, state: &str) -> u64 {
        let snapshot = self.snapshot().await;
        snapshot.tasks.get(state).copied().unwrap_or(0)
    }

    pub async fn worker(&self, n: u128) -> WorkerSnapshot {
        self.nodes[&n].worker.send(AskWorker).await.unwrap()
    }

    /// Until so many tasks are in this state; the clock jumps, so this takes no time.
    pub async fn until(&self, state: &str, n: u64) {
        for _ in 0..3000 {
            if self.count(state).await == n {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {n} {state}: {:#?}", self.snapshot().await);
    }

    /// Executors of all tasks, by their last attempt.
    pub async fn share(&self) -> BTreeMap<String, usize> {
        let mut share = BTreeMap::new();
        for task in self.tasks().await {
            let last = task.attempts.last().unwrap();
            *share.entry(last.node.clone()).or_default() += 1;
        }
        share
    }

    /// How often each task was executed.
    pub fn executions(&self) -> BTreeMap<TaskId, u32> {
        let mut executions = BTreeMap::new();
        for (attempt, n) in &*self.runs.lock().unwrap() {
            assert_eq!(*n, 1, "an attempt is started once");
            *executions.entry(attempt.task).or_default() += 1;
        }
        executions
    }

    pub fn said(&self, what: &str) -> usize {
        let net = self.net.borrow();
        net.said.iter().filter(|(_, _, m)| m.name() == what).count()
    }
}

pub fn name(n: u128) -> String {
    format!("node-{n}")
}

/// Everything that is under way arrives.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

pub fn submission(job: &str, input: &str) -> Submission {
    Submission {
        id: None,
        job: job.to_owned(),
        input: Bytes::from(input.to_owned()),
        meta: BTreeMap::new(),
        timeout: None,
        max_attempts: None,
        priority: 0,
        require: BTreeMap::new(),
        durable: false,
        not_before_ms: 0,
    }
}

pub fn gates(n: usize) -> Vec<Submission> {
    vec![submission("gate", "1"); n]
}
