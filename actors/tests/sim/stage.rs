//! What the simulated machines and the world that drives them share: the trace, who runs where, what each node sees.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::mpsc::UnboundedSender;
use troupe_actors::cluster::Cluster;
use troupe_actors::id::{NodeId, TaskId};
use troupe_actors::registry::embedded::Platter;
use troupe_actors::supervisor::How;
use troupe_actors::testkit::trace::Record;

/// Every wall clock of a run begins here, unix seconds: a moment like any other.
pub const EPOCH_SECONDS: u64 = 1_800_000_000;

/// What a client asks of a task.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Accept it, with this input, once more.
    Submit(String),
    Read,
    Cancel,
    Retry,
}

/// What the world asks of a machine.
#[derive(Clone, Debug)]
pub enum Order {
    /// Hand this task in: its id, its input, whether it is durable.
    Submit(TaskId, String, bool),
    /// Look up this task; answered by `sim.task`.
    Look(TaskId),
    /// A client's call, by its number; told of by `sim.called` and `sim.returned`.
    Call(u64, Ask, TaskId),
    /// Break an actor.
    Kill(&'static str, How),
    /// Give up mastership.
    StepDown,
    /// Leave as on SIGTERM.
    Drain,
    /// End a node's lease behind its back (the witness at the registry does it).
    Revoke(String),
    /// Make a new generation (the witness does it).
    Renew,
    /// Delete a node's registration behind its back (the witness does it).
    Unregister(String),
    /// Drop all of the registry's history (the witness does it).
    Compact,
    /// Put a key that nobody cares for, so that there is news (the witness does it).
    Touch,
}

/// One machine.
#[derive(Default)]
pub struct Seat {
    /// Which process, from 1.
    pub life: u32,
    /// Its identity.
    pub id: NodeId,
    /// Reaches it; its process reads.
    pub orders: Option<UnboundedSender<Order>>,
    /// What it last told of the cluster.
    pub picture: Option<Arc<Cluster>>,
    /// Why its process ended by itself.
    pub ended: Option<String>,
    /// Whether a process runs.
    pub up: bool,
}

/// See the module page.
#[derive(Default)]
pub struct Stage {
    pub trace: Vec<Record>,
    pub seats: BTreeMap<String, Seat>,
    /// What the registry keeps when its process ends; none when it is in memory, or begins.
    pub platter: Option<Platter>,
    places: BTreeMap<String, (String, u32)>,
    now: Duration,
    /// Whose code runs while the world, not a runtime, runs it (a process is torn down).
    acting: Option<(String, u32)>,
}

pub type Shared = Rc<RefCell<Stage>>;

impl Stage {
    /// A process begins on this machine; its runtime is the current one.
    pub fn enter(&mut self, node: &str) -> u32 {
        let seat = self.seats.entry(node.to_owned()).or_default();
        seat.life += 1;
        seat.picture = None;
        seat.ended = None;
        seat.up = true;
        let place = (node.to_owned(), seat.life);
        CLOCKS
            .with_borrow_mut(|clocks| clocks.runs.insert(Handle::current().id(), node.to_owned()));
        self.places
            .insert(Handle::current().id().to_string(), place);
        seat.life
    }

    pub fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    pub fn act_as(&mut self, place: Option<(String, u32)>) {
        self.acting = place;
    }

    /// Writes down what happened here and now.
    pub fn note(&mut self, event: String, fields: BTreeMap<String, String>) {
        let (node, life) = self.place();
        let at = turmoil::sim_elapsed().unwrap_or(self.now);
        self.trace.push(Record {
            at,
            node,
            life,
            event,
            fields,
        });
    }

    /// Writes down what the world did or saw.
    pub fn world(&mut self, event: &str, fields: &[(&str, &str)]) {
        let record = Record::new(self.now, "world", 1, event);
        let record = fields.iter().fold(record, |r, (k, v)| r.with(k, v));
        self.trace.push(record);
    }

    fn place(&self) -> (String, u32) {
        if let Some(place) = &self.acting {
            return place.clone();
        }
        let runtime = Handle::try_current().map(|handle| handle.id().to_string());
        let place = runtime.ok().and_then(|id| self.places.get(&id).cloned());
        place.unwrap_or_else(|| ("world".to_owned(), 1))
    }

    pub fn order(&self, node: &str, order: Order) {
        let seat = self.seats.get(node);
        if let Some(orders) = seat.filter(|s| s.up).and_then(|s| s.orders.as_ref()) {
            // A process that is ending does not read any more.
            orders.send(order).ok();
        }
    }
}

/// Writes down something on behalf of the machine that runs now.
pub fn note(stage: &Shared, event: &str, fields: &[(&str, String)]) {
    let fields = fields
        .iter()
        .map(|(k, v)| ((*k).to_owned(), v.clone()))
        .collect();
    stage.borrow_mut().note(event.to_owned(), fields);
}

/// Wall clocks of machines.
#[derive(Default)]
struct Clocks {
    /// Which machine a runtime is.
    runs: HashMap<Id, String>,
    /// How far each is off, milliseconds.
    off: BTreeMap<String, i64>,
}

thread_local! {
    static CLOCKS: RefCell<Clocks> = RefCell::default();
}

/// From now on this machine's wall clock is so many milliseconds off.
pub fn set_clock(node: &str, off: i64) {
    CLOCKS.with_borrow_mut(|clocks| clocks.off.insert(node.to_owned(), off));
}

/// Every clock is right, and of no machine.
pub fn forget_clocks() {
    CLOCKS.set(Clocks::default());
}

/// The simulated wall clock of the machine that asks, unix ms.
pub fn wall_ms() -> u64 {
    let since = turmoil::since_epoch().unwrap_or(Duration::from_secs(EPOCH_SECONDS));
    let right = u64::try_from(since.as_millis()).unwrap_or(0);
    let off = Handle::try_current().ok().and_then(|handle| {
        CLOCKS.with_borrow(|clocks| clocks.off.get(clocks.runs.get(&handle.id())?).copied())
    });
    right.saturating_add_signed(off.unwrap_or(0))
}
