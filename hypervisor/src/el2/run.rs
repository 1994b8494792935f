//! The run: lets the guest go, and does what it comes back for.

use alloc::collections::BTreeMap;
use alloc::format;

use slat::host::PageKind;
use slat::table::address::Gpa;
use slat::table::attributes::Access;
use slat::table::format::arm64::Arm64;
use slat::vcpu::{Denial, Fault, Outcome as FaultOutcome};
use slat_hypervisor::psci::{self, Answer};
use slat_hypervisor::syndrome::{self, Abort, AccessKind, Cause, Exit};
use slat_report::{Faults, Outcome};

use super::churn::Churn;
use super::clock::Clock;
use super::memory::{Guest, Space};
use super::platform::El2Platform;
use super::stage1;
use super::ticks::{self, Ticks};
use super::vcpu::{Exception, Vcpu};

/// The guest in motion.
pub(super) struct Run<'m> {
    vcpu: Vcpu,
    guest: &'m mut Guest,
    faulting: slat::Vcpu<'m, Arm64, Space, El2Platform>,
    churn: Option<Churn>,
    ticks: Option<Ticks>,
    clock: Clock,
    /// Exits by reason.
    exits: BTreeMap<&'static str, u64>,
    /// Faults by cause.
    faults: Faults,
}

/// A run that is over.
pub(super) struct Finished {
    pub(super) outcome: Outcome,
    pub(super) exits: BTreeMap<&'static str, u64>,
    pub(super) faults: Faults,
    pub(super) clock: Clock,
    pub(super) churn: Option<Churn>,
}

impl<'m> Run<'m> {
    /// A run of `vcpu` in `guest`, whose faults `faulting` handles.
    pub(super) fn new(
        vcpu: Vcpu,
        guest: &'m mut Guest,
        faulting: slat::Vcpu<'m, Arm64, Space, El2Platform>,
        churn: Option<(Churn, Ticks)>,
    ) -> Self {
        let (churn, ticks) = churn.unzip();
        let (exits, faults) = (BTreeMap::new(), Faults::default());
        Self {
            vcpu,
            guest,
            faulting,
            churn,
            ticks,
            clock: Clock::start(),
            exits,
            faults,
        }
    }

    /// Runs the guest until it stops or the hypervisor cannot go on.
    pub(super) fn until_stop(mut self) -> Finished {
        loop {
            if let Some(ticks) = &mut self.ticks {
                ticks.arm();
            }
            self.clock.enter();
            let exception = self.vcpu.run();
            self.clock.leave();
            if let Some(outcome) = self.handle(exception) {
                let geometry = *self.guest.memory.table().geometry();
                let leaves = self.faulting.stats().leaves;
                self.faults.by_size = geometry.by_size(leaves).collect();
                let Self {
                    exits,
                    faults,
                    clock,
                    churn,
                    ..
                } = self;
                return Finished {
                    outcome,
                    exits,
                    faults,
                    clock,
                    churn,
                };
            }
        }
    }

    fn handle(&mut self, exception: Exception) -> Option<Outcome> {
        match exception {
            Exception::Synchronous { esr, far, hpfar } => match Exit::decode(esr) {
                Exit::Abort(abort) => self.abort(abort, esr, far, hpfar),
                Exit::Smc => self.firmware_call(),
                Exit::SendSgi { register } => {
                    self.count("sgi");
                    ticks::send_sgi(self.vcpu.register(register));
                    self.vcpu.skip_instruction();
                    None
                }
                Exit::SystemRegister => {
                    self.count("system register");
                    self.vcpu.inject_undefined(esr);
                    None
                }
                Exit::Other(_) => Some(self.failed(&format!("exception {esr:#x}"))),
            },
            Exception::Interrupt => {
                self.tick();
                None
            }
            Exception::SError { esr } => Some(self.failed(&format!("system error {esr:#x}"))),
        }
    }

    fn tick(&mut self) {
        let tick = self.ticks.as_mut().is_some_and(Ticks::take);
        self.count(if tick { "tick" } else { "interrupt" });
        if let Some(churn) = self.churn.as_mut().filter(|_| tick) {
            churn.tick(self.guest, &self.clock);
        }
    }

