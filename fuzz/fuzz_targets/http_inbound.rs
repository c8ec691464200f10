//! Fuzzes `hy2_fuzz::http_inbound`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::http_inbound::target(data));
