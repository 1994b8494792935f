//! The same requests to a real KVM and to slat: the same answers, down to the error number.
//!
//! Runs where there is a `/dev/kvm` that may be used, and says so where there is none. Random
//! operations on memory slots go to both; each answer is compared, and a difference is a failure
//! unless it is one of those that are meant ([`Difference`]). Each of those is shown by a test of
//! its own, too. `docs/kvm-differences.md` says why they are.
//!
//! `SLAT_KVM_OPERATIONS` and `SLAT_KVM_SEED` choose how many operations, and which.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod kvm;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::{env, io};

use slat::table::address::PAGE_SIZE;

use kvm::difference::Difference;
use kvm::generator::{Generator, Operation};
use kvm::ours::Mappings;
use kvm::real::{Limits, RealKvm};
use kvm::request::{LOG_DIRTY, READ_ONLY, Request};
use kvm::twin::{Answers, Twin};
use kvm::{Answer, EEXIST, EINVAL};

const EPERM: i32 = 1;
const EFAULT: i32 = 14;
const EOPNOTSUPP: i32 = 95;

/// Operations of an ordinary run.
const OPERATIONS: u64 = 5_000;

/// What `SLAT_KVM_SEED` is unless it is said.
const SEED: u64 = 1;

/// Prints past the test harness, which shows what a test prints only when it fails.
fn say(text: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Runs `test` on a new VM of both, or says why not.
fn with_twin(test: impl FnOnce(Twin, &Mappings)) {
    with_other_limits(|_| (), test);
}

/// The same, with slat's limits changed.
fn with_other_limits(change: impl FnOnce(&mut Limits), test: impl FnOnce(Twin, &Mappings)) {
    match RealKvm::open() {
        Ok(kvm) => {
            let mut limits = kvm.limits();
            change(&mut limits);
            let mappings = Mappings::new();
            test(Twin::new(kvm, limits, &mappings), &mappings);
        }
        Err(why) => say(&format!("no comparison with KVM: {why}")),
    }
}

/// Asks for each request in turn and expects exactly these answers.
fn shows(steps: impl FnOnce(&Mappings) -> Vec<(Request, Answers)>) {
    with_twin(|mut twin, mappings| {
        for (request, expected) in steps(mappings) {
            let found = twin.ask(&request);
            let found = found.unwrap_or_else(|error| panic!("{request}\n{error}"));
            assert_eq!(found, expected, "{request}");
        }
        twin.audit();
    });
}

fn same(answer: Answer) -> Answers {
    Answers {
        kvm: answer,
        slat: answer,
        explained: Vec::new(),
    }
}

fn different(kvm: Answer, slat: i32, why: Difference) -> Answers {
    Answers {
        kvm,
        slat: Err(slat),
        explained: vec![why],
    }
}

/// Four writable pages at `page`.
fn slot(id: u32, page: u64, mappings: &Mappings) -> Request {
    Request {
        id,
        flags: 0,
        gpa: page * PAGE_SIZE,
        bytes: 4 * PAGE_SIZE,
        hva: mappings.range(true).start().raw(),
    }
}

fn with_flags(mut request: Request, flags: u32) -> Request {
    request.flags = flags;
    request
}

fn at(mut request: Request, gpa: u64) -> Request {
    request.gpa = gpa;
    request
}

#[test]
fn a_request_that_is_repeated_is_nothing_in_kvm_and_einval_in_slat() {
    shows(|mappings| {
        let first = slot(1, 0, mappings);
        vec![
            (first, same(Ok(()))),
            (first, different(Ok(()), EINVAL, Difference::Repetition)),
        ]
    });
}

#[test]
fn a_change_of_flags_of_a_slot_is_einval_in_slat_and_a_transaction_does_it() {
    shows(|mappings| {
        let plain = with_flags(slot(1, 0, mappings), READ_ONLY);
        let logged = with_flags(plain, READ_ONLY | LOG_DIRTY);
        let changed = different(Ok(()), EINVAL, Difference::FlagChange);
        vec![
            (plain, same(Ok(()))),
            (logged, changed.clone()),
            (plain, changed),
            // The one flag that KVM does not let change either.
            (with_flags(plain, 0), same(Err(EINVAL))),
        ]
    });
}

#[test]
fn a_move_is_einval_in_slat_and_a_transaction_does_what_kvm_did() {
    shows(|mappings| {
        let moved = |answer| different(answer, EINVAL, Difference::Move);
        vec![
            (slot(1, 0, mappings), same(Ok(()))),
            (slot(2, 8, mappings), same(Ok(()))),
            // Over its own old place, over another slot, away from it.
            (slot(1, 2, mappings), moved(Ok(()))),
            (slot(1, 6, mappings), moved(Err(EEXIST))),
            (slot(1, 12, mappings), moved(Ok(()))),
        ]
    });
}

#[test]
fn kvm_logs_writes_and_slat_refuses_to() {
    shows(|mappings| {
        let logged = with_flags(slot(1, 0, mappings), LOG_DIRTY);
        let refused = different(Ok(()), EOPNOTSUPP, Difference::DirtyLogging);
        let unlogged = with_flags(logged, 0);
        let switched = Answers {
            kvm: Ok(()),
            slat: Err(EINVAL),
            explained: vec![Difference::FlagChange, Difference::DirtyLogging],
        };
        vec![
            (logged, refused),
            (unlogged, same(Ok(()))),
            (logged, switched),
        ]
    });
}

#[test]
fn kvm_on_x86_does_not_look_at_mappings_and_slat_does() {
    shows(|mappings| {
        let mut writable = slot(1, 0, mappings);
        writable.hva = mappings.range(false).start().raw();
        let refused = different(Ok(()), EPERM, Difference::UnwritableMapping);
        vec![
            (writable, refused),
            (with_flags(writable, READ_ONLY), same(Ok(()))),
        ]
    });
}

#[test]
fn a_slot_beyond_the_width_is_einval_in_kvm_on_x86_and_efault_in_slat() {
    with_twin(|mut twin, mappings| {
        let ends = [twin.limits().guest_bits, twin.guest_bits()];
        let [kvm_end, slat_end] = ends.map(|bits| 1 << bits);
        let refused = |kvm| different(kvm, EFAULT, Difference::AddressWidth);
        let beyond = at(slot(1, 0, mappings), kvm_end - 3 * PAGE_SIZE);
        assert_eq!(twin.ask(&beyond).unwrap(), refused(Err(EINVAL)));
        if slat_end < kvm_end {
            let between = at(beyond, slat_end - 3 * PAGE_SIZE);
            assert_eq!(twin.ask(&between).unwrap(), refused(Ok(())));
        }
        twin.audit();
    });
}

#[test]
fn the_width_is_judged_after_the_other_slots_by_both() {
    with_twin(|mut twin, mappings| {
        let end = 1 << twin.guest_bits();
        let last = at(slot(1, 0, mappings), end - 4 * PAGE_SIZE);
        assert_eq!(twin.ask(&last).unwrap(), same(Ok(())));
        let over = at(slot(2, 0, mappings), end - 2 * PAGE_SIZE);
        assert_eq!(twin.ask(&over).unwrap(), same(Err(EEXIST)));
        let mut longer = last;
        longer.bytes += PAGE_SIZE;
        assert_eq!(twin.ask(&longer).unwrap(), same(Err(EINVAL)));
        twin.audit();
    });
}

#[test]
fn a_slot_may_end_where_slat_s_addresses_end_and_kvm_agrees() {
    with_twin(|mut twin, mappings| {
        let end = 1 << twin.guest_bits();
        let last = at(slot(1, 0, mappings), end - 4 * PAGE_SIZE);
        assert_eq!(twin.ask(&last).unwrap(), same(Ok(())));
        twin.audit();
    });
}

#[test]
fn kvm_refuses_unknown_flags_and_slat_has_none() {
    shows(|mappings| {
        let unknown = with_flags(slot(1, 0, mappings), 1 << 7);
        let answers = Answers {
            kvm: Err(EINVAL),
            slat: Ok(()),
            explained: vec![Difference::UnknownFlag],
        };
        vec![(unknown, answers)]
    });
}

#[test]
fn kvm_checks_the_addresses_of_a_deletion_and_slat_s_has_none() {
    shows(|mappings| {
        let mut misplaced = Request::deletion(1);
        misplaced.hva = 1;
        let answers = Answers {
            kvm: Err(EINVAL),
            slat: Ok(()),
            explained: vec![Difference::PlaceOfDeletion],
        };
        vec![
            (slot(1, 0, mappings), same(Ok(()))),
            (misplaced, answers),
            (Request::deletion(1), same(Err(EINVAL))),
        ]
    });
}

#[test]
fn a_difference_that_is_not_explained_is_found() {
    let one_id_less = |limits: &mut Limits| limits.slot_ids -= 1;
    with_other_limits(one_id_less, |mut twin, mappings| {
        let id = twin.limits().slot_ids;
        let error = twin.ask(&slot(id, 0, mappings)).unwrap_err().to_string();
        assert!(error.contains("KVM answered  Ok(())"), "{error}");
        assert!(error.contains("slat answered Err(22)"), "{error}");
    });
}

/// How often each thing was answered, and each difference met.
#[derive(Default)]
struct Counts {
    answers: BTreeMap<String, u64>,
    differences: BTreeMap<Difference, u64>,
}

impl Counts {
    fn count(&mut self, operation: &Operation, answers: &Answers) {
        let kind = match operation {
            Operation::One(request) if request.is_deletion() => "delete",
            Operation::One(_) => "create or change",
            Operation::Together { .. } => "several at once",
        };
        let answer = match answers.kvm {
            Ok(()) => "done".to_owned(),
            Err(EINVAL) => "EINVAL".to_owned(),
            Err(EEXIST) => "EEXIST".to_owned(),
            Err(other) => format!("error {other}"),
        };
        let key = format!("{kind}: KVM {answer}");
        *self.answers.entry(key).or_default() += 1;
        for difference in &answers.explained {
            *self.differences.entry(*difference).or_default() += 1;
        }
    }

    /// How many operations KVM did.
    fn done(&self) -> u64 {
        let done = self.answers.iter().filter(|(key, _)| key.ends_with("done"));
        done.map(|(_, count)| count).sum()
    }

    fn say(&self) {
        for (what, count) in &self.answers {
            say(&format!("  {count:>8}  {what}"));
        }
        say("differences explained:");
        for difference in Difference::ALL {
            let count = self.differences.get(&difference).copied();
            say(&format!("  {:>8}  {difference}", count.unwrap_or(0)));
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    match env::var(variable) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is {value}, which is no number")),
        Err(_) => default,
    }
}

#[test]
fn random_operations_have_the_same_results_in_kvm_and_slat() {
    let operations = number("SLAT_KVM_OPERATIONS", OPERATIONS);
    let seed = number("SLAT_KVM_SEED", SEED);
    with_twin(|mut twin, mappings| {
        say(&format!("{operations} operations, SLAT_KVM_SEED={seed}"));
        let (limits, ours) = (twin.limits(), twin.guest_bits());
        say(&format!("{limits}; {ours} guest address bits in slat"));
        let mut generator = Generator::new(seed, &twin, mappings);
        let mut counts = Counts::default();
        for index in 0..operations {
            let operation = generator.next(twin.live());
            let answers = twin.apply(&operation).unwrap_or_else(|error| {
                panic!("SLAT_KVM_SEED={seed}, operation {index}: {operation:x?}\n{error}")
            });
            counts.count(&operation, &answers);
        }
        let live = twin.live().len();
        twin.audit();
        counts.say();
        say(&format!("{live} slots in the end, the same in both"));
        let done = counts.done();
        assert!(done >= operations / 5, "only {done} operations were done");
    });
}
