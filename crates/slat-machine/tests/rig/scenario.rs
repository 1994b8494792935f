//! Plans made by hand, for tests that want one thing to happen.

use slat_machine::event::AccessKind;
use slat_machine::host::Disturbance;
use slat_machine::rig::plan::{Backing, Churn, Features, Mapping, Plan, Slot, Touch};
use slat_machine::rig::script::Step;
use slat_machine::rig::{Options, Outcome};

use crate::caught::{clean, scaled};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Where the first mapping is, and the first slot.
pub(crate) const HVA: u64 = 0x7f00_0000_0000;
pub(crate) const GPA: u64 = GIB;

/// A plan without mappings and slots, on four guest CPUs and two of the host.
pub(crate) fn nothing() -> Plan {
    Plan {
        address_bits: 40,
        features: Features {
            hardware_accessed: false,
            hardware_dirty: false,
            force_write_back: true,
        },
        guest_cpus: 4,
        host_cpus: 2,
        ram: 64 * MIB,
        mappings: Vec::new(),
        slots: Vec::new(),
        boot: Vec::new(),
        steps: 30_000,
        churn: Churn::default(),
    }
}

pub(crate) fn mapping(hva: u64, bytes: u64, backing: Backing) -> Mapping {
    Mapping {
        name: format!("{hva:#x}"),
        hva,
        bytes,
        writable: true,
        backing,
    }
}

pub(crate) fn slot(id: u32, gpa: u64, bytes: u64, hva: u64) -> Slot {
    Slot {
        name: format!("slot {id}"),
        id,
        gpa,
        bytes,
        hva,
        read_only: false,
        on_fault: false,
        weight: 1,
        replaceable: false,
    }
}

/// One slot over one mapping of anonymous memory.
pub(crate) fn ram(bytes: u64) -> Plan {
    Plan {
        mappings: vec![mapping(HVA, bytes, Backing::Anonymous)],
        slots: vec![slot(1, GPA, bytes, HVA)],
        ..nothing()
    }
}

/// One slot over one device.
pub(crate) fn device(bytes: u64, hpa: u64) -> Plan {
    Plan {
        mappings: vec![mapping(HVA, bytes, Backing::Device { hpa })],
        slots: vec![slot(1, GPA, bytes, HVA)],
        ..nothing()
    }
}

pub(crate) fn touch(cpu: u8, gpa: u64, bytes: u64, kind: AccessKind) -> Touch {
    Touch {
        cpu,
        gpa,
        bytes,
        stride: 4 * KIB,
        kind,
    }
}

/// Runs a plan with several seeds, undisturbed and disturbed; nothing may be found. Gives the
/// outcomes of the undisturbed runs.
pub(crate) fn explore(plan: &Plan) -> Vec<Outcome> {
    let seeds = scaled(20);
    for seed in seeds..2 * seeds {
        let options = Options {
            seed,
            disturbance: Disturbance {
                busy: Some(10),
                no_memory: Some(30),
                narrow: Some(3),
            },
            failing: Some(20),
            ..Options::default()
        };
        clean(plan, &options);
    }
    let run = |seed| {
        clean(
            plan,
            &Options {
                seed,
                ..Options::default()
            },
        )
    };
    (0..seeds).map(run).collect()
}

/// Runs a script on a plan with so many seeds; nothing may be found.
pub(crate) fn explore_script(plan: &Plan, script: &[Step], seeds: u64) -> Vec<Outcome> {
    let plan = Plan {
        steps: u64::MAX,
        ..plan.clone()
    };
    let run = |seed| {
        let options = Options {
            seed,
            script: script.to_vec(),
            ..Options::default()
        };
        clean(&plan, &options)
    };
    (0..scaled(seeds)).map(run).collect()
}

/// How often the host did `what`, over all runs.
pub(crate) fn times(outcomes: &[Outcome], what: &str) -> u64 {
    let churns = outcomes
        .iter()
        .filter_map(|outcome| outcome.report.churn.as_ref());
    churns.filter_map(|churn| churn.changes.get(what)).sum()
}
