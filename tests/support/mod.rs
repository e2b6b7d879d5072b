//! Real processes for tests: the built binary, a real etcd, and what they log. Everything is killed when it is dropped.
//!
//! Tests wait on events (a log line, an API answer), never on sleeps; every wait has a deadline that names what was missing.

#![allow(dead_code, reason = "each test file uses its own part of this")]

pub mod browser;
pub mod load;
pub mod net;
pub mod secure;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than anything that is right can take; a test that gets here has failed.
pub const LONG: Duration = Duration::from_secs(30);

/// The binary under test.
pub const TROUPE: &str = env!("CARGO_BIN_EXE_troupe");

/// Whoever measures takes turns: nothing else of this test binary runs meanwhile.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A port that was free a moment ago and that no other test of this process is given.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `n` such ports in a row.
pub fn free_ports(n: u16) -> u16 {
    // Below the range that the kernel gives to outgoing connections; each test binary begins elsewhere.
    const FIRST: u32 = 11_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(379) % COUNT;
    loop {
        let step = NEXT.fetch_add(u32::from(n), Ordering::Relaxed);
        let port = (FIRST + (begin + step) % (COUNT - 200)) as u16;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (port..port + n).all(free) {
            return port;
        }
    }
}

/// When a line came, and what it said.
type Line = (Instant, Value);

/// Lines that a process has printed, and a way to wait for one.
#[derive(Clone, Default)]
pub struct Lines {
    inner: Arc<(Mutex<Vec<Line>>, Condvar)>,
}

impl Lines {
    fn push(&self, text: &str) {
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        self.inner.0.lock().unwrap().push((Instant::now(), value));
        self.inner.1.notify_all();
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<(Instant, Value)> {
        self.inner.0.lock().unwrap().clone()
    }

    /// Those from `mark` on.
    pub fn since(&self, mark: usize) -> Vec<(Instant, Value)> {
        let lines = self.inner.0.lock().unwrap();
        lines.get(mark..).unwrap_or_default().to_vec()
    }

    /// How many lines there are so far: a mark to wait from.
    pub fn mark(&self) -> usize {
        self.inner.0.lock().unwrap().len()
    }

    /// The first line from `mark` on that fits, and when it came.
    pub fn wait_from(
        &self,
        mark: usize,
        what: &str,
        within: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> (Instant, Value) {
        let deadline = Instant::now() + within;
        let mut lines = self.inner.0.lock().unwrap();
        let mut seen = mark;
        loop {
            if let Some(hit) = lines[seen..].iter().find(|(_, v)| fits(v)) {
                return hit.clone();
            }
            seen = lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let tail: Vec<String> = lines
                    .iter()
                    .rev()
                    .take(40)
                    .map(|(_, v)| v.to_string())
                    .collect();
                let tail: Vec<String> = tail.into_iter().rev().collect();
                panic!(
                    "no {what} within {within:?}; the last lines were:\n{}",
                    tail.join("\n")
                );
            }
            lines = self.inner.1.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// A line is this event.
pub fn event(line: &Value, name: &str) -> bool {
    line["event"] == name
}

/// A running process with its lines.
pub struct Process {
    child: Child,
    readers: Vec<std::thread::JoinHandle<()>>,
    /// What it printed on stdout and stderr.
    pub lines: Lines,
}

impl Process {
    /// Starts it, reading both outputs to the end.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("cannot start {command:?}: {err}"));
        let lines = Lines::default();
        let outputs: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        let read = |output: Box<dyn Read + Send>| {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines() {
                    let Ok(line) = line else { return };
                    lines.push(&line);
                }
            })
        };
        Self {
            child,
            readers: outputs.into_iter().map(read).collect(),
            lines,
        }
    }

    /// Kills it, and answers all that it ever said. The last line may be cut.
    pub fn last_words(mut self) -> Vec<(Instant, Value)> {
        self.signal(Signal::CONT);
        self.kill();
        for reader in std::mem::take(&mut self.readers) {
            reader.join().unwrap();
        }
        self.lines.all()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        // It may have gone already.
        kill_process(pid, signal).ok();
    }

    /// Waits for its end and answers the exit code; `None` when a signal ended it.
    pub fn wait(&mut self, within: Duration) -> Option<i32> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(
                Instant::now() < deadline,
                "the process did not end within {within:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kill it and wait until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.kill();
    }
}

/// A real etcd with a data directory of its own, on loopback ports of its own.
pub struct Etcd {
    process: Option<Process>,
    dir: tempfile::TempDir,
    /// Client port.
    pub port: u16,
    peer_port: u16,
    address: String,
    netns: Option<String>,
}

impl Etcd {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        Self::start_in(None, "127.0.0.1")
    }

