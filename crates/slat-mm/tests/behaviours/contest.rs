//! Guests that run while something changes back and forth under them.
//!
//! There are two states, and a main thread that changes from one to the other and back. Around
//! each change it moves a counter, which is odd while a change is under way. A guest that finds
//! the counter even and the same before and after an access knows in which state the access was
//! made, whole. The main thread goes on only when every guest has made such an access, so
//! each state is really seen, with no clock involved.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};

/// In which state an access was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Nothing changed from its beginning to its end.
    First,
    Second,
    /// A change was under way.
    Between,
}

impl When {
    /// Of an access that began at the moment `before` and ended at `after`.
    fn of(before: u64, after: u64) -> Self {
        match (before == after, before % 4) {
            (true, 0) => Self::First,
            (true, 2) => Self::Second,
            _ => Self::Between,
        }
    }
}

/// Ends the guests, also when the main thread panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Changes from the first state to the second and back `rounds` times, while `guests` threads
/// make accesses. `change` is told whether to go to the second state. `guest` is given the number
/// of a thread and makes what that thread calls for each access; `judge` looks at every result.
pub(crate) fn contest<T, G: FnMut() -> T>(
    rounds: u64,
    guests: usize,
    change: impl Fn(bool),
    guest: impl Fn(usize) -> G + Sync,
    judge: impl Fn(When, T) + Sync,
) {
    let moment = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    // The last moment at which each guest has made a whole access.
    let done: Vec<AtomicU64> = (0..guests).map(|_| AtomicU64::new(u64::MAX)).collect();
    let (moment, stop, done, guest, judge) = (&moment, &stop, &done, &guest, &judge);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..guests)
            .map(|number| {
                scope.spawn(move || {
                    let mut access = guest(number);
                    let mut seen = [0u64; 2];
                    while !stop.load(Ordering::SeqCst) {
                        let before = moment.load(Ordering::SeqCst);
                        let result = access();
                        let when = When::of(before, moment.load(Ordering::SeqCst));
                        judge(when, result);
                        if when != When::Between {
                            seen[usize::from(when == When::Second)] += 1;
                            done[number].store(before, Ordering::SeqCst);
                        }
                    }
                    seen
                })
            })
            .collect();
        let stopped = Stop(stop);
        let everybody_was_here = |now: u64| {
            let missing = |done: &AtomicU64| done.load(Ordering::SeqCst) != now;
            // One who has panicked will not come; its panic is passed on below.
            while done.iter().any(missing) && !threads.iter().any(ScopedJoinHandle::is_finished) {
                thread::yield_now();
            }
        };
        everybody_was_here(0);
        for round in 0..2 * rounds {
            moment.fetch_add(1, Ordering::SeqCst);
            change(round % 2 == 0);
            let now = moment.fetch_add(1, Ordering::SeqCst) + 1;
            everybody_was_here(now);
        }
        drop(stopped);
        for thread in threads {
            let [first, second] = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            assert!(
                first > rounds && second >= rounds,
                "a guest that never ran proves nothing"
            );
        }
    });
}
