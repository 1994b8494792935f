//! Carries out one operation of the engine, for a tool that counts instructions.
//!
//! `slat-count OPERATION FORMAT` prepares a table, carries the operation out inside the function
//! [`measured`](count::measured) and prints how many pages it was about. `cargo xtask bench --check`
//! runs it under callgrind, which counts what happens inside that function only, and compares the
//! figures with the budgets. `slat-count --list` prints the operations and the formats.

mod count;
mod heap;
mod host;
mod operations;

use std::process::ExitCode;

use operations::{FORMATS, OPERATIONS};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--list"] => {
            println!("{}", OPERATIONS.join(" "));
            println!("{}", FORMATS.join(" "));
            ExitCode::SUCCESS
        }
        [operation, format] => match operations::run(operation, format) {
            Ok(pages) => {
                println!("{pages}");
                ExitCode::SUCCESS
            }
            Err(unknown) => {
                eprintln!("slat-count: no {unknown}; see --list");
                ExitCode::from(2)
            }
        },
        _ => {
            eprintln!("usage: slat-count OPERATION FORMAT | --list");
            ExitCode::from(2)
        }
    }
}
