//! What clients do beside submitting: they read, cancel, try again and send the same id again, at whichever node they like.

use std::time::Duration;

use rand::RngExt;
use troupe_actors::id::TaskId;
use troupe_actors::testkit::machine::DOOMED;

use super::{Act, World, name};
use crate::stage::{Ask, Order};

/// Tasks that clients remember.
const REMEMBERED: usize = 6;
/// Calls are so long apart at the most.
const APART_MS: u64 = 120;

/// What clients know.
#[derive(Default)]
pub struct Load {
    tasks: Vec<(TaskId, String)>,
    next: Duration,
    calls: u64,
}

impl World<'_> {
    /// A durable task was handed in.
    pub(super) fn remember(&mut self, id: TaskId, input: &str) {
        self.load.tasks.push((id, input.to_owned()));
        if self.load.tasks.len() > REMEMBERED {
            self.load.tasks.remove(0);
        }
    }

    /// The input of the next task: now and then one that cannot but fail, for somebody to try again.
    pub(super) fn input(&mut self) -> String {
        if self.plan.clients && self.rng.random_bool(0.15) {
            return DOOMED.to_owned();
        }
        self.rng.random_range(30..60).to_string()
    }

    /// Once in a while somebody calls.
    pub(super) fn clients(&mut self) {
        let now = self.sim.elapsed();
        if !self.plan.clients || now < self.load.next || self.load.tasks.is_empty() {
            return;
        }
        let wait = self.rng.random_range(5..APART_MS);
        self.load.next = now + Duration::from_millis(wait);
        let at = self.rng.random_range(0..self.load.tasks.len());
        let (id, input) = self.load.tasks[at].clone();
        let ask = match self.rng.random_range(0..20) {
            0 => Ask::Cancel,
            1..=3 => Ask::Retry,
            4..=6 => Ask::Submit(input),
            _ => Ask::Read,
        };
        let to = self.somebody();
        self.call(&to, ask, id);
    }

    /// MasterActor of this node is being killed: what is sent to it meanwhile must wait for its next life.
    pub(super) fn call_while_dead(&mut self, node: &str) {
        for ms in [8, 25, 60] {
            let at = self.sim.elapsed() + Duration::from_millis(ms);
            self.plan_act(at, Act::Call(node.to_owned()));
        }
    }

    pub(super) fn call_into(&mut self, node: &str) {
        if let Some((id, _)) = self.load.tasks.last().cloned() {
            self.call(node, Ask::Read, id);
        }
    }

    pub(super) fn call(&mut self, to: &str, ask: Ask, id: TaskId) {
        self.load.calls += 1;
        let order = Order::Call(self.load.calls, ask, id);
        self.stage.borrow().order(to, order);
    }

    /// Whoever believes that it leads, most of the time; there may be several.
    fn somebody(&mut self) -> String {
        let leaders: Vec<String> = {
            let stage = self.stage.borrow();
            let leads = |seat: &crate::stage::Seat| {
                seat.up && seat.picture.as_ref().is_some_and(|p| p.leading)
            };
            let seats = stage.seats.iter().filter(|(_, seat)| leads(seat));
            seats.map(|(node, _)| node.clone()).collect()
        };
        if leaders.is_empty() || self.rng.random_bool(0.2) {
            return name(self.rng.random_range(0..self.plan.nodes));
        }
        let at = self.rng.random_range(0..leaders.len());
        leaders[at].clone()
    }
}
