//! Fuzzes `hy2_fuzz::salamander`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::salamander::target(data));
