//! The envelope: a header, then chunks of 64 KiB under AES-256-GCM.
//!
//! Each chunk's nonce is a random prefix, its number and whether it is the last; the header is bound
//! to every chunk. So a chunk that is changed, moved, left out or cut off does not open (STREAM,
//! Hoang, Reyhanitabar, Rogaway, Vizár 2015).

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::BackupError;

/// First bytes of every backup.
pub const MAGIC: &[u8; 12] = b"hy2 backup\x00\x01";

/// Plain bytes of a chunk.
pub const CHUNK: usize = 64 << 10;

/// Bytes of the tag that ends each chunk.
const TAG: usize = 16;

const SALT: usize = 16;
const PREFIX: usize = 7;

/// Length of the header: magic, kind of key, cost, salt, prefix of the nonces.
pub const HEADER: usize = MAGIC.len() + 1 + 4 + 4 + SALT + PREFIX;

/// Shortest passphrase, in characters.
const MIN_PASSPHRASE: usize = 12;

/// Highest memory cost that is believed of a header, in KiB.
const MAX_MEMORY_KIB: u32 = 1 << 20;

/// What a backup is encrypted with.
#[derive(Clone)]
pub enum BackupKey {
    /// A random key of 32 bytes.
    Key(Zeroizing<[u8; 32]>),
    /// A passphrase, stretched by argon2id.
    Passphrase(SecretString),
}

impl std::fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key(***)",
            Self::Passphrase(_) => "Passphrase(***)",
        })
    }
}

/// What a passphrase costs: argon2id with 64 MiB and three passes.
const COST: (u32, u32) = (65_536, 3);

struct Sealing {
    key: LessSafeKey,
    header: [u8; HEADER],
    next: u32,
}

impl Sealing {
    fn new(secret: &BackupKey, header: [u8; HEADER]) -> Result<Self, BackupError> {
        let key = derive(secret, &header)?;
        let key = UnboundKey::new(&AES_256_GCM, &*key).map_err(|_| BackupError::Format)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            header,
            next: 0,
        })
    }

    /// Returns the nonce of the next chunk; none after 2^32, 256 TiB.
    fn nonce(&mut self, last: bool) -> Result<Nonce, BackupError> {
        let mut nonce = [0; NONCE_LEN];
        nonce[..PREFIX].copy_from_slice(&self.header[HEADER - PREFIX..]);
        nonce[PREFIX..PREFIX + 4].copy_from_slice(&self.next.to_be_bytes());
        nonce[NONCE_LEN - 1] = u8::from(last);
        self.next = self.next.checked_add(1).ok_or(BackupError::Format)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Encrypts what is pushed into it.
pub struct Encryptor {
    sealing: Sealing,
    pending: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Encryptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encryptor").finish_non_exhaustive()
    }
}

impl Encryptor {
    /// Begins a backup. The header goes first.
    ///
    /// # Errors
    ///
    /// [`BackupError::WeakPassphrase`].
    pub fn new(secret: &BackupKey) -> Result<Self, BackupError> {
        let mut header = [0; HEADER];
        let (kind, cost) = match secret {
            BackupKey::Key(_) => (0, (0, 0)),
            BackupKey::Passphrase(phrase) => {
                if phrase.expose_secret().chars().count() < MIN_PASSPHRASE {
                    return Err(BackupError::WeakPassphrase);
                }
                (1, COST)
            }
        };
        let at = MAGIC.len();
        header[..at].copy_from_slice(MAGIC);
        header[at] = kind;
        header[at + 1..at + 5].copy_from_slice(&cost.0.to_be_bytes());
        header[at + 5..at + 9].copy_from_slice(&cost.1.to_be_bytes());
        header[at + 9..].copy_from_slice(&rand::random::<[u8; SALT + PREFIX]>());
        let sealing = Sealing::new(secret, header)?;
        Ok(Self {
            sealing,
            pending: Zeroizing::new(Vec::with_capacity(CHUNK + TAG)),
        })
    }

    /// Returns the header.
    #[must_use]
    pub const fn header(&self) -> &[u8; HEADER] {
        &self.sealing.header
    }

    /// Takes plain bytes; appends whole chunks to `out`.
    ///
    /// # Errors
    ///
    /// There is too much of it.
    pub fn push(&mut self, mut plain: &[u8], out: &mut Vec<u8>) -> Result<(), BackupError> {
        while !plain.is_empty() {
            // A full chunk waits until it is known that it is not the last.
            if self.pending.len() == CHUNK {
                self.flush(false, out)?;
            }
            let room = CHUNK - self.pending.len();
            let (now, later) = plain.split_at(room.min(plain.len()));
            self.pending.extend_from_slice(now);
            plain = later;
        }
        Ok(())
    }

    /// Ends the backup; appends the last chunk to `out`.
    ///
    /// # Errors
    ///
    /// There is too much of it.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), BackupError> {
        self.flush(true, out)
    }

    fn flush(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), BackupError> {
        let nonce = self.sealing.nonce(last)?;
        let aad = Aad::from(self.sealing.header);
        self.sealing
            .key
            .seal_in_place_append_tag(nonce, aad, &mut *self.pending)
            .map_err(|_| BackupError::Format)?;
        out.extend_from_slice(&self.pending);
        self.pending.clear();
        Ok(())
    }
}

/// Decrypts what is pushed into it.
pub struct Decryptor {
    sealing: Sealing,
    pending: Vec<u8>,
}

impl std::fmt::Debug for Decryptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decryptor").finish_non_exhaustive()
    }
}

