//! Runs on bare metal only; on a host it says how to build it and fails.

fn main() {
    eprintln!(
        "slat-hypervisor runs on bare metal at EL2: build and boot it with `cargo xtask boot`"
    );
    std::process::exit(2);
}
