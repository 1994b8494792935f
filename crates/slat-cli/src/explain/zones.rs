//! How Linux would map a mapping: in which pages, and which of them are there already.
//!
//! A mapping is cut into [`Zone`]s, in each of which the answer is the same everywhere. The
//! [`Zones`] of a layout then stand between guest memory and the host (`slat_mm::interpose`) and
//! limit what the host shows:
//!
//! * anonymous memory has transparent huge pages, files have pages, unless the layout says
//!   otherwise;
//! * a PFNMAP is mapped by a huge entry only where host virtual and physical address agree modulo
//!   its size, because both ends of an entry are aligned to it;
//! * a peek finds only what is resident.

use core::ops::Range;

use slat::host::{HostPage, ResolveError};
use slat_mm::interpose::{Interpose, Question};
use slat_table::address::{Hva, HvaRange};
use slat_table::attributes::Access;

use crate::format::Sizes;
use crate::layout::{Kind, Layout, Mapping, Pages, Resident};

/// A part of a mapping that the host treats alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) range: Range<u64>,
    /// The largest block that the host maps there.
    pub(crate) block: u64,
    pub(crate) resident: bool,
}

/// The largest block in which the host maps `mapping`, residency aside.
pub(crate) fn largest_block(mapping: &Mapping, sizes: &Sizes) -> u64 {
    let asked = match (mapping.pages, mapping.kind) {
        (Pages::Small, _) | (Pages::Auto, Kind::File | Kind::NoAccess) => sizes.small(),
        (Pages::Huge, _) | (Pages::Auto, Kind::Ram) => sizes.huge_or_small(),
        (Pages::Gigantic, _) | (Pages::Auto, Kind::Pfnmap { .. }) => sizes.largest(),
    };
    let possible = |block: &u64| match mapping.kind {
        Kind::Pfnmap { hpa } => hpa % block == mapping.hva % block,
        Kind::Ram | Kind::File | Kind::NoAccess => true,
    };
    let mut fitting = sizes.largest_first().filter(|block| *block <= asked);
    fitting.find(possible).unwrap_or(sizes.small())
}

/// The zones of one mapping.
pub(crate) fn zones_of(mapping: &Mapping, sizes: &Sizes) -> Vec<Zone> {
    let Range { start, end } = mapping.range();
    let block = largest_block(mapping, sizes);
    let whole = |resident| {
        vec![Zone {
            range: start..end,
            block,
            resident,
        }]
    };
    let (huge, small) = match mapping.resident {
        Resident::All => return whole(true),
        Resident::Nothing => return whole(false),
        Resident::Some { huge, small } => (huge, small),
    };
    // Where the pages are is not known. The huge ones are taken to be at the start, from the
    // first place where one can be, and the small ones after.
    let (page, huge_page) = (sizes.small(), sizes.huge_or_small());
    let aligned = start.next_multiple_of(huge_page).min(end);
    let head = if huge == 0 { start } else { aligned };
    let huge_end = head.saturating_add(huge).min(end);
    let small_end = huge_end.saturating_add(small).min(end);
    let cuts = [
        (start..head, page, false),
        (head..huge_end, huge_page, true),
        (huge_end..small_end, page, true),
        (small_end..end, block, false),
    ];
    let zone = |(range, block, resident): (Range<u64>, u64, bool)| {
        (!range.is_empty()).then_some(Zone {
            range,
            block,
            resident,
        })
    };
    cuts.into_iter().filter_map(zone).collect()
}

/// The zones of all mappings, in order of address.
#[derive(Debug)]
pub(crate) struct Zones {
    in_order: Vec<Zone>,
    sizes: Sizes,
    /// Whether everything is to be taken for resident, as it is when the guest has touched all.
    warm: bool,
}

impl Zones {
    /// The zones of `layout`; `warm`: after the guest has touched everything.
    pub(crate) fn new(layout: &Layout, warm: bool) -> Self {
        let sizes = layout.format.sizes();
        let of = |mapping| zones_of(mapping, &sizes);
        let mut in_order: Vec<_> = layout.mappings.iter().flat_map(of).collect();
        in_order.sort_by_key(|zone| zone.range.start);
        Self {
            in_order,
            sizes,
            warm,
        }
    }

