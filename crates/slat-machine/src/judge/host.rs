//! What the guest is allowed: slots, what the host granted, and frames.
//!
//! A *grant* is what the host answered: behind these host virtual addresses is that memory. It
//! lives until a notice that covers it has *begun*, that is, until the notifier has returned; an
//! answer given between that and the notice's end counts for nothing, since the host is changing
//! things. While a change of slots is under way, the old slots and the new ones are allowed.

use std::collections::BTreeMap;

use super::ranges::{Disjoint, Overlapping, Span};
use super::rule::{Line, Rule};
use super::story::Did;
use crate::address::Hpa;
use crate::architecture::Leaf;
use crate::event::{AccessKind, Slot, Vm};

/// What the host said is behind host virtual addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    /// What to add to a host virtual address, wrapping, to get the host physical one.
    offset: u64,
    pub(super) writable: bool,
    pub(super) device: bool,
    pub(super) did: Did,
}

impl Grant {
    /// The host said: from `hva` on there is what is at `hpa`.
    pub(super) fn new(hva: u64, hpa: Hpa, writable: bool, device: bool, did: Did) -> Self {
        Self {
            offset: hpa.0.wrapping_sub(hva),
            writable,
            device,
            did,
        }
    }

    /// The host physical address behind `hva`.
    pub(super) fn hpa(&self, hva: u64) -> u64 {
        hva.wrapping_add(self.offset)
    }
}

/// A notice under way.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    pub(super) vm: Vm,
    pub(super) hva: Span,
    pub(super) beginning: Did,
    /// The notifier has returned.
    pub(super) begun: bool,
}

/// A change of slots under way.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) vm: Vm,
    pub(super) remove: Vec<u32>,
    pub(super) add: Vec<Slot>,
    pub(super) did: Did,
}

/// What one VM is allowed.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    /// Slots in force, by guest physical address.
    slots: Disjoint<Slot>,
    by_id: BTreeMap<u32, Slot>,
    /// Slots of changes under way.
    coming: Vec<(u64, Slot)>,
    grants: Disjoint<Grant>,
}

/// A grant's VM and first host virtual address.
type GrantId = (Vm, u64);

/// Why something is not allowed.
#[derive(Debug)]
pub(super) struct Objection {
    pub(super) rule: Rule,
    pub(super) text: String,
    /// The host's records that say so.
    pub(super) lines: Vec<Line>,
}

/// What is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Frame,
    Device,
    Free,
}

/// What the host and the VMM said.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// VMs of which neither ever spoke are not here: nothing is known of what they may do.
    vms: BTreeMap<Vm, Allowed>,
    pub(super) notices: BTreeMap<u64, Notice>,
    pub(super) changes: BTreeMap<u64, Change>,
    frames: Disjoint<Did>,
    /// Whether frames are told of at all.
    tells_frames: bool,
    /// Grants by the memory they lead to.
    granted: Overlapping<GrantId>,
}

fn slot_span(slot: &Slot) -> Span {
    Span::new(slot.gpa.0, slot.bytes)
}

fn target(hva: Span, grant: &Grant) -> Span {
    Span::new(grant.hpa(hva.start), hva.bytes())
}

impl Allowed {
    /// The slots that may be meant at `gpa`.
    fn slots_at(&self, gpa: u64) -> impl Iterator<Item = &Slot> {
        let coming = self.coming.iter().map(|(_, slot)| slot);
        let coming = coming.filter(move |slot| slot_span(slot).contains(gpa));
        self.slots
            .at(gpa)
            .map(|(_, slot)| slot)
            .into_iter()
            .chain(coming)
    }

    /// Whether some slot may be meant at `gpa`.
    pub(super) fn has_slot(&self, gpa: u64) -> bool {
        self.slots_at(gpa).next().is_some()
    }

    /// Whether the leaf that maps `gpa` is allowed by some slot.
    pub(super) fn check(&self, gpa: Span, leaf: &Leaf) -> Result<(), Objection> {
        let mut objection = None;
        for slot in self.slots_at(gpa.start) {
            match self.check_in_slot(slot, gpa, leaf) {
                Ok(()) => return Ok(()),
                Err(found) => objection = Some(found),
            }
        }
        Err(objection.unwrap_or_else(|| Objection {
            rule: Rule::LeafOutsideSlot,
            text: format!("no slot has GPA {:#x}", gpa.start),
            lines: Vec::new(),
        }))
    }

