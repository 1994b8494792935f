//! Attributes worth trying, for any format: it refuses those that it cannot encode.

use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};

use super::random::Random;

const MEMORY: [MemoryType; 5] = [
    MemoryType::WriteBack,
    MemoryType::WriteThrough,
    MemoryType::NonCacheable,
    MemoryType::Device,
    MemoryType::DeviceStrict,
];

const EXECUTE: [Execute; 4] = [
    Execute::Always,
    Execute::Never,
    Execute::Privileged,
    Execute::Unprivileged,
];

/// Every combination that any format knows, in an order that is drawn.
pub(crate) fn drawn(random: &mut Random) -> Vec<Attributes> {
    let mut all = Vec::new();
    let both = [true, false];
    for memory in MEMORY {
        for execute in EXECUTE {
            for (read, write) in both.into_iter().flat_map(|r| both.map(|w| (r, w))) {
                for (accessed, dirty) in [(true, false), (false, false), (true, true)] {
                    all.push(Attributes {
                        permissions: Permissions {
                            read,
                            write,
                            execute,
                        },
                        memory,
                        accessed,
                        dirty,
                        software: 0,
                        contiguous: false,
                    });
                }
            }
        }
    }
    // From here on every format has at least one bit for software.
    for attributes in all.iter_mut().step_by(7) {
        attributes.software = 1;
    }
    random.shuffle(&mut all);
    all
}
