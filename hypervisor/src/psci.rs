//! The guest's firmware calls: Arm PSCI (DEN 0022, version 1.1), as far as a VM with one CPU needs
//! them. The guest makes them with `SMC`, which traps to the hypervisor.

use smccc::psci::{
    PSCI_FEATURES, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, PSCI_SYSTEM_RESET2_32,
    PSCI_SYSTEM_RESET2_64, PSCI_VERSION, Version,
};

/// The version that is answered for: 1.1.
const VERSION: Version = Version { major: 1, minor: 1 };
/// PSCI's success, and what `PSCI_FEATURES` says of a call without optional features.
const SUCCESS: i64 = 0;
/// PSCI's and SMCCC's answer to a call that is not there (DEN 0022 section 5.2.2).
const NOT_SUPPORTED: i64 = -1;

/// What the hypervisor does about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the one caller must handle every answer"
)]
pub enum Answer {
    /// Put this into the guest's x0 and let it go on after the call.
    Return(i64),
    /// The guest wants to be switched off.
    Off,
    /// The guest wants to start anew.
    Reset,
}

/// Answers the call of `function` (the guest's w0) with first argument `argument` (its w1).
///
/// Calls that are not there, those of other firmware services included, get `NOT_SUPPORTED`.
pub fn answer(function: u32, argument: u32) -> Answer {
    match function {
        PSCI_VERSION => Answer::Return(i64::from(u32::from(VERSION))),
        PSCI_FEATURES => Answer::Return(features(argument)),
        PSCI_SYSTEM_OFF => Answer::Off,
        PSCI_SYSTEM_RESET | PSCI_SYSTEM_RESET2_32 | PSCI_SYSTEM_RESET2_64 => Answer::Reset,
        _ => Answer::Return(NOT_SUPPORTED),
    }
}

/// The call's name for the report, or its number if it has none here.
pub fn name(function: u32) -> &'static str {
    match function {
        PSCI_VERSION => "version",
        PSCI_FEATURES => "features",
        PSCI_SYSTEM_OFF => "system off",
        PSCI_SYSTEM_RESET | PSCI_SYSTEM_RESET2_32 | PSCI_SYSTEM_RESET2_64 => "system reset",
        _ => "not supported",
    }
}

fn features(function: u32) -> i64 {
    match function {
        PSCI_VERSION
        | PSCI_FEATURES
        | PSCI_SYSTEM_OFF
        | PSCI_SYSTEM_RESET
        | PSCI_SYSTEM_RESET2_32
        | PSCI_SYSTEM_RESET2_64 => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use smccc::psci::{PSCI_CPU_ON_64, PSCI_MIGRATE_INFO_TYPE};

    use super::*;

    #[test]
    fn version_is_1_1_in_the_manuals_encoding() {
        assert_eq!(answer(0x8400_0000, 0), Answer::Return(0x0001_0001));
    }

    #[test]
    fn off_and_reset_stop_the_guest() {
        assert_eq!(answer(0x8400_0008, 0), Answer::Off);
        for reset in [0x8400_0009, 0x8400_0012, 0xc400_0012] {
            assert_eq!(answer(reset, 0), Answer::Reset);
        }
    }

    #[test]
    fn everything_else_is_not_supported() {
        for call in [
            PSCI_CPU_ON_64,
            PSCI_MIGRATE_INFO_TYPE,
            0x8000_0000,
            0xdead_beef,
        ] {
            assert_eq!(answer(call, 0), Answer::Return(-1));
        }
    }

    #[test]
    fn features_agree_with_the_answers() {
        for call in [
            0x8400_0000,
            0x8400_0001,
            0x8400_0008,
            0x8400_0009,
            0x8400_000a,
            0xc400_0003,
        ] {
            let there = answer(call, 0) != Answer::Return(NOT_SUPPORTED);
            let said = answer(0x8400_000a, call) == Answer::Return(SUCCESS);
            // `FEATURES` asked about nothing answers `NOT_SUPPORTED` itself, and is there.
            assert_eq!(said, there || call == 0x8400_000a, "{call:#x}");
        }
    }
}
