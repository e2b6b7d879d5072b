//! All that a master knows and decides under one epoch. Pure: time and chance are arguments, what it decides is answered.
//!
//! A reign begins by waiting: until every registered worker has reported (or a while has passed), tasks of the reign before
//! are kept aside, for what workers run or have done must not be queued again. New tasks go out at once.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;

use super::balancer::{Able, Balancer};
use super::generator::Generator;
use super::journal::{Journal, Replayed};
use super::ledger::{Committed, Ledger, LedgerSettings, Place, Verdict, WorkerId};
use super::legacy::Will;
use super::placements::{Excluded, Placements};
use super::record::Record;
use super::roster::{BUSY, Roster, why_nobody, worker_of};
use super::{GeneratorSettings, MasterSettings, MasterWorks};
use crate::cluster::Cluster;
use crate::id::{AttemptId, Epoch, NodeId, TaskId};
use crate::wire::{
    Assign, Assignment, LedgerEntry, Report, Results, Shadow, TaskResult, TaskSpec, batches,
};

/// Tasks handed out in one turn.
const MAX_MATCHED: usize = 1024;
/// A worker whose queue was full is left in peace for so long.
const PAUSE: Duration = Duration::from_millis(100);
/// Entries of a shadow, and bytes of the input of each.
const MAX_SHADOW: usize = 512;
const MAX_SHADOWED_TASK: usize = 1024;

/// A reign: what is known under one epoch.
#[derive(Debug)]
pub struct Reign {
    /// Ours.
    pub epoch: Epoch,
    /// Every task.
    pub ledger: Ledger,
    /// What of it is recorded.
    pub journal: Journal,
    /// Every worker that has reported.
    pub roster: Roster,
    /// Makes tasks.
    pub generator: Generator,
    /// Mastership is being handed over: nothing is done any more.
    pub frozen: bool,
    /// Results refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// How the newest attempts were placed.
    pub placements: Placements,
    /// Attempts and results of former reigns that workers told of.
    pub adopted: u64,
    /// Until then tasks of before wait for the reports of all workers.
    recovering: Option<Instant>,
    /// Tasks of before that nobody has reported so far.
    inherited: BTreeMap<TaskId, LedgerEntry>,
    /// Where they were.
    origin: Origin,
    /// Running attempts named so far in the parts of a worker's report, by its number.
    reports: BTreeMap<WorkerId, (u64, BTreeSet<AttemptId>)>,
}

/// Where the tasks of before come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This node's own reign before, or nowhere.
    Own,
    /// Handed over by the master of this name.
    Handed(String),
    /// From the shadow of the dead master of this name.
    Shadow(String),
}

/// What came of a report.
#[derive(Debug, Default)]
pub struct Heard {
    /// Attempts that are ours from now on.
    pub adopted: Vec<AttemptId>,
    /// Attempts that it runs in vain, and why.
    pub stray: Vec<(AttemptId, &'static str)>,
    /// Results it held, and what became of each.
    pub results: Vec<(TaskResult, Verdict)>,
    /// Attempts we took it to have.
    pub lost: Vec<(AttemptId, Verdict)>,
}

/// The end of recovery.
#[derive(Debug)]
pub struct Recovered {
    /// Workers that have not reported in time.
    pub awaited: Vec<String>,
    /// Tasks of before that are queued again, and whether each had been handed out.
    pub queued: Vec<(TaskId, bool)>,
    /// Where they were.
    pub origin: Origin,
}

/// What goes out in one turn.
#[derive(Debug, Default)]
pub struct Matched {
    /// Each fits a frame.
    pub assigns: Vec<(NodeId, Assign)>,
    /// Why a task waits that no busy worker could take either.
    pub waiting: Option<String>,
    /// There is more to hand out at once.
    pub more: bool,
}

/// The first task of a line, and who could take it.
#[derive(Debug)]
struct Head {
    line: u32,
    place: Place,
    task: TaskId,
    able: Vec<Able>,
    excluded: Excluded,
}

impl Head {
    /// Who was none of those that a task was placed among.
    fn without(&self, among: &[Able]) -> Excluded {
        if among.len() == self.able.len() {
            return Arc::clone(&self.excluded);
        }
        let left_out = self.able.iter().map(|a| a.id);
        let left_out = left_out.filter(|id| among.iter().all(|a| a.id != *id));
        let why = "it runs another task that may have killed a worker";
        let before = self.excluded.iter().copied();
        before.chain(left_out.map(|id| (id, why))).collect()
    }

