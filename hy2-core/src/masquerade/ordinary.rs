//! The site that is shown when nobody configured one.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, ETAG, SERVER},
};
use sha2::{Digest, Sha256};

use super::{
    Body, Masquerade,
    entity::{Entity, Plan},
    full,
};
use crate::BoxFuture;

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// A few static pages and a page for what is not there: the default masquerade.
///
/// Wording, colours, dates and entity tags follow from the site's name, so two servers with different names do not
/// answer the same bytes. It is still a page that anybody can find in this library's source: a site of your own
/// ([`Files`](super::Files), [`ReverseProxy`](super::ReverseProxy)) hides better.
///
/// Only GET and HEAD are answered with pages. Any other method gets status 405, the same for every path.
#[derive(Debug, Clone)]
pub struct OrdinarySite {
    pages: Vec<Page>,
    missing: Bytes,
    refused: Bytes,
    modified: SystemTime,
    server: Option<HeaderValue>,
}

#[derive(Debug, Clone)]
struct Page {
    path: &'static str,
    content_type: HeaderValue,
    etag: Option<HeaderValue>,
    content: Bytes,
}

impl OrdinarySite {
    /// Makes the site of this name, for instance the host name of the server's certificate.
    ///
    /// Answers carry `server: Caddy`, the web server that this library's HTTP/3 resembles.
    pub fn new(name: &str) -> Self {
        let style = Style::of(name);
        let name = escape(name);
        let pages = [
            ("/", HTML, style.home(&name)),
            ("/about", HTML, style.about(&name)),
            (
                "/style.css",
                HeaderValue::from_static("text/css; charset=utf-8"),
                style.sheet(),
            ),
            (
                "/robots.txt",
                HeaderValue::from_static("text/plain; charset=utf-8"),
                "User-agent: *\nAllow: /\n".into(),
            ),
        ];
        let pages = pages.into_iter().map(|(path, content_type, content)| Page {
            path,
            content_type,
            etag: style.etag(content.len()),
            content: content.into(),
        });
        Self {
            pages: pages.collect(),
            missing: style
                .page(
                    &name,
                    "Page not found",
                    "<p>There is no page at this address.</p>",
                )
                .into(),
            refused: style
                .page(&name, "Not allowed", "<p>This page can only be read.</p>")
                .into(),
            modified: style.modified,
            server: Some(HeaderValue::from_static("Caddy")),
        }
    }

    /// Sets the `server` header, or leaves it out.
    #[must_use]
    pub fn with_server(mut self, server: Option<HeaderValue>) -> Self {
        self.server = server;
        self
    }

    fn answer(&self, request: &Request<Body>) -> Response<Body> {
        let mut response = match *request.method() {
            Method::GET | Method::HEAD => self.read(request),
            _ => {
                let mut response = page_of(StatusCode::METHOD_NOT_ALLOWED, &self.refused);
                response
                    .headers_mut()
                    .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                response
            }
        };
        if let Some(server) = &self.server {
            response.headers_mut().insert(SERVER, server.clone());
        }
        response
    }

    fn read(&self, request: &Request<Body>) -> Response<Body> {
        let path = request.uri().path();
        let Some(page) = self.pages.iter().find(|page| page.path == path) else {
            return page_of(StatusCode::NOT_FOUND, &self.missing);
        };
        let entity = Entity {
            content_type: page.content_type.clone(),
            modified: Some(self.modified),
            etag: page.etag.clone(),
            size: page.content.len() as u64,
        };
        match entity.plan(request.method(), request.headers()) {
            Plan::Done(mut response) => {
                if let (StatusCode::NOT_MODIFIED, Some(etag)) = (response.status(), &page.etag) {
                    response.headers_mut().insert(ETAG, etag.clone());
                }
                response
            }
            Plan::Send(head, range) => {
                let bounds = usize::try_from(range.start)
                    .ok()
                    .zip(usize::try_from(range.end).ok());
                let part = bounds.and_then(|(start, end)| page.content.get(start..end));
                let part = part
                    .map(|part| page.content.slice_ref(part))
                    .unwrap_or_default();
                head.map(|()| full(part))
            }
        }
    }
}

