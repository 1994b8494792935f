//! The bodies of the fuzz targets, on inputs that need no fuzzer: those kept in `corpus`, and some
//! made from fixed seeds.

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
