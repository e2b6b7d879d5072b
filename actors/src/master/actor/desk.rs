//! ▶ What people and programs ask of MasterActor: submitting, cancelling, trying again, waiting, reading.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use actix::{ActorFutureExt, Context, Handler, ResponseActFuture, WrapFuture};
use tokio::sync::oneshot;

use super::recorder::Fate;
use super::{MasterActor, millis, now};
use crate::id::{AttemptId, TaskId};
use crate::master::ledger::{Accepted, Full, State};
use crate::master::placements::excluded_view;
use crate::master::view::view;
use crate::master::{
    AwaitTasks, CancelTask, ChangeError, Ended, GetTask, ListTasks, RetryTask, Submission, Submit,
    SubmitAndWait, SubmitError, Submitted, Taken, TaskView,
};
use crate::planted;
use crate::supervisor::handling;
use crate::time::unix_ms;
use crate::trace;
use crate::wire::TaskSpec;

impl Handler<Submit> for MasterActor {
    type Result = ResponseActFuture<Self, Vec<Result<Taken, SubmitError>>>;

    fn handle(&mut self, msg: Submit, ctx: &mut Self::Context) -> Self::Result {
        handling::<Submit>();
        self.submit_all(msg.0, None, ctx)
    }
}

impl Handler<SubmitAndWait> for MasterActor {
    type Result = ResponseActFuture<Self, Submitted>;

    fn handle(&mut self, msg: SubmitAndWait, ctx: &mut Self::Context) -> Self::Result {
        handling::<SubmitAndWait>();
        let (tell, ended) = oneshot::channel();
        let answers = self.submit_all(msg.0, Some(tell), ctx);
        Box::pin(answers.map(|answers, _, _| Submitted { answers, ended }))
    }
}

/// The answers to a submit, once they are known.
type Answers = ResponseActFuture<MasterActor, Vec<Result<Taken, SubmitError>>>;

