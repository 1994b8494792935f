//! Arm VMSAv8-64 stage 2, judged by QEMU.

use core::ops::Range;
use std::process::Command;

use anyhow::Result;
use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};
use slat_oracle_protocol::tree::Omission;
use slat_table::attributes::{Attributes, Execute, MemoryType};
use slat_table::format::ByteOrder;
use slat_table::format::arm64::{
    Arm64Features, Granule, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K,
    StageTwo,
};
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
use super::rehearsal::{Stage, rehearse};
use super::sheet::{Ground, Meets, Sheet};

/// With 16 KiB pages, only 52-bit guest addresses need it: fewer bits begin one level lower.
static ROOT_AT_LEVEL_0: KnownFault = KnownFault {
    name: "16K pages, root at level 0",
    manual: "with FEAT_LPA2, VTCR_EL2.SL0 = 0b11 begins the walk at level 0 (DDI 0487, D24.2)",
};

/// The emulator reports how far the guest's own walk had come.
static LEVEL_OF_OWN_WALK: KnownFault = KnownFault {
    name: "level of a fault on the guest's own walk",
    manual: "the level is that of the stage 2 walk that faulted (DDI 0487, D8, \"Stage 2 fault on a \
             stage 1 translation table walk\")",
};

/// Arm64 in QEMU.
#[derive(Debug)]
pub(crate) struct Arm64Judge;

/// Where the script is loaded; `oracles/arm64/src/memory.rs` knows too.
const SCRIPT: u64 = 0x4400_0000;

/// The page with the guest's code, behind the payload and before the script.
const CODE: u64 = 0x4300_0000;

/// Memory for tables, behind the script.
const TABLES: Range<u64> = 0x5000_0000..0x6000_0000;

/// Memory for the tables that the payload makes by itself; `oracles/arm64/src/tree.rs` knows too.
const OWN_TABLES: Range<u64> = 0x6000_0000..0x7000_0000;

/// Memory that the guest may be shown: all the rest, aligned for large blocks.
const MEMORY: Range<u64> = 0x8000_0000..0x40_0000_0000;

const GUEST: Guest = Guest {
    code: |hpa| instruction(break_at(hpa)),
    order: ByteOrder::Little,
    memory: MEMORY,
};

