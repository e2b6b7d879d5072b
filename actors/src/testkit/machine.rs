//! What the nodes of both simulations are: how they register, what their jobs do, and their settings. The machine they run on
//! (its network, its way to the registry) is the simulation's.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::Recipient;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use rand::RngExt;
use tokio::time::sleep;

use super::node::Wiring;
use crate::chance;
use crate::cluster::{ClusterChanged, Identity, Registration};
use crate::discovery::DiscoverySettings;
use crate::id::NodeId;
use crate::job::{Job, JobContext, JobError, Jobs};
use crate::master::{GeneratorSettings, MasterSettings};
use crate::registry::{Backend, RegistrySettings};
use crate::supervisor::SupervisionSettings;
use crate::transport::{Listener, Network};
use crate::wire::PROTOCOL_VERSION;
use crate::worker::WorkerSettings;

/// Where nodes listen.
pub const PORT: u16 = 22222;
/// Above every process id there can be, so that nobody asks the machine that runs the simulation.
const FIRST_PID: u32 = 5_000_000;

/// How wrong a wall clock may be, ms: two differ by less than the hour for which what has ended is kept. Beyond it receipts go early, and
/// ids are refused as expired.
pub const WRONG_MS: i64 = 25 * 60 * 1000;

/// The input of a task that always succeeds.
pub const PROBE: &str = "1000";
/// How long that takes.
pub const PROBE_TAKES: Duration = Duration::from_secs(1);
/// The input of a task that cannot but fail, with one attempt: it is dead at once.
pub const DOOMED: &str = "13";

/// What all nodes of a run have in common.
#[derive(Clone, Debug)]
pub struct Make {
    /// Attempts that a worker runs side by side.
    pub capacity: u32,
    /// Of a registration's lease.
    pub ttl: Duration,
    /// The registry is listed anew so often.
    pub relist: Duration,
    /// The master makes a task so often; none: never.
    pub generator: Option<Duration>,
    /// A job takes between a millisecond and this.
    pub longest_job: Duration,
}

/// Where one process of a run lives, and who hears of it.
pub struct Machine {
    /// Its name, which is its address too.
    pub name: String,
    /// How many processes it has had, this one included.
    pub life: u32,
    /// By its wall clock, milliseconds since 1970.
    pub started_at: u64,
    /// Its port.
    pub listener: Listener,
    /// How it reaches others.
    pub network: Arc<dyn Network>,
    /// The registry, as RegistryActor uses it.
    pub registry: Arc<dyn Backend>,
    /// The registry, as the journal uses it.
    pub journal: Arc<dyn Backend>,
    /// Told of each picture.
    pub watcher: Recipient<ClusterChanged>,
    /// Told why the process must end, when it must.
    pub ending: Arc<dyn Fn(String) + Send + Sync>,
}

impl Make {
    /// A node of this make on that machine. Its id, weight and eligibility come from [`chance`]; `n1` can always lead.
    pub fn on(&self, machine: Machine) -> Wiring {
        let mut rng = chance::rng();
        let (id, name) = (NodeId::random(&mut rng), machine.name.clone());
        let (weight, eligible) = (
            rng.random_range(0..3),
            name == "n1" || rng.random_bool(0.85),
        );
        Wiring {
            identity: Identity {
                cluster: "sim".to_owned(),
                id,
                name: Arc::new(Mutex::new(name.clone())),
                address: format!("{name}:{PORT}"),
            },
            registration: Registration {
                id,
                name: name.clone(),
                ip: name.clone(),
                port: PORT,
                admin: format!("{name}:22223"),
                host: name.clone(),
                boot: format!("boot-of-{name}"),
                pid: FIRST_PID + machine.life,
                version: "simulated".to_owned(),
                protocol: PROTOCOL_VERSION,
                weight,
                eligible,
                insecure: false,
                roles: vec!["worker".to_owned()],
                jobs: vec!["multiply".to_owned()],
                capacity: self.capacity,
                tags: Default::default(),
                started_at: machine.started_at,
            },
            registry_settings: RegistrySettings {
                endpoints: vec!["http://registry:2379".to_owned()],
                ttl: self.ttl,
                renew: self.ttl / 2,
                relist: self.relist,
                ..RegistrySettings::default()
            },
            discovery: DiscoverySettings {
                weight,
                eligible,
                ..DiscoverySettings::default()
            },
            worker: WorkerSettings {
                capacity: self.capacity,
                ..WorkerSettings::default()
            },
            master: MasterSettings::default(),
            generator: GeneratorSettings {
                enabled: self.generator.is_some(),
                every: self.generator.unwrap_or(Duration::from_secs(10)),
                ..GeneratorSettings::default()
            },
            supervision: SupervisionSettings::default(),
            jobs: Jobs::default().with(ByChance {
                longest: self.longest_job,
            }),
            machine,
        }
    }
}

/// Takes its time by chance; now and then it fails.
struct ByChance {
    longest: Duration,
}

impl Job for ByChance {
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
