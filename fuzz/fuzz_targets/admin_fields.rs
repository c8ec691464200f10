//! Fuzzes `hy2_fuzz::admin_fields`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::admin_fields::target(data));
