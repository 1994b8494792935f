//! Building a run, and taking it apart.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use slat::{Config, GuestMemory};
use slat_mm::interpose::Interposed;
use slat_mm::{AddressSpace, Backing, DriverDevice, Protection};
use slat_report::Churn;
use slat_table::address::{Hpa, HpaRange, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::MemoryType;
use slat_table::format::Format;
use slat_table::geometry::Level;

use super::action::Claims;
use super::contents::Contents;
use super::devices::Devices;
use super::formats;
use super::layout;
use super::plan::{self, Plan};
use super::script::Step;
use super::slots::Slots;
use super::witness::Watch;
use super::{Finding, Options, RigError};
use crate::event::{Event, Vm};
use crate::frames::{MachineFrames, Supply};
use crate::host::Disturber;
use crate::lock::{self, ModelLocks, Telling, brief};
use crate::machine::{self, Machine};
use crate::modelled::Modelled;
use crate::platform::MachinePlatform;
use crate::random::Random;
use crate::schedule::{self, Task};

pub(crate) type Space = AddressSpace<MachineFrames, ModelLocks>;
pub(crate) type Memory<F> = GuestMemory<F, Interposed<Space, Disturber>, MachinePlatform<F>>;

/// The VM's number. Not 0: that one means the host itself to some tools that read traces.
pub(crate) const VM: Vm = 1;

/// Where each part of a run takes its choices from.
pub(crate) struct Seeds {
    pub(crate) schedule: u64,
    machine: u64,
    supply: u64,
    disturber: u64,
    /// Of the CPUs, each a number further.
    pub(crate) cpus: u64,
    ending: u64,
}

impl Seeds {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            schedule: random.bits(),
            machine: random.bits(),
            supply: random.bits(),
            disturber: random.bits(),
            cpus: random.bits(),
            ending: random.bits(),
        }
    }
}

/// Everything of one run.
pub(crate) struct Rig<F: Modelled> {
    pub(crate) plan: Plan,
    pub(crate) script: Vec<Step>,
    pub(crate) seeds: Seeds,
    pub(crate) machine: Arc<Machine>,
    pub(crate) supply: Arc<Supply>,
    /// Bytes of the machine's RAM that were free before there was anything.
    pub(crate) free_at_first: u64,
    pub(crate) space: Space,
    pub(crate) memory: Arc<Memory<F>>,
    /// The drivers of revocable mappings, by the mapping's place in the plan.
    pub(crate) drivers: Vec<Option<DriverDevice<ModelLocks>>>,
    pub(crate) slots: Slots,
    pub(crate) claims: Claims,
    pub(crate) contents: Contents,
    pub(crate) devices: Devices,
    /// What the host says of a device's memory.
    pub(crate) device_memory: MemoryType,
    pub(crate) counts: Mutex<Counts>,
    pub(crate) accesses: AtomicU64,
    finding: Mutex<Option<Finding>>,
}

/// What the tasks counted.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) faults: Vec<slat::stats::FaultStats>,
    pub(crate) churn: Churn,
}

impl<F: Modelled> Rig<F> {
    pub(crate) fn cpus(&self) -> u8 {
        let churns = self.plan.churn != plan::Churn::default() || !self.script.is_empty();
        self.plan.guest_cpus + if churns { self.plan.host_cpus } else { 0 }
    }

    /// Bytes of the format's page.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.memory.table().geometry().entry_bytes(Level::PAGE)
    }

    /// Notes what must not be, and has every task come to its end. The first finding counts.
    pub(crate) fn find(&self, finding: Finding) {
        brief(&self.finding).get_or_insert(finding);
        schedule::stop();
    }

    /// What was found, the witness first: it names the cause.
    pub(crate) fn finding(&self) -> Option<Finding> {
        let objection = self.machine.objection();
        let found = brief(&self.finding).take();
        objection.map(|error| Watch::finding(&*error)).or(found)
    }

    /// Whether the tasks are to come to their ends.
    pub(crate) fn is_over(&self) -> bool {
        if !schedule::is_stopped()
            && (self.machine.has_objection() || self.machine.steps() >= self.plan.steps)
        {
            schedule::stop();
        }
        schedule::is_stopped()
    }

    pub(crate) fn counted(&self) {
        self.accesses.fetch_add(1, Relaxed);
    }
}

