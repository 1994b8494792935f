# The entry point, the trap vector, and the ways into the guest and back.

.section .head, "ax"
.global start
start:
    la sp, stack_end
    la t0, bss_start
    la t1, bss_end
0:  bgeu t0, t1, 1f
    sd zero, 0(t0)
    addi t0, t0, 8
    j 0b
1:  la t0, unasked_trap
    csrw mtvec, t0
    j main

.text
.balign 4
unasked_trap:
    csrr a0, mcause
    csrr a1, mtval
    csrr a2, mepc
    j unexpected_trap

# enter_guest(pc, mstatus, a0, a1, results): runs the guest until it traps.
# Fills results with mcause, mtval, mtval2 and the guest's a0.
.global enter_guest
enter_guest:
    addi sp, sp, -128
    sd ra, 0(sp)
    sd s0, 8(sp)
    sd s1, 16(sp)
    sd s2, 24(sp)
    sd s3, 32(sp)
    sd s4, 40(sp)
    sd s5, 48(sp)
    sd s6, 56(sp)
    sd s7, 64(sp)
    sd s8, 72(sp)
    sd s9, 80(sp)
    sd s10, 88(sp)
    sd s11, 96(sp)
    sd gp, 104(sp)
    sd tp, 112(sp)
    sd a4, 120(sp)
    csrw mscratch, sp
    csrw mepc, a0
    csrw mstatus, a1
    la t0, leave_guest
    csrw mtvec, t0
    mv a0, a2
    mv a1, a3
    mret

.balign 4
leave_guest:
    csrr sp, mscratch
    ld a4, 120(sp)
    sd a0, 24(a4)
    csrr t0, mcause
    sd t0, 0(a4)
    csrr t0, mtval
    sd t0, 8(a4)
    csrr t0, 0x34b              # mtval2
    sd t0, 16(a4)
    la t0, unasked_trap
    csrw mtvec, t0
    ld ra, 0(sp)
    ld s0, 8(sp)
    ld s1, 16(sp)
    ld s2, 24(sp)
    ld s3, 32(sp)
    ld s4, 40(sp)
    ld s5, 48(sp)
    ld s6, 56(sp)
    ld s7, 64(sp)
    ld s8, 72(sp)
    ld s9, 80(sp)
    ld s10, 88(sp)
    ld s11, 96(sp)
    ld gp, 104(sp)
    ld tp, 112(sp)
    addi sp, sp, 128
    ret

# load_for_guest(address, results) and store_for_guest(address, value, results): HLV.D and HSV.D.
# They return 0 and, for a load, the value in results[3]; or 1 and the trap's registers as above.
.global load_for_guest
load_for_guest:
    la t0, 1f
    csrw mtvec, t0
    .insn r 0x73, 4, 0x36, t1, a0, x0
    sd t1, 24(a1)
    j 2f
.global store_for_guest
store_for_guest:
    la t0, 1f
    csrw mtvec, t0
    .insn r 0x73, 4, 0x37, x0, a0, a1
    j 2f
2:  la t0, unasked_trap
    csrw mtvec, t0
    li a0, 0
    ret
.balign 4
1:  la t0, unasked_trap
    csrw mtvec, t0
    li a0, 1
    ret
