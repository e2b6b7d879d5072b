//! ⇄ Connections: bounded in number, in the time a request's head may take, and by the life of the actor.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::office::Office;
use super::patient::Patient;

/// Pause after an accept that failed (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection has left for the answer under way once the actor's life is over.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What is buffered for one connection.
const MAX_BUFFER: usize = 64 * 1024;
/// Largest head of a request.
const MAX_HEAD: usize = 32 * 1024;
/// The answer to a head that did not come.
const TOO_SLOW: &str = "{\"error\":{\"code\":\"slow_head\",\"message\":\"the head of the request did not arrive in time\"}}";

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote(pub(crate) SocketAddr);

/// Accepts until the life of the office is over. A connection beyond the bound waits in the backlog.
pub(crate) async fn serve(listener: TcpListener, office: Arc<Office>, router: Router) {
    let room = Arc::new(Semaphore::new(office.seed.settings.max_connections));
    let addresses = Addresses::default();
    let accept = async {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let bound = office.seed.settings.max_per_address;
                    let Some(place) = addresses.enter(from.ip(), bound) else {
                        let words = format!("it has {bound} connections already");
                        let from = from.ip().to_string();
                        office.seed.audit.refuse("connections", &from, &words);
                        continue;
                    };
                    let (office, router) = (Arc::clone(&office), router.clone());
                    actix_rt::spawn(receive(stream, from, (permit, place), office, router));
                }
                Err(why) => {
                    log::warn!(target: "admin", event = "admin.accept_failed", err:% = why; "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = office.closed() => {}
        () = accept => {}
    }
}

/// Connections by address, so that one machine cannot take all places.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One of an address's places, given back when it is dropped.
struct Place {
    addresses: Addresses,
    ip: IpAddr,
}

impl Addresses {
    /// `None` when the address has all its places. Loopback, where proxies and tunnels end, has as many as there are.
    fn enter(&self, ip: IpAddr, bound: usize) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(ip).or_default();
        if *count >= bound && !ip.is_loopback() {
            return None;
        }
        *count += 1;
        let addresses = self.clone();
        Some(Place { addresses, ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = self.addresses.0.lock();
        let mut taken = taken.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.ip);
            }
        }
    }
}

/// TLS, where there is a certificate; then the conversation.
async fn receive(
    stream: TcpStream,
    from: SocketAddr,
    _places: (OwnedSemaphorePermit, Place),
    office: Arc<Office>,
    router: Router,
) {
    // Small answers should not wait for more.
    stream.set_nodelay(true).ok();
    let stream = Patient::new(stream, office.seed.settings.write_timeout);
    let Some(tls) = office.seed.tls.clone() else {
        return converse(stream, from, office, router).await;
    };
    let within = office.seed.settings.header_timeout;
    let refuse = |words: &str| {
        let from = from.ip().to_string();
        office.seed.audit.refuse("handshake", &from, words);
    };
    match timeout(within, tls.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, from, Arc::clone(&office), router).await,
        Ok(Err(why)) => refuse(&why.to_string()),
        Err(_) => refuse("no TLS handshake in time"),
    }
}

async fn converse<S>(stream: S, from: SocketAddr, office: Arc<Office>, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let asked = Arc::new(AtomicBool::new(false));
    let was_asked = Arc::clone(&asked);
    let service = service_fn(move |request: Request<Incoming>| {
        was_asked.store(true, Ordering::Relaxed);
        let router = router.clone();
        Box::pin(async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Remote(from));
            router.oneshot(request).await
        })
    });
    let settings = &office.seed.settings;
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_headers(settings.max_headers)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut going = poll_fn(|cx| connection.poll_without_shutdown(cx));
    let ended = tokio::select! {
        biased;
        ended = &mut going => Some(ended),
        () = office.closed() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            let going = poll_fn(|cx| connection.poll_without_shutdown(cx));
            timeout(LAST_WORDS, going).await.unwrap_or(Ok(()))
        }
    };
    let mut stream = connection.into_parts().io.into_inner();
    if let Err(why) = ended
        && let Some((reason, words)) = fault(&why, asked.load(Ordering::Relaxed))
    {
        office
            .seed
            .audit
            .refuse(reason, &from.ip().to_string(), words);
        if reason == "slow_head" {
            let length = TOO_SLOW.len();
            let answer = format!(
                "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{TOO_SLOW}"
            );
            // It may be gone; then nobody is to be told.
            stream.write_all(answer.as_bytes()).await.ok();
        }
    }
    stream.shutdown().await.ok();
}

/// Whose fault the end of a connection is, when it is somebody's: one that was cut off or idle is nobody's.
fn fault(why: &hyper::Error, asked: bool) -> Option<(&'static str, &'static str)> {
    if why.is_timeout() {
        return (!asked).then_some(("slow_head", "the head of a request did not arrive in time"));
    }
    if why.is_parse_too_large() {
        return Some(("large_head", "the head of a request is too large"));
    }
    if why.is_parse() {
        return Some(("no_http", "what came is no HTTP/1.1 request"));
    }
    let mut source = std::error::Error::source(why);
    while let Some(cause) = source {
        let io = cause.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut) {
            return Some(("slow_reader", "an answer was not taken in"));
        }
        source = cause.source();
    }
    None
}