impl Judge for Arm64Judge {
    fn name(&self) -> &'static str {
        "arm64"
    }

    fn emulator(&self) -> Emulator {
        Emulator {
            program: "qemu-system-aarch64",
            packages: &["qemu-system-arm"],
        }
    }

    fn payload(&self) -> Payload {
        Payload {
            package: "slat-oracle-arm64",
            target: "aarch64-unknown-none-softfloat",
        }
    }

    fn machine(&self, plan: &Plan, files: &Files<'_>) -> Result<Command> {
        let mut command = Command::new(files.emulator);
        let bytes = MEMORY.end - 0x4000_0000;
        command
            .args(["-machine", "virt,virtualization=on,memory-backend=memory"])
            .args(["-cpu", plan.cpu])
            .args(["-m", &format!("{bytes}B")])
            // Most of it is never touched and takes nothing of the host's.
            .arg("-object")
            .arg(format!(
                "memory-backend-ram,id=memory,size={bytes},reserve=off"
            ))
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
        let kinds = kinds();
        let wanted = drawing.checks.div_ceil(kinds.len());
        for kind in &kinds {
            (kind.ask)(kind, drawing, wanted, &mut random, &mut asking)?;
        }
        Ok(vec![asking.into_plan("max")])
    }

    fn bits(&self) -> &'static [u32] {
        // The type of an entry and its validity, memory type, permissions, access flag, address,
        // DBM, XN. Not: shareability (9:8) without LPA2, nG's place (11), the contiguous hint
        // (52), which change nothing that one CPU sees, and bits for software.
        &[
            0, 1, 2, 3, 4, 5, 6, 7, 10, 12, 13, 14, 16, 21, 25, 29, 30, 36, 39, 42, 47, 51, 53, 54,
        ]
    }

    fn omissions(&self) -> &'static [Omission] {
        &[
            Omission::Removal,
            Omission::ByAddress,
            Omission::Combined,
            Omission::Everything,
            Omission::AllButTheFirst,
        ]
    }

    fn rehearsal(&self, seed: u64, omission: Omission) -> Result<Option<Plan>> {
        let stage = Stage {
            memory: 0x8000_0000..0xc000_0000,
            tables: OWN_TABLES,
            code_hpa: CODE,
            guest: GUEST,
            means: Means::Guest,
            // What the payload's own code page has too: blocks of a GiB for the guest's kernel.
            guest_table: Some([0x701, 0x4000_0701, 0x8000_0701, 0xc000_0701]),
        };
        let told = |question: &Meets, probe: &Probe| expected(Arm64Features::NONE, question, probe);
        rehearse::<StageTwo<Granule4K>>(Arm64Features::NONE, &stage, seed, omission, told)
            .map(|asking| Some(asking.into_plan("max")))
    }

    fn seen(&self, question: &Question, answer: &Answer) -> Outcome {
        match (question, *answer) {
            (Question::Memory(_), Answer::Completed([word, ..])) => Outcome::Word(word),
            (Question::Access(probe), Answer::Completed([par, ..])) => asked(probe, par),
            (Question::Access(probe), Answer::Trapped(registers)) => {
                trapped(probe, registers).unwrap_or(Outcome::Unexpected(*answer))
            }
            _ => Outcome::Unexpected(*answer),
        }
    }

    fn known_fault(&self, check: &Check, seen: &Outcome) -> Option<&'static KnownFault> {
        if check.tables.contains("16K") && check.tables.contains("52 bits") {
            return Some(&ROOT_AT_LEVEL_0);
        }
        let Question::Access(Probe {
            means: Means::GuestTable,
            ..
        }) = check.question
        else {
            return None;
        };
        let without_level = match *seen {
            Outcome::Fault { reason, gpa, .. } => Outcome::Fault {
                reason,
                gpa,
                level: None,
            },
            other => other,
        };
        check
            .expected
            .agrees(&without_level)
            .then_some(&LEVEL_OF_OWN_WALK)
    }
}

/// What an exception from the guest means.
fn trapped(probe: &Probe, [syndrome, faulting, address, loaded]: [u64; 4]) -> Option<Outcome> {
    const BREAK: u64 = 0x3c;
    const INSTRUCTION_ABORT: u64 = 0x20;
    const DATA_ABORT: u64 = 0x24;
    // The guest's own exception vectors.
    const OWN_EXCEPTION: u64 = 0xfffe;
    /// The walk of the guest's own tables faulted (`ESR_EL2.ISS.S1PTW`).
    const OWN_WALK: u64 = 1 << 7;
    let number = syndrome & 0xffff;
    let faulting_page = (faulting & 0xfff_ffff_fff0) << 8;
    if probe.means == Means::GuestTable {
        return match syndrome >> 26 & 0x3f {
            BREAK if number == 0 => Some(Outcome::Reached {
                hpa: None,
                memory: None,
            }),
            INSTRUCTION_ABORT if syndrome & OWN_WALK != 0 => {
                fault(syndrome & 0x3f, Some(faulting_page))
            }
            _ => None,
        };
    }
    match (syndrome >> 26 & 0x3f, probe.access) {
        (BREAK, _) if number == OWN_EXCEPTION => None,
        (BREAK, Access::Execute) => Some(Outcome::Executed(number)),
        (BREAK, Access::Read) => Some(Outcome::Reached {
            hpa: Some(unmark(loaded)),
            memory: None,
        }),
        (BREAK, Access::Write) => Some(Outcome::Reached {
            hpa: None,
            memory: None,
        }),
        (INSTRUCTION_ABORT, Access::Execute) | (DATA_ABORT, Access::Read | Access::Write) => {
            // HPFAR_EL2 is valid but for permission faults; with the guest's first stage off
            // FAR_EL2 has the same address.
            let status = syndrome & 0x3f;
            let permission = status >> 2 == 0b0011;
            let gpa = if permission {
                address
            } else {
                faulting_page | address & 0xfff
            };
            fault(status, Some(gpa))
        }
        _ => None,
    }
}