    /// A credit of this worker is spent.
    fn spend(&mut self, worker: NodeId) {
        if let Some(at) = self.able.iter().position(|a| a.id == worker) {
            let able = &mut self.able[at];
            able.outstanding += 1;
            able.credit -= 1;
            if able.credit == 0 {
                self.able.remove(at);
                let before = self.excluded.iter().copied();
                self.excluded = before.chain([(worker, BUSY)]).collect();
            }
        }
    }
}

impl Reign {
    /// Nothing is known yet.
    pub fn new(
        epoch: Epoch,
        settings: &MasterSettings,
        generator: GeneratorSettings,
        journal: Journal,
        now: Instant,
    ) -> Self {
        Self {
            epoch,
            ledger: Ledger::new(ledger_settings(settings)),
            journal,
            roster: Roster::default(),
            generator: Generator::new(generator),
            frozen: false,
            refused: BTreeMap::new(),
            placements: Placements::default(),
            adopted: 0,
            recovering: Some(now + settings.recovery_wait),
            inherited: BTreeMap::new(),
            origin: Origin::Own,
            reports: BTreeMap::new(),
        }
    }

    /// Other knobs from now on.
    pub fn configure(&mut self, settings: &MasterSettings, generator: GeneratorSettings) {
        self.ledger.configure(ledger_settings(settings));
        self.generator.configure(generator);
    }

    /// This node's own reign before: what was finished stays finished, what was open is known first-hand.
    pub fn succeed(&mut self, mut before: Self) {
        let (open, finished) = before.ledger.take_open();
        self.ledger = finished;
        self.generator = before.generator;
        self.placements = before.placements;
        self.inherited = before.inherited;
        self.inherited
            .extend(open.into_iter().map(|e| (e.spec.id, e)));
    }

    /// The durable tasks, as the journal has them.
    pub fn restore(&mut self, replayed: Replayed, unix_ms: u64, now: Instant) {
        for (_, snapshot) in replayed.tasks {
            self.ledger.restore(snapshot, unix_ms, now);
        }
        self.ledger.restore_ids(replayed.ids, replayed.floor_ms);
    }

    /// The ledger of another master, kept aside until the workers have reported; queued if they have.
    pub fn inherit(&mut self, will: Will, unix_ms: u64, now: Instant) {
        self.origin = if will.handed {
            Origin::Handed(will.master)
        } else {
            Origin::Shadow(will.master)
        };
        for entry in will.entries {
            if self.recovering.is_none() {
                let wait = wait(&entry.spec, unix_ms);
                self.ledger.inherit(entry, wait, self.epoch, now);
            } else if self.ledger.get(entry.spec.id).is_none() {
                self.inherited.insert(entry.spec.id, entry);
            }
        }
    }

    /// Whether it still waits for reports.
    pub fn is_recovering(&self) -> bool {
        self.recovering.is_some()
    }

    /// Tasks of before that wait for the workers' reports.
    pub fn inherited(&self) -> usize {
        self.inherited.len()
    }

    /// Ends recovery when it is time to.
    pub fn recover(&mut self, cluster: &Cluster, unix_ms: u64, now: Instant) -> Option<Recovered> {
        let until = self.recovering?;
        let awaited = self.roster.awaited(cluster);
        if !awaited.is_empty() && now < until {
            return None;
        }
        self.recovering = None;
        let mut queued = self.ledger.release(unix_ms, now);
        for (id, entry) in std::mem::take(&mut self.inherited) {
            let leased = entry.leased;
            let wait = wait(&entry.spec, unix_ms);
            if self.ledger.inherit(entry, wait, self.epoch, now) {
                queued.push((id, leased));
            }
        }
        Some(Recovered {
            awaited,
            queued,
            origin: self.origin.clone(),
        })
    }

