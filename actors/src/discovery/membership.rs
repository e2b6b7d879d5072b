//! The table of members as this node sees them, and which sessions it wants. Pure: time comes in as an argument.
//!
//! | registered | heard | state | what follows |
//! |---|---|---|---|
//! | yes | yes | alive (or draining) | nothing |
//! | yes | no session yet | joining | suspicion after the floor, as below |
//! | yes | no | suspect | probes, then a verdict on evidence (see `verdict`) |
//! | yes | only through the registry or another member | cut-off | no verdict; shown with who cannot hear whom |
//! | no | yes | not a member | the session is kept, nothing else; it registers again by itself |
//! | no | no | gone | dropped from the table |

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::suspicion::Detector;
use crate::cluster::{Member, MemberState};
use crate::id::{Incarnation, NodeId};
use crate::registry::session::{Registered, View};
use crate::transport::PeerSpec;
use crate::wire::{Finding, Heartbeat};

/// How a session to a peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// There was none with this life of it.
    Never,
    /// It is up.
    Up,
    /// It broke.
    Broken,
}

/// What a challenge through the registry has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenged {
    /// None is open.
    No,
    /// Sent at this time, not seen in the view yet.
    Sent(Instant),
    /// Seen in the view since; unanswered so far.
    Open(Instant),
    /// Answered at this time: it lives, though we do not hear it.
    Answered(Instant),
    /// Not answered within the window: dead in both planes.
    Failed,
}

/// One other member.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What it registered.
    pub registered: Registered,
    /// When we first saw this life of it.
    pub seen: Instant,
    /// How the session stands.
    pub link: Link,
    /// When its last byte arrived; when it was first seen, before any.
    pub heard: Instant,
    /// Inter-arrival statistics of its heartbeats.
    pub detector: Detector,
    /// Its last heartbeat.
    pub beat: Heartbeat,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// What our own last dial found since the session broke, and when.
    pub dialled: Option<(Finding, Instant)>,
    /// When it became suspect.
    pub suspect: Option<Instant>,
    /// When others were last asked about it.
    pub asked: Option<Instant>,
    /// How many were asked then.
    pub asked_of: usize,
    /// What others found since it became suspect.
    pub witnesses: BTreeMap<NodeId, (Finding, Instant)>,
    /// What a challenge has shown.
    pub challenged: Challenged,
    /// When a verdict was last tried.
    pub condemned: Option<Instant>,
}

impl Peer {
    fn new(registered: Registered, now: Instant) -> Self {
        Self {
            registered,
            seen: now,
            link: Link::Never,
            heard: now,
            detector: Detector::default(),
            beat: Heartbeat {
                registry: true,
                ..Heartbeat::default()
            },
            rtt: None,
            dialled: None,
            suspect: None,
            asked: None,
            asked_of: 0,
            witnesses: BTreeMap::new(),
            challenged: Challenged::No,
            condemned: None,
        }
    }

    /// Identity.
    pub fn id(&self) -> NodeId {
        self.registered.registration.id
    }

    /// We hear it: a session is up and it is not suspect.
    pub fn reached(&self) -> bool {
        self.link == Link::Up && self.suspect.is_none()
    }

    /// Its silence is no evidence yet: no session with it so far, and not suspect.
    pub fn joining(&self) -> bool {
        self.link == Link::Never && self.suspect.is_none()
    }

    /// Known to live though we do not hear it.
    pub fn alive_elsewhere(&self) -> bool {
        matches!(self.challenged, Challenged::Answered(_))
            || self.witnesses.values().any(|(f, _)| *f == Finding::Heard)
    }

    /// Those who were asked about it have answered, or half of them. A witness that says nothing may be cut off from us, as we are.
    pub fn probe_answered(&self) -> bool {
        let Some(asked) = self.asked else {
            return false;
        };
        let answers = self.witnesses.values().filter(|(_, at)| *at >= asked);
        2 * answers.count() >= self.asked_of
    }

    /// Everything that was held against it is withdrawn.
    pub fn clear_suspicion(&mut self) {
        self.suspect = None;
        self.asked = None;
        self.witnesses.clear();
        self.challenged = Challenged::No;
        self.condemned = None;
    }

