//! The end of a broken hypervisor: registers on the console, a failing exit status.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use super::console::{self, say};
use super::registers::read;
use super::semihosting::{self, Status};

/// Set while the end is under way: a second failure must not start over.
static FAILING: AtomicBool = AtomicBool::new(false);

/// General-purpose registers as `fatal_exception_entry` leaves them on the emergency stack.
#[repr(C)]
struct Frame {
    stack: u64,
    general: [u64; 31],
}

const NAMES: [&str; 8] = [
    "synchronous exception (SP_EL0)",
    "IRQ (SP_EL0)",
    "FIQ (SP_EL0)",
    "SError (SP_EL0)",
    "synchronous exception",
    "IRQ",
    "FIQ",
    "SError",
];

/// An exception at EL2, which nothing here provokes.
#[unsafe(no_mangle)]
extern "C" fn fatal_exception(vector: u64, frame: &Frame) -> ! {
    begin_failing();
    let name = usize::try_from(vector)
        .ok()
        .and_then(|vector| NAMES.get(vector));
    say!("panic: {} in the hypervisor", name.unwrap_or(&"exception"));
    for (row, values) in frame.general.chunks(4).enumerate() {
        match *values {
            [a, b, c, d] => say!("x{:<2} {a:016x} {b:016x} {c:016x} {d:016x}", 4 * row),
            [a, b, c] => say!("x{:<2} {a:016x} {b:016x} {c:016x}", 4 * row),
            _ => {}
        }
    }
    say!("sp  {:016x}", frame.stack);
    stop()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin_failing();
    match info.location() {
        Some(location) => say!("panic: {} at {location}", info.message()),
        None => say!("panic: {}", info.message()),
    }
    stop()
}

fn begin_failing() {
    if FAILING.swap(true, Ordering::Relaxed) {
        semihosting::halt();
    }
    console::take_over();
}

fn stop() -> ! {
    say!(
        "esr_el2 {:016x}  elr_el2   {:016x}",
        read!("esr_el2"),
        read!("elr_el2")
    );
    say!(
        "far_el2 {:016x}  hpfar_el2 {:016x}",
        read!("far_el2"),
        read!("hpfar_el2")
    );
    say!(
        "hcr_el2 {:016x}  vttbr_el2 {:016x}",
        read!("hcr_el2"),
        read!("vttbr_el2")
    );
    say!(
        "spsr_el2 {:016x} image at {:#x}",
        read!("spsr_el2"),
        super::mmu::image().start()
    );
    semihosting::exit(Status::Failed)
}
