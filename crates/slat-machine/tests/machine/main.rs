//! The machine does whatever the architecture allows, and nothing else.
//!
//! Tests come in pairs: for a sequence that lacks something, *some* seed shows what goes wrong; for
//! the whole sequence, none of many does.

mod accesses;
mod hypervisor;
mod litmus;
mod rig;
mod stale;
mod whole;
