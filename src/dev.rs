//! `troupe dev`: the registry and N nodes as children of this process, their lines merged, all drained on Ctrl-C.
//!
//! Everything is a process of its own, so that anything can be killed to watch what happens. Children die with this one.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::cli::DevArgs;
use crate::logging::{self, Format};
use crate::security;

/// Lines waiting to be printed; a slow reader must not stall the nodes, so beyond this the oldest are dropped and counted.
const MAX_LINES: usize = 10_000;
/// A killed node comes back after this, with `--respawn`.
const RESPAWN_AFTER: Duration = Duration::from_secs(1);
/// How far the next free registry port is looked for.
const PORTS_TO_TRY: u16 = 100;

/// Runs until told to stop or until every node is gone; answers the exit code.
pub async fn run(args: DevArgs, format: Format, colour: bool) -> u8 {
    if args.data_dir.is_some() && args.registry.is_some() {
        eprintln!(
            "troupe dev: --data-dir is for the registry that dev starts; --registry names another"
        );
        return 78;
    }
    let binary = match std::env::current_exe() {
        Ok(binary) => binary,
        Err(err) => {
            eprintln!("troupe dev: cannot find this binary: {err}");
            return 1;
        }
    };
    let printer = Printer::start(format, colour);
    let registry_port = match &args.registry {
        Some(_) => None,
        None => match free_registry_port(args.registry_port, &printer) {
            Some(port) => Some(port),
            None => {
                eprintln!(
                    "troupe dev: no free port for the registry from {} on",
                    args.registry_port
                );
                return 1;
            }
        },
    };
    let secret = match ThrowAway::new(&args) {
        Ok(secret) => secret,
        Err(why) => {
            eprintln!("troupe dev: cannot keep a secret for its nodes: {why}");
            return 1;
        }
    };
    let launcher = Launcher {
        binary,
        args,
        registry_port,
        printer,
        secret,
    };
    launcher.run().await
}

fn free_registry_port(wanted: u16, printer: &Printer) -> Option<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let found = (wanted..wanted.saturating_add(PORTS_TO_TRY)).find(free)?;
    if found != wanted {
        printer.say(
            "dev.registry_port",
            &format!("port {wanted} is taken, the registry listens on {found}"),
            &[],
        );
    }
    Some(found)
}

/// The secret of this cluster: a file of its own for as long as it runs, or beside the data that outlives it.
struct ThrowAway {
    file: Option<PathBuf>,
    dir: Option<PathBuf>,
}

impl ThrowAway {
    /// None where nodes are to speak in the clear, or were told by whoever started us how to show who they are.
    fn new(args: &DevArgs) -> std::io::Result<Self> {
        let told = args.sets.iter().any(|set| set.starts_with("security."));
        if args.plain || told {
            return Ok(Self {
                file: None,
                dir: None,
            });
        }
        if let Some(data) = &args.data_dir {
            std::fs::create_dir_all(data)?;
            let file = data.join("secret");
            if !file.exists() {
                security::new_secret(&file)?;
            }
            return Ok(Self {
                file: Some(std::path::absolute(file)?),
                dir: None,
            });
        }
        let name = format!(
            "troupe-dev-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        );
        let dir = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let file = dir.join("secret");
        let secret = Self {
            file: Some(file.clone()),
            dir: Some(dir),
        };
        security::new_secret(&file)?;
        Ok(secret)
    }
}

impl Drop for ThrowAway {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            // Gone already, or of no use to anybody.
            std::fs::remove_dir_all(dir).ok();
        }
    }
}

struct Launcher {
    binary: PathBuf,
    args: DevArgs,
    registry_port: Option<u16>,
    printer: Printer,
    secret: ThrowAway,
}

/// Which child ended, and how.
struct Ended {
    /// 0 for the registry, else the node's number from 1.
    index: u16,
    status: std::io::Result<ExitStatus>,
}

