//! `hy2 cert`: a self-signed certificate for servers without one.
//!
//! The key is ECDSA P-256: official clients that imitate a browser offer no Ed25519.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};

use crate::cli;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Writes certificate and key, and prints what a client needs to trust them.
pub(crate) fn run(flags: &cli::Cert) -> anyhow::Result<()> {
    if flags.cert == flags.key {
        bail!("certificate and key need files of their own");
    }
    for path in [&flags.cert, &flags.key] {
        if !flags.overwrite && path.exists() {
            bail!("{} exists; --overwrite replaces it", path.display());
        }
    }
    let made = make(&flags.host, flags.days)?;
    // The key first: a server that watches the files finds a pair once the certificate is there.
    write(&flags.key, &made.key, true, flags.overwrite)?;
    write(&flags.cert, &made.certificate, false, flags.overwrite)?;
    let mut out = io::stdout().lock();
    writeln!(out, "certificate: {}", flags.cert.display())?;
    writeln!(out, "key: {}", flags.key.display())?;
    writeln!(out, "pinSHA256: {}", made.fingerprint)?;
    Ok(())
}

struct Made {
    certificate: String,
    key: String,
    /// SHA-256 of the certificate, as `tls.pinSHA256` of a client takes it.
    fingerprint: String,
}

fn make(hosts: &[String], days: u32) -> anyhow::Result<Made> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("key")?;
    let hosts: Vec<String> = hosts
        .iter()
        .map(|host| host.trim_matches(['[', ']']).to_owned())
        .collect();
    for host in &hosts {
        // rcgen takes any ASCII text.
        let name = host.strip_prefix("*.").unwrap_or(host);
        if ServerName::try_from(name).is_err() {
            bail!("--host: {host:?} is neither a DNS name nor an IP address");
        }
    }
    let name = hosts.first().context("no host")?.clone();
    let mut params = CertificateParams::new(hosts).context("host is no DNS name or IP address")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    // Valid since yesterday, for clients whose clock is behind.
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch.saturating_sub(DAY);
    params.not_after = params.not_before + DAY * (days + 1);
    let certificate = params.self_signed(&key).context("certificate")?;
    let fingerprint = Sha256::digest(certificate.der());
    Ok(Made {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        fingerprint: fingerprint
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    })
}

/// Writes a file beside its place and moves it there, so that a reader never sees half of it.
fn write(path: &Path, text: &str, is_secret: bool, overwrite: bool) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if is_secret {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    if !overwrite {
        let mut file = options.open(path).with_context(context)?;
        return file.write_all(text.as_bytes()).with_context(context);
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let written = options
        .open(&beside)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.with_context(context)
}
