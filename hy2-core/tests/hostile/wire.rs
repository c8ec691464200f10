//! Bytes as an attacker writes them, by hand and without the limits of our encoders.

use hy2_core::proto::varint;

/// HTTP/3 frame types.
pub(crate) const DATA: u64 = 0x0;
pub(crate) const HEADERS: u64 = 0x1;
/// The frame type of a relay stream.
pub(crate) const RELAY: u64 = 0x401;

/// Concatenates varints.
pub(crate) fn varints(values: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        varint::encode(*value, &mut out);
    }
    out
}

pub(crate) fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [varints(&[kind, payload.len() as u64]), payload.to_vec()].concat()
}

/// A HEADERS frame with every name and value as a plain literal (RFC 9204, section 4.5.6).
pub(crate) fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = vec![0, 0];
    for (name, value) in fields {
        prefixed(0x20, 3, name.as_bytes(), &mut section);
        prefixed(0x00, 7, value.as_bytes(), &mut section);
    }
    frame(HEADERS, &section)
}

/// A string behind its length, an integer with a prefix of `bits` bits (RFC 7541, section 5.1).
fn prefixed(pattern: u8, bits: u32, text: &[u8], out: &mut Vec<u8>) {
    let most = (1usize << bits) - 1;
    if text.len() < most {
        out.push(pattern | text.len() as u8);
    } else {
        out.push(pattern | most as u8);
        let mut rest = text.len() - most;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(text);
}

pub(crate) fn request(
    method: &str,
    authority: &str,
    path: &str,
    extra: &[(&str, &str)],
) -> Vec<u8> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "https"),
        (":authority", authority),
        (":path", path),
    ];
    fields.extend_from_slice(extra);
    headers(&fields)
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    request("GET", "localhost", path, &[])
}

pub(crate) fn auth(credentials: &str) -> Vec<u8> {
    let fields = [("hysteria-auth", credentials), ("hysteria-cc-rx", "0")];
    request("POST", "hysteria", "/auth", &fields)
}

/// A relay request, with as much padding as is asked for.
pub(crate) fn relay(target: &str, padding: usize) -> Vec<u8> {
    let mut out = varints(&[RELAY, target.len() as u64]);
    out.extend_from_slice(target.as_bytes());
    out.extend(varints(&[padding as u64]));
    out.resize(out.len() + padding, b'p');
    out
}

/// A UDP message or a fragment of one, with an address length of its own.
pub(crate) fn udp(
    session: u32,
    packet: u16,
    fragment: (u8, u8),
    address: &str,
    data: &[u8],
) -> Vec<u8> {
    udp_claiming(
        session,
        packet,
        fragment,
        address.len() as u64,
        address,
        data,
    )
}

pub(crate) fn udp_claiming(
    session: u32,
    packet: u16,
    (index, count): (u8, u8),
    address_len: u64,
    address: &str,
    data: &[u8],
) -> Vec<u8> {
    let mut out = session.to_be_bytes().to_vec();
    out.extend(packet.to_be_bytes());
    out.extend([index, count]);
    out.extend(varints(&[address_len]));
    out.extend_from_slice(address.as_bytes());
    out.extend_from_slice(data);
    out
}
