//! Fuzzes `hy2_fuzz::udp_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::udp_message::target(data));
