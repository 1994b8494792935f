//! Any sequence of slot transactions, faults and host changes, on the real stack with a small host.
//!
//! After every step, whatever the tables show must lie in a slot, be what the host has behind that
//! slot, and allow no more than slot and host do. What each call answers is foretold by a model:
//! a list of slots, and what the host itself says of an address.

mod steps;

use std::sync::Arc;

use slat::host::{Host as _, HostView as _, PageKind};
use slat::invalidate::Invalidation;
use slat::region::{Mapping, Region, SlotId};
use slat::vcpu::{Denial, Fault, FaultError, Outcome, Vcpu};
use slat::{Config, GuestMemory};
use slat_mm::arena::Arena;
use slat_mm::{AddressSpace, Backing, FrameSize, Protection};
use slat_table::address::{Gpa, GpaRange, Hpa, HpaRange, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::{Access, Execute, MemoryType};
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::geometry::Level;
use slat_table::lock::StdLocks;
use slat_table::simulated::SimulatedPlatform;

pub use steps::Input;
use steps::{Asked, Change, Place, Step};

const BLOCK: u64 = 2 << 20;
/// Where the host's mappings begin: 6 MiB of RAM that may be written, 2 MiB that may not, and
/// 4 MiB of a device. A hole follows.
const HVA: u64 = 0x7f00_0000_0000;
const RAM: u64 = 3 * BLOCK;
const READ_ONLY: u64 = BLOCK;
const DEVICE: u64 = 2 * BLOCK;
/// Where slots are created, and how far apart.
const GPA: u64 = 0x4000_0000;
const WINDOW: u64 = 8 * BLOCK;
/// A byte below this is taken for an exception.
const RARE: u8 = 16;
/// The host's physical memory, too little for everything at once.
const FRAMES: u64 = 2 * BLOCK;
const FRAMES_AT: u64 = 0x1_0000_0000;
const DEVICE_AT: u64 = 0x2_0000_0000;

type Memory = GuestMemory<Arm64, AddressSpace<Arena, StdLocks>, SimulatedPlatform<StdLocks>>;
type Ended = Option<()>;

/// A slot as the model has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    id: u32,
    gpa: GpaRange,
    hva: u64,
    read_only: bool,
}

struct Run<'m> {
    memory: &'m Memory,
    machine: &'m SimulatedPlatform<StdLocks>,
    space: &'m AddressSpace<Arena, StdLocks>,
    vcpu: Vcpu<'m, Arm64, AddressSpace<Arena, StdLocks>, SimulatedPlatform<StdLocks>>,
    slots: Vec<Known>,
    open: Vec<Open<'m>>,
}

type Open<'m> = (
    Invalidation<'m, Arm64, AddressSpace<Arena, StdLocks>, SimulatedPlatform<StdLocks>>,
    HvaRange,
);

/// Does what the input says.
///
/// # Panics
///
/// If the tables show what they must not, an answer is not the model's, or tables are left over.
pub fn run(input: &Input) {
    let machine = SimulatedPlatform::<StdLocks>::with_pages(256);
    let space = host();
    {
        let memory = guest(&space, &machine);
        let mut run = Run {
            memory: &memory,
            machine: &machine,
            space: &space,
            vcpu: memory.vcpu(),
            slots: Vec::new(),
            open: Vec::new(),
        };
        for step in &input.steps {
            run.step(*step);
            run.check();
        }
    }
    assert_eq!(machine.live_tables(), 0, "tables are left over");
    space.release();
    assert_eq!(space.frames().allocated_pages(), 0, "frames are left over");
}

fn host() -> AddressSpace<Arena, StdLocks> {
    let frames = HpaRange::new(Hpa::new(FRAMES_AT), FRAMES).expect("a range of whole pages");
    let space = AddressSpace::new(Arena::new(frames));
    let device = Backing::Linear {
        hpa: Hpa::new(DEVICE_AT),
        memory: MemoryType::Device,
    };
    let mappings = [
        (0, RAM, Protection::ReadWrite, Backing::Anonymous),
        (RAM, READ_ONLY, Protection::ReadOnly, Backing::Anonymous),
        (RAM + READ_ONLY, DEVICE, Protection::ReadWrite, device),
    ];
    for (offset, bytes, protection, backing) in mappings {
        let done = space.map(hva_range(offset, bytes), protection, backing);
        assert!(done.is_ok(), "{done:?}");
    }
    space
}

fn guest(
    space: &AddressSpace<Arena, StdLocks>,
    machine: &SimulatedPlatform<StdLocks>,
) -> Arc<Memory> {
    let features = Arm64Features {
        physical_bits: 40,
        force_write_back: true,
        execute_never_extended: false,
        hardware_accessed: true,
        hardware_dirty: true,
        vmid16: false,
        coherent_instruction_cache: false,
    };
    GuestMemory::new(space.clone(), machine.clone(), features, Config::new())
        .expect("there is memory for the root")
}

