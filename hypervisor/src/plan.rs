//! Which change churn makes next: drawn by weight, from a seed.

use crate::random::Random;

/// A change that a host makes to a guest's memory while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the one caller must make every change"
)]
pub enum Change {
    /// Move a page to another frame.
    MigratePage,
    /// Move a 2 MiB block to another frame; pages become one block again.
    MigrateBlock,
    /// Take a page's frame away, keeping an image of it, and bring the page back from the image
    /// when the guest wants it.
    Discard,
    /// Make pages of a 2 MiB block.
    Split,
    /// Take away the permission to write to a page, until the guest writes.
    ProtectPage,
    /// Take away the permission to write to a 2 MiB block, until the guest writes.
    ProtectBlock,
    /// Forget whether a block was used.
    Age,
    /// Take a device's memory away, until the guest touches it.
    Revoke,
}

/// The changes and how often each is drawn, of 100.
const WEIGHTS: [(Change, u64); 8] = [
    (Change::MigratePage, 38),
    (Change::MigrateBlock, 13),
    (Change::Discard, 24),
    (Change::Split, 5),
    (Change::ProtectPage, 10),
    (Change::ProtectBlock, 4),
    (Change::Age, 3),
    (Change::Revoke, 3),
];

impl Change {
    /// Draws a change.
    pub fn draw(random: &mut Random) -> Self {
        let mut ticket = random.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (change, weight) in WEIGHTS {
            if ticket < weight {
                return change;
            }
            ticket -= weight;
        }
        Self::MigratePage
    }

    /// Whether it concerns one page of 4 KiB.
    pub const fn is_to_one_page(self) -> bool {
        matches!(self, Self::MigratePage | Self::Discard | Self::ProtectPage)
    }

    /// Its name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MigratePage => "migrate 4K",
            Self::MigrateBlock => "migrate 2M",
            Self::Discard => "discard",
            Self::Split => "split",
            Self::ProtectPage => "write-protect 4K",
            Self::ProtectBlock => "write-protect 2M",
            Self::Age => "age",
            Self::Revoke => "revoke",
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_change_is_drawn_about_as_often_as_its_weight_says() {
        let mut random = Random::new(3);
        let mut drawn = BTreeMap::new();
        for _ in 0..100_000 {
            *drawn.entry(Change::draw(&mut random)).or_insert(0_u64) += 1;
        }
        for (change, weight) in WEIGHTS {
            let times = drawn[&change];
            assert!(
                times.abs_diff(weight * 1000) < weight * 100,
                "{change:?}: {times}"
            );
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_changes() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            core::array::from_fn::<_, 64, _>(|_| Change::draw(&mut random))
        };
        assert_eq!(draw(9), draw(9));
        assert_ne!(draw(9), draw(10));
    }
}
