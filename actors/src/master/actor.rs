//! MasterActor: between `Lead` and `StandDown` it hears workers, asks the ledger and the balancer, and does what they say.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, MessageResult, Recipient,
    ResponseActFuture, SpawnHandle, WrapFuture,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::balancer::Balancer;
use super::generator::{self, Generator};
use super::ledger::{Full, Ledger, LedgerSettings, Verdict, WorkerId};
use super::pulse::MasterPulse;
use super::roster::{Roster, why_nobody, worker_of};
use super::view::view;
use super::{
    AskMaster, GeneratorSettings, GetTask, HandOverTo, Lead, ListTasks, MasterReborn,
    MasterSettings, MasterSnapshot, StandDown, Submission, Submit, SubmitError, TaskView,
};
use crate::cluster::{Cluster, ClusterChanged, Fence, Identity, MemberRemoved};
use crate::discovery::EpochSeen;
use crate::id::{AttemptId, Epoch, NodeId, TaskId};
use crate::time::unix_ms;
use crate::transport::{Inbound, Send};
use crate::wire::{
    Acknowledge, Assign, Assignment, Envelope, Fenced, HandBack, HandOver, LedgerEntry, Message,
    Outcome, Report, Results, Shadow, Started, TaskResult, TaskSpec,
};
use crate::worker::actor::token;

/// MasterActor has a turn at least this often: the pulse that discovery watches.
const TICK: Duration = Duration::from_millis(250);
/// Tasks looked at for an executor in one turn.
const MAX_MATCHED: usize = 1024;
/// Entries of a shadow, and of one part of a ledger that is handed over.
const MAX_SHADOW: usize = 256;
const SHADOW_EVERY: Duration = Duration::from_millis(20);
const MAX_PART: usize = 3;
/// Messages kept for a reign that is about to begin: the reports of many workers.
const MAX_EARLY: usize = 4096;
/// Log lines per second about tasks above debug; beyond, they are debug.
const MAX_LINES: u32 = 200;

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
}

/// A reign: what is known under one epoch.
struct Reign {
    epoch: Epoch,
    ledger: Ledger,
    roster: Roster,
    generator: Generator,
    /// Until then queued tasks of before wait for the reports of all workers.
    recovering: Option<Instant>,
    /// Handed over and shadowed tasks that nobody has reported so far.
    inherited: BTreeMap<TaskId, LedgerEntry>,
    /// Running attempts named so far in the parts of a worker's report.
    reports: BTreeMap<WorkerId, Vec<AttemptId>>,
    /// Mastership is being handed over: nothing is done any more.
    frozen: bool,
    refused: BTreeMap<String, u64>,
    adopted: u64,
    shadowed: Option<Instant>,
    shadow_due: bool,
}

/// What another master left with us, by the epoch it was under.
#[derive(Default)]
struct Legacy {
    epoch: Epoch,
    handed: bool,
    entries: Vec<LedgerEntry>,
}

/// See the module page.
pub struct MasterActor {
    seed: MasterSeed,
    reign: Option<Reign>,
    /// Messages for a reign that others have heard of before us; bounded.
    early: VecDeque<(Epoch, WorkerId, Message)>,
    legacy: Legacy,
    cluster: Option<Arc<Cluster>>,
    balancer: Balancer,
    rng: StdRng,
    wake: Option<(Instant, SpawnHandle)>,
    /// Why tasks wait, as last said: it is said once until it changes.
    said_waiting: Option<String>,
    lines: (Instant, u32),
}

impl MasterActor {
    /// A life that does not lead.
    pub fn new(seed: MasterSeed) -> Self {
        Self {
            balancer: Balancer::new(seed.settings.balancer),
            seed,
            reign: None,
            early: VecDeque::new(),
            legacy: Legacy::default(),
            cluster: None,
            rng: rand::make_rng(),
            wake: None,
            said_waiting: None,
            lines: (Instant::now(), 0),
        }
    }

