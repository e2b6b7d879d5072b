//! MasterActor: between `Lead` and `StandDown` it hears workers, asks its reign what to do, and does and tells it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
use super::ledger::{Accepted, Committed, Full, State, Verdict, WorkerId};
use super::legacy::Legacy;
use super::pulse::MasterPulse;
pub use super::recorder::JournalSeed;
use super::recorder::{Fate, Waiting};
use super::reign::{Origin, Recovered, Reign};
use super::roster::worker_of;
use super::task::Change;
use super::view::view;
use super::{
    AskMaster, CancelTask, ChangeError, GeneratorSettings, GetTask, HandOverTo, JournalSnapshot,
    Lead, ListTasks, MasterReborn, MasterSettings, MasterSnapshot, RetryTask, StandDown,
    Submission, Submit, SubmitError, Taken, TaskView,
};
use crate::cluster::{Cluster, ClusterChanged, Fence, Identity, MemberRemoved};
use crate::discovery::EpochSeen;
use crate::id::{AttemptId, Epoch, NodeId, TaskId};
use crate::sample::Sampler;
use crate::time::unix_ms;
use crate::transport::{Inbound, Send, SendError};
use crate::wire::{
    Acknowledge, Assign, Cancel, Envelope, Fenced, HandBack, HandOver, LedgerEntry, Message,
    Outcome, Report, Started, TaskResult, TaskSpec, batches,
};

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
    pub(super) seed: MasterSeed,
    pub(super) reign: Option<Reign>,
    /// The journal is being read for a reign under this epoch.
    pub(super) loading: Option<Epoch>,
    /// Who waits for a segment to be recorded, and who to hear that we lead.
    pub(super) waiting: Vec<Waiting>,
    pub(super) doubts: Vec<oneshot::Sender<Option<bool>>>,
    pub(super) looking: bool,
    /// When the registry's history was last dropped, and where it was then.
    pub(super) compacted: Option<(Instant, i64)>,
    pub(super) commits: u64,
    pub(super) last_commit: Duration,
    /// Messages for a reign that others have heard of before us; bounded.
    early: VecDeque<(Epoch, WorkerId, Message)>,
    pub(super) legacy: Legacy,
    /// What is to be acknowledged at the end of this turn; a worker with an empty list is answered all the same.
    pub(super) acks: BTreeMap<NodeId, Vec<(AttemptId, Option<String>)>>,
    cluster: Option<Arc<Cluster>>,
    balancer: Balancer,
    rng: StdRng,
    wake: Option<(Instant, SpawnHandle)>,
    /// Why tasks wait, as last said: it is said once until it changes.
    pub(super) said_waiting: Option<String>,
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
            commits: 0,
            last_commit: Duration::ZERO,
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
        let fence = self.seed.fence.current();
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
        self.turn(ctx);
    }

    /// Everything that is due: acknowledgements, new tasks, deadlines, the end of recovery, assignments, the shadow.
    pub(super) fn turn(&mut self, ctx: &mut Context<Self>) {
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
        self.shadow(now);
        self.set_alarm(ctx, now);
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
            meta: BTreeMap::new(),
            durable: false,
            timeout_ms: millis(self.seed.settings.task_timeout),
            max_attempts: self.seed.settings.max_attempts,
            priority: 0,
            require: BTreeMap::new(),
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

    fn say_verdict(&mut self, attempt: AttemptId, verdict: &Verdict) {
        let epoch = self.epoch();
        let (task, attempt) = (attempt.task.to_string(), attempt.attempt.to_string());
        match verdict {
            Verdict::Requeued(why) => {
                let level = self.level();
                log::log!(target: "master", level, event = "task.requeued", task = task, attempt = attempt, reason = *why, epoch = epoch; "task queued again");
            }
            Verdict::Dead => {
                log::warn!(target: "master", event = "task.dead", task = task, attempt = attempt, epoch = epoch; "its attempts are used up");
            }
            Verdict::Recorded | Verdict::Recording | Verdict::Repeated | Verdict::Refused(_) => {}
        }
    }

    /// What became of a durable task, once it is recorded.
    pub(super) fn say_committed(&mut self, committed: &Committed) {
        let Some(reign) = &self.reign else { return };
        let Some(task) = reign.ledger.get(committed.task) else {
            return;
        };
        let attempt = task.tries().last().map(|t| t.attempt.to_string());
        let attempt = attempt.unwrap_or_default();
        let (id, job, epoch) = (
            committed.task.to_string(),
            task.spec.job.clone(),
            self.epoch(),
        );
        let error = match &task.state {
            State::Failed(why) | State::Dead(why) => why.to_string(),
            _ => committed.why.to_owned(),
        };
        let ran = task
            .tries()
            .last()
            .map_or(0, |t| t.finished_ms.saturating_sub(t.started_ms));
        let executor = task.tries().last().map(|t| t.worker.id);
        let output = match &task.state {
            State::Done(output) => String::from_utf8_lossy(output).into_owned(),
            _ => String::new(),
        };
        let executor = executor.map(|id| self.name_of(id)).unwrap_or_default();
        let level = self.level();
        let (id, attempt, epoch) = (id.as_str(), attempt.as_str(), epoch.as_str());
        let (executor, error) = (executor.as_str(), error.as_str());
        match &committed.change {
            Change::Accept(_) => {
                log::log!(target: "master", level, event = "task.created", task = id, job = job.as_str(), epoch = epoch; "task accepted")
            }
            Change::Finish(State::Done(_), _) => {
                log::log!(target: "master", level, event = "task.finished", task = id, attempt = attempt, executor = executor, output = output.as_str(), duration_ms = ran, epoch = epoch; "task finished")
            }
            Change::Finish(State::Dead(_), _) => {
                log::warn!(target: "master", event = "task.dead", task = id, attempt = attempt, reason = error, epoch = epoch; "no further attempt")
            }
            Change::Finish(State::Cancelled, _) => {
                log::info!(target: "master", event = "task.cancelled", task = id, epoch = epoch; "task cancelled")
            }
            Change::Finish(..) => {
                log::warn!(target: "master", event = "task.failed", task = id, attempt = attempt, executor = executor, reason = error, duration_ms = ran, epoch = epoch; "task failed")
            }
            Change::Requeue(_) => {
                log::log!(target: "master", level, event = "task.requeued", task = id, attempt = attempt, reason = committed.why, epoch = epoch; "task queued again")
            }
            Change::Retry => {
                log::info!(target: "master", event = "task.retried", task = id, epoch = epoch; "a dead task is given another chance")
            }
        }
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

    /// Each task that only the master before knew is named.
    fn say_inherited(&mut self, recovered: &Recovered) {
        let epoch = self.epoch();
        for (task, leased) in &recovered.queued {
            let what = if *leased {
                "its attempt is with no worker that reported"
            } else {
                "it was only queued"
            };
            let (level, reason) = match &recovered.origin {
                Origin::Own => (self.level(), format!("{what} here, under the epoch before")),
                Origin::Handed(by) => (self.level(), format!("{what}; handed over by {by}")),
                // Bounded by what a shadow holds.
                Origin::Shadow(dead) => (
                    log::Level::Warn,
                    format!("{what} at the dead master {dead}"),
                ),
            };
            log::log!(target: "master", level, event = "task.requeued", task = task.to_string(), reason = reason.as_str(), epoch = epoch.as_str(); "a task of the reign before is queued again");
        }
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

    /// No worker is no error: it is said once, and the tasks wait.
    fn say_waiting(&mut self, why: Option<String>) {
        if self.said_waiting == why {
            return;
        }
        let queued = self.reign.as_ref().map_or(0, |r| r.ledger.queued());
        if let Some(why) = &why {
            log::warn!(target: "master", event = "task.waiting", reason = why.as_str(), queued = queued; "tasks wait for a worker");
        }
        self.said_waiting = why;
    }

    fn assign(&mut self, to: NodeId, assign: Assign, ctx: &mut Context<Self>) {
        let (epoch, report) = (assign.epoch, assign.report);
        let executor = self.name_of(to);
        for assignment in &assign.assignments {
            let level = self.level();
            log::log!(target: "master", level, event = "task.assigned", task = assignment.attempt.task.to_string(), attempt = assignment.attempt.attempt.to_string(), job = assignment.spec.job.as_str(), executor = executor.as_str(), epoch = epoch.to_string(); "task assigned");
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
        } else if self.fits(from, epoch, what) {
            self.act_on(worker, envelope.message);
        }
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
                self.acks.entry(worker.id).or_default();
                continue;
            }
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

    fn say_result(&mut self, executor: &str, result: &TaskResult, verdict: &Verdict, epoch: &str) {
        let task = result.attempt.task.to_string();
        let attempt = result.attempt.attempt.to_string();
        let duration = result.finished_ms.saturating_sub(result.started_ms);
        match (verdict, &result.outcome) {
            (Verdict::Recorded, Outcome::Done(output)) => {
                let level = self.level();
                let output = String::from_utf8_lossy(output);
                log::log!(target: "master", level, event = "task.finished", task = task, attempt = attempt, executor = executor, output = &*output, started = crate::time::rfc3339(result.started_ms), finished = crate::time::rfc3339(result.finished_ms), duration_ms = duration, epoch = epoch; "task finished");
            }
            (Verdict::Recorded, outcome) => {
                log::warn!(target: "master", event = "task.failed", task = task, attempt = attempt, executor = executor, reason:debug = outcome, duration_ms = duration, epoch = epoch; "task failed");
            }
            // It was stopped because it ran in vain.
            (Verdict::Refused(_), Outcome::Cancelled) => {}
            (Verdict::Refused(why), _) => {
                log::warn!(target: "master", event = "task.refused", task = task, attempt = attempt, executor = executor, reason = *why, epoch = epoch; "a result is refused");
            }
            (other, _) => self.say_verdict(result.attempt, other),
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
    pub(super) fn begin(&mut self, epoch: Epoch, mut replayed: Replayed, ctx: &mut Context<Self>) {
        let now = now();
        let generator = self.seed.generator.clone();
        let seed = &self.seed.journal;
        let segments = std::mem::take(&mut replayed.segments);
        let journal = Journal::new(&seed.prefix, &seed.master_key, epoch, segments);
        let mut reign = Reign::new(epoch, &self.seed.settings, generator, journal, now);
        let will = self.legacy.take(epoch);
        // Whoever waits for a segment of the reign before is told that nobody knows.
        self.waiting.clear();
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
        for (under, worker, message) in std::mem::take(&mut self.early) {
            if under == epoch {
                self.act_on(worker, message);
            }
        }
        self.turn(ctx);
    }
}

/// The runtime's clock, so that a paused or a simulated one is obeyed.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The epoch a worker's message is under.
fn under(message: &Message) -> Option<(Epoch, &'static str)> {
    match message {
        Message::Report(m) => Some((m.epoch, message.name())),
        Message::Results(m) => Some((m.epoch, message.name())),
        Message::HandBack(m) => Some((m.epoch, message.name())),
        Message::Started(m) => Some((m.epoch, message.name())),
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
        self.lead(msg.0, ctx);
    }
}

impl Handler<StandDown> for MasterActor {
    type Result = ();

    fn handle(&mut self, msg: StandDown, _: &mut Self::Context) {
        self.loading = None;
        self.waiting.clear();
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
        self.seed.pulse.beat();
        let worker = WorkerId {
            id: msg.from,
            incarnation: msg.incarnation,
        };
        for envelope in msg.envelopes {
            self.hear(msg.from, worker, envelope);
        }
        self.turn(ctx);
    }
}

impl Handler<Submit> for MasterActor {
    type Result = ResponseActFuture<Self, Vec<Result<Taken, SubmitError>>>;

    fn handle(&mut self, msg: Submit, ctx: &mut Self::Context) -> Self::Result {
        let mut proposed = BTreeSet::new();
        let answers: Vec<_> = msg
            .0
            .into_iter()
            .map(|s| self.submit(s, &mut proposed))
            .collect();
        // Into segments, so that it is known which; on their way at the end of this turn.
        if let Some(reign) = self.reign.as_mut().filter(|_| !proposed.is_empty()) {
            reign.write(now());
        }
        let waits = self.segments_of(&proposed);
        self.turn(ctx);
        if waits.is_empty() {
            return Box::pin(actix::fut::ready(answers));
        }
        let within = self.seed.settings.commit_timeout;
        let settled = async move {
            let deadline = tokio::time::Instant::now() + within;
            let mut fates = BTreeMap::new();
            for (told, tasks) in waits {
                let fate = match tokio::time::timeout_at(deadline, told).await {
                    Ok(Ok(Fate::Recorded)) => None,
                    Ok(Ok(Fate::NotRecorded(why))) => Some(SubmitError::NotRecorded(why)),
                    Ok(Err(_)) | Err(_) => Some(SubmitError::Unknown),
                };
                fates.extend(tasks.into_iter().map(|task| (task, fate.clone())));
            }
            let settle = |answer: Result<Taken, SubmitError>| {
                let taken = answer?;
                match fates.get(&taken.id).cloned().flatten() {
                    Some(error) => Err(error),
                    None => Ok(taken),
                }
            };
            answers.into_iter().map(settle).collect()
        };
        Box::pin(settled.into_actor(self))
    }
}

/// Segments that are waited for, with the tasks in each.
type Waits = Vec<(oneshot::Receiver<Fate>, Vec<TaskId>)>;

impl MasterActor {
    fn submit(
        &mut self,
        submission: Submission,
        proposed: &mut BTreeSet<TaskId>,
    ) -> Result<Taken, SubmitError> {
        if self.acting().is_none() {
            return Err(SubmitError::NotMaster);
        }
        submission.check()?;
        let (created_ms, now) = (unix_ms(), now());
        let id = submission
            .id
            .unwrap_or_else(|| TaskId::new(created_ms, &mut self.rng));
        let defaults = &self.seed.settings;
        let spec = TaskSpec {
            id,
            job: submission.job.as_str().into(),
            input: submission.input,
            meta: submission.meta,
            durable: submission.durable,
            timeout_ms: millis(submission.timeout.unwrap_or(defaults.task_timeout)),
            max_attempts: submission.max_attempts.unwrap_or(defaults.max_attempts),
            priority: submission.priority,
            require: submission.require,
            created_ms,
            not_before_ms: submission.not_before_ms,
        };
        let Some(reign) = &mut self.reign else {
            return Err(SubmitError::NotMaster);
        };
        let known = reign.ledger.get(id).map(|task| task.state.as_str());
        if let Some(state) = known {
            return Ok(Taken { id, state });
        }
        if spec.durable && reign.journal.is_stalled(now) {
            let why = "the registry does not answer, or refuses to record";
            return Err(SubmitError::NotRecorded(why.to_owned()));
        }
        let wait = Duration::from_millis(spec.not_before_ms.saturating_sub(created_ms));
        let job = spec.job.clone();
        let accepted = reign.ledger.accept(spec, wait, created_ms, now);
        let busy = |queued: usize| SubmitError::Busy {
            queued,
            retry_after_s: 1,
        };
        match accepted {
            Ok(Accepted::New) => {
                self.shadow_due = true;
                let (level, epoch) = (self.level(), self.epoch());
                log::log!(target: "master", level, event = "task.created", task = id.to_string(), job = job.as_str(), epoch = epoch; "task accepted");
            }
            Ok(Accepted::Known) => {}
            Ok(Accepted::Proposed) => drop(proposed.insert(id)),
            Ok(Accepted::Forgotten(fate)) => {
                return Ok(Taken {
                    id,
                    state: fate.as_str(),
                });
            }
            Err(Full::Count(queued)) => return Err(busy(queued)),
            Err(Full::Bytes(_)) => return Err(busy(reign.ledger.queued())),
            Err(Full::Expired(floor_ms)) => {
                return Err(SubmitError::Expired {
                    floor: crate::time::rfc3339(floor_ms),
                });
            }
        }
        Ok(Taken {
            id,
            state: "queued",
        })
    }

    /// The segments that the changes of these tasks go with.
    fn segments_of(&mut self, tasks: &BTreeSet<TaskId>) -> Waits {
        let Some(reign) = &self.reign else {
            return Vec::new();
        };
        let mut segments: BTreeMap<u64, Vec<TaskId>> = BTreeMap::new();
        for (n, task) in reign.journal.segments_of(tasks) {
            segments.entry(n).or_default().push(task);
        }
        segments
            .into_iter()
            .map(|(n, tasks)| (self.wait_for(n), tasks))
            .collect()
    }

    /// A change that somebody asked for: answered with the task as it stands then, once that is recorded.
    fn changed(
        &mut self,
        id: TaskId,
        done: Result<(), ChangeError>,
        ctx: &mut Context<Self>,
    ) -> ResponseActFuture<Self, Result<TaskView, ChangeError>> {
        if let Err(error) = done {
            return Box::pin(actix::fut::ready(Err(error)));
        }
        if let Some(reign) = &mut self.reign {
            reign.write(now());
        }
        let waits = self.segments_of(&BTreeSet::from([id]));
        self.shadow_due = true;
        self.turn(ctx);
        let within = self.seed.settings.commit_timeout;
        let settled = async move {
            for (told, _) in waits {
                match tokio::time::timeout(within, told).await {
                    Ok(Ok(Fate::Recorded)) => {}
                    Ok(Ok(Fate::NotRecorded(why))) => return Err(ChangeError::NotRecorded(why)),
                    Ok(Err(_)) | Err(_) => return Err(ChangeError::Unknown),
                }
            }
            Ok(())
        };
        Box::pin(settled.into_actor(self).map(move |settled, act, _| {
            settled?;
            act.view_of(id).ok_or(ChangeError::Missing(id))
        }))
    }

    fn view_of(&self, id: TaskId) -> Option<TaskView> {
        let task = self.reign.as_ref()?.ledger.get(id)?;
        Some(view(
            task,
            self.cluster.as_deref(),
            self.seed.settings.idempotency,
        ))
    }

    fn state_of(&self, id: TaskId) -> Option<&'static str> {
        Some(self.reign.as_ref()?.ledger.get(id)?.state.as_str())
    }

    /// Whether anything may be said of tasks at all: not while it is being found out which there are.
    fn knows(&self) -> bool {
        self.reign.is_some() && self.loading.is_none()
    }
}

impl Handler<CancelTask> for MasterActor {
    type Result = ResponseActFuture<Self, Result<TaskView, ChangeError>>;

    fn handle(&mut self, msg: CancelTask, ctx: &mut Self::Context) -> Self::Result {
        let id = msg.0;
        let state = self.state_of(id);
        let Some(reign) = self.acting() else {
            return Box::pin(actix::fut::ready(Err(ChangeError::NotMaster)));
        };
        let done = match (reign.ledger.cancel(id, unix_ms(), now()), state) {
            // Asked for twice, it is done once.
            (Err(_), Some("cancelled")) => Ok(None),
            (Err(why), Some(state)) => Err(ChangeError::Conflict { state, why }),
            (Err(_), None) => Err(ChangeError::Missing(id)),
            (Ok(running), _) => Ok(running),
        };
        if let Ok(Some((attempt, worker))) = &done {
            self.cancel(worker.id, vec![*attempt], "somebody cancelled it");
        }
        self.changed(id, done.map(drop), ctx)
    }
}

impl Handler<RetryTask> for MasterActor {
    type Result = ResponseActFuture<Self, Result<TaskView, ChangeError>>;

    fn handle(&mut self, msg: RetryTask, ctx: &mut Self::Context) -> Self::Result {
        let id = msg.0;
        let state = self.state_of(id);
        let Some(reign) = self.acting() else {
            return Box::pin(actix::fut::ready(Err(ChangeError::NotMaster)));
        };
        let done = reign.ledger.retry(id, now()).map_err(|why| match state {
            Some(state) => ChangeError::Conflict { state, why },
            None => ChangeError::Missing(id),
        });
        self.changed(id, done, ctx)
    }
}

impl Handler<ListTasks> for MasterActor {
    type Result = ResponseActFuture<Self, Option<Vec<TaskView>>>;

    fn handle(&mut self, msg: ListTasks, ctx: &mut Self::Context) -> Self::Result {
        let sure = self.confirm(ctx);
        Box::pin(sure.into_actor(self).map(move |sure, act, _| {
            let stale = !leads(sure)?;
            let reign = act.reign.as_ref().filter(|_| act.knows())?;
            let fits = |task: &super::ledger::Task| {
                msg.state.as_ref().is_none_or(|s| task.state.as_str() == s)
                    && msg.job.as_ref().is_none_or(|j| *task.spec.job == **j)
            };
            let tasks = reign.ledger.newest_first(msg.after, msg.limit, fits);
            let cluster = act.cluster.as_deref();
            let window = act.seed.settings.idempotency;
            let tasks = tasks.into_iter().map(|t| TaskView {
                stale,
                ..view(t, cluster, window)
            });
            Some(tasks.collect())
        }))
    }
}

impl Handler<GetTask> for MasterActor {
    type Result = ResponseActFuture<Self, Option<Option<TaskView>>>;

    fn handle(&mut self, msg: GetTask, ctx: &mut Self::Context) -> Self::Result {
        let sure = self.confirm(ctx);
        Box::pin(sure.into_actor(self).map(move |sure, act, _| {
            let stale = !leads(sure)?;
            if !act.knows() {
                return None;
            }
            let task = act.view_of(msg.0);
            Some(task.map(|task| TaskView { stale, ..task }))
        }))
    }
}

/// Whether a read is of a master that surely led; `None` when it surely does not.
fn leads(sure: Result<Option<bool>, oneshot::error::RecvError>) -> Option<bool> {
    match sure {
        Ok(Some(true)) => Some(true),
        Ok(None) => Some(false),
        Ok(Some(false)) | Err(_) => None,
    }
}

impl Handler<AskMaster> for MasterActor {
    type Result = MasterSnapshot;

    fn handle(&mut self, _: AskMaster, _: &mut Self::Context) -> MasterSnapshot {
        let Some(reign) = &self.reign else {
            return MasterSnapshot::default();
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
            journal: JournalSnapshot {
                segments: size.segments as u64,
                bytes: size.bytes as u64,
                in_flight: size.flying as u64,
                commits: self.commits,
                last_commit_us: u64::try_from(self.last_commit.as_micros()).unwrap_or(u64::MAX),
                stalled: reign.journal.is_stalled(now()),
            },
        }
    }
}
