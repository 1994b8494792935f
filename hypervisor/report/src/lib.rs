//! The memory report: what the hypervisor tells about a guest's memory once the guest has stopped.
//!
//! The hypervisor fills in a [`Report`] and sends it out as one line of JSON; `cargo xtask boot`
//! reads it back, prints it, and passes it on with `--json`. `slat run` fills one in for its
//! modelled machine. All sides use the types here, so a field cannot mean two things. Nothing is
//! interpreted: the report carries counts and addresses, and whoever reads it decides whether they
//! are good.
//!
//! Sizes are in bytes unless a name says otherwise. `gpa` is a guest-physical address (Arm: IPA),
//! `hpa` a host-physical one. Times are ticks of the architecture's system counter; divide by
//! [`Times::counter_hz`] for seconds.
//!
//! With the feature `text`, [`text::Text`] prints a report for people.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod blocks;

pub mod size;
#[cfg(feature = "text")]
pub mod text;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

pub use blocks::Blocks;

use serde::{Deserialize, Serialize};

/// Everything the hypervisor knows about one run of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Size of the guest's RAM in bytes, as asked for on the command line.
    pub guest_memory: u64,
    /// The seed of the churn, `None` when churn was off.
    pub seed: Option<u64>,
    /// When device regions are mapped.
    pub mmio: Mapped,
    /// When RAM is mapped.
    pub ram: Mapped,
    /// How the run ended.
    pub outcome: Outcome,
    /// The guest's regions in order of guest address.
    pub regions: Vec<Region>,
    /// Stage-2 faults of the whole guest.
    pub faults: Faults,
    /// Exits from the guest to EL2 by reason (`data abort`, `psci version`, `timer`, ...).
    pub exits: BTreeMap<String, u64>,
    /// The memory that the stage-2 tables take at the end of the run.
    pub tables: Tables,
    /// TLB maintenance that the stage-2 tables asked for.
    pub flushes: Flushes,
    /// Calls that the host's memory manager made into guest memory.
    pub notifiers: Notifiers,
    /// Where the time went.
    pub times: Times,
    /// What the host changed under the running guest, `None` when churn was off.
    pub churn: Option<Churn>,
    /// The modelled machine that the guest ran on, `None` on an emulated or real one.
    #[serde(default)]
    pub model: Option<Model>,
}

/// When a region's memory is mapped into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(
    clippy::exhaustive_enums,
    reason = "creation and fault are the two moments there are"
)]
pub enum Mapped {
    /// When the region is created, as far as the host can translate it without doing anything.
    Create,
    /// When the guest first touches it.
    Fault,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// The guest powered itself off (PSCI `SYSTEM_OFF`): the only good end.
    Off,
    /// The guest reset itself (PSCI `SYSTEM_RESET`), which is what a Linux panic ends in.
    Reset,
    /// The hypervisor stopped the run; the text says why.
    Failed(String),
}

/// One region of the guest's physical address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// What lies there: `ram`, `uart`, `gicd`, `pci window`, ...
    pub name: String,
    /// What backs it.
    pub kind: Kind,
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Host-physical address behind the first byte at the end of the run; `None` when the guest
    /// never caused the first page to be mapped.
    pub hpa: Option<u64>,
    /// Size in bytes.
    pub size: u64,
    /// When the region was asked to be mapped.
    pub mapped: Mapped,
    /// Bytes that were mapped when the region was created.
    pub mapped_at_creation: u64,
    /// Bytes mapped at the end of the run.
    pub mapped_bytes: u64,
    /// Leaves at the end of the run, by block size.
    pub blocks: Blocks,
    /// Why the region was not mapped, or not in larger blocks, when it was created. One sentence
    /// for each reason, with the number of bytes it concerns; empty if there is nothing to explain.
    pub why_not_larger: Vec<String>,
    /// Stage-2 faults that the guest took in this region.
    pub faults: u64,
}

/// What backs a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// Anonymous memory of the host.
    Ram,
    /// A device, linearly mapped.
    Device,
    /// A device whose driver may revoke the mapping and gives its pages one fault at a time.
    Revocable,
    /// Contents that are copied when they are touched, and that the guest may not write.
    Rom,
    /// Nothing: the host maps nothing there.
    Hole,
}

/// Stage-2 faults taken by the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Translation faults that mapped RAM.
    pub ram: u64,
    /// Translation faults that mapped device memory.
    pub mmio: u64,
    /// Permission faults, in either.
    pub permission: u64,
    /// Access-flag faults, in either.
    pub access_flag: u64,
    /// Faults that found the translation already there.
    pub spurious: u64,
    /// Faults that met a change under way and were taken again.
    pub retried: u64,
    /// Aborts at addresses in no region, which the guest got back as external aborts.
    pub injected: u64,
    /// Frames that the loader put the kernel, its initramfs and its device tree into before the
    /// guest ran. These are no faults and are in none of the other counts.
    pub populated_by_loader: u64,
    /// The leaves that faults made, by block size.
    pub by_size: Blocks,
}

