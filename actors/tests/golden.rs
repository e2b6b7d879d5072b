//! The bytes of every message between nodes, as kept in `golden/wire-1.txt`: a version that reads or writes them otherwise cannot
//! share a cluster with the ones before it. A change of the protocol gets a file of its own; the old one stays.
//! And a journal segment with every kind of record, `golden/journal-1.txt`: what a later version cannot read, it has lost.
//!
//! A new kind is added by `GOLDEN=write cargo test -p troupe-actors --test golden`; a line that changes is a new version.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::json;
use troupe_actors::id::{Attempt, AttemptId, Epoch, Generation, Incarnation, NodeId, TaskId};
use troupe_actors::master::record::{self, Answer, Record, Snapshot, TryRecord};
use troupe_actors::transport::frame::{Decoded, Decoder, encode};
use troupe_actors::wire::{
    Acknowledge, ApiRequest, ApiResponse, Assign, Assignment, Cancel, DialBack, Envelope, Fenced,
    Finding, HandBack, HandOver, Header, Heartbeat, Hlc, LedgerEntry, Message, Outcome,
    PROTOCOL_VERSION, Probe, ProbeAnswer, Report, Results, Shadow, Started, TaskResult, TaskSpec,
    Unknown, YourTurn,
};

const MAX_FRAME: usize = 1 << 20;

/// What is kept under this name; written anew when that is asked for.
fn kept(name: &str, now: &[String]) -> String {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if std::env::var("GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::write(dir.join(name), now.join("\n") + "\n").unwrap();
    }
    std::fs::read_to_string(dir.join(name)).unwrap()
}

fn header() -> Header {
    Header {
        epoch: epoch(),
        hlc: Hlc(0x0123_4567_89ab_cdef),
        trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    }
}

fn epoch() -> Epoch {
    Epoch {
        generation: Generation(1_795_478_551),
        revision: 433,
    }
}

fn attempt() -> AttemptId {
    AttemptId {
        task: TaskId("01a20ae0-5def-798f-bbcc-113772741a60".parse().unwrap()),
        attempt: Attempt {
            epoch: epoch(),
            n: 2,
        },
    }
}

