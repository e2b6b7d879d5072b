//! `troupe bench`: load against a running cluster, latencies as a histogram, CPU per task, and beside it what this machine's TCP can
//! do, measured in the same run.
//!
//! Tasks go to the master's own API, over HTTP/1.1 connections that stay open: `POST /v1/tasks?wait=` with NDJSON bodies of up to
//! 1,000 tasks, each answered when all of its tasks are finished. The latency of a task is that of its body. With
//! `--sequential` one task is one body, and the next is sent when it is answered.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use hyper::StatusCode;
use serde_json::json;
use tokio::task::LocalSet;
use troupe_actors::admin::MembersView;
use troupe_actors::id::TaskId;

use super::api::{Api, Failure};
use super::compare::compare;
use super::read;
use super::say::{Screen, complain};
use crate::cli::BenchArgs;

/// Tasks in one body.
const BODY: usize = 1_000;
/// Bytes of one body at the most: the node takes 4 MiB.
const BODY_BYTES: usize = 2 * 1024 * 1024;
/// A body is waited for this long; what is not finished then is a failure.
const WAIT: &str = "/v1/tasks?wait=60s";
/// Rounds of ping-pong, and how long frames are pushed one way.
const PINGS: usize = 20_000;
const PUSH: Duration = Duration::from_millis(500);
/// What one write of the one-way measurement holds, as a session coalesces.
const WRITE: usize = 64 * 1024;

/// What a machine's loopback does with messages of this size.
struct Baseline {
    ping_pong_p50: Duration,
    frames_per_second: f64,
}

/// What came of the load.
pub(super) struct Load {
    tasks: u64,
    took: Duration,
    latencies: Histogram<u64>,
    cpu: Option<Duration>,
}

impl Load {
    /// Tasks a second.
    pub(super) fn rate(&self) -> f64 {
        self.tasks as f64 / self.took.as_secs_f64()
    }
}

/// `troupe bench`.
pub(super) async fn bench(api: &Api, screen: &Screen, args: &BenchArgs) -> Result<(), Failure> {
    if args.size > troupe_actors::wire::MAX_PAYLOAD - 2 {
        return Err(Failure::Usage(format!(
            "--size {}: at most {} bytes fit a task",
            args.size,
            troupe_actors::wire::MAX_PAYLOAD - 2
        )));
    }
    if args.compare_tls {
        return compare(screen, args).await;
    }
    let view: MembersView = read(api.get("/v1/members").await?)?;
    let master = view.members.iter().find(|m| m.master);
    let Some(master) = master else {
        return Err(Failure::Strange("nobody leads the cluster now".to_owned()));
    };
    let master = Rc::new(api.at(&master.admin)?);
    let size = args.size;
    let baseline = tokio::task::spawn_blocking(move || baseline(size)).await;
    let baseline = baseline
        .map_err(|err| err.to_string())
        .and_then(|measured| measured.map_err(|err| err.to_string()))
        .map_err(|why| Failure::Strange(format!("the loopback cannot be measured: {why}")))?;
    // Once over the whole way, so that nothing is measured that happens but once.
    let warm = BenchArgs {
        tasks: Some(1),
        job: args.job.clone(),
        ..*args
    };
    run(&master, &warm, &view).await?;
    let load = run(&master, args, &view).await?;
    tell(screen, args, &load, &baseline)
}

