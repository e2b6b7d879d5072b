//! One simulated machine that runs a whole node: the actors, cores, supervisor and registry client of production, wired as
//! in `src/node.rs` but for what cannot be simulated: one thread instead of arbiters, no admin API (its messages are sent
//! straight to the actors), no watchdog thread.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use rand::RngExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};
use troupe_actors::chance;
use troupe_actors::cluster::{ClusterChanged, Fence, Identity, Registration};
use troupe_actors::discovery::actor::{
    DiscoveryActor, DiscoverySeed, MasterPorts, RegistryPorts, TransportPorts,
};
use troupe_actors::discovery::{DiscoverySettings, Retire, StepDown};
use troupe_actors::id::{NodeId, TaskId};
use troupe_actors::job::{Job, JobContext, JobError, Jobs};
use troupe_actors::master::actor::{JournalSeed, MasterActor, MasterSeed};
use troupe_actors::master::{
    CancelTask, ChangeError, GeneratorSettings, GetTask, MasterPulse, MasterSettings, RetryTask,
    Submission, Submit, SubmitError, TaskView,
};
use troupe_actors::registry::actor::{Deregister, RegistryActor, RegistrySeed};
use troupe_actors::registry::etcd::EtcdBackend;
use troupe_actors::registry::session::Keys;
use troupe_actors::registry::{RegistrySettings, Timeouts};
use troupe_actors::supervisor::{
    ChildSpec, Kill, LocalSpawner, Plane, SupervisionSettings, Supervisor, SupervisorHandle,
    mailbox,
};
use troupe_actors::transport::actor::{TransportActor, TransportSeed};
use troupe_actors::transport::{Desks, Inbound};
use troupe_actors::wire::PROTOCOL_VERSION;
use troupe_actors::worker::actor::{WorkerActor, WorkerSeed};
use troupe_actors::worker::{DrainWorker, WorkerSettings};

use crate::net::{self, SimNetwork};
use crate::stage::{Ask, Order, Shared, note, wall_ms};

pub const PORT: u16 = 22222;
/// Above every process id there can be, so that nobody asks the machine that runs the simulation.
const FIRST_PID: u32 = 5_000_000;
const MAILBOX: usize = 1024;

/// The input of a task that always succeeds, and how long it takes.
pub const PROBE: &str = "1000";
pub const PROBE_TAKES: Duration = Duration::from_secs(1);

/// The input of a task that cannot but fail, with one attempt: it is dead at once.
pub const DOOMED: &str = "13";

/// What all nodes of a run have in common.
#[derive(Clone, Debug)]
pub struct Make {
    pub capacity: u32,
    pub ttl: Duration,
    pub relist: Duration,
    pub generator: Option<Duration>,
    pub longest_job: Duration,
}

/// Told of each picture, for the checks at the end.
struct Witness {
    node: String,
    stage: Shared,
}

impl Actor for Witness {
    type Context = Context<Self>;
}

impl Handler<ClusterChanged> for Witness {
    type Result = ();
    fn handle(&mut self, changed: ClusterChanged, _: &mut Context<Self>) {
        let mut stage = self.stage.borrow_mut();
        if let Some(seat) = stage.seats.get_mut(&self.node) {
            seat.picture = Some(changed.0);
        }
    }
}

/// Stands for the admin API's desk: nothing is carried there.
struct Nowhere;

impl Actor for Nowhere {
    type Context = Context<Self>;
}

impl Handler<Inbound> for Nowhere {
    type Result = ();
    fn handle(&mut self, _: Inbound, _: &mut Context<Self>) {}
}

/// Takes its time by chance; now and then it fails.
struct SimJob {
    longest: Duration,
}

impl Job for SimJob {
    fn name(&self) -> &'static str {
        "multiply"
    }

    fn run(&self, input: Bytes, _: JobContext) -> BoxFuture<'static, Result<Bytes, JobError>> {
        if input == PROBE {
            return Box::pin(async move {
                sleep(PROBE_TAKES).await;
                Ok(input)
            });
        }
        if input == DOOMED {
            return Box::pin(async { Err(JobError::Retry("always".to_owned())) });
        }
        let longest = self.longest.as_millis() as u64;
        Box::pin(async move {
            let (wait, fate) = {
                let mut rng = chance::rng();
                (rng.random_range(1..=longest), rng.random_range(0..20))
            };
            sleep(Duration::from_millis(wait)).await;
            match fate {
                0 => Err(JobError::Retry("by chance".to_owned())),
                1 => Err(JobError::Failed("by chance".to_owned())),
                _ => Ok(input),
            }
        })
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

