//! The first inputs of each target, made from real messages: golden bytes, a recorded TLS handshake, requests as people and
//! programs send them. What fuzzing finds is added as files; only what is missing is written.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_client::proto::{
    PbCompactionRequest, PbCompare, PbDeleteRequest, PbLeaseGrantRequest, PbLeaseRevokeRequest,
    PbPutRequest, PbRangeRequest, PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp,
};
use tokio::io::{AsyncRead, ReadBuf, duplex, split};
use troupe_actors::id::NodeId;
use troupe_actors::testkit::fuzz::join;
use troupe_actors::transport::tls::{Credentials, Secret, Tls, TlsNetwork};
use troupe_actors::transport::{Dialing, Network, Stream};

type Seeds = Vec<(&'static str, String, Vec<u8>)>;

/// Writes what is missing below this folder.
pub fn write(corpus: &Path) {
    for (target, name, data) in all() {
        let path = corpus.join(target).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if !path.exists() {
            std::fs::write(path, data).unwrap();
        }
    }
}

fn all() -> Seeds {
    let mut seeds = Seeds::new();
    golden(&mut seeds);
    handshake(&mut seeds);
    values(&mut seeds);
    requests(&mut seeds);
    http(&mut seeds);
    access(&mut seeds);
    tasks(&mut seeds);
    queries(&mut seeds);
    let secret = "0123456789abcdef".repeat(4);
    seeds.push(("secret", "plain".to_owned(), format!("{secret}\n").into()));
    let upper = format!("  {}\r\n", secret.to_uppercase());
    seeds.push(("secret", "upper".to_owned(), upper.into()));
    seeds
}

/// One message as the targets take it: kind, body.
fn tagged(frame: &[u8]) -> Vec<u8> {
    let header = usize::from(u16::from_be_bytes([frame[6], frame[7]]));
    [&frame[5..6], &frame[8 + header..]].concat()
}

fn golden(seeds: &mut Seeds) {
    let text = include_str!("../golden/v1.txt");
    let byte = |hex: &str, at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let mut segments = Vec::new();
    let (mut to_master, mut to_worker, mut stream) = (Vec::new(), Vec::new(), vec![3]);
    for line in text.lines() {
        let (name, hex) = line.split_once(' ').unwrap();
        let data: Vec<u8> = (0..hex.len()).step_by(2).map(|at| byte(hex, at)).collect();
        let (what, name) = name.split_once('/').unwrap();
        let name = name.to_owned();
        match what {
            "frame" => {
                let message = tagged(&data);
                stream.extend_from_slice(&data);
                match name.as_str() {
                    "Assign" | "Acknowledge" | "Cancel" => to_worker.push(message.clone()),
                    "ApiRequest" | "ApiResponse" => {
                        let carried = [&[u8::from(name == "ApiResponse")], &message[1..]].concat();
                        seeds.push(("carried", name.clone(), join([&carried[..]])));
                    }
                    "Report" | "Results" | "HandBack" | "HandOver" | "Shadow" | "Started"
                    | "Progress" => to_master.push(message.clone()),
                    _ => {}
                }
                seeds.push(("message", name.clone(), message));
                seeds.push(("frame", name, [&[0], &data[..]].concat()));
            }
            "greeting" => seeds.push(("greeting", name, data)),
            _ => {
                segments.push(data.clone());
                seeds.push(("segment", name, data));
            }
        }
    }
    seeds.push(("frame", "stream".to_owned(), stream));
    fn all(list: &[Vec<u8>]) -> Vec<u8> {
        join(list.iter().map(Vec::as_slice))
    }
    // Time passes between what is said.
    let between = |list: &[Vec<u8>], steps: &[u8]| {
        let mut played = Vec::new();
        for (n, message) in list.iter().enumerate() {
            played.push(message.clone());
            played.push(vec![steps[n % steps.len()]]);
        }
        all(&played)
    };
    seeds.push(("journal", "all".to_owned(), all(&segments)));
    for n in 1..segments.len() {
        seeds.push(("journal", format!("first-{n}"), all(&segments[..n])));
    }
    seeds.push((
        "master",
        "all".to_owned(),
        between(&to_master, &[2, 0, 3, 1, 5, 4]),
    ));
    let reversed: Vec<_> = to_master.iter().rev().cloned().collect();
    seeds.push((
        "master",
        "reversed".to_owned(),
        between(&reversed, &[5, 2, 0, 3]),
    ));
    seeds.push((
        "worker",
        "all".to_owned(),
        between(&to_worker, &[0, 10, 16]),
    ));
    for (n, message) in to_worker.iter().enumerate() {
        let twice = [message.clone(), message.clone()];
        seeds.push(("worker", format!("twice-{n}"), between(&twice, &[5, 11])));
    }
}

/// Keeps what is read through it.
struct Tap(Box<dyn AsyncRead + Send + Unpin>, Arc<Mutex<Vec<u8>>>);

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let ready = Pin::new(&mut self.0).poll_read(cx, buf);
        self.1
            .lock()
            .unwrap()
            .extend_from_slice(&buf.filled()[before..]);
        ready
    }
}

