//! The command line: what can be typed, and what it means in settings.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;
use toml::Value;

use crate::config::Told;
use crate::logging::Format;

/// A cluster in one binary: nodes find each other, elect one master, share out work and survive the loss of any of them.
#[derive(Debug, Parser)]
#[command(name = "troupe", version, max_term_width = 110)]
pub struct Cli {
    /// Whom to ask, and how.
    #[command(flatten)]
    pub target: Target,
    /// One JSON value (or one a line when following) instead of a table.
    #[arg(long, global = true)]
    pub json: bool,
    /// Lines of log: text on a terminal, JSON otherwise.
    #[arg(
        long,
        global = true,
        env = "TROUPE_LOG_FORMAT",
        value_name = "json|text"
    )]
    pub log_format: Option<Format>,
    /// Least level that is logged; a node's own settings say it otherwise (`log.level`), or info.
    #[arg(long, global = true, env = "TROUPE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<LevelFilter>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The node that is asked.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// The node to ask; any node answers for the cluster.
    #[arg(
        long,
        global = true,
        env = "TROUPE_API",
        default_value = "http://127.0.0.1:22223",
        value_name = "URL"
    )]
    pub api: String,
    /// The file with the token, where the node asks for one.
    #[arg(long, global = true, env = "TROUPE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The certificates (PEM) that the node's is checked by, for https://; `troupe ca` makes it of the cluster's secret.
    #[arg(long, global = true, env = "TROUPE_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl Cli {
    /// JSON or text, as told or as fits stdout.
    pub fn format(&self) -> Format {
        self.log_format
            .unwrap_or(if std::io::stdout().is_terminal() {
                Format::Text
            } else {
                Format::Json
            })
    }
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A local cluster: embedded registry and N node processes; Ctrl-C drains all.
    Dev(DevArgs),
    /// One node.
    Run(Box<RunArgs>),
    /// The registry: serve an embedded one, or look at its keys.
    #[command(subcommand)]
    Registry(RegistryCommand),
    /// The view: who is there and how it stands.
    Members,
    /// A summary.
    Status,
    /// Who leads, under which epoch.
    Master,
    /// The supervision trees of all nodes, with restarts; of one actor, what it last died of and the calls that led there.
    Actors {
        /// registry, discovery, transport, worker, master or admin.
        actor: Option<String>,
        /// On which node; the one that is asked when absent.
        #[arg(long, requires = "actor")]
        node: Option<String>,
    },
    /// Break an actor and watch supervision.
    Kill {
        /// registry, discovery, transport, worker, master or admin.
        actor: String,
        /// On which node; the one that is asked when absent.
        #[arg(long)]
        node: Option<String>,
        /// In which way.
        #[arg(long, default_value = "panic")]
        how: How,
    },
    /// The master gives mastership to the best candidate.
    StepDown,
    /// Gives mastership to this node.
    Promote {
        /// Its name.
        node: String,
    },
    /// Takes a node out: stop intake, finish or hand back, hand over, deregister, exit 0.
    Drain {
        /// Its name; the one that is asked when absent.
        node: Option<String>,
        /// Wait until it is gone, and show its receipt; 1 when something was lost.
        #[arg(long)]
        wait: bool,
    },
    /// Changes settings of a running node, until its next reload: weight=5, eligible=false, any live key of `config running`.
    Set {
        /// Its name.
        node: String,
        /// What to change.
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Has a node read its configuration again, as SIGHUP does; says what changed and what needs a restart.
    Reload {
        /// Its name; the one that is asked when absent.
        node: Option<String>,
    },
    /// Gives the cluster a task.
    Submit(SubmitArgs),
    /// Load, latencies and CPU per task, beside what this machine's TCP can do.
    Bench(BenchArgs),
    /// The master's ledger.
    #[command(subcommand)]
    Tasks(TasksCommand),
    /// What happens at all nodes, merged.
    Events {
        /// Go on as it happens.
        #[arg(short, long)]
        follow: bool,
        /// Only what the asked node recorded after this number of its own.
        #[arg(long, default_value_t = 0)]
        since: u64,
    },
    /// The log of all nodes, merged.
    Logs {
        /// Go on as it happens.
        #[arg(short, long)]
        follow: bool,
        /// Of which node; all of them when absent.
        #[arg(long)]
        node: Option<String>,
        /// Least level.
        #[arg(long)]
        level: Option<String>,
        /// Only of this task.
        #[arg(long)]
        task: Option<String>,
        /// Only of this actor.
        #[arg(long)]
        actor: Option<String>,
    },
    /// The cluster as it changes, on this terminal; q leaves.
    Top {
        /// Draw once, as text, and leave.
        #[arg(long)]
        once: bool,
    },
    /// Why things are as they are: the recorded evidence, in words.
    #[command(subcommand)]
    Why(WhyCommand),
    /// Checks the running cluster, and says what the configuration promises at worst.
    Doctor(SettingArgs),
    /// Everything about the cluster that helps to find a fault, in one JSON file; no secret is in it, and no input or output of a task.
    Debug {
        /// Into this file, which must not be there yet; on stdout when absent.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// The configuration as it would be used.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// The certificate of the cluster's authority, by which those of its admin APIs are checked (--ca, browsers).
    Ca {
        /// The file with the cluster secret.
        secret_file: PathBuf,
        /// Whose.
        #[arg(long, default_value = "troupe", value_name = "NAME")]
        cluster: String,
    },
    /// A new cluster secret, or token, in a new file that only its owner may read.
    Keygen {
        /// The file; an existing one is never overwritten.
        file: PathBuf,
    },
    /// Runs a job's command and ends it with the node.
    #[command(hide = true)]
    ExecGuard {
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Name, version, protocol.
    Version,
    /// Completions for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Writes the man pages, one for each command.
    Man {
        /// Into this directory.
        dir: PathBuf,
    },
}

/// The ways an actor can fail.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum How {
    /// It panics.
    Panic,
    /// It stops.
    Stop,
    /// It never returns.
    Hang,
}

/// `troupe why …`.
#[derive(Debug, Subcommand)]
pub enum WhyCommand {
    /// Verdicts, suspicions, restarts and refusals of a node.
    Node {
        /// Its name; it may be gone.
        name: String,
    },
    /// Elections, take-overs and resignations.
    Master,
    /// Where a task is, and why.
    Task {
        /// Its id.
        id: String,
    },
}

/// `troupe registry …`.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// The embedded registry alone; etcdctl works against it.
    Serve {
        /// Where it listens.
        #[arg(long, default_value = "127.0.0.1:2379")]
        listen: SocketAddr,
        /// Where its data is kept, synced before it is answered; without one it is in memory.
        #[arg(long)]
        data_dir: Option<PathBuf>,
        /// Its certificate, PEM: TLS. Beyond loopback it serves with it alone.
        #[arg(long, value_name = "FILE", requires = "key")]
        cert: Option<PathBuf>,
        /// The key of it, PEM, in a file that only its owner may read.
        #[arg(long, value_name = "FILE", requires = "cert")]
        key: Option<PathBuf>,
        /// The authority (PEM) of the certificates that clients must have.
        #[arg(long, value_name = "FILE", requires = "cert")]
        client_ca: Option<PathBuf>,
        /// Dies with its parent.
        #[arg(long, hide = true)]
        dev_child: bool,
    },
    /// Copies the durable tasks to another registry, while all nodes are stopped.
    Copy {
        /// The registry that has them, such as http://127.0.0.1:2379.
        #[arg(long, value_name = "URL")]
        from: String,
        /// The one that is to have them.
        #[arg(long, value_name = "URL")]
        to: String,
        /// Whose.
        #[arg(long, default_value = "troupe", value_name = "NAME")]
        cluster: String,
        /// How the first lets us in: KEY=VALUE with ca_file, cert_file, key_file, user, password_file, as in [registry].
        #[arg(long, value_name = "KEY=VALUE")]
        from_access: Vec<String>,
        /// How the second does.
        #[arg(long, value_name = "KEY=VALUE")]
        to_access: Vec<String>,
    },
    /// Keys with owner, lease, remaining ttl and stale marks.
    Ls {
        /// Under this prefix.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Keys with their values.
    Get {
        /// Under this prefix.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Changes a key, where `admin.edit_registry` is on; it keeps its lease.
    Put {
        /// The key, below the cluster's prefix unless it starts with /.
        key: String,
        /// JSON, or a text.
        value: String,
    },
    /// Deletes a key, where `admin.edit_registry` is on.
    Rm {
        /// The key, below the cluster's prefix unless it starts with /.
        key: String,
    },
    /// Changes as they happen.
    Watch {
        /// Under this prefix.
        #[arg(default_value = "")]
        prefix: String,
    },
}

/// `troupe tasks …`.
#[derive(Debug, Subcommand)]
pub enum TasksCommand {
    /// The newest tasks.
    Ls {
        /// Only in this state.
        #[arg(long)]
        state: Option<String>,
        /// Only this kind of work.
        #[arg(long)]
        job: Option<String>,
        /// At most this many.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// One task with its receipt.
    Get {
        /// Its id.
        id: String,
        /// Wait up to this long until it is finished, such as 30s.
        #[arg(long)]
        wait: Option<String>,
    },
    /// Cancel what is not finished; a running attempt is stopped.
    Cancel {
        /// Its id.
        id: String,
    },
    /// Give a dead task another chance.
    Retry {
        /// Its id.
        id: String,
    },
}

/// `troupe config …`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Is it right? Exit 78 and words if not.
    Check(SettingArgs),
    /// Every value as it would be used.
    Show {
        /// Say where each came from.
        #[arg(long)]
        origin: bool,
        /// Settings.
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// What a running node uses, where each value came from, and whether it can be changed while it runs.
    Running {
        /// Its name; the one that is asked when absent.
        node: Option<String>,
    },
}

/// Settings that any command that reads the configuration takes.
#[derive(Clone, Debug, Default, Args)]
pub struct SettingArgs {
    /// Where the settings are; ./config.toml if it is there.
    #[arg(long, env = "TROUPE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Any setting, such as discovery.heartbeat=500ms.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub sets: Vec<String>,
}

/// `troupe run …`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
    /// This node's name; rolled when absent.
    #[arg(long)]
    pub name: Option<String>,
    /// etcd's URLs, comma-separated; none: the embedded registry of this machine.
    #[arg(long, value_name = "URL,…")]
    pub registry: Option<String>,
    /// Where it listens for other nodes.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub bind: Option<String>,
    /// What others are told to dial.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub advertise: Option<String>,
    /// Advertise this interface's address.
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// Where the admin API listens.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin: Option<String>,
    /// Preference at an election, higher first.
    #[arg(long, allow_hyphen_values = true)]
    pub weight: Option<i64>,
    /// Never be master.
    #[arg(long)]
    pub not_eligible: bool,
    /// Take no work.
    #[arg(long)]
    pub no_worker: bool,
    /// A label for placement.
    #[arg(long = "tag", value_name = "K=V")]
    pub tags: Vec<String>,
    /// Without a cluster secret, and not on loopback alone: whoever reaches the port can join and read everything.
    #[arg(long)]
    pub insecure: bool,
    /// Dies with its parent.
    #[arg(long, hide = true)]
    pub dev_child: bool,
}

/// `troupe dev …`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub nodes: u16,
    /// A task every 200 ms, workers wait 10 to 150 ms.
    #[arg(long)]
    pub fast: bool,
    /// Bring a killed node back after a second.
    #[arg(long)]
    pub respawn: bool,
    /// Keep the embedded registry's data here.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Use this registry instead of an embedded one.
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,
    /// Node i listens on this + 10 i, its admin API on the next.
    #[arg(long, default_value_t = 22222)]
    pub port: u16,
    /// Without a cluster secret: nodes speak in the clear, on loopback.
    #[arg(long)]
    pub plain: bool,
    /// The embedded registry's port; the next free one if it is taken.
    #[arg(long, default_value_t = 2379)]
    pub registry_port: u16,
    /// Any setting, for all nodes.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub sets: Vec<String>,
}

/// `troupe bench …`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// How many tasks; with --sequential 10000 unless said otherwise.
    #[arg(long)]
    pub tasks: Option<u64>,
    /// Bytes of input of each, and so of output.
    #[arg(long, default_value_t = 100)]
    pub size: usize,
    /// Tasks that are submitted and not finished, at the most.
    #[arg(long, default_value_t = 20_000)]
    pub in_flight: usize,
    /// One task at a time.
    #[arg(long)]
    pub sequential: bool,
    /// Recorded before they are acknowledged, and their results before they are done.
    #[arg(long)]
    pub durable: bool,
    /// The job; `noop` answers its input at once.
    #[arg(long, default_value = "noop")]
    pub job: String,
    /// Instead of the cluster that runs: two of its own on this machine, one with TLS and one without, in turns, and what a
    /// handshake takes.
    #[arg(long)]
    pub compare_tls: bool,
    /// Measures instead what so many lines of log cost in this process, as JSON and as text; asks no node.
    #[arg(long, value_name = "N")]
    pub log_lines: Option<u64>,
}

