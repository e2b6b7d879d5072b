//! MasterActor: between `Lead` and `StandDown` it hears workers, asks its reign what to do, and does and tells it.

mod count;
mod desk;
mod recorder;
mod say;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, ResponseActFuture,
    SpawnHandle, WrapFuture,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::oneshot;

use super::balancer::Balancer;
use super::generator;
use super::journal::{Journal, Replayed};
use super::ledger::{Verdict, WorkerId};
use super::legacy::Legacy;
use super::pulse::MasterPulse;

use super::reign::Reign;
use super::roster::worker_of;
use super::tally::Tally;
use super::waits::Waits;
use super::{
    AskMaster, Ended, GeneratorSettings, HandOverTo, JournalSnapshot, Lead, MasterReborn,
    MasterSettings, MasterSnapshot, Reconfigure, StandDown,
};
use crate::cluster::{Cluster, ClusterChanged, Fence, Identity, MemberRemoved};
use crate::discovery::EpochSeen;
use crate::id::{AttemptId, Epoch, NodeId, TaskId};
use crate::planted;
use crate::sample::Sampler;
use crate::supervisor::{handling, handling_part};
use crate::time::unix_ms;
use crate::trace;
use crate::transport::{Inbound, Send, SendError};
use crate::wire::{
    Acknowledge, Assign, Cancel, Envelope, Fenced, HandBack, HandOver, LedgerEntry, Message,
    Progress, Report, Started, TaskResult, TaskSpec, batches,
};

pub use recorder::JournalSeed;
use recorder::Waiting;

/// MasterActor has a turn at least this often: the pulse that discovery watches.
const TICK: Duration = Duration::from_millis(250);
/// The heir is told of a short ledger this often, and of a long one this often.
const SHADOW_SHORT: Duration = Duration::from_millis(20);
const SHADOW_LONG: Duration = Duration::from_millis(100);
const SHORT: usize = 32;
/// Messages kept for a reign that is about to begin: the reports of many workers.
const MAX_EARLY: usize = 4096;
/// An heir whose queue is full is waited for so often, so long each time.
const FULL_TRIES: u32 = 50;
const FULL_WAIT: Duration = Duration::from_millis(10);

/// What a MasterActor is made of.
#[derive(Clone)]
pub struct MasterSeed {
    /// Knobs.
    pub settings: MasterSettings,
    /// Knobs of the generator.
    pub generator: GeneratorSettings,
    /// Who we are.
    pub identity: Identity,
    /// The highest epoch seen.
    pub fence: Fence,
    /// To other nodes, and to ourselves.
    pub transport: Recipient<Send>,
    /// Told at the start of each life.
    pub discovery: Recipient<MasterReborn>,
    /// Told of higher epochs.
    pub epochs: Recipient<EpochSeen>,
    /// Stamped at each turn.
    pub pulse: MasterPulse,
    /// Where durable tasks are recorded.
    pub journal: JournalSeed,
}

/// See the module page.
pub struct MasterActor {
    seed: MasterSeed,
    reign: Option<Reign>,
    /// The journal is being read for a reign under this epoch.
    loading: Option<Epoch>,
    /// Who waits for a segment to be recorded, and who to hear that we lead.
    waiting: Vec<Waiting>,
    doubts: Vec<oneshot::Sender<Option<bool>>>,
    looking: bool,
    /// When the registry's history was last dropped, and where it was then.
    compacted: Option<recorder::Compacted>,
    /// Who waits for tasks to finish.
    waits: Waits<oneshot::Sender<Vec<Ended>>>,
    commits: u64,
    last_commit: Duration,
    tally: Tally,
    /// Messages for a reign that others have heard of before us, or that is being handed over; bounded.
    early: VecDeque<(Epoch, WorkerId, Message)>,
    legacy: Legacy,
    /// What is to be acknowledged at the end of this turn; a worker with an empty list is answered all the same.
    acks: BTreeMap<NodeId, Vec<(AttemptId, Option<String>)>>,
    cluster: Option<Arc<Cluster>>,
    balancer: Balancer,
    rng: StdRng,
    wake: Option<(Instant, SpawnHandle)>,
    /// Why tasks wait, as last said: it is said once until it changes.
    said_waiting: Option<String>,
    /// When the heir was last told, and whether there is news since.
    shadowed: Option<Instant>,
    shadow_due: bool,
    sampler: Sampler,
}