    fn state(&self) -> MemberState {
        if self.suspect.is_some() {
            return if self.alive_elsewhere() {
                MemberState::CutOff
            } else {
                MemberState::Suspect
            };
        }
        match self.link {
            Link::Never => MemberState::Joining,
            _ if self.beat.draining => MemberState::Draining,
            _ => MemberState::Alive,
        }
    }
}

/// Who came and who went with a view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turnover {
    /// New members (a new life of a known node counts as new).
    pub added: Vec<Registered>,
    /// Members that are no longer registered.
    pub removed: Vec<Registered>,
}

/// The other members.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    /// By id; at most one life each.
    pub peers: BTreeMap<NodeId, Peer>,
    /// Sessions that came up before the view named the peer.
    early: BTreeMap<NodeId, (Incarnation, Instant)>,
    /// The last verdict on hard evidence, and when.
    pub last_hard: Option<(NodeId, Instant)>,
}

/// Early sessions kept at the most; more than that means that somebody makes up ids.
const MAX_EARLY: usize = 256;

impl Membership {
    /// Takes a new view: unchanged members are left alone.
    pub fn view(&mut self, me: NodeId, view: &View, now: Instant) -> Turnover {
        let mut turnover = Turnover::default();
        self.peers.retain(|id, peer| {
            let stays = view.member(*id, peer.registered.incarnation).is_some();
            if !stays {
                turnover.removed.push(peer.registered.clone());
            }
            stays
        });
        let others = view.members.iter().filter(|m| m.registration.id != me);
        for member in others {
            let id = member.registration.id;
            if let Some(peer) = self.peers.get_mut(&id) {
                // The same life may say something else of itself.
                peer.registered
                    .registration
                    .clone_from(&member.registration);
                continue;
            }
            let mut peer = Peer::new(member.clone(), now);
            if self
                .early
                .get(&id)
                .is_some_and(|(i, _)| *i == member.incarnation)
            {
                self.early.remove(&id);
                peer.link = Link::Up;
            }
            turnover.added.push(member.clone());
            self.peers.insert(id, peer);
        }
        turnover
    }

    /// The peer of this id, if it is this life of it.
    pub fn peer(&mut self, id: NodeId, incarnation: Incarnation) -> Option<&mut Peer> {
        self.peers
            .get_mut(&id)
            .filter(|p| p.registered.incarnation == incarnation)
    }

    /// A session came up.
    pub fn session_up(&mut self, id: NodeId, incarnation: Incarnation, now: Instant) {
        if let Some(peer) = self.peer(id, incarnation) {
            peer.link = Link::Up;
            peer.heard = now;
            peer.dialled = None;
            peer.clear_suspicion();
        } else if self.early.len() < MAX_EARLY {
            self.early.insert(id, (incarnation, now));
        }
    }

    /// A session broke.
    pub fn session_down(&mut self, id: NodeId, incarnation: Incarnation) {
        if self.early.get(&id).is_some_and(|(i, _)| *i == incarnation) {
            self.early.remove(&id);
        }
        if let Some(peer) = self.peer(id, incarnation) {
            peer.link = Link::Broken;
            peer.dialled = None;
        }
    }

    /// Our own transport began anew: no session is up, and that is nobody's fault.
    pub fn forget_sessions(&mut self, now: Instant) {
        self.early.clear();
        for peer in self.peers.values_mut() {
            peer.link = Link::Never;
            peer.heard = now;
            peer.dialled = None;
            peer.clear_suspicion();
        }
    }

