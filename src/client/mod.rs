//! The command line's other end: each command asks a node's admin API and shows the answer.
//!
//! Data on stdout, words on stderr. Exit codes: 0 done, 1 the node said no, 2 usage, 3 no such thing, 69 nobody answers.
//! A reader of stdout that went away (`troupe events -f | head`) ends the command quietly.

mod api;
mod bench;
mod compare;
mod debug;
mod doctor;
mod follow;
mod handle;
mod operate;
mod registry;
mod say;
mod show;
mod submit;
mod tasks;
mod top;
mod why;

use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde_json::json;
use troupe_actors::admin::{
    ActorsView, FailureView, KilledView, MasterView, MembersView, StatusView,
};
use troupe_actors::discovery::NewMaster;

use self::api::{Api, Failure, Json, Pass, query, segment};
pub use self::handle::{Client, ClientError, Task};
use self::say::Screen;
pub use self::say::say;
use crate::cli::{Command, ConfigCommand, How, RegistryCommand, Target, TasksCommand};

/// Does a command against the node at this URL; answers the exit code.
pub async fn run(target: &Target, json: bool, command: Command) -> u8 {
    let pass = Pass::read(target.token_file.as_deref(), target.ca.as_deref());
    let api = pass.and_then(|pass| Api::new(&target.api, &pass));
    let outcome = match api {
        Ok(api) => dispatch(&api, &Screen::new(json), command).await,
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            if let Some(words) = failure.words() {
                say::complain(&words);
            }
            failure.code()
        }
    }
}

async fn dispatch(api: &Api, screen: &Screen, command: Command) -> Result<(), Failure> {
    match command {
        Command::Members => {
            let view = api.get("/v1/members").await?;
            screen.answer(view, |v: &MembersView| show::members(v, SystemTime::now()))
        }
        Command::Status => {
            let view = api.get("/v1/status").await?;
            screen.answer(view, |v: &StatusView| show::status(v, SystemTime::now()))
        }
        Command::Master => {
            let view = api.get("/v1/master").await?;
            screen.answer(view, |v: &MasterView| show::master(v, SystemTime::now()))
        }
        Command::Actors { actor: None, .. } => {
            let view = api.get("/v1/actors").await?;
            screen.answer(view, |v: &ActorsView| show::actors(v))
        }
        Command::Actors {
            actor: Some(actor),
            node,
        } => {
            let path = format!("/v1/actors/{}/failure", segment(&actor));
            let view = api.get(&query(&path, &[("node", node.as_deref())])).await?;
            screen.answer(view, |v: &FailureView| show::failure(v))
        }
        Command::Kill { actor, node, how } => kill(api, screen, &actor, node, how).await,
        Command::StepDown => hand_over(api, screen, "/v1/master/step-down").await,
        Command::Promote { node } => {
            let path = format!("/v1/members/{}/promote", segment(&node));
            hand_over(api, screen, &path).await
        }
        Command::Drain { node, wait } => operate::drain(api, screen, node, wait).await,
        Command::Set { node, settings } => operate::set(api, screen, &node, &settings).await,
        Command::Reload { node } => operate::reload(api, screen, node.as_deref()).await,
        Command::Config {
            command: ConfigCommand::Running { node },
        } => operate::running(api, screen, node.as_deref()).await,
        Command::Submit(args) => submit::submit(api, screen, args).await,
        Command::Tasks(TasksCommand::Ls { state, job, limit }) => {
            tasks::list(api, screen, state, job, limit).await
        }
        Command::Tasks(TasksCommand::Get { id, wait }) => {
            tasks::get(api, screen, &id, wait.as_deref()).await
        }
        Command::Tasks(TasksCommand::Cancel { id }) => tasks::cancel(api, screen, &id).await,
        Command::Tasks(TasksCommand::Retry { id }) => tasks::retry(api, screen, &id).await,
        Command::Bench(args) => bench::bench(api, screen, &args).await,
        Command::Events { follow, since } => {
            let since = (since > 0).then(|| since.to_string());
            let path = query("/v1/events", &[("since", since.as_deref())]);
            follow::records(api, screen, path, follow).await
        }
        Command::Logs {
            follow,
            node,
            level,
            task,
            actor,
        } => {
            let wanted = [
                ("node", node.as_deref()),
                ("level", level.as_deref()),
                ("task", task.as_deref()),
                ("actor", actor.as_deref()),
            ];
            follow::records(api, screen, query("/v1/logs", &wanted), follow).await
        }
        Command::Debug { out } => debug::debug(api, screen, out.as_deref()).await,
        Command::Top { once } => top::top(api, screen, once).await,
        Command::Why(asked) => why::why(api, screen, asked).await,
        Command::Doctor(settings) => doctor::doctor(api, screen, &settings).await,
        Command::Registry(RegistryCommand::Ls { prefix }) => {
            registry::list(api, screen, &prefix).await
        }
        Command::Registry(RegistryCommand::Copy {
            from,
            to,
            cluster,
            from_access,
            to_access,
        }) => {
            let from = registry::Place::new("--from", &from, &from_access)?;
            let to = registry::Place::new("--to", &to, &to_access)?;
            registry::copy(screen, &from, &to, &cluster).await
        }
        Command::Registry(RegistryCommand::Get { prefix }) => {
            registry::get(api, screen, &prefix).await
        }
        Command::Registry(RegistryCommand::Put { key, value }) => {
            registry::edit(api, screen, &key, Some(&value)).await
        }
        Command::Registry(RegistryCommand::Rm { key }) => {
            registry::edit(api, screen, &key, None).await
        }
        Command::Registry(RegistryCommand::Watch { prefix }) => {
            registry::watch(api, screen, &prefix).await
        }
        Command::Dev(_)
        | Command::Run(_)
        | Command::ExecGuard { .. }
        | Command::Registry(RegistryCommand::Serve { .. })
        | Command::Config { .. }
        | Command::Keygen { .. }
        | Command::Ca { .. }
        | Command::Version
        | Command::Completions { .. }
        | Command::Man { .. } => Err(Failure::Usage(
            "this command asks no node; it is done elsewhere".to_owned(),
        )),
    }
}

async fn kill(
    api: &Api,
    screen: &Screen,
    actor: &str,
    node: Option<String>,
    how: How,
) -> Result<(), Failure> {
    let path = format!("/v1/actors/{}/kill", segment(actor));
    let path = query(&path, &[("node", node.as_deref())]);
    let how = match how {
        How::Panic => "panic",
        How::Stop => "stop",
        How::Hang => "hang",
    };
    let killed = api.post(&path, json!({ "how": how }).to_string()).await?;
    screen.answer(killed, |k: &KilledView| {
        format!("{} at {}: {}", k.actor, k.node, k.how)
    })
}

async fn hand_over(api: &Api, screen: &Screen, path: &str) -> Result<(), Failure> {
    let new = api.post(path, String::new()).await?;
    screen.answer(new, |new: &NewMaster| {
        let open = new.handed_over;
        format!(
            "{} leads under {}; {open} open tasks went over, {:.1} ms without a master",
            new.name, new.epoch, new.masterless_ms
        )
    })
}

/// An answer as a view; a node of another version may not fit.
fn read<T: DeserializeOwned>(answer: Json) -> Result<T, Failure> {
    serde_json::from_value(answer.0).map_err(|why| Failure::Strange(why.to_string()))
}
