//! A set of host virtual addresses, kept as ranges that do not touch.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use slat_table::address::{Hva, HvaRange};

/// The set. Ranges that touch become one.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    // By start, which is also in the range.
    ranges: BTreeMap<Hva, HvaRange>,
}

impl Extents {
    /// The whole extent around `hva`.
    pub(crate) fn around(&self, hva: Hva) -> Option<HvaRange> {
        let (_, range) = self.ranges.range(..=hva).next_back()?;
        range.contains(hva).then_some(*range)
    }

    /// The part of `within` around `hva`, an address in no extent, up to the next extents.
    pub(crate) fn gap(&self, hva: Hva, within: HvaRange) -> Option<HvaRange> {
        let before = self
            .ranges
            .range(..=hva)
            .next_back()
            .map(|(_, range)| range.end());
        let after = self.ranges.range(hva..).next().map(|(start, _)| *start);
        let start = before.unwrap_or_default().max(within.start());
        HvaRange::between(start, after.unwrap_or(within.end()).min(within.end()))
    }

    /// Adds `range`.
    pub(crate) fn insert(&mut self, range: HvaRange) {
        let mut merged = range;
        for known in self.touching(range) {
            self.ranges.remove(&known.start());
            merged = merged.hull(&known);
        }
        self.ranges.insert(merged.start(), merged);
    }

    /// Removes `range`.
    pub(crate) fn remove(&mut self, range: HvaRange) {
        for known in self.touching(range) {
            self.ranges.remove(&known.start());
            let before = HvaRange::between(known.start(), known.end().min(range.start()));
            let after = HvaRange::between(known.start().max(range.end()), known.end());
            for rest in before.into_iter().chain(after) {
                self.ranges.insert(rest.start(), rest);
            }
        }
    }

    /// Removes everything.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// The extents in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = HvaRange> + '_ {
        self.ranges.values().copied()
    }

    fn touching(&self, range: HvaRange) -> Vec<HvaRange> {
        // Extents are disjoint and in order, so only the last that starts before can reach in.
        let before = self.ranges.range(..range.start()).next_back();
        let inside = self.ranges.range(range.start()..=range.end());
        before
            .into_iter()
            .chain(inside)
            .map(|(_, known)| *known)
            .filter(|known| known.end() >= range.start())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    fn pages(start: u64, count: u64) -> HvaRange {
        HvaRange::new(Hva::new(start << 12), count << 12).unwrap()
    }

    proptest! {
        #[test]
        fn a_set_of_pages(steps in prop::collection::vec((any::<bool>(), 0u64..32, 1u64..8), 1..40)) {
            let mut extents = Extents::default();
            let mut model = BTreeSet::new();
            for (add, start, count) in steps {
                if add {
                    extents.insert(pages(start, count));
                    model.extend(start..start + count);
                } else {
                    extents.remove(pages(start, count));
                    model.retain(|page| !(start..start + count).contains(page));
                }
                for page in 0..40 {
                    let around = extents.around(Hva::new(page << 12));
                    prop_assert_eq!(around.is_some(), model.contains(&page));
                    if around.is_none() {
                        let gap = extents.gap(Hva::new(page << 12), pages(0, 40)).unwrap();
                        let (first, end) = (gap.start().raw() >> 12, gap.end().raw() >> 12);
                        prop_assert!((first..end).contains(&page));
                        prop_assert_eq!(model.range(first..end).count(), 0);
                        prop_assert!(first == 0 || model.contains(&(first - 1)));
                        prop_assert!(end == 40 || model.contains(&end));
                    }
                }
                let all: Vec<_> = extents.iter().collect();
                prop_assert!(all.windows(2).all(|pair| pair[0].end() < pair[1].start()));
            }
        }
    }
}
