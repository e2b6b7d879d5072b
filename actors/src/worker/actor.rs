//! WorkerActor: serves the master of the day, runs attempts on the task plane, holds results until they are acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, ResponseActFuture, WrapFuture,
};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::intake::{Desk, Intake};
use super::{AskWorker, DrainWorker, WorkerDrained, WorkerSettings, WorkerSnapshot};
use crate::cluster::{Cluster, ClusterChanged, Fence, Identity};
use crate::discovery::{EpochSeen, Reborn};
use crate::id::{AttemptId, Epoch, NodeId};
use crate::job::{JobContext, JobError, Jobs, Signals, clip};
use crate::sample::Sampler;
use crate::supervisor::{handling, handling_part};
use crate::time::unix_ms;
use crate::trace;
use crate::transport::{Inbound, Send, SendError, SessionEvent};
use crate::wire::{
    Acknowledge, Assign, Assignment, Cancel, Fenced, HandBack, Message, Outcome, Progress, Results,
    Started, TaskResult, batches,
};

/// Jobs that end at once are run for so long before everybody else in this thread has a turn.
const PUMP: Duration = Duration::from_millis(2);
/// A cancelled job that does not end by itself is dropped after this.
const CANCEL_GRACE: Duration = Duration::from_millis(500);
/// Results that nobody has acknowledged are told again this often, a few at a time.
const TELL_AGAIN: Duration = Duration::from_secs(2);
const TOLD_AGAIN: usize = 3;
/// Whoever leaves waits this long for a master to acknowledge what it holds.
const LEAVE_WITHOUT: Duration = Duration::from_secs(3);
/// A job's words of progress are passed on this often at the most.
const NEWS_EVERY: Duration = Duration::from_millis(100);
/// A report that nobody confirms is sent again after this.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(500);
/// After so many looks (of `TELL_AGAIN`) without a word from the master the worker reports again: what either side believes
/// of the other is set right, whatever was lost on the way.
const SILENCE: u32 = 3;
/// A report that could not be sent is tried again after this.
const REPORT_AGAIN: Duration = Duration::from_millis(100);

/// What a WorkerActor is made of.
#[derive(Clone)]
pub struct WorkerSeed {
    /// Knobs; `capacity` is already a number above 0.
    pub settings: WorkerSettings,
    /// Who we are.
    pub identity: Identity,
    /// The highest epoch seen.
    pub fence: Fence,
    /// To other nodes, and to ourselves.
    pub transport: Recipient<Send>,
    /// Told of higher epochs.
    pub epochs: Recipient<EpochSeen>,
    /// Asked for the picture at the start of each life.
    pub reborn: Recipient<Reborn>,
    /// The kinds of work there are.
    pub jobs: Jobs,
}

/// See the module page.
pub struct WorkerActor {
    seed: WorkerSeed,
    desk: Desk,
    cluster: Option<Arc<Cluster>>,
    cancels: BTreeMap<AttemptId, Arc<Signals>>,
    /// An attempt whose time is over or that was cancelled, and how its end is to be told.
    ended: Arc<Notify>,
    reporting: bool,
    /// The master has answered under the epoch we serve.
    confirmed: bool,
    /// Looks since the master's last word.
    silent: u32,
    /// Ended and started since the last flush: they go together.
    results: Vec<TaskResult>,
    begun: Vec<AttemptId>,
    flushing: bool,
    pumping: bool,
    sampler: Sampler,
    started: u64,
    finished: u64,
    finished_before: u64,
}

impl WorkerActor {
    /// A life that runs nothing yet.
    pub fn new(seed: WorkerSeed) -> Self {
        Self {
            desk: Desk::new(seed.settings.capacity.max(1), seed.settings.recent),
            seed,
            cluster: None,
            cancels: BTreeMap::new(),
            ended: Arc::default(),
            reporting: false,
            confirmed: false,
            silent: 0,
            results: Vec::new(),
            begun: Vec::new(),
            pumping: false,
            flushing: false,
            sampler: Sampler::default(),
            started: 0,
            finished: 0,
            finished_before: 0,
        }
    }

