//! Log lines: one JSON object or one line of text each, on stdout, and into the node's event ring.
//!
//! `log` with key-values comes in, `env_logger` filters; the line is built here once, so that what is printed and what
//! `/v1/events` shows is the same. A closed stdout is no reason to fail.

use std::borrow::Cow;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use log::kv::{Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::{Map, Value as Json};
use troupe_actors::events::EventLog;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The node's name and id, once known: they stand on every line.
static NODE: RwLock<Option<(SharedName, String)>> = RwLock::new(None);
static STARTED: OnceLock<()> = OnceLock::new();
/// What is let through; replaced when the level changes.
static FILTER: RwLock<Option<env_logger::Logger>> = RwLock::new(None);

/// A rolled name that is taken is rolled again: lines follow it.
type SharedName = Arc<Mutex<String>>;

/// Every line names this node from now on.
pub fn set_node(name: SharedName, id: &str) {
    if let Ok(mut node) = NODE.write() {
        *node = Some((name, id.to_owned()));
    }
}

/// Starts logging; a second call is ignored. `RUST_LOG` goes before `level`.
pub fn start(format: Format, level: LevelFilter, colour: bool, events: EventLog) {
    if STARTED.set(()).is_err() {
        return;
    }
    let filter = filter(level);
    log::set_max_level(filter.filter());
    let logger = Logger {
        format,
        colour,
        events,
    };
    if let Ok(mut current) = FILTER.write() {
        *current = Some(filter);
    }
    // Only a logger that is already set could fail this, and `STARTED` rules it out.
    log::set_boxed_logger(Box::new(logger)).ok();
}

/// Another least level from now on.
pub fn set_level(level: LevelFilter) {
    let filter = filter(level);
    let least = filter.filter();
    if let Ok(mut current) = FILTER.write() {
        *current = Some(filter);
    }
    log::set_max_level(least);
}

/// What is logged: ours from this level on, of others warnings; `RUST_LOG` goes before both.
fn filter(level: LevelFilter) -> env_logger::Logger {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Warn);
    for ours in [
        "troupe",
        "troupe_actors",
        "registry",
        "discovery",
        "transport",
        "master",
        "worker",
        "admin",
        "node",
        "supervisor",
        "job",
        "dev",
    ] {
        builder.filter_module(ours, level);
    }
    builder.parse_default_env();
    builder.build()
}

/// Whether the filter in use lets this through; before there is one, everything passes.
fn passes(of: impl Fn(&env_logger::Logger) -> bool) -> bool {
    let filter = FILTER.read();
    filter.map_or(true, |filter| filter.as_ref().is_none_or(of))
}

struct Logger {
    format: Format,
    colour: bool,
    events: EventLog,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        passes(|filter| filter.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if !passes(|filter| filter.matches(record)) {
            return;
        }
        let fields = fields(record);
        let line = line(&fields, self.format, self.colour);
        // Whoever read us is gone: the ring still has it.
        writeln!(std::io::stdout().lock(), "{line}").ok();
        self.events.push(fields);
    }

    fn flush(&self) {
        std::io::stdout().flush().ok();
    }
}

struct Fields(Map<String, Json>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let json = serde_json::to_value(&value).unwrap_or_else(|_| Json::String(value.to_string()));
        // What does not apply is not there.
        if !json.is_null() {
            self.0.insert(key.as_str().to_owned(), json);
        }
        Ok(())
    }
}

/// The object of a record: fixed fields first; a key-value of the same name goes before the fixed one.
fn fields(record: &Record<'_>) -> Map<String, Json> {
    let mut map = Map::new();
    map.insert("ts".to_owned(), now().into());
    map.insert(
        "level".to_owned(),
        record.level().as_str().to_lowercase().into(),
    );
    map.insert("event".to_owned(), "log".into());
    if let Some((name, id)) = NODE.read().ok().as_deref().and_then(Option::as_ref) {
        let name = name.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert("node".to_owned(), name.as_str().into());
        map.insert("node_id".to_owned(), id.as_str().into());
    }
    map.insert("actor".to_owned(), actor(record.target()).into());
    map.insert("msg".to_owned(), record.args().to_string().into());
    let mut fields = Fields(map);
    // A visitor that only inserts cannot fail.
    record.key_values().visit(&mut fields).ok();
    fields.0
}

/// `registry` of `registry`, `supervisor` of `troupe_actors::supervisor::actor`.
fn actor(target: &str) -> &str {
    let mut parts = target.split("::");
    match parts.next() {
        Some("troupe_actors" | "troupe") => parts.next().unwrap_or("node"),
        Some(first) => first,
        None => target,
    }
}