impl MasterActor {
    /// A life that does not lead.
    pub fn new(seed: MasterSeed) -> Self {
        Self {
            balancer: Balancer::new(seed.settings.balancer),
            seed,
            reign: None,
            loading: None,
            waiting: Vec::new(),
            doubts: Vec::new(),
            looking: false,
            compacted: None,
            waits: Waits::default(),
            commits: 0,
            last_commit: Duration::ZERO,
            tally: Tally::default(),
            early: VecDeque::new(),
            legacy: Legacy::default(),
            acks: BTreeMap::new(),
            cluster: None,
            rng: rand::make_rng(),
            wake: None,
            said_waiting: None,
            shadowed: None,
            shadow_due: false,
            sampler: Sampler::default(),
        }
    }

    /// Makes its choices repeatable.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.rng = StdRng::seed_from_u64(seed);
        self
    }

    /// At what level a line about a task may be said now: counters stay exact, logs do not grow with the load.
    fn level(&mut self) -> log::Level {
        if self.sampler.admits(now()) {
            log::Level::Info
        } else {
            log::Level::Debug
        }
    }

    /// The reign, while it may act: not while it is being handed over, nor once a higher epoch was seen on this node.
    fn acting(&mut self) -> Option<&mut Reign> {
        let fence = match () {
            () if planted::is("old-epoch-obeyed") => Epoch::NONE,
            () => self.seed.fence.current(),
        };
        self.reign
            .as_mut()
            .filter(|r| !r.frozen && r.epoch >= fence)
    }

    fn epoch(&self) -> String {
        let epoch = self.reign.as_ref().map_or(Epoch::NONE, |r| r.epoch);
        epoch.to_string()
    }

    fn name_of(&self, id: NodeId) -> String {
        let member = self.cluster.as_ref().and_then(|c| c.member(id));
        member.map_or_else(|| id.to_string(), |m| m.registration.name.clone())
    }

    fn tell(&self, to: NodeId, message: impl Into<Message>) {
        let message = message.into();
        self.seed.transport.do_send(Send { to, message });
    }

    // --- the turn ------------------------------------------------------------------------------------------------

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.seed.pulse.beat();
        self.waits.retain(|whom| !whom.is_closed());
        self.turn(ctx);
    }

    /// Everything that is due: acknowledgements, new tasks, deadlines, the end of recovery, assignments, the shadow.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        self.acknowledge();
        if self.acting().is_none() {
            return;
        }
        let now = now();
        self.generate(now);
        self.give_up_overdue(now);
        self.end_recovery(now);
        self.hand_out(ctx, now);
        self.record(ctx);
        self.tell_ended();
        self.shadow(now);
        self.set_alarm(ctx, now);
    }

    /// Nobody is told anything by this reign any more.
    fn forget_waits(&mut self) {
        self.waits.clear();
    }

    /// Whoever waits for tasks that have finished is told.
    fn tell_ended(&mut self) {
        let Some(reign) = &mut self.reign else { return };
        for task in reign.ledger.take_ended(!self.waits.is_empty()) {
            for (whom, tasks) in self.waits.ended(&task) {
                // Whoever asked may have gone.
                whom.send(tasks).ok();
            }
        }
    }

    /// Between ticks: the next task or deadline is met to the millisecond.
    fn set_alarm(&mut self, ctx: &mut Context<Self>, now: Instant) {
        let shadow = self.shadowed.filter(|_| self.shadow_due);
        let shadow = shadow.map(|at| at + self.shadow_every());
        let due = self.reign.as_ref().and_then(Reign::next_due);
        let due = due.into_iter().chain(shadow).min();
        let Some(due) = due.filter(|due| *due < now + TICK) else {
            return;
        };
        if self
            .wake
            .as_ref()
            .is_some_and(|(at, _)| *at <= due && *at > now)
        {
            return;
        }
        let wait = due.saturating_duration_since(now) + Duration::from_millis(1);
        let handle = ctx.run_later(wait, |act, ctx| {
            act.wake = None;
            act.turn(ctx);
        });
        self.wake = Some((due, handle));
    }

    fn generate(&mut self, now: Instant) {
        let Some(reign) = &mut self.reign else { return };
        let Some(number) = reign.generator.due(now, &mut self.rng) else {
            return;
        };
        let created_ms = unix_ms();
        let spec = TaskSpec {
            id: TaskId::new(created_ms, &mut self.rng),
            job: "multiply".into(),
            input: generator::input(number),
            meta: Default::default(),
            durable: false,
            timeout_ms: millis(self.seed.settings.task_timeout),
            max_attempts: self.seed.settings.max_attempts,
            priority: 0,
            require: Default::default(),
            created_ms,
            not_before_ms: 0,
        };
        let task = spec.id.to_string();
        let epoch = reign.epoch.to_string();
        match reign.ledger.accept(spec, Duration::ZERO, created_ms, now) {
            Ok(_) => {
                self.shadow_due = true;
                log::info!(target: "master", event = "task.created", task = task, job = "multiply", number = number, epoch = epoch; "task created");
            }
            Err(full) => {
                log::warn!(target: "master", event = "task.refused", reason:debug = full, epoch = epoch; "the generator's task is refused: the queue is full");
            }
        }
    }

    fn give_up_overdue(&mut self, now: Instant) {
        let Some(reign) = &mut self.reign else { return };
        let overdue = reign.ledger.overdue(unix_ms(), now);
        let mut stray: BTreeMap<NodeId, Vec<AttemptId>> = BTreeMap::new();
        for (attempt, worker, verdict) in overdue {
            stray.entry(worker.id).or_default().push(attempt);
            self.say_verdict(attempt, &verdict);
        }
        for (worker, attempts) in stray {
            self.cancel(worker, attempts, "no word came within its time");
        }
    }

    /// What a worker runs in vain, it may as well stop.
    fn cancel(&mut self, to: NodeId, attempts: Vec<AttemptId>, why: &str) {
        let Some(epoch) = self.reign.as_ref().map(|r| r.epoch) else {
            return;
        };
        let why = why.to_owned();
        self.shadow_due = true;
        self.tell(
            to,
            Cancel {
                epoch,
                attempts,
                why,
            },
        );
    }

    // --- recovery ------------------------------------------------------------------------------------------------

    fn end_recovery(&mut self, now: Instant) {
        let Some(cluster) = self.cluster.clone() else {
            return;
        };
        let Some(reign) = &mut self.reign else { return };
        let Some(recovered) = reign.recover(&cluster, unix_ms(), now) else {
            return;
        };
        log::info!(target: "master", event = "master.recovered", epoch = reign.epoch.to_string(), adopted = reign.adopted, awaited = recovered.awaited.join(","), inherited = recovered.queued.len(); "the workers have reported");
        self.say_inherited(&recovered);
        self.shadow_due = true;
    }

    fn reported(&mut self, worker: WorkerId, report: Report) {
        let last = !report.more;
        let Some(reign) = &mut self.reign else { return };
        let heard = reign.reported(worker, report, unix_ms(), now());
        let (name, epoch) = (self.name_of(worker.id), self.epoch());
        for id in heard.adopted {
            log::info!(target: "master", event = "task.adopted", task = id.task.to_string(), attempt = id.attempt.to_string(), executor = name.as_str(), epoch = epoch.as_str(); "a running attempt is adopted");
        }
        for (id, why) in &heard.stray {
            log::info!(target: "master", event = "task.refused", task = id.task.to_string(), attempt = id.attempt.to_string(), executor = name.as_str(), reason = *why, epoch = epoch.as_str(); "a running attempt is not adopted");
        }
        if !heard.stray.is_empty() {
            let stray = heard.stray.into_iter().map(|(id, _)| id).collect();
            self.cancel(worker.id, stray, "it runs in vain");
        }
        for (attempt, verdict) in heard.lost {
            self.say_verdict(attempt, &verdict);
        }
        self.answer(worker, heard.results);
        if last {
            // Even with nothing to acknowledge: the worker reports again until it hears of it.
            self.acks.entry(worker.id).or_default();
        }
        self.shadow_due = true;
    }

    // --- handing out ---------------------------------------------------------------------------------------------

    fn hand_out(&mut self, ctx: &mut Context<Self>, now: Instant) {
        let Some(cluster) = self.cluster.clone() else {
            return;
        };
        let works = self.seed.settings.master_works;
        let Some(reign) = &mut self.reign else { return };
        let matched = reign.hand_out(&cluster, works, &mut self.balancer, &mut self.rng, now);
        self.say_waiting(matched.waiting);
        for (to, assign) in matched.assigns {
            self.assign(to, assign, ctx);
        }
        if matched.more {
            ctx.run_later(Duration::from_millis(1), |act, ctx| act.turn(ctx));
        }
    }

    fn assign(&mut self, to: NodeId, assign: Assign, ctx: &mut Context<Self>) {
        let (epoch, report) = (assign.epoch, assign.report);
        let executor = self.name_of(to);
        for assignment in &assign.assignments {
            self.count_wait(assignment);
            let level = self.level();
            log::log!(target: "master", level, event = "task.assigned", task = assignment.attempt.task.to_string(), attempt = assignment.attempt.attempt.to_string(), job = assignment.spec.job.as_str(), executor = executor.as_str(), trace_id:serde = trace::of(&assignment.spec.meta), epoch = epoch.to_string(); "task assigned");
        }
        let attempts: Vec<AttemptId> = assign.assignments.iter().map(|a| a.attempt).collect();
        let worker = self.cluster.as_ref().and_then(|c| worker_of(c, to));
        let message = assign.into();
        let send = self.seed.transport.send(Send { to, message });
        ctx.spawn(send.into_actor(self).map(move |sent, act, ctx| {
            if let (false, Some(worker)) = (matches!(sent, Ok(Ok(()))), worker) {
                // Without a session nothing goes there until it reports again; a full queue only needs a moment.
                let void = matches!(sent, Ok(Err(SendError::NoSession)));
                act.not_sent(worker, &attempts, (void, report), epoch, ctx);
            }
        }));
        self.shadow_due = true;
    }

    fn not_sent(
        &mut self,
        worker: WorkerId,
        attempts: &[AttemptId],
        how: (bool, u64),
        epoch: Epoch,
        ctx: &mut Context<Self>,
    ) {
        let Some(reign) = self.reign.as_mut().filter(|r| r.epoch == epoch) else {
            return;
        };
        for attempt in reign.not_sent(worker, attempts, how, now()) {
            self.say_verdict(attempt, &Verdict::Requeued("it could not be sent"));
        }
        self.turn(ctx);
    }

    fn shadow_every(&self) -> Duration {
        let short = |r: &Reign| r.ledger.open() <= SHORT;
        if self.reign.as_ref().is_some_and(short) {
            SHADOW_SHORT
        } else {
            SHADOW_LONG
        }
    }

    /// Now and then the likely heir is told what is open, so that a crash can name what was only queued here.
    fn shadow(&mut self, now: Instant) {
        let (Some(cluster), Some(reign)) = (&self.cluster, &self.reign) else {
            return;
        };
        let every = self.shadow_every();
        let lately = |at: Instant| now.saturating_duration_since(at) < every;
        if !self.shadow_due || self.shadowed.is_some_and(lately) {
            return;
        }
        let heirs = cluster
            .members
            .iter()
            .filter(|m| m.registration.eligible && m.session && m.registration.id != cluster.me);
        let heir = heirs.min_by_key(|m| (std::cmp::Reverse(m.registration.weight), m.incarnation));
        if let Some(heir) = heir {
            self.tell(heir.registration.id, reign.shadow());
        }
        self.shadow_due = false;
        self.shadowed = Some(now);
    }

    // --- hearing -------------------------------------------------------------------------------------------------

    fn hear(&mut self, from: NodeId, worker: WorkerId, envelope: Envelope) {
        match envelope.message {
            Message::Shadow(shadow) => {
                if self.is_fresh(from, shadow.epoch, "Shadow") {
                    let master = self.name_of(from);
                    self.legacy.shadow(master, shadow);
                }
                return;
            }
            Message::HandOver(part) => return self.keep_part(from, part),
            _ => {}
        }
        let Some((epoch, what)) = under(&envelope.message) else {
            return;
        };
        if self.is_early(epoch) {
            self.seen(epoch);
            self.keep_early(epoch, worker, envelope.message);
        } else if self.hands_over(epoch) {
            self.keep_early(epoch, worker, envelope.message);
        } else if self.fits(from, epoch, what) {
            self.act_on(worker, envelope.message);
        }
    }

    /// Whether this is said to a reign that is being handed over. The heir may not take over: then it is heard after all, since
    /// results are told once, and the credit that comes with them only there.
    fn hands_over(&self, epoch: Epoch) -> bool {
        let fence = self.seed.fence.current();
        let ours = self.reign.as_ref();
        ours.is_some_and(|r| r.frozen && r.epoch == epoch && epoch >= fence)
    }

    /// Others may hear of our epoch before we are told to lead under it.
    fn is_early(&self, epoch: Epoch) -> bool {
        let ours = self.reign.as_ref().map_or(Epoch::NONE, |r| r.epoch);
        epoch > ours
            && epoch
                >= self
                    .seed
                    .fence
                    .current()
                    .max(self.loading.unwrap_or_default())
    }

    /// Only the highest epoch can become a reign of ours.
    fn keep_early(&mut self, epoch: Epoch, worker: WorkerId, message: Message) {
        if self.early.front().is_some_and(|(under, ..)| *under < epoch) {
            self.early.clear();
        }
        let highest = self.early.front().is_none_or(|(under, ..)| *under == epoch);
        if highest && self.early.len() < MAX_EARLY {
            self.early.push_back((epoch, worker, message));
        }
    }

    fn seen(&self, epoch: Epoch) {
        if epoch > self.seed.fence.current() {
            self.seed.epochs.do_send(EpochSeen(epoch));
        }
    }

    /// Whether a message is under an epoch not below the fence; a lower one is answered with it.
    fn is_fresh(&self, from: NodeId, epoch: Epoch, what: &str) -> bool {
        self.seen(epoch);
        let fence = self.seed.fence.current();
        if epoch < fence {
            let fenced = Fenced {
                epoch: fence,
                refused: epoch,
                what: what.to_owned(),
            };
            self.tell(from, fenced);
        }
        epoch >= fence
    }

    /// Whether a message speaks to this reign; a lower epoch is answered with ours.
    fn fits(&mut self, from: NodeId, epoch: Epoch, what: &str) -> bool {
        if self.acting().is_some_and(|r| r.epoch == epoch) {
            return true;
        }
        if self.reign.as_ref().is_some_and(|r| !r.frozen) {
            self.is_fresh(from, epoch, what);
        }
        false
    }

    fn act_on(&mut self, worker: WorkerId, message: Message) {
        match message {
            Message::Report(report) => self.reported(worker, report),
            Message::Results(results) => {
                let Some(reign) = &mut self.reign else { return };
                let recorded = reign.results(worker, results, now());
                self.answer(worker, recorded);
            }
            Message::HandBack(back) => self.handed_back(back),
            Message::Started(started) => self.begun(&started),
            Message::Progress(told) => self.progressed(&told),
            _ => {}
        }
    }

    /// Tells of each result; the worker may drop its copy with the end of this turn.
    fn answer(&mut self, worker: WorkerId, results: Vec<(TaskResult, Verdict)>) {
        if results.is_empty() {
            return;
        }
        let (executor, epoch) = (self.name_of(worker.id), self.epoch());
        for (result, verdict) in results {
            if verdict == Verdict::Recording {
                // Said and answered once it is recorded; the worker keeps its copy until then.
                let acks = self.acks.entry(worker.id).or_default();
                if planted::is("result-acknowledged-before-commit") {
                    acks.push((result.attempt, None));
                }
                continue;
            }
            self.count_result(&result, &verdict);
            self.say_result(&executor, &result, &verdict, &epoch);
            let refused = match verdict {
                Verdict::Refused(why) => Some(why.to_owned()),
                _ => None,
            };
            let acks = self.acks.entry(worker.id).or_default();
            acks.push((result.attempt, refused));
        }
        self.shadow_due = true;
    }

    /// One message to each worker that was heard.
    fn acknowledge(&mut self) {
        let acks = std::mem::take(&mut self.acks);
        let Some(epoch) = self.acting().map(|r| r.epoch) else {
            return;
        };
        for (to, attempts) in acks {
            self.tell(to, Acknowledge { epoch, attempts });
        }
    }

    fn handed_back(&mut self, back: HandBack) {
        let now = now();
        let Some(reign) = &mut self.reign else { return };
        let mut returned = back.attempts;
        returned.retain(|attempt| reign.ledger.take_back(*attempt, now));
        for attempt in returned {
            self.say_verdict(attempt, &Verdict::Requeued("its worker handed it back"));
        }
        self.shadow_due = true;
    }

    fn begun(&mut self, started: &Started) {
        let at = unix_ms();
        let Some(reign) = &mut self.reign else { return };
        for attempt in &started.attempts {
            reign.ledger.started(*attempt, at);
        }
    }

    fn progressed(&mut self, progress: &Progress) {
        if let Some(reign) = &mut self.reign {
            let told = crate::job::clip(progress.told.clone());
            let now = now();
            reign.ledger.progress(progress.attempt, Some(&told), now);
        }
    }

    // --- reigns --------------------------------------------------------------------------------------------------

    fn keep_part(&mut self, from: NodeId, part: HandOver) {
        let (epoch, master) = (part.epoch, self.name_of(from));
        if !self.legacy.part(master, part) {
            return;
        }
        // A part may come after the reign has begun: it is inherited all the same.
        let Some(reign) = self.reign.as_mut().filter(|r| r.epoch > epoch) else {
            return;
        };
        if let Some(will) = self.legacy.take(reign.epoch) {
            reign.inherit(will, unix_ms(), now());
        }
    }

    fn lead(&mut self, epoch: Epoch, ctx: &mut Context<Self>) {
        match &mut self.reign {
            // The heir did not take over: on with the ledger we have.
            Some(reign) if reign.epoch == epoch => {
                reign.frozen = false;
                self.hear_early(epoch);
                self.turn(ctx);
            }
            Some(reign) if reign.epoch > epoch => {}
            before if self.loading < Some(epoch) => {
                if let Some(reign) = before {
                    reign.frozen = true;
                }
                self.load(epoch, ctx);
            }
            _ => {}
        }
    }

    /// The journal is read: the reign begins.
    fn begin(&mut self, epoch: Epoch, mut replayed: Replayed, ctx: &mut Context<Self>) {
        let now = now();
        let generator = self.seed.generator.clone();
        let seed = &self.seed.journal;
        let segments = std::mem::take(&mut replayed.segments);
        let journal = Journal::new(&seed.prefix, &seed.master_key, epoch, segments);
        let mut reign = Reign::new(epoch, &self.seed.settings, generator, journal, now);
        let will = self.legacy.take(epoch);
        // Whoever waits for a segment of the reign before is told that nobody knows.
        self.waiting.clear();
        self.waits.clear();
        if let Some(before) = self.reign.take() {
            self.legacy.led(before.epoch);
            reign.succeed(before);
        } else if let Some(will) = will {
            if will.beyond > 0 {
                log::warn!(target: "master", event = "task.lost", count = will.beyond, reason = format!("open at the dead master {}, more than it could tell of", will.master).as_str(), epoch = epoch.to_string(); "of these tasks only those that a worker reports go on");
            }
            reign.inherit(will, unix_ms(), now);
        }
        reign.restore(replayed, unix_ms(), now);
        let durable = reign.ledger.open();
        log::info!(target: "master", event = "master.leading", epoch = epoch.to_string(), inherited = reign.inherited(), durable = durable; "leading: waiting for the workers to report");
        self.reign = Some(reign);
        self.said_waiting = None;
        self.shadow_due = true;
        self.hear_early(epoch);
        self.turn(ctx);
    }

    /// What came before this reign acted, or while it was to be handed over.
    fn hear_early(&mut self, epoch: Epoch) {
        for (under, worker, message) in std::mem::take(&mut self.early) {
            if under == epoch {
                self.act_on(worker, message);
            }
        }
    }
}

