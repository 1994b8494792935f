//! A VM on the whole stack: an address space, a guest memory, a simulated machine; and the guest
//! that runs on it.
//!
//! A guest's access is a translation and a use of it. Hardware finishes accesses that began with
//! an old translation before a flush is complete; here a gate does: the guest passes it for
//! reading for each access, and every flush waits until it has been empty.

use std::sync::{Arc, RwLock};

use slat::config::{Config, WriteCheck};
use slat::host::Host;
use slat::region::{Mapping, Region};
use slat::vcpu::{Denial, FaultError};
use slat::{Fault, GuestMemory, Outcome, SlotId, Vcpu};
use slat_mm::arena::Arena;
use slat_mm::{AddressSpace, Backing, Frames, Protection};
use slat_table::address::{Gpa, GpaRange, Hpa, HpaRange, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::Access;
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::geometry::MAX_LEVELS;
use slat_table::lock::StdLocks;
use slat_table::simulated::SimulatedPlatform;

pub(crate) type Space = AddressSpace<Arc<Arena>, StdLocks>;
pub(crate) type Platform = SimulatedPlatform<StdLocks>;

pub(crate) const PAGE: u64 = PAGE_SIZE;
/// A block of the level above the pages.
pub(crate) const BLOCK: u64 = 2 << 20;
/// Where most slots begin.
pub(crate) const GPA: u64 = 0x8000_0000;
/// Where most mappings begin.
pub(crate) const HVA: u64 = 0x7f00_0000_0000;

/// The CPU: it leaves the access flag to software, and forces memory types.
pub(crate) const FEATURES: Arm64Features = Arm64Features {
    physical_bits: 48,
    force_write_back: true,
    execute_never_extended: true,
    hardware_accessed: false,
    hardware_dirty: false,
    vmid16: false,
    coherent_instruction_cache: true,
};

pub(crate) fn hva_range(start: u64, bytes: u64) -> HvaRange {
    HvaRange::new(Hva::new(start), bytes).unwrap()
}

pub(crate) fn gpa_range(start: u64, bytes: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start), bytes).unwrap()
}

pub(crate) fn region(id: u32, gpa: u64, bytes: u64, hva: u64) -> Region {
    Region::new(SlotId(id), Gpa::new(gpa), bytes, Hva::new(hva))
}

/// A region that creation leaves empty.
pub(crate) fn on_fault(id: u32, gpa: u64, bytes: u64, hva: u64) -> Region {
    region(id, gpa, bytes, hva).mapping(Mapping::OnFault)
}

/// The VM. `H` is the host that the guest memory asks: the address space, or a host of the test
/// around it.
pub(crate) struct Vm<H: Host = Space> {
    pub(crate) arena: Arc<Arena>,
    pub(crate) space: Space,
    pub(crate) platform: Platform,
    pub(crate) memory: Arc<GuestMemory<Arm64, H, Platform>>,
    gate: Arc<RwLock<()>>,
}

impl Vm {
    /// A VM without slots, on a host with so many megabytes and nothing mapped.
    pub(crate) fn new(megabytes: u64) -> Self {
        Self::with(megabytes, Config::new(), |space| space)
    }

    /// A VM with one slot of `bytes` bytes at `GPA` over anonymous memory at `HVA`, both of which
    /// are empty at first.
    pub(crate) fn with_ram(bytes: u64) -> Self {
        let vm = Self::new(16.max((2 * bytes) >> 20));
        vm.map_ram(HVA, bytes);
        vm.memory.insert(region(1, GPA, bytes, HVA)).unwrap();
        vm
    }
}

impl<H: Host> Vm<H> {
    /// A VM whose guest memory asks what `host` makes of the address space.
    pub(crate) fn with(megabytes: u64, config: Config, host: impl FnOnce(Space) -> H) -> Self {
        let range = HpaRange::new(Hpa::new(0x40_4000_0000), megabytes << 20).unwrap();
        let arena = Arc::new(Arena::new(range));
        let space = Space::new(Arc::clone(&arena));
        let platform = Platform::new();
        let gate = Arc::new(RwLock::new(()));
        let waits = Arc::clone(&gate);
        platform.on_flush(move |_| drop(waits.write().unwrap()));
        let config = config.write_check(WriteCheck::Lenient);
        let memory = GuestMemory::new(host(space.clone()), platform.clone(), FEATURES, config);
        Self {
            arena,
            space,
            platform,
            memory: memory.unwrap(),
            gate,
        }
    }

    /// Maps writable anonymous memory in the host.
    pub(crate) fn map_ram(&self, hva: u64, bytes: u64) {
        let range = hva_range(hva, bytes);
        self.space
            .map(range, Protection::ReadWrite, Backing::Anonymous)
            .unwrap();
    }

