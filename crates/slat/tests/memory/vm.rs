//! One VM on a scripted host, and what can be seen of it from outside.

use std::sync::Arc;

use slat::config::{Config, WriteCheck};
use slat::notifier::Notifier;
use slat::region::{Region, Slot, SlotId};
use slat::table::address::{Gpa, GpaRange, HvaRange, PAGE_SIZE};
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::arm64::{Arm64, Arm64Features};
use slat::table::format::{EncodeError, Format};
use slat::table::lock::StdLocks;
use slat::table::simulated::SimulatedPlatform;
use slat::table::table::LeavesError;
use slat::vcpu::FaultError;
use slat::{Fault, GuestMemory, Outcome, Vcpu};

use crate::scripted_host::{Mapping, ScriptedHost};

pub(crate) type Machine = SimulatedPlatform<StdLocks>;
pub(crate) type Memory<F = Arm64> = GuestMemory<F, ScriptedHost, Machine>;
pub(crate) type TestVcpu<'m, F = Arm64> = Vcpu<'m, F, ScriptedHost, Machine>;

pub(crate) const PAGE: u64 = PAGE_SIZE;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// A block of the level above the pages.
pub(crate) const BLOCK: u64 = 2 * MIB;
/// Where most tests put their slots: aligned for every block.
pub(crate) const GPA: u64 = GIB;
/// Where most tests have their mappings: aligned for every block.
pub(crate) const HVA: u64 = 0x7f00_0000_0000;
/// Where most tests have their devices: aligned for every block.
pub(crate) const DEVICE: u64 = 0x10_0000_0000;

/// A CPU with everything that makes memory types hold.
pub(crate) const MODERN: Arm64Features = Arm64Features {
    physical_bits: 48,
    force_write_back: true,
    execute_never_extended: false,
    hardware_accessed: false,
    hardware_dirty: false,
    vmid16: true,
    coherent_instruction_cache: true,
};

/// A VM; of a scenario that is about one format, on Arm with pages of 4 KiB.
pub(crate) struct Vm<F: Format = Arm64> {
    pub(crate) memory: Arc<Memory<F>>,
    pub(crate) host: ScriptedHost,
    pub(crate) machine: Machine,
}

pub(crate) fn gpa_range(start: u64, bytes: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start), bytes).unwrap()
}

pub(crate) fn region(id: u32, gpa: u64, bytes: u64, hva: u64) -> Region {
    let hva = slat::table::address::Hva::new(hva);
    Region::new(SlotId(id), Gpa::new(gpa), bytes, hva)
}

/// Multiples of `stride` below `bytes`.
pub(crate) fn steps(bytes: u64, stride: u64) -> impl Iterator<Item = u64> {
    (0..bytes / stride).map(move |step| step * stride)
}

/// A leaf as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Leaf {
    pub(crate) gpa: u64,
    pub(crate) bytes: u64,
    pub(crate) hpa: u64,
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

/// Everything that can be seen without changing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) slots: Vec<Slot>,
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) tables: u64,
    pub(crate) live_tables: u64,
}

impl Vm {
    pub(crate) fn new(mappings: &[Mapping]) -> Self {
        Self::with(Config::new(), MODERN, mappings)
    }

    pub(crate) fn lenient(mappings: &[Mapping]) -> Self {
        let config = Config::new().write_check(WriteCheck::Lenient);
        Self::with(config, MODERN, mappings)
    }

    pub(crate) fn with(config: Config, features: Arm64Features, mappings: &[Mapping]) -> Self {
        Self::on(
            Machine::new(),
            ScriptedHost::new(mappings),
            features,
            config,
        )
    }
}

impl<F: Format> Vm<F> {
    pub(crate) fn on(
        machine: Machine,
        host: ScriptedHost,
        features: F::Features,
        config: Config,
    ) -> Self {
        let memory = GuestMemory::new(host.clone(), machine.clone(), features, config).unwrap();
        Self {
            memory,
            host,
            machine,
        }
    }