    /// The master to serve, when it can be reached now.
    fn master(&self) -> Option<(NodeId, Epoch)> {
        let cluster = self.cluster.as_ref()?;
        let master = cluster.master.as_ref()?;
        let member = cluster.member(master.record.id)?;
        let served = self.seed.settings.enabled && member.session;
        served.then_some((master.record.id, master.epoch))
    }

    /// At what level a line about a task may be said now.
    fn level(&mut self) -> log::Level {
        if self.sampler.admits(Instant::now().into_std()) {
            log::Level::Info
        } else {
            log::Level::Debug
        }
    }

    /// Reports to the master whenever it is another one, or its session is a new one.
    fn serve(&mut self, ctx: &mut Context<Self>) {
        match self.master() {
            None => self.desk.unserve(),
            Some((_, epoch)) if epoch < self.seed.fence.current() => self.desk.unserve(),
            Some((_, epoch)) if self.desk.serving() == Some(epoch) => {}
            Some((master, epoch)) => self.report(master, epoch, ctx),
        }
    }

    fn report(&mut self, master: NodeId, epoch: Epoch, ctx: &mut Context<Self>) {
        self.confirmed = false;
        self.silent = 0;
        // All of it is in the report.
        (self.results, self.begun) = (Vec::new(), Vec::new());
        let reports = self.desk.report(epoch);
        let serial = self.desk.serial();
        let credit = reports.last().map_or(0, |report| report.credit);
        log::debug!(target: "worker", event = "worker.reported", epoch = epoch.to_string(), report = serial, credit = credit, held = self.desk.held(); "reporting to the master");
        ctx.run_later(CONFIRMED_WITHIN, move |act, ctx| {
            let same = act.desk.serving() == Some(epoch) && act.desk.serial() == serial;
            if same && !act.confirmed {
                act.desk.unserve();
                act.serve(ctx);
            }
        });
        for report in reports {
            let send = self.seed.transport.send(Send {
                to: master,
                message: report.into(),
            });
            ctx.spawn(send.into_actor(self).map(move |sent, act, ctx| {
                if !matches!(sent, Ok(Ok(()))) && !act.reporting {
                    // The session is not up yet, or its queue is full: all of it again, a little later.
                    act.reporting = true;
                    act.desk.unserve();
                    ctx.run_later(REPORT_AGAIN, |act, ctx| {
                        act.reporting = false;
                        act.serve(ctx);
                    });
                }
            }));
        }
    }

    /// To the master we serve; a failure means that the next report will tell.
    fn tell(&self, message: impl Into<Message>, ctx: &mut Context<Self>) {
        let Some((to, _)) = self.master() else { return };
        let message = message.into();
        let send = self.seed.transport.send(Send { to, message });
        ctx.spawn(send.into_actor(self).map(|sent, act, ctx| {
            if matches!(sent, Ok(Err(SendError::Full | SendError::NoSession))) {
                act.desk.unserve();
                act.serve(ctx);
            }
        }));
    }