    /// Starts one inside a network namespace, on that address.
    pub fn start_in(netns: Option<String>, address: &str) -> Self {
        let mut etcd = Self {
            process: None,
            dir: tempfile::tempdir().unwrap(),
            port: free_port(),
            peer_port: free_port(),
            address: address.to_owned(),
            netns,
        };
        etcd.start_again();
        etcd
    }

    /// `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.address, self.port)
    }

    /// Starts it (again) on the same data, and waits until it answers.
    pub fn start_again(&mut self) {
        let client = self.url();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = inside(self.netns.as_deref(), "etcd");
        command
            .env("ETCD_DATA_DIR", self.dir.path())
            .env("ETCD_LISTEN_CLIENT_URLS", &client)
            .env("ETCD_ADVERTISE_CLIENT_URLS", &client)
            .env("ETCD_LISTEN_PEER_URLS", &peer)
            .env("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peer)
            .env("ETCD_INITIAL_CLUSTER", format!("default={peer}"))
            .env("ETCD_LOG_LEVEL", "error")
            .env("ETCD_UNSAFE_NO_FSYNC", "true");
        self.process = Some(Process::start(&mut command));
        let deadline = Instant::now() + LONG;
        while !self.ctl(&["endpoint", "health"]).status.success() {
            assert!(Instant::now() < deadline, "etcd does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it; the data stays.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }

    /// Runs etcdctl against it.
    pub fn ctl(&self, args: &[&str]) -> std::process::Output {
        inside(self.netns.as_deref(), "etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url()))
            .arg("--command-timeout=2s")
            .args(args)
            .output()
            .expect("etcdctl (Debian: etcd-client) is not installed")
    }

    /// What etcdctl printed.
    pub fn say(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        assert!(output.status.success(), "etcdctl {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A command inside a network namespace, or outside of any.
pub fn inside(netns: Option<&str>, program: &str) -> Command {
    match netns {
        None => Command::new(program),
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, program]);
            command
        }
    }
}

/// One `troupe run`.
pub struct Node {
    /// The process.
    pub process: Process,
    /// Its name.
    pub name: String,
    /// Port between nodes; the admin API is on the next.
    pub port: u16,
    netns: Option<String>,
    args: Vec<String>,
}

/// A cluster secret for the nodes of this test binary that are not on loopback.
pub fn secret_file() -> &'static str {
    static SECRET: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    let (_, path) = SECRET.get_or_init(keygen);
    path
}

/// A file that `troupe keygen` made, and the folder that it is in.
fn keygen() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret").to_str().unwrap().to_owned();
    let made = Command::new(TROUPE).args(["keygen", &path]).status();
    assert!(made.unwrap().success());
    (dir, path)
}

/// The generator and the worker at the speed of `troupe dev --fast`.
pub const FAST: [&str; 6] = [
    "--set",
    "generator.every=200ms",
    "--set",
    "worker.delay_min=10ms",
    "--set",
    "worker.delay_max=150ms",
];

impl Node {
    /// Starts a fast node on loopback.
    pub fn start(name: &str, registry: &str) -> Self {
        Self::start_with(name, registry, &FAST)
    }

    /// Starts a node on loopback with further arguments.
    pub fn start_with(name: &str, registry: &str, more: &[&str]) -> Self {
        let port = free_ports(2);
        Self::start_at(name, registry, port, more)
    }

    /// Starts a node on loopback that rolls its name.
    pub fn start_nameless(registry: &str, more: &[&str]) -> Self {
        Self::start_in(None, "127.0.0.1", "", registry, free_ports(2), more)
    }

    /// Starts a node on this loopback port.
    pub fn start_at(name: &str, registry: &str, port: u16, more: &[&str]) -> Self {
        Self::start_in(None, "127.0.0.1", name, registry, port, more)
    }

    /// Starts a node inside a network namespace. Its admin API is on loopback there.
    pub fn start_in(
        netns: Option<String>,
        ip: &str,
        name: &str,
        registry: &str,
        port: u16,
        more: &[&str],
    ) -> Self {
        let admin = format!("127.0.0.1:{}", port + 1);
        Self::start_admin(
            netns,
            ip,
            name,
            registry,
            port,
            &[&["--admin", &admin], more].concat(),
        )
    }

    /// Starts a node whose arguments say where its admin API is.
    pub fn start_admin(
        netns: Option<String>,
        ip: &str,
        name: &str,
        registry: &str,
        port: u16,
        more: &[&str],
    ) -> Self {
        let own = [
            "run".to_owned(),
            "--registry".to_owned(),
            registry.to_owned(),
            "--bind".to_owned(),
            format!("{ip}:{port}"),
            "--log-format".to_owned(),
            "json".to_owned(),
        ];
        let named = ["--name".to_owned(), name.to_owned()];
        let named = named.into_iter().filter(|_| !name.is_empty());
        let secret = (!ip.starts_with("127.")).then(|| {
            let set = format!("security.secret_file={}", secret_file());
            ["--set".to_owned(), set]
        });
        let args: Vec<String> = own
            .into_iter()
            .chain(named)
            .chain(secret.into_iter().flatten())
            .chain(more.iter().map(|s| (*s).to_owned()))
            .collect();
        let process = spawn(netns.as_deref(), TROUPE, &args);
        Self {
            process,
            name: name.to_owned(),
            port,
            netns,
            args,
        }
    }

    /// Kills it with -9 if it still runs, and starts it again with the same arguments.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.netns.as_deref(), TROUPE, &self.args);
    }

    /// Tells it to stop, waits until it has, and starts it again with the same arguments as this program.
    pub fn become_program(&mut self, program: &str) {
        self.process.signal(Signal::TERM);
        assert_eq!(
            self.process.wait(2 * LONG),
            Some(0),
            "{} leaves in order",
            self.name
        );
        self.process = spawn(self.netns.as_deref(), program, &self.args);
    }

    /// Its admin API.
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.port + 1)
    }

    /// Waits for an event from `mark` on.
    pub fn wait_event(&self, mark: usize, name: &str, within: Duration) -> (Instant, Value) {
        let what = format!("{name} at {}", self.name);
        self.process
            .lines
            .wait_from(mark, &what, within, |line| event(line, name))
    }

    /// Waits for a line from the beginning on.
    pub fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> (Instant, Value) {
        let what = format!("{what} at {}", self.name);
        self.process.lines.wait_from(0, &what, LONG, fits)
    }

    /// `GET path`: status and JSON body (loopback only).
    pub fn get(&self, path: &str) -> Option<(u16, Value)> {
        request(&self.admin(), "GET", path, "")
    }

    /// `POST path`.
    pub fn post(&self, path: &str, body: &str) -> Option<(u16, Value)> {
        request(&self.admin(), "POST", path, body)
    }

    /// Runs the command line against this node.
    pub fn cli(&self, args: &[&str]) -> std::process::Output {
        inside(self.netns.as_deref(), TROUPE)
            .arg("--api")
            .arg(format!("http://{}", self.admin()))
            .args(args)
            .output()
            .unwrap()
    }

    /// Members by state, as this node sees them: name → state.
    pub fn members(&self) -> BTreeMap<String, String> {
        let json = self.members_json().unwrap_or_default();
        let members = json["members"].as_array().cloned().unwrap_or_default();
        members
            .iter()
            .map(|m| {
                let text = |key: &str| m[key].as_str().unwrap_or("?").to_owned();
                (text("name"), text("state"))
            })
            .collect()
    }

    fn members_json(&self) -> Option<Value> {
        if self.netns.is_none() {
            return self.get("/v1/members").map(|(_, v)| v);
        }
        serde_json::from_slice(&self.cli(&["--json", "members"]).stdout).ok()
    }

    /// Who leads, as this node sees it.
    pub fn master(&self) -> Option<(String, String)> {
        let json = if self.netns.is_none() {
            let (status, json) = self.get("/v1/master")?;
            (status == 200).then_some(json)?
        } else {
            serde_json::from_slice(&self.cli(&["--json", "master"]).stdout).ok()?
        };
        let name = json["name"].as_str()?.to_owned();
        Some((name, json["epoch"].as_str()?.to_owned()))
    }

    /// Waits until this node sees exactly these members alive and a master.
    pub fn wait_members(&self, names: &[&str], within: Duration) {
        let want: BTreeMap<String, String> = names
            .iter()
            .map(|n| ((*n).to_owned(), "alive".to_owned()))
            .collect();
        let what = format!("{} sees {names:?} alive", self.name);
        until(&what, within, || {
            let seen = self.members();
            (seen == want)
                .then_some(())
                .ok_or_else(|| format!("{seen:?}"))
        });
    }

    /// Waits until this node sees a master that is not `other`, and answers its name and epoch.
    pub fn wait_master_other_than(&self, other: &str, within: Duration) -> (String, String) {
        let what = format!("{} sees a master other than {other:?}", self.name);
        until(&what, within, || match self.master() {
            Some(master) if master.0 != other => Ok(master),
            seen => Err(format!("{seen:?}")),
        })
    }
}

