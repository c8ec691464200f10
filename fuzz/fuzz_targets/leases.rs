//! Fuzzes `hy2_fuzz::leases`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::leases::target(data));
