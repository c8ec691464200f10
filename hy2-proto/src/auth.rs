//! Authentication: an HTTP/3 request and response, here as plain header names and values.
//!
//! The client posts to `https://hysteria/auth`; the answer of a Hysteria server to a known user
//! is status 233. Everything else is the ordinary website's business, a wrong password included.
//! Names and rules are those of the reference (`core/internal/protocol/http.go`). The `http`
//! crate is deliberately not used, so any HTTP stack can carry these.

use std::borrow::Cow;
use std::fmt;

use crate::bandwidth::Bandwidth;

/// `:method` of the request.
pub const METHOD: &str = "POST";
/// `:scheme` of the request.
pub const SCHEME: &str = "https";
/// `:authority` of the request, whatever the TLS server name was.
pub const AUTHORITY: &str = "hysteria";
/// `:path` of the request.
pub const PATH: &str = "/auth";

/// `:status` that tells a client it is in.
pub const STATUS_OK: u16 = 233;

/// Request header with the credentials, verbatim.
pub const HEADER_AUTH: &str = "hysteria-auth";
/// Response header that tells whether UDP is relayed.
pub const HEADER_UDP: &str = "hysteria-udp";
/// Header of both directions with the sender's receive rate.
pub const HEADER_CC_RX: &str = "hysteria-cc-rx";
/// Header of both directions with noise.
pub const HEADER_PADDING: &str = "hysteria-padding";

const AUTO: &str = "auto";

/// Returns whether a request is addressed to the authentication endpoint.
///
/// The match is exact and minds case, as in the reference; anything else is for the website.
///
/// # Examples
///
/// ```
/// use hy2_proto::auth::is_auth_request;
///
/// assert!(is_auth_request("POST", "hysteria", "/auth"));
/// assert!(!is_auth_request("POST", "hysteria", "/auth/"));
/// ```
#[must_use]
pub fn is_auth_request(method: &str, authority: &str, path: &str) -> bool {
    method == METHOD && authority == AUTHORITY && path == PATH
}

/// What the client says about itself.
///
/// Prints its credentials as `***`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AuthRequest<'a> {
    /// Credentials, as the user configured them. Compare in constant time.
    pub auth: &'a str,
    /// Rate at which the client can receive; [`Bandwidth::ZERO`] if it does not know.
    pub rx: Bandwidth,
}

impl<'a> AuthRequest<'a> {
    /// Reads the request through a look-up of header values by lower-case name.
    ///
    /// Never fails: a missing or unreadable header counts as empty or zero, and it is the
    /// authenticator that turns the client away. Credentials may hold UTF-8 beyond ASCII, so the
    /// look-up is to convert from bytes, and not by a method that takes visible ASCII only.
    ///
    /// # Examples
    ///
    /// ```
    /// use hy2_proto::auth::AuthRequest;
    ///
    /// let request = AuthRequest::from_headers(|name| match name {
    ///     "hysteria-auth" => Some("letmein"),
    ///     "hysteria-cc-rx" => Some("1000000"),
    ///     _ => None,
    /// });
    /// assert_eq!(request.auth, "letmein");
    /// assert_eq!(request.rx.bytes_per_sec(), 1_000_000);
    /// ```
    pub fn from_headers(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self {
            auth: get(HEADER_AUTH).unwrap_or_default(),
            rx: parse_rate(get(HEADER_CC_RX).unwrap_or_default()),
        }
    }

    /// Returns the rate that the server is to send at, which is the lower of the client's and the
    /// server's own `max_tx` ([`Bandwidth::ZERO`] for no limit).
    ///
    /// `None` if the client does not know its rate: the configured congestion control decides.
    ///
    /// # Examples
    ///
    /// ```
    /// use hy2_proto::auth::AuthRequest;
    /// use hy2_proto::bandwidth::Bandwidth;
    ///
    /// let rate = Bandwidth::from_bytes_per_sec;
    /// let request = AuthRequest { auth: "", rx: rate(1_000_000) };
    /// assert_eq!(request.server_rate(Bandwidth::ZERO), Some(rate(1_000_000)));
    /// assert_eq!(request.server_rate(rate(65_536)), Some(rate(65_536)));
    /// ```
    #[must_use]
    pub fn server_rate(&self, max_tx: Bandwidth) -> Option<Bandwidth> {
        lower_limit(self.rx, max_tx)
    }

    /// Returns the headers to send, with `padding` from [`crate::padding::AUTH_REQUEST`].
    pub fn headers(
        self,
        padding: &'a str,
    ) -> impl ExactSizeIterator<Item = (&'static str, Cow<'a, str>)> {
        [
            (HEADER_AUTH, Cow::Borrowed(self.auth)),
            (HEADER_CC_RX, rate_text(self.rx)),
            (HEADER_PADDING, Cow::Borrowed(padding)),
        ]
        .into_iter()
    }
}