    fn check_in_slot(&self, slot: &Slot, gpa: Span, leaf: &Leaf) -> Result<(), Objection> {
        let object = |rule, text: String, grant: Option<&Grant>| {
            let lines = grant.map(|grant| grant.did.line("the host answered for this page"));
            let lines = lines.into_iter().collect();
            Err(Objection { rule, text, lines })
        };
        let id = slot.id;
        if !slot_span(slot).covers(gpa) {
            let text = format!("slot {id} is GPA {}", slot_span(slot));
            return object(Rule::LeafOutsideSlot, text, None);
        }
        let writes = leaf.allows(AccessKind::Write);
        if writes && slot.read_only {
            let text = format!("slot {id} is read-only");
            return object(Rule::LeafAllowsTooMuch, text, None);
        }
        let Some(hva) = gpa.moved(slot.gpa.0, slot.hva.0) else {
            let text = format!("slot {id} leaves the address space");
            return object(Rule::LeafOutsideSlot, text, None);
        };
        for (range, grant) in self.grants.overlapping(hva) {
            let at = range.start.max(hva.start);
            let expected = grant.hpa(at);
            if leaf.hpa.0.wrapping_add(at - hva.start) != expected {
                let text = format!("the host's page for HVA {at:#x} is {expected:#x}");
                return object(Rule::TwoFramesForOnePage, text, Some(grant));
            }
            if writes && !grant.writable {
                let text = format!("the host lets nobody write to HVA {at:#x}");
                return object(Rule::LeafAllowsTooMuch, text, Some(grant));
            }
        }
        if !self.grants.covers(hva) {
            let text = format!("the host grants nothing for (part of) HVA {hva}");
            return object(Rule::LeafWithoutGrant, text, None);
        }
        Ok(())
    }

    /// Whether an access is allowed: what rule it breaks, and why.
    pub(super) fn check_access(
        &self,
        gpa: u64,
        hpa: Hpa,
        kind: AccessKind,
    ) -> Result<(), Objection> {
        let mut objection = Objection {
            rule: Rule::AccessOutsideSlots,
            text: "no slot has this address".to_owned(),
            lines: Vec::new(),
        };
        for slot in self.slots_at(gpa) {
            let Some(hva) = Span::new(gpa, 1).moved(slot.gpa.0, slot.hva.0) else {
                continue;
            };
            let hva = hva.start;
            let grant = self.grants.at(hva).map(|(_, grant)| grant);
            // An access is of the 8 bytes around its address.
            let right = grant.filter(|grant| grant.hpa(hva) & !7 == hpa.0 & !7);
            let lines = grant.map(|it| it.did.line("the host answered for this page"));
            let (rule, text) = match (right, grant) {
                (Some(_), _) if kind != AccessKind::Write => return Ok(()),
                (Some(right), _) if right.writable && !slot.read_only => return Ok(()),
                (Some(_), _) => (
                    Rule::WriteToProtected,
                    "the page may only be read".to_owned(),
                ),
                (None, Some(other)) => (
                    Rule::AccessWithoutGrant,
                    format!("the host's page there is {:#x}", other.hpa(hva)),
                ),
                (None, None) => (
                    Rule::AccessWithoutGrant,
                    "the host grants nothing there".to_owned(),
                ),
            };
            let lines = lines.into_iter().collect();
            objection = Objection { rule, text, lines };
        }
        Err(objection)
    }

    /// Where in guest addresses `hva` may be, with the slots that say so.
    pub(super) fn guest_ranges(&self, hva: Span) -> Vec<(Span, Slot)> {
        let coming = self.coming.iter().map(|(_, slot)| slot);
        self.by_id
            .values()
            .chain(coming)
            .filter_map(|slot| {
                let part = Span::new(slot.hva.0, slot.bytes).intersection(hva)?;
                Some((part.moved(slot.hva.0, slot.gpa.0)?, slot.clone()))
            })
            .collect()
    }

    /// The grants in `hva`, cut to it.
    pub(super) fn grants(&self, hva: Span) -> Vec<(Span, Grant)> {
        let found = self.grants.overlapping(hva);
        found
            .filter_map(|(range, grant)| Some((range.intersection(hva)?, *grant)))
            .collect()
    }
}

impl Host {
    /// What `vm` is allowed; `None` if nobody ever said.
    pub(super) fn allowed(&self, vm: Vm) -> Option<&Allowed> {
        self.vms.get(&vm)
    }

    /// The VM is no more.
    pub(super) fn end(&mut self, vm: Vm) {
        self.revoke(vm, Span::new(0, u64::MAX));
        self.vms.remove(&vm);
        self.notices.retain(|_, notice| notice.vm != vm);
        self.changes.retain(|_, change| change.vm != vm);
    }

    /// An answer of the host. Fails with the contradicted grant.
    pub(super) fn answered(
        &mut self,
        vm: Vm,
        hva: Span,
        grant: Grant,
    ) -> Result<(), Box<Objection>> {
        let changing = |notice: &&Notice| notice.vm == vm && notice.begun;
        let mut parts = vec![hva];
        for notice in self.notices.values().filter(changing) {
            let cut = parts.into_iter().flat_map(|part| part.without(notice.hva));
            parts = cut.flatten().collect();
        }
        self.vms.entry(vm).or_default();
        for part in parts {
            self.grant(vm, part, grant)?;
        }
        Ok(())
    }

