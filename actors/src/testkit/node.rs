//! A whole node on one thread: the actors of production under their supervisor, wired as in `src/node.rs` but for what a
//! simulation cannot have: one thread instead of arbiters, no admin API (its messages are sent straight to the actors), no
//! watchdog thread. Network, registry and clock are the caller's.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use rand::RngExt;
use tokio::time::timeout;

use super::machine::Machine;
use crate::chance;
use crate::cluster::{Fence, Identity, Registration};
use crate::discovery::actor::{
    DiscoveryActor, DiscoverySeed, MasterPorts, RegistryPorts, TransportPorts,
};
use crate::discovery::{DiscoverySettings, Retire};
use crate::job::Jobs;
use crate::master::actor::{JournalSeed, MasterActor, MasterSeed};
use crate::master::{GeneratorSettings, MasterPulse, MasterSettings};
use crate::registry::RegistrySettings;
use crate::registry::actor::{Deregister, RegistryActor, RegistrySeed};
use crate::registry::session::Keys;
use crate::supervisor::{
    ChildSpec, LocalSpawner, Plane, SupervisionSettings, Supervisor, SupervisorHandle, mailbox,
};
use crate::transport::actor::{TransportActor, TransportSeed};
use crate::transport::{Desks, Inbound};
use crate::worker::actor::{WorkerActor, WorkerSeed};
use crate::worker::{DrainWorker, WorkerSettings};

/// As `src/node.rs` has it.
const MAILBOX: usize = 1024;
/// What each step of leaving may take, and what running attempts may.
const STEP: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(10);

/// What a node is made of.
pub struct Wiring {
    /// Who it is.
    pub identity: Identity,
    /// What it registers.
    pub registration: Registration,
    /// Where it runs.
    pub machine: Machine,
    /// Knobs of the registry's client side.
    pub registry_settings: RegistrySettings,
    /// Knobs of discovery.
    pub discovery: DiscoverySettings,
    /// Knobs of the worker.
    pub worker: WorkerSettings,
    /// Knobs of the master.
    pub master: MasterSettings,
    /// The master's own source of tasks.
    pub generator: GeneratorSettings,
    /// Limits of supervision.
    pub supervision: SupervisionSettings,
    /// Kinds of work.
    pub jobs: Jobs,
}

/// A node that runs, by its actors.
pub struct Node {
    /// The root of the tree.
    pub supervisor: SupervisorHandle,
    /// RegistryActor.
    pub registry: Addr<RegistryActor>,
    /// DiscoveryActor.
    pub discovery: Addr<DiscoveryActor>,
    /// WorkerActor.
    pub worker: Addr<WorkerActor>,
    /// MasterActor.
    pub master: Addr<MasterActor>,
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

impl Wiring {
    /// Starts the tree on the current `LocalSet`.
    pub fn start(self) -> Node {
        let keys = Keys::new(&self.identity.cluster);
        let (registry, registry_box) = mailbox::<RegistryActor>(MAILBOX);
        let (transport, transport_box) = mailbox::<TransportActor>(MAILBOX);
        let (discovery, discovery_box) = mailbox::<DiscoveryActor>(MAILBOX);
        let (worker, worker_box) = mailbox::<WorkerActor>(MAILBOX);
        let (master, master_box) = mailbox::<MasterActor>(MAILBOX);
        let (fence, pulse) = (Fence::default(), MasterPulse::default());
        let end = |how: &'static str| -> Arc<dyn Fn(String) + Send + Sync> {
            let ending = Arc::clone(&self.machine.ending);
            Arc::new(move |why| ending(format!("{how}: {why}")))
        };
        let registry_seed = RegistrySeed {
            backend: self.machine.registry,
            settings: self.registry_settings,
            identity: self.identity.clone(),
            registration: self.registration,
            name_is_configured: true,
            discovery: discovery.clone().recipient(),
            generation: Arc::default(),
            dial: transport.clone().recipient(),
            fatal: end("fatal"),
        };
        let desks = Desks {
            discovery: discovery.clone().recipient(),
            master: master.clone().recipient(),
            worker: worker.clone().recipient(),
            admin: Nowhere.start().recipient(),
            events: vec![discovery.clone().recipient(), worker.clone().recipient()],
        };
        let mut transport_seed = TransportSeed::new(
            self.identity.clone(),
            self.machine.name,
            fence.clone(),
            desks,
            self.machine.listener,
            discovery.clone().recipient(),
            discovery.clone().recipient(),
        );
        transport_seed.network = self.machine.network;
        let discovery_seed = DiscoverySeed {
            settings: self.discovery,
            identity: self.identity.clone(),
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
                self.machine.watcher,
            ],
            removed: vec![master.clone().recipient()],
            leaving: Arc::new(AtomicBool::new(false)),
            hung: end("hung"),
        };
        let worker_seed = WorkerSeed {
            settings: self.worker,
            identity: self.identity.clone(),
            fence: fence.clone(),
            transport: transport.clone().recipient(),
            epochs: discovery.clone().recipient(),
            reborn: discovery.clone().recipient(),
            jobs: self.jobs,
        };
        let master_seed = MasterSeed {
            journal: JournalSeed {
                backend: self.machine.journal,
                prefix: keys.journal(),
                master_key: keys.master(),
            },
            settings: self.master,
            generator: self.generator,
            identity: self.identity,
            fence,
            transport: transport.clone().recipient(),
            discovery: discovery.clone().recipient(),
            epochs: discovery.clone().recipient(),
            pulse,
        };
        let gave_up = {
            let ending = self.machine.ending;
            move |why: String| ending(format!("gave up: {why}"))
        };
        let supervisor = Supervisor::new(self.supervision)
            .seed(chance::rng().random())
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
        Node {
            supervisor,
            registry,
            discovery,
            worker,
            master,
        }
    }
}

impl Node {
    /// As `src/node.rs` does on SIGTERM.
    pub async fn leave(&self) {
        timeout(STEP, self.discovery.send(Retire)).await.ok();
        let drain = self.worker.send(DrainWorker { within: DRAIN });
        timeout(DRAIN + STEP, drain).await.ok();
        timeout(STEP, self.registry.send(Deregister)).await.ok();
        timeout(STEP, self.supervisor.shutdown()).await.ok();
    }
}
