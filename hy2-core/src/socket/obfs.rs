//! Which obfuscation a socket speaks, and its rules.

use hy2_proto::{
    gecko::{self, PacketSizes, PacketSizesError},
    salamander::{PasswordTooShort, RECOMMENDED_PASSWORD_LEN, SALT_LEN, Salamander},
};
use thiserror::Error;

/// What every UDP payload of a socket looks like on the wire.
///
/// Both ends must use the same one: a mismatch is silence, not an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obfuscation {
    /// Plain QUIC.
    #[default]
    Plain,
    /// Every datagram is XORed under a salted key.
    Salamander(Salamander),
    /// Salamander, and datagrams with a long QUIC header are split and padded first.
    Gecko(Salamander, PacketSizes),
}

/// Why an [`Obfuscation`] cannot be made.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ObfuscationError {
    /// The password is too short.
    #[error(transparent)]
    Password(#[from] PasswordTooShort),
    /// The sizes are out of order or range.
    #[error(transparent)]
    Sizes(#[from] PacketSizesError),
}

impl Obfuscation {
    /// Returns Salamander under `password`; a weak one is logged.
    ///
    /// # Errors
    ///
    /// [`ObfuscationError::Password`].
    pub fn salamander(password: impl AsRef<[u8]>) -> Result<Self, ObfuscationError> {
        Ok(Self::Salamander(checked(password.as_ref())?))
    }

    /// Returns Gecko under `password`, with sizes on the wire of `min..=max` bytes; a weak
    /// password is logged.
    ///
    /// # Errors
    ///
    /// Any [`ObfuscationError`].
    pub fn gecko(password: impl AsRef<[u8]>, min: u16, max: u16) -> Result<Self, ObfuscationError> {
        let sizes = PacketSizes::new(min, max)?;
        Ok(Self::Gecko(checked(password.as_ref())?, sizes))
    }

    /// Returns how many bytes each QUIC datagram grows by: subtract them from the largest
    /// UDP payload, because path MTU discovery does not see them.
    ///
    /// Gecko's split datagrams grow by more, but have sizes of their own.
    #[must_use]
    pub fn overhead(&self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Salamander(_) | Self::Gecko(..) => SALT_LEN as u16,
        }
    }

    /// Returns whether a transmit that begins with `contents` goes out in fragments.
    pub(super) fn splits(&self, contents: &[u8]) -> bool {
        matches!(self, Self::Gecko(..)) && gecko::is_long_header(contents)
    }

    pub(super) fn cover(&self) -> Option<&Salamander> {
        match self {
            Self::Plain => None,
            Self::Salamander(salamander) | Self::Gecko(salamander, _) => Some(salamander),
        }
    }
}

fn checked(password: &[u8]) -> Result<Salamander, PasswordTooShort> {
    let salamander = Salamander::new(password)?;
    if salamander.is_weak() {
        tracing::warn!(
            recommended = RECOMMENDED_PASSWORD_LEN,
            "short obfuscation password: whoever records traffic can guess it"
        );
    }
    Ok(salamander)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keys_are_refused_and_never_printed() {
        assert_eq!(
            Obfuscation::salamander("abc").unwrap_err(),
            ObfuscationError::Password(PasswordTooShort)
        );
        let obfs = Obfuscation::salamander("secret-key").unwrap();
        assert!(!format!("{obfs:?}").contains("secret"));
        let obfs = Obfuscation::gecko("secret-key", 512, 1200).unwrap();
        assert!(!format!("{obfs:?}").contains("secret"));
        assert_eq!(obfs.overhead(), 8);
    }

    #[test]
    fn gecko_sizes_must_be_in_order_and_small() {
        for (min, max) in [(0, 10), (600, 599), (512, 2049)] {
            assert_eq!(
                Obfuscation::gecko("abcd", min, max).unwrap_err(),
                ObfuscationError::Sizes(PacketSizesError)
            );
        }
        assert!(Obfuscation::gecko("abcd", 2048, 2048).is_ok());
    }
}
