//! The parts of the comparison of slat with a real KVM.
//!
//! `request` is what both are asked; `real` is KVM and `ours` is slat; `twin` asks both the same
//! and keeps them alike; `difference` knows in which ways they may answer differently, and why;
//! `generator` makes up requests.

pub(crate) mod difference;
pub(crate) mod generator;
pub(crate) mod ours;
pub(crate) mod real;
pub(crate) mod request;
pub(crate) mod twin;

/// What KVM answers, or what slat's answer is in KVM's terms: nothing, or an error number.
pub(crate) type Answer = Result<(), i32>;

/// An argument breaks a rule (`errno-base.h`).
pub(crate) const EINVAL: i32 = 22;
/// Another slot is there already (`errno-base.h`).
pub(crate) const EEXIST: i32 = 17;
