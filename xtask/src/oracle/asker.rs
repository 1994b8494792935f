//! Accesses that really happen, and what they leave behind: markers that say where an access
//! ended, and the bits that the hardware sets in entries.

use core::ops::Range;
use std::collections::HashMap;

use anyhow::Result;
use slat_oracle_protocol::script::{Access, Probe};
use slat_table::address::Hpa;
use slat_table::attributes::Attributes;
use slat_table::format::{ByteOrder, Format};

use super::asking::Asking;
use super::judge::Outcome;
use super::sheet::{Meets, Sheet};

/// What an architecture's guest is like.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// Code that ends the guest's run and can be told from others, for this host physical address;
    /// and what it is told by.
    pub(crate) code: fn(u64) -> (Vec<u8>, u64),
    /// How the guest stores a number.
    pub(crate) order: ByteOrder,
    /// Memory that the guest may be shown.
    pub(crate) memory: Range<u64>,
}

/// What the hardware may have done to a leaf by now.
#[derive(Clone, Copy, Debug)]
struct Bits {
    accessed: bool,
    /// `None` where it may have been set or not.
    dirty: Option<bool>,
}

/// Asks about one tree.
#[derive(Debug)]
pub(crate) struct Asker<'a, F: Format> {
    pub(crate) sheet: &'a Sheet<F>,
    pub(crate) asking: &'a mut Asking,
    guest: Guest,
    /// Bits of leaves that were reached, by the address of the entry.
    bits: HashMap<u64, Bits>,
    /// Whether to look at entries after an access.
    look: bool,
}

impl<'a, F: Format> Asker<'a, F> {
    /// Looks at entries after accesses if asked to: there is no point where they were changed
    /// behind our back, or where the emulator is known to do it wrong.
    pub(crate) fn new(
        sheet: &'a Sheet<F>,
        asking: &'a mut Asking,
        guest: Guest,
        look: bool,
    ) -> Self {
        Self {
            sheet,
            asking,
            guest,
            bits: HashMap::new(),
            look,
        }
    }

    /// Asks the MMU what an access would meet; `expected` must come of it.
    pub(crate) fn question(&mut self, probe: Probe, meets: &Meets, expected: Outcome) {
        if let (
            Outcome::Reached { .. },
            Meets::Leaf {
                attributes, entry, ..
            },
        ) = (expected, meets)
            && probe.access == Access::Write
        {
            // A question may set the dirty bit or not.
            let bits = self.bits_of(*entry, *attributes);
            if bits.dirty == Some(false) {
                bits.dirty = None;
            }
        }
        self.asking.access(probe, expected);
    }

    /// Has an access made that must fault, or reach a leaf whose memory is there; what is not, is
    /// left out. `expected` is what must come of it, but for where it ends.
    pub(crate) fn access(&mut self, probe: Probe, meets: &Meets, expected: Outcome) -> Result<()> {
        let (
            Outcome::Reached { .. },
            &Meets::Leaf {
                hpa,
                level,
                attributes,
                entry,
            },
        ) = (expected, meets)
        else {
            self.asking.access(probe, expected);
            return Ok(());
        };
        if !self.guest.memory.contains(&hpa) {
            return Ok(());
        }
        match probe.access {
            Access::Read => {
                self.put_mark(hpa);
                let (hpa, memory) = (Some(hpa), None);
                self.asking.access(probe, Outcome::Reached { hpa, memory });
            }
            Access::Write => {
                self.put_mark(hpa);
                self.asking.access(probe, expected);
                let stored = in_memory(self.guest.order, probe.stored());
                self.asking.memory(hpa, stored);
            }
            Access::Execute => {
                let (code, told_by) = (self.guest.code)(hpa);
                self.asking.put_bytes(hpa, &code);
                self.asking.access(probe, Outcome::Executed(told_by));
            }
        }
        let bytes = self.sheet.table().geometry().entry_bytes(level);
        let start = Hpa::new(hpa & !(bytes - 1));
        let Some(after) = self.after(entry, attributes, probe.access) else {
            return Ok(());
        };
        let raw = F::leaf(self.sheet.table().features(), level, start, after)?;
        self.asking.memory(entry, in_memory(F::BYTE_ORDER, raw));
        Ok(())
    }

