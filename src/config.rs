//! `config.toml`, `TROUPE_*`, `--set` and flags become one [`Config`]; every key and every rule stands in this file once.
//!
//! Precedence: flags > environment > file > defaults. An unknown key, a wrong unit or a contradiction is one error that names
//! where it stands, the key, the value and the rule.

mod jobs;
mod kind;
mod live;

pub use live::Merged;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use toml::Value;
use troupe_actors::admin::AdminSettings;
use troupe_actors::discovery::DiscoverySettings;
use troupe_actors::job::exec::ExecSettings;
use troupe_actors::master::{BalancerKind, GeneratorSettings, MasterSettings, MasterWorks};
use troupe_actors::registry::RegistrySettings;
use troupe_actors::supervisor::SupervisionSettings;
use troupe_actors::transport::TransportSettings;
use troupe_actors::worker::WorkerSettings;

/// Everything a node can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster: prefix of its keys, and checked at each hello.
    pub cluster: String,
    /// This node.
    pub node: NodeSettings,
    /// The registry's client side.
    pub registry: RegistrySettings,
    /// Where the embedded registry keeps its data, when this node serves it.
    pub data_dir: Option<String>,
    /// How it is let in.
    pub access: RegistryAccess,
    /// Heartbeats, suspicion, election.
    pub discovery: DiscoverySettings,
    /// Sessions between nodes.
    pub transport: TransportSettings,
    /// The master's own tasks.
    pub generator: GeneratorSettings,
    /// Ledger and balancer.
    pub master: MasterSettings,
    /// Intake and jobs.
    pub worker: WorkerSettings,
    /// Restarts.
    pub supervision: SupervisionSettings,
    /// TLS between nodes.
    pub security: SecuritySettings,
    /// Bounds of the admin API.
    pub admin: AdminSettings,
    /// Who may use it.
    pub admin_access: AdminAccess,
    /// Least level that is logged.
    pub log_level: LevelFilter,
    /// Commands as jobs, by name; from the file alone.
    pub jobs: BTreeMap<String, ExecSettings>,
    origins: BTreeMap<&'static str, Origin>,
    jobs_from: Option<(PathBuf, String)>,
}

/// `[security]`.
#[derive(Clone, Debug, Default)]
pub struct SecuritySettings {
    /// The file with the cluster secret; `None`: no TLS between nodes.
    pub secret_file: Option<String>,
    /// A file with a further secret whose certificates are accepted, while secrets are rotated.
    pub accept_secret_file: Option<String>,
    /// Instead of a secret: our certificate by an authority of your own, PEM, with those between the two.
    pub cert_file: Option<String>,
    /// Its key, PEM.
    pub key_file: Option<String>,
    /// The authority's certificate, PEM: those of other nodes are checked by it.
    pub ca_file: Option<String>,
    /// Neither, and not on loopback alone: whoever reaches the port is let in.
    pub insecure: bool,
}

impl SecuritySettings {
    /// Whether there is anything to show others who we are.
    pub fn has_credentials(&self) -> bool {
        self.secret_file.is_some() || self.cert_file.is_some()
    }
}

/// Of `[admin]`: TLS and the tokens.
#[derive(Clone, Debug, Default)]
pub struct AdminAccess {
    /// Its certificate, PEM; one that the cluster's authority issues when absent.
    pub cert_file: Option<String>,
    /// The key of it, PEM.
    pub key_file: Option<String>,
    /// The file with the token that may do everything; `None`: no tokens are asked for.
    pub token_file: Option<String>,
    /// The file with the token that may only read.
    pub read_token_file: Option<String>,
    /// Names, beside addresses, under which it may be asked.
    pub hosts: Vec<String>,
}

/// Of `[registry]`: TLS and the user.
#[derive(Clone, Debug, Default)]
pub struct RegistryAccess {
    /// The certificates that the registry's is checked by, PEM.
    pub ca_file: Option<String>,
    /// Our certificate, PEM.
    pub cert_file: Option<String>,
    /// Its key, PEM.
    pub key_file: Option<String>,
    /// Our name there.
    pub user: Option<String>,
    /// The file with its password.
    pub password_file: Option<String>,
}

