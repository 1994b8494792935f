// The entry point, the exception vectors, and the way into the guest and back.

.section .head, "ax"
.global start
start:
    adrp x0, stack_end
    add x0, x0, :lo12:stack_end
    mov sp, x0
    adrp x0, bss_start
    add x0, x0, :lo12:bss_start
    adrp x1, bss_end
    add x1, x1, :lo12:bss_end
0:  cmp x0, x1
    b.hs 1f
    stp xzr, xzr, [x0], #16
    b 0b
1:  adrp x0, vectors
    add x0, x0, :lo12:vectors
    msr vbar_el2, x0
    isb
    bl main

// enter_guest(pc, spsr, x0, x1, results): runs the guest until its next exception.
// Fills results with ESR_EL2, HPFAR_EL2, FAR_EL2 and the guest's x0.
.text
.global enter_guest
enter_guest:
    stp x29, x30, [sp, #-112]!
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    str x4, [sp, #96]
    msr elr_el2, x0
    msr spsr_el2, x1
    mov x0, x2
    mov x1, x3
    eret

leave_guest:
    ldr x4, [sp, #96]
    mrs x1, esr_el2
    mrs x2, hpfar_el2
    stp x1, x2, [x4]
    mrs x1, far_el2
    stp x1, x0, [x4, #16]
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp x29, x30, [sp], #112
    ret

// TPIDR_EL2 says where to go on if an exception is expected; x16 then has its syndrome.
own_exception:
    mrs x17, tpidr_el2
    cbz x17, 0f
    msr elr_el2, x17
    mrs x16, esr_el2
    eret
0:  mrs x0, esr_el2
    mrs x1, far_el2
    mrs x2, elr_el2
    bl unexpected_exception

.balign 2048
vectors:
.rept 8                     // from EL2
    b own_exception
    .balign 128
.endr
.rept 8                     // from the guest
    b leave_guest
    .balign 128
.endr
