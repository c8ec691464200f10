//! Fuzzes `hy2_fuzz::daemon_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::daemon_config::target(data));
