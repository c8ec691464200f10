//! What the fuzz targets drive and nobody else can reach (feature `fuzzing`).
//!
//! Every function here calls one function of the crate and adds nothing to it.

pub mod backup {
    //! Keys of backups, and rows without what surrounds them.
    pub use crate::backup::fuzzing::*;
}

pub mod credentials {
    //! Keys of the cluster's tokens; what takes them is public.
    use zeroize::Zeroizing;

    use crate::auth::session::SessionKeys;

    /// Makes keys of 32 bytes.
    pub fn session_keys(bytes: [u8; 32]) -> SessionKeys {
        SessionKeys::new(Zeroizing::new(bytes))
    }

    /// Signs any header and claims with an Ed25519 key, as the owner of the key might.
    ///
    /// # Panics
    ///
    /// It is no such key.
    pub fn sign(pkcs8: &[u8], header: &str, claims: &str) -> String {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;

        let pair = aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(pkcs8).expect("a key");
        let text = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let text = text.join(".");
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(text.as_bytes()));
        format!("{text}.{signature}")
    }
}

pub mod enrolment {
    //! What a node proves with.
    use uuid::Uuid;

    use crate::auth::ca::{self, Issued};
    pub use crate::rpc::fuzzing::*;

    /// See `ca::read_node`.
    pub fn read_node(certificate: &[u8]) -> Option<(Uuid, Issued)> {
        ca::read_node(certificate)
    }
}

pub mod grpc {
    //! Requests of AdminService.
    pub use crate::api::grpc::fuzzing::*;
}

pub mod http {
    //! Heads and bodies of requests.
    pub use crate::api::fuzzing::*;
}

pub mod import {
    //! Users from elsewhere.
    pub use crate::service::import::fuzzing::*;
}

pub mod keys {
    //! The file of the master keys; what reads it is public.
    use crate::secrets::{KeyFileError, MasterKeys};

    /// Returns what the file of these keys holds.
    pub fn text(keys: &MasterKeys) -> String {
        keys.to_text().to_string()
    }

    /// Returns these keys and another, and its version.
    ///
    /// # Errors
    ///
    /// There is no version left.
    pub fn with_one_more(keys: &MasterKeys) -> Result<(u32, MasterKeys), KeyFileError> {
        keys.with_one_more()
    }
}
