//! Locks are the embedder's: a kernel has its own, a test has loom's.
//!
//! A [`Locks`] names a mutex and a reader-writer lock. [`SpinLocks`] (feature `spin`) suits bare
//! metal, [`StdLocks`] (feature `std`) a process, `LoomLocks` the model checker.

use core::ops::{Deref, DerefMut};

/// A mutual exclusion lock around a `T`.
pub trait Mutex<T>: Send + Sync {
    /// Access to the value; releases the lock when dropped.
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a;

    /// An unlocked mutex.
    fn new(value: T) -> Self;

    /// Waits for the lock.
    fn lock(&self) -> Self::Guard<'_>;
}

/// A lock around a `T` that many may read or one may change.
pub trait RwLock<T>: Send + Sync {
    /// Shared access; releases the lock when dropped.
    type Read<'a>: Deref<Target = T>
    where
        Self: 'a;
    /// Exclusive access; releases the lock when dropped.
    type Write<'a>: DerefMut<Target = T>
    where
        Self: 'a;

    /// An unlocked lock.
    fn new(value: T) -> Self;

    /// Waits for shared access.
    fn read(&self) -> Self::Read<'_>;

    /// Waits for exclusive access.
    fn write(&self) -> Self::Write<'_>;
}

/// A family of locks.
pub trait Locks: 'static {
    /// Mutual exclusion. Taken with interrupts as they are: whoever may be interrupted by code
    /// that takes the same lock must bring a mutex that masks interrupts.
    type Mutex<T: Send>: Mutex<T>;
    /// Many readers or one writer.
    type RwLock<T: Send + Sync>: RwLock<T>;

    /// Called in loops that wait for another CPU.
    fn relax();
}

/// Spin locks from the `spin` crate.
#[cfg(feature = "spin")]
#[derive(Debug)]
pub enum SpinLocks {}

#[cfg(feature = "spin")]
mod spinning {
    use super::{Locks, Mutex, RwLock, SpinLocks};

    impl<T: Send> Mutex<T> for spin::Mutex<T> {
        type Guard<'a>
            = spin::MutexGuard<'a, T>
        where
            Self: 'a;

        fn new(value: T) -> Self {
            Self::new(value)
        }

        #[inline]
        fn lock(&self) -> Self::Guard<'_> {
            self.lock()
        }
    }

    impl<T: Send + Sync> RwLock<T> for spin::RwLock<T> {
        type Read<'a>
            = spin::RwLockReadGuard<'a, T>
        where
            Self: 'a;
        type Write<'a>
            = spin::RwLockWriteGuard<'a, T>
        where
            Self: 'a;

        fn new(value: T) -> Self {
            Self::new(value)
        }

        #[inline]
        fn read(&self) -> Self::Read<'_> {
            self.read()
        }

        #[inline]
        fn write(&self) -> Self::Write<'_> {
            self.write()
        }
    }

    impl Locks for SpinLocks {
        type Mutex<T: Send> = spin::Mutex<T>;
        type RwLock<T: Send + Sync> = spin::RwLock<T>;

        #[inline]
        fn relax() {
            core::hint::spin_loop();
        }
    }
}

/// Declares a family whose locks return a `LockResult`, as the standard library's and loom's do.
#[cfg(any(feature = "std", slat_loom))]
macro_rules! poisoning_locks {
    ($name:ident, $sync:path, $relax:path) => {
        mod implementation {
            use super::{Locks, Mutex, RwLock};
            use $sync as sync;

            // What these locks protect is sound between any two stores, so a panic elsewhere under
            // one of them (in an embedder's platform) leaves nothing half done.
            impl<T: Send> Mutex<T> for sync::Mutex<T> {
                type Guard<'a>
                    = sync::MutexGuard<'a, T>
                where
                    Self: 'a;

                fn new(value: T) -> Self {
                    Self::new(value)
                }

                #[inline]
                fn lock(&self) -> Self::Guard<'_> {
                    self.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
                }
            }

            impl<T: Send + Sync> RwLock<T> for sync::RwLock<T> {
                type Read<'a>
                    = sync::RwLockReadGuard<'a, T>
                where
                    Self: 'a;
                type Write<'a>
                    = sync::RwLockWriteGuard<'a, T>
                where
                    Self: 'a;

                fn new(value: T) -> Self {
                    Self::new(value)
                }

                #[inline]
                fn read(&self) -> Self::Read<'_> {
                    self.read().unwrap_or_else(|poisoned| poisoned.into_inner())
                }

                #[inline]
                fn write(&self) -> Self::Write<'_> {
                    self.write()
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                }
            }

            impl Locks for super::$name {
                type Mutex<T: Send> = sync::Mutex<T>;
                type RwLock<T: Send + Sync> = sync::RwLock<T>;

                fn relax() {
                    $relax();
                }
            }
        }
    };
}

/// Locks from the standard library.
#[cfg(feature = "std")]
#[derive(Debug)]
pub enum StdLocks {}

#[cfg(feature = "std")]
mod standard {
    use super::{Locks, Mutex, RwLock, StdLocks};
    poisoning_locks!(StdLocks, std::sync, std::thread::yield_now);
}

/// Locks from `loom`, for model checking.
#[cfg(slat_loom)]
#[derive(Debug)]
pub enum LoomLocks {}

#[cfg(slat_loom)]
mod checked {
    use super::{Locks, LoomLocks, Mutex, RwLock};
    poisoning_locks!(LoomLocks, loom::sync, loom::thread::yield_now);
}
