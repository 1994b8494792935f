//! Hands the linker the layout that all x86 payloads have.

use std::env::var;

fn main() {
    let script = var("CARGO_MANIFEST_DIR").expect("cargo sets it") + "/../x86/image.ld";
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=--no-pie");
    println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
}