impl MasterActor {
    fn submit_all(
        &mut self,
        submissions: Vec<Submission>,
        wait: Option<oneshot::Sender<Vec<Ended>>>,
        ctx: &mut Context<Self>,
    ) -> Answers {
        let (mut proposed, mut recalled) = (BTreeSet::new(), BTreeSet::new());
        let answers: Vec<_> = submissions
            .into_iter()
            .map(|s| self.submit(s, &mut proposed, &mut recalled))
            .collect();
        if let Some(tell) = wait {
            // Before anything of it can end.
            let ids: Vec<TaskId> = answers.iter().flatten().map(|taken| taken.id).collect();
            self.wait_for_ends(tell, &ids);
        }
        // Into segments, so that it is known which; on their way at the end of this turn.
        if let Some(reign) = self.reign.as_mut().filter(|_| !proposed.is_empty()) {
            reign.write(now());
        }
        let waits = self.segments_of(&proposed);
        // How a durable task stands that was accepted before is a read: another may lead and know better.
        let sure = (!recalled.is_empty()).then(|| self.confirm(ctx));
        self.turn(ctx);
        let early = planted::is("acknowledged-before-commit");
        if early || (waits.is_empty() && sure.is_none()) {
            return Box::pin(actix::fut::ready(answers));
        }
        let within = self.seed.settings.commit_timeout;
        let settled = async move {
            let deadline = tokio::time::Instant::now() + within;
            let mut fates = BTreeMap::new();
            if let Some(sure) = sure {
                let doubt = match tokio::time::timeout_at(deadline, sure).await {
                    Ok(Ok(Some(true))) => None,
                    Ok(Ok(Some(false)) | Err(_)) => Some(SubmitError::NotMaster),
                    Ok(Ok(None)) | Err(_) => Some(SubmitError::Unknown),
                };
                fates.extend(recalled.into_iter().map(|task| (task, doubt.clone())));
            }
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
type Segments = Vec<(oneshot::Receiver<Fate>, Vec<TaskId>)>;

impl MasterActor {
    fn wait_for_ends(&mut self, tell: oneshot::Sender<Vec<Ended>>, ids: &[TaskId]) {
        // What has ended so far is no news to this one.
        self.tell_ended();
        let Some(reign) = &mut self.reign else { return };
        let known = |id| reign.ledger.ending(id);
        if let Some((tell, ended)) = self.waits.wait(tell, ids, known) {
            // Whoever asked may have gone.
            tell.send(ended).ok();
        }
        reign.ledger.take_ended(!self.waits.is_empty());
    }

    fn submit(
        &mut self,
        submission: Submission,
        proposed: &mut BTreeSet<TaskId>,
        recalled: &mut BTreeSet<TaskId>,
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
            meta: submission.meta.into(),
            durable: submission.durable,
            timeout_ms: millis(submission.timeout.unwrap_or(defaults.task_timeout)),
            max_attempts: submission.max_attempts.unwrap_or(defaults.max_attempts),
            priority: submission.priority,
            require: submission.require.into(),
            created_ms,
            not_before_ms: submission.not_before_ms,
        };
        let Some(reign) = &mut self.reign else {
            return Err(SubmitError::NotMaster);
        };
        if let Some(task) = reign.ledger.get(id) {
            let state = task.state.as_str();
            if task.spec.durable {
                recalled.insert(id);
            }
            return Ok(Taken { id, state });
        }
        if spec.durable && reign.journal.is_stalled(now) {
            let why = "the registry does not answer, or refuses to record";
            return Err(SubmitError::NotRecorded(why.to_owned()));
        }
        let wait = Duration::from_millis(spec.not_before_ms.saturating_sub(created_ms));
        let job = spec.job.clone();
        let trace_id = trace::of(&spec.meta).map(str::to_owned);
        let accepted = reign.ledger.accept(spec, wait, created_ms, now);
        let busy = |queued: usize| SubmitError::Busy {
            queued,
            retry_after_s: 1,
        };
        match accepted {
            Ok(Accepted::New) => {
                self.shadow_due = true;
                let (level, epoch) = (self.level(), self.epoch());
                log::log!(target: "master", level, event = "task.created", task = id.to_string(), job = job.as_str(), trace_id:serde = trace_id, epoch = epoch; "task accepted");
            }
            Ok(Accepted::Known) => {}
            Ok(Accepted::Proposed) => drop(proposed.insert(id)),
            Ok(Accepted::Forgotten(fate)) => {
                recalled.insert(id);
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
    fn segments_of(&mut self, tasks: &BTreeSet<TaskId>) -> Segments {
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
            return self.turned_down(id, error, ctx);
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
            // It is recorded; if this node leads no more, another tells how the task stands now.
            act.view_of(id).ok_or(ChangeError::Unknown)
        }))
    }

    /// What cannot be done to a task as it stands here: of a durable one that is a read, and another may lead and know better.
    fn turned_down(
        &mut self,
        id: TaskId,
        error: ChangeError,
        ctx: &mut Context<Self>,
    ) -> ResponseActFuture<Self, Result<TaskView, ChangeError>> {
        let task = self.reign.as_ref().and_then(|r| r.ledger.get(id));
        if task.is_some_and(|task| !task.spec.durable) {
            return Box::pin(actix::fut::ready(Err(error)));
        }
        let sure = self.confirm(ctx);
        let within = self.seed.settings.commit_timeout;
        let told = async move {
            let away = "the registry does not answer, so that nobody knows how the task stands";
            match tokio::time::timeout(within, sure).await {
                Ok(Ok(Some(true))) => Err(error),
                Ok(Ok(Some(false)) | Err(_)) => Err(ChangeError::NotMaster),
                Ok(Ok(None)) | Err(_) => Err(ChangeError::NotRecorded(away.to_owned())),
            }
        };
        Box::pin(told.into_actor(self))
    }

    fn view_of(&self, id: TaskId) -> Option<TaskView> {
        let reign = self.reign.as_ref()?;
        let task = reign.ledger.get(id)?;
        let cluster = self.cluster.as_deref();
        let mut view = view(task, cluster, self.seed.settings.idempotency);
        for (shown, tried) in view.attempts.iter_mut().zip(task.tries()) {
            let attempt = AttemptId {
                task: id,
                attempt: tried.attempt,
            };
            shown.placement = reign.placements.of(attempt, |id| self.name_of(id));
        }
        let needs = reign.ledger.needs_of(task);
        if let (State::Queued, Some(cluster), Some(needs)) = (&task.state, cluster, needs) {
            let works = self.seed.settings.master_works;
            let (_, excluded) = reign.roster.sort(needs, cluster, works, |_| 0, now());
            view.excluded = excluded_view(&excluded, |id| self.name_of(id));
        }
        Some(view)
    }

    fn state_of(&self, id: TaskId) -> Option<&'static str> {
        Some(self.reign.as_ref()?.ledger.get(id)?.state.as_str())
    }

    /// Whether anything may be said of tasks at all: not while it is being found out which there are.
    fn knows(&self) -> bool {
        self.reign.is_some() && self.loading.is_none()
    }
}

impl Handler<AwaitTasks> for MasterActor {
    type Result = ResponseActFuture<Self, Option<Vec<Ended>>>;

