//! Fuzz targets: everything that a peer or a file can send.
//!
//! Each module is one target: a function over bytes that panics when a rule is broken. The rules
//! are stronger than "does not crash": what was decoded encodes to the same again, a prefix never
//! contradicts the whole, state machines agree with a plain model, limits hold. A module's text
//! names a bug that the target finds when it is planted (`planted/`); how long that takes is in
//! docs/fuzzing.md.
//!
//! `fuzz_targets/` wraps each target for libFuzzer; `tests/replay.rs` runs all of them over the
//! committed corpora with plain `cargo test`. The inputs of targets for state machines are
//! programs: one byte chooses a step, the bytes behind it are its arguments, read with
//! [`arbitrary::Unstructured`], which continues with zeros at the end of the input.

mod folder;

use arbitrary::Unstructured;
use hy2_proto::codec::DecodeError;

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// All targets by name.
        pub const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name::target)),*];
    };
}

targets! {
    address,
    admin_fields,
    auth_headers,
    backup_file,
    backup_rows,
    bandwidth,
    brutal,
    changeover,
    client_answer,
    client_datagrams,
    config,
    config_body,
    congestion,
    control_messages,
    counter_cells,
    daemon_config,
    enrolment,
    fragments,
    gecko_frame,
    gecko_reassembly,
    h3_section,
    h3_stream,
    http_inbound,
    identity_files,
    leases,
    ledger,
    masquerade,
    master_keys,
    master_tokens,
    node_config,
    obfuscated_socket,
    padding,
    ports,
    reassembler,
    salamander,
    share_uri,
    socks5,
    spool,
    spool_file,
    speedtest,
    tcp_request,
    tcp_response,
    udp_message,
    udp_sessions,
    user_import,
    varint,
}

/// Checks what every decoder of a stream promises: of a message that is there, each prefix is
/// incomplete; and what is invalid stays so, whatever follows.
///
/// `whole` is the outcome for `data`, with the bytes taken. Only some of the prefixes of long
/// inputs are tried.
fn check_prefixes<'a, T>(
    data: &'a [u8],
    whole: Result<usize, DecodeError>,
    decode: impl Fn(&'a [u8]) -> Result<T, DecodeError>,
) {
    let end = whole.unwrap_or(data.len());
    for len in (0..end).filter(|len| *len < 24 || *len + 4 > end || len % 61 == 0) {
        match decode(&data[..len]) {
            Ok(_) => panic!("{len} of {end} bytes are a whole message"),
            Err(DecodeError::Incomplete) => {}
            Err(error) => assert_eq!(Err(error), whole, "after {len} bytes"),
        }
    }
}

/// Takes up to `len` bytes off the front; fewer where the input ends.
fn take<'a>(input: &mut Unstructured<'a>, len: usize) -> &'a [u8] {
    input.bytes(len.min(input.len())).unwrap_or_default()
}

/// Reads one value; zero where the input ends.
fn read<'a, T: arbitrary::Arbitrary<'a> + Default>(input: &mut Unstructured<'a>) -> T {
    input.arbitrary().unwrap_or_default()
}

/// Bytes that differ by their place in a stream, so that a byte in a wrong place shows.
fn pattern(start: u64, len: usize) -> Vec<u8> {
    (start..)
        .take(len)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}
