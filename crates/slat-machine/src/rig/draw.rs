//! Plans drawn from seeds: each another mixture of mappings, slots, features and churn.
//!
//! What is drawn is meant to be awkward: slots that begin and end in the middle of a block, guest
//! and host addresses that differ modulo one, two slots that share a last-level table or the host
//! memory behind, devices with odd sizes beside RAM, holes.
//!
//! Everything is made of whole pages of the format. The host's frames are of 4 KiB and 2 MiB
//! whatever the format; where a page is larger than 4 KiB, only what lies in a frame of 2 MiB can
//! be mapped, and the rest is refused.

use std::sync::Arc;

use slat_table::address::PAGE_SIZE;
use slat_table::geometry::{Geometry, Level};

use super::plan::{Backing, Churn, Features, Mapping, Plan, Slot, Touch};
use super::{Options, Row, guest};
use crate::event::AccessKind;
use crate::host::Disturbance;
use crate::random::Random;

/// Guest CPUs of drawn plans.
pub const GUEST_CPUS: u8 = 4;

/// Host CPUs of drawn plans.
const HOST_CPUS: u8 = 2;

/// Steps of drawn plans.
const STEPS: u64 = 200_000;

/// Steps of plans for external checkers, which take their time.
const STEPS_FOR_EXPORT: u64 = 50_000;

/// What the CPUs of drawn plans have, or less.
const EVERYTHING: Features = Features {
    hardware_accessed: true,
    hardware_dirty: true,
    force_write_back: true,
};

/// The narrowest guest address that is drawn, and the widest but for the format's own.
const ADDRESS_BITS: (u8, u8) = (32, 40);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A plan, and how it is disturbed.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// What there is.
    pub plan: Plan,
    /// The seed, and what fails.
    pub options: Options,
}

/// The plan of `seed` for tables of `format`.
pub fn draw(format: &'static Row, seed: u64) -> Drawn {
    // Apart from the choices of the run, which come from the same seed.
    let mut random = Random::new(seed ^ 0x6472_6177);
    let plan = Drawing::new(format, &mut random).finish();
    let mut one_in = |n| random.one_in(3).then_some(n);
    let disturbance = Disturbance {
        busy: one_in(20),
        no_memory: one_in(40),
        narrow: one_in(4),
    };
    let failing = one_in(30);
    Drawn {
        plan,
        options: Options {
            format,
            seed,
            trace: None,
            unjudged: false,
            disturbance,
            failing,
            script: Vec::new(),
        },
    }
}

/// The plan of `seed` with few CPUs, a root of one table and small slots, which an external checker
/// of exported traces can follow as far as it knows such things: casemate objects where a table is
/// cut off whose own entries were cut off before and are not flushed yet, which is sound.
pub fn draw_for_export(seed: u64) -> Drawn {
    let mut drawn = draw(Default::default(), seed);
    drawn.plan.guest_cpus = 2;
    drawn.plan.address_bits = 39;
    drawn.plan.steps = STEPS_FOR_EXPORT;
    for slot in &mut drawn.plan.slots {
        slot.bytes = slot.bytes.min(MIB);
    }
    drawn.plan.boot.retain(|touch| touch.cpu < 2);
    drawn
}

/// The width of a guest address, often the widest of the format, and the tree that this makes.
fn address_bits(format: &'static Row, random: &mut Random) -> (u8, Geometry) {
    let (narrowest, widest) = ADDRESS_BITS;
    let choices = usize::from(widest - narrowest) + 1;
    let drawn = narrowest + u8::try_from(random.below(choices)).unwrap_or(0);
    let drawn = (!random.half()).then_some(drawn);
    let geometry = |bits| Some((bits, format.geometry(bits, EVERYTHING)?));
    drawn
        .filter(|bits| *bits <= format.address_bits())
        .and_then(geometry)
        .or_else(|| geometry(format.address_bits()))
        .expect("a format does the width that its row names")
}

struct Drawing<'r> {
    format: &'static Row,
    address_bits: u8,
    random: &'r mut Random,
    /// Bytes of the format's page.
    page: u64,
    /// What everything that can be mapped in blocks is aligned to: a frame of 2 MiB at least.
    block: u64,
    /// Whether blocks are large enough for a device of a gigabyte.
    has_blocks: bool,
    mappings: Vec<Mapping>,
    slots: Vec<Slot>,
    /// Where the next slot, mapping and device may begin.
    gpa: u64,
    hva: u64,
    device: u64,
}

