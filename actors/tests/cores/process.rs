//! One process: a whole node on a runtime of its own, whose clock the world moves on. So it can be stopped, be slow or fast,
//! and be ended at any moment, and no other node's timers know of it.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler};
use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};
use troupe_actors::cluster::ClusterChanged;
use troupe_actors::discovery::StepDown;
use troupe_actors::id::TaskId;
use troupe_actors::master::{GetTask, Submission, Submit};
use troupe_actors::registry::Timeouts;
use troupe_actors::supervisor::{How, Kill};
use troupe_actors::testkit::machine::{Machine, Make};
use troupe_actors::testkit::node::Node;

use crate::hub::{EPOCH_SECONDS, hub, say};
use crate::net::{Wire, listen};
use crate::registry::Remote;

/// What the world asks of a node.
#[derive(Clone, Debug)]
pub enum Order {
    /// Hand this task in: its id, its input, whether it is durable.
    Submit(TaskId, String, bool),
    /// Look up this task; answered by `sim.task`.
    Look(TaskId),
    /// Break an actor.
    Kill(&'static str, How),
    /// Give up mastership.
    StepDown,
    /// Leave as on SIGTERM.
    Drain,
}

/// See the module page.
pub struct Process {
    runtime: Runtime,
    local: LocalSet,
    node: usize,
    origin: Instant,
    /// How far it has come, by its own clock, which has whole milliseconds.
    at_ms: u64,
    /// It is stopped, and its clock goes on.
    stopped: bool,
}

impl Process {
    /// A process begins on this machine.
    pub fn start(node: usize, make: &Make) -> Self {
        let (runtime, local) = runtime();
        hub(|hub| {
            let now = hub.now;
            let machine = &mut hub.machines[node];
            machine.life += 1;
            machine.up = true;
            machine.dark = false;
            machine.picture = None;
            machine.ended = None;
            machine.clock.global = now;
            machine.clock.local = Duration::ZERO;
            hub.running = Some(node);
        });
        let make = make.clone();
        let origin = local.block_on(&runtime, async move {
            let origin = Instant::now();
            hub(|hub| hub.machines[node].origin = Some(origin));
            begin(node, &make);
            origin
        });
        hub(|hub| hub.running = None);
        Self {
            runtime,
            local,
            node,
            origin,
            at_ms: 0,
            stopped: false,
        }
    }

    /// Lets it live until `global`, unless it is stopped.
    pub fn run_to(&mut self, global: Duration) {
        let target = hub(|hub| hub.machines[self.node].clock.local_at(global));
        let target = target.as_millis() as u64;
        if self.stopped || target <= self.at_ms {
            return;
        }
        hub(|hub| hub.running = Some(self.node));
        let then = self.origin + Duration::from_millis(target);
        let life = async { sleep_until(then).await };
        self.local.block_on(&self.runtime, life);
        hub(|hub| hub.running = None);
        self.at_ms = target;
    }