    /// We were away: everybody gets a fresh start.
    pub fn fresh_start(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.heard = now;
            peer.dialled = None;
            peer.detector.forget_last();
            peer.clear_suspicion();
        }
    }

    /// The sessions to keep: everybody while the cluster is small; beyond, the master, the first candidates and the ring
    /// successors by id. The master and the first candidates keep one with everybody, so that a successor is warm.
    pub fn wanted(
        &self,
        me: NodeId,
        leaders: &[NodeId],
        mesh: usize,
        ring: usize,
    ) -> Vec<PeerSpec> {
        let all = self.peers.len() < mesh || leaders.contains(&me);
        let after = self.peers.range(me..).map(|(id, _)| *id);
        let around = self.peers.range(..me).map(|(id, _)| *id);
        let successors: Vec<NodeId> = after.chain(around).take(ring).collect();
        self.peers
            .values()
            .filter(|p| all || leaders.contains(&p.id()) || successors.contains(&p.id()))
            .map(|p| PeerSpec {
                id: p.id(),
                incarnation: p.registered.incarnation,
                name: p.registered.registration.name.clone(),
                address: p.registered.registration.address(),
            })
            .collect()
    }

    /// The members as everybody may know them, without this node.
    pub fn members(&self) -> Vec<Member> {
        self.peers
            .values()
            .map(|p| Member {
                registration: p.registered.registration.clone(),
                incarnation: p.registered.incarnation,
                state: p.state(),
                session: p.link == Link::Up,
                rtt: p.rtt,
                lag: Duration::from_micros(p.beat.lag_us),
                registry: p.beat.registry,
                unheard: p.beat.unheard.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cluster::Registration;

    pub(crate) fn registered(n: u128) -> Registered {
        Registered {
            registration: Registration {
                id: NodeId(n),
                name: format!("node-{n}"),
                ip: "127.0.0.1".to_owned(),
                port: n as u16,
                admin: String::new(),
                host: String::new(),
                boot: String::new(),
                pid: 0,
                version: String::new(),
                protocol: 1,
                weight: 0,
                eligible: true,
                roles: vec!["worker".to_owned()],
                jobs: vec![],
                capacity: 1,
                tags: BTreeMap::new(),
                started_at: 0,
                insecure: false,
            },
            incarnation: Incarnation(n as i64),
        }
    }

    pub(crate) fn view(members: &[u128]) -> View {
        View {
            members: members.iter().map(|n| registered(*n)).collect(),
            ..View::default()
        }
    }

    #[test]
    fn a_change_of_membership_disturbs_nobody_else() {
        let now = Instant::now();
        let mut table = Membership::default();
        table.view(NodeId(1), &view(&[1, 2, 3]), now);
        table.session_up(NodeId(2), Incarnation(2), now);
        let turnover = table.view(NodeId(1), &view(&[1, 2, 4]), now);
        assert_eq!(turnover.added, vec![registered(4)]);
        assert_eq!(turnover.removed, vec![registered(3)]);
        assert!(table.peers[&NodeId(2)].reached());
    }

    #[test]
    fn what_a_member_says_of_itself_may_change_within_one_life() {
        let now = Instant::now();
        let mut table = Membership::default();
        table.view(NodeId(1), &view(&[1, 2]), now);
        table.session_up(NodeId(2), Incarnation(2), now);
        let mut amended = view(&[1, 2]);
        amended.members[1].registration.weight = 7;
        let turnover = table.view(NodeId(1), &amended, now);
        assert_eq!((turnover.added.len(), turnover.removed.len()), (0, 0));
        let peer = &table.peers[&NodeId(2)];
        assert_eq!(peer.registered.registration.weight, 7);
        assert!(peer.reached());
    }

    #[test]
    fn a_new_life_of_a_node_is_another_member() {
        let now = Instant::now();
        let mut table = Membership::default();
        table.view(NodeId(1), &view(&[1, 2]), now);
        let mut again = view(&[1]);
        let mut reborn = registered(2);
        reborn.incarnation = Incarnation(9);
        again.members.push(reborn);
        let turnover = table.view(NodeId(1), &again, now);
        assert_eq!((turnover.added.len(), turnover.removed.len()), (1, 1));
    }

    #[test]
    fn a_session_that_is_earlier_than_the_view_counts_once_the_view_comes() {
        let now = Instant::now();
        let mut table = Membership::default();
        table.session_up(NodeId(2), Incarnation(2), now);
        table.view(NodeId(1), &view(&[1, 2]), now);
        assert!(table.peers[&NodeId(2)].reached());
    }

    #[test]
    fn beyond_the_mesh_a_node_watches_leaders_and_ring_successors_only() {
        let now = Instant::now();
        let mut table = Membership::default();
        let everybody: Vec<u128> = (1..=100).collect();
        table.view(NodeId(98), &view(&everybody), now);
        let wanted = table.wanted(NodeId(98), &[NodeId(50)], 64, 4);
        let ids: Vec<u128> = wanted.iter().map(|p| p.id.0).collect();
        assert_eq!(ids, [1, 2, 50, 99, 100]);
        let leader = table.wanted(NodeId(98), &[NodeId(98)], 64, 4);
        assert_eq!(leader.len(), 99);
    }
}
