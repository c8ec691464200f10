//! The Huffman code of HPACK and QPACK (RFC 7541, Appendix B).
//!
//! The code is canonical: sorted by length and then by symbol, every code word is the previous one plus one.
//! So the table of lengths is the whole table, and the code words are computed from it at compile time.

use bytes::BufMut;

/// Symbols of the code: the 256 octets, and the end-of-string marker which never appears in valid input.
const SYMBOLS: usize = 257;
const EOS: u16 = 256;
/// Longest code word, in bits.
const MAX_BITS: usize = 30;

/// Length in bits of each symbol's code word.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Bits that decoding looks up at once. All code words of text but a few rare signs are shorter.
const WINDOW: u32 = 8;

/// What encoding and decoding need, derived from [`LENGTHS`].
struct Code {
    /// Code word of each symbol, right aligned.
    words: [u32; SYMBOLS],
    /// Symbols in canonical order.
    order: [u16; SYMBOLS],
    /// First code word of each length.
    first: [u32; MAX_BITS + 1],
    /// The code word behind the last of each length.
    end: [u32; MAX_BITS + 1],
    /// Position in `order` of the first symbol of each length.
    start: [u16; MAX_BITS + 1],
    /// Symbol and length of the code word that [`WINDOW`] bits begin with; length 0 if it is longer.
    short: [(u8, u8); 1 << WINDOW],
}

static CODE: Code = build();

#[allow(clippy::cast_possible_truncation)] // indices below 257 and lengths up to 30
const fn build() -> Code {
    let mut code = Code {
        words: [0; SYMBOLS],
        order: [0; SYMBOLS],
        first: [0; MAX_BITS + 1],
        end: [0; MAX_BITS + 1],
        start: [0; MAX_BITS + 1],
        short: [(0, 0); 1 << WINDOW],
    };
    let (mut word, mut placed, mut bits) = (0u32, 0usize, 1usize);
    while bits <= MAX_BITS {
        word <<= 1;
        code.first[bits] = word;
        code.start[bits] = placed as u16;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == bits {
                code.words[symbol] = word;
                code.order[placed] = symbol as u16;
                if bits <= WINDOW as usize {
                    let spare = WINDOW as usize - bits;
                    let mut rest = 0;
                    while rest < 1 << spare {
                        let place = ((word as usize) << spare) | rest;
                        code.short[place] = (symbol as u8, bits as u8);
                        rest += 1;
                    }
                }
                word += 1;
                placed += 1;
            }
            symbol += 1;
        }
        code.end[bits] = word;
        bits += 1;
    }
    code
}

/// Returns how many octets [`encode`] writes for `text`.
pub(super) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize = text
        .iter()
        .map(|&octet| usize::from(LENGTHS[usize::from(octet)]))
        .sum();
    bits.div_ceil(8)
}

/// Writes `text`, padded to a whole octet with the most significant bits of the end-of-string code (all ones).
pub(super) fn encode(text: &[u8], out: &mut impl BufMut) {
    let (mut pending, mut held) = (0u64, 0u32);
    for &octet in text {
        let symbol = usize::from(octet);
        pending = (pending << LENGTHS[symbol]) | u64::from(CODE.words[symbol]);
        held += u32::from(LENGTHS[symbol]);
        if held >= 32 {
            held -= 32;
            out.put_u32((pending >> held) as u32);
        }
    }
    while held >= 8 {
        held -= 8;
        out.put_u8((pending >> held) as u8);
    }
    if held > 0 {
        let padding = 8 - held;
        out.put_u8(((pending << padding) | ((1 << padding) - 1)) as u8);
    }
}

/// Appends the decoded octets to `out`.
///
/// # Errors
/// [`Invalid`] when the input holds the end-of-string code, or ends in padding that is longer than seven bits or
/// not all ones (RFC 7541, section 5.2).
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), Invalid> {
    // The low `held` bits of `pending` have not been decoded.
    let (mut pending, mut held, mut rest) = (0u64, 0u32, input);
    loop {
        while held <= u64::BITS - 8
            && let Some((octet, after)) = rest.split_first()
        {
            pending = (pending << 8) | u64::from(*octet);
            held += 8;
            rest = after;
        }
        // No code word is longer than what is held, unless the input ends in it.
        while held >= MAX_BITS as u32 {
            let (symbol, bits) = next_symbol(pending, held)?;
            out.push(symbol);
            held -= bits;
        }
        if rest.is_empty() {
            break;
        }
    }
    while held > 0 {
        // Behind the end everything is like padding, which no code word but that of the end begins with.
        let padded = (pending << MAX_BITS) | ((1 << MAX_BITS) - 1);
        match next_symbol(padded, held + MAX_BITS as u32) {
            Ok((symbol, bits)) if bits <= held => {
                out.push(symbol);
                held -= bits;
            }
            _ => break,
        }
    }
    let padding = (1u64 << held) - 1;
    if held < 8 && pending & padding == padding {
        Ok(())
    } else {
        Err(Invalid)
    }
}

