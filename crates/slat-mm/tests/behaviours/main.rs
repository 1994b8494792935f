//! Behaviours that users of KVM rely on, and that the test programs for it and for the hardware
//! below it check, said of the whole stack: an address space, a guest memory, a simulated machine
//! and guests in threads. Each test begins with the behaviour's number.
//!
//! | | behaviour | |
//! |---|---|---|
//! | K1 | as many slots as there are ids; one more changes nothing | covered |
//! | K2 | a slot that moves shows the old page, MMIO or the new one | covered (deleted and created in one transaction; there is no moving of its own) |
//! | K3 | after a delete: MMIO; a new slot sees fresh memory | covered |
//! | K4 | a VM without slots | covered |
//! | K5 | vCPUs that fault on one region make each leaf once | covered |
//! | K6 | logging splits only the blocks that are written | in part: splitting; logging is refused with an error |
//! | K7 | after logging, pages become blocks; never both in a TLB | in part: pages that become a block; the rest waits for dirty logging |
//! | K8 | a permission fault that makes a block has memory for it | in part: a fault that makes a block; the rest waits for dirty logging |
//! | K9 | memory for tables at every kind of fault | covered but for the logging around it |
//! | K10 | the host is asked for the access that the guest makes | covered |
//! | K11 | only writes make pages dirty | in part: only writes make pages writable, read-only slots have none; the rest waits for dirty logging |
//! | K12 | writes to read-only slots | covered (whether the write can be decoded is for the VMM to say) |
//! | K13 | a fault that must wait asks once for each page | covered (by a host that waits, and by one that is busy) |
//! | K14 | a concurrent harvest of the log | waits for dirty logging: refused with an error |
//! | K15 | prefaulting: progress or an error; slots that go meanwhile | covered |
//! | K16 | writes while the host makes memory read-only | covered |
//! | K17 | the end of a VM that nobody tore down | covered |
//! | K18 | slots that come and go while others fault elsewhere | covered |
//! | K19 | access tracking | covered (an access flag kept by software; hardware's is the CPU's own) |
//! | K20 | leaves by level after each stage | covered |
//! | U1 | every combination of descriptor bits and accesses | covered, for arm64 |
//! | U2 | reserved bits at each level | covered, for arm64 |
//! | U3 | every combination of permissions at each level | covered, for arm64, where none is reserved |
//! | U4 | invalidation on one CPU while another uses the page | covered |

mod asking;
mod changes;
mod contest;
mod faults;
mod format;
mod logging;
mod machine;
mod slots;
