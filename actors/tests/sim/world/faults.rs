//! What each fault does to the world, and how it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use troupe_actors::supervisor::How;

use super::{Act, CALM_BEFORE, GONE_AFTER_KILL, GONE_AFTER_POWER_LOSS, Link, World, name};
use crate::net;
use crate::plan::{Fault, Misnews, Way};
use crate::registry::Mood;
use crate::stage::{self, Order};

/// The witness has written and compacted by then.
const COMPACTED_AFTER: Duration = Duration::from_millis(300);

/// The number of a fault beside another.
const BESIDE: usize = 1000;

/// Who is promoted next does not live long.
pub(super) struct Aim {
    left: u32,
    after: Duration,
    whole: bool,
    down: Duration,
}

impl World<'_> {
    pub(super) fn begin(&mut self, n: usize, fault: Fault) {
        let now = self.sim.elapsed();
        match &fault {
            Fault::Crash { node, down } => {
                self.expect_gone(*node, GONE_AFTER_KILL, "was killed");
                self.crash(&name(*node));
                self.plan_act(now + *down, Act::Start(name(*node)));
            }
            Fault::PowerLoss { node, down } => {
                self.expect_gone(*node, GONE_AFTER_POWER_LOSS, "lost its power");
                self.links.insert(n, fault.clone());
                self.set_links();
                self.crash(&name(*node));
                self.plan_act(now + *down, Act::End(n, fault.clone()));
                self.plan_act(now + *down, Act::Start(name(*node)));
            }
            Fault::Split { lasting, .. }
            | Fault::Bridge { lasting, .. }
            | Fault::Misnews { lasting, .. }
            | Fault::LostReplies { lasting, .. }
            | Fault::OneWay { lasting, .. }
            | Fault::NoRegistry { lasting, .. }
            | Fault::Slow { lasting, .. } => {
                self.links.insert(n, fault.clone());
                self.plan_act(now + *lasting, Act::End(n, fault.clone()));
                self.set_links();
                self.set_mood();
                self.without_registry_too(n, &fault);
            }
            Fault::RegistryDown { lasting } => {
                self.crash("registry");
                self.stage.borrow_mut().platter = None;
                self.plan_act(now + *lasting, Act::Start("registry".to_owned()));
            }
            Fault::RegistryRestart { lasting } => {
                self.crash("registry");
                self.plan_act(now + *lasting, Act::Start("registry".to_owned()));
            }
            Fault::Compact { behind } => {
                self.links.insert(n, fault.clone());
                self.set_mood();
                self.plan_act(now + *behind, Act::Compact);
                self.plan_act(now + *behind + COMPACTED_AFTER, Act::End(n, fault.clone()));
            }
            Fault::NewMasters {
                times,
                after,
                whole,
                down,
            } => {
                self.aim = Some(Aim {
                    left: *times,
                    after: *after,
                    whole: *whole,
                    down: *down,
                });
                if let Some(master) = self.master() {
                    self.strike(&master, *whole, *down);
                }
            }
            Fault::Resets {
                node,
                registry,
                times,
                apart,
            } => {
                for n in 0..*times {
                    self.plan_act(now + *apart * n, Act::Reset(*node, *registry));
                }
            }
            Fault::Clock { node, to_ms } => {
                self.clocks[*node] = *to_ms;
                stage::set_clock(&name(*node), self.clocks[*node]);
            }
            Fault::Revoke { node } => {
                let order = Order::Revoke(name(*node));
                self.stage.borrow().order("witness", order);
            }
            Fault::NewGeneration => {
                self.stage.borrow().order("witness", Order::Renew);
                if self.rng.random_bool(0.5) {
                    let soon = self.rng.random_range(2..=100);
                    self.plan_act(now + Duration::from_millis(soon), Act::RenewAgain);
                }
            }
            Fault::Unregister { node } => {
                let order = Order::Unregister(name(*node));
                self.stage.borrow().order("witness", order);
            }
            Fault::Kill {
                node,
                actor,
                how,
                times,
                apart,
            } => {
                for n in 0..*times {
                    let act = Act::Kill(*node, actor, *how);
                    self.plan_act(now + *apart * n, act);
                }
            }
            Fault::StepDown { node } => self.stage.borrow().order(&name(*node), Order::StepDown),
            Fault::Drain { node } => self.stage.borrow().order(&name(*node), Order::Drain),
        }
    }

    /// The smaller side of a split may lose the registry with it: then nobody there can hear of what goes on.
    fn without_registry_too(&mut self, n: usize, fault: &Fault) {
        let Fault::Split { side, way, lasting } = fault else {
            return;
        };
        let small = 2 * side.len() < self.plan.nodes && !self.plan.single;
        if small && self.rng.random_bool(0.4) {
            let alone = Fault::NoRegistry {
                nodes: side.clone(),
                way: *way,
                lasting: *lasting,
            };
            self.act(Act::Begin(n + BESIDE, alone));
        }
    }

    /// Nothing else is wrong, so its death must be seen in time, by whoever else there is.
    fn expect_gone(&mut self, node: usize, within: Duration, why: &'static str) {
        let id = {
            let stage = self.stage.borrow();
            let seat = stage.seats.get(&name(node));
            seat.filter(|seat| seat.up).map(|seat| seat.id)
        };
        // Its own loss of power is counted already.
        let lossy = u32::from(within == GONE_AFTER_POWER_LOSS);
        let Some(id) = id.filter(|_| self.plan.nodes > 1) else {
            return;
        };
        let at = self.sim.elapsed() + within;
        if self.plan.single {
            self.plan_act(at, Act::MustBeGone(id, why));
        } else if self.links.is_empty() && self.prompt.lossy == lossy {
            let since = self.sim.elapsed().saturating_sub(CALM_BEFORE);
            self.plan_act(at, Act::MustBeGoneUnless(id, why, since));
        }
    }

    pub(super) fn end(&mut self, n: usize, fault: &Fault) {
        self.links.remove(&n);
        if let Fault::Slow { a, b, .. } = fault {
            self.slow(*a, *b, self.plan.latency.1);
        }
        self.set_links();
        self.set_mood();
        if matches!(fault, Fault::Compact { .. } | Fault::Misnews { .. }) {
            // Who was told nothing hears of it with the next news.
            self.stage.borrow().order("witness", Order::Touch);
        }
    }

    /// Puts the registry into the mood that the faults of now amount to.
    fn set_mood(&mut self) {
        let mut mood = Mood::default();
        for fault in self.links.values() {
            match fault {
                Fault::Compact { .. } => mood.news = Some(Misnews::Late),
                Fault::Misnews { how, .. } if mood.news != Some(Misnews::Late) => {
                    mood.news = Some(*how);
                }
                Fault::LostReplies { share, .. } => {
                    mood.lost_replies = mood.lost_replies.max(*share);
                }
                _ => {}
            }
        }
        self.mood.set(mood);
    }

    /// Ends a node's process, or its MasterActor.
    pub(super) fn strike(&mut self, node: &str, whole: bool, down: Duration) {
        let kind = if whole { "kill -9" } else { "an actor killed" };
        let what = [
            ("what", "the master is struck"),
            ("kind", kind),
            ("machine", node),
        ];
        self.world("sim.fault", &what);
        self.troubled(vec![node.to_owned()]);
        if whole {
            self.crash(node);
            let up = self.sim.elapsed() + down;
            self.plan_act(up, Act::Start(node.to_owned()));
        } else {
            let kill = Order::Kill("master", How::Panic);
            self.stage.borrow().order(node, kill);
            self.call_while_dead(node);
        }
    }

    /// Somebody was promoted: it may be next.
    pub(super) fn promoted(&mut self, node: &str, life: u32) {
        let Some(aim) = self.aim.as_mut().filter(|aim| aim.left > 0) else {
            return;
        };
        aim.left -= 1;
        let (after, whole, down) = (aim.after, aim.whole, aim.down);
        let at = self.sim.elapsed() + after;
        self.plan_act(at, Act::Strike(node.to_owned(), life, whole, down));
    }

    pub(super) fn reset(&self, node: usize, registry: bool) {
        let me = name(node);
        if registry {
            net::reset(&me, "registry");
            return;
        }
        for other in (0..self.plan.nodes).filter(|other| *other != node) {
            net::reset(&me, &name(other));
        }
    }

    fn slow(&mut self, a: usize, b: usize, by: Duration) {
        if a != b {
            self.sim.set_link_max_message_latency(name(a), name(b), by);
        }
    }

    /// Puts every link into the state that the faults of now amount to.
    fn set_links(&mut self) {
        let mut wanted: BTreeMap<(String, String), Link> = BTreeMap::new();
        let mut slow = Vec::new();
        for fault in self.links.values() {
            for (a, b, link) in links_of(fault, self.plan.nodes) {
                let pair = (a.clone().min(b.clone()), a.max(b));
                let entry = wanted.entry(pair).or_insert(Link::Fine);
                *entry = (*entry).max(link);
            }
            if let Fault::Slow { a, b, by, .. } = fault {
                slow.push((*a, *b, *by));
            }
        }
        for (a, b, by) in slow {
            self.slow(a, b, by);
        }
        let pairs: BTreeSet<_> = wanted.keys().chain(self.cut.keys()).cloned().collect();
        for pair in pairs {
            let is = self.cut.get(&pair).copied().unwrap_or(Link::Fine);
            let to = wanted.get(&pair).copied().unwrap_or(Link::Fine);
            if is != to {
                self.set_link(&pair, to);
                self.cut.insert(pair, to);
            }
        }
    }

    fn set_link(&mut self, (a, b): &(String, String), to: Link) {
        let (a, b) = (a.as_str(), b.as_str());
        let (one, other) = (self.one_way(a, b), self.one_way(b, a));
        net::set_cut(
            a,
            b,
            matches!(to, Link::Drop | Link::Hold) || (to == Link::OneWay && one),
        );
        net::set_cut(
            b,
            a,
            matches!(to, Link::Drop | Link::Hold) || (to == Link::OneWay && other),
        );
        match to {
            Link::Fine => {
                self.sim.repair(a, b);
                self.sim.release(a, b);
            }
            Link::Hold => self.sim.hold(a, b),
            Link::Drop => self.sim.partition(a, b),
            Link::OneWay => {
                self.sim.release(a, b);
                if one {
                    self.sim.partition_oneway(a, b);
                }
                if other {
                    self.sim.partition_oneway(b, a);
                }
            }
        }
    }

    fn one_way(&self, a: &str, b: &str) -> bool {
        self.links.values().any(|fault| {
            matches!(fault, Fault::OneWay { from, to, .. } if name(*from) == a && name(*to) == b)
        })
    }
}

