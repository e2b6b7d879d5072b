//! `troupe bench --compare-tls`: what TLS between nodes costs on this machine. Two clusters of `troupe dev`, one with a throw-away
//! secret and one in the clear, are loaded in turns, so that whatever else the machine does meets both; then mutual handshakes
//! with a node are timed, from the dial to its welcome.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use troupe_actors::admin::MembersView;
use troupe_actors::id::{Epoch, Generation, Incarnation, NodeId};
use troupe_actors::transport::handshake::{Greeting, Me, PREFIX, Prefix, Purpose};
use troupe_actors::transport::tls::{Credentials, Tls, TlsNetwork};
use troupe_actors::transport::trust::Side;
use troupe_actors::transport::{Network, TcpNetwork};
use troupe_actors::wire::Hlc;

use super::api::{Api, Failure, Pass};
use super::bench::{Load, histogram, round, run};
use super::read;
use super::say::Screen;
use crate::cli::BenchArgs;
use crate::security;

/// Each cluster is loaded this often, in turns.
const ROUNDS: u32 = 3;
/// Tasks of one round unless it is said.
const TASKS: u64 = 300_000;
/// Handshakes that are timed, and the pause between two: a node takes 200 a second from one address.
const HANDSHAKES: u32 = 1_000;
const PAUSE: Duration = Duration::from_millis(7);
/// A cluster that takes longer to form does not form.
const FORMING: Duration = Duration::from_secs(30);
/// Ports of the two clusters: out of the way of one that runs with the defaults.
const PORTS: [(u16, u16); 2] = [(24_222, 24_379), (25_222, 25_379)];

/// A cluster of its own, for as long as this is kept.
struct Cluster {
    child: Child,
    api: Api,
    port: u16,
    secret: Option<PathBuf>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Its nodes end with it; it has nothing that is worth a drain.
        self.child.kill().ok();
        self.child.wait().ok();
        if let Some(dir) = self.secret.as_ref().and_then(|file| file.parent()) {
            std::fs::remove_dir_all(dir).ok();
        }
    }
}

