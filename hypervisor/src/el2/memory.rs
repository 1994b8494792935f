//! The guest's memory: what the machine has, mapped into a host address space, and from there into
//! the guest through slat.
//!
//! The host address space is only a book of what is mapped to what: nothing is loaded or stored
//! through it. A guest-physical address has its host-virtual address at a fixed distance, so that
//! the two are congruent for every block size.

use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;

use slat::GuestMemory;
use slat::config::Config;
use slat::region::{Mapping, Region, SlotId};
use slat::report::RegionReport;
use slat::table::address::{Gpa, GpaRange, Hpa, HpaRange, Hva, HvaRange, RangeError};
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::arm64::{Arm64, Arm64Features, Arm64Root};
use slat::table::lock::SpinLocks;
use slat::table::table::{NewTableError, VmidError};
use slat::transaction::TransactionError;
use slat::vcpu::FaultError;
use slat_hypervisor::machine::{Device, Machine};
use slat_hypervisor::options::Options;
use slat_hypervisor::span::Span;
use slat_mm::{AddressSpace, Backing, ContentsError, DriverDevice, MapError, Protection};
use slat_report::{Kind, Mapped};
use thiserror::Error;

use super::cpu::Features;
use super::frames::HostMemory;
use super::platform::El2Platform;

/// The host address space.
pub(super) type Space = AddressSpace<Arc<HostMemory>, SpinLocks>;
/// The guest's memory.
pub(super) type Memory = GuestMemory<Arm64, Space, El2Platform>;
/// A device whose memory can be taken away and given back.
pub(super) type Revocable = DriverDevice<SpinLocks>;

/// Where guest-physical address 0 is in the host address space.
const HOST_BASE: u64 = 1 << 47;
/// Bits of a guest-physical address: they just reach the end of QEMU's large PCI window.
const ADDRESS_BITS: u8 = 40;
/// The name of the one VM in the TLBs.
const VMID: u16 = 1;
/// Devices that churn may take away: the guest uses both, and stands their coming back.
const REVOCABLE: [&str; 2] = ["rtc", "pci window 64"];

/// The guest's memory with everything that is known about it.
pub(super) struct Guest {
    pub(super) space: Space,
    pub(super) memory: Arc<Memory>,
    pub(super) regions: Vec<GuestRegion>,
    pub(super) revocable: Vec<Revocable>,
}

/// One region of the guest's physical addresses.
#[derive(Debug)]
pub(super) struct GuestRegion {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) range: GpaRange,
    pub(super) mapped: Mapped,
    /// What became of it when it was created.
    pub(super) report: RegionReport,
    /// Faults that the guest took in it.
    pub(super) faults: u64,
}

