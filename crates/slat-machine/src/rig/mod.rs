//! The rig: slat's whole stack on the machine, with a guest that accesses and a host that changes.
//!
//! A [`Plan`] says what there is: the host's mappings, the guest's slots, who accesses what. [`run`]
//! builds it: a machine with a judge for a witness, an address space on the machine's RAM, guest
//! memory between the two. Every CPU is a [task](crate::schedule): the guest's CPUs access memory
//! and fault, the host's migrate, discard, protect and revoke what is behind it. The machine does
//! whatever hardware may do, the judge knows what it must not, and the guest remembers what it
//! wrote. Whatever one of them objects to is the run's finding, and its seed replays it.
//!
//! [`mod@draw`] draws plans from seeds, [`soak`] runs many of them.

pub mod action;
mod churn;
mod contents;
mod devices;
pub mod draw;
pub mod formats;
mod guest;
pub mod layout;
pub mod plan;
pub mod script;
mod setup;
mod slots;
pub mod soak;
mod summary;
mod witness;

use core::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use slat::transaction::TransactionError;
use slat_mm::MapError;
use slat_report::Report;
use slat_table::address::RangeError;
use slat_table::table::NewTableError;

use crate::event::Event;
use crate::host::Disturbance;
use crate::modelled::Modelled;
use crate::schedule::{self, Task};
use setup::Rig;

pub use formats::Row;
pub use plan::Plan;

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The memory report, in the form that a real boot gives it.
    pub report: Report,
    /// What was wrong, as a story with the seed; `None` if nothing was.
    pub finding: Option<String>,
    /// The name of the rule that the finding breaks.
    pub rule: Option<String>,
}

/// How a run is watched and disturbed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The format of the guest's tables.
    pub format: &'static Row,
    /// Where every choice comes from.
    pub seed: u64,
    /// Where to write the trace, one record a line.
    pub trace: Option<PathBuf>,
    /// Nobody judges while it runs: the trace is for others to judge, and a run goes on after its
    /// first mistake.
    pub unjudged: bool,
    /// How often the host disturbs.
    pub disturbance: Disturbance,
    /// One in so many allocations of tables and frames fails; `None`: none does while there is
    /// memory.
    pub failing: Option<usize>,
    /// If there is one, every CPU does its steps of this, in order, and nothing at random.
    pub script: Vec<script::Step>,
}

/// What of a plan cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RigError {
    /// A range of the plan is none.
    #[error("`{name}`: {error}")]
    Range {
        /// Of what.
        name: String,
        /// Why.
        error: RangeError,
    },
    /// A mapping cannot be made.
    #[error("mapping `{name}`: {error}")]
    Mapping {
        /// Its name.
        name: String,
        /// Why.
        error: MapError,
    },
    /// A slot cannot be created.
    #[error("slot `{name}`: {error}")]
    Slot {
        /// Its name.
        name: String,
        /// Why.
        error: TransactionError,
    },
    /// The guest's memory cannot be made.
    #[error("the guest's tables: {0}")]
    Tables(#[from] NewTableError),
    /// The machine does not take the registers.
    #[error("the registers of CPU {cpu}: {reason}")]
    Registers {
        /// Which CPU.
        cpu: u8,
        /// What is wrong.
        reason: String,
    },
    /// The machine's RAM is not what a machine can have.
    #[error("{ram:#x} bytes of RAM: must be a multiple of 2 MiB, and not 0")]
    Ram {
        /// The size asked for.
        ram: u64,
    },
    /// There are more CPUs than the model has room for, or none for the guest.
    #[error(
        "{guest} CPUs for the guest and {host} for the host: 1 to 16 together, 1 for the guest"
    )]
    Cpus {
        /// CPUs that run the guest.
        guest: u8,
        /// CPUs that run the host's work.
        host: u8,
    },
    /// The trace cannot be written.
    #[error("the trace {}: {error}", .path.display())]
    Trace {
        /// Where to.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// The rule broken, by a short name.
    pub(crate) rule: String,
    /// What happened, the rule first.
    pub(crate) story: String,
}