impl Decryptor {
    /// Begins with a header.
    ///
    /// # Errors
    ///
    /// [`BackupError::Format`] if it is none, or asks for a key of the other kind.
    pub fn new(secret: &BackupKey, header: [u8; HEADER]) -> Result<Self, BackupError> {
        if header[..MAGIC.len()] != MAGIC[..] {
            return Err(BackupError::Format);
        }
        let sealing = Sealing::new(secret, header)?;
        Ok(Self {
            sealing,
            pending: Vec::with_capacity(CHUNK + TAG),
        })
    }

    /// Takes encrypted bytes; appends what opened to `out`.
    ///
    /// # Errors
    ///
    /// [`BackupError::Tampered`].
    pub fn push(&mut self, mut sealed: &[u8], out: &mut Vec<u8>) -> Result<(), BackupError> {
        while !sealed.is_empty() {
            if self.pending.len() == CHUNK + TAG {
                self.open(false, out)?;
            }
            let room = CHUNK + TAG - self.pending.len();
            let (now, later) = sealed.split_at(room.min(sealed.len()));
            self.pending.extend_from_slice(now);
            sealed = later;
        }
        Ok(())
    }

    /// Ends: what is left has to be the last chunk.
    ///
    /// # Errors
    ///
    /// [`BackupError::Tampered`], also when the end is missing.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), BackupError> {
        self.open(true, out)
    }

    fn open(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), BackupError> {
        let nonce = self.sealing.nonce(last)?;
        let aad = Aad::from(self.sealing.header);
        let plain = self
            .sealing
            .key
            .open_in_place(nonce, aad, &mut self.pending)
            .map_err(|_| BackupError::Tampered)?;
        out.extend_from_slice(plain);
        self.pending.clear();
        Ok(())
    }
}

fn derive(secret: &BackupKey, header: &[u8; HEADER]) -> Result<Zeroizing<[u8; 32]>, BackupError> {
    let at = MAGIC.len();
    let number = |from: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&header[from..from + 4]);
        u32::from_be_bytes(bytes)
    };
    let (memory, passes) = (number(at + 1), number(at + 5));
    let salt = &header[at + 9..at + 9 + SALT];
    let mut key = Zeroizing::new([0; 32]);
    match (secret, header[at]) {
        (BackupKey::Key(given), 0) => {
            let message = [b"hy2 backup key v1\0", salt].concat();
            key.copy_from_slice(sign(&Key::new(HMAC_SHA256, &**given), &message).as_ref());
        }
        (BackupKey::Passphrase(phrase), 1) => {
            // A header is read before it is authenticated: what it asks for has a bound.
            if memory > MAX_MEMORY_KIB || passes > 16 {
                return Err(BackupError::Format);
            }
            let params =
                Params::new(memory, passes, 1, Some(32)).map_err(|_| BackupError::Format)?;
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(phrase.expose_secret().as_bytes(), salt, &mut *key)
                .map_err(|_| BackupError::Format)?;
        }
        _ => return Err(BackupError::Tampered),
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> BackupKey {
        BackupKey::Key(Zeroizing::new([7; 32]))
    }

    fn seal(plain: &[u8], secret: &BackupKey) -> Vec<u8> {
        let mut encryptor = Encryptor::new(secret).unwrap();
        let mut out = encryptor.header().to_vec();
        for piece in plain.chunks(1_000) {
            encryptor.push(piece, &mut out).unwrap();
        }
        encryptor.finish(&mut out).unwrap();
        out
    }

    fn open(sealed: &[u8], secret: &BackupKey) -> Result<Vec<u8>, BackupError> {
        let (header, rest) = sealed.split_at_checked(HEADER).ok_or(BackupError::Format)?;
        let mut decryptor = Decryptor::new(secret, header.try_into().unwrap())?;
        let mut out = Vec::new();
        for piece in rest.chunks(1_777) {
            decryptor.push(piece, &mut out)?;
        }
        decryptor.finish(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_is_sealed_opens_at_every_length_around_a_chunk() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5] {
            let plain: Vec<u8> = (0..length).map(|at| at as u8).collect();
            assert_eq!(
                open(&seal(&plain, &key()), &key()).unwrap(),
                plain,
                "{length}"
            );
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_is_refused() {
        let sealed = seal(&vec![5; CHUNK + 100], &key());
        let spots = (0..HEADER).chain([HEADER, HEADER + CHUNK, sealed.len() - 1]);
        for at in spots {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert!(open(&changed, &key()).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_backup_that_is_cut_off_or_reordered_is_refused() {
        let sealed = seal(&vec![5; 2 * CHUNK + 100], &key());
        for length in [
            0,
            10,
            HEADER,
            HEADER + 1,
            HEADER + CHUNK + TAG,
            sealed.len() - 1,
        ] {
            assert!(open(&sealed[..length], &key()).is_err(), "{length}");
        }
        let chunk = CHUNK + TAG;
        let (a, b) = (HEADER, HEADER + chunk);
        let swapped = [
            &sealed[..a],
            &sealed[b..b + chunk],
            &sealed[a..b],
            &sealed[b + chunk..],
        ];
        assert!(open(&swapped.concat(), &key()).is_err());
        let longer = [&sealed[..], &[0; 20]].concat();
        assert!(open(&longer, &key()).is_err());
    }

    #[test]
    fn only_the_right_passphrase_opens() {
        let right = BackupKey::Passphrase("correct horse battery".into());
        let sealed = seal(b"rows", &right);
        assert_eq!(open(&sealed, &right).unwrap(), b"rows");
        let wrong = BackupKey::Passphrase("correct horse batterz".into());
        assert!(matches!(open(&sealed, &wrong), Err(BackupError::Tampered)));
        assert!(open(&sealed, &key()).is_err());
        let weak = BackupKey::Passphrase("short".into());
        assert!(matches!(
            Encryptor::new(&weak),
            Err(BackupError::WeakPassphrase)
        ));
    }
}
