//! Bandwidth in bytes per second, and the text that people write for it.

use std::fmt;
use std::str::FromStr;

/// A rate in bytes per second.
///
/// Files and links give it in bits per second with a decimal unit, as the reference does
/// (`app/internal/utils/bpsconv.go`): `100 mbps`, `2G`, `800 kbps`. A number without a unit is
/// refused, because nobody can tell what was meant.
///
/// # Examples
///
/// ```
/// use hy2_proto::bandwidth::Bandwidth;
///
/// let rate: Bandwidth = "100 mbps".parse()?;
/// assert_eq!(rate.bytes_per_sec(), 12_500_000);
/// assert_eq!(rate.to_string(), "100 mbps");
/// # Ok::<(), hy2_proto::bandwidth::BandwidthError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bandwidth(u64);

impl Bandwidth {
    /// No bytes per second. On the wire it stands for "unknown" (client) or "unlimited" (server).
    pub const ZERO: Self = Self(0);

    /// Makes a rate from bytes per second.
    #[must_use]
    pub const fn from_bytes_per_sec(bytes_per_sec: u64) -> Self {
        Self(bytes_per_sec)
    }

    /// Returns the rate in bytes per second.
    #[must_use]
    pub const fn bytes_per_sec(self) -> u64 {
        self.0
    }

    /// Returns whether the rate is zero, which usually means that none was given.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// Why a text is not a bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BandwidthError {
    /// The text does not start with a whole number.
    #[error("bandwidth must start with a whole number, as in \"100 mbps\"")]
    Number,
    /// The number is followed by no unit, or by one that does not exist.
    #[error("bandwidth unit must be one of bps, kbps, mbps, gbps, tbps")]
    Unit,
    /// The rate does not fit 64 bits of bytes per second.
    #[error("bandwidth is too large")]
    TooLarge,
}

/// Bits per second of each unit, with the spellings that the reference knows, largest first.
const UNITS: [(u128, [&str; 3]); 5] = [
    (1_000_000_000_000, ["tbps", "tb", "t"]),
    (1_000_000_000, ["gbps", "gb", "g"]),
    (1_000_000, ["mbps", "mb", "m"]),
    (1_000, ["kbps", "kb", "k"]),
    (1, ["bps", "b", "b"]),
];

impl FromStr for Bandwidth {
    type Err = BandwidthError;

    /// Parses a whole number of bits per second with a unit. Case and white space around the
    /// parts do not matter; a part of a byte is dropped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text
            .split_at_checked(digits)
            .ok_or(BandwidthError::Number)?;
        if number.is_empty() {
            return Err(BandwidthError::Number);
        }
        let unit = unit.trim();
        let (bits_per_unit, _) = UNITS
            .iter()
            .find(|(_, names)| names.iter().any(|name| name.eq_ignore_ascii_case(unit)))
            .ok_or(BandwidthError::Unit)?;
        // Digits only, so nothing but overflow can fail here and below.
        let number: u128 = number.parse().map_err(|_| BandwidthError::TooLarge)?;
        let bits = number
            .checked_mul(*bits_per_unit)
            .ok_or(BandwidthError::TooLarge)?;
        u64::try_from(bits / 8)
            .map(Self)
            .map_err(|_| BandwidthError::TooLarge)
    }
}

impl fmt::Display for Bandwidth {
    /// Writes bits per second in the largest unit that needs no fraction, so that the text parses
    /// back to the same value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from(self.0) * 8;
        let unit = UNITS
            .iter()
            .find(|(size, _)| bits >= *size && bits % size == 0);
        match unit {
            Some((size, [name, ..])) => write!(f, "{} {name}", bits / size),
            None => f.write_str("0 bps"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reference `bpsconv_test.go`.
    #[test]
    fn reference_vectors() {
        for (text, bytes) in [
            ("800 bps", 100),
            ("800 kbps", 100_000),
            ("800 mbps", 100_000_000),
            ("100m", 12_500_000),
            ("2G", 250_000_000),
        ] {
            assert_eq!(
                text.parse(),
                Ok(Bandwidth::from_bytes_per_sec(bytes)),
                "{text}"
            );
        }
        for (text, error) in [
            ("damn", BandwidthError::Number),
            ("6444", BandwidthError::Unit),
            ("5.4 mbps", BandwidthError::Unit),
            ("kbps", BandwidthError::Number),
            ("1234 5678 gbps", BandwidthError::Unit),
        ] {
            assert_eq!(text.parse::<Bandwidth>(), Err(error), "{text}");
        }
    }

    #[test]
    fn spaces_case_and_extremes() {
        assert_eq!(
            "  8 \tKbPs ".parse(),
            Ok(Bandwidth::from_bytes_per_sec(1000))
        );
        assert_eq!("7 bps".parse(), Ok(Bandwidth::ZERO));
        assert_eq!("".parse::<Bandwidth>(), Err(BandwidthError::Number));
        assert_eq!("-1 mbps".parse::<Bandwidth>(), Err(BandwidthError::Number));
        for huge in ["999999999 tbps", &format!("{} g", "9".repeat(60))] {
            assert_eq!(huge.parse::<Bandwidth>(), Err(BandwidthError::TooLarge));
        }
    }

    #[test]
    fn prints_the_largest_exact_unit() {
        for (bytes, text) in [
            (0, "0 bps"),
            (1, "8 bps"),
            (125, "1 kbps"),
            (126, "1008 bps"),
            (12_500_000, "100 mbps"),
            (250_000_000, "2 gbps"),
        ] {
            assert_eq!(Bandwidth::from_bytes_per_sec(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn print_and_parse(bytes: u64) {
            let rate = Bandwidth::from_bytes_per_sec(bytes);
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn any_text_is_judged(text in ".{0,30}") {
            let _ = text.parse::<Bandwidth>();
        }
    }
}