/// `troupe submit …`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// The kind of work.
    pub job: String,
    /// JSON; `-` reads one JSON value a line from stdin.
    pub input: String,
    /// The idempotency key, a UUIDv7.
    #[arg(long)]
    pub id: Option<String>,
    /// Not recorded: quicker, and lost with the master when it is only queued there.
    #[arg(long)]
    pub ephemeral: bool,
    /// Not to be handed out before this has passed, such as 10m.
    #[arg(long)]
    pub delay: Option<String>,
    /// How long one attempt may take, such as 30s.
    #[arg(long)]
    pub timeout: Option<String>,
    /// Attempts before it is dead.
    #[arg(long)]
    pub max_attempts: Option<u32>,
    /// Higher goes first.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    pub priority: i32,
    /// A tag its worker must have.
    #[arg(long, value_name = "K=V")]
    pub require: Vec<String>,
    /// The W3C trace context that it belongs to, as in the header of that name.
    #[arg(long, env = "TRACEPARENT", value_name = "CONTEXT")]
    pub traceparent: Option<String>,
    /// Wait for the result.
    #[arg(long)]
    pub wait: bool,
}

/// `key=value`, or what is wrong with it.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} must be KEY=VALUE"))?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl SettingArgs {
    /// As settings.
    pub fn told(&self) -> Result<Told, String> {
        let mut told = Told {
            file: self.config.clone(),
            ..Told::default()
        };
        for set in &self.sets {
            let (key, value) = pair(set)?;
            told.values
                .push((key, Value::String(value), "--set".to_owned()));
        }
        Ok(told)
    }
}

