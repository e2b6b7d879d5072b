//! Supervision in the manner of Erlang/OTP, for actix actors: who fails is restarted from scratch, who keeps failing is given up loudly.
//!
//! This page is the contract of the folder. `guard` runs one actor and survives its panics, [`policy`] decides who is
//! restarted, `actor` is the supervisor that does what it says, [`watchdog`] names handlers that never return.
//!
//! # Promises
//!
//! * **The mailbox and every address outlive a crash.** What was queued is handled by the next life, in order. Only the
//!   message being handled is lost, and whatever the actor's context held: its futures, timers, streams. A `send` to an
//!   actor that is being restarted waits; it does not fail.
//! * **A new life starts from nothing**: a new struct made by the child's factory, in a new context. Nothing of the broken
//!   one is looked at again; its `stopping` and `stopped` are not called after a panic.
//! * **A flood starves nobody**: an actor handles at most [`TURN_BUDGET`] messages before its neighbours' turn.
//! * **Nothing fails silently**: a panic, an arbiter's death, a child that will not stop, all end in one event, one log
//!   line and one decision.
//! * **The report never waits**: it is read from atomics, on any thread, with any arbiter stuck.
//!
//! # What it does not promise
//!
//! * A handler that blocks cannot be killed, only named; it holds its whole arbiter.
//! * A second panic while the first unwinds (in the `Drop` of something the panicking handler held) aborts the process: this
//!   is Rust's rule. Two that panic in `Drop` while a dead life is taken apart do so too. Keep `Drop` trivial.
//! * Tasks that an actor gave to the runtime itself (`actix_rt::spawn`, a `ResponseFuture`) live on without it.
//! * A mailbox does not outlive its arbiter: the death of an arbiter is given up at once.
//! * Starts are issued in order, but children on different planes do not wait for each other. They need not: all mailboxes
//!   are there before the first actor is.
//!
//! # Wiring
//!
//! ```
//! use actix::prelude::*;
//! use std::sync::Arc;
//! use troupe_actors::supervisor::{ChildSpec, LocalSpawner, Plane, SupervisionSettings, Supervisor, mailbox};
//!
//! #[derive(Message)]
//! #[rtype(result = "u32")]
//! struct Ask(u32);
//!
//! struct Ping { pong: Addr<Pong> }
//! struct Pong { ping: Addr<Ping> }
//! # impl Actor for Ping { type Context = Context<Self>; }
//! # impl Actor for Pong { type Context = Context<Self>; }
//! # impl Handler<Ask> for Pong { type Result = u32; fn handle(&mut self, ask: Ask, _: &mut Context<Self>) -> u32 { let _ = &self.ping; ask.0 + 1 } }
//! # impl Handler<Ask> for Ping { type Result = ResponseFuture<u32>; fn handle(&mut self, ask: Ask, _: &mut Context<Self>) -> Self::Result {
//! #     let pong = self.pong.clone(); Box::pin(async move { pong.send(ask).await.unwrap() }) } }
//! # actix_rt::System::new().block_on(async {
//! // All addresses first, so that they may point at each other; then the actors, in start order.
//! let (ping, ping_mailbox) = mailbox::<Ping>(64);
//! let (pong, pong_mailbox) = mailbox::<Pong>(64);
//! let supervisor = Supervisor::new(SupervisionSettings::default())
//!     .child(ChildSpec::new("ping", Plane::Control, ping_mailbox, move || Ping { pong: pong.clone() }))
//!     .child(ChildSpec::new("pong", Plane::Tasks, pong_mailbox, {
//!         let ping = ping.clone();
//!         move || Pong { ping: ping.clone() }
//!     }))
//!     .start(Arc::new(LocalSpawner), |gave_up| eprintln!("{gave_up}"));
//! assert_eq!(ping.send(Ask(1)).await, Ok(2));
//! assert!(supervisor.shutdown().await.is_clean());
//! # });
//! ```

use std::fmt;
use std::time::Duration;

use actix::dev::channel::{AddressReceiver, channel};
use actix::{Actor, Addr, Context};
use futures_util::future::LocalBoxFuture;

mod actor;
mod guard;
mod panics;
pub mod policy;
mod pulse;
mod spawner;
pub mod watchdog;

pub use actor::{Supervisor, SupervisorHandle};
pub use guard::TURN_BUDGET;
pub use panics::install_panic_hook;
pub use policy::{Restart, Strategy, SupervisionSettings};
pub use pulse::{handling, handling_part};
pub use spawner::{ArbiterSpawner, LocalSpawner};

#[cfg(panic = "abort")]
compile_error!("supervision rests on unwinding: build without `panic = \"abort\"`");

/// How long a child may take to stop unless its spec says otherwise (OTP's default).
pub const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Which arbiter a child belongs to. What is on one plane cannot be held up by a flood or a hang on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// Supervisor, registry, discovery: small and always in time.
    Control,
    /// Sessions to other nodes.
    Transport,
    /// Master and worker.
    Tasks,
    /// The admin API.
    Admin,
}

/// Makes a future on the thread that will run it.
pub type MakeFuture = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

