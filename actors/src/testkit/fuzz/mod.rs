//! What fuzzing calls: one function for everything that parses bytes from outside, [`TARGETS`].
//!
//! Each takes any bytes and must not panic. Where it can it checks a property as well: what was read is written and read again
//! as the same, what was accepted is within its bounds, what was refused has changed nothing. How much memory it may take is
//! said beside it, as bytes beyond [`PER_BYTE`] times the input, and checked where an allocator counts.
//!
//! The suite (`actors/tests/fuzz.rs`) replays the corpus and then mutates it for a while with [`mutate::Mutator`]; `cargo fuzz`
//! runs the same functions for as long as one likes (`tests/fuzz`). The parsers of the binary (configuration) are in the root
//! package's `fuzz` module.

use std::cell::OnceCell;

use bytes::BytesMut;

use crate::id::{Epoch, Generation, Incarnation, NodeId};
use crate::master::record;
use crate::transport::frame::{self, Decoded, Decoder};
use crate::transport::handshake::{self, Greeting, Me, PREFIX, Prefix};
use crate::transport::tls::{Secret, TlsError};
use crate::wire::{Header, Hlc, Message};

mod admin;
mod keys;
mod master;
pub mod mutate;
mod tls;
mod worker;

/// Memory that each byte of input may cost: a task of a few bytes on the wire is some hundreds in a ledger.
pub const PER_BYTE: usize = 64;

/// The default of `transport.max_frame`.
const MAX_FRAME: usize = 1 << 20;

/// One parser, or a few that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: the binary in `tests/fuzz`, the folder of its corpus.
    pub name: &'static str,
    /// What it parses.
    pub what: &'static str,
    /// Whether such bytes are parsed from somebody who has proved nothing yet.
    pub before_authentication: bool,
    /// Bytes it may hold beyond [`PER_BYTE`] times the input.
    pub memory: usize,
    /// Parses. Panics when a property does not hold.
    pub run: fn(&[u8]),
}

impl Target {
    /// Parses this input.
    pub fn run(&self, data: &[u8]) {
        (self.run)(data);
    }
}

const MIB: usize = 1 << 20;

/// Everything in this package that parses bytes from outside.
pub const TARGETS: &[Target] = &[
    Target {
        name: "tls",
        what: "TLS records between nodes: what a dialler sends, what an acceptor answers",
        before_authentication: true,
        memory: 2 * MIB,
        run: tls::tls,
    },
    Target {
        name: "greeting",
        what: "hello, welcome and refusal, and whether the two belong together",
        before_authentication: true,
        memory: 2 * MIB,
        run: greeting,
    },
    Target {
        name: "frame",
        what: "a stream of frames, cut anywhere",
        before_authentication: false,
        memory: 6 * MIB,
        run: frame,
    },
    Target {
        name: "message",
        what: "the body of a message of any kind",
        before_authentication: false,
        memory: 4 * MIB,
        run: message,
    },
    Target {
        name: "master",
        what: "what workers and former masters tell a master, and what it makes of it",
        before_authentication: false,
        memory: 8 * MIB,
        run: master::master,
    },
    Target {
        name: "worker",
        what: "what a master tells a worker, and what it makes of it",
        before_authentication: false,
        memory: 8 * MIB,
        run: worker::worker,
    },
    Target {
        name: "segment",
        what: "one journal segment and its records",
        before_authentication: false,
        memory: 4 * MIB,
        run: segment,
    },
    Target {
        name: "journal",
        what: "a whole journal, replayed into a ledger that leads on",
        before_authentication: false,
        memory: 8 * MIB,
        run: master::journal,
    },
    Target {
        name: "keys",
        what: "values in the registry: registrations, names, master, generation, challenges",
        before_authentication: false,
        memory: 4 * MIB,
        run: keys::keys,
    },
    Target {
        name: "registry",
        what: "requests to the embedded registry: reads, transactions, leases, watches",
        before_authentication: true,
        memory: 8 * MIB,
        run: crate::registry::embedded::fuzz::requests,
    },
    Target {
        name: "http",
        what: "a connection to the admin API, byte by byte",
        before_authentication: true,
        memory: 8 * MIB,
        run: admin::http,
    },
    Target {
        name: "access",
        what: "what a request of the admin API says of itself: host, origin, token",
        before_authentication: true,
        memory: MIB,
        run: admin::access,
    },
    Target {
        name: "submit",
        what: "the body of POST /v1/tasks: one object, or NDJSON",
        before_authentication: true,
        memory: 8 * MIB,
        run: admin::submit,
    },
    Target {
        name: "query",
        what: "paths and queries of the admin API, and Last-Event-ID",
        before_authentication: true,
        memory: 8 * MIB,
        run: admin::query,
    },
    Target {
        name: "carried",
        what: "requests and answers of the admin API that another node carries here",
        before_authentication: false,
        memory: 8 * MIB,
        run: admin::carried,
    },
    Target {
        name: "secret",
        what: "the text of a cluster secret",
        before_authentication: false,
        memory: MIB,
        run: secret,
    },
];

/// The target of this name.
///
/// # Panics
/// When there is none.
pub fn target(name: &str) -> &'static Target {
    named(TARGETS, name)
}

/// The target of this name among these.
///
/// # Panics
/// When there is none.
pub fn named(targets: &'static [Target], name: &str) -> &'static Target {
    let found = targets.iter().find(|t| t.name == name);
    found.unwrap_or_else(|| panic!("no target {name}"))
}

/// An input that is a list: `length u16 BE | bytes`, again and again; the last may be short.
fn parts(mut data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (part, behind) = rest.split_at(length);
        parts.push(part);
        data = behind;
    }
    parts
}