impl Default for OrdinarySite {
    fn default() -> Self {
        Self::new("Welcome")
    }
}

impl Masquerade for OrdinarySite {
    fn serve(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move { self.answer(&request) })
    }
}

fn page_of(status: StatusCode, content: &Bytes) -> Response<Body> {
    let mut response = Response::new(full(content.clone()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HTML);
    response
}

/// The choices that a name makes.
struct Style {
    choices: [u8; 32],
    modified: SystemTime,
}

const TAGLINES: [&str; 8] = [
    "Notes, links and small projects.",
    "A small corner of the web.",
    "Things we build in our spare time.",
    "Photographs, recipes and the odd essay.",
    "Home of a few open projects.",
    "Updates appear here from time to time.",
    "Work in progress since quite a while.",
    "Friends and family, mostly.",
];
const PARAGRAPHS: [&str; 8] = [
    "This site is being rearranged. Older pages will return as they are cleaned up.",
    "There is not much here yet. Come back in a few weeks.",
    "Most of what used to be here has moved to other places.",
    "If you were sent a link to a file, please use the full address you were given.",
    "The archive is closed to the public. Write to us if you need something from it.",
    "We keep this page short on purpose.",
    "Everything on this site may be shared as long as you say where it came from.",
    "The mailing list has been retired; news are posted here instead.",
];
const FONTS: [&str; 4] = [
    "Georgia, serif",
    "system-ui, sans-serif",
    "Helvetica, Arial, sans-serif",
    "\"Palatino Linotype\", Palatino, serif",
];

impl Style {
    fn of(name: &str) -> Self {
        let choices: [u8; 32] = Sha256::digest(name.as_bytes()).into();
        // Some time in the first three quarters of 2025.
        let number = choices
            .iter()
            .skip(24)
            .fold(0u64, |number, &octet| number << 8 | u64::from(octet));
        let modified = UNIX_EPOCH
            + Duration::from_secs(1_735_689_600)
            + Duration::from_nanos(number % 23_328_000_000_000_000);
        Self { choices, modified }
    }

    fn pick<'a>(&self, at: usize, options: &'a [&'a str]) -> &'a str {
        let choice = usize::from(self.choices.get(at).copied().unwrap_or(0));
        options
            .get(choice % options.len().max(1))
            .copied()
            .unwrap_or("")
    }

    fn class(&self) -> &str {
        self.pick(
            0,
            &[
                "main",
                "content",
                "wrap",
                "page",
                "container",
                "box",
                "column",
                "inner",
            ],
        )
    }

    fn page(&self, name: &str, title: &str, content: &str) -> String {
        let class = self.class();
        let heading = if title == name {
            name.to_owned()
        } else {
            format!("{title} - {name}")
        };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{heading}</title>\n\
             <link rel=\"stylesheet\" href=\"/style.css\">\n</head>\n<body>\n<div class=\"{class}\">\n\
             <h1>{title}</h1>\n{content}\n</div>\n</body>\n</html>\n"
        )
    }

    fn home(&self, name: &str) -> String {
        let mut content = format!("<p><em>{}</em></p>\n", self.pick(1, &TAGLINES));
        let first = self.pick(2, &PARAGRAPHS);
        let second = self.pick(3, &PARAGRAPHS);
        // Writing to a string cannot fail.
        let _ = writeln!(content, "<p>{first}</p>");
        if second != first {
            let _ = writeln!(content, "<p>{second}</p>");
        }
        content.push_str("<p><a href=\"/about\">About</a></p>");
        self.page(name, name, &content)
    }

    fn about(&self, name: &str) -> String {
        let who = self.pick(
            4,
            &["two people", "a few friends", "one person", "a small group"],
        );
        let content = format!(
            "<p>{name} is run by {who}. {}</p>\n<p><a href=\"/\">Back</a></p>",
            self.pick(5, &PARAGRAPHS)
        );
        self.page(name, "About", &content)
    }

    fn sheet(&self) -> String {
        let tone = |at: usize| self.choices.get(at).copied().unwrap_or(0) / 2;
        format!(
            "body {{ margin: 0; color: #222; font: {}px/1.{} {}; }}\n.{} {{ max-width: {}em; margin: {}em auto; padding: 0 1em; }}\n\
             h1, a {{ color: #{:02x}{:02x}{:02x}; }}\n",
            15 + tone(6) % 4,
            4 + tone(7) % 4,
            self.pick(8, &FONTS),
            self.class(),
            34 + tone(9) % 12,
            2 + tone(10) % 4,
            tone(11),
            tone(12),
            tone(13),
        )
    }

    /// Returns a tag in Caddy's form: change time and size, to base 36.
    fn etag(&self, size: usize) -> Option<HeaderValue> {
        let time = self.modified.duration_since(UNIX_EPOCH).ok()?.as_nanos();
        HeaderValue::try_from(format!("\"{}{}\"", base36(time), base36(size as u128))).ok()
    }
}

fn base36(mut number: u128) -> String {
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(number % 36).unwrap_or(0);
        digits.extend(char::from_digit(digit, 36));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn ask(site: &OrdinarySite, method: &str, uri: &str) -> (u16, http::HeaderMap, Bytes) {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .body(super::super::empty())
            .expect("a request");
        let (head, body) = site.serve(request).await.into_parts();
        (
            head.status.as_u16(),
            head.headers,
            body.collect().await.expect("a body").to_bytes(),
        )
    }

    #[tokio::test]
    async fn pages_and_no_page() {
        let site = OrdinarySite::new("example.org");
        for path in ["/", "/about", "/style.css", "/robots.txt", "/?utm=1"] {
            let (status, headers, body) = ask(&site, "GET", path).await;
            assert_eq!(
                (status, headers["server"].as_bytes()),
                (200, &b"Caddy"[..]),
                "{path}"
            );
            assert_eq!(
                headers["content-length"].as_bytes(),
                body.len().to_string().as_bytes()
            );
            assert!(headers.contains_key("etag") && headers.contains_key("last-modified"));
        }
        let (status, headers, body) = ask(&site, "GET", "/missing").await;
        assert_eq!((status, &headers["content-type"]), (404, &HTML));
        assert!(
            !body.starts_with(b"404 page not found"),
            "the answer that gives other servers away"
        );
        assert!(!headers.contains_key("x-content-type-options"));
    }

    #[tokio::test]
    async fn every_post_gets_the_same_answer() {
        let site = OrdinarySite::default();
        let wanted = ask(&site, "POST", "https://hysteria/auth").await;
        assert_eq!(wanted.0, 405);
        for uri in ["/", "/about", "/missing", "https://example.org/auth"] {
            assert_eq!(ask(&site, "POST", uri).await, wanted);
        }
    }

    #[tokio::test]
    async fn a_page_that_did_not_change_is_not_sent_again() {
        let site = OrdinarySite::default();
        let etag = ask(&site, "GET", "/").await.1["etag"].clone();
        let request = Request::builder()
            .uri("/")
            .header("if-none-match", etag.clone());
        let response = site
            .serve(request.body(super::super::empty()).expect("a request"))
            .await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["etag"]),
            (304, &etag)
        );
    }

    #[tokio::test]
    async fn names_make_different_sites() {
        let (a, b) = (
            OrdinarySite::new("a.example"),
            OrdinarySite::new("b.example"),
        );
        for path in ["/", "/about", "/style.css"] {
            assert_ne!(ask(&a, "GET", path).await.2, ask(&b, "GET", path).await.2);
        }
        assert_eq!(
            ask(&a, "GET", "/").await,
            ask(&OrdinarySite::new("a.example"), "GET", "/").await
        );
        let script = OrdinarySite::new("<script>");
        assert!(!String::from_utf8_lossy(&ask(&script, "GET", "/").await.2).contains("<script>"));
        assert!(a.modified < SystemTime::now());
    }
}
