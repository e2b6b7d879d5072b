//! The supervisor itself: a loop that hears how lives begin and end, asks [`Policy`], logs each decision and carries it out.
//!
//! It is a plain future on the control plane and not an actix actor: it needs no address, and nobody would guard its mailbox.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures_util::future::FutureExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::guard::{Command, Event, Link, Reporter};
use super::policy::{Action, Exit, Policy, SupervisionSettings};
use super::pulse::Pulse;
use super::{
    ActorReport, ActorState, ChildSpec, GaveUp, Kill, KillRefused, Plane, ShutdownReport, Spawner,
};

/// How long a dropped child may take to be gone. Its arbiter has to come round to it; if not, it is stuck in a handler.
const DROP_WITHIN: Duration = Duration::from_millis(200);

/// Children in start order, and how to look after them.
#[derive(Debug)]
pub struct Supervisor {
    settings: SupervisionSettings,
    children: Vec<ChildSpec>,
    rng: StdRng,
}

impl Supervisor {
    /// Nobody to look after yet.
    pub fn new(settings: SupervisionSettings) -> Self {
        Self {
            settings,
            children: Vec::new(),
            rng: rand::make_rng(),
        }
    }

    /// Makes the jitter repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.rng = StdRng::seed_from_u64(seed);
        self
    }

    /// One more child, started after those before it and stopped before them.
    ///
    /// # Panics
    /// If there is one of that name: a kill would not know which.
    pub fn child(mut self, spec: ChildSpec) -> Self {
        let is_new = self.children.iter().all(|other| other.name != spec.name);
        assert!(is_new, "there are two actors named {:?}", spec.name);
        self.children.push(spec);
        self
    }

    /// Starts the children, each on its plane, and the supervisor on the control plane.
    ///
    /// `on_give_up` is called at most once, on the control plane: after one failure too many, or if the supervisor itself
    /// is dropped without a [`shutdown`](SupervisorHandle::shutdown) (its arbiter died). What still runs goes on running,
    /// unattended, so that the caller can drain it; nothing is restarted any more.
    pub fn start(
        self,
        spawner: Arc<dyn Spawner>,
        on_give_up: impl FnOnce(GaveUp) + Send + 'static,
    ) -> SupervisorHandle {
        let policy = Policy::new(self.settings, self.children.iter().map(|spec| spec.restart));
        let (events, heard) = unbounded_channel();
        let children: Vec<_> = self
            .children
            .into_iter()
            .enumerate()
            .map(|(index, spec)| launch(index, spec, &*spawner, &events))
            .collect();
        let contacts = children.iter().map(|child| child.contact.clone()).collect();
        let shell = Shell {
            children,
            policy,
            rng: self.rng,
            events: heard,
            backlog: VecDeque::new(),
            on_give_up: Some(Box::new(on_give_up)),
        };
        spawner.spawn(Plane::Control, Box::new(move || shell.run().boxed_local()));
        SupervisorHandle { contacts, events }
    }
}

fn launch(
    index: usize,
    spec: ChildSpec,
    spawner: &dyn Spawner,
    events: &UnboundedSender<Event>,
) -> Child {
    let pulse = Arc::new(Pulse::new(spec.name));
    let (commands, obeyed) = unbounded_channel();
    let link = Link {
        pulse: Arc::clone(&pulse),
        commands: obeyed,
        reporter: Reporter::new(index, Arc::clone(&pulse), events.clone()),
    };
    let mut child = Child {
        contact: Contact { pulse, commands },
        stop_within: spec.stop_within,
        life: 0,
        standing: Standing::Down,
        due: None,
        failed_at: None,
    };
    child.start();
    let launch = spec.launch;
    spawner.spawn(spec.plane, Box::new(move || launch(link)));
    child
}

/// Reaches a running supervisor and its actors from any thread. Cheap to clone.
#[derive(Clone)]
pub struct SupervisorHandle {
    contacts: Arc<[Contact]>,
    events: UnboundedSender<Event>,
}

impl SupervisorHandle {
    /// All actors in start order. It waits for nobody, and a hung arbiter does not hide.
    pub fn report(&self) -> Vec<ActorReport> {
        self.contacts
            .iter()
            .map(|contact| contact.pulse.report())
            .collect()
    }

