//! The console: the service processor's, to which text goes in events of a line each.

use core::arch::asm;
use core::fmt;

/// Bytes of text that fit beside the headers in a control block, which may not cross a page.
const TEXT: usize = 4096 - HEADERS;
/// The control block's header (length, function, mask, response) and that of its one event
/// (length, type, flags, reserved).
const HEADERS: usize = 8 + 6;

const WRITE_EVENT_DATA: u32 = 0x0076_0005;
/// The event's type: text for an ASCII console.
const ASCII_CONSOLE: u8 = 0x1a;

#[repr(C, align(4096))]
struct ControlBlock([u8; 4096]);

static mut BLOCK: ControlBlock = ControlBlock([0; 4096]);

/// Collects a line.
#[derive(Debug)]
pub(crate) struct Console {
    line: [u8; TEXT],
    length: usize,
}

impl Console {
    pub(crate) fn new() -> Self {
        Self {
            line: [0; TEXT],
            length: 0,
        }
    }

    /// Adds a byte, and sends the line when that ends it or fills the block.
    fn send(&mut self, byte: u8) {
        self.line[self.length] = byte;
        self.length += 1;
        if byte == b'\n' || self.length == TEXT {
            write_event(&self.line[..self.length]);
            self.length = 0;
        }
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.send(byte));
        Ok(())
    }
}

fn write_event(text: &[u8]) {
    let mut block = [0; 4096];
    let event = 6 + text.len();
    block[..2].copy_from_slice(&((8 + event) as u16).to_be_bytes());
    block[8..10].copy_from_slice(&(event as u16).to_be_bytes());
    block[10] = ASCII_CONSOLE;
    block[HEADERS..HEADERS + text.len()].copy_from_slice(text);
    let place = &raw mut BLOCK;
    // SAFETY: nobody else uses the block, and the service processor is done with it when `servc`
    // returns: QEMU carries out the command at once.
    unsafe {
        place.write(ControlBlock(block));
        asm!(
            ".insn rre, 0xb2200000, {command}, {block}", // servc
            command = in(reg_addr) u64::from(WRITE_EVENT_DATA),
            block = in(reg_addr) place,
            options(nostack)
        );
    }
}
