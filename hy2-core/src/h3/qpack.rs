//! Field sections of HTTP/3 without a dynamic table (RFC 9204).
//!
//! Neither side of Hysteria uses the dynamic table, and neither do we: a section that needs it is refused, as the
//! reference's HTTP/3 stack refuses it. Strings are always written with the Huffman code, also as the reference does,
//! so the bytes we send are the bytes it would send for the same fields.

use bytes::BufMut;

use super::{huffman, static_table};

/// What each field adds to the size of a section besides its name and value (RFC 9114, section 4.2.2).
const FIELD_OVERHEAD: usize = 32;

/// One field of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Field {
    /// Returns the size of this field as HTTP/3 counts it.
    pub(super) fn size(&self) -> usize {
        self.name.len() + self.value.len() + FIELD_OVERHEAD
    }
}

/// Why a section could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// A reference to a table entry that does not exist, or a reference to the dynamic table.
    BadReference,
    /// The section ends inside a field, or an integer or a string is malformed.
    Malformed,
}

/// Writes a field section: the prefix, then each field.
///
/// Names must be lower case.
#[derive(Debug)]
pub(super) struct Encoder<B> {
    out: B,
}

impl<B: BufMut> Encoder<B> {
    /// Starts a section in `out`.
    pub(super) fn new(mut out: B) -> Self {
        // Required Insert Count 0, Base 0: no reference to a dynamic table.
        out.put_slice(&[0, 0]);
        Self { out }
    }

    /// Appends one field.
    pub(super) fn field(&mut self, name: &str, value: &[u8]) {
        match static_table::find(name, value) {
            Some((index, true)) => put_integer(0b1100_0000, 6, u64::from(index), &mut self.out),
            Some((index, false)) => {
                put_integer(0b0101_0000, 4, u64::from(index), &mut self.out);
                put_string(0b1000_0000, 7, value, &mut self.out);
            }
            None => {
                put_string(0b0010_1000, 3, name.as_bytes(), &mut self.out);
                put_string(0b1000_0000, 7, value, &mut self.out);
            }
        }
    }
}

fn put_string(pattern: u8, prefix: u32, text: &[u8], out: &mut impl BufMut) {
    put_integer(pattern, prefix, huffman::encoded_len(text) as u64, out);
    huffman::encode(text, out);
}

