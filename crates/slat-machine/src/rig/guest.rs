//! What a guest CPU does: it touches what the plan says, then accesses memory at random, and its
//! faults are handled as a VMM would.

use slat::vcpu::{Outcome, Vcpu};
use slat::{Fault, SlotId};
use slat_mm::interpose::Interposed;
use slat_table::address::{Gpa, PAGE_SIZE};
use slat_table::attributes::Access;

use super::Finding;
use super::contents::word;
use super::plan;
use super::setup::{Rig, Space, VM};
use crate::address;
use crate::event::{AccessKind, Cpu};
use crate::host::Disturber;
use crate::lock::brief;
use crate::machine::Ending;
use crate::modelled::Modelled;
use crate::platform::MachinePlatform;
use crate::random::Random;
use crate::schedule::{point, progress, spin};

/// One access is let fault so many times in a row.
const MOST_FAULTS: u32 = 20_000;

/// After so many faults in a row after each of which the page was there, the CPU holds on to what
/// it should have forgotten.
const MOST_SETTLED: u32 = 32;

/// One in so many random accesses goes anywhere at all.
const ASTRAY: usize = 64;

/// Pages of a slot that are accessed again and again.
const HOT_PAGES: u64 = 16;

pub(crate) type GuestVcpu<'m, F> = Vcpu<'m, F, Interposed<Space, Disturber>, MachinePlatform<F>>;

/// What a guest CPU does after a fault.
enum Next {
    /// Its page was there all along, or allows more now: it must get on.
    Settled,
    /// It tries again.
    Again,
    /// The access cannot be made.
    Elsewhere,
}

/// A CPU that runs the guest.
pub(crate) struct GuestCpu<'r, F: Modelled> {
    rig: &'r Rig<F>,
    cpu: Cpu,
    random: Random,
    pub(crate) vcpu: GuestVcpu<'r, F>,
    written: u64,
}

/// Runs the guest on `cpu` until the run is over.
pub(crate) fn run<F: Modelled>(rig: &Rig<F>, cpu: Cpu) {
    let mut guest = GuestCpu::new(rig, cpu);
    for touch in rig.plan.boot.iter().filter(|touch| touch.cpu == cpu) {
        guest.touch(touch);
    }
    while !rig.is_over() {
        if let Some((gpa, kind)) = guest.choose() {
            guest.access(gpa, kind);
        } else {
            // Nothing to access: only boot touches were planned.
            break;
        }
    }
    guest.end();
}

impl<'r, F: Modelled> GuestCpu<'r, F> {
    pub(crate) fn new(rig: &'r Rig<F>, cpu: Cpu) -> Self {
        Self {
            rig,
            cpu,
            random: Random::new(rig.seeds.cpus.wrapping_add(u64::from(cpu))),
            vcpu: rig.memory.vcpu(),
            written: 0,
        }
    }

    /// Counts what it did.
    pub(crate) fn end(self) {
        brief(&self.rig.counts).faults.push(*self.vcpu.stats());
    }

    fn touch(&mut self, touch: &plan::Touch) {
        let mut offset = 0;
        while offset < touch.bytes && !self.rig.is_over() {
            self.access(touch.gpa + offset, touch.kind);
            offset += touch.stride.max(1);
        }
    }

    /// Where to go next, and for what.
    fn choose(&mut self) -> Option<(u64, AccessKind)> {
        let kind = match self.random.below(16) {
            0 => AccessKind::Execute,
            1..=7 => AccessKind::Read,
            _ => AccessKind::Write,
        };
        if self.random.one_in(ASTRAY) {
            // One bit more than there are.
            let bits = u32::from(self.rig.plan.address_bits) + 1;
            return Some((self.random.bits() >> (64 - bits), kind));
        }
        let slots = &self.rig.plan.slots;
        let total: u64 = slots.iter().map(|slot| u64::from(slot.weight)).sum();
        let mut ticket = below(&mut self.random, total)?;
        let planned = slots.iter().find(|slot| {
            let here = ticket < u64::from(slot.weight);
            ticket = ticket.saturating_sub(u64::from(slot.weight));
            here
        })?;
        // Where it is now, if it was moved.
        let slot = self.rig.slots.get(planned.id);
        let slot = slot.as_ref().unwrap_or(planned);
        let page = page_of(&mut self.random, slot.bytes / PAGE_SIZE);
        Some((slot.gpa + page * PAGE_SIZE, kind))
    }

