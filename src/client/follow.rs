//! Events and logs: what is kept, or what comes.
//!
//! Following the whole cluster outlives the node that is asked: the addresses of all members are known from the start and
//! refreshed on the way, the stream goes on at the next one that answers, from a little before the newest stamp (`hlc`) that
//! was shown, and what was shown already is not shown again.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{sleep, timeout};
use troupe_actors::admin::{MembersView, RecordsView};

use super::api::{Api, Failure, query};
use super::read;
use super::say::{Screen, complain, printable};
use crate::logging;

/// Kept records shown before what comes, unless a number to begin after is given.
const BEFORE: &str = "10";
/// Tries to open a broken stream again, a pause apart.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);
/// A node says something at least every 15 s (`admin.keep_alive`); who is silent for longer is gone or frozen.
const SILENCE: Duration = Duration::from_secs(20);
/// A stream that goes on at another node begins this much before the newest record shown.
const OVERLAP: Duration = Duration::from_secs(5);
/// Records remembered as shown: more than the overlap holds.
const REMEMBERED: usize = 20_000;
/// Addresses remembered.
const MAX_PLACES: usize = 256;

/// `troupe events` and `troupe logs`.
pub(super) async fn records(
    api: &Api,
    screen: &Screen,
    path: String,
    follow: bool,
) -> Result<(), Failure> {
    let one_node = path.contains("node=") || path.contains("since=");
    match (follow, one_node) {
        (true, true) => return follow_on(api, screen, path).await,
        (true, false) => return follow_all(api, screen, &path).await,
        (false, _) => {}
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

/// Follows all nodes, at whichever answers.
async fn follow_all(api: &Api, screen: &Screen, path: &str) -> Result<(), Failure> {
    let mut shown = Shown::default();
    let mut places = Places::new(api.url());
    let mut tries = 0;
    loop {
        let here = api.at(places.current())?;
        // Nobody waits for the addresses: a node that dies meanwhile is found out by the stream.
        if let Ok(view) = here.get("/v1/members").await.and_then(read::<MembersView>) {
            places.learn(view.members.iter().map(|m| m.admin.as_str()));
        }
        let after = shown.resume();
        let before = after.is_none().then_some(BEFORE);
        let wanted = [
            ("node", Some("*")),
            ("after", after.as_deref()),
            ("limit", before),
        ];
        match here.lines(&query(path, &wanted)).await {
            Ok(mut lines) => {
                while let Ok(Some(line)) = timeout(SILENCE, lines.next_or_sign()).await {
                    tries = 0;
                    let fresh = line.filter(|line| shown.is_new(line));
                    if let Some(line) = fresh {
                        one(screen, line)?;
                    }
                }
            }
            Err(failure) if shown.newest.is_none() && tries == 0 => return Err(failure),
            Err(failure) if tries >= TRIES => return Err(failure),
            Err(_) => {}
        }
        let lost = places.current().to_owned();
        places.next();
        complain(&format!(
            "{lost} no longer answers, going on at {}",
            places.current()
        ));
        tries += 1;
        if tries as usize > places.known.len() {
            sleep(PAUSE).await;
        }
    }
}

/// Where nodes answer, and whom we ask.
struct Places {
    known: Vec<String>,
    at: usize,
}

impl Places {
    fn new(first: &str) -> Self {
        Self {
            known: vec![first.to_owned()],
            at: 0,
        }
    }

    fn current(&self) -> &str {
        &self.known[self.at % self.known.len()]
    }

    fn next(&mut self) {
        self.at = (self.at + 1) % self.known.len();
    }

    /// Members' addresses; the one that was given at first stays, and who left stays as long as there is room.
    fn learn<'a>(&mut self, admins: impl Iterator<Item = &'a str>) {
        for admin in admins.filter(|admin| !admin.is_empty()) {
            let url = match admin.contains("://") {
                true => admin.to_owned(),
                false => format!("http://{admin}"),
            };
            if !self.known.contains(&url) && self.known.len() < MAX_PLACES {
                self.known.push(url);
            }
        }
    }
}

/// What was shown lately.
#[derive(Default)]
struct Shown {
    first: Option<u64>,
    newest: Option<u64>,
    seen: BTreeSet<(String, u64)>,
    order: VecDeque<(String, u64)>,
}

impl Shown {
    /// The stamp to go on after: a little earlier than the newest, since another node may have gathered in another order.
    fn resume(&self) -> Option<String> {
        let overlap = u64::try_from(OVERLAP.as_millis()).unwrap_or(0) << 16;
        // Nor from before the first one, which was left out on purpose.
        let from = self.newest?.saturating_sub(overlap).max(self.first?);
        Some(format!("{from:016x}"))
    }

    fn is_new(&mut self, line: &Value) -> bool {
        let stamp = line["hlc"]
            .as_str()
            .and_then(|t| u64::from_str_radix(t, 16).ok());
        self.newest = self.newest.max(stamp);
        self.first = self.first.or(stamp);
        let (Some(node), Some(seq)) = (line["node_id"].as_str(), line["seq"].as_u64()) else {
            return true;
        };
        let key = (node.to_owned(), seq);
        if !self.seen.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
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
    if (seq.is_none() || fields.contains_key("notice")) && !screen.json {
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
        None => format!("{} is not heard: {}", text("node"), text("err")),
    }
}

fn show(screen: &Screen, fields: &Map<String, Value>) -> Result<(), Failure> {
    if screen.json {
        let line = serde_json::to_string(fields).unwrap_or_default();
        return screen.line(&line);
    }
    let mut clean = fields.clone();
    clean.remove("seq");
    clean.remove("hlc");
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
    use serde_json::json;

    #[test]
    fn what_was_shown_is_not_shown_again_and_the_next_node_is_asked_from_a_little_before() {
        let mut shown = Shown::default();
        assert_eq!(shown.resume(), None);
        let stamp = (100_000_u64 << 16) + 3;
        let line = json!({"node_id": "a", "seq": 7, "hlc": format!("{stamp:016x}")});
        assert!(shown.is_new(&line));
        assert!(!shown.is_new(&line));
        assert!(shown.is_new(&json!({"node_id": "b", "seq": 7, "hlc": "0000000000000001"})));
        let from = u64::from_str_radix(&shown.resume().unwrap(), 16).unwrap();
        assert_eq!(
            from, stamp,
            "what is before the first one was left out on purpose"
        );
        let later = format!("{:016x}", 200_000_u64 << 16);
        assert!(shown.is_new(&json!({"node_id": "a", "seq": 8, "hlc": later})));
        let from = u64::from_str_radix(&shown.resume().unwrap(), 16).unwrap();
        assert_eq!(from >> 16, 195_000);
    }

    #[test]
    fn all_addresses_are_tried_in_turn_the_given_one_first() {
        let mut places = Places::new("http://127.0.0.1:1");
        places.learn(["127.0.0.1:2", "", "http://127.0.0.1:1"].into_iter());
        assert_eq!(places.known.len(), 2);
        places.next();
        assert_eq!(places.current(), "http://127.0.0.1:2");
        places.next();
        assert_eq!(places.current(), "http://127.0.0.1:1");
    }

    #[test]
    fn a_stream_is_opened_again_after_the_last_number() {
        assert_eq!(after("/v1/events", 7), "/v1/events?since=7");
        let path = "/v1/logs?since=3&level=warn";
        assert_eq!(after(path, 7), "/v1/logs?level=warn&since=7");
    }
}
