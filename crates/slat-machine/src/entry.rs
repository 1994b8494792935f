//! Entries in memory. Memory is accessed in words of 8 bytes; an architecture's entries are one of
//! these or, two to a word, half of one.

use crate::address::Hpa;

/// Bytes of a word.
const WORD: u64 = 8;

/// The word that `entry` lies in.
pub(crate) const fn word_of(entry: Hpa) -> Hpa {
    Hpa(entry.0 / WORD * WORD)
}

/// What a word says at `entry`, an entry of `bytes` bytes in it.
pub(crate) const fn read(word: u64, entry: Hpa, bytes: u64) -> u64 {
    if bytes == WORD {
        word
    } else {
        word >> shift(entry) & HALF
    }
}

/// The word with `value` at `entry`.
pub(crate) const fn written(word: u64, entry: Hpa, bytes: u64, value: u64) -> u64 {
    if bytes == WORD {
        value
    } else {
        word & !(HALF << shift(entry)) | (value & HALF) << shift(entry)
    }
}

/// The word that says `value` in each of its entries.
pub(crate) const fn everywhere(value: u64, bytes: u64) -> u64 {
    if bytes == WORD {
        value
    } else {
        value & HALF | value << 32
    }
}

/// The entries of the word at `word`.
pub(crate) fn of_word(word: Hpa, bytes: u64) -> impl Iterator<Item = Hpa> {
    (0..WORD / bytes).map(move |place| Hpa(word.0 + place * bytes))
}

/// The entries of `bytes` bytes that differ when the word at `word` changes from `old` to `new`, and
/// what each says then; the first if none does.
pub(crate) fn changed(word: Hpa, bytes: u64, old: u64, new: u64) -> Vec<(Hpa, u64)> {
    let now = |entry| (entry, read(new, entry, bytes));
    let differs = |entry: &Hpa| read(old, *entry, bytes) != read(new, *entry, bytes);
    let found: Vec<_> = of_word(word, bytes).filter(differs).map(now).collect();
    if found.is_empty() {
        vec![now(word)]
    } else {
        found
    }
}

const HALF: u64 = 0xffff_ffff;

/// Bits from the start of its word to an entry of 4 bytes.
const fn shift(entry: Hpa) -> u64 {
    entry.0 % WORD * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORD_AT: Hpa = Hpa(0x1000);
    const SECOND: Hpa = Hpa(0x1004);

    #[test]
    fn halves_of_a_word_are_entries_of_their_own() {
        let word = written(0x1111_1111_2222_2222, SECOND, 4, 0x3333_3333);
        assert_eq!(word, 0x3333_3333_2222_2222);
        assert_eq!(read(word, WORD_AT, 4), 0x2222_2222);
        assert_eq!(read(word, SECOND, 4), 0x3333_3333);
        assert_eq!(word_of(SECOND), WORD_AT);
        assert_eq!(everywhere(7, 4), 7 << 32 | 7);
    }

    #[test]
    fn only_the_entries_that_differ_have_changed() {
        let changes = |old, new| changed(WORD_AT, 4, old, new);
        assert_eq!(changes(1 << 32, 2 << 32), [(SECOND, 2)]);
        assert_eq!(changes(0, 2 << 32 | 1), [(WORD_AT, 1), (SECOND, 2)]);
        assert_eq!(changes(5, 5), [(WORD_AT, 5)]);
        assert_eq!(changed(WORD_AT, 8, 5, 1 << 32), [(WORD_AT, 1 << 32)]);
    }
}
