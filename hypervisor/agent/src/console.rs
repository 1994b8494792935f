//! Lines on the guest's console.

use core::fmt::{self, Write as _};

use crate::syscall::write_out;

/// Prints one `slat-guest: ` line, formatted as by `println!`.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::console::line(format_args!($($argument)*))
    };
}
pub(crate) use say;

/// A line under construction. It leaves in one `write`, so that the kernel's own messages on the
/// same console cannot come between its parts; what does not fit is cut off.
struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte is kept for the end of the line.
        let room = self.bytes.len() - 1 - self.length;
        let taken = text.len().min(room);
        self.bytes[self.length..self.length + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        Ok(())
    }
}

/// Prints `text` as one line; [`say!`] is the usual way here.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let mut line = Line {
        bytes: [0; 512],
        length: 0,
    };
    // Writing into `Line` never fails, and a console that cannot be written to leaves no way to
    // tell anybody.
    let _ = write!(line, "slat-guest: {text}");
    line.bytes[line.length] = b'\n';
    let mut rest = &line.bytes[..=line.length];
    while let Ok(written) = write_out(rest) {
        if written == 0 || written >= rest.len() {
            break;
        }
        rest = &rest[written..];
    }
}
