//! Churn: the host changes the guest's memory while the guest runs, as a host under pressure does,
//! and the guest must not notice.
//!
//! Every change goes through the address space, which tells the guest's memory of it. What is
//! changed, and how, is drawn from a seed; when, from a timer. What a change takes away is given
//! back when the guest asks for it, or when something else is to be done to the same 2 MiB, or
//! when too much is away.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::ToString as _;
use alloc::vec::Vec;

use slat::table::address::{Gpa, GpaRange, HvaRange, PAGE_SIZE};
use slat_hypervisor::plan::Change;
use slat_hypervisor::random::Random;
use slat_hypervisor::span::BLOCK_SIZE;
use slat_mm::{FrameSize, MigrateError, Protection, SplitError};

use super::clock::Clock;
use super::memory::{Guest, host_address};

/// The share of the time, in percent, above which EL2 makes no more changes.
const MOST_SHARE: u64 = 37;
/// Changes for each tick.
const CHANGES: u32 = 4;
/// Pages that may be away at once.
const MOST_IMAGES: usize = 64;
/// Ranges that may be write-protected at once.
const MOST_PROTECTED: usize = 16;
/// Ticks for which a device stays away if the guest does not touch it.
const REVOKED_TICKS: u64 = 10;

/// What churn has done and what it owes.
pub(super) struct Churn {
    random: Random,
    report: slat_report::Churn,
    ticks: u64,
    /// The guest-physical address at which RAM ends, perhaps inside a block.
    ram_end: u64,
    /// Guest-physical addresses of the 2 MiB blocks in which the guest has memory.
    blocks: Vec<u64>,
    /// Contents of discarded pages, by guest-physical address.
    images: BTreeMap<u64, Box<[u8]>>,
    /// Guest-physical ranges that are write-protected, the oldest first.
    protected: VecDeque<(u64, u64)>,
    /// When the devices that are away come back.
    devices_due: Option<u64>,
}

impl Churn {
    /// Churn of the RAM below guest-physical `ram_end`, with choices that depend on `seed`.
    /// `frames` is the host's free memory before the guest was made, in 4 KiB frames.
    pub(super) fn new(seed: u64, ram_end: u64, frames: u64) -> Self {
        let report = slat_report::Churn {
            frames_before: frames,
            ..slat_report::Churn::default()
        };
        Self {
            random: Random::new(seed),
            report,
            ticks: 0,
            ram_end,
            blocks: Vec::new(),
            images: BTreeMap::new(),
            protected: VecDeque::new(),
            devices_due: None,
        }
    }

    /// What was done. `frames` is the host's free memory after the guest was taken apart.
    pub(super) fn into_report(self, frames: u64) -> slat_report::Churn {
        slat_report::Churn {
            frames_after: frames,
            ..self.report
        }
    }

    /// Notes that the guest has memory in `range`.
    pub(super) fn note_mapped(&mut self, range: GpaRange) {
        let mut block = range.start().raw() & !(BLOCK_SIZE - 1);
        while block < range.end().raw() {
            if let Err(place) = self.blocks.binary_search(&block) {
                self.blocks.insert(place, block);
            }
            block += BLOCK_SIZE;
        }
    }

    /// Makes the changes of one tick.
    pub(super) fn tick(&mut self, guest: &Guest, clock: &Clock) {
        self.ticks += 1;
        if self.devices_due.is_some_and(|due| due <= self.ticks) {
            self.restore_devices(guest);
        }
        for _ in 0..CHANGES {
            if clock.is_over(MOST_SHARE) {
                self.report.throttled += 1;
                return;
            }
            let change = Change::draw(&mut self.random);
            if self.make(change, guest) {
                *self
                    .report
                    .changes
                    .entry(change.name().to_string())
                    .or_default() += 1;
                self.report.total += 1;
                self.report.migrations_2m += u64::from(change == Change::MigrateBlock);
            } else {
                self.report.skipped += 1;
            }
        }
    }

    /// Brings back what a fault at guest-physical `gpa` may need, before the fault is handled: a
    /// page that is away must not come back as zeros.
    pub(super) fn before_fault(&mut self, guest: &Guest, gpa: u64) {
        let block = gpa & !(BLOCK_SIZE - 1);
        if self
            .images
            .range(block..block + BLOCK_SIZE)
            .next()
            .is_some()
        {
            self.settle(guest, block);
        }
    }

    /// Lets the guest write again at guest-physical `gpa`. Whether it was churn that kept it from
    /// doing so.
    pub(super) fn grant(&mut self, guest: &Guest, gpa: u64) -> bool {
        let before = self.protected.len();
        self.settle(guest, gpa & !(BLOCK_SIZE - 1));
        self.protected.len() != before
    }

    /// Gives the devices that are away back. Whether there were any.
    pub(super) fn restore_devices(&mut self, guest: &Guest) -> bool {
        for device in &guest.revocable {
            device.restore();
        }
        self.devices_due.take().is_some()
    }