impl RunArgs {
    /// As settings; flags of their own go before `--set`.
    pub fn told(&self) -> Result<Told, String> {
        let mut told = self.settings.told()?;
        let texts = [
            ("node.name", &self.name, "--name"),
            ("registry.endpoints", &self.registry, "--registry"),
            ("node.bind", &self.bind, "--bind"),
            ("node.advertise", &self.advertise, "--advertise"),
            ("node.interface", &self.interface, "--interface"),
            ("node.admin", &self.admin, "--admin"),
        ];
        for (key, value, flag) in texts {
            if let Some(value) = value {
                told.values.push((
                    key.to_owned(),
                    Value::String(value.clone()),
                    flag.to_owned(),
                ));
            }
        }
        let mut flag = |key: &str, value: Value, flag: &str| {
            told.values.push((key.to_owned(), value, flag.to_owned()));
        };
        if let Some(weight) = self.weight {
            flag("discovery.weight", Value::Integer(weight), "--weight");
        }
        if self.not_eligible {
            flag(
                "discovery.eligible",
                Value::Boolean(false),
                "--not-eligible",
            );
        }
        if self.no_worker {
            flag("worker.enabled", Value::Boolean(false), "--no-worker");
        }
        if self.insecure {
            flag("security.insecure", Value::Boolean(true), "--insecure");
        }
        if !self.tags.is_empty() {
            let mut table = toml::Table::new();
            for tag in &self.tags {
                let (key, value) = pair(tag)?;
                table.insert(key, Value::String(value));
            }
            flag("node.tags", Value::Table(table), "--tag");
        }
        Ok(told)
    }
}
