//! A small HTTP/1.1 client: one connection per request, a deadline on everything that is not followed.
//!
//! A token is shown over TLS or on this machine alone, and comes from a file alone.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use troupe_actors::admin::tls::ClientTls;

use crate::security;

/// A connection must be made within this.
const CONNECT: Duration = Duration::from_secs(5);
/// An answer must come within this; nodes answer within 15 s whatever happens.
const ANSWER: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// Largest line of a stream.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// Why a command was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was typed wrong.
    Usage(String),
    /// Nobody answers at the URL.
    Nobody {
        /// Where.
        url: String,
        /// What was found there.
        why: String,
    },
    /// The node said no.
    Refused {
        /// HTTP status.
        status: u16,
        /// Stable code.
        code: String,
        /// In words.
        message: String,
        /// The task it is about; the same id again is the same task.
        id: Option<String>,
        /// When to come again.
        retry_after: Option<Duration>,
    },
    /// Something else answers there, or a node of another version.
    Strange(String),
    /// It was done and did not go well; the words are said already.
    Failed,
    /// Nobody reads our stdout any more.
    Closed,
}

impl Failure {
    /// The exit code.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Refused { status: 404, .. } => 3,
            Self::Refused { .. } | Self::Strange(_) | Self::Failed => 1,
            Self::Usage(_) => 2,
            Self::Nobody { .. } => 69,
        }
    }

    /// What to say on stderr.
    pub(super) fn words(&self) -> Option<String> {
        match self {
            Self::Closed | Self::Failed => None,
            Self::Usage(words) => Some(words.clone()),
            Self::Refused {
                code, message, id, ..
            } => {
                let id = id.as_ref().map(|id| format!(", task {id}"));
                Some(format!("{message} [{code}{}]", id.unwrap_or_default()))
            }
            Self::Strange(why) => Some(format!(
                "the answer makes no sense ({why}); is that a troupe node of this version?"
            )),
            Self::Nobody { url, why } => Some(format!(
                "nobody answers at {url} ({why}); start a node (`troupe dev` or `troupe run`), or name another with --api URL or TROUPE_API"
            )),
        }
    }
}

/// An answer in JSON.
#[derive(Debug)]
pub(super) struct Json(pub(super) Value);

/// By what a node lets us in, and by what we know it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pass {
    token: Option<String>,
    tls: Option<ClientTls>,
}

impl Pass {
    /// From files: the token, and the certificates that a node's own is checked by (PEM).
    pub(super) fn read(token: Option<&Path>, ca: Option<&Path>) -> Result<Self, Failure> {
        let wrong = |flag: &str, file: &Path, why: String| {
            Failure::Usage(format!("{flag} {}: {why}", file.display()))
        };
        let token = token.map(|file| {
            let token = security::token(file);
            token.map_err(|why| wrong("--token-file", file, why))
        });
        let tls = ca.map(|file| {
            let pem = std::fs::read(file);
            let pem = pem.map_err(|why| wrong("--ca", file, format!("cannot be read: {why}")))?;
            ClientTls::new(&pem).map_err(|why| wrong("--ca", file, why.to_string()))
        });
        Ok(Self {
            token: token.transpose()?,
            tls: tls.transpose()?,
        })
    }
}

/// Bytes both ways, in the clear or not.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

/// A node's admin API.
#[derive(Clone)]
pub(super) struct Api {
    url: String,
    host: String,
    port: u16,
    tls: Option<ClientTls>,
    pass: Pass,
}

impl Api {
    /// Of `http://host[:port]` or `https://…`; without a scheme it is the first.
    pub(super) fn new(url: &str, pass: &Pass) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::Usage(format!("--api {url:?}: {why}"));
        let full = match url.contains("://") {
            true => url.to_owned(),
            false => format!("http://{url}"),
        };
        let uri: Uri = full.parse().map_err(|_| wrong("this is no URL"))?;
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| wrong("it names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let here = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) || host == "localhost";
        let (tls, port) = match uri.scheme_str() {
            Some("http") if pass.token.is_some() && !here => {
                return Err(wrong("the token would travel in the clear: use https://"));
            }
            Some("http") => (None, 80),
            Some("https") => (pass.tls.clone(), 443),
            _ => return Err(wrong("only http:// and https:// are spoken here")),
        };
        if port == 443 && tls.is_none() {
            return Err(wrong(
                "https:// needs --ca FILE, the certificates that the node's is checked by; `troupe ca SECRET_FILE` makes it of the cluster's secret",
            ));
        }
        Ok(Self {
            url: full.trim_end_matches('/').to_owned(),
            host,
            port: uri.port_u16().unwrap_or(port),
            tls,
            pass: pass.clone(),
        })
    }

