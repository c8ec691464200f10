//! Fuzzes `hy2_fuzz::obfuscated_socket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::obfuscated_socket::target(data));
