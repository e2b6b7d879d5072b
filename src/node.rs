//! The wiring: which actors a node has, who holds whose address, which thread each runs on, and how the node ends.
//!
//! It wires everything and decides nothing. [`grow`] is the supervision tree in start order; stopping goes the other way
//! round.

use std::future::Future;
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::{Actor, Addr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::timeout;
use troupe_actors::admin::tls::ServerTls;
use troupe_actors::admin::{Access, ActorView, Actors, AdminActor, AdminSeed, Audit, DrainReceipt};
use troupe_actors::cluster::{Fence, Identity, Registration};
use troupe_actors::discovery::actor::{
    DiscoveryActor, DiscoverySeed, MasterPorts, RegistryPorts, TransportPorts,
};
use troupe_actors::discovery::{Retire, Retired};
use troupe_actors::events::EventLog;
use troupe_actors::id::NodeId;
use troupe_actors::job::Jobs;
use troupe_actors::job::exec::Exec;
use troupe_actors::job::multiply::Multiply;
use troupe_actors::job::noop::Noop;
use troupe_actors::master::actor::{JournalSeed, MasterActor, MasterSeed};
use troupe_actors::master::{AskMaster, MasterPulse};
use troupe_actors::registry::Backend;
use troupe_actors::registry::actor::{Deregister, RegistryActor, RegistrySeed, roll_name};
use troupe_actors::registry::embedded::{self as registry, BindError, Server};
use troupe_actors::registry::etcd::EtcdBackend;
use troupe_actors::registry::session::Keys;
use troupe_actors::supervisor::watchdog::{Watchdog, WatchdogSettings};
use troupe_actors::supervisor::{
    ActorReport, ArbiterSpawner, ChildSpec, How, Kill, Plane, Supervisor, SupervisorHandle,
    install_panic_hook, mailbox,
};
use troupe_actors::transport::actor::{TransportActor, TransportSeed};
use troupe_actors::transport::tls::{Tls, TlsNetwork};
use troupe_actors::transport::{Desks, Listener, TcpNetwork};
use troupe_actors::wire::PROTOCOL_VERSION;
use troupe_actors::worker::DrainWorker;
use troupe_actors::worker::actor::{WorkerActor, WorkerSeed};

use crate::advertise;
use crate::config::{Config, Told};
use crate::live::{Live, Ports};
use crate::logging;
use crate::security;
use crate::systemd;

/// Supervision gave up, or the master hung.
const EXIT_GAVE_UP: u8 = 70;
/// It drained, and something was lost or did not end as it should.
const EXIT_UNCLEAN: u8 = 1;
/// The configuration does not fit this machine or this cluster.
const EXIT_CONFIG: u8 = 78;
/// Where the embedded registry of a machine is.
const EMBEDDED: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2379);
/// Actors that carry the answer to an operator, and how long it may take.
const CARRIERS: [&str; 2] = ["transport", "admin"];
const CARRIER_GRACE: Duration = Duration::from_millis(50);
/// This program, also after its file was replaced, and the words that make it the guard of a command.
const EXEC_GUARD: [&str; 3] = ["/proc/self/exe", "exec-guard", "--"];
/// A step of leaving may take this long; the drain among them takes its own time besides.
const STEP: Duration = Duration::from_secs(5);
/// All four of them.
const LEAVING: Duration = Duration::from_secs(20);
/// How often a master that leaves alone looks whether its last tasks are done, and for how many looks nothing of them may run.
const LOOK: Duration = Duration::from_millis(20);
const IDLE_LOOKS: u32 = 25;
/// How long the answer with the receipt has to leave.
const RECEIPT_GRACE: Duration = Duration::from_millis(100);
/// Messages that wait for an actor before a sender is held back.
const MAILBOX: usize = 1024;

/// Runs a future on an actix system of its own.
pub fn block_on(future: impl Future<Output = u8>) -> u8 {
    actix_rt::System::new().block_on(future)
}

