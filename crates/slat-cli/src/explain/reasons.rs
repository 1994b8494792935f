//! The engine's reasons, with the addresses that make them.

use slat::report::Reason;
use slat_report::size::Size;

use super::engine::PartFacts;
use super::zones::largest_block;
use crate::format::Sizes;
use crate::layout::{Kind, Mapping};

/// `reason` in words, for `part` with `mapping` behind it, on a host with pages of these sizes.
pub(crate) fn detailed(
    reason: Reason,
    part: &PartFacts,
    mapping: Option<&Mapping>,
    sizes: &Sizes,
) -> String {
    let apart = |left: u64, right: u64| Size(agreement(left, right));
    match (reason, mapping) {
        (Reason::NotCongruent, _) => format!(
            "gpa {:#x} and hva {:#x} agree only modulo {}",
            part.gpa,
            part.hva,
            apart(part.gpa, part.hva)
        ),
        (Reason::HostBlock | Reason::HostAddress, Some(mapping)) => {
            host_limit(part, mapping, sizes).unwrap_or_else(|| reason.to_string())
        }
        _ => reason.to_string(),
    }
}

/// Why a host maps `mapping` in no larger blocks, or not where the guest could use them.
fn host_limit(part: &PartFacts, mapping: &Mapping, sizes: &Sizes) -> Option<String> {
    match mapping.kind {
        Kind::Pfnmap { hpa } => {
            let hpa = hpa + (part.hva - mapping.hva);
            let (host, guest) = (agreement(part.hva, hpa), agreement(part.gpa, hpa));
            if host <= guest && host < sizes.largest() {
                Some(format!(
                    "the host maps no larger blocks: hva {:#x} and hpa {hpa:#x} agree only \
                     modulo {}",
                    part.hva,
                    Size(host)
                ))
            } else if guest < sizes.largest() {
                Some(format!(
                    "gpa {:#x} and hpa {hpa:#x} agree only modulo {}",
                    part.gpa,
                    Size(guest)
                ))
            } else {
                None
            }
        }
        Kind::Ram | Kind::File => Some(format!(
            "the host maps it in pages of {}",
            Size(largest_block(mapping, sizes))
        )),
        Kind::NoAccess => None,
    }
}

/// The largest power of two modulo which two addresses agree.
fn agreement(left: u64, right: u64) -> u64 {
    let lowest = left.wrapping_sub(right).trailing_zeros().min(63);
    1 << lowest
}

/// Whether the sizes alone say so: no larger block fits into a part so small.
pub(crate) fn is_obvious(reason: Reason, concerned: u64, part: &PartFacts, sizes: &Sizes) -> bool {
    let boundary = matches!(reason, Reason::SlotBoundary | Reason::VmaBoundary);
    let Some(huge) = sizes.huge() else {
        return boundary;
    };
    let in_huge = (part.at_creation.of(huge) + part.on_fault.of(huge)) * huge;
    let larger_fits = sizes.gigantic().is_some_and(|size| part.bytes >= size);
    boundary && (part.bytes < huge || (!larger_fits && concerned == in_huge))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_agree_up_to_their_lowest_different_bit() {
        assert_eq!(agreement(0x7f00_0001_0000, 0x80_0000_0000), 0x1_0000);
        assert_eq!(agreement(0x1000, 0x1000), 1 << 63);
    }
}