impl Launcher {
    async fn run(self) -> u8 {
        let (ended, mut endings) = mpsc::unbounded_channel();
        let mut pids: Vec<(u16, Pid)> = Vec::new();
        let registry_url = match (&self.args.registry, self.registry_port) {
            (Some(url), _) => url.clone(),
            (None, port) => format!("http://127.0.0.1:{}", port.unwrap_or_default()),
        };
        if let Some(port) = self.registry_port {
            let listen = format!("127.0.0.1:{port}");
            let mut words = vec!["registry", "serve", "--listen", &listen, "--dev-child"];
            let data_dir = self
                .args
                .data_dir
                .as_ref()
                .map(|dir| dir.display().to_string());
            if let Some(dir) = &data_dir {
                words.extend(["--data-dir", dir]);
            }
            self.spawn(
                0,
                &words.into_iter().map(str::to_owned).collect::<Vec<_>>(),
                &ended,
                &mut pids,
            );
        }
        for index in 1..=self.args.nodes {
            self.spawn(
                index,
                &self.node_args(index, &registry_url),
                &ended,
                &mut pids,
            );
        }
        let apis: Vec<Value> = (1..=self.args.nodes)
            .map(|i| format!("http://127.0.0.1:{}", self.port(i) + 1).into())
            .collect();
        self.printer.say(
            "dev.started",
            "a local cluster; Ctrl-C drains it",
            &[
                ("api", Value::Array(apis)),
                ("registry", registry_url.clone().into()),
                ("secret_file", shown(self.secret.file.as_ref())),
            ],
        );
        let (Ok(mut term), Ok(mut int)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            eprintln!("troupe dev: cannot listen for signals");
            return 1;
        };
        let mut stopping = false;
        let mut failed = false;
        loop {
            tokio::select! {
                biased;
                _ = term.recv() => stopping = self.stop(&pids, stopping),
                _ = int.recv() => stopping = self.stop(&pids, stopping),
                Some(end) = endings.recv() => {
                    pids.retain(|(index, _)| *index != end.index);
                    failed |= self.ended(&end, stopping);
                    let nodes_left = pids.iter().any(|(index, _)| *index != 0);
                    let respawns = self.args.respawn && !stopping && end.index != 0;
                    if respawns {
                        tokio::time::sleep(RESPAWN_AFTER).await;
                        self.printer.say("dev.respawned", &format!("node {} is started again", end.index), &[]);
                        self.spawn(end.index, &self.node_args(end.index, &registry_url), &ended, &mut pids);
                    } else if pids.is_empty() {
                        break;
                    } else if !nodes_left {
                        // The registry goes last: the nodes deregister first.
                        signal_all(&pids, Signal::TERM);
                    }
                }
            }
        }
        self.printer
            .say("dev.stopped", "everything is stopped", &[]);
        self.printer.finish().await;
        u8::from(failed && !stopping)
    }

    fn port(&self, index: u16) -> u16 {
        self.args.port.saturating_add(10 * (index - 1))
    }

    fn node_args(&self, index: u16, registry: &str) -> Vec<String> {
        let port = self.port(index);
        let mut words: Vec<String> = ["run", "--dev-child", "--registry", registry]
            .map(str::to_owned)
            .to_vec();
        words.extend(["--bind".to_owned(), format!("127.0.0.1:{port}")]);
        words.extend([
            "--admin".to_owned(),
            format!("127.0.0.1:{}", port.saturating_add(1)),
        ]);
        if let Some(file) = &self.secret.file {
            let set = format!("security.secret_file={}", file.display());
            words.extend(["--set".to_owned(), set]);
        }
        let fast = [
            "generator.every=200ms",
            "worker.delay_min=10ms",
            "worker.delay_max=150ms",
        ];
        let fast = fast
            .iter()
            .filter(|_| self.args.fast)
            .map(|s| (*s).to_owned());
        for set in fast.chain(self.args.sets.iter().cloned()) {
            words.extend(["--set".to_owned(), set]);
        }
        words
    }

    fn spawn(
        &self,
        index: u16,
        words: &[String],
        ended: &mpsc::UnboundedSender<Ended>,
        pids: &mut Vec<(u16, Pid)>,
    ) {
        let child = Command::new(&self.binary)
            .args(["--log-format", "json"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C reaches this process alone, which then drains in order.
            .process_group(0)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(err) => {
                ended
                    .send(Ended {
                        index,
                        status: Err(err),
                    })
                    .ok();
                return;
            }
        };
        if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
            pids.push((index, pid));
        }
        let label = if index == 0 {
            "registry".to_owned()
        } else {
            format!("node {index}")
        };
        self.read(child.stdout.take(), &label);
        self.read(child.stderr.take(), &label);
        let ended = ended.clone();
        tokio::spawn(async move { wait(child, index, ended).await });
    }

