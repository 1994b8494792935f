//! The few Linux system calls that the agent makes.
//!
//! Numbers and calling convention are those of arm64 Linux (`include/uapi/asm-generic/unistd.h`):
//! number in `x8`, arguments in `x0` to `x5`, result in `x0`, where -4095 to -1 mean an error.

use core::arch::asm;
use core::ffi::CStr;
use core::fmt;

const OPENAT: u64 = 56;
const CLOSE: u64 = 57;
const READ: u64 = 63;
const WRITE: u64 = 64;
const FSTAT: u64 = 80;
const EXIT_GROUP: u64 = 94;
const RT_SIGACTION: u64 = 134;
const MMAP: u64 = 222;

/// `AT_FDCWD`: paths are taken from the working directory.
const CURRENT_DIRECTORY: u64 = (-100_i64).cast_unsigned();

/// An error number of the kernel, and the call that gave it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Errno {
    call: &'static str,
    number: u64,
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed with errno {}", self.call, self.number)
    }
}

/// Makes system call `number`.
///
/// # Safety
/// The call with these arguments must not break memory that Rust code relies on: pointers must be
/// valid for what the call does with them.
unsafe fn call(name: &'static str, number: u64, arguments: [u64; 6]) -> Result<u64, Errno> {
    let result: u64;
    // SAFETY: `svc 0` preserves every register but x0, and the caller answers for what the
    // kernel does to memory; without `nomem` the compiler assumes that it may touch any.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") arguments[0] => result,
            in("x1") arguments[1],
            in("x2") arguments[2],
            in("x3") arguments[3],
            in("x4") arguments[4],
            in("x5") arguments[5],
            options(nostack),
        );
    }
    if result >= (-4095_i64).cast_unsigned() {
        Err(Errno {
            call: name,
            number: result.wrapping_neg(),
        })
    } else {
        Ok(result)
    }
}

/// An open file, closed when dropped.
#[derive(Debug)]
pub(crate) struct File(u64);

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Open {
    /// For reading.
    Read,
    /// For reading and writing, `O_SYNC` included: `/dev/mem` then maps without caching.
    ReadWriteSync,
}

impl File {
    /// Opens the file at `path`.
    pub(crate) fn open(path: &CStr, how: Open) -> Result<Self, Errno> {
        // O_RDWR and O_SYNC of include/uapi/asm-generic/fcntl.h.
        let flags = match how {
            Open::Read => 0,
            Open::ReadWriteSync => 0o2 | 0o4_010_000,
        };
        let path = path.as_ptr().expose_provenance() as u64;
        // SAFETY: the path is a valid C string, which the kernel only reads.
        unsafe { call("open", OPENAT, [CURRENT_DIRECTORY, path, flags, 0, 0, 0]) }.map(Self)
    }

    /// The size in bytes.
    pub(crate) fn size(&self) -> Result<u64, Errno> {
        // `struct stat` of include/uapi/asm-generic/stat.h is 128 bytes with st_size at 48.
        let mut stat = [0_u64; 16];
        let buffer = stat.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the kernel writes one `struct stat` into the buffer, which has its size.
        unsafe { call("fstat", FSTAT, [self.0, buffer, 0, 0, 0, 0]) }?;
        Ok(stat[6])
    }

    /// Reads into `buffer` and returns how many bytes were read, none at the end of the file.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let start = buffer.as_mut_ptr().expose_provenance() as u64;
        let length = buffer.len() as u64;
        // SAFETY: the kernel writes at most `length` bytes into the buffer.
        let read = unsafe { call("read", READ, [self.0, start, length, 0, 0, 0]) }?;
        Ok(usize::try_from(read).unwrap_or(usize::MAX))
    }

    /// Maps `size` bytes of the file from byte `offset` on, shared, for reading and writing. The
    /// mapping stays until the program ends.
    pub(crate) fn map(&self, offset: u64, size: u64) -> Result<*mut u64, Errno> {
        const SHARED: u64 = 1;
        map([0, size, READ_WRITE, SHARED, self.0, offset])
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: closing touches no memory, and nothing uses this descriptor any more. The
        // result is of no use: the descriptor is gone whatever it says.
        let _ = unsafe { call("close", CLOSE, [self.0, 0, 0, 0, 0, 0]) };
    }
}

/// Writes `bytes` to standard output, which init has connected to the console, and returns how many
/// were written.
pub(crate) fn write_out(bytes: &[u8]) -> Result<usize, Errno> {
    const STANDARD_OUTPUT: u64 = 1;
    let start = bytes.as_ptr().expose_provenance() as u64;
    let length = bytes.len() as u64;
    // SAFETY: the kernel only reads from the buffer.
    let written = unsafe { call("write", WRITE, [STANDARD_OUTPUT, start, length, 0, 0, 0]) }?;
    Ok(usize::try_from(written).unwrap_or(usize::MAX))
}

/// `PROT_READ | PROT_WRITE`.
const READ_WRITE: u64 = 3;

/// Maps `size` bytes of fresh zeroed memory, which stays until the program ends.
pub(crate) fn map_memory(size: u64) -> Result<*mut u64, Errno> {
    const PRIVATE_ANONYMOUS: u64 = 0x22;
    map([0, size, READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0])
}

fn map(arguments: [u64; 6]) -> Result<*mut u64, Errno> {
    // SAFETY: with address 0 the kernel picks a range in which nothing lies.
    let address = unsafe { call("mmap", MMAP, arguments) }?;
    Ok(core::ptr::with_exposed_provenance_mut(
        usize::try_from(address).unwrap_or(0),
    ))
}

/// Installs `handler` for `signal`. It is called with the signal's number, a pointer to
/// `siginfo_t` and one to `ucontext_t`.
///
/// # Safety
/// The handler runs in the middle of any instruction of this program: it must only do what is
/// sound there.
pub(crate) unsafe fn handle_signal(
    signal: u64,
    handler: unsafe extern "C" fn(u32, *const u8, *mut u64),
) -> Result<(), Errno> {
    const SIGINFO: u64 = 4;
    const MASK_BYTES: u64 = 8;
    // The kernel's `struct sigaction`: handler, flags, restorer (unused without SA_RESTORER,
    // the kernel's own trampoline returns from the handler) and mask.
    let action = [
        (handler as *const ()).expose_provenance() as u64,
        SIGINFO,
        0,
        0,
    ];
    let action_address = action.as_ptr().expose_provenance() as u64;
    // SAFETY: `action` is laid out as the kernel's structure and is only read. The caller
    // answers for the handler.
    unsafe {
        call(
            "rt_sigaction",
            RT_SIGACTION,
            [signal, action_address, 0, MASK_BYTES, 0, 0],
        )
    }
    .map(|_| ())
}

/// Ends the program with `status`.
pub(crate) fn exit(status: u8) -> ! {
    loop {
        // SAFETY: the call does not return; nothing of this program runs after it.
        let _ = unsafe { call("exit_group", EXIT_GROUP, [u64::from(status), 0, 0, 0, 0, 0]) };
    }
}
