//! From our records to casemate's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use crate::address::Hpa;
use crate::arm64;
use crate::event::{Cpu, Event, Instruction, Record, Registers, Vm, WriteKind};

/// How many CPUs the checker knows, unless it is built for more.
const CPUS: Cpu = 4;
const PAGE: u64 = 0x1000;
/// Sixteen tables side by side are the largest root (D8.2.3).
const LARGEST_TABLE: u64 = 16 * PAGE;
/// The output address of a descriptor with the 4 KiB granule (DDI 0487, D8.3.1).
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Valid, and a table or page.
const TABLE: u64 = 0b11;
/// `VTCR_EL2.HA` and `HD`: the checker is told of no write by hardware.
const HARDWARE_UPDATES: u64 = 0b11 << 21;
/// A name for the lock that the checker wants every root to have; no address of memory.
const ROOT_LOCK: u64 = 8;

/// Why records cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// An architecture that the checker does not know.
    #[error("step {step}: not Arm VMSAv8-64, which is all that the checker knows")]
    Architecture {
        /// The record.
        step: u64,
    },
    /// A CPU beyond those that the checker has.
    #[error("step {step}: CPU {cpu}, and the checker has {CPUS}")]
    Cpu {
        /// The record.
        step: u64,
        /// Its CPU.
        cpu: Cpu,
    },
    /// A VMID that the checker uses itself.
    #[error("step {step}: VM {vm}, a number that the checker uses itself")]
    Vm {
        /// The record.
        step: u64,
        /// The VM.
        vm: Vm,
    },
    /// A root of several tables side by side, or a width the checker does not start a walk for.
    #[error("step {step}: {bits} guest address bits need a root of several tables")]
    Root {
        /// The record.
        step: u64,
        /// The width of a guest physical address.
        bits: u64,
    },
    /// Table memory that is not whole pages, or far too much.
    #[error("step {step}: a table of {bytes:#x} bytes is not whole pages, or far too large")]
    Size {
        /// The record.
        step: u64,
        /// The size.
        bytes: u64,
    },
    /// An instruction that the checker does not know.
    #[error("step {step}: the checker does not know {instruction:?}")]
    Instruction {
        /// The record.
        step: u64,
        /// The instruction.
        instruction: arm64::Instruction,
    },
    /// It could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes `records` in casemate's format to `to`, up to the first end of a VM: the checker knows
/// of none.
///
/// # Errors
///
/// [`ExportError`]: what the checker cannot be told.
pub fn export<'r>(
    records: impl IntoIterator<Item = &'r Record>,
    to: impl Write,
) -> Result<(), ExportError> {
    let mut exporter = Exporter {
        to,
        written: 0,
        roots: BTreeMap::new(),
        current: BTreeMap::new(),
        shapes: BTreeMap::new(),
        owners: BTreeMap::new(),
        waiting: BTreeMap::new(),
        tables: BTreeSet::new(),
    };
    for record in records {
        if matches!(record.event, Event::VmEnded { .. }) {
            break;
        }
        exporter.export(record)?;
    }
    Ok(exporter.to.flush()?)
}

struct Exporter<W> {
    to: W,
    /// Records written.
    written: u64,
    roots: BTreeMap<Vm, arm64::Registers>,
    /// Which VM's registers each CPU has.
    current: BTreeMap<Cpu, Vm>,
    /// What each CPU's `VTCR_EL2` holds.
    shapes: BTreeMap<Cpu, u64>,
    /// The root of each page that the checker was told one of.
    owners: BTreeMap<u64, u64>,
    /// Pages linked in a page that has no owner yet.
    waiting: BTreeMap<u64, Vec<u64>>,
    /// Every page of every table.
    tables: BTreeSet<u64>,
}

impl<W: Write> Exporter<W> {
    fn line(&mut self, record: &Record, head: &str, fields: &str) -> Result<(), ExportError> {
        let Record { step, cpu, .. } = record;
        let id = self.written;
        writeln!(
            self.to,
            "({head} (id {id}) (tid {cpu}) {fields} (src \"slat:{step}\"))"
        )?;
        self.written += 1;
        Ok(())
    }

    fn export(&mut self, record: &Record) -> Result<(), ExportError> {
        let (step, cpu) = (record.step, record.cpu);
        let told = matches!(
            record.event,
            Event::Registers { .. }
                | Event::TableAllocated { .. }
                | Event::TableFreed { .. }
                | Event::Write { .. }
                | Event::Instruction { .. }
                | Event::Locked { .. }
                | Event::Unlocked { .. }
        );
        if told && cpu >= CPUS {
            return Err(ExportError::Cpu { step, cpu });
        }
        match &record.event {
            Event::Registers { vm, registers } => self.registers(record, *vm, registers),
            Event::TableAllocated { table, bytes } => {
                self.memory(record, "mem-init", *table, *bytes)
            }
            Event::TableFreed { table, bytes } => self.memory(record, "mem-free", *table, *bytes),
            Event::Write { entry, value, kind } if *kind != WriteKind::Hardware => {
                self.adopt(record, *entry, *value)?;
                let fields = format!("(mem-order release) (address {entry}) (value {value:#x})");
                self.line(record, "mem-write", &fields)
            }
            Event::Instruction { vm, instruction } => {
                let Instruction::Arm64(instruction) = instruction else {
                    return Err(ExportError::Architecture { step });
                };
                self.instruction(record, *vm, instruction)
            }
            Event::Locked { lock } => self.line(record, "lock", &format!("(address {lock:#x})")),
            Event::Unlocked { lock } => {
                self.line(record, "unlock", &format!("(address {lock:#x})"))
            }
            _ => Ok(()),
        }
    }

