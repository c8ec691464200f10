//! Fuzzes `hy2_fuzz::fragments`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::fragments::target(data));
