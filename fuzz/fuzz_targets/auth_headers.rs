//! Fuzzes `hy2_fuzz::auth_headers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::auth_headers::target(data));
