//! What the guest may find in memory: what it wrote last, or what was there at first.
//!
//! Each guest CPU owns one word of every page and remembers what it wrote there, by the host
//! virtual address behind it. A read must find that. While the host does something that takes
//! contents away (a discard, an unmapping), both the old and the first contents are allowed; what
//! is written meanwhile may stay or go. Device memory keeps its values through everything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use slat_table::address::{Hva, HvaRange, PAGE_SIZE};

use super::Finding;
use super::plan::{Backing, Plan};
use crate::event::Cpu;
use crate::lock::brief;

/// What is known of all contents.
pub(crate) struct Contents {
    first: Vec<(HvaRange, First)>,
    state: Mutex<State>,
}

/// What a mapping holds before anybody has written to it.
enum First {
    Zeros,
    Image(Arc<[u8]>),
    /// A device's own.
    Unknown,
}

#[derive(Default)]
struct State {
    /// Every value that may be in a CPU's word of a page.
    allowed: BTreeMap<(u64, Cpu), Vec<u64>>,
    /// The changes under way that take contents away.
    going: Vec<(u64, HvaRange)>,
    changes: u64,
}

/// A change under way that takes contents away.
#[must_use = "contents are uncertain until it is ended"]
pub(crate) struct Going(u64);

impl Contents {
    pub(crate) fn new(plan: &Plan) -> Self {
        let first = |mapping: &super::plan::Mapping| {
            let range = HvaRange::new(Hva::new(mapping.hva), mapping.bytes).ok()?;
            let first = match &mapping.backing {
                Backing::Anonymous => First::Zeros,
                Backing::Image(bytes) => First::Image(Arc::clone(bytes)),
                Backing::Device { .. } | Backing::Revocable { .. } => First::Unknown,
            };
            Some((range, first))
        };
        Self {
            first: plan.mappings.iter().filter_map(first).collect(),
            state: Mutex::default(),
        }
    }

    /// What `cpu`'s word of the page at `hva` holds at first; `None` if nobody knows.
    fn first(&self, hva: u64, cpu: Cpu) -> Option<u64> {
        let at = Hva::new(hva);
        let (range, first) = self.first.iter().find(|(range, _)| range.contains(at))?;
        match first {
            First::Zeros => Some(0),
            First::Unknown => None,
            First::Image(bytes) => {
                let offset = hva - range.start().raw() + word(cpu);
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let mut value = [0; 8];
                let there = bytes.get(from..).unwrap_or(&[]);
                for (into, byte) in value.iter_mut().zip(there) {
                    *into = *byte;
                }
                Some(u64::from_le_bytes(value))
            }
        }
    }

    /// `cpu` wrote `value` to its word of one of the pages at `hvas`: of the only one, if there is
    /// one.
    pub(crate) fn wrote(&self, cpu: Cpu, hvas: &[u64], value: u64) {
        let state = &mut *brief(&self.state);
        for hva in hvas {
            let sure = hvas.len() == 1 && !state.is_going(*hva);
            let known = state.allowed.contains_key(&(*hva, cpu));
            let first = self.first(*hva, cpu);
            if !sure && !known && first.is_none() {
                // What a device held may still be there, and nobody knows what it was.
                continue;
            }
            let first = || first.into_iter().collect();
            let allowed = state.allowed.entry((*hva, cpu)).or_insert_with(first);
            if sure {
                allowed.clear();
            }
            allowed.push(value);
        }
    }

    /// `cpu` read `value` from its word of the page at `hva`.
    pub(crate) fn read(&self, cpu: Cpu, hva: u64, value: u64) -> Result<(), Finding> {
        let state = &mut *brief(&self.state);
        let going = state.is_going(hva);
        let first = self.first(hva, cpu);
        let Some(allowed) = state.allowed.get_mut(&(hva, cpu)) else {
            // A device tells what it holds by the first read.
            if let Some(first) = first.filter(|first| *first != value) {
                return Err(wrong(cpu, hva, value, &[first]));
            }
            state.allowed.insert((hva, cpu), vec![value]);
            return Ok(());
        };
        if !allowed.contains(&value) {
            return Err(wrong(cpu, hva, value, allowed));
        }
        if !going {
            *allowed = vec![value];
        }
        Ok(())
    }