/// `[node]`.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Its label; rolled when absent.
    pub name: Option<String>,
    /// Where it listens for other nodes.
    pub bind: SocketAddr,
    /// What it tells others to dial, `host` or `host:port`.
    pub advertise: Option<String>,
    /// The interface whose address is advertised.
    pub interface: Option<String>,
    /// The network whose address is advertised.
    pub advertise_cidr: Option<String>,
    /// Where the admin API listens; `None`: loopback, the port after `bind`'s.
    pub admin: Option<SocketAddr>,
    /// Labels for placement.
    pub tags: BTreeMap<String, String>,
    /// How long running work may go on when the node is told to stop.
    pub drain: Duration,
}

impl Config {
    /// Whether the admin API speaks TLS. Of a node that is open to everybody it need not.
    pub fn admin_tls(&self) -> bool {
        let open = self.admin_at().ip().is_loopback() || self.security.insecure;
        self.admin_access.cert_file.is_some() || !open
    }

    /// Where the admin API listens.
    pub fn admin_at(&self) -> SocketAddr {
        self.node.admin.unwrap_or_else(|| {
            // Where any port will do for the one, any will do for the other.
            let port = match self.node.bind.port() {
                0 => 0,
                port => port.wrapping_add(1),
            };
            SocketAddr::from(([127, 0, 0, 1], port))
        })
    }

    fn defaults() -> Self {
        Self {
            cluster: "troupe".to_owned(),
            node: NodeSettings {
                name: None,
                bind: SocketAddr::from(([0, 0, 0, 0], 22222)),
                advertise: None,
                interface: None,
                advertise_cidr: None,
                admin: None,
                tags: BTreeMap::new(),
                drain: Duration::from_secs(30),
            },
            registry: RegistrySettings::default(),
            data_dir: None,
            access: RegistryAccess::default(),
            discovery: DiscoverySettings::default(),
            transport: TransportSettings::default(),
            generator: GeneratorSettings::default(),
            master: MasterSettings::default(),
            worker: WorkerSettings::default(),
            supervision: SupervisionSettings::default(),
            security: SecuritySettings::default(),
            admin: AdminSettings::default(),
            admin_access: AdminAccess::default(),
            log_level: LevelFilter::Info,
            jobs: BTreeMap::new(),
            origins: BTreeMap::new(),
            jobs_from: None,
        }
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A file, and the line.
    File(PathBuf, usize),
    /// An environment variable.
    Env(String),
    /// A flag.
    Flag(String),
    /// An operator, while the node ran.
    Operator,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Operator => f.write_str("an operator, until the next reload"),
        }
    }
}

