//! The HTTP proxy on any stream, for the fuzz targets. SOCKS5 messages are public.

use std::sync::Arc;

use super::{Dialer, HttpProxyConfig, http};
use crate::outbound::TcpConnection;

/// Serves one connection from its first byte to its end.
pub async fn serve_http<D: Dialer, L>(config: Arc<HttpProxyConfig>, dialer: D, stream: L)
where
    L: TcpConnection,
{
    http::serve_connection(config, dialer, stream).await;
}
