//! Guest memory on a scripted host and a simulated machine.
//!
//! Each module has one subject; the names of the tests say what is promised. `random` checks the
//! invariants under long random sequences of everything.

mod blocks;
mod creation;
mod documentation;
mod faults;
mod hazards;
mod invalidation;
mod preparation;
mod random;
mod regions;
mod reports;
mod scripted_host;
mod threads;
mod transactions;
mod vm;