    /// Makes one change, somewhere. Whether there was something to change.
    fn make(&mut self, change: Change, guest: &Guest) -> bool {
        if change == Change::Revoke {
            return self.revoke(guest);
        }
        let Some(block) = self.draw_block(change) else {
            return false;
        };
        let pages = BLOCK_SIZE.min(self.ram_end - block) / PAGE_SIZE;
        let page = self.draw_page(guest, block, pages);
        self.settle(guest, block);
        match change {
            Change::MigratePage => migrate(guest, page, FrameSize::Base),
            Change::MigrateBlock => migrate(guest, block, FrameSize::Huge),
            Change::Split => split(guest, block),
            Change::Discard => self.discard(guest, page),
            Change::ProtectPage => self.protect(guest, page, PAGE_SIZE),
            Change::ProtectBlock => self.protect(guest, block, BLOCK_SIZE),
            Change::Age => {
                // Whether the block was young does not matter: it is old now.
                guest.space.age(range(block, pages * PAGE_SIZE));
                true
            }
            Change::Revoke => false,
        }
    }

    /// Draws the block for a change. Changes to single pages keep to every fourth block: done
    /// everywhere they would leave no block whole, and then nothing is ever moved as a block.
    fn draw_block(&mut self, change: Change) -> Option<u64> {
        let drawn = index(self.random.below(self.blocks.len() as u64));
        let place = if change.is_to_one_page() {
            drawn & !3
        } else {
            drawn
        };
        self.blocks.get(place).copied()
    }

    /// Draws one of the `pages` pages of the block at guest-physical `block`: one that the guest
    /// can reach, if a few tries find one.
    fn draw_page(&mut self, guest: &Guest, block: u64, pages: u64) -> u64 {
        const TRIES: u32 = 8;
        let mut draw = || block + self.random.below(pages) * PAGE_SIZE;
        let reachable = |page: &u64| guest.memory.translate(Gpa::new(*page)).is_some();
        (1..TRIES).map(|_| draw()).find(reachable).unwrap_or(block)
    }

    /// Undoes what is owed in the 2 MiB block at guest-physical `block`.
    fn settle(&mut self, guest: &Guest, block: u64) {
        let inside = |start: u64| start & !(BLOCK_SIZE - 1) == block;
        while let Some(at) = self.protected.iter().position(|(start, _)| inside(*start)) {
            if let Some(protected) = self.protected.remove(at) {
                grant_range(guest, protected);
            }
        }
        while let Some((&page, _)) = self.images.range(block..block + BLOCK_SIZE).next() {
            self.restore(guest, page);
        }
    }

    fn discard(&mut self, guest: &Guest, page: u64) -> bool {
        // A page that the guest cannot reach now may be one that was never there.
        if guest.memory.translate(Gpa::new(page)).is_none() {
            return false;
        }
        let mut image = alloc::vec![0; index(PAGE_SIZE)].into_boxed_slice();
        guest
            .space
            .read(host_address(page), &mut image)
            .and_then(|()| guest.space.discard(range(page, PAGE_SIZE)))
            .unwrap_or_else(|error| panic!("churn cannot discard {page:#x}: {error}"));
        self.images.insert(page, image);
        if self.images.len() > MOST_IMAGES {
            let skip = self.random.below(self.images.len() as u64);
            if let Some(&page) = self.images.keys().nth(index(skip)) {
                self.settle(guest, page & !(BLOCK_SIZE - 1));
            }
        }
        true
    }

    fn restore(&mut self, guest: &Guest, page: u64) {
        if let Some(image) = self.images.remove(&page) {
            guest
                .space
                .write(host_address(page), &image)
                .unwrap_or_else(|error| panic!("churn cannot restore {page:#x}: {error}"));
        }
    }

    fn protect(&mut self, guest: &Guest, start: u64, size: u64) -> bool {
        let size = size.min(self.ram_end - start);
        guest
            .space
            .protect(range(start, size), Protection::ReadOnly)
            .unwrap_or_else(|error| panic!("churn cannot protect {start:#x}: {error}"));
        self.protected.push_back((start, size));
        if self.protected.len() > MOST_PROTECTED
            && let Some(oldest) = self.protected.pop_front()
        {
            grant_range(guest, oldest);
        }
        true
    }

    fn revoke(&mut self, guest: &Guest) -> bool {
        let count = guest.revocable.len() as u64;
        let Some(device) = guest.revocable.get(index(self.random.below(count))) else {
            return false;
        };
        self.devices_due = Some(self.ticks + REVOKED_TICKS);
        device.revoke()
    }
}

fn grant_range(guest: &Guest, (start, size): (u64, u64)) {
    guest
        .space
        .protect(range(start, size), Protection::ReadWrite)
        .unwrap_or_else(|error| panic!("churn cannot re-grant {start:#x}: {error}"));
}

fn migrate(guest: &Guest, page: u64, size: FrameSize) -> bool {
    match guest.space.migrate(host_address(page), size) {
        Ok(_) => true,
        Err(
            MigrateError::NotResident(_)
            | MigrateError::NoFrame { .. }
            | MigrateError::BlockOutsideVma { .. },
        ) => false,
        Err(error) => panic!("churn cannot migrate {page:#x}: {error}"),
    }
}

fn split(guest: &Guest, block: u64) -> bool {
    match guest.space.split(host_address(block)) {
        Ok(()) => true,
        Err(SplitError::NotHuge(_)) => false,
        Err(error) => panic!("churn cannot split {block:#x}: {error}"),
    }
}

fn range(gpa: u64, size: u64) -> HvaRange {
    HvaRange::new(host_address(gpa), size)
        .unwrap_or_else(|error| unreachable!("a range of the guest's RAM: {error}"))
}

fn index(number: u64) -> usize {
    number as usize
}
