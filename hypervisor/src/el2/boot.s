// The first instructions: the header of an arm64 Linux Image (Linux,
// Documentation/arch/arm64/booting.rst, section 4), then from "loaded anywhere, MMU off" to Rust.

.section .head, "ax"
.global image_header
image_header:
    b       start
    .long   0
    .quad   0                       // text_offset: on a 2 MiB boundary
    .quad   image_size
    .quad   0xa                     // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

.section .text.boot, "ax"
start:
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    stop_forever                    // no hypervisor without EL2, and no console to say so
    mov     x19, x0                 // the device tree

    mov     x1, #(1 << 31)          // HCR_EL2: EL1 is 64-bit; E2H clear, which the rest relies on
    msr     hcr_el2, x1
    isb

    // Relocate: every entry adds the load address (R_AARCH64_RELATIVE, 1027).
    adrp    x20, image_start
    adrp    x1, relocations_start
    add     x1, x1, :lo12:relocations_start
    adrp    x2, relocations_end
    add     x2, x2, :lo12:relocations_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16       // offset, type
    ldr     x5, [x1], #8            // addend
    cmp     x4, #1027
    b.ne    stop_forever
    add     x5, x5, x20
    str     x5, [x20, x3]
    b       1b

2:  adrp    x1, bss_start
    add     x1, x1, :lo12:bss_start
    adrp    x2, bss_end
    add     x2, x2, :lo12:bss_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b

4:  adrp    x1, stack_end
    add     sp, x1, :lo12:stack_end
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el2, x1
    isb

    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    bl      enable_early_mmu
    mov     x0, x19
    bl      start_hypervisor
.global stop_forever
stop_forever:
    wfi
    b       stop_forever
