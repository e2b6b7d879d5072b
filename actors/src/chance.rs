//! Chance, from one place: the system's in production, a seed's in a simulation.
//!
//! Who makes choices for long holds a generator of its own; who needs one draw now and then asks here, so that a
//! simulation can replace the source by `seed` and the same seed gives the same run.

use rand::rngs::StdRng;

/// A generator that nobody else draws from.
pub fn rng() -> StdRng {
    #[cfg(feature = "testkit")]
    if let Some(rng) = simulated::draw() {
        return rng;
    }
    rand::make_rng()
}

/// Whether this thread is simulated: then nothing may leave it, since the order in which it came back would be chance.
pub fn is_seeded() -> bool {
    #[cfg(feature = "testkit")]
    return simulated::is_seeded();
    #[cfg(not(feature = "testkit"))]
    false
}

#[cfg(feature = "testkit")]
pub use simulated::seed;

#[cfg(feature = "testkit")]
mod simulated {
    use std::cell::RefCell;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    thread_local! {
        static SOURCE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// From now on this thread's chance comes from `seed`; `None` gives it back to the system.
    pub fn seed(seed: Option<u64>) {
        SOURCE.set(seed.map(StdRng::seed_from_u64));
    }

    pub(super) fn is_seeded() -> bool {
        SOURCE.with_borrow(Option::is_some)
    }

    pub(super) fn draw() -> Option<StdRng> {
        SOURCE.with_borrow_mut(|source| {
            let seed = source.as_mut()?.next_u64();
            Some(StdRng::seed_from_u64(seed))
        })
    }
}

#[cfg(all(test, feature = "testkit"))]
mod tests {
    use rand::Rng;

    #[test]
    fn the_same_seed_gives_the_same_chances() {
        let draw = || {
            super::seed(Some(7));
            [super::rng().next_u64(), super::rng().next_u64()]
        };
        let first = draw();
        assert_eq!(first, draw());
        assert_ne!(first[0], first[1]);
        super::seed(None);
        assert_ne!(first, [super::rng().next_u64(), super::rng().next_u64()]);
    }
}