struct Once(Mutex<Option<Stream>>);

impl Network for Once {
    fn dial(&self, _: &str, _: Duration) -> Dialing {
        let stream = self.0.lock().unwrap().take();
        Box::pin(async move { Ok(stream.expect("dialled once")) })
    }
}

/// Both flights of a handshake between two that know the secret.
fn handshake(seeds: &mut Seeds) {
    let within = Duration::from_secs(10);
    let tls = |n| {
        Arc::new(
            Tls::new(
                Credentials::Secrets(vec![Secret::new([7; 32])]),
                "troupe",
                NodeId(n),
            )
            .unwrap(),
        )
    };
    let (heard, answered) = (Arc::default(), Arc::default());
    let (a, b) = duplex(1 << 16);
    let stream = |half, kept: &Arc<Mutex<Vec<u8>>>| {
        let (reader, writer) = split(half);
        Stream {
            reader: Box::new(Tap(Box::new(reader), Arc::clone(kept))),
            writer: Box::new(writer),
            remote: ([127, 0, 0, 1], 1).into(),
            proof: None,
        }
    };
    let acceptor = stream(a, &heard);
    let network = TlsNetwork::new(
        Arc::new(Once(Mutex::new(Some(stream(b, &answered))))),
        tls(8),
    );
    actix_rt::System::new().block_on(async {
        let ours = tls(7);
        let (accepted, dialled) = tokio::join!(
            ours.accept(acceptor, tokio::time::Instant::now() + within),
            network.dial("a:1", within)
        );
        assert!(accepted.is_ok() && dialled.is_ok());
    });
    let (heard, answered) = (heard.lock().unwrap(), answered.lock().unwrap());
    seeds.push(("tls", "dialler".to_owned(), [&[0], &heard[..]].concat()));
    seeds.push(("tls", "acceptor".to_owned(), [&[1], &answered[..]].concat()));
    seeds.push((
        "tls",
        "web".to_owned(),
        b"\0GET / HTTP/1.1\r\n\r\n".to_vec(),
    ));
}

const REGISTRATION: &str = r#"{"id":"00000000000000000000000000000008","name":"shy-cat","ip":"10.0.0.2","port":22222,"admin":"127.0.0.1:22223","host":"there","boot":"b","pid":43,"version":"0.1.0","protocol":1,"weight":0,"eligible":true,"roles":["worker"],"jobs":["multiply"],"capacity":4,"tags":{"disk":"ssd"},"started_at":1700000000000}"#;
const MASTER: &str =
    r#"{"id":"00000000000000000000000000000008","incarnation":1,"address":"10.0.0.2:22222"}"#;
const ID: &str = "00000000000000000000000000000008";

fn values(seeds: &mut Seeds) {
    let pairs: [(&str, &[(&str, &str)]); 4] = [
        (
            "cluster",
            &[
                ("\x0010.0.0.2:22222", REGISTRATION),
                ("\x03shy-cat", ID),
                ("\x04", MASTER),
                ("\x05", "1700000000"),
                ("\x061", ""),
            ],
        ),
        (
            "seat",
            &[
                ("\x02", REGISTRATION),
                ("\x03shy-cat", ID),
                ("\x04", MASTER),
                ("\x02", REGISTRATION),
            ],
        ),
        (
            "unreadable",
            &[("\x02", "{"), ("\x04", "null"), ("\x05", "-1")],
        ),
        ("other", &[("\x07journal/1/2", "x"), ("\x03", "")]),
    ];
    for (name, pairs) in pairs {
        let flat = pairs.iter().flat_map(|(k, v)| [k.as_bytes(), v.as_bytes()]);
        seeds.push(("keys", name.to_owned(), join(flat)));
    }
}

