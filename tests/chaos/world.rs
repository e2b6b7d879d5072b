//! The nodes of a round, each a process in a network of its own where that is permitted, and what all their lives said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use troupe_actors::testkit::trace::Record;

use crate::schedule::{Means, Plan};
use crate::store::Store;
use crate::support::net::Net;
use crate::support::secure::{SECURE, token_file};
use crate::support::{
    Process, TROUPE, clean_env, event, free_ports, inside, request_within, secret_file,
};
use crate::verdicts::Excuse;

/// Attempts side by side of each worker.
pub const CAPACITY: usize = 4;
/// Faster than shipped, so that a round has many tasks; and no task is dead because its workers died.
const SETTINGS: [&str; 8] = [
    "generator.every=100ms",
    "worker.delay_min=10ms",
    "worker.delay_max=300ms",
    "worker.capacity=4",
    "master.retry_wait=100ms",
    "master.max_attempts=50",
    "master.max_kills=50",
    "node.drain=3s",
];

/// The cluster must be whole so long after everything was mended: a node that was condemned again and again waits up to 16 s.
const WHOLE: Duration = Duration::from_secs(40);

/// How the nodes of a world differ from those of another.
#[derive(Default)]
pub struct Fashion {
    /// `key=value`, beside the usual ones.
    pub settings: Vec<String>,
    /// How much the processes stand back behind others.
    pub nice: u8,
}

pub struct Host {
    pub name: String,
    pub ip: String,
    pub port: u16,
    pub process: Option<Process>,
    pub life: u32,
    netns: Option<String>,
    /// Its wall clock is what this file says.
    clock: Option<PathBuf>,
    args: Vec<String>,
    nice: u8,
    pub frozen: usize,
    cables_pulled: usize,
    rules: Vec<(usize, &'static str, String)>,
}

/// A process that has ended: what it said.
struct Ended {
    node: String,
    life: u32,
    lines: Vec<(Instant, Value)>,
    at: Instant,
}

/// Dropped in this order: nodes, registry, network.
pub struct World {
    pub hosts: Vec<Host>,
    pub store: Store,
    pub net: Option<Net>,
    ended: Vec<Ended>,
    pub began: Instant,
    began_wall: SystemTime,
    excuses: BTreeMap<(usize, usize), Vec<Excuse>>,
    /// Nodes that left without being told to, and how.
    pub left: Vec<String>,
    _clocks: tempfile::TempDir,
}

/// Where Debian has the library.
pub fn libfaketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let mut found = folders.map(|f| f.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists())
}

impl World {
    /// All of the plan's nodes, whole. `means` is what was found to be permitted.
    pub fn start(plan: &Plan, means: Means, fashion: &Fashion) -> Self {
        let net = means
            .net
            .then(|| Net::new(plan.hosts + plan.registry.size()).expect("it was permitted before"));
        if let Some(net) = &net {
            net.enter();
        }
        let store = Store::start(plan.registry, net.as_ref(), plan.hosts, plan.small_disk);
        let clocks = tempfile::tempdir().unwrap();
        let endpoints = store.endpoints();
        let settings = [store.access(), fashion.settings.clone()].concat();
        let host = |n: usize| {
            let ip = net.as_ref().map_or("127.0.0.1".to_owned(), |_| Net::ip(n));
            let port = net.as_ref().map_or_else(|| free_ports(2), |_| 22222);
            let name = format!("n{n}");
            let clock = plan.clocks.contains(&n).then(|| clocks.path().join(&name));
            Host {
                args: arguments(&name, &ip, port, &endpoints, &settings),
                nice: fashion.nice,
                name,
                ip,
                port,
                process: None,
                life: 0,
                netns: net.as_ref().map(|net| net.ns(n)),
                clock,
                frozen: 0,
                cables_pulled: 0,
                rules: Vec::new(),
            }
        };
        let mut world = Self {
            hosts: (1..=plan.hosts).map(host).collect(),
            store,
            net,
            ended: Vec::new(),
            began: Instant::now(),
            began_wall: SystemTime::now(),
            excuses: BTreeMap::new(),
            left: Vec::new(),
            _clocks: clocks,
        };
        for host in &mut world.hosts {
            host.set_clock(0);
            host.start();
        }
        world.wait_whole();
        world
    }

    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn admins(&self) -> Vec<String> {
        self.hosts.iter().map(Host::admin).collect()
    }

