//! A directory as a web site, the way Go's `http.FileServer` shows one: the reference's masquerade of type `file`.

use std::{
    fs::Metadata,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, IF_MODIFIED_SINCE, LAST_MODIFIED, LOCATION},
};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, Take},
};

use super::{
    Body, BodyError, Masquerade, empty,
    entity::{Entity, Plan},
    full, media_type, path, plain_error,
};
use crate::BoxFuture;

/// Bytes of a file in memory at a time, for each answer being sent.
const CHUNK: usize = 64 * 1024;
/// Most entries shown of one directory.
const MAX_LISTED: usize = 10_000;

/// Serves the files below a directory.
///
/// `index.html` stands for its directory; a directory without one is listed. Conditional requests and single ranges
/// are understood. Symbolic links are followed as long as they stay below the directory; what lies outside, and
/// whatever is neither file nor directory, does not exist.
#[derive(Debug, Clone)]
pub struct Files {
    root: Arc<Path>,
}

impl Files {
    /// Serves what is below `root`, a directory that exists.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn new(root: impl AsRef<Path>) -> io::Result<Self> {
        let root = std::fs::canonicalize(root)?;
        if !std::fs::metadata(&root)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Self { root: root.into() })
    }

    async fn answer(&self, request: &Request<()>) -> Response<Body> {
        let Some(plain) = path::decode(request.uri().path()) else {
            return failure(&io::ErrorKind::NotFound.into());
        };
        if plain.ends_with("/index.html") {
            return redirect(request, "./");
        }
        let segments: PathBuf = path::segments(&plain).iter().collect();
        let root = Arc::clone(&self.root);
        let wanted = segments.clone();
        let found = tokio::task::spawn_blocking(move || find(&root, &wanted)).await;
        let found = found.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        let last = segments
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        match (found, plain.ends_with('/') || plain == "*") {
            (Err(error), _) => failure(&error),
            (Ok(Found::File { .. }), true) => redirect(request, &format!("../{}", last)),
            (Ok(Found::Index { .. } | Found::Listing { .. }), false) => {
                redirect(request, &format!("{}/", last))
            }
            (Ok(Found::File { file, metadata }), false) => {
                send(request, last, file, &metadata).await
            }
            (Ok(Found::Index { file, metadata }), true) => {
                send(request, "index.html", file, &metadata).await
            }
            (Ok(Found::Listing { entries, metadata }), true) => {
                listing(request, &entries, &metadata)
            }
        }
    }
}

impl Masquerade for Files {
    fn serve(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        let request = request.map(drop);
        Box::pin(async move { self.answer(&request).await })
    }
}

#[derive(Debug)]
enum Found {
    File {
        file: std::fs::File,
        metadata: Metadata,
    },
    Index {
        file: std::fs::File,
        metadata: Metadata,
    },
    Listing {
        entries: Vec<String>,
        metadata: Metadata,
    },
}

/// Looks up a path below `root`; blocking.
fn find(root: &Path, wanted: &Path) -> io::Result<Found> {
    let place = resolve(root, wanted)?;
    let metadata = std::fs::metadata(&place)?;
    if !metadata.is_dir() {
        let (file, metadata) = open(&place, metadata)?;
        return Ok(Found::File { file, metadata });
    }
    if let Ok(index) = resolve(root, &place.join("index.html")) {
        let about = std::fs::metadata(&index)?;
        if !about.is_dir() {
            let (file, metadata) = open(&index, about)?;
            return Ok(Found::Index { file, metadata });
        }
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(&place)?.take(MAX_LISTED) {
        let entry = entry?;
        let mut name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            name.push('/');
        }
        entries.push(name);
    }
    entries.sort_unstable();
    Ok(Found::Listing { entries, metadata })
}

