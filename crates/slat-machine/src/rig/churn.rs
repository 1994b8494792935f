//! What a host CPU does: it changes what is behind the guest's memory, over and over. The guest
//! must never notice.

use slat_table::address::PAGE_SIZE;

use super::action::{Action, pause, perform};
use super::guest::{below, page_of};
use super::plan::{Backing, Churn, Mapping, Slot};
use super::setup::Rig;
use crate::event::Cpu;
use crate::modelled::Modelled;
use crate::random::Random;
use crate::schedule::progress;

const BLOCK: u64 = 2 << 20;

/// Between two changes, others have so many turns at most.
const REST: usize = 4;

/// One kind of change.
type Draw<'r, F> = fn(&mut HostCpu<'r, F>) -> Option<Action>;

struct HostCpu<'r, F: Modelled> {
    rig: &'r Rig<F>,
    /// Bytes of the format's page: what the host changes is made of such.
    page: u64,
    random: Random,
}

/// Changes things on `cpu` until the run is over.
pub(crate) fn run<F: Modelled>(rig: &Rig<F>, cpu: Cpu) {
    let mut host = HostCpu {
        rig,
        page: rig.page_bytes(),
        random: Random::new(rig.seeds.cpus.wrapping_add(u64::from(cpu))),
    };
    // For mapping ahead of faults, as a VMM's thread would.
    let mut vcpu = rig.memory.vcpu();
    while !rig.is_over() {
        if let Some(action) = host.draw() {
            perform(rig, &mut vcpu, &action);
        }
        pause(rig, host.turns());
        progress();
    }
}

const fn draws<'r, F: Modelled>(churn: &Churn) -> [(u32, Draw<'r, F>); 9] {
    [
        (churn.migrate, HostCpu::migrate),
        (churn.discard, HostCpu::discard),
        (churn.protect, HostCpu::protect),
        (churn.split, HostCpu::split),
        (churn.remap, HostCpu::remap),
        (churn.revoke, HostCpu::revoke),
        (churn.age, HostCpu::age),
        (churn.populate, HostCpu::populate),
        (churn.slots, HostCpu::slots),
    ]
}

