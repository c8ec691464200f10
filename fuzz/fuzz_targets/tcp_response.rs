//! Fuzzes `hy2_fuzz::tcp_response`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::tcp_response::target(data));