fn spawn(netns: Option<&str>, program: &str, args: &[String]) -> Process {
    let mut command = inside(netns, program);
    command.args(args);
    clean_env(&mut command);
    Process::start(&mut command)
}

/// No setting of the caller's reaches the process under test.
pub fn clean_env(command: &mut Command) {
    for (key, _) in std::env::vars() {
        // A backtrace of a debug build takes longer than the restart that is measured.
        if key.starts_with("TROUPE_") || key == "RUST_LOG" || key == "RUST_BACKTRACE" {
            command.env_remove(key);
        }
    }
    // A config.toml of the current directory would count too.
    command.current_dir(std::env::temp_dir());
}

/// Tries until it is `Ok`; a deadline names the last reason.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) => assert!(
                Instant::now() < deadline,
                "not within {within:?}: {what}: {why}"
            ),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One HTTP request, one JSON answer; `None` when nobody answers.
pub fn request(address: &str, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    request_as(address, method, path, "application/json", body)
}

/// One HTTP request with a body of this type; what is not JSON is answered as a text.
pub fn request_as(
    address: &str,
    method: &str,
    path: &str,
    kind: &str,
    body: &str,
) -> Option<(u16, Value)> {
    request_within(
        Duration::from_secs(35),
        address,
        (method, path),
        (kind, body),
    )
}

