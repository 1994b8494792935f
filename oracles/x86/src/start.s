# From the reset vector to 64-bit mode with every address below 4 GiB mapped one to one.
#
# The ROM is the whole firmware: it leaves real mode and jumps to the image in memory, which the
# emulator has loaded. Intel SDM volume 3A, 10.9 and 10.8.5; AMD APM volume 2, 14.

.section .rom, "ax"
.code16
rom:
.org 0xff00                         # near enough to the reset vector for a short jump
from_reset:
    cli
    lgdtl %cs:(rom_gdtr - rom)
    movl %cr0, %eax
    orl $1, %eax                    # PE
    movl %eax, %cr0
    ljmpl $0x08, $start32
.balign 8
rom_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # 0x08: code, 32 bits, everything; marked accessed, it is a ROM
    .quad 0x00cf93000000ffff        # 0x10: data
rom_gdtr:
    .word . - rom_gdt - 1
    .long rom_gdt
.org 0xfff0                         # the reset vector: 16 bytes below 4 GiB
    jmp from_reset
.org 0x10000

.section .text.start, "ax"
.code32
start32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax                 # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    orl $0x900, %eax                # LME, NXE
    wrmsr
    movl %cr0, %eax
    orl $0x80000020, %eax           # PG, NE
    andl $0x9fffffff, %eax          # caches on: CD and NW clear
    movl %eax, %cr0
    lgdtl gdtr
    ljmpl $0x08, $start64
.code64
start64:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movw $0x18, %ax
    ltr %ax
    leaq stack_top(%rip), %rsp
    xorl %ebp, %ebp
    call main
0:  hlt
    jmp 0b

# Changes between 4 and 5 levels of tables, which needs a moment without paging (Intel SDM volume
# 3A, 4.1.2). edi: CR4.LA57 or 0.
.global set_la57
set_la57:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq $0x28
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
.code32
1:
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl %cr4, %eax
    andl $0xffffefff, %eax
    orl %edi, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    testl %edi, %edi
    jz 2f
    movl $pml5, %eax
2:
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmpl $0x08, $3f
.code64
3:
    movl %esp, %esp                 # upper halves are undefined after 32-bit code
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

.section .data
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: code, 64 bits
    .quad 0x00cf93000000ffff        # 0x10: data
    .quad 0x0000890000000067, 0     # 0x18: a task state segment at 0, which VM exits ask for
    .quad 0x00cf9b000000ffff        # 0x28: code, 32 bits
gdtr:
    .word . - gdt - 1
    .quad gdt

# 4 GiB in pages of 2 MiB.
.balign 4096
pml5:
    .quad pml4 + 3
    .fill 511, 8, 0
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad pd + 0x0003, pd + 0x1003, pd + 0x2003, pd + 0x3003
    .fill 508, 8, 0
pd:
    .set page, 0x83
    .rept 2048
    .quad page
    .set page, page + 0x200000
    .endr

.section .bss
.balign 16
    .space 0x8000
stack_top:
