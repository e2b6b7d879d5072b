//! Who could have taken an attempt, with which load, and who could not and why: of the newest attempts, for whoever asks. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use super::balancer::Able;
use super::{BalancerKind, CandidateView, ExcludedView, PlacementView};
use crate::id::{AttemptId, NodeId};

/// Attempts that are remembered: a second of a busy cluster, an hour of a quiet one, and about 2 MB at most.
const KEPT: usize = 1024;
/// Members named in each: candidates, and others.
const NAMED: usize = 32;

/// Who cannot take a task now, and why.
pub type Excluded = Arc<[(NodeId, &'static str)]>;

/// One decision.
#[derive(Clone, Debug)]
struct Placement {
    attempt: AttemptId,
    to: NodeId,
    by: BalancerKind,
    able: Box<[Able]>,
    /// Beyond those named.
    more: usize,
    excluded: Excluded,
}

/// The newest decisions, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Placements {
    kept: VecDeque<Placement>,
}

impl Placements {
    /// An attempt went to one of the able.
    pub fn keep(
        &mut self,
        attempt: AttemptId,
        to: NodeId,
        by: BalancerKind,
        able: &[Able],
        excluded: &Excluded,
    ) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        // The one that was chosen is always named.
        let others = able.iter().filter(|a| a.id != to).take(NAMED - 1);
        let chosen = able.iter().filter(|a| a.id == to);
        let mut named: Vec<Able> = chosen.chain(others).copied().collect();
        named.sort_by_key(|a| a.id);
        self.kept.push_back(Placement {
            attempt,
            to,
            by,
            more: able.len() - named.len() + excluded.len().saturating_sub(NAMED),
            able: named.into(),
            excluded: match excluded.get(..NAMED) {
                Some(some) => some.into(),
                None => Arc::clone(excluded),
            },
        });
    }

    /// How this attempt was placed, if that is remembered.
    pub fn of(&self, attempt: AttemptId, name: impl Fn(NodeId) -> String) -> Option<PlacementView> {
        let p = self.kept.iter().rev().find(|p| p.attempt == attempt)?;
        let candidate = |a: &Able| CandidateView {
            node: name(a.id),
            outstanding: a.outstanding,
            capacity: a.capacity,
            credit: a.credit,
            load_percent: 100 * u64::from(a.outstanding) / u64::from(a.capacity.max(1)),
            chosen: a.id == p.to,
        };
        Some(PlacementView {
            balancer: p.by,
            candidates: p.able.iter().map(candidate).collect(),
            more: p.more,
            excluded: excluded_view(&p.excluded, name),
        })
    }
}

/// As the API shows them.
pub fn excluded_view(
    excluded: &[(NodeId, &'static str)],
    name: impl Fn(NodeId) -> String,
) -> Vec<ExcludedView> {
    let named = excluded.iter().take(NAMED);
    named
        .map(|(id, why)| ExcludedView {
            node: name(*id),
            why: (*why).to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Attempt, Epoch, TaskId};

    fn attempt(n: u32) -> AttemptId {
        AttemptId {
            task: TaskId(uuid::Uuid::from_u128(9)),
            attempt: Attempt {
                epoch: Epoch::default(),
                n,
            },
        }
    }

    fn able(n: u128) -> Able {
        Able {
            id: NodeId(n),
            outstanding: 1,
            capacity: 4,
            credit: 3,
        }
    }

    #[test]
    fn a_placement_names_who_could_have_taken_it_and_who_could_not() {
        let mut placements = Placements::default();
        let excluded: Excluded = Arc::new([(NodeId(3), "it has no credit")]);
        let all = [able(1), able(2)];
        placements.keep(attempt(1), NodeId(2), BalancerKind::Random, &all, &excluded);
        let view = placements.of(attempt(1), |id| format!("n{}", id.0));
        let view = view.unwrap();
        let chosen: Vec<_> = view
            .candidates
            .iter()
            .map(|c| (c.node.as_str(), c.chosen))
            .collect();
        assert_eq!(chosen, [("n1", false), ("n2", true)]);
        assert_eq!(view.candidates[0].load_percent, 25);
        assert_eq!(view.excluded[0].node, "n3");
        assert!(placements.of(attempt(2), |_| String::new()).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_chosen_one_is_always_named() {
        let mut placements = Placements::default();
        let all: Vec<Able> = (0..100).map(able).collect();
        for n in 0..2000 {
            let none: Excluded = Arc::new([]);
            placements.keep(attempt(n), NodeId(99), BalancerKind::Random, &all, &none);
        }
        assert_eq!(placements.kept.len(), KEPT);
        assert!(placements.of(attempt(0), |_| String::new()).is_none());
        let view = placements.of(attempt(1999), |id| id.0.to_string()).unwrap();
        assert_eq!((view.candidates.len(), view.more), (NAMED, 100 - NAMED));
        assert!(view.candidates.iter().any(|c| c.chosen && c.node == "99"));
    }
}
