//! Memory that ends at every point of every operation: frames, the tables of a guest that watches,
//! and both.
//!
//! An operation that fails has changed nothing. One that succeeds without memory has done all
//! that it promises; at most the guest has less mapped, which faults bring back.

use std::sync::Arc;

use slat::Fault;
use slat::host::{Host, HostView, ResolveError};
use slat_mm::{Backing, DriverDevice, FrameSize, Protection};
use slat_table::address::{GpaRange, Hpa, Hva};
use slat_table::attributes::Access;
use slat_table::geometry::MAX_LEVELS;
use slat_table::lock::StdLocks;

use crate::guest::{BLOCK, Guest, Space, arena, device, hva, pages};

/// Where what is in the address space, in pages.
const HUGE: u64 = BLOCK;
const SMALL: u64 = BLOCK + 512;
const VACANT: u64 = BLOCK + 1024;
const IMAGE: u64 = BLOCK + 1536;
const DEVICE: u64 = BLOCK + 1544;
const UNMAPPED: u64 = BLOCK + 1560;
const END: u64 = BLOCK + 1600;

/// A block in a 2 MiB frame, a block of which some pages are there, one of which there is nothing,
/// an image and a device; and a guest that has mapped what is there.
struct Scene {
    space: Space,
    device: DriverDevice<StdLocks>,
    guest: Arc<Guest>,
}

/// What must be the same after an operation that failed.
#[derive(PartialEq, Eq)]
struct Picture {
    pages: Vec<Result<(Hpa, bool), ResolveError>>,
    allocated: u64,
    leaves: [u64; MAX_LEVELS],
    tables: u64,
}

impl Scene {
    fn new() -> Self {
        let space = Space::new(arena(16));
        let writable = |first, count, backing| {
            let range = pages(first, count);
            space.map(range, Protection::ReadWrite, backing).unwrap();
        };
        writable(HUGE, 1536, Backing::Anonymous);
        writable(IMAGE, 8, Backing::Image(vec![7; 8 * 4096].into()));
        let device = device(16);
        let (offset, clone) = (0, device.clone());
        writable(
            DEVICE,
            16,
            Backing::Driver {
                device: clone,
                offset,
            },
        );
        space.write(hva(HUGE), &[1]).unwrap();
        space.frames().refuse_huge(true);
        space.populate(pages(SMALL, 3), Access::Write).unwrap();
        space.frames().refuse_huge(false);
        let guest = Guest::new(&space, pages(BLOCK, END - BLOCK));
        for page in [HUGE, SMALL, DEVICE] {
            guest.access(hva(page), Access::Write).unwrap();
        }
        Self {
            space,
            device,
            guest,
        }
    }

    fn picture(&self) -> Picture {
        let view = self.space.view();
        let look = |page: u64| {
            let found = view.peek(hva(page), Access::Read)?;
            let distance = hva(page).raw() - found.block.start().raw();
            Ok((Hpa::new(found.hpa.raw() + distance), found.writable))
        };
        Picture {
            pages: (BLOCK..END).map(look).collect(),
            allocated: self.space.frames().allocated_pages(),
            leaves: self
                .guest
                .memory
                .table()
                .count_leaves(&self.guest.slot_range()),
            tables: self.guest.platform.live_tables(),
        }
    }

    /// A fault of the guest, whatever comes of it.
    fn guest_fault(&self, page: u64, access: Access) -> Result<(), String> {
        let gpa = self.guest.gpa(hva(page));
        let outcome = self.guest.memory.vcpu().fault(Fault { gpa, access });
        let here = self.guest.memory.translate(gpa);
        match here.filter(|found| found.attributes.permissions.allow(access)) {
            Some(_) => Ok(()),
            None => Err(format!("{outcome:?}")),
        }
    }

    fn end(self) {
        self.guest.check();
        self.space.release();
        assert_eq!(self.space.frames().allocated_pages(), 0, "frames were lost");
        let platform = self.guest.platform.clone();
        drop((self.guest, self.space, self.device));
        assert_eq!(platform.live_tables(), 0, "tables were lost");
    }
}

