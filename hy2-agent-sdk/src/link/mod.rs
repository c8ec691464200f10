//! The way to the master: one connection that the agent opens, and opens again.

mod backoff;
mod channel;
mod enrol;
mod reverse;
mod session;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use hy2_proto::control::rpc::master_service_client::MasterServiceClient;
use rustls::crypto::CryptoProvider;

pub(crate) use channel::Channel;
pub(crate) use session::run;

use crate::identity::IdentityError;

/// Pings on an idle control connection.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A ping must come back within this time.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// A single call must be answered within this time.
pub(crate) const CALL_MAX: Duration = Duration::from_secs(30);

pub(crate) type Master = MasterServiceClient<Channel>;

/// How the link to the master stands.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum LinkState {
    /// Not connected; `error` is what the last attempt said.
    #[default]
    Starting,
    /// The last attempt failed or the connection ended.
    Down {
        /// Why.
        error: String,
    },
    /// A session is up.
    Up {
        /// Since when.
        since: SystemTime,
    },
}

impl LinkState {
    /// Returns since when a session is up.
    pub fn connected_since(&self) -> Option<SystemTime> {
        match self {
            Self::Up { since } => Some(*since),
            _ => None,
        }
    }

    /// Returns why the last attempt failed or the session ended; empty otherwise.
    pub fn error(&self) -> &str {
        match self {
            Self::Down { error } => error,
            _ => "",
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LinkError {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("TLS settings")]
    Tls(#[source] rustls::Error),
    #[error("the master does not speak the protocol asked for")]
    Protocol,
    #[error("HTTP/2")]
    Http(#[source] hyper::Error),
    #[error("timed out: {0}")]
    TimedOut(&'static str),
    #[error("the master refused: {} ({:?})", .0.message(), .0.code())]
    Refused(#[source] Box<tonic::Status>),
    #[error("the master ended the session: {reason}")]
    Goodbye {
        reason: String,
        retry_after: Option<Duration>,
        /// The node must not serve any more.
        retired: bool,
    },
    #[error("the session ended")]
    Ended,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(
        "the pin is not of this master's authority: it was exchanged after the token was made, or this is another master"
    )]
    Pin(#[source] Box<Self>),
    #[error("the node is not enrolled and no token is configured")]
    NoToken,
    #[error("storage")]
    Storage(#[source] std::io::Error),
}

impl LinkError {
    /// Says what went wrong, and what its reasons were.
    pub(crate) fn chain(&self) -> String {
        let mut text = crate::engine::chain_of(self);
        if self.is_about_time() {
            text.push_str("; is the clock of this host right, and that of the master's?");
        }
        text
    }

    /// Whether a certificate is not valid yet or any more, ours by the master's clock or the master's by ours.
    fn is_about_time(&self) -> bool {
        use rustls::{AlertDescription, CertificateError, Error};
        matches!(
            self.tls(),
            Some(
                Error::AlertReceived(AlertDescription::CertificateExpired)
                    | Error::InvalidCertificate(
                        CertificateError::Expired
                            | CertificateError::ExpiredContext { .. }
                            | CertificateError::NotValidYet
                            | CertificateError::NotValidYetContext { .. }
                    )
            )
        )
    }

    /// Whether the master's certificate is of none of the authorities that it should be of.
    fn is_about_their_issuer(&self) -> bool {
        use rustls::{CertificateError, Error};
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        self.tls() == Some(&unknown)
    }

    /// Whether the master does not take our certificate, though it may know the key.
    fn is_about_our_certificate(&self) -> bool {
        use rustls::{AlertDescription, Error};
        if let Self::Refused(status) = self
            && status.code() == tonic::Code::Unauthenticated
        {
            return true;
        }
        matches!(
            self.tls(),
            Some(Error::AlertReceived(
                AlertDescription::UnknownCA
                    | AlertDescription::BadCertificate
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::CertificateExpired
                    | AlertDescription::DecryptError
            ))
        )
    }

    /// What TLS says, wherever among the reasons.
    fn tls(&self) -> Option<&rustls::Error> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            let within = error
                .downcast_ref::<std::io::Error>()
                .and_then(|error| error.get_ref()?.downcast_ref::<rustls::Error>());
            if let Some(error) = within.or_else(|| error.downcast_ref()) {
                return Some(error);
            }
            next = error.source();
        }
        None
    }
}

impl From<tonic::Status> for LinkError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// The one crypto provider, on aws-lc-rs; nothing global is installed.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
