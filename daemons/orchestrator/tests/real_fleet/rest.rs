//! A small client of the REST API.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

type Http = Client<HttpConnector, Full<Bytes>>;

fn http() -> Http {
    Client::builder(TokioExecutor::new())
        // Whoever is killed and comes back must not be asked on an old connection.
        .pool_max_idle_per_host(0)
        .build_http()
}

/// Fetches a page in clear, each time from another address: how often one address may ask is
/// limited.
pub(crate) async fn fetch(url: &str) -> Result<String, String> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [high, low] = NEXT.fetch_add(1, Relaxed).to_be_bytes();
    let mut connector = HttpConnector::new();
    connector.set_local_address(Some([127, 8, high, low].into()));
    let http: Http = Client::builder(TokioExecutor::new()).build(connector);
    let request = Request::get(url).body(Full::default()).expect("a request");
    let (status, body) = send(&http, request).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        Ok(text)
    } else {
        Err(format!("{url}: {status}: {text}"))
    }
}

async fn send(http: &Http, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
    let answer = async {
        let answer = http.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error);
            format!("{error}: {cause:?}")
        })?;
        let status = answer.status();
        let body = answer.into_body().collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    tokio::time::timeout(Duration::from_secs(30), answer)
        .await
        .map_err(|_| "no answer".to_owned())?
}

/// An administrator's way in.
#[derive(Clone, Debug)]
pub(crate) struct Rest {
    http: Http,
    base: String,
    admin: Arc<(String, String)>,
    token: Arc<Mutex<Option<String>>>,
}

impl Rest {
    pub(crate) fn new(port: u16, admin: String, password: String) -> Self {
        Self {
            http: http(),
            base: format!("http://127.0.0.1:{port}"),
            admin: Arc::new((admin, password)),
            token: Arc::default(),
        }
    }

    /// Where the API is.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    async fn token(&self) -> Result<String, String> {
        let mut token = self.token.lock().await;
        if let Some(token) = &*token {
            return Ok(token.clone());
        }
        let body = json!({"username": self.admin.0, "password": self.admin.1});
        let request = Request::post(format!("{}/api/v1/auth/login", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))
            .expect("a request");
        let (status, body) = send(&self.http, request).await?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        match answer["access_token"].as_str() {
            Some(found) => {
                *token = Some(found.to_owned());
                Ok(found.to_owned())
            }
            None => Err(format!("login: {status}: {answer}")),
        }
    }

    /// Asks once. `Err` without an answer.
    pub(crate) async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), String> {
        for _ in 0..2 {
            let token = self.token().await?;
            let request = Request::builder()
                .method(method.clone())
                .uri(format!("{}/api/v1{path}", self.base))
                .header(header::AUTHORIZATION, format!("Bearer {token}"))
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::from(body.map(Value::to_string).unwrap_or_default()))
                .expect("a request");
            let (status, body) = send(&self.http, request).await?;
            if status == StatusCode::UNAUTHORIZED {
                // It is over: log in anew.
                *self.token.lock().await = None;
                continue;
            }
            let value = match body.is_empty() {
                true => Value::Null,
                false => serde_json::from_slice(&body).map_err(|error| error.to_string())?,
            };
            return Ok((status, value));
        }
        Err("not let in".to_owned())
    }

    /// Asks and wants a yes.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let asked = self.try_call(method.clone(), path, body.as_ref()).await;
        match asked {
            Ok((status, value)) if status.is_success() => value,
            other => panic!("{method} {path} {body:?}: {other:?}"),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Value {
        self.call(Method::PATCH, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Value {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Value {
        self.call(Method::DELETE, path, None).await
    }

    /// Reads while the master may be away.
    pub(crate) async fn look(&self, path: &str) -> Result<Value, String> {
        let (status, value) = self.try_call(Method::GET, path, None).await?;
        if status.is_success() {
            Ok(value)
        } else {
            Err(format!("{path}: {status}: {value}"))
        }
    }
}
