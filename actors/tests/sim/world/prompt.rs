//! What must happen soon although other things are wrong, and what must be so a while after nothing is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use troupe_actors::cluster::MemberState;
use troupe_actors::id::NodeId;
use troupe_actors::testkit::invariants::Violation;
use troupe_actors::testkit::trace::Record;

use super::{Act, World, name};
use crate::plan::{Fault, Misnews, Way};

/// How soon after the last change of the registry, with nothing wrong any more, everybody's view must show it: a session with
/// the registry that is stuck is found out and made anew within this.
const SHOWN_WITHIN: Duration = Duration::from_secs(14);
/// Among nodes that all see each other somebody leads within this: those who abstain, and the longest damping.
const LED_WITHIN: Duration = Duration::from_secs(30);
/// A node that reaches the registry answers a challenge within this: less than the window that it has.
const ANSWERED_WITHIN: Duration = Duration::from_millis(800);
/// A node is over what was wrong between it and the registry after this.
const OVER_IT: Duration = Duration::from_secs(12);

/// See the module page.
#[derive(Default)]
pub struct Prompt {
    /// Who is registered, and which process runs where; since when.
    known: (BTreeSet<NodeId>, Vec<(String, u32)>),
    since: Duration,
    leaderless: Option<Duration>,
    /// When something was last wrong between a node and the registry.
    trouble: BTreeMap<String, Duration>,
    /// When faults began or ended.
    faults: Vec<Duration>,
    /// Who has said that it deregistered as it left.
    left: BTreeSet<(String, u32)>,
    /// Faults so far, begun or ended, that leave streams which look well and are stuck.
    pub(super) lossy: u32,
}

impl Prompt {
    /// Whether no more than one fault began or ended since then.
    pub(super) fn only_one_fault_since(&self, since: Duration) -> bool {
        self.faults.iter().filter(|at| **at >= since).count() <= 1
    }
}

