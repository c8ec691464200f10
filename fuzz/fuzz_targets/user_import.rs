//! Fuzzes `hy2_fuzz::user_import`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::user_import::target(data));
