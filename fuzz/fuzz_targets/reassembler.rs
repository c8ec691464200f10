//! Fuzzes `hy2_fuzz::reassembler`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::reassembler::target(data));