    /// What has started and ended in this turn goes in one message each.
    fn flush_soon(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.flushing, true) {
            return;
        }
        let next = tokio::task::yield_now().into_actor(self);
        ctx.spawn(next.map(|(), act, ctx| act.flush(ctx)));
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        self.flushing = false;
        let attempts = std::mem::take(&mut self.begun);
        let results = std::mem::take(&mut self.results);
        let mut credit = self.desk.credit();
        // Without a master they are in the next report.
        let Some(epoch) = self.desk.serving() else {
            return;
        };
        if credit > 0 {
            log::debug!(target: "worker", event = "worker.granted", epoch = epoch.to_string(), credit = credit; "more credit");
        }
        if !attempts.is_empty() {
            self.tell(Started { epoch, attempts }, ctx);
        }
        let mut parts = batches(results, weight);
        if parts.is_empty() && credit > 0 {
            parts.push(Vec::new());
        }
        for results in parts {
            let message = Results {
                epoch,
                results,
                credit: std::mem::take(&mut credit),
            };
            self.tell(message, ctx);
        }
    }

    /// An acknowledgement may have been lost, or a master that was handing over did not listen.
    fn tell_again(&mut self, ctx: &mut Context<Self>) {
        self.silent += 1;
        if self.silent > SILENCE && self.desk.serving().is_some() {
            self.desk.unserve();
            self.serve(ctx);
        }
        let (Some(epoch), true) = (self.desk.serving(), self.quiet()) else {
            return;
        };
        let results = self.desk.unacknowledged(TOLD_AGAIN);
        if !results.is_empty() {
            let credit = 0;
            let message = Results {
                epoch,
                results,
                credit,
            };
            self.tell(message, ctx);
        }
    }

    /// Nothing was acknowledged since the last look, though something is held.
    fn quiet(&mut self) -> bool {
        let quiet = self.finished == self.finished_before;
        self.finished_before = self.finished;
        quiet
    }

    // --- commands ------------------------------------------------------------------------------------------------

    /// Whether a command under this epoch may be obeyed; a lower one is answered with the higher.
    fn obeys(&mut self, from: NodeId, epoch: Epoch, what: &str) -> bool {
        let fence = self.seed.fence.current();
        if self.seed.fence.raise(epoch) {
            self.seed.epochs.do_send(EpochSeen(epoch));
        }
        if epoch >= fence || crate::planted::is("old-epoch-obeyed") {
            self.silent = 0;
            self.confirmed |= self.desk.serving() == Some(epoch);
            log::debug!(target: "worker", event = "worker.obeyed", what = what, epoch = epoch.to_string(), fence = fence.to_string(); "a command is obeyed");
            return true;
        }
        log::warn!(target: "worker", event = "task.refused", reason = "fenced", what = what, refused = epoch.to_string(), epoch = fence.to_string(); "a command under an old epoch is refused");
        let fenced = Fenced {
            epoch: fence,
            refused: epoch,
            what: what.to_owned(),
        };
        self.seed.transport.do_send(Send {
            to: from,
            message: fenced.into(),
        });
        false
    }

    fn assigned(&mut self, from: NodeId, assign: Assign, ctx: &mut Context<Self>) {
        let epoch = assign.epoch;
        if !self.obeys(from, epoch, "Assign") {
            return;
        }
        // Before our report, or after the session broke: the master learns from the next report that none of it runs.
        let Ok(taken) = self.desk.assign(assign) else {
            return;
        };
        let mut back = Vec::new();
        for intake in taken {
            match intake {
                Intake::Taken(attempt) => {
                    log::debug!(target: "worker", event = "task.taken", task = attempt.task.to_string(), attempt = attempt.attempt.to_string(), epoch = epoch.to_string(); "an attempt is taken");
                }
                Intake::HandBack(attempt) => back.push(attempt),
                Intake::Known(attempt) => {
                    log::debug!(target: "worker", task = attempt.task.to_string(); "assigned again, it is known");
                }
            }
        }
        self.hand_back(back, "no room was left for it", ctx);
        self.pump(ctx);
    }

    fn hand_back(&mut self, attempts: Vec<AttemptId>, why: &str, ctx: &mut Context<Self>) {
        let Some(epoch) = self.desk.serving().filter(|_| !attempts.is_empty()) else {
            return;
        };
        let why = why.to_owned();
        let message = HandBack {
            epoch,
            attempts,
            why,
        };
        self.tell(message, ctx);
        self.flush_soon(ctx);
    }

    /// Starts what can be started, for a while; the rest after everybody else had a turn.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let until = Instant::now() + PUMP;
        loop {
            let jobs = &self.seed.jobs;
            let next = self.desk.start(unix_ms(), |job| jobs.limit(job));
            let Some(assignment) = next else { return };
            self.start(assignment, ctx);
            if Instant::now() >= until {
                if !std::mem::replace(&mut self.pumping, true) {
                    let next = tokio::task::yield_now().into_actor(self);
                    ctx.spawn(next.map(|(), act, ctx| {
                        act.pumping = false;
                        act.pump(ctx);
                    }));
                }
                return;
            }
        }
    }

    fn start(&mut self, assignment: Assignment, ctx: &mut Context<Self>) {
        let attempt = assignment.attempt;
        let trace_id = trace::of(&assignment.spec.meta).map(str::to_owned);
        let run = Run {
            started_ms: unix_ms(),
            since: Instant::now(),
            trace_id,
        };
        self.started += 1;
        let level = self.level();
        log::log!(target: "worker", level, event = "task.started", task = attempt.task.to_string(), attempt = attempt.attempt.to_string(), epoch = self.seed.fence.current().to_string(), job = assignment.spec.job.as_str(), trace_id:serde = trace::of(&assignment.spec.meta); "task started");
        let spec = assignment.spec;
        let Some(job) = self.seed.jobs.get(&spec.job) else {
            let why = format!("this worker does not know the job {:?}", spec.job);
            return self.end(attempt, Outcome::Failed(why), run, ctx);
        };
        let timeout = Duration::from_millis(spec.timeout_ms);
        let signals = Arc::<Signals>::default();
        let context = JobContext::new(attempt, timeout, spec.meta, Arc::clone(&signals));
        // Many jobs end at their first step: those cost no task, no timer and no word that they began.
        let mut first = match at_once(|| job.run(spec.input, context)) {
            Ok(first) => first,
            Err(outcome) => return self.end(attempt, outcome, run, ctx),
        };
        let waker = std::task::Waker::noop();
        let step = at_once(|| {
            first
                .as_mut()
                .poll(&mut std::task::Context::from_waker(waker))
        });
        match step {
            Ok(Poll::Ready(ended)) => {
                return self.end(attempt, outcome(Some(Ok(ended))), run, ctx);
            }
            Err(outcome) => return self.end(attempt, outcome, run, ctx),
            Ok(Poll::Pending) => {}
        }
        self.begun.push(attempt);
        self.flush_soon(ctx);
        self.cancels.insert(attempt, Arc::clone(&signals));
        let me = ctx.address();
        let running = async move {
            // In a task of its own: a panic in a job is that job's failure alone. When this future is dropped, so is it.
            let mut running = JoinSet::new();
            running.spawn_local(first);
            let mut news_at = Instant::now();
            loop {
                tokio::select! {
                    biased;
                    ended = running.join_next() => return outcome(ended),
                    // Each word of progress begins the time-out anew.
                    () = tokio::time::sleep(timeout) => return Outcome::TimedOut,
                    () = signals.cancelled() => {
                        // A moment to clean up, then it is dropped.
                        tokio::time::timeout(CANCEL_GRACE, running.join_next()).await.ok();
                        return Outcome::Cancelled;
                    }
                    told = news(&signals, news_at) => {
                        news_at = Instant::now() + NEWS_EVERY;
                        me.do_send(Told { attempt, told });
                    }
                }
            }
        };
        ctx.spawn(running.into_actor(self).map(move |outcome, act, ctx| {
            act.end(attempt, outcome, run, ctx);
            act.pump(ctx);
        }));
    }

    fn end(&mut self, attempt: AttemptId, outcome: Outcome, run: Run, ctx: &mut Context<Self>) {
        self.cancels.remove(&attempt);
        let Run {
            started_ms,
            since,
            trace_id,
        } = run;
        let finished_ms = unix_ms();
        let level = self.level();
        let said = outcome_name(&outcome);
        let result = TaskResult {
            attempt,
            outcome,
            started_ms,
            finished_ms,
            spec: None,
        };
        let held = self.desk.finished(result.clone());
        log::log!(target: "worker", level, event = "task.executed", task = attempt.task.to_string(), attempt = attempt.attempt.to_string(), epoch = self.seed.fence.current().to_string(), outcome = said, held = held, duration_ms = finished_ms.saturating_sub(started_ms), trace_id:serde = trace_id; "task executed");
        if !held {
            return;
        }
        let back = self.desk.measured(since.elapsed());
        self.hand_back(back, "its jobs take long now", ctx);
        self.ended.notify_waiters();
        self.results.push(result);
        self.flush_soon(ctx);
    }

    fn acknowledged(&mut self, from: NodeId, ack: &Acknowledge) {
        if !self.obeys(from, ack.epoch, "Acknowledge") {
            return;
        }
        for (attempt, refused) in &ack.attempts {
            self.finished += u64::from(self.desk.acknowledged(*attempt));
            log::debug!(target: "worker", event = "task.acknowledged", task = attempt.task.to_string(), attempt = attempt.attempt.to_string(), refused = refused.is_some(), epoch = ack.epoch.to_string(); "our result is answered");
            if let Some(why) = refused {
                log::info!(target: "worker", event = "task.refused", task = attempt.task.to_string(), attempt = attempt.attempt.to_string(), reason = why.as_str(), epoch = ack.epoch.to_string(); "our result was refused");
            }
        }
        self.ended.notify_waiters();
    }

    fn cancel(&mut self, from: NodeId, cancel: &Cancel) {
        if !self.obeys(from, cancel.epoch, "Cancel") {
            return;
        }
        for attempt in &cancel.attempts {
            if self.desk.drop_waiting(*attempt) {
                continue;
            }
            if let Some(cancel) = self.cancels.get(attempt) {
                cancel.cancel();
            }
        }
    }
}