    fn handle(&mut self, msg: AwaitTasks, _: &mut Self::Context) -> Self::Result {
        handling::<AwaitTasks>();
        if !self.knows() {
            return Box::pin(actix::fut::ready(None));
        }
        let (tell, told) = oneshot::channel();
        self.wait_for_ends(tell, &msg.0);
        Box::pin(async move { told.await.ok() }.into_actor(self))
    }
}

impl Handler<CancelTask> for MasterActor {
    type Result = ResponseActFuture<Self, Result<TaskView, ChangeError>>;

    fn handle(&mut self, msg: CancelTask, ctx: &mut Self::Context) -> Self::Result {
        handling::<CancelTask>();
        let id = msg.0;
        let state = self.state_of(id);
        let Some(reign) = self.acting() else {
            return Box::pin(actix::fut::ready(Err(ChangeError::NotMaster)));
        };
        // One that is recorded is counted once its cancellation is.
        let task = reign.ledger.get(id).filter(|task| !task.spec.durable);
        let job = task.map(|task| task.spec.job.clone());
        let done = match (reign.ledger.cancel(id, unix_ms(), now()), state) {
            // Asked for twice, it is done once.
            (Err(_), Some("cancelled")) => Ok(None),
            (Err(why), Some(state)) => Err(ChangeError::Conflict { state, why }),
            (Err(_), None) => Err(ChangeError::Missing(id)),
            (Ok(running), _) => Ok(running),
        };
        if let (Ok(_), Some(job)) = (&done, job.filter(|_| state != Some("cancelled"))) {
            self.tally.finished(&job, "cancelled");
        }
        if let Ok(Some((attempt, worker))) = &done {
            self.cancel(worker.id, vec![*attempt], "somebody cancelled it");
        }
        self.changed(id, done.map(drop), ctx)
    }
}

impl Handler<RetryTask> for MasterActor {
    type Result = ResponseActFuture<Self, Result<TaskView, ChangeError>>;

    fn handle(&mut self, msg: RetryTask, ctx: &mut Self::Context) -> Self::Result {
        handling::<RetryTask>();
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
        handling::<ListTasks>();
        let sure = self.confirm(ctx);
        Box::pin(sure.into_actor(self).map(move |sure, act, _| {
            let stale = !leads(sure)?;
            let reign = act.reign.as_ref().filter(|_| act.knows())?;
            let fits = |task: &crate::master::ledger::Task| {
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
        handling::<GetTask>();
        if planted::is("read-not-confirmed") && self.knows() {
            return Box::pin(actix::fut::ready(Some(self.view_of(msg.0))));
        }
        let sure = self.confirm(ctx);
        Box::pin(sure.into_actor(self).map(move |sure, act, _| {
            let stale = !leads(sure)?;
            if !act.knows() {
                return None;
            }
            let task = act.view_of(msg.0);
            if stale && task.is_none() {
                // Another may know it: that there is none is not said unless it is sure.
                return None;
            }
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
