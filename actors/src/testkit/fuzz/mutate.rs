//! Inputs made from others, by the mistakes that parsers are known to make: bits that flip, lengths that lie, pieces that are cut
//! off, repeated, or taken from another input. Seeded: the same seed over the same corpus makes the same inputs.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// No input grows beyond this.
const MAX_LEN: usize = 64 * 1024;

/// Numbers at the edges of what fields can hold.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// See the module page.
#[derive(Debug)]
pub struct Mutator {
    corpus: Vec<Vec<u8>>,
    rng: SmallRng,
}

impl Mutator {
    /// Of this corpus; an empty one is as one empty input.
    pub fn new(mut corpus: Vec<Vec<u8>>, seed: u64) -> Self {
        if corpus.is_empty() {
            corpus.push(Vec::new());
        }
        Self {
            corpus,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut data = self.any().to_vec();
        for _ in 0..self.rng.random_range(1..=6) {
            self.change(&mut data);
        }
        data.truncate(MAX_LEN);
        data
    }

    fn any(&mut self) -> &[u8] {
        self.corpus.choose(&mut self.rng).map_or(&[], Vec::as_slice)
    }

    /// Somewhere in it, the end included.
    fn place(&mut self, data: &[u8]) -> usize {
        self.rng.random_range(0..=data.len())
    }

    fn change(&mut self, data: &mut Vec<u8>) {
        let at = self.place(data);
        let end = (at + self.rng.random_range(1..=32)).min(data.len());
        match self.rng.random_range(0..9) {
            0 => {
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= 1 << self.rng.random_range(0..8);
                }
            }
            1 => {
                if let Some(byte) = data.get_mut(at) {
                    *byte = self.rng.random();
                }
            }
            // A length field or a number, as the formats here write them.
            2 => self.number(data, at),
            3 => data.truncate(at),
            4 => drop(data.drain(at..end)),
            5 => {
                let piece = data[at..end].to_vec();
                let to = self.place(data);
                for _ in 0..self.rng.random_range(1..=8) {
                    data.splice(to..to, piece.iter().copied());
                }
            }
            6 => {
                let other = self.any().to_vec();
                let from = self.place(&other);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            7 => {
                let other = self.any().to_vec();
                let from = self.place(&other);
                let until = (from + self.rng.random_range(1..=64)).min(other.len());
                data.splice(at..at, other[from..until].iter().copied());
            }
            _ => {
                let count = self.rng.random_range(1..=16);
                let noise: Vec<u8> = (0..count).map(|_| self.rng.random()).collect();
                data.splice(at..at, noise);
            }
        }
    }

    fn number(&mut self, data: &mut Vec<u8>, at: usize) {
        let n = EDGES
            .choose(&mut self.rng)
            .map_or(0, |n| n.wrapping_add_signed(self.rng.random_range(-1..=1)));
        let big = n.to_be_bytes();
        let bytes = match self.rng.random_range(0..6) {
            0 => big[6..].to_vec(),
            1 => big[4..].to_vec(),
            2 => big.to_vec(),
            3 => n.to_le_bytes().to_vec(),
            4 => varint(n),
            _ => n.to_string().into_bytes(),
        };
        // In place of what is there, or between.
        let end = if self.rng.random() {
            (at + bytes.len()).min(data.len())
        } else {
            at
        };
        data.splice(at..end, bytes);
    }
}

/// As postcard and protobuf write numbers.
fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (n & 0x7f) as u8;
        n >>= 7;
        if n == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let corpus = vec![b"one and more".to_vec(), b"two".to_vec(), Vec::new()];
        let made = |seed| {
            let mut mutator = Mutator::new(corpus.clone(), seed);
            (0..500)
                .map(|_| mutator.next_input())
                .collect::<Vec<Vec<u8>>>()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
    }

    #[test]
    fn varints_are_those_of_postcard() {
        for n in [0, 1, 127, 128, 300, u64::MAX] {
            assert_eq!(varint(n), postcard::to_stdvec(&n).unwrap());
        }
    }
}
