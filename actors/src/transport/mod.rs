//! Sessions between nodes: framed messages over TLS, or over plain TCP where there is no secret.
//!
//! This page is the contract of the folder. Promises: one session per peer incarnation; messages of one class arrive in
//! order at each desk or the session breaks; control never waits behind bulk; every break and every re-dial is told to
//! [`Peers`]' owner as a [`SessionEvent`]; once a `Down` is told, nothing of that session is delivered any more; every
//! queue has a bound. It does *not* promise delivery: whoever needs an answer re-sends after [`SessionEvent::Up`].
//!
//! | what is full or late                              | what happens                                                        |
//! |---------------------------------------------------|---------------------------------------------------------------------|
//! | bulk queued for a session (count, 16 MiB)         | [`SendError::Full`]; the session goes on                            |
//! | control queued for a session (count, 32 MiB)      | the session breaks; [`SendError::NoSession`]                        |
//! | the peer takes no byte, or none comes             | the session breaks after `idle_timeout`                             |
//! | what discovery has not taken yet (1,024 reads)    | the session breaks                                                  |
//! | what another desk has not taken yet (16 MiB)      | *stalled*: reading pauses, the peer counts as heard; after 2 s it breaks |
//! | handshakes                                        | closed or instead of an old one (inbound, `admission`), wait (outbound); each has a deadline and 32 KiB |
//! | sessions with nodes that nobody wants             | refused, beyond 1,024                                               |
//!
//! Who dials: both may. A tie is broken by [`sessions`]; what a hello must say is in [`handshake`], bytes are in [`frame`].

pub mod actor;
mod admission;
mod certificate;
pub mod frame;
pub mod handshake;
pub mod hlc;
mod lanes;
pub mod memory;
mod reception;
mod session;
pub mod sessions;
pub mod tcp;
pub mod tls;
pub mod trust;

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::{Message, Recipient};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;

pub use actor::{TransportActor, TransportSeed};
pub use tcp::TcpNetwork;
pub use trust::Refusals;

use self::trust::{Distrust, Proof};
use crate::id::{Generation, Incarnation, NodeId};
use crate::wire::{Envelope, Message as WireMessage};

/// Knobs of the transport, `[transport]` in `config.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct TransportSettings {
    /// Largest frame accepted or sent, bytes.
    pub max_frame: usize,
    /// A handshake must be done within this.
    pub handshake_timeout: Duration,
    /// Handshakes at one time in each direction; beyond, inbound ones are closed or take the place of old ones
    /// (`admission`), and outbound ones wait.
    pub max_handshakes: usize,
    /// Of them inbound from one address.
    pub max_handshakes_per_address: usize,
    /// A TCP connection must be made within this.
    pub dial_timeout: Duration,
    /// First and longest wait between dials to a peer that does not answer.
    pub redial_min: Duration,
    /// See `redial_min`.
    pub redial_max: Duration,
    /// A session without a byte for this long is broken.
    pub idle_timeout: Duration,
    /// Bulk messages queued per session; beyond, `Send` answers `Full`.
    pub bulk_queue: usize,
    /// Control messages queued per session; beyond, the session is broken.
    pub control_queue: usize,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            max_frame: 1024 * 1024,
            handshake_timeout: Duration::from_secs(2),
            max_handshakes: 256,
            max_handshakes_per_address: 64,
            dial_timeout: Duration::from_secs(1),
            redial_min: Duration::from_millis(50),
            redial_max: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
            bulk_queue: 4096,
            control_queue: 1024,
        }
    }
}

/// A peer to keep a session with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpec {
    /// Identity.
    pub id: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its label, for logs.
    pub name: String,
    /// `host:port`; a DNS name is resolved at each dial.
    pub address: String,
}

/// Exactly these peers are wanted: dial the new ones, hang up on those that are gone (inbound sessions of ids not named
/// here are kept: the other side may know of us before we know of it). Unchanged ones are left alone.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Peers(pub Vec<PeerSpec>);