    /// The calls that led to an actor's last panic, one a line. Looking up the names takes up to a fifth of a second the first time,
    /// and nothing later.
    pub fn trace(&self, name: &str) -> Option<String> {
        let contact = self.contacts.iter().find(|c| c.pulse.name == name)?;
        contact.pulse.trace()
    }

    /// Whether the supervisor answers: its loop came round, so its thread, the control plane's, turns. Answers `false` once it
    /// is down, and not at all while that thread hangs: whoever asks has a time-out of their own.
    pub async fn answers(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.events.send(Event::Ask(answer)).is_ok() && answered.await.is_ok()
    }

    /// Makes an actor fail. It goes straight to its guard: past its mailbox, and past the supervisor.
    ///
    /// # Errors
    /// A refusal, if there is nobody there to kill.
    pub fn kill(&self, kill: &Kill) -> Result<(), KillRefused> {
        let Some(contact) = self
            .contacts
            .iter()
            .find(|contact| contact.pulse.name == kill.name)
        else {
            let known: Vec<_> = self
                .contacts
                .iter()
                .map(|contact| contact.pulse.name)
                .collect();
            return Err(KillRefused::Unknown {
                name: kill.name.clone(),
                known: known.join(", "),
            });
        };
        let (name, state) = (contact.pulse.name, contact.pulse.state());
        if state != ActorState::Running {
            return Err(KillRefused::NotRunning { name, state });
        }
        if contact.pulse.kill_pending.swap(true, SeqCst) {
            return Err(KillRefused::Pending { name });
        }
        contact.tell(Command::Kill(kill.how));
        Ok(())
    }

    /// Stops all children in reverse start order, each within its deadline, then the supervisor.
    ///
    /// Once it is down, the answer is at once and empty. If the control plane hangs there is none: whoever must go on waits
    /// with a time-out of their own.
    pub async fn shutdown(&self) -> ShutdownReport {
        let (answer, mut answered) = oneshot::channel();
        if self.events.send(Event::Shutdown(answer)).is_err() {
            return ShutdownReport::default();
        }
        tokio::select! {
            biased;
            report = &mut answered => report.unwrap_or_default(),
            // A request that slips in while the channel is being dropped is never read; what was answered, was before.
            () = self.events.closed() => answered.try_recv().unwrap_or_default(),
        }
    }

    pub(super) fn pulses(&self) -> impl Iterator<Item = Arc<Pulse>> {
        self.contacts
            .iter()
            .map(|contact| Arc::clone(&contact.pulse))
    }
}

impl fmt::Debug for SupervisorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.contacts.iter().map(|contact| contact.pulse.name);
        f.debug_list().entries(names).finish()
    }
}

/// A guard's command channel and pulse.
#[derive(Clone)]
struct Contact {
    pulse: Arc<Pulse>,
    commands: UnboundedSender<Command>,
}

impl Contact {
    /// A guard that is gone has said so itself, by an event.
    fn tell(&self, command: Command) {
        let _gone = self.commands.send(command);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Up,
    /// Its guard is parked.
    Down,
    /// There is no guard any more.
    Gone,
}

struct Child {
    contact: Contact,
    stop_within: Duration,
    /// The present or last life.
    life: u64,
    standing: Standing,
    /// When its next life is to begin.
    due: Option<Instant>,
    /// When its last life ended by itself, until the next has started.
    failed_at: Option<Instant>,
}

impl Child {
    fn name(&self) -> &'static str {
        self.contact.pulse.name
    }

    fn start(&mut self) {
        self.due = None;
        self.life += 1;
        self.standing = Standing::Up;
        self.contact.tell(Command::Start { life: self.life });
    }

    /// There will be no other life.
    fn dismiss(&mut self, command: Command) {
        self.due = None;
        if self.standing != Standing::Up {
            // Said here, so that a report agrees at once; the guard is parked and says nothing.
            self.contact.pulse.ended();
        }
        self.contact.tell(command);
    }
}

/// How a child that was told to stop took it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    InTime,
    /// It missed its deadline and was dropped.
    Dropped,
    /// Nothing reaches it.
    Never,
}

type OnGiveUp = Box<dyn FnOnce(GaveUp) + Send>;

/// Somebody waits for the end.
type Farewell = oneshot::Sender<ShutdownReport>;

