//! Which workers there are, what each has granted and what it holds. Pure.

use std::collections::BTreeMap;

use super::MasterWorks;
use super::balancer::Able;
use super::ledger::WorkerId;
use crate::cluster::{Cluster, Member, MemberState};
use crate::id::NodeId;
use crate::wire::TaskSpec;

/// A worker that has reported in this reign.
#[derive(Clone, Debug, Default)]
struct Standing {
    credit: u32,
    outstanding: u32,
    round: u64,
}

/// See the module page.
#[derive(Debug, Default)]
pub struct Roster {
    reported: BTreeMap<WorkerId, Standing>,
    rounds: u64,
}

impl Roster {
    /// It has reported: this much credit, and this many attempts it runs.
    pub fn reported(&mut self, worker: WorkerId, credit: u32, outstanding: u32) {
        self.rounds += 1;
        self.reported.insert(
            worker,
            Standing {
                credit,
                outstanding,
                round: self.rounds,
            },
        );
    }

    /// Which report its credit comes from.
    pub fn round(&self, worker: WorkerId) -> Option<u64> {
        self.reported.get(&worker).map(|s| s.round)
    }

    /// Whether it has.
    pub fn has_reported(&self, worker: WorkerId) -> bool {
        self.reported.contains_key(&worker)
    }

    /// More credit with its results.
    pub fn grant(&mut self, worker: WorkerId, credit: u32, ended: u32) {
        if let Some(standing) = self.reported.get_mut(&worker) {
            standing.credit = standing.credit.saturating_add(credit);
            standing.outstanding = standing.outstanding.saturating_sub(ended);
        }
    }

    /// An attempt was handed to it.
    pub fn spend(&mut self, worker: WorkerId) {
        if let Some(standing) = self.reported.get_mut(&worker) {
            standing.credit = standing.credit.saturating_sub(1);
            standing.outstanding += 1;
        }
    }

    /// What it granted is void until it reports again: its session broke, or a send to it failed.
    pub fn void(&mut self, worker: WorkerId) {
        self.reported.remove(&worker);
    }

    /// Registered workers that have not reported yet.
    pub fn awaited(&self, cluster: &Cluster) -> Vec<String> {
        let missing = workers(cluster).filter(|m| !self.has_reported(worker_id(m)));
        missing.map(|m| m.registration.name.clone()).collect()
    }

    /// Who could take this task now, sorted by id.
    pub fn able(&self, task: &TaskSpec, cluster: &Cluster, works: MasterWorks) -> Vec<Able> {
        let mut able: Vec<Able> = candidates(cluster, works)
            .filter(|m| fits(m, task))
            .filter_map(|m| {
                let standing = self.reported.get(&worker_id(m))?;
                (standing.credit > 0).then_some(Able {
                    id: m.registration.id,
                    outstanding: standing.outstanding,
                    capacity: m.registration.capacity,
                })
            })
            .collect();
        able.sort_by_key(|w| w.id);
        able
    }
}

/// The worker's identity in this life.
pub fn worker_id(member: &Member) -> WorkerId {
    WorkerId {
        id: member.registration.id,
        incarnation: member.incarnation,
    }
}

/// The member of this id in its present life.
pub fn worker_of(cluster: &Cluster, id: NodeId) -> Option<WorkerId> {
    cluster.member(id).map(worker_id)
}

fn workers(cluster: &Cluster) -> impl Iterator<Item = &Member> {
    cluster
        .members
        .iter()
        .filter(|m| m.registration.is_worker())
}

/// Workers that may be given work: alive, and the master itself only as it is told.
fn candidates(cluster: &Cluster, works: MasterWorks) -> impl Iterator<Item = &Member> {
    let me = cluster.me;
    let serving = |m: &&Member| m.state == MemberState::Alive && m.session;
    let others = workers(cluster)
        .filter(serving)
        .any(|m| m.registration.id != me);
    let myself = match works {
        MasterWorks::Always => true,
        MasterWorks::Never => false,
        MasterWorks::WhenAlone => !others,
    };
    workers(cluster)
        .filter(serving)
        .filter(move |m| m.registration.id != me || myself)
}

fn fits(member: &Member, task: &TaskSpec) -> bool {
    let r = &member.registration;
    let tagged = task.require.iter().all(|(k, v)| r.tags.get(k) == Some(v));
    tagged && r.jobs.contains(&task.job)
}

/// Why nobody can take a task, in words.
pub fn why_nobody(task: &TaskSpec, cluster: &Cluster, works: MasterWorks) -> String {
    let serving: Vec<&Member> = candidates(cluster, works).collect();
    if serving.is_empty() {
        return "there is no worker".to_owned();
    }
    if !serving
        .iter()
        .any(|m| m.registration.jobs.contains(&task.job))
    {
        return format!("no worker knows the job {:?}", task.job);
    }
    if !serving.iter().any(|m| fits(m, task)) {
        return format!(
            "no worker that knows the job {:?} has the tags {:?}",
            task.job, task.require
        );
    }
    "every worker that could take it is busy".to_owned()
}
