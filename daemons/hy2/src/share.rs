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
    Ok(())
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
