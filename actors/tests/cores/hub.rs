//! What all machines of a run share: the queue of events, the links, the clocks, the trace. One per thread.
//!
//! Nobody here waits: an event is a time, whom it concerns and what happens. Whoever sends something over a link draws its
//! latency from the seed; what is sent over a link that carries nothing waits, as TCP sends again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc::{Sender, UnboundedSender};
use troupe_actors::cluster::Cluster;
use troupe_actors::id::NodeId;
use troupe_actors::testkit::trace::Record;
use troupe_actors::transport::Incoming;

use crate::net::Conns;
use crate::process::Order;
use crate::registry::Server;

/// Every wall clock of a run begins about here, unix seconds: a moment like any other.
pub const EPOCH_SECONDS: u64 = 1_800_000_000;

/// What happens.
pub type Act = Box<dyn FnOnce(&mut Hub)>;

/// At its time, after the node that it concerns has come as far.
pub struct Event {
    pub to: Option<usize>,
    pub act: Act,
}

/// How a node's time goes: `local` was its time at `global`, and goes on at `rate`.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub global: Duration,
    pub local: Duration,
    pub rate: f64,
}

impl Clock {
    pub fn local_at(&self, global: Duration) -> Duration {
        self.local + global.saturating_sub(self.global).mul_f64(self.rate)
    }

    pub fn global_at(&self, local: Duration) -> Duration {
        self.global + local.saturating_sub(self.local).div_f64(self.rate)
    }

    /// From `now` on it goes at another rate.
    pub fn set_rate(&mut self, now: Duration, rate: f64) {
        self.local = self.local_at(now);
        self.global = now;
        self.rate = rate;
    }
}

/// One machine.
pub struct Machine {
    pub name: String,
    /// Which process, from 1.
    pub life: u32,
    pub id: NodeId,
    /// Whether a process runs.
    pub up: bool,
    /// No power, or no kernel that answers.
    pub dark: bool,
    pub clock: Clock,
    /// What the wall clock shows beyond the true time, ms.
    pub wall_ms: i64,
    /// When its process began, by the process's own runtime.
    pub origin: Option<tokio::time::Instant>,
    /// Takes connections.
    pub listens: Option<Sender<Incoming>>,
    pub orders: Option<UnboundedSender<Order>>,
    pub picture: Option<Arc<Cluster>>,
    /// Why its process ended by itself.
    pub ended: Option<String>,
}

/// One direction of a link.
#[derive(Default)]
struct Link {
    cuts: u32,
    cut_since: Duration,
    slower: Duration,
    /// What was held arrives then; nothing overtakes it.
    healed: Duration,
    held: Vec<Event>,
}

/// See the module page.
pub struct Hub {
    pub now: Duration,
    /// The node whose code runs.
    pub running: Option<usize>,
    /// Nothing new happens before this: the nodes have come as far.
    pub floor: Duration,
    pub queue: BTreeMap<(Duration, u64), Event>,
    made: u64,
    pub rng: StdRng,
    pub trace: Vec<Record>,
    /// What a process says while it is torn down, it does not say in life.
    pub mute: bool,
    pub machines: Vec<Machine>,
    pub conns: Conns,
    pub server: Server,
    links: BTreeMap<(usize, usize), Link>,
    latency: (Duration, Duration),
}

thread_local! {
    static HUB: RefCell<Option<Hub>> = const { RefCell::new(None) };
}

/// Does something with the hub of this thread.
pub fn hub<T>(f: impl FnOnce(&mut Hub) -> T) -> T {
    HUB.with_borrow_mut(|hub| f(hub.as_mut().expect("a run is under way")))
}

/// Begins a run on this thread, or ends it.
pub fn set_hub(hub: Option<Hub>) -> Option<Hub> {
    HUB.replace(hub)
}

/// Writes down what production code logs.
pub fn note(event: String, fields: BTreeMap<String, String>) {
    HUB.with(|hub| {
        // Said by the hub's own doing, or after the run: no node's.
        if let Ok(mut hub) = hub.try_borrow_mut()
            && let Some(hub) = hub.as_mut()
        {
            hub.note(event, fields);
        }
    });
}

/// Writes down something on behalf of the node that runs now.
pub fn say(event: &str, fields: &[(&str, String)]) {
    let fields = fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    note(event.to_owned(), fields.collect());
}

/// The wall clock of the node that runs now, unix ms.
pub fn wall_ms() -> u64 {
    HUB.with(|hub| {
        let Ok(hub) = hub.try_borrow() else {
            return EPOCH_SECONDS * 1000;
        };
        let Some(hub) = hub.as_ref() else {
            return EPOCH_SECONDS * 1000;
        };
        let off = hub.running.map_or(0, |node| hub.machines[node].wall_ms);
        let since = i64::try_from(hub.time().as_millis()).unwrap_or(0);
        (EPOCH_SECONDS * 1000).saturating_add_signed(since + off)
    })
}