    fn firmware_call(&mut self) -> Option<Outcome> {
        #[expect(clippy::cast_possible_truncation, reason = "SMC32 calls use w0 and w1")]
        let (function, argument) = (self.vcpu.register(0) as u32, self.vcpu.register(1) as u32);
        self.count(psci::name(function));
        match psci::answer(function, argument) {
            Answer::Return(value) => {
                self.vcpu.set_answer(value);
                self.vcpu.skip_instruction();
                None
            }
            Answer::Off => Some(Outcome::Off),
            Answer::Reset => Some(Outcome::Reset),
        }
    }

    fn abort(&mut self, abort: Abort, esr: u64, far: u64, hpfar: u64) -> Option<Outcome> {
        self.count(match abort.access {
            AccessKind::Fetch => "instruction abort",
            AccessKind::Read | AccessKind::Write => "data abort",
        });
        let gpa = if abort.has_guest_address() {
            syndrome::guest_address(hpfar, far)
        } else {
            // Tables that have changed since translate otherwise: the guest tries again.
            stage1::translate(far)?
        };
        match abort.cause {
            Cause::Translation | Cause::AccessFlag | Cause::Permission => {
                self.fault(abort, gpa, esr, far)
            }
            // A guest-physical address wider than the tree: there is nothing either.
            Cause::Other(0..=3) => {
                self.inject(esr, far);
                None
            }
            Cause::Other(status) => {
                Some(self.failed(&format!("abort with status {status:#x} at {gpa:#x}")))
            }
        }
    }

    fn fault(&mut self, abort: Abort, gpa: u64, esr: u64, far: u64) -> Option<Outcome> {
        if let Some(churn) = &mut self.churn {
            churn.before_fault(self.guest, gpa);
        }
        let access = match abort.access {
            AccessKind::Read => Access::Read,
            AccessKind::Write => Access::Write,
            AccessKind::Fetch => Access::Execute,
        };
        let outcome = match self.faulting.fault(Fault {
            gpa: Gpa::new(gpa),
            access,
        }) {
            Ok(outcome) => outcome,
            Err(error) => return Some(self.failed(&format!("fault at {gpa:#x}: {error}"))),
        };
        if let Some(region) = self.guest.region_mut(gpa) {
            region.faults += 1;
        }
        match outcome {
            FaultOutcome::Mapped { kind, range, .. } => {
                if let (PageKind::Ram, Some(churn)) = (kind, &mut self.churn) {
                    churn.note_mapped(range);
                }
                self.count_fault(abort.cause, kind);
            }
            FaultOutcome::Extended { .. } => self.count_fault(abort.cause, PageKind::Ram),
            FaultOutcome::Spurious { .. } => self.faults.spurious += 1,
            FaultOutcome::Retry => self.faults.retried += 1,
            FaultOutcome::Denied { reason, .. } => self.denied(reason, abort, gpa, esr, far),
            _ => self.inject(esr, far),
        }
        None
    }

    /// The host does not let the guest at something. If churn took it away, churn gives it back;
    /// else the guest is told.
    fn denied(&mut self, reason: Denial, abort: Abort, gpa: u64, esr: u64, far: u64) {
        let given_back = match (&mut self.churn, reason) {
            (Some(churn), Denial::NotPermitted) => churn.grant(self.guest, gpa),
            (Some(churn), Denial::DeviceGone) => churn.restore_devices(self.guest),
            _ => false,
        };
        if !given_back {
            self.inject(esr, far);
        } else if abort.cause == Cause::Permission {
            self.faults.permission += 1;
        } else {
            self.faults.retried += 1;
        }
    }

    fn count_fault(&mut self, cause: Cause, kind: PageKind) {
        let counter = match (cause, kind) {
            (Cause::Permission, _) => &mut self.faults.permission,
            (Cause::AccessFlag, _) => &mut self.faults.access_flag,
            (_, PageKind::Ram) => &mut self.faults.ram,
            (_, PageKind::Pfnmap) => &mut self.faults.mmio,
        };
        *counter += 1;
    }

    fn inject(&mut self, esr: u64, far: u64) {
        self.faults.injected += 1;
        self.vcpu.inject_external_abort(esr, far);
    }

    fn failed(&self, what: &str) -> Outcome {
        Outcome::Failed(format!("{what}, with the guest at {:#x}", self.vcpu.pc()))
    }

    fn count(&mut self, reason: &'static str) {
        *self.exits.entry(reason).or_default() += 1;
    }
}
