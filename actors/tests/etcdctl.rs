//! `etcdctl` says the same of the embedded registry and of a real etcd.
//!
//! Each line of [`SCENES`] is run against both, and the transcripts are compared. What differs by nature is normalised:
//! revisions are counted from the one before the first command, leases are named in order of appearance, ids, sizes,
//! addresses and durations become words.

mod support;

use std::process::{Output, Stdio};
use std::time::Duration;

use support::Etcd;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use troupe_actors::registry::embedded::Server;
use troupe_actors::registry::etcd::EtcdBackend;
use troupe_actors::registry::{Backend, Timeouts};

/// Commands in their order. `+n` is the n-th revision of the scene, `LEASE1` the first lease; after ` < ` comes the standard
/// input, `;` ends its lines; a `watch` is left running until it has printed as many lines as ` | ` says.
const SCENES: &str = r#"
put /k/a 1
put /k/b 2 -w fields
put /k/b 3 --prev-kv
put /k/c --ignore-value
put /k/b --ignore-value -w fields
get /k/a
get /k/a -w fields
get /k --prefix
get /k --prefix --keys-only
get /k --prefix --print-value-only
get /k --prefix --limit=1 -w fields
get /k --prefix --sort-by=MODIFY --order=DESCEND
get /k --prefix --sort-by=VERSION
get /k --prefix --sort-by=VALUE --order=DESCEND
get /k --prefix --sort-by=CREATE -w fields
get /k --from-key
get /k/a /k/b
get /k/b /k/a
get /k/b --rev=+2
get /k/b --rev=+3 -w fields
get /k/b --rev=+9000
get /k/b --consistency=s
get nowhere -w fields
del nowhere
del /k/a --prev-kv
del /k --prefix -w fields
get /k --prefix -w fields
put /t/a 1
txn < value("/t/a") = "1";;put /t/a 2;get /t/a;;put /t/a 3;;
txn < value("/t/a") = "1";;put /t/a 2;;get /t/a;del /t/b;;
txn < create("/t/new") = "0";;put /t/new 1;;;
txn -w fields < mod("/t/a") > "0";version("/t/a") < "9";;put /t/a 4;get /t --prefix;del /t/new;;;
put /t/a 5 -w fields
txn < value("/t/nowhere") < "z";;put /t/x 1;;put /t/y 1;;
txn < ;put /t/a 5;put /t/a 6;;;
txn < ;put /t/a 5;del /t/a;;;
txn < ;get /t/a --rev=+9000;;;
lease grant 60
put /l/a 1 --lease=LEASE1
put /l/b 1 --lease=LEASE1
put /l/c 1 --lease=7777777
lease keep-alive --once LEASE1
lease keep-alive --once 7777777
lease timetolive LEASE1
lease timetolive LEASE1 --keys
lease timetolive 7777777
lease list
get /l --prefix -w fields
put /l/b 2 --ignore-lease --prev-kv -w fields
put /l/b 2
lease timetolive LEASE1 --keys
lease revoke LEASE1
lease revoke LEASE1
lease list
get /l --prefix -w fields
lease grant 1
lease grant 0
lease grant 9000000001
put /w/a 1
put /w/a 2
put /w/b 1
del /w --prefix
watch /w --prefix --rev=+1 | 15
watch /w/a --prev-kv --rev=+1 | 12
watch /w/a /w/b --rev=+1 | 9
compact +5
compact +5
compact +9000
get /k/b --rev=+4
watch /k --prefix --rev=+2 | 0
get /w --prefix -w fields
endpoint health
endpoint status -w fields
"#;

/// One server with the names of what has appeared on it.
struct Console {
    url: String,
    base: i64,
    leases: Vec<String>,
}

impl Console {
    async fn new(url: String) -> Self {
        let backend = EtcdBackend::new(vec![url.clone()], Timeouts::default()).expect("a backend");
        let base = backend.list("/").await.expect("a listing").stamp.revision;
        Self {
            url,
            base,
            leases: Vec::new(),
        }
    }

    async fn run(&mut self, line: &str) -> String {
        let (line, input) = line.split_once(" < ").unwrap_or((line, ""));
        let (line, watched) = line.split_once(" | ").unwrap_or((line, ""));
        let child = self.spawn(line);
        let raw = match watched.parse() {
            Ok(lines) => watch(child, lines).await,
            Err(_) => finish(child, &self.expand(&input.replace(';', "\n"))).await,
        };
        self.normalise(&raw)
    }