    fn read<R: AsyncRead + Unpin + Send + 'static>(&self, output: Option<R>, label: &str) {
        let Some(output) = output else { return };
        let (printer, label) = (self.printer.clone(), label.to_owned());
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                printer.child_line(&label, line);
            }
        });
    }

    /// The first time: drain. The second time: kill.
    fn stop(&self, pids: &[(u16, Pid)], again: bool) -> bool {
        let nodes: Vec<(u16, Pid)> = pids.iter().copied().filter(|(i, _)| *i != 0).collect();
        if again {
            self.printer.say("dev.killing", "stopping at once", &[]);
            signal_all(pids, Signal::KILL);
        } else {
            self.printer
                .say("dev.stopping", "draining; once more stops at once", &[]);
            signal_all(if nodes.is_empty() { pids } else { &nodes }, Signal::TERM);
        }
        true
    }

    /// Says how a child ended; answers whether that is a failure of its own.
    fn ended(&self, end: &Ended, stopping: bool) -> bool {
        let who = if end.index == 0 {
            "the registry".to_owned()
        } else {
            format!("node {}", end.index)
        };
        let how = match &end.status {
            Ok(status) => status.to_string(),
            Err(err) => err.to_string(),
        };
        let clean = end.status.as_ref().is_ok_and(ExitStatus::success);
        if !(clean && stopping) {
            self.printer
                .say("dev.node_exited", &format!("{who} ended: {how}"), &[]);
        }
        end.status
            .as_ref()
            .map_or(true, |s| s.code().is_some_and(|c| c != 0))
    }
}

fn shown(file: Option<&PathBuf>) -> Value {
    file.map_or(Value::Null, |file| file.display().to_string().into())
}

async fn wait(mut child: Child, index: u16, ended: mpsc::UnboundedSender<Ended>) {
    let status = child.wait().await;
    // The launcher is going when nobody listens.
    ended.send(Ended { index, status }).ok();
}

fn signal_all(pids: &[(u16, Pid)], with: Signal) {
    for (_, pid) in pids {
        // It may have gone by itself.
        kill_process(*pid, with).ok();
    }
}

/// Prints from a thread of its own, so that a slow reader stalls nobody.
#[derive(Clone)]
struct Printer {
    shared: Arc<Shared>,
    format: Format,
}

struct Shared {
    waiting: Mutex<Waiting>,
    more: std::sync::Condvar,
    done: Notify,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<String>,
    dropped: u64,
    finished: bool,
}

impl Printer {
    fn start(format: Format, colour: bool) -> Self {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            more: std::sync::Condvar::new(),
            done: Notify::new(),
        });
        let printing = Arc::clone(&shared);
        std::thread::spawn(move || print(&printing, format, colour));
        Self { shared, format }
    }

    fn push(&self, line: String) {
        let mut waiting = self
            .shared
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if waiting.lines.len() == MAX_LINES {
            waiting.lines.pop_front();
            waiting.dropped += 1;
        }
        waiting.lines.push_back(line);
        self.shared.more.notify_one();
    }

    /// A child's line; one that is not JSON (a panic, a library's word) becomes a message of its own.
    fn child_line(&self, label: &str, line: String) {
        if line.starts_with('{') {
            self.push(line);
        } else if !line.trim().is_empty() {
            self.push(plain(label, "log", &line, &[]));
        }
    }

    /// The launcher's own word.
    fn say(&self, event: &str, msg: &str, more: &[(&str, Value)]) {
        self.push(plain("dev", event, msg, more));
    }

    async fn finish(&self) {
        let done = self.shared.done.notified();
        {
            let mut waiting = self
                .shared
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            waiting.finished = true;
            self.shared.more.notify_one();
        }
        // A reader that does not read must not keep the launcher.
        tokio::time::timeout(Duration::from_secs(1), done)
            .await
            .ok();
        let _ = self.format;
    }
}

fn plain(node: &str, event: &str, msg: &str, more: &[(&str, Value)]) -> String {
    let mut fields = Map::new();
    fields.insert("ts".to_owned(), logging::now().into());
    for (key, value) in [
        ("level", "info"),
        ("event", event),
        ("node", node),
        ("actor", "dev"),
        ("msg", msg),
    ] {
        fields.insert(key.to_owned(), value.into());
    }
    for (key, value) in more {
        fields.insert((*key).to_owned(), value.clone());
    }
    Value::Object(fields).to_string()
}

fn print(shared: &Shared, format: Format, colour: bool) {
    use std::io::Write;
    loop {
        let (lines, dropped, finished) = {
            let mut waiting = shared
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            while waiting.lines.is_empty() && !waiting.finished {
                waiting = shared
                    .more
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            (
                std::mem::take(&mut waiting.lines),
                std::mem::take(&mut waiting.dropped),
                waiting.finished,
            )
        };
        let mut out = std::io::stdout().lock();
        let dropped = (dropped > 0).then(|| {
            plain(
                "dev",
                "dev.lines_dropped",
                &format!("{dropped} lines were not read in time"),
                &[],
            )
        });
        for line in dropped.into_iter().chain(lines) {
            let shown = match (format, serde_json::from_str::<Map<String, Value>>(&line)) {
                (Format::Text, Ok(fields)) => logging::text(&fields, colour),
                _ => line,
            };
            // Nobody reads any more: the cluster goes on.
            writeln!(out, "{shown}").ok();
        }
        out.flush().ok();
        if finished {
            shared.done.notify_one();
            return;
        }
    }
}