impl fmt::Debug for AuthRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthRequest")
            .field("auth", &"***")
            .field("rx", &self.rx)
            .finish()
    }
}

/// How fast the client may send, in the server's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CcRx {
    /// The server ignores bandwidths; the client has to find its own rate. `auto` on the wire.
    Auto,
    /// At most this fast; [`Bandwidth::ZERO`] sets no limit.
    Limit(Bandwidth),
}

impl CcRx {
    /// The server sets no limit of its own: `0` on the wire.
    pub const UNLIMITED: Self = Self::Limit(Bandwidth::ZERO);

    /// Parses a header value; what cannot be read is `0`, as in the reference.
    #[must_use]
    pub fn parse(value: &str) -> Self {
        if value == AUTO {
            Self::Auto
        } else {
            Self::Limit(parse_rate(value))
        }
    }

    /// Returns the rate that the client is to send at, which is the lower of the server's limit
    /// and its own `max_tx`.
    ///
    /// `None` if the server said [`CcRx::Auto`] or the client does not know its rate (`max_tx` is
    /// [`Bandwidth::ZERO`]): the configured congestion control decides.
    #[must_use]
    pub fn client_rate(self, max_tx: Bandwidth) -> Option<Bandwidth> {
        match self {
            Self::Auto => None,
            Self::Limit(limit) => lower_limit(max_tx, limit),
        }
    }

    /// Returns the header value.
    #[must_use]
    pub fn to_value(self) -> Cow<'static, str> {
        match self {
            Self::Auto => Cow::Borrowed(AUTO),
            Self::Limit(rate) => rate_text(rate),
        }
    }
}

/// What the server grants to a client it knows; goes with [`STATUS_OK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthResponse {
    /// Whether UDP messages are relayed.
    pub udp: bool,
    /// How fast the client may send.
    pub cc_rx: CcRx,
}

impl AuthResponse {
    /// Reads the response through a look-up of header values by lower-case name.
    ///
    /// Never fails: without a readable header UDP is off and the rate has no limit.
    pub fn from_headers<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self {
            udp: parse_bool(get(HEADER_UDP).unwrap_or_default()).unwrap_or(false),
            cc_rx: CcRx::parse(get(HEADER_CC_RX).unwrap_or_default()),
        }
    }

    /// Returns the headers to send, with `padding` from [`crate::padding::AUTH_RESPONSE`].
    pub fn headers(
        self,
        padding: &str,
    ) -> impl ExactSizeIterator<Item = (&'static str, Cow<'_, str>)> {
        let udp = if self.udp { "true" } else { "false" };
        [
            (HEADER_UDP, Cow::Borrowed(udp)),
            (HEADER_CC_RX, self.cc_rx.to_value()),
            (HEADER_PADDING, Cow::Borrowed(padding)),
        ]
        .into_iter()
    }
}

/// Applies a limit, where zero means none, to a rate, where zero means unknown.
fn lower_limit(rate: Bandwidth, limit: Bandwidth) -> Option<Bandwidth> {
    match (rate.is_zero(), limit.is_zero()) {
        (true, _) => None,
        (false, true) => Some(rate),
        (false, false) => Some(rate.min(limit)),
    }
}

/// Parses decimal digits; anything else, a sign or too large a number included, is zero.
fn parse_rate(value: &str) -> Bandwidth {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let rate = if digits { value.parse().ok() } else { None };
    Bandwidth::from_bytes_per_sec(rate.unwrap_or(0))
}

fn rate_text<'a>(rate: Bandwidth) -> Cow<'a, str> {
    match rate.bytes_per_sec() {
        0 => Cow::Borrowed("0"),
        bytes => Cow::Owned(bytes.to_string()),
    }
}

