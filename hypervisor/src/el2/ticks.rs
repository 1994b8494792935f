//! Regular ticks for churn, from the EL2 physical timer.
//!
//! A guest with devices passed through hardly ever leaves by itself, so the hypervisor brings an
//! interrupt of its own: the timer's, made a group 0 interrupt, which arrives as FIQ and goes to
//! EL2, while the guest's own interrupts stay IRQs that the hypervisor never sees. That takes a
//! GIC with one security state, such as QEMU's without EL3: with two, group 0 is the secure
//! world's.
//!
//! The guest drives the same GIC and begins by resetting all of it, so [`Ticks::arm`] is called
//! whenever the guest has been out.

use core::ptr::NonNull;

use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicRedistributor, GicRedistributorIterator, Group,
    SecureIntGroup,
};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use slat_hypervisor::machine::Machine;
use thiserror::Error;

use super::registers::{read, write};
use super::{clock, cpu};

/// Above every priority that the guest uses: it preempts the guest's own interrupt handlers.
const PRIORITY: u8 = 0;
/// Nothing is masked by priority. (The guest has a mask of its own while FIQs come to EL2.)
const NO_MASK: u8 = 0xff;

/// The timer and its interrupt.
pub(super) struct Ticks {
    distributor: GicDistributor<'static>,
    redistributor: GicRedistributor<'static>,
    interrupt: IntId,
    period: u64,
    /// When the next tick is due; 0 before the first.
    next: u64,
}

/// A machine without what ticks take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum TicksError {
    /// No timer for EL2 in the device tree.
    #[error("the device tree names no EL2 timer interrupt")]
    NoTimer,
    /// No redistributor for this CPU.
    #[error("the GIC has no redistributor for this CPU")]
    NoRedistributor,
}

impl Ticks {
    /// Sets the timer to `rate` ticks in a second. They begin when it is armed.
    ///
    /// # Errors
    ///
    /// A [`TicksError`] if the machine has no such timer.
    ///
    /// # Safety
    ///
    /// Nothing else at EL2 may use the GIC, which must be mapped as the machine says.
    pub(super) unsafe fn new(machine: &Machine, rate: u32) -> Result<Self, TicksError> {
        let line = machine.hypervisor_timer.ok_or(TicksError::NoTimer)?;
        let distributor = machine
            .device("gicd")
            .and_then(|span| pointer::<Gicd>(span.start()));
        let redistributors = machine
            .device("gicr")
            .and_then(|span| pointer::<GicrSgi>(span.start()));
        let error = TicksError::NoRedistributor;
        // SAFETY: the caller vouches for the mapping and for there being no other user.
        let distributor = unsafe { UniqueMmioPointer::new(distributor.ok_or(error)?) };
        // SAFETY: as above; the device tree's region ends with the last redistributor.
        let all = unsafe { GicRedistributorIterator::new(redistributors.ok_or(error)?) };
        let redistributor = all
            .map_err(|_| error)?
            .find(|redistributor| redistributor.typer().core_mpidr() == cpu::affinity())
            .ok_or(error)?;
        GicCpuInterface::set_priority_mask(NO_MASK);
        GicCpuInterface::enable_group0(true);
        Ok(Self {
            distributor: GicDistributor::new(distributor),
            redistributor,
            interrupt: IntId::ppi(line),
            period: read!("cntfrq_el0") / u64::from(rate),
            next: 0,
        })
    }

    /// Makes sure that the next tick comes, whatever the guest has done to the GIC: ticks that stay
    /// away are set up anew.
    pub(super) fn arm(&mut self) {
        if clock::now() < self.next + self.period {
            return;
        }
        let group = Group::Secure(SecureIntGroup::Group0);
        let configured = self
            .redistributor
            .set_group(self.interrupt, group)
            .and_then(|()| {
                self.redistributor
                    .set_interrupt_priority(self.interrupt, PRIORITY)
            })
            .and_then(|()| self.redistributor.enable_interrupt(self.interrupt, true));
        debug_assert!(configured.is_ok(), "a PPI has a redistributor's registers");
        self.distributor.enable_group0(true);
        self.set_next();
    }

    /// Takes the interrupt that brought the guest out. Whether it was a tick.
    pub(super) fn take(&mut self) -> bool {
        let mut tick = false;
        GicCpuInterface::handle_interrupt(InterruptGroup::Group0, |interrupt| {
            tick = interrupt == self.interrupt;
            if tick {
                self.set_next();
            }
        });
        tick
    }

    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "one reason holds for all of these registers"
    )]
    fn set_next(&mut self) {
        self.next = clock::now() + self.period;
        // SAFETY: the EL2 physical timer is the hypervisor's alone.
        unsafe {
            write!("cnthp_cval_el2", self.next);
            write!("cnthp_ctl_el2", 1_u64);
            core::arch::asm!("isb", options(nostack, preserves_flags));
        }
    }
}

/// Sends the software-generated interrupt that the guest asked for. Its write to `ICC_SGI1R_EL1`
/// traps as long as FIQs come to EL2.
pub(super) fn send_sgi(request: u64) {
    // SAFETY: the guest may interrupt itself; it has the only CPU.
    unsafe { write!("S3_0_C12_C11_5", request) };
}

fn pointer<T>(address: u64) -> Option<NonNull<T>> {
    NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize))
}
