//! A virtual machine by Intel's VMX: its control structure, and entering it.
//!
//! Intel SDM volume 3C, chapters 25 to 28 and appendices A and B. The guest runs in 64-bit mode,
//! behind the extended page tables under test, and leaves at its first `hlt`, EPT violation, EPT
//! misconfiguration or exception.

use core::arch::{asm, global_asm};

use slat_oracle_x86::cpu::{read_msr, write_msr};
use slat_oracle_x86::start::global_descriptors;

const FEATURE_CONTROL: u32 = 0x3a;
const EFER: u32 = 0xc000_0080;

/// Model-specific registers that say what VMX can do (appendix A).
mod capability {
    pub(super) const BASIC: u32 = 0x480;
    pub(super) const CR0_FIXED: [u32; 2] = [0x486, 0x487];
    pub(super) const CR4_FIXED: [u32; 2] = [0x488, 0x489];
    pub(super) const SECONDARY: u32 = 0x48b;
    pub(super) const TRUE_PIN: u32 = 0x48d;
    pub(super) const TRUE_PRIMARY: u32 = 0x48e;
    pub(super) const TRUE_EXIT: u32 = 0x48f;
    pub(super) const TRUE_ENTRY: u32 = 0x490;
}

/// Encodings of the control structure's fields (appendix B).
mod field {
    pub(super) const GUEST_SELECTOR: u64 = 0x800;
    pub(super) const HOST_SELECTOR: u64 = 0xc00;
    pub(super) const EPT_POINTER: u64 = 0x201a;
    pub(super) const GUEST_PHYSICAL_ADDRESS: u64 = 0x2400;
    pub(super) const LINK_POINTER: u64 = 0x2800;
    pub(super) const GUEST_EFER: u64 = 0x2806;
    pub(super) const HOST_EFER: u64 = 0x2c02;
    pub(super) const PIN_CONTROLS: u64 = 0x4000;
    pub(super) const PRIMARY_CONTROLS: u64 = 0x4002;
    pub(super) const EXCEPTIONS: u64 = 0x4004;
    pub(super) const EXIT_CONTROLS: u64 = 0x400c;
    pub(super) const ENTRY_CONTROLS: u64 = 0x4012;
    pub(super) const SECONDARY_CONTROLS: u64 = 0x401e;
    pub(super) const INSTRUCTION_ERROR: u64 = 0x4400;
    pub(super) const EXIT_REASON: u64 = 0x4402;
    pub(super) const EXIT_EVENT: u64 = 0x4404;
    pub(super) const GUEST_LIMIT: u64 = 0x4800;
    pub(super) const GDTR_LIMIT: u64 = 0x4810;
    pub(super) const IDTR_LIMIT: u64 = 0x4812;
    pub(super) const GUEST_RIGHTS: u64 = 0x4814;
    pub(super) const INTERRUPTIBILITY: u64 = 0x4824;
    pub(super) const ACTIVITY: u64 = 0x4826;
    pub(super) const QUALIFICATION: u64 = 0x6400;
    pub(super) const GUEST_CR0: u64 = 0x6800;
    pub(super) const GUEST_CR3: u64 = 0x6802;
    pub(super) const GUEST_CR4: u64 = 0x6804;
    pub(super) const GUEST_DR7: u64 = 0x681a;
    pub(super) const GUEST_RIP: u64 = 0x681e;
    pub(super) const GUEST_RFLAGS: u64 = 0x6820;
    pub(super) const PENDING_DEBUG: u64 = 0x6822;
    pub(super) const HOST_CR0: u64 = 0x6c00;
    pub(super) const HOST_CR3: u64 = 0x6c02;
    pub(super) const HOST_CR4: u64 = 0x6c04;
    pub(super) const HOST_GDTR: u64 = 0x6c0c;
    pub(super) const HOST_RSP: u64 = 0x6c14;
    pub(super) const HOST_RIP: u64 = 0x6c16;
}

