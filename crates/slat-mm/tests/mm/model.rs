//! What an address space should do, as a plain map from pages to what they hold, and random
//! sequences of operations on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;
use slat_table::address::PAGE_SIZE;

/// Two 2 MiB blocks, and sixteen pages before and after.
pub(crate) const FIRST: u64 = 0x1_01f0;
pub(crate) const PAGES: u64 = 16 + 2 * 512 + 16;

pub(crate) const PAGE: usize = 4096;

/// What an image holds.
fn image_byte(offset: usize) -> u8 {
    let mixed = (offset ^ (offset >> 12).wrapping_mul(31)) & 0xff;
    u8::try_from(mixed).unwrap() | 1
}

pub(crate) fn image(pages: u64) -> Arc<[u8]> {
    // The last page is not full.
    (0..usize::try_from(pages).unwrap() * PAGE - 100)
        .map(image_byte)
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Anonymous,
    Image,
    Linear,
    Driver,
}

impl Kind {
    pub(crate) fn is_ram(self) -> bool {
        matches!(self, Self::Anonymous | Self::Image)
    }
}

/// What the model knows of a page.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Which `map` made it.
    pub(crate) mapping: u64,
    pub(crate) kind: Kind,
    pub(crate) writable: bool,
    /// First page and number of pages of its mapping.
    pub(crate) extent: (u64, u64),
    /// What was written to it, if anything.
    pub(crate) written: Option<Vec<u8>>,
}

impl Page {
    pub(crate) fn contents(&self, page: u64) -> Vec<u8> {
        if let Some(written) = &self.written {
            return written.clone();
        }
        match self.kind {
            Kind::Image => {
                let offset = usize::try_from(page - self.extent.0).unwrap() * PAGE;
                let end = usize::try_from(self.extent.1).unwrap() * PAGE - 100;
                let byte = |at| if at < end { image_byte(at) } else { 0 };
                (offset..offset + PAGE).map(byte).collect()
            }
            _ => vec![0; PAGE],
        }
    }
}

/// Why an operation is refused, as far as a caller cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Overlap,
    Hole(u64),
    Device,
    ReadOnly,
    Gone,
    NotResident,
    OutsideVma,
    NotHuge,
    NoMemory,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Map {
        first: u64,
        pages: u64,
        kind: Kind,
        writable: bool,
    },
    Unmap {
        first: u64,
        pages: u64,
    },
    Protect {
        first: u64,
        pages: u64,
        writable: bool,
    },
    Discard {
        first: u64,
        pages: u64,
    },
    Populate {
        first: u64,
        pages: u64,
        write: bool,
    },
    Write {
        at: u64,
        bytes: usize,
        fill: u8,
    },
    Touch {
        page: u64,
        write: bool,
    },
    Peek {
        page: u64,
        write: bool,
    },
    Guest {
        page: u64,
        write: Option<u8>,
    },
    Migrate {
        page: u64,
        huge: bool,
    },
    Split {
        page: u64,
    },
    Revoke,
    Restore,
    RefuseHuge(bool),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) limit: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) pages: BTreeMap<u64, Page>,
    pub(crate) mappings: u64,
    pub(crate) revoked: bool,
    /// What the last step should have come to; `None` where that depends on which frames there
    /// are, which the model does not know.
    pub(crate) expected: Option<Result<(), Refusal>>,
}

fn range_of_pages() -> impl Strategy<Value = (u64, u64)> {
    let lengths = prop_oneof![Just(1), 1u64..40, Just(512), Just(PAGES), 1..PAGES];
    let starts = prop_oneof![
        Just(FIRST),
        Just(FIRST + 16),
        Just(FIRST + 528),
        FIRST..FIRST + PAGES
    ];
    (starts, lengths).prop_map(|(first, pages)| (first, pages.min(FIRST + PAGES - first)))
}

fn page() -> impl Strategy<Value = u64> {
    prop_oneof![
        FIRST..FIRST + PAGES,
        Just(FIRST + 16),
        Just(FIRST + 17),
        Just(FIRST + 527)
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Anonymous),
        2 => Just(Kind::Image),
        1 => Just(Kind::Linear),
        2 => Just(Kind::Driver),
    ]
}

fn operation() -> impl Strategy<Value = Op> {
    let write_at = FIRST * PAGE_SIZE..(FIRST + PAGES - 3) * PAGE_SIZE;
    prop_oneof![
        6 => (range_of_pages(), kind(), prop::bool::weighted(0.8)).prop_map(
            |((first, pages), kind, writable)| Op::Map { first, pages, kind, writable }),
        1 => range_of_pages().prop_map(|(first, pages)| Op::Unmap { first, pages }),
        2 => (range_of_pages(), any::<bool>()).prop_map(
            |((first, pages), writable)| Op::Protect { first, pages, writable }),
        2 => range_of_pages().prop_map(|(first, pages)| Op::Discard { first, pages }),
        2 => (range_of_pages(), any::<bool>()).prop_map(
            |((first, pages), write)| Op::Populate { first, pages, write }),
        2 => (write_at, 1usize..9000, any::<u8>()).prop_map(
            |(at, bytes, fill)| Op::Write { at, bytes, fill }),
        3 => (page(), any::<bool>()).prop_map(|(page, write)| Op::Touch { page, write }),
        2 => (page(), any::<bool>()).prop_map(|(page, write)| Op::Peek { page, write }),
        4 => (page(), any::<Option<u8>>()).prop_map(|(page, write)| Op::Guest { page, write }),
        3 => (page(), any::<bool>()).prop_map(|(page, huge)| Op::Migrate { page, huge }),
        1 => page().prop_map(|page| Op::Split { page }),
        1 => Just(Op::Revoke),
        1 => Just(Op::Restore),
        1 => any::<bool>().prop_map(Op::RefuseHuge),
    ]
}

