//! Which of the able workers gets a task. Pure: chance is an argument. One file per way, one variant each in `BalancerKind`.

mod least_loaded;
mod random;
mod round_robin;
mod two_choices;

use rand::Rng;

use super::BalancerKind;
use crate::id::NodeId;

/// A worker that could take the task now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Able {
    /// Who.
    pub id: NodeId,
    /// Attempts it has now.
    pub outstanding: u32,
    /// Attempts it runs side by side.
    pub capacity: u32,
    /// How many more it accepts now.
    pub credit: u32,
}

impl Able {
    /// Whether it is less loaded than another, relative to capacity.
    fn less_loaded_than(&self, other: &Self) -> bool {
        u64::from(self.outstanding) * u64::from(other.capacity.max(1))
            < u64::from(other.outstanding) * u64::from(self.capacity.max(1))
    }
}

/// A way of choosing, with what it remembers.
#[derive(Clone, Debug)]
pub struct Balancer {
    kind: BalancerKind,
    last: Option<NodeId>,
}

impl Balancer {
    /// Of this kind.
    pub fn new(kind: BalancerKind) -> Self {
        Self { kind, last: None }
    }

    /// Of which kind it is.
    pub fn kind(&self) -> BalancerKind {
        self.kind
    }

    /// Picks one of the able, which come sorted by id; `None` when there is none.
    pub fn pick<R: Rng + ?Sized>(&mut self, able: &[Able], rng: &mut R) -> Option<NodeId> {
        let at = match self.kind {
            BalancerKind::Random => random::pick(able, rng),
            BalancerKind::RoundRobin => round_robin::pick(able, self.last),
            BalancerKind::LeastLoaded => least_loaded::pick(able, rng),
            BalancerKind::TwoChoices => two_choices::pick(able, rng),
        };
        self.last = at.and_then(|at| able.get(at)).map(|w| w.id).or(self.last);
        at.and_then(|at| able.get(at)).map(|w| w.id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn workers(loads: &[(u32, u32)]) -> Vec<Able> {
        let able = loads.iter().enumerate();
        able.map(|(n, (outstanding, capacity))| Able {
            id: NodeId(n as u128),
            outstanding: *outstanding,
            capacity: *capacity,
            credit: 1,
        })
        .collect()
    }

    fn share(kind: BalancerKind, able: &[Able]) -> BTreeMap<u128, usize> {
        let mut rng = StdRng::seed_from_u64(7);
        let mut balancer = Balancer::new(kind);
        let mut share = BTreeMap::new();
        for _ in 0..3000 {
            let id = balancer.pick(able, &mut rng).unwrap();
            *share.entry(id.0).or_default() += 1;
        }
        share
    }

    #[test]
    fn random_gives_everybody_about_the_same() {
        let share = share(BalancerKind::Random, &workers(&[(9, 1), (0, 1), (0, 1)]));
        assert!(share.values().all(|n| (900..1100).contains(n)), "{share:?}");
    }

    #[test]
    fn round_robin_gives_everybody_exactly_the_same() {
        let share = share(
            BalancerKind::RoundRobin,
            &workers(&[(9, 1), (0, 1), (0, 1)]),
        );
        assert!(share.values().all(|n| *n == 1000), "{share:?}");
    }

    #[test]
    fn least_loaded_looks_at_load_relative_to_capacity() {
        let share = share(
            BalancerKind::LeastLoaded,
            &workers(&[(2, 2), (3, 8), (1, 1)]),
        );
        assert_eq!(share, BTreeMap::from([(1, 3000)]));
    }

    #[test]
    fn two_choices_spares_the_most_loaded() {
        let share = share(
            BalancerKind::TwoChoices,
            &workers(&[(9, 1), (0, 1), (0, 1)]),
        );
        assert!(!share.contains_key(&0), "{share:?}");
    }

    #[test]
    fn nobody_able_is_nobody_picked() {
        for kind in [
            BalancerKind::Random,
            BalancerKind::RoundRobin,
            BalancerKind::LeastLoaded,
            BalancerKind::TwoChoices,
        ] {
            let mut rng = StdRng::seed_from_u64(7);
            assert_eq!(Balancer::new(kind).pick(&[], &mut rng), None);
        }
    }
}
