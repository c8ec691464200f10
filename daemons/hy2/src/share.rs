//! `hy2 share`: a client's configuration as a link and a QR code.

use std::io::{self, Write};

use anyhow::Context;
use qrcode::{QrCode, render::unicode::Dense1x2};

use crate::{cli, config};

/// Prints the link of a client's configuration.
pub(crate) fn run(client: &config::Client, flags: &cli::Share) -> anyhow::Result<()> {
    let link = client.share_link().to_string();
    let mut out = io::stdout().lock();
    if !flags.notext {
        writeln!(out, "{link}")?;
    }
    if flags.qr {
        writeln!(out, "{}", qr(&link)?)?;
    }
    if let Some(warning) = missing(client) {
        writeln!(io::stderr(), "hy2: {warning}")?;
    }
    Ok(())
}

/// Tells what the configuration needs and a link has no place for.
fn missing(client: &config::Client) -> Option<&'static str> {
    let tls = &client.tls;
    if tls.ca.is_some() && !tls.insecure {
        return Some(
            "the link does not carry tls.ca, so it connects only where that authority is trusted; set \
             tls.pinSHA256 to the fingerprint of the server's certificate and tls.insecure to true (the \
             pin is still checked), or hand on the file as well",
        );
    }
    if client.auth.reveal().contains('+') {
        return Some(
            "the official client reads a '+' of the password in a link as a space; hy2 reads it right. For the \
             official client choose a password without one",
        );
    }
    tls.identity.is_some().then_some(
        "the link does not carry tls.clientCertificate and tls.clientKey; the other client needs its own",
    )
}

/// Draws a QR code for a terminal with light text on a dark ground.
fn qr(text: &str) -> anyhow::Result<String> {
    let code = QrCode::new(text).context("the link is too long for a QR code")?;
    let image = code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .build();
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qr_codes_are_square_and_have_a_limit() {
        let image = qr("hysteria2://a@b/").expect("short enough");
        let lines: Vec<_> = image.lines().collect();
        let width = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == width));
        assert_eq!(lines.len(), width.div_ceil(2));
        assert!(qr(&"x".repeat(10_000)).is_err());
    }
}
