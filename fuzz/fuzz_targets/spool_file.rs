//! Fuzzes `hy2_fuzz::spool_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::spool_file::target(data));
