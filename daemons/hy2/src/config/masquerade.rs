//! `masquerade`: the web site that everyone without a password sees.

use std::path::PathBuf;

use hyper::{
    StatusCode, Uri,
    header::{self, HeaderName, HeaderValue},
};

use super::{Listen, section::Section};

/// The web site and where else it is served.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Masquerade {
    pub(crate) site: Site,
    /// HTTP on TCP.
    pub(crate) listen_http: Option<Listen>,
    /// HTTPS on TCP.
    pub(crate) listen_https: Option<Listen>,
    /// Whether HTTP redirects to HTTPS.
    pub(crate) force_https: bool,
}

/// What the site shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Site {
    /// The small built-in site.
    BuiltIn,
    /// "Not found" for everything, exactly as the reference answers.
    NotFound,
    /// Files of a folder.
    Files(PathBuf),
    /// Another web server.
    Proxy {
        /// `http://…`, `https://…`, or the path of a Unix socket.
        url: String,
        rewrite_host: bool,
        forwarded: bool,
        insecure: bool,
    },
    /// One text for everything.
    Text {
        content: String,
        headers: Vec<(HeaderName, HeaderValue)>,
        status: StatusCode,
    },
}

#[derive(Clone, Copy)]
enum Kind {
    BuiltIn,
    NotFound,
    File,
    Proxy,
    Text,
}

pub(super) fn read(section: &Section<'_>) -> Option<Masquerade> {
    let kind = section.choice(
        "type",
        &[
            ("", Kind::BuiltIn),
            ("404", Kind::NotFound),
            ("file", Kind::File),
            ("proxy", Kind::Proxy),
            ("string", Kind::Text),
        ],
    );
    // Settings of the kinds that were not chosen may stay in a file, and are not judged.
    let file = chosen(
        section,
        "file",
        matches!(kind, Some(Kind::File)),
        &["dir"],
        read_files,
    );
    let keys = ["url", "rewriteHost", "xForwarded", "insecure"];
    let proxy = chosen(
        section,
        "proxy",
        matches!(kind, Some(Kind::Proxy)),
        &keys,
        read_proxy,
    );
    let keys = ["content", "headers", "statusCode"];
    let text = chosen(
        section,
        "string",
        matches!(kind, Some(Kind::Text)),
        &keys,
        read_text,
    );

    let listen = |key| section.parsed(key, section.text(key), Listen::parse);
    let listen_http = listen("listenHTTP");
    let listen_https = listen("listenHTTPS");
    let force_https = section.flag("forceHTTPS");
    if listen_https.is_none() {
        if section.text("listenHTTP").is_some() && section.text("listenHTTPS").is_none() {
            section.mistake("listenHTTP", "needs listenHTTPS as well");
        } else if force_https {
            section.mistake("forceHTTPS", "needs listenHTTPS");
        }
    }
    let site = match kind? {
        Kind::BuiltIn => Some(Site::BuiltIn),
        Kind::NotFound => Some(Site::NotFound),
        Kind::File => file,
        Kind::Proxy => proxy,
        Kind::Text => text,
    };
    Some(Masquerade {
        site: site?,
        listen_http,
        listen_https,
        force_https,
    })
}

/// Reads a section if its kind was chosen, and only knows its keys otherwise.
fn chosen(
    section: &Section<'_>,
    key: &'static str,
    is_chosen: bool,
    keys: &[&'static str],
    read: impl FnOnce(&Section<'_>) -> Option<Site>,
) -> Option<Site> {
    section.section(key, |section| {
        if is_chosen {
            return read(section);
        }
        for key in keys {
            section.has(key);
        }
        None
    })
}

fn read_files(section: &Section<'_>) -> Option<Site> {
    let dir = section.required("dir", "the folder of the site")?;
    Some(Site::Files(dir.into()))
}

fn read_proxy(section: &Section<'_>) -> Option<Site> {
    let (rewrite_host, forwarded) = (section.flag("rewriteHost"), section.flag("xForwarded"));
    let insecure = section.flag("insecure");
    let url = section.required("url", "the web site to show");
    let url = section.parsed("url", url, |text| {
        let socket = text.strip_prefix("unix://").unwrap_or(text);
        if socket.len() > 1 && socket.starts_with('/') {
            return Ok(text.to_owned());
        }
        let url: Option<Uri> = text.parse().ok();
        let is_web = |url: &Uri| {
            let has_port = url.authority().is_some_and(|host| {
                let host = host.as_str();
                host.rsplit_once(']')
                    .map_or(host, |(_, rest)| rest)
                    .contains(':')
            });
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.host().is_some()
                && has_port == url.port_u16().is_some()
        };
        url.filter(is_web)
            .map(|_| text.to_owned())
            .ok_or_else(|| "must be an http:// or https:// URL or the path of a socket".into())
    })?;
    Some(Site::Proxy {
        url,
        rewrite_host,
        forwarded,
        insecure,
    })
}

/// What a server says about the message or the connection by itself.
const OF_THE_SERVER: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

fn read_text(section: &Section<'_>) -> Option<Site> {
    let content = section.required("content", "the text to show");
    let code = section.number("statusCode", 200, 200..=599);
    if code == 233 {
        section.mistake(
            "statusCode",
            "must not be 233, which tells clients that they are in",
        );
    }
    let mut headers = Vec::new();
    for (name, value) in section.pairs("headers") {
        match (name.parse::<HeaderName>(), value.parse()) {
            (Ok(field), _) if OF_THE_SERVER.contains(&field) => section.mistake(
                &format!("headers.{name}"),
                "cannot be set: it follows from the content and the connection",
            ),
            (Ok(name), Ok(value)) => headers.push((name, value)),
            _ => section.mistake(&format!("headers.{name}"), "is not an HTTP header"),
        }
    }
    Some(Site::Text {
        content: content?,
        headers,
        status: u16::try_from(code)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok())?,
    })
}
