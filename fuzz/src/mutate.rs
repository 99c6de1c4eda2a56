//! New inputs out of old ones: bytes, words and whole stretches changed, repeated, taken out and mixed.
//!
//! Invariant: the same seed and the same calls make the same inputs, on every machine.

use std::collections::BTreeSet;

/// Longest input that is made, in bytes.
const LONGEST: usize = 16 * 1024;
/// What parsers trip over, beside the words of the corpus.
const EDGES: [&str; 24] = [
    "0",
    "-1",
    "255",
    "256",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "1e999",
    "0x10",
    "null",
    "~",
    "true",
    "\"\"",
    "{}",
    "[]",
    "0.0.0.0/0",
    "::/0",
    "::ffff:10.0.0.1",
    "10.0.0.1/33",
    "..",
    "\u{feff}",
    "\n---\n",
];
/// Nested this deep, a recursive parser must have given up.
const DEEP: usize = 2000;

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Rng(u64);

/// Makes inputs.
pub(crate) struct Mutator {
    rng: Rng,
    /// Pieces of the corpus that mean something by themselves.
    words: Vec<Vec<u8>>,
}

// === impl Rng ===

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, which is above 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn stretch(&mut self, length: usize) -> std::ops::Range<usize> {
        let (a, b) = (self.below(length + 1), self.below(length + 1));
        // Mostly short: a long one leaves nothing of the input.
        let longest = if self.below(4) == 0 { length } else { 16 };
        a.min(b)..a.max(b).min(a.min(b) + longest)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number for a name.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |hash, byte| mix(hash ^ u64::from(*byte)))
}

// === impl Mutator ===

impl Mutator {
    pub(crate) fn new(rng: Rng, corpus: &[Vec<u8>]) -> Mutator {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"\"_./:-".contains(byte);
        let words = corpus.iter().flat_map(|input| input.split(|byte| !is_part(byte)));
        let words: BTreeSet<&[u8]> = words.filter(|word| (1..=40).contains(&word.len())).collect();
        let words = words.into_iter().chain(EDGES.map(str::as_bytes)).map(<[u8]>::to_vec).collect();
        Mutator { rng, words }
    }

    /// An input from one or two of the pool.
    pub(crate) fn next(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.one(pool).to_vec();
        for _ in 0..=self.rng.below(4) {
            self.change(&mut input, pool);
        }
        input.truncate(LONGEST);
        input
    }

    fn one<'a>(&mut self, pool: &'a [Vec<u8>]) -> &'a [u8] {
        if pool.is_empty() { &[] } else { &pool[self.rng.below(pool.len())] }
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.rng.below(input.len() + 1);
        match self.rng.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.rng.below(8),
            1 if at < input.len() => input[at] = self.rng.next() as u8,
            2 => input.truncate(at),
            3 => drop(input.drain(self.rng.stretch(input.len()))),
            4 => {
                let again = input[self.rng.stretch(input.len())].to_vec();
                input.splice(at..at, again);
            }
            5 => {
                let theirs = self.one(pool);
                let part = theirs[self.rng.stretch(theirs.len())].to_vec();
                let place = self.rng.stretch(input.len());
                input.splice(place, part);
            }
            6 => {
                let opening = ["[", "{\"a\":", "- ", "{a: ", "("][self.rng.below(5)];
                let depth = if self.rng.below(8) == 0 { DEEP } else { self.rng.below(40) };
                input.splice(at..at, opening.repeat(depth).into_bytes());
            }
            7 => {
                let word = self.word();
                input.splice(at..at, word);
            }
            _ => self.replace_word(input, at),
        }
    }

    fn word(&mut self) -> Vec<u8> {
        let which = self.rng.below(self.words.len());
        self.words[which].clone()
    }

    /// Puts another word in the place of the one around `at`.
    fn replace_word(&mut self, input: &mut Vec<u8>, at: usize) {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_./-".contains(byte);
        let start = input[..at].iter().rposition(|byte| !is_part(byte)).map_or(0, |before| before + 1);
        let end = input[at..].iter().position(|byte| !is_part(byte)).map_or(input.len(), |length| at + length);
        let word = self.word();
        input.splice(start..end, word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_and_inputs_stay_short() {
        let pool = [b"{\"cniVersion\":\"1.1.0\"}".to_vec(), b"kind: Node\n".to_vec(), Vec::new()];
        let made = |seed| -> Vec<Vec<u8>> {
            let mut mutator = Mutator::new(Rng::new(seed), &pool);
            (0..5000).map(|_| mutator.next(&pool)).collect()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        assert!(made(3).iter().all(|input| input.len() <= LONGEST));
        let different: BTreeSet<Vec<u8>> = made(4).into_iter().collect();
        assert!(different.len() > 2500, "{}", different.len());
    }
}
