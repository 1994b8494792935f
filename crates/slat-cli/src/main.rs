//! The `slat` command. `slat --help` says what it does.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    slat_cli::command::main()
}
