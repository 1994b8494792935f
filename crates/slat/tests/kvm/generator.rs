//! Makes up requests: few enough ids and guest pages for slots to meet, and each number now and
//! then at, or just beyond, a boundary.
//!
//! KVM keeps some bytes for each page of a slot, so that a slot of terabytes could take all
//! memory of the machine. Slots that large are asked for only where they must be refused.

use std::collections::BTreeMap;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use slat::table::address::PAGE_SIZE;

use super::ours::Mappings;
use super::real::Limits;
use super::request::{LOG_DIRTY, READ_ONLY, Request};
use super::twin::Twin;

/// Ids in ordinary use.
const IDS: u32 = 40;

/// Guest pages in ordinary use.
const GUEST_PAGES: u64 = 1024;

/// Most pages of an ordinary slot.
const SLOT_PAGES: u64 = 24;

/// Most pages of a slot that may be created.
const AFFORDABLE_PAGES: u64 = 1 << 15;

/// Most pages of a slot in KVM: the width of a dirty bitmap's index.
const KVM_PAGES: u64 = (1 << 31) - 1;

/// What both are asked to do.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// One request.
    One(Request),
    /// Several: one after the other, or all at once.
    Together {
        /// Ids of slots to be deleted first.
        deletes: Vec<u32>,
        /// Slots to be created then. Their ids are deleted, or free.
        creates: Vec<Request>,
    },
}

/// Makes up operations from a seed, and from the slots that there are.
pub(crate) struct Generator<'a> {
    random: Xoshiro256PlusPlus,
    limits: Limits,
    /// Width of slat's guest physical addresses in bits.
    guest_bits: u8,
    mappings: &'a Mappings,
}

type Live = BTreeMap<u32, Request>;

