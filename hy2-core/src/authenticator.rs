//! Who may use the server: the [`Authenticator`] trait and its default implementations.

use std::{any::Any, collections::HashMap, fmt, net::SocketAddr, sync::Arc};

use hy2_proto::bandwidth::Bandwidth;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{BoxFuture, meter::UserCounters};

/// Name of an authenticated user; the key of counters, limits and kicks.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Returns the identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for UserId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<String> for UserId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a connection presents when it asks to be let in.
#[derive(Clone)]
#[non_exhaustive]
pub struct AuthContext<'a> {
    /// Address the request came from.
    pub remote: SocketAddr,
    /// The credential of the `Hysteria-Auth` header, verbatim.
    pub auth: &'a str,
    /// What the client says it can receive, in bytes per second; `None` when it does not know.
    pub client_rx: Option<Bandwidth>,
    /// The name the client asked for in TLS, when it sent one.
    pub server_name: Option<&'a str>,
}

impl fmt::Debug for AuthContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthContext")
            .field("remote", &self.remote)
            .field("auth", &"***")
            .field("client_rx", &self.client_rx)
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// The answer of an [`Authenticator`].
#[derive(Debug)]
pub enum AuthDecision {
    /// Let the connection in under this grant.
    Accept(Grant),
    /// Answer like the ordinary web site would; the peer learns nothing.
    Deny,
}

/// What an accepted connection may do.
#[derive(Debug)]
pub struct Grant {
    pub(crate) user: UserId,
    pub(crate) limits: UserLimits,
    pub(crate) counters: Option<Arc<UserCounters>>,
    pub(crate) guard: Option<SessionGuard>,
}

impl Grant {
    /// Grants `user` access without limits beyond the server's own.
    pub fn new(user: impl Into<UserId>) -> Self {
        Self {
            user: user.into(),
            limits: UserLimits::default(),
            counters: None,
            guard: None,
        }
    }

    /// Applies `limits` to the user. The latest grant of a user sets the limits of all of that
    /// user's connections, like [`crate::ServerHandle::set_limits`].
    pub fn limits(mut self, limits: UserLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Counts into `counters`, cells that the embedder owns and reads when it likes.
    ///
    /// The connection counts into them until its end, also when the user's next connection is
    /// granted others; [`crate::ServerHandle::users`] shows the latest. Without them the
    /// connection counts into the user's latest, or into cells that the server makes.
    pub fn counters(mut self, counters: Arc<UserCounters>) -> Self {
        self.counters = Some(counters);
        self
    }

    /// Keeps `guard` for as long as the connection lives; its `Drop` is the report that it ended,
    /// after [`crate::event::EventSink::disconnected`]. Also dropped, without any event, when the
    /// connection is not let in after all (see [`UserLimits::max_connections`]).
    pub fn guard(mut self, guard: impl Any + Send + Sync) -> Self {
        self.guard = Some(SessionGuard(Box::new(guard)));
        self
    }
}

/// An embedder's value that lives exactly as long as one authenticated connection.
pub(crate) struct SessionGuard(
    #[allow(dead_code, reason = "held for its Drop")] Box<dyn Any + Send + Sync>,
);

impl fmt::Debug for SessionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionGuard")
    }
}

/// Limits of one user, over all of that user's connections together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UserLimits {
    /// Cap on what the user downloads, shared by all connections. `None` or zero: no cap.
    pub down: Option<Bandwidth>,
    /// Cap on what the user uploads, shared by all connections. `None` or zero: no cap.
    pub up: Option<Bandwidth>,
    /// Connections the user may hold at once. `None`: no cap.
    pub max_connections: Option<u32>,
}

/// Decides who may use the server.
///
/// Called once per authentication request, never per stream. A denied peer is answered by the
/// masquerade, whatever the reason.
pub trait Authenticator: Send + Sync + 'static {
    /// Judges one request.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when the connection ends first.
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision>;

    /// Takes as long as [`authenticate`](Self::authenticate) takes to deny, and does nothing.
    ///
    /// Awaited for a POST that asks for something else than authentication, before the masquerade
    /// answers it: who could tell the two apart by their time would know what this server is. The
    /// default takes no time, which is right for an authenticator whose answer is cheap beside the
    /// masquerade's, and wrong for one that hashes or asks elsewhere.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when the connection ends first.
    fn pretend<'a>(&'a self, _request: AuthContext<'a>) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl<A: Authenticator + ?Sized> Authenticator for Arc<A> {
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        (**self).authenticate(request)
    }

    fn pretend<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, ()> {
        (**self).pretend(request)
    }
}

