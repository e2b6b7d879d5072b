//! The agreed finding that a peer is dead, and the evidence it needs. Pure: time comes in as an argument.
//!
//! | evidence | what it takes |
//! |---|---|
//! | hard | the session broke and our re-dial was refused by the peer's own machine; with three or more members a second one was refused too; and nobody else died hard within the second |
//! | soft, by majority | silence past suspicion, half of the witnesses answered and none heard it, and we reach more than half of the view |
//! | soft, by challenge | silence past suspicion, no witness heard it, and it did not answer through the registry within the window |
//!
//! A peer that a witness hears, or that answers the challenge, is alive but cut off: no verdict. A witness that does not answer
//! says nothing of the peer: it may be we who were not heard, or whose link has just come back.

use std::time::{Duration, Instant};

use super::membership::{Challenged, Link, Membership, Peer};
use crate::id::NodeId;
use crate::planted;
use crate::wire::Finding;

/// Hard deaths within this time of each other fall under the soft rule.
const TOGETHER: Duration = Duration::from_secs(1);
/// Witnesses asked at a time.
pub const WITNESSES: usize = 3;
/// A cut-off peer is asked about again this often, and a verdict that did not take is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The windows of a verdict, already widened by our own health.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Least silence before suspicion.
    pub floor: Duration,
    /// Most silence before suspicion.
    pub ceiling: Duration,
    /// How long witnesses have to answer.
    pub probe: Duration,
    /// How long a challenge may stay unanswered.
    pub challenge: Duration,
}

/// What the table calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has become suspect.
    Suspect {
        /// Who.
        id: NodeId,
        /// Silent for this long.
        silent: Duration,
        /// This much would have been ordinary.
        patience: Duration,
    },
    /// It is heard again, or its suspicion was withdrawn.
    Cleared(NodeId),
    /// Ask these about it.
    Ask {
        /// Who is in doubt.
        id: NodeId,
        /// Whom to ask.
        witnesses: Vec<NodeId>,
    },
    /// Ask it through the registry.
    Challenge(NodeId),
    /// It is dead.
    Condemn {
        /// Who.
        id: NodeId,
        /// On what evidence.
        evidence: Evidence,
    },
}

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Refused by its own machine.
    Hard,
    /// Silent to a majority.
    Majority,
    /// Silent in both planes.
    BothPlanes,
}

impl Evidence {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "its session broke and its machine refuses connections",
            Self::Majority => "silent to the majority and to every witness",
            Self::BothPlanes => {
                "silent between nodes and did not answer a challenge through the registry"
            }
        }
    }
}

/// Looks at every peer and says what to do now.
pub fn judge(
    table: &mut Membership,
    view_reach: (usize, usize),
    windows: Windows,
    now: Instant,
) -> Vec<Step> {
    let refused = table.peers.values().filter(|p| refused_hard(p)).count();
    let members = table.peers.len() + 1;
    let last_hard = table.last_hard;
    let reached: Vec<NodeId> = table
        .peers
        .values()
        .filter(|p| p.reached())
        .map(Peer::id)
        .collect();
    let majority = 2 * view_reach.0 > view_reach.1;
    let mut steps = Vec::new();
    for peer in table.peers.values_mut() {
        let case = Case {
            lonely_hard: refused == 1
                && last_hard.is_none_or(|(id, at)| {
                    id == peer.id() || now.saturating_duration_since(at) >= TOGETHER
                }),
            second_needed: members >= 3,
            majority,
            windows,
            now,
        };
        judge_peer(peer, &reached, &case, &mut steps);
    }
    let hard = steps.iter().find_map(|step| match step {
        Step::Condemn {
            id,
            evidence: Evidence::Hard,
        } => Some(*id),
        _ => None,
    });
    if let Some(id) = hard {
        table.last_hard = Some((id, now));
    }
    steps
}

struct Case {
    lonely_hard: bool,
    second_needed: bool,
    majority: bool,
    windows: Windows,
    now: Instant,
}

fn refused_hard(peer: &Peer) -> bool {
    peer.link == Link::Broken && matches!(peer.dialled, Some((Finding::Refused, _)))
}

fn judge_peer(peer: &mut Peer, reached: &[NodeId], case: &Case, steps: &mut Vec<Step>) {
    track_suspicion(peer, case, steps);
    let hard = refused_hard(peer) && case.lonely_hard;
    if !hard && peer.suspect.is_none() {
        return;
    }
    if let Some(evidence) = evidence(peer, hard, case) {
        condemn(peer, evidence, case, steps);
        return;
    }
    ask(peer, reached, case, steps);
    if !hard {
        challenge(peer, case, steps);
    }
}

