//! libFuzzer's way into [`slat_fuzz::region`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: slat_fuzz::region::Input| slat_fuzz::region::run(&input));
