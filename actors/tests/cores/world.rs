//! One run: the nodes of a plan and its faults, step by step, with the checks after each.
//!
//! A step is as long as the least latency: what one node does in it, no other can hear of before it is over. Within it every
//! event happens at its very time, once the node that it concerns has come as far.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use troupe_actors::id::{NodeId, TaskId};
use troupe_actors::registry::{Op, Txn};
use troupe_actors::supervisor::How;
use troupe_actors::testkit::capture::capture;
use troupe_actors::testkit::coverage::Coverage;
use troupe_actors::testkit::invariants::{Invariants, Terms, Violation};
use troupe_actors::testkit::trace::{self, Record};
use troupe_actors::{chance, time};

use crate::hub::{EPOCH_SECONDS, Hub, hub, note, set_hub, wall_ms};
use crate::plan::{Fault, Plan, Way, Who};
use crate::process::{Order, Process};
use crate::registry::{Ills, Server, service};

/// So long after the last fault nobody may be condemned or deposed: the longest suspicion, and the idle time of a session
/// that carries nothing any more.
pub const CALM: Duration = Duration::from_secs(25);
/// How soon others must have removed whoever died while nothing else was wrong: by hard evidence…
const GONE_AFTER_KILL: Duration = Duration::from_millis(900);
/// …and by silence: suspicion, probe, challenge.
const GONE_AFTER_POWER_LOSS: Duration = Duration::from_secs(5);
/// An ended process is followed by another after this.
const RESTART: Duration = Duration::from_secs(1);

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
    Begin(Fault),
    End(Fault, usize),
    Start(usize),
    Stop(usize),
    GoOn(usize, bool),
    Reset,
    Kill(usize, &'static str, How),
    Crash(usize),
    Compact,
    MustBeGone(NodeId, &'static str),
}

pub struct World {
    pub plan: Plan,
    pub invariants: Invariants,
    coverage: Coverage,
    processes: Vec<Option<Process>>,
    due: BTreeMap<(Duration, u64), Act>,
    made: u64,
    read: usize,
    /// Who is promoted next is struck: its MasterActor alone or all of it, so long after.
    ambush: Option<(bool, Duration)>,
    pub rng: StdRng,
}

/// Runs a plan to its end, or to the first violation.
pub fn run(plan: Plan) -> Outcome {
    troupe_actors::supervisor::install_panic_hook();
    chance::seed(Some(plan.seed));
    time::simulate_wall(Some(wall_ms));
    capture(Some(Box::new(note)));
    let rates = plan.rates.clone();
    let server = |origin| Server::new(plan.disk, rates[plan.nodes], origin);
    let mut new = Hub::new(plan.seed, plan.nodes, plan.latency, server);
    for (n, machine) in new.machines.iter_mut().enumerate() {
        machine.clock.rate = plan.rates[n];
        machine.wall_ms = plan.walls[n];
    }
    set_hub(Some(new));
    let mut world = World::new(plan);
    let result = world.play();
    let coverage = world.coverage.clone();
    let plan = world.plan.clone();
    // What is torn down says nothing that counts, and lets go of its connections while there is a network.
    hub(|hub| hub.mute = true);
    for process in world.processes.into_iter().flatten() {
        process.kill();
        hub(|hub| hub.mute = true);
    }
    capture(None);
    chance::seed(None);
    time::simulate_wall(None);
    let hub = set_hub(None);
    let (trace, simulated) = hub.map_or_else(Default::default, |hub| (hub.trace, hub.now));
    Outcome {
        plan,
        trace,
        violation: result.err(),
        coverage,
        simulated,
    }
}

impl World {
    fn new(plan: Plan) -> Self {
        let terms = Terms {
            capacity: plan.make.capacity as usize,
            max_restarts: 5,
            within: Duration::from_secs(10),
            calm: Some(CALM),
            one_thread: true,
        };
        let starts = plan.starts.iter().enumerate();
        Self {
            due: starts
                .map(|(n, at)| ((*at, n as u64), Act::Start(n)))
                .collect(),
            processes: (0..plan.nodes).map(|_| None).collect(),
            invariants: Invariants::new(terms),
            coverage: Coverage::default(),
            made: 1000,
            read: 0,
            ambush: None,
            rng: StdRng::seed_from_u64(!plan.seed),
            plan,
        }
    }

    fn play(&mut self) -> Result<(), Violation> {
        hub(Hub::serve);
        // Forming is a phase of its own: starting is a fault like any other to those who are there.
        let latest = self.plan.starts.iter().max().copied().unwrap_or_default();
        self.for_time(latest + Duration::from_millis(10))?;
        self.settle()?;
        self.fault_phase()?;
        self.end_faults()?;
        let began = self.now();
        self.settle()?;
        self.finish(began)
    }

    fn fault_phase(&mut self) -> Result<(), Violation> {
        let began = self.now();
        for (at, fault) in self.plan.faults.clone() {
            self.plan_act(began + at, Act::Begin(fault));
        }
        let mut submits = self.plan.submits.clone();
        submits.sort();
        let mut submits = submits.into_iter().peekable();
        while self.now() < began + self.plan.safety {
            while let Some((_, node)) = submits.next_if(|(at, _)| began + *at <= self.now()) {
                let number = self.rng.random_range(30..60).to_string();
                // To the node that leads as often as to any.
                let master = hub(|hub| hub.leader()).filter(|_| self.rng.random_bool(0.5));
                let durable = self.rng.random_bool(0.6);
                self.submit(master.unwrap_or(node), number, durable);
            }
            self.step()?;
        }
        Ok(())
    }

    /// Everything that was broken is mended now, and what is down comes up.
    fn end_faults(&mut self) -> Result<(), Violation> {
        self.ambush = None;
        let open: Vec<Act> = std::mem::take(&mut self.due).into_values().collect();
        for act in open {
            if matches!(act, Act::End(..) | Act::Start(_) | Act::GoOn(..)) {
                self.act(act);
            }
        }
        let now = self.now();
        hub(|hub| {
            hub.heal_all();
            hub.server.ills = Ills::default();
            hub.registry_goes_on();
            let rates: Vec<f64> = hub.machines.iter().map(|m| m.clock.rate).collect();
            for (machine, rate) in hub.machines.iter_mut().zip(rates) {
                machine.clock.set_rate(now, rate.clamp(0.95, 1.05));
            }
        });
        self.world("sim.healed", &[("what", "everything".to_owned())]);
        self.step()
    }

    pub fn submit(&mut self, node: usize, input: String, durable: bool) -> TaskId {
        let ms = EPOCH_SECONDS * 1000 + self.now().as_millis() as u64;
        let id = TaskId::new(ms, &mut self.rng);
        hub(|hub| hub.order(node, Order::Submit(id, input, durable)));
        id
    }

    // --- time --------------------------------------------------------------------------------------------------------

    pub fn now(&self) -> Duration {
        hub(|hub| hub.now)
    }

    pub fn for_time(&mut self, time: Duration) -> Result<(), Violation> {
        let until = self.now() + time;
        while self.now() < until {
            self.step()?;
        }
        Ok(())
    }

    pub fn step(&mut self) -> Result<(), Violation> {
        let now = self.now();
        while let Some(first) = self.due.first_entry() {
            if first.key().0 > now {
                break;
            }
            let act = first.remove();
            self.act(act);
        }
        self.bury_ended(now);
        let end = now + self.plan.latency.0;
        while let Some((at, event)) = hub(|hub| next_event(hub, end)) {
            if let Some(process) = event.to.and_then(|node| self.processes[node].as_mut()) {
                process.run_to(at);
            }
            hub(|hub| {
                hub.now = at;
                (event.act)(hub);
            });
        }
        hub(|hub| hub.floor = end);
        let first = self.rng.random_range(0..self.plan.nodes);
        for n in 0..self.plan.nodes {
            if let Some(process) = &mut self.processes[(first + n) % self.plan.nodes] {
                process.run_to(end);
            }
        }
        hub(|hub| hub.now = end);
        self.spring();
        self.check()
    }

    /// Whoever was promoted within this step walks into the ambush, if one is laid.
    fn spring(&mut self) {
        let Some((actor, after)) = self.ambush else {
            return;
        };
        let promoted = hub(|hub| {
            let mut new = hub.trace[self.read..].iter();
            let name = new.rfind(|r| r.event == "master.promoted");
            let name = name.map(|record| record.node.clone())?;
            hub.machines.iter().position(|m| m.name == name)
        });
        if let Some(node) = promoted {
            self.ambush = None;
            let strike = match actor {
                true => Act::Kill(node, "master", How::Panic),
                false => Act::Crash(node),
            };
            self.plan_act(self.now() + after, strike);
        }
    }

    pub fn check(&mut self) -> Result<(), Violation> {
        let harmless = self.plan.is_harmless();
        let (invariants, read) = (&mut self.invariants, &mut self.read);
        let coverage = &mut self.coverage;
        hub(|hub| {
            for record in &hub.trace[*read..] {
                coverage.observe(record);
                invariants.observe(record)?;
                if record.event == "peer.condemned" && harmless && is_of_now(invariants, record) {
                    let what = format!(
                        "{} was condemned though it lives and is heard by others: {}",
                        record.get("peer"),
                        record.get("reason")
                    );
                    let said = record.clone().named("sim.false_verdict");
                    invariants.observe(&said.with("what", what))?;
                }
            }
            *read = hub.trace.len();
            Ok(())
        })
    }

    fn plan_act(&mut self, at: Duration, act: Act) {
        self.made += 1;
        self.due.insert((at, self.made), act);
    }

    pub fn world(&self, event: &str, fields: &[(&str, String)]) {
        hub(|hub| hub.world("world", event, fields));
    }

    pub fn broken(&mut self, event: &str, what: String) -> Result<(), Violation> {
        self.world(event, &[("what", what)]);
        self.check()
    }

    // --- faults ------------------------------------------------------------------------------------------------------

    fn act(&mut self, act: Act) {
        match act {
            Act::Begin(fault) => {
                let kind = fault.kind(self.plan.nodes).to_owned();
                let fields = [("what", format!("{fault:?}")), ("kind", kind)];
                self.world("sim.fault", &fields);
                self.begin(&fault);
            }
            Act::End(fault, node) => {
                self.world("sim.healed", &[("what", format!("{fault:?}"))]);
                self.end(&fault, node);
            }
            Act::Start(node) => self.start(node),
            Act::Stop(node) => self.stop(node),
            Act::GoOn(node, stood) => self.go_on(node, stood),
            Act::Reset => {
                let open = hub(|hub| hub.connections());
                if !open.is_empty() {
                    let at = self.rng.random_range(0..open.len());
                    hub(|hub| hub.reset(open[at]));
                }
            }
            Act::Kill(node, actor, how) => {
                let fields = [
                    ("what", format!("{actor} is killed")),
                    ("machine", name(node)),
                ];
                self.world("sim.fault", &fields);
                hub(|hub| hub.order(node, Order::Kill(actor, how)));
            }
            Act::Crash(node) => {
                self.crash(node);
                self.plan_act(self.now() + RESTART, Act::Start(node));
            }
            Act::Compact => hub(|hub| {
                hub.stir();
                hub.compact();
            }),
            Act::MustBeGone(id, why) => {
                let registered = self.invariants.registry().registered();
                let still = registered.filter(|(r, _)| r.id == id).map(|(r, _)| r.name);
                if let Some(name) = still.last() {
                    let what = format!("{name} {why} and is still registered");
                    self.world("sim.late", &[("what", what)]);
                }
            }
        }
    }

    fn node(&mut self, who: Who) -> usize {
        match who {
            Who::Node(node) => node,
            Who::Master => hub(|hub| hub.leader()).unwrap_or(0),
        }
    }

    fn begin(&mut self, fault: &Fault) {
        let now = self.now();
        let who = match fault {
            Fault::Crash { who, .. }
            | Fault::PowerLoss { who, .. }
            | Fault::Pause { who, .. }
            | Fault::Freeze { who, .. }
            | Fault::Starve { who, .. }
            | Fault::Rate { who, .. }
            | Fault::Wall { who, .. }
            | Fault::Revoke { who }
            | Fault::Unregister { who }
            | Fault::Kill { who, .. }
            | Fault::Drain { who } => *who,
            _ => Who::Master,
        };
        let node = self.node(who);
        match fault {
            Fault::Crash { down, .. } => {
                self.expect_gone(node, GONE_AFTER_KILL, "was killed");
                self.crash(node);
                self.plan_act(now + *down, Act::Start(node));
            }
            Fault::PowerLoss { down, .. } => {
                self.expect_gone(node, GONE_AFTER_POWER_LOSS, "lost its power");
                hub(|hub| hub.machines[node].dark = true);
                self.crash(node);
                self.plan_act(now + *down, Act::Start(node));
            }
            Fault::Pause { lasting, .. } | Fault::Freeze { lasting, .. } => {
                let stood = matches!(fault, Fault::Freeze { .. });
                self.stop(node);
                self.plan_act(now + *lasting, Act::GoOn(node, stood));
            }
            Fault::Starve {
                times, each, apart, ..
            } => {
                for n in 0..*times {
                    let at = now + (*each + *apart) * n;
                    self.plan_act(at, Act::Stop(node));
                    self.plan_act(at + *each, Act::GoOn(node, false));
                }
            }
            Fault::Rate { rate, lasting, .. } => {
                self.set_rate(node, *rate);
                self.plan_act(now + *lasting, Act::End(fault.clone(), node));
            }
            Fault::Wall { to_ms, .. } => hub(|hub| hub.machines[node].wall_ms = *to_ms),
            Fault::Split { lasting, .. }
            | Fault::Bridge { lasting, .. }
            | Fault::Island { lasting, .. }
            | Fault::OneWay { lasting, .. }
            | Fault::NoRegistry { lasting, .. } => {
                for (from, to) in self.links(fault) {
                    hub(|hub| hub.cut(from, to));
                }
                self.plan_act(now + *lasting, Act::End(fault.clone(), node));
            }
            Fault::Slow { a, b, by, lasting } => {
                hub(|hub| {
                    hub.slow(*a, *b, *by);
                    hub.slow(*b, *a, *by);
                });
                self.plan_act(now + *lasting, Act::End(fault.clone(), node));
            }
            Fault::Resets { times, apart } => {
                for n in 0..*times {
                    self.plan_act(now + *apart * n, Act::Reset);
                }
            }
            Fault::RegistryDown { lasting } => {
                hub(Hub::registry_ends);
                self.plan_act(now + *lasting, Act::End(fault.clone(), node));
            }
            Fault::RegistryPause { lasting } => hub(|hub| hub.registry_stops(now + *lasting)),
            Fault::Unknown { lasting, .. }
            | Fault::Late { lasting, .. }
            | Fault::Watch { lasting, .. } => {
                hub(|hub| fall_ill(&mut hub.server.ills, fault));
                self.plan_act(now + *lasting, Act::End(fault.clone(), node));
            }
            Fault::Compact => hub(Hub::compact),
            Fault::Behind { lasting, .. } => {
                for (from, to) in self.links(fault) {
                    hub(|hub| hub.cut(from, to));
                }
                self.plan_act(now + *lasting / 2, Act::Compact);
                self.plan_act(now + *lasting, Act::End(fault.clone(), node));
            }
            Fault::Ambush { actor, after } => {
                self.ambush = Some((*actor, *after));
                self.crash(node);
                self.plan_act(now + RESTART, Act::Start(node));
            }
            Fault::Revoke { .. } => hub(|hub| hub.revoke(node)),
            Fault::Unregister { .. } => {
                let delete = Op::Delete(service(&name(node)));
                meddle(delete);
            }
            Fault::NewGeneration => self.renew(),
            Fault::Kill {
                actor,
                how,
                times,
                apart,
                ..
            } => {
                for n in 0..*times {
                    self.plan_act(now + *apart * n, Act::Kill(node, actor, *how));
                }
            }
            Fault::StepDown => hub(|hub| hub.order(node, Order::StepDown)),
            Fault::Drain { .. } => hub(|hub| hub.order(node, Order::Drain)),
        }
    }

    fn end(&mut self, fault: &Fault, node: usize) {
        match fault {
            Fault::Split { way, .. } | Fault::Bridge { way, .. } | Fault::Island { way, .. } => {
                self.reconnect(fault, *way);
            }
            Fault::OneWay { .. } | Fault::NoRegistry { .. } | Fault::Behind { .. } => {
                self.reconnect(fault, Way::Hold)
            }
            Fault::Slow { a, b, .. } => hub(|hub| {
                hub.slow(*a, *b, Duration::ZERO);
                hub.slow(*b, *a, Duration::ZERO);
            }),
            Fault::Rate { .. } => self.set_rate(node, self.plan.rates[node]),
            Fault::RegistryDown { .. } => hub(Hub::registry_begins),
            Fault::Unknown { .. } | Fault::Late { .. } | Fault::Watch { .. } => {
                hub(|hub| hub.server.ills = Ills::default());
            }
            _ => {}
        }
    }

    /// The links that carry nothing, from and to.
    fn links(&self, fault: &Fault) -> Vec<(usize, usize)> {
        let nodes = self.plan.nodes;
        let between = |side: &[usize], except: Option<usize>| {
            let mut links = Vec::new();
            for a in (0..nodes).filter(|a| side.contains(a)) {
                for b in (0..nodes).filter(|b| !side.contains(b)) {
                    if Some(a) != except && Some(b) != except {
                        links.extend([(a, b), (b, a)]);
                    }
                }
            }
            links
        };
        let registry = |side: &[usize]| {
            let ways = side.iter().flat_map(|a| [(*a, nodes), (nodes, *a)]);
            ways.collect::<Vec<_>>()
        };
        match fault {
            Fault::Split { side, .. } => between(side, None),
            Fault::Bridge { side, over, .. } => between(side, Some(*over)),
            Fault::Island { side, .. } => [between(side, None), registry(side)].concat(),
            Fault::OneWay { from, to, .. } if from != to => vec![(*from, *to)],
            Fault::NoRegistry { side, .. } | Fault::Behind { side, .. } => registry(side),
            _ => Vec::new(),
        }
    }

    fn reconnect(&mut self, fault: &Fault, way: Way) {
        for (from, to) in self.links(fault) {
            hub(|hub| {
                if way != Way::Hold && from < to {
                    hub.forget(from, to, way == Way::Reset);
                }
                hub.heal(from, to);
            });
        }
    }

    fn set_rate(&mut self, node: usize, rate: f64) {
        let now = self.now();
        hub(|hub| hub.machines[node].clock.set_rate(now, rate));
    }

    fn renew(&mut self) {
        let key = "/sim/generation";
        let known = hub(|hub| hub.value(key)).and_then(|value| value.parse::<u64>().ok());
        let now = EPOCH_SECONDS + self.now().as_secs();
        let next = known.unwrap_or(0).max(now) + 1;
        meddle(Op::Put {
            key: key.to_owned(),
            value: Bytes::from(next.to_string()),
            lease: 0,
        });
    }

    fn stop(&mut self, node: usize) {
        if let Some(process) = &mut self.processes[node]
            && !process.is_stopped()
        {
            process.stop();
            self.world("sim.paused", &[("machine", name(node))]);
        }
    }

    fn go_on(&mut self, node: usize, stood: bool) {
        let now = self.now();
        if let Some(process) = &mut self.processes[node]
            && process.is_stopped()
        {
            process.go_on(now, stood);
            let clock = if stood { "stood" } else { "went on" };
            let fields = [
                ("what", format!("{} goes on", name(node))),
                ("machine", name(node)),
                ("clock", clock.to_owned()),
            ];
            self.world("sim.healed", &fields);
        }
    }

    /// Nothing else is wrong, so its death must be seen in time, by whoever else there is.
    fn expect_gone(&mut self, node: usize, within: Duration, why: &'static str) {
        if self.plan.single && self.plan.nodes > 1 && self.processes[node].is_some() {
            let id = hub(|hub| hub.machines[node].id);
            let at = self.now() + within;
            self.plan_act(at, Act::MustBeGone(id, why));
        }
    }

    fn crash(&mut self, node: usize) {
        let Some(process) = self.processes[node].take() else {
            return;
        };
        hub(|hub| {
            hub.running = Some(node);
            // No runtime is entered: the time is the world's.
            let origin = hub.machines[node].origin.take();
            hub.note("sim.crashed".to_owned(), BTreeMap::new());
            hub.machines[node].origin = origin;
            hub.running = None;
        });
        process.kill();
    }

    fn start(&mut self, node: usize) {
        if self.processes[node].is_none() {
            self.world("sim.up", &[("machine", name(node))]);
            self.processes[node] = Some(Process::start(node, &self.plan.make));
        }
    }

    /// A process that ended by itself leaves nothing behind; the init system starts another.
    fn bury_ended(&mut self, now: Duration) {
        for node in 0..self.plan.nodes {
            let ended = hub(|hub| hub.machines[node].ended.take());
            if ended.is_some() && self.processes[node].is_some() {
                self.crash(node);
                self.plan_act(now + RESTART, Act::Start(node));
            }
        }
    }
}

/// The earliest event before `end`.
fn next_event(hub: &mut Hub, end: Duration) -> Option<(Duration, crate::hub::Event)> {
    let first = hub.queue.first_entry()?;
    let at = first.key().0;
    (at < end).then(|| (at, first.remove()))
}

fn fall_ill(ills: &mut Ills, fault: &Fault) {
    match fault {
        Fault::Unknown { of, .. } => ills.unknown = *of,
        Fault::Late { by, .. } => ills.late = *by,
        Fault::Watch {
            late,
            again,
            missing,
            ..
        } => {
            ills.watch_late = *late;
            ills.watch_again = *again;
            ills.watch_missing = *missing;
        }
        _ => {}
    }
}

fn meddle(op: Op) {
    let txn = Txn {
        then: vec![op],
        ..Txn::default()
    };
    hub(|hub| hub.meddle(&txn));
}

pub fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

/// Whether it is a verdict on somebody who is registered so. One on a life that is over has no effect.
fn is_of_now(invariants: &Invariants, record: &Record) -> bool {
    let registered = invariants.registry().registered().map(|(_, n)| n);
    let incarnation = record.number("incarnation");
    registered.into_iter().any(|n| n == incarnation)
}

/// The plan and the trace as people read them; of the trace only what comes last, unless all is asked for.
pub fn transcript(outcome: &Outcome, last: usize) -> String {
    let mut text = String::new();
    let plan = &outcome.plan;
    writeln!(
        text,
        "seed {}: {} nodes, latency {:?}, clocks {:?}, disk {:?}, {:?}",
        plan.seed, plan.nodes, plan.latency, plan.rates, plan.disk, plan.make
    )
    .ok();
    trace::tell(&mut text, &plan.faults, &outcome.trace, last);
    text
}
