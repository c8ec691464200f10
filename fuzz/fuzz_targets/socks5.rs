//! Fuzzes `hy2_fuzz::socks5`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::socks5::target(data));