fn spec() -> TaskSpec {
    let pair = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
    TaskSpec {
        id: attempt().task,
        job: "multiply".into(),
        input: Bytes::from_static(br#"{"number":7}"#),
        meta: pair("traceparent", "00-1"),
        durable: true,
        timeout_ms: 30_000,
        max_attempts: 3,
        priority: -1,
        require: pair("disk", "ssd"),
        created_ms: 1_795_478_551_000,
        not_before_ms: 1_795_478_552_000,
    }
}

fn result(outcome: Outcome) -> TaskResult {
    TaskResult {
        attempt: attempt(),
        outcome,
        started_ms: 1_795_478_551_001,
        finished_ms: 1_795_478_551_070,
        spec: None,
    }
}

/// One of each, with a value that is not the default in each field.
fn messages() -> Vec<Message> {
    let (epoch, nonce, incarnation) = (epoch(), 77, Incarnation(42));
    let (me, why) = (NodeId(0xfeed_0000_0000_0001), "the master is leaving");
    let assignment = Assignment {
        attempt: attempt(),
        spec: spec(),
    };
    let entries = vec![LedgerEntry {
        spec: spec(),
        attempts: vec![(attempt(), me, incarnation)],
        leased: true,
    }];
    let finding = |finding| {
        let target = me;
        ProbeAnswer {
            nonce,
            target,
            incarnation,
            finding,
        }
    };
    let outcomes = vec![
        result(Outcome::Done(Bytes::from_static(b"21"))),
        result(Outcome::Failed("no".to_owned())),
        result(Outcome::Retry("later".to_owned())),
        result(Outcome::Cancelled),
        TaskResult {
            spec: Some(spec()),
            ..result(Outcome::TimedOut)
        },
    ];
    vec![
        Heartbeat {
            seq: 9,
            sent_us: 1_000_000,
            echo: Some((900_000, 15)),
            lag_us: 120,
            registry: true,
            draining: true,
            master: Some((epoch, 300)),
            unheard: vec![me],
        }
        .into(),
        Probe {
            nonce,
            target: me,
            incarnation,
        }
        .into(),
        finding(Finding::Heard).into(),
        finding(Finding::Refused).into(),
        finding(Finding::Silent).into(),
        YourTurn {
            epoch,
            why: why.to_owned(),
        }
        .into(),
        DialBack {
            address: "10.0.2.15:22222".to_owned(),
            problem: Some("refused".to_owned()),
        }
        .into(),
        Fenced {
            epoch,
            refused: Epoch::NONE,
            what: "Assign".to_owned(),
        }
        .into(),
        Unknown { kind: 999 }.into(),
        Report {
            epoch,
            running: vec![(assignment.clone(), 1_795_478_551_001)],
            results: outcomes.clone(),
            recent: vec![attempt().task],
            credit: 8,
            more: true,
            serial: 5,
        }
        .into(),
        Assign {
            epoch,
            assignments: vec![assignment],
            report: 5,
        }
        .into(),
        Results {
            epoch,
            results: outcomes,
            credit: 1,
        }
        .into(),
        Acknowledge {
            epoch,
            attempts: vec![
                (attempt(), Some("superseded".to_owned())),
                (attempt(), None),
            ],
        }
        .into(),
        Cancel {
            epoch,
            attempts: vec![attempt()],
            why: why.to_owned(),
        }
        .into(),
        HandBack {
            epoch,
            attempts: vec![attempt()],
            why: why.to_owned(),
        }
        .into(),
        HandOver {
            epoch,
            entries: entries.clone(),
            more: true,
            part: 1,
        }
        .into(),
        Shadow {
            epoch,
            entries,
            beyond: 3,
        }
        .into(),
        Started {
            epoch,
            attempts: vec![attempt()],
        }
        .into(),
        ApiRequest {
            nonce,
            method: "GET".to_owned(),
            path: "/v1/members?json".to_owned(),
            body: Bytes::from_static(b"{}"),
        }
        .into(),
        ApiResponse {
            nonce,
            status: 200,
            content_type: "application/json".to_owned(),
            body: Bytes::from_static(b"[]"),
        }
        .into(),
    ]
}

fn line(message: &Message) -> String {
    let frame = encode(&header(), message, MAX_FRAME).unwrap();
    format!("{} {} {}", message.kind(), message.name(), hex(&frame))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(line: &str) -> Vec<u8> {
    let hex = line.rsplit(' ').next().unwrap();
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[test]
fn what_is_said_on_the_wire_is_what_was_said_before_and_what_was_said_is_understood() {
    let messages = messages();
    let lines: Vec<_> = messages.iter().map(line).collect();
    let kept = kept(&format!("wire-{PROTOCOL_VERSION}.txt"), &lines);
    assert_eq!(kept.lines().collect::<Vec<_>>(), lines);
    for (line, message) in kept.lines().zip(messages) {
        let frame = bytes(line);
        let mut decoder = Decoder::new(MAX_FRAME);
        decoder.space(frame.len()).extend_from_slice(&frame);
        let header = header();
        let Ok(Some(Decoded::Envelope { envelope, .. })) = decoder.next_frame() else {
            panic!("not understood: {line}");
        };
        assert_eq!(envelope, Envelope { header, message });
    }
}

#[test]
fn every_kind_of_message_is_kept() {
    let kept: BTreeSet<u16> = messages().iter().map(Message::kind).collect();
    // A kind that this build knows does not answer `None` even to an empty body.
    let known = (0..=u16::MAX).filter(|kind| !matches!(Message::decode_body(*kind, &[]), Ok(None)));
    assert_eq!(kept, known.collect());
}

/// A try that ended in the way of this number.
fn tried(ending: u8) -> TryRecord {
    // Its fields are its own; its names are part of what is kept.
    let value = json!({
        "attempt": attempt().attempt,
        "worker": NodeId(0xfeed_0000_0000_0001),
        "incarnation": Incarnation(42),
        "started_ms": 1_795_478_551_001_u64,
        "finished_ms": 1_795_478_551_070_u64,
        "ending": ending,
        "spent": true,
        "blamed": ending == 0,
    });
    serde_json::from_value(value).unwrap()
}

/// One of each kind, and of each answer.
fn records() -> Vec<Record> {
    let task = attempt().task;
    let finished = |answer, tried| Record::Finished {
        task,
        tried,
        answer,
        at_ms: 1_795_478_551_070,
    };
    let why = || "no such file".to_owned();
    let fates = ["Done", "Failed", "Dead", "Cancelled"];
    let fates = fates.map(|fate| (task, serde_json::from_value(json!(fate)).unwrap()));
    vec![
        Record::Accepted(spec()),
        finished(Answer::Done(Bytes::from_static(b"21")), Some(tried(0))),
        finished(Answer::Failed(why()), Some(tried(1))),
        finished(Answer::Dead(why()), Some(tried(2))),
        finished(Answer::Cancelled, None),
        Record::Requeued {
            task,
            tried: Some(tried(3)),
        },
        Record::Retried { task },
        Record::Snapshot(Box::new(Snapshot {
            spec: spec(),
            answer: Answer::Open,
            finished_ms: 0,
            tries: vec![tried(0), tried(1)],
            refused: vec![(attempt().attempt, NodeId(7), why())],
        })),
        Record::Ids(fates.to_vec()),
    ]
}

#[test]
fn a_journal_segment_is_written_as_before_and_one_from_before_is_read() {
    let mut segment = record::begin(1_795_478_000_000);
    for record in records() {
        record::append(&mut segment, &record);
    }
    let now = format!("segment {}", hex(&segment));
    let kept = kept("journal-1.txt", std::slice::from_ref(&now));
    let line = kept.trim_end();
    assert_eq!(line, now);
    assert_eq!(
        record::read(&bytes(line)),
        Ok((1_795_478_000_000, records()))
    );
}
