//! Fuzzes `hy2_fuzz::brutal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::brutal::target(data));
