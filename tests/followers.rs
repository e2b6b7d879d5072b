//! Followers of a node's log while it works: those that read nothing cost bounded memory and are told what they missed, those that read get
//! what comes, and tasks go on.
//!
//! Small by default. The whole of it: `TROUPE_TEST_FOLLOWERS=100 TROUPE_TEST_FOLLOWED_RATE=10000 TROUPE_TEST_FOLLOWED_S=30 cargo test --release
//! --test followers -- --nocapture`, with `TROUPE_TEST_FOLLOWED_LEVEL=info` at the level that nodes log at.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::load::{Load, number};
use support::{LONG, TROUPE, clean_env, free_ports, request, until};

/// A node whose lines nobody reads: they are not what is measured.
struct Quiet {
    child: Child,
    admin: String,
}

impl Quiet {
    fn start(registry: &str, level: &str) -> Self {
        let port = free_ports(2);
        let mut command = Command::new(TROUPE);
        command
            .args(["run", "--name", "n1", "--registry", registry, "--bind"])
            .arg(format!("127.0.0.1:{port}"))
            .args(["--log-format", "json", "--log-level", level])
            .args(["--set", "generator.enabled=false"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        clean_env(&mut command);
        let node = Self {
            child: command.spawn().unwrap(),
            admin: format!("127.0.0.1:{}", port + 1),
        };
        until("the node leads", LONG, || {
            match request(&node.admin, "GET", "/v1/master", "") {
                Some((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        node
    }

    /// A number of its metrics page.
    fn metric(&self, name: &str) -> f64 {
        let page = request(&self.admin, "GET", "/metrics", "").unwrap().1;
        let page = page.as_str().unwrap().to_owned();
        let line = page.lines().find(|l| l.split(' ').next() == Some(name));
        let value = line.and_then(|l| l.split(' ').nth(1)?.parse().ok());
        value.unwrap_or_else(|| panic!("{name} in {page}"))
    }

    fn follow(&self) -> TcpStream {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let head = "GET /v1/logs?limit=0 HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/x-ndjson\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Records and how many were missed, until then, or until nothing has come for as long as there was time.
fn read(stream: TcpStream, until: Instant) -> (u64, u64) {
    let left = until.saturating_duration_since(Instant::now());
    stream
        .set_read_timeout(Some(left.max(Duration::from_millis(1))))
        .unwrap();
    let (mut records, mut missed) = (0, 0);
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { break };
        if let Ok(value) = serde_json::from_str::<Value>(&line)
            && value.is_object()
        {
            match value["event"] == "lagged" {
                true => missed += value["missed"].as_u64().unwrap_or(0),
                false => records += 1,
            }
        }
        if Instant::now() > until {
            break;
        }
    }
    (records, missed)
}

#[test]
fn followers_that_read_nothing_harm_nobody_and_are_told_what_they_missed() {
    let _turn = support::turn();
    let followers = number("TROUPE_TEST_FOLLOWERS", 20);
    let rate = number("TROUPE_TEST_FOLLOWED_RATE", 1000);
    let within = Duration::from_secs(number("TROUPE_TEST_FOLLOWED_S", 4));
    let level = std::env::var("TROUPE_TEST_FOLLOWED_LEVEL").unwrap_or_else(|_| "debug".to_owned());
    let etcd = support::Etcd::start();
    let node = Quiet::start(&etcd.url(), &level);
    let load = Load::start(std::slice::from_ref(&node.admin), rate, false);
    // Without followers first: what they cost is the difference.
    let measure = |time: Duration| {
        let before = (
            node.metric("process_cpu_seconds_total"),
            load.seen.accepted().len(),
        );
        let began = Instant::now();
        std::thread::sleep(time);
        let (cpu, tasks) = (
            node.metric("process_cpu_seconds_total"),
            load.seen.accepted().len(),
        );
        let seconds = began.elapsed().as_secs_f64();
        (
            (cpu - before.0) / seconds,
            (tasks - before.1) as f64 / seconds,
        )
    };
    let alone = measure(within);
    let memory = node.metric("process_resident_memory_bytes");
    let deaf: Vec<TcpStream> = (0..followers / 2).map(|_| node.follow()).collect();
    // Longer than is measured: they all still follow then.
    let end = Instant::now() + within + Duration::from_secs(2);
    let readers: Vec<_> = (0..followers - followers / 2)
        .map(|_| {
            let stream = node.follow();
            std::thread::spawn(move || read(stream, end))
        })
        .collect();
    let followed = measure(within);
    assert_eq!(node.metric("troupe_followers"), followers as f64);
    let grown = node.metric("process_resident_memory_bytes") - memory;
    let read_by: Vec<(u64, u64)> = readers.into_iter().map(|r| r.join().unwrap()).collect();
    assert!(
        read_by.iter().all(|(records, _)| *records > 0),
        "{read_by:?}"
    );
    let seen = load.finish();
    // What a deaf one reads now is what the kernel kept for it, and then how much it missed.
    let late: Vec<(u64, u64)> = deaf
        .into_iter()
        .map(|stream| read(stream, Instant::now() + Duration::from_secs(1)))
        .collect();
    println!(
        "{followers} followers ({} read nothing), level {level}: {:.0} tasks/s and {:.2} cores without them, {:.0} tasks/s and {:.2} cores with them \
         (memory {:+.1} MiB); longest without an acknowledgement {:?}; readers got {:?}, the deaf afterwards {:?} (records, missed)",
        followers / 2,
        alone.1,
        alone.0,
        followed.1,
        followed.0,
        grown / 1048576.0,
        seen.gap(),
        read_by.first(),
        late.first(),
    );
    // What the kernel keeps for a connection is not ours; what the node keeps for one is less than this.
    let bound = 32e6 + 256e3 * followers as f64;
    assert!(
        grown < bound,
        "{grown} bytes more for {followers} followers"
    );
    assert!(
        followed.1 > alone.1 * 0.5,
        "{alone:?} without, {followed:?} with them"
    );
}
