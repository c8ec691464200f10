//! Values of single rows: one that is of the wrong type is that row's mistake.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeOwned, Error, Unexpected, Visitor};
use serde_json::Value;

use super::Row;

/// Reads a row. One that cannot be read says which field is wrong.
pub(super) fn row_of<T: DeserializeOwned>(row: Value, into: impl FnOnce(T) -> Row) -> Row {
    // Fields have names: a list would be taken for them, in their order.
    if !row.is_object() {
        return failed(String::new(), "expected an object".to_owned());
    }
    match serde_path_to_error::deserialize(row) {
        Ok(read) => into(read),
        Err(error) => {
            let path = error.path().to_string();
            let field = if path == "." { String::new() } else { path };
            failed(field, error.inner().to_string())
        }
    }
}

/// Returns a row that makes nobody because of a field.
pub(super) fn failed(field: String, why: String) -> Row {
    Row {
        wrong: Some((field, why)),
        ..Row::default()
    }
}

/// Reads a whole number, also one that was written as a fraction: programs write `1.5e9` for what has many digits.
/// Null is none.
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    deserializer.deserialize_any(Whole)
}

/// Reads a length in seconds like [`whole`].
pub(super) fn whole_u32<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    let seconds = whole(deserializer)?.map(u32::try_from).transpose();
    seconds.map_err(|_| D::Error::custom(NO_LENGTH))
}

/// What a length in seconds is not.
pub(super) const NO_LENGTH: &str = "not a length in seconds";

/// Reads a whole number of a text as [`whole`] does.
pub(super) fn whole_of(text: &str) -> Option<i64> {
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => text.parse().ok().and_then(of_fraction),
    }
}

/// Returns what [`whole`] reads of a value that need not be a number.
pub(super) fn number_of(value: &Value) -> Option<i64> {
    whole(value).ok().flatten()
}

/// Returns a fraction without a remainder as the number that it is.
#[allow(
    clippy::cast_possible_truncation,
    reason = "without a remainder and within the bounds, which are exact: nothing is cut off"
)]
fn of_fraction(fraction: f64) -> Option<i64> {
    const BOUND: f64 = 9_223_372_036_854_775_808.0;
    let fits = fraction.fract() == 0.0 && (-BOUND..BOUND).contains(&fraction);
    fits.then_some(fraction as i64)
}

struct Whole;

impl<'de> Visitor<'de> for Whole {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_unit<E: Error>(self) -> Result<Option<i64>, E> {
        Ok(None)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Option<i64>, E> {
        Ok(Some(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Option<i64>, E> {
        let fits = i64::try_from(value).map(Some);
        fits.map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Option<i64>, E> {
        match of_fraction(value) {
            Some(whole) => Ok(Some(whole)),
            None => Err(E::invalid_value(Unexpected::Float(value), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fractions_without_a_remainder_are_whole_numbers() {
        for (value, want) in [
            (json!(5), Some(5)),
            (json!(1.5e9), Some(1_500_000_000)),
            (json!(-3.0), Some(-3)),
            (json!(i64::MAX), Some(i64::MAX)),
            (json!(-9_223_372_036_854_775_808.0), Some(i64::MIN)),
            (json!(9_223_372_036_854_775_808.0), None),
            (json!(u64::MAX), None),
            (json!(1.5), None),
            (json!(1e300), None),
            (json!("5"), None),
            (json!(true), None),
            (json!(null), None),
            (json!([1]), None),
        ] {
            assert_eq!(number_of(&value), want, "{value}");
        }
        for (text, want) in [
            ("5", Some(5)),
            ("1.5E+09", Some(1_500_000_000)),
            ("9223372036854775807", Some(i64::MAX)),
            ("1.5", None),
            ("inf", None),
            ("nan", None),
            ("x", None),
        ] {
            assert_eq!(whole_of(text), want, "{text}");
        }
    }
}
