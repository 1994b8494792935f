//! `bar FILE`: touches and verifies every page of a PCI memory BAR.
//!
//! The file is the BAR's `resourceN` in sysfs, which maps the device's memory. Every page is
//! written first and only then all of them are read back, so two pages that were mapped to the
//! same device memory are found. The count of stage-2 faults that this takes is what tells device
//! memory mapped at creation from device memory mapped on fault.

use core::ffi::CStr;

use crate::command::Failure;
use crate::console::say;
use crate::pattern::mix;
use crate::syscall::{File, Open};

const PAGE: usize = 4096;

/// Writes and verifies one word in every page of the BAR behind `file`.
pub(crate) fn run(file: &CStr) -> Result<(), Failure> {
    let file = File::open(file, Open::ReadWriteSync)?;
    let size = file.size()?;
    let start = file.map(0, size)?;
    let pages = usize::try_from(size).map_err(|_| Failure::Number)? / PAGE;

    let word = |page: usize| start.wrapping_byte_add(page * PAGE);
    for page in 0..pages {
        // SAFETY: `page` is below the number of pages that were mapped, for writing too; no Rust
        // reference points there.
        unsafe { word(page).write_volatile(mix(page as u64)) };
    }
    let mut mismatches = 0_u64;
    for page in 0..pages {
        // SAFETY: as above.
        let found = unsafe { word(page).read_volatile() };
        mismatches += u64::from(found != mix(page as u64));
    }

    say!("bar pages={pages} mismatches={mismatches}");
    if mismatches == 0 {
        Ok(())
    } else {
        Err(Failure::Mismatch)
    }
}
