//! libFuzzer's way into [`slat_fuzz::scenario`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &str| slat_fuzz::scenario::run(input));
