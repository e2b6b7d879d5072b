//! Which workers there are, what each has granted and what it holds. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

use super::MasterWorks;
use super::balancer::Able;
use super::ledger::{Needs, WorkerId};
use crate::cluster::{Cluster, Member, MemberState};
use crate::id::NodeId;

/// Why a worker gets no task that takes no more.
pub const BUSY: &str = "it is busy: it accepts no more now";

/// A worker that has reported in this reign.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// Which report of it the credit is from.
    report: u64,
    credit: u32,
    /// Its queue was full: it is left in peace until then.
    paused: Option<Instant>,
}

/// See the module page.
#[derive(Debug, Default)]
pub struct Roster {
    reported: BTreeMap<WorkerId, Standing>,
}

impl Roster {
    /// It has reported: this much credit, which begins anew with each report.
    pub fn reported(&mut self, worker: WorkerId, report: u64, credit: u32) {
        let standing = Standing {
            report,
            credit,
            paused: None,
        };
        self.reported.insert(worker, standing);
    }

    /// Whether it has.
    pub fn has_reported(&self, worker: WorkerId) -> bool {
        self.reported.contains_key(&worker)
    }

    /// More credit with its results.
    pub fn grant(&mut self, worker: WorkerId, credit: u32) {
        if let Some(standing) = self.reported.get_mut(&worker) {
            standing.credit = standing.credit.saturating_add(credit);
        }
    }

    /// An attempt was handed to it.
    pub fn spend(&mut self, worker: WorkerId) {
        if let Some(standing) = self.reported.get_mut(&worker) {
            let spent = u32::from(!crate::planted::is("beyond-credit"));
            standing.credit = standing.credit.saturating_sub(spent);
        }
    }

    /// Attempts did not get into its queue: the credit is not spent, and it is left in peace for a moment.
    pub fn refund(&mut self, worker: WorkerId, credit: u32, until: Instant) {
        self.grant(worker, credit);
        if let Some(standing) = self.reported.get_mut(&worker) {
            standing.paused = Some(until);
        }
    }

    /// The report whose credit is being spent.
    pub fn report_of(&self, worker: WorkerId) -> Option<u64> {
        self.reported.get(&worker).map(|standing| standing.report)
    }

    /// What it granted is void until it reports again: its session broke, or it is gone.
    pub fn void(&mut self, worker: WorkerId) {
        self.reported.remove(&worker);
    }

    /// Registered workers that have not reported yet.
    pub fn awaited(&self, cluster: &Cluster) -> Vec<String> {
        let missing = workers(cluster).filter(|m| !self.has_reported(worker_id(m)));
        missing.map(|m| m.registration.name.clone()).collect()
    }

    /// Who could take this task now, sorted by id, and who could not and why; `load` is how many attempts a worker has.
    pub fn sort(
        &self,
        task: &Needs,
        cluster: &Cluster,
        works: MasterWorks,
        load: impl Fn(WorkerId) -> u32,
        now: Instant,
    ) -> (Vec<Able>, Vec<(NodeId, &'static str)>) {
        let myself = myself(cluster, works);
        let (mut able, mut excluded) = (Vec::new(), Vec::new());
        for m in &cluster.members {
            let worker = worker_id(m);
            let mine = if worker.id == cluster.me {
                myself
            } else {
                Ok(())
            };
            let judged = serves(m, cluster.me)
                .and(mine)
                .and_then(|()| fits(m, task))
                .and_then(|()| self.credit(worker, now));
            match judged {
                Ok(credit) => able.push(Able {
                    id: worker.id,
                    outstanding: load(worker),
                    capacity: m.registration.capacity,
                    credit,
                }),
                Err(why) => excluded.push((worker.id, why)),
            }
        }
        able.sort_by_key(|w| w.id);
        (able, excluded)
    }

    /// How much more it accepts now, or why nothing.
    fn credit(&self, worker: WorkerId, now: Instant) -> Result<u32, &'static str> {
        let Some(standing) = self.reported.get(&worker) else {
            return Err("it has not reported what it runs");
        };
        if standing.paused.is_some_and(|until| until > now) {
            return Err("its queue was full a moment ago");
        }
        match standing.credit {
            0 => Err(BUSY),
            credit => Ok(credit),
        }
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
    let (me, myself) = (cluster.me, myself(cluster, works).is_ok());
    let serving = cluster
        .members
        .iter()
        .filter(move |m| serves(m, me).is_ok());
    serving.filter(move |m| m.registration.id != me || myself)
}

/// Whether this member does work at all, or why not.
fn serves(member: &Member, me: NodeId) -> Result<(), &'static str> {
    // A master that leaves without an heir goes on by itself until it is gone; whether it takes more, its credit says.
    let leaving = member.state == MemberState::Draining && member.registration.id == me;
    if !member.registration.is_worker() {
        return Err("it is no worker");
    }
    match member.state {
        MemberState::Alive => {}
        _ if leaving => {}
        MemberState::Draining => return Err("it is draining"),
        MemberState::Suspect => return Err("it is suspect"),
        MemberState::CutOff => return Err("it is cut off"),
        MemberState::Joining => return Err("it is joining"),
    }
    if !member.session {
        return Err("there is no session with it");
    }
    Ok(())
}

