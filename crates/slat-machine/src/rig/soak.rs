//! Many runs, each with a plan drawn from its seed, on as many threads as there are cores.
//!
//! All of one run stays on one thread, so runs do not disturb each other and each replays alone.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::draw::{self, Drawn};
use super::{Outcome, RigError, run};

/// How long to go on, and with how much at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The first seed; the others follow it.
    pub first_seed: u64,
    /// At least so many seeds are run.
    pub least_seeds: u64,
    /// Once there were enough seeds, go on for so long.
    pub time: Duration,
    /// Once there were enough seeds, go on for so many steps; `None`: only time counts.
    pub steps: Option<u64>,
    /// Runs at once.
    pub jobs: usize,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Seeds run to their ends.
    pub seeds: u64,
    /// Steps of the machine.
    pub steps: u64,
    /// Accesses of the guests.
    pub accesses: u64,
    /// Faults of the guests.
    pub faults: u64,
    /// Changes that the hosts made.
    pub changes: u64,
}

/// How a soak ended.
#[derive(Debug)]
pub struct Soaked {
    /// What was done.
    pub totals: Totals,
    /// What was found first, and by which seed.
    pub finding: Option<(u64, String)>,
    /// How long it took.
    pub time: Duration,
}

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { seeds, steps, .. } = self.totals;
        write!(
            f,
            "{} steps over {seeds} seeds on {} guest CPUs: {} in {:.1} s",
            Grouped(steps),
            draw::GUEST_CPUS,
            if self.finding.is_some() {
                "1 violation"
            } else {
                "0 violations"
            },
            self.time.as_secs_f64()
        )
    }
}

/// A number with its digits in groups of three.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let head = digits.len() % 3;
        let (first, rest) = digits.split_at(head);
        f.write_str(first)?;
        for (index, digit) in rest.chars().enumerate() {
            if index % 3 == 0 && !(index == 0 && head == 0) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

struct Shared<'l> {
    limits: &'l Limits,
    began: Instant,
    next: AtomicU64,
    over: AtomicBool,
    state: Mutex<(Totals, Option<(u64, String)>)>,
}

/// Runs seed after seed until a limit is reached or something is found. `progress` hears of every
/// run that ended.
///
/// # Errors
///
/// [`RigError`], if a drawn plan cannot be set up.
pub fn soak(limits: &Limits, progress: &(dyn Fn(&Totals) + Sync)) -> Result<Soaked, RigError> {
    let shared = Shared {
        limits,
        began: Instant::now(),
        next: AtomicU64::new(0),
        over: AtomicBool::new(false),
        state: Mutex::default(),
    };
    let work = || shared.work(progress);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..limits.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let time = shared.began.elapsed();
    let (totals, finding) = locked(&shared.state).clone();
    Ok(Soaked {
        totals,
        finding,
        time,
    })
}

impl Shared<'_> {
    fn work(&self, progress: &(dyn Fn(&Totals) + Sync)) -> Result<(), RigError> {
        while let Some(seed) = self.next() {
            let Drawn { plan, options } = draw::draw(seed);
            let outcome = run(&plan, &options);
            let outcome = outcome.inspect_err(|_| self.over.store(true, Relaxed))?;
            let mut state = locked(&self.state);
            add(&mut state.0, &outcome);
            if let Some(story) = outcome.finding {
                self.over.store(true, Relaxed);
                // The lowest seed is the one to show, whichever thread was faster.
                if state.1.as_ref().is_none_or(|(known, _)| seed < *known) {
                    state.1 = Some((seed, story));
                }
            }
            progress(&state.0);
        }
        Ok(())
    }

    /// The next seed to run, if there is to be one.
    fn next(&self) -> Option<u64> {
        if self.over.load(Relaxed) {
            return None;
        }
        let number = self.next.fetch_add(1, Relaxed);
        let limits = self.limits;
        let late = self.began.elapsed() >= limits.time;
        let steps = locked(&self.state).0.steps;
        let enough = late || limits.steps.is_some_and(|most| steps >= most);
        (number < limits.least_seeds || !enough).then(|| limits.first_seed.wrapping_add(number))
    }
}

/// A panic elsewhere has failed the soak already.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(totals: &mut Totals, Outcome { report, .. }: &Outcome) {
    totals.seeds += 1;
    if let Some(model) = report.model {
        totals.steps += model.steps;
        totals.accesses += model.accesses;
    }
    totals.faults += report.exits.get("fault").copied().unwrap_or(0);
    totals.changes += report.churn.as_ref().map_or(0, |churn| churn.total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_groups_of_three() {
        let grouped = [0, 999, 1000, 10_042_117].map(|number| Grouped(number).to_string());
        assert_eq!(grouped, ["0", "999", "1,000", "10,042,117"]);
    }
}
