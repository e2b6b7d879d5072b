//! Events and logs: what is kept, or what comes.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::sleep;
use troupe_actors::admin::RecordsView;

use super::api::{Api, Failure, query};
use super::read;
use super::say::{Screen, complain, printable};
use crate::logging;

/// Kept records shown before what comes, unless a number to begin after is given.
const BEFORE: &str = "10";
/// Tries to open a broken stream again, a pause apart.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// `troupe events` and `troupe logs`.
pub(super) async fn records(
    api: &Api,
    screen: &Screen,
    path: String,
    follow: bool,
) -> Result<(), Failure> {
    if follow {
        return follow_on(api, screen, path).await;
    }
    let answer = api.get(&query(&path, &[("follow", Some("false"))])).await?;
    if screen.json {
        return screen.line(&answer.0.to_string());
    }
    let view: RecordsView = read(answer)?;
    for fields in &view.records {
        show(screen, fields)?;
    }
    if view.missed > 0 {
        complain(&format!("{} earlier records are not shown", view.missed));
    }
    for (node, why) in &view.missing {
        complain(&format!("{node} is not shown: {why}"));
    }
    Ok(())
}

async fn follow_on(api: &Api, screen: &Screen, path: String) -> Result<(), Failure> {
    let before = (!path.contains("since=")).then_some(BEFORE);
    let mut next = query(&path, &[("limit", before)]);
    let mut tries = 0;
    loop {
        match api.lines(&next).await {
            Ok(mut lines) => {
                while let Some(line) = lines.next().await {
                    tries = 0;
                    if let Some(seq) = one(screen, line)? {
                        next = after(&path, seq);
                    }
                }
                complain("the stream ended; opening it again");
            }
            Err(failure) if tries == 0 && next.contains("limit=") => return Err(failure),
            Err(failure) if tries >= TRIES => return Err(failure),
            Err(_) => {}
        }
        tries += 1;
        sleep(PAUSE).await;
    }
}

/// The same path, beginning after a number.
fn after(path: &str, seq: u64) -> String {
    let (route, params) = path.split_once('?').unwrap_or((path, ""));
    let params = params.split('&').filter(|p| !p.is_empty());
    let others: Vec<_> = params.filter(|p| !p.starts_with("since=")).collect();
    let since = format!("since={seq}");
    let others = others.into_iter().chain([since.as_str()]);
    format!("{route}?{}", others.collect::<Vec<_>>().join("&"))
}

/// Shows a line of a stream; answers its number when it is a record.
fn one(screen: &Screen, line: Value) -> Result<Option<u64>, Failure> {
    let Value::Object(fields) = line else {
        return Ok(None);
    };
    let seq = fields.get("seq").and_then(Value::as_u64);
    if seq.is_none() && !screen.json {
        complain(&notice(&fields));
        return Ok(None);
    }
    show(screen, &fields)?;
    Ok(seq)
}

/// What the stream says of itself, in words.
fn notice(fields: &Map<String, Value>) -> String {
    let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or("?");
    match fields.get("missed").and_then(Value::as_u64) {
        Some(missed) => format!("{missed} records were missed"),
        None => format!("{}: {}", text("node"), text("err")),
    }
}

fn show(screen: &Screen, fields: &Map<String, Value>) -> Result<(), Failure> {
    if screen.json {
        let line = serde_json::to_string(fields).unwrap_or_default();
        return screen.line(&line);
    }
    let mut clean = fields.clone();
    clean.remove("seq");
    for value in clean.values_mut() {
        if let Value::String(text) = value {
            *text = printable(text);
        }
    }
    screen.line(&logging::text(&clean, screen.colour))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_opened_again_after_the_last_number() {
        assert_eq!(after("/v1/events", 7), "/v1/events?since=7");
        let path = "/v1/logs?since=3&level=warn";
        assert_eq!(after(path, 7), "/v1/logs?level=warn&since=7");
    }
}