    /// Makes its choices repeatable.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.rng = StdRng::seed_from_u64(seed);
        self
    }

    fn ledger_settings(&self) -> LedgerSettings {
        let s = &self.seed.settings;
        LedgerSettings {
            max_queued: s.max_queued,
            max_queued_bytes: s.max_queued_bytes,
            keep_finished: s.keep_finished,
            keep_finished_for: s.keep_finished_for,
            retry_wait: s.retry_wait,
        }
    }

    /// Whether a line about a task may stand above debug now.
    fn may_say(&mut self) -> log::Level {
        let now = Instant::now();
        if now.saturating_duration_since(self.lines.0) > Duration::from_secs(1) {
            self.lines = (now, 0);
        }
        self.lines.1 += 1;
        if self.lines.1 <= MAX_LINES {
            log::Level::Info
        } else {
            log::Level::Debug
        }
    }

    fn name_of(&self, id: NodeId) -> String {
        let member = self.cluster.as_ref().and_then(|c| c.member(id));
        member.map_or_else(|| id.to_string(), |m| m.registration.name.clone())
    }

    // --- the turn ------------------------------------------------------------------------------------------------

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.seed.pulse.beat();
        self.turn(ctx);
    }

    /// Everything that is due: new tasks, deadlines, the end of recovery, assignments, the shadow.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        if self.reign.as_ref().is_none_or(|r| r.frozen) {
            return;
        }
        self.generate(now);
        self.give_up_overdue(now);
        self.end_recovery(now);
        self.hand_out(ctx, now);
        self.shadow(now);
        self.set_alarm(ctx, now);
    }

    /// Between ticks: the next task or deadline is met to the millisecond.
    fn set_alarm(&mut self, ctx: &mut Context<Self>, now: Instant) {
        let Some(reign) = &self.reign else { return };
        let shadow = reign.shadowed.filter(|_| reign.shadow_due);
        let shadow = shadow.map(|at| at + SHADOW_EVERY);
        let due = [reign.generator.next(), reign.ledger.next_due(), shadow];
        let due = due.into_iter().flatten().min();
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
            job: "multiply".to_owned(),
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
        match reign.ledger.accept(spec, Duration::ZERO, now) {
            Ok(()) => {
                reign.shadow_due = true;
                log::info!(target: "master", event = "task.created", task = task, job = "multiply", number = number, epoch = epoch; "task created");
            }
            Err(full) => {
                log::warn!(target: "master", event = "task.refused", reason:debug = full, epoch = epoch; "the generator's task is refused: the queue is full");
            }
        }
    }

    fn give_up_overdue(&mut self, now: Instant) {
        let Some(reign) = &mut self.reign else { return };
        for (attempt, verdict) in reign.ledger.overdue(now) {
            self.say_verdict(attempt, &verdict);
        }
    }

    fn say_verdict(&mut self, attempt: AttemptId, verdict: &Verdict) {
        let epoch = self
            .reign
            .as_ref()
            .map_or_else(String::new, |r| r.epoch.to_string());
        let (task, attempt) = (attempt.task.to_string(), token(attempt));
        match verdict {
            Verdict::Requeued(why) => {
                let level = self.may_say();
                log::log!(target: "master", level, event = "task.requeued", task = task, attempt = attempt, reason = *why, epoch = epoch; "task queued again");
            }
            Verdict::Dead => {
                log::warn!(target: "master", event = "task.dead", task = task, attempt = attempt, epoch = epoch; "its attempts are used up");
            }
            Verdict::Recorded | Verdict::Repeated | Verdict::Refused(_) => {}
        }
    }

    // --- recovery ------------------------------------------------------------------------------------------------

    fn end_recovery(&mut self, now: Instant) {
        let Some(cluster) = self.cluster.clone() else {
            return;
        };
        let Some(reign) = &mut self.reign else { return };
        let Some(until) = reign.recovering else {
            return;
        };
        let awaited = reign.roster.awaited(&cluster);
        if !awaited.is_empty() && now < until {
            return;
        }
        reign.recovering = None;
        let inherited = std::mem::take(&mut reign.inherited);
        log::info!(target: "master", event = "master.recovered", epoch = reign.epoch.to_string(), adopted = reign.adopted, awaited = awaited.join(","), inherited = inherited.len(); "the workers have reported");
        for (id, entry) in inherited {
            let reason = if entry.leased {
                "its attempt is with no worker that reported"
            } else {
                "it was only queued at the master before"
            };
            if reign.ledger.inherit(entry, now) {
                log::warn!(target: "master", event = "task.requeued", task = id.to_string(), reason = reason, epoch = reign.epoch.to_string(); "a task of the reign before is queued again");
            }
        }
    }

    fn reported(&mut self, worker: WorkerId, report: Report, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let Some(reign) = &mut self.reign else { return };
        for (assignment, started_ms) in &report.running {
            let id = assignment.attempt;
            let knew = reign.ledger.get(id.task).is_some();
            reign.inherited.remove(&id.task);
            match reign.ledger.adopt(worker, assignment, *started_ms, now) {
                Ok(()) if !knew => {
                    reign.adopted += 1;
                    log::info!(target: "master", event = "task.adopted", task = id.task.to_string(), attempt = token(id), epoch = reign.epoch.to_string(); "a running attempt is adopted");
                }
                Ok(()) => {}
                Err(why) => {
                    log::info!(target: "master", event = "task.refused", task = id.task.to_string(), attempt = token(id), reason = why, epoch = reign.epoch.to_string(); "a running attempt is not adopted");
                }
            }
        }
        for result in &report.results {
            reign.inherited.remove(&result.attempt.task);
            if let Some(spec) = &result.spec {
                let assignment = Assignment {
                    attempt: result.attempt,
                    spec: spec.clone(),
                };
                if reign.ledger.get(result.attempt.task).is_none() {
                    reign.adopted += 1;
                }
                // A result that does not fit is refused below, in the same words.
                reign
                    .ledger
                    .adopt(worker, &assignment, result.started_ms, now)
                    .ok();
            }
        }
        for task in &report.recent {
            reign.inherited.remove(task);
        }
        let running: Vec<AttemptId> = report.running.iter().map(|(a, _)| a.attempt).collect();
        let (epoch, credit, more) = (report.epoch, report.credit, report.more);
        self.record(worker, report.results, epoch, ctx);
        self.last_part(worker, running, credit, more, now);
        if !more {
            // Even with nothing to acknowledge: the worker reports again until it hears of it.
            let attempts = Vec::new();
            self.seed.transport.do_send(Send {
                to: worker.id,
                message: Acknowledge { epoch, attempts }.into(),
            });
        }
        self.turn(ctx);
    }

    /// With the last part of a report: what we hold leased to it and it did not name is lost.
    fn last_part(
        &mut self,
        worker: WorkerId,
        running: Vec<AttemptId>,
        credit: u32,
        more: bool,
        now: Instant,
    ) {
        let Some(reign) = &mut self.reign else { return };
        let named = reign.reports.entry(worker).or_default();
        named.extend(running);
        if more {
            return;
        }
        let named = reign.reports.remove(&worker).unwrap_or_default();
        let leased = reign.ledger.leased_to(worker);
        let unknown: Vec<AttemptId> = leased.into_iter().filter(|a| !named.contains(a)).collect();
        let lost: Vec<_> = unknown
            .into_iter()
            .filter_map(|a| reign.ledger.unknown_to_worker(a, now))
            .collect();
        let outstanding = u32::try_from(reign.ledger.leased_to(worker).len()).unwrap_or(u32::MAX);
        reign.roster.reported(worker, credit, outstanding);
        for (attempt, verdict) in lost {
            self.say_verdict(attempt, &verdict);
        }
    }

    // --- handing out ---------------------------------------------------------------------------------------------

    fn hand_out(&mut self, ctx: &mut Context<Self>, now: Instant) {
        let Some(cluster) = self.cluster.clone() else {
            return;
        };
        let works = self.seed.settings.master_works;
        let mut batches: BTreeMap<NodeId, Vec<Assignment>> = BTreeMap::new();
        let mut waiting = None;
        let Some(reign) = &mut self.reign else { return };
        for id in reign.ledger.ready(now, MAX_MATCHED) {
            let Some(task) = reign.ledger.get(id) else {
                continue;
            };
            let able = reign.roster.able(&task.spec, &cluster, works);
            let Some(to) = self.balancer.pick(&able, &mut self.rng) else {
                waiting.get_or_insert_with(|| why_nobody(&task.spec, &cluster, works));
                continue;
            };
            let Some(worker) = worker_of(&cluster, to) else {
                continue;
            };
            if let Some(assignment) = reign.ledger.lease(id, worker, reign.epoch, now) {
                reign.roster.spend(worker);
                batches.entry(to).or_default().push(assignment);
            }
        }
        let busy = waiting.as_deref() == Some("every worker that could take it is busy");
        self.say_waiting(waiting.filter(|_| !busy));
        for (to, assignments) in batches {
            self.assign(to, assignments, ctx);
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

    fn assign(&mut self, to: NodeId, assignments: Vec<Assignment>, ctx: &mut Context<Self>) {
        let Some(epoch) = self.reign.as_ref().map(|r| r.epoch) else {
            return;
        };
        let executor = self.name_of(to);
        for assignment in &assignments {
            let level = self.may_say();
            log::log!(target: "master", level, event = "task.assigned", task = assignment.attempt.task.to_string(), attempt = token(assignment.attempt), job = assignment.spec.job.as_str(), executor = executor.as_str(), epoch = epoch.to_string(); "task assigned");
        }
        let attempts: Vec<AttemptId> = assignments.iter().map(|a| a.attempt).collect();
        let round = self.round_of(to);
        let message = Assign { epoch, assignments }.into();
        let send = self.seed.transport.send(Send { to, message });
        ctx.spawn(send.into_actor(self).map(move |sent, act, ctx| {
            if !matches!(sent, Ok(Ok(()))) {
                act.not_sent(to, round, &attempts, epoch, ctx);
            }
        }));
        self.changed();
    }

    /// Which report of a worker its credit comes from.
    fn round_of(&self, id: NodeId) -> Option<u64> {
        let worker = worker_of(self.cluster.as_ref()?, id)?;
        self.reign.as_ref()?.roster.round(worker)
    }

    /// The session is gone or its queue is full: taken back without blame; the worker's credit is void until it reports,
    /// unless it has reported anew meanwhile.
    fn not_sent(
        &mut self,
        to: NodeId,
        round: Option<u64>,
        attempts: &[AttemptId],
        epoch: Epoch,
        ctx: &mut Context<Self>,
    ) {
        let same_round = self.round_of(to) == round;
        let worker = self.cluster.as_ref().and_then(|c| worker_of(c, to));
        let worker = worker.filter(|_| same_round);
        let Some(reign) = self.reign.as_mut().filter(|r| r.epoch == epoch) else {
            return;
        };
        for attempt in attempts {
            reign.ledger.take_back(*attempt, Instant::now());
        }
        if let Some(worker) = worker {
            reign.roster.void(worker);
        }
        self.turn(ctx);
    }

    fn changed(&mut self) {
        if let Some(reign) = &mut self.reign {
            reign.shadow_due = true;
        }
    }

    /// Now and then the likely heir is told what is open, so that a crash can name what was only queued here.
    fn shadow(&mut self, now: Instant) {
        let Some(cluster) = &self.cluster else { return };
        let Some(reign) = &mut self.reign else { return };
        let lately = reign
            .shadowed
            .is_some_and(|at| now.saturating_duration_since(at) < SHADOW_EVERY);
        if !reign.shadow_due || lately {
            return;
        }
        let mut heirs: Vec<_> = cluster
            .members
            .iter()
            .filter(|m| m.registration.eligible && m.session && m.registration.id != cluster.me)
            .collect();
        heirs.sort_by_key(|m| (std::cmp::Reverse(m.registration.weight), m.incarnation));
        let Some(heir) = heirs.first() else { return };
        let (entries, beyond) = reign.ledger.entries(MAX_SHADOW);
        // Large inputs would not fit a frame: they are counted, not carried.
        let small = entries.into_iter().filter(|e| e.spec.input.len() <= 1024);
        let shadow = Shadow {
            epoch: reign.epoch,
            entries: small.collect(),
            beyond: beyond as u64,
        };
        reign.shadow_due = false;
        reign.shadowed = Some(now);
        self.seed.transport.do_send(Send {
            to: heir.registration.id,
            message: shadow.into(),
        });
    }

    // --- hearing -------------------------------------------------------------------------------------------------

    fn hear(
        &mut self,
        from: NodeId,
        worker: WorkerId,
        envelope: Envelope,
        ctx: &mut Context<Self>,
    ) {
        match envelope.message {
            Message::Shadow(shadow) => return self.keep_shadow(shadow),
            Message::HandOver(part) => return self.keep_part(part, ctx),
            _ => {}
        }
        let Some((epoch, what)) = under(&envelope.message) else {
            return;
        };
        if self.is_early(epoch) {
            if self.early.len() < MAX_EARLY {
                self.early.push_back((epoch, worker, envelope.message));
            }
            return;
        }
        if self.fits(from, epoch, what) {
            self.act_on(worker, envelope.message, ctx);
        }
    }

    /// Others may hear of our epoch before we are told to lead under it.
    fn is_early(&self, epoch: Epoch) -> bool {
        let ours = self.reign.as_ref().map_or(Epoch::NONE, |r| r.epoch);
        epoch > ours && epoch >= self.seed.fence.current()
    }

    fn act_on(&mut self, worker: WorkerId, message: Message, ctx: &mut Context<Self>) {
        match message {
            Message::Report(report) => self.reported(worker, report, ctx),
            Message::Results(results) => self.results(worker, results, ctx),
            Message::HandBack(back) => self.handed_back(worker, &back, ctx),
            Message::Started(started) => self.begun(&started),
            _ => {}
        }
    }

    /// Whether a message speaks to this reign; a lower epoch is answered with ours, a higher one deposes us.
    fn fits(&self, from: NodeId, epoch: Epoch, what: &str) -> bool {
        let fence = self.seed.fence.current();
        if epoch > fence {
            self.seed.epochs.do_send(EpochSeen(epoch));
        }
        let ours = self.reign.as_ref().filter(|r| !r.frozen).map(|r| r.epoch);
        if ours == Some(epoch) && epoch == fence {
            return true;
        }
        if ours.is_some() && epoch < fence {
            let fenced = Fenced {
                epoch: fence,
                refused: epoch,
                what: what.to_owned(),
            };
            self.seed.transport.do_send(Send {
                to: from,
                message: fenced.into(),
            });
        }
        false
    }

    fn results(&mut self, worker: WorkerId, results: Results, ctx: &mut Context<Self>) {
        let ended = u32::try_from(results.results.len()).unwrap_or(u32::MAX);
        if let Some(reign) = &mut self.reign {
            reign.roster.grant(worker, results.credit, ended);
        }
        self.record(worker, results.results, results.epoch, ctx);
        self.turn(ctx);
    }

    /// Records or refuses each result, and tells the worker in one message.
    fn record(
        &mut self,
        worker: WorkerId,
        results: Vec<TaskResult>,
        epoch: Epoch,
        _: &mut Context<Self>,
    ) {
        if results.is_empty() {
            return;
        }
        let now = Instant::now();
        let executor = self.name_of(worker.id);
        let mut attempts = Vec::with_capacity(results.len());
        for result in results {
            let Some(reign) = &mut self.reign else { return };
            let verdict = reign.ledger.result(worker.id, &result, now);
            let refused = match &verdict {
                Verdict::Refused(why) => {
                    *reign.refused.entry((*why).to_owned()).or_default() += 1;
                    Some((*why).to_owned())
                }
                _ => None,
            };
            if verdict != Verdict::Repeated {
                self.say_result(&executor, &result, &verdict, epoch);
            }
            attempts.push((result.attempt, refused));
        }
        self.changed();
        self.seed.transport.do_send(Send {
            to: worker.id,
            message: Acknowledge { epoch, attempts }.into(),
        });
    }

    fn say_result(&mut self, executor: &str, result: &TaskResult, verdict: &Verdict, epoch: Epoch) {
        let (task, attempt) = (result.attempt.task.to_string(), token(result.attempt));
        let duration = result.finished_ms.saturating_sub(result.started_ms);
        let epoch = epoch.to_string();
        match (verdict, &result.outcome) {
            (Verdict::Recorded, Outcome::Done(output)) => {
                let level = self.may_say();
                let output = String::from_utf8_lossy(output);
                log::log!(target: "master", level, event = "task.finished", task = task, attempt = attempt, executor = executor, output = &*output, started = crate::time::rfc3339(result.started_ms), finished = crate::time::rfc3339(result.finished_ms), duration_ms = duration, epoch = epoch; "task finished");
            }
            (Verdict::Recorded, outcome) => {
                log::warn!(target: "master", event = "task.failed", task = task, attempt = attempt, executor = executor, reason:debug = outcome, duration_ms = duration, epoch = epoch; "task failed");
            }
            (Verdict::Refused(why), _) => {
                log::warn!(target: "master", event = "task.refused", task = task, attempt = attempt, executor = executor, reason = *why, epoch = epoch; "a result is refused");
            }
            (other, _) => self.say_verdict(result.attempt, other),
        }
    }

    fn handed_back(&mut self, worker: WorkerId, back: &HandBack, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let Some(reign) = &mut self.reign else { return };
        let mut returned = Vec::new();
        for attempt in &back.attempts {
            if reign.ledger.take_back(*attempt, now) {
                returned.push(*attempt);
            }
        }
        let ended = u32::try_from(returned.len()).unwrap_or(u32::MAX);
        reign.roster.grant(worker, 0, ended);
        for attempt in returned {
            self.say_verdict(attempt, &Verdict::Requeued("its worker handed it back"));
        }
        self.changed();
        self.turn(ctx);
    }

    fn begun(&mut self, started: &Started) {
        let at = unix_ms();
        let Some(reign) = &mut self.reign else { return };
        for attempt in &started.attempts {
            reign.ledger.started(*attempt, at);
        }
    }

    // --- reigns --------------------------------------------------------------------------------------------------

    fn keep_shadow(&mut self, shadow: Shadow) {
        let newer = shadow.epoch > self.legacy.epoch;
        let same = shadow.epoch == self.legacy.epoch && !self.legacy.handed;
        if newer || same {
            self.legacy = Legacy {
                epoch: shadow.epoch,
                handed: false,
                entries: shadow.entries,
            };
        }
    }

    fn keep_part(&mut self, part: HandOver, ctx: &mut Context<Self>) {
        if part.epoch < self.legacy.epoch {
            return;
        }
        if part.epoch > self.legacy.epoch || !self.legacy.handed {
            self.legacy = Legacy {
                epoch: part.epoch,
                handed: true,
                entries: Vec::new(),
            };
        }
        self.legacy.entries.extend(part.entries);
        // A part may come after the reign has begun: it is inherited all the same.
        if let Some(reign) = self.reign.as_mut().filter(|r| r.epoch > part.epoch) {
            inherit(reign, std::mem::take(&mut self.legacy.entries));
            self.turn(ctx);
        }
    }

    fn lead(&mut self, epoch: Epoch, ctx: &mut Context<Self>) {
        match &mut self.reign {
            // The heir did not take over: on with the ledger we have.
            Some(reign) if reign.epoch == epoch => reign.frozen = false,
            _ => self.begin(epoch),
        }
        for (under, worker, message) in std::mem::take(&mut self.early) {
            if under == epoch {
                self.act_on(worker, message, ctx);
            }
        }
        self.turn(ctx);
    }

    fn begin(&mut self, epoch: Epoch) {
        let legacy = std::mem::take(&mut self.legacy);
        let mut reign = Reign {
            epoch,
            ledger: Ledger::new(self.ledger_settings()),
            roster: Roster::default(),
            generator: Generator::new(self.seed.generator.clone()),
            recovering: Some(Instant::now() + self.seed.settings.recovery_wait),
            inherited: BTreeMap::new(),
            reports: BTreeMap::new(),
            frozen: false,
            refused: BTreeMap::new(),
            adopted: 0,
            shadowed: None,
            shadow_due: false,
        };
        // Our own reign before this one: what was open is known first-hand.
        if let Some(old) = self.reign.take() {
            inherit(&mut reign, old.ledger.entries(usize::MAX).0);
        } else if legacy.epoch < epoch {
            inherit(&mut reign, legacy.entries);
        }
        log::info!(target: "master", event = "master.leading", epoch = epoch.to_string(), inherited = reign.inherited.len(); "leading: waiting for the workers to report");
        self.reign = Some(reign);
        self.said_waiting = None;
    }
}

/// Kept aside until the workers have reported: what they run or have done must not be queued again.
fn inherit(reign: &mut Reign, entries: Vec<LedgerEntry>) {
    let now = Instant::now();
    for entry in entries {
        if reign.recovering.is_some() {
            if reign.ledger.get(entry.spec.id).is_none() {
                reign.inherited.insert(entry.spec.id, entry);
            }
        } else {
            reign.ledger.inherit(entry, now);
        }
    }
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
        if let Some(reign) = self.reign.take() {
            let open = reign.ledger.entries(0).1;
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
        let mut entries = reign.ledger.entries(usize::MAX).0;
        entries.extend(std::mem::take(&mut reign.inherited).into_values());
        let open = entries.len();
        let (transport, epoch, heir) = (self.seed.transport.clone(), msg.epoch, msg.heir);
        let stream = async move {
            // Three inputs of the largest size fit a frame; small ones go many at a time.
            let large = entries.iter().any(|e| e.spec.input.len() > 1024);
            let part = if large { MAX_PART } else { MAX_SHADOW };
            let mut parts = entries.chunks(part).peekable();
            while let Some(entries) = parts.next() {
                let part = HandOver {
                    epoch,
                    entries: entries.to_vec(),
                    more: parts.peek().is_some(),
                };
                // What does not arrive is recovered from the workers' reports, as after a crash.
                transport
                    .send(Send {
                        to: heir,
                        message: part.into(),
                    })
                    .await
                    .ok();
            }
            open
        };
        Box::pin(stream.into_actor(self))
    }
}

impl Handler<ClusterChanged> for MasterActor {
    type Result = ();

    fn handle(&mut self, msg: ClusterChanged, ctx: &mut Self::Context) {
        self.cluster = Some(msg.0);
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
        reign.roster.void(worker);
        reign.reports.remove(&worker);
        let lost = reign.ledger.lose_worker(worker, Instant::now());
        for (attempt, verdict) in lost {
            self.say_verdict(attempt, &verdict);
        }
        self.changed();
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
            self.hear(msg.from, worker, envelope, ctx);
        }
    }
}

