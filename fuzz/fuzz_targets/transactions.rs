//! libFuzzer's way into [`slat_fuzz::transactions`].

#![no_main]

libfuzzer_sys::fuzz_target!(
    |input: slat_fuzz::transactions::Input| slat_fuzz::transactions::run(&input)
);
