//! What a run of the rig does: the host's mappings, the guest's slots, who accesses what, and what
//! the host changes meanwhile. Plain values, made by a scenario file or by a test.

use std::sync::Arc;

use serde::Deserialize;

/// Everything about a run but its seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Width of a guest physical address in bits.
    pub address_bits: u8,
    /// What the guest's CPUs have.
    pub features: Features,
    /// CPUs that run the guest.
    pub guest_cpus: u8,
    /// CPUs that run the host's own work: churn and changes of slots.
    pub host_cpus: u8,
    /// The machine's RAM in bytes, a multiple of 2 MiB. Frames and tables come from it.
    pub ram: u64,
    /// The host's mappings.
    pub mappings: Vec<Mapping>,
    /// The slots that there are from the start.
    pub slots: Vec<Slot>,
    /// What the guest touches first, in this order, before random accesses begin.
    pub boot: Vec<Touch>,
    /// The run ends after so many steps of the machine.
    pub steps: u64,
    /// What the host changes meanwhile.
    pub churn: Churn,
}

/// What of the architecture the CPUs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The hardware sets accessed bits.
    pub hardware_accessed: bool,
    /// The hardware sets dirty bits.
    pub hardware_dirty: bool,
    /// Memory types are forced on the guest (Arm: `FEAT_S2FWB`).
    pub force_write_back: bool,
}

/// A mapping of the host.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// For people.
    pub name: String,
    /// First host virtual address, a multiple of 4 KiB.
    pub hva: u64,
    /// Size in bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Whether the host may write through it.
    pub writable: bool,
    /// What is behind it.
    pub backing: Backing,
}

/// What is behind a mapping.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "what a host memory manager has")]
pub enum Backing {
    /// Memory that starts as zeros.
    Anonymous,
    /// Contents that are copied when they are touched.
    Image(Arc<[u8]>),
    /// A device's memory from this host physical address on, there all the time.
    Device {
        /// First host physical address.
        hpa: u64,
    },
    /// A device's memory that its driver may take away at any moment.
    Revocable {
        /// First host physical address.
        hpa: u64,
    },
}

/// A slot of guest memory.
#[derive(Clone, Debug)]
pub struct Slot {
    /// For people.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// First guest physical address.
    pub gpa: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Host virtual address behind the first byte. Nothing need be mapped there.
    pub hva: u64,
    /// The guest may not write.
    pub read_only: bool,
    /// Mapped on fault only, even where it could be mapped at creation.
    pub on_fault: bool,
    /// How often random accesses of the guest go here, relative to the other slots; 0 is never.
    pub weight: u32,
    /// Whether the host may delete it and create it again during the run.
    pub replaceable: bool,
}

/// Accesses of one guest CPU to a range.
#[derive(Clone, Debug)]
pub struct Touch {
    /// Which of the guest's CPUs.
    pub cpu: u8,
    /// First guest physical address.
    pub gpa: u64,
    /// Bytes from there.
    pub bytes: u64,
    /// Bytes from one access to the next.
    pub stride: u64,
    /// What the accesses do.
    pub kind: crate::event::AccessKind,
}

/// How often the host does what, relative to each other; 0 is never. All zero: no churn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Churn {
    /// Moves a page or a 2 MiB frame to another frame.
    pub migrate: u32,
    /// Gives a range's memory back; it reads as zeros again.
    pub discard: u32,
    /// Makes a range read-only for a while.
    pub protect: u32,
    /// Splits a 2 MiB frame into pages.
    pub split: u32,
    /// Unmaps a range and maps it again.
    pub remap: u32,
    /// Revokes a device and restores it.
    pub revoke: u32,
    /// Asks which pages were used.
    pub age: u32,
    /// Brings memory ahead of its use.
    pub populate: u32,
    /// Deletes slots and creates them again, elsewhere or over other memory.
    pub slots: u32,
}

#[cfg(test)]
impl Plan {
    /// A plan of these mappings, on which nothing runs.
    pub(crate) fn of_mappings(mappings: Vec<Mapping>) -> Self {
        Self {
            address_bits: 40,
            features: Features {
                hardware_accessed: false,
                hardware_dirty: false,
                force_write_back: true,
            },
            guest_cpus: 1,
            host_cpus: 1,
            ram: 2 << 20,
            mappings,
            slots: Vec::new(),
            boot: Vec::new(),
            steps: 0,
            churn: Churn::default(),
        }
    }
}
