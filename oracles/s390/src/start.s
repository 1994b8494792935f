# Start, and the way into translated address spaces and back.
#
# z/Architecture Principles of Operation (SA22-7832), chapters 4 (PSW, control registers) and 6
# (interruptions).

.section .text.start, "ax"
.globl _start
_start:                             # real mode, 64-bit addresses
    larl    %r1, cr0
    lctlg   %c0, %c0, 0(%r1)
    larl    %r15, stack_top
    brasl   %r14, main
0:  j       0b

.text
# enter_guest(PSW, address, value, [r4, r5]): loads the PSW and runs until a supervisor call
# (returns 0) or a program interruption (returns 1).
.globl enter_guest
enter_guest:
    stmg    %r6, %r15, 48(%r15)
    larl    %r1, host_stack
    stg     %r15, 0(%r1)
    stg     %r5, 8(%r1)
    lpswe   0(%r2)

# What runs in the secondary-space mode: instructions come from the primary space, operands from
# the secondary.
.globl guest_load
guest_load:
    lg      %r4, 0(%r3)
    svc     0
.globl guest_store
guest_store:
    stg     %r4, 0(%r3)
    svc     0
.globl guest_question
guest_question:
    lrag    %r4, 0(%r3)
    ipm     %r5
    svc     0

.globl left_by_call
left_by_call:
    lghi    %r2, 0
    j       left
.globl left_by_interruption
left_by_interruption:
    lghi    %r2, 1
left:
    larl    %r1, host_stack
    lg      %r15, 0(%r1)
    lg      %r1, 8(%r1)
    stg     %r4, 0(%r1)
    stg     %r5, 8(%r1)
    lmg     %r6, %r15, 48(%r15)
    br      %r14

.section .rodata
.balign 8
cr0:                                # secondary-space control (37), instruction-execution
    .quad   0x0000000004140000      # protection (43), additional floating-point registers (45)

.bss
.balign 8
host_stack:
    .space  16
    .space  0x8000
stack_top:
    .space  160                     # the first frame's register save area
