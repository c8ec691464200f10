//! Fuzzes `hy2_fuzz::padding`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::padding::target(data));