impl Hub {
    pub fn new(
        seed: u64,
        nodes: usize,
        latency: (Duration, Duration),
        server: impl FnOnce(Instant) -> Server,
    ) -> Self {
        let machine = |n: usize| Machine {
            name: format!("n{}", n + 1),
            life: 0,
            id: NodeId(0),
            up: false,
            dark: false,
            clock: Clock {
                global: Duration::ZERO,
                local: Duration::ZERO,
                rate: 1.0,
            },
            wall_ms: 0,
            origin: None,
            listens: None,
            orders: None,
            picture: None,
            ended: None,
        };
        Self {
            now: Duration::ZERO,
            running: None,
            floor: Duration::ZERO,
            queue: BTreeMap::new(),
            made: 0,
            rng: StdRng::seed_from_u64(seed ^ 0x5eed_c0de),
            trace: Vec::new(),
            mute: false,
            machines: (0..nodes).map(machine).collect(),
            conns: Conns::default(),
            server: server(Instant::now()),
            links: BTreeMap::new(),
            latency,
        }
    }

    /// The place of the registry among the ends of links.
    pub fn registry(&self) -> usize {
        self.machines.len()
    }

    /// True time: of the node that runs, as far as it has come, or of the world.
    pub fn time(&self) -> Duration {
        let Some(node) = self.running else {
            return self.now;
        };
        let machine = &self.machines[node];
        let Some(origin) = machine.origin else {
            return self.now;
        };
        let local = tokio::time::Instant::now().saturating_duration_since(origin);
        machine.clock.global_at(local).max(self.now)
    }

    pub fn note(&mut self, event: String, fields: BTreeMap<String, String>) {
        if self.mute {
            return;
        }
        let (node, life) = match self.running {
            Some(node) => (self.machines[node].name.clone(), self.machines[node].life),
            None => ("world".to_owned(), 1),
        };
        self.trace.push(Record {
            at: self.time(),
            node,
            life,
            event,
            fields,
        });
    }

    /// Writes down what the world or the registry did or saw.
    pub fn world(&mut self, who: &str, event: &str, fields: &[(&str, String)]) {
        let record = Record::new(self.now, who, 1, event);
        let record = fields.iter().fold(record, |r, (k, v)| r.with(k, v));
        self.trace.push(record);
    }

    // --- events ------------------------------------------------------------------------------------------------------

    /// Something happens at a time, or as soon as it still can.
    pub fn at(&mut self, time: Duration, to: Option<usize>, act: Act) {
        self.made += 1;
        let time = time.max(self.floor);
        self.queue.insert((time, self.made), Event { to, act });
    }

    /// Sends something over a link; not before `after`. Answers when it arrives, if it is known.
    pub fn send(&mut self, from: usize, to: usize, after: Duration, act: Act) -> Option<Duration> {
        let node = (to < self.machines.len()).then_some(to);
        let event = Event { to: node, act };
        if let Some(link) = self.links.get_mut(&(from, to))
            && link.cuts > 0
        {
            link.held.push(event);
            return None;
        }
        let slower = self.links.get(&(from, to));
        let (slower, healed) = slower.map_or_else(Default::default, |l| (l.slower, l.healed));
        let latency = self.rng.random_range(self.latency.0..=self.latency.1) + slower;
        let time = (self.time() + latency).max(after).max(healed);
        let time = time.max(self.floor);
        self.at(time, node, event.act);
        Some(time)
    }

    // --- links -------------------------------------------------------------------------------------------------------

    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.links.get(&(from, to)).is_some_and(|l| l.cuts > 0)
    }

    /// Nothing goes from one to the other any more; cuts add up.
    pub fn cut(&mut self, from: usize, to: usize) {
        let now = self.now;
        let link = self.links.entry((from, to)).or_default();
        if link.cuts == 0 {
            link.cut_since = now;
        }
        link.cuts += 1;
    }

    /// One cut less; with the last, what was held arrives when TCP next tries.
    pub fn heal(&mut self, from: usize, to: usize) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&(from, to)) else {
            return;
        };
        link.cuts = link.cuts.saturating_sub(1);
        if link.cuts > 0 {
            return;
        }
        // The wait between tries doubles with the time that it has not worked.
        let longest = (now - link.cut_since)
            .div_f64(2.0)
            .min(Duration::from_secs(2));
        let held = std::mem::take(&mut link.held);
        let again = longest.mul_f64(self.rng.random::<f64>());
        let arrives = now + self.latency.0 + again;
        if let Some(link) = self.links.get_mut(&(from, to)) {
            link.healed = arrives;
        }
        for event in held {
            self.at(arrives, event.to, event.act);
        }
    }

    pub fn slow(&mut self, from: usize, to: usize, by: Duration) {
        self.links.entry((from, to)).or_default().slower = by;
    }

    /// Every link carries again, at its ordinary speed.
    pub fn heal_all(&mut self) {
        let links: BTreeSet<(usize, usize)> = self.links.keys().copied().collect();
        for (from, to) in links {
            while self.is_cut(from, to) {
                self.heal(from, to);
            }
            self.slow(from, to, Duration::ZERO);
        }
    }

    /// Reaches a node's process.
    pub fn order(&self, node: usize, order: Order) {
        let machine = &self.machines[node];
        if let Some(orders) = machine.orders.as_ref().filter(|_| machine.up) {
            // A process that is ending does not read any more.
            orders.send(order).ok();
        }
    }

    /// The node that leads, by its own word.
    pub fn leader(&self) -> Option<usize> {
        let leads = |m: &Machine| m.up && m.picture.as_ref().is_some_and(|p| p.leading);
        self.machines.iter().position(leads)
    }
}
