//! The world of one run: machines, links, the plan's faults, and the checks after every step.

mod faults;
mod load;
mod prompt;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use troupe_actors::cluster::MemberState;
use troupe_actors::id::{NodeId, TaskId};
use troupe_actors::registry::embedded::trouble;
use troupe_actors::supervisor::How;
use troupe_actors::testkit::capture::capture;
use troupe_actors::testkit::coverage::Coverage;
use troupe_actors::testkit::invariants::{Invariants, Terms, Violation};
use troupe_actors::testkit::machine::{PROBE, PROBE_TAKES};
use troupe_actors::testkit::trace::{self, Record};
use troupe_actors::{chance, time};
use turmoil::{Builder, Sim};

use crate::plan::{Fault, Plan};
use crate::registry::{Mood, Moody};
use crate::stage::{self, EPOCH_SECONDS, Order, Shared, wall_ms};
use crate::{net, node, registry};
use load::Load;
use prompt::Prompt;

/// How long all nodes may take to agree once nothing is wrong. The longest wait there is: 60 s of doubling for a node that
/// was condemned again and again, and a session that stays stuck until its idle time is over.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// How long a task may take once all is well: three tries of the longest job, with the waits between.
const FINISHED_WITHIN: Duration = Duration::from_secs(60);
/// So long after the last fault nobody may be condemned or deposed: the longest suspicion, and the idle time of a session
/// that a lost segment has blocked.
const CALM: Duration = Duration::from_secs(25);

/// How soon others must have removed whoever died while nothing else was wrong: by hard evidence…
const GONE_AFTER_KILL: Duration = Duration::from_millis(900);
/// …and by silence: suspicion, probe, challenge.
const GONE_AFTER_POWER_LOSS: Duration = Duration::from_secs(5);
/// A death must be seen in time if nothing else was wrong for this long before.
const CALM_BEFORE: Duration = Duration::from_secs(7);
/// How long an attempt may be with a worker beyond the time its job takes.
const LEASE_SLACK: Duration = Duration::from_secs(3);

/// A session whose stream is stuck is given up within this: its idle time, and a bit.
const STUCK: Duration = Duration::from_secs(12);

/// What came of a run.
pub struct Outcome {
    pub plan: Plan,
    pub trace: Vec<Record>,
    pub violation: Option<Violation>,
    pub coverage: Coverage,
    pub simulated: Duration,
}

