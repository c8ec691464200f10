//! Request paths made safe to use below a directory.

/// Decodes percent escapes; `None` when one is broken or the result holds a zero byte or is not text.
pub(super) fn decode(path: &str) -> Option<String> {
    let mut octets = path.bytes();
    let mut plain = Vec::with_capacity(path.len());
    while let Some(octet) = octets.next() {
        let octet = match octet {
            b'%' => {
                let digit = |octet: Option<u8>| char::from(octet?).to_digit(16);
                let value = digit(octets.next())? << 4 | digit(octets.next())?;
                u8::try_from(value).ok()?
            }
            octet => octet,
        };
        plain.push(octet);
    }
    String::from_utf8(plain)
        .ok()
        .filter(|text| !text.contains('\0'))
}

/// Returns the segments of a decoded path with `.` and `..` resolved; nothing leads above the first.
pub(super) fn segments(path: &str) -> Vec<&str> {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    segments
}

/// Escapes a name for use as a relative link.
pub(super) fn link(name: &str) -> String {
    // In the first segment of a relative link a colon would make a scheme of what stands before it.
    let mut out = String::from(if name.contains(':') { "./" } else { "" });
    for octet in name.bytes() {
        match octet {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(octet)),
            octet if b"-_.~$&+,:;=@".contains(&octet) => out.push(char::from(octet)),
            octet => out.push_str(&format!("%{octet:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_leads_above_the_root() {
        for (path, wanted) in [
            ("/", &[][..]),
            ("/a/b", &["a", "b"]),
            ("/a/../b", &["b"]),
            ("/../../etc/passwd", &["etc", "passwd"]),
            ("//a//./b/", &["a", "b"]),
            ("/a/..", &[]),
        ] {
            assert_eq!(segments(path), wanted, "{path}");
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(decode("/a%20b%2F%C4%8D").as_deref(), Some("/a b/č"));
        for broken in ["/%", "/%4", "/%zz", "/%00", "/%ff"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
        assert_eq!(link("a b?#č"), "a%20b%3F%23%C4%8D");
        assert_eq!(link("a:b"), "./a:b");
    }

    proptest! {
        #[test]
        fn decoding_reverses_encoding(name in "[^\0./][^\0/]{0,40}") {
            prop_assert_eq!(decode(link(&name).trim_start_matches("./")), Some(name));
        }

        #[test]
        fn segments_stay_below(path in ".{0,60}") {
            prop_assert!(segments(&path).iter().all(|segment| !["", ".", ".."].contains(segment) && !segment.contains('/')));
        }
    }
}
