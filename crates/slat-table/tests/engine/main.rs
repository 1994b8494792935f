//! The engine: what the tree says, what the hardware may still believe, and what memory is freed
//! when.

mod driver;
mod failures;
mod flushing;
mod installing;
mod model;
mod observer;
mod odd;
mod operations;
mod properties;
mod races;
mod reach;
mod removing;
mod runs;
mod setup;
mod shapes;
mod threads;