/// The runtime's clock, so that a paused or a simulated one is obeyed.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The epoch a worker's message is under.
fn under(message: &Message) -> Option<(Epoch, &'static str)> {
    match message {
        Message::Report(m) => Some((m.epoch, message.name())),
        Message::Results(m) => Some((m.epoch, message.name())),
        Message::HandBack(m) => Some((m.epoch, message.name())),
        Message::Started(m) => Some((m.epoch, message.name())),
        Message::Progress(m) => Some((m.epoch, message.name())),
        // Not for this desk; the transport sends nothing else here.
        _ => None,
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Actor for MasterActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.seed.pulse.beat();
        self.seed.discovery.do_send(MasterReborn);
        ctx.run_interval(TICK, Self::tick);
    }
}

impl Handler<Lead> for MasterActor {
    type Result = ();

    fn handle(&mut self, msg: Lead, ctx: &mut Self::Context) {
        handling::<Lead>();
        self.lead(msg.0, ctx);
    }
}

impl Handler<Reconfigure> for MasterActor {
    type Result = ();

    fn handle(&mut self, msg: Reconfigure, ctx: &mut Self::Context) {
        handling::<Reconfigure>();
        if msg.settings.balancer != self.seed.settings.balancer {
            self.balancer = Balancer::new(msg.settings.balancer);
        }
        if let Some(reign) = &mut self.reign {
            reign.configure(&msg.settings, msg.generator.clone());
        }
        self.seed.settings = msg.settings;
        self.seed.generator = msg.generator;
        self.turn(ctx);
    }
}

