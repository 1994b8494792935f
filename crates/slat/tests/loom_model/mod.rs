//! What the loom tests share: a [`tiny`] format, a [`machine`] with hostile [`caches`], a
//! [`host`], a VM made of them, and ways to [`explore`] what happens to it. The code under test is the real one; only what it stands on
//! is modelled.

#![allow(
    dead_code,
    unused_imports,
    clippy::allow_attributes,
    reason = "each test binary uses a part of the model"
)]

pub(crate) mod caches;
pub(crate) mod explore;
pub(crate) mod host;
pub(crate) mod machine;
pub(crate) mod tiny;

use std::sync::Arc;

use slat::region::Mapping;
use slat::vcpu::Outcome;
use slat::{Config, Fault, GuestMemory, Region, SlotId};
use slat_table::address::{Gpa, GpaRange, Hpa, Hva, PAGE_SIZE};
use slat_table::attributes::Access;

pub(crate) use explore::{check, pair};
use host::{ModelHost, Page, frame, hva_pages};
use machine::Machine;
use tiny::{ADDRESS_BITS, SMALL_ADDRESS_BITS, Tiny, TinyFeatures};

/// The memory of the VM under test.
pub(crate) type Memory = GuestMemory<Tiny, ModelHost, Machine>;

/// A vCPU of it.
pub(crate) type Vcpu<'m> = slat::Vcpu<'m, Tiny, ModelHost, Machine>;

/// Hardware that asks for break-before-make.
pub(crate) const BREAKS: TinyFeatures = TinyFeatures {
    break_before_make: true,
    caches_invalid: false,
};

/// The last page of the guest's memory.
const LAST: u64 = 7;

/// A VM and what it stands on. Clones are the same VM.
#[derive(Clone)]
pub(crate) struct Vm {
    pub(crate) machine: Machine,
    pub(crate) host: ModelHost,
    pub(crate) memory: Arc<Memory>,
}

impl Vm {
    /// A VM without slots, with two stripes.
    pub(crate) fn new(features: TinyFeatures, host: ModelHost) -> Self {
        Self::of_size(features, host, ADDRESS_BITS, 2)
    }

    /// A VM without slots, with four pages of guest memory in two levels of tables, and one
    /// stripe. For two that remove things: each of them takes every stripe and looks at every
    /// level several times, so that what one stripe and two levels cannot show is dear.
    pub(crate) fn small(features: TinyFeatures, host: ModelHost) -> Self {
        Self::of_size(features, host, SMALL_ADDRESS_BITS, 1)
    }

    fn of_size(features: TinyFeatures, host: ModelHost, address_bits: u8, stripes: usize) -> Self {
        let machine = Machine::new(features, address_bits);
        let config = Config::new().address_bits(address_bits).stripes(stripes);
        let memory = Memory::new(host.clone(), machine.clone(), features, config);
        Self {
            machine,
            host,
            memory: memory.expect("a table"),
        }
    }

    /// A VM whose slot 1 is all of the guest's memory, page `n` being the host's page `n`, mapped
    /// on fault.
    pub(crate) fn with_slot(features: TinyFeatures, host: ModelHost) -> Self {
        let vm = Self::new(features, host);
        vm.memory.insert(on_fault(1, 0, 8, 0)).expect("a slot");
        vm
    }

    /// Such a VM of the [`small`](Self::small) kind.
    pub(crate) fn small_with_slot(features: TinyFeatures, host: ModelHost) -> Self {
        let vm = Self::small(features, host);
        vm.memory.insert(on_fault(1, 0, 4, 0)).expect("a slot");
        vm
    }

    /// A fault on page `number`.
    pub(crate) fn fault(&self, vcpu: &mut Vcpu<'_>, number: u64, access: Access) -> Outcome {
        // Let it also come before or after all that another thread does.
        self.machine.touch_caches();
        let gpa = page(number);
        vcpu.fault(Fault { gpa, access }).expect("memory enough")
    }

    /// A vCPU that has its tables ready, so that its next fault allocates none. Two threads that
    /// count tables at once make paths many times as many, and show nothing. Slot 1 must be that
    /// of [`with_slot`](Self::with_slot).
    pub(crate) fn ready_vcpu(&self) -> Vcpu<'_> {
        let at = |writable| Page {
            frame: frame(LAST),
            order: 0,
            writable,
        };
        let mut vcpu = self.memory.vcpu();
        self.host.set(LAST, at(false));
        let refused = self.fault(&mut vcpu, LAST, Access::Write);
        assert!(matches!(refused, Outcome::Denied { .. }), "{refused:?}");
        self.host.set(LAST, at(true));
        vcpu
    }

    /// Maps page `number` by a read.
    pub(crate) fn map(&self, number: u64) {
        let outcome = self.fault(&mut self.memory.vcpu(), number, Access::Read);
        assert!(is_handled(&outcome), "{outcome:?}");
    }

    /// Where the tables say that page `number` is.
    pub(crate) fn frame_at(&self, number: u64) -> Option<Hpa> {
        self.memory.translate(page(number)).map(|found| found.hpa)
    }

    /// Takes the host's page `number` from the guest, as if it had been in `old`, and gives it
    /// back in the frame `new`.
    pub(crate) fn migrate(&self, number: u64, old: Hpa, new: Hpa) {
        let change = self.memory.invalidate(hva_pages(number, 1));
        self.machine.take_frame(old);
        self.host.move_page(number, new);
        drop(change);
    }

    /// When all threads but this one have ended: nothing was wrong, faults get through and find
    /// what the host has now, and every table comes back.
    pub(crate) fn finish(self, pages: &[(u64, Hpa)]) {
        let mut vcpu = self.memory.vcpu();
        for (number, expected) in pages {
            // The first may have to break what is in its way (P4).
            let mut tries = (0..2).map(|_| self.fault(&mut vcpu, *number, Access::Read));
            assert!(tries.any(|outcome| is_handled(&outcome)), "page {number}");
            assert_eq!(self.frame_at(*number), Some(*expected), "page {number}");
        }
        drop(vcpu);
        self.machine.switch_off();
        let memory = Arc::into_inner(self.memory).expect("all threads have ended");
        drop(memory);
        if let Some(verdict) = self.machine.verdict() {
            panic!("{verdict}");
        }
        assert_eq!(self.machine.tables(), 0, "tables are lost");
    }
}

/// The guest address of page `number`.
pub(crate) fn page(number: u64) -> Gpa {
    Gpa::new(number * PAGE_SIZE)
}

/// The pages `first` to `first + pages` of the guest's addresses.
pub(crate) fn gpa_pages(first: u64, pages: u64) -> GpaRange {
    GpaRange::new(page(first), pages * PAGE_SIZE).expect("a range of pages")
}

/// A region of `pages` pages from guest page `gpa` and host page `hva` on.
pub(crate) fn region(id: u32, gpa: u64, pages: u64, hva: u64) -> Region {
    Region::new(
        SlotId(id),
        page(gpa),
        pages * PAGE_SIZE,
        Hva::new(hva * PAGE_SIZE),
    )
}

/// Such a region, mapped on fault.
pub(crate) fn on_fault(id: u32, gpa: u64, pages: u64, hva: u64) -> Region {
    region(id, gpa, pages, hva).mapping(Mapping::OnFault)
}

/// Whether the guest should get on now.
pub(crate) fn is_handled(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Mapped { .. } | Outcome::Extended { .. } | Outcome::Spurious { .. }
    )
}

/// A frame that no page of the host is in at first.
pub(crate) fn spare() -> Hpa {
    frame(9)
}
