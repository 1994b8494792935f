//! Who runs next: many CPUs on one thread, in an order that comes from a seed.
//!
//! Every CPU of a run is a task: a coroutine with a stack of its own. Only one runs at a time, and
//! it runs until it comes to a [`point`], where the schedule goes on with it or switches to
//! another, as the seed has it. Points stand before every operation of the machine and every lock,
//! so all interleavings that matter can come up, and the same seed gives the same one.
//!
//! Two kinds of schedule take turns. One tosses a coin at every point; how heavy the coin is
//! comes from the seed, since some bugs need many switches and others need long stretches without
//! one. The other runs the task with the highest priority and demotes it at a few points, which
//! finds bugs that need few switches at the right places (probabilistic concurrency testing:
//! Burckhardt et al., ASPLOS 2010).

mod panics;

use core::cell::{Cell, RefCell};
use core::fmt;
use core::panic::AssertUnwindSafe;
use std::panic;

use generator::{Generator, Gn};

use crate::event::Cpu;
use crate::random::Random;

/// Words of a task's stack: 512 KiB, touched only as far as they are used.
const STACK_WORDS: usize = 0x1_0000;

/// A task that waits in a loop is let wait so many times without ever getting on.
const MOST_SPINS: u32 = 200_000;

/// A lock that nobody ever lets go.
const NEVER: u64 = u64::MAX;

/// One CPU's work.
pub struct Task {
    name: String,
    cpu: Cpu,
    body: Box<dyn FnOnce() + Send>,
}

impl Task {
    /// What `cpu` does. `name` is for people.
    pub fn new(name: impl Into<String>, cpu: Cpu, body: impl FnOnce() + Send + 'static) -> Self {
        Self {
            name: name.into(),
            cpu,
            body: Box::new(body),
        }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("cpu", &self.cpu)
            .finish_non_exhaustive()
    }
}

/// Why a schedule did not come to a good end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Every task that is not done waits for a lock. The tasks and what they hold are leaked.
    #[error("deadlock: {}", .waiting.join("; "))]
    Deadlock {
        /// Who waits for which lock, held by whom.
        waiting: Vec<String>,
    },
    /// A task waits in a loop for something that never comes.
    #[error("livelock: {task} waited {times} times in a row")]
    Livelock {
        /// Which task.
        task: String,
        /// How often.
        times: u32,
    },
    /// A task panicked.
    #[error("{task} panicked: {message}")]
    Panic {
        /// Which task.
        task: String,
        /// The panic's message and place.
        message: String,
    },
}

/// How the next task is chosen.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// Switches at one in so many points.
    Coin(usize),
    /// Runs the highest priority; demotes at one in so many points.
    Priority(usize),
}

struct TaskState {
    name: String,
    cpu: Cpu,
    waits_for: Option<u64>,
    priority: u64,
    spins: u32,
    done: bool,
}

struct State {
    random: Random,
    mode: Mode,
    tasks: Vec<TaskState>,
    current: usize,
    /// Who holds which lock, for stories about deadlocks.
    holders: Vec<(u64, usize)>,
    /// Priorities handed out so far, the newest lowest.
    demotions: u64,
    failure: Option<ScheduleError>,
}

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
    static CPU: Cell<Cpu> = const { Cell::new(0) };
    static STOPPED: Cell<bool> = const { Cell::new(false) };
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// The CPU of the task that runs; 0 outside any.
pub fn cpu() -> Cpu {
    CPU.get()
}

/// Whether the tasks are to come to their ends: something was found, or [`stop`] was called.
pub fn is_stopped() -> bool {
    STOPPED.get()
}

/// Asks all tasks to come to their ends.
pub fn stop() {
    STOPPED.set(true);
}

/// Whether a task is running on this thread.
pub(crate) fn in_task() -> bool {
    IN_TASK.get()
}

/// Another task may run before this one goes on. Does nothing outside a task.
#[inline]
pub fn point() {
    // A panic is counted per thread: whoever ran now would believe itself to be panicking.
    if !in_task() || is_stopped() || std::thread::panicking() {
        return;
    }
    switch_if(State::after_point);
}

/// The running task can only wait for others: they run before it does.
pub fn spin() {
    if in_task() {
        switch_if(State::after_spin);
    }
}

/// The running task got on with its work, however often it has waited before.
pub fn progress() {
    with_state(|state| state.tasks[state.current].spins = 0);
}

/// The running task sleeps until `lock` is released.
pub(crate) fn wait_for(lock: u64) {
    switch_if(|state| {
        state.tasks[state.current].waits_for = Some(lock);
        None
    });
}

/// The running task holds `lock`, or shares it.
pub(crate) fn holds(lock: u64) {
    with_state(|state| state.holders.push((lock, state.current)));
}