struct Node {
    stage: Shared,
    supervisor: SupervisorHandle,
    registry: Addr<RegistryActor>,
    discovery: Addr<DiscoveryActor>,
    worker: Addr<WorkerActor>,
    master: Addr<MasterActor>,
}

/// The process: until the machine is switched off. It never returns, since what it left running would go on.
pub async fn run(name: String, make: Make, stage: Shared) -> turmoil::Result {
    let life = stage.borrow_mut().enter(&name);
    let listener = net::listen(PORT).await?;
    let mut rng = chance::rng();
    let id = NodeId::random(&mut rng);
    let identity = Identity {
        cluster: "sim".to_owned(),
        id,
        name: Arc::new(Mutex::new(name.clone())),
        address: format!("{name}:{PORT}"),
    };
    let registration = Registration {
        id,
        name: name.clone(),
        ip: name.clone(),
        port: PORT,
        admin: format!("{name}:22223"),
        host: name.clone(),
        boot: format!("boot-of-{name}"),
        pid: FIRST_PID + life,
        version: "simulated".to_owned(),
        protocol: PROTOCOL_VERSION,
        weight: rng.random_range(0..3),
        // One can always lead.
        eligible: name == "n1" || rng.random_bool(0.85),
        roles: vec!["worker".to_owned()],
        jobs: vec!["multiply".to_owned()],
        capacity: make.capacity,
        tags: Default::default(),
        started_at: wall_ms(),
        insecure: false,
    };
    let (registration_weight, may_lead) = (registration.weight, registration.eligible);
    let (orders, given) = unbounded_channel();
    let (end, ends) = unbounded_channel();
    {
        let mut stage = stage.borrow_mut();
        let seat = stage.seats.entry(name.clone()).or_default();
        seat.id = id;
        seat.orders = Some(orders);
    }
    note(&stage, "sim.started", &[("id", id.to_string())]);
    let connect = || {
        EtcdBackend::with_dial(
            vec![format!("http://{}", net::REGISTRY)],
            Timeouts::default(),
            net::dial_registry(&name),
        )
    };
    let (backend, journal) = (connect()?, connect()?);
    let keys = Keys::new(&identity.cluster);

    let (registry, registry_box) = mailbox::<RegistryActor>(MAILBOX);
    let (transport, transport_box) = mailbox::<TransportActor>(MAILBOX);
    let (discovery, discovery_box) = mailbox::<DiscoveryActor>(MAILBOX);
    let (worker, worker_box) = mailbox::<WorkerActor>(MAILBOX);
    let (master, master_box) = mailbox::<MasterActor>(MAILBOX);
    let witness = Witness {
        node: name.clone(),
        stage: stage.clone(),
    }
    .start();
    let (fence, pulse) = (Fence::default(), MasterPulse::default());
    let registry_seed = RegistrySeed {
        backend: Arc::new(backend),
        settings: RegistrySettings {
            endpoints: vec![format!("http://{}", net::REGISTRY)],
            ttl: make.ttl,
            renew: make.ttl / 2,
            relist: make.relist,
            ..RegistrySettings::default()
        },
        identity: identity.clone(),
        registration,
        name_is_configured: true,
        discovery: discovery.clone().recipient(),
        dial: transport.clone().recipient(),
        fatal: ending(&end, "fatal"),
    };
    let mut transport_seed = TransportSeed::new(
        identity.clone(),
        name.clone(),
        fence.clone(),
        Desks {
            discovery: discovery.clone().recipient(),
            master: master.clone().recipient(),
            worker: worker.clone().recipient(),
            admin: Nowhere.start().recipient(),
            events: vec![discovery.clone().recipient(), worker.clone().recipient()],
        },
        listener,
        discovery.clone().recipient(),
        discovery.clone().recipient(),
    );
    transport_seed.network = Arc::new(SimNetwork { me: name.clone() });
    let discovery_seed = DiscoverySeed {
        settings: DiscoverySettings {
            weight: registration_weight,
            eligible: may_lead,
            ..DiscoverySettings::default()
        },
        identity: identity.clone(),
        fence: fence.clone(),
        registry: RegistryPorts {
            claim: registry.clone().recipient(),
            condemn: registry.clone().recipient(),
            challenge: registry.clone().recipient(),
            resign: registry.clone().recipient(),
            relist: registry.clone().recipient(),
            resend: registry.clone().recipient(),
        },
        transport: TransportPorts {
            peers: transport.clone().recipient(),
            incarnated: transport.clone().recipient(),
            send: transport.clone().recipient(),
            broadcast: transport.clone().recipient(),
            dial: transport.clone().recipient(),
            sessions: transport.clone().recipient(),
        },
        master: MasterPorts {
            lead: master.clone().recipient(),
            stand_down: master.clone().recipient(),
            hand_over: master.clone().recipient(),
            pulse: pulse.clone(),
        },
        cluster: vec![
            master.clone().recipient(),
            worker.clone().recipient(),
            witness.recipient(),
        ],
        removed: vec![master.clone().recipient()],
        leaving: Arc::new(AtomicBool::new(false)),
        hung: ending(&end, "hung"),
    };
    let worker_seed = WorkerSeed {
        settings: WorkerSettings {
            capacity: make.capacity,
            ..WorkerSettings::default()
        },
        identity: identity.clone(),
        fence: fence.clone(),
        transport: transport.clone().recipient(),
        epochs: discovery.clone().recipient(),
        reborn: discovery.clone().recipient(),
        jobs: Jobs::default().with(SimJob {
            longest: make.longest_job,
        }),
    };
    let master_seed = MasterSeed {
        journal: JournalSeed {
            backend: Arc::new(journal),
            prefix: keys.journal(),
            master_key: keys.master(),
        },
        settings: MasterSettings::default(),
        generator: GeneratorSettings {
            enabled: make.generator.is_some(),
            every: make.generator.unwrap_or(Duration::from_secs(10)),
            ..GeneratorSettings::default()
        },
        identity: identity.clone(),
        fence,
        transport: transport.clone().recipient(),
        discovery: discovery.clone().recipient(),
        epochs: discovery.clone().recipient(),
        pulse,
    };

    let gave_up = ending(&end, "gave up");
    let supervisor = Supervisor::new(SupervisionSettings::default())
        .seed(rng.random())
        .child(ChildSpec::new(
            "registry",
            Plane::Control,
            registry_box,
            move || RegistryActor::new(registry_seed.clone()),
        ))
        .child(ChildSpec::new(
            "transport",
            Plane::Transport,
            transport_box,
            move || TransportActor::new(transport_seed.clone()),
        ))
        .child(ChildSpec::new(
            "discovery",
            Plane::Control,
            discovery_box,
            move || DiscoveryActor::new(discovery_seed.clone()),
        ))
        .child(ChildSpec::new(
            "worker",
            Plane::Tasks,
            worker_box,
            move || WorkerActor::new(worker_seed.clone()),
        ))
        .child(ChildSpec::new(
            "master",
            Plane::Tasks,
            master_box,
            move || MasterActor::new(master_seed.clone()).seeded(chance::rng().random()),
        ))
        .start(Arc::new(LocalSpawner), move |why| gave_up(why.to_string()));
    let node = Node {
        stage,
        supervisor,
        registry,
        discovery,
        worker,
        master,
    };
    node.obey(name, given, ends).await
}

fn ending(end: &UnboundedSender<String>, how: &'static str) -> Arc<dyn Fn(String) + Send + Sync> {
    let end = end.clone();
    // Nobody listens any more: the process is ending already.
    Arc::new(move |why| drop(end.send(format!("{how}: {why}"))))
}

impl Node {
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
                        self.leave().await;
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
                self.supervisor.kill(&kill).ok();
            }
            Order::StepDown => self.discovery.do_send(StepDown {
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
        let (master, stage) = (self.master.clone(), self.stage.clone());
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
        let (master, stage) = (self.master.clone(), self.stage.clone());
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
        let (master, stage) = (self.master.clone(), self.stage.clone());
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

    /// As `src/node.rs` does on SIGTERM.
    async fn leave(&self) {
        const STEP: Duration = Duration::from_secs(5);
        let within = Duration::from_secs(10);
        timeout(STEP, self.discovery.send(Retire)).await.ok();
        timeout(within + STEP, self.worker.send(DrainWorker { within }))
            .await
            .ok();
        timeout(STEP, self.registry.send(Deregister)).await.ok();
        timeout(STEP, self.supervisor.shutdown()).await.ok();
    }
}
