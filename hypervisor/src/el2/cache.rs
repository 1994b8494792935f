//! Cache maintenance by address, for memory that the guest may read past the caches: until it
//! has switched its own MMU on, its accesses are not cacheable (DDI 0487, section D8.5.2), and its
//! instruction fetches never see the data cache.

use core::arch::asm;

use slat_hypervisor::span::Span;

use super::registers::read;

/// Writes back what the data caches hold of `span`, so that non-cacheable accesses see it.
pub(super) fn clean(span: Span) {
    for line in lines(span) {
        // SAFETY: cleaning a line changes no value that a program can see.
        unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    finish();
}

/// Writes back and drops what the data caches hold of `span`, so that cacheable accesses see what
/// was written past the caches.
pub(super) fn clean_and_invalidate(span: Span) {
    for line in lines(span) {
        // SAFETY: the line is written back before it is dropped, so no value is lost.
        unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    finish();
}

/// Drops what the data caches hold of `span` without writing it back. Only for memory that was
/// last written past the caches.
pub(super) fn invalidate(span: Span) {
    for line in lines(span) {
        // SAFETY: the boot protocol has all of the image cleaned, so a cached line is either clean
        // or older than what was written since.
        unsafe { asm!("dc ivac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    finish();
}

/// Makes instruction fetches see what was written or cleaned before, whatever address they use.
pub(super) fn invalidate_instructions() {
    // SAFETY: dropping instructions from the cache changes nothing that a program can see.
    unsafe {
        asm!(
            "dsb ish",
            "ic ialluis",
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        );
    };
}

fn lines(span: Span) -> impl Iterator<Item = u64> {
    // CTR_EL0.DminLine: log2 of the words in the smallest data cache line.
    let line = 4 << (read!("ctr_el0") >> 16 & 0xf);
    (span.start() & !(line - 1)..span.end()).step_by(line as usize)
}

fn finish() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}