/// What is wrong with the configuration; nothing was started. The operator's to mend.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable(PathBuf, std::io::Error),
    /// The file is not TOML.
    NotToml(PathBuf, String),
    /// No such key.
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// What was written.
        key: String,
        /// The nearest known one.
        nearest: Option<&'static str>,
    },
    /// A value that its key does not take.
    Bad {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// What the key takes.
        rule: String,
    },
    /// Two values that contradict each other.
    Contradiction {
        /// The keys with their values and origins.
        said: Vec<(&'static str, String, Origin)>,
        /// The rule.
        rule: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, err) => write!(f, "{}: cannot be read: {err}", path.display()),
            Self::NotToml(path, err) => write!(f, "{}: is not TOML: {err}", path.display()),
            Self::Unknown {
                origin,
                key,
                nearest,
            } => {
                write!(f, "{origin}: unknown key `{key}`")?;
                nearest.map_or(Ok(()), |n| write!(f, "; did you mean `{n}`?"))
            }
            Self::Bad {
                origin,
                key,
                value,
                rule,
            } => write!(f, "{origin}: `{key}` = {value}: must be {rule}"),
            Self::Contradiction { said, rule } => {
                for (key, value, origin) in said {
                    write!(f, "`{key}` = {value} ({origin}), ")?;
                }
                write!(f, "but {rule}")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// One knob: how it is read, set and shown.
struct Key {
    name: &'static str,
    get: fn(&Config) -> String,
    set: fn(&mut Config, &Value) -> Result<(), String>,
}

macro_rules! keys {
    ($($name:literal $kind:ident $(($($arg:expr),*))? : $($field:ident).+ ;)*) => {
        const KEYS: &[Key] = &[$(Key {
            name: $name,
            get: |c| kind::$kind::show(&c.$($field).+),
            set: |c, v| { c.$($field).+ = kind::$kind::read(v $($(, $arg)*)?)?; Ok(()) },
        }),*];
    };
}

keys! {
    "cluster" name: cluster;
    "node.name" optional_name: node.name;
    "node.bind" address: node.bind;
    "node.advertise" optional_text: node.advertise;
    "node.interface" optional_text: node.interface;
    "node.advertise_cidr" optional_text: node.advertise_cidr;
    "node.admin" optional_address: node.admin;
    "node.tags" table: node.tags;
    "node.drain" duration(0, 86_400_000): node.drain;
    "registry.endpoints" urls: registry.endpoints;
    "registry.data_dir" optional_text: data_dir;
    "registry.ca_file" optional_text: access.ca_file;
    "registry.cert_file" optional_text: access.cert_file;
    "registry.key_file" optional_text: access.key_file;
    "registry.user" optional_text: access.user;
    "registry.password_file" optional_text: access.password_file;
    "registry.ttl" duration(2_000, 86_400_000): registry.ttl;
    "registry.renew" duration(500, 43_200_000): registry.renew;
    "registry.connect_timeout" duration(10, 60_000): registry.timeouts.connect;
    "registry.request_timeout" duration(10, 60_000): registry.timeouts.request;
    "registry.keep_alive" duration(100, 60_000): registry.timeouts.keep_alive;
    "registry.relist" duration(1_000, 3_600_000): registry.relist;
    "registry.retry_min" duration(1, 60_000): registry.retry_min;
    "registry.retry_max" duration(1, 60_000): registry.retry_max;
    "registry.compact" switch: master.compact;
    "discovery.heartbeat" duration(10, 60_000): discovery.heartbeat;
    "discovery.suspect_floor" duration(30, 600_000): discovery.suspect_floor;
    "discovery.suspect_ceiling" duration(30, 600_000): discovery.suspect_ceiling;
    "discovery.probe_timeout" duration(10, 60_000): discovery.probe_timeout;
    "discovery.challenge_window" duration(100, 60_000): discovery.challenge_window;
    "discovery.stagger" duration(1, 10_000): discovery.stagger;
    "discovery.abstain" duration(0, 600_000): discovery.abstain;
    "discovery.mesh" count(2, 1_000): discovery.mesh;
    "discovery.ring" count(1, 1_000): discovery.ring;
    "discovery.master_turn_limit" duration(500, 600_000): discovery.master_turn_limit;
    "discovery.local_health" switch: discovery.local_health;
    "discovery.weight" weight: discovery.weight;
    "discovery.eligible" switch: discovery.eligible;
    "transport.max_frame" count(524_288, 67_108_864): transport.max_frame;
    "transport.handshake_timeout" duration(50, 60_000): transport.handshake_timeout;
    "transport.max_handshakes" count(1, 65_536): transport.max_handshakes;
    "transport.max_handshakes_per_address" count(1, 65_536): transport.max_handshakes_per_address;
    "transport.dial_timeout" duration(10, 60_000): transport.dial_timeout;
    "transport.redial_min" duration(1, 60_000): transport.redial_min;
    "transport.redial_max" duration(1, 600_000): transport.redial_max;
    "transport.idle_timeout" duration(500, 600_000): transport.idle_timeout;
    "transport.bulk_queue" count(16, 1_048_576): transport.bulk_queue;
    "transport.control_queue" count(16, 1_048_576): transport.control_queue;
    "generator.enabled" switch: generator.enabled;
    "generator.every" duration(1, 86_400_000): generator.every;
    "generator.min" number: generator.min;
    "generator.max" number: generator.max;
    "master.balancer" balancer: master.balancer;
    "master.master_works" master_works: master.master_works;
    "master.max_attempts" small(1, 1_000): master.max_attempts;
    "master.retry_wait" duration(0, 3_600_000): master.retry_wait;
    "master.task_timeout" duration(1, 86_400_000): master.task_timeout;
    "master.max_queued" count(1, 100_000_000): master.max_queued;
    "master.max_queued_bytes" count(262_144, 1_099_511_627_776): master.max_queued_bytes;
    "master.keep_finished" count(0, 100_000_000): master.keep_finished;
    "master.keep_finished_for" duration(0, 2_592_000_000): master.keep_finished_for;
    "master.keep_finished_bytes" count(0, 1_099_511_627_776): master.keep_finished_bytes;
    "master.recovery_wait" duration(0, 60_000): master.recovery_wait;
    "master.max_kills" small(1, 100): master.max_kills;
    "master.idempotency" duration(1_000, 2_592_000_000): master.idempotency;
    "master.keep_ids" count(0, 100_000_000): master.keep_ids;
    "master.commit_timeout" duration(10, 600_000): master.commit_timeout;
    "worker.enabled" switch: worker.enabled;
    "worker.capacity" small(0, 65_536): worker.capacity;
    "worker.delay_min" duration(0, 3_600_000): worker.delay_min;
    "worker.delay_max" duration(0, 3_600_000): worker.delay_max;
    "worker.recent" count(0, 1_000_000): worker.recent;
    "supervision.max_restarts" small(0, 1_000): supervision.max_restarts;
    "supervision.within" duration(100, 3_600_000): supervision.within;
    "security.secret_file" optional_text: security.secret_file;
    "security.accept_secret_file" optional_text: security.accept_secret_file;
    "security.cert_file" optional_text: security.cert_file;
    "security.key_file" optional_text: security.key_file;
    "security.ca_file" optional_text: security.ca_file;
    "security.insecure" switch: security.insecure;
    "admin.cert_file" optional_text: admin_access.cert_file;
    "admin.key_file" optional_text: admin_access.key_file;
    "admin.token_file" optional_text: admin_access.token_file;
    "admin.read_token_file" optional_text: admin_access.read_token_file;
    "admin.hosts" hosts: admin_access.hosts;
    "admin.max_connections" count(4, 65_536): admin.max_connections;
    "admin.max_per_address" count(1, 65_536): admin.max_per_address;
    "admin.max_followers" count(1, 65_536): admin.max_followers;
    "admin.max_body" count(524_288, 67_108_864): admin.max_body;
    "admin.max_uploads" count(1, 1_024): admin.max_uploads;
    "admin.header_timeout" duration(50, 600_000): admin.header_timeout;
    "admin.body_timeout" duration(50, 600_000): admin.body_timeout;
    "admin.write_timeout" duration(50, 600_000): admin.write_timeout;
    "admin.edit_registry" switch: admin.edit_registry;
    "log.level" level: log_level;
}

/// What the command line says: `--config`, and values by key with the flag that gave each.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// `--config FILE`; absent: `config.toml` here, if there is one.
    pub file: Option<PathBuf>,
    /// Key, value, flag; later ones win.
    pub values: Vec<(String, Value, String)>,
}

/// Environment variables that are no settings of a node.
const OTHER_VARIABLES: [&str; 5] = [
    "TROUPE_API",
    "TROUPE_CA",
    "TROUPE_CONFIG",
    "TROUPE_LOG_FORMAT",
    "TROUPE_TOKEN_FILE",
];

/// Reads every layer and checks every rule.
///
/// # Errors
/// The first thing that is wrong, with where it stands.
pub fn load(
    told: &Told,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut config = Config::defaults();
    let named = told.file.clone();
    let here = PathBuf::from("config.toml");
    if let Some(path) = named.or_else(|| here.exists().then_some(here)) {
        read_file(&mut config, &path)?;
    }
    read_environment(&mut config, env)?;
    for (key, value, flag) in &told.values {
        set(&mut config, key, value, Origin::Flag(flag.clone()))?;
    }
    check(&config)?;
    Ok(config)
}

fn read_file(config: &mut Config, path: &Path) -> Result<(), ConfigError> {
    let unreadable = |err| ConfigError::Unreadable(path.to_owned(), err);
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    read_text(config, path, &text)
}

/// `text` is what the file holds.
fn read_text(config: &mut Config, path: &Path, text: &str) -> Result<(), ConfigError> {
    let not_toml = |err: toml::de::Error| ConfigError::NotToml(path.to_owned(), err.to_string());
    let mut table: toml::Table = toml::from_str(text).map_err(not_toml)?;
    if let Some(commands) = table.remove("jobs") {
        config.jobs = jobs::read(&commands).map_err(|(key, value, rule)| ConfigError::Bad {
            origin: Origin::File(path.to_owned(), line_of(text, &key)),
            key,
            value,
            rule,
        })?;
        config.jobs_from = Some((path.to_owned(), text.to_owned()));
    }
    for (key, value) in flatten(&table) {
        let line = line_of(text, &key);
        set(config, &key, &value, Origin::File(path.to_owned(), line))?;
    }
    Ok(())
}

/// Tables become dotted keys, but for those that are values themselves.
fn flatten(table: &toml::Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                for (key, value) in inner {
                    flat.push((format!("{name}.{key}"), value.clone()));
                }
            }
            value => flat.push((name.clone(), value.clone())),
        }
    }
    flat
}