struct Shell {
    children: Vec<Child>,
    policy: Policy,
    rng: StdRng,
    events: UnboundedReceiver<Event>,
    /// What was heard while waiting for something else, oldest first.
    backlog: VecDeque<Event>,
    /// Taken by the first to give up, and by an orderly end.
    on_give_up: Option<OnGiveUp>,
}

impl Shell {
    async fn run(mut self) {
        let began = Instant::now();
        let farewell = loop {
            match self.next_event().await {
                Some(Event::Started { child, life }) => self.started(child, life),
                Some(Event::Exited { child, life, exit }) => {
                    if self.is_news(child, life, &exit) {
                        self.exited(child, exit, began.elapsed()).await;
                    }
                }
                // Whoever asked may have stopped waiting.
                Some(Event::Ask(answer)) => drop(answer.send(())),
                Some(Event::Shutdown(farewell)) => break Some(farewell),
                None => break None,
            }
        };
        self.shut_down(farewell).await;
    }

    /// Starts who is due until there is something to hear; `None` if nobody is left to say anything.
    async fn next_event(&mut self) -> Option<Event> {
        loop {
            self.start_due(Instant::now());
            if let Some(event) = self.backlog.pop_front() {
                return Some(event);
            }
            let Some(due) = self.children.iter().filter_map(|child| child.due).min() else {
                return self.events.recv().await;
            };
            tokio::select! {
                biased;
                event = self.events.recv() => return event,
                () = sleep_until(due) => {}
            }
        }
    }

    fn start_due(&mut self, now: Instant) {
        for child in &mut self.children {
            if child.due.is_some_and(|due| due <= now) {
                child.start();
            }
        }
    }

    fn started(&mut self, child: usize, life: u64) {
        let child = &mut self.children[child];
        let actor = child.name();
        match child.failed_at.take() {
            _ if life == 1 => log::info!(event = "actor.started", actor; "actor started"),
            Some(at) => {
                let duration_ms = at.elapsed().as_millis();
                log::warn!(event = "actor.restarted", actor, restarts = life - 1, duration_ms; "actor restarted");
            }
            None => {
                log::warn!(event = "actor.restarted", actor, restarts = life - 1; "actor restarted with its group")
            }
        }
    }

    /// Whether this exit is of the present life, or of its guard altogether.
    fn is_news(&self, child: usize, life: u64, exit: &Exit) -> bool {
        let known = &self.children[child];
        match known.standing {
            Standing::Gone => false,
            Standing::Down => *exit == Exit::ArbiterDied,
            Standing::Up => *exit == Exit::ArbiterDied || life == known.life,
        }
    }

    async fn exited(&mut self, child: usize, exit: Exit, now: Duration) {
        self.note_exit(child, &exit);
        self.children[child].failed_at = Some(Instant::now());
        let actor = self.children[child].name();
        match &exit {
            Exit::Normal | Exit::Stopped => {
                log::info!(event = "actor.stopped", actor, reason:% = exit; "actor stopped");
            }
            Exit::Panic(err) => {
                log::warn!(event = "actor.failed", actor, reason = "panic", err = err.as_str(); "actor failed")
            }
            Exit::ArbiterDied => {
                log::error!(event = "actor.failed", actor, reason = "arbiter died"; "actor failed")
            }
        }
        let mut actions = self.policy.exited(child, &exit, now, &mut self.rng);
        while let Some(stuck) = self.perform(actions).await {
            actions = self.policy.would_not_stop(stuck);
        }
    }

    fn note_exit(&mut self, child: usize, exit: &Exit) {
        self.children[child].standing = match exit {
            Exit::ArbiterDied => Standing::Gone,
            Exit::Normal | Exit::Stopped | Exit::Panic(_) => Standing::Down,
        };
    }

    /// Answers with the child that could not be stopped, if any; what was to follow is then void.
    async fn perform(&mut self, actions: Vec<Action>) -> Option<usize> {
        for action in actions {
            match action {
                Action::Stop(children) => {
                    for child in children {
                        if self.stop(child).await == Stopped::Never {
                            return Some(child);
                        }
                    }
                }
                Action::Retire(child) => self.children[child].dismiss(Command::Retire),
                Action::Remove(child) => self.children[child].dismiss(Command::Close),
                Action::Start { children, after } => {
                    self.schedule(&children, Instant::now() + after)
                }
                Action::GiveUp { child, failure } => self.give_up(child, failure),
            }
        }
        None
    }

