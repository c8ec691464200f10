//! Fuzzes `hy2_fuzz::client_answer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::client_answer::target(data));
