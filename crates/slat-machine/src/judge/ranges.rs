//! Ranges of addresses, and which of many overlap one.

use core::fmt;
use std::collections::BTreeMap;

/// A range of addresses of any kind, never empty; one that would wrap ends at the last address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    /// The first address behind it.
    pub(super) end: u64,
}

impl Span {
    /// `bytes` bytes from `start`; at least one.
    pub(super) fn new(start: u64, bytes: u64) -> Self {
        let start = start.min(u64::MAX - 1);
        Self {
            start,
            end: start.saturating_add(bytes.max(1)),
        }
    }

    pub(super) fn bytes(self) -> u64 {
        self.end - self.start
    }

    pub(super) fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    pub(super) fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    pub(super) fn intersection(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }

    /// What is left of it without `other`: in front and behind.
    pub(super) fn without(self, other: Self) -> [Option<Self>; 2] {
        let part = |start: u64, end: u64| (start < end).then_some(Self { start, end });
        [
            part(self.start, self.end.min(other.start)),
            part(self.start.max(other.end), self.end),
        ]
    }

    /// The same range, counted from `to` where it is counted from `from` now. `None` if that
    /// leaves the address space.
    pub(super) fn moved(self, from: u64, to: u64) -> Option<Self> {
        let start = self.start.checked_sub(from)?.checked_add(to)?;
        let end = self.end.checked_sub(from)?.checked_add(to)?;
        Some(Self { start, end })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Disjoint ranges, each with a value.
#[derive(Debug)]
pub(super) struct Disjoint<T>(BTreeMap<u64, (u64, T)>);

impl<T> Default for Disjoint<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Clone> Disjoint<T> {
    /// The ranges that overlap `span`, last first.
    pub(super) fn overlapping(&self, span: Span) -> impl Iterator<Item = (Span, &T)> {
        self.0
            .range(..span.end)
            .rev()
            .take_while(move |(_, (end, _))| *end > span.start)
            .map(|(&start, (end, value))| (Span { start, end: *end }, value))
    }

    /// The range that `address` lies in.
    pub(super) fn at(&self, address: u64) -> Option<(Span, &T)> {
        self.overlapping(Span::new(address, 1)).next()
    }

    /// Forgets what is in `span`. What sticks out stays.
    pub(super) fn remove(&mut self, span: Span) {
        let found: Vec<(Span, T)> = self
            .overlapping(span)
            .map(|(range, value)| (range, value.clone()))
            .collect();
        for (range, value) in found {
            self.0.remove(&range.start);
            for rest in range.without(span).into_iter().flatten() {
                self.0.insert(rest.start, (rest.end, value.clone()));
            }
        }
    }

    /// Says that `span` has this value, whatever it had before.
    pub(super) fn set(&mut self, span: Span, value: T) {
        self.remove(span);
        self.0.insert(span.start, (span.end, value));
    }

    /// Whether the ranges together cover all of `span`.
    pub(super) fn covers(&self, span: Span) -> bool {
        let mut end = span.end;
        for (range, _) in self.overlapping(span) {
            if range.end < end {
                return false;
            }
            end = range.start;
        }
        end <= span.start
    }
}

/// Ranges that may overlap each other, each with a name, of which the default one is the least.
///
/// They are kept apart by size (by powers of two), so that a look-up need not go further back
/// than the largest range of its class.
#[derive(Debug, Default)]
pub(super) struct Overlapping<N> {
    by_class: BTreeMap<u32, BTreeMap<(u64, N), u64>>,
}

impl<N: Copy + Ord + Default> Overlapping<N> {
    fn class(span: Span) -> u32 {
        span.bytes().ilog2()
    }

    pub(super) fn insert(&mut self, span: Span, id: N) {
        self.by_class
            .entry(Self::class(span))
            .or_default()
            .insert((span.start, id), span.end);
    }

    pub(super) fn remove(&mut self, span: Span, id: N) {
        let class = Self::class(span);
        if let Some(ranges) = self.by_class.get_mut(&class) {
            ranges.remove(&(span.start, id));
            if ranges.is_empty() {
                self.by_class.remove(&class);
            }
        }
    }

    /// The names of the ranges that overlap `span`.
    pub(super) fn overlapping(&self, span: Span) -> impl Iterator<Item = N> {
        self.by_class.iter().flat_map(move |(class, ranges)| {
            let longest = 1u64.checked_shl(class + 1).unwrap_or(u64::MAX);
            let first = span.start.saturating_sub(longest);
            ranges
                .range((first, N::default())..(span.end, N::default()))
                .filter(move |(_, end)| **end > span.start)
                .map(|((_, id), _)| *id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_part_of_a_range_keeps_the_rest() {
        let mut ranges = Disjoint::default();
        ranges.set(Span::new(0, 30), 'a');
        ranges.set(Span::new(10, 10), 'b');
        let mut found: Vec<_> = ranges.overlapping(Span::new(0, 100)).collect();
        found.reverse();
        let expected = [
            (Span::new(0, 10), &'a'),
            (Span::new(10, 10), &'b'),
            (Span::new(20, 10), &'a'),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_gap_is_found_wherever_it_is() {
        let mut ranges = Disjoint::default();
        ranges.set(Span::new(10, 10), ());
        assert!(ranges.covers(Span::new(10, 10)));
        assert!(!ranges.covers(Span::new(5, 10)));
        assert!(!ranges.covers(Span::new(15, 10)));
        ranges.set(Span::new(20, 10), ());
        assert!(ranges.covers(Span::new(12, 15)));
        ranges.remove(Span::new(19, 2));
        assert!(!ranges.covers(Span::new(12, 15)));
    }

    #[test]
    fn ranges_of_every_size_are_found_by_overlap() {
        let mut ranges = Overlapping::default();
        let all = [
            Span::new(0, 1 << 40),
            Span::new(0x1000, 0x1000),
            Span::new(0x3000, 1),
        ];
        for (id, span) in (0..).zip(all) {
            ranges.insert(span, id);
        }
        let find = |ranges: &Overlapping<u64>, start, bytes| {
            let mut found: Vec<u64> = ranges.overlapping(Span::new(start, bytes)).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(find(&ranges, 0x1fff, 1), [0, 1]);
        assert_eq!(find(&ranges, 0x2000, 0x1000), [0]);
        assert_eq!(find(&ranges, 0x2000, 0x1001), [0, 2]);
        ranges.remove(all[0], 0);
        assert!(find(&ranges, 1 << 39, 4).is_empty());
    }
}