impl Finding {
    pub(crate) fn new(rule: &str, story: impl fmt::Display) -> Self {
        Self {
            rule: rule.to_owned(),
            story: format!("{rule}: {story}"),
        }
    }
}

/// Runs `plan`.
///
/// # Errors
///
/// [`RigError`]: what of the plan cannot be set up, or why the trace cannot be written.
pub fn run(plan: &Plan, options: &Options) -> Result<Outcome, RigError> {
    check(plan)?;
    options.format.run(plan, options)
}

/// Runs `plan` with tables of the format `F` on hardware with `features`.
fn run_on<F: Modelled>(
    plan: &Plan,
    options: &Options,
    features: F::Features,
) -> Result<Outcome, RigError> {
    let (rig, _telling) = setup::build::<F>(plan, options, features)?;
    fork(&rig);
    let ended = schedule::run(rig.seeds.schedule, tasks(&rig));
    if let Err(error) = &ended {
        rig.find(of_schedule(error));
    }
    // Where tasks are left hanging, what they hold cannot be taken apart.
    let stuck = Arc::strong_count(&rig) > 1;
    if stuck {
        let report = summary::of_plan(plan, options.seed);
        return Ok(outcome(report, rig.finding(), options));
    }
    join(&rig);
    let mut report = summary::of_rig(&rig, options.seed);
    let (machine, before) = (Arc::clone(&rig.machine), rig.free_at_first);
    let finding = setup::take_apart(rig);
    summary::count_frames(&mut report, before, machine.free_bytes());
    Ok(outcome(report, finding, options))
}

fn check(plan: &Plan) -> Result<(), RigError> {
    let (guest, host, ram) = (plan.guest_cpus, plan.host_cpus, plan.ram);
    if guest == 0 || u16::from(guest) + u16::from(host) > 16 {
        return Err(RigError::Cpus { guest, host });
    }
    if ram == 0 || !ram.is_multiple_of(2 << 20) {
        return Err(RigError::Ram { ram });
    }
    Ok(())
}

fn outcome(report: Report, finding: Option<Finding>, options: &Options) -> Outcome {
    let (format, seed) = (options.format.name(), options.seed);
    let rule = finding.as_ref().map(|finding| finding.rule.clone());
    let story = |Finding { story, .. }: Finding| {
        format!(
            "{}\nseed {seed}: replay with --format {format} --seed {seed}",
            story.trim_end()
        )
    };
    Outcome {
        report,
        finding: finding.map(story),
        rule,
    }
}

fn of_schedule(error: &schedule::ScheduleError) -> Finding {
    let rule = match error {
        schedule::ScheduleError::Deadlock { .. } => "deadlock",
        schedule::ScheduleError::Livelock { .. } => "livelock",
        schedule::ScheduleError::Panic { .. } => "panic",
    };
    Finding::new(rule, error.to_string())
}

fn tasks<F: Modelled>(rig: &Arc<Rig<F>>) -> Vec<Task> {
    let guest = rig.plan.guest_cpus;
    let task = |cpu: u8| {
        let rig = Arc::clone(rig);
        let name = if cpu < guest {
            format!("guest CPU {cpu}")
        } else {
            format!("host CPU {cpu}")
        };
        Task::new(name, cpu, move || {
            handed_over(&rig, cpu);
            if !rig.script.is_empty() {
                script::run(&rig, cpu);
            } else if cpu < guest {
                guest::run(&rig, cpu);
            } else {
                churn::run(&rig, cpu);
            }
            rig.machine.release(cpu);
            handed_over(&rig, cpu);
        })
    };
    (0..rig.cpus()).map(task).collect()
}

/// The lock whose holders stand for the start and the end of tasks: what one did before is seen by
/// those who come after.
const HAND_OVER: u64 = 0;

fn handed_over<F: Modelled>(rig: &Rig<F>, cpu: u8) {
    rig.machine.note(cpu, Event::Locked { lock: HAND_OVER });
    rig.machine.note(cpu, Event::Unlocked { lock: HAND_OVER });
}

fn fork<F: Modelled>(rig: &Rig<F>) {
    rig.machine.release(0);
    handed_over(rig, 0);
}

fn join<F: Modelled>(rig: &Rig<F>) {
    handed_over(rig, 0);
}