fn said<T, E: ToString>(result: Result<T, E>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

/// An operation and its name.
type Operation = (&'static str, fn(&Scene) -> Result<(), String>);

const OPERATIONS: [Operation; 21] = [
    ("map", |scene| {
        let range = pages(UNMAPPED, 8);
        let mapped = scene
            .space
            .map(range, Protection::ReadWrite, Backing::Anonymous);
        said(mapped)
    }),
    ("unmap a part of a frame", |scene| {
        scene.space.unmap(pages(HUGE + 5, 2));
        Ok(())
    }),
    ("unmap everything", |scene| {
        scene.space.unmap(pages(BLOCK, END - BLOCK));
        Ok(())
    }),
    ("protect a part of a frame", |scene| {
        said(
            scene
                .space
                .protect(pages(HUGE + 5, 2), Protection::ReadOnly),
        )
    }),
    ("populate a block, and pages", |scene| {
        said(scene.space.populate(pages(VACANT - 4, 516), Access::Write))
    }),
    ("discard a part of a frame", |scene| {
        said(scene.space.discard(pages(HUGE + 5, 2)))
    }),
    ("write to new pages", |scene| {
        let at = Hva::new(hva(SMALL + 5).raw() - 1);
        said(scene.space.write(at, &[1, 2]))
    }),
    ("write to an image", |scene| {
        said(scene.space.write(hva(IMAGE), &[1]))
    }),
    ("read", |scene| {
        said(scene.space.read(hva(SMALL), &mut [0; 9000]))
    }),
    ("migrate a page", |scene| {
        said(scene.space.migrate(hva(SMALL), FrameSize::Base))
    }),
    ("migrate a page of a frame", |scene| {
        said(scene.space.migrate(hva(HUGE + 9), FrameSize::Base))
    }),
    ("collapse pages", |scene| {
        said(scene.space.migrate(hva(SMALL), FrameSize::Huge))
    }),
    ("split a frame", |scene| said(scene.space.split(hva(HUGE)))),
    ("fault", |scene| {
        said(scene.space.fault(hva(VACANT), Access::Write))
    }),
    ("age", |scene| {
        scene.space.age(pages(BLOCK, END - BLOCK));
        Ok(())
    }),
    ("a guest's write to a new block", |scene| {
        scene.guest_fault(VACANT, Access::Write)
    }),
    ("a guest's fetch from an image", |scene| {
        scene.guest_fault(IMAGE + 3, Access::Execute)
    }),
    ("a guest's read of a device", |scene| {
        scene.guest_fault(DEVICE + 3, Access::Read)
    }),
    ("a guest's prefault", |scene| {
        let range = GpaRange::new(scene.guest.gpa(hva(SMALL + 1)), 5 * 4096).unwrap();
        match scene.guest.memory.vcpu().prefault(&range) {
            Ok(done) if done.stopped.is_some() && done.bytes == 0 => Err(format!("{done:?}")),
            other => said(other),
        }
    }),
    ("revoke", |scene| {
        scene.device.revoke();
        Ok(())
    }),
    ("release", |scene| {
        scene.space.release();
        Ok(())
    }),
];

/// How many frames and tables an operation asks for.
fn needs(name: &str, run: fn(&Scene) -> Result<(), String>) -> (u64, u64) {
    let scene = Scene::new();
    let frames = scene.space.frames().attempts();
    let tables = scene.guest.platform.allocations();
    run(&scene).unwrap_or_else(|error| panic!("{name}: {error}"));
    let frames = scene.space.frames().attempts() - frames;
    let tables = scene.guest.platform.allocations() - tables;
    scene.end();
    (frames, tables)
}

#[test]
fn wherever_memory_ends_nothing_is_half_done() {
    let (mut failed, mut done) = (0, 0);
    for (name, run) in OPERATIONS {
        let (frames, tables) = needs(name, run);
        for frames in 0..=frames {
            for tables in 0..=tables {
                let scene = Scene::new();
                let before = scene.picture();
                scene.space.frames().limit(Some(frames));
                scene.guest.platform.fail_allocations_from(tables);
                let result = run(&scene);
                scene.space.frames().limit(None);
                scene.guest.platform.allow_allocations();
                let what = format!("{name} with {frames} frames and {tables} tables");
                scene.guest.check();
                if let Err(error) = result {
                    failed += 1;
                    assert!(
                        scene.picture() == before,
                        "{what} changed something: {error}"
                    );
                    let again = run(&scene);
                    assert_eq!(again, Ok(()), "{what}: first {error}, then");
                } else {
                    done += 1;
                }
                scene.end();
            }
        }
    }
    assert!(failed >= 10, "{failed} operations failed");
    assert!(done >= 20, "{done} operations did without");
}