impl World<'_> {
    /// A fault begins or ends: with whom it comes between the registry and a node.
    pub(super) fn trouble(&mut self, fault: &Fault) {
        self.prompt.faults.push(self.sim.elapsed());
        let lossy = matches!(
            fault,
            Fault::PowerLoss { .. }
                | Fault::OneWay { .. }
                | Fault::Split { way: Way::Drop, .. }
                | Fault::Bridge { way: Way::Drop, .. }
                | Fault::NoRegistry { way: Way::Drop, .. }
        );
        self.prompt.lossy += u32::from(lossy);
        let nodes: Vec<String> = match fault {
            // Among nodes only.
            Fault::Split { .. }
            | Fault::Bridge { .. }
            | Fault::OneWay { .. }
            | Fault::Slow { .. }
            | Fault::Resets { .. }
            | Fault::Clock { .. }
            | Fault::StepDown { .. }
            | Fault::Drain { .. } => Vec::new(),
            Fault::Crash { node, .. }
            | Fault::PowerLoss { node, .. }
            | Fault::Kill { node, .. }
            | Fault::Revoke { node }
            | Fault::Unregister { node } => vec![name(*node)],
            Fault::NoRegistry { nodes, .. } => nodes.iter().copied().map(name).collect(),
            _ => self.all_nodes(),
        };
        self.troubled(nodes);
    }

    pub(super) fn all_nodes(&self) -> Vec<String> {
        (0..self.plan.nodes).map(name).collect()
    }

    pub(super) fn troubled(&mut self, nodes: Vec<String>) {
        let now = self.sim.elapsed();
        if self.prompt.faults.last() != Some(&now) {
            self.prompt.faults.push(now);
        }
        for node in nodes {
            self.prompt.trouble.insert(node, now);
        }
    }

    /// Nothing was wrong between this node and the registry from a good while before `since` until now.
    pub(super) fn was_well(&self, node: &str, since: Duration) -> bool {
        let trouble = self.prompt.trouble.get(node);
        trouble.is_none_or(|at| *at + OVER_IT < since)
    }

    /// Whoever leaves says that it deregisters.
    pub(super) fn note_leaving(&mut self, record: &Record) {
        if record.event == "node.deregistered" && record.get("reason") == "left" {
            self.prompt.left.insert((record.node.clone(), record.life));
        }
    }

    /// A process has ended as drained. Others would remove what it left behind soon: it is to have done so by itself.
    pub(super) fn has_left(&mut self, node: &str, life: u32, id: NodeId) {
        let said = self.prompt.left.contains(&(node.to_owned(), life));
        let mut registered = self.invariants.registry().registered();
        if !said && registered.any(|(r, _)| r.id == id) {
            let what = format!("{node} was drained and has left its registration behind");
            self.world("sim.leak", &[("what", &what)]);
        }
    }

    /// A challenge to a node that reaches the registry is to be answered.
    pub(super) fn expect_answer(&mut self, record: &Record) {
        let key = record.get("key");
        let Some((_, incarnation)) = key.split_once("/challenge/") else {
            return;
        };
        if let (Ok(incarnation), true) = (incarnation.parse(), record.event == "sim.put") {
            let at = self.sim.elapsed() + ANSWERED_WITHIN;
            self.plan_act(at, Act::MustAnswer(incarnation));
        }
    }

    pub(super) fn must_answer(&mut self, incarnation: i64) {
        let (registry, asked) = (
            self.invariants.registry(),
            format!("/challenge/{incarnation}"),
        );
        let open = registry.keys().any(|(key, _)| key.ends_with(&asked));
        let owner = registry.registered().find(|(_, i)| *i == incarnation);
        let Some((owner, _)) = owner.filter(|_| open) else {
            return;
        };
        let began = self.sim.elapsed().saturating_sub(ANSWERED_WITHIN);
        let runs = {
            let stage = self.stage.borrow();
            let seat = stage.seats.get(&owner.name);
            seat.is_some_and(|seat| seat.up && seat.id == owner.id && seat.ended.is_none())
        };
        if runs && self.was_well(&owner.name, began) {
            let what = format!(
                "{} reaches the registry and does not answer a challenge",
                owner.name
            );
            self.world("sim.late", &[("what", &what)]);
        }
    }

    /// While all is waited for that must come back: what must be so much sooner.
    pub(super) fn must_be_so_by_now(&mut self, quiet_since: Duration) -> Result<(), Violation> {
        let now = self.sim.elapsed();
        let registered: BTreeSet<NodeId> = {
            let registry = self.invariants.registry();
            registry.registered().map(|(r, _)| r.id).collect()
        };
        let lives: Vec<(String, u32)> = {
            let stage = self.stage.borrow();
            let seats = stage.seats.iter().filter(|(_, seat)| seat.up);
            seats
                .map(|(node, seat)| (node.clone(), seat.life))
                .collect()
        };
        let known = (registered, lives);
        if self.prompt.known != known {
            (self.prompt.known, self.prompt.since) = (known, now);
            self.prompt.leaderless = None;
        }
        let quiet = self.prompt.since.max(quiet_since);
        if now < quiet + self.shown_within() {
            return Ok(());
        }
        if let Some(what) = self.lags_behind() {
            self.world("sim.view", &[("what", &what)]);
            return self.check();
        }
        if !self.all_agree_but_nobody_leads() {
            self.prompt.leaderless = None;
            return Ok(());
        }
        let since = *self.prompt.leaderless.get_or_insert(now);
        if now < since.max(quiet_since) + LED_WITHIN {
            return Ok(());
        }
        self.world(
            "sim.unsettled",
            &[("what", "all see each other and nobody leads")],
        );
        self.check()
    }

    /// News that were never told show with the next listing.
    fn shown_within(&self) -> Duration {
        let missed = |fault: &Fault| {
            matches!(
                fault,
                Fault::Misnews {
                    how: Misnews::Missed,
                    ..
                }
            )
        };
        if self.plan.faults.iter().any(|(_, fault)| missed(fault)) {
            return SHOWN_WITHIN + self.plan.make.relist;
        }
        SHOWN_WITHIN
    }

    /// Whose view is not what is registered.
    fn lags_behind(&self) -> Option<String> {
        let stage = self.stage.borrow();
        let registered = &self.prompt.known.0;
        self.all_nodes().iter().find_map(|node| {
            let seat = stage
                .seats
                .get(node)
                .filter(|seat| seat.up && seat.ended.is_none())?;
            let picture = seat.picture.as_ref()?;
            let seen: BTreeSet<NodeId> =
                picture.members.iter().map(|m| m.registration.id).collect();
            (seen != *registered).then(|| {
                let names: Vec<&str> = picture
                    .members
                    .iter()
                    .map(|m| m.registration.name.as_str())
                    .collect();
                format!(
                    "{node} sees {names:?} long after the registry came to hold {} registrations",
                    registered.len()
                )
            })
        })
    }

    fn all_agree_but_nobody_leads(&self) -> bool {
        let stage = self.stage.borrow();
        let nodes = self.all_nodes();
        let agrees = |node: &String| {
            let seat = stage.seats.get(node).filter(|seat| seat.up)?;
            let picture = seat.picture.as_ref()?;
            let well = picture.members.iter().all(|m| {
                let itself = m.registration.id == seat.id;
                m.state == MemberState::Alive && (m.session || itself)
            });
            let all = picture.members.len() == nodes.len() && picture.registry;
            (well && all && !picture.leading).then_some(())
        };
        nodes.iter().all(|node| agrees(node).is_some())
    }
}
