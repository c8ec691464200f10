//! Requests to the orchestrator, and its answers.

use std::{sync::Mutex, time::Duration};

use anyhow::Context;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use url::{Host, Url};

use crate::{
    failure::{Failure, Problem},
    profile::{Profile, Profiles, Session},
    tls,
};

/// How long an answer may take; the orchestrator gives up after 60 s itself.
const PATIENCE: Duration = Duration::from_secs(70);

/// How long a stream may be silent; the orchestrator speaks every 15 s.
pub(crate) const SILENCE: Duration = Duration::from_secs(45);

/// Largest answer that is read at once, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// An access token that ends within this time is renewed first.
const NEARLY: time::Duration = time::Duration::seconds(20);

/// Where sessions come from and go to.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) profiles: Profiles,
    pub(crate) name: String,
}

/// A way to the orchestrator.
pub(crate) struct Client {
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: Url,
    api_token: Option<String>,
    session: Mutex<Option<Session>>,
    keeper: Option<Keeper>,
}

impl Client {
    /// Prepares a way; nothing is sent.
    pub(crate) fn new(profile: &Profile, keeper: Option<Keeper>) -> Result<Self, Failure> {
        let base = base(&profile.url)?;
        let tls = tls::config(profile.ca.as_deref(), profile.pin.as_deref())?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(connector);
        Ok(Self {
            http: HyperClient::builder(TokioExecutor::new()).build(connector),
            base,
            api_token: profile.api_token.clone(),
            session: Mutex::new(profile.session.clone()),
            keeper,
        })
    }

    /// Reads.
    pub(crate) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Failure> {
        self.call(Method::GET, path, query, None).await
    }

