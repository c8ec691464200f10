use std::fs;

use tempfile::TempDir;

use super::*;

struct Site {
    _dir: TempDir,
    files: Files,
}

/// `outside.txt`, and beside it the site: a page, a directory with an index, one without, and links.
fn site() -> Site {
    let dir = TempDir::new().expect("a directory");
    let root = dir.path().join("site");
    fs::create_dir_all(root.join("docs")).expect("created");
    fs::create_dir_all(root.join("list/sub")).expect("created");
    fs::write(dir.path().join("outside.txt"), "secret").expect("written");
    fs::write(root.join("index.html"), "<h1>home</h1>").expect("written");
    fs::write(root.join("docs/index.html"), "<h1>docs</h1>").expect("written");
    fs::write(root.join("list/a&b?.txt"), "listed").expect("written");
    fs::write(root.join("plain"), "just text").expect("written");
    fs::write(root.join("large.bin"), vec![7; 200_000]).expect("written");
    std::os::unix::fs::symlink("../outside.txt", root.join("leak.txt")).expect("linked");
    std::os::unix::fs::symlink("..", root.join("up")).expect("linked");
    std::os::unix::fs::symlink("plain", root.join("alias")).expect("linked");
    Site {
        files: Files::new(root).expect("a directory"),
        _dir: dir,
    }
}

impl Site {
    async fn ask(&self, uri: &str, headers: &[(&str, &str)]) -> (u16, http::HeaderMap, Bytes) {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .files
            .serve(request.body(empty()).expect("a request"))
            .await;
        let (head, body) = response.into_parts();
        (
            head.status.as_u16(),
            head.headers,
            body.collect().await.expect("a body").to_bytes(),
        )
    }
}

#[tokio::test]
async fn files_and_their_types() {
    let site = site();
    let (status, headers, body) = site.ask("/", &[]).await;
    assert_eq!((status, &body[..]), (200, &b"<h1>home</h1>"[..]));
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["content-length"], "13");
    assert!(headers.contains_key("last-modified"));
    assert_eq!(site.ask("/docs/", &[]).await.2, "<h1>docs</h1>");
    let (status, headers, body) = site.ask("/plain", &[]).await;
    assert_eq!((status, &body[..]), (200, &b"just text"[..]));
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(
        site.ask("/alias", &[]).await.2,
        "just text",
        "a link inside"
    );
    assert_eq!(site.ask("/docs/%2e%2e/plain", &[]).await.2, "just text");
    assert_eq!(site.ask("/large.bin", &[]).await.2.len(), 200_000);
}

#[tokio::test]
async fn redirects_to_the_one_true_path() {
    let site = site();
    for (uri, location) in [
        ("/index.html", "./"),
        ("/docs/index.html?a=b", "./?a=b"),
        ("/docs", "docs/"),
        ("/list/sub?x", "sub/?x"),
        ("/plain/", "../plain"),
    ] {
        let (status, headers, _) = site.ask(uri, &[]).await;
        assert_eq!(
            (status, headers["location"].to_str().expect("text")),
            (301, location),
            "{uri}"
        );
    }
}

#[tokio::test]
async fn a_directory_without_an_index_is_listed() {
    let site = site();
    let (status, headers, body) = site.ask("/list/", &[]).await;
    assert_eq!(
        (status, headers["content-type"].to_str().expect("text")),
        (200, "text/html; charset=utf-8")
    );
    let wanted = "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n\
        <a href=\"a&b%3F.txt\">a&amp;b?.txt</a>\n<a href=\"sub/\">sub/</a>\n</pre>\n";
    assert_eq!(body, wanted);
    let changed = headers["last-modified"].to_str().expect("text");
    assert_eq!(
        site.ask("/list/", &[("if-modified-since", changed)])
            .await
            .0,
        304
    );
    assert_eq!(
        site.ask(
            "/list/",
            &[("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")]
        )
        .await
        .0,
        200
    );
}

#[tokio::test]
async fn nothing_outside_is_reached() {
    let site = site();
    for uri in [
        "/missing",
        "/../outside.txt",
        "/..%2foutside.txt",
        "/%2e%2e/outside.txt",
        "/docs/../../outside.txt",
        "/leak.txt",
        "/up/outside.txt",
        "/up/",
        "/plain%00.txt",
        "/plain/x",
        "//etc/passwd",
        "/%ff",
    ] {
        let (status, headers, body) = site.ask(uri, &[]).await;
        assert_eq!(
            (status, &body[..]),
            (404, &b"404 page not found\n"[..]),
            "{uri}"
        );
        assert_eq!(headers["x-content-type-options"], "nosniff");
    }
}

#[tokio::test]
async fn parts_and_conditions() {
    let site = site();
    let (status, headers, body) = site.ask("/plain", &[("range", "bytes=5-")]).await;
    assert_eq!((status, &body[..]), (206, &b"text"[..]));
    assert_eq!(headers["content-range"], "bytes 5-8/9");
    assert_eq!(
        site.ask("/large.bin", &[("range", "bytes=100-150099")])
            .await
            .2
            .len(),
        150_000
    );
    assert_eq!(site.ask("/plain", &[("range", "bytes=9-")]).await.0, 416);
    let (_, headers, _) = site.ask("/plain", &[]).await;
    let since = headers["last-modified"].to_str().expect("text").to_owned();
    let (status, headers, body) = site.ask("/plain", &[("if-modified-since", &since)]).await;
    assert_eq!((status, body.len()), (304, 0));
    assert!(!headers.contains_key("content-length") && !headers.contains_key("content-type"));
}

#[tokio::test]
async fn a_pipe_is_not_opened() {
    let site = site();
    let pipe = site.files.root.join("pipe");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    assert_eq!(site.ask("/pipe", &[]).await.0, 404);
}

#[tokio::test]
async fn a_file_that_shrinks_breaks_its_answer_off() {
    let site = site();
    let request = Request::builder()
        .uri("/large.bin")
        .body(empty())
        .expect("a request");
    let response = site.files.serve(request).await;
    fs::write(site.files.root.join("large.bin"), "short").expect("written");
    assert!(response.into_body().collect().await.is_err());
}

#[test]
fn the_root_is_a_directory_that_exists() {
    let site = site();
    assert!(Files::new(site.files.root.join("missing")).is_err());
    assert!(Files::new(site.files.root.join("plain")).is_err());
}
