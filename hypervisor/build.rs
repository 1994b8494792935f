//! Hands the linker the layout of the boot image when building for bare metal.

use std::env::var;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=image.ld");
    if var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let directory = var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        let script = Path::new(&directory).join("image.ld");
        // A position-independent image that relocates itself: the boot protocol says nothing
        // about the address that it is loaded at. `notext`: the image is writable until it has
        // done so. The page size is the granule, so that the image has no holes of 64 KiB.
        for argument in [
            &format!("-T{}", script.display()),
            "-pie",
            "--no-dynamic-linker",
            "-znotext",
            "-zmax-page-size=4096",
        ] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