/// Writes an integer with a prefix of `prefix` bits (RFC 7541, section 5.1) below the bits of `pattern`.
fn put_integer(pattern: u8, prefix: u32, value: u64, out: &mut impl BufMut) {
    let full = (1u64 << prefix) - 1;
    if value < full {
        out.put_u8(pattern | value as u8);
        return;
    }
    out.put_u8(pattern | full as u8);
    let mut rest = value - full;
    while rest >= 0x80 {
        out.put_u8(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Reads the fields of one section in order.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    rest: &'a [u8],
    prefix_read: bool,
}

impl<'a> Decoder<'a> {
    /// Starts with a whole encoded section.
    pub(super) fn new(section: &'a [u8]) -> Self {
        Self {
            rest: section,
            prefix_read: false,
        }
    }

    /// Returns the next field, or `None` at the end.
    ///
    /// # Errors
    /// [`DecodeError`] for input that is not a section without dynamic table; nothing can be read after it.
    pub(super) fn next_field(&mut self) -> Result<Option<Field>, DecodeError> {
        if !self.prefix_read {
            let insert_count = self.integer(8)?;
            let base = self.integer(7)?;
            if insert_count != 0 || base != 0 {
                return Err(DecodeError::BadReference);
            }
            self.prefix_read = true;
        }
        let Some(&first) = self.rest.first() else {
            return Ok(None);
        };
        if first & 0x80 != 0 {
            let (name, value) = self.entry(first & 0x40 != 0, 6)?;
            Ok(Some(Field {
                name: name.into(),
                value: value.into(),
            }))
        } else if first & 0x40 != 0 {
            let (name, _) = self.entry(first & 0x10 != 0, 4)?;
            Ok(Some(Field {
                name: name.into(),
                value: self.string(7)?,
            }))
        } else if first & 0x20 != 0 {
            Ok(Some(Field {
                name: self.string(3)?,
                value: self.string(7)?,
            }))
        } else {
            Err(DecodeError::BadReference)
        }
    }

    fn entry(
        &mut self,
        is_static: bool,
        prefix: u32,
    ) -> Result<(&'static str, &'static str), DecodeError> {
        if !is_static {
            return Err(DecodeError::BadReference);
        }
        let index =
            usize::try_from(self.integer(prefix)?).map_err(|_| DecodeError::BadReference)?;
        static_table::ENTRIES
            .get(index)
            .copied()
            .ok_or(DecodeError::BadReference)
    }

    /// Reads a string whose Huffman flag stands right above a length of `prefix` bits.
    fn string(&mut self, prefix: u32) -> Result<Vec<u8>, DecodeError> {
        let coded = self.rest.first().ok_or(DecodeError::Malformed)? & (1 << prefix) != 0;
        let len = usize::try_from(self.integer(prefix)?).map_err(|_| DecodeError::Malformed)?;
        let (text, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(DecodeError::Malformed)?;
        self.rest = rest;
        if !coded {
            return Ok(text.into());
        }
        // The shortest code word has five bits.
        let mut plain = Vec::with_capacity(text.len() * 8 / 5);
        huffman::decode(text, &mut plain).map_err(|huffman::Invalid| DecodeError::Malformed)?;
        Ok(plain)
    }

    fn integer(&mut self, prefix: u32) -> Result<u64, DecodeError> {
        let (&first, mut rest) = self.rest.split_first().ok_or(DecodeError::Malformed)?;
        let full = (1u64 << prefix) - 1;
        let mut value = u64::from(first) & full;
        if value == full {
            let mut shift = 0;
            loop {
                let (&octet, after) = rest.split_first().ok_or(DecodeError::Malformed)?;
                rest = after;
                // Nine octets carry 63 bits; QPACK integers fit in 62 (RFC 9204, section 4.1.1).
                if shift > 56 {
                    return Err(DecodeError::Malformed);
                }
                value += u64::from(octet & 0x7f) << shift;
                shift += 7;
                if octet & 0x80 == 0 {
                    break;
                }
            }
        }
        self.rest = rest;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(section: &[u8]) -> Result<Vec<(String, String)>, DecodeError> {
        let mut decoder = Decoder::new(section);
        let mut fields = Vec::new();
        while let Some(field) = decoder.next_field()? {
            let text = |bytes| String::from_utf8(bytes).expect("test input is text");
            fields.push((text(field.name), text(field.value)));
        }
        Ok(fields)
    }

    /// RFC 9204, appendix B.1.
    #[test]
    fn literal_with_name_reference() {
        let section = hex::decode("0000510b2f696e6465782e68746d6c").expect("hex");
        assert_eq!(
            decode(&section),
            Ok(vec![(":path".into(), "/index.html".into())])
        );
    }

    /// The first fields of the official client's authentication request, as captured.
    #[test]
    fn opening_of_the_reference_auth_request() {
        let mut section = Vec::new();
        let mut encoder = Encoder::new(&mut section);
        encoder.field(":authority", b"hysteria");
        encoder.field(":method", b"POST");
        encoder.field(":path", b"/auth");
        encoder.field(":scheme", b"https");
        encoder.field("hysteria-auth", b"");
        assert_eq!(
            hex::encode(&section),
            "000050869fd2125b0c3fd451846076a67fd72f029fd2125b0c35876a6780"
        );
    }

    /// The head of the reference's 404 answer, as captured.
    #[test]
    fn head_of_the_reference_not_found_answer() {
        let mut section = Vec::new();
        let mut encoder = Encoder::new(&mut section);
        encoder.field(":status", b"404");
        encoder.field("content-type", b"text/plain; charset=utf-8");
        encoder.field("x-content-type-options", b"nosniff");
        assert_eq!(
            hex::encode(&section),
            "0000db5f1d92497ca58ae819aafb50938ec415305a99567bfd"
        );
    }

    #[test]
    fn dynamic_references_and_bad_indexes_are_refused() {
        for (section, error) in [
            (&[0x01, 0x00][..], DecodeError::BadReference),
            (&[0x00, 0x01], DecodeError::BadReference),
            (&[0, 0, 0x80], DecodeError::BadReference),
            (&[0, 0, 0x40, 0], DecodeError::BadReference),
            (&[0, 0, 0x10], DecodeError::BadReference),
            (&[0, 0, 0xff, 0x24], DecodeError::BadReference),
            (&[0, 0, 0xff], DecodeError::Malformed),
            (&[0, 0, 0x51, 0x05, b'/'], DecodeError::Malformed),
            (&[0, 0, 0x51, 0x81, 0x00], DecodeError::Malformed),
            (&[0], DecodeError::Malformed),
            (&[], DecodeError::Malformed),
            (
                &[
                    0, 0, 0x27, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
                ],
                DecodeError::Malformed,
            ),
        ] {
            assert_eq!(decode(section), Err(error), "{section:02x?}");
        }
        assert_eq!(
            decode(&[0, 0, 0xff, 0x23]).map(|fields| fields.len()),
            Ok(1),
            "98 is the last entry"
        );
    }

    proptest! {
        #[test]
        fn decoding_reverses_encoding(
            fields in proptest::collection::vec(("[a-z:][a-z-]{0,30}", "[ -~]{0,60}"), 0..20),
        ) {
            let mut section = Vec::new();
            let mut encoder = Encoder::new(&mut section);
            for (name, value) in &fields {
                encoder.field(name, value.as_bytes());
            }
            prop_assert_eq!(decode(&section), Ok(fields));
        }

        #[test]
        fn any_section_is_decoded_or_refused(section in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new(&section);
            while let Ok(Some(_)) = decoder.next_field() {}
        }
    }
}