impl Handler<StandDown> for MasterActor {
    type Result = ();

    fn handle(&mut self, msg: StandDown, _: &mut Self::Context) {
        handling::<StandDown>();
        self.loading = None;
        self.waiting.clear();
        self.waits.clear();
        if let Some(reign) = self.reign.take() {
            self.legacy.led(reign.epoch);
            let open = reign.ledger.open() + reign.inherited();
            log::info!(target: "master", event = "master.stood_down", epoch = reign.epoch.to_string(), reason = msg.why.as_str(), open = open; "no longer leading");
        }
        self.said_waiting = None;
    }
}

impl Handler<HandOverTo> for MasterActor {
    type Result = ResponseActFuture<Self, usize>;

    fn handle(&mut self, msg: HandOverTo, _: &mut Self::Context) -> Self::Result {
        handling::<HandOverTo>();
        let Some(reign) = self.reign.as_mut().filter(|r| r.epoch == msg.epoch) else {
            return Box::pin(actix::fut::ready(0));
        };
        reign.frozen = true;
        let entries = reign.entries();
        let open = entries.len();
        let (transport, epoch, heir) = (self.seed.transport.clone(), msg.epoch, msg.heir);
        let stream = async move {
            let parts = batches(entries, LedgerEntry::weight);
            let last = parts.len().saturating_sub(1);
            for (n, entries) in parts.into_iter().enumerate() {
                let part = HandOver {
                    epoch,
                    entries,
                    more: n < last,
                    part: u32::try_from(n).unwrap_or(u32::MAX),
                };
                let send = Send {
                    to: heir,
                    message: part.into(),
                };
                for _ in 0..FULL_TRIES {
                    // What does not arrive is recovered from the workers' reports, as after a crash.
                    if !matches!(transport.send(send.clone()).await, Ok(Err(SendError::Full))) {
                        break;
                    }
                    tokio::time::sleep(FULL_WAIT).await;
                }
            }
            open
        };
        Box::pin(stream.into_actor(self))
    }
}