const HLT_EXITING: u32 = 1 << 7;
const SECONDARY_ACTIVE: u32 = 1 << 31;
const ENABLE_EPT: u32 = 1 << 1;
const HOST_IS_64_BIT: u32 = 1 << 9;
const EXIT_SAVES_EFER: u32 = 1 << 20;
const EXIT_LOADS_EFER: u32 = 1 << 21;
const GUEST_IS_64_BIT: u32 = 1 << 9;
const ENTRY_LOADS_EFER: u32 = 1 << 15;

/// Basic exit reasons (appendix C): an exception, a `hlt`.
pub(crate) const EXIT_EXCEPTION: u64 = 0;
pub(crate) const EXIT_HLT: u64 = 12;

/// VM-exit interruption information (25.9.2) of a debug exception.
pub(crate) const DEBUG_EXCEPTION: u64 = 0x8000_0301;

/// Flags (volume 1, 3.4.3): what is always set, and the trap flag.
pub(crate) const FLAGS: u64 = 1 << 1;
pub(crate) const FLAGS_TRAP: u64 = FLAGS | 1 << 8;

#[repr(C, align(4096))]
struct Page([u32; 1024]);

static mut VMX_REGION: Page = Page([0; 1024]);
static mut CONTROL_STRUCTURE: Page = Page([0; 1024]);

global_asm!(
    ".global enter_guest",
    "enter_guest:", // edi: whether to resume; rsi, rdx: the guest's rax and rcx; rcx: where rax goes
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rcx",
    "mov r8d, {host_rsp}",
    "vmwrite r8, rsp",
    "mov r8d, {host_rip}",
    "lea r9, [rip + 3f]",
    "vmwrite r8, r9",
    "mov rax, rsi",
    "mov rcx, rdx",
    "test edi, edi",
    "jnz 2f",
    "vmlaunch",
    "jmp 4f",
    "2:",
    "vmresume",
    "4:", // still here: there was no entry
    "mov r8d, 1",
    "jmp 5f",
    "3:", // the guest has left
    "xor r8d, r8d",
    "5:",
    "pop rcx",
    "mov [rcx], rax",
    "mov eax, r8d",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    host_rsp = const field::HOST_RSP,
    host_rip = const field::HOST_RIP,
);

unsafe extern "C" {
    /// Returns 0 once the guest has left, 1 if it could not be entered.
    fn enter_guest(resume: u32, rax: u64, rcx: u64, rax_out: &mut u64) -> u32;
}

/// Why and with what the guest was left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) reason: u64,
    pub(crate) qualification: u64,
    pub(crate) gpa: u64,
    pub(crate) rax: u64,
    /// The exception, if one was the reason.
    pub(crate) event: u64,
}

/// The CPU in VMX operation, with a control structure loaded.
#[derive(Debug)]
pub(crate) struct Vmx {
    launched: bool,
}

impl Vmx {
    /// Enters VMX operation and describes host and guest.
    ///
    /// # Safety
    ///
    /// Called once, on a CPU with VMX.
    pub(crate) unsafe fn new() -> Self {
        const LOCKED_ON: u64 = 0b101;
        // SAFETY: the registers exist where VMX does, and what is written allows VMX.
        let revision = unsafe {
            if read_msr(FEATURE_CONTROL) & 1 == 0 {
                write_msr(FEATURE_CONTROL, LOCKED_ON);
            }
            set_fixed_bits();
            read_msr(capability::BASIC) as u32
        };
        // SAFETY: the pages are used for nothing else, and nobody else runs.
        let started = unsafe {
            (&raw mut VMX_REGION.0[0]).write(revision);
            (&raw mut CONTROL_STRUCTURE.0[0]).write(revision);
            start(
                (&raw mut VMX_REGION).expose_provenance() as u64,
                (&raw mut CONTROL_STRUCTURE).expose_provenance() as u64,
            )
        };
        assert!(started, "no VMX operation with revision {revision:#x}");
        write_host();
        write_guest();
        Self { launched: false }
    }

