//! Amounts, rates, spans and moments as people write them, to JSON as the API has it.

use serde_json::{Value, json};
use time::{
    Date, Duration, OffsetDateTime, format_description::well_known::Rfc3339,
    macros::format_description,
};

/// Reads `100GiB`, `10GB`, `5000` (bytes).
pub(crate) fn bytes(text: &str) -> Result<Value, String> {
    const UNITS: &[(&str, u64)] = &[
        ("", 1),
        ("b", 1),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
    ];
    scaled(text, UNITS, 1).map_err(|()| "expected an amount like 100GiB or 10GB".to_owned())
}

/// Reads `100mbps` into bytes per second.
pub(crate) fn rate(text: &str) -> Result<Value, String> {
    const UNITS: &[(&str, u64)] = &[
        ("bps", 1),
        ("kbps", 1_000),
        ("mbps", 1_000_000),
        ("gbps", 1_000_000_000),
    ];
    scaled(text, UNITS, 8).map_err(|()| "expected a rate like 100mbps".to_owned())
}

/// Reads `30d`, `12h`, `15m`, `45s` into seconds.
pub(crate) fn seconds(text: &str) -> Result<Value, String> {
    span(text).map(|span| json!(span.whole_seconds()))
}

/// Reads a moment; a span of time means: from now on.
pub(crate) fn future(text: &str) -> Result<Value, String> {
    moment(text, 1)
}

/// Reads a moment; a span of time means: so long ago.
pub(crate) fn past(text: &str) -> Result<Value, String> {
    moment(text, -1)
}

/// Reads a number of at least 0.
pub(crate) fn number(text: &str) -> Result<Value, String> {
    let number = text.parse::<u32>();
    number
        .map(|n| json!(n))
        .map_err(|_| "expected a number".to_owned())
}

/// Reads a factor like `1.5` into billionths.
pub(crate) fn billionths(text: &str) -> Result<Value, String> {
    scaled(text, &[("", 1_000_000_000)], 1)
        .map_err(|()| "expected a factor like 1.5, with at most 9 decimals".to_owned())
}

/// Reads `40.7,-74`: degrees north and east.
pub(crate) fn location(text: &str) -> Result<Value, String> {
    let wrong = || "expected degrees north and east like 40.7,-74".to_owned();
    let (north, east) = text.split_once(',').ok_or_else(wrong)?;
    let degrees = |text: &str| text.trim().parse::<f64>().map_err(|_| wrong());
    let (north, east) = (degrees(north)?, degrees(east)?);
    if !north.is_finite() || !east.is_finite() {
        return Err(wrong());
    }
    Ok(json!([north, east]))
}

/// Reads any text.
#[expect(clippy::unnecessary_wraps, reason = "one kind of reader")]
pub(crate) fn text(text: &str) -> Result<Value, String> {
    Ok(json!(text))
}

/// Lets `none` clear a field.
pub(crate) fn or_none(
    read: fn(&str) -> Result<Value, String>,
) -> impl Fn(&str) -> Result<Value, String> + Clone + Send + Sync + 'static {
    move |text| match text {
        "none" => Ok(Value::Null),
        _ => read(text).map_err(|error| format!("{error}, or none")),
    }
}

fn scaled(text: &str, units: &[(&str, u64)], divisor: u64) -> Result<Value, ()> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (amount, unit) = text.split_at(digits);
    let (_, factor) = units
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .ok_or(())?;
    let (whole, part) = amount.split_once('.').unwrap_or((amount, "0"));
    let whole: u64 = whole.parse().map_err(|_| ())?;
    if part.is_empty() || part.len() > 9 {
        return Err(());
    }
    let scale = 10_u128.pow(u32::try_from(part.len()).map_err(|_| ())?);
    let part: u128 = part.parse().map_err(|_| ())?;
    // At most 2^64 times 10^9, and a unit may be 2^40: more than fits.
    let total = (u128::from(whole) * scale + part)
        .checked_mul(u128::from(*factor))
        .ok_or(())?;
    i64::try_from(total / scale / u128::from(divisor))
        .map(|total| json!(total))
        .map_err(|_| ())
}

fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a span like 30d, 12h, 15m or 45s".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let amount = &text[..text.len() - unit.len_utf8()];
    let amount: u32 = amount.parse().map_err(|_| wrong())?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    Ok(Duration::seconds(i64::from(amount) * factor))
}

fn moment(text: &str, sign: i32) -> Result<Value, String> {
    let date = format_description!("[year]-[month]-[day]");
    let at = if text == "now" {
        OffsetDateTime::now_utc()
    } else if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        at
    } else if let Ok(date) = Date::parse(text, &date) {
        date.midnight().assume_utc()
    } else if let Ok(span) = span(text) {
        OffsetDateTime::now_utc()
            .checked_add(span * sign)
            .ok_or("out of range")?
    } else {
        return Err(
            "expected a moment (2026-12-31, 2026-12-31T12:00:00Z) or a span (30d)".to_owned(),
        );
    };
    at.format(&Rfc3339)
        .map(|text| json!(text))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_degrees_north_and_east() {
        assert_eq!(location("40.7,-74"), Ok(json!([40.7, -74.0])));
        assert_eq!(location("-33.9, 151.2"), Ok(json!([-33.9, 151.2])));
        for text in ["", "40.7", "north,east", "NaN,0", "1,2,3", "1;2"] {
            assert!(location(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_and_rates_are_read_with_their_units() {
        for (text, expected) in [
            ("0", 0),
            ("5000", 5_000),
            ("10GB", 10_000_000_000_i64),
            ("1.5 GiB", 1_610_612_736),
            ("2tib", 2_199_023_255_552),
        ] {
            assert_eq!(bytes(text), Ok(json!(expected)), "{text}");
        }
        for text in [
            "",
            "GB",
            "1 apple",
            "-1",
            "1.GB",
            "99999999999TB",
            "1.1234567890GB",
            "18446744073709551615.000000001TiB",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert_eq!(rate("100mbps"), Ok(json!(12_500_000)));
        assert_eq!(rate("1.5 Gbps"), Ok(json!(187_500_000)));
        assert!(rate("100").is_err());
    }

    #[test]
    fn factors_are_read_to_the_last_decimal() {
        for (text, expected) in [
            ("1", 1_000_000_000_i64),
            ("0", 0),
            ("1.5", 1_500_000_000),
            ("0.000000001", 1),
            ("1000", 1_000_000_000_000),
        ] {
            assert_eq!(billionths(text), Ok(json!(expected)), "{text}");
        }
        for text in ["", "-1", "1x", "one", "0.0000000001", "1,5"] {
            assert!(billionths(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans_and_moments_are_read() {
        assert_eq!(seconds("2h"), Ok(json!(7_200)));
        assert!(seconds("2").is_err());
        assert!(seconds("2é").is_err());
        assert!(seconds("").is_err());
        assert_eq!(past("2026-12-31"), Ok(json!("2026-12-31T00:00:00Z")));
        assert_eq!(
            future("2026-12-31T01:00:00+01:00"),
            Ok(json!("2026-12-31T01:00:00+01:00"))
        );
        let read = |value: Result<Value, String>| {
            let text = value.unwrap();
            OffsetDateTime::parse(text.as_str().unwrap(), &Rfc3339).unwrap()
        };
        assert!(read(past("1d")) < OffsetDateTime::now_utc());
        assert!(read(future("1d")) > OffsetDateTime::now_utc());
        assert!(future("tomorrow").is_err());
    }

    #[test]
    fn none_clears() {
        assert_eq!(or_none(bytes)("none"), Ok(Value::Null));
        assert_eq!(or_none(bytes)("1"), Ok(json!(1)));
        assert!(or_none(bytes)("x").is_err());
    }
}