impl Handler<ClusterChanged> for MasterActor {
    type Result = ();

    fn handle(&mut self, msg: ClusterChanged, ctx: &mut Self::Context) {
        handling::<ClusterChanged>();
        // Another led since: what a master before it left with us may be long finished.
        if let Some(master) = msg.0.master.as_ref().filter(|m| m.record.id != msg.0.me) {
            self.legacy.led(master.epoch);
        }
        self.cluster = Some(msg.0);
        // The likely heir may be another now.
        self.shadow_due = true;
        self.turn(ctx);
    }
}

impl Handler<MemberRemoved> for MasterActor {
    type Result = ();

    fn handle(&mut self, msg: MemberRemoved, ctx: &mut Self::Context) {
        handling::<MemberRemoved>();
        let worker = WorkerId {
            id: msg.id,
            incarnation: msg.incarnation,
        };
        let Some(reign) = &mut self.reign else { return };
        let lost = reign.removed(worker, unix_ms(), now());
        for (attempt, verdict) in lost {
            self.say_verdict(attempt, &verdict);
        }
        self.shadow_due = true;
        self.turn(ctx);
    }
}

impl Handler<Inbound> for MasterActor {
    type Result = ();

    fn handle(&mut self, msg: Inbound, ctx: &mut Self::Context) {
        handling::<Inbound>();
        self.seed.pulse.beat();
        let worker = WorkerId {
            id: msg.from,
            incarnation: msg.incarnation,
        };
        for envelope in msg.envelopes {
            handling_part(envelope.message.name());
            self.hear(msg.from, worker, envelope);
        }
        self.turn(ctx);
    }
}