/// A child of `troupe dev` does not outlive it.
pub fn die_with_parent() {
    let set = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // The parent may have died before: init adopted us.
    let orphaned = rustix::process::getppid().is_none_or(|p| p.as_raw_nonzero().get() == 1);
    if set.is_err() || orphaned {
        std::process::exit(1);
    }
}

/// `troupe registry serve`.
pub fn serve_registry(
    listen: SocketAddr,
    data_dir: Option<&Path>,
    tls: Result<Option<registry::Tls>, String>,
    dev_child: bool,
) -> u8 {
    if dev_child {
        die_with_parent();
    }
    let refuse = |why: &str| {
        log::error!(target: "registry", event = "config.rejected", reason = why; "the registry cannot start");
        eprintln!("troupe registry serve: {why}");
        EXIT_CONFIG
    };
    let tls = match tls {
        Ok(None) if !listen.ip().is_loopback() => {
            return refuse(&format!(
                "--listen {listen} is not loopback: whoever reaches the registry owns the cluster, so there it needs --cert and --key (and --client-ca, unless the network keeps strangers away)"
            ));
        }
        Ok(tls) => tls,
        Err(why) => return refuse(&why),
    };
    block_on(async move {
        let server = match bind_registry(listen, data_dir).await {
            Ok(server) => server,
            Err(err) => {
                eprintln!("troupe registry serve: {err}; see --listen and --data-dir");
                return EXIT_CONFIG;
            }
        };
        let (over_tls, mutual) = (
            tls.is_some(),
            tls.as_ref()
                .is_some_and(|tls| tls.client_authority.is_some()),
        );
        let server = match tls {
            None => server,
            Some(tls) => match server.over_tls(tls) {
                Ok(server) => server,
                Err(why) => return refuse(&format!("--cert, --key, --client-ca: {why}")),
            },
        };
        if over_tls && !mutual && !listen.ip().is_loopback() {
            log::warn!(target: "registry", event = "security.open", address = listen.to_string(); "the registry asks nobody for a certificate: whoever reaches it owns the cluster; see --client-ca");
        }
        let data = data_dir.map_or("in memory".to_owned(), |dir| dir.display().to_string());
        log::info!(target: "registry", event = "registry.serving", address = server.local_addr().to_string(), tls = over_tls, client_certificates = mutual, data = data.as_str(); "the embedded registry listens");
        match server.serve(stop_signal()).await {
            Ok(()) => 0,
            Err(err) => {
                eprintln!("troupe registry serve: {err}");
                1
            }
        }
    })
}

async fn bind_registry(listen: SocketAddr, data_dir: Option<&Path>) -> Result<Server, BindError> {
    match data_dir {
        Some(dir) => Server::bind_durable(listen, dir).await,
        None => {
            let server = Server::bind(listen).await;
            server.map_err(|err| BindError::Address(listen, err))
        }
    }
}