/// Whether the master itself works, or why not.
fn myself(cluster: &Cluster, works: MasterWorks) -> Result<(), &'static str> {
    let me = cluster.me;
    let mut serving = cluster.members.iter().filter(|m| serves(m, me).is_ok());
    match works {
        MasterWorks::Always => Ok(()),
        MasterWorks::Never => Err("it leads, and the master never works here"),
        MasterWorks::WhenAlone if serving.any(|m| m.registration.id != me) => {
            Err("it leads, and the master works only while it is alone")
        }
        MasterWorks::WhenAlone => Ok(()),
    }
}

fn fits(member: &Member, task: &Needs) -> Result<(), &'static str> {
    let r = &member.registration;
    if !r.jobs.iter().any(|job| **job == *task.job) {
        return Err("it does not know the job");
    }
    match task.require.iter().all(|(k, v)| r.tags.get(k) == Some(v)) {
        true => Ok(()),
        false => Err("it lacks a tag that the task requires"),
    }
}

/// Why nobody can take a task, in words; `None` when it only waits for a worker that is busy.
pub fn why_nobody(task: &Needs, cluster: &Cluster, works: MasterWorks) -> Option<String> {
    let serving: Vec<&Member> = candidates(cluster, works).collect();
    if serving.is_empty() {
        return Some("there is no worker".to_owned());
    }
    let knows = |m: &&Member| m.registration.jobs.iter().any(|job| **job == *task.job);
    if !serving.iter().any(knows) {
        return Some(format!("no worker knows the job {:?}", task.job));
    }
    if !serving.iter().any(|m| fits(m, task).is_ok()) {
        return Some(format!(
            "no worker that knows the job {:?} has the tags {:?}",
            task.job, task.require
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::Registration;
    use crate::id::Incarnation;

    fn member(n: u128) -> Member {
        Member {
            registration: Registration {
                id: NodeId(n),
                name: format!("node-{n}"),
                ip: "10.0.0.1".to_owned(),
                port: 1,
                admin: String::new(),
                host: String::new(),
                boot: String::new(),
                pid: 1,
                version: String::new(),
                protocol: 1,
                weight: 0,
                eligible: true,
                roles: vec!["worker".to_owned()],
                jobs: vec!["multiply".to_owned()],
                capacity: 4,
                tags: BTreeMap::new(),
                started_at: 0,
                insecure: false,
            },
            incarnation: Incarnation(n as i64),
            state: MemberState::Alive,
            session: true,
            rtt: None,
            lag: Duration::ZERO,
            registry: true,
            unheard: Vec::new(),
        }
    }

    /// Node 1 leads.
    fn cluster(members: Vec<Member>) -> Cluster {
        Cluster {
            members,
            leading: true,
            ..Cluster::empty(NodeId(1))
        }
    }

    fn task() -> Needs {
        Needs {
            job: "multiply".into(),
            require: BTreeMap::new(),
        }
    }

    fn roster(cluster: &Cluster) -> Roster {
        let mut roster = Roster::default();
        for member in &cluster.members {
            roster.reported(worker_id(member), 1, 4);
        }
        roster
    }

    fn able(roster: &Roster, task: &Needs, cluster: &Cluster, works: MasterWorks) -> Vec<u128> {
        let (able, excluded) = roster.sort(task, cluster, works, |_| 0, Instant::now());
        assert_eq!(able.len() + excluded.len(), cluster.members.len());
        able.iter().map(|w| w.id.0).collect()
    }

    #[test]
    fn the_master_works_as_it_is_told() {
        let (alone, two) = (vec![member(1)], vec![member(1), member(2)]);
        for (works, when_alone, with_another) in [
            (MasterWorks::WhenAlone, vec![1], vec![2]),
            (MasterWorks::Always, vec![1], vec![1, 2]),
            (MasterWorks::Never, vec![], vec![2]),
        ] {
            for (members, expected) in [(&alone, when_alone), (&two, with_another)] {
                let cluster = cluster(members.clone());
                let roster = roster(&cluster);
                assert_eq!(
                    able(&roster, &task(), &cluster, works),
                    expected,
                    "{works:?}"
                );
            }
        }
    }

    #[test]
    fn a_master_that_leaves_without_an_heir_goes_on_by_itself() {
        let mut leaving = member(1);
        leaving.state = MemberState::Draining;
        let alone = cluster(vec![leaving.clone()]);
        let still = roster(&alone);
        assert_eq!(able(&still, &task(), &alone, MasterWorks::WhenAlone), [1]);
        let with_another = cluster(vec![leaving, member(2)]);
        let both = roster(&with_another);
        assert_eq!(
            able(&both, &task(), &with_another, MasterWorks::WhenAlone),
            [2]
        );
    }

    #[test]
    fn only_the_live_that_reported_know_the_job_and_have_the_tags_and_credit_are_able() {
        let spoil: [fn(&mut Member); 5] = [
            |m| m.state = MemberState::Draining,
            |m| m.state = MemberState::Suspect,
            |m| m.session = false,
            |m| m.registration.jobs.clear(),
            |m| m.registration.roles.clear(),
        ];
        for spoil in spoil {
            let mut other = member(2);
            spoil(&mut other);
            let cluster = cluster(vec![other, member(3)]);
            let roster = roster(&cluster);
            assert_eq!(able(&roster, &task(), &cluster, MasterWorks::Never), [3]);
        }
        let mut tagged = member(2);
        tagged.registration.tags = BTreeMap::from([("disk".to_owned(), "fast".to_owned())]);
        let cluster = cluster(vec![tagged.clone(), member(3)]);
        let mut roster = roster(&cluster);
        let picky = Needs {
            require: tagged.registration.tags.clone(),
            ..task()
        };
        assert_eq!(able(&roster, &picky, &cluster, MasterWorks::Never), [2]);
        for _ in 0..4 {
            roster.spend(worker_id(&tagged));
        }
        assert_eq!(able(&roster, &picky, &cluster, MasterWorks::Never), []);
        assert_eq!(why_nobody(&picky, &cluster, MasterWorks::Never), None);
        roster.refund(
            worker_id(&tagged),
            1,
            Instant::now() + Duration::from_secs(9),
        );
        assert_eq!(able(&roster, &picky, &cluster, MasterWorks::Never), []);
        roster.reported(worker_id(&tagged), 2, 4);
        assert_eq!(able(&roster, &picky, &cluster, MasterWorks::Never), [2]);
        roster.void(worker_id(&tagged));
        assert_eq!(able(&roster, &picky, &cluster, MasterWorks::Never), []);
        assert_eq!(roster.awaited(&cluster), ["node-2"]);
    }

    #[test]
    fn why_a_task_waits_is_said_in_words() {
        let nobody = cluster(vec![]);
        let works = MasterWorks::WhenAlone;
        assert!(why_nobody(&task(), &nobody, works).is_some_and(|w| w.contains("no worker")));
        let one = cluster(vec![member(2)]);
        let odd = Needs {
            job: "paint".into(),
            ..task()
        };
        assert!(why_nobody(&odd, &one, works).is_some_and(|w| w.contains("paint")));
        let picky = Needs {
            require: BTreeMap::from([("disk".to_owned(), "fast".to_owned())]),
            ..task()
        };
        assert!(why_nobody(&picky, &one, works).is_some_and(|w| w.contains("disk")));
    }
}
