//! Fuzzes `hy2_fuzz::counter_cells`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::counter_cells::target(data));
