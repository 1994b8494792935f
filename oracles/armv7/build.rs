//! Hands the linker the layout of the payload.

use std::env::var;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=payload.ld");
    let directory = var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let script = Path::new(&directory).join("payload.ld");
    println!("cargo:rustc-link-arg-bins=-T{}", script.display());
}