    fn spawn(&self, line: &str) -> Child {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url.trim_start_matches("http://")))
            .args(line.split(' ').map(|arg| self.expand(arg)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| {
                panic!("etcdctl could not be started ({e}): this test needs it on the PATH (Debian: apt install etcd-client)")
            })
    }

    /// Replaces `+n` and `LEASEn` by what they are here.
    fn expand(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (n, id) in self.leases.iter().enumerate() {
            text = text.replace(&format!("LEASE{}", n + 1), id);
        }
        let Some((before, number)) = text.rsplit_once('+') else {
            return text;
        };
        let digits = number.trim_end();
        match digits.parse::<i64>() {
            Ok(n) => number.replace(digits, &format!("{before}{}", self.base + n)),
            Err(_) => text,
        }
    }

    fn normalise(&mut self, raw: &str) -> String {
        let lines = raw.lines().filter_map(|line| self.normalise_line(line));
        lines.map(|line| format!("    {line}\n")).collect()
    }

    fn normalise_line(&mut self, line: &str) -> Option<String> {
        if let Some(granted) = line.strip_prefix("lease ")
            && let Some((id, _)) = granted.split_once(" granted with TTL")
            && !self.leases.iter().any(|known| known == id)
        {
            self.leases.push(id.to_owned());
        }
        let mut line = line.replace(self.url.trim_start_matches("http://"), "<url>");
        for (n, id) in self.leases.iter().enumerate() {
            let decimal = i64::from_str_radix(id, 16).expect("a lease id");
            line = line.replace(id, &format!("LEASE{}", n + 1));
            line = line.replace(&decimal.to_string(), &format!("LEASE{}", n + 1));
        }
        if line.starts_with('{') {
            // A log line of the client library; the error follows as a line of its own.
            return None;
        }
        if let Some((field, value)) = line.split_once(" : ") {
            return Some(format!("{field} : {}", self.normalise_field(field, value)));
        }
        for (start, end) in [
            ("remaining(", ")"),
            ("took = ", ""),
            ("compacted revision ", ""),
        ] {
            line = cut(&line, start, end);
        }
        Some(sort_keys(&line))
    }

    fn normalise_field(&self, field: &str, value: &str) -> String {
        match field.trim_matches('"') {
            "Revision" | "CreateRevision" | "ModRevision" | "PrevCreateRevision"
            | "PrevModRevision" => match value.parse::<i64>() {
                Ok(0) | Err(_) => value.to_owned(),
                Ok(revision) => format!("+{}", revision - self.base),
            },
            "ClusterID" | "MemberID" | "Leader" => "<id>".to_owned(),
            "RaftTerm" | "RaftIndex" | "RaftAppliedIndex" | "DBSize" | "DBSizeInUse"
            | "Version"
                if field != "\"Version\"" || value.contains('.') =>
            {
                "<n>".to_owned()
            }
            _ => value.to_owned(),
        }
    }
}

/// etcd tells the keys of a lease in any order.
fn sort_keys(line: &str) -> String {
    let Some((before, keys)) = line.split_once("attached keys([") else {
        return line.to_owned();
    };
    let mut keys: Vec<&str> = keys.trim_end_matches("])").split(' ').collect();
    keys.sort_unstable();
    format!("{before}attached keys([{}])", keys.join(" "))
}

/// Replaces what is between two marks.
fn cut(line: &str, start: &str, end: &str) -> String {
    let Some((before, rest)) = line.split_once(start) else {
        return line.to_owned();
    };
    let after = if end.is_empty() {
        ""
    } else {
        rest.find(end).map_or("", |at| &rest[at..])
    };
    format!("{before}{start}…{after}")
}

async fn finish(mut child: Child, input: &str) -> String {
    let mut stdin = child.stdin.take().expect("piped");
    // A command that fails early does not read its input.
    stdin.write_all(input.as_bytes()).await.ok();
    drop(stdin);
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output());
    transcript(&ended.await.expect("it ends").expect("it ran"))
}

fn transcript(output: &Output) -> String {
    let code = output.status.code();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}exit {code:?}\n")
}

/// The first lines of a watch, which would never end by itself; 0 waits for its end.
async fn watch(mut child: Child, lines: usize) -> String {
    if lines == 0 {
        return finish(child, "").await;
    }
    let _stdin = child.stdin.take();
    let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut seen = String::new();
    for n in 0..lines {
        let line = tokio::time::timeout(Duration::from_secs(10), output.next_line()).await;
        match line {
            Ok(Ok(Some(line))) => seen.push_str(&format!("{line}\n")),
            other => {
                seen.push_str(&format!("only {n} lines: {other:?}\n"));
                break;
            }
        }
    }
    seen
}

async fn play(url: String) -> Vec<(String, String)> {
    let mut console = Console::new(url).await;
    let mut said = Vec::new();
    for line in SCENES.lines().filter(|line| !line.is_empty()) {
        said.push((line.to_owned(), console.run(line).await));
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_says_the_same_of_both() {
    let etcd = Etcd::start().await;
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind(address).await.expect("bound").spawn();
    let embedded = play(format!("http://{}", server.local_addr()));
    let (expected, got) = tokio::join!(play(etcd.url()), embedded);
    let mut differences = String::new();
    for ((line, expected), (_, got)) in expected.iter().zip(&got) {
        println!("$ etcdctl {line}\n{expected}");
        if expected != got {
            differences += &format!("$ etcdctl {line}\n  etcd:\n{expected}  embedded:\n{got}\n");
        }
    }
    let console = Console::new(format!("http://{}", server.local_addr())).await;
    let members = finish(console.spawn("member list"), "").await;
    assert!(members.contains(", started, embedded, "), "{members}");
    server.stop().await.expect("it stops");
    assert!(differences.is_empty(), "{differences}");
}