/// The running task has let go of `lock`: who waits for it may try again.
pub(crate) fn releases(lock: u64) {
    with_state(|state| {
        let held = (lock, state.current);
        if let Some(at) = state.holders.iter().rposition(|known| *known == held) {
            state.holders.swap_remove(at);
        }
        for task in &mut state.tasks {
            if task.waits_for == Some(lock) {
                task.waits_for = None;
            }
        }
    });
}

fn with_state<T>(act: impl FnOnce(&mut State) -> T) -> Option<T> {
    if !in_task() {
        return None;
    }
    STATE.with_borrow_mut(|state| state.as_mut().map(act))
}

/// Leaves the running task unless `choose` says that it goes on.
#[inline]
fn switch_if(choose: impl FnOnce(&mut State) -> Option<usize>) {
    let stays = with_state(|state| choose(state) == Some(state.current));
    if stays == Some(false) {
        leave();
    }
}

#[expect(
    deprecated,
    reason = "the scoped way needs a handle passed through the code under test; nothing is passed \
              or borrowed here"
)]
fn leave() {
    generator::yield_with(());
}

impl State {
    fn new(seed: u64, tasks: &[Task]) -> Self {
        let mut random = Random::new(seed);
        let mode = match random.below(8) {
            0 => Mode::Coin(2),
            1 => Mode::Coin(5),
            2 | 3 => Mode::Coin(20),
            4 => Mode::Coin(100),
            5 => Mode::Priority(30),
            6 => Mode::Priority(200),
            _ => Mode::Priority(2000),
        };
        let task = |task: &Task| TaskState {
            name: task.name.clone(),
            cpu: task.cpu,
            waits_for: None,
            priority: u64::MAX / 2 + (random.bits() >> 2),
            spins: 0,
            done: false,
        };
        Self {
            tasks: tasks.iter().map(task).collect(),
            random,
            mode,
            current: 0,
            holders: Vec::new(),
            demotions: u64::MAX / 2,
            failure: None,
        }
    }

    /// Who goes on after a point of the current task, if that is decided here: the task itself.
    fn after_point(&mut self) -> Option<usize> {
        match self.mode {
            Mode::Coin(n) => (!self.random.one_in(n)).then_some(self.current),
            Mode::Priority(n) => {
                if self.random.one_in(n) {
                    self.demote(self.current);
                }
                self.choose()
            }
        }
    }

    fn after_spin(&mut self) -> Option<usize> {
        self.demote(self.current);
        let task = &mut self.tasks[self.current];
        task.spins += 1;
        if task.spins > MOST_SPINS {
            let (task, times) = (task.name.clone(), task.spins);
            if self.failure.is_some() {
                // Asked to come to its end, and still waiting: it is left where it is.
                self.tasks[self.current].waits_for = Some(NEVER);
            }
            self.fail(ScheduleError::Livelock { task, times });
            self.tasks[self.current].spins = 0;
        }
        None
    }

    fn fail(&mut self, failure: ScheduleError) {
        self.failure.get_or_insert(failure);
        stop();
    }

    fn demote(&mut self, task: usize) {
        self.demotions -= 1;
        self.tasks[task].priority = self.demotions;
    }

    fn is_runnable(&self, task: usize) -> bool {
        !self.tasks[task].done && self.tasks[task].waits_for.is_none()
    }

    /// Who runs next; `None` if nobody can.
    fn choose(&mut self) -> Option<usize> {
        let runnable = |task: &usize| self.is_runnable(*task);
        let all = 0..self.tasks.len();
        match self.mode {
            Mode::Priority(_) => all
                .filter(runnable)
                .max_by_key(|task| self.tasks[*task].priority),
            Mode::Coin(_) => {
                let count = all.clone().filter(runnable).count();
                // Whoever has just left prefers somebody else.
                let others = all
                    .clone()
                    .filter(|task| *task != self.current)
                    .filter(runnable);
                let others_count = others.clone().count();
                if others_count == 0 {
                    return (count != 0).then_some(self.current);
                }
                let which = self.random.below(others_count);
                let current = self.current;
                all.filter(|task| *task != current && self.is_runnable(*task))
                    .nth(which)
            }
        }
    }

