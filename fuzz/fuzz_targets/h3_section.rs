//! Fuzzes `hy2_fuzz::h3_section`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::h3_section::target(data));