async fn stop_signal() {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Why a node ends.
#[derive(Debug)]
enum End {
    /// It was told to: drain, exit 0.
    Asked(&'static str),
    /// Supervision gave up: drain what can be drained, exit 70.
    GaveUp(String),
    /// The master hangs: nothing can be drained, exit 70.
    Hung(String),
    /// It cannot be part of this cluster: exit 78.
    Fatal(String),
}

/// `troupe run`: until it is told to stop or cannot go on; answers the exit code.
pub fn run(config: Config, told: Told, events: EventLog, jobs: Jobs) -> u8 {
    install_panic_hook();
    let code = block_on(start(config, told, events, jobs));
    log::logger().flush();
    // Arbiters may hang for ever: nothing waits for them.
    std::process::exit(i32::from(code))
}

async fn start(config: Config, told: Told, events: EventLog, jobs: Jobs) -> u8 {
    let node = match Node::prepare(config, events, jobs).await {
        Ok(node) => node,
        Err(why) => {
            log::error!(target: "node", event = "config.rejected", reason = why.as_str(); "this node cannot start");
            eprintln!("troupe run: {why}");
            return EXIT_CONFIG;
        }
    };
    let (end, ends) = unbounded_channel();
    let live = Live::new(
        node.config.clone(),
        told,
        Arc::clone(&node.identity.name),
        node.tls.clone(),
    );
    let (open, bind) = (node.registration.insecure, node.config.node.bind);
    let grown = grow(node, &live, &end);
    actix_rt::spawn(systemd::feed_watchdog(grown.supervisor.clone()));
    let _watchdog = Watchdog::start(&grown.supervisor, WatchdogSettings::default(), |_| ());
    listen_for_signals(&end);
    listen_for_reload(&live, &end);
    if open {
        security::shout(bind);
    }
    until_the_end(grown, ends).await
}

/// Everything that is made once and outlives each actor.
struct Node {
    config: Config,
    events: EventLog,
    identity: Identity,
    registration: Registration,
    listener: Listener,
    admin: std::net::TcpListener,
    /// Who is let in there, and by which certificate it shows itself.
    access: Access,
    admin_tls: Option<Arc<ServerTls>>,
    backend: Arc<dyn Backend>,
    /// The same registry over connections of their own: the journal's bulk holds up no lease and no verdict.
    journal: Arc<dyn Backend>,
    jobs: Jobs,
    tls: Option<Arc<Tls>>,
    spawner: Arc<ArbiterSpawner>,
}

impl Node {
    async fn prepare(mut config: Config, events: EventLog, own: Jobs) -> Result<Self, String> {
        let bind = config.node.bind;
        let listener = Listener::bind(&bind.to_string())
            .await
            .map_err(|err| format!("cannot listen on {bind} (node.bind): {err}"))?;
        let admin_address = config.admin_at();
        let admin = std::net::TcpListener::bind(admin_address)
            .map_err(|err| format!("cannot listen on {admin_address} (node.admin): {err}"))?;
        let interfaces = local_ip_address::list_afinet_netifas().unwrap_or_default();
        let port = listener.local_addr().port();
        let advertised = advertise::choose(&config.node, port, &interfaces)?;
        if let Some(doubt) = &advertised.doubt {
            log::warn!(target: "node", event = "node.address_doubtful", address = advertised.host.as_str(), reason = doubt.as_str(); "others may not reach this node");
        }
        let id = NodeId::random(&mut rand::rng());
        let tls = security::tls(&config, id)?;
        if tls.is_none() {
            security::may_be_plain(&config, bind, &advertised.host)?;
        }
        let endpoints = config.registry.endpoints.clone();
        let endpoints = if endpoints.is_empty() {
            embedded_registry(config.data_dir.clone()).await?
        } else {
            endpoints
        };
        config.registry.endpoints.clone_from(&endpoints);
        let bad = |err| format!("registry.endpoints: {err}");
        let timeouts = config.registry.timeouts;
        let access = security::registry_access(&config)?;
        let connect = |endpoints| EtcdBackend::with_access(endpoints, timeouts, access.clone());
        let backend = connect(endpoints.clone()).map_err(bad)?;
        let journal = connect(endpoints).map_err(bad)?;
        let jobs = all_jobs(&config, own);
        let listens = admin.local_addr().unwrap_or(admin_address);
        let hosts = &config.admin_access.hosts;
        let names = advertise::names(&hostname(), hosts, listens, &advertised, &interfaces);
        let (access, admin_tls) = security::admin(&config, &names)?;
        let fingerprint = admin_tls.as_ref().map(|tls| tls.fingerprint());
        let fingerprint = fingerprint.unwrap_or_default();
        let admin_url = advertise::admin(listens, admin_tls.is_some(), &advertised);
        log::info!(target: "node", event = "admin.serving", address = listens.to_string(), url = admin_url.as_str(), tokens = access.operator.is_some(), fingerprint = fingerprint.as_str(); "the admin API listens");
        let registration = registration(&config, id, &advertised, admin_url, &jobs);
        let name = Arc::new(Mutex::new(registration.name.clone()));
        logging::set_node(Arc::clone(&name), &id.to_string());
        let identity = Identity {
            cluster: config.cluster.clone(),
            id,
            name,
            address: registration.address(),
        };
        Ok(Self {
            config,
            events,
            identity,
            registration,
            listener,
            admin,
            access,
            admin_tls,
            backend: Arc::new(backend),
            journal: Arc::new(journal),
            jobs,
            tls,
            spawner: Arc::new(ArbiterSpawner::new()),
        })
    }
}

/// The kinds of work this binary knows.
fn all_jobs(config: &Config, own: Jobs) -> Jobs {
    let (min, max) = (config.worker.delay_min, config.worker.delay_max);
    let mut jobs = Jobs::default().with(Multiply::new(min, max)).with(Noop);
    for (name, settings) in &config.jobs {
        let guard = EXEC_GUARD.map(str::to_owned);
        jobs = jobs.with(Exec::new(name, settings.clone(), &guard));
    }
    jobs.with_all(own)
}

fn registration(
    config: &Config,
    id: NodeId,
    advertised: &advertise::Advertised,
    admin: String,
    jobs: &Jobs,
) -> Registration {
    let file = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let roles = config.worker.enabled.then(|| "worker".to_owned());
    Registration {
        id,
        name: config.node.name.clone().unwrap_or_else(roll_name),
        ip: advertised.host.clone(),
        port: advertised.port,
        admin,
        host: hostname(),
        boot: file("/proc/sys/kernel/random/boot_id"),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
        weight: config.discovery.weight,
        eligible: config.discovery.eligible,
        roles: roles.into_iter().collect(),
        jobs: jobs.names(),
        capacity: capacity(config),
        tags: config.node.tags.clone(),
        started_at: unix_ms(),
        insecure: config.security.insecure,
    }
}

fn hostname() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().into_owned()
}

/// Attempts side by side: as configured, or twice the cores, since a waiting attempt needs none.
fn capacity(config: &Config) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match config.worker.capacity {
        0 => u32::try_from(cores * 2).unwrap_or(2),
        n => n,
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0))
}