/// Guest memory that could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum GuestError {
    /// The tables.
    #[error("stage-2 tables: {0}")]
    Table(#[from] NewTableError),
    /// The VM's number.
    #[error(transparent)]
    Vmid(#[from] VmidError),
    /// An address of the machine that is no range of pages.
    #[error("a region of the machine: {0}")]
    Range(#[from] RangeError),
    /// The host address space.
    #[error("host address space: {0}")]
    Map(#[from] MapError),
    /// What is in it.
    #[error("host memory: {0}")]
    Contents(#[from] ContentsError),
    /// The region in the guest.
    #[error("guest region: {0}")]
    Region(#[from] TransactionError),
    /// Mapping what the loader brought.
    #[error("guest memory: {0}")]
    Fault(#[from] FaultError),
}

impl Guest {
    /// Guest memory without regions, its tables and frames from `host`.
    ///
    /// # Errors
    ///
    /// [`GuestError::Table`].
    pub(super) fn new(host: &Arc<HostMemory>, features: Features) -> Result<Self, GuestError> {
        let space = Space::new(Arc::clone(host));
        let arm64 = Arm64Features {
            physical_bits: features.physical_bits,
            force_write_back: features.force_write_back,
            execute_never_extended: features.execute_split,
            hardware_accessed: features.hardware_accessed,
            hardware_dirty: false,
            vmid16: false,
            coherent_instruction_cache: features.coherent_instruction_cache,
        };
        let platform = El2Platform::new(Arc::clone(host));
        let config = Config::new().address_bits(ADDRESS_BITS);
        let memory = Memory::new(space.clone(), platform, arm64, config)?;
        let (regions, revocable) = (Vec::new(), Vec::new());
        Ok(Self {
            space,
            memory,
            regions,
            revocable,
        })
    }

    /// What `VTCR_EL2` and `VTTBR_EL2` must hold.
    ///
    /// # Errors
    ///
    /// [`GuestError::Vmid`].
    pub(super) fn root(&self) -> Result<Arm64Root, GuestError> {
        Ok(self.memory.table().root(VMID)?)
    }

    /// Maps the host memory that the guest's RAM at `ram` will be backed by. It has no frames yet.
    ///
    /// # Errors
    ///
    /// [`GuestError::Map`], [`GuestError::Range`].
    pub(super) fn back_ram(&self, ram: Span) -> Result<(), GuestError> {
        let range = HvaRange::new(host_address(ram.start()), ram.size())?;
        Ok(self
            .space
            .map(range, Protection::ReadWrite, Backing::Anonymous)?)
    }

    /// Writes `bytes` into the host memory behind guest-physical `start`, as a loader does.
    ///
    /// # Errors
    ///
    /// [`GuestError::Contents`].
    pub(super) fn load(&self, start: u64, bytes: &[u8]) -> Result<(), GuestError> {
        Ok(self.space.write(host_address(start), bytes)?)
    }

    /// Creates the guest's regions: RAM at `ram`, of which the loader filled `loaded`, and the
    /// machine's devices at their own addresses. When churn is on, some devices are revocable.
    ///
    /// # Errors
    ///
    /// A [`GuestError`]; the guest must not run then.
    pub(super) fn create_regions(
        &mut self,
        machine: &Machine,
        options: &Options,
        ram: Span,
        loaded: &[Span],
    ) -> Result<(), GuestError> {
        if options.ram == Mapped::Create {
            let range = HvaRange::new(host_address(ram.start()), ram.size())?;
            self.space.populate(range, Access::Write)?;
        }
        self.create("ram", Kind::Ram, ram, options.ram)?;
        // What the loader brought is there already: it takes no faults, however RAM is mapped.
        let loaded = if options.ram == Mapped::Fault {
            loaded
        } else {
            &[]
        };
        let mut vcpu = self.memory.vcpu();
        for span in loaded {
            let span = span.whole_pages();
            vcpu.prefault(&GpaRange::new(Gpa::new(span.start()), span.size())?)?;
        }
        drop(vcpu);
        for device in &machine.devices {
            let revocable = options.churn.is_some() && REVOCABLE.contains(&device.name.as_str());
            self.back_device(device, revocable)?;
            let kind = if revocable {
                Kind::Revocable
            } else {
                Kind::Device
            };
            self.create(&device.name, kind, device.span, options.mmio)?;
        }
        self.regions.sort_by_key(|region| region.range.start());
        Ok(())
    }

    /// The region that guest-physical `gpa` lies in.
    pub(super) fn region_mut(&mut self, gpa: u64) -> Option<&mut GuestRegion> {
        let gpa = Gpa::new(gpa);
        let after = self
            .regions
            .partition_point(|region| region.range.start() <= gpa);
        self.regions[..after]
            .last_mut()
            .filter(|region| region.range.contains(gpa))
    }

    /// Takes everything apart; afterwards every frame is free again.
    pub(super) fn tear_down(self) {
        drop(self.memory);
        drop(self.space);
    }

    fn back_device(&mut self, device: &Device, revocable: bool) -> Result<(), GuestError> {
        let (start, size) = (device.span.start(), device.span.size());
        let memory = MemoryType::Device;
        let backing = if revocable {
            let device = Revocable::new(HpaRange::new(Hpa::new(start), size)?, memory);
            self.revocable.push(device.clone());
            Backing::Driver { device, offset: 0 }
        } else {
            Backing::Linear {
                hpa: Hpa::new(start),
                memory,
            }
        };
        let range = HvaRange::new(host_address(start), size)?;
        Ok(self.space.map(range, Protection::ReadWrite, backing)?)
    }

    fn create(
        &mut self,
        name: &str,
        kind: Kind,
        span: Span,
        mapped: Mapped,
    ) -> Result<(), GuestError> {
        let (start, size) = (span.start(), span.size());
        let slot = SlotId(u32::try_from(self.regions.len()).unwrap_or(u32::MAX));
        let mapping = match mapped {
            Mapped::Create => Mapping::AtCreation,
            Mapped::Fault => Mapping::OnFault,
        };
        let region = Region::new(slot, Gpa::new(start), size, host_address(start));
        let report = self.memory.insert(region.mapping(mapping))?;
        let (name, range) = (name.to_string(), report.range());
        self.regions.push(GuestRegion {
            name,
            kind,
            range,
            mapped,
            report,
            faults: 0,
        });
        Ok(())
    }
}

/// The host-virtual address behind guest-physical `gpa`.
pub(super) fn host_address(gpa: u64) -> Hva {
    Hva::new(HOST_BASE + gpa)
}
