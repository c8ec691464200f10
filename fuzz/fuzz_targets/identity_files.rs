//! Fuzzes `hy2_fuzz::identity_files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::identity_files::target(data));