    /// Where it is.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn get(&self, path: &str) -> Result<Json, Failure> {
        self.get_within(path, ANSWER).await
    }

    /// A read that may take its time.
    pub(super) async fn get_within(&self, path: &str, within: Duration) -> Result<Json, Failure> {
        let body = self
            .exchange(self.request(Method::GET, path, "", String::new())?, within)
            .await?;
        parse(&body)
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Json, Failure> {
        let request = self.request(Method::DELETE, path, "", String::new())?;
        parse(&self.exchange(request, ANSWER).await?)
    }

    pub(super) async fn put(&self, path: &str, body: String) -> Result<Json, Failure> {
        let request = self.request(Method::PUT, path, "application/json", body)?;
        parse(&self.exchange(request, ANSWER).await?)
    }

    pub(super) async fn post(&self, path: &str, body: String) -> Result<Json, Failure> {
        self.post_within(path, body, ANSWER).await
    }

    /// `GET path` of what is no JSON.
    pub(super) async fn text(&self, path: &str) -> Result<String, Failure> {
        let request = self.request(Method::GET, path, "", String::new())?;
        let body = self.exchange(request, ANSWER).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// `POST path` that may take longer.
    pub(super) async fn post_within(
        &self,
        path: &str,
        body: String,
        within: Duration,
    ) -> Result<Json, Failure> {
        let request = self.request(Method::POST, path, "application/json", body)?;
        parse(&self.exchange(request, within).await?)
    }

    /// Posts lines of JSON; answers lines of JSON.
    pub(super) async fn post_lines(&self, path: &str, body: String) -> Result<Vec<Value>, Failure> {
        let request = self.request(Method::POST, path, "application/x-ndjson", body)?;
        let body = self.exchange(request, ANSWER).await?;
        let lines = body.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.is_empty());
        lines.map(|line| parse(line).map(|json| json.0)).collect()
    }

    /// Opens a stream of lines of JSON.
    pub(super) async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        let mut request = self.request(Method::GET, path, "", String::new())?;
        let ndjson = hyper::header::HeaderValue::from_static("application/x-ndjson");
        request.headers_mut().insert(hyper::header::ACCEPT, ndjson);
        let response = self.timely(ANSWER, self.send(request)).await?;
        if response.status().is_success() {
            return Ok(Lines {
                body: response.into_body(),
                rest: Vec::new(),
            });
        }
        let status = response.status();
        let body = self.timely(ANSWER, self.body(response)).await?;
        Err(refusal(status, &body))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: String,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let host = match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        };
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("host", host).header("connection", "close");
        if let Some(token) = &self.pass.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let request = request.body(Full::new(Bytes::from(body)));
        request.map_err(|why| Failure::Usage(format!("{path}: {why}")))
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Bytes, Failure> {
        let exchange = async {
            let response = self.send(request).await?;
            let status = response.status();
            let body = self.body(response).await?;
            match status.is_success() {
                true => Ok(body),
                false => Err(refusal(status, &body)),
            }
        };
        self.timely(within, exchange).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        let mut sender = self.connect().await?;
        let answered = sender.send_request(request).await;
        answered.map_err(|why| self.nobody(why))
    }

    /// The API of another node of this cluster, by the address it gives or by its URL.
    pub(super) fn at(&self, address: &str) -> Result<Self, Failure> {
        Self::new(address, &self.pass)
    }

    /// A connection that stays open: one request after the other.
    pub(super) async fn stay(&self) -> Result<Staying<'_>, Failure> {
        Ok(Staying {
            sender: self.connect().await?,
            api: self,
        })
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
        let stream =
            match timeout(CONNECT, TcpStream::connect((self.host.as_str(), self.port))).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(why)) => return Err(self.nobody(why)),
                Err(_) => return Err(self.nobody(format!("no connection within {CONNECT:?}"))),
            };
        // A request is one small write; it should not wait for more.
        stream.set_nodelay(true).ok();
        let stream: Box<dyn Wire> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => match timeout(CONNECT, tls.connect(&self.host, stream)).await {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(why)) => return Err(self.nobody(format!("TLS: {why}"))),
                Err(_) => return Err(self.nobody(format!("no TLS handshake within {CONNECT:?}"))),
            },
        };
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|why| self.nobody(why))?;
        // How the connection ends shows in the answer.
        tokio::spawn(async { connection.await.ok() });
        Ok(sender)
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        body.map(|body| body.to_bytes())
            .map_err(|why| self.nobody(why))
    }

    async fn timely<T>(
        &self,
        within: Duration,
        what: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let late = |_| Err(self.nobody(format!("no answer within {within:?}")));
        timeout(within, what).await.unwrap_or_else(late)
    }

    fn nobody(&self, why: impl std::fmt::Display) -> Failure {
        Failure::Nobody {
            url: self.url.clone(),
            why: why.to_string(),
        }
    }
}

/// A connection that stays open.
pub(super) struct Staying<'a> {
    api: &'a Api,
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Staying<'_> {
    /// Posts a body; answers the status and the answer's body, whatever the status.
    pub(super) async fn post(
        &mut self,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let mut request = self.api.request(Method::POST, path, kind, String::new())?;
        request.headers_mut().remove("connection");
        *request.body_mut() = Full::new(body);
        let answered = self.sender.send_request(request).await;
        let response = answered.map_err(|why| self.api.nobody(why))?;
        let status = response.status();
        Ok((status, self.api.body(response).await?))
    }
}