/// Memory of the stage-2 tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// 4 KiB table pages in use, the root's included.
    pub pages: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// The least that the format allows for the leaves that are there, in bytes.
    pub minimum_bytes: u64,
}

/// TLB maintenance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushes {
    /// Broadcast flushes of ranges of guest addresses.
    pub ranges: u64,
    /// Pages or blocks invalidated by those.
    pub entries: u64,
    /// Broadcast flushes of everything the VM has.
    pub all: u64,
    /// Flushes of the running CPU alone.
    pub local: u64,
}

/// Calls from the host's memory manager into guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notifiers {
    /// Invalidations begun (and ended).
    pub invalidations: u64,
    /// Those that found something to take out of the tables.
    pub hits: u64,
}

/// Ticks of the system counter (`CNTPCT_EL0`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Ticks in a second.
    pub counter_hz: u64,
    /// The counter when the guest was entered first. The guest reads the same counter (its
    /// virtual offset is zero), so a marker that the guest prints can be set against this.
    pub entry: u64,
    /// The counter when the guest stopped.
    pub stop: u64,
    /// Ticks spent in EL2 between the two.
    pub el2: u64,
    /// From entry to stop in nanoseconds.
    pub guest_ns: u64,
    /// Share of the time from entry to stop that was spent in EL2, in hundredths of a percent.
    pub el2_share_bp: u64,
}

/// A run on the modelled machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The seed from which every choice of the machine, the guest and the host comes.
    pub seed: u64,
    /// CPUs that run the guest.
    pub guest_cpus: u8,
    /// CPUs that run the host's own work.
    pub host_cpus: u8,
    /// Transitions of the machine.
    pub steps: u64,
    /// Accesses that the guest made.
    pub accesses: u64,
}

/// What the host changed under the running guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Churn {
    /// Changes made, by kind.
    pub changes: BTreeMap<String, u64>,
    /// All changes made: the sum of [`Self::changes`].
    pub total: u64,
    /// Those of them that moved a whole 2 MiB frame.
    pub migrations_2m: u64,
    /// Changes that were drawn and could not be made (nothing mapped there, no frame free).
    pub skipped: u64,
    /// Ticks of the churn timer that passed without a change, because EL2 had used up its share
    /// of the time.
    pub throttled: u64,
    /// Free 4 KiB frames of the host before the guest's memory was created.
    pub frames_before: u64,
    /// The same after it was torn down. Fewer than before means that frames were lost.
    pub frames_after: u64,
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;
    use alloc::vec;

    use super::*;

    fn sample() -> Report {
        Report {
            guest_memory: 512 << 20,
            seed: Some(7),
            mmio: Mapped::Create,
            ram: Mapped::Fault,
            outcome: Outcome::Failed("lost frames".to_string()),
            regions: vec![Region {
                name: "uart".to_string(),
                kind: Kind::Device,
                gpa: 0x900_0000,
                hpa: Some(0x900_0000),
                size: 0x1000,
                mapped: Mapped::Create,
                mapped_at_creation: 0x1000,
                mapped_bytes: 0x1000,
                blocks: [(4096, 1)].into_iter().collect(),
                why_not_larger: vec!["the region is smaller than 2 MiB (4096 bytes)".to_string()],
                faults: 0,
            }],
            faults: Faults {
                ram: 15,
                ..Faults::default()
            },
            exits: BTreeMap::from([("data abort".to_string(), 15)]),
            tables: Tables {
                pages: 7,
                bytes: 28672,
                minimum_bytes: 28672,
            },
            flushes: Flushes::default(),
            notifiers: Notifiers::default(),
            times: Times {
                counter_hz: 62_500_000,
                ..Times::default()
            },
            churn: Some(Churn::default()),
            model: Some(Model::default()),
        }
    }

    #[test]
    fn json_round_trip_keeps_every_field() {
        let report = sample();
        let line = serde_json::to_string(&report).expect("a report is plain data");
        assert!(!line.contains('\n'), "one report is one line");
        assert_eq!(
            serde_json::from_str::<Report>(&line).expect("own output"),
            report
        );
    }

    #[test]
    fn field_names_are_those_documented_for_users() {
        let json: serde_json::Value =
            serde_json::from_str(&serde_json::to_string(&sample()).expect("plain data"))
                .expect("own output");
        let region = &json["regions"][0];
        for name in ["name", "kind", "gpa", "hpa", "size", "mapped", "faults"] {
            assert!(!region[name].is_null(), "region has no `{name}`");
        }
        assert_eq!(region["kind"], "device");
        assert_eq!(region["mapped"], "create");
        assert_eq!(region["blocks"]["4K"], 1);
        assert_eq!(json["outcome"]["failed"], "lost frames");
    }
}
