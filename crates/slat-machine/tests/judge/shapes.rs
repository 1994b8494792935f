//! The shapes of the corpus, as records. `verdicts.toml` says what is to be thought of each.

use slat_machine::event::{AccessKind, Event, Record, Registers, WriteKind};
use slat_machine::{address::Hpa, arm64};

use crate::scenario::*;

/// Every shape by name.
pub(crate) fn all() -> Vec<(&'static str, Vec<Record>)> {
    let groups = [
        remaps(),
        valid_changes(),
        tables(),
        cpus(),
        notices(),
        slots(),
        accesses(),
        dirty(),
    ];
    let shapes = groups.into_iter().flatten();
    shapes
        .map(|(name, scenario)| (name, scenario.records))
        .collect()
}

type Shapes = Vec<(&'static str, Scenario)>;

fn shape(mut s: Scenario, make: impl FnOnce(&mut Scenario)) -> Scenario {
    make(&mut s);
    s
}

/// A page is unmapped, `ops` are executed, and another frame is mapped there.
fn remap(ops: &[I]) -> Scenario {
    shape(Scenario::mapped(), |s| {
        s.locked()
            .write(LAST, 0)
            .ops(ops)
            .write(LAST, OTHER_FRAME | PAGE)
            .unlocked();
    })
}

fn remaps() -> Shapes {
    let ipas2 = I::Ipas2e1is {
        operand: operand(GPA),
    };
    let wrong = I::Ipas2e1is {
        operand: operand(GPA + KIB4),
    };
    let unshifted = I::Ipas2e1is { operand: GPA };
    let whole = |ipas2| remap(&[I::DsbIsh, ipas2, I::DsbIsh, I::Vmalle1is, I::DsbIsh]);
    vec![
        ("good-remap", whole(ipas2)),
        (
            "good-remap-of-everything",
            remap(&[I::DsbIshst, I::Vmalls12e1is, I::DsbIsh]),
        ),
        ("no-tlbi", remap(&[I::DsbIsh])),
        (
            "no-dsb-before-tlbi",
            remap(&[ipas2, I::DsbIsh, I::Vmalle1is, I::DsbIsh]),
        ),
        ("no-dsb-after-tlbi", remap(&[I::DsbIsh, I::Vmalls12e1is])),
        ("only-ipas2", remap(&[I::DsbIsh, ipas2, I::DsbIsh])),
        ("only-vmalle1", remap(&[I::DsbIsh, I::Vmalle1is, I::DsbIsh])),
        ("wrong-address", whole(wrong)),
        ("operand-not-shifted", whole(unshifted)),
        (
            "dsb-ishst-to-complete",
            remap(&[I::DsbIsh, I::Vmalls12e1is, I::DsbIshst]),
        ),
        (
            "vmalle1-before-ipas2-is-complete",
            remap(&[I::DsbIsh, ipas2, I::Vmalle1is, I::DsbIsh]),
        ),
        ("only-its-own-cpu", {
            shape(Scenario::mapped(), |s| {
                s.on(1).enter_with(0).on(0).locked().write(LAST, 0);
                s.ops(&[I::DsbNshst, I::Vmalls12e1, I::DsbNsh]);
                s.write(LAST, OTHER_FRAME | PAGE).unlocked();
            })
        }),
        ("good-same-page-again", {
            shape(Scenario::mapped(), |s| {
                s.locked()
                    .write(LAST, 0)
                    .write(LAST, FRAME | PAGE)
                    .unlocked();
            })
        }),
        ("good-marker-in-between", {
            shape(Scenario::mapped(), |s| {
                s.write(LAST, 1 << 11)
                    .flush(GPA)
                    .write(LAST, OTHER_FRAME | PAGE);
            })
        }),
        ("marker-in-between-without-tlbi", {
            shape(Scenario::mapped(), |s| {
                s.write(LAST, 1 << 11)
                    .op(I::DsbIsh)
                    .write(LAST, OTHER_FRAME | PAGE);
            })
        }),
    ]
}

fn valid_changes() -> Shapes {
    let change = |from: u64, to: u64| {
        shape(Scenario::boot(), |s| {
            s.locked()
                .tables()
                .write(LAST, from)
                .write(LAST, to)
                .unlocked();
        })
    };
    let young = FRAME | PAGE;
    let old = FRAME | PAGE & !ACCESSED;
    vec![
        (
            "address-change-while-valid",
            change(young, OTHER_FRAME | PAGE),
        ),
        (
            "address-change-while-valid-not-accessed",
            change(old, OTHER_FRAME | PAGE & !ACCESSED),
        ),
        (
            "memory-type-change-while-valid",
            change(young, young & !NORMAL | NON_CACHEABLE),
        ),
        (
            "good-permission-change-while-valid",
            change(young, young & !WRITE),
        ),
        ("table-to-block-while-valid", {
            shape(Scenario::mapped(), |s| {
                s.locked().write(MIDDLE, FRAME | BLOCK).unlocked();
            })
        }),
        ("good-write-without-a-lock", {
            shape(Scenario::boot(), |s| {
                s.allocate(MIDDLE).write(ROOT + 8, MIDDLE | TABLE);
            })
        }),
        (
            "reserved-encoding",
            change(0, FRAME | PAGE & !NORMAL | 0x4 << 2),
        ),
    ]
}

fn tables() -> Shapes {
    let mut tables = collapses();
    tables.extend(links());
    tables
}

/// A table gives way to a block.
fn collapses() -> Shapes {
    let cut = |flush: fn(&mut Scenario) -> &mut Scenario| {
        shape(Scenario::mapped(), |s| {
            s.locked().write(MIDDLE, 0);
            flush(s);
            s.write(MIDDLE, FRAME | BLOCK).unlocked().free(LAST);
        })
    };
    vec![
        ("good-collapse", cut(|s| s.flush_all())),
        ("collapse-flushed-by-address", cut(|s| s.flush(GPA))),
        ("collapse-with-leaf-only-flush", {
            let operand = operand(GPA);
            shape(Scenario::mapped(), |s| {
                s.locked().write(LAST, 0).flush(GPA).write(MIDDLE, 0).ops(&[
                    I::DsbIsh,
                    I::Ipas2le1is { operand },
                    I::DsbIsh,
                    I::Vmalle1is,
                    I::DsbIsh,
                ]);
                s.unlocked().free(LAST);
            })
        }),
        ("table-freed-before-the-flush", {
            shape(Scenario::mapped(), |s| {
                s.locked()
                    .write(MIDDLE, 0)
                    .free(LAST)
                    .flush_all()
                    .unlocked();
            })
        }),
    ]
}

/// What hangs where, and what is a table.
fn links() -> Shapes {
    vec![
        ("table-freed-while-linked", {
            shape(Scenario::mapped(), |s| {
                s.free(LAST);
            })
        }),
        ("plain-link", {
            shape(Scenario::boot(), |s| {
                s.allocate(MIDDLE).locked();
                s.write_as(WriteKind::Plain, ROOT + 8, MIDDLE | TABLE)
                    .unlocked();
            })
        }),
        ("linked-twice", {
            shape(Scenario::mapped(), |s| {
                s.locked().write(MIDDLE + 8, LAST | TABLE).unlocked();
            })
        }),
        ("table-linked-elsewhere-before-the-flush", {
            shape(Scenario::mapped(), |s| {
                s.locked()
                    .write(MIDDLE, 0)
                    .write(MIDDLE + 8, LAST | TABLE)
                    .unlocked();
            })
        }),
        ("pointer-to-no-table", {
            shape(Scenario::boot(), |s| {
                s.locked().write(ROOT + 8, FRAME | TABLE).unlocked();
            })
        }),
        ("write-outside-tables", {
            shape(Scenario::boot(), |s| {
                s.locked().write(FRAME, 0).unlocked();
            })
        }),
        ("good-two-roots-side-by-side", concatenated()),
    ]
}

/// 40 bits of guest address by a root of two tables.
fn concatenated() -> Scenario {
    shape(Scenario::default(), |s| {
        let (table, bytes) = (Hpa(ROOT), 2 * KIB4);
        s.event(Event::TableAllocated { table, bytes });
        let registers = Registers::Arm64(arm64::Registers {
            vttbr: u64::from(VM) << 48 | ROOT,
            vtcr: vtcr(40),
            force_write_back: false,
        });
        s.event(Event::Registers { vm: VM, registers });
        s.allocate(OTHER)
            .write(ROOT + KIB4, OTHER | TABLE)
            .write(OTHER, FRAME | BLOCK);
    })
}

fn cpus() -> Shapes {
    vec![
        ("good-flush-by-another-cpu", flushed_by_another(true)),
        ("flush-by-another-cpu-unordered", flushed_by_another(false)),
        ("table-filled-by-another-cpu-unordered", {
            shape(Scenario::boot(), |s| {
                s.allocate(MIDDLE)
                    .on(1)
                    .enter_with(0)
                    .write(MIDDLE, FRAME | BLOCK);
                s.on(0).write(ROOT + 8, MIDDLE | TABLE);
            })
        }),
        ("half-a-flush-each", {
            shape(Scenario::mapped(), |s| {
                let operand = operand(GPA);
                s.on(1)
                    .enter_with(0)
                    .on(0)
                    .locked()
                    .write(LAST, 0)
                    .unlocked();
                s.ops(&[I::DsbIsh, I::Ipas2e1is { operand }, I::DsbIsh]);
                s.on(1).locked().ops(&[I::Vmalle1is, I::DsbIsh]);
                s.write(LAST, OTHER_FRAME | PAGE).unlocked();
            })
        }),
    ]
}

/// CPU 0 unmaps a page, and CPU 1 flushes it and maps another; whether it took the lock first is
/// the question.
fn flushed_by_another(ordered: bool) -> Scenario {
    shape(Scenario::mapped(), |s| {
        s.on(1)
            .enter_with(0)
            .on(0)
            .locked()
            .write(LAST, 0)
            .unlocked()
            .on(1);
        if ordered {
            s.locked();
        }
        s.flush(GPA)
            .write_as(WriteKind::Release, LAST, OTHER_FRAME | PAGE);
    })
}

fn flush_own_cpu(s: &mut Scenario) -> &mut Scenario {
    let operand = operand(GPA);
    s.on(1).enter_with(0).on(0).ops(&[
        I::DsbNshst,
        I::Ipas2e1 { operand },
        I::DsbNsh,
        I::Vmalle1,
        I::DsbNsh,
    ])
}

fn notices() -> Shapes {
    let notice = |flush: fn(&mut Scenario) -> &mut Scenario| {
        shape(Scenario::hosted(), |s| {
            s.beginning(HVA, KIB4).locked().write(LAST, 0);
            flush(s);
            s.unlocked().begun().notice_ended();
        })
    };
    vec![
        ("good-notice", notice(|s| s.flush(GPA))),
        ("notice-without-flush", notice(|s| s.op(I::DsbIsh))),
        ("notice-flushed-on-its-own-cpu", notice(flush_own_cpu)),
        ("notice-without-unmap", {
            shape(Scenario::hosted(), |s| {
                s.beginning(HVA, KIB4).begun().notice_ended();
            })
        }),
        ("stale-answer-after-notice", {
            shape(Scenario::hosted(), |s| {
                s.beginning(HVA, KIB4)
                    .locked()
                    .write(LAST, 0)
                    .flush(GPA)
                    .unlocked();
                s.begun().answered(HVA, KIB4, FRAME).notice_ended();
                s.write(LAST, FRAME | PAGE);
            })
        }),
    ]
}

fn slots() -> Shapes {
    vec![
        ("slot-removed-but-mapped", {
            shape(Scenario::hosted(), |s| {
                s.changing(&[1], &[])
                    .locked()
                    .write(LAST, 0)
                    .op(I::DsbIsh)
                    .unlocked();
                s.changed(true);
            })
        }),
        ("good-slot-removal", {
            shape(Scenario::hosted(), |s| {
                s.changing(&[1], &[])
                    .locked()
                    .write(LAST, 0)
                    .flush(GPA)
                    .unlocked();
                s.changed(true);
            })
        }),
        ("leaf-beyond-its-slot", {
            shape(Scenario::boot(), |s| {
                s.slot(1, GPA, KIB4, HVA)
                    .frame(FRAME, MIB2)
                    .answered(HVA, MIB2, FRAME);
                s.locked().allocate(MIDDLE).write(ROOT + 8, MIDDLE | TABLE);
                s.write(MIDDLE, FRAME | BLOCK).unlocked();
            })
        }),
        ("two-frames-for-one-page", {
            shape(Scenario::hosted(), |s| {
                s.locked()
                    .write(LAST, 0)
                    .flush(GPA)
                    .frame(OTHER_FRAME, KIB4);
                s.write(LAST, OTHER_FRAME | PAGE).unlocked();
            })
        }),
        ("leaf-allows-too-much", {
            shape(Scenario::boot(), |s| {
                s.slot(1, GPA, MIB2, HVA).frame(FRAME, MIB2);
                s.answered_as(HVA, KIB4, FRAME, false);
                s.locked().tables().write(LAST, FRAME | PAGE).unlocked();
            })
        }),
    ]
}

fn accesses() -> Shapes {
    vec![
        ("write-through-protected", {
            shape(Scenario::hosted(), |s| {
                s.beginning(HVA, KIB4)
                    .locked()
                    .write(LAST, 0)
                    .flush(GPA)
                    .unlocked();
                s.begun()
                    .notice_ended()
                    .answered_as(HVA, KIB4, FRAME, false);
                s.locked().write(LAST, FRAME | PAGE & !WRITE).unlocked();
                s.access(AccessKind::Read, GPA, FRAME)
                    .access(AccessKind::Write, GPA, FRAME);
            })
        }),
        ("access-to-a-table", {
            shape(Scenario::hosted(), |s| {
                s.access(AccessKind::Write, GPA + KIB4, LAST);
            })
        }),
        ("frame-freed-while-granted", {
            shape(Scenario::hosted(), |s| {
                s.frame_freed(FRAME, KIB4);
            })
        }),
        ("frame-freed-while-mapped", {
            shape(Scenario::mapped(), |s| {
                s.frame_freed(FRAME, KIB4);
            })
        }),
        ("host-changed-its-mind", {
            shape(Scenario::hosted(), |s| {
                s.answered(HVA, KIB4, FRAME + KIB4);
            })
        }),
        ("good-life-of-a-vm", {
            shape(Scenario::hosted(), |s| {
                s.access(AccessKind::Write, GPA, FRAME).ended().flush_all();
                s.free(LAST)
                    .free(MIDDLE)
                    .free(ROOT)
                    .frame_freed(FRAME, MIB2);
            })
        }),
        ("vm-ended-without-flush", {
            shape(Scenario::hosted(), |s| {
                s.ended().op(I::DsbIsh).free(LAST);
            })
        }),
    ]
}

fn dirty() -> Shapes {
    let clean = FRAME | PAGE & !WRITE | MODIFIER;
    let dirty = clean | WRITE;
    let mapped = |value: u64| {
        shape(
            Scenario::boot_with(HARDWARE_ACCESSED | HARDWARE_DIRTY),
            |s| {
                s.locked().tables().write(LAST, value);
            },
        )
    };
    let block = |value: u64| value & !3 | 1;
    let split = |child: u64| {
        shape(
            Scenario::boot_with(HARDWARE_ACCESSED | HARDWARE_DIRTY),
            |s| {
                s.locked().allocate(MIDDLE).write(ROOT + 8, MIDDLE | TABLE);
                s.write(MIDDLE, block(clean));
                s.write_as(WriteKind::Hardware, MIDDLE, block(dirty));
                s.write(MIDDLE, 0)
                    .flush_all()
                    .allocate(LAST)
                    .write(LAST, child);
                s.write(MIDDLE, LAST | TABLE).unlocked();
            },
        )
    };
    vec![
        ("good-dirtied-by-hardware", {
            shape(mapped(clean), |s| {
                s.write_as(WriteKind::Hardware, LAST, dirty)
                    .write(LAST, dirty & !READ)
                    .unlocked();
            })
        }),
        ("lost-dirty-bit", {
            shape(mapped(clean), |s| {
                s.write_as(WriteKind::Hardware, LAST, dirty)
                    .write(LAST, clean)
                    .unlocked();
            })
        }),
        ("invented-dirty-bit", mapped(dirty)),
        ("store-over-hardware-update", {
            shape(mapped(clean), |s| {
                s.write_as(WriteKind::Release, LAST, 0).unlocked();
            })
        }),
        ("good-split-of-a-dirty-block", split(dirty)),
        ("split-loses-the-dirty-bit", split(clean)),
    ]
}
