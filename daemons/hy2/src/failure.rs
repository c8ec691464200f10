//! What a failure means to whoever started the command: an exit code.

use hy2_core::error::ConnectError;

/// Failed, or wrong configuration.
const FAILED: u8 = 1;
/// The server refused the credentials.
const AUTH_REJECTED: u8 = 3;
/// The server's certificate was not accepted.
const CERTIFICATE: u8 = 4;
/// No answer from the server.
const SILENCE: u8 = 5;

/// Returns the exit code for an error; `--help` lists them.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    match error.chain().find_map(|cause| cause.downcast_ref()) {
        Some(ConnectError::AuthRejected { .. }) => AUTH_REJECTED,
        Some(ConnectError::Tls(_) | ConnectError::PinMismatch) => CERTIFICATE,
        Some(ConnectError::Silence) => SILENCE,
        _ => FAILED,
    }
}

/// Names the kind of a failed connection attempt, for logs and labels.
pub(crate) fn kind(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Config(_) => "configuration",
        ConnectError::Unresolvable(_) => "name",
        ConnectError::Socket(_) => "socket",
        ConnectError::AuthRejected { .. } => "auth",
        ConnectError::PinMismatch => "pin",
        ConnectError::Tls(_) => "tls",
        ConnectError::Silence => "silence",
        ConnectError::Protocol(_) => "protocol",
        ConnectError::Lost(_) => "lost",
        ConnectError::Closed => "closed",
        _ => "other",
    }
}

/// Returns what to look at first, where the error's own text does not say.
pub(crate) fn hint(error: &anyhow::Error) -> Option<&'static str> {
    match error.chain().find_map(|cause| cause.downcast_ref())? {
        ConnectError::AuthRejected { .. } => {
            Some("check auth; where the server has users it is name:password")
        }
        ConnectError::PinMismatch => {
            Some("check tls.pinSHA256; the server's certificate may have been renewed")
        }
        ConnectError::Tls(reason) if reason.contains("client certificate") => {
            Some("set tls.clientCertificate and tls.clientKey")
        }
        ConnectError::Tls(_) => Some(
            "check tls.sni, which must be a name of the certificate; a self-signed certificate \
             needs tls.ca, or tls.insecure together with tls.pinSHA256",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn codes_are_found_under_context() {
        for (error, code) in [
            (ConnectError::AuthRejected { status: 404 }, 3),
            (ConnectError::PinMismatch, 4),
            (ConnectError::Tls("no".into()), 4),
            (ConnectError::Silence, 5),
            (ConnectError::Closed, 1),
        ] {
            let error = Err::<(), _>(error)
                .context("connect")
                .expect_err("an error");
            assert_eq!(exit_code(&error), code);
        }
        assert_eq!(exit_code(&anyhow::anyhow!("else")), 1);
    }
}