/// The embedded registry of this machine: served by the first node, used by the others. It has a thread of its own.
async fn embedded_registry(data_dir: Option<String>) -> Result<Vec<String>, String> {
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        block_on(async move {
            let dir = data_dir.as_deref();
            match bind_registry(EMBEDDED, dir.map(Path::new)).await {
                Ok(server) => {
                    let data = dir.unwrap_or("in memory");
                    log::info!(target: "registry", event = "registry.serving", address = EMBEDDED.to_string(), data = data; "no registry is configured: this node serves the embedded one of this machine");
                    ready.send(Ok(())).ok();
                    server
                        .serve(std::future::pending::<()>())
                        .await
                        .map_or(1, |()| 0)
                }
                Err(BindError::Disk(err)) => {
                    ready.send(Err(format!("registry.data_dir: {err}"))).ok();
                    1
                }
                Err(err) => {
                    log::info!(target: "registry", event = "registry.found", address = EMBEDDED.to_string(), reason = err.to_string(); "no registry is configured: using the one that is there");
                    ready.send(Ok(())).ok();
                    0
                }
            }
        })
    });
    // Either way there is an address to try.
    is_ready.await.unwrap_or(Ok(()))?;
    Ok(vec![format!("http://{EMBEDDED}")])
}

/// A running tree, with what the end of it needs.
struct Grown {
    supervisor: SupervisorHandle,
    registry: Addr<RegistryActor>,
    discovery: Addr<DiscoveryActor>,
    worker: Addr<WorkerActor>,
    master: Addr<MasterActor>,
    live: Live,
    identity: Identity,
    /// Where the receipt of the drain is told.
    drained: watch::Sender<Option<DrainReceipt>>,
}

