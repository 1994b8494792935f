//! Barriers and invalidations.

use serde::{Deserialize, Serialize};

use super::shape::Granule;
use crate::address::{Gpa, hexadecimal};
use crate::architecture::{Effect, Forgotten, Reach};

/// Barriers and invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Instruction {
    /// `DSB ISH`.
    DsbIsh,
    /// `DSB ISHST`.
    DsbIshst,
    /// `DSB NSH`.
    DsbNsh,
    /// `DSB NSHST`.
    DsbNshst,
    /// `ISB`.
    Isb,
    /// `TLBI IPAS2E1IS`.
    Ipas2e1is {
        /// The operand register.
        #[serde(with = "hexadecimal")]
        operand: u64,
    },
    /// `TLBI IPAS2LE1IS`.
    Ipas2le1is {
        /// The operand register.
        #[serde(with = "hexadecimal")]
        operand: u64,
    },
    /// `TLBI IPAS2E1`.
    Ipas2e1 {
        /// The operand register.
        #[serde(with = "hexadecimal")]
        operand: u64,
    },
    /// `TLBI VMALLE1IS`.
    Vmalle1is,
    /// `TLBI VMALLE1`.
    Vmalle1,
    /// `TLBI VMALLS12E1IS`.
    Vmalls12e1is,
    /// `TLBI VMALLS12E1`.
    Vmalls12e1,
}

impl Instruction {
    /// What it does, where trees have this granule, and the descriptors of `FEAT_LPA2` or not.
    pub(super) fn effect(self, granule: Granule, lpa2: bool) -> Effect {
        let complete = |reach, invalidations| Effect::Complete {
            reach,
            invalidations,
        };
        let forget = |reach, what| Effect::Forget { reach, what };
        let address = |operand, leaf_only| Forgotten::Address {
            gpa: address(operand, granule),
            leaf_only,
            level: hinted_level(operand >> 44 & 0xf, granule, lpa2),
        };
        match self {
            // A DSB for stores only makes them visible; to complete an invalidation, loads must be
            // waited for too ("Ordering and completion of TLB maintenance instructions", D8).
            Self::DsbIsh => complete(Reach::All, true),
            Self::DsbIshst => complete(Reach::All, false),
            Self::DsbNsh => complete(Reach::Local, true),
            Self::DsbNshst => complete(Reach::Local, false),
            Self::Isb => Effect::Synchronise,
            Self::Ipas2e1is { operand } => forget(Reach::All, address(operand, false)),
            Self::Ipas2le1is { operand } => forget(Reach::All, address(operand, true)),
            Self::Ipas2e1 { operand } => forget(Reach::Local, address(operand, false)),
            Self::Vmalle1is => forget(Reach::All, Forgotten::Combined),
            Self::Vmalle1 => forget(Reach::Local, Forgotten::Combined),
            Self::Vmalls12e1is => forget(Reach::All, Forgotten::All),
            Self::Vmalls12e1 => forget(Reach::Local, Forgotten::All),
        }
    }
}

/// The address that an operand names: bits 51:12 of it are in bits 39:0, of which those below the
/// size of a page are ignored (C5.5).
const fn address(operand: u64, granule: Granule) -> Gpa {
    let page = granule.page_shift();
    Gpa((operand & 0xff_ffff_ffff) << 12 >> page << page)
}

/// The level that a hint (`TTL`, bits 47:44 of an operand, C5.5) names: bits 3:2 are the granule,
/// 1:0 the manual's level. `None` where it says nothing, or something reserved, which means
/// nothing. An invalidation with a wrong hint need find nothing, so one that names another granule
/// names a level that no tree here has.
fn hinted_level(hint: u64, granule: Granule, lpa2: bool) -> Option<usize> {
    let named = match hint >> 2 {
        0b01 => Granule::K4,
        0b10 => Granule::K16,
        0b11 => Granule::K64,
        _ => return None,
    };
    let level = match hint & 0b11 {
        0 => 3,
        1 => 2,
        2 => 1,
        _ => 0,
    };
    match (named, level) {
        (Granule::K4, 3) | (Granule::K16, 2) if !lpa2 => None,
        (Granule::K16 | Granule::K64, 3) => None,
        _ if named == granule => Some(level),
        _ => Some(usize::MAX),
    }
}
