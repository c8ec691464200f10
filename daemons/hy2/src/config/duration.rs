//! Durations as people write them in configuration files: `30s`, `1m30s`, `1.5h`, `500ms`.

use std::time::Duration;

/// Units and their nanoseconds; longer names first where one begins another.
const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Parses a duration in the form of the reference's language: numbers with units, in a row.
/// Negative ones are refused.
///
/// # Errors
///
/// What a duration must look like.
pub(super) fn parse(text: &str) -> Result<Duration, &'static str> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.starts_with('-') {
        return Err("a duration cannot be negative");
    }
    if rest.is_empty() {
        return Err(SHAPE);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or("a duration needs a unit, such as \"30s\"")?;
        let (number, tail) = rest.split_at(digits);
        let (name, scale) = UNITS
            .iter()
            .filter(|(name, _)| tail.starts_with(name))
            // "m" also begins "ms".
            .max_by_key(|(name, _)| name.len())
            .ok_or(SHAPE)?;
        total = total.checked_add(scaled(number, *scale)?).ok_or(TOO_LONG)?;
        rest = tail.strip_prefix(name).unwrap_or_default();
    }
    Ok(total)
}

const SHAPE: &str = "must be a duration such as \"30s\" or \"1m30s\"";
const TOO_LONG: &str = "the duration is too long";

/// Reads a decimal number of units of `scale` nanoseconds.
fn scaled(number: &str, scale: u64) -> Result<Duration, &'static str> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(SHAPE);
    }
    let whole: u64 = match whole {
        "" => 0,
        digits => digits.parse().map_err(|_| TOO_LONG)?,
    };
    let mut nanos = whole.checked_mul(scale).ok_or(TOO_LONG)?;
    let mut place = scale;
    for digit in fraction.chars().filter_map(|c| c.to_digit(10)) {
        place /= 10;
        nanos = nanos
            .checked_add(place * u64::from(digit))
            .ok_or(TOO_LONG)?;
    }
    Ok(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted() {
        for (text, nanos) in [
            ("0", 0),
            ("30s", 30_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("500ms", 500_000_000),
            ("2h3m4s5ms6us7ns", 7_384_005_006_007),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+3µs", 3_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1x",
            "1 s",
            "1..5s",
            ".s",
            "1d",
            "99999999999h",
            "1s2",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
