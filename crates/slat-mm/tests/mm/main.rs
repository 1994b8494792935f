//! The address space seen from outside: by a VMM, by a notifier, and by a guest whose memory is
//! a real `slat::GuestMemory` on a simulated machine.

mod devices;
mod failing;
mod guest;
mod interpose;
mod lifetime;
mod model;
mod operations;
mod system;
mod threads;
