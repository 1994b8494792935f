//! The patterns that memory and files are filled with.
//!
//! A value depends on the seed, on where it lies and on how often that place has been rewritten.
//! So a page that lost a write, that shows the contents of another page or that went back to an
//! older state never passes for the right one.

/// One step of the splitmix64 generator: a bijection of 64-bit values that spreads every input
/// bit over the whole output (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
pub(crate) const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The first word of page number `page` after it was written `round` times. The words behind it
/// follow by [`next`].
pub(crate) const fn page_start(seed: u64, page: u64, round: u64) -> u64 {
    mix(mix(mix(seed) ^ page) ^ round)
}

/// The word after `word` in the same page. Cheap, because every word of a large memory is made and
/// compared on an emulated CPU; an odd multiplier and an odd increment make it a bijection.
pub(crate) const fn next(word: u64) -> u64 {
    word.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1)
}

/// A running 64-bit FNV-1a checksum over bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checksum(u64);

impl Checksum {
    /// The checksum of no bytes.
    pub(crate) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Takes in more bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The checksum of all bytes so far.
    pub(crate) const fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_page_differs_by_seed_place_and_round() {
        let mut seen = HashSet::new();
        for seed in 0..8 {
            for page in 0..64 {
                for round in 0..8 {
                    assert!(seen.insert(page_start(seed, page, round)));
                }
            }
        }
    }

    #[test]
    fn words_of_a_page_do_not_repeat() {
        let mut seen = HashSet::new();
        let mut word = page_start(1, 2, 3);
        for _ in 0..512 {
            assert!(seen.insert(word));
            word = next(word);
        }
    }

    #[test]
    fn the_checksum_is_fnv1a() {
        // Test vectors of the FNV reference code.
        let sum = |text: &str| {
            let mut sum = Checksum::new();
            sum.update(text.as_bytes());
            sum.value()
        };
        assert_eq!(sum(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(sum("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(sum("foobar"), 0x8594_4171_f739_67e8);
    }
}
