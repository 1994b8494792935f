//! What an address space has done and holds.

use core::ops::AddAssign;

use crate::frames::FrameSize;

/// Numbers of frames by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// 4 KiB frames.
    pub base: u64,
    /// 2 MiB frames.
    pub huge: u64,
}

impl FrameCounts {
    /// The memory of all these frames in bytes.
    pub const fn bytes(&self) -> u64 {
        self.base * FrameSize::Base.bytes() + self.huge * FrameSize::Huge.bytes()
    }

    pub(crate) fn add(&mut self, size: FrameSize) {
        match size {
            FrameSize::Base => self.base += 1,
            FrameSize::Huge => self.huge += 1,
        }
    }
}

impl AddAssign for FrameCounts {
    fn add_assign(&mut self, other: Self) {
        self.base += other.base;
        self.huge += other.huge;
    }
}

/// A snapshot of an address space's statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// VMAs there are.
    pub vmas: u64,
    /// Frames that hold memory now.
    pub resident: FrameCounts,
    /// Ranges announced to the notifiers so far, each to all of them. Those of a device's
    /// revocation are counted too.
    pub notifications: u64,
    /// What was done so far.
    pub done: Counters,
}

/// What an address space has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Frames brought by faults.
    pub faulted: FrameCounts,
    /// Frames brought by the host itself: `populate` and `write`.
    pub populated: FrameCounts,
    /// Migrations by the size of the frame moved to.
    pub migrated: FrameCounts,
    /// Frames given back by discards.
    pub discarded: FrameCounts,
    /// 2 MiB frames made into 4 KiB ones.
    pub split: u64,
    /// Changes of permission that took effect.
    pub protected: u64,
}
