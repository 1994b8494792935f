//! What the host says, told to the machine's witness; and a host that is slow, busy, and fond of
//! small blocks.
//!
//! [`Disturber`] stands between guest memory and its host. What the host answers is what the guest
//! may reach from then on, so every answer becomes an [`Event::Answered`], and every notice the
//! three events of its life.
//!
//! An answer is a fact of the moment at which the host looked, and other CPUs may run between that
//! moment and the one at which it is told. What it said stays true until a notice has *begun*, that
//! is, until guest memory has been told. So an answer is told only as far as none has begun, and
//! not ended, since it was asked for; and not as a read-only one where a writable one was told
//! meanwhile.

use core::fmt;
use std::sync::{Arc, Mutex};

use slat::host::{HostPage, PageKind, ResolveError};
use slat_mm::interpose::{Interpose, Question};
use slat_table::address::{Hva, HvaRange};
use slat_table::attributes::Access;

use crate::address;
use crate::event::{Event, Vm};
use crate::lock::brief;
use crate::machine::Machine;
use crate::random::Random;
use crate::schedule::{cpu, in_task, is_stopped, point};

/// How often the host disturbs, each one in so many times; `None` is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disturbance {
    /// Refuses to answer because it is busy.
    pub busy: Option<usize>,
    /// Refuses a fault for lack of memory.
    pub no_memory: Option<usize>,
    /// Answers with a smaller block than it has.
    pub narrow: Option<usize>,
}

/// Tells a machine what a host says, and disturbs.
pub struct Disturber {
    machine: Arc<Machine>,
    vm: Vm,
    disturbance: Disturbance,
    page: u64,
    state: Mutex<State>,
}

struct State {
    random: Random,
    asked: u64,
    /// The questions that are being answered.
    open: Vec<OpenQuestion>,
    /// The notices under way, and whether they have begun.
    notices: Vec<(u64, HvaRange, bool)>,
}

struct OpenQuestion {
    number: u64,
    /// What notices covered that have begun and not ended since it was asked.
    overtaken: Vec<HvaRange>,
    /// What was answered as writable since it was asked.
    writable: Vec<HvaRange>,
}

impl Disturber {
    /// Tells `machine` what the host of `vm` says. No answer is narrowed to less than `page` bytes.
    /// Every disturbance comes from `seed`.
    pub fn new(
        machine: Arc<Machine>,
        vm: Vm,
        disturbance: Disturbance,
        page: u64,
        seed: u64,
    ) -> Self {
        Self {
            machine,
            vm,
            disturbance,
            page,
            state: Mutex::new(State {
                random: Random::new(seed),
                asked: 0,
                open: Vec::new(),
                notices: Vec::new(),
            }),
        }
    }

    /// Whether something that happens one in `n` times happens now.
    fn happens(&self, n: Option<usize>) -> bool {
        // Setting up, and what runs after the end, is left in peace.
        in_task() && !is_stopped() && n.is_some_and(|n| brief(&self.state).random.one_in(n))
    }

    fn refusal(&self, question: Question, hva: Hva) -> Option<ResolveError> {
        if self.happens(self.disturbance.busy) {
            return Some(ResolveError::Busy(hva));
        }
        (question == Question::Fault && self.happens(self.disturbance.no_memory))
            .then_some(ResolveError::NoMemory(hva))
    }

    fn tell(&self, page: &HostPage, part: HvaRange) {
        let skipped = part.start().raw() - page.block.start().raw();
        let event = Event::Answered {
            vm: self.vm,
            hva: address::Hva(part.start().raw()),
            bytes: part.bytes(),
            hpa: address::Hpa(page.hpa.raw() + skipped),
            writable: page.writable,
            device: page.kind == PageKind::Pfnmap,
        };
        self.machine.note(cpu(), event);
    }
}

impl Interpose for Disturber {
    fn asked(&self, question: Question, hva: Hva, _: Access) -> Result<u64, ResolveError> {
        point();
        if let Some(refusal) = self.refusal(question, hva) {
            return Err(refusal);
        }
        let mut state = brief(&self.state);
        state.asked += 1;
        let number = state.asked;
        let begun = state.notices.iter().filter(|(.., begun)| *begun);
        let overtaken = begun.map(|(_, range, _)| *range).collect();
        state.open.push(OpenQuestion {
            number,
            overtaken,
            writable: Vec::new(),
        });
        Ok(number)
    }

