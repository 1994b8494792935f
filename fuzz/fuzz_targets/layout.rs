//! libFuzzer's way into [`slat_fuzz::layout`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &str| slat_fuzz::layout::run(input));
