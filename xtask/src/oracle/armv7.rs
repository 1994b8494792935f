//! Armv7 LPAE stage 2, judged by QEMU.

use core::ops::Range;
use std::process::Command;

use anyhow::Result;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};
use slat_table::attributes::{Attributes, Execute};
use slat_table::format::ByteOrder;
use slat_table::format::armv7::{Armv7, Armv7Features};
use slat_table::geometry::Level;

use super::arm::{asked, fault};
use super::asker::{Asker, Guest, instruction, unmark};
use super::asking::Asking;
use super::attributes;
use super::judge::{
    Check, Drawing, Emulator, Files, Judge, KnownFault, Outcome, Payload, Plan, Question, Reason,
};
use super::placement;
use super::random::Random;
use super::sheet::{Ground, Meets, Sheet};

/// Armv7 in QEMU.
#[derive(Debug)]
pub(crate) struct Armv7Judge;

/// The page with the guest's code, behind the payload and before the script.
const CODE: u64 = 0x4300_0000;

/// Where the script is loaded; `oracles/armv7/src/memory.rs` knows too.
const SCRIPT: u64 = 0x4400_0000;

/// Memory for tables, behind the script.
const TABLES: Range<u64> = 0x5000_0000..0x6000_0000;

/// Memory that the guest may be shown: the rest, as far as a pointer of the payload reaches.
const MEMORY: Range<u64> = 0x8000_0000..0xf000_0000;

const GUEST: Guest = Guest {
    code: |hpa| instruction(call_at(hpa)),
    order: ByteOrder::Little,
    memory: MEMORY,
};

/// Bits of a guest or host physical address.
const ADDRESS_BITS: u8 = 40;

impl Judge for Armv7Judge {
    fn name(&self) -> &'static str {
        "armv7"
    }

    /// The 64-bit emulator has the 32-bit CPUs too, and addresses of 64 bits inside: the other one
    /// loses bits 39:32 of the address in `HPFAR`.
    fn emulator(&self) -> Emulator {
        Emulator {
            program: "qemu-system-aarch64",
            packages: &["qemu-system-arm"],
        }
    }

    fn payload(&self) -> Payload {
        Payload {
            package: "slat-oracle-armv7",
            target: "armv7a-none-eabi",
        }
    }

    fn machine(&self, plan: &Plan, files: &Files<'_>) -> Result<Command> {
        let mut command = Command::new(files.emulator);
        let bytes = MEMORY.end - 0x4000_0000;
        command
            .args(["-machine", "virt,virtualization=on"])
            .args(["-cpu", plan.cpu])
            .args(["-m", &format!("{bytes}B")])
            .args(["-display", "none", "-monitor", "none", "-nic", "none"])
            .args(["-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(files.payload);
        files.load_script(&mut command, SCRIPT);
        Ok(command)
    }

    fn plans(&self, drawing: &Drawing) -> Result<Vec<Plan>> {
        let mut asking = Asking::default();
        let mut random = Random::new(drawing.seed);
        let widths = 32..=ADDRESS_BITS;
        let wanted = drawing.checks.div_ceil(widths.len());
        for address_bits in widths {
            ask(address_bits, drawing, wanted, &mut random, &mut asking)?;
        }
        Ok(vec![asking.into_plan("cortex-a15")])
    }

    fn bits(&self) -> &'static [u32] {
        // The type of an entry and its validity, memory type, permissions, access flag, address,
        // XN. Not: shareability (9:8) and the contiguous hint (52), which change nothing that one
        // CPU sees, and bits for software.
        &[
            0, 1, 2, 3, 4, 5, 6, 7, 10, 12, 13, 15, 16, 20, 21, 25, 29, 30, 35, 39, 54,
        ]
    }

    fn seen(&self, question: &Question, answer: &Answer) -> Outcome {
        match (question, *answer) {
            (Question::Memory(_), Answer::Completed([word, ..])) => Outcome::Word(word),
            (Question::Access(probe), Answer::Completed([par, ..])) => asked(probe, par),
            (Question::Access(probe), Answer::Trapped(registers)) => {
                trapped(probe, registers).unwrap_or(Outcome::Unexpected(*answer))
            }
            (Question::Memory(_), Answer::Trapped(_)) => Outcome::Unexpected(*answer),
        }
    }

    fn known_fault(&self, _: &Check, _: &Outcome) -> Option<&'static KnownFault> {
        None
    }
}

