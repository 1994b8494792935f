//! What a CPU has cached of walks: translations, pointers to tables, walks not yet finished.
//!
//! An architecture lets a CPU keep all of these until they are invalidated, and lets it forget any
//! of them at any time. [`Temperament`] says which of the two this CPU likes. A translation comes
//! in two kinds: the second stage's own, which an invalidation by guest physical address finds, and
//! *combined* with the guest's first stage, which it does not find, since such an entry no longer
//! says which guest physical address it came through (Arm: DDI 0487, D8, "TLB maintenance"). The
//! guest's first stage is taken to be the identity.

use crate::address::{Gpa, Hpa};
use crate::architecture::{Forgotten, Leaf};
use crate::event::Vm;
use crate::random::Random;

/// Entries that each of a CPU's caches holds.
const CAPACITY: usize = 64;

/// What a CPU likes to do with what it may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temperament {
    /// Caches everything, uses it while it has it, forgets nothing by itself.
    Sticky,
    /// Now this, now that.
    Random,
    /// Caches and uses little.
    Forgetful,
}

impl Temperament {
    pub(crate) fn draw(random: &mut Random) -> Self {
        match random.below(4) {
            0 | 1 => Self::Sticky,
            2 => Self::Random,
            _ => Self::Forgetful,
        }
    }

    /// Whether to use what is cached, or to keep what could be cached.
    pub(crate) fn caches(self, random: &mut Random) -> bool {
        match self {
            Self::Sticky => true,
            Self::Random => random.half(),
            Self::Forgetful => random.one_in(4),
        }
    }

    /// Whether to forget something, given the chance.
    pub(crate) fn evicts(self, random: &mut Random) -> bool {
        match self {
            Self::Sticky => false,
            Self::Random => random.one_in(4),
            Self::Forgetful => random.half(),
        }
    }
}

/// A block of guest physical addresses, aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) gpa: Gpa,
    /// log2 of its size in bytes.
    pub(crate) shift: u8,
}

impl Block {
    /// The block of this size around an address.
    pub(crate) const fn around(gpa: Gpa, shift: u8) -> Self {
        Self {
            gpa: Gpa(gpa.0 >> shift << shift),
            shift,
        }
    }

    pub(crate) const fn contains(self, gpa: Gpa) -> bool {
        gpa.0 >> self.shift == self.gpa.0 >> self.shift
    }

    pub(crate) const fn bytes(self) -> u64 {
        1 << self.shift
    }
}

/// A cached translation: of a page or block, or of a whole run of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    pub(crate) vm: Vm,
    /// What it translates.
    pub(crate) block: Block,
    pub(crate) leaf: Leaf,
    /// Where the leaf was read, and what was there.
    pub(crate) entry: Hpa,
    pub(crate) raw: u64,
    pub(crate) level: usize,
    /// Whether it was combined with the guest's own translation.
    pub(crate) combined: bool,
}

impl Translation {
    /// Where it leads `gpa`.
    pub(crate) const fn translate(&self, gpa: Gpa) -> Hpa {
        Hpa(self.leaf.hpa.0 + (gpa.0 - self.block.gpa.0))
    }
}

/// A table that a walk has found: cached to start later walks from, or as far as one got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) vm: Vm,
    /// What the table translates.
    pub(crate) block: Block,
    /// The table and its level.
    pub(crate) table: Hpa,
    pub(crate) level: usize,
    /// Where the pointer was read, and what was there.
    pub(crate) entry: Hpa,
    pub(crate) raw: u64,
}

/// A walk that has read some entries and will read the next when it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// What is walked for.
    pub(crate) gpa: Gpa,
    /// How far it got.
    pub(crate) pointer: Pointer,
}

/// An entry that translated nothing, kept by an architecture that caches those too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Absence {
    pub(crate) vm: Vm,
    /// What it does not translate.
    pub(crate) block: Block,
    /// Where it was read, and what was there.
    pub(crate) entry: Hpa,
    pub(crate) raw: u64,
    pub(crate) level: usize,
}

/// One CPU's caches.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    absences: Vec<Absence>,
    translations: Vec<Translation>,
    pointers: Vec<Pointer>,
    walks: Vec<Walk>,
}

impl Caches {
    /// Keeps a translation; false if it was there.
    pub(crate) fn add_translation(&mut self, new: Translation, random: &mut Random) -> bool {
        add(&mut self.translations, new, random)
    }