/// Parses a boolean in the spellings that Go's `strconv.ParseBool` takes.
pub(crate) fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn rate(bytes_per_sec: u64) -> Bandwidth {
        Bandwidth::from_bytes_per_sec(bytes_per_sec)
    }

    #[test]
    fn request_headers() {
        let request = AuthRequest {
            auth: "se:cret",
            rx: rate(12_500_000),
        };
        let headers: Vec<_> = request.headers("padpad").collect();
        assert_eq!(
            headers,
            [
                ("hysteria-auth", Cow::from("se:cret")),
                ("hysteria-cc-rx", Cow::from("12500000")),
                ("hysteria-padding", Cow::from("padpad")),
            ]
        );
    }

    #[test]
    fn response_headers() {
        for (udp, cc_rx, udp_text, rx_text) in [
            (true, CcRx::Auto, "true", "auto"),
            (false, CcRx::UNLIMITED, "false", "0"),
            (true, CcRx::Limit(rate(65536)), "true", "65536"),
        ] {
            let headers: Vec<_> = AuthResponse { udp, cc_rx }.headers("p").collect();
            assert_eq!(
                headers,
                [
                    ("hysteria-udp", Cow::from(udp_text)),
                    ("hysteria-cc-rx", Cow::from(rx_text)),
                    ("hysteria-padding", Cow::from("p")),
                ]
            );
        }
    }

    #[test]
    fn unreadable_rates_are_zero() {
        for value in [
            "",
            "-1",
            "+1",
            " 1",
            "1_000",
            "0x10",
            "1.5",
            "Auto",
            "AUTO",
            "fast",
            "18446744073709551616",
        ] {
            assert_eq!(CcRx::parse(value), CcRx::UNLIMITED, "{value:?}");
            let request = AuthRequest::from_headers(|name| (name == HEADER_CC_RX).then_some(value));
            assert_eq!(request.rx, Bandwidth::ZERO, "{value:?}");
        }
        assert_eq!(
            CcRx::parse("18446744073709551615"),
            CcRx::Limit(rate(u64::MAX))
        );
        assert_eq!(CcRx::parse("auto"), CcRx::Auto);
    }

    #[test]
    fn booleans_as_go_reads_them() {
        for (value, udp) in [
            ("1", true),
            ("t", true),
            ("T", true),
            ("true", true),
            ("TRUE", true),
            ("True", true),
            ("0", false),
            ("f", false),
            ("F", false),
            ("false", false),
            ("FALSE", false),
            ("False", false),
            ("", false),
            ("tRUE", false),
            ("yes", false),
            ("on", false),
            (" true", false),
        ] {
            let response = AuthResponse::from_headers(|name| (name == HEADER_UDP).then_some(value));
            assert_eq!(response.udp, udp, "{value:?}");
        }
    }

    #[test]
    fn nothing_at_all_is_readable() {
        let request = AuthRequest::from_headers(|_| None);
        assert_eq!((request.auth, request.rx), ("", Bandwidth::ZERO));
        let response = AuthResponse::from_headers(|_| None);
        assert_eq!((response.udp, response.cc_rx), (false, CcRx::UNLIMITED));
    }

    /// Reference: `core/server/server.go` and `core/client/client.go`.
    #[test]
    fn rates_are_negotiated() {
        for (client_rx, max_tx, expected) in [
            (0, 0, None),
            (0, 100, None),
            (100, 0, Some(100)),
            (100, 50, Some(50)),
            (50, 100, Some(50)),
        ] {
            let request = AuthRequest {
                auth: "",
                rx: rate(client_rx),
            };
            assert_eq!(request.server_rate(rate(max_tx)), expected.map(rate));
        }
        for (cc_rx, max_tx, expected) in [
            (CcRx::Auto, 100, None),
            (CcRx::UNLIMITED, 0, None),
            (CcRx::UNLIMITED, 100, Some(100)),
            (CcRx::Limit(rate(50)), 0, None),
            (CcRx::Limit(rate(50)), 100, Some(50)),
            (CcRx::Limit(rate(100)), 50, Some(50)),
        ] {
            assert_eq!(cc_rx.client_rate(rate(max_tx)), expected.map(rate));
        }
    }

    #[test]
    fn the_endpoint_is_exact() {
        assert!(is_auth_request("POST", "hysteria", "/auth"));
        for (method, authority, path) in [
            ("GET", "hysteria", "/auth"),
            ("post", "hysteria", "/auth"),
            ("POST", "Hysteria", "/auth"),
            ("POST", "hysteria:443", "/auth"),
            ("POST", "hysteria", "/Auth"),
            ("POST", "hysteria", "/auth?x"),
        ] {
            assert!(!is_auth_request(method, authority, path));
        }
    }

    #[test]
    fn credentials_are_not_printed() {
        let request = AuthRequest {
            auth: "hunter2",
            rx: Bandwidth::ZERO,
        };
        assert!(!format!("{request:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn request_round_trip(auth in ".{0,40}", rx: u64, padding in "[a-zA-Z0-9]{0,20}") {
            let request = AuthRequest { auth: &auth, rx: rate(rx) };
            let headers: HashMap<_, _> = request.headers(&padding).collect();
            let again = AuthRequest::from_headers(|name| headers.get(name).map(|v| &**v));
            prop_assert_eq!(again, request);
        }

        #[test]
        fn response_round_trip(udp: bool, limit in proptest::option::of(any::<u64>())) {
            let cc_rx = limit.map_or(CcRx::Auto, |bytes| CcRx::Limit(rate(bytes)));
            let response = AuthResponse { udp, cc_rx };
            let headers: HashMap<_, _> = response.headers("").collect();
            let again = AuthResponse::from_headers(|name| headers.get(name).map(|v| &**v));
            prop_assert_eq!(again, response);
        }
    }
}
