//! Who leads, and when to claim or give up mastership. Pure: time comes in as an argument.
//!
//! At a vacancy the candidates are ranked by weight, then by age (the oldest incarnation first). Rank r waits
//! r × stagger. A sitting master is never unseated by weight. Whoever stepped down abstains for a while unless alone,
//! and every soft take-over within minutes doubles the next wait.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::id::{Epoch, Incarnation, NodeId};
use crate::planted;

/// Soft take-overs older than this are forgotten.
const FLAP_WINDOW: Duration = Duration::from_secs(180);
/// This many soft take-overs are ordinary; from then on the wait doubles.
const FLAP_FREE: usize = 2;
/// The first wait of flap damping; doubled from there, bounded by `FLAP_MAX`.
const FLAP_FIRST: Duration = Duration::from_millis(250);
const FLAP_MAX: Duration = Duration::from_secs(16);
/// A master that lost the registry, while half of its peers have it, hands over after this long.
const REGISTRY_GRACE: Duration = Duration::from_secs(1);
/// A master that was made ineligible hands over after this long; it is tried again as often.
const UNFIT_GRACE: Duration = Duration::from_millis(500);

/// A member as the election sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Identity.
    pub id: NodeId,
    /// Which life of it; older ones win ties.
    pub incarnation: Incarnation,
    /// Preference, higher first.
    pub weight: i32,
    /// May be master, is not draining.
    pub eligible: bool,
    /// We hear it now (true for ourselves).
    pub reached: bool,
    /// Registered so lately that a missing session says nothing yet.
    pub joining: bool,
    /// Failed a challenge and silent: it counts in no majority.
    pub dead_in_both_planes: bool,
    /// It says that it reaches the registry.
    pub registry: bool,
}

/// Everything an election is decided on.
#[derive(Clone, Debug)]
pub struct Ballot {
    /// This node.
    pub me: NodeId,
    /// All members of the view, this node included while registered.
    pub members: Vec<Candidate>,
    /// `mod_revision` of the master key; 0 when absent.
    pub master_revision: i64,
    /// Revision of the view all this was read at.
    pub view_revision: i64,
    /// Who sits, when its incarnation is registered.
    pub seated: Option<(NodeId, Epoch)>,
    /// The epoch we lead under, when we do.
    pub leading: Option<Epoch>,
    /// Whether the registry answers us.
    pub registry: bool,
    /// We are leaving.
    pub retired: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Wait,
    /// Claim the key, comparing with this `mod_revision` (0: absent).
    Claim {
        /// What to compare with.
        expected: i64,
        /// Our rank among the candidates.
        rank: usize,
    },
    /// Stop leading at once.
    StandDown(Why),
    /// Give mastership to the best candidate that has the registry.
    HandOver(&'static str),
}

/// Why a master stands down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The key shows another, or a higher epoch.
    Deposed,
    /// Our registration is gone.
    Unregistered,
    /// We reach fewer than half of the view.
    CutOff,
}

impl Why {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deposed => "another master was elected",
            Self::Unregistered => "our registration is gone",
            Self::CutOff => "we reach fewer than half of the members",
        }
    }
}

/// What an election remembers between ballots.
#[derive(Clone, Debug)]
pub struct Election {
    stagger: Duration,
    floor: Duration,
    vacant_since: Option<Instant>,
    cut_since: Option<Instant>,
    registry_lost_since: Option<Instant>,
    unfit_since: Option<Instant>,
    abstain_until: Option<Instant>,
    soft_takeovers: VecDeque<Instant>,
}

impl Election {
    /// `stagger` between ranks; a majority must be missing for `floor` before a master stands down.
    pub fn new(stagger: Duration, floor: Duration) -> Self {
        Self {
            stagger,
            floor,
            vacant_since: None,
            cut_since: None,
            registry_lost_since: None,
            unfit_since: None,
            abstain_until: None,
            soft_takeovers: VecDeque::new(),
        }
    }

    /// Other knobs from now on.
    pub fn configure(&mut self, stagger: Duration, floor: Duration) {
        self.stagger = stagger;
        self.floor = floor;
    }

