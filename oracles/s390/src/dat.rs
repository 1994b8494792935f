//! The guest: address spaces translated by the tables under test.
//!
//! z/Architecture Principles of Operation (SA22-7832), chapter 3, "Dynamic address translation".
//! The interpretive execution of a real guest needs an instruction that no emulator has, but its
//! tables are those of dynamic address translation. So the CPU itself uses them: as the secondary
//! space for operands, while instructions come from a primary space of our own, and as the home
//! space for instructions.

use core::arch::{asm, global_asm};
use core::ptr::with_exposed_provenance_mut as pointer;

global_asm!(include_str!("start.s"));

unsafe extern "C" {
    fn enter_guest(psw: &Psw, address: u64, value: u64, registers: &mut [u64; 2]) -> u64;
    fn guest_load();
    fn guest_store();
    fn guest_question();
    fn left_by_call();
    fn left_by_interruption();
}

/// A program-status word.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Psw {
    mask: u64,
    address: u64,
}

impl Psw {
    /// 64-bit addressing, everything else off.
    const REAL: u64 = 0x0000_0001_8000_0000;
    /// Translation on.
    const DAT: u64 = 1 << (63 - 5);
    /// The secondary-space and the home-space mode (bits 16 and 17).
    const SECONDARY: u64 = 0b10 << (63 - 17);
    const HOME: u64 = 0b11 << (63 - 17);
    /// The problem state: what is executed may be anything.
    const PROBLEM: u64 = 1 << (63 - 15);
    /// Waiting.
    const WAIT: u64 = 1 << (63 - 14);

    fn new(mask: u64, address: u64) -> Self {
        Self {
            mask: Self::REAL | mask,
            address,
        }
    }
}

/// Places in the prefix area, at real address 0 (chapter 3, "Assigned storage locations").
mod assigned {
    pub(super) const PROGRAM_CODE: u64 = 0x8e;
    pub(super) const TRANSLATION_ID: u64 = 0xa8;
    pub(super) const SUPERVISOR_CALL_NEW: u64 = 0x1c0;
    pub(super) const PROGRAM_NEW: u64 = 0x1d0;
}

/// A segment table for the primary space, whose first entry maps the first megabyte one to one.
#[repr(C, align(4096))]
struct SegmentTable([u64; 2048]);

#[repr(C, align(4096))]
struct PageTable([u64; 256]);

const SEGMENT_INVALID: u64 = 0x20;
static mut SEGMENTS: SegmentTable = SegmentTable([SEGMENT_INVALID; 2048]);
static mut PAGES: PageTable = PageTable([0; 256]);

/// How an access ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Exit {
    /// Well, with this in the register.
    Done(u64),
    /// With a program interruption: its code, and the translation-exception identification.
    Interrupted { code: u64, identification: u64 },
    /// LOAD REAL ADDRESS says no: its condition code and result.
    Denied { condition: u64, result: u64 },
}

/// The CPU, ready to use tables.
#[derive(Debug)]
pub(crate) struct Spaces(());

impl Spaces {
    /// Sets up the primary space and what interruptions lead to.
    ///
    /// # Safety
    ///
    /// Called once, in real mode.
    pub(crate) unsafe fn new() -> Self {
        const FULL_LENGTH: u64 = 0b11;
        let segments = &raw mut SEGMENTS;
        let pages = &raw mut PAGES;
        // SAFETY: nobody else uses the tables.
        unsafe {
            (*pages).0 = core::array::from_fn(|page| page as u64 * 4096);
            (*segments).0[0] = pages.expose_provenance() as u64;
        }
        load_control_1(segments.expose_provenance() as u64 | FULL_LENGTH);
        for (place, target) in [
            (assigned::SUPERVISOR_CALL_NEW, left_by_call as *const ()),
            (assigned::PROGRAM_NEW, left_by_interruption as *const ()),
        ] {
            let psw = Psw::new(0, target.expose_provenance() as u64);
            // SAFETY: assigned for this.
            unsafe { pointer::<Psw>(place as usize).write_volatile(psw) }
        }
        Self(())
    }

    /// Makes the tables that `control` (an address-space-control element) designates the secondary
    /// and the home space.
    #[expect(
        clippy::unused_self,
        reason = "the value says that neither space is in use"
    )]
    pub(crate) fn designate(&self, control: u64) {
        // SAFETY: neither space is in use.
        unsafe {
            asm!("lctlg %c7, %c7, 0({})", in(reg_addr) &raw const control, options(nostack));
            asm!("lctlg %c13, %c13, 0({})", in(reg_addr) &raw const control, options(nostack));
        }
    }

    /// Loads from `address`.
    pub(crate) fn load(&self, address: u64) -> Exit {
        self.run(Psw::SECONDARY, guest_load as *const (), address, 0)
            .0
    }

    /// Stores `value` at `address`.
    pub(crate) fn store(&self, address: u64, value: u64) -> Exit {
        self.run(Psw::SECONDARY, guest_store as *const (), address, value)
            .0
    }

    /// Asks for the real address of `address`.
    pub(crate) fn question(&self, address: u64) -> Exit {
        let (exit, program_mask) =
            self.run(Psw::SECONDARY, guest_question as *const (), address, 0);
        let condition = (program_mask >> 28) & 3;
        match exit {
            Exit::Done(result) if condition != 0 => Exit::Denied { condition, result },
            _ => exit,
        }
    }

    /// Runs what is at `address`.
    pub(crate) fn execute(&self, address: u64) -> Exit {
        self.run(
            Psw::HOME | Psw::PROBLEM,
            core::ptr::without_provenance(address as usize),
            0,
            0,
        )
        .0
    }

    /// Runs from `start` in a translated space. Returns what register 5 held too.
    #[expect(
        clippy::unused_self,
        reason = "the value says that interruptions lead back"
    )]
    fn run(&self, space: u64, start: *const (), address: u64, value: u64) -> (Exit, u64) {
        let psw = Psw::new(Psw::DAT | space, start.expose_provenance() as u64);
        let mut registers = [0; 2];
        // SAFETY: what runs is in `start.s` or at the address that the script asks for; it changes
        // registers 4 and 5 and leaves by an interruption, which leads back.
        let interrupted = unsafe {
            asm!("ptlb", options(nostack));
            enter_guest(&psw, address, value, &mut registers)
        };
        let [result, program_mask] = registers;
        if interrupted == 0 {
            return (Exit::Done(result), program_mask);
        }
        // SAFETY: assigned for this.
        let exit = unsafe {
            Exit::Interrupted {
                code: u64::from(pointer::<u16>(assigned::PROGRAM_CODE as usize).read_volatile()),
                identification: pointer::<u64>(assigned::TRANSLATION_ID as usize).read_volatile(),
            }
        };
        (exit, program_mask)
    }
}

/// Designates the primary space.
fn load_control_1(control: u64) {
    // SAFETY: translation is off.
    unsafe {
        asm!("lctlg %c1, %c1, 0({})", in(reg_addr) &raw const control, options(nostack));
    }
}

/// Waits with all interruptions off, which ends the machine.
pub(crate) fn stop() -> ! {
    let psw = Psw::new(Psw::WAIT, 0);
    // SAFETY: nothing comes after.
    unsafe { asm!("lpswe 0({})", in(reg_addr) &raw const psw, options(noreturn)) }
}
