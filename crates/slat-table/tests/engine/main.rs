//! The engine: what the tree says, what the hardware may still believe, and what memory is freed
//! when.

mod cases;
mod failures;
mod model;
mod observer;
mod odd;
mod properties;
mod setup;
mod threads;