/// The line on which a dotted key is set.
fn line_of(text: &str, key: &str) -> usize {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = String::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            current = header.trim().to_owned();
        }
        let set = line
            .split('=')
            .next()
            .unwrap_or("")
            .trim()
            .trim_matches('"');
        if (current == section && set == name && line.contains('='))
            || (current == key && line.starts_with('['))
        {
            return n + 1;
        }
    }
    1
}

fn read_environment(
    config: &mut Config,
    env: impl Iterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    let mut set_here: Vec<(String, String)> = env
        .filter(|(name, _)| name.starts_with("TROUPE_"))
        .collect();
    set_here.sort();
    for (name, value) in set_here {
        if OTHER_VARIABLES.contains(&name.as_str()) || name.starts_with("TROUPE_TEST_") {
            continue;
        }
        let wanted = name.trim_start_matches("TROUPE_").to_lowercase();
        let key = KEYS
            .iter()
            .find(|k| k.name.replace('.', "_") == wanted)
            .map_or(wanted, |k| k.name.to_owned());
        set(config, &key, &Value::String(value), Origin::Env(name))?;
    }
    Ok(())
}

fn set(config: &mut Config, key: &str, value: &Value, origin: Origin) -> Result<(), ConfigError> {
    if key == "jobs" || key.starts_with("jobs.") || key.starts_with("jobs_") {
        return Err(ConfigError::Bad {
            origin,
            key: key.to_owned(),
            value: value.to_string(),
            rule: "in config.toml: commands come from nowhere else".to_owned(),
        });
    }
    let Some(known) = KEYS.iter().find(|k| k.name == key) else {
        return Err(ConfigError::Unknown {
            origin,
            key: key.to_owned(),
            nearest: nearest(key),
        });
    };
    // From text (a flag, the environment), a table is written as in TOML.
    let table = || toml::from_str::<toml::Table>(&format!("v = {}", value.as_str()?)).ok();
    let parsed = match value {
        Value::String(text) if known.name == "node.tags" && text.starts_with('{') => {
            table().and_then(|mut t| t.remove("v"))
        }
        _ => None,
    };
    (known.set)(config, parsed.as_ref().unwrap_or(value)).map_err(|rule| ConfigError::Bad {
        origin: origin.clone(),
        key: key.to_owned(),
        value: concealed(key, value.to_string()),
        rule,
    })?;
    config.origins.insert(known.name, origin);
    Ok(())
}

