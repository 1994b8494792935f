//! Asks KVM and slat the same, compares, and keeps both alike.
//!
//! After a difference that is explained, KVM follows slat: it is asked, in terms that leave
//! nothing to explain, for what slat holds. So every later answer of both is about the same
//! slots, and a divergence that an answer did not show surfaces in a later one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use slat::transaction::TransactionError;

use super::difference::{Case, Difference, number};
use super::generator::Operation;
use super::ours::{Mappings, Ours};
use super::real::{Limits, RealKvm};
use super::request::{READ_ONLY, Request};
use super::{Answer, EINVAL};

/// A VM in KVM and one in slat, with the same slots.
pub(crate) struct Twin {
    kvm: RealKvm,
    ours: Ours,
    limits: Limits,
    /// What slat holds.
    live: BTreeMap<u32, Request>,
    /// The ids that KVM holds.
    held: BTreeSet<u32>,
}

/// What both answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    pub(crate) kvm: Answer,
    /// The first answer, before a change in place was asked for as a transaction.
    pub(crate) slat: Answer,
    /// Why they differ.
    pub(crate) explained: Vec<Difference>,
}

/// A difference that nothing explains.
#[derive(Debug)]
pub(crate) struct Unexplained {
    kvm: Answer,
    slat: Result<(), TransactionError>,
    existing: Option<Request>,
}

impl Twin {
    /// Without slots; slat has `limits`.
    pub(crate) fn new(kvm: RealKvm, limits: Limits, mappings: &Mappings) -> Self {
        let ours = Ours::new(&limits, mappings);
        Self {
            kvm,
            ours,
            limits,
            live: BTreeMap::new(),
            held: BTreeSet::new(),
        }
    }

    /// The slots of both.
    pub(crate) fn live(&self) -> &BTreeMap<u32, Request> {
        &self.live
    }

    /// What KVM's answers depend on.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Width of slat's guest physical addresses in bits.
    pub(crate) fn guest_bits(&self) -> u8 {
        self.ours.guest_bits()
    }

    /// Has both do `operation`.
    pub(crate) fn apply(&mut self, operation: &Operation) -> Result<Answers, Unexplained> {
        match operation {
            Operation::One(request) => self.ask(request),
            Operation::Together { deletes, creates } => self.ask_together(deletes, creates),
        }
    }

    /// Asks both for `request`.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Answers, Unexplained> {
        let kvm = self.ask_kvm(request);
        let mut slat = self.ours.ask(request);
        let first = number(&slat);
        let mut explained = Vec::new();
        if first != kvm {
            let existing = self.live.get(&request.id);
            let difference = self.explain(request, existing, kvm, slat)?;
            explained.push(difference);
            if difference.is_change_in_place() {
                slat = self.ours.ask_together(&[request.id], &[*request]);
                // The transaction deletes the slot, so that one is none of its reasons.
                if number(&slat) != kvm {
                    explained.push(self.explain(request, None, kvm, slat)?);
                }
            }
        }
        if slat.is_ok() {
            self.note(request);
        }
        if number(&slat) != kvm {
            self.lead_kvm(&[request.id]);
        }
        Ok(Answers {
            kvm,
            slat: first,
            explained,
        })
    }

    /// Asks slat for all at once, KVM for one after the other.
    fn ask_together(
        &mut self,
        deletes: &[u32],
        creates: &[Request],
    ) -> Result<Answers, Unexplained> {
        let deletions = deletes.iter().map(|id| Request::deletion(*id));
        let requests: Vec<_> = deletions.chain(creates.iter().copied()).collect();
        let kvm = requests
            .iter()
            .try_for_each(|request| self.ask_kvm(request));
        let slat = self.ours.ask_together(deletes, creates);
        if number(&slat) != kvm {
            return Err(self.unexplained(requests[0].id, kvm, slat));
        }
        if slat.is_ok() {
            for request in &requests {
                self.note(request);
            }
        } else {
            // KVM has done all that came before the refusal, slat none of it.
            let ids: Vec<_> = requests.iter().map(|request| request.id).collect();
            self.lead_kvm(&ids);
        }
        Ok(Answers {
            kvm,
            slat: number(&slat),
            explained: Vec::new(),
        })
    }

    /// Checks that both hold the same slots and no others, and deletes them.
    pub(crate) fn audit(mut self) {
        self.ours.assert_holds(self.live.values());
        let slots: Vec<_> = self.live.values().copied().collect();
        for slot in &slots {
            // A slot's access cannot be changed, so KVM refuses this if it has the slot ...
            let mut other = *slot;
            other.flags ^= READ_ONLY;
            assert_eq!(self.kvm.ask(&other), Err(EINVAL), "KVM has no {slot}");
            // ... and does nothing for this if size and host address are the same.
            assert_eq!(self.kvm.ask(slot), Ok(()), "KVM has another {slot}");
            let answers = self.ask(&Request::deletion(slot.id));
            let answers = answers.expect("what both hold can be deleted");
            assert_eq!((answers.kvm, answers.slat), (Ok(()), Ok(())), "{slot}");
        }
        for space in 0..self.limits.spaces {
            for id in 0..self.limits.slot_ids {
                let deletion = Request::deletion(space << 16 | id);
                assert_eq!(self.kvm.ask(&deletion), Err(EINVAL), "KVM holds {id}");
            }
        }
    }

    fn ask_kvm(&mut self, request: &Request) -> Answer {
        self.kvm.ask(request)?;
        if request.is_deletion() {
            self.held.remove(&request.id);
        } else {
            self.held.insert(request.id);
        }
        Ok(())
    }

    /// Slat did what was asked.
    fn note(&mut self, request: &Request) {
        if request.is_deletion() {
            self.live.remove(&request.id);
        } else {
            let held = request.without_unknown_flags();
            self.live.insert(request.id, held);
        }
    }

    /// Makes KVM hold for `ids` what slat holds.
    fn lead_kvm(&mut self, ids: &[u32]) {
        let ids: BTreeSet<_> = ids.iter().copied().collect();
        for id in &ids {
            if self.held.contains(id) {
                let answer = self.ask_kvm(&Request::deletion(*id));
                answer.expect("KVM deletes what it holds");
            }
        }
        for id in &ids {
            if let Some(slot) = self.live.get(id).copied() {
                let answer = self.ask_kvm(&slot);
                answer.unwrap_or_else(|error| panic!("KVM refuses {slot} with error {error}"));
            }
        }
    }

    fn explain(
        &self,
        request: &Request,
        existing: Option<&Request>,
        kvm: Answer,
        slat: Result<(), TransactionError>,
    ) -> Result<Difference, Unexplained> {
        let mut others = self.live.values().filter(|slot| slot.id != request.id);
        let case = Case {
            request,
            existing,
            overlaps: others.any(|slot| slot.overlaps(request)),
            kvm,
            slat,
            kvm_bits: self.limits.guest_bits,
            host_end: self.limits.host_end,
        };
        let difference = case.explain();
        difference.ok_or_else(|| self.unexplained(request.id, kvm, slat))
    }

    fn unexplained(&self, id: u32, kvm: Answer, slat: Result<(), TransactionError>) -> Unexplained {
        let existing = self.live.get(&id).copied();
        Unexplained {
            kvm,
            slat,
            existing,
        }
    }
}

impl fmt::Display for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kvm,
            slat,
            existing,
        } = self;
        writeln!(f, "KVM answered  {kvm:?}")?;
        writeln!(f, "slat answered {:?}: {slat:?}", number(slat))?;
        match existing {
            Some(slot) => write!(f, "the slot was  {slot}"),
            None => write!(f, "there was no such slot"),
        }
    }
}