/// We are registered as this incarnation, in this generation of the registry. A changed one closes every session (each
/// is dialled again), since a session belongs to a pair of incarnations. While it is NONE there are no sessions, in neither
/// direction; [`Dial`] works without, and so do messages to this node itself.
#[derive(Clone, Copy, Debug, Message, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Incarnated {
    /// Our incarnation; NONE while unregistered.
    pub incarnation: Incarnation,
    /// Which life of the registry.
    pub generation: Generation,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No session to that node, or it has just been broken because its control queue was full.
    #[error("no session to that node")]
    NoSession,
    /// Its bulk queue is full; nothing was queued.
    #[error("the queue to that node is full")]
    Full,
    /// The message is larger than a frame may be; nothing was queued.
    #[error("the message is larger than a frame may be")]
    TooLarge,
}

/// Send one message to one node; `Ok` means queued on a live session. A message to this node itself is delivered to its
/// own desk without a session, in order, so that a lone master is its own worker by the same code ([`SendError::Full`] when
/// that desk does not keep up).
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), SendError>")]
pub struct Send {
    /// Receiver.
    pub to: NodeId,
    /// The message; the header is added by the transport (epoch from the fence, clock).
    pub message: WireMessage,
}

/// Send many at once: one turn of the actor, one answer each, in order.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Vec<Result<(), SendError>>")]
pub struct SendMany(pub Vec<Send>);

/// Send one message to every live session.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Broadcast(pub WireMessage);

/// Dial an address outside of any session, say hello and hang up: is it there, and who is it? Never fails: the outcome is the answer.
#[derive(Clone, Debug, Message)]
#[rtype(result = "DialOutcome")]
pub struct Dial {
    /// `host:port`.
    pub address: String,
}

/// A life of the transport has begun, the first or one after a failure: it has no sessions, knows no peers and not who we
/// are. Send it [`Incarnated`] and [`Peers`]. Sessions of the life before are gone without a `Down`, which is no evidence
/// against anybody: so an `Up` of a peer whose last session had no `Down` stands for both.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct TransportReborn;

/// What a dial found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialOutcome {
    /// Somebody answered the hello.
    Answered {
        /// Who.
        id: NodeId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Its label.
        name: String,
        /// Its machine.
        host: String,
    },
    /// Somebody answered and refused us, in these words.
    Turned(String),
    /// The machine is there and nothing listens.
    Refused,
    /// No answer within the dial time-out, no route, or no such name.
    Silent(String),
}

/// When the last byte of a session arrived, in µs of the transport's own monotonic clock; shared, so that a heartbeat tick reads it for nothing.
#[derive(Clone, Debug)]
pub struct Heard {
    origin: std::time::Instant,
    last_us: Arc<AtomicU64>,
}

impl Heard {
    /// Heard now.
    pub fn new(now: std::time::Instant) -> Self {
        Self {
            origin: now,
            last_us: Arc::default(),
        }
    }

    /// A byte arrived.
    pub fn mark(&self, now: std::time::Instant) {
        let us = now.saturating_duration_since(self.origin).as_micros();
        self.last_us
            .fetch_max(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When the last byte arrived.
    pub fn last(&self) -> std::time::Instant {
        self.origin + Duration::from_micros(self.last_us.load(Ordering::Relaxed))
    }
}

/// Who is at the other end of a session.
#[derive(Clone, Debug)]
pub struct SessionPeer {
    /// Identity.
    pub id: NodeId,
    /// Which life of it, as it said hello.
    pub incarnation: Incarnation,
    /// Its label.
    pub name: String,
    /// The address it advertises.
    pub address: String,
    /// Where its bytes come from.
    pub remote: SocketAddr,
    /// True when it dialled us.
    pub inbound: bool,
}

/// What happens to sessions.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub enum SessionEvent {
    /// A session is up.
    Up {
        /// With whom.
        peer: SessionPeer,
        /// When its last byte arrived.
        heard: Heard,
    },
    /// The session broke; a re-dial of a wanted peer starts at once.
    Down {
        /// With whom.
        id: NodeId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Why, in words.
        why: String,
    },
    /// A dial to a wanted peer failed.
    DialFailed {
        /// To whom.
        id: NodeId,
        /// Which life of it.
        incarnation: Incarnation,
        /// What was found.
        outcome: DialOutcome,
    },
    /// We turned somebody away, or were turned away, for good reason (other cluster, version, generation).
    Refused {
        /// Who, as far as known.
        peer: String,
        /// Why, in words.
        why: String,
    },
}

/// A batch of messages of one session, in order. One actor message carries many.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Inbound {
    /// From whom.
    pub from: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// What was said, all for one [`crate::wire::Desk`].
    pub envelopes: Vec<Envelope>,
}

