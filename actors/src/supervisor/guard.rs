//! One child's guard: the future that owns an actor, polls it where its panics are caught, and outlives every one of its lives.
//!
//! actix's own supervisor keeps the broken struct, and its `ContextFut` cannot give its mailbox back. So the mailbox
//! never goes in: the guard keeps it, and each life is a new actor in a new context whose *address* is the guard's mailbox and
//! whose first future, the [`Pump`], handles what arrives there. A new context also has no memory of the old one's timers and
//! handles (a restarted `ContextFut` has: a `cancel_future` of the old life cancels the first timer of the new one).
//!
//! The guard decides nothing. It tells the supervisor that a life began or ended, and then waits for its command.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context as Task, Poll};

use actix::dev::channel::AddressReceiver;
use actix::dev::{AsyncContextParts, ContextFut, ContextParts, Envelope, EnvelopeProxy};
use actix::fut::ActorFuture;
use actix::{Actor, ActorContext, AsyncContext, Context};
use futures_util::future::LocalBoxFuture;
use futures_util::stream::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::panics::{Caught, guarded};
use super::policy::Exit;
use super::pulse::{Pulse, handling_part};
use super::{How, Mailbox, ShutdownReport};

/// Messages that an actor handles before the others on its plane have their turn.
///
/// actix itself drains a mailbox to the end, so that a flood by `do_send` starves every neighbour and every timer. Large enough
/// that the detour through the scheduler is rare, and small enough that a turn of short handlers is far below a millisecond.
pub const TURN_BUDGET: u32 = 256;

/// Makes the guard's future, on the thread that will run it.
pub(super) type Launch = Box<dyn FnOnce(Link) -> LocalBoxFuture<'static, ()> + Send>;

/// What the guard is told. In order, and never through the mailbox.
#[derive(Debug)]
pub(super) enum Command {
    /// Begin this life, counted from 1.
    Start { life: u64 },
    /// Stop the present life as `ctx.stop()` does: the actor may clean up, or refuse.
    Stop,
    /// Drop the present life without asking it.
    Drop,
    /// Fail on purpose.
    Kill(How),
    /// Stay down for now, and refuse messages.
    Retire,
    /// Go, and close the mailbox.
    Close,
}

/// What the supervisor hears.
#[derive(Debug)]
pub(super) enum Event {
    /// `started` of this life returned, and its mailbox is being handled.
    Started { child: usize, life: u64 },
    /// This life is over.
    Exited { child: usize, life: u64, exit: Exit },
    /// Somebody asks whether the supervisor answers.
    Ask(oneshot::Sender<()>),
    /// Somebody asked for the end.
    Shutdown(oneshot::Sender<ShutdownReport>),
}

/// Both ends a guard needs: who it listens to and who listens to it.
pub(super) struct Link {
    pub(super) pulse: Arc<Pulse>,
    /// Unbounded: the supervisor sends one command per change of state, and an operator has one kill pending at most.
    pub(super) commands: UnboundedReceiver<Command>,
    pub(super) reporter: Reporter,
}

/// Tells the supervisor; its own end, unless announced, is the death of the arbiter.
pub(super) struct Reporter {
    child: usize,
    life: u64,
    pulse: Arc<Pulse>,
    /// Unbounded: a life sends two events, and no life begins without the supervisor.
    events: UnboundedSender<Event>,
    closed: bool,
}

impl Reporter {
    pub(super) fn new(child: usize, pulse: Arc<Pulse>, events: UnboundedSender<Event>) -> Self {
        Self {
            child,
            life: 0,
            pulse,
            events,
            closed: false,
        }
    }

    fn started(&self) {
        let (child, life) = (self.child, self.life);
        self.tell(Event::Started { child, life });
    }

    fn exited(&self, exit: Exit) {
        let (child, life) = (self.child, self.life);
        self.tell(Event::Exited { child, life, exit });
    }

    /// A supervisor that is gone has given up already, by its own `Drop`; there is nobody else to tell.
    fn tell(&self, event: Event) {
        let _gone = self.events.send(event);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if !self.closed {
            self.pulse.ended();
            self.exited(Exit::ArbiterDied);
        }
    }
}