impl Cluster {
    async fn start((port, registry): (u16, u16), plain: bool) -> Result<Self, Failure> {
        let strange = |why: std::io::Error| Failure::Strange(format!("troupe dev: {why}"));
        let binary = std::env::current_exe().map_err(strange)?;
        let mut command = Command::new(binary);
        command
            .args(["--log-format", "json", "dev", "--nodes", "3"])
            .args(["--port", &port.to_string()])
            .args(["--registry-port", &registry.to_string()])
            .args(["--set", "generator.enabled=false"])
            .args(plain.then_some("--plain"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(strange)?;
        let output = child.stdout.take();
        let api = Api::new(&format!("http://127.0.0.1:{}", port + 1), &Pass::default())?;
        let mut cluster = Self {
            child,
            api,
            port,
            secret: None,
        };
        let started = tokio::task::spawn_blocking(move || started(output)).await;
        let started = started.ok().flatten();
        let Some(started) = started else {
            return Err(Failure::Strange(
                "troupe dev ended before it began".to_owned(),
            ));
        };
        cluster.secret = started["secret_file"].as_str().map(PathBuf::from);
        cluster.formed().await?;
        Ok(cluster)
    }

    /// Waits for three members that are alive and one that leads.
    async fn formed(&self) -> Result<MembersView, Failure> {
        let deadline = Instant::now() + FORMING;
        loop {
            let seen = match self.api.get("/v1/members").await {
                Ok(json) => read::<MembersView>(json).ok(),
                Err(_) => None,
            };
            if let Some(view) = seen {
                let alive = view.members.iter().filter(|m| m.state == "alive").count();
                if alive == 3 && view.members.iter().any(|m| m.master) {
                    return Ok(view);
                }
            }
            if Instant::now() > deadline {
                let why = format!("no cluster within {FORMING:?} at port {}", self.port);
                return Err(Failure::Strange(why));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn load(&self, args: &BenchArgs) -> Result<Load, Failure> {
        let view = self.formed().await?;
        let master = view.members.iter().find(|m| m.master);
        let admin = master.map(|m| m.admin.clone()).unwrap_or_default();
        run(&Rc::new(self.api.at(&admin)?), args, &view).await
    }
}

/// The line with which a cluster begins; what comes after it is read and forgotten.
fn started(output: Option<impl std::io::Read + Send + 'static>) -> Option<Value> {
    let mut lines = BufReader::new(output?).lines().map_while(Result::ok);
    let first = lines.by_ref().find_map(|line| {
        let line: Value = serde_json::from_str(&line).ok()?;
        (line["event"] == "dev.started").then_some(line)
    })?;
    std::thread::spawn(move || lines.for_each(drop));
    Some(first)
}

/// `troupe bench --compare-tls`.
pub(super) async fn compare(screen: &Screen, args: &BenchArgs) -> Result<(), Failure> {
    let args = BenchArgs {
        tasks: Some(
            args.tasks
                .unwrap_or(if args.sequential { 5_000 } else { TASKS }),
        ),
        job: args.job.clone(),
        ..*args
    };
    let warm = BenchArgs {
        tasks: Some(1_000),
        job: args.job.clone(),
        ..args
    };
    let tls = Cluster::start(PORTS[0], false).await?;
    let plain = Cluster::start(PORTS[1], true).await?;
    let clusters = [&tls, &plain];
    for cluster in clusters {
        cluster.load(&warm).await?;
    }
    let mut best = [0.0f64; 2];
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (which, cluster) in clusters.into_iter().enumerate() {
            let load = cluster.load(&args).await?;
            let rate = load.rate();
            best[which] = best[which].max(rate);
            all[which].push(rate.round());
        }
    }
    drop(plain);
    let handshakes = handshakes(&tls).await?;
    let ms = |quantile: f64| handshakes.value_at_quantile(quantile) as f64 / 1e6;
    let ratio = best[0] / best[1];
    let value = json!({
        "tasks": args.tasks, "rounds": ROUNDS, "size": args.size, "durable": args.durable, "sequential": args.sequential,
        "tls_tasks_per_second": best[0].round(), "plain_tasks_per_second": best[1].round(), "ratio": (ratio * 1e3).round() / 1e3,
        "tls_rounds": all[0], "plain_rounds": all[1],
        "handshakes": HANDSHAKES, "handshake_p50_ms": round(ms(0.5) * 1e2) / 1e2, "handshake_p99_ms": round(ms(0.99) * 1e2) / 1e2,
    });
    screen.value(&value, || {
        let mut text = String::new();
        let mut row = |what: &str, value: String| text.push_str(&format!("{what:<34}{value}\n"));
        let rates = |all: &[f64]| {
            all.iter()
                .map(f64::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        row(
            "tasks a second with TLS",
            format!("{:.0}  ({})", best[0], rates(&all[0])),
        );
        row(
            "tasks a second in the clear",
            format!("{:.0}  ({})", best[1], rates(&all[1])),
        );
        row(
            "TLS / clear, best rounds",
            format!("{:.0} %", ratio * 100.0),
        );
        row("mutual handshake p50", format!("{:.2} ms", ms(0.5)));
        row("mutual handshake p99", format!("{:.2} ms", ms(0.99)));
        text
    })
}

/// How long it takes from the dial to the welcome of a node that has checked our certificate.
async fn handshakes(cluster: &Cluster) -> Result<Histogram<u64>, Failure> {
    let strange = |why: String| Failure::Strange(format!("a handshake failed: {why}"));
    let file = cluster
        .secret
        .as_ref()
        .ok_or_else(|| strange("no secret".to_owned()))?;
    let secret = security::first_secret(file).map_err(strange)?;
    let id = NodeId::random(&mut rand::rng());
    let tls = Tls::new(Credentials::Secrets(vec![secret]), "troupe", id);
    let tls = Arc::new(tls.map_err(|why| strange(why.to_string()))?);
    let network = TlsNetwork::new(Arc::new(TcpNetwork), tls);
    let address = format!("127.0.0.1:{}", cluster.port);
    let mut took = histogram();
    for _ in 0..HANDSHAKES {
        let began = Instant::now();
        let answered = greet(&network, &address, id).await;
        answered.map_err(strange)?;
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        took.record(nanos).ok();
        tokio::time::sleep(PAUSE).await;
    }
    Ok(took)
}

async fn greet(network: &TlsNetwork, address: &str, id: NodeId) -> Result<(), String> {
    let dialled = network.dial(address, Duration::from_secs(2)).await;
    let mut stream = dialled.map_err(|why| format!("{why:?}"))?;
    let me = Me {
        cluster: "troupe".to_owned(),
        generation: Generation::default(),
        id,
        incarnation: Incarnation::NONE,
        name: "bench".to_owned(),
        address: String::new(),
        host: String::new(),
        epoch: Epoch::NONE,
        stamp: Hlc::default(),
    };
    let mut hello = me.hello(Purpose::Dial, None);
    let proof = stream.proof.as_ref();
    hello.extension = proof.map_or(Vec::new(), |p| p.binding(Side::Dialler));
    let said = Greeting::Hello(hello).encode();
    let said = said.map_err(|why| why.to_string())?;
    let answer = async {
        stream.writer.write_all(&said).await?;
        stream.writer.flush().await?;
        let mut prefix = [0; PREFIX];
        stream.reader.read_exact(&mut prefix).await?;
        let prefix = Prefix::parse(prefix).map_err(std::io::Error::other)?;
        let mut body = vec![0; prefix.body_length()];
        stream.reader.read_exact(&mut body).await?;
        prefix.read(&body).map_err(std::io::Error::other)
    };
    match answer.await {
        Ok(Greeting::Welcome(_)) => Ok(()),
        Ok(other) => Err(format!("{other:?}")),
        Err(why) => Err(why.to_string()),
    }
}
