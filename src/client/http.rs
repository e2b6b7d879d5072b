//! A small HTTP/1 client for one node: JSON in, JSON out, and a stream of lines.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Nobody answers within this: nobody is there.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Longer than the longest wait that the API allows.
const ANSWER_PATIENCE: Duration = Duration::from_secs(90);

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody answers there.
    Unreachable { url: String, why: String },
    /// The API says no.
    Refused { status: StatusCode, message: String },
    /// It was typed wrong.
    Usage(String),
    /// Anything else.
    Failed(String),
}

impl Failure {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 69,
            Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND => 3,
            Self::Usage(_) => 2,
            Self::Refused { .. } | Self::Failed(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { url, why } => {
                write!(
                    f,
                    "nobody answers at {url} ({why}); start a node, or name one with --api or TROUPE_API"
                )
            }
            Self::Refused { message, .. } => f.write_str(message),
            Self::Usage(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A node's admin API.
pub(super) struct Api {
    url: String,
    authority: String,
}

impl Api {
    pub(super) fn new(url: &str) -> Self {
        let authority = url.trim_start_matches("http://").trim_end_matches('/');
        Self {
            url: url.to_owned(),
            authority: authority.to_owned(),
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        let response = self
            .send(Method::GET, path, Bytes::new(), "application/json")
            .await?;
        self.json(response).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let body = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        let response = self
            .send(Method::POST, path, body, "application/json")
            .await?;
        self.json(response).await
    }

    /// Reads JSON lines until the node closes the stream.
    pub(super) async fn follow(
        &self,
        path: &str,
        mut each: impl FnMut(&Value),
    ) -> Result<(), Failure> {
        let mut response = self
            .send(Method::GET, path, Bytes::new(), "application/x-ndjson")
            .await?;
        if !response.status().is_success() {
            return self.json(response).await.map(|_| ());
        }
        let mut rest = Vec::new();
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|err| self.unreachable(&err.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if let Ok(value) = serde_json::from_slice(&line) {
                    each(&value);
                }
            }
        }
        Err(self.unreachable("the node closed the stream"))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        accept: &str,
    ) -> Result<Response<hyper::body::Incoming>, Failure> {
        if !self.url.starts_with("http://") {
            return Err(Failure::Usage(format!(
                "--api {:?} must be like http://127.0.0.1:22223",
                self.url
            )));
        }
        let mut sender = timeout(CONNECT_PATIENCE, self.connect())
            .await
            .map_err(|_| self.unreachable("no answer"))??;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, accept)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|err| Failure::Usage(err.to_string()))?;
        timeout(ANSWER_PATIENCE, sender.send_request(request))
            .await
            .map_err(|_| self.unreachable("no answer"))?
            .map_err(|err| self.unreachable(&err.to_string()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let stream = TcpStream::connect(&self.authority)
            .await
            .map_err(|err| self.unreachable(&err.to_string()))?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|err| self.unreachable(&err.to_string()))?;
        // It ends with the sender; what it fails of is told there.
        actix_rt::spawn(async move { connection.await.ok() });
        Ok(sender)
    }

    async fn json(&self, response: Response<hyper::body::Incoming>) -> Result<Value, Failure> {
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|err| self.unreachable(&err.to_string()))?
            .to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|err| {
                Failure::Failed(format!("{} did not answer JSON: {err}", self.url))
            });
        }
        let error: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = error["error"]["message"].as_str();
        let message =
            message.map_or_else(|| format!("{} answered {status}", self.url), str::to_owned);
        Err(Failure::Refused { status, message })
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::Unreachable {
            url: self.url.clone(),
            why: why.to_owned(),
        }
    }
}
