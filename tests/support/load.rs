//! Load at a steady rate, by several clients that send again what was not acknowledged.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use troupe_actors::id::TaskId;

use super::request_as;

/// Tasks in one body.
const BATCH: u64 = 100;
/// Threads that submit.
const CLIENTS: u64 = 4;

/// A number from the environment, or the usual one.
pub fn number(variable: &str, usual: u64) -> u64 {
    let told = std::env::var(variable).ok();
    told.map_or(usual, |text| {
        let parsed = text.parse();
        parsed.unwrap_or_else(|_| panic!("{variable} = {text}"))
    })
}

/// What the clients saw.
#[derive(Default)]
pub struct Seen {
    stop: AtomicBool,
    accepted: Mutex<BTreeSet<String>>,
    again: AtomicU64,
    last: Mutex<Option<Instant>>,
    gap: Mutex<Duration>,
}

impl Seen {
    /// Ids of the tasks that were acknowledged so far.
    pub fn accepted(&self) -> BTreeSet<String> {
        self.accepted.lock().unwrap().clone()
    }

    /// Bodies that were sent again.
    pub fn again(&self) -> u64 {
        self.again.load(Ordering::Relaxed)
    }

    /// The longest time without any acknowledgement.
    pub fn gap(&self) -> Duration {
        *self.gap.lock().unwrap()
    }

    fn acknowledged(&self, ids: Vec<String>) {
        let now = Instant::now();
        if let Some(last) = self.last.lock().unwrap().replace(now) {
            let mut gap = self.gap.lock().unwrap();
            *gap = (*gap).max(now - last);
        }
        self.accepted.lock().unwrap().extend(ids);
    }
}

/// Clients at work.
pub struct Load {
    /// What they see.
    pub seen: Arc<Seen>,
    clients: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// `noop` tasks at this rate, to any of these nodes.
    pub fn start(addresses: &[String], rate: u64, durable: bool) -> Self {
        let seen = Arc::new(Seen::default());
        let start = |which| {
            let (addresses, seen) = (addresses.to_vec(), Arc::clone(&seen));
            std::thread::spawn(move || client(&addresses, rate, durable, which, &seen))
        };
        let clients = (0..CLIENTS).map(start).collect();
        Self { seen, clients }
    }

    /// Stops when what is under way is acknowledged.
    pub fn finish(self) -> Arc<Seen> {
        self.seen.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().unwrap();
        }
        self.seen
    }
}

fn body(durable: bool) -> String {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let unix_ms = unix_ms.as_millis() as u64;
    let task = |n| {
        let id = TaskId::new(unix_ms, &mut rand::rng());
        format!("{{\"id\":\"{id}\",\"job\":\"noop\",\"input\":{n},\"durable\":{durable}}}\n")
    };
    (0..BATCH).map(task).collect()
}

fn client(addresses: &[String], rate: u64, durable: bool, which: u64, seen: &Seen) {
    let every = Duration::from_secs_f64((BATCH * CLIENTS) as f64 / rate as f64);
    let mut due = Instant::now();
    let mut turn = which as usize;
    while !seen.stop.load(Ordering::Relaxed) {
        let lines = body(durable);
        while !sent(&addresses[turn % addresses.len()], &lines, seen) {
            turn += 1;
            seen.again.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(2));
        }
        due += every;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn sent(address: &str, lines: &str, seen: &Seen) -> bool {
    let answer = request_as(address, "POST", "/v1/tasks", "application/x-ndjson", lines);
    let Some((200, Value::String(answers))) = answer else {
        return false;
    };
    let answers = answers.lines();
    let answers: Vec<Value> = answers
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let refused = answers.iter().any(|a| a.get("error").is_some());
    let whole = answers.len() as u64 == BATCH && !refused;
    if whole {
        let ids = answers.iter().filter_map(|a| a["id"].as_str());
        seen.acknowledged(ids.map(str::to_owned).collect());
    }
    whole
}
