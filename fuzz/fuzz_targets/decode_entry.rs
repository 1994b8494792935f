//! libFuzzer's way into [`slat_fuzz::decode_entry`].

#![no_main]

libfuzzer_sys::fuzz_target!(
    |input: slat_fuzz::decode_entry::Input| slat_fuzz::decode_entry::run(&input)
);
