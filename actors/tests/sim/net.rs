//! The simulated network, as the transport and the registry's client see it.
//!
//! turmoil drops what crosses a cut link, and a dropped SYN looks to the dialler like a refusal. A refusal is hard evidence
//! here, so whoever dials over a cut link gets what a machine would give: silence.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Uri};
use troupe_actors::registry::etcd::Dial;
use troupe_actors::transport::{
    ACCEPT_QUEUE, Dialing, Incoming, Listener, Network, Stream, Unconnected,
};
use turmoil::net::{TcpListener, TcpStream};

/// Where the registry answers.
pub const REGISTRY: &str = "registry:2379";

thread_local! {
    /// Links that carry nothing, by direction.
    static CUT: RefCell<BTreeSet<(String, String)>> = const { RefCell::new(BTreeSet::new()) };
}

/// From now on nothing goes from `from` to `to`, or it does again.
pub fn set_cut(from: &str, to: &str, cut: bool) {
    let link = (from.to_owned(), to.to_owned());
    CUT.with_borrow_mut(|links| {
        if cut {
            links.insert(link);
        } else {
            links.remove(&link);
        }
    });
}

/// Every link carries again.
pub fn mend_all() {
    CUT.with_borrow_mut(BTreeSet::clear);
}

fn is_cut(a: &str, b: &str) -> bool {
    let link = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    CUT.with_borrow(|links| links.contains(&link(a, b)) || links.contains(&link(b, a)))
}

/// The network as one node sees it.
pub struct SimNetwork {
    pub me: String,
}

impl Network for SimNetwork {
    fn dial(&self, address: &str, within: Duration) -> Dialing {
        let (me, address) = (self.me.clone(), address.to_owned());
        Box::pin(async move {
            let deadline = Instant::now() + within;
            let peer = address.split(':').next().unwrap_or_default();
            if !is_cut(&me, peer) {
                match timeout_at(deadline, TcpStream::connect(address.as_str())).await {
                    Ok(Ok(stream)) => return open(stream).map_err(silent),
                    Ok(Err(why)) if !is_cut(&me, peer) => return Err(unconnected(&why)),
                    _ => {}
                }
            }
            sleep_until(deadline).await;
            Err(Unconnected::Silent(format!("no answer from {address}")))
        })
    }
}

fn unconnected(why: &io::Error) -> Unconnected {
    match why.kind() {
        io::ErrorKind::ConnectionRefused => Unconnected::Refused,
        _ => Unconnected::Silent(why.to_string()),
    }
}

fn silent(why: io::Error) -> Unconnected {
    Unconnected::Silent(why.to_string())
}

fn open(stream: TcpStream) -> io::Result<Stream> {
    let remote = stream.peer_addr()?;
    let (reader, writer) = stream.into_split();
    Ok(Stream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        remote,
    })
}

/// The port of a node.
pub async fn listen(port: u16) -> io::Result<Listener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let local = listener.local_addr()?;
    let (queue, incoming) = mpsc::channel(ACCEPT_QUEUE);
    tokio::task::spawn_local(async move {
        while let Ok(slot) = queue.reserve().await {
            let Ok((stream, remote)) = listener.accept().await else {
                return;
            };
            slot.send(Incoming {
                remote,
                open: Box::new(move || open(stream)),
            });
        }
    });
    Ok(Listener::fed(local, incoming, Box::new(())))
}

/// How a node's registry client connects.
pub fn dial_registry(me: &str) -> Dial {
    let me = me.to_owned();
    Arc::new(move |endpoint: &Endpoint| {
        let me = me.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let me = me.clone();
            async move {
                if !is_cut(&me, "registry") {
                    let connected = TcpStream::connect(REGISTRY).await;
                    if connected.is_ok() || !is_cut(&me, "registry") {
                        return connected.map(TokioIo::new);
                    }
                }
                // Longer than any call of the client may take.
                sleep(Duration::from_secs(60)).await;
                Err(io::ErrorKind::TimedOut.into())
            }
        }))
    })
}

/// A connection to the registry's server.
pub struct Served(pub TcpStream);

impl Connected for Served {
    type ConnectInfo = Option<SocketAddr>;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.0.peer_addr().ok()
    }
}

impl AsyncRead for Served {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Served {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
