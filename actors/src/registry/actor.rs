//! RegistryActor: keeps our registration and the view, and does the transactions that discovery decides on.
//!
//! One loop (`keeper`) holds the session with the registry. Handlers run beside it on the same thread and share what it knows;
//! what they wrote themselves they fold into the mirror at once, so that a take-over need not wait for the watch.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, Recipient, ResponseFuture,
    WrapFuture,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::keeper::{Session, Shared};
use super::session::{Keys, Mirror, Registered, View};
use super::{
    AskRegistry, Backend, EditKey, EditRefused, KeyView, ListKeys, RegistryError, RegistrySettings,
    RegistrySnapshot, WatchKeys, WatchStream,
};
use crate::cluster::{Identity, Registration};
use crate::id::{Epoch, Generation, Incarnation};
use crate::supervisor::handling;
use crate::transport::{Dial, Incarnated};

/// What a RegistryActor is made of.
#[derive(Clone)]
pub struct RegistrySeed {
    /// The registry.
    pub backend: Arc<dyn Backend>,
    /// Knobs.
    pub settings: RegistrySettings,
    /// Who we are.
    pub identity: Identity,
    /// What we register; its name is the configured one, or the first that was rolled.
    pub registration: Registration,
    /// A rolled name that is taken is rolled again; a configured one waits.
    pub name_is_configured: bool,
    /// Where the view goes.
    pub discovery: Recipient<RegistryEvent>,
    /// The generation that the lives of this actor went by last; 0 before the first has one.
    pub generation: Arc<AtomicU64>,
    /// For the hello with the master before a condemned node comes back.
    pub dial: Recipient<Dial>,
    /// What cannot be waited for: told once, in words; the node exits 78.
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
}

/// What discovery hears of the registry.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub enum RegistryEvent {
    /// It answers.
    Up,
    /// It does not.
    Down {
        /// Why, in words.
        why: String,
    },
    /// Our registration began, or ended (NONE).
    Incarnated(Incarnated),
    /// The registered members and mastership.
    View(Arc<View>),
}

/// Claim a vacant mastership, or take over from ourselves: `expected` is the master key's `mod_revision`, 0 when absent.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Option<Epoch>, RegistryError>")]
pub struct Claim {
    /// What the key is compared with.
    pub expected: i64,
}

/// Delete a peer's registration and name, by verdict. Answers whether this transaction did it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<bool, RegistryError>")]
pub struct Condemn(pub Registered);

/// Ask a peer through the registry whether it lives: it deletes the key if it does.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), RegistryError>")]
pub struct Challenge(pub Incarnation);

/// Give the master key back, if we still hold it under this epoch.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<bool, RegistryError>")]
pub struct Resign(pub Epoch);

/// List again now: something is in doubt.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Relist;

/// Say everything again: a new life of DiscoveryActor knows nothing.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Resend;

/// Leave: delete registration, name and mastership, end the lease, and do not come back.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), RegistryError>")]
pub struct Deregister;

/// Say something else of this node from now on. Answers once the registry has it; when it is away it is told later.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), RegistryError>")]
pub struct Amend {
    /// Preference at an election.
    pub weight: i32,
    /// Whether it may be master.
    pub eligible: bool,
    /// Labels for placement.
    pub tags: BTreeMap<String, String>,
}

/// See the module page.
pub struct RegistryActor {
    seed: RegistrySeed,
    keys: Keys,
    shared: Rc<RefCell<Shared>>,
    nudge: Rc<Notify>,
}

impl RegistryActor {
    /// A life that knows nothing yet.
    pub fn new(seed: RegistrySeed) -> Self {
        let keys = Keys::new(&seed.identity.cluster);
        let mut registration = seed.registration.clone();
        registration.name = seed.identity.name();
        let shared = Shared {
            mirror: Mirror::default(),
            generation: Generation(seed.generation.load(Ordering::Relaxed)),
            standing: None,
            registration,
            amended: false,
            up: false,
            since: Instant::now(),
            version: None,
            last_error: None,
            retired: false,
            condemned: 0,
            published: None,
            bad_values: Vec::new(),
        };
        Self {
            seed,
            keys,
            shared: Rc::new(RefCell::new(shared)),
            nudge: Rc::default(),
        }
    }

    fn session(&self) -> Session {
        Session {
            seed: self.seed.clone(),
            keys: self.keys.clone(),
            shared: Rc::clone(&self.shared),
            nudge: Rc::clone(&self.nudge),
        }
    }
}

impl Actor for RegistryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let session = self.session();
        ctx.spawn(
            async move { session.run().await }
                .into_actor(self)
                .map(|(), _, _| ()),
        );
    }
}

impl Handler<Claim> for RegistryActor {
    type Result = ResponseFuture<Result<Option<Epoch>, RegistryError>>;

    fn handle(&mut self, msg: Claim, _: &mut Self::Context) -> Self::Result {
        handling::<Claim>();
        let session = self.session();
        Box::pin(async move { session.claim(msg.expected).await })
    }
}

