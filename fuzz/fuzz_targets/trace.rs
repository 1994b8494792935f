//! libFuzzer's way into [`slat_fuzz::trace`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| slat_fuzz::trace::run(input));