/// The links that a fault concerns, and how.
fn links_of(fault: &Fault, nodes: usize) -> Vec<(String, String, Link)> {
    let state = |way: Way| match way {
        Way::Hold => Link::Hold,
        Way::Drop => Link::Drop,
    };
    match fault {
        Fault::PowerLoss { node, .. } => (0..nodes)
            .filter(|other| other != node)
            .map(name)
            .chain(["registry".to_owned()])
            .map(|other| (name(*node), other, Link::Drop))
            .collect(),
        Fault::Split { side, way, .. } => {
            let mut links = Vec::new();
            for a in side {
                for b in (0..nodes).filter(|b| !side.contains(b)) {
                    links.push((name(*a), name(b), state(*way)));
                }
            }
            links
        }
        Fault::Bridge {
            bridge, side, way, ..
        } => {
            let mut links = Vec::new();
            for a in side.iter().filter(|a| *a != bridge) {
                for b in (0..nodes).filter(|b| b != bridge && !side.contains(b)) {
                    links.push((name(*a), name(b), state(*way)));
                }
            }
            links
        }
        Fault::OneWay { from, to, .. } if from != to => {
            vec![(name(*from), name(*to), Link::OneWay)]
        }
        Fault::NoRegistry { nodes, way, .. } => {
            let to = |n: &usize| (name(*n), "registry".to_owned(), state(*way));
            nodes.iter().map(to).collect()
        }
        _ => Vec::new(),
    }
}