impl Handler<Condemn> for RegistryActor {
    type Result = ResponseFuture<Result<bool, RegistryError>>;

    fn handle(&mut self, msg: Condemn, _: &mut Self::Context) -> Self::Result {
        handling::<Condemn>();
        let session = self.session();
        Box::pin(async move { session.condemn(msg.0).await })
    }
}

impl Handler<Challenge> for RegistryActor {
    type Result = ResponseFuture<Result<(), RegistryError>>;

    fn handle(&mut self, msg: Challenge, _: &mut Self::Context) -> Self::Result {
        handling::<Challenge>();
        let session = self.session();
        Box::pin(async move { session.challenge(msg.0).await })
    }
}

impl Handler<Resign> for RegistryActor {
    type Result = ResponseFuture<Result<bool, RegistryError>>;

    fn handle(&mut self, msg: Resign, _: &mut Self::Context) -> Self::Result {
        handling::<Resign>();
        let session = self.session();
        Box::pin(async move { session.resign(msg.0).await })
    }
}

impl Handler<Deregister> for RegistryActor {
    type Result = ResponseFuture<Result<(), RegistryError>>;

    fn handle(&mut self, _: Deregister, _: &mut Self::Context) -> Self::Result {
        handling::<Deregister>();
        let session = self.session();
        Box::pin(async move { session.deregister().await })
    }
}

impl Handler<Amend> for RegistryActor {
    type Result = ResponseFuture<Result<(), RegistryError>>;

    fn handle(&mut self, msg: Amend, _: &mut Self::Context) -> Self::Result {
        handling::<Amend>();
        {
            let mut shared = self.shared.borrow_mut();
            let said = &mut shared.registration;
            said.weight = msg.weight;
            said.eligible = msg.eligible;
            said.tags = msg.tags;
            shared.amended = true;
        }
        let session = self.session();
        let nudge = Rc::clone(&self.nudge);
        Box::pin(async move {
            let amended = session.amend().await;
            session.publish();
            // When that failed, the loop tries again.
            nudge.notify_one();
            amended
        })
    }
}

impl Handler<Relist> for RegistryActor {
    type Result = ();

    fn handle(&mut self, _: Relist, _: &mut Self::Context) {
        handling::<Relist>();
        self.nudge.notify_one();
    }
}

impl Handler<Resend> for RegistryActor {
    type Result = ();

    fn handle(&mut self, _: Resend, _: &mut Self::Context) {
        handling::<Resend>();
        let session = self.session();
        let (up, known) = {
            let mut shared = self.shared.borrow_mut();
            (shared.up, shared.published.take().is_some())
        };
        if up {
            session.tell(RegistryEvent::Up);
        }
        session.tell_incarnation();
        if known {
            session.publish();
        }
    }
}

impl Handler<AskRegistry> for RegistryActor {
    type Result = RegistrySnapshot;

    fn handle(&mut self, _: AskRegistry, _: &mut Self::Context) -> RegistrySnapshot {
        handling::<AskRegistry>();
        let shared = self.shared.borrow();
        let remaining = shared
            .standing
            .map(|s| s.ttl.saturating_sub(s.renewed.elapsed()).as_secs());
        RegistrySnapshot {
            endpoints: self.seed.settings.endpoints.clone(),
            up: shared.up,
            since_s: shared.since.elapsed().as_secs(),
            version: shared.version.clone(),
            incarnation: shared.standing.map_or(0, |s| s.incarnation.0),
            lease_remaining_s: remaining,
            revision: shared.mirror.revision(),
            last_error: shared.last_error.clone(),
        }
    }
}

impl Handler<ListKeys> for RegistryActor {
    type Result = ResponseFuture<Result<Vec<KeyView>, RegistryError>>;

    fn handle(&mut self, msg: ListKeys, _: &mut Self::Context) -> Self::Result {
        handling::<ListKeys>();
        let session = self.session();
        Box::pin(async move { session.list_keys(&msg.prefix).await })
    }
}

impl Handler<EditKey> for RegistryActor {
    type Result = ResponseFuture<Result<i64, EditRefused>>;

    fn handle(&mut self, msg: EditKey, _: &mut Self::Context) -> Self::Result {
        handling::<EditKey>();
        let session = self.session();
        Box::pin(async move { session.edit_key(msg).await })
    }
}

impl Handler<WatchKeys> for RegistryActor {
    type Result = ResponseFuture<Result<WatchStream, RegistryError>>;

    fn handle(&mut self, msg: WatchKeys, _: &mut Self::Context) -> Self::Result {
        handling::<WatchKeys>();
        let session = self.session();
        Box::pin(async move { session.watch_keys(&msg.prefix).await })
    }
}

/// A name from the generator, such as `brave-lion`.
pub fn roll_name() -> String {
    names::Generator::default()
        .next()
        .unwrap_or_else(|| "nameless".to_owned())
}
