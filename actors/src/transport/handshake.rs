//! The handshake: who says what first, and whether the two belong together.
//!
//! ```text
//! dialler  → Hello    (who I am, what for, whom I expect)
//! acceptor → Welcome  (who I am), and the session is up; or
//!            Refusal  (in words that name both sides' values), and hangs up
//! ```
//!
//! Layout: `"TRPE" | version u16 BE | what u8 | length u16 BE | body (postcard)`. Everything before the body, and the body of
//! a [`Refusal`], keep their form for ever, so that any two versions can tell each other that they differ. Other bodies
//! are read by their version; fields are only appended, trailing bytes are ignored, and `extension` carries the value that
//! binds a greeting to its TLS session ([`super::trust`]); it is empty without TLS.
//!
//! | who says hello                                             | answer                         |
//! |------------------------------------------------------------|--------------------------------|
//! | speaks another version                                     | refused: `OtherVersion`        |
//! | names another cluster                                      | refused: `OtherCluster`        |
//! | names another generation, and both sides know theirs       | refused: `OtherGeneration`     |
//! | is this very node                                          | refused: `Itself`              |
//! | expects another node here                                  | refused: `Mistaken`            |
//! | wants a session, and one of the two is not registered yet  | refused: `NotRegistered`       |
//! | otherwise (a dial needs no registration on either side)    | welcome                        |
//!
//! The table of sessions adds `Stale`, `Duplicate` and `Crowded` ([`super::sessions`]).

use serde::{Deserialize, Serialize};

use super::DialOutcome;
use crate::id::{Epoch, Generation, Incarnation, NodeId};
use crate::wire::{Hlc, PROTOCOL_VERSION};

/// What every greeting begins with.
pub const MAGIC: [u8; 4] = *b"TRPE";
/// Characters of a name in a refusal; a DNS name has no more.
const MAX_SAID: usize = 253;
/// Bytes before the body.
pub const PREFIX: usize = 9;
/// Largest body: names and addresses, and room for certificates or proofs. Bounds what an unknown caller makes us hold.
pub const MAX_BODY: usize = 16 * 1024;

/// What a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To stay and exchange messages.
    Session,
    /// To learn who is there, and hang up.
    Dial,
}

/// A caller's first word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its cluster.
    pub cluster: String,
    /// Which life of the registry it knows; 0 while unknown.
    pub generation: Generation,
    /// Its identity.
    pub id: NodeId,
    /// Which life of it; NONE while unregistered.
    pub incarnation: Incarnation,
    /// Its label.
    pub name: String,
    /// The address it advertises.
    pub address: String,
    /// Its machine.
    pub host: String,
    /// The highest epoch it has seen.
    pub epoch: Epoch,
    /// What it wants.
    pub purpose: Purpose,
    /// When it decided to dial; tells a simultaneous dial from a later one.
    pub stamp: Hlc,
    /// Whom it expects; `None`: anybody.
    pub expects: Option<NodeId>,
    /// What binds it to its TLS session.
    pub extension: Vec<u8>,
}

/// The answer to a hello that fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The answerer's generation of the registry; 0 while unknown.
    pub generation: Generation,
    /// Its identity.
    pub id: NodeId,
    /// Which life of it; NONE while unregistered.
    pub incarnation: Incarnation,
    /// Its label.
    pub name: String,
    /// The address it advertises.
    pub address: String,
    /// Its machine.
    pub host: String,
    /// The highest epoch it has seen.
    pub epoch: Epoch,
    /// When it decided.
    pub stamp: Hlc,
    /// What binds it to its TLS session.
    pub extension: Vec<u8>,
}

/// Why two do not belong together. On the wire a number, so that a later version may add some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// They speak different versions.
    OtherVersion,
    /// They belong to different clusters.
    OtherCluster,
    /// They know different lives of the registry.
    OtherGeneration,
    /// The address leads back to the caller.
    Itself,
    /// Another node than the expected one answers here.
    Mistaken,
    /// One of the two has no registration yet; to be tried again.
    NotRegistered,
    /// That incarnation has ended, or a newer one is known.
    Stale,
    /// Another session of the same two stays, or is about to come up.
    Duplicate,
    /// Too many sessions with nodes that are not in the view.
    Crowded,
    /// Its certificate names somebody else, or its greeting was not made for this session.
    Unproven,
    /// A reason of a later version.
    Other,
}

