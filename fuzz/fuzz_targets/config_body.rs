//! Fuzzes `hy2_fuzz::config_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::config_body::target(data));