impl<'r> Drawing<'r> {
    fn new(format: &'static Row, random: &'r mut Random) -> Self {
        let (address_bits, geometry) = address_bits(format, random);
        let page = geometry.entry_bytes(Level::PAGE);
        let above = Level::new(1);
        let above = geometry
            .shape(above)
            .leaf
            .then(|| geometry.entry_bytes(above));
        Self {
            format,
            address_bits,
            page,
            block: above
                .filter(|bytes| *bytes <= 4 * MIB)
                .map_or(2 * MIB, |bytes| bytes.max(2 * MIB)),
            has_blocks: above.is_some(),
            gpa: 256 * MIB,
            hva: 0x7f00_0000_0000,
            device: 4 * GIB,
            random,
            mappings: Vec::new(),
            slots: Vec::new(),
        }
    }

    fn finish(mut self) -> Plan {
        self.ram();
        for _ in 0..2 + self.random.below(4) {
            let devices = self.format.has_devices(EVERYTHING);
            match self.random.below(8) {
                2 => self.odd_ram(),
                3 if devices => self.device(),
                4 if devices => self.revocable(),
                // Its frames are of 4 KiB.
                5 if self.page == PAGE_SIZE => self.image(),
                6 if devices => self.patchwork(),
                7 => self.alias(),
                _ => self.ram(),
            }
        }
        if self.random.one_in(3) {
            self.hole();
        }
        if self.random.one_in(6) && self.has_blocks && self.format.has_devices(EVERYTHING) {
            self.large_device();
        }
        let boot = self.boot();
        let features = self.features();
        let churn = self.churn();
        Plan {
            address_bits: self.address_bits,
            features,
            guest_cpus: GUEST_CPUS,
            host_cpus: HOST_CPUS,
            ram: (48 + 16 * self.random.below(4) as u64) * MIB,
            mappings: self.mappings,
            slots: self.slots,
            boot,
            steps: STEPS,
            churn,
        }
    }

    fn features(&mut self) -> Features {
        let hardware_accessed = self.random.half();
        Features {
            hardware_accessed,
            hardware_dirty: hardware_accessed && self.random.half(),
            // Without it, device memory other than the strictest is refused; with it, all is well.
            force_write_back: !self.random.one_in(4),
        }
    }

    fn churn(&mut self) -> Churn {
        let mut weight = || u32::try_from(self.random.below(8)).unwrap_or(0);
        Churn {
            migrate: weight() + 1,
            discard: weight(),
            protect: weight(),
            split: weight(),
            remap: weight() / 2,
            revoke: weight(),
            age: weight(),
            populate: weight(),
            slots: weight(),
        }
    }

    fn boot(&mut self) -> Vec<Touch> {
        let mut touches = Vec::new();
        for slot in &self.slots {
            let cpu = u8::try_from(self.random.below(usize::from(GUEST_CPUS))).unwrap_or(0);
            touches.push(Touch {
                cpu,
                gpa: slot.gpa,
                bytes: slot.bytes,
                stride: (slot.bytes / 4).max(self.page),
                kind: if self.random.half() {
                    AccessKind::Read
                } else {
                    AccessKind::Write
                },
            });
        }
        touches
    }

    /// Adds a mapping behind a new slot; returns its place.
    fn add(&mut self, name: &str, bytes: u64, offset: u64, backing: Backing) -> usize {
        let writable = matches!(backing, Backing::Anonymous | Backing::Device { .. })
            || !self.random.one_in(3);
        let hva = self.hva + offset;
        self.hva = (hva + bytes).next_multiple_of(self.block) + self.block;
        self.mappings.push(Mapping {
            name: name.into(),
            hva,
            bytes,
            writable,
            backing,
        });
        self.mappings.len() - 1
    }

    /// Adds a slot at the next guest address plus `offset`.
    fn slot(&mut self, name: &str, bytes: u64, offset: u64, hva: u64, read_only: bool) {
        let gpa = self.gpa + offset;
        let end = gpa + bytes;
        // Often the next slot begins where this one ends, inside a block.
        self.gpa = if self.random.one_in(3) {
            end
        } else {
            end.next_multiple_of(self.block)
        };
        let id = u32::try_from(self.slots.len()).unwrap_or(0);
        self.slots.push(Slot {
            name: format!("{name} {id}"),
            id,
            gpa,
            bytes,
            hva,
            read_only,
            on_fault: self.random.one_in(4),
            weight: 1 + u32::try_from(self.random.below(8)).unwrap_or(0),
            replaceable: self.random.half(),
        });
    }

    /// A few pages, not a multiple of a block.
    fn pages(&mut self, most: u64) -> u64 {
        let pages = 1 + guest::below(self.random, most).unwrap_or(0);
        (pages * PAGE_SIZE).next_multiple_of(self.page)
    }

    fn is_aligned(&self) -> bool {
        self.gpa.is_multiple_of(self.block)
    }

