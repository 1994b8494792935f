//! The bodies of the fuzz targets, on inputs that need no fuzzer: those kept in `corpus`, some made
//! from fixed seeds, and the project's own scenarios, layouts and traces, whole and damaged.

use std::fs;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Runs `body` on what `corpus` has for `target` and on `random` inputs of up to `bytes` bytes.
fn run<T: for<'a> Arbitrary<'a>>(target: &str, random: u64, bytes: usize, body: impl Fn(&T)) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    // A target without such inputs has no directory.
    let kept = fs::read_dir(directory).into_iter().flatten();
    for file in kept {
        let path = file.unwrap().path();
        println!("{}", path.display());
        body(&T::arbitrary_take_rest(Unstructured::new(&fs::read(path).unwrap())).unwrap());
    }
    for seed in 0..random {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut input = vec![0; bytes];
        random.fill_bytes(&mut input);
        println!("{target}: seed {seed}");
        if let Ok(input) = T::arbitrary_take_rest(Unstructured::new(&input)) {
            body(&input);
        }
    }
}

#[test]
fn entries_decode_and_encode_alike() {
    run("decode_entry", 20_000, 64, slat_fuzz::decode_entry::run);
}

#[test]
fn regions_are_accepted_if_they_keep_the_rules() {
    run("region", 20_000, 64, slat_fuzz::region::run);
}

#[test]
fn no_sequence_shows_the_guest_what_it_must_not_see() {
    run("transactions", 150, 900, slat_fuzz::transactions::run);
}

/// Runs `body` on every file in `directory` that ends like this, as it is and damaged in a few
/// places.
fn damage(directory: &str, ending: &str, body: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(directory);
    let mut files = 0;
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if !path.to_string_lossy().ends_with(ending) {
            continue;
        }
        files += 1;
        let whole = fs::read(&path).unwrap();
        body(&whole);
        for seed in 0..40 {
            println!("{} damaged by seed {seed}", path.display());
            body(&damaged(
                &whole,
                &mut Xoshiro256PlusPlus::seed_from_u64(seed),
            ));
        }
    }
    assert_ne!(files, 0, "no such examples");
}

/// What numbers and syntax are made of, and what no text holds.
const HARMFUL: &[u8] = b"0123456789xX_-+.,:\"'[]{}()=\n #\xff";

/// `whole` with a few bytes replaced, and a piece taken out or repeated.
fn damaged(whole: &[u8], random: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let mut below = |bound: usize| {
        usize::try_from(random.next_u64() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    };
    let mut bytes = whole.to_vec();
    for _ in 0..below(4) {
        let at = below(bytes.len());
        bytes[at] = HARMFUL[below(HARMFUL.len())];
    }
    let start = below(bytes.len());
    let piece = start..(start + below(200)).min(bytes.len());
    if below(2) == 0 {
        bytes.drain(piece);
    } else {
        let again = bytes[piece].to_vec();
        let at = below(bytes.len());
        bytes.splice(at..at, again);
    }
    bytes
}

#[test]
fn damaged_scenarios_are_read_or_refused() {
    damage("crates/slat-cli/examples", ".toml", |bytes| {
        slat_fuzz::scenario::run(&String::from_utf8_lossy(bytes));
    });
}

#[test]
fn damaged_layouts_are_read_or_refused() {
    damage("crates/slat-cli/examples", ".toml", |bytes| {
        slat_fuzz::layout::run(&String::from_utf8_lossy(bytes));
    });
}

#[test]
fn damaged_traces_are_judged_or_refused() {
    damage(
        "crates/slat-machine/tests/corpus",
        ".trace",
        slat_fuzz::trace::run,
    );
}