    pub(crate) fn access(&self, gpa: u64, access: Access) -> Outcome {
        fault(&mut self.memory.vcpu(), gpa, access)
    }

    pub(crate) fn read(&self, gpa: u64) -> Outcome {
        self.access(gpa, Access::Read)
    }

    pub(crate) fn write(&self, gpa: u64) -> Outcome {
        self.access(gpa, Access::Write)
    }

    /// What the host physical address of `gpa` is, and whether the guest may write there.
    pub(crate) fn sees(&self, gpa: u64) -> Option<(u64, bool)> {
        let found = self.memory.translate(Gpa::new(gpa))?;
        Some((found.hpa.raw(), found.attributes.permissions.write))
    }

    pub(crate) fn memory_type(&self, gpa: u64) -> Option<MemoryType> {
        let found = self.memory.translate(Gpa::new(gpa))?;
        Some(found.attributes.memory)
    }

    /// Size of the leaf around `gpa`, or of the run that it is one of; 0 if there is none.
    pub(crate) fn leaf_bytes(&self, gpa: u64) -> u64 {
        let geometry = self.memory.table().geometry();
        let Some(found) = self.memory.translate(Gpa::new(gpa)) else {
            return 0;
        };
        let run = geometry.run_bytes(found.level);
        let run = run.filter(|_| found.attributes.contiguous);
        run.unwrap_or(geometry.entry_bytes(found.level))
    }

    pub(crate) fn leaves(&self) -> Vec<Leaf> {
        let table = self.memory.table();
        let mut leaves = Vec::new();
        table.for_each_leaf(
            &gpa_range(0, 1 << table.geometry().address_bits()),
            |range, _| {
                leaves.push(range);
            },
        );
        let describe = |range: GpaRange| {
            let found = self.memory.translate(range.start()).unwrap();
            let permissions = found.attributes.permissions;
            Leaf {
                gpa: range.start().raw(),
                bytes: range.bytes(),
                hpa: found.hpa.raw(),
                write: permissions.write,
                execute: permissions.allow(Access::Execute),
            }
        };
        leaves.into_iter().map(describe).collect()
    }

    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.leaves().iter().map(|leaf| leaf.bytes).sum()
    }

    pub(crate) fn state(&self) -> State {
        State {
            slots: self.memory.slots().slots().to_vec(),
            leaves: self.leaves(),
            tables: self.memory.stats().tables,
            live_tables: self.machine.live_tables(),
        }
    }

    /// Whether an invalidation of `range` finds a slot. Takes away what is mapped there.
    pub(crate) fn is_found(&self, range: HvaRange) -> bool {
        let before = self.memory.stats().invalidations_hit;
        self.memory.end(self.memory.begin(range));
        self.memory.stats().invalidations_hit != before
    }

    /// A change by the host, announced as the contract demands.
    pub(crate) fn host_changes(&self, range: HvaRange, change: impl FnOnce(&ScriptedHost)) {
        let invalidation = self.memory.invalidate(range);
        change(&self.host);
        drop(invalidation);
    }

    /// Ends the VM; every table must come back.
    pub(crate) fn end(self) {
        drop(self.memory);
        assert_eq!(self.machine.live_tables(), 0, "tables were lost");
    }
}

pub(crate) fn fault<F: Format>(vcpu: &mut TestVcpu<'_, F>, gpa: u64, access: Access) -> Outcome {
    let gpa = Gpa::new(gpa);
    vcpu.fault(Fault { gpa, access }).unwrap()
}

pub(crate) fn is_mapped(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Mapped { .. })
}

/// What cannot be encoded of the leaf for a read of `gpa`.
pub(crate) fn unencodable<F: Format>(vm: &Vm<F>, gpa: u64) -> EncodeError {
    let (gpa, access) = (Gpa::new(gpa), Access::Read);
    match vm.memory.vcpu().fault(Fault { gpa, access }) {
        Err(FaultError::Unencodable(LeavesError::Encode(cause))) => cause,
        other => panic!("{other:?}"),
    }
}