    /// We stepped down: others go first for a while.
    pub fn abstain(&mut self, until: Instant) {
        self.abstain_until = Some(until);
    }

    /// A master was condemned for silence.
    pub fn soft_takeover(&mut self, now: Instant) {
        self.soft_takeovers.push_back(now);
        // Bounded: beyond this the wait is at its maximum anyway.
        if self.soft_takeovers.len() > 16 {
            self.soft_takeovers.pop_front();
        }
    }

    /// Decides.
    pub fn decide(&mut self, ballot: &Ballot, now: Instant) -> Decision {
        match ballot.leading {
            Some(_) => self.decide_leading(ballot, now),
            None => self.decide_following(ballot, now),
        }
    }

    fn decide_leading(&mut self, ballot: &Ballot, now: Instant) -> Decision {
        self.vacant_since = None;
        let unregistered = ballot.me_registered().is_none() && ballot.registry;
        if unregistered && !planted::is("unregistered-leads-on") {
            return Decision::StandDown(Why::Unregistered);
        }
        let overlooked = unregistered && planted::is("unregistered-leads-on");
        if ballot.deposed() && !overlooked {
            return Decision::StandDown(Why::Deposed);
        }
        let cut_off_leads = planted::is("read-not-confirmed") || planted::is("journal-not-fenced");
        let cut = ballot.reaches_less_than_half() && !cut_off_leads;
        if lasts(&mut self.cut_since, cut, now) >= Some(self.floor) {
            return Decision::StandDown(Why::CutOff);
        }
        let alone_without = !ballot.registry && ballot.half_of_peers_have_registry();
        if lasts(&mut self.registry_lost_since, alone_without, now) >= Some(REGISTRY_GRACE) {
            self.registry_lost_since = None;
            return Decision::HandOver("this node lost the registry");
        }
        let unfit = ballot.may_not_lead_and_another_may();
        if lasts(&mut self.unfit_since, unfit, now) >= Some(UNFIT_GRACE) {
            self.unfit_since = None;
            return Decision::HandOver("this node is not eligible any more");
        }
        Decision::Wait
    }

    fn decide_following(&mut self, ballot: &Ballot, now: Instant) -> Decision {
        self.cut_since = None;
        self.registry_lost_since = None;
        self.unfit_since = None;
        let able = ballot.registry && !ballot.retired && ballot.reaches_more_than_half();
        // The key is ours and we do not lead: an earlier life of this actor did. It takes over from itself.
        if able && ballot.seated.is_some_and(|(id, _)| id == ballot.me) {
            return Decision::Claim {
                expected: ballot.master_revision,
                rank: 0,
            };
        }
        let may = able && ballot.seated.is_none() && !self.abstains(ballot, now);
        let may = may && !(planted::is("never-claims") && ballot.master_revision != 0);
        let rank = ballot.rank_of_me().filter(|_| may);
        let vacant = lasts(&mut self.vacant_since, rank.is_some(), now);
        let (Some(rank), Some(vacant)) = (rank, vacant) else {
            return Decision::Wait;
        };
        let wait = self.stagger.saturating_mul(rank as u32) + self.damping(now);
        if vacant < wait {
            return Decision::Wait;
        }
        // A claim that fails is followed by a fresh look, not by another claim at once.
        self.vacant_since = Some(now);
        Decision::Claim {
            expected: ballot.master_revision,
            rank,
        }
    }

    fn abstains(&self, ballot: &Ballot, now: Instant) -> bool {
        let others = ballot
            .members
            .iter()
            .any(|m| m.id != ballot.me && m.eligible && !m.dead_in_both_planes);
        others && self.abstain_until.is_some_and(|until| now < until)
    }

    fn damping(&mut self, now: Instant) -> Duration {
        self.soft_takeovers
            .retain(|at| now.saturating_duration_since(*at) < FLAP_WINDOW);
        match self.soft_takeovers.len().checked_sub(FLAP_FREE + 1) {
            None => Duration::ZERO,
            Some(doublings) => FLAP_FIRST
                .saturating_mul(1 << doublings.min(10))
                .min(FLAP_MAX),
        }
    }
}