/// One shared password; every client is the user `user`, as in the reference.
pub struct Password {
    digest: [u8; 32],
}

impl Password {
    /// Accepts exactly `password`.
    pub fn new(password: &str) -> Self {
        Self {
            digest: digest(password),
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
    }
}

impl Authenticator for Password {
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        let accepted = bool::from(digest(request.auth).ct_eq(&self.digest));
        Box::pin(std::future::ready(if accepted {
            AuthDecision::Accept(Grant::new("user"))
        } else {
            AuthDecision::Deny
        }))
    }

    fn pretend<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, ()> {
        pretend(self, request)
    }
}

/// A table of names and passwords; the credential is `name:password`, names are
/// case-insensitive (reference: `auth.userpass`).
pub struct UserPass {
    users: HashMap<String, [u8; 32]>,
}

impl UserPass {
    /// Accepts each `(name, password)` pair.
    pub fn new<N: AsRef<str>, P: AsRef<str>>(users: impl IntoIterator<Item = (N, P)>) -> Self {
        Self {
            users: users
                .into_iter()
                .map(|(name, password)| (name.as_ref().to_lowercase(), digest(password.as_ref())))
                .collect(),
        }
    }
}

impl fmt::Debug for UserPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserPass")
            .field("users", &self.users.len())
            .finish()
    }
}

impl Authenticator for UserPass {
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        let (name, password) = request.auth.split_once(':').unwrap_or((request.auth, ""));
        let name = name.to_lowercase();
        let presented = digest(password);
        // An unknown name takes the same path as a known one with a wrong password.
        let known = self.users.get(&name);
        let matches = bool::from(presented.ct_eq(known.unwrap_or(&[0; 32])));
        Box::pin(std::future::ready(if matches && known.is_some() {
            AuthDecision::Accept(Grant::new(name))
        } else {
            AuthDecision::Deny
        }))
    }

    fn pretend<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, ()> {
        pretend(self, request)
    }
}

/// Judges a request without effect: for authenticators that only compare.
fn pretend<'a>(
    authenticator: &'a impl Authenticator,
    request: AuthContext<'a>,
) -> BoxFuture<'a, ()> {
    let judged = authenticator.authenticate(request);
    Box::pin(async {
        std::hint::black_box(judged.await);
    })
}

/// Hashes before comparing, so that the comparison takes the same time for every length.
fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(auth: &str) -> AuthContext<'_> {
        AuthContext {
            remote: ([127, 0, 0, 1], 1).into(),
            auth,
            client_rx: None,
            server_name: None,
        }
    }

    async fn user_of(authenticator: &dyn Authenticator, auth: &str) -> Option<String> {
        match authenticator.authenticate(request(auth)).await {
            AuthDecision::Accept(grant) => Some(grant.user.to_string()),
            AuthDecision::Deny => None,
        }
    }

    #[tokio::test]
    async fn password_accepts_only_itself() {
        let password = Password::new("correct horse");
        assert_eq!(
            user_of(&password, "correct horse").await.as_deref(),
            Some("user")
        );
        for wrong in ["", "correct", "correct horse ", "Correct horse"] {
            assert_eq!(user_of(&password, wrong).await, None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn userpass_names_are_case_insensitive_and_passwords_are_not() {
        let table = UserPass::new([("Alice", "Secret"), ("bob", "a:b")]);
        assert_eq!(
            user_of(&table, "aLICE:Secret").await.as_deref(),
            Some("alice")
        );
        assert_eq!(user_of(&table, "bob:a:b").await.as_deref(), Some("bob"));
        for wrong in ["alice:secret", "alice", "alice:", "carol:Secret", ":", ""] {
            assert_eq!(user_of(&table, wrong).await, None, "{wrong:?}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let shown = format!("{:?} {:?}", request("hunter2"), Password::new("hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