/// Where the transport delivers.
#[derive(Clone)]
pub struct Desks {
    /// Heartbeats, probes and what concerns mastership.
    pub discovery: Recipient<Inbound>,
    /// Reports, results.
    pub master: Recipient<Inbound>,
    /// Assignments, acknowledgements.
    pub worker: Recipient<Inbound>,
    /// Carried API requests and responses.
    pub admin: Recipient<Inbound>,
    /// Session events go to these, in this order.
    pub events: Vec<Recipient<SessionEvent>>,
}

/// A connection to or from another node, both halves apart.
pub struct Stream {
    /// What the peer says.
    pub reader: Box<dyn AsyncRead + std::marker::Send + Unpin>,
    /// What we say. Shutting it down tells the peer that no more will come.
    pub writer: Box<dyn AsyncWrite + std::marker::Send + Unpin>,
    /// Where the peer is.
    pub remote: SocketAddr,
    /// What TLS has shown of the peer; `None` without TLS.
    pub proof: Option<Proof>,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unconnected {
    /// The machine is there and nothing listens (at any of the addresses that a name stands for).
    Refused,
    /// Somebody answers, and is not believed or does not believe us.
    Distrusted(Distrust),
    /// Everything else, in words.
    Silent(String),
}

/// What [`Network::dial`] answers.
pub type Dialing = Pin<Box<dyn Future<Output = Result<Stream, Unconnected>>>>;

/// How to reach others: TCP, memory in tests, a simulated network.
pub trait Network: std::marker::Send + Sync {
    /// Connects to `host:port` within this time.
    fn dial(&self, address: &str, within: Duration) -> Dialing;
}

/// A connection somebody made to us, not yet bound to a thread: the actor opens it on its own.
pub struct Incoming {
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Binds it to the thread that calls.
    pub open: Box<dyn FnOnce() -> io::Result<Stream> + std::marker::Send>,
}

/// The port of this node. It belongs to the node, not to TransportActor: while the process lives, a dial is never *refused*,
/// whatever becomes of the actor. Connections wait in a bounded queue, then in the kernel's. Cheap to clone; the port is
/// free again when the last clone is dropped or [`Listener::close`] is called.
#[derive(Clone)]
pub struct Listener {
    local: SocketAddr,
    incoming: Arc<Mutex<mpsc::Receiver<Incoming>>>,
    port: Arc<Port>,
}

/// Connections accepted and not yet taken by the actor; more wait in the kernel's backlog.
pub const ACCEPT_QUEUE: usize = 64;

struct Port {
    accepting: Option<AbortHandle>,
    _held: Option<Box<dyn Any + std::marker::Send + Sync>>,
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

impl Listener {
    /// Listens on `host:port` by TCP and accepts from now on, on the current arbiter.
    pub async fn bind(address: &str) -> io::Result<Self> {
        tcp::bind(address).await
    }

    /// A listener that is fed by somebody else, such as a simulated network; `held` is dropped with its last clone.
    pub fn fed(
        local: SocketAddr,
        incoming: mpsc::Receiver<Incoming>,
        held: Box<dyn Any + std::marker::Send + Sync>,
    ) -> Self {
        Self {
            local,
            incoming: Arc::new(Mutex::new(incoming)),
            port: Arc::new(Port {
                accepting: None,
                _held: Some(held),
            }),
        }
    }

    /// The address it listens on (with the port that was picked when 0 was asked for).
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Frees the port now, although clones of this exist. What was accepted before is not touched.
    pub fn close(&self) {
        if let Some(accepting) = &self.port.accepting {
            accepting.abort();
        }
    }
}

/// From a new life of DiscoveryActor: which sessions are up?
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Vec<(SessionPeer, Heard)>")]
pub struct AskSessions;