/// What a line costs, from the key-values to the bytes that are printed and the record in the ring: a line such as those about tasks.
pub fn bench(lines: u64, json: bool) {
    let lines = lines.clamp(1, 100_000_000);
    let mut sink = std::fs::File::create("/dev/null").map(std::io::BufWriter::new);
    let events = EventLog::new(10_000);
    let mut measured = Vec::new();
    for (name, format) in [("json", Format::Json), ("text", Format::Text)] {
        let began = std::time::Instant::now();
        for n in 0..lines {
            let kvs = [
                ("event", Value::from("task.finished")),
                ("task", Value::from("01a218bc-b772-74ed-ad7d-d1adbf1df2d7")),
                ("attempt", Value::from("1795711322-4/1")),
                ("executor", Value::from("brave-lion")),
                ("duration_ms", Value::from(n)),
                ("epoch", Value::from("1795711322-4")),
            ];
            let record = Record::builder()
                .args(format_args!("task finished"))
                .level(Level::Info)
                .target("master")
                .key_values(&kvs)
                .build();
            let fields = fields(&record);
            let line = line(&fields, format, false);
            if let Ok(sink) = &mut sink {
                writeln!(sink, "{line}").ok();
            }
            events.push(fields);
        }
        let each = began.elapsed().as_secs_f64() * 1e6 / lines as f64;
        measured.push((name, each));
    }
    for (name, each) in measured {
        let line = match json {
            true => serde_json::json!({ "format": name, "lines": lines, "us_per_line": each })
                .to_string(),
            false => format!("{name}: {each:.2} µs a line, {lines} lines"),
        };
        println!("{line}");
    }
}

fn line(fields: &Map<String, Json>, format: Format, colour: bool) -> String {
    match format {
        Format::Json => serde_json::to_string(fields).unwrap_or_default(),
        Format::Text => text(fields, colour),
    }
}

/// RFC 3339 with microseconds, UTC.
pub fn now() -> String {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let micros = std::time::Duration::from_micros(since.as_micros() as u64);
    humantime::format_rfc3339_micros(std::time::UNIX_EPOCH + micros).to_string()
}

/// A line for people: time, level, node, actor, event, message, the rest as key=value.
pub fn text(fields: &Map<String, Json>, colour: bool) -> String {
    let get = |key: &str| fields.get(key).and_then(Json::as_str).unwrap_or("");
    let time = get("ts").get(11..23).unwrap_or("");
    let level = get("level").to_uppercase();
    let paint = |code: &str, text: &str| {
        if colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    };
    let code = match get("level").parse() {
        Ok(Level::Error) => "31",
        Ok(Level::Warn) => "33",
        Ok(Level::Info) => "32",
        _ => "2",
    };
    let mut line = format!(
        "{} {} {:<14} {:<10} {:<20} {}",
        paint("2", &plain(time)),
        paint(code, &format!("{:<5}", plain(&level))),
        plain(get("node")),
        plain(get("actor")),
        paint("1", &plain(get("event"))),
        plain(get("msg")),
    );
    const FIXED: [&str; 7] = ["ts", "level", "event", "node", "node_id", "actor", "msg"];
    // Long ids come last: people read the rest first.
    const LAST: [&str; 4] = ["incarnation", "epoch", "attempt", "task"];
    let others = fields
        .iter()
        .filter(|(key, _)| !FIXED.contains(&key.as_str()) && !LAST.contains(&key.as_str()));
    let last = LAST.iter().filter_map(|key| fields.get_key_value(*key));
    for (key, value) in others.chain(last) {
        let shown = match value {
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        let (key, shown) = (plain(key), plain(&shown));
        line.push_str(&format!(" {}={shown}", paint("2", &key)));
    }
    line
}

/// Control characters as escapes: what a caller says of itself ends up here, and must neither begin a line of its own nor
/// speak to the terminal.
fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_stays_on_its_line_and_off_the_terminal() {
        let mut fields = Map::new();
        let said = "shy\n12:00 INFO master.changed\x1b[2J\u{9b}2J é";
        for key in [
            "ts", "level", "node", "msg", "event", "actor", "peer", "a\nb",
        ] {
            fields.insert(key.to_owned(), said.into());
        }
        let line = text(&fields, false);
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.contains("shy\\n12:00") && line.contains('é'), "{line}");
    }

    #[test]
    fn the_actor_is_named_by_the_target() {
        assert_eq!(actor("registry"), "registry");
        assert_eq!(actor("troupe_actors::supervisor::actor"), "supervisor");
        assert_eq!(actor("troupe::node"), "node");
    }

    #[test]
    fn key_values_keep_their_types_and_go_before_fixed_fields() {
        let kvs = [
            ("event", Value::from("task.finished")),
            ("n", Value::from(3)),
            ("actor", Value::from("worker")),
        ];
        let record = Record::builder()
            .args(format_args!("done"))
            .level(Level::Info)
            .target("master")
            .key_values(&kvs)
            .build();
        let fields = fields(&record);
        assert_eq!(fields["event"], "task.finished");
        assert_eq!(fields["n"], 3);
        assert_eq!(fields["actor"], "worker");
        let line = text(&fields, false);
        assert!(
            line.contains("task.finished") && line.ends_with("n=3"),
            "{line}"
        );
    }
}
