//! Where a command's words go: to the terminal, or into the log of one check of `cargo xtask test`.

use core::fmt::Display;
use std::fs::File;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// A place for progress messages and for the output of other programs.
#[derive(Debug)]
pub(crate) enum Journal {
    /// Messages go to standard error, a guest's console to standard output.
    Terminal,
    /// Everything goes into a file.
    File(File),
}

impl Journal {
    /// Says what is being done.
    pub(crate) fn say(&self, text: impl Display) {
        match self {
            Self::Terminal => {
                let style = anstyle::AnsiColor::Green.on_default().bold();
                anstream::eprintln!("{style}xtask{style:#}: {text}");
            }
            // A log that cannot be written must not fail the check that it is about.
            Self::File(file) => drop(writeln!(&mut &*file, "xtask: {text}")),
        }
    }

    /// Passes on bytes of a guest's console.
    pub(crate) fn pass_on(&self, bytes: &[u8]) {
        match self {
            Self::Terminal => {
                let mut out = io::stdout().lock();
                // Nobody may be reading any more; the boot goes on.
                let _ = out.write_all(bytes).and_then(|()| out.flush());
            }
            Self::File(file) => drop((&mut &*file).write_all(bytes)),
        }
    }

    /// Standard error for a program whose output is read by us.
    pub(crate) fn stderr(&self) -> Result<Stdio> {
        match self {
            Self::Terminal => Ok(Stdio::inherit()),
            Self::File(file) => Ok(Stdio::from(file.try_clone()?)),
        }
    }

    /// Runs `command` to its end with its output going here. Anything but success is an error.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        if let Self::File(file) = self {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::from(file.try_clone()?))
                .stderr(Stdio::from(file.try_clone()?));
            self.say(describe(command));
        }
        let status = command
            .status()
            .with_context(|| format!("cannot run {}", describe(command)))?;
        ensure!(status.success(), "{} failed: {status}", describe(command));
        Ok(())
    }
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let quote = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let environment = command.get_envs().filter_map(|(name, value)| {
        let value = quote(&value?.to_string_lossy());
        Some(format!("{}={value}", name.to_string_lossy()))
    });
    let words = core::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()));
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

/// Runs `command` and returns what it prints. Anything but success is an error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", describe(command)))?;
    ensure!(
        output.status.success(),
        "{} failed: {}\n{}",
        describe(command),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_described_as_typed() {
        let mut command = Command::new("cargo");
        command.args(["test", "two words", ""]).env("A", "b c");
        assert_eq!(describe(&command), "A='b c' cargo test 'two words' ''");
    }

    #[test]
    fn a_failing_program_is_an_error_that_names_it() {
        let error = capture(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c") && text.contains("no"), "{text}");
    }
}
