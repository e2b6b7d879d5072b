//! The fewest outstanding attempts relative to capacity; ties by chance, so that equals share.

use rand::Rng;

use super::{Able, random};

pub(super) fn pick<R: Rng + ?Sized>(able: &[Able], rng: &mut R) -> Option<usize> {
    let least: Vec<usize> = (0..able.len())
        .filter(|a| !able.iter().any(|other| other.less_loaded_than(&able[*a])))
        .collect();
    let equals: Vec<Able> = least.iter().map(|at| able[*at]).collect();
    random::pick(&equals, rng).map(|at| least[at])
}