impl<'a> Generator<'a> {
    /// For `twin`. The same seed makes the same operations, as long as `mappings` are at the same
    /// place.
    pub(crate) fn new(seed: u64, twin: &Twin, mappings: &'a Mappings) -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            limits: *twin.limits(),
            guest_bits: twin.guest_bits(),
            mappings,
        }
    }

    /// The next operation for those who have the slots `live`.
    pub(crate) fn next(&mut self, live: &Live) -> Operation {
        let request = match self.below(20) {
            0..10 => self.creation(live),
            10..12 => self.deletion(live),
            12..17 => self.change(live),
            17 => self.enormous(live),
            _ => return self.together(live),
        };
        Operation::One(request)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }

    /// A place in something of `len` elements.
    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("it is less than `len`")
    }

    fn ordinary_id(&mut self) -> u32 {
        self.random.next_u32() % IDS
    }

    /// True once in `times`.
    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    fn slot(&mut self, live: &Live) -> Option<Request> {
        let index = self.index(live.len().max(1));
        live.values().nth(index).copied()
    }

    fn creation(&mut self, live: &Live) -> Request {
        let mut id = self.id();
        if live.contains_key(&id) && !self.one_in(4) {
            // It would most likely be a refused change of size.
            id = self.ordinary_id();
        }
        Request {
            id,
            flags: self.flags(),
            gpa: self.gpa(live),
            bytes: self.bytes(),
            hva: self.hva(),
        }
    }

    fn deletion(&mut self, live: &Live) -> Request {
        let slot = self.slot(live).filter(|_| !self.one_in(4));
        let id = slot.map_or_else(|| self.id(), |slot| slot.id);
        let mut request = Request::deletion(id);
        if self.one_in(4) {
            request.gpa = self.gpa(live);
        }
        if self.one_in(4) {
            request.hva = self.hva();
        }
        if self.one_in(4) {
            request.flags = self.flags();
        }
        request
    }

    /// A slot that exists, again, with nothing, one thing or two things else.
    fn change(&mut self, live: &Live) -> Request {
        let Some(mut request) = self.slot(live) else {
            return self.creation(live);
        };
        for _ in 0..self.below(3) {
            match self.below(6) {
                0..2 => request.gpa = self.gpa(live),
                2 => request.flags = self.flags(),
                3 => request.flags ^= LOG_DIRTY,
                4 => request.hva = self.hva(),
                _ => request.bytes = self.bytes(),
            }
        }
        request
    }

    /// A slot of about as many pages as one may have, or far more, where it must be refused:
    /// over another slot of the first address space, or beyond the guest's addresses.
    fn enormous(&mut self, live: &Live) -> Request {
        let pages = self.pick(&[
            KVM_PAGES - 1,
            KVM_PAGES,
            KVM_PAGES + 1,
            1 << 32,
            1 << 40,
            1 << 51,
        ]);
        let bytes = pages * PAGE_SIZE;
        let beyond = (1 << self.limits.guest_bits) - self.below(GUEST_PAGES) * PAGE_SIZE;
        let slot = self.slot(live).filter(|slot| slot.id < 1 << 16);
        let slot = slot.filter(|_| !self.one_in(4));
        Request {
            // An id of its own: a slot that exists and changes its size is refused for that.
            id: IDS,
            flags: self.flags(),
            gpa: slot.map_or(beyond, |slot| slot.gpa),
            bytes,
            hva: self.pick(&[0, PAGE_SIZE, self.limits.host_end / 2]),
        }
    }

    /// Several deletions and creations in the first address space that slat can do at once.
    fn together(&mut self, live: &Live) -> Operation {
        let mut deletes = Vec::new();
        for _ in 0..=self.below(2) {
            let slot = self.slot(live).filter(|slot| slot.id < 1 << 16);
            deletes.extend(slot.map(|slot| slot.id));
        }
        deletes.sort_unstable();
        deletes.dedup();
        if deletes.is_empty() || self.one_in(8) {
            // Perhaps no slot has it, or it is there twice.
            deletes.push(self.ordinary_id());
        }
        let mut creates: Vec<Request> = Vec::new();
        for _ in 0..self.below(5) {
            let id = if self.one_in(3) {
                self.ordinary_id()
            } else {
                self.pick(&deletes)
            };
            let is_free = deletes.contains(&id) || !live.contains_key(&id);
            if is_free && creates.iter().all(|create| create.id != id) {
                creates.push(self.ordinary(id));
            }
        }
        Operation::Together { deletes, creates }
    }

    /// A slot that breaks no rule but, perhaps, that of overlaps.
    fn ordinary(&mut self, id: u32) -> Request {
        let hva = self.mappings.range(true).start().raw();
        Request {
            id,
            flags: if self.one_in(3) { READ_ONLY } else { 0 },
            gpa: self.below(GUEST_PAGES) * PAGE_SIZE,
            bytes: (1 + self.below(SLOT_PAGES)) * PAGE_SIZE,
            hva: hva + self.below(64) * PAGE_SIZE,
        }
    }

    fn id(&mut self) -> u32 {
        if !self.one_in(10) {
            return self.ordinary_id();
        }
        let limit = self.limits.slot_ids;
        let ordinary = self.ordinary_id();
        let low = self.pick(&[ordinary, limit - 1, limit, limit + 1, 0x7fff, 0xffff]);
        let space = self.pick(&[0, 0, 1, 1, 2, 0xffff]);
        space << 16 | low
    }

    fn flags(&mut self) -> u32 {
        let flags = self.pick(&[0, 0, 0, 0, 0, READ_ONLY, READ_ONLY]);
        let flags = flags | if self.one_in(8) { LOG_DIRTY } else { 0 };
        let bit = self.below(32);
        flags | if self.one_in(24) { 1 << bit } else { 0 }
    }

    fn gpa(&mut self, live: &Live) -> u64 {
        let gpa = match self.below(32) {
            0..2 => self.around(1 << self.guest_bits),
            2 => self.around(1 << self.limits.guest_bits),
            3 => self.around(0),
            4..10 => {
                // Just before, at, inside, or just after a slot.
                let slot = self.slot(live);
                let (start, bytes) = slot.map_or((0, 0), |slot| (slot.gpa, slot.bytes));
                let other = self.pick(&[start, start.wrapping_add(bytes)]);
                self.around(other)
            }
            _ => self.below(GUEST_PAGES) * PAGE_SIZE,
        };
        self.perhaps_unaligned(gpa)
    }

    fn hva(&mut self) -> u64 {
        let writable = self.mappings.range(true);
        let read_only = self.mappings.range(false);
        let edge = self.pick(&[0, 1 << 63]);
        let hva = match self.below(32) {
            0..2 => self.around(self.limits.host_end),
            2 => self.around(edge),
            3 => self.random.next_u64() & !(PAGE_SIZE - 1),
            4 => self.around(writable.end().raw()),
            5 => self.around(read_only.start().raw()),
            6 => self.around(read_only.end().raw()),
            7..10 => read_only.start().raw() + self.below(64) * PAGE_SIZE,
            _ => writable.start().raw() + self.below(64) * PAGE_SIZE,
        };
        self.perhaps_unaligned(hva)
    }

    fn bytes(&mut self) -> u64 {
        let pages = match self.below(24) {
            0 if self.one_in(4) => 512,
            1 if self.one_in(4) => self.below(AFFORDABLE_PAGES) + 1,
            0..8 => 1,
            _ => 1 + self.below(SLOT_PAGES),
        };
        let bytes = pages * PAGE_SIZE;
        match self.below(48) {
            // Not whole pages, nearly everything, or half of it.
            0 => bytes + self.below(PAGE_SIZE),
            1 => bytes.wrapping_neg(),
            2 => bytes | 1 << 63,
            _ => bytes,
        }
    }

    /// An address a few pages before or after `address`.
    fn around(&mut self, address: u64) -> u64 {
        let pages = self.below(2 * SLOT_PAGES);
        let start = address.wrapping_sub(SLOT_PAGES * PAGE_SIZE);
        // Half of the time one of the pages that touch it.
        let pages = if self.one_in(2) {
            SLOT_PAGES - 1 + pages % 3
        } else {
            pages
        };
        start.wrapping_add(pages * PAGE_SIZE)
    }

    fn perhaps_unaligned(&mut self, address: u64) -> u64 {
        let bytes = self.below(PAGE_SIZE);
        if self.one_in(24) {
            address.wrapping_add(bytes)
        } else {
            address
        }
    }
}