    /// A change that takes the contents of `range` away begins.
    pub(crate) fn go(&self, range: HvaRange) -> Going {
        let state = &mut *brief(&self.state);
        state.changes += 1;
        state.going.push((state.changes, range));
        let (start, end) = (range.start().raw(), range.end().raw());
        for ((hva, cpu), allowed) in state.allowed.range_mut((start, 0)..(end, 0)) {
            // A device's contents go nowhere.
            if let Some(first) = self.first(*hva, *cpu)
                && !allowed.contains(&first)
            {
                allowed.push(first);
            }
        }
        Going(state.changes)
    }

    /// The change is over.
    pub(crate) fn gone(&self, Going(change): Going) {
        brief(&self.state)
            .going
            .retain(|(known, _)| *known != change);
    }
}

impl State {
    fn is_going(&self, hva: u64) -> bool {
        let at = Hva::new(hva);
        self.going.iter().any(|(_, range)| range.contains(at))
    }
}

/// Bytes from a page's start to the word that `cpu` owns.
pub(crate) fn word(cpu: Cpu) -> u64 {
    u64::from(cpu) * 8 % PAGE_SIZE
}

fn wrong(cpu: Cpu, hva: u64, value: u64, allowed: &[u64]) -> Finding {
    let allowed: Vec<_> = allowed.iter().map(|value| format!("{value:#x}")).collect();
    let story = format!(
        "CPU {cpu} read {value:#x} from its word of the page behind {hva:#x}, where it left {}",
        allowed.join(" or ")
    );
    Finding::new("lost-contents", story)
}

#[cfg(test)]
mod tests {
    use super::super::plan::Mapping;
    use super::*;

    const RAM: u64 = 0x1000_0000;
    const DEVICE: u64 = 0x2000_0000;

    fn contents() -> Contents {
        let mapping = |hva, backing| Mapping {
            name: String::new(),
            hva,
            bytes: 1 << 20,
            writable: true,
            backing,
        };
        Contents::new(&Plan::of_mappings(vec![
            mapping(RAM, Backing::Anonymous),
            mapping(DEVICE, Backing::Device { hpa: 0 }),
        ]))
    }

    #[test]
    fn a_read_finds_what_was_written_and_nothing_else() {
        let contents = contents();
        assert!(contents.read(1, RAM, 0).is_ok());
        contents.wrote(1, &[RAM], 7);
        assert!(contents.read(1, RAM, 7).is_ok());
        assert!(contents.read(1, RAM, 0).is_err());
        assert!(contents.read(2, RAM, 7).is_err());
    }

    #[test]
    fn a_discard_allows_zeros_and_what_was_written_meanwhile() {
        let contents = contents();
        contents.wrote(1, &[RAM], 7);
        let range = HvaRange::new(Hva::new(RAM), PAGE_SIZE).unwrap();
        let going = contents.go(range);
        assert!(contents.read(1, RAM, 7).is_ok());
        contents.wrote(1, &[RAM], 8);
        assert!(contents.read(1, RAM, 0).is_ok());
        contents.gone(going);
        // What was found once the change is over is what there is.
        assert!(contents.read(1, RAM, 8).is_ok());
        assert!(contents.read(1, RAM, 0).is_err());
    }

    #[test]
    fn a_device_keeps_its_values() {
        let contents = contents();
        assert!(contents.read(1, DEVICE, 0x1234).is_ok());
        assert!(contents.read(1, DEVICE, 0).is_err());
        contents.wrote(1, &[DEVICE], 7);
        let range = HvaRange::new(Hva::new(DEVICE), PAGE_SIZE).unwrap();
        contents.gone(contents.go(range));
        assert!(contents.read(1, DEVICE, 0).is_err());
        assert!(contents.read(1, DEVICE, 7).is_ok());
    }
}
