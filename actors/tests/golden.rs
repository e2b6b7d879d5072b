//! Everything that goes to another node or into the journal, as bytes kept from each version: a later build reads all of it, and
//! writes the newest as it was. `GOLDEN=write cargo test -p troupe-actors --test golden` adds what is new; it changes no line that is there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use troupe_actors::id::{
    Attempt, AttemptId, Epoch, Generation, Incarnation, JobName, NodeId, TaskId,
};
use troupe_actors::master::ledger::{Ending, Fate, Try, WorkerId};
use troupe_actors::master::record::{self, Answer, Record, Snapshot, TryRecord};
use troupe_actors::transport::frame::{self, Decoded, Decoder};
use troupe_actors::transport::handshake::{
    Greeting, Hello, PREFIX, Prefix, Purpose, Refusal, RefusalKind, Welcome,
};
use troupe_actors::wire::*;

const EPOCH: Epoch = Epoch {
    generation: Generation(1_700_000_000),
    revision: 42,
};

fn node(n: u128) -> NodeId {
    NodeId(n)
}

fn attempt(n: u32) -> AttemptId {
    AttemptId {
        task: TaskId(uuid::Uuid::from_u128(
            0x0190_a000_0000_7000_8000_0000_0000_0001,
        )),
        attempt: Attempt { epoch: EPOCH, n },
    }
}

fn spec() -> TaskSpec {
    let labels = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]).into();
    TaskSpec {
        id: attempt(1).task,
        job: JobName::from("multiply"),
        input: Bytes::from_static(b"{\"number\":42}"),
        meta: labels(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        durable: true,
        timeout_ms: 30_000,
        max_attempts: 3,
        priority: -1,
        require: labels("disk", "ssd"),
        created_ms: 1_700_000_000_123,
        not_before_ms: 0,
    }
}

fn result(outcome: Outcome) -> TaskResult {
    TaskResult {
        attempt: attempt(1),
        outcome,
        started_ms: 1,
        finished_ms: 2,
        spec: Some(spec()),
    }
}

fn messages() -> Vec<Message> {
    let assignment = Assignment {
        attempt: attempt(1),
        spec: spec(),
    };
    let entry = LedgerEntry {
        spec: spec(),
        attempts: vec![(attempt(1), node(7), Incarnation(9))],
        leased: true,
    };
    let outcomes = [
        Outcome::Done(Bytes::from_static(b"126")),
        Outcome::Failed("no number".to_owned()),
        Outcome::Retry("come again".to_owned()),
        Outcome::Cancelled,
        Outcome::TimedOut,
    ];
    let (nonce, target, incarnation) = (5, node(7), Incarnation(9));
    let why = "because".to_owned();
    vec![
        Heartbeat {
            seq: 1,
            sent_us: 2,
            echo: Some((3, 4)),
            lag_us: 5,
            registry: true,
            draining: false,
            master: Some((EPOCH, 6)),
            unheard: vec![node(7)],
        }
        .into(),
        Probe {
            nonce,
            target,
            incarnation,
        }
        .into(),
        ProbeAnswer {
            nonce,
            target,
            incarnation,
            finding: Finding::Refused,
        }
        .into(),
        YourTurn {
            epoch: EPOCH,
            why: why.clone(),
        }
        .into(),
        DialBack {
            address: "10.0.0.1:22222".to_owned(),
            problem: Some(why.clone()),
        }
        .into(),
        Fenced {
            epoch: EPOCH,
            refused: Epoch::default(),
            what: "Assign".to_owned(),
        }
        .into(),
        Unknown { kind: 99 }.into(),
        Report {
            epoch: EPOCH,
            running: vec![(assignment.clone(), 3)],
            results: outcomes.into_iter().map(result).collect(),
            recent: vec![attempt(1).task],
            credit: 8,
            more: true,
            serial: 2,
        }
        .into(),
        Assign {
            epoch: EPOCH,
            assignments: vec![assignment],
            report: 2,
        }
        .into(),
        Results {
            epoch: EPOCH,
            results: vec![result(Outcome::Cancelled)],
            credit: 1,
        }
        .into(),
        Acknowledge {
            epoch: EPOCH,
            attempts: vec![(attempt(1), Some(why.clone())), (attempt(2), None)],
        }
        .into(),
        Cancel {
            epoch: EPOCH,
            attempts: vec![attempt(1)],
            why: why.clone(),
        }
        .into(),
        HandBack {
            epoch: EPOCH,
            attempts: vec![attempt(1)],
            why: why.clone(),
        }
        .into(),
        HandOver {
            epoch: EPOCH,
            entries: vec![entry.clone()],
            more: false,
            part: 1,
        }
        .into(),
        Shadow {
            epoch: EPOCH,
            entries: vec![entry],
            beyond: 2,
        }
        .into(),
        Started {
            epoch: EPOCH,
            attempts: vec![attempt(1)],
        }
        .into(),
        Progress {
            epoch: EPOCH,
            attempt: attempt(1),
            told: "1 of 2".to_owned(),
        }
        .into(),
        ApiRequest {
            nonce,
            method: "GET".to_owned(),
            path: "/v1/status".to_owned(),
            body: Bytes::from_static(b"{}"),
            by: String::new(),
        }
        .into(),
        ApiResponse {
            nonce,
            status: 200,
            content_type: "application/json".to_owned(),
            body: Bytes::from_static(b"{}"),
        }
        .into(),
    ]
}

