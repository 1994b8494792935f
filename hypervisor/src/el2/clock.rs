//! Where the time goes, in ticks of the system counter.

use slat_report::Times;

use super::registers::read;

/// When the guest began, and how long it was out since.
#[derive(Debug)]
pub(super) struct Clock {
    entry: u64,
    el2: u64,
    left: Option<u64>,
}

impl Clock {
    /// A clock that starts with the guest's first entry, which is now.
    pub(super) fn start() -> Self {
        Self {
            entry: now(),
            el2: 0,
            left: None,
        }
    }

    /// Notes that the guest has left.
    pub(super) fn leave(&mut self) {
        self.left = Some(now());
    }

    /// Notes that the guest is about to go on.
    pub(super) fn enter(&mut self) {
        if let Some(left) = self.left.take() {
            self.el2 += now() - left;
        }
    }

    /// Whether EL2 has had more than `percent` percent of the time so far.
    pub(super) fn is_over(&self, percent: u64) -> bool {
        let now = now();
        let el2 = self.el2 + self.left.map_or(0, |left| now - left);
        el2 * 100 > (now - self.entry) * percent
    }

    /// The times, if the guest stopped when it left last.
    pub(super) fn times(&self) -> Times {
        let counter_hz = read!("cntfrq_el0");
        let stop = self.left.unwrap_or_else(now);
        let total = (stop - self.entry).max(1);
        let nanoseconds = u128::from(total) * 1_000_000_000 / u128::from(counter_hz.max(1));
        Times {
            counter_hz,
            entry: self.entry,
            stop,
            el2: self.el2,
            guest_ns: u64::try_from(nanoseconds).unwrap_or(u64::MAX),
            el2_share_bp: self.el2 * 10_000 / total,
        }
    }
}

/// The counter.
pub(super) fn now() -> u64 {
    // SAFETY: a barrier: the counter is not read ahead of what comes before.
    unsafe { core::arch::asm!("isb", options(nomem, nostack, preserves_flags)) };
    read!("cntpct_el0")
}