/// The supervision tree, in start order. All mailboxes first, so that everybody may hold everybody's address.
fn grow(node: Node, live: &Live, end: &UnboundedSender<End>) -> Grown {
    let (registry, registry_box) = mailbox::<RegistryActor>(MAILBOX);
    let (transport, transport_box) = mailbox::<TransportActor>(MAILBOX);
    let (discovery, discovery_box) = mailbox::<DiscoveryActor>(MAILBOX);
    let (worker, worker_box) = mailbox::<WorkerActor>(MAILBOX);
    let (master, master_box) = mailbox::<MasterActor>(MAILBOX);
    let (admin, admin_box) = mailbox::<AdminActor>(MAILBOX);
    let (config, identity) = (&node.config, &node.identity);
    let (fence, pulse, leaving) = (
        Fence::default(),
        MasterPulse::default(),
        Arc::new(AtomicBool::new(false)),
    );

    let registry_seed = RegistrySeed {
        backend: Arc::clone(&node.backend),
        settings: config.registry.clone(),
        identity: identity.clone(),
        registration: node.registration.clone(),
        name_is_configured: config.node.name.is_some(),
        discovery: discovery.clone().recipient(),
        generation: Arc::default(),
        dial: transport.clone().recipient(),
        fatal: ending(end, End::Fatal),
    };
    let mut transport_seed = TransportSeed::new(
        identity.clone(),
        node.registration.host.clone(),
        fence.clone(),
        Desks {
            discovery: discovery.clone().recipient(),
            master: master.clone().recipient(),
            worker: worker.clone().recipient(),
            admin: admin.clone().recipient(),
            events: vec![discovery.clone().recipient(), worker.clone().recipient()],
        },
        node.listener.clone(),
        discovery.clone().recipient(),
        discovery.clone().recipient(),
    );
    transport_seed.settings = config.transport.clone();
    // One clock stamps frames and records, so that records of cause and effect sort.
    transport_seed.clock = node.events.clock();
    if let Some(tls) = &node.tls {
        transport_seed.network = Arc::new(TlsNetwork::new(Arc::new(TcpNetwork), Arc::clone(tls)));
        transport_seed.tls = Some(Arc::clone(tls));
    }
    let refusals = transport_seed.refusals.clone();
    let discovery_seed = DiscoverySeed {
        settings: config.discovery.clone(),
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
            admin.clone().recipient(),
            systemd::Herald::default().start().recipient(),
        ],
        removed: vec![master.clone().recipient()],
        leaving,
        hung: ending(end, End::Hung),
    };
    let worker_seed = WorkerSeed {
        settings: troupe_actors::worker::WorkerSettings {
            capacity: node.registration.capacity,
            ..config.worker.clone()
        },
        identity: identity.clone(),
        fence: fence.clone(),
        transport: transport.clone().recipient(),
        epochs: discovery.clone().recipient(),
        reborn: discovery.clone().recipient(),
        jobs: node.jobs.clone(),
    };
    let keys = Keys::new(&identity.cluster);
    let master_seed = MasterSeed {
        settings: config.master.clone(),
        generator: config.generator.clone(),
        identity: identity.clone(),
        fence,
        transport: transport.clone().recipient(),
        discovery: discovery.clone().recipient(),
        epochs: discovery.clone().recipient(),
        pulse,
        journal: JournalSeed {
            backend: Arc::clone(&node.journal),
            prefix: keys.journal(),
            master_key: keys.master(),
        },
    };

    live.connect(Ports {
        registry: registry.clone(),
        discovery: discovery.clone(),
        master: master.clone(),
    });
    let tree = Arc::new(Tree::default());
    let (drained, is_drained) = watch::channel(None);
    let grown = |supervisor| Grown {
        supervisor,
        registry: registry.clone(),
        discovery: discovery.clone(),
        worker: worker.clone(),
        master: master.clone(),
        live: live.clone(),
        identity: identity.clone(),
        drained,
    };
    let admin_seed = AdminSeed {
        settings: config.admin.clone(),
        identity: identity.clone(),
        listener: Arc::new(node.admin),
        started_at: node.registration.started_at,
        started: std::time::Instant::now(),
        events: node.events,
        refusals,
        actors: Arc::clone(&tree) as Arc<dyn Actors>,
        drain: asking_to_leave(end),
        drained: is_drained,
        config: Arc::new(live.clone()),
        access: node.access,
        audit: Audit::default(),
        tls: node.admin_tls,
        ask_master: master.clone().recipient(),
        list_tasks: master.clone().recipient(),
        get_task: master.clone().recipient(),
        submit_and_wait: master.clone().recipient(),
        await_tasks: master.clone().recipient(),
        cancel_task: master.clone().recipient(),
        retry_task: master.clone().recipient(),
        submit: master.clone().recipient(),
        ask_worker: worker.clone().recipient(),
        ask_registry: registry.clone().recipient(),
        list_keys: registry.clone().recipient(),
        edit_key: registry.clone().recipient(),
        watch_keys: registry.clone().recipient(),
        step_down: discovery.clone().recipient(),
        reborn: discovery.clone().recipient(),
        send: transport.recipient(),
    };

    let gave_up = ending(end, End::GaveUp);
    let supervisor = Supervisor::new(config.supervision)
        .child(ChildSpec::new(
            "registry",
            Plane::Control,
            registry_box,
            renewed(live, registry_seed, |seed, now| {
                let said = &mut seed.registration;
                said.weight = now.discovery.weight;
                said.eligible = now.discovery.eligible;
                said.tags = now.node.tags;
                RegistryActor::new(seed.clone())
            }),
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
            renewed(live, discovery_seed, |seed, now| {
                seed.settings = now.discovery;
                DiscoveryActor::new(seed.clone())
            }),
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
            renewed(live, master_seed, |seed, now| {
                (seed.settings, seed.generator) = (now.master, now.generator);
                MasterActor::new(seed.clone())
            }),
        ))
        .child(ChildSpec::new(
            "admin",
            Plane::Admin,
            admin_box,
            move || AdminActor::new(admin_seed.clone()),
        ))
        .start(node.spawner, move |why| gave_up(why.to_string()));
    tree.0.get_or_init(|| supervisor.clone());
    grown(supervisor)
}