fn greetings() -> Vec<(&'static str, Greeting)> {
    let (id, incarnation) = (node(7), Incarnation(9));
    let (name, host) = ("brave-lion".to_owned(), "a".to_owned());
    let address = "10.0.0.1:22222".to_owned();
    let hello = Hello {
        cluster: "troupe".to_owned(),
        generation: EPOCH.generation,
        id,
        incarnation,
        name: name.clone(),
        address: address.clone(),
        host: host.clone(),
        epoch: EPOCH,
        purpose: Purpose::Session,
        stamp: Hlc(3),
        expects: Some(node(8)),
        extension: vec![1, 2],
    };
    let welcome = Welcome {
        generation: EPOCH.generation,
        id,
        incarnation,
        name: name.clone(),
        address,
        host: host.clone(),
        epoch: EPOCH,
        stamp: Hlc(3),
        extension: vec![1, 2],
    };
    let refusal = Refusal {
        kind: RefusalKind::OtherCluster,
        words: "another cluster".to_owned(),
        id,
        incarnation,
        name,
        host,
    };
    vec![
        ("Hello", Greeting::Hello(hello)),
        ("Welcome", Greeting::Welcome(welcome)),
        ("Refusal", Greeting::Refusal(refusal)),
    ]
}

fn records() -> Vec<(&'static str, Record)> {
    let task = attempt(1).task;
    let tried = Try {
        attempt: attempt(1).attempt,
        worker: WorkerId {
            id: node(7),
            incarnation: Incarnation(9),
        },
        started_ms: 1,
        finished_ms: 2,
        ending: Ending::Lost,
        spent: true,
        blamed: true,
    };
    let tried = TryRecord::from(&tried);
    let snapshot = Snapshot {
        answer: Answer::Dead("too often".to_owned()),
        finished_ms: 3,
        tries: vec![tried.clone()],
        refused: vec![(attempt(2).attempt, node(7), "late".to_owned())],
        ..Snapshot::new(spec())
    };
    let finished = |answer| Record::Finished {
        task,
        tried: Some(tried.clone()),
        answer,
        at_ms: 4,
    };
    let fates = [Fate::Done, Fate::Failed, Fate::Dead, Fate::Cancelled];
    vec![
        ("Accepted", Record::Accepted(spec())),
        ("Done", finished(Answer::Done(Bytes::from_static(b"126")))),
        ("Failed", finished(Answer::Failed("no".to_owned()))),
        ("Dead", finished(Answer::Dead("too often".to_owned()))),
        ("Cancelled", finished(Answer::Cancelled)),
        (
            "Requeued",
            Record::Requeued {
                task,
                tried: Some(tried.clone()),
            },
        ),
        ("Retried", Record::Retried { task }),
        ("Snapshot", Record::Snapshot(Box::new(snapshot))),
        ("Ids", Record::Ids(fates.map(|fate| (task, fate)).to_vec())),
    ]
}

/// What there is, by name: its bytes as this build writes them.
fn written() -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let header = Header {
        epoch: EPOCH,
        hlc: Hlc(3),
        trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    };
    for message in messages() {
        let bytes = frame::encode(&header, &message, 1 << 20).unwrap();
        all.insert(format!("frame/{}", message.name()), bytes.to_vec());
    }
    for (name, greeting) in greetings() {
        all.insert(format!("greeting/{name}"), greeting.encode().unwrap());
    }
    for (name, record) in records() {
        let mut segment = record::begin(1_700_000_000_000);
        record::append(&mut segment, &record);
        all.insert(format!("segment/{name}"), segment);
    }
    all
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{PROTOCOL_VERSION}.txt"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// The lines of a corpus: name, bytes.
fn kept(text: &str) -> BTreeMap<String, Vec<u8>> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(name, bytes)| (name.to_owned(), unhex(bytes)))
        .collect()
}

#[test]
fn this_build_writes_what_its_version_always_wrote() {
    let mut text = std::fs::read_to_string(path()).unwrap_or_default();
    let (kept, written) = (kept(&text), written());
    if std::env::var_os("GOLDEN").is_some() {
        for (name, bytes) in written.iter().filter(|(name, _)| !kept.contains_key(*name)) {
            writeln!(text, "{name} {}", hex(bytes)).unwrap();
        }
        std::fs::write(path(), text).unwrap();
        return;
    }
    for (name, bytes) in &written {
        let before = kept
            .get(name)
            .unwrap_or_else(|| panic!("{name} is new: add it with GOLDEN=write"));
        assert_eq!(
            hex(bytes),
            hex(before),
            "{name} is written in another way: that needs another version"
        );
    }
    assert_eq!(
        kept.len(),
        written.len(),
        "something is written no more; it must be read all the same"
    );
}

#[test]
fn what_was_written_is_read() {
    let kept = kept(&std::fs::read_to_string(path()).unwrap());
    let messages: BTreeMap<_, _> = messages().into_iter().map(|m| (m.name(), m)).collect();
    let (greetings, records) = (
        BTreeMap::from_iter(greetings()),
        BTreeMap::from_iter(records()),
    );
    for (name, bytes) in kept {
        match name.split_once('/').unwrap() {
            ("frame", name) => {
                let mut decoder = Decoder::new(1 << 20);
                decoder.space(bytes.len()).extend_from_slice(&bytes);
                let Ok(Some(Decoded::Envelope { envelope, .. })) = decoder.next_frame() else {
                    panic!("{name} is not read");
                };
                assert_eq!(envelope.message, messages[name]);
                assert_eq!(envelope.header.hlc, Hlc(3));
            }
            ("greeting", name) => {
                let (head, body) = bytes.split_first_chunk::<PREFIX>().unwrap();
                let greeting = Prefix::parse(*head).unwrap().read(body).unwrap();
                assert_eq!(greeting, greetings[name]);
            }
            (_, name) => {
                let (floor, read) = record::read(&bytes).unwrap();
                assert_eq!(
                    (floor, read),
                    (1_700_000_000_000, vec![records[name].clone()])
                );
            }
        }
    }
}