/// Gives the master this load.
pub(super) async fn run(
    master: &Rc<Api>,
    args: &BenchArgs,
    view: &MembersView,
) -> Result<Load, Failure> {
    let usual = if args.sequential { 10_000 } else { 1_000_000 };
    let tasks = args.tasks.unwrap_or(usual);
    let line = args.size + 96;
    let body = if args.sequential {
        1
    } else {
        BODY.min(BODY_BYTES / line).min(args.in_flight).max(1)
    };
    let streams = if args.sequential {
        1
    } else {
        (args.in_flight / body).clamp(1, 12)
    };
    let pids: Vec<u32> = view.members.iter().map(|m| m.pid).collect();
    let before = cpu(&pids);
    let start = Instant::now();
    let local = LocalSet::new();
    let mut running = Vec::new();
    for stream in 0..streams {
        let share = tasks / streams as u64 + u64::from((stream as u64) < tasks % streams as u64);
        let (master, args) = (Rc::clone(master), args.clone());
        running.push(local.spawn_local(async move { push(&master, &args, share, body).await }));
    }
    let all = local.run_until(join_all(running));
    let mut latencies = histogram();
    for stream in all.await {
        let stream = stream.map_err(|err| Failure::Strange(err.to_string()))?;
        latencies.add(stream?).ok();
    }
    let took = start.elapsed();
    let cpu = cpu(&pids).zip(before).map(|(after, before)| after - before);
    Ok(Load {
        tasks,
        took,
        latencies,
        cpu,
    })
}

/// One stream of bodies, one after the other.
async fn push(
    api: &Api,
    args: &BenchArgs,
    tasks: u64,
    body: usize,
) -> Result<Histogram<u64>, Failure> {
    let mut connection = api.stay().await?;
    let mut latencies = histogram();
    let tail = format!(
        "\",\"job\":{},\"durable\":{},\"input\":\"{}\"}}\n",
        json!(args.job),
        args.durable,
        "x".repeat(args.size.saturating_sub(2))
    );
    let mut rng = rand::rng();
    let mut left = tasks;
    while left > 0 {
        let count = left.min(body as u64);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_ms = since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
        let mut lines = Vec::with_capacity(usize::try_from(count).unwrap_or(0) * (tail.len() + 44));
        for _ in 0..count {
            lines.extend_from_slice(b"{\"id\":\"");
            let mut text = [0; 36];
            let id = TaskId::new(unix_ms, &mut rng).0;
            lines.extend_from_slice(id.hyphenated().encode_lower(&mut text).as_bytes());
            lines.extend_from_slice(tail.as_bytes());
        }
        let kind = if args.sequential {
            "application/json"
        } else {
            "application/x-ndjson"
        };
        let sent = Instant::now();
        let (status, answer) = connection.post(WAIT, kind, Bytes::from(lines)).await?;
        let took = u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX);
        check(status, &answer, count)?;
        latencies.record_n(took.max(1), count).ok();
        left -= count;
    }
    Ok(latencies)
}

/// Each of the tasks is done, or this is no measurement.
fn check(status: StatusCode, answer: &[u8], count: u64) -> Result<(), Failure> {
    let done = memchr_count(answer, b"\"state\":\"done\"");
    if status.is_success() && done == count {
        return Ok(());
    }
    let text = String::from_utf8_lossy(answer);
    let other = text
        .lines()
        .find(|line| !line.contains("\"state\":\"done\""));
    Err(Failure::Strange(format!(
        "status {status}, {done} of {count} tasks done; the first other: {}",
        other.unwrap_or("nothing")
    )))
}

fn memchr_count(text: &[u8], what: &[u8]) -> u64 {
    let mut count = 0;
    let mut rest = text;
    while let Some(at) = rest.windows(what.len()).position(|w| w == what) {
        count += 1;
        rest = &rest[at + what.len()..];
    }
    count
}

pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are within what it takes, 0 to 5")
}

/// CPU time that these processes, and this one, have used so far; nothing when one of them is not on this machine.
fn cpu(pids: &[u32]) -> Option<Duration> {
    let own = std::process::id();
    let mut ticks = 0;
    for pid in pids.iter().copied().chain([own]) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let field = |n: usize| fields.get(n)?.parse::<u64>().ok();
        ticks += field(11)? + field(12)?;
    }
    let hz = rustix::param::clock_ticks_per_second();
    Some(Duration::from_secs_f64(ticks as f64 / hz as f64))
}

// --- the baseline ------------------------------------------------------------------------------------------------