/// `BRK` with a number that says, well enough, where it is.
fn break_at(hpa: u64) -> (u32, u64) {
    let number = (hpa >> 2 ^ hpa >> 15 ^ hpa >> 31) & 0xffff | 1;
    let number = u32::try_from(number).expect("16 bits");
    (0xd420_0000 | number << 5, number.into())
}

/// Tables of one kind, to be drawn and asked about.
#[derive(Debug)]
struct Kind {
    features: Arm64Features,
    address_bits: u8,
    /// The rest, for its granule.
    ask: fn(&Self, &Drawing, usize, &mut Random, &mut Asking) -> Result<()>,
}

/// Every granule with every width of guest addresses that it has, so with every start level and
/// every number of tables side by side, on CPUs that differ in what changes entries.
fn kinds() -> Vec<Kind> {
    let features = [
        Arm64Features::ALL,
        Arm64Features::NONE,
        Arm64Features {
            force_write_back: true,
            ..Arm64Features::NONE
        },
        Arm64Features {
            execute_never_extended: true,
            hardware_accessed: true,
            ..Arm64Features::NONE
        },
    ];
    let mut kinds = Vec::new();
    for address_bits in 32..=48 {
        let turn = usize::from(address_bits);
        let features = |offset| features[(turn + offset) % features.len()];
        kinds.push(Kind::new::<Granule4K>(features(0), address_bits));
        kinds.push(Kind::new::<Granule16K>(features(1), address_bits));
        kinds.push(Kind::new::<Granule64K>(features(2), address_bits));
    }
    for address_bits in 32..=52 {
        kinds.push(Kind::new::<Granule4KLpa2>(
            Arm64Features::WIDE,
            address_bits,
        ));
        kinds.push(Kind::new::<Granule16KLpa2>(
            Arm64Features::WIDE,
            address_bits,
        ));
        kinds.push(Kind::new::<Granule64K>(Arm64Features::WIDE, address_bits));
    }
    kinds
}

impl Kind {
    fn new<G: Granule>(features: Arm64Features, address_bits: u8) -> Self {
        Self {
            features,
            address_bits,
            ask: ask::<G>,
        }
    }

    /// The tables in words.
    fn words(&self, format: &str) -> String {
        let Self {
            features,
            address_bits,
            ..
        } = self;
        let mut words = format!("{format}, {address_bits} bits");
        for (has, word) in [
            (features.force_write_back, "FWB"),
            (features.execute_never_extended, "XNX"),
            (features.hardware_accessed, "HA"),
            (features.hardware_dirty, "HD"),
        ] {
            if has {
                words.push(' ');
                words.push_str(word);
            }
        }
        words
    }
}

/// The VM's number, wide enough to tell 16 bits from 8.
const VMID: u16 = 0x34;

/// Draws tables and asks about them.
fn ask<G: Granule>(
    kind: &Kind,
    drawing: &Drawing,
    wanted: usize,
    random: &mut Random,
    asking: &mut Asking,
) -> Result<()> {
    let features = kind.features;
    let ground = Ground {
        memory: MEMORY,
        far_bits: Some(features.physical_bits.min(G::ADDRESS_BITS)),
        tables: TABLES,
        code_hpa: CODE,
    };
    let mut sheet = Sheet::<StageTwo<G>>::new(features, kind.address_bits, &ground.tables)?;
    let attributes = attributes::drawn(random);
    let code_gpa = placement::draw(&mut sheet, &ground, &attributes, random)?;
    sheet.write(asking.script(), code_gpa, drawing.flip)?;
    let root = sheet.table().root(VMID)?;
    let regime = Regime {
        registers: [root.vttbr, root.vtcr, hcr(features), 0],
        code_gpa,
        code_hpa: CODE,
    };
    asking.enter(&kind.words(G::NAME), regime);
    let addresses = placement::addresses(&sheet, wanted.div_ceil(2), random);
    let mut asker = Asker::new(&sheet, asking, GUEST, drawing.flip.is_none());
    for gpa in addresses {
        if gpa >> features.physical_bits != 0 {
            // The guest's own first stage refuses it, though it is off (D8.1).
            continue;
        }
        let mut probe = Probe {
            gpa,
            access: *random.pick(&[Access::Read, Access::Write]),
            who: *random.pick(&[Who::Kernel, Who::User]),
            means: Means::Question,
        };
        let meets = asker.sheet.meets(gpa)?;
        asker.question(probe, &meets, expected(features, &meets, &probe));
        probe.means = Means::Guest;
        probe.access = *random.pick(&[Access::Read, Access::Write, Access::Execute]);
        probe.gpa &= !(size(probe.access) - 1);
        let meets = asker.sheet.meets(probe.gpa)?;
        asker.access(probe, &meets, expected(features, &meets, &probe))?;
    }
    for gpa in placement::across_edges(&sheet, wanted / 8, random) {
        let probe = Probe {
            gpa,
            access: Access::Read,
            who: *random.pick(&[Who::Kernel, Who::User]),
            means: Means::Guest,
        };
        // Device memory takes no access that is not aligned, which is the guest's own exception.
        if !is_device(&sheet.meets(gpa)?) && !is_device(&sheet.meets(gpa + 4)?) {
            asker.load_across(probe, |meets, probe| expected(features, meets, probe))?;
        }
    }
    Ok(())
}

