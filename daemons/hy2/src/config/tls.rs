//! `tls` of servers and clients.

use std::path::PathBuf;

use hy2_core::rustls::pki_types::ServerName;
use hy2_proto::uri::normalise_pin;

use super::section::Section;

/// Which server names are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SniGuard {
    /// Those of the certificate, if it has DNS names.
    DnsSan,
    /// Those of the certificate.
    Strict,
    /// All.
    Disable,
}

/// TLS of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerTls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) sni_guard: SniGuard,
    pub(crate) client_ca: Option<PathBuf>,
}

/// TLS of a client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ClientTls {
    pub(crate) sni: Option<String>,
    pub(crate) insecure: bool,
    /// SHA-256 of the server's certificate.
    pub(crate) pin: Option<[u8; 32]>,
    pub(crate) ca: Option<PathBuf>,
    /// Certificate and key files.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

pub(super) fn read_server(section: &Section<'_>) -> Option<ServerTls> {
    let certificate = section.required("cert", "the certificate file (PEM)");
    let key = section.required("key", "the key file (PEM)");
    let sni_guard = section.choice(
        "sniGuard",
        &[
            ("dns-san", SniGuard::DnsSan),
            ("strict", SniGuard::Strict),
            ("disable", SniGuard::Disable),
        ],
    );
    let client_ca = section.text("clientCA").map(PathBuf::from);
    Some(ServerTls {
        certificate: certificate?.into(),
        key: key?.into(),
        sni_guard: sni_guard?,
        client_ca,
    })
}

pub(super) fn read_client(section: &Section<'_>) -> ClientTls {
    section.refuse("ech", |_| false, "encrypted ClientHello");
    let certificate = section.text("clientCertificate").map(PathBuf::from);
    let key = section.text("clientKey").map(PathBuf::from);
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            section.mistake("clientKey", "missing: clientCertificate needs its key");
            None
        }
        (None, Some(_)) => {
            section.mistake(
                "clientCertificate",
                "missing: clientKey needs its certificate",
            );
            None
        }
    };
    ClientTls {
        sni: section.parsed("sni", section.text("sni"), server_name),
        insecure: section.flag("insecure"),
        pin: section.parsed("pinSHA256", section.text("pinSHA256"), pin),
        ca: section.text("ca").map(PathBuf::from),
        identity,
    }
}

/// Checks the name to ask a server for.
pub(super) fn server_name(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("must be a host name, a name outside ASCII in its xn-- form".into()),
    }
}

/// Reads a fingerprint as people write it.
pub(super) fn pin(text: &str) -> Result<[u8; 32], String> {
    let digits: Option<Vec<u8>> = normalise_pin(text)
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    digits
        .filter(|digits| digits.len() == 64)
        .map(|digits| std::array::from_fn(|index| digits[2 * index] << 4 | digits[2 * index + 1]))
        .ok_or_else(|| "must be a SHA-256 fingerprint of 64 hexadecimal digits".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins() {
        assert_eq!(pin(&"aB:".repeat(32)), Ok([0xab; 32]));
        assert_eq!(pin(&"12".repeat(32)), Ok([0x12; 32]));
        for wrong in ["", "ab", &"xy".repeat(32), &"ab".repeat(33)] {
            assert!(pin(wrong).is_err(), "{wrong}");
        }
    }
}
