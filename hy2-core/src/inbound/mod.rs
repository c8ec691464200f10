//! Local inbounds in front of a client: SOCKS5, HTTP proxy, TCP and UDP forwards.
