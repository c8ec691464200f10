//! What the fuzz targets drive and nobody else can reach (feature `fuzzing`).
//!
//! Every function here calls one function of the crate and adds nothing to it.

pub mod backup {
    //! Keys of backups; what takes them is public.
    use zeroize::Zeroizing;

    use crate::backup::envelope::BackupKey;

    /// A key of 32 bytes.
    pub fn key(bytes: [u8; 32]) -> BackupKey {
        BackupKey::Key(Zeroizing::new(bytes))
    }

    /// A passphrase.
    pub fn passphrase(phrase: &str) -> BackupKey {
        BackupKey::Passphrase(phrase.into())
    }
}

pub mod grpc {
    //! Requests of AdminService.
    pub use crate::api::grpc::fuzzing::*;
}

pub mod import {
    //! Users from elsewhere.
    pub use crate::service::import::fuzzing::*;
}
