//! Submitting tasks. Each gets its id here, so that one whose outcome is unknown can be sent again and is the same task.

use std::io::BufRead;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::time::sleep;
use troupe_actors::id::TaskId;
use troupe_actors::trace::{self, TRACEPARENT};

use super::api::{Api, Failure};
use super::say::{Screen, complain};
use super::{show, tasks};
use crate::cli::{SubmitArgs, pair};

/// Lines sent at once…
const BATCH: usize = 500;
/// …and their bytes; below the node's body limit.
const BATCH_BYTES: usize = 1024 * 1024;
/// Times a batch that found the queue full, or nobody leading, is sent again.
const TRIES: u32 = 120;
/// `--wait` waits as long as it takes; tasks end by themselves at the latest at their last time-out.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// `troupe submit`.
pub(super) async fn submit(api: &Api, screen: &Screen, args: SubmitArgs) -> Result<(), Failure> {
    let options = options(&args)?;
    if args.input == "-" {
        if args.id.is_some() {
            let words = "--id names one task; with - each line is one";
            return Err(Failure::Usage(words.to_owned()));
        }
        return from_stdin(api, screen, &args, &options).await;
    }
    let line = task(&args, &options, &args.input).map_err(Failure::Usage)?;
    let receipt = api.post("/v1/tasks", line).await?;
    if !args.wait {
        let receipts = [receipt.0.clone()];
        return screen.value(&receipt.0, || show::receipts(&receipts));
    }
    let id = receipt.0["id"].as_str().unwrap_or_default().to_owned();
    wait_for(api, screen, &[id]).await
}

async fn wait_for(api: &Api, screen: &Screen, ids: &[String]) -> Result<(), Failure> {
    let mut all_done = true;
    for id in ids {
        let answer = tasks::read_task(api, id, FOREVER).await?;
        all_done &= tasks::show_task(screen, answer)?;
    }
    match all_done {
        true => Ok(()),
        false => Err(Failure::Failed),
    }
}