impl<F: Modelled> fmt::Debug for Rig<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig").finish_non_exhaustive()
    }
}

/// Sets everything up. The second part has the machine told of locks while it lives.
pub(crate) fn build<F: Modelled>(
    plan: &Plan,
    options: &Options,
    features: F::Features,
) -> Result<(Arc<Rig<F>>, Telling), RigError> {
    let features = F::equipped(features, &plan.features);
    let page = page_bytes::<F>(&features, plan.address_bits);
    let device_memory = formats::device_memory::<F>(&features).unwrap_or(MemoryType::Device);
    let seeds = Seeds::new(options.seed);
    let watch = Watch::new(!options.unjudged, options.trace.as_deref())?;
    let config = machine::Config {
        seed: seeds.machine,
        cpus: plan.guest_cpus + plan.host_cpus,
        ram: layout::ram(plan),
        devices: layout::devices(plan),
    };
    let machine = Arc::new(Machine::new(&config, Box::new(watch)));
    let free_at_first = machine.free_bytes();
    let telling = lock::tell(&machine);
    let supply = Arc::new(Supply::new(options.failing, seeds.supply));
    let space = Space::new(MachineFrames::new(
        Arc::clone(&machine),
        Arc::clone(&supply),
    ));
    let disturber = Disturber::new(
        Arc::clone(&machine),
        VM,
        options.disturbance,
        page,
        seeds.disturber,
    );
    let memory = Memory::<F>::new(
        Interposed::new(space.clone(), Arc::new(disturber)),
        MachinePlatform::new(Arc::clone(&machine), VM, features, Arc::clone(&supply)),
        features,
        Config::new().address_bits(plan.address_bits),
    )?;
    enter::<F>(plan, &machine, &memory)?;
    let drivers = drivers(plan, device_memory)?;
    for (mapping, driver) in plan.mappings.iter().zip(&drivers) {
        map(&space, mapping, device_memory, driver.as_ref())?;
    }
    let rig = Rig {
        slots: Slots::new(),
        claims: Claims::default(),
        contents: Contents::new(plan),
        devices: Devices::new(plan, device_memory),
        device_memory,
        plan: plan.clone(),
        script: options.script.clone(),
        seeds,
        machine,
        supply,
        free_at_first,
        space,
        memory,
        drivers,
        counts: Mutex::default(),
        accesses: AtomicU64::new(0),
        finding: Mutex::new(None),
    };
    for slot in &plan.slots {
        let inserted = rig.slots.insert(&rig, slot);
        inserted.map_err(|error| RigError::Slot {
            name: slot.name.clone(),
            error,
        })?;
    }
    Ok((Arc::new(rig), telling))
}

/// Bytes of the format's page; of a page of 4 KiB if there is no such tree, of which guest memory
/// will complain.
fn page_bytes<F: Format>(features: &F::Features, address_bits: u8) -> u64 {
    F::geometry(features, address_bits)
        .map_or(PAGE_SIZE, |geometry| geometry.entry_bytes(Level::PAGE))
}

fn enter<F: Modelled>(plan: &Plan, machine: &Machine, memory: &Memory<F>) -> Result<(), RigError> {
    let table = memory.table();
    let root = table.root(VM).map_err(|error| RigError::Registers {
        cpu: 0,
        reason: error.to_string(),
    })?;
    let registers = F::registers(table.features(), root, VM);
    for cpu in 0..plan.guest_cpus + plan.host_cpus {
        machine
            .enter(cpu, VM, registers.clone())
            .map_err(|reason| RigError::Registers { cpu, reason })?;
    }
    Ok(())
}

