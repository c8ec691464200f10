//! Fuzzes `hy2_fuzz::address`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::address::target(data));
