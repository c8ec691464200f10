//! Fuzzes `hy2_fuzz::share_uri`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::share_uri::target(data));
