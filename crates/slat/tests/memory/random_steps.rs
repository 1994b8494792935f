//! Random steps: what a VMM, the guest and the host may do, drawn for the sizes of a row.

use proptest::prelude::*;
use proptest::sample::select;
use slat::region::{Mapping as When, Region};
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::Format;

use crate::rows::Row;
use crate::scripted_host::Mapping;
use crate::vm::region;

/// Where everything is on a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) page: u64,
    /// What a table of pages maps.
    pub(crate) span: u64,
    /// Several spans: where there are such, one leaf.
    pub(crate) large: u64,
    /// A few pages.
    pub(crate) few: u64,
    pub(crate) hva: u64,
    /// Where the large mapping begins.
    pub(crate) far: u64,
    /// Each slot has a window of guest addresses of its own, so that most creations succeed.
    pub(crate) window: u64,
    pub(crate) memory: Option<MemoryType>,
    pub(crate) device: u64,
}

impl Scale {
    pub(crate) fn of<F: Format>(row: &Row<F>) -> Self {
        let large = row.large();
        Self {
            page: row.page,
            span: row.span,
            large,
            few: (256 * row.page).min(row.span / 2),
            hva: row.hva,
            far: row.hva + 32 * large,
            window: row.gpa,
            memory: row.device_memory(),
            device: row.device,
        }
    }

    pub(crate) fn ram(&self, at: u64, bytes: u64) -> Mapping {
        Mapping::ram(at, bytes).blocks(self.page)
    }

    /// A device, or where none can be mapped, RAM as linear as one.
    pub(crate) fn device(&self, at: u64, bytes: u64, offset: u64) -> Mapping {
        let device = Mapping::device(at, bytes, self.device + offset);
        self.memory
            .map_or(device.is_ram(), |memory| device.memory(memory))
    }

    /// Where the host has its mappings, and of what kind.
    pub(crate) fn mappings(&self) -> [Mapping; 6] {
        let Self {
            page, span, hva, ..
        } = *self;
        let blocks = self.ram(hva + 4 * span, 4 * span).blocks(span);
        [
            self.ram(hva, 4 * span),
            blocks.copy_on_write(),
            // A hole of eight spans, then a device whose physical address is off by a page.
            self.device(hva + 16 * span, self.few, page),
            self.device(
                hva + 20 * span - 20 * page,
                2 * span + 40 * page,
                self.large - 20 * page,
            ),
            self.ram(hva + 24 * span, 2 * span).read_only(),
            self.ram(self.far, 2 * self.large).blocks(self.large),
        ]
    }

    /// What a device that spans more than a block of the second kind looks like, for the same
    /// places.
    pub(crate) fn big_device(&self) -> Mapping {
        self.device(self.far, 2 * self.large, 4 * self.large)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) id: u32,
    pub(crate) gpa: u64,
    pub(crate) bytes: u64,
    pub(crate) hva: u64,
    pub(crate) read_only: bool,
    pub(crate) on_fault: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Deletes the slot of this id if there is one, and creates this.
    Replace(Asked),
    Commit {
        delete: Vec<u32>,
        create: Vec<Asked>,
    },
    Fault {
        vcpu: usize,
        spot: Spot,
        access: Access,
    },
    Prefault {
        vcpu: usize,
        spot: Spot,
        bytes: u64,
    },
    Change {
        hva: u64,
        bytes: u64,
        change: Change,
        without_memory: bool,
    },
    /// Begins an invalidation that stays.
    Open {
        hva: u64,
        bytes: u64,
    },
    /// Ends the oldest of those.
    Close,
    Age {
        hva: u64,
        bytes: u64,
    },
    Release,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Nothing,
    Discard,
    Migrate,
    WriteProtect,
    /// Gives the permission back, which needs no notice.
    Grant,
    /// Exchanges the large RAM mapping for a device, or back.
    Exchange,
}

pub(crate) const SLOTS: u32 = 3;

pub(crate) fn offset(scale: Scale) -> impl Strategy<Value = u64> {
    let Scale {
        page, span, large, ..
    } = scale;
    prop_oneof![
        4 => Just(0),
        2 => select(vec![span, large]),
        1 => select(vec![page, 2 * page, span - page, span + page, large - span]),
    ]
}