    // --- what workers say ----------------------------------------------------------------------------------------

    /// A part of a worker's report: what it runs is adopted, what it holds is recorded; with the last part, what we took it
    /// to have and it did not name is lost.
    pub fn reported(
        &mut self,
        worker: WorkerId,
        report: Report,
        unix_ms: u64,
        now: Instant,
    ) -> Heard {
        let mut heard = Heard::default();
        let named = self.reports.entry(worker).or_default();
        if named.0 != report.serial {
            *named = (report.serial, BTreeSet::new());
        }
        named
            .1
            .extend(report.running.iter().map(|(a, _)| a.attempt));
        for (assignment, started_ms) in &report.running {
            let attempt = assignment.attempt;
            match self.adopt(worker, assignment, *started_ms, now) {
                Ok(true) => heard.adopted.push(attempt),
                Ok(false) => {}
                Err(why) => heard.stray.push((attempt, why)),
            }
        }
        for result in &report.results {
            if let Some(spec) = result.spec.clone() {
                let attempt = result.attempt;
                let assignment = Assignment { attempt, spec };
                // A result that does not fit is refused below, in the same words.
                self.adopt(worker, &assignment, result.started_ms, now).ok();
            }
        }
        for task in &report.recent {
            self.inherited.remove(task);
        }
        heard.results = self.record(worker, report.results, now);
        if !report.more {
            heard.lost = self.last_part(worker, unix_ms, now);
            self.roster.reported(worker, report.serial, report.credit);
        }
        heard
    }

    /// Answers whether it was news.
    fn adopt(
        &mut self,
        worker: WorkerId,
        assignment: &Assignment,
        started_ms: u64,
        now: Instant,
    ) -> Result<bool, &'static str> {
        let id = assignment.attempt.task;
        let news = self.ledger.get(id).is_none_or(|t| t.is_held());
        let inherited = self.inherited.get(&id);
        let superseded = |e: &LedgerEntry| {
            let newest = e.attempts.iter().map(|(a, ..)| a.attempt).max();
            newest > Some(assignment.attempt.attempt)
        };
        if news && inherited.is_some_and(superseded) {
            return Err("a newer attempt superseded it");
        }
        self.ledger
            .adopt(worker, assignment, started_ms, self.epoch, now)?;
        self.inherited.remove(&id);
        self.adopted += u64::from(news);
        Ok(news)
    }

    fn last_part(
        &mut self,
        worker: WorkerId,
        unix_ms: u64,
        now: Instant,
    ) -> Vec<(AttemptId, Verdict)> {
        let named = self.reports.remove(&worker).unwrap_or_default().1;
        let leased = self.ledger.leased_to(worker).into_iter();
        let unknown: Vec<AttemptId> = leased.filter(|a| !named.contains(a)).collect();
        unknown
            .into_iter()
            .filter_map(|a| self.ledger.unknown_to_worker(a, unix_ms, now))
            .collect()
    }

    /// Results of a worker that has reported, and its fresh credit.
    pub fn results(
        &mut self,
        worker: WorkerId,
        results: Results,
        now: Instant,
    ) -> Vec<(TaskResult, Verdict)> {
        self.roster.grant(worker, results.credit);
        self.record(worker, results.results, now)
    }

    fn record(
        &mut self,
        worker: WorkerId,
        results: Vec<TaskResult>,
        now: Instant,
    ) -> Vec<(TaskResult, Verdict)> {
        let record = |result: TaskResult| {
            let verdict = self.ledger.result(worker.id, &result, now);
            if let Verdict::Refused(why) = verdict {
                *self.refused.entry(why.to_owned()).or_default() += 1;
            }
            (result, verdict)
        };
        results.into_iter().map(record).collect()
    }

    /// The verdict: its attempts are lost.
    pub fn removed(
        &mut self,
        worker: WorkerId,
        unix_ms: u64,
        now: Instant,
    ) -> Vec<(AttemptId, Verdict)> {
        self.roster.void(worker);
        self.reports.remove(&worker);
        self.ledger.lose_worker(worker, unix_ms, now)
    }

