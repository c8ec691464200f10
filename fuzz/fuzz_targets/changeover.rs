//! Fuzzes `hy2_fuzz::changeover`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::changeover::target(data));