/// Decides on which thread a child runs. Injected, so that a test or a simulation can put all on one.
pub trait Spawner: Send + Sync {
    /// Calls `make` on the plane's thread and runs what it makes there; drops `make` if that thread is gone.
    fn spawn(&self, plane: Plane, make: MakeFuture);
}

/// The receiving end of an address, waiting for its actor.
pub struct Mailbox<A: Actor> {
    messages: AddressReceiver<A>,
    capacity: usize,
}

impl<A: Actor> fmt::Debug for Mailbox<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// An address before its actor: messages queue up until the actor is there.
///
/// `send` and `try_send` find it full at `capacity` (at least 1); a running actor takes up to as many again into its own
/// hands, where [`ActorReport::mailbox`] counts them. `do_send` knows no bound.
pub fn mailbox<A: Actor>(capacity: usize) -> (Addr<A>, Mailbox<A>) {
    let capacity = capacity.max(1);
    let (sender, messages) = channel(capacity);
    (Addr::new(sender), Mailbox { messages, capacity })
}

/// What a supervisor needs to know to run one child.
pub struct ChildSpec {
    name: &'static str,
    plane: Plane,
    restart: Restart,
    stop_within: Duration,
    launch: guard::Launch,
}

impl ChildSpec {
    /// A permanent child that may take [`STOP_WITHIN`] to stop.
    ///
    /// `factory` is called on the plane's thread, once per life; the actor itself need not be `Send`. It holds the
    /// child's wiring (addresses, settings) and must not hold its state: what it makes is the fresh start.
    pub fn new<A>(
        name: &'static str,
        plane: Plane,
        mailbox: Mailbox<A>,
        factory: impl FnMut() -> A + Send + 'static,
    ) -> Self
    where
        A: Actor<Context = Context<A>>,
    {
        Self {
            name,
            plane,
            restart: Restart::Permanent,
            stop_within: STOP_WITHIN,
            launch: guard::launch(mailbox, factory),
        }
    }

    /// Which exits lead to a restart.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How long it may take to stop before it is dropped without being asked.
    pub fn stop_within(mut self, deadline: Duration) -> Self {
        self.stop_within = deadline;
        self
    }
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec")
            .field("name", &self.name)
            .field("plane", &self.plane)
            .field("restart", &self.restart)
            .finish_non_exhaustive()
    }
}

/// A failure on purpose, by an operator. It goes past the mailbox, so a full one does not delay it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Name of the child.
    pub name: String,
    /// In which way.
    pub how: How,
}

/// The ways an actor can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It panics at its next turn.
    Panic,
    /// It is told to stop, as by `ctx.stop()`.
    Stop,
    /// Its next turn never returns, and blocks its whole arbiter for ever. There is no cure but the end of the process.
    Hang,
}

/// Why a kill was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KillRefused {
    /// No child has this name.
    #[error("there is no actor named {name:?}; there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are, comma-separated.
        known: String,
    },
    /// It has no life to take, or is stuck in a handler, where nothing reaches it.
    #[error("{name} is {state}, so it cannot be killed")]
    NotRunning {
        /// The child.
        name: &'static str,
        /// What it is doing instead.
        state: ActorState,
    },
    /// An earlier kill has not been carried out yet.
    #[error("{name} is about to be killed already")]
    Pending {
        /// The child.
        name: &'static str,
    },
}

/// What an actor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActorState {
    /// It handles messages, or would.
    Running,
    /// It is down and will be back.
    Restarting,
    /// It is down for good, or was never up.
    Stopped,
    /// It has been in one turn for too long, and everything on its plane waits for it.
    Hung,
}

impl fmt::Display for ActorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Stopped => "stopped",
            Self::Hung => "hung",
        })
    }
}

/// One actor at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActorReport {
    /// Its name.
    pub name: &'static str,
    /// What it is doing.
    pub state: ActorState,
    /// How often it was restarted.
    pub restarts: u64,
    /// Message and place of its last panic, or why else it failed.
    pub last_failure: Option<String>,
    /// Messages taken over but not handled at the end of its last turn, at most the mailbox's capacity; `None` unless running.
    pub mailbox: Option<usize>,
    /// Messages handled since the supervisor started, over all lives.
    pub handled: u64,
    /// Turns (polls) taken since the supervisor started, over all lives.
    pub turns: u64,
    /// Age of its present life; zero without one.
    pub uptime: Duration,
    /// Age of its present turn; zero between turns. A healthy actor's is microseconds.
    pub busy_for: Duration,
    /// The message whose handler does not return, while the actor is hung.
    pub busy_with: Option<&'static str>,
}

/// A supervisor's last word: one failure too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GaveUp {
    /// Whose failure it was.
    pub actor: &'static str,
    /// What it was, in words.
    pub failure: String,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gave up on {}: {}", self.actor, self.failure)
    }
}

/// How a shutdown went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Children that had to be dropped, or could not even be, because they did not stop within their deadlines.
    pub overdue: Vec<&'static str>,
}

impl ShutdownReport {
    /// Everybody stopped when told to.
    pub fn is_clean(&self) -> bool {
        self.overdue.is_empty()
    }
}
