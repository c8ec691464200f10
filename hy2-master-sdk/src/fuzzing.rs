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