impl RefusalKind {
    const NUMBERED: [Self; 10] = [
        Self::OtherVersion,
        Self::OtherCluster,
        Self::OtherGeneration,
        Self::Itself,
        Self::Mistaken,
        Self::NotRegistered,
        Self::Stale,
        Self::Duplicate,
        Self::Crowded,
        Self::Unproven,
    ];

    fn number(self) -> u8 {
        let position = Self::NUMBERED.iter().position(|kind| *kind == self);
        position.and_then(|p| u8::try_from(p).ok()).unwrap_or(255)
    }

    fn numbered(number: u8) -> Self {
        let known = Self::NUMBERED.get(usize::from(number));
        known.copied().unwrap_or(Self::Other)
    }

    /// Whether a person has to mend something (the others pass by themselves).
    pub fn is_for_people(self) -> bool {
        matches!(
            self,
            Self::OtherVersion
                | Self::OtherCluster
                | Self::OtherGeneration
                | Self::Itself
                | Self::Unproven
                | Self::Other
        )
    }
}

/// The answer to a hello that does not fit. Its form is fixed for ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Refusal {
    /// Why.
    pub kind: RefusalKind,
    /// Why, in words that name both sides' values.
    pub words: String,
    /// Who refuses.
    pub id: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its label.
    pub name: String,
    /// Its machine.
    pub host: String,
}

type RefusalBody = (u8, String, NodeId, Incarnation, String, String);

impl Refusal {
    /// What a dial that ended so has found.
    pub fn outcome(self) -> DialOutcome {
        match self.kind {
            RefusalKind::Mistaken => DialOutcome::Answered {
                id: self.id,
                incarnation: self.incarnation,
                name: self.name,
                host: self.host,
            },
            _ => DialOutcome::Turned(self.words),
        }
    }
}

/// One side's values at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// The cluster's name.
    pub cluster: String,
    /// Which life of the registry; 0 while unknown.
    pub generation: Generation,
    /// Identity.
    pub id: NodeId,
    /// Which life; NONE while unregistered.
    pub incarnation: Incarnation,
    /// Label.
    pub name: String,
    /// Advertised address.
    pub address: String,
    /// Machine.
    pub host: String,
    /// The highest epoch seen.
    pub epoch: Epoch,
    /// Now.
    pub stamp: Hlc,
}

impl Me {
    /// What to say first.
    pub fn hello(self, purpose: Purpose, expects: Option<NodeId>) -> Hello {
        Hello {
            cluster: self.cluster,
            generation: self.generation,
            id: self.id,
            incarnation: self.incarnation,
            name: self.name,
            address: self.address,
            host: self.host,
            epoch: self.epoch,
            purpose,
            stamp: self.stamp,
            expects,
            extension: Vec::new(),
        }
    }

    /// The answer to a hello that fits.
    pub fn welcome(&self) -> Welcome {
        Welcome {
            generation: self.generation,
            id: self.id,
            incarnation: self.incarnation,
            name: self.name.clone(),
            address: self.address.clone(),
            host: self.host.clone(),
            epoch: self.epoch,
            stamp: self.stamp,
            extension: Vec::new(),
        }
    }

    /// The answer to one that does not.
    pub fn refusal(&self, kind: RefusalKind, words: String) -> Refusal {
        Refusal {
            kind,
            words,
            id: self.id,
            incarnation: self.incarnation,
            name: self.name.clone(),
            host: self.host.clone(),
        }
    }

    /// The answer to a caller that speaks another version, of whom nothing else can be read.
    pub fn refuse_version(&self, theirs: u16, caller: &str) -> Refusal {
        let words = format!(
            "{caller} speaks protocol version {theirs}, {} speaks {PROTOCOL_VERSION}: run versions of troupe that speak the same",
            self.title()
        );
        self.refusal(RefusalKind::OtherVersion, words)
    }

