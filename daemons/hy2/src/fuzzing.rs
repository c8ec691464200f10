//! The readers of configuration files, for the fuzz targets.

use crate::config::{self, Format};

/// Reads the settings of a server; says what is wrong with them.
pub fn server(text: &str, json: bool) -> Result<(), String> {
    config::server_text(text, format(json))
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Reads the settings of a client and returns the link to share; says what is wrong with them.
pub fn client(text: &str, json: bool, inbounds: bool) -> Result<String, String> {
    config::client_text(text, format(json), inbounds)
        .map(|client| client.share_link().to_string())
        .map_err(|error| error.to_string())
}

fn format(json: bool) -> Format {
    if json { Format::Json } else { Format::Yaml }
}
