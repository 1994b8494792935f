//! Entries in memory: where they are, how many bytes they have and in which order.
//!
//! The engine and the formats' encoders work on plain numbers of 64 bits. Here those meet
//! [`TableMemory`](crate::platform::TableMemory), which moves bytes: in the order that the format
//! says, and 4 at a time where its entries are no larger.

use crate::address::Hpa;
use crate::format::{ByteOrder, Format};
use crate::platform::Platform;
use crate::sync::Ordering;
use crate::table::PageTable;

/// Address of the entry `index` of `table`.
#[inline]
pub(crate) const fn entry_address<F: Format>(table: Hpa, index: u64) -> Hpa {
    Hpa::new(table.raw() + index * F::ENTRY_BYTES)
}

/// Whether entries have 4 bytes.
const fn are_words<F: Format>() -> bool {
    F::ENTRY_BYTES == 4
}

/// Turns a value into the format's byte order, or back.
#[inline]
const fn in_order<F: Format>(value: u64) -> u64 {
    match F::BYTE_ORDER {
        ByteOrder::Little => value.to_le(),
        ByteOrder::Big => value.to_be(),
    }
}

/// The same for an entry of 4 bytes, which is the lower half of a number.
#[inline]
const fn word_in_order<F: Format>(value: u32) -> u32 {
    match F::BYTE_ORDER {
        ByteOrder::Little => value.to_le(),
        ByteOrder::Big => value.to_be(),
    }
}

#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an entry of 4 bytes is the lower half of a number"
)]
const fn to_word<F: Format>(value: u64) -> u32 {
    word_in_order::<F>(value as u32)
}

#[inline]
fn from_word<F: Format>(word: u32) -> u64 {
    word_in_order::<F>(word).into()
}

impl<F: Format, P: Platform> PageTable<F, P> {
    #[inline]
    pub(crate) fn load(&self, entry: Hpa) -> u64 {
        if are_words::<F>() {
            return from_word::<F>(self.platform().load_word(entry, Ordering::Acquire));
        }
        in_order::<F>(self.platform().load(entry, Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn store(&self, entry: Hpa, value: u64) {
        if are_words::<F>() {
            return self
                .platform()
                .store_word(entry, to_word::<F>(value), Ordering::Release);
        }
        self.platform()
            .store(entry, in_order::<F>(value), Ordering::Release);
    }

    /// Writes `value` to the first `entries` entries of `table`, which no walker can reach yet.
    pub(crate) fn fill(&self, table: Hpa, entries: u64, value: u64) {
        if are_words::<F>() {
            for index in 0..entries {
                self.store(entry_address::<F>(table, index), value);
            }
        } else {
            self.platform().fill(table, entries, in_order::<F>(value));
        }
    }

    #[inline]
    pub(crate) fn swap(&self, entry: Hpa, value: u64) -> u64 {
        if are_words::<F>() {
            return from_word::<F>(self.platform().swap_word(entry, to_word::<F>(value)));
        }
        in_order::<F>(self.platform().swap(entry, in_order::<F>(value)))
    }

    #[inline]
    pub(crate) fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        if are_words::<F>() {
            return self
                .platform()
                .compare_exchange_word(entry, to_word::<F>(old), to_word::<F>(new))
                .map_err(from_word::<F>);
        }
        self.platform()
            .compare_exchange(entry, in_order::<F>(old), in_order::<F>(new))
            .map_err(in_order::<F>)
    }
}
