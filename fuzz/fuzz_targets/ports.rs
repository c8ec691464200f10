//! Fuzzes `hy2_fuzz::ports`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::ports::target(data));
