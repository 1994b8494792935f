//! The suite that slat's stack is run against on the modelled machine: drawn plans, focused
//! scenarios for what random plans seldom meet, and sequences that shrink.
//!
//! A test that catches something panics with a message whose first line is `caught: ` and the name
//! of the rule, and the story after it.

#[path = "rig/caught.rs"]
mod caught;
#[path = "rig/drawn.rs"]
mod drawn;
#[path = "rig/focused.rs"]
mod focused;
#[path = "rig/scenario.rs"]
mod scenario;
#[path = "rig/sequences.rs"]
mod sequences;
#[path = "rig/trace.rs"]
mod trace;
