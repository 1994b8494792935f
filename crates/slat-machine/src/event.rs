//! What happens on the machine, as values: the vocabulary of the judge and of traces.
//!
//! A [`Record`] is one event with the CPU that caused it and its place in the run. The machine
//! hands every record to a [`Witness`](crate::machine::Witness); a trace is a list of them. Three
//! kinds of witness statements are mixed: what the *hypervisor's CPU* did (writes, barriers,
//! invalidations, locks), what the *hardware* did on behalf of a guest (walks, cached translations,
//! accesses), and what the *host* said (answers, notices, frames, slots), which is what the guest
//! is allowed at any moment.

use serde::{Deserialize, Serialize};

use crate::address::{Gpa, Hpa, Hva, hexadecimal};
use crate::{arm64, armv7, ept, npt, power, riscv, s390};

/// A CPU, counted from 0.
pub type Cpu = u8;

/// A VM: on Arm, its VMID.
pub type Vm = u16;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How many events came before it.
    pub step: u64,
    /// The CPU that caused it.
    pub cpu: Cpu,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// How an entry was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteKind {
    /// A store that later stores may overtake.
    Plain,
    /// A store with release ordering.
    Release,
    /// An atomic read and write: a swap or a compare-exchange that succeeded, with acquire and
    /// release ordering.
    Exchange,
    /// The hardware walker set an accessed or dirty bit.
    Hardware,
}

/// What an access of the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// The registers that point a CPU to a VM's tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Registers {
    /// Arm VMSAv8-64.
    Arm64(arm64::Registers),
    /// Armv7 LPAE stage 2.
    Armv7(armv7::Registers),
    /// Intel EPT.
    Ept(ept::Registers),
    /// AMD nested paging.
    Npt(npt::Registers),
    /// POWER9 radix tables, partition-scoped.
    Power(power::Registers),
    /// RISC-V G-stage.
    RiscV(riscv::Registers),
    /// s390 DAT tables.
    S390(s390::Registers),
}

/// A barrier or an invalidation instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Instruction {
    /// Arm VMSAv8-64.
    Arm64(arm64::Instruction),
    /// Armv7 LPAE stage 2.
    Armv7(armv7::Instruction),
    /// Intel EPT.
    Ept(ept::Instruction),
    /// AMD nested paging.
    Npt(npt::Instruction),
    /// POWER9 radix tables, partition-scoped.
    Power(power::Instruction),
    /// RISC-V G-stage.
    RiscV(riscv::Instruction),
    /// s390 DAT tables.
    S390(s390::Instruction),
}

