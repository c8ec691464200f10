//! Fuzzes `hy2_fuzz::udp_sessions`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::udp_sessions::target(data));
