//! The `slat` command from outside: what it prints, and how it ends.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is one test module"
)]

mod architectures;
mod explaining;
mod formats;
mod inputs;
mod running;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::NamedTempFile;

/// What a command said and how it ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// Runs `slat` with `arguments`.
fn slat<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_slat"))
        .args(arguments)
        .output()
        .expect("the command can be started");
    Ended {
        code: output.status.code().expect("it is not killed"),
        out: String::from_utf8(output.stdout).expect("it prints text"),
        err: String::from_utf8(output.stderr).expect("it prints text"),
    }
}

impl Ended {
    /// What was printed, if the command ended with `code`.
    fn expect(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self.out
    }

    /// What was printed, as JSON, if the command did its work.
    fn json(self) -> Value {
        serde_json::from_str(&self.expect(0)).expect("it prints JSON")
    }
}

/// A file that says `text`.
fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file can be made");
    file.write_all(text.as_bytes()).expect("it can be written");
    file
}

/// The sample of this name.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths here are text")
}
