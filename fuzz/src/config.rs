//! Configuration files of the server and the client, in YAML and JSON.
//!
//! Planted bug: the number of a duration that no 64 bits hold was taken to be one.

use hy2_daemon::fuzzing;
use hy2_proto::uri::ShareUri;

/// Takes a byte that chooses format and side, and the text of a file.
pub fn target(data: &[u8]) {
    let [choice, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let json = choice & 1 != 0;
    let wrong = if choice & 2 == 0 {
        fuzzing::server(text, json).err()
    } else {
        match fuzzing::client(text, json, choice & 4 != 0) {
            Ok(link) => {
                let uri: ShareUri = link.parse().expect("a link to the server");
                assert_eq!(uri.to_string(), link);
                None
            }
            Err(wrong) => Some(wrong),
        }
    };
    let Some(wrong) = wrong else { return };
    // Each mistake is a place and a reason. Values may be quoted, and so may line breaks in them.
    assert!(!wrong.is_empty(), "refused without a reason");
    let first = wrong.lines().next().unwrap_or_default();
    assert!(first.contains(": "), "{wrong}");
}
