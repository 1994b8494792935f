//! Copying and zeroing whole frames. Frames are aligned, so both go by the cache line, several
//! times faster than the general routines, which must bear with any address and size.

use core::arch::asm;

use super::registers::read;

/// Bytes that one step of [`copy`] moves: what fits into the registers, so that the two ranges are
/// used in turns as long as can be. Frames that differ in the high bits of their addresses alone
/// share the sets of a cache, or of an emulator's.
const STEP: u64 = 128;

/// Copies `bytes` bytes.
///
/// # Safety
///
/// Both ranges must be mapped as normal memory, aligned to a page, whole pages long, and apart;
/// nobody else may write to them meanwhile.
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, bytes: u64) {
    // SAFETY: the caller vouches for both ranges; the loop leaves neither.
    unsafe {
        asm!(
            "2:",
            "ldp {r0}, {r1}, [{from}]",
            "ldp {r2}, {r3}, [{from}, #16]",
            "ldp {r4}, {r5}, [{from}, #32]",
            "ldp {r6}, {r7}, [{from}, #48]",
            "ldp {r8}, {r9}, [{from}, #64]",
            "ldp {r10}, {r11}, [{from}, #80]",
            "ldp {r12}, {r13}, [{from}, #96]",
            "ldp {r14}, {r15}, [{from}, #112]",
            "stp {r0}, {r1}, [{to}]",
            "stp {r2}, {r3}, [{to}, #16]",
            "stp {r4}, {r5}, [{to}, #32]",
            "stp {r6}, {r7}, [{to}, #48]",
            "stp {r8}, {r9}, [{to}, #64]",
            "stp {r10}, {r11}, [{to}, #80]",
            "stp {r12}, {r13}, [{to}, #96]",
            "stp {r14}, {r15}, [{to}, #112]",
            "add {from}, {from}, #128",
            "add {to}, {to}, #128",
            "subs {steps}, {steps}, #1",
            "b.ne 2b",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            steps = inout(reg) bytes / STEP => _,
            r0 = out(reg) _,
            r1 = out(reg) _,
            r2 = out(reg) _,
            r3 = out(reg) _,
            r4 = out(reg) _,
            r5 = out(reg) _,
            r6 = out(reg) _,
            r7 = out(reg) _,
            r8 = out(reg) _,
            r9 = out(reg) _,
            r10 = out(reg) _,
            r11 = out(reg) _,
            r12 = out(reg) _,
            r13 = out(reg) _,
            r14 = out(reg) _,
            r15 = out(reg) _,
            options(nostack)
        );
    }
}

/// Fills `bytes` bytes with zeros.
///
/// # Safety
///
/// The range must be mapped as normal memory, aligned to a page and whole pages long; nobody else
/// may use it meanwhile.
pub(super) unsafe fn zero(start: *mut u8, bytes: u64) {
    // DCZID_EL0: bit 4 prohibits the instruction, bits 3:0 are log2 of the words it zeroes, 512 at
    // most.
    let instruction = read!("dczid_el0");
    if instruction & 1 << 4 != 0 {
        // SAFETY: the caller vouches for the range.
        unsafe { start.write_bytes(0, bytes as usize) };
        return;
    }
    let step = 4 << (instruction & 0xf);
    // SAFETY: the caller vouches for the range; pages are made of whole blocks.
    unsafe {
        asm!(
            "2:",
            "dc zva, {at}",
            "add {at}, {at}, {step}",
            "subs {steps}, {steps}, #1",
            "b.ne 2b",
            at = inout(reg) start => _,
            step = in(reg) step,
            steps = inout(reg) bytes / step => _,
            options(nostack)
        );
    }
}