    fn deadlock(&self) -> ScheduleError {
        let names = |lock| {
            let holders = self.holders.iter().filter(move |(held, _)| *held == lock);
            let names = holders.map(|(_, task)| self.tasks[*task].name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let waits = |task: &TaskState| {
            let lock = task.waits_for?;
            let holders = names(lock);
            let name = &task.name;
            Some(format!("{name} waits for lock {lock} held by {holders}"))
        };
        ScheduleError::Deadlock {
            waiting: self.tasks.iter().filter_map(waits).collect(),
        }
    }
}

/// Runs `tasks` to their ends, in an order that comes from `seed`.
///
/// # Errors
///
/// [`ScheduleError`], the first if there are several. A task that panics ends; the others are asked
/// to [stop](is_stopped).
///
/// # Panics
///
/// Inside a task: schedules do not nest.
pub fn run(seed: u64, tasks: Vec<Task>) -> Result<(), ScheduleError> {
    assert!(!in_task(), "a task cannot run a schedule of its own");
    panics::record();
    STOPPED.set(false);
    STATE.set(Some(State::new(seed, &tasks)));
    let mut coroutines: Vec<_> = tasks.into_iter().map(coroutine).collect();
    loop {
        let next = on_state(|state| {
            let next = state.choose()?;
            state.current = next;
            CPU.set(state.tasks[next].cpu);
            Some(next)
        });
        let Some(next) = next else { break };
        let coroutine = &mut coroutines[next];
        IN_TASK.set(true);
        coroutine.resume();
        IN_TASK.set(false);
        if coroutine.is_done() {
            on_state(|state| state.tasks[next].done = true);
        }
    }
    CPU.set(0);
    let failure = on_state(|state| {
        let ended = state.tasks.iter().all(|task| task.done);
        let failure = state.failure.take();
        failure.or_else(|| (!ended).then(|| state.deadlock()))
    });
    if coroutines.iter().any(|coroutine| !coroutine.is_done()) {
        // Ending them would run their destructors, which wait for the same locks.
        core::mem::forget(coroutines);
    }
    STATE.set(None);
    failure.map_or(Ok(()), Err)
}

fn on_state<T>(act: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(|state| {
        let Some(state) = state else {
            unreachable!("a schedule that runs has a state")
        };
        act(state)
    })
}

fn coroutine(task: Task) -> Generator<'static, (), ()> {
    let Task { name, body, .. } = task;
    Gn::<()>::new_opt(STACK_WORDS, move || {
        let Err(panic) = panic::catch_unwind(AssertUnwindSafe(body)) else {
            return;
        };
        let message = panics::take_message(&*panic);
        on_state(|state| {
            state.fail(ScheduleError::Panic {
                task: name,
                message,
            });
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::ModelLocks;
    use slat_table::lock::{Locks, Mutex as _};
    use std::sync::{Arc, Mutex};

    fn order(seed: u64) -> Vec<Cpu> {
        let order = Arc::new(Mutex::new(Vec::new()));
        let task = |cpu| {
            let order = Arc::clone(&order);
            Task::new(format!("cpu {cpu}"), cpu, move || {
                for _ in 0..50 {
                    point();
                    order.lock().unwrap().push(super::cpu());
                }
            })
        };
        run(seed, (0..4).map(task).collect()).unwrap();
        Arc::into_inner(order).unwrap().into_inner().unwrap()
    }

    #[test]
    fn a_seed_always_gives_the_same_order_and_another_gives_another() {
        let orders: Vec<_> = (0..20).map(order).collect();
        assert_eq!(orders, (0..20).map(order).collect::<Vec<_>>());
        let distinct: std::collections::BTreeSet<_> = orders.iter().collect();
        assert!(distinct.len() > 15, "{} of 20", distinct.len());
        assert!(orders.iter().all(|order| order.len() == 200));
    }

    #[test]
    fn two_tasks_that_take_two_locks_in_opposite_orders_deadlock_for_some_seed() {
        type Lock = Arc<<ModelLocks as Locks>::Mutex<()>>;
        let deadlocks = (0..50).filter(|seed| {
            let (a, b): (Lock, Lock) = Default::default();
            let task = |cpu, first: &Lock, second: &Lock| {
                let (first, second) = (Arc::clone(first), Arc::clone(second));
                Task::new(format!("cpu {cpu}"), cpu, move || {
                    let _first = first.lock();
                    let _second = second.lock();
                })
            };
            match run(*seed, vec![task(0, &a, &b), task(1, &b, &a)]) {
                Ok(()) => false,
                Err(ScheduleError::Deadlock { waiting }) => {
                    assert_eq!(waiting.len(), 2, "{waiting:?}");
                    assert!(
                        waiting[0].starts_with("cpu 0 waits for lock"),
                        "{waiting:?}"
                    );
                    assert!(waiting[0].ends_with("held by cpu 1"), "{waiting:?}");
                    true
                }
                Err(other) => panic!("{other}"),
            }
        });
        assert!((1..50).contains(&deadlocks.count()));
    }

    #[test]
    fn a_panic_is_a_finding_and_stops_the_others() {
        let forever = Task::new("the other", 1, || {
            while !is_stopped() {
                point();
            }
        });
        let panics = Task::new("the one", 0, || panic!("nothing is right"));
        let error = run(1, vec![forever, panics]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("the one panicked: nothing is right at "),
            "{text}"
        );
    }

    #[test]
    fn waiting_for_what_never_comes_is_a_finding() {
        let waits = Task::new("it", 0, || {
            while !is_stopped() {
                spin();
            }
        });
        assert!(matches!(
            run(1, vec![waits]),
            Err(ScheduleError::Livelock { .. })
        ));
    }
}