/// Decodes the first of the low `held` bits of `pending`, [`MAX_BITS`] at least; returns the symbol and the length
/// of its code word.
#[inline]
fn next_symbol(pending: u64, held: u32) -> Result<(u8, u32), Invalid> {
    let (symbol, bits) = CODE.short[usize::from((pending >> (held - WINDOW)) as u8)];
    if bits > 0 {
        return Ok((symbol, bits.into()));
    }
    long_symbol(pending, held)
}

#[cold]
fn long_symbol(pending: u64, held: u32) -> Result<(u8, u32), Invalid> {
    for bits in WINDOW as usize + 1..=MAX_BITS {
        let word = (pending >> (held - bits as u32)) as u32 & ((1 << bits) - 1);
        if word < CODE.end[bits] {
            let at = usize::from(CODE.start[bits]) + (word - CODE.first[bits]) as usize;
            return match CODE.order[at] {
                EOS => Err(Invalid),
                symbol => Ok((symbol as u8, bits as u32)),
            };
        }
    }
    Err(Invalid)
}

/// The input is not Huffman coded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Invalid;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(text: &str) -> String {
        let mut out = Vec::new();
        encode(text.as_bytes(), &mut out);
        assert_eq!(out.len(), encoded_len(text.as_bytes()));
        hex::encode(out)
    }

    /// RFC 7541, appendices C.4 and C.6.
    #[test]
    fn examples_of_the_rfc() {
        assert_eq!(encoded("www.example.com"), "f1e3c2e5f23a6ba0ab90f4ff");
        assert_eq!(encoded("no-cache"), "a8eb10649cbf");
        assert_eq!(encoded("custom-key"), "25a849e95ba97d7f");
        assert_eq!(encoded("private"), "aec3771a4b");
        assert_eq!(
            encoded("Mon, 21 Oct 2013 20:13:21 GMT"),
            "d07abe941054d444a8200595040b8166e082a62d1bff"
        );
        assert_eq!(
            encoded("foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
            "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
        );
    }

    #[test]
    fn every_prefix_code_is_complete() {
        // Kraft: a complete code leaves no bit string unassigned, so decoding can only fail at the end or on EOS.
        let sum: u64 = LENGTHS
            .iter()
            .map(|&len| 1u64 << (MAX_BITS - usize::from(len)))
            .sum();
        assert_eq!(sum, 1 << MAX_BITS);
    }

    #[test]
    fn end_of_string_and_bad_padding_are_refused() {
        let mut out = Vec::new();
        assert_eq!(
            decode(&[0xff, 0xff, 0xff, 0xff], &mut out),
            Err(Invalid),
            "EOS"
        );
        assert_eq!(
            decode(&[0x1f, 0xff], &mut out),
            Err(Invalid),
            "padding of more than seven bits"
        );
        assert_eq!(decode(&[0x18], &mut out), Err(Invalid), "padding of zeros");
        assert_eq!(decode(&[0x1f], &mut out), Ok(()), "'a' is 00011");
        assert_eq!(out.last(), Some(&b'a'));
    }

    /// Looks for a code word after each bit.
    fn decode_by_definition(input: &[u8]) -> Result<Vec<u8>, Invalid> {
        let (mut out, mut word, mut bits) = (Vec::new(), 0, 0);
        for octet in input {
            for shift in (0..8).rev() {
                word = (word << 1) | u32::from((octet >> shift) & 1);
                bits += 1;
                let found = (0..SYMBOLS).find(|symbol| {
                    u32::from(LENGTHS[*symbol]) == bits && CODE.words[*symbol] == word
                });
                if let Some(symbol) = found {
                    out.push(u8::try_from(symbol).map_err(|_| Invalid)?);
                    (word, bits) = (0, 0);
                }
            }
        }
        let is_padding = bits < 8 && word == (1 << bits) - 1;
        if is_padding { Ok(out) } else { Err(Invalid) }
    }

    proptest! {
        /// Code words of every length, whole and cut off, behind each other.
        #[test]
        fn decoding_follows_the_definition(
            symbols in proptest::collection::vec(0..SYMBOLS, 0..20),
            noise in proptest::collection::vec(any::<u8>(), 0..5),
        ) {
            let (mut input, mut pending, mut held) = (Vec::new(), 0u64, 0);
            for symbol in symbols {
                // The marker is too rare to be met often, and nothing behind it is looked at.
                let symbol = if symbol == usize::from(EOS) { 0 } else { symbol };
                pending = (pending << LENGTHS[symbol]) | u64::from(CODE.words[symbol]);
                held += u32::from(LENGTHS[symbol]);
                while held >= 8 {
                    held -= 8;
                    input.push((pending >> held) as u8);
                }
            }
            input.extend(noise);
            let mut plain = Vec::new();
            let result = decode(&input, &mut plain).map(|()| plain);
            prop_assert_eq!(result, decode_by_definition(&input));
        }

        #[test]
        fn decoding_reverses_encoding(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut coded, mut plain) = (Vec::new(), Vec::new());
            encode(&text, &mut coded);
            prop_assert_eq!(decode(&coded, &mut plain), Ok(()));
            prop_assert_eq!(plain, text);
        }

        #[test]
        fn any_input_is_decoded_or_refused(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut plain = Vec::new();
            if decode(&input, &mut plain).is_ok() {
                let mut again = Vec::new();
                encode(&plain, &mut again);
                prop_assert_eq!(again, input);
            }
        }
    }
}
