//! Fuzzes `hy2_fuzz::client_datagrams`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::client_datagrams::target(data));
