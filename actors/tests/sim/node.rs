//! One simulated machine that runs a whole node of production ([`troupe_actors::testkit::node`]) and does what the world asks of it.

use std::sync::Arc;

use actix::{Actor, Context, Handler};
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use troupe_actors::cluster::ClusterChanged;
use troupe_actors::discovery::StepDown;
use troupe_actors::id::TaskId;
use troupe_actors::master::{
    CancelTask, ChangeError, GetTask, RetryTask, Submission, Submit, SubmitError, TaskView,
};
use troupe_actors::registry::Timeouts;
use troupe_actors::registry::etcd::EtcdBackend;
use troupe_actors::supervisor::Kill;
use troupe_actors::testkit::machine::{DOOMED, Machine, Make, PORT};
use troupe_actors::testkit::node::Node;

use crate::net::{self, SimNetwork};
use crate::stage::{Ask, Order, Shared, note, wall_ms};

/// Told of each picture, for the checks at the end.
struct Watcher {
    node: String,
    stage: Shared,
}

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<ClusterChanged> for Watcher {
    type Result = ();
    fn handle(&mut self, changed: ClusterChanged, _: &mut Context<Self>) {
        let mut stage = self.stage.borrow_mut();
        if let Some(seat) = stage.seats.get_mut(&self.node) {
            seat.picture = Some(changed.0);
        }
    }
}

/// `lost`: the mailbox let go of it.
fn returned(stage: &Shared, call: &str, answer: &str, lost: bool) {
    let what = [
        ("call", call.to_owned()),
        ("answer", answer.to_owned()),
        ("lost", lost.to_string()),
    ];
    note(stage, "sim.returned", &what);
}

/// The answer to a change, in the words of [`troupe_actors::testkit::linear::Answer`].
fn change<E>(answer: Result<Result<TaskView, ChangeError>, E>) -> (String, bool) {
    let told = match &answer {
        Ok(Ok(view)) => view.state.clone(),
        Ok(Err(ChangeError::Conflict { state, .. })) => format!("refused {state}"),
        Ok(Err(ChangeError::Missing(_))) => "refused absent".to_owned(),
        Ok(Err(ChangeError::NotMaster)) => "nothing".to_owned(),
        // What was not recorded may be recorded again.
        Ok(Err(ChangeError::NotRecorded(_) | ChangeError::Unknown)) | Err(_) => {
            "unknown".to_owned()
        }
    };
    (told, answer.is_err())
}

struct Process {
    stage: Shared,
    node: Node,
}

/// The process: until the machine is switched off. It never returns, since what it left running would go on.
pub async fn run(name: String, make: Make, stage: Shared) -> turmoil::Result {
    let life = stage.borrow_mut().enter(&name);
    let listener = net::listen(PORT).await?;
    let (orders, given) = unbounded_channel();
    let (end, ends) = unbounded_channel();
    let connect = || {
        EtcdBackend::with_dial(
            vec![format!("http://{}", net::REGISTRY)],
            Timeouts::default(),
            net::dial_registry(&name),
        )
    };
    let watcher = Watcher {
        node: name.clone(),
        stage: stage.clone(),
    };
    let wiring = make.on(Machine {
        name: name.clone(),
        life,
        started_at: wall_ms(),
        listener,
        network: Arc::new(SimNetwork { me: name.clone() }),
        registry: Arc::new(connect()?),
        journal: Arc::new(connect()?),
        watcher: watcher.start().recipient(),
        // Nobody listens any more: the process is ending already.
        ending: Arc::new(move |why| drop(end.send(why))),
    });
    let id = wiring.identity.id;
    {
        let mut stage = stage.borrow_mut();
        let seat = stage.seats.entry(name.clone()).or_default();
        seat.id = id;
        seat.orders = Some(orders);
    }
    note(&stage, "sim.started", &[("id", id.to_string())]);
    let node = wiring.start();
    Process { stage, node }.obey(name, given, ends).await
}

