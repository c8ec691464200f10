//! Fuzzes `hy2_fuzz::h3_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::h3_stream::target(data));