/// An attempt that runs.
struct Run {
    started_ms: u64,
    since: Instant,
    trace_id: Option<String>,
}

/// A panic in a job is that job's failure alone.
fn at_once<T>(step: impl FnOnce() -> T) -> Result<T, Outcome> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).map_err(|panic| {
        let words = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
        let words = words.unwrap_or_else(|| "no words".to_owned());
        Outcome::Retry(clip(format!("the job panicked: {words}")))
    })
}

/// About how many bytes a result takes in a frame.
fn weight(result: &TaskResult) -> usize {
    let said = match &result.outcome {
        Outcome::Done(output) => output.len(),
        Outcome::Failed(why) | Outcome::Retry(why) => why.len(),
        Outcome::Cancelled | Outcome::TimedOut => 0,
    };
    96 + said
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done(_) => "done",
        Outcome::Failed(_) => "failed",
        Outcome::Retry(_) => "retry",
        Outcome::Cancelled => "cancelled",
        Outcome::TimedOut => "timed-out",
    }
}

fn outcome(ended: Option<Result<Result<bytes::Bytes, JobError>, JoinError>>) -> Outcome {
    match ended {
        Some(Ok(Ok(output))) if output.len() > crate::wire::MAX_PAYLOAD => {
            Outcome::Failed(format!(
                "its output of {} bytes is larger than {} may be",
                output.len(),
                crate::wire::MAX_PAYLOAD
            ))
        }
        Some(Ok(Ok(output))) => Outcome::Done(output),
        Some(Ok(Err(JobError::Failed(why)))) => Outcome::Failed(clip(why)),
        Some(Ok(Err(JobError::Retry(why)))) => Outcome::Retry(clip(why)),
        Some(Err(err)) => Outcome::Retry(clip(format!("the job panicked: {err}"))),
        None => Outcome::Retry("the job came to no end".to_owned()),
    }
}

