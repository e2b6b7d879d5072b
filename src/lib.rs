//! A node as a library: [`main`] is the whole command, with jobs of one's own beside those that every node has.
//!
//! ```no_run
//! use troupe::job::{Jobs, from_fn};
//!
//! fn main() -> std::process::ExitCode {
//!     let hello = from_fn("hello", |name: String, _| async move { Ok(format!("hello {name}")) });
//!     troupe::main(Jobs::default().with(hello))
//! }
//! ```

mod advertise;
mod cli;
mod client;
mod config;
mod dev;
#[cfg(any(test, feature = "testkit"))]
#[doc(hidden)]
pub mod fuzz;
mod live;
mod logging;
mod node;
mod security;
mod systemd;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use log::LevelFilter;
use troupe_actors::events::EventLog;
pub use troupe_actors::job;
use troupe_actors::job::Jobs;
pub use troupe_actors::{id, master::TaskView};

use crate::cli::{Cli, Command, ConfigCommand, RegistryCommand, RunArgs};
pub use crate::client::{Client, ClientError, Task};
use crate::config::{Config, Told};

/// Records kept for `/v1/events` and `/v1/logs`.
const EVENTS_KEPT: usize = 10_000;
/// The configuration is wrong.
const EXIT_CONFIG: u8 = 78;

/// The whole `troupe` command, of a node that knows these jobs besides its own. A job of the name of a built-in one replaces it.
pub fn main(jobs: Jobs) -> ExitCode {
    let cli = Cli::parse();
    ExitCode::from(run(cli, jobs))
}

fn run(cli: Cli, jobs: Jobs) -> u8 {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let format = cli.format();
    let (target, json, level) = (cli.target, cli.json, cli.log_level);
    let log = || {
        let events = EventLog::new(EVENTS_KEPT);
        let level = level.unwrap_or(LevelFilter::Info);
        logging::start(format, level, colour, events.clone());
        events
    };
    match cli.command {
        Command::Run(args) => {
            let events = log();
            run_node(&args, level, events, jobs)
        }
        Command::Dev(args) => node::block_on(dev::run(args, format, colour)),
        Command::Registry(RegistryCommand::Serve {
            listen,
            data_dir,
            cert,
            key,
            client_ca,
            dev_child,
        }) => {
            log();
            let tls = cert.zip(key);
            let tls =
                tls.map(|(cert, key)| security::registry_tls(&cert, &key, client_ca.as_deref()));
            node::serve_registry(listen, data_dir.as_deref(), tls.transpose(), dev_child)
        }
        Command::Config {
            command: ConfigCommand::Running { node },
        } => {
            let asking = Command::Config {
                command: ConfigCommand::Running { node },
            };
            node::block_on(client::run(&target, json, asking))
        }
        Command::Config { command } => configuration(command, json),
        Command::Keygen { file } => security::keygen(&file),
        Command::Ca {
            secret_file,
            cluster,
        } => security::print_authority(&secret_file, &cluster),
        Command::ExecGuard { command } => node::block_on(async move {
            let code = troupe_actors::job::exec::guard::run(&command).await;
            u8::try_from(code).unwrap_or(1)
        }),
        Command::Bench(args) if args.log_lines.is_some() => {
            logging::bench(args.log_lines.unwrap_or(0), json);
            0
        }
        Command::Version => {
            version(json);
            0
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "troupe", &mut std::io::stdout());
            0
        }
        Command::Man { dir } => man(&dir),
        asking => node::block_on(client::run(&target, json, asking)),
    }
}

fn run_node(args: &RunArgs, level: Option<LevelFilter>, events: EventLog, jobs: Jobs) -> u8 {
    if args.dev_child {
        node::die_with_parent();
    }
    let told = args.told().map(|mut told| {
        let flag = level.map(|level| level.as_str().to_lowercase());
        let flag = flag.map(|level| {
            (
                "log.level".to_owned(),
                level.into(),
                "--log-level".to_owned(),
            )
        });
        told.values.extend(flag);
        told
    });
    match told.and_then(|told| Ok((load(&told)?, told))) {
        Ok((config, told)) => {
            logging::set_level(config.log_level);
            node::run(config, told, events, jobs)
        }
        Err(why) => rejected(&why),
    }
}

fn load(told: &Told) -> Result<Config, String> {
    config::load(told, std::env::vars()).map_err(|err| err.to_string())
}

fn rejected(why: &str) -> u8 {
    log::error!(target: "node", event = "config.rejected", reason = why; "the configuration is wrong, nothing was started");
    eprintln!("troupe: {why}");
    EXIT_CONFIG
}

fn configuration(command: ConfigCommand, json: bool) -> u8 {
    let (settings, show, origin) = match command {
        ConfigCommand::Check(settings) => (settings, false, false),
        ConfigCommand::Show { origin, settings } => (settings, true, origin),
        // Asked of a node.
        ConfigCommand::Running { .. } => return 2,
    };
    match settings.told().and_then(|told| load(&told)) {
        Ok(config) if show => {
            show_config(&config, origin, json);
            0
        }
        Ok(_) => {
            client::say("the configuration is fine");
            0
        }
        Err(why) => rejected(&why),
    }
}

fn show_config(config: &Config, origin: bool, json: bool) {
    if json {
        let mut map = serde_json::Map::new();
        for (key, value, from) in config.shown() {
            let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
                .ok()
                .and_then(|mut t| serde_json::to_value(t.remove("v")?).ok());
            let entry = serde_json::json!({ "value": value, "origin": from.to_string() });
            map.insert(key, entry);
        }
        client::say(&serde_json::Value::Object(map).to_string());
        return;
    }
    let mut section = String::new();
    for (key, value, from) in config.shown() {
        let (this, name) = key.rsplit_once('.').unwrap_or(("", &key));
        if this != section {
            client::say(&format!("\n[{this}]"));
            this.clone_into(&mut section);
        }
        // TOML has no absent value: what is not set is shown as a comment.
        let mark = if value == "\"\"" { "# " } else { "" };
        let from = if origin {
            format!("  # {from}")
        } else {
            String::new()
        };
        client::say(&format!("{mark}{name} = {value}{from}"));
    }
}

fn man(dir: &Path) -> u8 {
    let written = std::fs::create_dir_all(dir);
    match written.and_then(|()| clap_mangen::generate_to(Cli::command(), dir)) {
        Ok(()) => 0,
        Err(err) => {
            eprintln!("troupe man: {}: {err}", dir.display());
            1
        }
    }
}

fn version(json: bool) {
    let version = env!("CARGO_PKG_VERSION");
    let protocol = troupe_actors::wire::PROTOCOL_VERSION;
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    if json {
        let value = serde_json::json!({ "name": "troupe", "version": version, "protocol": protocol, "target": target });
        client::say(&value.to_string());
    } else {
        client::say(&format!("troupe {version} (protocol {protocol}, {target})"));
    }
}