    /// Keeps an absence; false if it was there.
    pub(crate) fn add_absence(&mut self, new: Absence, random: &mut Random) -> bool {
        add(&mut self.absences, new, random)
    }

    /// Keeps a pointer to a table; false if it was there.
    pub(crate) fn add_pointer(&mut self, new: Pointer, random: &mut Random) -> bool {
        add(&mut self.pointers, new, random)
    }

    /// Leaves a walk in flight; false if it was there.
    pub(crate) fn add_walk(&mut self, new: Walk, random: &mut Random) -> bool {
        add(&mut self.walks, new, random)
    }

    /// Any of the translations for an address.
    pub(crate) fn hit(&self, vm: Vm, gpa: Gpa, random: &mut Random) -> Option<Translation> {
        any(&self.translations, random, |translation| {
            translation.vm == vm && translation.block.contains(gpa)
        })
    }

    /// Whether an entry that did not translate an address is cached.
    pub(crate) fn is_absent(&self, vm: Vm, gpa: Gpa) -> bool {
        let mut absences = self.absences.iter();
        absences.any(|absence| absence.vm == vm && absence.block.contains(gpa))
    }

    /// Any of the tables from which a walk for an address may go on.
    pub(crate) fn pointer(&self, vm: Vm, gpa: Gpa, random: &mut Random) -> Option<Pointer> {
        any(&self.pointers, random, |pointer| {
            pointer.vm == vm && pointer.block.contains(gpa)
        })
    }

    /// Takes out a walk in flight for the page of an address.
    pub(crate) fn take_walk(&mut self, vm: Vm, gpa: Gpa) -> Option<Walk> {
        let same = |walk: &Walk| walk.pointer.vm == vm && walk.gpa.0 >> 12 == gpa.0 >> 12;
        let at = self.walks.iter().position(same)?;
        Some(self.walks.swap_remove(at))
    }

    /// Takes out any walk in flight.
    pub(crate) fn take_any_walk(&mut self, random: &mut Random) -> Option<Walk> {
        let count = self.walks.len();
        (count != 0).then(|| self.walks.swap_remove(random.below(count)))
    }

    /// Removes one translation; false if it was not there.
    pub(crate) fn drop_translation(&mut self, gone: &Translation) -> bool {
        let before = self.translations.len();
        self.translations.retain(|translation| translation != gone);
        self.translations.len() != before
    }

    /// Forgets something, if there is anything.
    pub(crate) fn evict(&mut self, random: &mut Random) {
        let (translations, pointers) = (self.translations.len(), self.pointers.len());
        if translations + pointers == 0 {
            return;
        }
        match random.below(translations + pointers) {
            at if at < translations => _ = self.translations.swap_remove(at),
            at => _ = self.pointers.swap_remove(at - translations),
        }
    }

    /// An invalidation takes effect. A walk in flight goes if what it has read is to be forgotten.
    /// An entry that translated nothing counts as what it is now: `is_leaf` says whether that is a
    /// leaf.
    pub(crate) fn forget(&mut self, vm: Vm, what: Forgotten, is_leaf: impl Fn(&Absence) -> bool) {
        match what {
            Forgotten::Address {
                gpa,
                leaf_only,
                level,
            } => {
                let other = |of: usize| level.is_some_and(|level| level != of);
                self.translations.retain(|t| {
                    t.vm != vm || t.combined || !t.block.contains(gpa) || other(t.level)
                });
                if level.is_some() {
                    return;
                }
                let spared = |a: &Absence| leaf_only && a.level != 0 && !is_leaf(a);
                self.absences
                    .retain(|a| a.vm != vm || !a.block.contains(gpa) || spared(a));
                if !leaf_only {
                    let stays = |p: &Pointer| p.vm != vm || !p.block.contains(gpa);
                    self.pointers.retain(stays);
                    self.walks.retain(|walk| stays(&walk.pointer));
                }
            }
            Forgotten::Combined => self.translations.retain(|t| t.vm != vm || !t.combined),
            Forgotten::All => {
                self.translations.retain(|t| t.vm != vm);
                self.absences.retain(|a| a.vm != vm);
                self.pointers.retain(|p| p.vm != vm);
                self.walks.retain(|walk| walk.pointer.vm != vm);
            }
        }
    }
}

