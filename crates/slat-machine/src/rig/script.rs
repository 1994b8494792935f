//! Runs in which every CPU does what a list says: for tests that generate the list and shrink it.

use super::action::{Action, perform};
use super::guest::GuestCpu;
use super::setup::Rig;
use crate::event::{AccessKind, Cpu};
use crate::modelled::Modelled;

/// What one CPU does.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which CPU: any of the guest's or the host's, all of which may do everything.
    pub cpu: Cpu,
    /// What.
    pub deed: Deed,
}

/// An access of the guest, or something done to its memory.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no third kind")]
pub enum Deed {
    /// The guest accesses the CPU's word of the page at a guest physical address.
    Access(u64, AccessKind),
    /// The host or the VMM does something.
    Act(Action),
}

/// Does the steps of `cpu`.
pub(crate) fn run<F: Modelled>(rig: &Rig<F>, cpu: Cpu) {
    let mut guest = GuestCpu::new(rig, cpu);
    for step in rig.script.iter().filter(|step| step.cpu == cpu) {
        if rig.is_over() {
            break;
        }
        match &step.deed {
            Deed::Access(gpa, kind) => guest.access(*gpa, *kind),
            Deed::Act(action) => perform(rig, &mut guest.vcpu, action),
        }
    }
    guest.end();
}
