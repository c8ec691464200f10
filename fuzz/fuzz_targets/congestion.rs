//! Fuzzes `hy2_fuzz::congestion`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::congestion::target(data));
