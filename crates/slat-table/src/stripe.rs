//! Striped span locks: who may touch which entries, and who must try again.
//!
//! A *span* is what one level-0 table maps (2 MiB with 4 KiB granules and 9-bit tables). The
//! spans of a tree share [`MAX_STRIPES`] or fewer *stripes*; a stripe is a lock, a count of
//! removals in progress, and a sequence number, on a cache line of its own.
//!
//! * To read or change a leaf, or to free a level-0 table, hold the stripe of its span.
//! * To change an entry that covers several spans, or to free an upper table, hold the stripes of
//!   all of them.
//! * The one exception: an *empty* upper entry may become a table by compare-exchange under any
//!   one covered stripe. That is undone only under all of them.
//!
//! So whoever holds one stripe can never see a table vanish on the way down to its span.
//!
//! The count and the sequence order installers against removers. A remover **raises** the count
//! of every stripe it may touch before it removes anything (P5), and **lowers** it when its flush
//! is complete, raising the sequence in the same hold (P8). An installer takes a [`Snapshot`] of
//! the sequences before it asks the host what to map (P2), and under the stripes installs only if
//! no count is up and no sequence has moved (P3).

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::marker::PhantomData;

use arrayvec::ArrayVec;

use crate::address::{Gpa, GpaRange};
use crate::format::Format;
use crate::lock::{Locks, Mutex};
use crate::sync::{AtomicU64, Ordering};

/// The most stripes a table can have; a set of them fits in a word.
pub const MAX_STRIPES: usize = 64;

/// A set of stripes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StripeSet(u64);

impl StripeSet {
    /// No stripes.
    pub const EMPTY: Self = Self(0);

    #[inline]
    const fn one(index: usize) -> Self {
        Self(1 << index)
    }

    /// Whether there is exactly one.
    #[inline]
    pub const fn is_one(self) -> bool {
        self.0.is_power_of_two()
    }

    /// Whether there is none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in either set.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in this set but not in `other`.
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are in this set.
    #[inline]
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Their indexes, in ascending order: the order in which locks are taken (P12).
    #[inline]
    fn indexes(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let index = rest.trailing_zeros() as usize;
            if index == MAX_STRIPES {
                return None;
            }
            rest &= rest - 1;
            Some(index)
        })
    }
}

/// Sequences of some stripes at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    set: StripeSet,
    // Sequences only grow, so their sum is the same exactly if each of them is.
    sum: u64,
}

#[repr(align(64))]
struct Stripe<L: Locks> {
    in_progress: L::Mutex<u32>,
    sequence: AtomicU64,
}

impl<L: Locks> Stripe<L> {
    /// Acquire pairs with the release in [`Stripes::lower`]: whoever sees the new sequence also
    /// sees the host's change that it announces.
    #[inline]
    fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }
}

#[inline]
fn sum_of<'s, L: Locks>(stripes: impl Iterator<Item = &'s Stripe<L>>) -> u64 {
    stripes.fold(0, |sum, stripe| sum.wrapping_add(stripe.sequence()))
}

type Guard<'a, L> = <<L as Locks>::Mutex<u32> as Mutex<u32>>::Guard<'a>;

/// Tells the stripes of one table from those of another while both exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StripesId(usize);

/// log2 of the bytes of a span: what one level-0 table maps.
pub(crate) const fn span_shift<F: Format>() -> u8 {
    F::SHIFTS[1]
}

/// The span around `gpa`. `None` if its end is no number.
#[inline]
pub(crate) fn span_around<F: Format>(gpa: Gpa) -> Option<GpaRange> {
    GpaRange::aligned_block(gpa, span_shift::<F>())
}

/// All stripes of one table.
pub(crate) struct Stripes<F, L: Locks> {
    stripes: Box<[Stripe<L>]>,
    format: PhantomData<F>,
}

impl<F: Format, L: Locks> Stripes<F, L> {
    /// `count` stripes, a power of two of at most [`MAX_STRIPES`].
    pub(crate) fn new(count: usize) -> Result<Self, TryReserveError> {
        let mut stripes = Vec::new();
        stripes.try_reserve_exact(count)?;
        stripes.extend((0..count).map(|_| Stripe {
            in_progress: L::Mutex::new(0),
            sequence: AtomicU64::new(0),
        }));
        Ok(Self {
            stripes: stripes.into_boxed_slice(),
            format: PhantomData,
        })
    }

    /// What tells them from others: where they are, which does not change when the table moves.
    #[inline]
    pub(crate) fn id(&self) -> StripesId {
        StripesId(self.stripes.as_ptr().addr())
    }

    /// The stripe of the span around `gpa`.
    #[inline]
    pub(crate) fn of(&self, gpa: Gpa) -> StripeSet {
        StripeSet::one(self.index(gpa.raw() >> span_shift::<F>()))
    }

    #[inline]
    fn index(&self, span: u64) -> usize {
        usize::try_from(span & (self.stripes.len() as u64 - 1)).unwrap_or(0)
    }

    /// The stripes of all spans that `range` touches.
    #[inline]
    pub(crate) fn covering(&self, range: &GpaRange) -> StripeSet {
        let (first, last) = Self::spans(range);
        if first == last {
            return StripeSet::one(self.index(first));
        }
        self.covering_spans(first, last)
    }

    #[inline(never)]
    fn covering_spans(&self, first: u64, last: u64) -> StripeSet {
        let count = self.stripes.len() as u64;
        if last - first >= count - 1 {
            return self.all();
        }
        (first..=last).fold(StripeSet::EMPTY, |set, span| {
            set.union(StripeSet::one(self.index(span)))
        })
    }

