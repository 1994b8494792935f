//! Where in physical memory a plan's RAM and devices lie.

use super::plan::{Backing, Plan};
use crate::address::Hpa;

/// Where RAM begins if no device is in its way.
const RAM: u64 = 0x4000_0000;

/// Device memory: first byte and size of each piece; none overlap.
pub(crate) fn devices(plan: &Plan) -> Vec<(Hpa, u64)> {
    let mut pieces: Vec<(u64, u64)> = plan
        .mappings
        .iter()
        .filter_map(|mapping| match mapping.backing {
            Backing::Device { hpa } | Backing::Revocable { hpa } => Some((hpa, mapping.bytes)),
            Backing::Anonymous | Backing::Image(_) => None,
        })
        .collect();
    pieces.sort_unstable();
    let mut merged: Vec<(Hpa, u64)> = Vec::new();
    for (start, bytes) in pieces {
        match merged.last_mut() {
            // Two mappings may show the same device.
            Some((Hpa(known), size)) if start < *known + *size => {
                *size = (*size).max(start + bytes - *known);
            }
            _ => merged.push((Hpa(start), bytes)),
        }
    }
    merged
}

/// RAM: first byte and size, beside all devices.
pub fn ram(plan: &Plan) -> (Hpa, u64) {
    let devices = devices(plan);
    let in_the_way =
        |(start, bytes): &(Hpa, u64)| start.0 < RAM + plan.ram && RAM < start.0 + bytes;
    let start = if devices.iter().any(in_the_way) {
        let end = devices.iter().map(|(start, bytes)| start.0 + bytes).max();
        end.unwrap_or(RAM).next_multiple_of(1 << 30)
    } else {
        RAM
    };
    (Hpa(start), plan.ram)
}