impl Handler<AskMaster> for MasterActor {
    type Result = MasterSnapshot;

    fn handle(&mut self, _: AskMaster, _: &mut Self::Context) -> MasterSnapshot {
        handling::<AskMaster>();
        let Some(reign) = &self.reign else {
            return MasterSnapshot {
                tally: self.tally.clone(),
                ..MasterSnapshot::default()
            };
        };
        let outstanding = reign.ledger.outstanding();
        let size = reign.journal.size();
        MasterSnapshot {
            leading: Some(reign.epoch.to_string()),
            recovering: reign.is_recovering(),
            tasks: reign.ledger.counts(),
            outstanding: outstanding
                .into_iter()
                .map(|(w, n)| (self.name_of(w.id), n as u64))
                .collect(),
            refused: reign.refused.clone(),
            adopted: reign.adopted,
            ephemeral: (reign.ledger.open_ephemeral() + reign.inherited()) as u64,
            journal: JournalSnapshot {
                segments: size.segments as u64,
                bytes: size.bytes as u64,
                in_flight: size.flying as u64,
                commits: self.commits,
                last_commit_us: u64::try_from(self.last_commit.as_micros()).unwrap_or(u64::MAX),
                stalled: reign.journal.is_stalled(now()),
            },
            tally: self.tally.clone(),
        }
    }
}