fn requests(seeds: &mut Seeds) {
    fn with(what: u8, message: &impl prost::Message) -> Vec<u8> {
        [&[what], &message.encode_to_vec()[..]].concat()
    }
    let put = |key: &str, lease| PbPutRequest {
        key: key.into(),
        value: b"value".to_vec(),
        lease,
        prev_kv: true,
        ..PbPutRequest::default()
    };
    let op = |request| PbTxnRequestOp {
        request: Some(request),
    };
    let range = PbRangeRequest {
        key: b"/troupe/".to_vec(),
        range_end: b"/troupe0".to_vec(),
        limit: 10,
        sort_order: 2,
        sort_target: 3,
        ..PbRangeRequest::default()
    };
    let delete = PbDeleteRequest {
        key: b"/troupe/a".to_vec(),
        prev_kv: true,
        ..PbDeleteRequest::default()
    };
    let compare = PbCompare {
        key: b"/troupe/master".to_vec(),
        target: 1,
        target_union: Some(PbTargetUnion::CreateRevision(0)),
        ..PbCompare::default()
    };
    let claim = PbTxnRequest {
        compare: vec![compare],
        success: vec![
            op(PbTxnOpRequest::RequestPut(put("/troupe/master", 7))),
            op(PbTxnOpRequest::RequestDeleteRange(delete.clone())),
        ],
        failure: vec![op(PbTxnOpRequest::RequestRange(range.clone()))],
    };
    let nested = PbTxnRequest {
        success: vec![op(PbTxnOpRequest::RequestTxn(claim.clone()))],
        ..PbTxnRequest::default()
    };
    // A `WatchRequest` that creates: key, end of range, start revision 100, previous values. etcd-client does not export it.
    let inner = b"\x0a\x08/troupe/\x12\x08/troupe0\x18\x64\x30\x01";
    let watch = [&[8, 0x0a, inner.len() as u8], &inner[..]].concat();
    let list: [(&str, Vec<u8>); 9] = [
        ("range", with(0, &range)),
        ("put", with(1, &put("/troupe/a", 0))),
        ("delete", with(2, &delete)),
        ("claim", with(3, &claim)),
        ("nested", with(4, &nested)),
        (
            "compact",
            with(
                5,
                &PbCompactionRequest {
                    revision: 101,
                    ..Default::default()
                },
            ),
        ),
        ("grant", with(6, &PbLeaseGrantRequest { ttl: 60, id: 7 })),
        ("revoke", with(7, &PbLeaseRevokeRequest { id: 7 })),
        ("watch", watch),
    ];
    let pick = |names: &[&str]| {
        let of = |name: &&str| list.iter().find(|(n, _)| n == name).unwrap().1.clone();
        let parts: Vec<Vec<u8>> = names.iter().map(of).collect();
        join(parts.iter().map(Vec::as_slice))
    };
    for (name, _) in &list {
        seeds.push(("registry", (*name).to_owned(), pick(&[name])));
    }
    let life = [
        "grant", "watch", "claim", "put", "range", "nested", "compact", "delete", "revoke", "range",
    ];
    seeds.push(("registry", "life".to_owned(), pick(&life)));
}