    fn narrow(&self, hva: Hva, page: &HostPage) -> HvaRange {
        if page.block.bytes() <= self.page || !self.happens(self.disturbance.narrow) {
            return page.block;
        }
        let sizes = page.block.bytes().ilog2() - self.page.ilog2();
        let shift = brief(&self.state).random.below(sizes.max(1) as usize);
        HvaRange::block_around(hva, self.page << shift).unwrap_or(page.block)
    }

    fn answered(&self, number: u64, answer: &Result<HostPage, ResolveError>) {
        // No point may come before the answer is told.
        let mut told = Vec::new();
        {
            let mut state = brief(&self.state);
            let Some(at) = state.open.iter().position(|open| open.number == number) else {
                return;
            };
            let question = state.open.swap_remove(at);
            if let Ok(page) = answer {
                told.push(page.block);
                let weaker = question.writable.iter().filter(|_| !page.writable);
                for range in question.overtaken.iter().chain(weaker) {
                    told = told.iter().flat_map(|part| without(part, range)).collect();
                }
                if page.writable {
                    for open in &mut state.open {
                        open.writable.extend(&told);
                    }
                }
            }
        }
        if let Ok(page) = answer {
            for part in told {
                self.tell(page, part);
            }
        }
        // The host may take its time to bring the answer over.
        point();
    }

    fn beginning(&self, notice: u64, range: HvaRange) {
        brief(&self.state).notices.push((notice, range, false));
        let event = Event::NoticeBeginning {
            notice,
            vm: self.vm,
            hva: address::Hva(range.start().raw()),
            bytes: range.bytes(),
        };
        self.machine.note(cpu(), event);
        point();
    }

    fn begun(&self, notice: u64) {
        {
            let State { open, notices, .. } = &mut *brief(&self.state);
            for (_, range, begun) in notices.iter_mut().filter(|(known, ..)| *known == notice) {
                *begun = true;
                for question in &mut *open {
                    question.overtaken.push(*range);
                }
            }
        }
        self.machine.note(cpu(), Event::NoticeBegun { notice });
        point();
    }

    fn ended(&self, notice: u64) {
        point();
        brief(&self.state)
            .notices
            .retain(|(known, ..)| *known != notice);
        self.machine.note(cpu(), Event::NoticeEnded { notice });
    }
}

/// What is left of `part` without `range`: nothing, one piece or two.
fn without(part: &HvaRange, range: &HvaRange) -> impl Iterator<Item = HvaRange> + use<> {
    let (before, after) = if part.overlaps(range) {
        (
            HvaRange::between(part.start(), range.start()),
            HvaRange::between(range.end(), part.end()),
        )
    } else {
        (Some(*part), None)
    };
    before.into_iter().chain(after)
}

impl fmt::Debug for Disturber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disturber")
            .field("vm", &self.vm)
            .field("disturbance", &self.disturbance)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_range_is_what_the_other_does_not_have() {
        let range = |start, end| HvaRange::between(Hva::new(start << 12), Hva::new(end << 12));
        let left = |start, end| -> Vec<_> {
            let (Some(part), Some(range)) = (range(2, 6), range(start, end)) else {
                panic!("ranges of pages")
            };
            without(&part, &range).collect()
        };
        let pieces = |pieces: &[(u64, u64)]| -> Vec<_> {
            let pieces = pieces.iter();
            pieces
                .filter_map(|(start, end)| range(*start, *end))
                .collect()
        };
        assert_eq!(left(0, 2), pieces(&[(2, 6)]));
        assert_eq!(left(0, 3), pieces(&[(3, 6)]));
        assert_eq!(left(3, 4), pieces(&[(2, 3), (4, 6)]));
        assert_eq!(left(5, 9), pieces(&[(2, 5)]));
        assert_eq!(left(2, 6), pieces(&[]));
        assert_eq!(left(6, 9), pieces(&[(2, 6)]));
    }
}