    /// A CPU of the guest.
    pub(crate) fn cpu(&self) -> Cpu<'_, H> {
        Cpu {
            vm: self,
            vcpu: self.memory.vcpu(),
            faults: 0,
        }
    }

    /// One fault, by a vCPU that looks at the slots anew.
    pub(crate) fn fault(&self, gpa: u64, access: Access) -> Outcome {
        let gpa = Gpa::new(gpa);
        self.memory.vcpu().fault(Fault { gpa, access }).unwrap()
    }

    /// Number of leaves in all of the guest's memory by level, pages first.
    pub(crate) fn leaves(&self) -> [u64; MAX_LEVELS] {
        self.memory.table().count_leaves(&gpa_range(0, 1 << 40))
    }

    /// Whether the guest may write at `gpa` without a fault; `None` if nothing is mapped.
    pub(crate) fn writable(&self, gpa: u64) -> Option<bool> {
        let found = self.memory.translate(Gpa::new(gpa))?;
        Some(found.attributes.permissions.write)
    }

    /// Ends host and VM; every frame and every table must come back.
    pub(crate) fn end(self) {
        self.space.release();
        assert_eq!(self.arena.allocated_pages(), 0, "frames were lost");
        drop((self.memory, self.space));
        assert_eq!(self.platform.live_tables(), 0, "tables were lost");
    }
}

/// Why an access of the guest did not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// No slot backs the address.
    Mmio,
    /// A write to a read-only slot.
    ReadOnlySlot,
    Denied(Denial),
    NoMemory,
}

/// A CPU of the guest. It faults until an access goes through or is refused.
pub(crate) struct Cpu<'m, H: Host = Space> {
    vm: &'m Vm<H>,
    pub(crate) vcpu: Vcpu<'m, Arm64, H, Platform>,
    /// Faults of all accesses so far.
    pub(crate) faults: u64,
}

/// More faults than an access that is not stuck can take: the tests change the host a few
/// thousand times at most.
const STUCK: u64 = 1_000_000;

impl<H: Host> Cpu<'_, H> {
    /// Reads the number at `gpa`.
    pub(crate) fn load(&mut self, gpa: u64) -> Result<u64, Stopped> {
        self.access(gpa, Access::Read, |frames, hpa| {
            let mut bytes = [0; 8];
            frames.read(hpa, &mut bytes);
            u64::from_le_bytes(bytes)
        })
    }

    /// Writes the number at `gpa`.
    pub(crate) fn store(&mut self, gpa: u64, number: u64) -> Result<(), Stopped> {
        self.access(gpa, Access::Write, |frames, hpa| {
            frames.write(hpa, &number.to_le_bytes());
        })
    }

    /// Adds one to the number at `gpa`; nobody else may use it meanwhile.
    pub(crate) fn increment(&mut self, gpa: u64) -> Result<u64, Stopped> {
        self.access(gpa, Access::Write, |frames, hpa| {
            let mut bytes = [0; 8];
            frames.read(hpa, &mut bytes);
            let number = u64::from_le_bytes(bytes) + 1;
            frames.write(hpa, &number.to_le_bytes());
            number
        })
    }

    /// Fetches an instruction at `gpa`.
    pub(crate) fn execute(&mut self, gpa: u64) -> Result<(), Stopped> {
        self.access(gpa, Access::Execute, |_, _| ())
    }

    fn access<T>(
        &mut self,
        gpa: u64,
        access: Access,
        mut act: impl FnMut(&Arena, Hpa) -> T,
    ) -> Result<T, Stopped> {
        let gpa = Gpa::new(gpa);
        for _ in 0..STUCK {
            let inside = self.vm.gate.read().unwrap();
            let found = self.vm.memory.translate(gpa);
            // With the access flag clear the hardware faults, too (no `FEAT_HAFDBS`).
            let allows = |found: &slat_table::walk::Translation| {
                found.attributes.accessed && found.attributes.permissions.allow(access)
            };
            if let Some(found) = found.filter(allows) {
                return Ok(act(&self.vm.arena, found.hpa));
            }
            drop(inside);
            self.faults += 1;
            match self.vcpu.fault(Fault { gpa, access }) {
                Ok(Outcome::Mmio { .. }) => return Err(Stopped::Mmio),
                Ok(Outcome::WriteToReadOnly { .. }) => return Err(Stopped::ReadOnlySlot),
                Ok(Outcome::Denied { reason, .. }) => return Err(Stopped::Denied(reason)),
                Ok(Outcome::Retry) => std::thread::yield_now(),
                Ok(_) => {}
                Err(FaultError::HostNoMemory(_) | FaultError::OutOfTables(_)) => {
                    return Err(Stopped::NoMemory);
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no progress at {gpa}");
    }
}
