//! What must be so once nothing is wrong any more: agreement, every accepted task at its end, every worker at its full credit.

use std::collections::BTreeSet;
use std::time::Duration;

use troupe_actors::cluster::MemberState;
use troupe_actors::id::TaskId;
use troupe_actors::testkit::invariants::Violation;

use crate::hub::hub;
use crate::process::Order;
use crate::world::{CALM, World, name};
use troupe_actors::testkit::machine::{PROBE, PROBE_TAKES};

/// How long all nodes may take to agree once nothing is wrong. The longest wait there is: 60 s of doubling for a node that
/// was condemned again and again, and a session that carries nothing until its idle time is over.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// How long a task may take once all is well: three tries of the longest job, with the waits between.
const FINISHED_WITHIN: Duration = Duration::from_secs(60);
/// How long an attempt may be with a worker beyond the time its job takes.
const LEASE_SLACK: Duration = Duration::from_secs(3);
/// A session that carries nothing looks well until its idle time is over.
const STUCK: Duration = Duration::from_secs(12);

impl World {
    pub fn finish(&mut self, healed: Duration) -> Result<(), Violation> {
        if self.plan.may_be_stuck() {
            let left = (healed + STUCK).saturating_sub(self.now());
            self.for_time(left)?;
            self.settle()?;
        }
        self.no_lease_is_forgotten()?;
        self.finish_accepted()?;
        self.finish_probes()?;
        self.for_time(self.plan.calm)?;
        if self.plan.calm < CALM {
            self.settle()?;
        } else if let Some(why) = self.unsettled() {
            self.broken("sim.view", why)?;
        }
        self.invariants.finish(self.now())
    }

    pub fn settle(&mut self) -> Result<(), Violation> {
        let until = self.now() + SETTLED_WITHIN;
        while let Some(why) = self.unsettled() {
            if self.now() > until {
                return self.broken("sim.unsettled", why);
            }
            self.for_time(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Why the living do not agree yet.
    fn unsettled(&self) -> Option<String> {
        let registry = self.invariants.registry();
        let registered: BTreeSet<_> = registry.registered().map(|(r, _)| r.id).collect();
        let epoch = registry.epoch();
        hub(|hub| {
            let ids: BTreeSet<_> = hub.machines.iter().map(|m| m.id).collect();
            if registered != ids {
                let there: Vec<String> = registry.registered().map(|(r, _)| r.name).collect();
                return Some(format!("registered are {there:?}"));
            }
            let mut leaders = 0;
            for machine in &hub.machines {
                let me = &machine.name;
                let Some(picture) = machine.picture.as_ref().filter(|_| machine.up) else {
                    return Some(format!("{me} has told nothing yet"));
                };
                let seen: BTreeSet<_> = picture.members.iter().map(|m| m.registration.id).collect();
                if seen != ids {
                    return Some(format!("{me} sees {} of {}", seen.len(), ids.len()));
                }
                for member in &picture.members {
                    let itself = member.registration.id == machine.id;
                    if member.state != MemberState::Alive || !(member.session || itself) {
                        let (name, state) = (&member.registration.name, member.state.as_str());
                        let session = member.session;
                        return Some(format!("{me} sees {name} as {state}, session {session}"));
                    }
                }
                match &picture.master {
                    Some(master) if master.epoch == epoch => {}
                    other => {
                        return Some(format!("{me} goes by {other:?}, the registry says {epoch}"));
                    }
                }
                if !picture.registry {
                    return Some(format!("{me} believes the registry to be away"));
                }
                leaders += usize::from(picture.leading);
            }
            (leaders != 1).then(|| format!("{leaders} nodes lead"))
        })
    }

    /// Tasks handed in now must end, and every worker must get as much as it grants: a credit that was lost on the way would
    /// show here.
    fn finish_probes(&mut self) -> Result<(), Violation> {
        let Some(master) = hub(|hub| hub.leader()) else {
            return Ok(());
        };
        let nodes = self.plan.nodes;
        let workers: Vec<usize> = (0..nodes).filter(|n| nodes == 1 || *n != master).collect();
        let capacity = self.plan.make.capacity as usize;
        self.invariants.tasks().forget_peaks();
        let open: Vec<TaskId> = (0..workers.len() * capacity * 2)
            .map(|_| self.submit(master, PROBE.to_owned(), false))
            .collect();
        self.wait_for(
            open.iter().map(ToString::to_string).collect(),
            "handed in when all was well",
        )?;
        let peak = |node: &usize| {
            let life = hub(|hub| hub.machines[*node].life);
            self.invariants.peak(&name(*node), life)
        };
        let short: Vec<String> = workers
            .iter()
            .filter(|node| peak(node) < capacity)
            .map(|node| name(*node))
            .collect();
        if short.is_empty() {
            return Ok(());
        }
        let what = format!(
            "{short:?} never ran the {capacity} attempts side by side that they grant, though work was waiting"
        );
        self.broken("sim.unfinished", what)
    }

    /// Every durable task that was accepted has ended, unless the registry that held it is gone; the master says so.
    fn finish_accepted(&mut self) -> Result<(), Violation> {
        let accepted = self.invariants.accepted();
        self.wait_for(accepted, "accepted as durable")
    }

    fn wait_for(&mut self, mut open: Vec<String>, why: &str) -> Result<(), Violation> {
        let began = self.now();
        let mut read = hub(|hub| hub.trace.len());
        while !open.is_empty() {
            let Some(master) = hub(|hub| hub.leader()) else {
                return Ok(());
            };
            for id in &open {
                if let Ok(id) = id.parse() {
                    hub(|hub| hub.order(master, Order::Look(id)));
                }
            }
            self.for_time(Duration::from_millis(250))?;
            let mut lost = None;
            hub(|hub| {
                for answer in hub.trace[read..].iter().filter(|r| r.event == "sim.task") {
                    match answer.get("state") {
                        "done" | "failed" | "dead" => open.retain(|id| id != answer.get("task")),
                        "not known" => lost = Some(answer.get("task").to_owned()),
                        _ => {}
                    }
                }
                read = hub.trace.len();
            });
            // What was only handed in may not have arrived yet.
            if let Some(task) = lost.filter(|_| why.starts_with("accepted")) {
                return self.broken(
                    "sim.lost",
                    format!("task {task} was {why} and is not known any more"),
                );
            }
            if !open.is_empty() && self.now() > began + FINISHED_WITHIN {
                let what = format!("task {} was {why} and has not ended", open[0]);
                return self.broken("sim.unfinished", what);
            }
        }
        Ok(())
    }

    /// Once all is well no attempt stays with a worker for longer than its job takes.
    fn no_lease_is_forgotten(&mut self) -> Result<(), Violation> {
        let longest = self.plan.make.longest_job.max(PROBE_TAKES) + LEASE_SLACK;
        self.for_time(longest)?;
        let epoch = self.invariants.registry().epoch();
        let (oldest, now) = (self.invariants.oldest_lease(epoch), self.now());
        let Some((task, since)) = oldest.filter(|(_, since)| *since + longest < now) else {
            return Ok(());
        };
        let what = format!("task {task} is with a worker since {since:?}");
        self.broken("sim.late", what)
    }
}
