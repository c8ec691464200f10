//! Moments, secrets and optional fields as JSON has them.

use secrecy::SecretString;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::domain::Timestamp;

/// A moment in RFC 3339: `2026-11-26T12:00:00Z`, milliseconds kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-11-26T12:00:00Z")]
pub struct Moment(pub Timestamp);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at = OffsetDateTime::parse(&text, &Rfc3339)
            .map_err(|_| D::Error::custom("not a moment in RFC 3339"))?;
        let ms = at.unix_timestamp_nanos() / 1_000_000;
        // An offset carries the first and the last hours over the edge.
        i64::try_from(ms)
            .ok()
            .map(Timestamp)
            .filter(|at| at.is_rfc_3339())
            .map(Self)
            .ok_or_else(|| D::Error::custom("not between the years 0 and 9999 in UTC"))
    }
}

impl From<Timestamp> for Moment {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}

/// A secret that comes in and never goes out: it prints and serialises as `***`.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Password)]
pub struct SecretText(pub SecretString);

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Reads a field of a change: `null` clears it, absent leaves it.
pub(crate) fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc_3339_both_ways() {
        let at: Moment = serde_json::from_str("\"2026-11-26T13:00:00.250+01:00\"").unwrap();
        assert_eq!(at.0, Timestamp(1_795_694_400_250));
        assert_eq!(
            serde_json::to_string(&at).unwrap(),
            "\"2026-11-26T12:00:00.25Z\""
        );
        for bad in [
            "\"yesterday\"",
            "5",
            "\"2026-11-26\"",
            "\"9999-12-31T23:59:59-00:01\"",
            "\"0000-01-01T00:00:00+00:01\"",
        ] {
            assert!(serde_json::from_str::<Moment>(bad).is_err(), "{bad}");
        }
    }
}