/// A refused value as it may be logged: a URL can have a password before its last `@`.
fn concealed(key: &str, value: String) -> String {
    match value.rsplit_once('@') {
        Some((_, rest)) if key == "registry.endpoints" => format!("***@{rest}"),
        _ => value,
    }
}

/// The known key that differs least, when it differs little.
fn nearest(key: &str) -> Option<&'static str> {
    let best = KEYS.iter().map(|k| (distance(k.name, key), k.name)).min()?;
    let last = key.rsplit('.').next().unwrap_or(key);
    let same_end = || {
        let ends = |k: &&Key| k.name.rsplit('.').next() == Some(last);
        KEYS.iter().find(ends).map(|k| k.name)
    };
    if best.0 <= 3 {
        Some(best.1)
    } else {
        same_end()
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

type Rule = (&'static [&'static str], &'static str, fn(&Config) -> bool);

/// What must hold between keys.
const RULES: &[Rule] = &[
    (
        &["discovery.heartbeat", "discovery.suspect_floor"],
        "discovery.suspect_floor must be at least 3 × discovery.heartbeat, or one lost heartbeat makes a suspect",
        |c| c.discovery.suspect_floor >= c.discovery.heartbeat * 3,
    ),
    (
        &["discovery.suspect_floor", "discovery.suspect_ceiling"],
        "discovery.suspect_ceiling must not be below discovery.suspect_floor",
        |c| c.discovery.suspect_ceiling >= c.discovery.suspect_floor,
    ),
    (
        &["registry.ttl", "registry.renew"],
        "registry.renew must be at most half of registry.ttl, or one late renewal loses the lease",
        |c| c.registry.renew * 2 <= c.registry.ttl,
    ),
    (
        &["registry.retry_min", "registry.retry_max"],
        "registry.retry_max must not be below registry.retry_min",
        |c| c.registry.retry_max >= c.registry.retry_min,
    ),
    (
        &["registry.endpoints", "registry.ca_file"],
        "https:// endpoints and registry.ca_file go together: without it nobody can tell whose certificate that is",
        |c| {
            let mut tls = c
                .registry
                .endpoints
                .iter()
                .map(|e| e.starts_with("https://"));
            tls.all(|tls| tls == c.access.ca_file.is_some())
        },
    ),
    (
        &["registry.cert_file", "registry.key_file"],
        "registry.cert_file and registry.key_file go together, and with registry.ca_file",
        |c| {
            let (cert, key) = (c.access.cert_file.is_some(), c.access.key_file.is_some());
            cert == key && (!cert || c.access.ca_file.is_some())
        },
    ),
    (
        &["registry.user", "registry.password_file"],
        "registry.user and registry.password_file go together",
        |c| c.access.user.is_some() == c.access.password_file.is_some(),
    ),
    (
        &["transport.redial_min", "transport.redial_max"],
        "transport.redial_max must not be below transport.redial_min",
        |c| c.transport.redial_max >= c.transport.redial_min,
    ),
    (
        &["discovery.heartbeat", "transport.idle_timeout"],
        "transport.idle_timeout must be at least 3 × discovery.heartbeat, or idle sessions break",
        |c| c.transport.idle_timeout >= c.discovery.heartbeat * 3,
    ),
    (
        &["generator.min", "generator.max"],
        "generator.max must not be below generator.min",
        |c| c.generator.max >= c.generator.min,
    ),
    (
        &["worker.delay_min", "worker.delay_max"],
        "worker.delay_max must not be below worker.delay_min",
        |c| c.worker.delay_max >= c.worker.delay_min,
    ),
    (
        &["node.bind", "node.admin"],
        "node.bind and node.admin must not be the same port",
        |c| c.node.bind.port() == 0 || c.node.bind.port() != c.admin_at().port(),
    ),
    (
        &["security.secret_file", "security.accept_secret_file"],
        "security.accept_secret_file needs security.secret_file: without a secret of its own a node speaks no TLS",
        |c| c.security.secret_file.is_some() || c.security.accept_secret_file.is_none(),
    ),
    (
        &[
            "security.cert_file",
            "security.key_file",
            "security.ca_file",
        ],
        "security.cert_file, security.key_file and security.ca_file go together",
        |c| {
            let s = &c.security;
            let given = [&s.cert_file, &s.key_file, &s.ca_file];
            given.iter().all(|f| f.is_some()) || given.iter().all(|f| f.is_none())
        },
    ),
    (
        &["security.secret_file", "security.cert_file"],
        "a node shows who it is by the cluster's secret or by a certificate of its own, not by both",
        |c| c.security.secret_file.is_none() || c.security.cert_file.is_none(),
    ),
    (
        &[
            "security.insecure",
            "security.secret_file",
            "security.cert_file",
        ],
        "security.insecure is for nodes that have neither a secret nor a certificate",
        |c| !(c.security.insecure && c.security.has_credentials()),
    ),
    (
        &["node.admin", "admin.token_file"],
        "beyond loopback the admin API needs admin.token_file and TLS: admin.cert_file with admin.key_file, or a cluster secret, whose authority issues a certificate",
        |c| {
            let open = c.admin_at().ip().is_loopback() || c.security.insecure;
            open || c.admin_access.token_file.is_some()
        },
    ),
    (
        &["admin.cert_file", "admin.key_file"],
        "admin.cert_file and admin.key_file go together",
        |c| c.admin_access.cert_file.is_some() == c.admin_access.key_file.is_some(),
    ),
    (
        &["admin.token_file", "admin.read_token_file"],
        "admin.read_token_file needs admin.token_file: with it alone nobody could change anything",
        |c| c.admin_access.token_file.is_some() || c.admin_access.read_token_file.is_none(),
    ),
];

fn check(config: &Config) -> Result<(), ConfigError> {
    let broken = RULES.iter().find(|(_, _, holds)| !holds(config));
    let Some((keys, rule, _)) = broken else {
        return Ok(());
    };
    let said = keys
        .iter()
        .filter_map(|name| KEYS.iter().find(|k| k.name == *name))
        .map(|k| (k.name, (k.get)(config), config.origin(k.name)))
        .collect();
    Err(ConfigError::Contradiction { said, rule })
}

impl Config {
    /// The defaults and what a file of this text says; every rule is checked.
    #[cfg(any(test, feature = "testkit"))]
    pub fn of_text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config = Self::defaults();
        read_text(&mut config, path, text)?;
        check(&config)?;
        Ok(config)
    }

    /// Where the value of a key came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Every key with its value in TOML and its origin, in the order of `config.toml`.
    pub fn shown(&self) -> Vec<(String, String, Origin)> {
        let keys = KEYS.iter();
        let keys = keys.map(|k| (k.name.to_owned(), (k.get)(self), self.origin(k.name)));
        let jobs = jobs::shown(&self.jobs).into_iter();
        let jobs = jobs.map(|(key, value)| {
            let from = self.jobs_from.as_ref();
            let from = from.map(|(path, text)| Origin::File(path.clone(), line_of(text, &key)));
            (key, value, from.unwrap_or(Origin::Default))
        });
        keys.chain(jobs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Config, String> {
        let values = pairs.iter().map(|(k, v)| {
            (
                (*k).to_owned(),
                Value::String((*v).to_owned()),
                "--set".to_owned(),
            )
        });
        let told = Told {
            file: Some(PathBuf::from("/dev/null")),
            values: values.collect(),
        };
        load(&told, std::iter::empty()).map_err(|err| err.to_string())
    }

    #[test]
    fn the_defaults_are_the_articles() {
        let config = with(&[]).unwrap();
        assert_eq!(config.node.bind.port(), 22222);
        assert_eq!(config.registry.ttl, Duration::from_secs(120));
        assert_eq!(config.registry.renew, Duration::from_secs(60));
        assert_eq!(config.generator.every, Duration::from_secs(10));
        assert_eq!((config.generator.min, config.generator.max), (30, 60));
        assert_eq!(config.worker.delay_min, Duration::from_secs(1));
        assert_eq!(config.worker.delay_max, Duration::from_secs(15));
        assert_eq!(config.master.balancer, BalancerKind::Random);
    }

    #[test]
    fn every_error_names_where_key_value_and_rule() {
        let cases = [
            (
                ("discovery.hartbeat", "1s"),
                vec![
                    "--set",
                    "discovery.hartbeat",
                    "did you mean `discovery.heartbeat`",
                ],
            ),
            (
                ("discovery.heartbeat", "250"),
                vec![
                    "flag --set",
                    "discovery.heartbeat",
                    "\"250\"",
                    "a duration with a unit",
                ],
            ),
            (
                ("discovery.heartbeat", "400ms"),
                vec![
                    "3 × discovery.heartbeat",
                    "discovery.suspect_floor",
                    "default",
                ],
            ),
            (("registry.ttl", "1s"), vec!["registry.ttl", "from 2s"]),
            (("registry.renew", "100s"), vec!["half of registry.ttl"]),
            (("master.balancer", "best"), vec!["\"two-choices\""]),
            (
                ("generator.min", "99"),
                vec!["generator.max must not be below"],
            ),
        ];
        for ((key, value), words) in cases {
            let err = with(&[(key, value)]).unwrap_err();
            for word in words {
                assert!(err.contains(word), "{err:?} does not say {word:?}");
            }
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        let err = with(&[("registry.endpoints", "http://root:s3cret@10.0.0.5:2379")]).unwrap_err();
        assert!(err.contains("registry.password_file"), "{err}");
        assert!(err.contains("10.0.0.5") && !err.contains("s3cret"), "{err}");
    }

    #[test]
    fn the_environment_goes_before_the_file_and_flags_before_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "cluster = \"file\"\n[generator]\nmin = 1\nmax = 2\n").unwrap();
        let told = Told {
            file: Some(path.clone()),
            values: vec![(
                "generator.max".to_owned(),
                Value::String("9".to_owned()),
                "--set".to_owned(),
            )],
        };
        let env = [
            ("TROUPE_GENERATOR_MIN".to_owned(), "3".to_owned()),
            ("TROUPE_GENERATOR_MAX".to_owned(), "4".to_owned()),
        ];
        let config = load(&told, env.into_iter()).unwrap();
        assert_eq!((config.generator.min, config.generator.max), (3, 9));
        assert_eq!(config.origin("cluster"), Origin::File(path, 1));
        let unknown = load(
            &told,
            [("TROUPE_GENERATR_MIN".to_owned(), "1".to_owned())].into_iter(),
        );
        assert!(
            unknown
                .unwrap_err()
                .to_string()
                .contains("TROUPE_GENERATR_MIN")
        );
    }

    #[test]
    fn what_shows_who_a_node_is_contradicts_nothing_else() {
        let pki: [(&str, &str); 3] = [
            ("security.cert_file", "c"),
            ("security.key_file", "k"),
            ("security.ca_file", "a"),
        ];
        assert!(with(&pki).is_ok());
        let secret = ("security.secret_file", "s");
        let insecure = ("security.insecure", "true");
        let wrong: [(&[(&str, &str)], &str); 4] = [
            (&pki[..2], "go together"),
            (&[pki[0], pki[1], pki[2], secret], "not by both"),
            (&[secret, insecure], "neither a secret"),
            (&[pki[0], pki[1], pki[2], insecure], "neither a secret"),
        ];
        for (pairs, rule) in wrong {
            let err = with(pairs).unwrap_err();
            assert!(err.contains(rule) && err.contains("security."), "{err}");
        }
    }

    fn with_file(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let told = Told {
            file: Some(path),
            values: Vec::new(),
        };
        load(&told, std::iter::empty()).map_err(|err| err.to_string())
    }

    #[test]
    fn jobs_are_commands_of_the_file_and_of_nothing_else() {
        let config = with_file(
            "[jobs.thumbnail]\ncommand = [\"convert\", \"-\"]\ntimeout = \"5s\"\nretry_on = [75, 1]\n",
        );
        let config = config.unwrap();
        let job = &config.jobs["thumbnail"];
        assert_eq!(job.command, ["convert", "-"]);
        assert_eq!(job.timeout, Some(Duration::from_secs(5)));
        let shown = config.shown();
        let (_, value, from) = shown
            .iter()
            .find(|s| s.0 == "jobs.thumbnail.timeout")
            .unwrap();
        assert_eq!(value, "\"5s\"");
        assert!(from.to_string().ends_with("config.toml:3"), "{from}");
        for (text, words) in [
            ("[jobs.noop]\ncommand = [\"x\"]", ["jobs.noop", "built in"]),
            ("[jobs.x]\ntimeout = \"5s\"", ["jobs.x", "with a command"]),
            (
                "[jobs.x]\ncommand = \"rm -rf /\"",
                [":2: `jobs.x.command`", "no shell"],
            ),
            (
                "[jobs.x]\ncommnd = [\"x\"]",
                ["jobs.x.commnd", "one of command"],
            ),
            (
                "[jobs.x]\ncommand = [\"x\"]\nretry_on = [0]",
                [":3: ", "1 to 255"],
            ),
        ] {
            let err = with_file(text).unwrap_err();
            for word in words {
                assert!(err.contains(word), "{err:?} does not say {word:?}");
            }
        }
        let err = with(&[("jobs.x.command", "[\"x\"]")]).unwrap_err();
        assert!(err.contains("commands come from nowhere else"), "{err}");
    }

    #[test]
    fn names_with_dots_and_texts_with_breaks_are_shown_so_that_they_can_be_read() {
        let path = Path::new("config.toml");
        let text = "[node]\ntags = { \"a\\nb\" = \"c\\td\" }\n[jobs.\"a.b\"]\ncommand = [\"x\"]\n";
        let config = Config::of_text(path, text).unwrap();
        let shown = config.shown().into_iter();
        let lines: String = shown
            .filter(|(key, ..)| key == "node.tags" || key.starts_with("jobs."))
            .map(|(key, value, _)| format!("{key} = {value}\n"))
            .collect();
        let again = Config::of_text(path, &lines).unwrap();
        assert_eq!(again.node.tags, config.node.tags);
        assert_eq!(again.jobs.keys().collect::<Vec<_>>(), ["a.b"]);
    }
}