/// The newest words of a job's progress, not before this moment.
async fn news(signals: &Signals, at: Instant) -> String {
    tokio::time::sleep_until(at).await;
    signals.progress().await
}

/// A job told of its progress.
struct Told {
    attempt: AttemptId,
    told: String,
}

impl actix::Message for Told {
    type Result = ();
}

impl Handler<Told> for WorkerActor {
    type Result = ();

    fn handle(&mut self, msg: Told, ctx: &mut Self::Context) {
        handling::<Told>();
        let Some(epoch) = self.desk.serving().filter(|_| self.desk.runs(msg.attempt)) else {
            return;
        };
        let (attempt, told) = (msg.attempt, clip(msg.told));
        let message = Progress {
            epoch,
            attempt,
            told,
        };
        self.tell(message, ctx);
    }
}

impl Actor for WorkerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.seed.reborn.do_send(Reborn);
        ctx.run_interval(TELL_AGAIN, Self::tell_again);
    }
}

impl Handler<ClusterChanged> for WorkerActor {
    type Result = ();

    fn handle(&mut self, msg: ClusterChanged, ctx: &mut Self::Context) {
        handling::<ClusterChanged>();
        self.cluster = Some(msg.0);
        self.serve(ctx);
    }
}

impl Handler<SessionEvent> for WorkerActor {
    type Result = ();

    fn handle(&mut self, msg: SessionEvent, ctx: &mut Self::Context) {
        handling::<SessionEvent>();
        let master = self.master().map(|(id, _)| id);
        match msg {
            // What was under way on the old session is lost, and its credit with it.
            SessionEvent::Up { peer, .. } if Some(peer.id) == master => {
                self.desk.unserve();
                self.serve(ctx);
            }
            SessionEvent::Down { id, .. } if Some(id) == master => self.desk.unserve(),
            _ => {}
        }
    }
}

impl Handler<Inbound> for WorkerActor {
    type Result = ();

