//! The command line's questions to a node's admin API: data on stdout, messages on stderr.
//!
//! Exit codes: 0 ok · 1 it failed · 2 usage · 3 no such thing · 69 nobody answers there.

mod http;
mod table;

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{Command, How, RegistryCommand, SubmitArgs, TasksCommand, pair};
use http::{Api, Failure};

/// `registry watch` looks this often.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// `drain --wait` looks this often, for this long at the most.
const DRAIN_LOOK: Duration = Duration::from_millis(200);
const DRAIN_PATIENCE: Duration = Duration::from_secs(300);

/// Writes a line to stdout; a reader that is gone is no failure.
pub fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").ok();
}

/// Does one command; answers the exit code.
pub async fn run(api: &str, json: bool, command: Command) -> u8 {
    let api = Api::new(api);
    match ask(&api, json, command).await {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("troupe: {failure}");
            failure.exit_code()
        }
    }
}

async fn ask(api: &Api, json: bool, command: Command) -> Result<(), Failure> {
    match command {
        Command::Members => show(json, &api.get("/v1/members").await?, table::members),
        Command::Status => show(json, &api.get("/v1/status").await?, table::status),
        Command::Master => show(json, &api.get("/v1/master").await?, table::master),
        Command::Actors => show(json, &api.get("/v1/actors").await?, table::actors),
        Command::Kill { actor, node, how } => kill(api, json, &actor, node.as_deref(), how).await?,
        Command::StepDown => change_master(api, json, "/v1/master/step-down").await?,
        Command::Promote { node } => {
            change_master(api, json, &format!("/v1/members/{}/promote", escape(&node))).await?;
        }
        Command::Drain { node, wait } => drain(api, json, node, wait).await?,
        Command::Submit(args) => submit(api, json, &args).await?,
        Command::Tasks(command) => tasks(api, json, command).await?,
        Command::Events { follow, since } => {
            records(api, json, follow, &format!("/v1/events?since={since}")).await?;
        }
        Command::Logs {
            follow,
            node,
            level,
            task,
            actor,
        } => {
            let filters = [
                ("node", node),
                ("level", level),
                ("task", task),
                ("actor", actor),
            ];
            let query: String = filters
                .into_iter()
                .filter_map(|(key, value)| Some(format!("&{key}={}", escape(&value?))))
                .collect();
            records(api, json, follow, &format!("/v1/logs?since=0{query}")).await?;
        }
        Command::Registry(command) => registry(api, json, command).await?,
        // What does not ask a node is done in main.
        Command::Dev(_)
        | Command::Run(_)
        | Command::Config { .. }
        | Command::Version
        | Command::Completions { .. } => {}
    }
    Ok(())
}

fn show(json: bool, value: &Value, table: fn(&Value) -> String) {
    if json {
        say(&value.to_string());
    } else {
        say(table(value).trim_end());
    }
}

async fn kill(
    api: &Api,
    json: bool,
    actor: &str,
    node: Option<&str>,
    how: How,
) -> Result<(), Failure> {
    let how = match how {
        How::Panic => "panic",
        How::Stop => "stop",
        How::Hang => "hang",
    };
    let on = node.map_or_else(String::new, |node| format!("?node={}", escape(node)));
    let path = format!("/v1/actors/{}/kill{on}", escape(actor));
    let done = api.post(&path, &json!({ "how": how })).await?;
    show(json, &done, |done| {
        format!(
            "{} on {}: {}",
            text(done, "actor"),
            text(done, "node"),
            text(done, "how")
        )
    });
    Ok(())
}

async fn change_master(api: &Api, json: bool, path: &str) -> Result<(), Failure> {
    let new = api.post(path, &Value::Null).await?;
    show(json, &new, |new| {
        let handed = new["handed_over"].as_u64().unwrap_or(0);
        format!(
            "{} leads under epoch {}; {handed} open tasks went over",
            text(new, "name"),
            text(new, "epoch")
        )
    });
    Ok(())
}

async fn drain(api: &Api, json: bool, node: Option<String>, wait: bool) -> Result<(), Failure> {
    let node = match node {
        Some(node) => node,
        None => text(&api.get("/v1/status").await?, "node").to_owned(),
    };
    let path = format!("/v1/members/{}/drain", escape(&node));
    let answer = api.post(&path, &Value::Null).await?;
    if wait {
        wait_until_gone(api, &node).await?;
    }
    show(json, &answer, |a| {
        format!("{} is draining", text(a, "node"))
    });
    Ok(())
}

async fn wait_until_gone(api: &Api, node: &str) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + DRAIN_PATIENCE;
    loop {
        match api.get("/v1/members").await {
            Ok(members) if !names(&members).contains(&node) => return Ok(()),
            // The node that is asked is the one that leaves: it is gone.
            Err(Failure::Unreachable { .. }) => return Ok(()),
            _ if tokio::time::Instant::now() >= deadline => {
                let waited = DRAIN_PATIENCE.as_secs();
                return Err(Failure::Failed(format!(
                    "{node} is still a member after {waited} s"
                )));
            }
            _ => tokio::time::sleep(DRAIN_LOOK).await,
        }
    }
}