    /// An assignment did not get out: taken back without blame, and answered. `how` tells whether the worker is out of reach, so
    /// that nothing more goes there before its next report, and which report the credit was from: a newer one stands.
    pub fn not_sent(
        &mut self,
        worker: WorkerId,
        attempts: &[AttemptId],
        (void, report): (bool, u64),
        now: Instant,
    ) -> Vec<AttemptId> {
        let mut returned = attempts.to_vec();
        returned.retain(|attempt| self.ledger.take_back(*attempt, now));
        let credit = u32::try_from(returned.len()).unwrap_or(u32::MAX);
        if self.roster.report_of(worker) != Some(report) {
            return returned;
        }
        if void {
            self.roster.void(worker);
        } else {
            self.roster.refund(worker, credit, now + PAUSE);
        }
        returned
    }

    // --- what is recorded ----------------------------------------------------------------------------------------

    /// Puts what the ledger decided into segments, and what is still needed of old ones.
    pub fn write(&mut self, now: Instant) {
        for record in self.ledger.take_records() {
            self.journal.append(&record, self.ledger.floor_ms(), now);
        }
        self.journal.clean(&self.ledger, now);
    }

    /// A segment is in the registry: what it holds takes place.
    pub fn landed(&mut self, segment: u64, now: Instant) -> Vec<Committed> {
        let changed = self.journal.landed(segment);
        changed
            .into_iter()
            .filter_map(|task| self.ledger.committed(task, now))
            .collect()
    }

    /// A segment is not in the registry and never will be: acceptances are withdrawn, all else is recorded again later.
    pub fn not_recorded(&mut self, segment: u64, until: Instant) {
        for task in self.journal.refused(segment, until) {
            match self.ledger.record_again(task) {
                Some(Record::Accepted(_)) => self.ledger.withdraw(task),
                Some(record) => drop(self.journal.append(&record, self.ledger.floor_ms(), until)),
                None => {}
            }
        }
    }

    // --- what goes out -------------------------------------------------------------------------------------------

    /// Hands out what can be handed out, best first.
    pub fn hand_out<R: Rng + ?Sized>(
        &mut self,
        cluster: &Cluster,
        works: MasterWorks,
        balancer: &mut Balancer,
        rng: &mut R,
        now: Instant,
    ) -> Matched {
        let mut matched = Matched::default();
        let mut lots: BTreeMap<NodeId, (WorkerId, Vec<Assignment>)> = BTreeMap::new();
        let mut count = 0;
        self.ledger.ripen(now);
        let mut heads = self.heads(cluster, works, &mut matched, now);
        while let Some(at) = (0..heads.len()).min_by_key(|at| heads[*at].place) {
            if count == MAX_MATCHED {
                matched.more = true;
                break;
            }
            let (id, line) = (heads[at].task, heads[at].line);
            match self.choose(id, &heads[at].able, balancer, cluster, rng) {
                Some((worker, among)) => {
                    let Some(assignment) = self.ledger.lease(id, worker, self.epoch, now) else {
                        break;
                    };
                    let (attempt, by) = (assignment.attempt, balancer.kind());
                    let excluded = heads[at].without(&among);
                    self.placements
                        .keep(attempt, worker.id, by, &among, &excluded);
                    self.roster.spend(worker);
                    let lot = lots.entry(worker.id).or_insert((worker, Vec::new()));
                    lot.1.push(assignment);
                    count += 1;
                    heads.iter_mut().for_each(|head| head.spend(worker.id));
                }
                // Somebody suspect, and no worker without one: another may go before it.
                None => self.ledger.postpone(id, PAUSE, now),
            }
            match self.ledger.first(line) {
                Some((place, task)) => (heads[at].place, heads[at].task) = (place, task.spec.id),
                None => heads[at].able.clear(),
            }
            heads.retain(|head| !head.able.is_empty());
        }
        for (to, (worker, assignments)) in lots {
            let report = self.roster.report_of(worker).unwrap_or_default();
            for assignments in batches(assignments, |a| a.spec.weight()) {
                let assign = Assign {
                    epoch: self.epoch,
                    assignments,
                    report,
                };
                matched.assigns.push((to, assign));
            }
        }
        matched
    }