    /// Puts the guest, whose own tables are at `cr3`, on the tables that `ept_pointer` names.
    ///
    /// # Safety
    ///
    /// The tables let the guest write only to memory that the program does not use.
    #[expect(
        clippy::unused_self,
        reason = "the value says that a control structure is loaded"
    )]
    pub(crate) unsafe fn load(&mut self, ept_pointer: u64, cr3: u64) {
        let controls = [
            (field::PIN_CONTROLS, capability::TRUE_PIN, 0),
            (
                field::PRIMARY_CONTROLS,
                capability::TRUE_PRIMARY,
                HLT_EXITING | SECONDARY_ACTIVE,
            ),
            (field::SECONDARY_CONTROLS, capability::SECONDARY, ENABLE_EPT),
            (
                field::EXIT_CONTROLS,
                capability::TRUE_EXIT,
                HOST_IS_64_BIT | EXIT_SAVES_EFER | EXIT_LOADS_EFER,
            ),
            (
                field::ENTRY_CONTROLS,
                capability::TRUE_ENTRY,
                GUEST_IS_64_BIT | ENTRY_LOADS_EFER,
            ),
        ];
        for (field, capability, wanted) in controls {
            // SAFETY: the registers exist where VMX does.
            let allowed = unsafe { read_msr(capability) };
            let (always, possible) = (allowed as u32, (allowed >> 32) as u32);
            let missing = wanted & !possible;
            assert_eq!(missing, 0, "the CPU lacks VMX controls {missing:#x}");
            write(field, u64::from(wanted | always));
        }
        write(field::EXCEPTIONS, 0xffff_ffff);
        write(field::EPT_POINTER, ept_pointer);
        write(field::GUEST_CR3, cr3);
    }

    /// Runs the guest from `rip` with `flags`, `rax` and `rcx` until it leaves, with nothing of it
    /// left in the TLB.
    pub(crate) fn run(&mut self, rip: u64, flags: u64, rax: u64, rcx: u64) -> Exit {
        forget_everything();
        write(field::GUEST_RIP, rip);
        write(field::GUEST_RFLAGS, flags);
        write(field::PENDING_DEBUG, 0);
        write(field::INTERRUPTIBILITY, 0);
        write(field::ACTIVITY, 0);
        let mut rax_out = 0;
        // SAFETY: the control structure describes a guest whose tables keep it away from the
        // program (`load`), and the function saves what the guest changes of our registers.
        let failed = unsafe { enter_guest(u32::from(self.launched), rax, rcx, &mut rax_out) };
        assert_eq!(
            failed,
            0,
            "no VM entry: error {}",
            read(field::INSTRUCTION_ERROR)
        );
        self.launched = true;
        Exit {
            reason: read(field::EXIT_REASON),
            qualification: read(field::QUALIFICATION),
            gpa: read(field::GUEST_PHYSICAL_ADDRESS),
            rax: rax_out,
            event: read(field::EXIT_EVENT),
        }
    }
}

/// Sets CR0 and CR4 as VMX wants them (A.7, A.8), CR4.VMXE included.
///
/// # Safety
///
/// The CPU has VMX.
unsafe fn set_fixed_bits() {
    let [cr0_ones, cr0_possible] = capability::CR0_FIXED.map(|msr| {
        // SAFETY: by the caller's promise.
        unsafe { read_msr(msr) }
    });
    let [cr4_ones, cr4_possible] = capability::CR4_FIXED.map(|msr| {
        // SAFETY: by the caller's promise.
        unsafe { read_msr(msr) }
    });
    let (cr0, cr4) = control_registers();
    // SAFETY: the bits that VMX fixes concern neither paging nor protection as we use them.
    unsafe {
        asm!("mov cr0, {}", in(reg) (cr0 | cr0_ones) & cr0_possible, options(nostack));
        asm!("mov cr4, {}", in(reg) (cr4 | cr4_ones) & cr4_possible, options(nostack));
    }
}

