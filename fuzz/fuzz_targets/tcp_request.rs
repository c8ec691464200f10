//! Fuzzes `hy2_fuzz::tcp_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::tcp_request::target(data));
