//! What the guest may reach: leaves and accesses against what the host and the VMM said.

use super::host::{Content, Grant, Objection};
use super::ranges::Span;
use super::residue::{Old, Residue};
use super::rule::{Line, Rule, Violation};
use super::runs::Whole;
use super::story::{self, Did};
use super::tree::{At, Reached};
use super::{Judge, Judged};
use crate::address::{Gpa, Hpa};
use crate::architecture::Leaf;
use crate::event::{AccessKind, Vm};

/// A page of a guest and the memory behind it.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    gpa: Span,
    hpa: u64,
}

impl Mapping {
    /// Whether a translation of `gpa` to `hpa` leads some address of it to its memory.
    fn is_made_by(&self, gpa: Span, hpa: Hpa) -> bool {
        let at = |start: u64, from: u64, address: u64| address.wrapping_add(start - from);
        self.gpa.intersection(gpa).is_some_and(|common| {
            at(common.start, gpa.start, hpa.0) == at(common.start, self.gpa.start, self.hpa)
        })
    }
}

impl Judge {
    /// A leaf is reachable from now on: may it be?
    pub(super) fn check_leaf(&self, at: &At, leaf: &Leaf, did: Did) -> Judged {
        let Some(allowed) = self.host.allowed(at.vm) else {
            return Ok(());
        };
        let text = || format!("made entry {} map {}", at.entry, story::leaf(at.gpa, leaf));
        let whole = self.whole(at, leaf);
        if let Err(objection) = allowed.check(whole.gpa, &whole.leaf) {
            let Objection {
                rule,
                text: missing,
                lines,
            } = objection;
            return Err(did.breaks(rule, lines, text(), format!("permission: {missing}")));
        }
        let target = whole.target();
        if let Some(table) = self.tables.overlapping(target) {
            let allocated = format!("allocated the table {}", table.span);
            let story = vec![table.allocated.line(allocated)];
            let missing = "memory that is no table";
            return Err(did.breaks(Rule::LeafToUnallocatedMemory, story, text(), missing));
        }
        if !self.host.is_allocated(at.vm, target) {
            let missing = format!("frames or a device at all of HPA {target}");
            return Err(did.breaks(Rule::LeafToUnallocatedMemory, vec![], text(), missing));
        }
        Ok(())
    }

    pub(super) fn answered(&mut self, did: Did, vm: Vm, hva: Span, grant: Grant) -> Judged {
        self.host.answered(vm, hva, grant).map_err(|objection| {
            let Objection { rule, text, lines } = *objection;
            did.breaks(rule, lines, text, "a notice before the change")
        })
    }

    /// A notifier returned: nothing reaches what the host takes back.
    pub(super) fn notice_begun(&mut self, did: Did, number: u64) -> Judged {
        let Some(notice) = self.host.notices.get(&number).cloned() else {
            return Ok(());
        };
        let mut mappings = Vec::new();
        if let Some(allowed) = self.host.allowed(notice.vm) {
            for (hva, grant) in allowed.grants(notice.hva) {
                let ranges = allowed.guest_ranges(hva).into_iter();
                mappings.extend(ranges.map(|(gpa, slot)| Mapping {
                    gpa,
                    hpa: grant.hpa(slot.hva.0.wrapping_add(gpa.start - slot.gpa.0)),
                }));
            }
        }
        let text = format!("the notifier for HVA {} returned", notice.hva);
        let begun = notice
            .beginning
            .line(format!("the host began to change HVA {}", notice.hva));
        for mapping in mappings {
            let made = |gpa: Span, hpa: Hpa| mapping.is_made_by(gpa, hpa);
            if let Some((mut story, missing)) = self.reaching(notice.vm, mapping.gpa, made) {
                story.push(begun);
                return Err(did.breaks(Rule::MappedAfterNotice, story, text, missing));
            }
            if let Some(tree) = self.trees.get_mut(&notice.vm) {
                tree.dirt.forget(mapping.gpa);
            }
        }
        self.host.revoke(notice.vm, notice.hva);
        if let Some(notice) = self.host.notices.get_mut(&number) {
            notice.begun = true;
        }
        Ok(())
    }

    /// A change of slots returned: nothing reaches what no slot has.
    pub(super) fn slots_changed(&mut self, did: Did, number: u64, done: bool) -> Judged {
        let Some((change, spans)) = self.host.changed(number, done) else {
            return Ok(());
        };
        let Some(allowed) = self.host.allowed(change.vm) else {
            return Ok(());
        };
        let result = if done { "was done" } else { "failed" };
        for span in spans {
            let refused = |gpa: Span, leaf: &Leaf| allowed.check(gpa, leaf).is_err();
            if let Some((mut story, missing)) = self.reaching_leaf(change.vm, span, refused) {
                story.push(change.did.line("a change of slots was asked for"));
                let text = format!("the change of slots {result}; GPA {span} is not what it was");
                return Err(did.breaks(Rule::MappedAfterSlotRemoval, story, text, missing));
            }
        }
        Ok(())
    }

    fn reaching(
        &self,
        vm: Vm,
        gpa: Span,
        made: impl Fn(Span, Hpa) -> bool,
    ) -> Option<(Vec<Line>, String)> {
        self.reaching_leaf(vm, gpa, |gpa, leaf| made(gpa, leaf.hpa))
    }

