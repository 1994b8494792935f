@ The entry point, the exception vectors, and the way into the guest and back.

.arch_extension virt
.arm

.section .head, "ax"
.global start
start:
    ldr sp, =stack_end
    ldr r0, =bss_start
    ldr r1, =bss_end
    mov r2, #0
0:  cmp r0, r1
    strlo r2, [r0], #4
    blo 0b
    ldr r0, =vectors
    mcr p15, 4, r0, c12, c0, 0      @ HVBAR
    isb
    bl main

.text
@ enter_guest(pc, spsr, registers): runs the guest until it traps. Registers are r0, unused, r2 and
@ r3 of the guest on the way in; HSR, HPFAR, HDFAR, HIFAR, and the guest's r2 and r3 on the way out.
.global enter_guest
enter_guest:
    push {r2, r4-r11, lr}
    msr ELR_hyp, r0
    msr SPSR_fsxc, r1
    mov r4, r2
    ldr r0, [r4]
    ldrd r2, r3, [r4, #8]
    eret

leave_guest:
    pop {r4}
    mrc p15, 4, r0, c5, c2, 0       @ HSR
    mrc p15, 4, r1, c6, c0, 4       @ HPFAR
    strd r0, r1, [r4]
    mrc p15, 4, r0, c6, c0, 0       @ HDFAR
    mrc p15, 4, r1, c6, c0, 2       @ HIFAR
    strd r0, r1, [r4, #8]
    strd r2, r3, [r4, #16]
    pop {r4-r11, pc}

@ HTPIDR says where to go on if an exception is expected; r12 then has its syndrome.
own_exception:
    mrc p15, 4, r12, c13, c0, 2
    cmp r12, #0
    beq 0f
    msr ELR_hyp, r12
    mrc p15, 4, r12, c5, c2, 0
    eret
0:  mrc p15, 4, r0, c5, c2, 0
    mrc p15, 4, r1, c6, c0, 0
    mrs r2, ELR_hyp
    bl unexpected_exception

.balign 32
vectors:
    b own_exception
    b own_exception
    b own_exception
    b own_exception
    b own_exception
    b leave_guest                   @ from the guest
    b own_exception
    b own_exception
.ltorg