/// The same list, for whoever makes a corpus.
pub fn join<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut data = Vec::new();
    for part in parts {
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        data.extend_from_slice(&length.to_be_bytes());
        data.extend_from_slice(&part[..usize::from(length)]);
    }
    data
}

fn epoch(revision: i64) -> Epoch {
    Epoch {
        generation: Generation(1_700_000_000),
        revision,
    }
}

fn frame(data: &[u8]) {
    let Some((step, stream)) = data.split_first() else {
        return;
    };
    let mut decoder = Decoder::new(MAX_FRAME);
    for piece in stream.chunks(1 + 7 * usize::from(*step)) {
        decoder.space(piece.len()).extend_from_slice(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(Decoded::Envelope { envelope, bytes })) => {
                    let again = frame::encode(&envelope.header, &envelope.message, MAX_FRAME)
                        .expect("what was read can be written");
                    assert!(again.len() <= bytes, "written it is longer than it was");
                    let mut second = Decoder::new(MAX_FRAME);
                    second.space(0).extend_from_slice(&again);
                    let read = second.next_frame();
                    assert!(
                        matches!(&read, Ok(Some(Decoded::Envelope { envelope: e, .. })) if *e == envelope),
                        "{envelope:?} became {read:?}"
                    );
                }
                Ok(Some(Decoded::Unknown { .. })) => {}
                Ok(None) => break,
                // The session is closed.
                Err(why) => {
                    assert!(!why.to_string().is_empty());
                    return;
                }
            }
        }
    }
}

/// `kind u8 | body`.
fn message(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else {
        return;
    };
    let Ok(Some(message)) = Message::decode_body(u16::from(*kind), body) else {
        return;
    };
    assert_eq!(message.kind(), u16::from(*kind));
    let again = message.encode_body(Vec::new()).expect("it can be written");
    assert!(again.len() <= body.len());
    assert_eq!(
        Message::decode_body(message.kind(), &again),
        Ok(Some(message.clone()))
    );
    let whole = frame::encode(&Header::default(), &message, MAX_FRAME);
    assert!(whole.is_ok() || body.len() + 64 > MAX_FRAME);
}

fn me(id: u128) -> Me {
    Me {
        cluster: "troupe".to_owned(),
        generation: Generation(1_700_000_000),
        id: NodeId(id),
        incarnation: Incarnation(9),
        name: "brave-lion".to_owned(),
        address: "10.0.0.1:22222".to_owned(),
        host: "here".to_owned(),
        epoch: epoch(42),
        stamp: Hlc(3),
    }
}

fn greeting(data: &[u8]) {
    let Some((prefix, rest)) = data.split_first_chunk::<PREFIX>() else {
        return;
    };
    let prefix = match Prefix::parse(*prefix) {
        Ok(prefix) => prefix,
        Err(why) => return assert!(!why.to_string().is_empty()),
    };
    // What a listener sets aside before it knows anything of whom it listens to.
    assert!(prefix.body_length() <= handshake::MAX_BODY);
    let body = &rest[..rest.len().min(prefix.body_length())];
    let Ok(greeting) = prefix.read(body) else {
        return;
    };
    let again = greeting.encode().expect("what was read can be written");
    assert!(again.len() <= PREFIX + body.len());
    let (head, tail) = again.split_first_chunk::<PREFIX>().expect("a prefix");
    let read = Prefix::parse(*head).and_then(|prefix| prefix.read(tail));
    assert_eq!(read.as_ref(), Ok(&greeting));
    match greeting {
        Greeting::Hello(hello) => {
            let answer = match handshake::judge(&hello, &me(7)) {
                Ok(welcome) => {
                    assert_eq!(hello.cluster, "troupe");
                    Greeting::Welcome(welcome)
                }
                Err(refusal) => Greeting::Refusal(refusal),
            };
            answer
                .encode()
                .expect("every caller can be told why it was turned away");
        }
        Greeting::Welcome(_) => {}
        Greeting::Refusal(refusal) => {
            let outcome = refusal.outcome();
            let told = handshake::dial_back_problem("10.0.2.15:22222", NodeId(8), &outcome, &me(7));
            assert!(told.is_none_or(|words| !words.is_empty()));
        }
    }
}

fn segment(data: &[u8]) {
    let Ok((floor, records)) = record::read(data) else {
        return;
    };
    let mut again = record::begin(floor);
    for one in &records {
        record::append(&mut again, one);
    }
    assert!(again.len() <= data.len());
    assert_eq!(record::read(&again), Ok((floor, records)));
}

fn secret(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Secret::parse(text) {
        Ok(secret) => assert_eq!(secret.reveal(), text.trim().to_ascii_lowercase()),
        // It must not be repeated to whoever reads the log: the words are the same whatever it is.
        Err(why) => assert_eq!(why.to_string(), TlsError::BadSecret.to_string()),
    }
}

/// The runtime of this thread: targets that talk need one, and making it costs more than a run.
fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: OnceCell<actix_rt::SystemRunner> = const { OnceCell::new() };
    }
    RUNTIME.with(|cell| cell.get_or_init(actix_rt::System::new).block_on(work))
}

/// Bytes, then the end.
fn reader(data: &[u8]) -> std::io::Cursor<BytesMut> {
    std::io::Cursor::new(BytesMut::from(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_joined() {
        let made = join([&b"one"[..], b"", b"three"]);
        assert_eq!(parts(&made), [&b"one"[..], b"", b"three"]);
        assert_eq!(parts(&made[..4]), [&b"on"[..]]);
    }

    #[test]
    fn every_target_takes_nothing_and_a_little() {
        for target in TARGETS {
            for data in [&b""[..], b"\0", b"\xff\xff\xff\xff", b"\0\x01a\0\x01b"] {
                (target.run)(data);
            }
        }
    }
}