impl Handler<Submit> for MasterActor {
    type Result = MessageResult<Submit>;

    fn handle(&mut self, msg: Submit, ctx: &mut Self::Context) -> Self::Result {
        let answers = msg.0.into_iter().map(|s| self.submit(s)).collect();
        self.turn(ctx);
        MessageResult(answers)
    }
}

impl MasterActor {
    fn submit(&mut self, submission: Submission) -> Result<TaskView, SubmitError> {
        let created_ms = unix_ms();
        let id = submission
            .id
            .unwrap_or_else(|| TaskId::new(created_ms, &mut self.rng));
        submission.check()?;
        let defaults = &self.seed.settings;
        let spec = TaskSpec {
            id,
            job: submission.job,
            input: submission.input,
            meta: submission.meta,
            durable: false,
            timeout_ms: millis(submission.timeout.unwrap_or(defaults.task_timeout)),
            max_attempts: submission.max_attempts.unwrap_or(defaults.max_attempts),
            priority: submission.priority,
            require: submission.require,
            created_ms,
            not_before_ms: 0,
        };
        let Some(reign) = self.reign.as_mut().filter(|r| !r.frozen) else {
            return Err(SubmitError::NotMaster);
        };
        reign
            .ledger
            .accept(spec, Duration::ZERO, Instant::now())
            .map_err(|full| {
                let queued = match full {
                    Full::Count(queued) => queued,
                    Full::Bytes(_) => reign.ledger.queued(),
                };
                SubmitError::Busy {
                    queued,
                    retry_after_s: 1,
                }
            })?;
        reign.shadow_due = true;
        let task = reign.ledger.get(id);
        task.map(|t| view(t, self.cluster.as_deref()))
            .ok_or(SubmitError::NotMaster)
    }
}

