//! What both Arm oracles read: the result of asking the MMU, and fault status codes. Armv8 kept
//! the formats of Armv7's long descriptors.

use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::Probe;
use slat_table::attributes::MemoryType;

use super::judge::{Outcome, Reason};

/// `PAR_EL1` (DDI 0487, D24.2) or `PAR` (DDI 0406, B4.1) after the MMU was asked.
pub(super) fn asked(probe: &Probe, par: u64) -> Outcome {
    let unexpected = Outcome::Unexpected(Answer::Completed([par, 0, 0, 0]));
    if par & 1 != 0 {
        // FST, and S: the fault is stage 2's.
        let stage_2 = par & 1 << 9 != 0;
        let seen = fault(par >> 1 & 0x3f, None).filter(|_| stage_2);
        return seen.unwrap_or(unexpected);
    }
    let hpa = par & 0x000f_ffff_ffff_f000 | probe.gpa & 0xfff;
    match memory_type(par >> 56) {
        Some(memory) => Outcome::Reached {
            hpa: Some(hpa),
            memory: Some(memory),
        },
        None => unexpected,
    }
}

/// `PAR_EL1.ATTR`, which is encoded like a field of `MAIR_EL1`.
fn memory_type(attributes: u64) -> Option<MemoryType> {
    match attributes {
        0xff => Some(MemoryType::WriteBack),
        0xbb => Some(MemoryType::WriteThrough),
        0x44 => Some(MemoryType::NonCacheable),
        0x04 => Some(MemoryType::Device),
        0x00 => Some(MemoryType::DeviceStrict),
        _ => None,
    }
}

/// A fault status code (DDI 0487, D24.2, `ESR_EL2.ISS.DFSC`; DDI 0406, B3.13).
pub(super) fn fault(status: u64, gpa: Option<u64>) -> Option<Outcome> {
    let reason = match status >> 2 {
        0b0000 => Reason::AddressSize,
        0b0001 => Reason::NotMapped,
        0b0010 => Reason::NotAccessed,
        0b0011 => Reason::NotAllowed,
        _ => return None,
    };
    // The manual counts levels from the root; 3 has the pages.
    let level = u8::try_from(3 - (status & 0b11)).ok();
    Some(Outcome::Fault { reason, gpa, level })
}