    fn title(&self) -> String {
        title(&self.name, &self.host)
    }
}

fn title(name: &str, host: &str) -> String {
    let (name, host) = (short(name), short(host));
    format!("node {name} on host {host}")
}

/// What a caller says of itself is repeated to it and in the log, but no more of it than a name can have: the answer must fit
/// into a greeting.
fn short(said: &str) -> String {
    said.chars().take(MAX_SAID).collect()
}

/// Whether a caller and this node belong together. Version and readability are settled before ([`Prefix::read`]).
pub fn judge(hello: &Hello, me: &Me) -> Result<Welcome, Refusal> {
    let (caller, here) = (title(&hello.name, &hello.host), me.title());
    let (kind, words) = if hello.cluster != me.cluster {
        let (theirs, ours) = (short(&hello.cluster), &me.cluster);
        let words = format!("{caller} belongs to cluster {theirs:?}, {here} to cluster {ours:?}");
        (RefusalKind::OtherCluster, words)
    } else if differ(hello.generation, me.generation) && !crate::planted::is("any-generation") {
        let (theirs, ours) = (hello.generation.0, me.generation.0);
        let words = format!(
            "{caller} knows generation {theirs} of the registry, {here} knows {ours}: they see different registries, or one has not noticed yet that its registry was replaced"
        );
        (RefusalKind::OtherGeneration, words)
    } else if hello.id == me.id {
        let words = format!(
            "the address leads back to this very node ({here}, id {}, advertising {}): two machines advertise the same address; set advertise, interface or advertise_cidr",
            me.id, me.address
        );
        (RefusalKind::Itself, words)
    } else if let Some(expected) = hello.expects.filter(|id| *id != me.id) {
        let words = format!(
            "{caller} expects node id {expected} here, but this is {here}, id {}",
            me.id
        );
        (RefusalKind::Mistaken, words)
    } else if hello.purpose == Purpose::Dial {
        return Ok(me.welcome());
    } else if hello.incarnation == Incarnation::NONE {
        let words = format!("{caller} is not registered yet");
        (RefusalKind::NotRegistered, words)
    } else if me.incarnation == Incarnation::NONE {
        let words = format!("{here} is not registered yet");
        (RefusalKind::NotRegistered, words)
    } else {
        return Ok(me.welcome());
    };
    Err(me.refusal(kind, words))
}

fn differ(theirs: Generation, ours: Generation) -> bool {
    theirs != ours && theirs.0 != 0 && ours.0 != 0
}

/// What a node that was dialled at its advertised `address` is told: `None` when it was the one who answered.
pub fn dial_back_problem(
    address: &str,
    peer: NodeId,
    outcome: &DialOutcome,
    me: &Me,
) -> Option<String> {
    const MEND: &str = "set advertise, interface or advertise_cidr";
    let here = me.title();
    let problem = match outcome {
        DialOutcome::Answered { id, .. } if *id == peer => return None,
        DialOutcome::Answered { id, name, host, .. } => format!(
            "the advertised address {address} is answered by {} (id {id}), not by this node, when dialled from {here}; {MEND}",
            title(name, host)
        ),
        DialOutcome::Turned(words) => {
            format!(
                "whoever answers at the advertised address {address} turned {here} away: {words}"
            )
        }
        DialOutcome::Refused => format!(
            "nothing listens at the advertised address {address} (connection refused, dialled from {here}); {MEND}"
        ),
        DialOutcome::Silent(why) => format!(
            "nobody answers at the advertised address {address} ({why}, dialled from {here}); {MEND}"
        ),
    };
    Some(problem + address_hint(address))
}

/// What is known of addresses that never work between machines.
fn address_hint(address: &str) -> &'static str {
    if address.starts_with("10.0.2.15:") {
        ". 10.0.2.15 is what every VirtualBox guest has behind its NAT: no other machine can reach it"
    } else if address.starts_with("127.") || address.starts_with("localhost:") {
        ". That is a loopback address: only programs on the same machine can reach it"
    } else {
        ""
    }
}

