//! Fuzzes `hy2_fuzz::speedtest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::speedtest::target(data));
