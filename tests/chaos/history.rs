//! Clients of the API that go on while things break, and what each asked and was told, with its times.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use troupe_actors::id::TaskId;
use troupe_actors::testkit::linear;
use troupe_actors::testkit::trace::Record;

use crate::schedule::Dice;
use crate::support::request_within;
use crate::world::unix_ms;

/// Nobody waits longer for an answer: longer than the master waits for the registry.
const PATIENCE: Duration = Duration::from_secs(6);
/// What has no clear answer is sent again for so long once everything is mended.
const CLEARING: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Submit { durable: bool },
    Read,
    Cancel,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is accepted, and in this state.
    Accepted(String),
    /// This is how it stands.
    Stands { state: String, stale: bool },
    /// There is no such task.
    Missing,
    /// It cannot be cancelled: it stands like this.
    Conflict(String),
    /// Nothing was changed; the code says why.
    Refused(String),
    /// It may have happened, or may yet.
    Unknown,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    pub client: usize,
    pub task: TaskId,
    pub asked: Asked,
    pub told: Told,
    pub invoked: Duration,
    pub returned: Duration,
}

/// Clients at work.
pub struct Clients {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Call>>>,
    threads: Vec<JoinHandle<()>>,
}

struct Client {
    number: usize,
    began: Instant,
    addresses: Vec<String>,
    dice: Dice,
    rng: StdRng,
    calls: Arc<Mutex<Vec<Call>>>,
    /// Tasks of ours, durable or not.
    tasks: Vec<(TaskId, bool)>,
    /// Submits without a clear answer.
    open: Vec<(TaskId, bool)>,
}

impl Clients {
    pub fn start(n: usize, seed: u64, began: Instant, addresses: &[String]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let thread = |number: usize| {
            let (seed, stop) = (seed * 1000 + number as u64, Arc::clone(&stop));
            let mut client = Client {
                number,
                began,
                addresses: addresses.to_vec(),
                dice: Dice(seed),
                rng: StdRng::seed_from_u64(seed),
                calls: Arc::clone(&calls),
                tasks: Vec::new(),
                open: Vec::new(),
            };
            std::thread::spawn(move || client.work(&stop))
        };
        Self {
            threads: (1..=n).map(thread).collect(),
            stop,
            calls,
        }
    }