/// One of the three things said in a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// By the dialler.
    Hello(Hello),
    /// By the acceptor.
    Welcome(Welcome),
    /// By the acceptor.
    Refusal(Refusal),
}

/// Why bytes are no greeting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Not a troupe node at all.
    #[error("it does not speak troupe's protocol (first bytes {0:02x?}){hint}", hint = tls_hint(*.0))]
    NotTroupe([u8; 4]),
    /// Its body cannot be read here.
    #[error("it speaks protocol version {theirs}, this node speaks {PROTOCOL_VERSION}")]
    OtherVersion {
        /// What it speaks.
        theirs: u16,
    },
    /// Too large to be a greeting.
    #[error("a greeting of {length} bytes is larger than {MAX_BODY}")]
    TooLarge {
        /// Its size.
        length: usize,
    },
    /// Not one of the three.
    #[error("a greeting of unknown kind {0}")]
    UnknownKind(u8),
    /// The body cannot be read.
    #[error("a greeting that cannot be read: {0}")]
    Unreadable(String),
}

/// A node with a secret says something to one without that can be recognised.
fn tls_hint(first: [u8; 4]) -> &'static str {
    match first {
        [0x15 | 0x16, 3, ..] => ": it speaks TLS, and this node has no cluster secret",
        _ => "",
    }
}

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSAL: u8 = 3;

impl Greeting {
    /// Its bytes.
    pub fn encode(&self) -> Result<Vec<u8>, HandshakeError> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&PROTOCOL_VERSION.to_be_bytes());
        let (what, body) = match self {
            Self::Hello(hello) => (HELLO, postcard::to_stdvec(hello)),
            Self::Welcome(welcome) => (WELCOME, postcard::to_stdvec(welcome)),
            Self::Refusal(r) => {
                let body = (
                    r.kind.number(),
                    &r.words,
                    r.id,
                    r.incarnation,
                    &r.name,
                    &r.host,
                );
                (REFUSAL, postcard::to_stdvec(&body))
            }
        };
        let body = body.map_err(|why| HandshakeError::Unreadable(why.to_string()))?;
        let too_large = HandshakeError::TooLarge { length: body.len() };
        let length = match u16::try_from(body.len()) {
            Ok(length) if body.len() <= MAX_BODY => length,
            _ => return Err(too_large),
        };
        out.push(what);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }
}

/// What stands before a greeting's body; readable by every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    version: u16,
    what: u8,
    length: usize,
}

impl Prefix {
    /// Reads the fixed part.
    pub fn parse(bytes: [u8; PREFIX]) -> Result<Self, HandshakeError> {
        let [m0, m1, m2, m3, v0, v1, what, l0, l1] = bytes;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if [m0, m1, m2, m3] != MAGIC {
            return Err(HandshakeError::NotTroupe([m0, m1, m2, m3]));
        }
        if length > MAX_BODY {
            return Err(HandshakeError::TooLarge { length });
        }
        Ok(Self {
            version: u16::from_be_bytes([v0, v1]),
            what,
            length,
        })
    }

    /// How many bytes of body follow.
    pub fn body_length(self) -> usize {
        self.length
    }

    /// Reads the body.
    pub fn read(self, body: &[u8]) -> Result<Greeting, HandshakeError> {
        match self.what {
            REFUSAL => {
                take::<RefusalBody>(body).map(|(number, words, id, incarnation, name, host)| {
                    Greeting::Refusal(Refusal {
                        kind: RefusalKind::numbered(number),
                        words,
                        id,
                        incarnation,
                        name,
                        host,
                    })
                })
            }
            _ if self.version != PROTOCOL_VERSION => Err(HandshakeError::OtherVersion {
                theirs: self.version,
            }),
            HELLO => take(body).map(Greeting::Hello),
            WELCOME => take(body).map(Greeting::Welcome),
            other => Err(HandshakeError::UnknownKind(other)),
        }
    }
}