/// A factory whose lives begin with the settings in use then.
fn renewed<S, A>(
    live: &Live,
    mut seed: S,
    make: fn(&mut S, Config) -> A,
) -> impl FnMut() -> A + use<S, A> {
    let live = live.clone();
    move || make(&mut seed, live.config())
}

/// The supervision tree as the admin API sees it; filled once it is grown.
#[derive(Default)]
struct Tree(OnceLock<SupervisorHandle>);

impl Actors for Tree {
    fn report(&self) -> Vec<ActorView> {
        let reports = self
            .0
            .get()
            .map(SupervisorHandle::report)
            .unwrap_or_default();
        let view = |r: ActorReport| ActorView {
            name: r.name.to_owned(),
            state: r.state.to_string(),
            restarts: r.restarts,
            last_failure: r.last_failure,
            mailbox: r.mailbox,
            handled: r.handled,
            uptime_s: r.uptime.as_secs_f64(),
            busy_with: r.busy_with.map(str::to_owned),
        };
        reports.into_iter().map(view).collect()
    }

    fn trace(&self, name: &str) -> Option<String> {
        self.0.get()?.trace(name)
    }

    fn kill(&self, name: &str, how: &str) -> Result<(), String> {
        let how = match how {
            "panic" => How::Panic,
            "stop" => How::Stop,
            "hang" => How::Hang,
            other => return Err(format!("{other:?} is no way to fail: panic, stop or hang")),
        };
        let supervisor = self
            .0
            .get()
            .ok_or("the supervision tree is still growing")?;
        let kill = Kill {
            name: name.to_owned(),
            how,
        };
        if !CARRIERS.contains(&name) {
            return supervisor.kill(&kill).map_err(|err| err.to_string());
        }
        // The answer goes through this very actor: it is broken a moment later.
        let supervisor = supervisor.clone();
        actix_rt::spawn(async move {
            tokio::time::sleep(CARRIER_GRACE).await;
            if let Err(err) = supervisor.kill(&kill) {
                log::warn!(target: "node", event = "actor.not_killed", err = err.to_string(); "an actor was not broken as asked");
            }
        });
        Ok(())
    }
}

