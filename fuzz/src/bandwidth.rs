//! Bandwidths as text: `100 mbps`.
//!
//! Planted bug: a part of a byte was rounded up.

use hy2_proto::bandwidth::Bandwidth;

/// Parses the input as a bandwidth, and prints the rate that its first eight bytes make.
pub fn target(data: &[u8]) {
    if let Some(bytes) = data.first_chunk() {
        let rate = Bandwidth::from_bytes_per_sec(u64::from_le_bytes(*bytes));
        assert_eq!(rate.to_string().parse(), Ok(rate));
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let parsed = text.parse::<Bandwidth>();
    assert_eq!(parsed.ok().map(Bandwidth::bytes_per_sec), expected(text));
    if let Ok(rate) = parsed {
        assert_eq!(rate.to_string().parse(), Ok(rate));
        assert_eq!(text.to_ascii_uppercase().parse(), Ok(rate));
    }
}

/// Bytes per second by digits and the first letter of the unit.
fn expected(text: &str) -> Option<u64> {
    let text = text.trim();
    let number: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = text.strip_prefix(&number)?.trim().to_ascii_lowercase();
    let power = match unit.as_str() {
        "b" | "bps" => 0,
        "k" | "kb" | "kbps" => 1,
        "m" | "mb" | "mbps" => 2,
        "g" | "gb" | "gbps" => 3,
        "t" | "tb" | "tbps" => 4,
        _ => return None,
    };
    let bits = number
        .parse::<u128>()
        .ok()?
        .checked_mul(1000_u128.pow(power))?;
    u64::try_from(bits / 8).ok()
}