    /// The first of each line that somebody can take now.
    fn heads(
        &mut self,
        cluster: &Cluster,
        works: MasterWorks,
        matched: &mut Matched,
        now: Instant,
    ) -> Vec<Head> {
        let mut heads = Vec::new();
        for line in self.ledger.busy_lines() {
            let Some((place, task)) = self.ledger.first(line) else {
                continue;
            };
            let task = task.spec.id;
            let Some(needs) = self.ledger.needs(line) else {
                continue;
            };
            let load = |worker| self.ledger.load(worker);
            let (able, excluded) = self.roster.sort(needs, cluster, works, load, now);
            if able.is_empty() {
                if matched.waiting.is_none() {
                    matched.waiting = why_nobody(needs, cluster, works);
                }
                continue;
            }
            heads.push(Head {
                line,
                place,
                task,
                able,
                excluded: excluded.into(),
            });
        }
        heads
    }

    /// The worker for this task, and among whom it was chosen; `None` when those that are able each run somebody else that may
    /// kill them.
    fn choose<'a, R: Rng + ?Sized>(
        &self,
        task: TaskId,
        able: &'a [Able],
        balancer: &mut Balancer,
        cluster: &Cluster,
        rng: &mut R,
    ) -> Option<(WorkerId, Cow<'a, [Able]>)> {
        let among = match self.ledger.suspicion(task) {
            None => Cow::Borrowed(able),
            Some(taken) => {
                let free = |a: &&Able| {
                    worker_of(cluster, a.id).is_some_and(|worker| !taken.contains(&worker))
                };
                able.iter().filter(free).copied().collect()
            }
        };
        let id = balancer.pick(&among, rng)?;
        Some((worker_of(cluster, id)?, among))
    }

    /// Everything that is open, for an heir.
    pub fn entries(&self) -> Vec<LedgerEntry> {
        // Durable ones are in the journal.
        let (mut entries, _) = self.ledger.entries(usize::MAX);
        entries.extend(self.inherited.values().cloned());
        entries
    }

    /// What the likely heir should know in case this node crashes; bounded.
    pub fn shadow(&self) -> Shadow {
        let (open, more) = self.ledger.entries(MAX_SHADOW);
        let room = MAX_SHADOW.saturating_sub(open.len());
        let inherited = self.inherited.values().take(room).cloned();
        let left_out = self.inherited.len().saturating_sub(room);
        let all: Vec<LedgerEntry> = open.into_iter().chain(inherited).collect();
        let (small, large): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|e| e.spec.weight() <= MAX_SHADOWED_TASK);
        // One frame, and no more.
        let mut parts = batches(small, LedgerEntry::weight).into_iter();
        let entries = parts.next().unwrap_or_default();
        let unsent: usize = parts.map(|part| part.len()).sum();
        Shadow {
            epoch: self.epoch,
            entries,
            beyond: (more + left_out + large.len() + unsent) as u64,
        }
    }

    /// When something is due by itself.
    pub fn next_due(&self) -> Option<Instant> {
        let made = self.generator.next();
        made.into_iter()
            .chain(self.journal.next_due())
            .chain(self.ledger.next_due())
            .chain(self.recovering)
            .min()
    }
}

fn ledger_settings(settings: &MasterSettings) -> LedgerSettings {
    LedgerSettings {
        max_queued: settings.max_queued,
        max_queued_bytes: settings.max_queued_bytes,
        keep_finished: settings.keep_finished,
        keep_finished_bytes: settings.keep_finished_bytes,
        max_kills: settings.max_kills as usize,
        window: settings.idempotency,
        keep_ids: settings.keep_ids,
        keep_finished_for: settings.keep_finished_for,
        retry_wait: settings.retry_wait,
    }
}

/// How long a task must still wait; wall clocks of several machines are compared here, as people do.
fn wait(spec: &TaskSpec, unix_ms: u64) -> Duration {
    Duration::from_millis(spec.not_before_ms.saturating_sub(unix_ms))
}