    /// Who leads, as the first says who answers.
    pub fn master(&self) -> Option<usize> {
        let free = self.hosts.iter().filter(|h| h.is_free());
        let mut answers = free.filter_map(|h| h.get("/v1/master"));
        let (_, master) = answers.find(|(status, _)| *status == 200)?;
        self.hosts.iter().position(|h| master["name"] == *h.name)
    }

    // --- processes ---------------------------------------------------------------------------------------------------

    /// kill -9, and what it said is kept.
    pub fn kill(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.frozen = 0;
        if let Some(process) = host.process.take() {
            process.signal(Signal::KILL);
            let killed = Instant::now();
            self.ended.push(Ended {
                node: host.name.clone(),
                life: host.life,
                lines: process.last_words(),
                at: killed,
            });
        }
    }

    pub fn start_host(&mut self, at: usize) {
        if self.hosts[at].process.is_none() {
            self.hosts[at].start();
        }
    }

    pub fn freeze(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.frozen += 1;
        host.signal(Signal::STOP);
    }

    pub fn thaw(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.frozen = host.frozen.saturating_sub(1);
        if host.frozen == 0 {
            host.signal(Signal::CONT);
        }
    }

    // --- the network -------------------------------------------------------------------------------------------------

    /// Further rules of a host's filter, to be taken away by the same number.
    pub fn filter(&mut self, number: usize, at: usize, rules: Vec<(&'static str, String)>) {
        let rules = rules.into_iter().map(|(chain, rule)| (number, chain, rule));
        self.hosts[at].rules.extend(rules);
        self.apply(at);
    }

    pub fn unfilter(&mut self, number: usize) {
        for at in 0..self.hosts.len() {
            let before = self.hosts[at].rules.len();
            self.hosts[at].rules.retain(|(of, ..)| *of != number);
            if self.hosts[at].rules.len() != before {
                self.apply(at);
            }
        }
    }

    fn apply(&self, at: usize) {
        let rules = self.hosts[at].rules.iter();
        let rules: Vec<(&str, String)> = rules.map(|(_, chain, r)| (*chain, r.clone())).collect();
        if let Some(net) = &self.net {
            net.set_rules(at + 1, &rules);
        }
    }

    pub fn pull_cable(&mut self, at: usize) {
        self.hosts[at].cables_pulled += 1;
        if let Some(net) = &self.net {
            net.set_link(at + 1, false);
        }
    }

    pub fn plug_in(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.cables_pulled -= 1;
        if let Some(net) = self.net.as_ref().filter(|_| host.cables_pulled == 0) {
            net.set_link(at + 1, true);
        }
    }

    // --- excuses -----------------------------------------------------------------------------------------------------

    /// From now on this node cannot be heard, or does not run, because of that fault.
    pub fn excuse(&mut self, number: usize, at: usize) {
        let excuse = Excuse {
            node: self.hosts[at].name.clone(),
            from: self.now(),
            to: None,
        };
        let all = self.excuses.entry((number, at)).or_default();
        all.push(excuse);
    }

    /// Not any more.
    pub fn no_excuse(&mut self, number: usize) {
        let now = self.now();
        let of_fault = self.excuses.range_mut((number, 0)..(number + 1, 0));
        for excuse in of_fault.flat_map(|(_, excuses)| excuses) {
            excuse.to.get_or_insert(now);
        }
    }

    pub fn excuses(&self) -> Vec<Excuse> {
        self.excuses.values().flatten().cloned().collect()
    }

    // --- waiting -----------------------------------------------------------------------------------------------------

    /// A mark per host, to wait from.
    pub fn marks(&self) -> Vec<usize> {
        let lines = self.hosts.iter().map(|h| h.process.as_ref());
        lines.map(|p| p.map_or(0, |p| p.lines.mark())).collect()
    }

    /// How long after `since` another than `but` was promoted; waits for it.
    pub fn promoted_after(&self, since: Instant, but: usize, marks: &[usize]) -> Option<Duration> {
        let deadline = since + Duration::from_secs(15);
        while Instant::now() < deadline {
            let others = self.hosts.iter().zip(marks).enumerate();
            let moments = others
                .filter(|(at, _)| *at != but)
                .flat_map(|(_, (host, mark))| {
                    let lines = host.process.as_ref().map(|p| p.lines.since(*mark));
                    let promoted = lines.into_iter().flatten();
                    let promoted = promoted.filter(|(_, line)| event(line, "master.promoted"));
                    promoted.map(|(came, line)| self.moment(host, came, &line))
                });
            if let Some(first) = moments.filter(|at| *at >= since).min() {
                return Some(first - since);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// When a line was written: by its own word, if that clock is as it should be; else when it was read.
    fn moment(&self, host: &Host, came: Instant, line: &Value) -> Instant {
        let written = line["ts"].as_str().filter(|_| host.clock.is_none());
        let written = written.and_then(|ts| humantime::parse_rfc3339(ts).ok());
        let since = written.and_then(|at| at.duration_since(self.began_wall).ok());
        since.map_or(came, |since| came.min(self.began + since))
    }

    /// Every node sees every node alive and the same master.
    pub fn wait_whole(&mut self) {
        let names: BTreeMap<String, String> = self
            .hosts
            .iter()
            .map(|h| (h.name.clone(), "alive".to_owned()))
            .collect();
        let deadline = Instant::now() + WHOLE;
        loop {
            self.revive();
            let seen: Vec<_> = self.hosts.iter().map(Host::sees).collect();
            let whole = |view: &(BTreeMap<String, String>, String)| {
                view.0 == names && view.1 == seen[0].1 && !view.1.is_empty()
            };
            if seen.iter().all(whole) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not whole within {WHOLE:?}: {seen:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// An init system's part: who left is started again, and it is noted how it left.
    pub fn revive(&mut self) {
        for at in 0..self.hosts.len() {
            let host = &mut self.hosts[at];
            let Some(process) = host.process.as_mut().filter(|_| host.frozen == 0) else {
                continue;
            };
            if !process.runs() {
                let code = process.wait(Duration::ZERO);
                self.left.push(format!("{} with {code:?}", host.name));
                self.kill(at);
                self.start_host(at);
            }
        }
    }

    /// What a node that was told to stop says when it has; `None` when it had to be killed.
    pub fn wait_left(&mut self, at: usize, within: Duration) {
        if let Some(process) = &mut self.hosts[at].process {
            let deadline = Instant::now() + within;
            while process.runs() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Everything that every process said, in order of time.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        let mut add = |node: &str, life: u32, lines: &[(Instant, Value)]| {
            for (at, line) in lines {
                let at = at.saturating_duration_since(self.began);
                records.extend(Record::from_json(&line.to_string(), at, node, life));
            }
        };
        for ended in &self.ended {
            add(&ended.node, ended.life, &ended.lines);
        }
        for host in &self.hosts {
            if let Some(process) = &host.process {
                add(&host.name, host.life, &process.lines.all());
            }
        }
        for ended in &self.ended {
            // What was in the pipe when it died was read afterwards.
            let read = ended
                .lines
                .last()
                .map_or(ended.at, |(at, _)| ended.at.max(*at));
            let at = read.saturating_duration_since(self.began);
            records.push(Record::new(at, &ended.node, ended.life, "sim.crashed"));
        }
        records.sort_by_key(|record| record.at);
        records
    }

    /// All that was said, a file for each life, for somebody to read.
    pub fn keep_logs(&self, dir: &Path) {
        let write = |name: String, lines: Vec<String>| {
            std::fs::write(dir.join(name), lines.join("\n") + "\n").unwrap();
        };
        let text = |lines: &[(Instant, Value)]| -> Vec<String> {
            let of = |(at, line): &(Instant, Value)| {
                let at = at.saturating_duration_since(self.began).as_secs_f64();
                format!("{at:10.4} {line}")
            };
            lines.iter().map(of).collect()
        };
        for ended in &self.ended {
            write(format!("{}.{}", ended.node, ended.life), text(&ended.lines));
        }
        for host in &self.hosts {
            if let Some(process) = &host.process {
                write(
                    format!("{}.{}", host.name, host.life),
                    text(&process.lines.all()),
                );
            }
        }
        write("registry".to_owned(), self.store.said());
        let records = self.records();
        write(
            "merged".to_owned(),
            records.iter().map(Record::to_string).collect(),
        );
    }
}

fn arguments(name: &str, ip: &str, port: u16, endpoints: &str, more: &[String]) -> Vec<String> {
    let mut args: Vec<String> = ["run", "--name", name, "--registry", endpoints]
        .map(str::to_owned)
        .to_vec();
    args.extend(["--bind".to_owned(), format!("{ip}:{port}")]);
    args.extend(["--admin".to_owned(), format!("{ip}:{}", port + 1)]);
    args.extend(["--log-format".to_owned(), "json".to_owned()]);
    let secret = format!("security.secret_file={}", secret_file());
    args.extend(["--set".to_owned(), secret]);
    if !ip.starts_with("127.") {
        let token = format!("admin.token_file={}", token_file());
        args.extend(["--set".to_owned(), token]);
    }
    let settings = SETTINGS.map(str::to_owned);
    for setting in settings.iter().chain(more) {
        args.extend(["--set".to_owned(), setting.clone()]);
    }
    args
}

impl Host {
    /// Beyond loopback the API is asked over TLS, with the token.
    pub fn admin(&self) -> String {
        let tls = if self.netns.is_some() { SECURE } else { "" };
        format!("{tls}{}:{}", self.ip, self.port + 1)
    }

    pub fn get(&self, path: &str) -> Option<(u16, Value)> {
        self.ask("GET", path, "")
    }

    pub fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let patience = Duration::from_secs(2);
        let kind = "application/json";
        request_within(patience, &self.admin(), (method, path), (kind, body))
    }

    /// Nothing is done to it just now.
    fn is_free(&self) -> bool {
        let runs = self.process.is_some() && self.frozen == 0;
        runs && self.cables_pulled == 0 && self.rules.is_empty()
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Its wall clock is so many seconds off.
    pub fn set_clock(&self, seconds: i64) {
        if let Some(file) = &self.clock {
            // In one step: it is read at any time.
            let new = file.with_extension("new");
            std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
            std::fs::rename(&new, file).unwrap();
        }
    }

    fn start(&mut self) {
        let mut command = inside(self.netns.as_deref(), "nice");
        command.args(["-n", &self.nice.to_string(), TROUPE]);
        command.args(&self.args);
        clean_env(&mut command);
        if let (Some(file), Some(library)) = (&self.clock, libfaketime()) {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("FAKETIME_TIMESTAMP_FILE", file)
                .env("FAKETIME_CACHE_DURATION", "1");
        }
        self.process = Some(Process::start(&mut command));
        self.life += 1;
    }

    /// Members by state, and the master's name.
    fn sees(&self) -> (BTreeMap<String, String>, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let json = |path| self.get(path).map(|(_, json)| json).unwrap_or_default();
        let members = json("/v1/members");
        let members = members["members"].as_array().cloned().unwrap_or_default();
        let states = members
            .iter()
            .map(|m| (text(&m["name"]), text(&m["state"])));
        (states.collect(), text(&json("/v1/master")["epoch"]))
    }
}

/// Unix milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64
}
