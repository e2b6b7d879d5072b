//! ⇄ Connections: bounded in number, in the time a request's head may take, and by the life of the actor.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::office::Office;

/// Pause after an accept that failed (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection has left for the answer under way once the actor's life is over.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Largest head of a request, and of what hyper buffers for one connection.
const MAX_HEAD: usize = 64 * 1024;

/// Accepts until the life of the office is over. A connection beyond the bound waits in the backlog.
pub(crate) async fn serve(listener: TcpListener, office: Arc<Office>, router: Router) {
    let room = Arc::new(Semaphore::new(office.seed.settings.max_connections));
    let accept = async {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = converse(stream, permit, Arc::clone(&office), router.clone());
                    actix_rt::spawn(connection);
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

async fn converse(
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
    office: Arc<Office>,
    router: Router,
) {
    // Small answers should not wait for more.
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move { router.oneshot(request.map(Body::new)).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(office.seed.settings.header_timeout)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is the client's business: it broke off, or was too slow.
    tokio::select! {
        biased;
        ended = connection.as_mut() => drop(ended),
        () = office.closed() => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_WORDS, connection).await.ok();
        }
    }
}