/// Whether there is device memory.
fn is_device(meets: &Meets) -> bool {
    let Meets::Leaf { attributes, .. } = meets else {
        return false;
    };
    matches!(
        attributes.memory,
        MemoryType::Device | MemoryType::DeviceStrict
    )
}

/// Bytes of an access by the guest.
fn size(access: Access) -> u64 {
    match access {
        Access::Execute => 4,
        Access::Read | Access::Write => 8,
    }
}

/// `HCR_EL2` (D24.2) while the guest runs.
fn hcr(features: Arm64Features) -> u64 {
    const VM: u64 = 1 << 0;
    const DEFAULT_CACHEABLE: u64 = 1 << 12;
    const RW: u64 = 1 << 31;
    // A walk into memory that is not there is reported to EL2.
    const EXTERNAL_ABORTS: u64 = 1 << 37;
    const FORCE_WRITE_BACK: u64 = 1 << 46;
    let force = if features.force_write_back {
        FORCE_WRITE_BACK
    } else {
        0
    };
    VM | DEFAULT_CACHEABLE | RW | EXTERNAL_ABORTS | force
}

/// What must come of an access, as far as that does not depend on how it is made: D8.4, with the
/// access flag before permissions.
fn expected(features: Arm64Features, meets: &Meets, probe: &Probe) -> Outcome {
    let fault = |reason, level: Level| Outcome::Fault {
        reason,
        // PAR_EL1 does not tell.
        gpa: (probe.means != Means::Question).then_some(probe.gpa),
        level: u8::try_from(level.index()).ok(),
    };
    match *meets {
        // Level 0 in the manual's count, whatever level the walk would begin at (D8.2.1).
        Meets::Beyond => fault(Reason::NotMapped, Level::new(3)),
        Meets::Nothing(level) => fault(Reason::NotMapped, level),
        Meets::Leaf {
            level, attributes, ..
        } if !attributes.accessed && !features.hardware_accessed => {
            fault(Reason::NotAccessed, level)
        }
        Meets::Leaf {
            level, attributes, ..
        } if !allows(attributes, probe.access, probe.who) => fault(Reason::NotAllowed, level),
        Meets::Leaf {
            hpa, attributes, ..
        } => match probe.means {
            Means::Question => Outcome::Reached {
                hpa: Some(hpa),
                memory: Some(attributes.memory),
            },
            _ => Outcome::Reached {
                hpa: None,
                memory: None,
            },
        },
    }
}

/// Whether a leaf allows an access.
fn allows(attributes: Attributes, access: Access, who: Who) -> bool {
    let permissions = attributes.permissions;
    match (access, permissions.execute, who) {
        (Access::Read, ..) => permissions.read,
        (Access::Write, ..) => permissions.write,
        (_, Execute::Always, _)
        | (_, Execute::Privileged, Who::Kernel)
        | (_, Execute::Unprivileged, Who::User) => true,
        (Access::Execute, ..) => false,
    }
}