impl Process {
    async fn obey(
        self,
        name: String,
        mut orders: UnboundedReceiver<Order>,
        mut ends: UnboundedReceiver<String>,
    ) -> turmoil::Result {
        let why = loop {
            tokio::select! {
                biased;
                why = ends.recv() => break why.unwrap_or_default(),
                order = orders.recv() => match order {
                    Some(Order::Drain) => {
                        self.node.leave().await;
                        break "drained".to_owned();
                    }
                    Some(order) => self.carry_out(order),
                    None => break "no more orders".to_owned(),
                }
            }
        };
        note(&self.stage, "sim.ended", &[("reason", why.clone())]);
        if let Some(seat) = self.stage.borrow_mut().seats.get_mut(&name) {
            seat.ended = Some(why);
        }
        std::future::pending().await
    }

    fn carry_out(&self, order: Order) {
        match order {
            Order::Submit(id, input, durable) => {
                self.submit(format!("first-{id}"), id, input, durable)
            }
            Order::Call(n, ask, id) => self.call(n.to_string(), ask, id),
            Order::Look(id) => self.look(id),
            Order::Kill(actor, how) => {
                let kill = Kill {
                    name: actor.to_owned(),
                    how,
                };
                // It may be between two lives: then it is spared.
                self.node.supervisor.kill(&kill).ok();
            }
            Order::StepDown => self.node.discovery.do_send(StepDown {
                heir: None,
                why: "the simulation asked for it".to_owned(),
            }),
            // The witness's, or dealt with before.
            _ => {}
        }
    }

    fn submit(&self, call: String, id: TaskId, input: String, durable: bool) {
        let what = [("task", id.to_string()), ("durable", durable.to_string())];
        note(&self.stage, "sim.submitted", &what);
        if durable {
            self.called(&call, "submit", id);
        }
        let submission = Submission {
            id: Some(id),
            job: "multiply".to_owned(),
            max_attempts: (input == DOOMED).then_some(1),
            input: Bytes::from(input),
            meta: Default::default(),
            timeout: None,
            priority: 0,
            require: Default::default(),
            durable,
            not_before_ms: 0,
        };
        let (master, stage) = (self.node.master.clone(), self.stage.clone());
        tokio::task::spawn_local(async move {
            let answer = match master.send(Submit(vec![submission])).await {
                Ok(answers) => answers.into_iter().next(),
                Err(_) => None,
            };
            if durable {
                let told = match &answer {
                    Some(Ok(taken)) => taken.state,
                    Some(Err(SubmitError::Unknown)) | None => "unknown",
                    Some(Err(_)) => "nothing",
                };
                returned(&stage, &call, told, answer.is_none());
            }
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
            note(&stage, "sim.answered", &fields);
        });
    }

    fn called(&self, call: &str, asked: &str, id: TaskId) {
        let what = [
            ("call", call.to_owned()),
            ("asked", asked.to_owned()),
            ("task", id.to_string()),
        ];
        note(&self.stage, "sim.called", &what);
    }

    /// A client's call of a durable task.
    fn call(&self, call: String, ask: Ask, id: TaskId) {
        let (master, stage) = (self.node.master.clone(), self.stage.clone());
        let asked = match &ask {
            Ask::Submit(input) => return self.submit(call, id, input.clone(), true),
            Ask::Read => "read",
            Ask::Cancel => "cancel",
            Ask::Retry => "retry",
        };
        self.called(&call, asked, id);
        tokio::task::spawn_local(async move {
            let (told, lost) = match ask {
                Ask::Submit(_) | Ask::Read => match master.send(GetTask(id)).await {
                    Ok(Some(Some(view))) if view.stale => ("nothing".to_owned(), false),
                    Ok(Some(Some(view))) => (view.state, false),
                    Ok(Some(None)) => ("absent".to_owned(), false),
                    Ok(None) => ("nothing".to_owned(), false),
                    Err(_) => ("unknown".to_owned(), true),
                },
                Ask::Cancel => change(master.send(CancelTask(id)).await),
                Ask::Retry => change(master.send(RetryTask(id)).await),
            };
            returned(&stage, &call, &told, lost);
        });
    }

    fn look(&self, id: TaskId) {
        let (master, stage) = (self.node.master.clone(), self.stage.clone());
        tokio::task::spawn_local(async move {
            let state = match master.send(GetTask(id)).await {
                Ok(Some(Some(view))) => view.state,
                Ok(Some(None)) => "not known".to_owned(),
                Ok(None) => "not master".to_owned(),
                Err(_) => "unknown".to_owned(),
            };
            let fields = [("task", id.to_string()), ("state", state)];
            note(&stage, "sim.task", &fields);
        });
    }
}
