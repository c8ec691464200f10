//! Salamander: what a socket receives, and what it sends.
//!
//! Planted bug: the last byte stayed uncovered where 31 bytes are left over.

use arbitrary::Unstructured;
use hy2_proto::salamander::{MIN_PASSWORD_LEN, SALT_LEN, Salamander};

use crate::{read, take};

/// Takes a password and a datagram.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let password = usize::from(read::<u8>(&mut input) % 40);
    let password = take(&mut input, password);
    let datagram = input.take_rest();
    let Ok(salamander) = Salamander::new(password) else {
        assert!(password.len() < MIN_PASSWORD_LEN);
        return;
    };
    assert_eq!(salamander.is_weak(), password.len() < 16);

    let mut received = datagram.to_vec();
    let revealed = salamander.deobfuscate(&mut received).map(|it| it.to_vec());
    let Some((salt, payload)) = datagram.split_first_chunk::<SALT_LEN>() else {
        assert_eq!(revealed, None);
        return;
    };
    assert_eq!(revealed.is_none(), payload.is_empty());
    let Some(revealed) = revealed else { return };
    assert_eq!(received[..SALT_LEN], *salt);

    // The key stream is what zeros become, and repeats every 32 bytes.
    let mut stream = vec![0; payload.len().max(32)];
    salamander.key(salt).apply(&mut stream);
    for (at, byte) in payload.iter().enumerate() {
        assert_eq!(revealed[at], byte ^ stream[at % 32], "byte {at}");
    }
    let mut sent = vec![0xaa; datagram.len() + 3];
    let len = salamander.obfuscate(*salt, &revealed, &mut sent);
    assert_eq!(len, Some(datagram.len()));
    assert_eq!(sent[..datagram.len()], *datagram);
    assert_eq!(sent[datagram.len()..], [0xaa; 3], "written beyond the end");
    let short = &mut sent[..datagram.len() - 1];
    assert_eq!(salamander.obfuscate(*salt, &revealed, short), None);
}
