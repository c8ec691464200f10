//! Fuzzes `hy2_fuzz::masquerade`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::masquerade::target(data));