    fn put_mark(&mut self, hpa: u64) {
        self.asking.put(hpa, in_memory(self.guest.order, mark(hpa)));
    }

    /// Has an access made that must fault, but is known to go through in the emulator: only where
    /// that does no harm, and with code there that ends the guest's run.
    pub(crate) fn access_that_may_go_through(
        &mut self,
        probe: Probe,
        meets: &Meets,
        expected: Outcome,
    ) {
        let Meets::Leaf { hpa, .. } = *meets else {
            return;
        };
        if self.guest.memory.contains(&hpa) {
            let (code, _) = (self.guest.code)(hpa);
            self.asking.put_bytes(hpa, &code);
            self.asking.access(probe, expected);
        }
    }

    /// Has a load made whose upper half lies in the next page, by a little-endian guest. `expected` says what must come of an
    /// access by itself; a load must meet what the first of its halves meets that faults.
    pub(crate) fn load_across(
        &mut self,
        probe: Probe,
        expected: impl Fn(&Meets, &Probe) -> Outcome,
    ) -> Result<()> {
        let upper = Probe {
            gpa: probe.gpa + 4,
            ..probe
        };
        let halves = [probe, upper].map(|half| self.sheet.meets(half.gpa).map(|met| (half, met)));
        let mut loaded = 0;
        for (half, shift) in halves.into_iter().zip([0, 32]) {
            let (half, meets) = half?;
            let outcome = expected(&meets, &half);
            let (
                Outcome::Reached { .. },
                Meets::Leaf {
                    hpa,
                    attributes,
                    entry,
                    ..
                },
            ) = (outcome, meets)
            else {
                self.asking.access(probe, outcome);
                return Ok(());
            };
            if !self.guest.memory.contains(&hpa) {
                return Ok(());
            }
            let word = hpa & !7;
            self.put_mark(word);
            let part = mark(word) >> (hpa % 8 * 8) & 0xffff_ffff;
            loaded |= part << shift;
            self.after(entry, attributes, probe.access);
        }
        let (hpa, memory) = (Some(unmark(loaded)), None);
        self.asking.access(probe, Outcome::Reached { hpa, memory });
        Ok(())
    }

    /// What a leaf must say after an access that went through: the bits that the hardware keeps
    /// are set, and nothing else changed. `None` where that cannot be told, or nobody asked.
    fn after(&mut self, entry: u64, attributes: Attributes, access: Access) -> Option<Attributes> {
        let rules = *self.sheet.table().rules();
        let bits = self.bits_of(entry, attributes);
        bits.accessed |= rules.hardware_accessed;
        if access == Access::Write && rules.hardware_dirty {
            bits.dirty = Some(true);
        }
        let Bits { accessed, dirty } = *bits;
        let after = Attributes {
            accessed,
            dirty: dirty?,
            ..attributes
        };
        // Of a run the hardware may mark any leaf.
        (self.look && !attributes.contiguous).then_some(after)
    }

    fn bits_of(&mut self, entry: u64, attributes: Attributes) -> &mut Bits {
        self.bits.entry(entry).or_insert(Bits {
            accessed: attributes.accessed,
            dirty: Some(attributes.dirty),
        })
    }
}

/// Code of one instruction of 4 bytes, little-endian.
pub(crate) fn instruction((instruction, told_by): (u32, u64)) -> (Vec<u8>, u64) {
    (instruction.to_le_bytes().to_vec(), told_by)
}

/// A number in memory, as a little-endian number.
fn in_memory(order: ByteOrder, number: u64) -> u64 {
    match order {
        ByteOrder::Little => number,
        ByteOrder::Big => number.swap_bytes(),
    }
}

/// A word that says where it is.
fn mark(hpa: u64) -> u64 {
    !hpa.rotate_left(20)
}

/// The address that a word says it is at.
pub(crate) fn unmark(word: u64) -> u64 {
    (!word).rotate_right(20)
}
