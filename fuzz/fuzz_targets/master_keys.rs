//! Fuzzes `hy2_fuzz::master_keys`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::master_keys::target(data));
