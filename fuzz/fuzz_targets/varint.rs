//! Fuzzes `hy2_fuzz::varint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::varint::target(data));