    /// SIGSTOP, or a machine that gives it no turn.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// It goes on. When its machine went on meanwhile, all its timers are late now; when the machine itself stood still, so
    /// did its clock.
    pub fn go_on(&mut self, now: Duration, clock_stood: bool) {
        if !std::mem::take(&mut self.stopped) {
            return;
        }
        if clock_stood {
            let at = Duration::from_millis(self.at_ms);
            hub(|hub| {
                let clock = &mut hub.machines[self.node].clock;
                clock.global = now;
                clock.local = at;
            });
            return;
        }
        let target = hub(|hub| hub.machines[self.node].clock.local_at(now));
        let target = target.as_millis() as u64;
        let late = Duration::from_millis(target.saturating_sub(self.at_ms));
        if !late.is_zero() {
            hub(|hub| hub.running = Some(self.node));
            let jump = async { tokio::time::advance(late).await };
            self.local.block_on(&self.runtime, jump);
            hub(|hub| hub.running = None);
            self.at_ms = target;
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Ends at once; what it says meanwhile is not heard.
    pub fn kill(self) {
        let (node, life) = hub(|hub| {
            hub.mute = true;
            let machine = &mut hub.machines[self.node];
            machine.up = false;
            machine.orders = None;
            machine.listens = None;
            (self.node, machine.life)
        });
        drop(self.local);
        drop(self.runtime);
        hub(|hub| {
            hub.close_all(node, life);
            hub.mute = false;
        });
    }
}

fn runtime() -> (Runtime, LocalSet) {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets");
    (runtime, LocalSet::new())
}

/// Told of each picture, for the checks at the end.
struct Watcher(usize);

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<ClusterChanged> for Watcher {
    type Result = ();
    fn handle(&mut self, changed: ClusterChanged, _: &mut Context<Self>) {
        hub(|hub| hub.machines[self.0].picture = Some(changed.0));
    }
}

fn begin(me: usize, make: &Make) {
    let (name, life) = hub(|hub| (hub.machines[me].name.clone(), hub.machines[me].life));
    let (orders, given) = unbounded_channel();
    let (end, ends) = unbounded_channel::<String>();
    let remote = || {
        Arc::new(Remote {
            me,
            timeouts: Timeouts::default(),
        })
    };
    let wiring = make.on(Machine {
        name,
        life,
        started_at: EPOCH_SECONDS * 1000,
        listener: listen(me),
        network: Arc::new(Wire { me }),
        registry: remote(),
        journal: remote(),
        watcher: Watcher(me).start().recipient(),
        // Nobody listens any more: the process is ending already.
        ending: Arc::new(move |why| drop(end.send(why))),
    });
    let id = wiring.identity.id;
    hub(|hub| {
        hub.machines[me].id = id;
        hub.machines[me].orders = Some(orders);
    });
    say("sim.started", &[("id", id.to_string())]);
    tokio::task::spawn_local(obey(wiring.start(), me, given, ends));
}

async fn obey(
    node: Node,
    me: usize,
    mut orders: UnboundedReceiver<Order>,
    mut ends: UnboundedReceiver<String>,
) {
    let why = loop {
        tokio::select! {
            biased;
            why = ends.recv() => break why.unwrap_or_default(),
            order = orders.recv() => match order {
                Some(Order::Drain) => {
                    node.leave().await;
                    break "drained".to_owned();
                }
                Some(order) => carry_out(&node, order),
                None => return,
            }
        }
    };
    say("sim.ended", &[("reason", why.clone())]);
    hub(|hub| hub.machines[me].ended = Some(why));
    // Until the world has seen it.
    std::future::pending::<()>().await;
}

fn carry_out(node: &Node, order: Order) {
    match order {
        Order::Submit(id, input, durable) => submit(node, id, input, durable),
        Order::Look(id) => look(node, id),
        Order::Kill(actor, how) => {
            let kill = Kill {
                name: actor.to_owned(),
                how,
            };
            // It may be between two lives: then it is spared.
            node.supervisor.kill(&kill).ok();
        }
        Order::StepDown => node.discovery.do_send(StepDown {
            heir: None,
            why: "the simulation asked for it".to_owned(),
        }),
        Order::Drain => {}
    }
}

fn submit(node: &Node, id: TaskId, input: String, durable: bool) {
    let what = [("task", id.to_string()), ("durable", durable.to_string())];
    say("sim.submitted", &what);
    let submission = Submission {
        id: Some(id),
        job: "multiply".to_owned(),
        input: Bytes::from(input),
        meta: Default::default(),
        timeout: None,
        max_attempts: None,
        priority: 0,
        require: Default::default(),
        durable,
        not_before_ms: 0,
    };
    let master = node.master.clone();
    tokio::task::spawn_local(async move {
        let answer = match master.send(Submit(vec![submission])).await {
            Ok(answers) => answers.into_iter().next(),
            Err(_) => None,
        };
        let said = match answer {
            Some(Ok(taken)) => format!("accepted as {}", taken.state),
            Some(Err(why)) => why.to_string(),
            None => "unknown".to_owned(),
        };
        let fields = [
            ("task", id.to_string()),
            ("answer", said),
            ("durable", durable.to_string()),
        ];
        say("sim.answered", &fields);
    });
}

fn look(node: &Node, id: TaskId) {
    let master = node.master.clone();
    tokio::task::spawn_local(async move {
        let state = match master.send(GetTask(id)).await {
            Ok(Some(Some(view))) => view.state,
            Ok(Some(None)) => "not known".to_owned(),
            Ok(None) => "not master".to_owned(),
            Err(_) => "unknown".to_owned(),
        };
        say("sim.task", &[("task", id.to_string()), ("state", state)]);
    });
}