/// What a trap means: `HSR`, `HPFAR`, the virtual address that faulted, and what was loaded
/// (B3.13).
fn trapped(probe: &Probe, [syndrome, page, address, loaded]: [u64; 4]) -> Option<Outcome> {
    const CALL: u64 = 0x12;
    const PREFETCH_ABORT: u64 = 0x20;
    const DATA_ABORT: u64 = 0x24;
    let reached = |hpa| Outcome::Reached { hpa, memory: None };
    let number = syndrome & 0xffff;
    match (syndrome >> 26 & 0x3f, probe.access) {
        (CALL, Access::Execute) if number & 1 != 0 => Some(Outcome::Executed(number)),
        (CALL, Access::Read) if number == 0 => Some(reached(Some(unmark(loaded)))),
        (CALL, Access::Write) if number == 0 => Some(reached(None)),
        (PREFETCH_ABORT, Access::Execute) | (DATA_ABORT, Access::Read | Access::Write) => {
            let status = syndrome & 0x3f;
            let permission = status >> 2 == 0b0011;
            // HPFAR is not valid for permission faults. The guest's own table shows the GiB that
            // was asked about, so the virtual address has the lower 30 bits.
            let gpa = if permission {
                let offset = (1 << 30) - 1;
                probe.gpa & !offset | address & offset
            } else {
                (page & 0xffff_fff0) << 8 | address & 0xfff
            };
            fault(status, Some(gpa))
        }
        _ => None,
    }
}

/// `HVC` with an odd number that says, well enough, where it is.
fn call_at(hpa: u64) -> (u32, u64) {
    let number = (hpa >> 2 ^ hpa >> 15 ^ hpa >> 27) & 0xffff | 1;
    let instruction = 0xe140_0070 | (number >> 4) << 8 | number & 0xf;
    (
        u32::try_from(instruction).expect("an instruction of 32 bits"),
        number,
    )
}

/// The VM's number.
const VMID: u16 = 0x34;

/// Draws tables and asks about them.
fn ask(
    address_bits: u8,
    drawing: &Drawing,
    wanted: usize,
    random: &mut Random,
    asking: &mut Asking,
) -> Result<()> {
    let ground = Ground {
        memory: MEMORY,
        far_bits: Some(ADDRESS_BITS),
        tables: TABLES,
        code_hpa: CODE,
    };
    let mut sheet = Sheet::<Armv7>::new(Armv7Features, address_bits, &ground.tables)?;
    let attributes = attributes::drawn(random);
    let code_gpa = placement::draw(&mut sheet, &ground, &attributes, random)?;
    sheet.write(asking.script(), code_gpa, drawing.flip)?;
    let root = sheet.table().root(VMID)?;
    let second_stage = 1;
    let regime = Regime {
        registers: [root.vttbr, root.vtcr.into(), second_stage, 0],
        code_gpa,
        code_hpa: CODE,
    };
    asking.enter(&format!("Armv7 LPAE, {address_bits} bits"), regime);
    let addresses = placement::addresses(&sheet, wanted.div_ceil(2), random);
    let mut asker = Asker::new(&sheet, asking, GUEST, drawing.flip.is_none());
    for gpa in addresses {
        if gpa >> ADDRESS_BITS != 0 {
            // The guest's own tables cannot say it.
            continue;
        }
        let mut probe = Probe {
            gpa,
            access: *random.pick(&[Access::Read, Access::Write]),
            who: *random.pick(&[Who::Kernel, Who::User]),
            means: Means::Question,
        };
        let meets = asker.sheet.meets(gpa)?;
        asker.question(probe, &meets, expected(&meets, &probe));
        probe.means = Means::Guest;
        probe.gpa &= !7;
        probe.access = *random.pick(&[Access::Read, Access::Write, Access::Execute]);
        if probe.access == Access::Execute {
            // Only the guest's kernel has an instruction that ends its run.
            probe.who = Who::Kernel;
        }
        let meets = asker.sheet.meets(probe.gpa)?;
        asker.access(probe, &meets, expected(&meets, &probe))?;
    }
    Ok(())
}

/// What must come of an access (B3.6 and B3.7), with the access flag before permissions. Kernel
/// and programs of the guest are treated alike.
fn expected(meets: &Meets, probe: &Probe) -> Outcome {
    let fault = |reason, level: Level| Outcome::Fault {
        reason,
        // PAR does not tell.
        gpa: (probe.means != Means::Question).then_some(probe.gpa),
        level: u8::try_from(level.index()).ok(),
    };
    match *meets {
        // Level 1 in the manual's count, whatever level the walk would begin at.
        Meets::Beyond => fault(Reason::NotMapped, Level::new(2)),
        Meets::Nothing(level) => fault(Reason::NotMapped, level),
        Meets::Leaf {
            level, attributes, ..
        } if !attributes.accessed => fault(Reason::NotAccessed, level),
        Meets::Leaf {
            level, attributes, ..
        } if !allows(attributes, probe.access) => fault(Reason::NotAllowed, level),
        Meets::Leaf {
            hpa, attributes, ..
        } => {
            let asked = probe.means == Means::Question;
            Outcome::Reached {
                hpa: asked.then_some(hpa),
                memory: asked.then_some(attributes.memory),
            }
        }
    }
}

/// Whether a leaf allows an access: what cannot be read cannot be executed (B3.7).
fn allows(attributes: Attributes, access: Access) -> bool {
    let permissions = attributes.permissions;
    match access {
        Access::Read => permissions.read,
        Access::Write => permissions.write,
        Access::Execute => permissions.read && permissions.execute == Execute::Always,
    }
}