/// Follows symbolic links and refuses what they lead out to.
fn resolve(root: &Path, wanted: &Path) -> io::Result<PathBuf> {
    let place = std::fs::canonicalize(root.join(wanted))?;
    if place.starts_with(root) {
        Ok(place)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Opens a regular file. Opening a pipe or a device could wait for ever, or do something.
fn open(place: &Path, metadata: Metadata) -> io::Result<(std::fs::File, Metadata)> {
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((std::fs::File::open(place)?, metadata))
}

async fn send(
    request: &Request<()>,
    name: &str,
    file: std::fs::File,
    metadata: &Metadata,
) -> Response<Body> {
    let mut file = File::from_std(file);
    let content_type = match media_type::of_name(name) {
        Some(known) => known,
        None => match sample(&mut file).await {
            Ok(sample) => media_type::of_content(&sample),
            Err(error) => return failure(&error),
        },
    };
    let entity = Entity {
        content_type: HeaderValue::from_static(content_type),
        modified: metadata.modified().ok(),
        etag: None,
        size: metadata.len(),
    };
    match entity.plan(request.method(), request.headers()) {
        Plan::Done(response) => response,
        Plan::Send(head, range) => match content(file, range).await {
            Ok(body) => head.map(|()| body),
            Err(error) => failure(&error),
        },
    }
}

async fn sample(file: &mut File) -> io::Result<Vec<u8>> {
    let mut sample = Vec::with_capacity(media_type::SAMPLE);
    file.take(media_type::SAMPLE as u64)
        .read_to_end(&mut sample)
        .await?;
    Ok(sample)
}

/// Returns these bytes of a file, read while they are sent.
async fn content(mut file: File, range: Range<u64>) -> io::Result<Body> {
    file.seek(io::SeekFrom::Start(range.start)).await?;
    let left = file.take(range.end - range.start);
    Ok(StreamBody::new(stream::try_unfold(left, next_chunk)).boxed_unsync())
}

async fn next_chunk(mut left: Take<File>) -> Result<Option<(Frame<Bytes>, Take<File>)>, BodyError> {
    let missing = left.limit();
    if missing == 0 {
        return Ok(None);
    }
    let mut chunk = BytesMut::with_capacity(usize::try_from(missing).unwrap_or(CHUNK).min(CHUNK));
    if left.read_buf(&mut chunk).await? == 0 {
        // The file is shorter than it was when its length was sent.
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some((Frame::data(chunk.freeze()), left)))
}

fn listing(request: &Request<()>, entries: &[String], metadata: &Metadata) -> Response<Body> {
    let about = Entity {
        content_type: HeaderValue::from_static("text/html; charset=utf-8"),
        modified: metadata.modified().ok(),
        etag: None,
        size: 0,
    };
    let mut conditions = http::HeaderMap::new();
    if let Some(since) = request.headers().get(IF_MODIFIED_SINCE) {
        conditions.insert(IF_MODIFIED_SINCE, since.clone());
    }
    let head = match about.plan(request.method(), &conditions) {
        Plan::Done(mut not_modified) => {
            // Go tells when a file last changed, but not when a directory did.
            not_modified.headers_mut().remove(LAST_MODIFIED);
            return not_modified;
        }
        Plan::Send(head, _) => head,
    };
    let mut page = String::from(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n",
    );
    for entry in entries {
        let (name, slash) = entry
            .strip_suffix('/')
            .map_or((entry.as_str(), ""), |name| (name, "/"));
        let link = path::link(name);
        page.push_str(&format!(
            "<a href=\"{link}{slash}\">{}</a>\n",
            escape(entry)
        ));
    }
    page.push_str("</pre>\n");
    let mut response = Response::new(full(page));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, about.content_type);
    if let Some(modified) = head.headers().get(LAST_MODIFIED) {
        response
            .headers_mut()
            .insert(LAST_MODIFIED, modified.clone());
    }
    response
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn redirect(request: &Request<()>, to: &str) -> Response<Body> {
    let query = request
        .uri()
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    // Not escaped, as from Go; a name that no header can carry leads nowhere.
    if let Ok(location) = HeaderValue::from_bytes(format!("{to}{query}").as_bytes()) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn failure(error: &io::Error) -> Response<Body> {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::InvalidFilename
        | io::ErrorKind::InvalidInput => plain_error(StatusCode::NOT_FOUND, "404 page not found"),
        io::ErrorKind::PermissionDenied => plain_error(StatusCode::FORBIDDEN, "403 Forbidden"),
        _ => plain_error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "500 Internal Server Error",
        ),
    }
}

#[cfg(test)]
mod tests;
