//! A virtual machine by AMD's SVM: its control block, and entering it.
//!
//! AMD APM volume 2, chapter 15 and appendix B. The guest runs in 64-bit mode, with nested paging
//! through the tables under test, and leaves at its first `hlt`, nested page fault or exception.

use core::arch::global_asm;

use slat_oracle_x86::cpu;

const EFER: u32 = 0xc000_0080;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const EFER_SVME: u64 = 1 << 12;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// Exit codes (appendix C): a `hlt`, and a debug exception.
pub(crate) const EXIT_HLT: u64 = 0x78;
pub(crate) const EXIT_DEBUG: u64 = 0x41;

/// Flags (volume 1, 3.1.4): what is always set, and the trap flag.
pub(crate) const FLAGS: u64 = 1 << 1;
pub(crate) const FLAGS_TRAP: u64 = FLAGS | 1 << 8;

/// Fields of the control block that are used here (appendix B), by their offset.
mod field {
    pub(super) const INTERCEPT_EXCEPTIONS: usize = 0x008;
    pub(super) const INTERCEPT_MISC1: usize = 0x00c;
    pub(super) const INTERCEPT_MISC2: usize = 0x010;
    pub(super) const ASID: usize = 0x058;
    pub(super) const TLB_CONTROL: usize = 0x05c;
    pub(super) const EXIT_CODE: usize = 0x070;
    pub(super) const EXIT_INFO1: usize = 0x078;
    pub(super) const EXIT_INFO2: usize = 0x080;
    pub(super) const NESTED_PAGING: usize = 0x090;
    pub(super) const NESTED_CR3: usize = 0x0b0;
    pub(super) const SEGMENTS: usize = 0x400;
    pub(super) const EFER: usize = 0x4d0;
    pub(super) const CR4: usize = 0x548;
    pub(super) const CR3: usize = 0x550;
    pub(super) const CR0: usize = 0x558;
    pub(super) const DR7: usize = 0x560;
    pub(super) const DR6: usize = 0x568;
    pub(super) const RFLAGS: usize = 0x570;
    pub(super) const RIP: usize = 0x578;
    pub(super) const RAX: usize = 0x5f8;
    pub(super) const PAT: usize = 0x668;
}

#[repr(C, align(4096))]
struct Page([u64; 512]);

static mut CONTROL_BLOCK: Page = Page([0; 512]);
static mut HOST_STATE: Page = Page([0; 512]);

global_asm!(
    ".global enter_guest",
    "enter_guest:", // rdi: the control block; rsi: the guest's rcx
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rax, rdi",
    "mov rcx, rsi",
    "clgi",
    "vmload rax",
    "vmrun rax",
    "vmsave rax",
    "stgi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn enter_guest(control_block: *mut Page, rcx: u64);
}

/// Why and with what the guest was left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) code: u64,
    pub(crate) info1: u64,
    pub(crate) info2: u64,
    pub(crate) rax: u64,
}

/// The virtual machine. There is one.
#[derive(Debug)]
pub(crate) struct Guest {
    block: *mut u64,
}

impl Guest {
    /// A guest whose own tables are at `cr3` and whose nested tables at `nested_cr3`.
    ///
    /// # Safety
    ///
    /// Called once, on a CPU with SVM. The nested tables let the guest write only to memory that
    /// the program does not use.
    pub(crate) unsafe fn new(nested_cr3: u64, cr3: u64) -> Self {
        const HLT: u64 = 1 << 24;
        const SHUTDOWN: u64 = 1 << 31;
        const VMRUN: u64 = 1 << 0;
        const { assert!(field::INTERCEPT_MISC1 == field::INTERCEPT_EXCEPTIONS + 4) };
        // SAFETY: the registers exist where SVM does; the host's state has its own page.
        unsafe {
            cpu::write_msr(EFER, cpu::read_msr(EFER) | EFER_SVME);
            cpu::write_msr(
                VM_HSAVE_PA,
                (&raw mut HOST_STATE).expose_provenance() as u64,
            );
        }
        let guest = Self {
            block: (&raw mut CONTROL_BLOCK).cast(),
        };
        guest.set(
            field::INTERCEPT_EXCEPTIONS,
            0xffff_ffff | (HLT | SHUTDOWN) << 32,
        );
        guest.set(field::INTERCEPT_MISC2, VMRUN);
        guest.set(field::NESTED_PAGING, 1);
        guest.set(field::NESTED_CR3, nested_cr3);
        guest.set_segments();
        guest.set(field::EFER, EFER_LME | EFER_LMA | EFER_NXE | EFER_SVME);
        guest.set(field::CR0, 1 << 31 | 1 << 16 | 1 << 4 | 1); // PG, WP, ET, PE
        guest.set(field::CR4, 1 << 5); // PAE
        guest.set(field::CR3, cr3);
        guest.set(field::DR7, 0x400);
        guest.set(field::DR6, 0xffff_0ff0);
        guest.set(field::PAT, 0x0007_0406_0007_0406);
        guest
    }

    /// ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR: selector, attributes, limit, base.
    fn set_segments(&self) {
        const DATA: u64 = 0x0c93;
        const CODE: u64 = 0x0a9b;
        const LDT: u64 = 0x0082;
        const TSS: u64 = 0x008b;
        let attributes = [DATA, CODE, DATA, DATA, DATA, DATA, 0, LDT, 0, TSS];
        for (index, attributes) in attributes.into_iter().enumerate() {
            let selector = if attributes == CODE { 0x08 } else { 0x10 };
            self.set(
                field::SEGMENTS + 16 * index,
                0xffff_ffff << 32 | attributes << 16 | selector,
            );
        }
    }

    /// Runs the guest from `rip` with `flags`, `rax` and `rcx` until it leaves, with nothing of it
    /// left in the TLB.
    pub(crate) fn run(&self, rip: u64, flags: u64, rax: u64, rcx: u64) -> Exit {
        const FLUSH_EVERYTHING: u64 = 1;
        const { assert!(field::TLB_CONTROL == field::ASID + 4) };
        self.set(field::ASID, FLUSH_EVERYTHING << 32 | 1);
        self.set(field::RIP, rip);
        self.set(field::RAX, rax);
        self.set(field::RFLAGS, flags);
        // SAFETY: the block describes a guest whose nested tables keep it away from the program
        // (`new`), and the function saves what the guest changes of our registers.
        unsafe { enter_guest(self.block.cast(), rcx) }
        Exit {
            code: self.get(field::EXIT_CODE),
            info1: self.get(field::EXIT_INFO1),
            info2: self.get(field::EXIT_INFO2),
            rax: self.get(field::RAX),
        }
    }

    fn set(&self, offset: usize, value: u64) {
        // SAFETY: the offsets are multiples of 8 inside the page, which only this value uses.
        unsafe { self.block.byte_add(offset).write_volatile(value) }
    }

    fn get(&self, offset: usize) -> u64 {
        // SAFETY: as in `set`.
        unsafe { self.block.byte_add(offset).read_volatile() }
    }
}
