//! Hands the linker the layout of the image.

use std::env::var;

fn main() {
    let script = var("CARGO_MANIFEST_DIR").expect("cargo sets it") + "/image.ld";
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
}
