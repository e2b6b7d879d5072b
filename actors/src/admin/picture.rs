//! ● Since when things are as they are: the cluster's picture with the times at which this node first saw each state.
//!
//! Pure: it is told the time. Discovery's picture has no times in it, since nothing is decided by them; people ask for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::{Cluster, Master, MemberState};
use crate::id::{Incarnation, NodeId};

/// The newest picture with its times, unix ms.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    pub(crate) cluster: Arc<Cluster>,
    members: BTreeMap<NodeId, Standing>,
    master_since: u64,
    /// Changes of epoch seen while this life watched.
    pub(crate) master_changes: u64,
    /// Whether this node was ever registered while this life watched.
    pub(crate) registered_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Standing {
    incarnation: Incarnation,
    state: MemberState,
    since: u64,
}

impl Picture {
    /// Before anything is known.
    pub(crate) fn new(cluster: Cluster, now_ms: u64) -> Self {
        Self {
            cluster: Arc::new(cluster),
            members: BTreeMap::new(),
            master_since: now_ms,
            master_changes: 0,
            registered_once: false,
        }
    }

    /// The picture after this one.
    pub(crate) fn next(&self, cluster: Arc<Cluster>, now_ms: u64) -> Self {
        let members = cluster.members.iter().map(|member| {
            let id = member.registration.id;
            let fresh = Standing {
                incarnation: member.incarnation,
                state: member.state,
                since: now_ms,
            };
            let same = self.members.get(&id).filter(|known| {
                known.incarnation == fresh.incarnation && known.state == fresh.state
            });
            (id, same.copied().unwrap_or(fresh))
        });
        let epoch = |master: &Option<Master>| master.as_ref().map(|m| m.epoch);
        let (before, after) = (epoch(&self.cluster.master), epoch(&cluster.master));
        let changed = before != after;
        Self {
            members: members.collect(),
            master_since: if changed { now_ms } else { self.master_since },
            master_changes: self.master_changes + u64::from(changed && after.is_some()),
            registered_once: self.registered_once || cluster.incarnation != Incarnation::NONE,
            cluster,
        }
    }

    /// Since when a member is in its state.
    pub(crate) fn member_since(&self, id: NodeId) -> u64 {
        self.members.get(&id).map_or(0, |standing| standing.since)
    }

    /// Since when the master leads, or nobody does.
    pub(crate) fn master_since(&self) -> u64 {
        self.master_since
    }

    /// The label of a node; its id when it is no member.
    pub(crate) fn name_of(&self, id: NodeId) -> String {
        let member = self.cluster.member(id);
        member.map_or_else(|| id.to_string(), |m| m.registration.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{MasterRecord, Member, Registration};
    use crate::id::{Epoch, Generation};
    use std::time::Duration;

    fn member(state: MemberState, incarnation: i64) -> Member {
        Member {
            registration: Registration {
                id: NodeId(1),
                name: "a".into(),
                ip: "127.0.0.1".into(),
                port: 1,
                admin: String::new(),
                host: String::new(),
                boot: String::new(),
                pid: 1,
                version: String::new(),
                protocol: 1,
                weight: 0,
                eligible: true,
                roles: vec![],
                jobs: vec![],
                capacity: 1,
                tags: BTreeMap::new(),
                started_at: 0,
                insecure: false,
            },
            incarnation: Incarnation(incarnation),
            state,
            session: true,
            rtt: None,
            lag: Duration::ZERO,
            registry: true,
            unheard: vec![],
        }
    }

    fn cluster(members: Vec<Member>, epoch: i64) -> Arc<Cluster> {
        let mut cluster = Cluster::empty(NodeId(1));
        cluster.members = members;
        cluster.master = (epoch > 0).then(|| Master {
            record: MasterRecord {
                id: NodeId(1),
                incarnation: Incarnation(1),
                address: String::new(),
            },
            epoch: Epoch {
                generation: Generation(1),
                revision: epoch,
            },
        });
        Arc::new(cluster)
    }

    #[test]
    fn a_state_keeps_its_time_until_it_or_the_incarnation_changes() {
        use MemberState::{Alive, Suspect};
        let mut picture = Picture::new(Cluster::empty(NodeId(1)), 0);
        for (state, incarnation, now, since) in [
            (Alive, 1, 10, 10),
            (Alive, 1, 20, 10),
            (Suspect, 1, 30, 30),
            (Alive, 1, 40, 40),
            (Alive, 2, 50, 50),
        ] {
            picture = picture.next(cluster(vec![member(state, incarnation)], 0), now);
            assert_eq!(picture.member_since(NodeId(1)), since, "at {now}");
        }
    }

    #[test]
    fn a_vacancy_is_no_change_of_master_and_each_epoch_is_one() {
        let mut picture = Picture::new(Cluster::empty(NodeId(1)), 0);
        for (epoch, now, since, changes) in [
            (5, 10, 10, 1),
            (5, 20, 10, 1),
            (0, 30, 30, 1),
            (9, 40, 40, 2),
        ] {
            picture = picture.next(cluster(vec![], epoch), now);
            assert_eq!(
                (picture.master_since(), picture.master_changes),
                (since, changes)
            );
        }
    }
}