    fn grant(&mut self, vm: Vm, hva: Span, grant: Grant) -> Result<(), Box<Objection>> {
        let Some(allowed) = self.vms.get(&vm) else {
            return Ok(());
        };
        let before = allowed.grants(hva);
        for (part, old) in &before {
            let text = if old.offset != grant.offset {
                let (was, is) = (old.hpa(part.start), grant.hpa(part.start));
                format!("HVA {part} was {was:#x} and is {is:#x} now")
            } else if old.writable && !grant.writable {
                format!("HVA {part} was writable and is not now")
            } else {
                continue;
            };
            let lines = vec![old.did.line("the host answered for this page")];
            let rule = Rule::HostBrokeItsWord;
            return Err(Box::new(Objection { rule, text, lines }));
        }
        let known = matches!(&before[..], [(part, old)]
            if *part == hva && old.writable == grant.writable);
        if !known {
            self.revoke(vm, hva);
            self.set_grant(vm, hva, grant);
        }
        Ok(())
    }

    fn set_grant(&mut self, vm: Vm, hva: Span, grant: Grant) {
        if let Some(allowed) = self.vms.get_mut(&vm) {
            allowed.grants.set(hva, grant);
            self.granted.insert(target(hva, &grant), (vm, hva.start));
        }
    }

    /// Forgets the grants in `hva`.
    pub(super) fn revoke(&mut self, vm: Vm, hva: Span) {
        let Some(allowed) = self.vms.get_mut(&vm) else {
            return;
        };
        let overlap = allowed.grants.overlapping(hva);
        let found: Vec<(Span, Grant)> = overlap.map(|(range, grant)| (range, *grant)).collect();
        for (range, grant) in found {
            allowed.grants.remove(range);
            self.granted
                .remove(target(range, &grant), (vm, range.start));
            for rest in range.without(hva).into_iter().flatten() {
                allowed.grants.set(rest, grant);
                self.granted.insert(target(rest, &grant), (vm, rest.start));
            }
        }
    }

    /// The VM and record of a grant that leads to some of `hpa`.
    pub(super) fn granted(&self, hpa: Span) -> Option<(Vm, Did)> {
        let (vm, hva) = self.granted.overlapping(hpa).next()?;
        let (_, grant) = self.vms.get(&vm)?.grants.at(hva)?;
        Some((vm, grant.did))
    }

    pub(super) fn changing(&mut self, number: u64, change: Change) {
        let allowed = self.vms.entry(change.vm).or_default();
        let add = change.add.iter().cloned();
        allowed.coming.extend(add.map(|slot| (number, slot)));
        self.changes.insert(number, change);
    }

    /// A change of slots returned. Gives the change and the guest addresses that may no longer be
    /// what they were.
    pub(super) fn changed(&mut self, number: u64, done: bool) -> Option<(Change, Vec<Span>)> {
        let change = self.changes.remove(&number)?;
        let allowed = self.vms.get_mut(&change.vm)?;
        allowed.coming.retain(|(of, _)| *of != number);
        if !done {
            let spans = change.add.iter().map(slot_span).collect();
            return Some((change, spans));
        }
        let mut spans = Vec::new();
        for id in &change.remove {
            if let Some(slot) = allowed.by_id.remove(id) {
                allowed.slots.remove(slot_span(&slot));
                spans.push(slot_span(&slot));
            }
        }
        for slot in &change.add {
            allowed.slots.set(slot_span(slot), slot.clone());
            allowed.by_id.insert(slot.id, slot.clone());
        }
        Some((change, spans))
    }

    pub(super) fn frame_allocated(&mut self, frame: Span, did: Did) {
        self.tells_frames = true;
        self.frames.set(frame, did);
    }

    /// A frame that has some of `memory`.
    pub(super) fn frame_in(&self, memory: Span) -> Option<(Span, Did)> {
        let (frame, did) = self.frames.overlapping(memory).next()?;
        Some((frame, *did))
    }

    pub(super) fn frame_freed(&mut self, frame: Span) {
        self.frames.remove(frame);
    }

    /// Whether `hpa` is allocated frames or `vm`'s granted devices; true where frames are not
    /// told of.
    pub(super) fn is_allocated(&self, vm: Vm, hpa: Span) -> bool {
        !self.tells_frames || self.frames.covers(hpa) || self.content(vm, hpa) == Content::Device
    }

    /// What is at the first byte of `hpa`, as far as `vm` may know.
    pub(super) fn content(&self, vm: Vm, hpa: Span) -> Content {
        if self.frames.at(hpa.start).is_some() {
            return Content::Frame;
        }
        let first = Span::new(hpa.start, 1);
        let device = self.granted.overlapping(first).any(|(of, hva)| {
            let grants = self.vms.get(&vm).map(|allowed| &allowed.grants);
            let grant = grants.and_then(|grants| grants.at(hva));
            of == vm && grant.is_some_and(|(_, grant)| grant.device)
        });
        if device {
            Content::Device
        } else {
            Content::Free
        }
    }

    /// Whether frames are told of at all.
    pub(super) fn tells_frames(&self) -> bool {
        self.tells_frames
    }
}
