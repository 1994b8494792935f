//! Slat with KVM's limits, over the same mappings as the real KVM.
//!
//! One [`GuestMemory`] for each of KVM's address spaces. The mappings are real ones of this
//! process, one writable and one read-only, which the host shows as they are; everywhere else it
//! shows holes. No page is ever present, since nothing here looks beyond the answers.

use std::sync::{Arc, Weak};

use memmap2::{Mmap, MmapMut, MmapOptions};
use slat::host::{Host, HostPage, HostView, PageKind, ResolveError, Vma};
use slat::notifier::Notifier;
use slat::table::address::{Hva, HvaRange};
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::arm64::{Arm64, Arm64Features};
use slat::table::lock::StdLocks;
use slat::table::simulated::SimulatedPlatform;
use slat::transaction::TransactionError;
use slat::{Config, GuestMemory, SlotId};

use super::real::Limits;
use super::request::Request;

/// Size of each of the two mappings.
const MAPPING_BYTES: u32 = 64 << 20;

/// The widest guest physical address of the arm64 format in bits.
const WIDEST_GUEST: u8 = 48;

type Memory = GuestMemory<Arm64, Process, SimulatedPlatform<StdLocks>>;

/// Two mappings of this process.
pub(crate) struct Mappings {
    _writable: MmapMut,
    _read_only: Mmap,
    process: Process,
}

/// What the host shows of them, in ascending order.
#[derive(Clone, Copy)]
struct Process([Vma; 2]);

impl Mappings {
    /// Maps both. They cost address space only, until they are touched.
    pub(crate) fn new() -> Self {
        let map = || {
            let mut options = MmapOptions::new();
            let options = options.len(MAPPING_BYTES as usize).no_reserve_swap();
            options.map_anon().expect("address space for a mapping")
        };
        let (writable, read_only) = (map(), map());
        let read_only = read_only.make_read_only().expect("a read-only mapping");
        let mut vmas = [vma(&writable, true), vma(&read_only, false)];
        vmas.sort_by_key(|vma| vma.range.start());
        Self {
            _writable: writable,
            _read_only: read_only,
            process: Process(vmas),
        }
    }

    /// The mapping that is writable, or the one that is not.
    pub(crate) fn range(&self, writable: bool) -> HvaRange {
        let vmas = self.process.0;
        let found = vmas.into_iter().find(|vma| vma.writable == writable);
        found.expect("one of each").range
    }
}

fn vma(mapping: &[u8], writable: bool) -> Vma {
    let start = Hva::new(mapping.as_ptr().addr() as u64);
    Vma {
        range: HvaRange::new(start, MAPPING_BYTES.into()).expect("mappings are made of pages"),
        writable,
        kind: PageKind::Ram,
        memory: MemoryType::WriteBack,
    }
}

impl HostView for Process {
    fn find_vma(&self, hva: Hva) -> Option<Vma> {
        self.0.into_iter().find(|vma| vma.range.end() > hva)
    }

    fn peek(&self, hva: Hva, _: Access) -> Result<HostPage, ResolveError> {
        let vma = self.find_vma(hva).filter(|vma| vma.range.contains(hva));
        Err(match vma {
            Some(vma) => ResolveError::NotPresent(vma.range),
            None => ResolveError::NoVma(hva),
        })
    }
}

#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
// SAFETY: it never shows a page, so there is nothing to keep true.
unsafe impl Host for Process {
    type View<'a> = Self;

    /// Nothing changes.
    fn register(&self, _: Weak<dyn Notifier>) {}

    fn view(&self) -> Self {
        *self
    }

    fn fault(&self, hva: Hva, _: Access) -> Result<HostPage, ResolveError> {
        Err(ResolveError::NoMemory(hva))
    }
}

/// Slat in KVM's place.
pub(crate) struct Ours {
    spaces: Vec<Arc<Memory>>,
    guest_bits: u8,
}

impl Ours {
    /// With `limits` as far as the format reaches.
    pub(crate) fn new(limits: &Limits, mappings: &Mappings) -> Self {
        let guest_bits = limits.guest_bits.min(WIDEST_GUEST);
        let features = Arm64Features {
            physical_bits: WIDEST_GUEST,
            force_write_back: true,
            execute_never_extended: false,
            hardware_accessed: false,
            hardware_dirty: false,
            vmid16: false,
            coherent_instruction_cache: true,
        };
        let config = Config::new()
            .address_bits(guest_bits)
            .slot_ids(limits.slot_ids)
            .host_end(limits.host_end);
        let space = |_| {
            let platform = SimulatedPlatform::new();
            let memory = Memory::new(mappings.process, platform, features, config);
            memory.expect("a machine has memory for a root table")
        };
        let spaces = (0..limits.spaces).map(space).collect();
        Self { spaces, guest_bits }
    }

    /// Width of a guest physical address in bits.
    pub(crate) fn guest_bits(&self) -> u8 {
        self.guest_bits
    }

    /// Creates or deletes what is asked for.
    pub(crate) fn ask(&self, request: &Request) -> Result<(), TransactionError> {
        let (memory, id) = self.place(request.id)?;
        if request.is_deletion() {
            memory.remove(id)
        } else {
            memory.insert(request.region()).map(drop)
        }
    }

    /// Deletes `deletes`, then creates `creates`, all or nothing. All are in one address space.
    pub(crate) fn ask_together(
        &self,
        deletes: &[u32],
        creates: &[Request],
    ) -> Result<(), TransactionError> {
        let first = deletes.first().copied();
        let first = first.or(creates.first().map(|create| create.id));
        let (memory, _) = self.place(first.unwrap_or(0))?;
        let mut transaction = memory.transaction();
        for id in deletes {
            transaction = transaction.delete(SlotId(id & 0xffff));
        }
        for create in creates {
            transaction = transaction.create(create.region());
        }
        transaction.commit().map(drop)
    }

    /// Checks that exactly `live` is there.
    pub(crate) fn assert_holds<'a>(&self, live: impl ExactSizeIterator<Item = &'a Request>) {
        let slots: Vec<_> = self.spaces.iter().map(|space| space.slots()).collect();
        let count: usize = slots.iter().map(|slots| slots.slots().len()).sum();
        assert_eq!(count, live.len(), "slat has other slots than it said");
        for request in live {
            let slots = &slots[(request.id >> 16) as usize];
            let slot = slots.by_id(SlotId(request.id & 0xffff)).expect("a slot");
            assert_eq!(slot.range().start().raw(), request.gpa, "{request}");
            assert_eq!(slot.range().bytes(), request.bytes, "{request}");
            assert_eq!(slot.hva().raw(), request.hva, "{request}");
            assert_eq!(slot.is_read_only(), request.is_read_only(), "{request}");
        }
    }

    /// The memory of the address space that `id` names, and the id in it.
    fn place(&self, id: u32) -> Result<(&Memory, SlotId), TransactionError> {
        let missing = TransactionError::NoSuchSlot(SlotId(id));
        let space = self.spaces.get((id >> 16) as usize).ok_or(missing)?;
        Ok((space, SlotId(id & 0xffff)))
    }
}
