//! The guest: real mode without hypervisor state, so that every address it uses is a guest real
//! address, translated by the partition's radix tree alone.
//!
//! Power ISA 3.0B book III: 5.7.3 (real mode), 5.7.6.1 (partition table), 5.7.11 (radix tree
//! translation), 7.5.16 and 7.5.17 (hypervisor storage interrupts), 5.9.3.3 (`tlbie`).

use core::arch::{asm, global_asm};
use core::ptr::with_exposed_provenance_mut as pointer;

global_asm!(include_str!("start.s"));

/// Vector of a system call, which is how the guest leaves by itself.
pub(crate) const SYSTEM_CALL: u64 = 0xc00;

/// Vector of the hypervisor decrementer, which ends a guest that does not leave.
const HYPERVISOR_DECREMENTER: u64 = 0x980;

/// How long a guest may run: half a second. What it is asked for takes far less, but the emulator
/// may have to wait for its own turn, so a guest gets several.
const TICKS: u64 = 0x1000_0000;
const TURNS: usize = 4;

/// Special-purpose registers.
mod spr {
    pub(super) const PIDR: u32 = 48;
    pub(super) const HDSISR: u32 = 306;
    pub(super) const HDEC: u32 = 310;
    pub(super) const HSRR1: u32 = 315;
    pub(super) const LPCR: u32 = 318;
    pub(super) const LPIDR: u32 = 319;
    pub(super) const PTCR: u32 = 464;
    pub(super) const ASDR: u32 = 816;
}

/// `ld r5, 0(r4); sc 1`
const LOAD: u64 = 0x4400_0022_e8a4_0000;
/// `std r5, 0(r4); sc 1`
const STORE: u64 = 0x4400_0022_f8a4_0000;
/// Where the two are in the guest's page.
const LOAD_AT: u64 = 0;
const STORE_AT: u64 = 8;

unsafe extern "C" {
    fn enter_guest(address: u64, r4: u64, r5: u64, r5_out: &mut u64) -> u64;
}

macro_rules! write_spr {
    ($register:expr, $value:expr) => {
        asm!("mtspr {}, {}", const $register, in(reg) $value, options(nostack))
    };
}

macro_rules! read_spr {
    ($register:expr) => {{
        let value: u64;
        asm!("mfspr {}, {}", out(reg) value, const $register, options(nostack));
        value
    }};
}

/// How the guest was left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// The interrupt's vector.
    pub(crate) vector: u64,
    pub(crate) hdsisr: u64,
    pub(crate) hsrr1: u64,
    pub(crate) asdr: u64,
    /// The guest's r5.
    pub(crate) r5: u64,
}

/// The guest.
#[derive(Debug)]
pub(crate) struct Guest {
    code: u64,
}

impl Guest {
    /// Puts a guest on the tree that entry `partition` of the partition table in `ptcr` names. Its
    /// program is on the page that the host has at `host_code` and the guest at `guest_code`.
    ///
    /// # Safety
    ///
    /// The page is memory that nothing else uses, and the tree shows the guest only memory that
    /// the program does not use.
    pub(crate) unsafe fn new(ptcr: u64, partition: u64, guest_code: u64, host_code: u64) -> Self {
        const HOST_RADIX: u64 = 1 << 20;
        const USE_PROCESS_TABLE: u64 = 1 << 22;
        const DECREMENTER_ENABLED: u64 = 1 << 0;
        for (at, program) in [(LOAD_AT, LOAD), (STORE_AT, STORE)] {
            // SAFETY: by the caller's promise.
            unsafe { pointer::<u64>((host_code + at) as usize).write_volatile(program) }
        }
        // SAFETY: in hypervisor real mode none of these concern the program itself.
        unsafe {
            write_spr!(spr::PTCR, ptcr);
            write_spr!(spr::LPIDR, partition);
            write_spr!(spr::PIDR, 0u64);
            write_spr!(
                spr::LPCR,
                read_spr!(spr::LPCR) | HOST_RADIX | USE_PROCESS_TABLE | DECREMENTER_ENABLED
            );
            asm!("isync", options(nostack));
        }
        Self { code: guest_code }
    }

    /// Has the guest load from `gpa`.
    pub(crate) fn load(&self, gpa: u64) -> Exit {
        self.run(self.code + LOAD_AT, gpa, 0)
    }

    /// Has the guest store `value` at `gpa`.
    pub(crate) fn store(&self, gpa: u64, value: u64) -> Exit {
        self.run(self.code + STORE_AT, gpa, value)
    }

    /// Has the guest run what is at `gpa`.
    pub(crate) fn execute(&self, gpa: u64) -> Exit {
        self.run(gpa, 0, 0)
    }

    fn run(&self, address: u64, r4: u64, r5: u64) -> Exit {
        let mut exit = self.run_once(address, r4, r5);
        for _ in 1..TURNS {
            if exit.vector != HYPERVISOR_DECREMENTER {
                break;
            }
            exit = self.run_once(address, r4, r5);
        }
        exit
    }

    #[expect(
        clippy::unused_self,
        reason = "the value says that the guest reaches none of our memory"
    )]
    fn run_once(&self, address: u64, r4: u64, r5: u64) -> Exit {
        forget_everything();
        // SAFETY: clearing what reports the next interrupt.
        unsafe {
            write_spr!(spr::HDSISR, 0u64);
            write_spr!(spr::ASDR, 0u64);
            write_spr!(spr::HDEC, TICKS);
        }
        let mut r5_out = 0;
        // SAFETY: the guest reaches none of our memory (`new`), changes no register but r5, and
        // comes back by an interrupt, all of which lead to where it was entered.
        let vector = unsafe { enter_guest(address, r4, r5, &mut r5_out) };
        // SAFETY: reading them changes nothing.
        unsafe {
            Exit {
                vector,
                hdsisr: read_spr!(spr::HDSISR),
                hsrr1: read_spr!(spr::HSRR1),
                asdr: read_spr!(spr::ASDR),
                r5: r5_out,
            }
        }
    }
}

/// Invalidates all partition-scoped translations and everything cached of the tables.
fn forget_everything() {
    const ALL_PARTITIONS: u64 = 3 << 10;
    // SAFETY: forgetting translations is always allowed to the hypervisor.
    unsafe {
        asm!(
            "ptesync",
            "tlbie {all}, {zero}, 2, 0, 1",
            "eieio",
            "tlbsync",
            "ptesync",
            all = in(reg) ALL_PARTITIONS,
            zero = in(reg) 0,
            options(nostack)
        );
    }
}
