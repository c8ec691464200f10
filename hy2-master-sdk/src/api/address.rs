//! From where a request comes: the peer, or what a declared proxy says of it.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use ipnet::IpNet;

use super::ApiState;

/// Address of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientAddress(pub IpAddr);

/// Puts the client's address into the request, and the host that is asked into its place.
pub(crate) async fn note_address(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    note_host(&mut request);
    let peer = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map(|peer| peer.0.ip());
    if let Some(peer) = peer {
        let address = client_address(peer, request.headers(), &state.trusted_proxies);
        request.extensions_mut().insert(ClientAddress(address));
    }
    next.run(request).await
}

/// Writes the host that is asked into `Host` where the request has it elsewhere: HTTP/2 names it in `:authority` alone
/// (RFC 9113, section 8.3.1).
fn note_host(request: &mut Request) {
    if request.headers().contains_key(header::HOST) {
        return;
    }
    let authority = request.uri().authority();
    let host = authority.map(|of| of.as_str().rsplit('@').next().unwrap_or_default());
    if let Some(Ok(host)) = host.map(HeaderValue::from_str) {
        request.headers_mut().insert(header::HOST, host);
    }
}

/// Returns the last address of `X-Forwarded-For` that no trusted proxy added itself; the peer if it
/// is no trusted proxy. What stands further left can be written by anybody.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| {
        let address = address.to_canonical();
        trusted.iter().any(|net| net.contains(&address))
    };
    let peer = peer.to_canonical();
    if !is_trusted(peer) {
        return peer;
    }
    let mut client = peer;
    let hops = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|hop| hop.trim().parse::<IpAddr>())
        .collect::<Vec<_>>();
    for hop in hops.into_iter().rev() {
        let Ok(hop) = hop else { break };
        client = hop.to_canonical();
        if !is_trusted(client) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn the_host_is_that_of_the_authority_where_there_is_no_other() {
        let noted = |uri: &str, host: Option<&str>| {
            let mut request = Request::get(uri);
            if let Some(host) = host {
                request = request.header(header::HOST, host);
            }
            let mut request = request.body(axum::body::Body::empty()).unwrap();
            note_host(&mut request);
            let host = request.headers().get(header::HOST);
            host.map(|host| host.to_str().unwrap().to_owned())
        };
        let host = |text: &str| Some(text.to_owned());
        assert_eq!(
            noted("https://a.example:8081/x", None),
            host("a.example:8081")
        );
        assert_eq!(noted("https://a@b.example/", None), host("b.example"));
        assert_eq!(noted("/x", Some("c.example")), host("c.example"));
        assert_eq!(noted("/x", None), None);
    }

    #[test]
    fn a_stranger_cannot_choose_an_address() {
        assert_eq!(client("203.0.113.9", &["1.2.3.4"], &[]), "203.0.113.9");
        assert_eq!(
            client("203.0.113.9", &["1.2.3.4"], &["127.0.0.0/8"]),
            "203.0.113.9"
        );
    }

    #[test]
    fn behind_a_proxy_the_last_untrusted_hop_counts() {
        let trusted = ["127.0.0.0/8", "10.0.0.0/8"];
        assert_eq!(
            client("127.0.0.1", &["1.2.3.4, 198.51.100.7"], &trusted),
            "198.51.100.7"
        );
        assert_eq!(
            client(
                "127.0.0.1",
                &["1.2.3.4", "198.51.100.7, 10.1.1.1"],
                &trusted
            ),
            "198.51.100.7"
        );
        assert_eq!(
            client("::ffff:127.0.0.1", &["2001:db8::1"], &trusted),
            "2001:db8::1"
        );
        assert_eq!(
            client("127.0.0.1", &["1.2.3.4, rubbish"], &trusted),
            "127.0.0.1"
        );
        assert_eq!(client("127.0.0.1", &[], &trusted), "127.0.0.1");
    }
}
