//! Fuzzes `hy2_fuzz::enrolment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hy2_fuzz::enrolment::target(data));