/// Silence begins and ends a suspicion.
fn track_suspicion(peer: &mut Peer, case: &Case, steps: &mut Vec<Step>) {
    let silent = case.now.saturating_duration_since(peer.heard);
    let patience = peer
        .detector
        .patience(case.windows.floor, case.windows.ceiling);
    let patience = match () {
        () if planted::is("never-suspects") => Duration::MAX,
        () if planted::is("impatient") => patience / 10,
        () => patience,
    };
    match peer.suspect {
        None if silent > patience => {
            peer.suspect = Some(case.now);
            peer.witnesses.clear();
            peer.asked = None;
            peer.challenged = Challenged::No;
            steps.push(Step::Suspect {
                id: peer.id(),
                silent,
                patience,
            });
        }
        Some(_) if silent <= patience && peer.link == Link::Up => {
            peer.clear_suspicion();
            steps.push(Step::Cleared(peer.id()));
        }
        _ => {}
    }
}

fn evidence(peer: &Peer, hard: bool, case: &Case) -> Option<Evidence> {
    if hard {
        if planted::is("no-hard-evidence") {
            return None;
        }
        let seconded = peer.witnesses.values().any(|(f, _)| *f == Finding::Refused);
        return (seconded || !case.second_needed).then_some(Evidence::Hard);
    }
    if peer.challenged == Challenged::Failed {
        return Some(Evidence::BothPlanes);
    }
    peer.suspect?;
    if planted::is("silence-condemns") {
        return Some(Evidence::Majority);
    }
    let probed = peer
        .asked
        .is_some_and(|at| case.now.saturating_duration_since(at) >= case.windows.probe);
    let unheard = probed && peer.probe_answered() && !peer.alive_elsewhere();
    (unheard && case.majority).then_some(Evidence::Majority)
}

fn condemn(peer: &mut Peer, evidence: Evidence, case: &Case, steps: &mut Vec<Step>) {
    let tried_lately = peer
        .condemned
        .is_some_and(|at| case.now.saturating_duration_since(at) < AGAIN);
    if !tried_lately {
        peer.condemned = Some(case.now);
        steps.push(Step::Condemn {
            id: peer.id(),
            evidence,
        });
    }
}

fn ask(peer: &mut Peer, reached: &[NodeId], case: &Case, steps: &mut Vec<Step>) {
    let due = peer
        .asked
        .is_none_or(|at| case.now.saturating_duration_since(at) >= AGAIN);
    let id = peer.id();
    let witnesses: Vec<NodeId> = reached
        .iter()
        .copied()
        .filter(|w| *w != id)
        .take(WITNESSES)
        .collect();
    if due && !witnesses.is_empty() {
        // What was found a round ago says nothing of now.
        peer.witnesses
            .retain(|_, (_, at)| case.now.saturating_duration_since(*at) < AGAIN);
        peer.asked = Some(case.now);
        peer.asked_of = witnesses.len();
        steps.push(Step::Ask { id, witnesses });
    }
}

/// Without a majority only the registry can tell a dead peer from one that is cut off.
fn challenge(peer: &mut Peer, case: &Case, steps: &mut Vec<Step>) {
    let Some(suspect) = peer.suspect else { return };
    let probed = case.now.saturating_duration_since(suspect) >= case.windows.probe;
    if case.majority || !probed {
        return;
    }
    match peer.challenged {
        Challenged::No => {
            peer.challenged = Challenged::Sent(case.now);
            steps.push(Step::Challenge(peer.id()));
        }
        Challenged::Open(at)
            if case.now.saturating_duration_since(at) >= case.windows.challenge =>
        {
            peer.challenged = Challenged::Failed;
        }
        // Lost on the way, or answered a while ago: ask again.
        Challenged::Sent(at) | Challenged::Answered(at)
            if case.now.saturating_duration_since(at) >= 3 * AGAIN + case.windows.challenge =>
        {
            peer.challenged = Challenged::No;
        }
        _ => {}
    }
}