fn add<T: PartialEq>(cache: &mut Vec<T>, new: T, random: &mut Random) -> bool {
    if cache.contains(&new) {
        return false;
    }
    if cache.len() == CAPACITY {
        cache.swap_remove(random.below(CAPACITY));
    }
    cache.push(new);
    true
}

fn any<T: Copy>(cache: &[T], random: &mut Random, fits: impl Fn(&T) -> bool) -> Option<T> {
    let fitting = || cache.iter().filter(|entry| fits(entry));
    let count = fitting().count();
    if count < 2 {
        return fitting().next().copied();
    }
    fitting().nth(random.below(count)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translation(gpa: u64, shift: u8, combined: bool) -> Translation {
        Translation {
            vm: 1,
            block: Block::around(Gpa(gpa), shift),
            leaf: Leaf {
                hpa: Hpa(0x8000_0000),
                read: true,
                write: true,
                becomes_dirty: false,
                dirty: false,
                execute: false,
                accessed: true,
                memory: 0,
                device: false,
                run_bits: 0,
            },
            entry: Hpa(0x1000),
            raw: 1,
            level: 0,
            combined,
        }
    }

    fn pointer(gpa: u64, shift: u8) -> Pointer {
        Pointer {
            vm: 1,
            block: Block::around(Gpa(gpa), shift),
            table: Hpa(0x2000),
            level: 0,
            entry: Hpa(0x1000),
            raw: 3,
        }
    }

    fn full() -> Caches {
        let pointer = pointer(0x20_0000, 21);
        let gpa = Gpa(0x20_3000);
        Caches {
            absences: vec![],
            translations: vec![
                translation(0x20_3000, 12, false),
                translation(0x20_3000, 12, true),
                translation(0x20_0000, 21, false),
            ],
            pointers: vec![pointer],
            walks: vec![Walk { gpa, pointer }],
        }
    }

    /// Translations, pointers and walks left after an invalidation.
    fn left(vm: Vm, what: Forgotten) -> (usize, usize, usize) {
        let mut caches = full();
        caches.forget(vm, what, |_| true);
        (
            caches.translations.len(),
            caches.pointers.len(),
            caches.walks.len(),
        )
    }

    #[test]
    fn an_address_finds_blocks_and_pointers_around_it_but_nothing_combined() {
        let address = |gpa, leaf_only| Forgotten::Address {
            gpa: Gpa(gpa),
            leaf_only,
            level: None,
        };
        assert_eq!(left(1, address(0x20_3000, false)), (1, 0, 0));
        assert_eq!(left(1, address(0x20_3000, true)), (1, 1, 1));
        assert_eq!(left(1, address(0x20_4000, false)), (2, 0, 0));
        assert_eq!(left(1, address(0x40_0000, false)), (3, 1, 1));
    }

    #[test]
    fn an_address_with_a_level_finds_leaves_of_that_level_and_no_pointer() {
        let hinted = |level| Forgotten::Address {
            gpa: Gpa(0x20_3000),
            leaf_only: false,
            level: Some(level),
        };
        assert_eq!(left(1, hinted(0)), (1, 1, 1));
        assert_eq!(left(1, hinted(1)), (3, 1, 1));
    }

    #[test]
    fn the_other_invalidations_find_what_they_name_of_their_vm() {
        assert_eq!(left(1, Forgotten::Combined), (2, 1, 1));
        assert_eq!(left(1, Forgotten::All), (0, 0, 0));
        assert_eq!(left(2, Forgotten::All), (3, 1, 1));
    }

    #[test]
    fn any_fitting_translation_may_be_hit() {
        let caches = full();
        let mut random = Random::new(0);
        for expected in [0, 1, 2].map(|at| caches.translations[at]) {
            assert!(
                (0..100).any(|_| { caches.hit(1, Gpa(0x20_3008), &mut random) == Some(expected) })
            );
        }
        assert_eq!(caches.hit(2, Gpa(0x20_3008), &mut random), None);
        assert_eq!(caches.hit(1, Gpa(0x40_0000), &mut random), None);
    }

    #[test]
    fn a_cache_is_bounded_and_holds_nothing_twice() {
        let mut caches = Caches::default();
        let mut random = Random::new(0);
        for page in 0..100 {
            let new = translation(page << 12, 12, false);
            assert!(caches.add_translation(new, &mut random));
            assert!(!caches.add_translation(new, &mut random));
        }
        assert_eq!(caches.translations.len(), CAPACITY);
    }
}