    fn schedule(&mut self, children: &[usize], due: Instant) {
        for &child in children {
            self.children[child].due = Some(due);
        }
    }

    fn give_up(&mut self, child: usize, failure: String) {
        for child in self
            .children
            .iter_mut()
            .filter(|child| child.standing == Standing::Down)
        {
            child.dismiss(Command::Retire);
        }
        let actor = self.children[child].name();
        escalate(self.on_give_up.take(), GaveUp { actor, failure });
    }

    async fn stop(&mut self, child: usize) -> Stopped {
        let known = &mut self.children[child];
        known.due = None;
        if known.standing != Standing::Up {
            return Stopped::InTime;
        }
        let (actor, deadline) = (known.name(), known.stop_within);
        known.contact.tell(Command::Stop);
        if self.exits_within(child, deadline).await {
            log::info!(event = "actor.stopped", actor, reason = "told by its supervisor"; "actor stopped");
            return Stopped::InTime;
        }
        self.children[child].contact.tell(Command::Drop);
        let is_gone = self.exits_within(child, DROP_WITHIN).await;
        let (taken, reason) = match is_gone {
            true => (Stopped::Dropped, "refused to stop and was dropped"),
            false => (Stopped::Never, "is stuck in a handler"),
        };
        let duration_ms = deadline.as_millis();
        log::error!(event = "actor.overdue", actor, reason, duration_ms; "actor did not stop within its deadline");
        taken
    }

    /// Waits for the end of a child's present life, and keeps for later what else is heard.
    async fn exits_within(&mut self, child: usize, deadline: Duration) -> bool {
        let deadline = Instant::now() + deadline;
        let mut seen = 0;
        loop {
            while let Some(event) = self.backlog.get(seen) {
                if let Some(exit) = self.exit_of(child, event).cloned() {
                    self.backlog.remove(seen);
                    self.note_exit(child, &exit);
                    return true;
                }
                seen += 1;
            }
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => self.backlog.push_back(event),
                Ok(None) | Err(_) => return false,
            }
        }
    }

    fn exit_of<'e>(&self, child: usize, event: &'e Event) -> Option<&'e Exit> {
        match event {
            Event::Exited {
                child: other,
                life,
                exit,
            } if *other == child => self.is_news(child, *life, exit).then_some(exit),
            Event::Exited { .. } | Event::Started { .. } | Event::Ask(_) | Event::Shutdown(_) => {
                None
            }
        }
    }

    async fn shut_down(mut self, farewell: Option<Farewell>) {
        let mut report = ShutdownReport::default();
        for child in (0..self.children.len()).rev() {
            if self.stop(child).await != Stopped::InTime {
                report.overdue.push(self.children[child].name());
            }
        }
        for child in &mut self.children {
            child.dismiss(Command::Close);
        }
        self.on_give_up = None;
        for farewell in farewell.into_iter().chain(self.other_farewells()) {
            // Whoever asked may have stopped waiting.
            let _left = farewell.send(report.clone());
        }
    }

    fn other_farewells(&mut self) -> Vec<Farewell> {
        let mut events: Vec<_> = self.backlog.drain(..).collect();
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        let farewell = |event| match event {
            Event::Shutdown(farewell) => Some(farewell),
            Event::Started { .. } | Event::Exited { .. } | Event::Ask(_) => None,
        };
        events.into_iter().filter_map(farewell).collect()
    }
}

impl Drop for Shell {
    /// Nobody restarts anything from here on, so somebody has to know.
    fn drop(&mut self) {
        if let Some(on_give_up) = self.on_give_up.take() {
            let failure = "the control plane ended under it".to_owned();
            escalate(
                Some(on_give_up),
                GaveUp {
                    actor: "supervisor",
                    failure,
                },
            );
        }
    }
}

fn escalate(on_give_up: Option<OnGiveUp>, gave_up: GaveUp) {
    let Some(on_give_up) = on_give_up else { return };
    let (actor, err) = (gave_up.actor, gave_up.failure.as_str());
    log::error!(event = "actor.gave_up", actor, err; "supervisor gave up");
    on_give_up(gave_up);
}
