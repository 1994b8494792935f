//! The guest's side: one page that holds its program and its page tables.
//!
//! A guest that is to reach physical addresses above 4 GiB runs with paging on, so it needs tables
//! of its own, mapped by the tables under test like everything else. One page does for all four
//! levels: its entry 0 points to itself, so the walk of any address below 2 MiB comes back to this
//! page three times and then takes one of its entries as the last level. Entry 0 thus also shows
//! the page to the guest, at virtual address 0; entries 1 and 2 are a window of two pages that is
//! moved to wherever the next access goes. The program lies in the page's upper half.

use slat_oracle_physical as physical;

const PAGE: u64 = 4096;

/// Guest virtual address of the program that loads: `mov rax, [rax]; hlt`.
pub const LOAD_AT: u64 = 0x800;
const LOAD: u64 = 0xf400_8b48;

/// Guest virtual address of the program that stores: `mov [rax], rcx; hlt`.
pub const STORE_AT: u64 = 0x808;
const STORE: u64 = 0xf408_8948;

/// Guest virtual address of the window.
const WINDOW_AT: u64 = PAGE;

/// Present, writable, accessed and dirty: the walk of the guest's tables changes nothing in them.
const ENTRY: u64 = 1 << 0 | 1 << 1 | 1 << 5 | 1 << 6;

/// The guest's page.
#[derive(Debug)]
pub struct GuestPage {
    host: u64,
    guest: u64,
}

impl GuestPage {
    /// Fills the page, which the host has at `host` and the guest sees at `guest`.
    ///
    /// # Safety
    ///
    /// The page at `host` is memory that nothing else uses for as long as this value lives.
    pub unsafe fn new(host: u64, guest: u64) -> Self {
        let page = Self { host, guest };
        page.write(0, guest | ENTRY);
        page.write(LOAD_AT, LOAD);
        page.write(STORE_AT, STORE);
        page
    }

    /// What the guest's CR3 holds.
    pub fn cr3(&self) -> u64 {
        self.guest
    }

    /// Moves the window to the page of `gpa` and the one behind it; returns the guest virtual
    /// address of `gpa`.
    pub fn look_at(&self, gpa: u64) -> u64 {
        let page = gpa & !(PAGE - 1);
        self.write(8, page | ENTRY);
        self.write(16, page.wrapping_add(PAGE) | ENTRY);
        WINDOW_AT + (gpa - page)
    }

    fn write(&self, offset: u64, value: u64) {
        // SAFETY: by the promise made to `new`.
        unsafe { physical::fill(self.host + offset, 8, value) }
    }
}
