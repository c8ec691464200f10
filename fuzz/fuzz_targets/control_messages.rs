//! Fuzzes `hy2_fuzz::control_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::control_messages::target(data));