    fn memory(
        &mut self,
        record: &Record,
        head: &str,
        table: Hpa,
        bytes: u64,
    ) -> Result<(), ExportError> {
        if bytes > LARGEST_TABLE || !bytes.is_multiple_of(PAGE) || !table.0.is_multiple_of(PAGE) {
            let step = record.step;
            return Err(ExportError::Size { step, bytes });
        }
        for index in 0..bytes / PAGE {
            let page = table.0.wrapping_add(index * PAGE);
            self.line(
                record,
                head,
                &format!("(address {page:#x}) (size {PAGE:#x})"),
            )?;
            if head == "mem-init" {
                self.tables.insert(page);
            } else {
                self.tables.remove(&page);
            }
            self.owners.remove(&page);
            self.waiting.remove(&page);
        }
        Ok(())
    }

    fn registers(
        &mut self,
        record: &Record,
        vm: Vm,
        registers: &Registers,
    ) -> Result<(), ExportError> {
        let step = record.step;
        let Registers::Arm64(registers) = registers else {
            return Err(ExportError::Architecture { step });
        };
        if vm == 0 {
            return Err(ExportError::Vm { step, vm });
        }
        let bits = 64 - (registers.vtcr & 0x3f);
        // One table at the root, at the manual's level 0, 1 or 2 (D8.2.3).
        if !matches!(bits, 44..=48 | 35..=39 | 26..=30) {
            return Err(ExportError::Root { step, bits });
        }
        let root = registers.vttbr & ADDRESS;
        if self.roots.insert(vm, *registers) == Some(*registers) {
            return self.switch(record, vm);
        }
        self.shape(record, registers.vtcr)?;
        let lock = ROOT_LOCK + 8 * u64::from(vm);
        let hint = format!("(kind set_root_lock) (location {root:#x}) (value {lock:#x})");
        self.line(record, "hint", &hint)?;
        self.own(record, root, root)?;
        self.switch(record, vm)?;
        // HCR_EL2.VM, and FWB where the trace has it.
        let hcr = 1 | u64::from(registers.force_write_back) << 46;
        self.line(
            record,
            "sysreg-write",
            &format!("(sysreg hcr_el2) (value {hcr:#x})"),
        )
    }

    /// Tells the record's CPU the shape of the tree: the checker walks it from each CPU that ends
    /// an invalidation, by that CPU's own register.
    fn shape(&mut self, record: &Record, vtcr: u64) -> Result<(), ExportError> {
        let vtcr = vtcr & !HARDWARE_UPDATES;
        if self.shapes.insert(record.cpu, vtcr) == Some(vtcr) {
            return Ok(());
        }
        self.line(
            record,
            "sysreg-write",
            &format!("(sysreg vtcr_el2) (value {vtcr:#x})"),
        )
    }

    /// Has the record's CPU point to `vm`.
    fn switch(&mut self, record: &Record, vm: Vm) -> Result<(), ExportError> {
        let Some(&registers) = self.roots.get(&vm) else {
            return Ok(());
        };
        if self.current.insert(record.cpu, vm) == Some(vm) {
            return Ok(());
        }
        self.shape(record, registers.vtcr)?;
        // Rather than the register's own field, which may be narrower, the VM's number.
        let vttbr = u64::from(vm) << 48 | registers.vttbr & ADDRESS;
        self.line(
            record,
            "sysreg-write",
            &format!("(sysreg vttbr_el2) (value {vttbr:#x})"),
        )
    }

    /// The checker wants to know whose a table is before it is linked.
    fn adopt(&mut self, record: &Record, entry: Hpa, value: u64) -> Result<(), ExportError> {
        let child = value & ADDRESS;
        if value & TABLE != TABLE || !self.tables.contains(&child) {
            return Ok(());
        }
        let parent = entry.0 & !(PAGE - 1);
        if let Some(root) = self.owners.get(&parent) {
            return self.own(record, child, *root);
        }
        self.waiting.entry(parent).or_default().push(child);
        Ok(())
    }

    fn own(&mut self, record: &Record, page: u64, root: u64) -> Result<(), ExportError> {
        let mut pages = vec![page];
        while let Some(page) = pages.pop() {
            if self.owners.insert(page, root) == Some(root) {
                continue;
            }
            if page != root {
                let hint = format!("(kind set_owner_root) (location {page:#x}) (value {root:#x})");
                self.line(record, "hint", &hint)?;
            }
            pages.extend(self.waiting.remove(&page).unwrap_or_default());
        }
        Ok(())
    }

    fn instruction(
        &mut self,
        record: &Record,
        vm: Vm,
        instruction: &arm64::Instruction,
    ) -> Result<(), ExportError> {
        use arm64::Instruction as I;
        let (head, fields) = match *instruction {
            I::DsbIsh => ("barrier", "dsb (kind ish)".to_owned()),
            I::DsbIshst => ("barrier", "dsb (kind ishst)".to_owned()),
            I::Isb => ("barrier", "isb".to_owned()),
            I::Ipas2e1is { operand } => ("tlbi", format!("ipas2e1is (value {operand:#x})")),
            I::Vmalle1is => ("tlbi", "vmalle1is".to_owned()),
            I::Vmalls12e1is => ("tlbi", "vmalls12e1is".to_owned()),
            // These reach one CPU, and the checker stops at them.
            I::DsbNsh | I::DsbNshst | I::Ipas2e1 { .. } | I::Vmalle1 | I::Vmalls12e1 => {
                return Ok(());
            }
            I::Ipas2le1is { .. } => {
                let (step, instruction) = (record.step, *instruction);
                return Err(ExportError::Instruction { step, instruction });
            }
        };
        if head == "tlbi" {
            self.switch(record, vm)?;
        }
        self.line(record, head, &fields)
    }
}
