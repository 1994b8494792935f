//! A host with somebody in between.

use std::sync::{Arc, Mutex};

use slat::host::{Host as _, HostPage, HostView as _, ResolveError};
use slat::notifier::{Notifier, Ticket};
use slat_mm::arena::Arena;
use slat_mm::interpose::{Interpose, Interposed, Question};
use slat_mm::{AddressSpace, Backing, Protection};
use slat_table::address::{Hpa, HpaRange, Hva, HvaRange, PAGE_SIZE};
use slat_table::attributes::Access;
use slat_table::lock::StdLocks;

const RAM: Hva = Hva::new(0x1000_0000);
const BLOCK: u64 = 2 << 20;

type Log = Arc<Mutex<Vec<String>>>;

/// Writes down what it is told, and does what it is asked to.
#[derive(Default)]
struct Between {
    log: Log,
    refuses: Mutex<bool>,
    narrows_to: Mutex<Option<HvaRange>>,
}

impl Interpose for Between {
    fn asked(&self, question: Question, hva: Hva, _: Access) -> Result<u64, ResolveError> {
        if *self.refuses.lock().unwrap() {
            return Err(ResolveError::Busy(hva));
        }
        self.log.lock().unwrap().push(format!("asked {question:?}"));
        Ok(7)
    }

    fn narrow(&self, _: Hva, page: &HostPage) -> HvaRange {
        self.narrows_to.lock().unwrap().unwrap_or(page.block)
    }

    fn answered(&self, number: u64, answer: &Result<HostPage, ResolveError>) {
        let bytes = answer.map(|page| page.block.bytes());
        let mut log = self.log.lock().unwrap();
        log.push(format!("answered {number} {}", bytes.unwrap_or(0)));
    }

    fn beginning(&self, notice: u64, _: HvaRange) {
        self.log.lock().unwrap().push(format!("beginning {notice}"));
    }

    fn begun(&self, notice: u64) {
        self.log.lock().unwrap().push(format!("begun {notice}"));
    }

    fn ended(&self, notice: u64) {
        self.log.lock().unwrap().push(format!("ended {notice}"));
    }
}

struct Listening(Log);

impl Notifier for Listening {
    fn begin(&self, _: HvaRange) -> Ticket {
        self.0.lock().unwrap().push("memory: begin".into());
        Ticket::nothing()
    }

    fn end(&self, _: Ticket) {
        self.0.lock().unwrap().push("memory: end".into());
    }

    fn age(&self, _: HvaRange) -> bool {
        true
    }

    fn test_young(&self, _: HvaRange) -> bool {
        true
    }

    fn release(&self) {
        self.0.lock().unwrap().push("memory: release".into());
    }
}

type Space = AddressSpace<Arc<Arena>, StdLocks>;

fn host() -> (Space, Interposed<Space, Between>, Arc<Between>) {
    let range = HpaRange::new(Hpa::new(0x4000_0000), 8 << 20).unwrap();
    let space = Space::new(Arc::new(Arena::new(range)));
    let ram = HvaRange::new(RAM, 2 * BLOCK).unwrap();
    space
        .map(ram, Protection::ReadWrite, Backing::Anonymous)
        .unwrap();
    let between = Arc::new(Between::default());
    let host = Interposed::new(space.clone(), Arc::clone(&between));
    (space, host, between)
}

fn taken(log: &Log) -> Vec<String> {
    core::mem::take(&mut *log.lock().unwrap())
}

#[test]
fn questions_and_answers_pass_by() {
    let (space, host, between) = host();
    let page = host.fault(RAM, Access::Write).unwrap();
    assert_eq!(Ok(page), space.fault(RAM, Access::Write));
    assert_eq!(host.view().peek(RAM, Access::Read), Ok(page));
    assert_eq!(
        host.view().find_vma(RAM).map(|vma| vma.range.bytes()),
        Some(2 * BLOCK)
    );
    let expected = [
        "asked Fault",
        "answered 7 2097152",
        "asked Peek",
        "answered 7 2097152",
    ];
    assert_eq!(taken(&between.log), expected);
}

#[test]
fn a_refusal_is_the_answer_and_the_host_is_not_asked() {
    let (space, host, between) = host();
    *between.refuses.lock().unwrap() = true;
    assert_eq!(host.fault(RAM, Access::Read), Err(ResolveError::Busy(RAM)));
    let peeked = host.view().peek(RAM, Access::Read);
    assert_eq!(peeked, Err(ResolveError::Busy(RAM)));
    assert_eq!(space.statistics().resident.bytes(), 0);
    assert!(taken(&between.log).is_empty());
}

#[test]
fn a_narrowed_block_stays_linear_and_inside_and_around_the_address() {
    let (_, host, between) = host();
    let whole = host.fault(RAM, Access::Read).unwrap();
    let asked = Hva::new(RAM.raw() + 5 * PAGE_SIZE);
    let narrowed = |start: u64, bytes| {
        let wanted = HvaRange::new(Hva::new(RAM.raw() - BLOCK + start), bytes).unwrap();
        *between.narrows_to.lock().unwrap() = Some(wanted);
        host.fault(asked, Access::Read).unwrap()
    };
    let page = narrowed(BLOCK + 5 * PAGE_SIZE, PAGE_SIZE);
    assert_eq!((page.block.start(), page.block.bytes()), (asked, PAGE_SIZE));
    assert_eq!(page.hpa.raw(), whole.hpa.raw() + 5 * PAGE_SIZE);
    // What reaches beyond the block is cut off.
    let page = narrowed(0, BLOCK + 6 * PAGE_SIZE);
    assert_eq!(page.block.start(), RAM);
    assert_eq!(page.block.bytes(), 6 * PAGE_SIZE);
    assert_eq!(page.hpa, whole.hpa);
    // A part without the address is no answer to the question.
    assert_eq!(narrowed(BLOCK, PAGE_SIZE), whole);
    assert_eq!(narrowed(3 * BLOCK, PAGE_SIZE), whole);
}

#[test]
fn a_notice_is_told_around_what_memory_hears() {
    let (space, host, between) = host();
    let memory = Arc::new(Listening(Arc::clone(&between.log)));
    let notifier: Arc<dyn Notifier> = memory;
    host.register(Arc::downgrade(&notifier));
    let page = HvaRange::new(RAM, PAGE_SIZE).unwrap();
    host.fault(RAM, Access::Write).unwrap();
    taken(&between.log);
    space.discard(page).unwrap();
    let expected = [
        "beginning 0",
        "memory: begin",
        "begun 0",
        "ended 0",
        "memory: end",
    ];
    assert_eq!(taken(&between.log), expected);
    assert!(space.age(page) && space.test_young(page));
    space.release();
    let expected = ["beginning 1", "memory: release", "begun 1", "ended 1"];
    assert_eq!(taken(&between.log), expected);
}

#[test]
fn memory_that_is_gone_hears_nothing() {
    let (space, host, between) = host();
    let memory: Arc<dyn Notifier> = Arc::new(Listening(Arc::clone(&between.log)));
    host.register(Arc::downgrade(&memory));
    drop(memory);
    host.fault(RAM, Access::Write).unwrap();
    taken(&between.log);
    space
        .discard(HvaRange::new(RAM, PAGE_SIZE).unwrap())
        .unwrap();
    assert!(taken(&between.log).is_empty());
    let page = HvaRange::new(RAM, PAGE_SIZE).unwrap();
    assert!(!space.age(page) && !space.test_young(page));
}
