//! Guest memory on a scripted host and a simulated machine.
//!
//! Each module has one subject; the names of the tests say what is promised. `random` checks the
//! invariants under long random sequences of everything.

mod blocks;
mod creation;
mod documentation;
mod failing;
mod faults;
mod hazards;
mod in_the_way;
mod interrupted;
mod invalidation;
mod operations;
mod prefaults;
mod prefixes;
mod preparation;
mod random;
mod random_steps;
mod refusals;
mod regions;
mod reports;
mod rows;
mod scripted_host;
mod threads;
mod transactions;
mod vm;
mod walker;
mod watched;