/// `drain` over the admin API is what SIGTERM is.
fn asking_to_leave(end: &UnboundedSender<End>) -> Arc<dyn Fn() + Send + Sync> {
    let end = end.clone();
    let asked = AtomicBool::new(false);
    Arc::new(move || {
        // A second one would be "stop at once".
        if !asked.swap(true, Ordering::Relaxed) {
            drop(end.send(End::Asked("an operator")));
        }
    })
}

/// Tells the main thread how the node ends.
fn ending(end: &UnboundedSender<End>, how: fn(String) -> End) -> Arc<dyn Fn(String) + Send + Sync> {
    let end = end.clone();
    // Nobody listens any more: the node is ending already.
    Arc::new(move |why| drop(end.send(how(why))))
}

fn listen_for_signals(end: &UnboundedSender<End>) {
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
    ] {
        let end = end.clone();
        let Ok(mut signals) = signal(kind) else {
            continue;
        };
        actix_rt::spawn(async move {
            while signals.recv().await.is_some() {
                drop(end.send(End::Asked(name)));
            }
        });
    }
}

/// SIGHUP reads the configuration again; when it says that the terminal is gone, the node goes too.
fn listen_for_reload(live: &Live, end: &UnboundedSender<End>) {
    let (live, end) = (live.clone(), end.clone());
    let at_a_terminal = std::io::stdout().is_terminal();
    let Ok(mut signals) = signal(SignalKind::hangup()) else {
        return;
    };
    actix_rt::spawn(async move {
        while signals.recv().await.is_some() {
            if at_a_terminal && !std::io::stdout().is_terminal() {
                drop(end.send(End::Asked("the end of its terminal")));
                return;
            }
            // What was refused is logged there.
            drop(live.clone().reload().await);
        }
    });
}

async fn until_the_end(grown: Grown, mut ends: UnboundedReceiver<End>) -> u8 {
    let end = ends.recv().await;
    let drain = grown.live.config().node.drain;
    let code = match end {
        None => return 1,
        Some(End::Asked(by)) => {
            log::info!(target: "node", event = "node.draining", reason = by; "told to stop: draining");
            systemd::stopping(by, drain + LEAVING);
            0
        }
        Some(End::GaveUp(why)) => {
            log::error!(target: "node", event = "node.draining", reason = why.as_str(); "supervision gave up: draining what can be drained");
            systemd::stopping(&why, drain + LEAVING);
            EXIT_GAVE_UP
        }
        Some(End::Hung(why)) => {
            log::error!(target: "node", event = "node.stopped", reason = why.as_str(), code = EXIT_GAVE_UP; "leaving at once");
            return EXIT_GAVE_UP;
        }
        Some(End::Fatal(why)) => {
            log::error!(target: "node", event = "config.rejected", reason = why.as_str(); "this node cannot be part of the cluster");
            eprintln!("troupe run: {why}");
            return EXIT_CONFIG;
        }
    };
    tokio::select! {
        biased;
        again = another_asked(&mut ends) => {
            log::warn!(target: "node", event = "node.stopped", reason = again; "told again: stopping at once");
            130
        }
        clean = leave(&grown, drain) => if clean { code } else { code.max(EXIT_UNCLEAN) },
    }
}

async fn another_asked(ends: &mut UnboundedReceiver<End>) -> &'static str {
    while let Some(end) = ends.recv().await {
        if let End::Asked(by) = end {
            return by;
        }
    }
    std::future::pending().await
}