    fn handle(&mut self, msg: Inbound, ctx: &mut Self::Context) {
        handling::<Inbound>();
        for envelope in msg.envelopes {
            handling_part(envelope.message.name());
            match envelope.message {
                Message::Assign(assign) => self.assigned(msg.from, assign, ctx),
                Message::Acknowledge(ack) => self.acknowledged(msg.from, &ack),
                Message::Cancel(cancel) => self.cancel(msg.from, &cancel),
                // Not for this desk; the transport sends nothing else here.
                _ => {}
            }
        }
    }
}

impl Handler<AskWorker> for WorkerActor {
    type Result = WorkerSnapshot;

    fn handle(&mut self, _: AskWorker, _: &mut Self::Context) -> WorkerSnapshot {
        handling::<AskWorker>();
        WorkerSnapshot {
            running: self.desk.running(),
            unacknowledged: self.desk.held(),
            epoch: self.desk.serving().unwrap_or_default(),
            capacity: self.seed.settings.capacity,
            started: self.started,
            finished: self.finished,
        }
    }
}

impl Handler<DrainWorker> for WorkerActor {
    type Result = ResponseActFuture<Self, WorkerDrained>;

    fn handle(&mut self, msg: DrainWorker, ctx: &mut Self::Context) -> Self::Result {
        handling::<DrainWorker>();
        self.desk.drain();
        let waiting = self.desk.abandon_waiting();
        let told = self.desk.serving().is_some();
        let returned = waiting.len();
        self.hand_back(waiting, "the node is leaving", ctx);
        let now = Instant::now();
        let drain = Drain {
            deadline: now + msg.within,
            served: now,
            running: self.desk.running().len(),
            handed_back: if told { returned } else { 0 },
            untold: if told { 0 } else { returned },
        };
        let begin = std::future::ready(()).into_actor(self);
        Box::pin(begin.then(move |(), act, ctx| drain.step(act, ctx)))
    }
}

/// A drain in progress.
#[derive(Clone, Copy)]
struct Drain {
    deadline: Instant,
    /// When there last was a master to acknowledge what is held.
    served: Instant,
    /// What ran when it began.
    running: usize,
    /// What waited when it began, and whether a master was there to be told.
    handed_back: usize,
    untold: usize,
}

impl Drain {
    /// Waits until nothing runs and nothing is held, or the deadline.
    fn step(
        mut self,
        act: &mut WorkerActor,
        ctx: &mut Context<WorkerActor>,
    ) -> ResponseActFuture<WorkerActor, WorkerDrained> {
        let now = Instant::now();
        if act.desk.serving().is_some() {
            self.served = now;
        }
        let idle = act.desk.running().is_empty();
        let in_vain = now.duration_since(self.served) >= LEAVE_WITHOUT;
        if (idle && (act.desk.held() == 0 || in_vain)) || now >= self.deadline {
            return Box::pin(actix::fut::ready(self.end(act, ctx)));
        }
        let ended = Arc::clone(&act.ended);
        let next = async move {
            // Looked at again now and then, since the master may be changing under us.
            let soon = Instant::now() + Duration::from_millis(100);
            tokio::time::timeout_at(self.deadline.min(soon), ended.notified())
                .await
                .ok();
        };
        Box::pin(
            next.into_actor(act)
                .then(move |(), act, ctx| self.step(act, ctx)),
        )
    }

    /// Hands back what still runs.
    fn end(self, act: &mut WorkerActor, ctx: &mut Context<WorkerActor>) -> WorkerDrained {
        let held = act.desk.held();
        let attempts = act.desk.abandon();
        let stopped = attempts.len();
        let told = act.desk.serving();
        for cancel in attempts.iter().filter_map(|a| act.cancels.get(a)) {
            cancel.cancel();
        }
        if let Some(epoch) = told.filter(|_| stopped > 0) {
            let why = "the node is leaving".to_owned();
            act.tell(
                HandBack {
                    epoch,
                    attempts,
                    why,
                },
                ctx,
            );
        }
        let (back, untold) = if told.is_some() {
            (stopped, 0)
        } else {
            (0, stopped)
        };
        WorkerDrained {
            finished: self.running.saturating_sub(stopped),
            handed_back: self.handed_back + back,
            untold: self.untold + untold + held,
        }
    }
}