impl Handler<ListTasks> for MasterActor {
    type Result = Option<Vec<TaskView>>;

    fn handle(&mut self, msg: ListTasks, _: &mut Self::Context) -> Self::Result {
        let reign = self.reign.as_ref()?;
        let tasks = reign.ledger.newest_first(msg.after);
        let fits = |task: &&super::ledger::Task| {
            msg.state.as_ref().is_none_or(|s| task.state.as_str() == s)
                && msg.job.as_ref().is_none_or(|j| task.spec.job == *j)
        };
        let cluster = self.cluster.as_deref();
        Some(
            tasks
                .filter(fits)
                .take(msg.limit)
                .map(|t| view(t, cluster))
                .collect(),
        )
    }
}

impl Handler<GetTask> for MasterActor {
    type Result = Option<Option<TaskView>>;

    fn handle(&mut self, msg: GetTask, _: &mut Self::Context) -> Self::Result {
        let reign = self.reign.as_ref()?;
        Some(
            reign
                .ledger
                .get(msg.0)
                .map(|t| view(t, self.cluster.as_deref())),
        )
    }
}

impl Handler<AskMaster> for MasterActor {
    type Result = MasterSnapshot;

    fn handle(&mut self, _: AskMaster, _: &mut Self::Context) -> MasterSnapshot {
        let Some(reign) = &self.reign else {
            return MasterSnapshot::default();
        };
        let outstanding = reign.ledger.outstanding();
        MasterSnapshot {
            leading: Some(reign.epoch.to_string()),
            recovering: reign.recovering.is_some(),
            tasks: reign.ledger.counts(),
            outstanding: outstanding
                .into_iter()
                .map(|(w, n)| (self.name_of(w.id), n as u64))
                .collect(),
            refused: reign.refused.clone(),
            adopted: reign.adopted,
        }
    }
}