/// What all tasks of one command have in common.
fn options(args: &SubmitArgs) -> Result<Map<String, Value>, Failure> {
    let mut options = Map::new();
    let mut set = |key: &str, value: Value| {
        options.insert(key.to_owned(), value);
    };
    set("job", json!(args.job));
    if args.ephemeral {
        set("durable", json!(false));
    }
    if let Some(delay) = &args.delay {
        set("delay", json!(delay));
    }
    if let Some(timeout) = &args.timeout {
        set("timeout", json!(timeout));
    }
    if let Some(attempts) = args.max_attempts {
        set("max_attempts", json!(attempts));
    }
    if args.priority != 0 {
        set("priority", json!(args.priority));
    }
    if let Some(parent) = &args.traceparent {
        // What somebody typed is not ignored when it is wrong.
        if trace::trace_id(parent).is_none() {
            let words = format!(
                "--traceparent {parent:?}: must be as in 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            );
            return Err(Failure::Usage(words));
        }
        set("meta", json!({ TRACEPARENT: parent }));
    }
    let pairs = args.require.iter().map(|text| pair(text));
    let require: Result<Map<_, _>, _> = pairs.map(|p| p.map(|(k, v)| (k, json!(v)))).collect();
    let require = require.map_err(|why| Failure::Usage(format!("--require: {why}")))?;
    if !require.is_empty() {
        set("require", Value::Object(require));
    }
    Ok(options)
}

/// One task as a line of JSON; its input stays as it was typed.
fn task(args: &SubmitArgs, options: &Map<String, Value>, input: &str) -> Result<String, String> {
    let input: &RawValue = serde_json::from_str(input).map_err(|why| {
        format!("the input is not JSON ({why}); a text needs quotes of its own: '\"text\"'")
    })?;
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    let unix_ms = unix.map_or(0, |d| d.as_millis() as u64);
    let fresh = || TaskId::new(unix_ms, &mut rand::rng()).to_string();
    let id = args.id.clone().unwrap_or_else(fresh);
    let mut options = options.clone();
    options.insert("id".to_owned(), json!(id));
    let mut line = serde_json::to_string(&options).map_err(|why| why.to_string())?;
    line.pop();
    line.push_str(",\"input\":");
    // JSON allows line breaks between its tokens, lines of JSON do not.
    line.push_str(&input.get().replace(['\n', '\r'], " "));
    line.push('}');
    Ok(line)
}

async fn from_stdin(
    api: &Api,
    screen: &Screen,
    args: &SubmitArgs,
    options: &Map<String, Value>,
) -> Result<(), Failure> {
    let (mut batch, mut count) = (String::new(), 0);
    let mut ids = Vec::new();
    let mut refused = 0;
    let stdin = std::io::stdin();
    for (number, line) in (1..).zip(stdin.lock().lines()) {
        let line = line.map_err(|why| Failure::Usage(format!("stdin: {why}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |why| Failure::Usage(format!("line {number}: {why}"));
        batch.push_str(&task(args, options, &line).map_err(wrong)?);
        batch.push('\n');
        count += 1;
        if count >= BATCH || batch.len() >= BATCH_BYTES {
            refused += send(api, screen, args.wait, &batch, &mut ids).await?;
            (batch, count) = (String::new(), 0);
        }
    }
    if count > 0 {
        refused += send(api, screen, args.wait, &batch, &mut ids).await?;
    }
    wait_for(api, screen, &ids).await?;
    match refused {
        0 => Ok(()),
        _ => Err(Failure::Failed),
    }
}

/// Sends a batch until it is taken; answers how many of it were refused for good. Sending it again is safe: it has its ids.
async fn send(
    api: &Api,
    screen: &Screen,
    wait: bool,
    batch: &str,
    ids: &mut Vec<String>,
) -> Result<usize, Failure> {
    let mut tries = 0;
    let answers = loop {
        match api.post_lines("/v1/tasks", batch.to_owned()).await {
            Ok(answers) => break answers,
            Err(Failure::Refused {
                status: 503,
                retry_after,
                ..
            }) if tries < TRIES => {
                tries += 1;
                sleep(retry_after.unwrap_or(Duration::from_secs(1))).await;
            }
            Err(failure) => return Err(failure),
        }
    };
    let (bad, good): (Vec<_>, Vec<_>) = answers.into_iter().partition(|a| a.get("error").is_some());
    for answer in &bad {
        let error = &answer["error"];
        let words = error["message"].as_str().unwrap_or("refused");
        let id = error["id"].as_str().unwrap_or("a task");
        complain(&format!("{id}: {words}"));
    }
    if wait {
        let taken = good.iter().filter_map(|a| a["id"].as_str());
        ids.extend(taken.map(str::to_owned));
    } else if screen.json {
        for receipt in &good {
            screen.line(&receipt.to_string())?;
        }
    } else if !good.is_empty() {
        screen.line(&show::receipts(&good).render(screen.colour))?;
    }
    Ok(bad.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(input: &str) -> SubmitArgs {
        SubmitArgs {
            job: "multiply".to_owned(),
            input: input.to_owned(),
            id: Some("0190a000-0000-7000-8000-000000000000".to_owned()),
            ephemeral: false,
            delay: None,
            timeout: Some("30s".to_owned()),
            max_attempts: None,
            priority: 0,
            require: vec!["zone=a".to_owned()],
            traceparent: None,
            wait: false,
        }
    }

    #[test]
    fn a_task_carries_its_input_as_it_was_typed() {
        let args = args("{\"n\": 1.50,\n \"b\": 2}");
        let line = task(&args, &options(&args).unwrap(), &args.input).unwrap();
        let id = "0190a000-0000-7000-8000-000000000000";
        assert_eq!(
            line,
            format!(
                "{{\"id\":\"{id}\",\"job\":\"multiply\",\"require\":{{\"zone\":\"a\"}},\"timeout\":\"30s\",\"input\":{{\"n\": 1.50,  \"b\": 2}}}}"
            )
        );
        assert!(
            task(&args, &Map::new(), "text")
                .unwrap_err()
                .contains("quotes")
        );
    }
}