fn baseline(size: usize) -> std::io::Result<Baseline> {
    let (mut one, mut other) = pair()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let mut message = vec![0; size.max(1)];
        for _ in 0..PINGS {
            other.read_exact(&mut message)?;
            other.write_all(&message)?;
        }
        Ok(())
    });
    let mut message = vec![0; size.max(1)];
    let mut rounds = histogram();
    for _ in 0..PINGS {
        let sent = Instant::now();
        one.write_all(&message)?;
        one.read_exact(&mut message)?;
        rounds
            .record(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX))
            .ok();
    }
    echo.join()
        .map_err(|_| std::io::Error::other("the echo ended early"))??;
    Ok(Baseline {
        ping_pong_p50: Duration::from_nanos(rounds.value_at_quantile(0.5)),
        frames_per_second: one_way(size)?,
    })
}

/// Frames of this size a second, in writes of 64 KiB, each frame looked at by the reader.
fn one_way(size: usize) -> std::io::Result<f64> {
    let (mut one, mut other) = pair()?;
    let frame = size + 8;
    let reader = std::thread::spawn(move || -> std::io::Result<u64> {
        let (mut buffer, mut frames, mut rest) = (vec![0; WRITE], 0u64, 0usize);
        loop {
            let read = other.read(&mut buffer)?;
            if read == 0 {
                return Ok(frames);
            }
            rest += read;
            frames += (rest / frame) as u64;
            rest %= frame;
        }
    });
    let write = vec![1; WRITE];
    let start = Instant::now();
    while start.elapsed() < PUSH {
        one.write_all(&write)?;
    }
    drop(one);
    let frames = reader
        .join()
        .map_err(|_| std::io::Error::other("the reader ended early"))??;
    Ok(frames as f64 / start.elapsed().as_secs_f64())
}

fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    one.set_nodelay(true)?;
    other.set_nodelay(true)?;
    Ok((one, other))
}

// --- telling -----------------------------------------------------------------------------------------------------

fn tell(
    screen: &Screen,
    args: &BenchArgs,
    load: &Load,
    baseline: &Baseline,
) -> Result<(), Failure> {
    let us = |nanos: u64| nanos as f64 / 1e3;
    let at = |quantile: f64| us(load.latencies.value_at_quantile(quantile));
    let per_second = load.rate();
    let cpu_us = load
        .cpu
        .map(|cpu| cpu.as_secs_f64() * 1e6 / load.tasks.max(1) as f64);
    let ping_pong = baseline.ping_pong_p50.as_secs_f64() * 1e6;
    let value = json!({
        "tasks": load.tasks,
        "seconds": round(load.took.as_secs_f64()),
        "tasks_per_second": per_second.round(),
        "p50_us": round(at(0.5)),
        "p99_us": round(at(0.99)),
        "p999_us": round(at(0.999)),
        "max_us": round(us(load.latencies.max())),
        "cpu_us_per_task": cpu_us.map(round),
        "durable": args.durable,
        "sequential": args.sequential,
        "size": args.size,
        "tcp_ping_pong_p50_us": round(ping_pong),
        "tcp_frames_per_second": baseline.frames_per_second.round(),
    });
    if cpu_us.is_none() {
        complain("a node is on another machine: its CPU time is not known here");
    }
    screen.value(&value, || {
        let mut text = String::new();
        let mut row = |what: &str, value: String| text.push_str(&format!("{what:<34}{value}\n"));
        let kind = if args.durable { "durable" } else { "ephemeral" };
        row(
            "tasks",
            format!("{} {kind} {}, {} B", load.tasks, args.job, args.size),
        );
        row("took", format!("{:.2} s", load.took.as_secs_f64()));
        row("tasks a second", format!("{per_second:.0}"));
        row("latency p50", format!("{:.0} µs", at(0.5)));
        row("latency p99", format!("{:.0} µs", at(0.99)));
        row("latency p99.9", format!("{:.0} µs", at(0.999)));
        if let Some(cpu) = cpu_us {
            row("CPU per task, all processes", format!("{cpu:.2} µs"));
        }
        row("TCP ping-pong p50", format!("{ping_pong:.1} µs"));
        row(
            "TCP frames one way a second",
            format!("{:.0}", baseline.frames_per_second),
        );
        if args.sequential {
            row("p50 / TCP ping-pong", format!("{:.2}", at(0.5) / ping_pong));
        }
        text
    })
}

pub(super) fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
