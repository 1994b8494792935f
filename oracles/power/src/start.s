# Start, interrupts, and the way into the guest and back.
#
# Power ISA 3.0B: book III, 7.5 (interrupts), 3.3.1 (hrfid), 4.2 (MSR).

.macro swapped instruction          # an instruction for big-endian mode
    .long ((\instruction & 0xff) << 24) | ((\instruction & 0xff00) << 8) | ((\instruction >> 8) & 0xff00) | ((\instruction >> 24) & 0xff)
.endm

.section .vectors, "ax"
.org 0x10
.globl _start
_start:                             # big-endian, 64-bit, hypervisor state
    swapped 0x7d6000a6              # mfmsr  r11
    swapped 0x656b0280              # oris   r11, r11, 0x280   MSR.VEC, MSR.VSX
    swapped 0x616b2001              # ori    r11, r11, 0x2001  MSR.FP, MSR.LE
    swapped 0x7d7b03a6              # mtsrr1 r11
    swapped 0x39800040              # li     r12, 0x40
    swapped 0x7d9a03a6              # mtsrr0 r12
    swapped 0x4c000024              # rfid
.org 0x40
    lis     1, stack_top@h
    ori     1, 1, stack_top@l
    lis     2, .TOC.@h
    ori     2, 2, .TOC.@l
    mfspr   3, 1008                 # HID0
    li      4, 1
    rldicr  4, 4, 59, 63            # HILE: interrupts to the hypervisor are little-endian too
    or      3, 3, 4
    sync
    mtspr   1008, 3
    isync
    lis     12, main@h
    ori     12, 12, main@l
    mtctr   12
    bctrl
0:  b       0b

# Interrupts that a guest can be left with. r3 is lost.
.macro vector address
.org \address
    li      3, \address
    b       left_guest
.endm
vector 0x200                        # machine check
vector 0x300                        # data storage
vector 0x380                        # data segment
vector 0x400                        # instruction storage
vector 0x480                        # instruction segment
vector 0x600                        # alignment
vector 0x700                        # program
vector 0x980                        # hypervisor decrementer
vector 0xc00                        # system call
vector 0xe00                        # hypervisor data storage
vector 0xe20                        # hypervisor instruction storage
vector 0xe40                        # hypervisor emulation assistance
vector 0xf80                        # hypervisor facility unavailable
.org 0x1000

# Stores or loads the registers that a function preserves: what the guest executes may be anything.
.macro preserved instruction
.irp register, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    \instruction \register, 8 * (\register - 34)(1)
.endr
.endm

.text
# enter_guest(address, r4, r5, &r5): runs the guest until it leaves; returns the interrupt's vector
.globl enter_guest
enter_guest:
    mflr    0
    std     0, 16(1)
    mfcr    0
    std     0, 8(1)
    std     2, 24(1)
    std     6, -8(1)                # below the stack pointer: nothing runs in between
    preserved std
    lis     7, host_stack@h
    ori     7, 7, host_stack@l
    std     1, 0(7)
    mtspr   314, 3                  # HSRR0
    li      8, 1
    rldicr  8, 8, 63, 63            # MSR.SF; HV, PR, IR, DR are 0
    ori     8, 8, 0x1001            # ME, LE
    mtspr   315, 8                  # HSRR1
    hrfid
left_guest:
    mfmsr   7                       # an interrupt takes the floating-point registers away
    oris    7, 7, 0x280
    ori     7, 7, 0x2000
    mtmsrd  7
    isync
    lis     7, host_stack@h
    ori     7, 7, host_stack@l
    ld      1, 0(7)
    ld      6, -8(1)
    std     5, 0(6)
    preserved ld
    ld      2, 24(1)
    ld      0, 8(1)
    mtcrf   0xff, 0
    ld      0, 16(1)
    mtlr    0
    blr

.bss
.balign 16
host_stack:
    .space 16
    .space 0x8000
stack_top:
    .space 64                       # the first frame's header
