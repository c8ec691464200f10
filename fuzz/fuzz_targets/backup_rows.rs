//! Fuzzes `hy2_fuzz::backup_rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::backup_rows::target(data));