    /// RAM whose guest and host addresses agree modulo a block.
    fn ram(&mut self) {
        let blocks = 1 + guest::below(self.random, 6).unwrap_or(0);
        let offset = if self.is_aligned() {
            0
        } else {
            self.gpa % self.block
        };
        let bytes = blocks * 2 * MIB;
        let mapping = self.add("ram", bytes, offset, Backing::Anonymous);
        self.slot("ram", bytes, 0, self.mappings[mapping].hva, false);
    }

    /// RAM of any size, anywhere, that may not agree.
    fn odd_ram(&mut self) {
        let bytes = self.pages(1500);
        let (hva, gpa) = (self.pages(600), self.pages(600));
        let mapping = self.add("odd ram", bytes, hva, Backing::Anonymous);
        let read_only = self.random.one_in(5);
        self.slot("odd ram", bytes, gpa, self.mappings[mapping].hva, read_only);
    }

    fn device_at(&mut self, bytes: u64, offset: u64) -> u64 {
        let hpa = self.device + offset;
        self.device = (hpa + bytes).next_multiple_of(self.block);
        hpa
    }

    fn device(&mut self) {
        let aligned = self.random.half();
        let bytes = if aligned { 4 * MIB } else { self.pages(1100) };
        let offset = if aligned { 0 } else { self.pages(3) };
        let hpa = self.device_at(bytes, offset);
        let mapping = self.add("device", bytes, offset, Backing::Device { hpa });
        // The guest and host physical addresses agree, or not.
        let block = self.block;
        let shift = (hpa % block + block - self.gpa % block) % block;
        let shift = if self.random.one_in(3) { 0 } else { shift };
        self.slot("device", bytes, shift, self.mappings[mapping].hva, false);
    }

    /// A gigabyte, and perhaps some pages, if the guest's addresses have room for it.
    fn large_device(&mut self) {
        let bytes = GIB + self.pages(4) * u64::from(self.random.half());
        let gpa = self.gpa.next_multiple_of(GIB);
        if gpa + bytes > 1 << self.address_bits {
            return;
        }
        self.gpa = gpa;
        self.device = self.device.next_multiple_of(GIB);
        self.hva = self.hva.next_multiple_of(GIB);
        let hpa = self.device_at(bytes, 0);
        let mapping = self.add("large device", bytes, 0, Backing::Device { hpa });
        self.slot("large device", bytes, 0, self.mappings[mapping].hva, false);
    }

    fn revocable(&mut self) {
        let bytes = if self.random.half() {
            2 * MIB
        } else {
            self.pages(700)
        };
        let hpa = self.device_at(bytes, 0);
        let mapping = self.add("revocable", bytes, 0, Backing::Revocable { hpa });
        let writable = self.mappings[mapping].writable;
        self.slot("revocable", bytes, 0, self.mappings[mapping].hva, !writable);
    }

    fn image(&mut self) {
        let bytes = self.pages(20);
        let image: Vec<u8> = (0..bytes)
            .map(|at| u8::try_from((at * 7 + at / PAGE_SIZE) % 251).unwrap_or(0))
            .collect();
        let offset = self.pages(3);
        let mapping = self.add("image", bytes, offset, Backing::Image(Arc::from(image)));
        let read_only = self.random.half() || !self.mappings[mapping].writable;
        let hva = self.mappings[mapping].hva;
        self.slot("image", bytes, 0, hva, read_only);
    }

    /// One slot over RAM, a hole, and a device, side by side in the host.
    fn patchwork(&mut self) {
        let (ram, hole, device) = (self.pages(700), self.pages(3), self.pages(40));
        let first = self.add("patch of ram", ram, 0, Backing::Anonymous);
        let hva = self.mappings[first].hva;
        let hpa = self.device_at(device, 0);
        let second = self.add("patch of a device", device, 0, Backing::Device { hpa });
        self.mappings[second].hva = hva + ram + hole;
        self.hva = (hva + ram + hole + device).next_multiple_of(self.block) + self.block;
        self.slot("patchwork", ram + hole + device, 0, hva, false);
    }

    /// Another slot over memory that one shows already.
    fn alias(&mut self) {
        let Some(mapping) = self.mappings.first() else {
            return;
        };
        let (hva, bytes) = (mapping.hva, mapping.bytes);
        let skipped = (self.pages(64) - self.page).min(bytes / 2) & !(self.page - 1);
        self.slot("alias", bytes - skipped, 0, hva + skipped, false);
    }

    /// A slot with nothing behind it.
    fn hole(&mut self) {
        let bytes = self.pages(8);
        let hva = self.hva + self.page;
        self.slot("hole", bytes, 0, hva, false);
        self.hva = (hva + bytes).next_multiple_of(self.block) + self.block;
    }
}