    /// They send again what has no clear answer, and stop. All that was asked and told, in the order of the asking.
    pub fn finish(mut self) -> Vec<Call> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().unwrap();
        }
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.sort_by_key(|call| call.invoked);
        calls
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Client {
    fn work(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.one_call();
            let rest = self.dice.ms(20, 80);
            std::thread::sleep(rest);
        }
        let deadline = Instant::now() + CLEARING;
        while !self.open.is_empty() && Instant::now() < deadline {
            for (task, durable) in std::mem::take(&mut self.open) {
                self.submit(task, durable);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn one_call(&mut self) {
        let known = self.dice.below(self.tasks.len().max(1));
        let task = self.tasks.get(known).copied();
        // The newest are the ones that something happens to.
        let newest = self.tasks.last().copied();
        match (self.dice.below(20), task, newest) {
            (0..=1, Some((task, _)), _) => self.read(task, ""),
            (2..=5, _, Some((task, _))) => self.read(task, ""),
            (6..=7, _, Some((task, _))) => self.read(task, "?wait=500ms"),
            (8, _, Some((task, _))) => self.cancel(task),
            (9, ..) => self.submit_new(false),
            (10..=12, ..) if !self.open.is_empty() => {
                let (task, durable) = self.open.remove(0);
                self.submit(task, durable);
            }
            _ => self.submit_new(true),
        }
    }

    fn submit_new(&mut self, durable: bool) {
        let task = TaskId::new(unix_ms(), &mut self.rng);
        self.tasks.push((task, durable));
        self.submit(task, durable);
    }

    fn submit(&mut self, task: TaskId, durable: bool) {
        let body =
            json!({"id": task, "job": "multiply", "input": {"number": 42}, "durable": durable});
        let told = self.call(
            task,
            Asked::Submit { durable },
            "POST",
            "/v1/tasks",
            &body.to_string(),
        );
        if told == Told::Unknown {
            self.open.push((task, durable));
        }
    }

    fn read(&mut self, task: TaskId, wait: &str) {
        let path = format!("/v1/tasks/{task}{wait}");
        self.call(task, Asked::Read, "GET", &path, "");
    }

    fn cancel(&mut self, task: TaskId) {
        let path = format!("/v1/tasks/{task}");
        self.call(task, Asked::Cancel, "DELETE", &path, "");
    }

    fn call(&mut self, task: TaskId, asked: Asked, method: &str, path: &str, body: &str) -> Told {
        let address = &self.addresses[self.dice.below(self.addresses.len())];
        let what = ("application/json", body);
        let invoked = self.began.elapsed();
        let answer = request_within(PATIENCE, address, (method, path), what);
        let returned = self.began.elapsed();
        let told = answer.map_or(Told::Unknown, |answer| understand(asked, &answer));
        self.calls.lock().unwrap().push(Call {
            client: self.number,
            task,
            asked,
            told: told.clone(),
            invoked,
            returned,
        });
        told
    }
}

/// Codes that promise that nothing was done. A call may be carried twice, so that other errors say nothing of the first time.
const NOTHING_DONE: [&str; 5] = [
    "busy",
    "not_recorded",
    "no_master",
    "expired",
    "invalid_task",
];

fn understand(asked: Asked, (status, body): &(u16, Value)) -> Told {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (state, error) = (text(&body["state"]), &body["error"]);
    let code = text(&error["code"]);
    match (status, asked) {
        (200..=202, Asked::Submit { .. }) => Told::Accepted(state),
        (200..=202, Asked::Read | Asked::Cancel) => Told::Stands {
            state,
            stale: body["stale"] == true,
        },
        (404, Asked::Read | Asked::Cancel) => Told::Missing,
        (409, Asked::Cancel) => Told::Conflict(text(&error["state"])),
        (400..=599, _) if NOTHING_DONE.contains(&code.as_str()) => Told::Refused(code),
        _ => Told::Unknown,
    }
}

/// How often each kind of answer was given.
pub fn answers(calls: &[Call]) -> BTreeMap<String, u64> {
    let mut answers = BTreeMap::new();
    for call in calls {
        let asked = match call.asked {
            Asked::Submit { .. } => "submit",
            Asked::Read => "read",
            Asked::Cancel => "cancel",
        };
        let told = match &call.told {
            Told::Accepted(_) | Told::Stands { .. } => "ok",
            Told::Missing => "missing",
            Told::Conflict(_) => "conflict",
            Told::Refused(code) => code,
            Told::Unknown => "unknown",
        };
        *answers.entry(format!("{asked}: {told}")).or_default() += 1;
    }
    answers
}

/// Durable tasks that were acknowledged, or not durable ones.
pub fn accepted(calls: &[Call], durable: bool) -> Vec<TaskId> {
    let wanted = Asked::Submit { durable };
    let of = calls.iter().filter(|call| call.asked == wanted);
    let yes = of.filter(|call| matches!(call.told, Told::Accepted(_)));
    let mut tasks: Vec<TaskId> = yes.map(|call| call.task).collect();
    tasks.sort();
    tasks.dedup();
    tasks
}

/// The submits as the invariants read them.
pub fn records(calls: &[Call]) -> Vec<Record> {
    let mut records = Vec::new();
    for call in calls {
        let Asked::Submit { durable } = call.asked else {
            continue;
        };
        let record = |at, event: &str| {
            let record = Record::new(at, &format!("client {}", call.client), 1, event);
            record.with("task", call.task).with("durable", durable)
        };
        let answer = match &call.told {
            Told::Accepted(_) => "accepted".to_owned(),
            Told::Refused(code) => format!("refused: {code}"),
            _ => "unknown".to_owned(),
        };
        records.push(record(call.invoked, "sim.submitted"));
        records.push(record(call.returned, "sim.answered").with("answer", answer));
    }
    records
}

/// What callers were told of durable tasks, as the checker of histories reads it.
pub fn of_durable(calls: &[Call]) -> Vec<linear::Call> {
    let durable = Asked::Submit { durable: true };
    let submitted = calls.iter().filter(|call| call.asked == durable);
    let tasks: BTreeSet<TaskId> = submitted.map(|call| call.task).collect();
    let of = calls.iter().filter(|call| tasks.contains(&call.task));
    of.filter_map(linear_call).collect()
}

/// `None` for a read that promises nothing.
fn linear_call(call: &Call) -> Option<linear::Call> {
    let stand = |state: &String| linear::Stand::parse(state);
    let answer = match &call.told {
        Told::Stands { stale: true, .. } if call.asked == Asked::Read => return None,
        Told::Accepted(state) | Told::Stands { state, .. } => linear::Answer::Stands(stand(state)?),
        Told::Missing if call.asked == Asked::Cancel => {
            linear::Answer::Refused(linear::Stand::Absent)
        }
        Told::Missing => linear::Answer::Stands(linear::Stand::Absent),
        Told::Conflict(state) => linear::Answer::Refused(stand(state)?),
        Told::Refused(_) => linear::Answer::Nothing,
        Told::Unknown => linear::Answer::Unknown,
    };
    Some(linear::Call {
        task: call.task.to_string(),
        asked: match call.asked {
            Asked::Submit { .. } => linear::Asked::Submit,
            Asked::Read => linear::Asked::Read,
            Asked::Cancel => linear::Asked::Cancel,
        },
        began: call.invoked,
        ended: (call.told != Told::Unknown).then_some(call.returned),
        answer,
    })
}