/// A slot of guest memory, as the VMM knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number.
    pub id: u32,
    /// Its first guest physical address.
    pub gpa: Gpa,
    /// Its size in bytes.
    #[serde(with = "hexadecimal")]
    pub bytes: u64,
    /// The host virtual address behind its first byte.
    pub hva: Hva,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    // The hypervisor's CPU.
    /// The CPU was pointed to a VM's tables.
    Registers {
        /// The VM.
        vm: Vm,
        /// What was written.
        registers: Registers,
    },
    /// The VM is no more: no CPU points to its tables from here on, it has no slots, and the host
    /// grants it nothing. What CPUs still hold of its translations stays until it is invalidated.
    VmEnded {
        /// The VM.
        vm: Vm,
    },
    /// Memory became a table, filled with zeros that every walker can see.
    TableAllocated {
        /// Its first byte.
        table: Hpa,
        /// Its size.
        #[serde(with = "hexadecimal")]
        bytes: u64,
    },
    /// A table's memory was given back: anybody may have it next.
    TableFreed {
        /// Its first byte.
        table: Hpa,
        /// Its size.
        #[serde(with = "hexadecimal")]
        bytes: u64,
    },
    /// An entry was written.
    Write {
        /// Where.
        entry: Hpa,
        /// What is there now.
        #[serde(with = "hexadecimal")]
        value: u64,
        /// By which kind of write.
        kind: WriteKind,
    },
    /// A barrier or invalidation was executed, with the registers pointing to `vm`.
    Instruction {
        /// The VM that it concerns.
        vm: Vm,
        /// Which.
        instruction: Instruction,
    },
    /// A lock was taken: what its last holder did is seen from now on.
    Locked {
        /// Which.
        lock: u64,
    },
    /// A lock was let go.
    Unlocked {
        /// Which.
        lock: u64,
    },

    // The host.
    /// Memory was given to somebody: a frame for a guest's page.
    FrameAllocated {
        /// Its first byte.
        frame: Hpa,
        /// Its size.
        #[serde(with = "hexadecimal")]
        bytes: u64,
    },
    /// A frame was given back: anybody may have it next.
    FrameFreed {
        /// Its first byte.
        frame: Hpa,
        /// Its size.
        #[serde(with = "hexadecimal")]
        bytes: u64,
    },
    /// The host said what is behind host virtual addresses. That counts until a notice that covers
    /// it has begun ([`NoticeBegun`](Self::NoticeBegun), not
    /// [`NoticeBeginning`](Self::NoticeBeginning)), even if it is said while the notifier is at
    /// work. What is said between [`NoticeBegun`](Self::NoticeBegun) and
    /// [`NoticeEnded`](Self::NoticeEnded) counts for nothing.
    Answered {
        /// The VM that asked.
        vm: Vm,
        /// The first byte.
        hva: Hva,
        /// How many.
        #[serde(with = "hexadecimal")]
        bytes: u64,
        /// What is behind the first byte.
        hpa: Hpa,
        /// Whether the guest may write.
        writable: bool,
        /// Whether it is a device's memory.
        device: bool,
    },
    /// The host is about to change something and tells a VM's notifier.
    NoticeBeginning {
        /// Which notice, never the same again.
        notice: u64,
        /// The VM told.
        vm: Vm,
        /// The first byte.
        hva: Hva,
        /// How many.
        #[serde(with = "hexadecimal")]
        bytes: u64,
    },
    /// The notifier has returned: from here on the guest reaches none of it.
    NoticeBegun {
        /// Which notice.
        notice: u64,
    },
    /// The host has made its change.
    NoticeEnded {
        /// Which notice.
        notice: u64,
    },
    /// The VMM asked for a change of slots.
    SlotsChanging {
        /// Which change, never the same again.
        change: u64,
        /// The VM.
        vm: Vm,
        /// The slots to be deleted.
        remove: Vec<u32>,
        /// The slots to be created.
        add: Vec<Slot>,
    },
    /// The change of slots returned.
    SlotsChanged {
        /// Which change.
        change: u64,
        /// Whether it was done; if not, nothing may have changed.
        done: bool,
    },

    // The hardware.
    /// A CPU cached a translation, or a pointer to a table.
    Cached {
        /// The VM.
        vm: Vm,
        /// The first guest physical address it translates.
        gpa: Gpa,
        /// How many bytes it translates.
        #[serde(with = "hexadecimal")]
        bytes: u64,
        /// The entry that it was read from last.
        entry: Hpa,
        /// What was read there.
        #[serde(with = "hexadecimal")]
        value: u64,
        /// Whether it was combined with the guest's own translation.
        combined: bool,
    },
    /// The guest reached memory.
    Accessed {
        /// The VM.
        vm: Vm,
        /// Where it meant.
        gpa: Gpa,
        /// What it did.
        kind: AccessKind,
        /// Where it got.
        hpa: Hpa,
        /// Whether through a translation cached before (rather than by a walk just now).
        cached: bool,
    },
    /// The guest's access was not translated.
    Faulted {
        /// The VM.
        vm: Vm,
        /// Where.
        gpa: Gpa,
        /// What it was doing.
        kind: AccessKind,
    },
}
