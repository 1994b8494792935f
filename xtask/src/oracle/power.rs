//! POWER radix trees, partition-scoped, judged by QEMU's POWER9.

use std::fs;
use std::process::Command;

use anyhow::Result;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Action, Probe};
use slat_table::format::power::{Page4K, Page64K, PageSize, Power, PowerFeatures, PowerRoot};

use super::asking::Asking;
use super::judge::{
    Check, Drawing, Emulator, Files, Judge, KnownFault, Outcome, Payload, Plan, Question, Reason,
};
use super::sheet::Ground;
use super::survey::{Kind, Subject, completed, one_by_one};
use crate::image;

/// POWER in QEMU.
#[derive(Debug)]
pub(crate) struct PowerJudge;

/// Where the script is loaded; `oracles/power/src/main.rs` knows too.
const SCRIPT: u64 = 0x200_0000;

/// The partition table, and its size: 64 KiB is the smallest, with entries of 16 bytes.
const PARTITIONS: u64 = 0xff0_0000;
const PARTITIONS_SIZE: u64 = 0x1_0000;

/// All the memory there is.
const BYTES: u64 = 0x8000_0000;

impl Judge for PowerJudge {
    fn name(&self) -> &'static str {
        "power"
    }

    fn emulator(&self) -> Emulator {
        Emulator {
            program: "qemu-system-ppc64",
            packages: &["qemu-system-ppc"],
        }
    }

    fn payload(&self) -> Payload {
        Payload {
            package: "slat-oracle-power",
            target: "powerpc64le-unknown-linux-gnu",
        }
    }

    /// The payload is in the place of the firmware, which QEMU loads to address 0.
    fn machine(&self, plan: &Plan, files: &Files<'_>) -> Result<Command> {
        let firmware = files.directory.join("firmware");
        fs::write(&firmware, image::flatten(&fs::read(files.payload)?)?)?;
        let mut command = Command::new(files.emulator);
        command
            .args(["-machine", "powernv9", "-accel", "tcg", "-cpu", plan.cpu])
            .args(["-m", &format!("{BYTES}B"), "-nodefaults"])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
            // The machine complains if it has none.
            .args(["-device", "ipmi-bmc-sim,id=bmc"])
            .args(["-device", "isa-ipmi-bt,bmc=bmc,irq=10"])
            .arg("-bios")
            .arg(firmware);
        files.load_script(&mut command, SCRIPT);
        Ok(command)
    }

    fn ends_by_itself(&self) -> bool {
        false
    }

    fn plans(&self, drawing: &Drawing) -> Result<Vec<Plan>> {
        let half = Drawing {
            checks: drawing.checks.div_ceil(2),
            ..*drawing
        };
        let mut plans = of_pages::<Page4K>(&half)?;
        plans.extend(of_pages::<Page64K>(&half)?);
        Ok(plans)
    }

    fn bits(&self) -> &'static [u32] {
        // Execute, write, read, attributes, addresses, leaf, valid. Reference and change bits are
        // set anyway.
        &[0, 1, 2, 4, 5, 12, 16, 21, 30, 40, 56, 62, 63]
    }

    fn seen(&self, question: &Question, answer: &Answer) -> Outcome {
        match (question, *answer) {
            (Question::Memory(_), Answer::Completed([word, ..])) => Outcome::Word(word),
            (Question::Access(probe), Answer::Completed([r5, ..])) => completed(probe.access, r5),
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

/// A hypervisor storage interrupt (Power ISA 3.0B, book III, 7.5.16 and 7.5.17): HDSISR or HSRR1
/// says why, ASDR which page.
fn trapped(probe: &Probe, [vector, hdsisr, hsrr1, asdr]: [u64; 4]) -> Option<Outcome> {
    const DATA: u64 = 0xe00;
    const INSTRUCTION: u64 = 0xe20;
    const STORE: u64 = 1 << (63 - 38);
    const NO_TRANSLATION: u64 = 1 << (63 - 33);
    const NOT_EXECUTABLE: u64 = 1 << (63 - 35);
    const PROTECTED: u64 = 1 << (63 - 36);
    const UNSUPPORTED: u64 = 1 << (63 - 44);
    let cause = match (vector, probe.access) {
        (DATA, Access::Read) => hdsisr,
        (DATA, Access::Write) if hdsisr & STORE != 0 => hdsisr & !STORE,
        // The other half is the guest's MSR.
        (INSTRUCTION, Access::Execute) => {
            hsrr1 & (NO_TRANSLATION | NOT_EXECUTABLE | PROTECTED | UNSUPPORTED)
        }
        _ => return None,
    };
    let reason = match cause {
        NO_TRANSLATION => Reason::NotMapped,
        PROTECTED | NOT_EXECUTABLE => Reason::NotAllowed,
        UNSUPPORTED => Reason::Misconfigured,
        _ => return None,
    };
    Some(Outcome::Fault {
        reason,
        gpa: Some(asdr & !0xfff | probe.gpa & 0xfff),
        level: None,
    })
}

struct PowerSubject<P>(core::marker::PhantomData<P>);

impl<P: PageSize> Subject for PowerSubject<P> {
    type Format = Power<P>;

    const GROUND: Ground = Ground {
        memory: 0x4000_0000..BYTES,
        far_bits: None,
        tables: 0x1000_0000..0x4000_0000,
        // Behind the payload, before the device tree at 16 MiB.
        code_hpa: 0xf0_0000,
    };

    /// More bits are none of a guest real address.
    const ADDRESS_BITS: u8 = 52;

    fn registers(root: PowerRoot, _: u8, asking: &mut Asking) -> [u64; 4] {
        asking.script().push(&Action::Fill {
            at: PARTITIONS,
            bytes: PARTITIONS_SIZE,
            word: 0,
        });
        let entry = PARTITIONS + 16 * u64::from(root.lpid);
        for (at, doubleword) in [entry, entry + 8].into_iter().zip(root.entry) {
            asking.put(at, doubleword.swap_bytes());
        }
        // PATS: the table has 2 to the (12 + 4) bytes.
        [PARTITIONS | 4, root.lpid.into(), 0, 0]
    }

    /// `lis r5, NUMBER; sc 1`, with a number that says, well enough, where it is.
    fn code(hpa: u64) -> (Vec<u8>, u64) {
        const LIS_R5: u64 = 0x3ca0_0000;
        const SYSTEM_CALL: u64 = 0x4400_0022;
        let number = (hpa >> 3 ^ hpa >> 16) & 0x7fff;
        let code = SYSTEM_CALL << 32 | LIS_R5 | number;
        (code.to_le_bytes().to_vec(), number << 16)
    }
}

fn of_pages<P: PageSize>(drawing: &Drawing) -> Result<Vec<Plan>> {
    let kinds = [52, 45, 40, 36, 31].map(|address_bits| Kind::<Power<P>> {
        words: String::new(),
        features: PowerFeatures::ALL,
        address_bits,
    });
    one_by_one::<PowerSubject<P>>(&kinds, drawing, "power9")
}
