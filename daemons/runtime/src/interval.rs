//! Spans of time in configuration files.

use std::time::Duration;

/// What [`interval`] wants.
const WRONG: &str = "must be between 100ms and 60m, such as \"10s\"";

/// Reads a span of time from 100 ms to an hour: `500ms`, `10s`, `2m`.
///
/// # Errors
///
/// What it has to look like.
pub fn interval(text: &str) -> Result<Duration, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(WRONG),
    };
    let number: u64 = number.parse().map_err(|_| WRONG)?;
    match number.checked_mul(scale) {
        Some(ms @ 100..=3_600_000) => Ok(Duration::from_millis(ms)),
        _ => Err(WRONG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_spans_of_time() {
        for (text, wanted) in [("500ms", 500), ("10s", 10_000), ("2m", 120_000)] {
            assert_eq!(interval(text), Ok(Duration::from_millis(wanted)));
        }
        for text in [
            "",
            "s",
            "10",
            "1h",
            "99ms",
            "61m",
            "-1s",
            "99999999999999999999s",
        ] {
            assert_eq!(interval(text), Err(WRONG), "{text}");
        }
    }
}
