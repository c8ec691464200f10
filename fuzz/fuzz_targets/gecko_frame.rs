//! Fuzzes `hy2_fuzz::gecko_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::gecko_frame::target(data));
