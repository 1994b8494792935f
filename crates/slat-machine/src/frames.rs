//! The machine's RAM, as `slat-mm` wants it: frames. And an account of who has how much of it.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use slat_mm::{FrameSize, Frames};
use slat_table::address::Hpa;

use crate::address;
use crate::lock::brief;
use crate::machine::Machine;
use crate::platform::to_machine;
use crate::random::Random;
use crate::schedule::{cpu, in_task, is_stopped, point};

/// Hands out memory, for tables and frames alike: refuses it at times, and knows how much is out.
#[derive(Debug)]
pub struct Supply {
    failing: Option<Mutex<(Random, usize)>>,
    frame_bytes: AtomicU64,
    table_bytes: AtomicU64,
}

impl Supply {
    /// One in `failing` allocations of a task is refused, chosen by `seed`; `None`: none is while
    /// there is memory.
    pub fn new(failing: Option<usize>, seed: u64) -> Self {
        Self {
            failing: failing.map(|n| Mutex::new((Random::new(seed), n))),
            frame_bytes: AtomicU64::new(0),
            table_bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of frames that were allocated and not yet freed.
    pub fn frame_bytes(&self) -> u64 {
        self.frame_bytes.load(Relaxed)
    }

    /// Bytes of tables that were allocated and not yet freed.
    pub fn table_bytes(&self) -> u64 {
        self.table_bytes.load(Relaxed)
    }

    /// Whether the allocation about to be made is refused.
    fn refuses(&self) -> bool {
        // Setting up, and what runs after the end, must come through.
        if !in_task() || is_stopped() {
            return false;
        }
        self.failing.as_ref().is_some_and(|failing| {
            let (random, n) = &mut *brief(failing);
            random.one_in(*n)
        })
    }

    pub(crate) fn table(
        &self,
        bytes: u64,
        allocate: impl FnOnce() -> Option<address::Hpa>,
    ) -> Option<Hpa> {
        self.supplied(&self.table_bytes, bytes, allocate)
    }

    pub(crate) fn table_back(&self, bytes: u64) {
        self.table_bytes.fetch_sub(bytes, Relaxed);
    }

    fn supplied(
        &self,
        account: &AtomicU64,
        bytes: u64,
        allocate: impl FnOnce() -> Option<address::Hpa>,
    ) -> Option<Hpa> {
        if self.refuses() {
            return None;
        }
        let memory = allocate()?;
        account.fetch_add(bytes, Relaxed);
        Some(Hpa::new(memory.0))
    }
}

/// The machine's RAM by the frame.
pub struct MachineFrames {
    machine: Arc<Machine>,
    supply: Arc<Supply>,
}

impl MachineFrames {
    /// Frames of `machine`, refused as `supply` has it.
    pub const fn new(machine: Arc<Machine>, supply: Arc<Supply>) -> Self {
        Self { machine, supply }
    }
}

impl Frames for MachineFrames {
    fn allocate(&self, size: FrameSize) -> Option<Hpa> {
        point();
        let (bytes, frames) = (size.bytes(), &self.supply.frame_bytes);
        self.supply
            .supplied(frames, bytes, || self.machine.allocate_frame(cpu(), bytes))
    }

    fn free(&self, frame: Hpa, size: FrameSize) {
        point();
        self.machine
            .free_frame(cpu(), to_machine(frame), size.bytes());
        self.supply.frame_bytes.fetch_sub(size.bytes(), Relaxed);
    }

    fn zero(&self, frame: Hpa, size: FrameSize) {
        point();
        self.machine.zero(to_machine(frame), size.bytes());
    }

    fn copy(&self, from: Hpa, to: Hpa, size: FrameSize) {
        point();
        self.machine
            .copy(to_machine(from), to_machine(to), size.bytes());
    }

    fn read(&self, from: Hpa, bytes: &mut [u8]) {
        point();
        self.machine.read(to_machine(from), bytes);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        point();
        self.machine.write(to_machine(to), bytes);
    }
}

impl fmt::Debug for MachineFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineFrames")
            .field("supply", &self.supply)
            .finish_non_exhaustive()
    }
}