    /// The first and the last span that `range` touches.
    #[inline]
    fn spans(range: &GpaRange) -> (u64, u64) {
        let span = |gpa: u64| gpa >> span_shift::<F>();
        (span(range.start().raw()), span(range.end().raw() - 1))
    }

    pub(crate) fn all(&self) -> StripeSet {
        StripeSet(u64::MAX >> (MAX_STRIPES - self.stripes.len()))
    }

    /// P2: the sequences of the spans that `range` touches, to be taken before the host is asked.
    #[inline]
    pub(crate) fn snapshot(&self, range: &GpaRange) -> Snapshot {
        let (first, last) = Self::spans(range);
        if first == last {
            let index = self.index(first);
            return Snapshot {
                set: StripeSet::one(index),
                sum: self.stripes[index].sequence(),
            };
        }
        self.snapshot_of(self.covering_spans(first, last))
    }

    #[inline(never)]
    fn snapshot_of(&self, set: StripeSet) -> Snapshot {
        let sum = sum_of(set.indexes().map(|index| &self.stripes[index]));
        Snapshot { set, sum }
    }

    #[inline]
    fn take(&self, index: usize) -> HeldStripe<'_, L> {
        let stripe = &self.stripes[index];
        HeldStripe {
            stripe,
            in_progress: stripe.in_progress.lock(),
        }
    }

    /// Takes the stripes of `set`, in index order (P12).
    pub(crate) fn hold(&self, set: StripeSet) -> Held<'_, L, Several> {
        let stripes = set.indexes().map(|index| self.take(index)).collect();
        Held { set, stripes }
    }

    /// Takes the stripe of the span around `gpa`.
    #[expect(clippy::inline_always, reason = "one lock is taken, and no more")]
    #[inline(always)]
    pub(crate) fn hold_one(&self, gpa: Gpa) -> Held<'_, L, One> {
        let index = self.index(gpa.raw() >> span_shift::<F>());
        Held {
            set: StripeSet::one(index),
            stripes: [self.take(index)],
        }
    }

    /// P5: counts a removal in progress on every stripe of `set`.
    ///
    /// Each count goes up under its lock. So once this returns, an installer that held the stripe
    /// before has finished, and one that takes it later sees the count.
    pub(crate) fn raise(&self, set: StripeSet) {
        for index in set.indexes() {
            *self.stripes[index].in_progress.lock() += 1;
        }
    }

    /// P8: ends a removal: moves the sequence and lowers the count in one hold, per stripe.
    pub(crate) fn lower(&self, set: StripeSet) {
        for index in set.indexes() {
            let stripe = &self.stripes[index];
            let mut in_progress = stripe.in_progress.lock();
            // Only ever written under the lock, so load and store need not be one operation.
            let sequence = stripe.sequence.load(Ordering::Relaxed);
            stripe.sequence.store(sequence + 1, Ordering::Release);
            *in_progress -= 1;
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// For how many stripes a hold has room: [`One`] or [`Several`].
pub trait Room: sealed::Sealed {
    /// So many of them.
    type Of<T>: AsRef<[T]>;
}

/// Room for one stripe. One is most of what is ever held, and must not cost what room for all of
/// them does.
#[derive(Debug)]
pub enum One {}

/// Room for all stripes.
#[derive(Debug)]
pub enum Several {}

impl sealed::Sealed for One {}
impl sealed::Sealed for Several {}

impl Room for One {
    type Of<T> = [T; 1];
}

impl Room for Several {
    type Of<T> = ArrayVec<T, MAX_STRIPES>;
}

struct HeldStripe<'s, L: Locks> {
    stripe: &'s Stripe<L>,
    in_progress: Guard<'s, L>,
}

/// Some stripes, held.
pub(crate) struct Held<'s, L: Locks, R: Room> {
    set: StripeSet,
    stripes: R::Of<HeldStripe<'s, L>>,
}

impl<L: Locks, R: Room> Held<'_, L, R> {
    #[inline]
    pub(crate) fn set(&self) -> StripeSet {
        self.set
    }

    /// P3: whether no removal is in progress on the held stripes and none has ended since
    /// `snapshot`, which must be of the same stripes.
    #[inline]
    pub(crate) fn is_current(&self, snapshot: &Snapshot) -> bool {
        !self.counts_above(0) && self.snapshot() == *snapshot
    }

    /// P6: whether, on a held stripe, anyone but a caller that raised each once is removing.
    #[inline]
    pub(crate) fn others_active(&self) -> bool {
        self.counts_above(1)
    }

    #[inline]
    fn counts_above(&self, own: u32) -> bool {
        let mut held = self.stripes.as_ref().iter();
        held.any(|held| *held.in_progress > own)
    }

    /// The held stripes' sequences.
    #[inline]
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            set: self.set,
            sum: sum_of(self.stripes.as_ref().iter().map(|held| held.stripe)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_stripes_is_a_set() {
        let (first, second) = (StripeSet::one(0), StripeSet::one(63));
        let both = first.union(second);
        assert!(second.is_one() && !both.is_one() && !StripeSet::EMPTY.is_one());
        assert!(StripeSet::EMPTY.is_empty() && !first.is_empty());
        assert_eq!(both.union(first), both, "a stripe met twice is there once");
        assert_eq!(both.without(first), second);
        assert!(both.covers(first) && !first.covers(both));
        assert!(both.indexes().eq([0, 63]));
    }
}
