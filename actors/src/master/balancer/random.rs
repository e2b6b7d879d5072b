//! Any able worker, by chance: the article's way.

use rand::{Rng, RngExt};

use super::Able;

pub(super) fn pick<R: Rng + ?Sized>(able: &[Able], rng: &mut R) -> Option<usize> {
    (!able.is_empty()).then(|| rng.random_range(0..able.len()))
}
