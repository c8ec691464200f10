//! What a file is, by its name or by its first bytes.

/// Bytes of a file that [`of_content`] wants to see.
pub(super) const SAMPLE: usize = 512;

/// Returns the type that the ending of a file name stands for.
pub(super) fn of_name(name: &str) -> Option<&'static str> {
    let (_, ending) = name.rsplit_once('.')?;
    let known = match ending.to_ascii_lowercase().as_str() {
        "htm" | "html" | "shtml" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "text" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "md" => "text/markdown; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "avif" => "image/avif",
        "bmp" => "image/bmp",
        "gif" => "image/gif",
        "ico" => "image/vnd.microsoft.icon",
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        "mp3" => "audio/mpeg",
        "m4a" => "audio/mp4",
        "ogg" | "oga" | "opus" => "audio/ogg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "ogv" => "video/ogg",
        "webm" => "video/webm",
        "otf" => "font/otf",
        "ttf" => "font/ttf",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        _ => return None,
    };
    Some(known)
}

/// Guesses the type from the first [`SAMPLE`] bytes, as browsers do (WHATWG MIME Sniffing), for the common types.
pub(super) fn of_content(sample: &[u8]) -> &'static str {
    const MAGIC: [(&[u8], &str); 8] = [
        (b"%PDF-", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"\x1f\x8b\x08", "application/x-gzip"),
        (b"PK\x03\x04", "application/zip"),
        (b"\0asm", "application/wasm"),
    ];
    const MARKUP: [&str; 8] = [
        "<!doctype html",
        "<html",
        "<head",
        "<body",
        "<script",
        "<h1",
        "<div",
        "<p",
    ];
    let sample = sample.get(..SAMPLE).unwrap_or(sample);
    if let Some((_, known)) = MAGIC.iter().find(|(magic, _)| sample.starts_with(magic)) {
        return known;
    }
    let start = sample.trim_ascii_start();
    let is_tag = |tag: &&str| {
        let (head, rest) = start.split_at(tag.len().min(start.len()));
        head.eq_ignore_ascii_case(tag.as_bytes()) && matches!(rest.first(), Some(b' ' | b'>'))
    };
    if MARKUP.iter().any(is_tag) {
        return "text/html; charset=utf-8";
    }
    if start.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    let is_binary = |&octet: &u8| matches!(octet, 0x00..=0x08 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    if sample.iter().any(is_binary) {
        "application/octet-stream"
    } else {
        "text/plain; charset=utf-8"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_contents() {
        assert_eq!(of_name("a/index.HTML"), Some("text/html; charset=utf-8"));
        assert_eq!(of_name("archive.tar.gz"), Some("application/gzip"));
        assert_eq!(of_name("README"), None);
        assert_eq!(of_content(b""), "text/plain; charset=utf-8");
        assert_eq!(
            of_content("žluťoučký".as_bytes()),
            "text/plain; charset=utf-8"
        );
        assert_eq!(
            of_content(b"\n <!DOCTYPE html>"),
            "text/html; charset=utf-8"
        );
        assert_eq!(of_content(b"<pre"), "text/plain; charset=utf-8");
        assert_eq!(of_content(b"\x00\x01"), "application/octet-stream");
        assert_eq!(of_content(b"\x89PNG\r\n\x1a\nxx"), "image/png");
    }
}