/// Which challenges are open, as the view shows: one that vanished within its window was answered.
pub fn challenges_in_view(table: &mut Membership, open: &[crate::id::Incarnation], now: Instant) {
    for peer in table.peers.values_mut() {
        let is_open = open.contains(&peer.registered.incarnation);
        peer.challenged = match peer.challenged {
            Challenged::Sent(_) if is_open => Challenged::Open(now),
            Challenged::Open(_) if !is_open => Challenged::Answered(now),
            other => other,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::membership::tests::view;
    use super::*;
    use crate::id::Incarnation;

    const WINDOWS: Windows = Windows {
        floor: Duration::from_secs(1),
        ceiling: Duration::from_secs(10),
        probe: Duration::from_millis(300),
        challenge: Duration::from_secs(1),
    };

    fn table(n: u128, now: Instant) -> Membership {
        let mut table = Membership::default();
        let everybody: Vec<u128> = (1..=n).collect();
        table.view(NodeId(1), &view(&everybody), now);
        for id in 2..=n {
            table.session_up(NodeId(id), Incarnation(id as i64), now);
        }
        table
    }

    fn kill(table: &mut Membership, n: u128, now: Instant) {
        table.session_down(NodeId(n), Incarnation(n as i64));
        let peer = table.peers.get_mut(&NodeId(n)).unwrap();
        peer.dialled = Some((Finding::Refused, now));
    }

    fn reach(table: &Membership) -> (usize, usize) {
        let reached = table.peers.values().filter(|p| p.reached()).count();
        (reached + 1, table.peers.len() + 1)
    }

    fn look(table: &mut Membership, now: Instant) -> Vec<Step> {
        let reach = reach(table);
        judge(table, reach, WINDOWS, now)
    }

    fn keep_alive(table: &mut Membership, n: u128, now: Instant) {
        table.peers.get_mut(&NodeId(n)).unwrap().heard = now;
    }

    #[test]
    fn of_two_members_one_refused_redial_is_enough() {
        let now = Instant::now();
        let mut table = table(2, now);
        kill(&mut table, 2, now);
        let verdict = Step::Condemn {
            id: NodeId(2),
            evidence: Evidence::Hard,
        };
        assert_eq!(look(&mut table, now), vec![verdict]);
    }

    #[test]
    fn of_three_members_a_second_one_must_be_refused_too() {
        let now = Instant::now();
        let mut table = table(3, now);
        kill(&mut table, 2, now);
        let ask = Step::Ask {
            id: NodeId(2),
            witnesses: vec![NodeId(3)],
        };
        assert_eq!(look(&mut table, now), vec![ask]);
        let peer = table.peers.get_mut(&NodeId(2)).unwrap();
        peer.witnesses.insert(NodeId(3), (Finding::Refused, now));
        let steps = look(&mut table, now);
        assert!(
            matches!(
                steps[..],
                [Step::Condemn {
                    evidence: Evidence::Hard,
                    ..
                }]
            ),
            "{steps:?}"
        );
    }

    #[test]
    fn several_hard_deaths_at_once_fall_under_the_soft_rule() {
        let now = Instant::now();
        let mut table = table(3, now);
        kill(&mut table, 2, now);
        kill(&mut table, 3, now);
        assert_eq!(look(&mut table, now), vec![]);
        let later = now + Duration::from_millis(1100);
        let steps = look(&mut table, later);
        assert!(
            steps.iter().all(|s| matches!(s, Step::Suspect { .. })),
            "{steps:?}"
        );
        let steps = look(&mut table, later + WINDOWS.probe);
        assert_eq!(
            steps,
            vec![Step::Challenge(NodeId(2)), Step::Challenge(NodeId(3))]
        );
    }

    #[test]
    fn a_second_hard_death_within_the_second_waits_for_it_to_pass() {
        let now = Instant::now();
        let mut table = table(4, now);
        let refused = |table: &mut Membership, n, witness, at| {
            kill(table, n, at);
            let peer = table.peers.get_mut(&NodeId(n)).unwrap();
            peer.witnesses
                .insert(NodeId(witness), (Finding::Refused, at));
        };
        refused(&mut table, 2, 3, now);
        assert!(matches!(look(&mut table, now)[..], [Step::Condemn { .. }]));
        table.view(NodeId(1), &view(&[1, 3, 4]), now);
        let soon = now + Duration::from_millis(500);
        keep_alive(&mut table, 4, soon);
        refused(&mut table, 3, 4, soon);
        assert_eq!(look(&mut table, soon), vec![]);
        let verdict = look(&mut table, now + TOGETHER);
        assert!(matches!(verdict[..], [Step::Condemn { .. }]), "{verdict:?}");
    }

    #[test]
    fn silence_to_the_majority_condemns_after_a_failed_probe() {
        let now = Instant::now();
        let mut table = table(3, now);
        let late = now + Duration::from_millis(1050);
        keep_alive(&mut table, 3, late);
        let steps = look(&mut table, late);
        assert!(matches!(steps[0], Step::Suspect { .. }), "{steps:?}");
        assert!(matches!(steps[1], Step::Ask { .. }), "{steps:?}");
        let peer = table.peers.get_mut(&NodeId(2)).unwrap();
        peer.witnesses.insert(NodeId(3), (Finding::Silent, late));
        let probed = late + WINDOWS.probe;
        let steps = look(&mut table, probed);
        assert!(
            matches!(
                steps[..],
                [Step::Condemn {
                    evidence: Evidence::Majority,
                    ..
                }]
            ),
            "{steps:?}"
        );
    }

    #[test]
    fn a_probe_that_nobody_answers_condemns_nobody() {
        let now = Instant::now();
        let mut table = table(3, now);
        let late = now + Duration::from_millis(1050);
        keep_alive(&mut table, 3, late);
        look(&mut table, late);
        assert_eq!(look(&mut table, late + WINDOWS.probe), vec![]);
        let answered = late + Duration::from_millis(700);
        keep_alive(&mut table, 3, answered);
        let peer = table.peers.get_mut(&NodeId(2)).unwrap();
        let before = late - Duration::from_millis(1);
        peer.witnesses.insert(NodeId(3), (Finding::Silent, before));
        assert_eq!(look(&mut table, answered), vec![]);
        let peer = table.peers.get_mut(&NodeId(2)).unwrap();
        peer.witnesses
            .insert(NodeId(3), (Finding::Silent, answered));
        let steps = look(&mut table, answered);
        assert!(matches!(steps[..], [Step::Condemn { .. }]), "{steps:?}");
    }

    #[test]
    fn whoever_was_cut_off_asks_before_it_condemns_those_it_hears_last() {
        let now = Instant::now();
        let mut table = table(3, now);
        let late = now + Duration::from_secs(2);
        let alone = look(&mut table, late);
        let suspects = alone.iter().filter(|s| matches!(s, Step::Suspect { .. }));
        assert_eq!(suspects.count(), 2, "{alone:?}");
        look(&mut table, late + WINDOWS.probe);
        let back = late + Duration::from_secs(1);
        keep_alive(&mut table, 3, back);
        let cleared = look(&mut table, back);
        assert_eq!(cleared, vec![Step::Cleared(NodeId(3))]);
        let steps = look(&mut table, back);
        let ask = Step::Ask {
            id: NodeId(2),
            witnesses: vec![NodeId(3)],
        };
        assert!(steps.contains(&ask), "{steps:?}");
        let condemned = |steps: &[Step]| steps.iter().any(|s| matches!(s, Step::Condemn { .. }));
        assert!(!condemned(&steps), "{steps:?}");
        let peer = table.peers.get_mut(&NodeId(2)).unwrap();
        peer.witnesses.insert(NodeId(3), (Finding::Heard, back));
        assert!(!condemned(&look(&mut table, back + WINDOWS.probe)));
    }

    #[test]
    fn whom_a_witness_hears_is_cut_off_and_not_condemned() {
        let now = Instant::now();
        let mut table = table(3, now);
        let late = now + Duration::from_millis(1050);
        keep_alive(&mut table, 3, late);
        look(&mut table, late);
        let peer = table.peers.get_mut(&NodeId(2)).unwrap();
        peer.witnesses.insert(NodeId(3), (Finding::Heard, late));
        assert_eq!(look(&mut table, late + WINDOWS.probe), vec![]);
        assert!(table.peers[&NodeId(2)].alive_elsewhere());
    }

    #[test]
    fn without_a_majority_the_registry_tells_the_dead_from_the_cut_off() {
        let now = Instant::now();
        let mut table = table(2, now);
        let mut at = now + Duration::from_millis(1050);
        look(&mut table, at);
        at += WINDOWS.probe;
        assert_eq!(look(&mut table, at), vec![Step::Challenge(NodeId(2))]);
        challenges_in_view(&mut table, &[Incarnation(2)], at);
        let mut answered = table.clone();
        challenges_in_view(&mut answered, &[], at);
        at += WINDOWS.challenge;
        assert_eq!(look(&mut answered, at), vec![]);
        look(&mut table, at);
        let steps = look(&mut table, at);
        assert!(
            matches!(
                steps[..],
                [Step::Condemn {
                    evidence: Evidence::BothPlanes,
                    ..
                }]
            ),
            "{steps:?}"
        );
    }

    #[test]
    fn a_verdict_is_not_tried_again_at_once() {
        let now = Instant::now();
        let mut table = table(2, now);
        kill(&mut table, 2, now);
        assert_eq!(look(&mut table, now).len(), 1);
        assert_eq!(look(&mut table, now).len(), 0);
        assert_eq!(look(&mut table, now + AGAIN).len(), 1);
    }

    #[test]
    fn a_fresh_start_after_our_own_pause_withdraws_everything() {
        let now = Instant::now();
        let mut table = table(3, now);
        let late = now + Duration::from_secs(30);
        table.fresh_start(late);
        assert_eq!(look(&mut table, late), vec![]);
    }
}