impl Ballot {
    /// Whether the key is somebody else's.
    pub fn seats_another(&self) -> bool {
        self.seated.is_some_and(|(id, _)| id != self.me)
    }

    /// Whether we lead by our own word, and the key is another's or nobody's.
    pub fn deposed(&self) -> bool {
        let Some(epoch) = self.leading else {
            return false;
        };
        let held = self
            .seated
            .is_some_and(|(id, seated)| id == self.me && seated <= epoch);
        // A view older than our own claim says nothing of it.
        !held && self.view_revision > epoch.revision && !planted::is("deposed-leads-on")
    }

    /// The best heir: the first candidate by rank that we reach, this node excluded.
    pub fn heir(&self, needs_registry: bool) -> Option<Candidate> {
        self.ranked()
            .into_iter()
            .find(|c| c.id != self.me && c.reached && (c.registry || !needs_registry))
    }

    /// Whether we were made ineligible, while somebody else could take over.
    fn may_not_lead_and_another_may(&self) -> bool {
        let me = self.members.iter().find(|m| m.id == self.me);
        let unfit = !self.retired && me.is_some_and(|me| !me.eligible);
        unfit && self.heir(true).is_some()
    }

    /// Eligible members in the order in which they would lead.
    pub fn ranked(&self) -> Vec<Candidate> {
        let mut ranked: Vec<Candidate> = self
            .members
            .iter()
            .copied()
            .filter(|m| m.eligible)
            .collect();
        ranked.sort_by_key(|c| (std::cmp::Reverse(c.weight), c.incarnation));
        ranked
    }

    /// Members we reach (ourselves included), and members that count.
    pub fn reach(&self) -> (usize, usize) {
        let counting = self.members.iter().filter(|m| !m.dead_in_both_planes);
        counting.fold((0, 0), |(reached, all), m| {
            (reached + usize::from(m.reached), all + 1)
        })
    }

    /// More than half of the members that count.
    pub fn reaches_more_than_half(&self) -> bool {
        let (reached, all) = self.reach();
        2 * reached > all
    }

    fn reaches_less_than_half(&self) -> bool {
        let settled = self
            .members
            .iter()
            .filter(|m| !m.dead_in_both_planes && !m.joining);
        let (reached, all) = settled.fold((0, 0), |(reached, all), m| {
            (reached + usize::from(m.reached), all + 1)
        });
        2 * reached < all
    }

    fn half_of_peers_have_registry(&self) -> bool {
        let peers = self.members.iter().filter(|m| m.id != self.me && m.reached);
        let (having, all) = peers.fold((0, 0), |(having, all), m| {
            (having + usize::from(m.registry), all + 1)
        });
        all > 0 && 2 * having >= all
    }

    fn me_registered(&self) -> Option<&Candidate> {
        self.members.iter().find(|m| m.id == self.me)
    }

    /// Our place among the candidates that we reach.
    fn rank_of_me(&self) -> Option<usize> {
        self.ranked()
            .iter()
            .filter(|c| c.reached)
            .position(|c| c.id == self.me)
    }
}

