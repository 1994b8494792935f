//! How the guest may reach device memory: as a device, and not while its driver has it revoked.
//!
//! Cached, speculated and reordered accesses break a device, so a translation to one must have a
//! device's memory type, and one to RAM must not, or the guest loses its caches. What a driver has
//! revoked may be powered off: once the revocation has returned, and until the restoration begins,
//! nobody gets there.

use std::collections::BTreeMap;
use std::sync::Mutex;

use slat_table::attributes::MemoryType;

use super::Finding;
use super::layout;
use super::plan::{Backing, Plan};
use crate::address::Hpa;
use crate::event::Cpu;
use crate::lock::brief;

/// All devices of a plan.
pub(crate) struct Devices {
    /// First byte and size of each piece.
    pieces: Vec<(Hpa, u64)>,
    /// Whether the format has memory types that tell a device from RAM.
    told_apart: bool,
    revocable: Vec<Revocable>,
    state: Mutex<BTreeMap<usize, State>>,
}

struct Revocable {
    mapping: usize,
    hpa: u64,
    bytes: u64,
}

/// What is known of a revocable device. Several CPUs may revoke and restore it at once.
#[derive(Default)]
struct State {
    /// Restorations begun so far.
    restorations: u64,
    /// Restorations begun and not ended.
    restoring: u64,
    /// Nobody may reach it.
    revoked: bool,
}

/// A revocation under way: how many restorations had begun before it, if none was under way.
pub(crate) struct Revoking(Option<u64>);

impl Devices {
    /// The devices of `plan`, of which the host says that their memory is `memory`.
    pub(crate) fn new(plan: &Plan, memory: MemoryType) -> Self {
        let revocable = |(mapping, planned): (usize, &super::plan::Mapping)| match planned.backing {
            Backing::Revocable { hpa } => Some(Revocable {
                mapping,
                hpa,
                bytes: planned.bytes,
            }),
            _ => None,
        };
        Self {
            pieces: layout::devices(plan),
            told_apart: memory != MemoryType::WriteBack,
            revocable: plan
                .mappings
                .iter()
                .enumerate()
                .filter_map(revocable)
                .collect(),
            state: Mutex::default(),
        }
    }

    /// The driver of a mapping, by its place in the plan, begins to revoke it.
    pub(crate) fn revoking(&self, mapping: usize) -> Revoking {
        let mut state = brief(&self.state);
        let state = state.entry(mapping).or_default();
        Revoking((state.restoring == 0).then_some(state.restorations))
    }

    /// The revocation has returned. It holds unless somebody has begun to restore meanwhile.
    pub(crate) fn revoked(&self, mapping: usize, Revoking(since): Revoking) {
        let mut state = brief(&self.state);
        let state = state.entry(mapping).or_default();
        state.revoked |= since == Some(state.restorations);
    }

    /// The driver begins to restore it.
    pub(crate) fn restoring(&self, mapping: usize) {
        let mut state = brief(&self.state);
        let state = state.entry(mapping).or_default();
        state.restorations += 1;
        state.restoring += 1;
        state.revoked = false;
    }

    /// The restoration has returned.
    pub(crate) fn restored(&self, mapping: usize) {
        brief(&self.state).entry(mapping).or_default().restoring -= 1;
    }

    /// A guest CPU has reached `hpa` through a translation of a device's memory type, or not of one.
    pub(crate) fn reached(&self, cpu: Cpu, hpa: Hpa, device: bool) -> Result<(), Finding> {
        let inside = |start: u64, bytes: u64| (start..start + bytes).contains(&hpa.0);
        let is_device = self
            .pieces
            .iter()
            .any(|(start, bytes)| inside(start.0, *bytes));
        if self.told_apart && is_device != device {
            let what = if is_device { "a device" } else { "RAM" };
            let seen = if device { "a device" } else { "normal memory" };
            let story = format!("guest CPU {cpu} reached {hpa}, which is {what}, as {seen}");
            return Err(Finding::new("wrong-memory-type", story));
        }
        let state = brief(&self.state);
        let is_revoked = |mapping| state.get(&mapping).is_some_and(|state| state.revoked);
        let mut revocable = self.revocable.iter();
        if revocable.any(|at| inside(at.hpa, at.bytes) && is_revoked(at.mapping)) {
            let story = format!("guest CPU {cpu} reached {hpa} of a device that is revoked");
            return Err(Finding::new("access-to-revoked-device", story));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::plan::Mapping;

    const HPA: u64 = 0x1_0000_0000;

    fn devices() -> Devices {
        let mapping = Mapping {
            name: "revocable".into(),
            hva: 0x7f00_0000_0000,
            bytes: 0x1000,
            writable: true,
            backing: Backing::Revocable { hpa: HPA },
        };
        Devices::new(&Plan::of_mappings(vec![mapping]), MemoryType::Device)
    }

    fn rule(devices: &Devices, hpa: u64, device: bool) -> Option<String> {
        let reached = devices.reached(0, Hpa(hpa), device);
        reached.err().map(|finding| finding.rule)
    }

    #[test]
    fn memory_is_reached_as_what_it_is() {
        let devices = devices();
        assert_eq!(rule(&devices, HPA + 8, true), None);
        assert_eq!(rule(&devices, HPA + 0x1000, false), None);
        let wrong = Some("wrong-memory-type".to_owned());
        assert_eq!(rule(&devices, HPA + 8, false), wrong);
        assert_eq!(rule(&devices, HPA + 0x1000, true), wrong);
    }

    #[test]
    fn a_device_is_out_of_reach_from_its_revocation_to_its_restoration() {
        let devices = devices();
        let revoking = devices.revoking(0);
        assert_eq!(rule(&devices, HPA, true), None);
        devices.revoked(0, revoking);
        let wrong = Some("access-to-revoked-device".to_owned());
        assert_eq!(rule(&devices, HPA, true), wrong);
        devices.restoring(0);
        assert_eq!(rule(&devices, HPA, true), None);
    }

    #[test]
    fn a_restoration_by_another_cpu_ends_a_revocation_that_it_overlaps() {
        let devices = devices();
        let before = devices.revoking(0);
        devices.restoring(0);
        let during = devices.revoking(0);
        devices.restored(0);
        devices.revoked(0, before);
        devices.revoked(0, during);
        assert_eq!(rule(&devices, HPA, true), None);
        let after = devices.revoking(0);
        devices.revoked(0, after);
        assert!(rule(&devices, HPA, true).is_some());
    }
}