/// Something to do at a time.
#[derive(Clone, Debug)]
enum Act {
    Begin(usize, Fault),
    End(usize, Fault),
    Start(String),
    Kill(usize, &'static str, How),
    /// The registry drops its history.
    Compact,
    /// Connections of this node are reset: those to the registry, or to the others.
    Reset(usize, bool),
    /// This process ends, or its MasterActor.
    Strike(String, u32, bool, Duration),
    /// By now this identity must not be registered any more.
    MustBeGone(NodeId, &'static str),
    /// So must this one, if nothing else was wrong since this time.
    MustBeGoneUnless(NodeId, &'static str, Duration),
    /// The generation is made anew once more, while all are busy with the one before.
    RenewAgain,
    /// By now all must agree.
    MustAgree,
    /// By now this incarnation has answered a challenge, if it could.
    MustAnswer(i64),
    /// Somebody calls this node, whatever stands there.
    Call(String),
}

struct World<'a> {
    sim: Sim<'a>,
    stage: Shared,
    plan: Plan,
    invariants: Invariants,
    coverage: Coverage,
    due: BTreeMap<(Duration, u64), Act>,
    made: u64,
    /// Faults of links that last, by number.
    links: BTreeMap<usize, Fault>,
    cut: BTreeMap<(String, String), Link>,
    read: usize,
    rng: StdRng,
    load: Load,
    prompt: Prompt,
    mood: Rc<Cell<Mood>>,
    clocks: Vec<i64>,
    aim: Option<faults::Aim>,
}

/// How a pair of machines stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Fine,
    Hold,
    OneWay,
    Drop,
}

pub fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

/// Runs a plan to its end, or to the first violation.
pub fn run(plan: Plan) -> Outcome {
    let stage = Shared::default();
    prepare(&plan, &stage);
    let mut world = World::new(plan, stage.clone());
    let result = world.play();
    let (plan, simulated) = (world.plan.clone(), world.sim.elapsed());
    let coverage = world.coverage.clone();
    // What is torn down says nothing that counts.
    capture(None);
    drop(world);
    chance::seed(None);
    time::simulate_wall(None);
    trouble::make(None);
    net::forget_all();
    stage::forget_clocks();
    let trace = std::mem::take(&mut stage.borrow_mut().trace);
    Outcome {
        plan,
        trace,
        violation: result.err(),
        coverage,
        simulated,
    }
}

fn prepare(plan: &Plan, stage: &Shared) {
    troupe_actors::supervisor::install_panic_hook();
    chance::seed(Some(plan.seed));
    time::simulate_wall(Some(wall_ms));
    net::forget_all();
    stage::forget_clocks();
    for (node, off) in plan.clocks.iter().enumerate() {
        stage::set_clock(&name(node), *off);
    }
    let stage = stage.clone();
    capture(Some(Box::new(move |event, fields| {
        // Said while the stage itself is being changed: nothing of a node runs then.
        if let Ok(mut stage) = stage.try_borrow_mut() {
            stage.note(event, fields);
        }
    })));
}

impl World<'_> {
    fn new(plan: Plan, stage: Shared) -> Self {
        let mut builder = Builder::new();
        builder
            .rng_seed(plan.seed)
            .epoch(std::time::UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS))
            .simulation_duration(Duration::from_secs(86_400))
            .tick_duration(plan.tick)
            .min_message_latency(plan.latency.0)
            .max_message_latency(plan.latency.1)
            .tcp_capacity(4096);
        if plan.random_order {
            builder.enable_random_order();
        }
        let mut sim = builder.build();
        let (on, disk) = (stage.clone(), plan.disk);
        sim.host("registry", move || registry::serve(on.clone(), disk));
        let mood = Rc::new(Cell::new(Mood::default()));
        trouble::make(Some(Box::new(Moody {
            mood: mood.clone(),
            rng: StdRng::seed_from_u64(plan.seed.rotate_left(32)),
            stage: stage.clone(),
        })));
        let on = stage.clone();
        sim.host("witness", move || registry::witness(on.clone()));
        let mut due = BTreeMap::new();
        for (n, starts) in plan.starts.iter().enumerate() {
            due.insert((*starts, n as u64), Act::Start(name(n)));
        }
        let terms = Terms {
            capacity: plan.make.capacity as usize,
            max_restarts: 5,
            within: Duration::from_secs(10),
            calm: Some(CALM),
            one_thread: true,
        };
        Self {
            sim,
            stage,
            invariants: Invariants::new(terms),
            coverage: Coverage::default(),
            due,
            made: 1000,
            links: BTreeMap::new(),
            cut: BTreeMap::new(),
            read: 0,
            load: Load::default(),
            prompt: Prompt::default(),
            rng: StdRng::seed_from_u64(!plan.seed),
            mood,
            clocks: plan.clocks.clone(),
            aim: None,
            plan,
        }
    }

    fn play(&mut self) -> Result<(), Violation> {
        // Forming is a phase of its own: starting is a fault like any other to those who are there.
        let latest = self.plan.starts.iter().max().copied().unwrap_or_default();
        self.for_time(latest + Duration::from_millis(10))?;
        self.settle()?;
        self.fault_phase()?;
        self.end_faults()?;
        self.settle()?;
        if self.plan.loses_segments() {
            // A stream that lost a segment looks well until its idle time is over.
            self.for_time(STUCK)?;
            self.settle()?;
        }
        self.no_lease_is_forgotten()?;
        self.finish_accepted()?;
        self.finish_probes()?;
        self.for_time(self.plan.calm)?;
        if self.plan.calm < CALM {
            // A stream that lost a segment may show only now.
            self.settle()?;
        } else if let Some(why) = self.unsettled() {
            self.world("sim.view", &[("what", &why)]);
            self.check()?;
        }
        self.invariants.finish(self.sim.elapsed())
    }

    fn fault_phase(&mut self) -> Result<(), Violation> {
        let began = self.sim.elapsed();
        for (n, (at, fault)) in self.plan.faults.clone().into_iter().enumerate() {
            self.plan_act(began + at, Act::Begin(n, fault));
        }
        if let Some(by) = self.plan.agreed_by() {
            self.plan_act(began + by, Act::MustAgree);
        }
        let mut submits = self.plan.submits.clone();
        submits.sort();
        let mut submits = submits.into_iter().peekable();
        while self.sim.elapsed() < began + self.plan.safety {
            while let Some((_, node)) = submits.next_if(|(at, _)| began + *at <= self.sim.elapsed())
            {
                let number = self.input();
                // To the node that leads as often as to any.
                let master = self.master().filter(|_| self.rng.random_bool(0.5));
                let durable = self.rng.random_bool(0.6);
                self.submit(&master.unwrap_or(name(node)), number, durable);
            }
            self.clients();
            self.step()?;
        }
        Ok(())
    }

    /// Everything that was broken is mended now, and what is down comes up.
    fn end_faults(&mut self) -> Result<(), Violation> {
        self.aim = None;
        let open: Vec<Act> = std::mem::take(&mut self.due).into_values().collect();
        for act in open {
            if matches!(act, Act::End(..) | Act::Start(_)) {
                self.act(act);
            }
        }
        self.step()
    }

    fn submit(&mut self, node: &str, input: String, durable: bool) -> TaskId {
        let ms = EPOCH_SECONDS * 1000 + self.sim.elapsed().as_millis() as u64;
        let id = TaskId::new(ms, &mut self.rng);
        if durable {
            self.remember(id, &input);
        }
        let order = Order::Submit(id, input, durable);
        self.stage.borrow().order(node, order);
        id
    }

    // --- time --------------------------------------------------------------------------------------------------------

    fn for_time(&mut self, time: Duration) -> Result<(), Violation> {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Violation> {
        let now = self.sim.elapsed();
        self.stage.borrow_mut().set_now(now);
        while let Some(first) = self.due.first_entry() {
            if first.key().0 > now {
                break;
            }
            let act = first.remove();
            self.act(act);
        }
        self.bury_ended(now);
        if let Err(why) = self.sim.step() {
            let what = why.to_string();
            self.world("sim.unsettled", &[("what", &what)]);
        }
        self.check()
    }

    fn check(&mut self) -> Result<(), Violation> {
        let stage = Rc::clone(&self.stage);
        let stage = stage.borrow();
        for record in &stage.trace[self.read..] {
            if record.event == "master.promoted" {
                self.promoted(&record.node, record.life);
            }
            self.coverage.observe(record);
            self.invariants.observe(record)?;
            self.expect_answer(record);
            self.note_leaving(record);
            if record.event == "peer.condemned" && self.plan.is_harmless() {
                let what = format!(
                    "{} was condemned though it lives and is heard by others: {}",
                    record.get("peer"),
                    record.get("reason")
                );
                self.invariants
                    .observe(&record.clone().named("sim.false_verdict").with("what", what))?;
            }
        }
        self.read = stage.trace.len();
        Ok(())
    }

    fn plan_act(&mut self, at: Duration, act: Act) {
        self.made += 1;
        self.due.insert((at, self.made), act);
    }

    fn world(&self, event: &str, fields: &[(&str, &str)]) {
        self.stage.borrow_mut().world(event, fields);
    }

    // --- faults ------------------------------------------------------------------------------------------------------

    fn act(&mut self, act: Act) {
        match act {
            Act::Begin(n, fault) => {
                let what = format!("{fault:?}");
                let kind = fault.kind(&self.plan);
                self.trouble(&fault);
                self.world("sim.fault", &[("what", &what), ("kind", kind)]);
                self.begin(n, fault);
            }
            Act::End(n, fault) => {
                let what = format!("{fault:?}");
                self.trouble(&fault);
                self.world("sim.healed", &[("what", &what)]);
                self.end(n, &fault);
            }
            Act::Start(node) => {
                let whom = if node == "registry" {
                    self.all_nodes()
                } else {
                    vec![node.clone()]
                };
                self.troubled(whom);
                self.start(&node);
            }
            Act::Compact => self.stage.borrow().order("witness", Order::Compact),
            Act::Reset(node, registry) => {
                let machine = name(node);
                let what = [
                    ("what", "its connections are reset"),
                    ("kind", "connections reset"),
                    ("machine", &machine),
                ];
                self.world("sim.fault", &what);
                self.troubled(vec![machine.clone()]);
                self.reset(node, registry);
            }
            Act::Strike(node, life, whole, down) => {
                let lives = self.stage.borrow().seats.get(&node).map(|seat| seat.life);
                if lives == Some(life) {
                    self.strike(&node, whole, down);
                }
            }
            Act::MustAnswer(incarnation) => self.must_answer(incarnation),
            Act::Call(node) => self.call_into(&node),
            Act::MustAgree => {
                if let Some(why) = self.unsettled() {
                    let what = format!("not agreed in time: {why}");
                    self.world("sim.late", &[("what", &what)]);
                }
            }
            Act::RenewAgain => {
                self.troubled(self.all_nodes());
                self.stage.borrow().order("witness", Order::Renew);
            }
            Act::MustBeGoneUnless(id, why, since) => {
                if self.prompt.only_one_fault_since(since) {
                    self.act(Act::MustBeGone(id, why));
                }
            }
            Act::MustBeGone(id, why) => {
                let registered = self.invariants.registry().registered();
                let still = registered
                    .filter(|(r, _)| r.id == id)
                    .map(|(r, _)| r.name)
                    .next();
                if let Some(name) = still {
                    let what = format!("{name} {why} and is still registered");
                    self.world("sim.late", &[("what", &what)]);
                }
            }
            Act::Kill(node, actor, how) => {
                let node = name(node);
                self.world(
                    "sim.fault",
                    &[
                        ("what", "an actor is killed"),
                        ("kind", "an actor killed"),
                        ("machine", &node),
                    ],
                );
                self.troubled(vec![node.clone()]);
                self.stage.borrow().order(&node, Order::Kill(actor, how));
                if actor == "master" {
                    self.call_while_dead(&node);
                }
            }
        }
    }

    fn crash(&mut self, host: &str) {
        let place = {
            let mut stage = self.stage.borrow_mut();
            let Some(seat) = stage.seats.get_mut(host).filter(|seat| seat.up) else {
                return;
            };
            seat.up = false;
            seat.orders = None;
            let place = (host.to_owned(), seat.life);
            stage.act_as(Some(place.clone()));
            stage.note("sim.crashed".to_owned(), BTreeMap::new());
            place
        };
        // What the process says while it is torn down, it does not say in life.
        let trace = self.stage.borrow().trace.len();
        self.sim.crash(host);
        net::set_down(host, true);
        let mut stage = self.stage.borrow_mut();
        stage.trace.truncate(trace);
        stage.act_as(None);
        drop(place);
    }

    fn start(&mut self, host: &str) {
        let up = self.stage.borrow().seats.get(host).map(|seat| seat.up);
        match up {
            Some(true) => {}
            Some(false) => {
                self.world("sim.up", &[("machine", host)]);
                net::set_down(host, false);
                self.sim.bounce(host);
            }
            None => {
                self.world("sim.up", &[("machine", host)]);
                let (make, on) = (self.plan.make.clone(), self.stage.clone());
                let me = host.to_owned();
                self.sim.host(host, move || {
                    node::run(me.clone(), make.clone(), on.clone())
                });
            }
        }
    }

    /// A process that ended by itself leaves nothing behind; the init system starts another.
    fn bury_ended(&mut self, now: Duration) {
        let ended: Vec<String> = {
            let stage = self.stage.borrow();
            let seats = stage.seats.iter();
            seats
                .filter(|(_, seat)| seat.up && seat.ended.is_some())
                .map(|(node, _)| node.clone())
                .collect()
        };
        for node in ended {
            let (id, life, why) = {
                let stage = self.stage.borrow();
                let seat = &stage.seats[&node];
                (seat.id, seat.life, seat.ended.clone().unwrap_or_default())
            };
            let well = self.plan.single || self.was_well(&node, now);
            if why == "drained" && well {
                self.has_left(&node, life, id);
            }
            self.crash(&node);
            self.plan_act(now + Duration::from_secs(1), Act::Start(node));
        }
    }

    // --- liveness ------------------------------------------------------------------------------------------------------

    fn settle(&mut self) -> Result<(), Violation> {
        let began = self.sim.elapsed();
        let until = began + SETTLED_WITHIN;
        while let Some(why) = self.unsettled() {
            self.must_be_so_by_now(began)?;
            if self.sim.elapsed() > until {
                self.world("sim.unsettled", &[("what", &why)]);
                return self.check();
            }
            self.for_time(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Why the living do not agree yet.
    fn unsettled(&self) -> Option<String> {
        let stage = self.stage.borrow();
        let epoch = self.invariants.registry().epoch();
        let names: Vec<String> = (0..self.plan.nodes).map(name).collect();
        let ids: BTreeSet<_> = names
            .iter()
            .map(|n| stage.seats.get(n).map(|s| s.id))
            .collect();
        let registered: BTreeSet<_> = self
            .invariants
            .registry()
            .registered()
            .map(|(r, _)| Some(r.id))
            .collect();
        if registered != ids {
            let there: Vec<String> = self
                .invariants
                .registry()
                .registered()
                .map(|(r, _)| r.name)
                .collect();
            return Some(format!("registered are {there:?}, alive are {names:?}"));
        }
        let mut leaders = 0;
        for node in &names {
            let seat = stage.seats.get(node)?;
            let Some(picture) = seat.picture.as_ref().filter(|_| seat.up) else {
                return Some(format!("{node} has told nothing yet"));
            };
            let seen: BTreeSet<_> = picture
                .members
                .iter()
                .map(|m| Some(m.registration.id))
                .collect();
            if seen != ids {
                let seen: Vec<_> = picture
                    .members
                    .iter()
                    .map(|m| &m.registration.name)
                    .collect();
                return Some(format!("{node} sees {seen:?}"));
            }
            for member in &picture.members {
                let itself = member.registration.id == seat.id;
                if member.state != MemberState::Alive || !(member.session || itself) {
                    return Some(format!(
                        "{node} sees {} as {}, session {}",
                        member.registration.name,
                        member.state.as_str(),
                        member.session
                    ));
                }
            }
            match &picture.master {
                Some(master) if master.epoch == epoch => {}
                other => {
                    return Some(format!(
                        "{node} goes by {other:?}, the registry says {epoch}"
                    ));
                }
            }
            if !picture.registry {
                return Some(format!("{node} believes the registry to be away"));
            }
            leaders += usize::from(picture.leading);
        }
        (leaders != 1).then(|| format!("{leaders} nodes lead"))
    }

    /// Tasks handed in now must end, and every worker must get as much as it grants: a credit that was lost on the way would
    /// show here.
    fn finish_probes(&mut self) -> Result<(), Violation> {
        let Some(master) = self.master() else {
            return Ok(());
        };
        let workers: Vec<String> = (0..self.plan.nodes)
            .map(name)
            .filter(|node| self.plan.nodes == 1 || *node != master)
            .collect();
        let capacity = self.plan.make.capacity as usize;
        self.invariants.tasks().forget_peaks();
        let mut open: Vec<TaskId> = (0..workers.len() * capacity * 2)
            .map(|_| self.submit(&master, PROBE.to_owned(), false))
            .collect();
        let began = self.sim.elapsed();
        while !open.is_empty() {
            self.for_time(Duration::from_millis(250))?;
            let stage = self.stage.borrow();
            let ended = |id: &TaskId| {
                let id = id.to_string();
                stage.trace.iter().rev().take(5000).any(|r| {
                    let over = ["done", "failed", "dead"].contains(&r.get("state"));
                    r.event == "sim.task" && r.get("task") == id && over
                })
            };
            open.retain(|id| !ended(id));
            for id in &open {
                stage.order(&master, Order::Look(*id));
            }
            drop(stage);
            if self.sim.elapsed() > began + FINISHED_WITHIN {
                let what = format!(
                    "task {} was handed in when all was well and has not ended",
                    open[0]
                );
                return self.broken("sim.unfinished", &what);
            }
        }
        let short: Vec<&String> = {
            let stage = self.stage.borrow();
            let life = |node: &str| stage.seats.get(node).map_or(0, |seat| seat.life);
            let peak = |node: &str| self.invariants.peak(node, life(node));
            workers
                .iter()
                .filter(|node| peak(node) < capacity)
                .collect()
        };
        if short.is_empty() {
            return Ok(());
        }
        let what = format!(
            "{short:?} never ran the {capacity} attempts side by side that they grant, though work was waiting"
        );
        self.broken("sim.unfinished", &what)
    }

    /// Every durable task that was accepted has ended, unless the registry that held it is gone; the master says so.
    fn finish_accepted(&mut self) -> Result<(), Violation> {
        let Some(master) = self.master() else {
            return Ok(());
        };
        let began = self.sim.elapsed();
        let mut open = self.invariants.accepted();
        while !open.is_empty() {
            let asked = self.stage.borrow().trace.len();
            for id in &open {
                if let Ok(id) = id.parse() {
                    self.stage.borrow().order(&master, Order::Look(id));
                }
            }
            self.for_time(Duration::from_millis(500))?;
            let lost = {
                let stage = self.stage.borrow();
                let answers = stage.trace[asked..]
                    .iter()
                    .filter(|r| r.event == "sim.task");
                let mut lost = None;
                for answer in answers {
                    match answer.get("state") {
                        "done" | "failed" | "dead" | "cancelled" => {
                            open.retain(|id| id != answer.get("task"))
                        }
                        "not known" => lost = Some(answer.get("task").to_owned()),
                        _ => {}
                    }
                }
                lost
            };
            if let Some(task) = lost {
                let what = format!("task {task} was accepted as durable and is not known any more");
                return self.broken("sim.lost", &what);
            }
            if self.sim.elapsed() > began + FINISHED_WITHIN {
                let what = format!("durable task {} was accepted and has not ended", open[0]);
                return self.broken("sim.unfinished", &what);
            }
        }
        Ok(())
    }

    /// Once all is well no attempt stays with a worker for longer than its job takes.
    fn no_lease_is_forgotten(&mut self) -> Result<(), Violation> {
        let longest = self.plan.make.longest_job.max(PROBE_TAKES) + LEASE_SLACK;
        self.for_time(longest)?;
        let epoch = self.invariants.registry().epoch();
        let oldest = self.invariants.oldest_lease(epoch);
        let now = self.sim.elapsed();
        let Some((task, since)) = oldest.filter(|(_, since)| *since + longest < now) else {
            return Ok(());
        };
        let what = format!(
            "task {task} is with a worker since {since:?}, {:?} is the longest job",
            self.plan.make.longest_job
        );
        self.broken("sim.late", &what)
    }

    fn broken(&mut self, event: &str, what: &str) -> Result<(), Violation> {
        self.world(event, &[("what", what)]);
        self.check()
    }

    fn master(&self) -> Option<String> {
        let stage = self.stage.borrow();
        let mut seats = stage.seats.iter();
        let leads = seats.find(|(_, s)| s.up && s.picture.as_ref().is_some_and(|p| p.leading));
        leads.map(|(node, _)| node.clone())
    }
}

/// The plan and the trace as people read them; of the trace only what comes last, unless all is asked for.
pub fn transcript(outcome: &Outcome, last: usize) -> String {
    let mut text = String::new();
    let plan = &outcome.plan;
    writeln!(
        text,
        "seed {}: {} nodes, latency {:?}, {:?}",
        plan.seed, plan.nodes, plan.latency, plan.make
    )
    .ok();
    trace::tell(&mut text, &plan.faults, &outcome.trace, last);
    text
}
