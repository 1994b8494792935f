//! The sizes of pages that a host has.
//!
//! A host maps memory for itself with the same sizes of leaves as for its guests: pages, and the
//! next two sizes of leaves where there are such. Linux maps no larger ones.

use slat_report::size::Size;
use slat_table::address::PAGE_SIZE;
use slat_table::geometry::Geometry;

use crate::layout::Pages;

/// Pages, huge pages and gigantic pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    small: u64,
    huge: Option<u64>,
    gigantic: Option<u64>,
}

/// What people call pages of these kinds, whatever their size.
const WORDS: [(&str, Pages); 3] = [
    ("4K", Pages::Small),
    ("2M", Pages::Huge),
    ("1G", Pages::Gigantic),
];

impl Sizes {
    /// Pages of 4 KiB and nothing else.
    pub const PAGES_ONLY: Self = Self {
        small: PAGE_SIZE,
        huge: None,
        gigantic: None,
    };

    /// The sizes of a host whose tables are like these.
    pub fn of(geometry: &Geometry) -> Self {
        let mut sizes: Vec<_> = geometry
            .leaf_levels()
            .map(|level| geometry.entry_bytes(level))
            .collect();
        let small = sizes.pop().unwrap_or(PAGE_SIZE);
        Self {
            small,
            huge: sizes.pop(),
            gigantic: sizes.pop(),
        }
    }

    /// Bytes of a page.
    pub const fn small(&self) -> u64 {
        self.small
    }

    /// Bytes of a huge page, if there are such.
    pub const fn huge(&self) -> Option<u64> {
        self.huge
    }

    /// Bytes of a gigantic page, if there are such.
    pub const fn gigantic(&self) -> Option<u64> {
        self.gigantic
    }

    /// All sizes, the largest first.
    pub fn largest_first(&self) -> impl Iterator<Item = u64> + use<> {
        let small = Some(self.small);
        [self.gigantic, self.huge, small].into_iter().flatten()
    }

    /// The sizes larger than a page, the smallest first.
    pub(crate) fn above_small(&self) -> impl Iterator<Item = (Pages, u64)> + use<> {
        let named = |pages, bytes: Option<u64>| bytes.map(|bytes| (pages, bytes));
        let huge = named(Pages::Huge, self.huge);
        [huge, named(Pages::Gigantic, self.gigantic)]
            .into_iter()
            .flatten()
    }

    /// The largest size.
    pub(crate) fn largest(&self) -> u64 {
        self.gigantic.or(self.huge).unwrap_or(self.small)
    }

    /// Bytes of huge pages where there are such, or else of pages.
    pub(crate) fn huge_or_small(&self) -> u64 {
        self.huge.unwrap_or(self.small)
    }

    /// What a file calls `text`: one of these sizes, or `4K`, `2M` or `1G` for the page, the huge
    /// and the gigantic one, whatever size they have here.
    pub(crate) fn named(&self, text: &str) -> Option<Pages> {
        let all = || core::iter::once((Pages::Small, self.small)).chain(self.above_small());
        if text == "auto" {
            return Some(Pages::Auto);
        }
        let bytes: Option<Size> = text.parse().ok();
        let own = all().find(|(_, size)| bytes == Some(Size(*size)));
        let word = || WORDS.into_iter().find(|(word, _)| *word == text);
        let exists = |(_, pages): &(_, Pages)| all().any(|(kind, _)| kind == *pages);
        own.map(|(pages, _)| pages)
            .or_else(|| word().filter(exists).map(|(_, pages)| pages))
    }

    /// The sizes in words: `4K, 2M, 1G`.
    pub(crate) fn in_words(&self) -> String {
        let mut sizes: Vec<_> = self
            .largest_first()
            .map(|bytes| Size(bytes).to_string())
            .collect();
        sizes.reverse();
        sizes.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use crate::format::Row;
    use crate::layout::Pages;

    #[test]
    fn a_host_has_the_page_and_the_next_two_sizes_of_leaves() {
        let of = |name| Row::named(name).unwrap().sizes().in_words();
        assert_eq!(of("arm64-4k"), "4K, 2M, 1G");
        assert_eq!(of("arm64-4k-lpa2"), "4K, 2M, 1G");
        assert_eq!(of("arm64-16k"), "16K, 32M");
        assert_eq!(of("arm64-64k"), "64K, 512M");
        assert_eq!(of("s390-region3"), "4K, 1M, 2G");
        assert_eq!(of("sv32x4"), "4K, 4M");
        assert_eq!(of("power-64k"), "64K, 2M, 1G");
    }

    #[test]
    fn sizes_are_named_by_themselves_or_by_what_they_are_where_pages_have_4k() {
        let named = |row, text| Row::named(row).unwrap().sizes().named(text);
        assert_eq!(named("arm64-16k", "16K"), Some(Pages::Small));
        assert_eq!(named("arm64-16k", "4K"), Some(Pages::Small));
        assert_eq!(named("arm64-16k", "32M"), Some(Pages::Huge));
        assert_eq!(named("arm64-16k", "2M"), Some(Pages::Huge));
        assert_eq!(named("arm64-16k", "1G"), None, "no gigantic pages");
        assert_eq!(named("s390-region3", "2G"), Some(Pages::Gigantic));
        assert_eq!(named("arm64-4k", "64K"), None);
        assert_eq!(named("arm64-4k", "monkeys"), None);
        assert_eq!(named("arm64-4k", "auto"), Some(Pages::Auto));
    }
}