/// Packs mailbox and factory, so that a spec need not know the actor's type.
pub(super) fn launch<A>(mailbox: Mailbox<A>, factory: impl FnMut() -> A + Send + 'static) -> Launch
where
    A: Actor<Context = Context<A>>,
{
    Box::new(move |link| {
        Box::pin(Guard {
            factory: Box::new(factory),
            inbox: Rc::new(RefCell::new(Inbox::new(mailbox))),
            life: None,
            link,
        })
    })
}

struct Guard<A: Actor<Context = Context<A>>> {
    factory: Box<dyn FnMut() -> A>,
    inbox: Rc<RefCell<Inbox<A>>>,
    life: Option<Life<A>>,
    link: Link,
}

struct Life<A: Actor<Context = Context<A>>> {
    future: ContextFut<A, Context<A>>,
    /// `started` has returned.
    started: bool,
    /// It was told to stop and has not refused.
    stopping: bool,
    /// How to fail at the next turn.
    fail: Option<How>,
}

impl<A: Actor<Context = Context<A>>> Future for Guard<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<()> {
        let this = self.get_mut();
        while let Poll::Ready(command) = this.link.commands.poll_recv(task) {
            match command {
                Some(Command::Start { life }) => {
                    if life > 1 && crate::planted::is("mailbox-dropped") {
                        this.inbox.borrow_mut().refuse(task);
                    }
                    this.start(life);
                }
                Some(Command::Stop) => this.stop(),
                Some(Command::Drop) => this.drop_life(),
                Some(Command::Kill(how)) => this.kill(how),
                Some(Command::Retire) => this.inbox.borrow_mut().retired = true,
                Some(Command::Close) | None => {
                    this.close();
                    return Poll::Ready(());
                }
            }
        }
        this.turn(task);
        if this.inbox.borrow_mut().wants_another_turn() {
            task.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl<A: Actor<Context = Context<A>>> Guard<A> {
    fn start(&mut self, life: u64) {
        debug_assert!(
            self.life.is_none(),
            "a life begins after the one before it ended"
        );
        self.link.reporter.life = life;
        self.link.pulse.born(life);
        self.inbox.borrow_mut().retired = false;
        match guarded(|| self.bear()) {
            Ok(life) => self.life = Some(life),
            Err(caught) => self.panicked(caught),
        }
    }

    /// A new actor in a new context, whose address is the mailbox that outlives it.
    fn bear(&mut self) -> Life<A> {
        let actor = (self.factory)();
        let mut context = Context::new();
        *context.parts() = ContextParts::new(self.inbox.borrow().messages.sender_producer());
        context.spawn(Pump {
            inbox: Rc::clone(&self.inbox),
        });
        Life {
            future: context.into_future(actor),
            started: false,
            stopping: false,
            fail: None,
        }
    }

    fn stop(&mut self) {
        if let Some(life) = &mut self.life {
            life.future.ctx().stop();
            life.stopping = true;
        }
    }

    fn drop_life(&mut self) {
        if self.life.is_some() {
            self.exit(Exit::Stopped);
        }
    }

    fn kill(&mut self, how: How) {
        self.link.pulse.kill_pending.store(false, SeqCst);
        match (how, &mut self.life) {
            (_, None) => {}
            (How::Stop, Some(_)) => self.stop(),
            (How::Panic | How::Hang, Some(life)) => life.fail = Some(how),
        }
    }

    fn close(&mut self) {
        self.bury();
        self.link.pulse.ended();
        self.link.reporter.closed = true;
    }

    /// Lets the actor run until it waits for something or its budget is used up.
    fn turn(&mut self, task: &mut Task<'_>) {
        let mut inbox = self.inbox.borrow_mut();
        let Some(life) = &mut self.life else {
            if inbox.retired {
                inbox.refuse(task);
            }
            return;
        };
        inbox.begin_turn(task);
        drop(inbox);
        self.link.pulse.begin_turn();
        let outcome = guarded(|| life.poll(task));
        let inbox = self.inbox.borrow();
        self.link.pulse.end_turn(inbox.handled, inbox.taken.len());
        drop(inbox);
        match outcome {
            Ok(Poll::Pending) => {
                if life.is_newly_started() {
                    self.link.reporter.started();
                }
            }
            Ok(Poll::Ready(exit)) => self.exit(exit),
            Err(caught) => self.panicked(caught),
        }
    }

    fn panicked(&mut self, caught: Caught) {
        self.link.pulse.keep_trace(caught.trace);
        self.exit(Exit::Panic(caught.message));
    }

    fn exit(&mut self, exit: Exit) {
        self.bury();
        let failure = match &exit {
            Exit::Panic(message) => Some(message.as_str()),
            Exit::Normal | Exit::Stopped | Exit::ArbiterDied => None,
        };
        self.link.pulse.died(failure);
        self.link.reporter.exited(exit);
    }

    /// Takes the present life apart where another panic does no harm.
    fn bury(&mut self) {
        let Some(mut life) = self.life.take() else {
            return;
        };
        if std::thread::panicking() {
            // A panic on top of this one would abort; a leak does not.
            return std::mem::forget(life);
        }
        let buried = guarded(move || {
            // Or its `Drop` would poll the broken actor once more.
            life.future.ctx().terminate();
            drop(life);
        });
        if let Err(caught) = buried {
            let actor = self.link.pulse.name;
            log::error!(event = "actor.failed", actor, err = caught.message.as_str(); "its remains panicked while they were dropped");
        }
    }
}

impl<A: Actor<Context = Context<A>>> Drop for Guard<A> {
    /// The arbiter is going: the life goes here, guarded, and the [`Reporter`] says so.
    fn drop(&mut self) {
        self.bury();
    }
}

impl<A: Actor<Context = Context<A>>> Life<A> {
    fn poll(&mut self, task: &mut Task<'_>) -> Poll<Exit> {
        match self.fail.take() {
            Some(How::Panic) => panic!("killed by an operator"),
            Some(How::Hang) => hang(),
            Some(How::Stop) | None => {}
        }
        if Pin::new(&mut self.future).poll(task).is_ready() {
            return Poll::Ready(if self.stopping {
                Exit::Stopped
            } else {
                Exit::Normal
            });
        }
        // An actor may refuse to stop (`Running::Continue`); a later stop of its own is then its own.
        self.stopping &= self.future.ctx().state().stopping();
        Poll::Pending
    }

    fn is_newly_started(&mut self) -> bool {
        !std::mem::replace(&mut self.started, true)
    }
}

/// What an operator asked for: a handler that never returns.
fn hang() -> ! {
    handling_part("an operator's hang");
    loop {
        std::thread::park();
    }
}

/// The mailbox with what was taken out of it; lives as long as the guard.
struct Inbox<A: Actor> {
    messages: AddressReceiver<A>,
    /// Taken over but not handled, oldest first: what makes the depth of an actix mailbox visible at all.
    taken: VecDeque<Envelope<A>>,
    /// Bound of `taken`.
    capacity: usize,
    /// What is left of the turn's budget.
    budget: u32,
    /// The budget ran out with something left to do.
    exhausted: bool,
    /// Messages are refused, since nobody will be there.
    retired: bool,
    handled: u64,
}

impl<A: Actor> Inbox<A> {
    fn new(mailbox: Mailbox<A>) -> Self {
        Self {
            messages: mailbox.messages,
            taken: VecDeque::new(),
            capacity: mailbox.capacity,
            budget: 0,
            exhausted: false,
            retired: false,
            handled: 0,
        }
    }

    fn begin_turn(&mut self, task: &mut Task<'_>) {
        self.budget = TURN_BUDGET;
        while self.taken.len() < self.capacity
            && let Poll::Ready(Some(message)) = self.messages.poll_next_unpin(task)
        {
            self.taken.push_back(message);
        }
    }

    fn next(&mut self, task: &mut Task<'_>) -> Option<Envelope<A>> {
        if self.budget == 0 {
            self.exhausted = true;
            return None;
        }
        let message = match self.taken.pop_front() {
            Some(message) => message,
            None => match self.messages.poll_next_unpin(task) {
                Poll::Ready(message) => message?,
                Poll::Pending => return None,
            },
        };
        self.budget -= 1;
        self.handled += 1;
        Some(message)
    }

    /// Drops what is there, so that its senders hear that it was not handled.
    fn refuse(&mut self, task: &mut Task<'_>) {
        self.begin_turn(task);
        self.exhausted = !self.taken.is_empty();
        let refused = std::mem::take(&mut self.taken);
        // A message that panics in its `Drop` has nothing to do with the actor that it did not reach.
        let _dropped = guarded(move || drop(refused));
    }

    fn wants_another_turn(&mut self) -> bool {
        std::mem::take(&mut self.exhausted)
    }
}

/// Handles the mailbox's messages inside a life's context, as actix's own loop would.
struct Pump<A: Actor> {
    inbox: Rc<RefCell<Inbox<A>>>,
}

impl<A: Actor<Context = Context<A>>> ActorFuture<A> for Pump<A> {
    type Output = ();

    /// Never ready: a supervised actor lives until it is told otherwise, not until its last address is dropped.
    fn poll(
        self: Pin<&mut Self>,
        actor: &mut A,
        context: &mut Context<A>,
        task: &mut Task<'_>,
    ) -> Poll<()> {
        while !context.waiting() {
            let Some(mut message) = self.inbox.borrow_mut().next(task) else {
                break;
            };
            message.handle(actor, context);
            // What comes after it is not it: a timer, a future.
            handling_part("");
        }
        Poll::Pending
    }
}