impl Model {
    fn hole(&self, first: u64, pages: u64) -> Option<u64> {
        (first..first + pages).find(|page| !self.pages.contains_key(page))
    }

    fn in_range(&self, first: u64, pages: u64) -> impl Iterator<Item = &Page> {
        self.pages.range(first..first + pages).map(|(_, page)| page)
    }

    /// Whether the range is RAM that allows the access.
    fn ram(&self, first: u64, pages: u64, write: bool) -> Result<(), Refusal> {
        if let Some(hole) = self.hole(first, pages) {
            return Err(Refusal::Hole(hole));
        }
        // The first page that is wrong decides.
        self.in_range(first, pages).try_for_each(|page| {
            if !page.kind.is_ram() {
                Err(Refusal::Device)
            } else if write && !page.writable {
                Err(Refusal::ReadOnly)
            } else {
                Ok(())
            }
        })
    }

    fn one(&self, page: u64, write: bool) -> Result<&Page, Refusal> {
        let found = self.pages.get(&page).ok_or(Refusal::Hole(page))?;
        if write && !found.writable {
            return Err(Refusal::ReadOnly);
        }
        if found.kind == Kind::Driver && self.revoked {
            return Err(Refusal::Gone);
        }
        Ok(found)
    }

    fn fill(&mut self, at: u64, bytes: usize, fill: u8) {
        for address in at..at + bytes as u64 {
            let number = address / PAGE_SIZE;
            let page = self.pages.get_mut(&number).unwrap();
            if page.written.is_none() {
                page.written = Some(page.contents(number));
            }
            let written = page.written.as_mut().unwrap();
            written[usize::try_from(address % PAGE_SIZE).unwrap()] = fill;
        }
    }

    fn run(&mut self, op: Op) -> Option<Result<(), Refusal>> {
        let result = match op {
            Op::Map { first, pages, .. } if self.in_range(first, pages).next().is_some() => {
                Err(Refusal::Overlap)
            }
            Op::Map {
                first,
                pages,
                kind,
                writable,
            } => {
                self.mappings += 1;
                let page = Page {
                    mapping: self.mappings,
                    kind,
                    writable,
                    extent: (first, pages),
                    written: None,
                };
                self.pages
                    .extend((first..first + pages).map(|number| (number, page.clone())));
                Ok(())
            }
            Op::Unmap { first, pages } => {
                self.pages
                    .retain(|page, _| !(first..first + pages).contains(page));
                Ok(())
            }
            Op::Protect {
                first,
                pages,
                writable,
            } => self
                .hole(first, pages)
                .map_or(Ok(()), |hole| Err(Refusal::Hole(hole)))
                .map(|()| {
                    for (_, page) in self.pages.range_mut(first..first + pages) {
                        page.writable = writable;
                    }
                }),
            Op::Discard { first, pages } => self.ram(first, pages, false).map(|()| {
                for (_, page) in self.pages.range_mut(first..first + pages) {
                    page.written = None;
                }
            }),
            Op::Populate {
                first,
                pages,
                write,
            } => self.ram(first, pages, write),
            Op::Write { at, bytes, fill } => {
                let first = at / PAGE_SIZE;
                let end = (at + bytes as u64).div_ceil(PAGE_SIZE);
                self.ram(first, end - first, true)
                    .map(|()| self.fill(at, bytes, fill))
            }
            Op::Touch { page, write } => self.one(page, write).map(drop),
            Op::Guest { page, write } => match (self.one(page, write.is_some()), write) {
                (Ok(found), Some(fill)) if found.kind.is_ram() => {
                    self.fill(page * PAGE_SIZE + 77, 1, fill);
                    Ok(())
                }
                (result, _) => result.map(drop),
            },
            Op::Peek { .. } | Op::Migrate { .. } | Op::Split { .. } => return None,
            Op::Revoke => {
                self.revoked = true;
                Ok(())
            }
            Op::Restore => {
                self.revoked = false;
                Ok(())
            }
            Op::RefuseHuge(_) => Ok(()),
        };
        Some(result)
    }

    /// How many VMAs there should be, when all that can be is merged.
    pub(crate) fn vmas(&self) -> u64 {
        let mut count = 0;
        let mut last: Option<(u64, u64, bool)> = None;
        for (number, page) in &self.pages {
            let goes_on = last == Some((number.wrapping_sub(1), page.mapping, page.writable));
            count += u64::from(!goes_on);
            last = Some((*number, page.mapping, page.writable));
        }
        count
    }
}

pub(crate) struct Reference;

impl ReferenceStateMachine for Reference {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::default()).boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let limit = prop_oneof![2 => Just(None), 1 => (0u64..4).prop_map(Some)];
        (operation(), limit)
            .prop_map(|(op, limit)| Step { op, limit })
            .boxed()
    }

    fn apply(mut state: Model, step: &Step) -> Model {
        state.expected = state.run(step.op);
        state
    }
}