fn drivers(
    plan: &Plan,
    memory: MemoryType,
) -> Result<Vec<Option<DriverDevice<ModelLocks>>>, RigError> {
    let driver = |mapping: &plan::Mapping| match mapping.backing {
        plan::Backing::Revocable { hpa } => {
            let range = HpaRange::new(Hpa::new(hpa), mapping.bytes);
            let range = range.map_err(|error| RigError::Range {
                name: mapping.name.clone(),
                error,
            })?;
            Ok(Some(DriverDevice::new(range, memory)))
        }
        _ => Ok(None),
    };
    plan.mappings.iter().map(driver).collect()
}

fn map(
    space: &Space,
    mapping: &plan::Mapping,
    memory: MemoryType,
    driver: Option<&DriverDevice<ModelLocks>>,
) -> Result<(), RigError> {
    let name = &mapping.name;
    let range = HvaRange::new(Hva::new(mapping.hva), mapping.bytes).map_err(|error| {
        let name = name.clone();
        RigError::Range { name, error }
    })?;
    space
        .map(
            range,
            protection(mapping),
            backing(mapping, 0, memory, driver),
        )
        .map_err(|error| RigError::Mapping {
            name: name.clone(),
            error,
        })
}

/// What the host may do through a mapping.
pub(crate) fn protection(mapping: &plan::Mapping) -> Protection {
    if mapping.writable {
        Protection::ReadWrite
    } else {
        Protection::ReadOnly
    }
}

/// What a mapping shows from `offset` on.
/// `memory` is what the host says of a device's memory.
pub(crate) fn backing(
    mapping: &plan::Mapping,
    offset: u64,
    memory: MemoryType,
    driver: Option<&DriverDevice<ModelLocks>>,
) -> Backing<ModelLocks> {
    match (&mapping.backing, driver) {
        (plan::Backing::Revocable { .. }, Some(device)) => Backing::Driver {
            device: device.clone(),
            offset,
        },
        (plan::Backing::Device { hpa } | plan::Backing::Revocable { hpa }, _) => Backing::Linear {
            hpa: Hpa::new(hpa + offset),
            memory,
        },
        (plan::Backing::Anonymous, _) => Backing::Anonymous,
        (plan::Backing::Image(bytes), _) => {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            Backing::Image(bytes.get(from..).unwrap_or(&[]).into())
        }
    }
}

/// Takes everything apart, by one of the ways that there are, and looks for what is left.
pub(crate) fn take_apart<F: Modelled>(rig: Arc<Rig<F>>) -> Option<Finding> {
    let (machine, supply) = (Arc::clone(&rig.machine), Arc::clone(&rig.supply));
    let (seed, found) = (rig.seeds.ending, rig.finding());
    // As a task, so that a panic or a deadlock in it is a finding too.
    let task = Task::new("the one who takes all apart", 0, move || end(&rig, seed));
    let ended = schedule::run(seed, vec![task]);
    let objection = || machine.objection().map(|error| Watch::finding(&*error));
    let failure = || ended.err().map(|error| super::of_schedule(&error));
    found
        .or_else(objection)
        .or_else(failure)
        .or_else(|| leak(&supply))
}

fn end<F: Modelled>(rig: &Rig<F>, seed: u64) {
    let mut random = Random::new(seed);
    if random.half() {
        for id in rig.slots.ids() {
            rig.slots.remove(rig, id);
        }
    }
    if random.half() {
        for mapping in &rig.plan.mappings {
            if let Ok(range) = HvaRange::new(Hva::new(mapping.hva), mapping.bytes) {
                rig.space.unmap(range);
            }
        }
    }
    rig.space.release();
    // No CPU enters the guest any more; its tables may go.
    rig.machine.note(0, Event::VmEnded { vm: VM });
}

fn leak(supply: &Supply) -> Option<Finding> {
    let (tables, frames) = (supply.table_bytes(), supply.frame_bytes());
    (tables != 0 || frames != 0).then(|| {
        let story = format!(
            "after everything was taken apart, {tables} bytes of tables and {frames} bytes of \
             frames were still allocated"
        );
        Finding::new("leak", story)
    })
}