pub(crate) fn host_address(scale: Scale) -> impl Strategy<Value = u64> {
    let starts = scale
        .mappings()
        .map(|mapping| mapping.vma.range.start().raw());
    (select(starts.to_vec()), offset(scale)).prop_map(|(start, offset)| start + offset)
}

/// A page of a slot, chosen among those there are when the step is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) slot: usize,
    pub(crate) offset: u64,
}

pub(crate) fn spot(scale: Scale) -> impl Strategy<Value = Spot> {
    let place = (0..SLOTS as usize, offset(scale), 0..6u64);
    place.prop_map(move |(slot, offset, page)| Spot {
        slot,
        offset: offset + page * scale.page,
    })
}

pub(crate) fn size(scale: Scale) -> impl Strategy<Value = u64> {
    let Scale {
        page, span, large, ..
    } = scale;
    select(vec![
        3 * page,
        span - page,
        span,
        2 * span + 2 * page,
        4 * span,
        large,
        large + span,
    ])
}

pub(crate) fn asked(scale: Scale) -> impl Strategy<Value = Asked> {
    let place = (0..SLOTS, offset(scale), size(scale), host_address(scale));
    let flags = (prop::bool::weighted(0.2), any::<bool>());
    (place, flags).prop_map(move |((id, gpa, bytes, hva), (read_only, on_fault))| {
        // A large slot in pages would be a quarter of a million leaves to look at.
        let unit = if bytes >= scale.large {
            scale.span
        } else {
            scale.page
        };
        let (gpa, hva) = (gpa & !(unit - 1), hva & !(unit - 1));
        let gpa = u64::from(id + 1) * scale.window + gpa;
        Asked {
            id,
            gpa,
            bytes,
            hva,
            read_only,
            on_fault,
        }
    })
}

/// A slot where another one's window is: mostly refused.
pub(crate) fn misplaced(scale: Scale) -> impl Strategy<Value = Asked> {
    (asked(scale), 0..SLOTS).prop_map(|(asked, id)| Asked { id, ..asked })
}

pub(crate) fn access() -> impl Strategy<Value = Access> {
    select(vec![Access::Read, Access::Write, Access::Execute])
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    use Change::{Discard, Exchange, Grant, Migrate, Nothing, WriteProtect};
    select(vec![
        Nothing,
        Discard,
        Migrate,
        Migrate,
        WriteProtect,
        Grant,
        Exchange,
    ])
}

pub(crate) fn step(scale: Scale) -> impl Strategy<Value = Step> {
    let Scale {
        page, span, large, ..
    } = scale;
    let small = move || select(vec![page, 3 * page, span, 2 * span + page, large]);
    prop_oneof![
        4 => asked(scale).prop_map(Step::Replace),
        2 => (prop::collection::vec(0..SLOTS, 0..2), prop::collection::vec(misplaced(scale), 0..3))
            .prop_map(|(delete, create)| Step::Commit { delete, create }),
        16 => (0..2usize, spot(scale), access())
            .prop_map(|(vcpu, spot, access)| Step::Fault { vcpu, spot, access }),
        2 => (0..2usize, spot(scale), select(vec![page, 20 * page, 70 * page]))
            .prop_map(|(vcpu, spot, bytes)| Step::Prefault { vcpu, spot, bytes }),
        8 => (host_address(scale), small(), change(), any::<bool>()).prop_map(
            |(hva, bytes, change, without_memory)| Step::Change {
                hva,
                bytes,
                change,
                without_memory,
            },
        ),
        2 => (host_address(scale), small()).prop_map(|(hva, bytes)| Step::Open { hva, bytes }),
        3 => Just(Step::Close),
        2 => (host_address(scale), small()).prop_map(|(hva, bytes)| Step::Age { hva, bytes }),
        1 => Just(Step::Release),
    ]
}

impl Asked {
    pub(crate) fn region(&self) -> Region {
        let mut asked = region(self.id, self.gpa, self.bytes, self.hva);
        if self.read_only {
            asked = asked.read_only();
        }
        if self.on_fault {
            asked = asked.mapping(When::OnFault);
        }
        asked
    }
}