fn take<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, HandshakeError> {
    postcard::take_from_bytes(body)
        .map(|(value, _)| value)
        .map_err(|why| HandshakeError::Unreadable(why.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn me(id: u128, name: &str) -> Me {
        Me {
            cluster: "demo".to_owned(),
            generation: Generation(7),
            id: NodeId(id),
            incarnation: Incarnation(3),
            name: name.to_owned(),
            address: format!("10.0.0.{id}:22222"),
            host: format!("host-{id}"),
            epoch: Epoch::NONE,
            stamp: Hlc(1),
        }
    }

    fn read(bytes: &[u8]) -> Result<Greeting, HandshakeError> {
        let (prefix, body) = bytes.split_first_chunk::<PREFIX>().unwrap();
        let prefix = Prefix::parse(*prefix)?;
        assert_eq!(prefix.body_length(), body.len());
        prefix.read(body)
    }

    /// Row by row, the table of the module's documentation: what is changed in the caller, and what it is told.
    #[test]
    fn a_caller_is_judged_by_the_table() {
        type Change = fn(&mut Hello, &mut Me);
        type Told = Option<(RefusalKind, &'static [&'static str])>;
        let rows: &[(&str, Change, Told)] = &[
            ("fits", |_, _| {}, None),
            (
                "other cluster",
                |hello, _| hello.cluster = "other".to_owned(),
                Some((
                    RefusalKind::OtherCluster,
                    &["\"other\"", "\"demo\"", "shy-cat", "brave-lion", "host-2"],
                )),
            ),
            (
                "other generation",
                |hello, _| hello.generation = Generation(9),
                Some((
                    RefusalKind::OtherGeneration,
                    &["generation 9", "knows 7", "shy-cat", "brave-lion"],
                )),
            ),
            (
                "generation unknown to the caller",
                |hello, _| hello.generation = Generation(0),
                None,
            ),
            (
                "generation unknown here",
                |_, me| me.generation = Generation(0),
                None,
            ),
            (
                "itself",
                |hello, me| hello.id = me.id,
                Some((
                    RefusalKind::Itself,
                    &[
                        "leads back to this very node",
                        "brave-lion",
                        "10.0.0.1:22222",
                    ],
                )),
            ),
            (
                "expects this one",
                |hello, me| hello.expects = Some(me.id),
                None,
            ),
            (
                "expects another",
                |hello, _| hello.expects = Some(NodeId(99)),
                Some((RefusalKind::Mistaken, &["00000063", "brave-lion"])),
            ),
            (
                "caller unregistered",
                |hello, _| hello.incarnation = Incarnation::NONE,
                Some((RefusalKind::NotRegistered, &["shy-cat"])),
            ),
            (
                "unregistered here",
                |_, me| me.incarnation = Incarnation::NONE,
                Some((RefusalKind::NotRegistered, &["brave-lion"])),
            ),
            (
                "a dial needs no registration",
                |hello, me| {
                    hello.purpose = Purpose::Dial;
                    hello.incarnation = Incarnation::NONE;
                    me.incarnation = Incarnation::NONE;
                },
                None,
            ),
        ];
        for (row, change, expected) in rows {
            let mut here = me(1, "brave-lion");
            let mut hello = me(2, "shy-cat").hello(Purpose::Session, None);
            change(&mut hello, &mut here);
            let answer = judge(&hello, &here);
            match (answer, expected) {
                (Ok(welcome), None) => assert_eq!(welcome.id, NodeId(1), "{row}"),
                (Err(refusal), Some((kind, words))) => {
                    assert_eq!(refusal.kind, *kind, "{row}");
                    for word in *words {
                        assert!(refusal.words.contains(word), "{row}: {refusal}");
                    }
                }
                (answer, _) => panic!("{row}: {answer:?}"),
            }
        }
    }

    #[test]
    fn a_caller_with_endless_names_is_told_all_the_same() {
        let here = me(1, "brave-lion");
        let mut hello = me(2, "shy-cat").hello(Purpose::Session, None);
        hello.cluster = "\u{1}é".repeat(2000);
        hello.name = "n".repeat(5000);
        hello.host = "é".repeat(2500);
        let refusal = judge(&hello, &here).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::OtherCluster);
        assert!(Greeting::Refusal(refusal).encode().unwrap().len() < MAX_BODY / 2);
    }

    #[test]
    fn greetings_survive_the_wire() {
        let here = me(1, "brave-lion");
        for greeting in [
            Greeting::Hello(here.clone().hello(Purpose::Dial, Some(NodeId(4)))),
            Greeting::Welcome(here.welcome()),
            Greeting::Refusal(here.refusal(RefusalKind::Crowded, "full".to_owned())),
        ] {
            let mut bytes = greeting.encode().unwrap();
            assert_eq!(read(&bytes), Ok(greeting.clone()));
            bytes.extend_from_slice(b"later");
            let (prefix, body) = bytes.split_first_chunk::<PREFIX>().unwrap();
            assert_eq!(Prefix::parse(*prefix).unwrap().read(body), Ok(greeting));
        }
    }

    #[test]
    fn another_version_is_named_and_its_refusal_can_be_read() {
        let here = me(1, "brave-lion");
        let mut hello = Greeting::Hello(here.clone().hello(Purpose::Session, None))
            .encode()
            .unwrap();
        hello[4..6].copy_from_slice(&9u16.to_be_bytes());
        assert_eq!(
            read(&hello),
            Err(HandshakeError::OtherVersion { theirs: 9 })
        );
        let refusal = here.refuse_version(9, "10.0.0.2:4711");
        assert!(refusal.words.contains("version 9") && refusal.words.contains("speaks 1"));
        let mut bytes = Greeting::Refusal(refusal.clone()).encode().unwrap();
        bytes[4..6].copy_from_slice(&9u16.to_be_bytes());
        assert_eq!(read(&bytes), Ok(Greeting::Refusal(refusal)));
    }

    #[test]
    fn a_web_browser_is_not_a_node() {
        let answer = Prefix::parse(*b"GET / HTT");
        assert_eq!(answer, Err(HandshakeError::NotTroupe(*b"GET ")));
    }

    #[test]
    fn every_refusal_keeps_its_number_and_unknown_ones_are_shown_to_people() {
        for kind in RefusalKind::NUMBERED {
            assert_eq!(RefusalKind::numbered(kind.number()), kind);
        }
        assert_eq!(RefusalKind::numbered(200), RefusalKind::Other);
        assert!(RefusalKind::Other.is_for_people());
    }

    #[test]
    fn a_wrong_advertised_address_is_explained() {
        let here = me(1, "brave-lion");
        let answered = |id| DialOutcome::Answered {
            id: NodeId(id),
            incarnation: Incarnation(3),
            name: "odd-owl".to_owned(),
            host: "host-5".to_owned(),
        };
        let told = |address: &str, outcome| dial_back_problem(address, NodeId(2), &outcome, &here);
        assert_eq!(told("10.0.0.2:1", answered(2)), None);
        let other = told("10.0.2.15:22222", answered(5)).unwrap();
        for word in ["odd-owl", "host-5", "advertise_cidr", "VirtualBox"] {
            assert!(other.contains(word), "{other}");
        }
        assert!(
            told("a:1", DialOutcome::Refused)
                .unwrap()
                .contains("nothing listens")
        );
        assert!(
            told("a:1", DialOutcome::Silent("no route".to_owned()))
                .unwrap()
                .contains("no route")
        );
        assert!(
            told("a:1", DialOutcome::Turned("leads back".to_owned()))
                .unwrap()
                .contains("leads back")
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            prefix in any::<[u8; PREFIX]>(), what in 0u8..5, body in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            Prefix::parse(prefix).ok();
            let prefix = Prefix { version: PROTOCOL_VERSION, what, length: body.len() };
            prefix.read(&body).ok();
        }
    }
}