/// Hands mastership over, lets running work finish or hands it back, tells what came of it, deregisters, stops the actors. Each step
/// has a bound, since what is broken may be the very actor that is asked. Answers whether all of it went well.
async fn leave(grown: &Grown, drain: Duration) -> bool {
    let began = tokio::time::Instant::now();
    grown.live.stop_making();
    let mut receipt = DrainReceipt {
        node: grown.identity.name(),
        id: grown.identity.id,
        ..DrainReceipt::default()
    };
    match timeout(STEP, grown.discovery.send(Retire)).await {
        Ok(Ok(Retired::Follower)) => {}
        Ok(Ok(Retired::HandedOver(new))) => {
            receipt.heir = Some(new.name);
            receipt.epoch = Some(new.epoch);
            receipt.handed_over = new.handed_over as u64;
            receipt.masterless_ms = Some(new.masterless_ms);
        }
        Ok(Ok(Retired::NoHeir(_))) => finish_alone(grown, began + drain).await,
        Ok(Err(_)) | Err(_) => receipt.wrong.push("mastership: no answer".to_owned()),
    }
    let within = drain.saturating_sub(began.elapsed());
    let drained = grown.worker.send(DrainWorker { within });
    match timeout(within + STEP, drained).await {
        Ok(Ok(work)) => {
            receipt.finished = work.finished as u64;
            receipt.handed_back = work.handed_back as u64;
            receipt.untold = work.untold as u64;
        }
        Ok(Err(_)) | Err(_) => receipt.wrong.push("running work: no answer".to_owned()),
    }
    match timeout(STEP, grown.master.send(AskMaster)).await {
        Ok(Ok(left)) => receipt.lost = left.ephemeral,
        Ok(Err(_)) | Err(_) => receipt.wrong.push("open tasks: no answer".to_owned()),
    }
    receipt.duration_ms = began.elapsed().as_millis() as u64;
    tell_receipt(grown, &receipt).await;
    match timeout(STEP, grown.registry.send(Deregister)).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(why))) => receipt.wrong.push(format!("registration: {why}")),
        Ok(Err(_)) | Err(_) => receipt.wrong.push("registration: no answer".to_owned()),
    }
    match timeout(STEP, grown.supervisor.shutdown()).await {
        Ok(report) => {
            let overdue = report.overdue.into_iter();
            let words = overdue.map(|actor| format!("the {actor} actor did not stop"));
            receipt.wrong.extend(words);
        }
        Err(_) => receipt.wrong.push("actors: they did not stop".to_owned()),
    }
    receipt.duration_ms = began.elapsed().as_millis() as u64;
    say_drained(&receipt);
    receipt.is_clean()
}

/// A master without an heir finishes what would end with it, as long as something of it runs.
async fn finish_alone(grown: &Grown, until: tokio::time::Instant) {
    let mut idle = 0;
    while tokio::time::Instant::now() < until && idle < IDLE_LOOKS {
        let Ok(Ok(left)) = timeout(STEP, grown.master.send(AskMaster)).await else {
            return;
        };
        if left.ephemeral == 0 {
            return;
        }
        let runs = left.outstanding.values().any(|attempts| *attempts > 0);
        idle = if runs { 0 } else { idle + 1 };
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells whoever waits, and gives the answer a moment to leave while there are sessions to carry it.
async fn tell_receipt(grown: &Grown, receipt: &DrainReceipt) {
    // One receiver is the API's own.
    let waited_for = grown.drained.receiver_count() > 1;
    grown.drained.send_replace(Some(receipt.clone()));
    if waited_for {
        tokio::time::sleep(RECEIPT_GRACE).await;
    }
}

fn say_drained(receipt: &DrainReceipt) {
    let level = if receipt.is_clean() {
        log::Level::Info
    } else {
        log::Level::Warn
    };
    log::log!(target: "node", level, event = "node.drained", finished = receipt.finished, handed_back = receipt.handed_back, untold = receipt.untold, heir:serde = receipt.heir, handed_over = receipt.handed_over, lost = receipt.lost, masterless_ms:serde = receipt.masterless_ms, clean = receipt.is_clean(), wrong = receipt.wrong.join("; "), duration_ms = receipt.duration_ms; "drained");
}