/// The same for somebody who does not wait so long for a peer that falls silent.
pub fn request_within(
    silence: Duration,
    address: &str,
    (method, path): (&str, &str),
    (kind, body): (&str, &str),
) -> Option<(u16, Value)> {
    let (secure, address) = match address.strip_prefix(secure::SECURE) {
        Some(address) => (true, address),
        None => (false, address),
    };
    let address: SocketAddr = address.parse().ok()?;
    let connect = silence.min(Duration::from_secs(1));
    let stream = TcpStream::connect_timeout(&address, connect).ok()?;
    stream.set_read_timeout(Some(silence)).ok()?;
    let told = if secure { secure::bearer() } else { "" };
    let said = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{told}content-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = match secure {
        true => converse(secure::over_tls(address, stream)?, &said)?,
        false => converse(stream, &said)?,
    };
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    let value = serde_json::from_str(&body).unwrap_or(Value::String(body));
    Some((status, value))
}

fn converse(mut stream: impl Read + Write, said: &str) -> Option<String> {
    stream.write_all(said.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
            break;
        };
        let Some(chunk) = rest.get(..size).filter(|_| size > 0) else {
            break;
        };
        whole.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or("");
    }
    whole
}

/// A real etcd and fast nodes `n1`, `n2`, … on it; waits until all see all.
pub struct Cluster {
    /// Started in order; `n1` leads at first.
    pub nodes: Vec<Node>,
    /// Dropped after the nodes.
    pub etcd: Etcd,
}

impl Cluster {
    /// With fast nodes.
    pub fn start(n: usize) -> Self {
        Self::start_with(n, &FAST)
    }

    /// With these further arguments for each node.
    pub fn start_with(n: usize, more: &[&str]) -> Self {
        let etcd = Etcd::start();
        let url = etcd.url();
        let first = Node::start_with("n1", &url, more);
        first.wait("master.promoted", |l| event(l, "master.promoted"));
        let mut nodes = vec![first];
        for i in 2..=n {
            nodes.push(Node::start_with(&format!("n{i}"), &url, more));
        }
        let cluster = Self { nodes, etcd };
        cluster.wait_whole();
        cluster
    }

    /// All nodes see all nodes alive.
    pub fn wait_whole(&self) {
        let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
        for node in &self.nodes {
            node.wait_members(&names, LONG);
        }
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|n| n.name == name).unwrap()
    }

    /// The node of this name.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|n| n.name == name).unwrap()
    }

    /// Waits until a task finishes at this master, from now on.
    pub fn wait_task(&self, master: &str) {
        let node = self.node(master);
        let mark = node.process.lines.mark();
        node.wait_event(mark, "task.finished", LONG);
    }
}

/// A registry of its own process with its data on disk, and nodes on it.
pub fn on_disk(dir: &Path, port: u16) -> Process {
    let mut command = Command::new(TROUPE);
    command.args([
        "registry",
        "serve",
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--data-dir",
    ]);
    command.arg(dir);
    clean_env(&mut command);
    let process = Process::start(&mut command);
    process.lines.wait_from(0, "registry.serving", LONG, |l| {
        event(l, "registry.serving")
    });
    process
}

/// Where a test may leave what it measured.
pub fn out_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}
