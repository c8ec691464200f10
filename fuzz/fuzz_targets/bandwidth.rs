//! Fuzzes `hy2_fuzz::bandwidth`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::bandwidth::target(data));