impl<F: Modelled> HostCpu<'_, F> {
    fn turns(&mut self) -> usize {
        1 + self.random.below(REST)
    }

    /// What to do next; `None` if nothing suits what was drawn.
    fn draw(&mut self) -> Option<Action> {
        let draws = draws(&self.rig.plan.churn);
        let total = draws.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let mut ticket = below(&mut self.random, total)?;
        for (weight, draw) in draws {
            if ticket < u64::from(weight) {
                return draw(self);
            }
            ticket -= u64::from(weight);
        }
        None
    }

    /// One of the mappings that are `suitable`, with its place in the plan.
    fn mapping(&mut self, suitable: impl Fn(&Mapping) -> bool) -> Option<(usize, Mapping)> {
        let mappings = self.rig.plan.mappings.iter().enumerate();
        let suitable: Vec<_> = mappings.filter(|(_, mapping)| suitable(mapping)).collect();
        let (index, mapping) = *suitable.get(index(&mut self.random, suitable.len())?)?;
        Some((index, mapping.clone()))
    }

    /// A range of pages in a mapping: around what the guest uses often, of one page, a few, or
    /// blocks. First address and size.
    fn range(&mut self, mapping: &Mapping) -> (u64, u64) {
        let pages = mapping.bytes / PAGE_SIZE;
        let first = page_of(&mut self.random, pages);
        let length = match self.random.below(8) {
            0..=3 => 1,
            4 | 5 => 1 + self.random.below(16) as u64,
            6 => 512,
            _ => 1 + below(&mut self.random, pages).unwrap_or(0),
        };
        let mut start = (mapping.hva + first * PAGE_SIZE) & !(self.page - 1);
        if length == 512 {
            start = (start & !(BLOCK - 1)).max(mapping.hva);
        }
        let most = mapping.hva + mapping.bytes - start;
        let bytes = (length * PAGE_SIZE).next_multiple_of(self.page);
        (start, bytes.min(most))
    }

    fn page(&mut self, mapping: &Mapping) -> u64 {
        mapping.hva + page_of(&mut self.random, mapping.bytes / PAGE_SIZE) * PAGE_SIZE
    }

    fn migrate(&mut self) -> Option<Action> {
        let (_, mapping) = self.mapping(is_ram)?;
        Some(Action::Migrate {
            hva: self.page(&mapping),
            // Of frames smaller than its page a format can make nothing.
            huge: self.random.one_in(3) || self.page != PAGE_SIZE && !self.random.one_in(4),
        })
    }

    fn discard(&mut self) -> Option<Action> {
        let (_, mapping) = self.mapping(is_ram)?;
        let (hva, bytes) = self.range(&mapping);
        Some(Action::Discard { hva, bytes })
    }

    fn protect(&mut self) -> Option<Action> {
        let (mapping, planned) = self.mapping(|mapping| mapping.writable)?;
        let (hva, bytes) = self.range(&planned);
        let pause = self.turns();
        Some(Action::Protect {
            mapping,
            hva,
            bytes,
            pause,
        })
    }

    fn remap(&mut self) -> Option<Action> {
        let (mapping, planned) = self.mapping(|_| true)?;
        let (hva, bytes) = self.range(&planned);
        let pause = self.turns();
        Some(Action::Remap {
            mapping,
            hva,
            bytes,
            pause,
        })
    }

    fn split(&mut self) -> Option<Action> {
        if self.random.half() {
            let (gpa, bytes) = self.guest_range()?;
            let level = u8::from(self.random.one_in(4));
            return Some(Action::SplitTables { gpa, bytes, level });
        }
        let (_, mapping) = self.mapping(is_ram)?;
        let hva = self.page(&mapping);
        Some(Action::Split { hva })
    }

    fn revoke(&mut self) -> Option<Action> {
        let revocable = |mapping: &Mapping| matches!(mapping.backing, Backing::Revocable { .. });
        let (mapping, _) = self.mapping(revocable)?;
        let pause = self.turns();
        Some(Action::Revoke { mapping, pause })
    }

    fn age(&mut self) -> Option<Action> {
        let (_, mapping) = self.mapping(|_| true)?;
        let (hva, bytes) = self.range(&mapping);
        let clear = !self.random.one_in(4);
        Some(Action::Age { hva, bytes, clear })
    }

    fn populate(&mut self) -> Option<Action> {
        if self.random.half() {
            let (gpa, bytes) = self.guest_range()?;
            return Some(Action::Prefault { gpa, bytes });
        }
        let (_, mapping) = self.mapping(is_ram)?;
        let (hva, bytes) = self.range(&mapping);
        let write = mapping.writable && self.random.half();
        Some(Action::Populate { hva, bytes, write })
    }

    /// Pages of a slot, at most two blocks of them. First address and size.
    fn guest_range(&mut self) -> Option<(u64, u64)> {
        let slots = &self.rig.plan.slots;
        let chosen = slots.get(index(&mut self.random, slots.len())?)?;
        let slot = self.rig.slots.get(chosen.id)?;
        let pages = slot.bytes / PAGE_SIZE;
        let first = page_of(&mut self.random, pages);
        let most = (pages - first).min(2 * BLOCK / PAGE_SIZE);
        let length = 1 + below(&mut self.random, most)?;
        Some((slot.gpa + first * PAGE_SIZE, length * PAGE_SIZE))
    }

    /// Deletes a slot, or puts another in its place.
    fn slots(&mut self) -> Option<Action> {
        let slots = self.rig.plan.slots.iter();
        let replaceable: Vec<&Slot> = slots.filter(|slot| slot.replaceable).collect();
        let planned = *replaceable.get(index(&mut self.random, replaceable.len())?)?;
        let mut slot = planned.clone();
        match self.random.below(9) {
            // Back to what was planned.
            0..=2 => {}
            3 => slot.hva = self.another_hva(planned.hva, planned.bytes),
            4 => slot.read_only = !planned.read_only,
            5 => slot.on_fault = !planned.on_fault,
            // Half of it.
            6 => slot.bytes = (planned.bytes / 2).next_multiple_of(self.page),
            _ => return Some(Action::Delete { slot: planned.id }),
        }
        Some(Action::Create { slot })
    }

    /// Another place in the mapping behind `hva`, or in another one.
    fn another_hva(&mut self, hva: u64, bytes: u64) -> u64 {
        let Some((_, mapping)) = self.mapping(|mapping| mapping.bytes >= bytes) else {
            return hva;
        };
        let pages = (mapping.bytes - bytes) / self.page;
        let page = match self.random.below(4) {
            0 => 0,
            1 => pages,
            2 => pages & !(BLOCK / self.page - 1),
            _ => below(&mut self.random, pages + 1).unwrap_or(0),
        };
        mapping.hva + page * self.page
    }
}

/// A place in a list of `count`; `None` if it is empty.
fn index(random: &mut Random, count: usize) -> Option<usize> {
    (count != 0).then(|| random.below(count))
}

fn is_ram(mapping: &Mapping) -> bool {
    matches!(mapping.backing, Backing::Anonymous | Backing::Image(_))
}
