//! A server and a client that trust each other.

use std::sync::Arc;

use hy2_core::{
    Client, ClientConfig, Server, ServerBuilder,
    authenticator::Password,
    client::ServerAddress,
    outbound::{AddressPolicy, Direct},
    rustls::{RootCertStore, pki_types::PrivateKeyDer},
    server::ServerConfig,
    tls::ServerTls,
};

use crate::{recorder::Recorder, users::Users};

pub(crate) const PASSWORD: &str = "a long enough password";

/// A certificate for `localhost` and the roots that trust it.
pub(crate) fn certificate() -> (ServerTls, Arc<RootCertStore>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    let certificate = made.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("root");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
    let tls = ServerTls::from_der(vec![certificate], key).expect("tls");
    (tls, Arc::new(roots))
}

/// Lets loopback targets through, as tests need.
pub(crate) fn anywhere() -> Direct {
    Direct::new(AddressPolicy::allow_all())
}

pub(crate) struct Pair {
    pub(crate) server: Server,
    pub(crate) config: ClientConfig,
}

impl Pair {
    pub(crate) fn start() -> Self {
        Self::with(ServerConfig::default(), |builder| builder)
    }

    pub(crate) fn with(
        config: ServerConfig,
        change: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let (tls, roots) = certificate();
        let mut pair = Self::served_by(tls, config, change);
        pair.config.tls.roots = Some(roots);
        pair
    }

    /// A server with this certificate; the client's configuration trusts the system's roots.
    pub(crate) fn served_by(
        tls: ServerTls,
        config: ServerConfig,
        change: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let obfuscation = config.obfuscation.clone();
        let builder = Server::builder(tls)
            .listen(([127, 0, 0, 1], 0).into())
            .authenticator(Password::new(PASSWORD))
            .outbound(anywhere())
            .config(config);
        let server = change(builder).bind().expect("server");
        let port = server.local_addrs()[0].port();
        let mut config = ClientConfig::new(ServerAddress::new("127.0.0.1", port), PASSWORD);
        config.tls.sni = Some("localhost".to_owned());
        config.obfuscation = obfuscation;
        Self { server, config }
    }

    /// A pair whose server knows [`Users`] and tells a [`Recorder`].
    pub(crate) fn recorded(config: ServerConfig) -> (Self, Users, Recorder) {
        let (users, recorder) = (Users::default(), Recorder::new());
        let pair = Self::with(config, |builder| {
            builder
                .authenticator(users.clone())
                .events(recorder.clone())
        });
        (pair, users, recorder)
    }

    /// Connects as `user`, to a server of [`Self::recorded`].
    pub(crate) async fn client_of(&self, user: &str) -> Client {
        Client::connect(self.config_of(user))
            .await
            .expect("connect")
    }

    pub(crate) fn config_of(&self, user: &str) -> ClientConfig {
        let mut config = self.config.clone();
        config.auth = user.to_owned();
        config
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.config.clone()).await.expect("connect")
    }
}
