//! Many runs, each with a plan drawn from its seed, on as many threads as there are cores.
//!
//! All of one run stays on one thread, so runs do not disturb each other and each replays alone.
//! Several formats take turns.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::draw::{self, Drawn};
use super::{Outcome, RigError, Row, run};

/// How long to go on, and with how much at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The formats, which take turns.
    pub formats: Vec<&'static Row>,
    /// The first seed of each format; the others follow it.
    pub first_seed: u64,
    /// At least so many seeds are run, those of all formats together.
    pub least_seeds: u64,
    /// Once there were enough seeds, go on for so long.
    pub time: Duration,
    /// Once there were enough seeds, go on for so many steps of each format; `None`: only time
    /// counts.
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
    /// What was done with each format.
    pub formats: Vec<(&'static Row, Totals)>,
    /// What was found first, and by which seed.
    pub finding: Option<(u64, String)>,
    /// How long it took.
    pub time: Duration,
}

impl Soaked {
    /// What was done with all formats together.
    pub fn totals(&self) -> Totals {
        sum(self.formats.iter().map(|(_, totals)| totals))
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, steps, .. } = *self;
        write!(f, "{} steps over {seeds} seeds", Grouped(steps))
    }
}

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} on {} guest CPUs: {} in {:.1} s",
            self.totals(),
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
    state: Mutex<State>,
}

#[derive(Clone)]
struct State {
    /// By the place of the format.
    totals: Vec<Totals>,
    finding: Option<(u64, String)>,
}

/// A run to be made.
struct Next {
    /// The place of its format.
    at: usize,
    format: &'static Row,
    seed: u64,
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
        state: Mutex::new(State {
            totals: vec![Totals::default(); limits.formats.len()],
            finding: None,
        }),
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
    let State { totals, finding } = locked(&shared.state).clone();
    Ok(Soaked {
        formats: limits.formats.iter().copied().zip(totals).collect(),
        finding,
        time,
    })
}

impl Shared<'_> {
    fn work(&self, progress: &(dyn Fn(&Totals) + Sync)) -> Result<(), RigError> {
        while let Some(Next { at, format, seed }) = self.next() {
            let Drawn { plan, options } = draw::draw(format, seed);
            let outcome = run(&plan, &options);
            let outcome = outcome.inspect_err(|_| self.over.store(true, Relaxed))?;
            let mut state = locked(&self.state);
            add(&mut state.totals[at], &outcome);
            if let Some(story) = outcome.finding {
                self.over.store(true, Relaxed);
                // The lowest seed is the one to show, whichever thread was faster.
                let known = state.finding.as_ref();
                if known.is_none_or(|(known, _)| seed < *known) {
                    state.finding = Some((seed, story));
                }
            }
            progress(&sum(&state.totals));
        }
        Ok(())
    }

    /// The next run, if there is to be one.
    fn next(&self) -> Option<Next> {
        let Limits {
            formats,
            first_seed,
            least_seeds,
            ..
        } = self.limits;
        let turns = formats.len() as u64;
        while !self.over.load(Relaxed) {
            let number = self.next.fetch_add(1, Relaxed);
            let turn = number.checked_div(turns)?;
            let at = usize::try_from(number % turns).ok()?;
            if number < *least_seeds || self.goes_on(at) {
                return Some(Next {
                    at,
                    format: formats[at],
                    seed: first_seed.wrapping_add(turn),
                });
            }
            if !(0..formats.len()).any(|at| self.goes_on(at)) {
                break;
            }
        }
        None
    }

    /// Whether there is time for more of the format at this place, and not enough of it yet.
    fn goes_on(&self, at: usize) -> bool {
        let steps = locked(&self.state).totals[at].steps;
        let enough = self.limits.steps.is_some_and(|most| steps >= most);
        !enough && self.began.elapsed() < self.limits.time
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

fn sum<'t>(totals: impl IntoIterator<Item = &'t Totals>) -> Totals {
    totals
        .into_iter()
        .fold(Totals::default(), |sum, one| Totals {
            seeds: sum.seeds + one.seeds,
            steps: sum.steps + one.steps,
            accesses: sum.accesses + one.accesses,
            faults: sum.faults + one.faults,
            changes: sum.changes + one.changes,
        })
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
