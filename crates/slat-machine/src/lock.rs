//! Locks for code under test: waiting switches to another task, and the machine hears of both ends.
//!
//! What a CPU wrote before it lets a lock go is seen by the CPU that takes it next. The model of
//! memory and the judge learn of that order from [`Event::Locked`] and [`Event::Unlocked`].

use core::cell::RefCell;
use core::fmt;
use core::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use slat_table::lock::{self, Locks};

use crate::event::Event;
use crate::machine::Machine;
use crate::schedule;

/// What is told of the locks made and taken on this thread.
struct Told {
    machine: Arc<Machine>,
    made: u64,
}

thread_local! {
    static TOLD: RefCell<Option<Told>> = const { RefCell::new(None) };
}

/// While this lives, the machine is told of locks that are made and taken on this thread.
#[derive(Debug)]
#[must_use = "the machine is told of locks while this lives"]
pub struct Telling(());

/// From now on, tells `machine` of the locks of this thread.
pub fn tell(machine: &Arc<Machine>) -> Telling {
    let machine = Arc::clone(machine);
    TOLD.set(Some(Told { machine, made: 0 }));
    Telling(())
}

impl Drop for Telling {
    fn drop(&mut self) {
        TOLD.set(None);
    }
}

fn machine() -> Option<Arc<Machine>> {
    TOLD.with_borrow(|told| told.as_ref().map(|told| Arc::clone(&told.machine)))
}

/// A lock's name. Those made while a machine is told are counted from 1, so that every run of a seed
/// has the same names.
#[derive(Clone, Copy)]
struct Id(u64);

impl Id {
    fn new() -> Self {
        TOLD.with_borrow_mut(|told| match told {
            Some(told) => {
                told.made += 1;
                Self(told.made)
            }
            None => Self(anonymous()),
        })
    }

    /// Takes the lock by `attempt`, waiting for it if it is taken.
    fn take<G>(self, attempt: impl Fn() -> Result<G, TryLockError<G>>) -> G {
        schedule::point();
        loop {
            match attempt() {
                Ok(guard) => return self.taken(guard),
                // What is behind a lock is sound between any two stores; a panic is a finding of
                // its own.
                Err(TryLockError::Poisoned(poisoned)) => return self.taken(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {
                    assert!(
                        schedule::in_task(),
                        "lock {} is taken, and nobody else runs who could let it go",
                        self.0
                    );
                    schedule::wait_for(self.0);
                }
            }
        }
    }

    fn taken<G>(self, guard: G) -> G {
        schedule::holds(self.0);
        if let Some(machine) = machine() {
            machine.note(schedule::cpu(), Event::Locked { lock: self.0 });
        }
        guard
    }

    /// To be called before the lock is let go.
    fn let_go(self) {
        if let Some(machine) = machine() {
            machine.release(schedule::cpu());
            machine.note(schedule::cpu(), Event::Unlocked { lock: self.0 });
        }
        schedule::releases(self.0);
    }
}

/// Names for locks that no machine is told of, distinct from all that one is told of.
fn anonymous() -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The family of locks that a run uses.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a name; it has no values")]
pub enum ModelLocks {}

impl Locks for ModelLocks {
    type Mutex<T: Send> = ModelMutex<T>;
    type RwLock<T: Send + Sync> = ModelRwLock<T>;

    fn relax() {
        schedule::spin();
    }
}

/// A mutex.
pub struct ModelMutex<T> {
    id: Id,
    value: Mutex<T>,
}

impl<T: Default + Send> Default for ModelMutex<T> {
    fn default() -> Self {
        lock::Mutex::new(T::default())
    }
}

impl<T: Send> lock::Mutex<T> for ModelMutex<T> {
    type Guard<'a>
        = Guard<MutexGuard<'a, T>>
    where
        Self: 'a;

    fn new(value: T) -> Self {
        Self {
            id: Id::new(),
            value: Mutex::new(value),
        }
    }

    fn lock(&self) -> Self::Guard<'_> {
        Guard {
            id: self.id,
            held: self.id.take(|| self.value.try_lock()),
            _after: LetOthersRun,
        }
    }
}

/// A lock for many readers or one writer.
pub struct ModelRwLock<T> {
    id: Id,
    value: RwLock<T>,
}

impl<T: Send + Sync> lock::RwLock<T> for ModelRwLock<T> {
    type Read<'a>
        = Guard<RwLockReadGuard<'a, T>>
    where
        Self: 'a;
    type Write<'a>
        = Guard<RwLockWriteGuard<'a, T>>
    where
        Self: 'a;

    fn new(value: T) -> Self {
        Self {
            id: Id::new(),
            value: RwLock::new(value),
        }
    }

    fn read(&self) -> Self::Read<'_> {
        Guard {
            id: self.id,
            held: self.id.take(|| self.value.try_read()),
            _after: LetOthersRun,
        }
    }

    fn write(&self) -> Self::Write<'_> {
        Guard {
            id: self.id,
            held: self.id.take(|| self.value.try_write()),
            _after: LetOthersRun,
        }
    }
}

impl<T> fmt::Debug for ModelMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelMutex").field(&self.id.0).finish()
    }
}

impl<T> fmt::Debug for ModelRwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelRwLock").field(&self.id.0).finish()
    }
}

/// Access to what a lock protects.
pub struct Guard<G> {
    id: Id,
    // Let go after `drop`, with no point in between.
    held: G,
    // Dropped last.
    _after: LetOthersRun,
}

/// Others may run right after a lock was let go, before its holder does anything else: what it
/// found under the lock may be outdated by then.
struct LetOthersRun;

impl Drop for LetOthersRun {
    fn drop(&mut self) {
        schedule::point();
    }
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.held
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.held
    }
}

impl<G> Drop for Guard<G> {
    fn drop(&mut self) {
        self.id.let_go();
    }
}

impl<G> fmt::Debug for Guard<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.id.0).finish()
    }
}

/// Takes a lock of the standard library under which nothing waits.
///
/// # Panics
///
/// If it is taken: all tasks share a thread, so whoever has it holds it across a point, and waiting
/// for it would take forever.
pub(crate) fn brief<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => panic!("a lock is held where others may run"),
    }
}