    /// Makes or does something.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::POST, path, &[], Some(body)).await
    }

    /// Replaces something.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PUT, path, &[], Some(body)).await
    }

    /// Changes something.
    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PATCH, path, &[], Some(body)).await
    }

    /// Removes something.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, &[], None).await
    }

    /// Asks, and reads the answer as JSON; an empty one is `null`.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let bytes = self.bytes(method, path, query, body).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| foreign())
    }

    /// Asks, and reads the answer as it is.
    pub(crate) async fn bytes(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<Bytes, Failure> {
        let answer = async {
            let response = self.open(method, path, query, body, &[]).await?;
            collect(response).await
        };
        in_time(PATIENCE, answer).await?
    }

    /// Asks, and returns an answer that is good, to be read piece by piece. Renews the session when
    /// it is over.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        headers: &[(&str, String)],
    ) -> Result<Response<Incoming>, Failure> {
        self.renew(false).await?;
        let first = self.send(&method, path, query, body, headers).await;
        match first {
            Err(Failure::Problem(problem)) if problem.code == "unauthenticated" => {
                if !self.renew(true).await? {
                    return Err(Failure::Problem(problem));
                }
                self.send(&method, path, query, body, headers).await
            }
            other => other,
        }
    }

    /// Opens a session; `None` if a code of the second factor is needed.
    pub(crate) async fn log_in(
        &self,
        username: &str,
        password: &str,
        code: Option<&str>,
    ) -> Result<Option<Value>, Failure> {
        let mut login = json!({"username": username, "password": password});
        if let Some(code) = code {
            login["code"] = code.into();
        }
        let asked = self.send(&Method::POST, "/auth/login", &[], Some(&login), &[]);
        match in_time(PATIENCE, asked).await? {
            Ok(response) => {
                let bytes = collect(response).await?;
                let answer: Value = serde_json::from_slice(&bytes).map_err(|_| foreign())?;
                *self.lock() = Some(session(&answer)?);
                Ok(Some(answer))
            }
            Err(Failure::Problem(problem)) if problem.code == "totp_required" && code.is_none() => {
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Returns the session in force.
    pub(crate) fn session(&self) -> Option<Session> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Session>> {
        self.session
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Renews the session if it is nearly over, or in any case. Returns whether there is a new one.
    async fn renew(&self, in_any_case: bool) -> Result<bool, Failure> {
        let Some(mine) = self.session() else {
            return Ok(false);
        };
        let soon = OffsetDateTime::parse(&mine.access_expires_at, &Rfc3339)
            .is_ok_and(|end| end - OffsetDateTime::now_utc() < NEARLY);
        if !soon && !in_any_case {
            return Ok(false);
        }
        let Some(keeper) = &self.keeper else {
            return Ok(false);
        };
        // Another process may have renewed it meanwhile.
        let _lock = keeper.profiles.lock()?;
        let kept = keeper
            .profiles
            .find(&keeper.name)?
            .and_then(|profile| profile.session);
        if let Some(kept) = kept.filter(|kept| *kept != mine) {
            *self.lock() = Some(kept);
            return Ok(true);
        }
        let body = json!({"refresh_token": mine.refresh_token});
        *self.lock() = None;
        let asked = self.send(&Method::POST, "/auth/refresh", &[], Some(&body), &[]);
        let response = match in_time(PATIENCE, asked).await? {
            Ok(response) => response,
            Err(Failure::Problem(problem)) if problem.status == 401 => {
                return Err(Failure::NotLoggedIn(
                    "the session is over: hy2ctl login".to_owned(),
                ));
            }
            Err(failure) => return Err(failure),
        };
        let bytes = collect(response).await?;
        let answer: Value = serde_json::from_slice(&bytes).map_err(|_| foreign())?;
        let renewed = session(&answer)?;
        keeper.profiles.put_session(&keeper.name, renewed.clone())?;
        *self.lock() = Some(renewed);
        Ok(true)
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        headers: &[(&str, String)],
    ) -> Result<Response<Incoming>, Failure> {
        let mut url = self.base.clone();
        url.set_path(&format!(
            "{}/api/v1{path}",
            self.base.path().trim_end_matches('/')
        ));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(
                header::USER_AGENT,
                concat!("hy2ctl/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::ACCEPT, "*/*");
        let bearer = self
            .lock()
            .as_ref()
            .map(|session| session.access_token.clone());
        if let Some(token) = bearer.or_else(|| self.api_token.clone()) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(body)).context("request")?;
        let response = self.http.request(request).await.map_err(|error| {
            Failure::Unreachable(format!("cannot reach {}: {}", self.base, chain(&error)))
        })?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(refusal(response).await),
        }
    }
}

/// Reads the whole of an answer.
async fn collect(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| Failure::Unreachable(format!("the answer broke off: {error}")))
}

/// Reads why not.
async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let retry = response.headers().get(header::RETRY_AFTER);
    let retry_after_s = retry.and_then(|value| value.to_str().ok()?.parse().ok());
    let bytes = match collect(response).await {
        Ok(bytes) => bytes,
        Err(failure) => return failure,
    };
    let mut problem: Problem = serde_json::from_slice(&bytes).unwrap_or_default();
    if problem.code.is_empty() {
        // A proxy in between, or something else altogether.
        problem.code = "foreign_answer".to_owned();
        problem.detail = format!("answered {status}, and not as an orchestrator does");
    }
    problem.status = status.as_u16();
    problem.retry_after_s = retry_after_s;
    Failure::Problem(problem)
}

fn session(answer: &Value) -> Result<Session, Failure> {
    let text = |key: &str| answer[key].as_str().map(str::to_owned).ok_or_else(foreign);
    Ok(Session {
        access_token: text("access_token")?,
        access_expires_at: text("access_expires_at")?,
        refresh_token: text("refresh_token")?,
    })
}

fn foreign() -> Failure {
    Failure::Unreachable("the answer is not that of an orchestrator".to_owned())
}

pub(crate) async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| Failure::Unreachable(format!("no answer within {} s", limit.as_secs())))
}

/// Reads where the orchestrator is. Secrets go over TLS, or stay on this host.
fn base(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text)
        .map_err(|error| Failure::Usage(format!("{text} is not an address: {error}")))?;
    let local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if local => Ok(url),
        "http" => Err(Failure::Usage(format!(
            "{text}: passwords and tokens do not go over plain HTTP to another host; use https"
        ))),
        _ => Err(Failure::Usage(format!("{text} is neither https nor http"))),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base;

    #[test]
    fn plain_http_stays_on_this_host() {
        for good in [
            "http://127.0.0.1:8081",
            "http://[::1]/",
            "http://localhost",
            "https://a.example/x/",
        ] {
            assert!(base(good).is_ok(), "{good}");
        }
        for bad in [
            "http://10.0.0.1:8081",
            "http://a.example",
            "ftp://localhost",
            "a.example",
            "",
        ] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }
}