    /// Accesses this CPU's word of the page at `gpa` until that succeeds or cannot.
    pub(crate) fn access(&mut self, gpa: u64, kind: AccessKind) {
        let gpa = (gpa & !(PAGE_SIZE - 1)) + word(self.cpu);
        self.written += 1;
        let value = u64::from(self.cpu) << 56 | self.written;
        self.rig.counted();
        let mut settled = 0;
        for faults in 1..=MOST_FAULTS {
            point();
            let at = address::Gpa(gpa);
            match self.rig.machine.access(self.cpu, VM, at, kind, value) {
                Ending::Reached {
                    hpa,
                    value: found,
                    device,
                } => {
                    if let Err(finding) = self.rig.devices.reached(self.cpu, hpa, device) {
                        self.rig.find(finding);
                    }
                    self.reached(gpa, kind, value, found);
                    progress();
                    return;
                }
                Ending::Fault => match self.fault(gpa, kind) {
                    Next::Settled => settled += 1,
                    Next::Again => settled = 0,
                    Next::Elsewhere => {
                        progress();
                        return;
                    }
                },
            }
            if settled == MOST_SETTLED || faults == MOST_FAULTS {
                self.stuck(gpa, kind, faults);
            }
            if self.rig.is_over() {
                return;
            }
        }
    }

    fn stuck(&self, gpa: u64, kind: AccessKind, faults: u32) {
        let cpu = self.cpu;
        let story =
            format!("guest CPU {cpu} faulted {faults} times in a row at {gpa:#x}: {kind:?}");
        self.rig.find(Finding::new("livelock", story));
    }

    /// Memory was reached: what was there must be what the guest left. No point may come between
    /// the access and this.
    fn reached(&self, gpa: u64, kind: AccessKind, value: u64, found: u64) {
        let contents = &self.rig.contents;
        let behind = self.rig.slots.behind(gpa);
        match kind {
            AccessKind::Write => contents.wrote(self.cpu, &behind.hvas, value),
            AccessKind::Read => {
                if let ([hva], true) = (&*behind.hvas, behind.settled)
                    && let Err(finding) = contents.read(self.cpu, *hva, found)
                {
                    self.rig.find(finding);
                }
            }
            AccessKind::Execute => {}
        }
    }

    /// Has a fault handled.
    fn fault(&mut self, gpa: u64, kind: AccessKind) -> Next {
        let access = match kind {
            AccessKind::Read => Access::Read,
            AccessKind::Write => Access::Write,
            AccessKind::Execute => Access::Execute,
        };
        let gpa = Gpa::new(gpa);
        match self.vcpu.fault(Fault { gpa, access }) {
            Ok(Outcome::Mapped { slot, .. }) => {
                self.count(slot);
                Next::Again
            }
            Ok(Outcome::Extended { slot } | Outcome::Spurious { slot }) => {
                self.count(slot);
                Next::Settled
            }
            Ok(Outcome::Retry) => {
                spin();
                Next::Again
            }
            // The guest gets an abort, or the VMM emulates; it goes on elsewhere.
            Ok(_) => Next::Elsewhere,
            Err(_) => {
                // For lack of memory: others may give some back.
                spin();
                Next::Elsewhere
            }
        }
    }

    fn count(&self, SlotId(slot): SlotId) {
        self.rig.slots.count_fault(slot);
    }
}

/// A page out of `pages`: often one of the few that everybody uses, which lie at the edges of the
/// slot and of its blocks.
pub(crate) fn page_of(random: &mut Random, pages: u64) -> u64 {
    let last = pages.saturating_sub(1);
    if random.below(4) == 0 {
        return below(random, pages).unwrap_or(0);
    }
    let hot = below(random, HOT_PAGES).unwrap_or(0);
    match hot % 4 {
        0 => hot / 4,
        1 => last - (hot / 4).min(last),
        2 => (hot / 4 * 512).min(last),
        _ => (hot / 4 * 512 + 511).min(last),
    }
}

/// A number below `bound`; `None` if that is 0.
pub(crate) fn below(random: &mut Random, bound: u64) -> Option<u64> {
    (bound != 0).then(|| random.bits() % bound)
}