    /// Whether everything is taken for resident.
    pub(crate) const fn is_warm(&self) -> bool {
        self.warm
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Zone> {
        self.in_order.iter()
    }

    fn at(&self, hva: u64) -> Option<&Zone> {
        let after = self
            .in_order
            .partition_point(|zone| zone.range.start <= hva);
        let zone = self.in_order.get(after.checked_sub(1)?)?;
        zone.range.contains(&hva).then_some(zone)
    }
}

impl Interpose for Zones {
    fn asked(&self, question: Question, hva: Hva, _: Access) -> Result<u64, ResolveError> {
        let absent = |zone: &&Zone| question == Question::Peek && !self.warm && !zone.resident;
        let absent = self.at(hva.raw()).filter(absent);
        match absent.and_then(|zone| hva_range(&zone.range)) {
            Some(range) => Err(ResolveError::NotPresent(range)),
            None => Ok(0),
        }
    }

    fn narrow(&self, hva: Hva, page: &HostPage) -> HvaRange {
        let shown = |block: u64| HvaRange::block_around(hva, block);
        let smallest = || shown(self.sizes.small()).unwrap_or(page.block);
        let Some(zone) = self.at(hva.raw()) else {
            return smallest();
        };
        let fits = |range: &HvaRange| {
            let inside =
                zone.range.start <= range.start().raw() && range.end().raw() <= zone.range.end;
            inside && page.block.covers(range)
        };
        let sizes = self.sizes.largest_first();
        let sizes = sizes.filter(|block| *block <= zone.block);
        let largest = sizes.filter_map(shown).find(fits);
        largest.unwrap_or_else(smallest)
    }
}

/// `range`, which is made of whole pages and not empty.
pub(crate) fn hva_range(range: &Range<u64>) -> Option<HvaRange> {
    HvaRange::between(Hva::new(range.start), Hva::new(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> Sizes {
        <&crate::format::Row>::default().sizes()
    }

    fn mapping(kind: Kind, hva: u64, pages: Pages) -> Mapping {
        Mapping {
            name: "m".to_owned(),
            hva,
            bytes: 1 << 30,
            kind,
            writable: true,
            pages,
            resident: Resident::Nothing,
        }
    }

    #[test]
    fn a_pfnmap_has_blocks_where_its_addresses_agree() {
        let at =
            |hva, hpa| largest_block(&mapping(Kind::Pfnmap { hpa }, hva, Pages::Auto), &sizes());
        assert_eq!(at(0x40_0000_0000, 0x80_0000_0000), 1 << 30);
        assert_eq!(at(0x40_0020_0000, 0x80_0000_0000), 2 << 20);
        assert_eq!(at(0x40_0001_0000, 0x80_0000_0000), 4 << 10);
        assert_eq!(at(0x40_0001_0000, 0x80_0001_0000), 1 << 30);
    }

    #[test]
    fn ram_and_files_have_the_pages_that_linux_gives_them() {
        let of = |kind, pages| largest_block(&mapping(kind, 0x1000, pages), &sizes());
        assert_eq!(of(Kind::Ram, Pages::Auto), 2 << 20);
        assert_eq!(of(Kind::File, Pages::Auto), 4 << 10);
        assert_eq!(of(Kind::Ram, Pages::Gigantic), 1 << 30);
        assert_eq!(of(Kind::Ram, Pages::Small), 4 << 10);
    }

    #[test]
    fn what_is_partly_resident_is_cut_into_zones_that_cover_it() {
        let mapping = Mapping {
            resident: Resident::Some {
                huge: 4 << 20,
                small: 0x5000,
            },
            ..mapping(Kind::Ram, 0x40_1000, Pages::Auto)
        };
        let zones = zones_of(&mapping, &sizes());
        let cuts: Vec<_> = zones.iter().map(|zone| zone.range.clone()).collect();
        let expected = [
            0x0040_1000..0x0060_0000,
            0x0060_0000..0x00a0_0000,
            0x00a0_0000..0x00a0_5000,
            0x00a0_5000..0x4040_1000,
        ];
        assert_eq!(cuts, expected);
        let resident: Vec<_> = zones.iter().map(|zone| zone.resident).collect();
        assert_eq!(resident, [false, true, true, false]);
    }

    #[test]
    fn more_resident_than_there_is_stays_inside() {
        let mapping = Mapping {
            resident: Resident::Some {
                huge: u64::MAX,
                small: u64::MAX,
            },
            ..mapping(Kind::Ram, 0x20_0000, Pages::Auto)
        };
        let zones = zones_of(&mapping, &sizes());
        assert_eq!(zones.len(), 1);
        assert_eq!(zones[0].range, mapping.range());
    }
}
