//! The hypervisor: boots one unmodified arm64 Linux at EL1, with all of its memory given to it by
//! the slat crates.
//!
//! It runs on bare metal at EL2 and starts by the Linux arm64 boot protocol, so whatever boots a
//! Linux `Image` boots it. `cargo xtask boot` builds it, fetches a guest and runs it under QEMU.
//! By hand, with the image made flat by `objcopy -O binary`:
//!
//! ```text
//! qemu-system-aarch64 -M virt,virtualization=on,gic-version=3,its=off -cpu cortex-a57 -m 1G
//!     -nographic -nic none -no-reboot -kernel slat-hypervisor.bin
//!     -append "memory=512M mmio=create ram=fault"
//!     -device guest-loader,addr=0x50000000,kernel=Image,bootargs="console=ttyAMA0"
//!     -device guest-loader,addr=0x54000000,initrd=initramfs.cpio
//!     -chardev file,id=report,path=report.json
//!     -semihosting-config enable=on,target=native,chardev=report
//! ```
//!
//! The hypervisor's own lines on the console begin with `slat: `. When the guest stops, the memory
//! report goes out by semihosting as one line of JSON, and QEMU exits with status 0 if the guest
//! switched itself off, 1 if it reset itself (a panic), 2 if the hypervisor failed or found the
//! guest's memory wrong, and 3 if it was started wrongly.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod el2;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "The hypervisor runs on bare metal. Build and boot it with `cargo xtask boot`, or build \
         it with `cargo build -p slat-hypervisor --target aarch64-unknown-none-softfloat`."
    );
    std::process::ExitCode::FAILURE
}
