//! Fuzzes `hy2_fuzz::backup_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::backup_file::target(data));