fn http(seeds: &mut Seeds) {
    let task = r#"{"job":"multiply","input":{"number":14}}"#;
    let length = task.len();
    let list = [
        ("status", "GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("two", "GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned()),
        ("submit", format!("POST /v1/tasks?wait=1ms HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{task}")),
        ("chunked", format!("POST /v1/tasks HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{task}\r\n1\r\n\n\r\n0\r\n\r\n")),
        ("events", "GET /v1/events?since=0 HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nLast-Event-ID: 3\r\n\r\n".to_owned()),
        ("kill", "POST /v1/actors/worker/kill HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nContent-Length: 14\r\n\r\n{\"how\":\"stop\"}".to_owned()),
        ("old", "GET / HTTP/1.0\r\n\r\n".to_owned()),
        ("continue", "POST /v1/tasks HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}".to_owned()),
        ("cancel", "DELETE /v1/tasks/0190a000-0000-7000-8000-000000000001 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
    ];
    for (name, text) in list {
        seeds.push(("http", name.to_owned(), text.into()));
    }
}

fn access(seeds: &mut Seeds) {
    let operator = "Bearer operator-operator-operator-operator";
    let reader = "bearer reader-reader-reader-reader-reader-";
    let list = [
        ("probe", "\x00/livez\nevil.example".to_owned()),
        ("page", "\x00/app.js\na:22223".to_owned()),
        ("read", format!("\x00/v1/status\n[::1]:22223\n\n\n{reader}")),
        (
            "change",
            format!("\x01/v1/members/a/drain\na.:22223\nhttps://a.:22223\nsame-origin\n{operator}"),
        ),
        ("reader", format!("\x01/v1/tasks\n10.0.0.7\n\n\n{reader}")),
        (
            "elsewhere",
            format!("\x01/v1/tasks\nlocalhost\nhttps://evil.example\ncross-site\n{operator}"),
        ),
        (
            "rebound",
            format!("\x00/v1/status\nevil.example\n\n\n{operator}"),
        ),
        ("basic", "\x00/metrics\na\n\n\nBasic b3A6b3A=".to_owned()),
    ];
    for (name, text) in list {
        seeds.push(("access", name.to_owned(), text.into()));
    }
}

fn tasks(seeds: &mut Seeds) {
    let full = r#"{"id":"0190a000-0000-7000-8000-000000000001","job":"multiply","input":{"number":14},"meta":{"a":"b"},"timeout":"30s","max_attempts":3,"priority":-1,"require":{"disk":"ssd"},"durable":true,"delay":1.5}"#;
    let lines = format!("{full}\n\n{{\"job\":\"noop\"}}\r\n{{\"job\":\"\"}}\nnot json\n");
    let list: [(&str, &str, &str); 6] = [
        ("one", "\x00", r#"{"job":"noop"}"#),
        ("full", "\x02", full),
        ("lines", "\x01", &lines),
        ("lines-wait", "\x03", &lines),
        (
            "absolute",
            "\x00",
            r#"{"job":"noop","input":null,"not_before_ms":1700000000000,"timeout":0.001}"#,
        ),
        ("wrong", "\x00", r#"{"job":"noop","colour":"red"}"#),
    ];
    for (name, how, body) in list {
        seeds.push(("submit", name.to_owned(), format!("{how}{body}").into()));
    }
}

fn queries(seeds: &mut Seeds) {
    let id = "0190a000-0000-7000-8000-000000000001";
    let list = [
        (
            "tasks",
            format!("\x00/v1/tasks?state=queued&job=noop&limit=10&after={id}"),
        ),
        ("task", format!("\x00/v1/tasks/{id}?wait=1s")),
        ("cancel", format!("\x01/v1/tasks/{id}")),
        ("retry", format!("\x02/v1/tasks/{id}/retry")),
        (
            "events",
            "\x00/v1/events?follow=false&since=0&level=warn&actor=master&event=task.\n7".to_owned(),
        ),
        (
            "stream",
            "\x00/v1/logs?limit=5&task=x\n18446744073709551615".to_owned(),
        ),
        ("cluster", "\x00/v1/events?node=*&after=0\nff-3".to_owned()),
        (
            "decisions",
            "\x00/v1/events?follow=false&decisions=true&node=node-8".to_owned(),
        ),
        (
            "registry",
            "\x00/v1/registry?prefix=%2Ftroupe%2F".to_owned(),
        ),
        ("why", "\x00/v1/why/node/shy%20cat".to_owned()),
        ("ready", "\x00/readyz?verbose".to_owned()),
        ("promote", "\x02/v1/members/shy-cat/promote".to_owned()),
        ("drain", "\x02/v1/members/brave-lion/drain".to_owned()),
        ("actors", "\x00/v1/actors?node=brave-lion".to_owned()),
    ];
    for (name, text) in list {
        seeds.push(("query", name.to_owned(), text.into()));
    }
}
