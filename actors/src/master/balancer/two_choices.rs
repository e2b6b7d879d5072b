//! The less loaded of two drawn by chance (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 1996).

use rand::{Rng, RngExt};

use super::{Able, random};

pub(super) fn pick<R: Rng + ?Sized>(able: &[Able], rng: &mut R) -> Option<usize> {
    let first = random::pick(able, rng)?;
    if able.len() == 1 {
        return Some(first);
    }
    // Another than the first: skip over it.
    let second = rng.random_range(0..able.len() - 1);
    let second = second + usize::from(second >= first);
    Some(if able[second].less_loaded_than(&able[first]) {
        second
    } else {
        first
    })
}