/// How long a condition has lasted: keeps its beginning in `since`.
fn lasts(since: &mut Option<Instant>, holds: bool, now: Instant) -> Option<Duration> {
    if !holds {
        *since = None;
        return None;
    }
    Some(now.saturating_duration_since(*since.get_or_insert(now)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Generation;

    const STAGGER: Duration = Duration::from_millis(50);
    const FLOOR: Duration = Duration::from_secs(1);

    fn candidate(n: u128) -> Candidate {
        Candidate {
            id: NodeId(n),
            incarnation: Incarnation(n as i64),
            weight: 0,
            eligible: true,
            reached: true,
            joining: false,
            dead_in_both_planes: false,
            registry: true,
        }
    }

    fn epoch(revision: i64) -> Epoch {
        Epoch {
            generation: Generation(1),
            revision,
        }
    }

    fn ballot(me: u128, members: &[Candidate]) -> Ballot {
        Ballot {
            me: NodeId(me),
            members: members.to_vec(),
            master_revision: 0,
            view_revision: 0,
            seated: None,
            leading: None,
            registry: true,
            retired: false,
        }
    }

    fn election() -> Election {
        Election::new(STAGGER, FLOOR)
    }

    const CLAIM_FIRST: Decision = Decision::Claim {
        expected: 0,
        rank: 0,
    };

    #[test]
    fn the_oldest_claims_a_vacancy_at_once_and_the_next_waits_a_stagger() {
        let all = [candidate(1), candidate(2)];
        let now = Instant::now();
        assert_eq!(election().decide(&ballot(1, &all), now), CLAIM_FIRST);
        let mut second = election();
        assert_eq!(second.decide(&ballot(2, &all), now), Decision::Wait);
        let claim = second.decide(&ballot(2, &all), now + STAGGER);
        assert_eq!(
            claim,
            Decision::Claim {
                expected: 0,
                rank: 1
            }
        );
    }

    #[test]
    fn weight_goes_before_age_and_never_unseats_a_sitting_master() {
        let mut heavy = candidate(2);
        heavy.weight = 5;
        let all = [candidate(1), heavy];
        let now = Instant::now();
        assert_eq!(election().decide(&ballot(2, &all), now), CLAIM_FIRST);
        let mut seated = ballot(2, &all);
        seated.seated = Some((NodeId(1), epoch(9)));
        seated.master_revision = 9;
        assert_eq!(election().decide(&seated, now), Decision::Wait);
    }

    #[test]
    fn exactly_half_is_not_enough_to_claim_and_enough_to_stay() {
        let mut away = [candidate(1), candidate(2), candidate(3), candidate(4)];
        away[2].reached = false;
        away[3].reached = false;
        let now = Instant::now();
        assert_eq!(election().decide(&ballot(1, &away), now), Decision::Wait);
        let mut leading = ballot(1, &away);
        leading.leading = Some(epoch(9));
        leading.seated = Some((NodeId(1), epoch(9)));
        leading.master_revision = 9;
        let mut election = election();
        assert_eq!(election.decide(&leading, now), Decision::Wait);
        assert_eq!(election.decide(&leading, now + 2 * FLOOR), Decision::Wait);
    }

    #[test]
    fn a_master_with_fewer_than_half_stands_down_after_the_floor() {
        let mut away = [candidate(1), candidate(2), candidate(3)];
        away[1].reached = false;
        away[2].reached = false;
        let mut leading = ballot(1, &away);
        leading.leading = Some(epoch(9));
        leading.seated = Some((NodeId(1), epoch(9)));
        leading.master_revision = 9;
        let now = Instant::now();
        let mut election = election();
        assert_eq!(election.decide(&leading, now), Decision::Wait);
        let later = election.decide(&leading, now + FLOOR);
        assert_eq!(later, Decision::StandDown(Why::CutOff));
    }

    #[test]
    fn those_who_just_joined_do_not_unseat_a_master_that_has_no_session_to_them_yet() {
        let mut joined = [candidate(1), candidate(2), candidate(3)];
        for peer in &mut joined[1..] {
            peer.reached = false;
            peer.joining = true;
        }
        let mut leading = ballot(1, &joined);
        leading.leading = Some(epoch(9));
        leading.seated = Some((NodeId(1), epoch(9)));
        leading.master_revision = 9;
        let now = Instant::now();
        let mut election = election();
        election.decide(&leading, now);
        assert_eq!(election.decide(&leading, now + 2 * FLOOR), Decision::Wait);
    }

    #[test]
    fn the_dead_in_both_planes_count_in_no_majority() {
        let mut members = [candidate(1), candidate(2), candidate(3)];
        for peer in &mut members[1..] {
            peer.reached = false;
            peer.dead_in_both_planes = true;
        }
        let claim = election().decide(&ballot(1, &members), Instant::now());
        assert_eq!(claim, CLAIM_FIRST);
    }

    #[test]
    fn a_deposed_or_unregistered_master_stands_down_at_once() {
        let all = [candidate(1), candidate(2)];
        let mut deposed = ballot(1, &all);
        deposed.leading = Some(epoch(9));
        deposed.seated = Some((NodeId(2), epoch(12)));
        deposed.master_revision = 12;
        deposed.view_revision = 12;
        let now = Instant::now();
        let down = election().decide(&deposed, now);
        assert_eq!(down, Decision::StandDown(Why::Deposed));
        let mut gone = ballot(1, &all[1..]);
        gone.leading = Some(epoch(9));
        let down = election().decide(&gone, now);
        assert_eq!(down, Decision::StandDown(Why::Unregistered));
    }

    #[test]
    fn a_key_that_is_ours_while_we_do_not_lead_is_taken_over_from_ourselves() {
        let mut ours = ballot(2, &[candidate(1), candidate(2)]);
        ours.seated = Some((NodeId(2), epoch(9)));
        ours.master_revision = 9;
        let claim = election().decide(&ours, Instant::now());
        let expected = 9;
        assert_eq!(claim, Decision::Claim { expected, rank: 0 });
    }

    #[test]
    fn a_master_whose_key_was_deleted_stands_down() {
        let mut gone = ballot(1, &[candidate(1)]);
        gone.leading = Some(epoch(9));
        gone.view_revision = 10;
        let down = election().decide(&gone, Instant::now());
        assert_eq!(down, Decision::StandDown(Why::Deposed));
    }

    #[test]
    fn a_master_that_lost_the_registry_hands_over_only_while_half_of_its_peers_have_it() {
        let mut all = [candidate(1), candidate(2), candidate(3)];
        let now = Instant::now();
        let leading = |all: &[Candidate]| {
            let mut ballot = ballot(1, all);
            ballot.leading = Some(epoch(9));
            ballot.seated = Some((NodeId(1), epoch(9)));
            ballot.master_revision = 9;
            ballot.registry = false;
            ballot
        };
        let mut mine = election();
        assert_eq!(mine.decide(&leading(&all), now), Decision::Wait);
        let late = now + REGISTRY_GRACE;
        let why = "this node lost the registry";
        assert_eq!(mine.decide(&leading(&all), late), Decision::HandOver(why));
        all[1].registry = false;
        all[2].registry = false;
        let mut everybody = election();
        everybody.decide(&leading(&all), now);
        let later = everybody.decide(&leading(&all), late);
        assert_eq!(later, Decision::Wait);
    }

    #[test]
    fn whoever_stepped_down_abstains_unless_alone() {
        let now = Instant::now();
        let mut election = election();
        election.abstain(now + Duration::from_secs(10));
        let two = ballot(1, &[candidate(1), candidate(2)]);
        assert_eq!(election.decide(&two, now), Decision::Wait);
        let alone = ballot(1, &[candidate(1)]);
        assert_eq!(election.decide(&alone, now), CLAIM_FIRST);
        let late = now + Duration::from_secs(10);
        assert!(matches!(
            election.decide(&two, late),
            Decision::Claim { .. } | Decision::Wait
        ));
    }

    #[test]
    fn flapping_doubles_the_wait() {
        let now = Instant::now();
        let mut election = election();
        for _ in 0..FLAP_FREE + 2 {
            election.soft_takeover(now);
        }
        let alone = ballot(1, &[candidate(1)]);
        assert_eq!(election.decide(&alone, now), Decision::Wait);
        assert_eq!(election.decide(&alone, now + FLAP_FIRST), Decision::Wait);
        assert_eq!(election.decide(&alone, now + 2 * FLAP_FIRST), CLAIM_FIRST);
    }

    #[test]
    fn a_retired_or_ineligible_node_and_one_without_the_registry_never_claim() {
        let now = Instant::now();
        let mut retired = ballot(1, &[candidate(1)]);
        retired.retired = true;
        assert_eq!(election().decide(&retired, now), Decision::Wait);
        let mut blind = ballot(1, &[candidate(1)]);
        blind.registry = false;
        assert_eq!(election().decide(&blind, now), Decision::Wait);
        let mut idle = candidate(1);
        idle.eligible = false;
        assert_eq!(election().decide(&ballot(1, &[idle]), now), Decision::Wait);
    }
}
