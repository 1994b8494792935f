//! Second-level page tables for hypervisors: formats, a concurrent engine, TLB work as values.
//!
//! A hypervisor gives a guest its memory through a second set of page tables (Arm: stage 2,
//! Intel: EPT, AMD: NPT, RISC-V: G-stage) that turn guest physical addresses into host physical
//! ones. This crate is the engine that keeps such a tree. It is the same for every architecture;
//! what differs is a [`Format`](format::Format).
//!
//! * [`address`] and [`attributes`]: typed addresses, checked ranges, what a leaf allows;
//! * [`geometry`] and [`mod@format`]: the tree's shape, how entries look, what the hardware demands;
//! * [`platform`] and [`lock`]: what an embedder brings;
//! * [`stripe`]: the striped span locks with their invalidation sequences;
//! * [`table`]: the tree itself; [`hold`]: install under held stripes; [`walk`]: translate, list, age;
//! * [`restriction`]: taking translations away: unmap, split, prune;
//! * [`flush`]: TLB work as a value that owns what must outlive it;
//! * `simulated` (feature `std`): a machine in ordinary memory, for tests.
//!
//! Nothing here allocates, sleeps or fails for lack of memory while a stripe is held.

#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod address;
pub mod attributes;
pub mod cache;
mod entry;
pub mod flush;
pub mod format;
pub mod geometry;
pub mod hold;
mod install;
mod leaves;
pub mod lock;
pub mod platform;
pub mod restriction;
mod run;
#[cfg(feature = "std")]
pub mod simulated;
mod split;
pub mod stripe;
pub mod sync;
pub mod table;
pub mod walk;