/// CR0 and CR4.
fn control_registers() -> (u64, u64) {
    let (cr0, cr4);
    // SAFETY: reading them changes nothing.
    unsafe {
        asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack));
        asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack));
    }
    (cr0, cr4)
}

/// `vmxon`, `vmclear`, `vmptrld`: whether all went well.
///
/// # Safety
///
/// Both pages hold the revision and are used for nothing else from now on.
unsafe fn start(region: u64, structure: u64) -> bool {
    let (on, cleared, loaded): (u8, u8, u8);
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("vmxon [{}]", "seta {}", in(reg) &raw const region, out(reg_byte) on);
        asm!("vmclear [{}]", "seta {}", in(reg) &raw const structure, out(reg_byte) cleared);
        asm!("vmptrld [{}]", "seta {}", in(reg) &raw const structure, out(reg_byte) loaded);
    }
    on & cleared & loaded == 1
}

/// What the CPU returns to.
fn write_host() {
    const CODE: u64 = 0x08;
    const DATA: u64 = 0x10;
    const TASK: u64 = 0x18;
    let (cr0, cr4) = control_registers();
    let cr3: u64;
    // SAFETY: reading a control register, and one that exists in 64-bit mode.
    let efer = unsafe {
        asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack));
        read_msr(EFER)
    };
    write(field::HOST_CR0, cr0);
    write(field::HOST_CR3, cr3);
    write(field::HOST_CR4, cr4);
    write(field::HOST_EFER, efer);
    write(field::HOST_GDTR, global_descriptors());
    // ES, CS, SS, DS, FS, GS, TR
    for (index, selector) in (0..).zip([DATA, CODE, DATA, DATA, DATA, DATA, TASK]) {
        write(field::HOST_SELECTOR + 2 * index, selector);
    }
}

/// The guest's state, but for what changes from run to run. Bases are 0.
fn write_guest() {
    const DATA: (u64, u64) = (0x10, 0xc093);
    const CODE: (u64, u64) = (0x08, 0xa09b);
    const UNUSABLE: (u64, u64) = (0, 1 << 16);
    const TASK: (u64, u64) = (0x18, 0x008b);
    let (cr0, cr4) = control_registers();
    // SAFETY: the register exists in 64-bit mode.
    let efer = unsafe { read_msr(EFER) };
    write(field::LINK_POINTER, u64::MAX);
    write(field::GUEST_CR0, cr0);
    write(field::GUEST_CR4, cr4);
    write(field::GUEST_EFER, efer);
    write(field::GUEST_DR7, 0x400);
    write(field::GDTR_LIMIT, 0xffff);
    write(field::IDTR_LIMIT, 0xffff);
    // ES, CS, SS, DS, FS, GS, LDTR, TR
    let segments = [DATA, CODE, DATA, DATA, DATA, DATA, UNUSABLE, TASK];
    for (index, segment) in (0..).zip(segments) {
        let (selector, rights) = segment;
        let limit = if segment == TASK { 0x67 } else { 0xffff_ffff };
        write(field::GUEST_SELECTOR + 2 * index, selector);
        write(field::GUEST_LIMIT + 2 * index, limit);
        write(field::GUEST_RIGHTS + 2 * index, rights);
    }
}

/// Invalidates all guest-physical and combined mappings (INVEPT, all contexts).
fn forget_everything() {
    const ALL_CONTEXTS: u64 = 2;
    let descriptor = [0u64; 2];
    // SAFETY: forgetting translations is always allowed in VMX operation.
    unsafe { asm!("invept {}, [{}]", in(reg) ALL_CONTEXTS, in(reg) &raw const descriptor) }
}

fn write(field: u64, value: u64) {
    // SAFETY: the control structure is loaded (`new`), and describes what `load` promises.
    unsafe { asm!("vmwrite {}, {}", in(reg) field, in(reg) value, options(nostack)) }
}

fn read(field: u64) -> u64 {
    let value;
    // SAFETY: reading a field changes nothing.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) field, options(nostack)) }
    value
}
