// EL2's exception vectors (DDI 0487, table D1-7), and the way into and out of the guest.
//
// While the guest runs, SP_EL2 points at the frame that `enter_guest` left: the context to fill,
// then the host's callee-saved registers. General-purpose registers are all that is saved: EL2 is
// built without floating point, and everything else at EL1 belongs to the one guest.

.equ CONTEXT_ELR, 31 * 8
.equ CONTEXT_SPSR, 32 * 8

.macro fatal number
    .balign 0x80
    msr     tpidr_el2, x0
    mov     x0, #\number
    b       fatal_exception_entry
.endm

.macro leave_guest kind
    .balign 0x80
    stp     x0, x1, [sp, #-16]!
    mov     x0, #\kind
    b       leave_guest
.endm

.section .text.vectors, "ax"
.balign 0x800
.global vectors
vectors:
    fatal 0                         // EL2 with SP_EL0: synchronous, IRQ, FIQ, SError
    fatal 1
    fatal 2
    fatal 3
    fatal 4                         // EL2 with SP_EL2
    fatal 5
    fatal 6
    fatal 7
    leave_guest 0                   // EL1 or 64-bit EL0
    leave_guest 1
    leave_guest 2
    leave_guest 3
    leave_guest 0                   // 32-bit EL0
    leave_guest 1
    leave_guest 2
    leave_guest 3

// extern "C" fn enter_guest(context: *mut Context) -> u64 (the kind of the exception)
.global enter_guest
enter_guest:
    stp     x29, x30, [sp, #-16]!
    stp     x27, x28, [sp, #-16]!
    stp     x25, x26, [sp, #-16]!
    stp     x23, x24, [sp, #-16]!
    stp     x21, x22, [sp, #-16]!
    stp     x19, x20, [sp, #-16]!
    stp     x0, xzr, [sp, #-16]!

    ldr     x1, [x0, #CONTEXT_ELR]
    ldr     x2, [x0, #CONTEXT_SPSR]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x2, x3, [x0, #2 * 8]
    ldp     x4, x5, [x0, #4 * 8]
    ldp     x6, x7, [x0, #6 * 8]
    ldp     x8, x9, [x0, #8 * 8]
    ldp     x10, x11, [x0, #10 * 8]
    ldp     x12, x13, [x0, #12 * 8]
    ldp     x14, x15, [x0, #14 * 8]
    ldp     x16, x17, [x0, #16 * 8]
    ldp     x18, x19, [x0, #18 * 8]
    ldp     x20, x21, [x0, #20 * 8]
    ldp     x22, x23, [x0, #22 * 8]
    ldp     x24, x25, [x0, #24 * 8]
    ldp     x26, x27, [x0, #26 * 8]
    ldp     x28, x29, [x0, #28 * 8]
    ldr     x30, [x0, #30 * 8]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                     // nothing is fetched past an ERET
    isb

leave_guest:
    ldr     x1, [sp, #16]           // the context
    stp     x2, x3, [x1, #2 * 8]
    stp     x4, x5, [x1, #4 * 8]
    stp     x6, x7, [x1, #6 * 8]
    stp     x8, x9, [x1, #8 * 8]
    stp     x10, x11, [x1, #10 * 8]
    stp     x12, x13, [x1, #12 * 8]
    stp     x14, x15, [x1, #14 * 8]
    stp     x16, x17, [x1, #16 * 8]
    stp     x18, x19, [x1, #18 * 8]
    stp     x20, x21, [x1, #20 * 8]
    stp     x22, x23, [x1, #22 * 8]
    stp     x24, x25, [x1, #24 * 8]
    stp     x26, x27, [x1, #26 * 8]
    stp     x28, x29, [x1, #28 * 8]
    str     x30, [x1, #30 * 8]
    ldp     x2, x3, [sp], #16       // the guest's x0 and x1
    stp     x2, x3, [x1]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    str     x2, [x1, #CONTEXT_ELR]
    str     x3, [x1, #CONTEXT_SPSR]

    add     sp, sp, #16
    ldp     x19, x20, [sp], #16
    ldp     x21, x22, [sp], #16
    ldp     x23, x24, [sp], #16
    ldp     x25, x26, [sp], #16
    ldp     x27, x28, [sp], #16
    ldp     x29, x30, [sp], #16
    ret

// An exception taken at EL2 itself: the hypervisor is broken, its stack perhaps too. The number of
// the vector is in x0, x0 in TPIDR_EL2. The guest never runs again, so its SP_EL0 may go.
fatal_exception_entry:
    msr     sp_el0, x1
    mov     x1, sp
    msr     tpidrro_el0, x1
    adrp    x1, emergency_stack_end
    add     x1, x1, :lo12:emergency_stack_end
    mov     sp, x1
    mrs     x1, sp_el0
    stp     x29, x30, [sp, #-16]!
    stp     x27, x28, [sp, #-16]!
    stp     x25, x26, [sp, #-16]!
    stp     x23, x24, [sp, #-16]!
    stp     x21, x22, [sp, #-16]!
    stp     x19, x20, [sp, #-16]!
    stp     x17, x18, [sp, #-16]!
    stp     x15, x16, [sp, #-16]!
    stp     x13, x14, [sp, #-16]!
    stp     x11, x12, [sp, #-16]!
    stp     x9, x10, [sp, #-16]!
    stp     x7, x8, [sp, #-16]!
    stp     x5, x6, [sp, #-16]!
    stp     x3, x4, [sp, #-16]!
    stp     x1, x2, [sp, #-16]!
    mrs     x2, tpidr_el2           // x0
    mrs     x3, tpidrro_el0         // the stack pointer
    stp     x3, x2, [sp, #-16]!
    mov     x1, sp
    bl      fatal_exception
    b       stop_forever