    /// The story of a leaf, or of a residue of one, that translates some of `gpa` and is `bad`;
    /// and what is missing for it to be gone.
    fn reaching_leaf(
        &self,
        vm: Vm,
        gpa: Span,
        bad: impl Fn(Span, &Leaf) -> bool,
    ) -> Option<(Vec<Line>, String)> {
        let tree = self.trees.get(&vm);
        let mut leaves = tree.into_iter().flat_map(|tree| tree.leaves_near(gpa));
        let translates = |whole: &Whole| whole.gpa.intersection(gpa).is_some();
        if let Some((range, reached)) =
            leaves.find(|(_, it)| translates(&it.whole) && bad(it.whole.gpa, &it.whole.leaf))
        {
            return Some(still_there(range, reached));
        }
        let mut residues = self.residues.translating(vm, gpa);
        let residue = residues
            .find(|residue| matches!(&residue.old, Old::Leaf(leaf) if bad(residue.gpa, leaf)))?;
        Some(self.still_cached(residue))
    }

    fn still_cached(&self, residue: &Residue) -> (Vec<Line>, String) {
        (self.journal.story(residue), self.journal.missing(residue))
    }

    pub(super) fn frame_freed(&mut self, did: Did, frame: Span) -> Judged {
        let text = format!("freed the frame {frame}");
        if let Some((vm, answered)) = self.host.granted(frame) {
            let story = vec![answered.line(format!("the host granted it to VM {vm}"))];
            let missing = "a notice to that VM";
            return Err(did.breaks(Rule::FrameFreedWhileGranted, story, text, missing));
        }
        let mut leaves = self.leaves_by_hpa.overlapping(frame);
        let leaf = leaves.find_map(|(vm, gpa)| {
            let (range, reached) = self.trees.get(&vm)?.leaves.at(gpa)?;
            Some(still_there(range, reached))
        });
        let residue = || self.residues.leading_to(frame).next();
        let found = leaf.or_else(|| Some(self.still_cached(residue()?)));
        if let Some((story, missing)) = found {
            return Err(did.breaks(Rule::FrameFreedWhileMapped, story, text, missing));
        }
        self.host.frame_freed(frame);
        Ok(())
    }

    /// Memory is given to somebody: nobody else may have it.
    pub(super) fn frame_allocated(&mut self, did: Did, frame: Span) -> Judged {
        if let Some(owner) = self.owner(frame) {
            let text = format!("allocated the frame {frame}");
            let missing = "memory that is free";
            return Err(did.breaks(Rule::FrameAllocatedTwice, vec![owner], text, missing));
        }
        self.host.frame_allocated(frame, did);
        Ok(())
    }

    /// Who has some of `memory`, as a table or as a frame.
    pub(super) fn owner(&self, memory: Span) -> Option<Line> {
        let table = self.tables.overlapping(memory).map(|table| {
            let text = format!("allocated the table {}", table.span);
            table.allocated.line(text)
        });
        table.or_else(|| {
            let (frame, did) = self.host.frame_in(memory)?;
            Some(did.line(format!("allocated the frame {frame}")))
        })
    }

    /// The guest reached memory: might it?
    pub(super) fn accessed(
        &self,
        did: Did,
        vm: Vm,
        gpa: Gpa,
        kind: AccessKind,
        hpa: Hpa,
    ) -> Judged {
        let Some(allowed) = self.host.allowed(vm) else {
            return Ok(());
        };
        let Err(objection) = allowed.check_access(gpa.0, hpa, kind) else {
            return Ok(());
        };
        Err(self.wrong_access(did, vm, gpa, kind, hpa, objection))
    }

    fn wrong_access(
        &self,
        did: Did,
        vm: Vm,
        gpa: Gpa,
        kind: AccessKind,
        hpa: Hpa,
        objection: Objection,
    ) -> Violation {
        let Objection {
            rule,
            text,
            mut lines,
        } = objection;
        let target = Span::new(hpa.0, 1);
        let (rule, what) = if self.tables.containing(hpa.0).is_some() {
            (Rule::AccessToTable, ", a table")
        } else if self.host.tells_frames() && self.host.content(vm, target) == Content::Free {
            (Rule::AccessToFreeMemory, ", which belongs to nobody")
        } else {
            (rule, "")
        };
        let mapping = Mapping {
            gpa: Span::new(gpa.0, 1),
            hpa: hpa.0,
        };
        let made = |gpa: Span, hpa: Hpa| mapping.is_made_by(gpa, hpa);
        let missing = match self.reaching(vm, mapping.gpa, made) {
            Some((story, missing)) => {
                lines.extend(story);
                format!("{text}; {missing}")
            }
            None => text,
        };
        let verb = match kind {
            AccessKind::Read => "read",
            AccessKind::Write => "wrote",
            AccessKind::Execute => "executed",
        };
        let text = format!("the guest of VM {vm} {verb} GPA {gpa} and reached HPA {hpa}{what}");
        did.breaks(rule, lines, text, missing)
    }
}

/// The story of a leaf that is reachable.
fn still_there(gpa: Span, reached: &Reached) -> (Vec<Line>, String) {
    let Reached {
        leaf,
        entry,
        written,
        ..
    } = reached;
    let text = format!("wrote entry {entry}: {}", story::leaf(gpa, leaf));
    let missing = format!("a write that makes entry {entry} invalid, and its invalidation");
    (vec![written.line(text)], missing)
}