/// A stream of lines of JSON.
pub(super) struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// The next line; `None` when the stream ended or broke.
    pub(super) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(value) = self.next_or_sign().await? {
                return Some(value);
            }
        }
    }

    /// The next line, `Some(None)` for an empty one (a sign of life), `None` when the stream ended or broke.
    pub(super) async fn next_or_sign(&mut self) -> Option<Option<Value>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).ok());
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.rest.extend_from_slice(data);
            }
            if self.rest.len() > MAX_LINE {
                return None;
            }
        }
    }
}

fn parse(body: &[u8]) -> Result<Json, Failure> {
    let parsed = serde_json::from_slice(body);
    parsed
        .map(Json)
        .map_err(|why| Failure::Strange(why.to_string()))
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["error"];
    let text = |key: &str| error[key].as_str().map(str::to_owned);
    let Some(message) = text("message") else {
        return Failure::Strange(format!("status {status}"));
    };
    Failure::Refused {
        status: status.as_u16(),
        code: text("code").unwrap_or_default(),
        message,
        id: text("id"),
        retry_after: error["retry_after_s"].as_u64().map(Duration::from_secs),
    }
}

/// A path with those parameters that are there.
pub(super) fn query(path: &str, params: &[(&str, Option<&str>)]) -> String {
    let given = params
        .iter()
        .filter_map(|(key, value)| Some((key, (*value)?)));
    let pairs = given.map(|(key, value)| format!("{key}={}", segment(value)));
    let pairs = pairs.collect::<Vec<_>>().join("&");
    match (pairs.as_str(), path.contains('?')) {
        ("", _) => path.to_owned(),
        (pairs, true) => format!("{path}&{pairs}"),
        (pairs, false) => format!("{path}?{pairs}"),
    }
}

/// A name as one segment of a path.
pub(super) fn segment(name: &str) -> String {
    let escaped = name.bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers one request with these bytes.
    async fn canned(answer: &'static str) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api::new(
            &listener.local_addr().unwrap().to_string(),
            &Pass::default(),
        )
        .unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            assert!(n > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        api
    }

    #[tokio::test]
    async fn exit_codes_tell_who_said_no() {
        let busy = "HTTP/1.1 503 Busy\r\nconnection: close\r\n\r\n{\"error\":{\"code\":\"busy\",\"message\":\"full\",\"retry_after_s\":7}}";
        for (answer, code) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 0),
            (
                "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\nno such page",
                1,
            ),
            (busy, 1),
            (
                "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{\"error\":{\"code\":\"x\",\"message\":\"none\"}}",
                3,
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", 1),
            ("SSH-2.0-OpenSSH\r\n", 69),
            ("", 69),
        ] {
            let got = canned(answer).await.get("/").await;
            assert_eq!(got.map_or_else(|f| f.code(), |_| 0), code, "{answer}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let failure = Api::new(&address, &Pass::default())
            .unwrap()
            .get("/")
            .await
            .unwrap_err();
        assert_eq!(failure.code(), 69);
        assert!(failure.words().unwrap().contains("troupe dev"));
    }

    #[tokio::test]
    async fn a_stream_is_read_line_by_line_however_it_is_cut() {
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n{\"a\"\r\n5\r\n:1}\n\n\r\n8\r\n{\"a\":2}\n\r\n0\r\n\r\n";
        let mut lines = canned(answer).await.lines("/").await.unwrap();
        assert_eq!(lines.next().await.unwrap()["a"], 1);
        assert_eq!(lines.next().await.unwrap()["a"], 2);
        assert_eq!(lines.next().await, None);
    }

    #[test]
    fn a_url_is_understood_or_refused_in_words() {
        for (url, host, port) in [
            ("http://127.0.0.1:22223", "127.0.0.1", 22223),
            ("node-a:80/", "node-a", 80),
            ("http://[::1]:22223", "::1", 22223),
            ("http://node-a", "node-a", 80),
        ] {
            let api = Api::new(url, &Pass::default()).unwrap();
            assert_eq!((api.host.as_str(), api.port), (host, port), "{url}");
        }
        for url in ["https://a", "http://", "", "::::"] {
            let failure = Api::new(url, &Pass::default()).err().unwrap();
            assert_eq!(failure.code(), 2, "{url}");
        }
    }

    #[test]
    fn parameters_cannot_change_the_shape_of_a_path() {
        assert_eq!(
            query("/a", &[("x", Some("1&y=2")), ("z", None)]),
            "/a?x=1%26y%3D2"
        );
        assert_eq!(query("/a?b=1", &[("x", Some("ü"))]), "/a?b=1&x=%C3%BC");
        assert_eq!(segment("a/../b"), "a%2F..%2Fb");
    }
}