/// A range of the host's, from an offset to its first mapping.
fn hva_range(offset: u64, bytes: u64) -> HvaRange {
    HvaRange::new(Hva::new(HVA + offset), bytes).expect("a range of whole pages")
}

impl Run<'_> {
    fn step(&mut self, step: Step) {
        match step {
            Step::Create(asked) => self.commit(asked, false),
            Step::Replace(asked) => self.commit(asked, true),
            Step::Delete(id) => self.delete(u32::from(id % 4)),
            Step::Fault(place, doing) => self.fault(self.gpa(place), doing.access()),
            Step::Prefault(place, size) => self.prefault(self.gpa(place), size.bytes()),
            Step::Host(change, spot, size) => {
                self.change(change, hva_range(spot.bytes(), size.bytes()));
            }
            Step::Open(spot, size) => {
                let range = hva_range(spot.bytes(), size.bytes());
                self.open.push((self.memory.invalidate(range), range));
            }
            Step::Close => {
                if !self.open.is_empty() {
                    drop(self.open.remove(0));
                }
            }
            Step::FailTable(skip) => self.machine.fail_allocation(u64::from(skip % 8)),
        }
    }

    fn gpa(
        &self,
        Place {
            slot,
            outside,
            spot,
        }: Place,
    ) -> u64 {
        let chosen = self.slots.get(usize::from(slot) % self.slots.len().max(1));
        match chosen.filter(|_| outside >= RARE) {
            Some(slot) => slot.gpa.start().raw() + spot.bytes() % slot.gpa.bytes(),
            None => GPA + spot.bytes(),
        }
    }

    /// Creates a slot, in place of the one of its id if `replace`.
    fn commit(&mut self, asked: Asked, replace: bool) {
        // It would wait for invalidations over its memory, and nobody would end them.
        self.open.clear();
        let window = if asked.window < RARE {
            asked.window
        } else {
            asked.id
        };
        let gpa = GPA + u64::from(window % 4) * WINDOW + asked.gpa.bytes() % BLOCK;
        let known = Known {
            id: u32::from(asked.id % 4),
            gpa: GpaRange::new(Gpa::new(gpa), asked.size.bytes()).expect("a range of whole pages"),
            hva: HVA + asked.hva.bytes(),
            read_only: asked.read_only,
        };
        let region = Region::new(
            SlotId(known.id),
            known.gpa.start(),
            known.gpa.bytes(),
            Hva::new(known.hva),
        );
        let region = if known.read_only {
            region.read_only()
        } else {
            region
        };
        let region = if asked.on_fault {
            region.mapping(Mapping::OnFault)
        } else {
            region
        };
        let exists = self.slots.iter().any(|slot| slot.id == known.id);
        let others = || {
            self.slots
                .iter()
                .filter(|slot| !(replace && slot.id == known.id))
        };
        let sound = !others().any(|slot| slot.id == known.id || slot.gpa.overlaps(&known.gpa))
            && (known.read_only || !self.reads_only(&known));
        let transaction = self.memory.transaction();
        let transaction = if replace && exists {
            transaction.delete(SlotId(known.id))
        } else {
            transaction
        };
        let answer = transaction.create(region).commit();
        assert_eq!(answer.is_ok(), sound, "{known:?}: {answer:?}");
        if sound {
            self.slots.retain(|slot| slot.id != known.id);
            self.slots.push(known);
        }
    }

    fn delete(&mut self, id: u32) {
        let exists = self.slots.iter().any(|slot| slot.id == id);
        let answer = self.memory.remove(SlotId(id));
        assert_eq!(answer.is_ok(), exists, "{answer:?}");
        self.slots.retain(|slot| slot.id != id);
    }

    /// Whether a mapping behind the slot may not be written.
    fn reads_only(&self, slot: &Known) -> bool {
        let view = self.space.view();
        let mut at = Hva::new(slot.hva);
        let end = Hva::new(slot.hva + slot.gpa.bytes());
        while let Some(vma) = view.find_vma(at).filter(|vma| vma.range.start() < end) {
            if !vma.writable {
                return true;
            }
            at = vma.range.end();
        }
        false
    }

    fn fault(&mut self, gpa: u64, access: Access) {
        let expected = self.expected(gpa, access);
        let fault = Fault {
            gpa: Gpa::new(gpa),
            access,
        };
        // Once for what is in the way, once for what comes instead.
        for _ in 0..3 {
            let outcome = match self.vcpu.fault(fault) {
                Ok(Outcome::Retry) => continue,
                Err(FaultError::OutOfTables(_) | FaultError::HostNoMemory(_)) => return,
                other => other.expect("nothing here cannot be encoded"),
            };
            match expected {
                Some(expected) => assert_eq!(outcome, expected),
                None => self.must_be_mapped(fault, &outcome),
            }
            return;
        }
        assert!(!self.open.is_empty(), "{fault:?} is retried for ever");
    }

    /// What comes of a fault, or `None` if the page is to be mapped.
    fn expected(&self, gpa: u64, access: Access) -> Option<Outcome> {
        let at = Gpa::new(gpa);
        let Some(slot) = self.slots.iter().find(|slot| slot.gpa.contains(at)) else {
            return Some(Outcome::Mmio { gpa: at, access });
        };
        let id = SlotId(slot.id);
        if access == Access::Write && slot.read_only {
            return Some(Outcome::WriteToReadOnly { slot: id, gpa: at });
        }
        let hva = Hva::new(slot.hva + (gpa - slot.gpa.start().raw()));
        let vma = self.space.view().find_vma(hva);
        let reason = match vma.filter(|vma| vma.range.contains(hva)) {
            None => Denial::NoMapping,
            Some(vma) if access == Access::Write && !vma.writable => Denial::NotPermitted,
            Some(vma) if access == Access::Execute && vma.kind == PageKind::Pfnmap => {
                Denial::NotExecutable
            }
            Some(_) => return None,
        };
        Some(Outcome::Denied {
            slot: id,
            gpa: at,
            access,
            reason,
        })
    }

    fn must_be_mapped(&self, fault: Fault, outcome: &Outcome) {
        let mapped = matches!(
            outcome,
            Outcome::Mapped { .. } | Outcome::Extended { .. } | Outcome::Spurious { .. }
        );
        assert!(mapped, "{fault:?}: {outcome:?}");
        let found = self.memory.translate(fault.gpa);
        let Some(found) = found else {
            panic!("{fault:?}: {outcome:?}, but nothing is mapped");
        };
        let allowed = found.attributes.permissions;
        let enough = match fault.access {
            Access::Read => allowed.read,
            Access::Write => allowed.write,
            Access::Execute => allowed.execute != Execute::Never,
        };
        assert!(enough && found.attributes.accessed, "{fault:?}: {found:?}");
    }

    fn prefault(&mut self, gpa: u64, bytes: u64) {
        let range = GpaRange::new(Gpa::new(gpa), bytes).expect("a range of whole pages");
        let Ok(done) = self.vcpu.prefault(&range) else {
            return;
        };
        assert!(done.bytes <= bytes && (done.bytes == bytes || done.stopped.is_some()));
        for page in 0..done.bytes / PAGE_SIZE {
            let page = Gpa::new(gpa + page * PAGE_SIZE);
            assert!(self.memory.translate(page).is_some(), "{page} in {done:?}");
        }
    }

    /// Changes what the host has. It may refuse, and then has changed nothing.
    fn change(&mut self, change: Change, range: HvaRange) {
        let (space, at) = (self.space, range.start());
        let _: Ended = match change {
            Change::Protect => space.protect(range, Protection::ReadOnly).ok(),
            Change::Unprotect => space.protect(range, Protection::ReadWrite).ok(),
            Change::Discard => space.discard(range).ok(),
            Change::Migrate => space.migrate(at, FrameSize::Base).ok().map(drop),
            Change::MigrateHuge => space.migrate(at, FrameSize::Huge).ok().map(drop),
            Change::Populate => space.populate(range, Access::Write).ok(),
            Change::Split => space.split(at).ok(),
            Change::Age => {
                let young = space.test_young(range);
                assert_eq!(space.age(range), young);
                assert!(!space.test_young(range), "just aged");
                None
            }
        };
    }

    /// Compares everything that is mapped with slots and host.
    fn check(&self) {
        let all = GpaRange::new(Gpa::new(0), 1 << 40).expect("a range of whole pages");
        let mut leaves = Vec::new();
        let collect = |leaf: GpaRange, _: Level| leaves.push(leaf);
        self.memory.table().for_each_leaf(&all, collect);
        let view = self.space.view();
        for leaf in leaves {
            let found = self.memory.translate(leaf.start());
            let found = found.expect("nobody removes it");
            let slot = self.slots.iter().find(|slot| slot.gpa.covers(&leaf));
            let slot = slot.unwrap_or_else(|| panic!("{leaf} lies in no slot"));
            let hva = slot.hva + (leaf.start().raw() - slot.gpa.start().raw());
            let behind = HvaRange::new(Hva::new(hva), leaf.bytes()).expect("part of a slot");
            for (_, open) in &self.open {
                assert!(
                    !open.overlaps(&behind),
                    "{leaf} is mapped while {open} changes"
                );
            }
            let writes = found.attributes.permissions.write;
            assert!(!(writes && slot.read_only), "{leaf} may be written");
            let mut offset = 0;
            while offset < leaf.bytes() {
                let at = Hva::new(hva + offset);
                let page = view.peek(at, Access::Read);
                let page = page.unwrap_or_else(|error| panic!("{leaf} at {offset:#x}: {error}"));
                let inside = at.raw() - page.block.start().raw();
                let hpa = found.hpa.raw() + offset;
                assert_eq!(hpa, page.hpa.raw() + inside, "{leaf} at {offset:#x}");
                assert!(
                    !writes || page.writable,
                    "{leaf} at {offset:#x} may be written"
                );
                assert_eq!(
                    found.attributes.memory, page.memory,
                    "{leaf} at {offset:#x}"
                );
                offset += page.block.bytes() - inside;
            }
        }
    }
}
