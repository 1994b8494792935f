//! Entry from the kernel: finds the arguments, runs the command, ends the program.

use core::arch::global_asm;
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;

use crate::command;
use crate::console::say;
use crate::syscall;

// The kernel enters with everything in registers undefined but `sp`, which is 16-byte aligned and
// points at `argc` (the ELF auxiliary layout that every Linux architecture shares).
global_asm!(
    ".global _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "b {run}",
    run = sym run,
);

/// Arguments beyond these are not looked at.
const MAX_ARGUMENTS: usize = 32;

/// # Safety
/// `stack` must point at `argc`, followed by as many pointers to C strings.
unsafe extern "C" fn run(stack: *const usize) -> ! {
    // SAFETY: the first word of the initial stack is `argc`.
    let count = unsafe { *stack }.min(MAX_ARGUMENTS);
    let mut arguments = [c""; MAX_ARGUMENTS];
    for (index, argument) in arguments.iter_mut().enumerate().take(count) {
        // SAFETY: `argv` follows `argc` and has that many entries.
        let pointer = unsafe { stack.add(1 + index) }.cast::<*const c_char>();
        // SAFETY: as above; the entry is initialised.
        let pointer = unsafe { *pointer };
        // SAFETY: each entry is a C string that lives as long as the process.
        *argument = unsafe { CStr::from_ptr(pointer) };
    }
    let status = match command::run(arguments.get(1..count).unwrap_or_default()) {
        Ok(()) => 0,
        Err(failure) => {
            say!("error {failure}");
            1
        }
    };
    syscall::exit(status)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("error {info}");
    syscall::exit(101)
}