fn names(members: &Value) -> Vec<&str> {
    let members = members["members"].as_array();
    members
        .into_iter()
        .flatten()
        .filter_map(|m| m["name"].as_str())
        .collect()
}

// --- tasks -------------------------------------------------------------------------------------------------------------

async fn submit(api: &Api, json: bool, args: &SubmitArgs) -> Result<(), Failure> {
    let inputs: Vec<Value> = if args.input == "-" {
        let lines = std::io::stdin().lines();
        lines
            .map_while(Result::ok)
            .filter(|line| !line.trim().is_empty())
            .map(|line| input(&line))
            .collect::<Result<_, _>>()?
    } else {
        vec![input(&args.input)?]
    };
    for value in inputs {
        let task = api.post("/v1/tasks", &body(args, value)?).await?;
        if args.wait {
            let id = text(&task, "id").to_owned();
            let done = wait_for(api, &id).await?;
            show(json, &done, table::task);
        } else {
            show(json, &task, |t| {
                format!("{} {}", text(t, "id"), text(t, "state"))
            });
        }
    }
    Ok(())
}

fn input(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text)
        .map_err(|err| Failure::Usage(format!("the input {text:?} is not JSON: {err}")))
}

fn body(args: &SubmitArgs, input: Value) -> Result<Value, Failure> {
    let usage = Failure::Usage;
    let mut task =
        json!({ "job": args.job, "input": input, "durable": false, "priority": args.priority });
    if let Some(id) = &args.id {
        task["id"] = json!(id);
    }
    if let Some(timeout) = &args.timeout {
        let bad = |err| usage(format!("--timeout {timeout:?}: {err}, write 30s or 500ms"));
        task["timeout_ms"] =
            json!(humantime::parse_duration(timeout).map_err(bad)?.as_millis() as u64);
    }
    if let Some(n) = args.max_attempts {
        task["max_attempts"] = json!(n);
    }
    let mut require = serde_json::Map::new();
    for tag in &args.require {
        let (key, value) = pair(tag).map_err(|err| usage(format!("--require {err}")))?;
        require.insert(key, json!(value));
    }
    if !require.is_empty() {
        task["require"] = Value::Object(require);
    }
    Ok(task)
}

async fn wait_for(api: &Api, id: &str) -> Result<Value, Failure> {
    loop {
        let task = api
            .get(&format!("/v1/tasks/{}?wait=30s", escape(id)))
            .await?;
        if !matches!(text(&task, "state"), "queued" | "leased") {
            return Ok(task);
        }
    }
}

async fn tasks(api: &Api, json: bool, command: TasksCommand) -> Result<(), Failure> {
    match command {
        TasksCommand::Ls { state, job, limit } => {
            let filters = [("state", state), ("job", job)];
            let query: String = filters
                .into_iter()
                .filter_map(|(key, value)| Some(format!("&{key}={}", escape(&value?))))
                .collect();
            show(
                json,
                &api.get(&format!("/v1/tasks?limit={limit}{query}")).await?,
                table::tasks,
            );
        }
        TasksCommand::Get { id, wait } => {
            let wait = wait.map_or_else(String::new, |wait| format!("?wait={}", escape(&wait)));
            show(
                json,
                &api.get(&format!("/v1/tasks/{}{wait}", escape(&id))).await?,
                table::task,
            );
        }
    }
    Ok(())
}

// --- records and keys --------------------------------------------------------------------------------------------------

async fn records(api: &Api, json: bool, follow: bool, path: &str) -> Result<(), Failure> {
    let print = |record: &Value| {
        if json {
            say(&record.to_string());
        } else if let Some(fields) = record.as_object() {
            say(&crate::logging::text(fields, table::colour()));
        }
    };
    if follow {
        return api.follow(path, print).await;
    }
    let kept = api.get(&format!("{path}&follow=false")).await?;
    kept["records"]
        .as_array()
        .into_iter()
        .flatten()
        .for_each(print);
    Ok(())
}

async fn registry(api: &Api, json: bool, command: RegistryCommand) -> Result<(), Failure> {
    let (prefix, values) = match &command {
        RegistryCommand::Ls { prefix } => (prefix, false),
        RegistryCommand::Get { prefix } | RegistryCommand::Watch { prefix } => (prefix, true),
        // Served in main.
        RegistryCommand::Serve { .. } => return Ok(()),
    };
    let path = format!("/v1/registry?prefix={}", escape(prefix));
    let mut keys = api.get(&path).await?;
    if !matches!(command, RegistryCommand::Watch { .. }) {
        show(
            json,
            &keys,
            if values {
                table::keys_with_values
            } else {
                table::keys
            },
        );
        return Ok(());
    }
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let now = api.get(&path).await?;
        for change in table::changes(&keys, &now) {
            show(json, &change, table::change);
        }
        keys = now;
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("?")
}

/// Percent-encodes all but what may stand in a path segment or a query value.
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_cannot_leave_its_place_in_a_path() {
        assert_eq!(escape("brave-lion"), "brave-lion");
        assert_eq!(escape("a/b?c=ä"), "a%2Fb%3Fc%3D%C3%A4");
    }
}
