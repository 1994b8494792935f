//! What runs on bare metal: from the boot image's first Rust function to the end of the guest.
#![expect(
    clippy::cast_possible_truncation,
    reason = "addresses and sizes are 64-bit, and so is every CPU with an EL2 of this kind"
)]

mod bulk;
mod cache;
mod churn;
mod clock;
mod console;
mod cpu;
mod exceptions;
mod frames;
mod heap;
mod loader;
mod memory;
mod mmu;
mod platform;
mod registers;
mod report;
mod run;
mod semihosting;
mod stage1;
mod ticks;
mod vcpu;

use alloc::sync::Arc;
use core::fmt;

use dtoolkit::fdt::Fdt;
use slat_hypervisor::division::Division;
use slat_hypervisor::machine::Machine;
use slat_hypervisor::options::Options;
use slat_hypervisor::span::Span;
use slat_report::Outcome;

use churn::Churn;
use console::say;
use cpu::Features;
use frames::HostMemory;
use loader::Loaded;
use memory::Guest;
use run::Run;
use semihosting::Status;
use ticks::Ticks;
use vcpu::Vcpu;

core::arch::global_asm!(include_str!("boot.s"));

/// The first function that may use everything Rust has: the MMU is on, statics are in place.
/// `tree` is the device tree's address.
#[unsafe(no_mangle)]
extern "C" fn start_hypervisor(tree: u64) -> ! {
    heap::begin();
    // SAFETY: the early map has this device, and nothing else uses it.
    unsafe { console::use_uart(console::EARLY_ADDRESS) };
    let blob = core::ptr::with_exposed_provenance::<u8>(tree as usize);
    // SAFETY: the boot protocol hands over a device tree, which nobody writes.
    let tree = unsafe { Fdt::from_raw(blob) };
    let tree = tree.unwrap_or_else(|error| refuse(format_args!("no device tree: {error}")));
    let machine = Machine::read(&tree).unwrap_or_else(|error| refuse(format_args!("{error}")));
    let options =
        Options::parse(&machine.options).unwrap_or_else(|error| refuse(format_args!("{error}")));
    let division = Division::new(&machine, mmu::image(), span_of(tree.data()))
        .unwrap_or_else(|error| refuse(format_args!("{error}")));
    mmu::map_machine(&machine);
    if let Some(uart) = machine.device("uart") {
        // SAFETY: the final map has this device, and the early console is given up.
        unsafe { console::use_uart(uart.start()) };
    }
    for span in &division.heap {
        // SAFETY: the division says that this memory is nobody else's, and it is mapped now.
        unsafe { heap::grow(*span) };
    }
    let features = Features::read();
    if options.churn.is_some() && features.memory_tagging {
        refuse(format_args!(
            "churn: memory is moved without its allocation tags; use a machine without them"
        ));
    }
    // SAFETY: the division says that this memory is nobody else's, and it is mapped now.
    let host = unsafe { HostMemory::new(&division.frames, features.force_write_back) };
    run_guest(&machine, &options, &tree, &Arc::new(host), features)
}

/// Makes the guest, runs it, reports, and stops the machine.
fn run_guest(
    machine: &Machine,
    options: &Options,
    tree: &Fdt<'_>,
    host: &Arc<HostMemory>,
    features: Features,
) -> ! {
    let frames_before = host.free_pages();
    let ram = guest_ram(machine, options, frames_before);
    let seed = options
        .churn
        .map(|churn| churn.seed.unwrap_or_else(clock::now));
    let (mut guest, loaded) = make_guest(machine, options, tree, host, features, ram);
    let churn = options.churn.zip(seed).map(|(churn, seed)| {
        say!("churn with seed={seed} rate={}", churn.rate);
        // SAFETY: nothing else at EL2 uses the GIC, and the final map has it.
        let ticks = unsafe { Ticks::new(machine, churn.rate) }
            .unwrap_or_else(|error| refuse(format_args!("churn: {error}")));
        let mut churn = Churn::new(seed, ram.end(), frames_before);
        loaded.ranges().for_each(|range| churn.note_mapped(range));
        (churn, ticks)
    });
    let memory = Arc::clone(&guest.memory);
    let vcpu = Vcpu::new(loaded.entry, loaded.tree, features);
    say!(
        "the guest starts with {} KiB of memory",
        options.memory >> 10
    );
    let finished = Run::new(vcpu, &mut guest, memory.vcpu(), churn).until_stop();
    drop(memory);
    let mut report = report::build(&guest, &finished, options, seed, loaded.frames);
    guest.tear_down();
    let frames_after = host.free_pages();
    report.churn = finished.churn.map(|churn| churn.into_report(frames_after));
    if frames_before != frames_after {
        let lost = alloc::format!("{frames_before} free frames before, {frames_after} after");
        report.outcome = Outcome::Failed(lost);
    }
    report::send(&report);
    stop(&report.outcome)
}

/// The guest's RAM: as large as asked for, where the machine's begins.
fn guest_ram(machine: &Machine, options: &Options, free_pages: u64) -> Span {
    let most = loader::most_memory(free_pages);
    if options.memory > most {
        let (asked, most) = (options.memory, most >> 20);
        refuse(format_args!(
            "memory={asked}: expected at most {most}M on this machine"
        ));
    }
    machine
        .ram
        .first()
        .and_then(|bank| Span::new(bank.start(), options.memory))
        .unwrap_or_else(|| refuse(format_args!("the machine's memory leaves no room")))
}

/// Makes the guest's memory and puts into it what the guest starts with.
fn make_guest(
    machine: &Machine,
    options: &Options,
    tree: &Fdt<'_>,
    host: &Arc<HostMemory>,
    features: Features,
    ram: Span,
) -> (Guest, Loaded) {
    let mut guest =
        Guest::new(host, features).unwrap_or_else(|error| refuse(format_args!("{error}")));
    let root = guest
        .root()
        .unwrap_or_else(|error| refuse(format_args!("{error}")));
    // SAFETY: the tree is empty, and slat lets nothing into it that is not the guest's.
    unsafe { vcpu::prepare(features, root, options.churn.is_some()) };
    let loaded = loader::load(&guest, machine, tree, ram)
        .unwrap_or_else(|error| refuse(format_args!("{error}")));
    guest
        .create_regions(machine, options, ram, &loaded.spans)
        .unwrap_or_else(|error| refuse(format_args!("{error}")));
    (guest, loaded)
}

/// Stops the machine with the status that `outcome` comes to.
fn stop(outcome: &Outcome) -> ! {
    let status = match outcome {
        Outcome::Off => {
            say!("the guest switched itself off");
            Status::Off
        }
        Outcome::Reset => {
            say!("the guest reset itself");
            Status::Reset
        }
        Outcome::Failed(reason) => {
            say!("failed: {reason}");
            Status::Failed
        }
        _ => Status::Failed,
    };
    semihosting::exit(status)
}

/// Says why the hypervisor cannot start with what it was given, and stops.
fn refuse(reason: fmt::Arguments<'_>) -> ! {
    say!("{reason}");
    semihosting::exit(Status::Usage)
}

/// Where `bytes` lie.
fn span_of(bytes: &[u8]) -> Span {
    let start = bytes.as_ptr().expose_provenance() as u64;
    Span::new(start, bytes.len() as u64).unwrap_or_else(|| unreachable!("no slice wraps"))
}
