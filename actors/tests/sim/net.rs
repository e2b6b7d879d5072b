//! The simulated network, as the transport and the registry's client see it.
//!
//! What turmoil does not know about connecting, and this does: a SYN over a link that carries nothing is sent again until
//! the dialler loses patience (turmoil takes a lost one for a refusal, which here is hard evidence), and the kernel of a
//! machine whose process is gone refuses at once (turmoil delivers nothing to a machine that is down).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Uri};
use troupe_actors::registry::etcd::Dial;
use troupe_actors::transport::{
    ACCEPT_QUEUE, Dialing, Incoming, Listener, Network, Stream, Unconnected,
};
use turmoil::net::{TcpListener, TcpStream};

/// Where the registry answers.
pub const REGISTRY: &str = "registry:2379";

/// How soon a SYN that got no answer is sent again.
const SYN_AGAIN: Duration = Duration::from_millis(20);
/// A refusal takes a round trip.
const REFUSED_AFTER: Duration = Duration::from_millis(5);

thread_local! {
    /// Links that carry nothing, by direction.
    static CUT: RefCell<BTreeSet<(String, String)>> = const { RefCell::new(BTreeSet::new()) };
    /// Machines without a process.
    static DOWN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    /// Connections by who dialled whom.
    static WIRES: RefCell<Vec<(String, String, Weak<Wire>)>> = const { RefCell::new(Vec::new()) };
}

/// Resets every connection between two machines: who dialled finds it broken, whatever was under way is lost, and the other
/// side finds it closed.
pub fn reset(a: &str, b: &str) {
    let wires: Vec<Arc<Wire>> = WIRES.with_borrow(|wires| {
        let between = wires
            .iter()
            .filter(|(from, to, _)| (from == a && to == b) || (from == b && to == a));
        between.filter_map(|(_, _, wire)| wire.upgrade()).collect()
    });
    for wire in wires {
        wire.cut();
    }
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

/// From now on no process runs on this machine, or one does again.
pub fn set_down(machine: &str, down: bool) {
    DOWN.with_borrow_mut(|machines| {
        if down {
            machines.insert(machine.to_owned());
        } else {
            machines.remove(machine);
        }
    });
}

/// Every link carries again, and nothing is known of any machine.
pub fn forget_all() {
    CUT.with_borrow_mut(BTreeSet::clear);
    DOWN.with_borrow_mut(BTreeSet::clear);
    WIRES.with_borrow_mut(Vec::clear);
}

/// One connection, as far as it can be reset.
#[derive(Default)]
struct Wire {
    is_cut: AtomicBool,
    /// Who waits to read, and to write.
    waiting: Mutex<[Option<Waker>; 2]>,
}

impl Wire {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting
            .iter_mut()
            .filter_map(Option::take)
            .for_each(Waker::wake);
    }

    /// An error when it was reset; otherwise remembers who waits.
    fn check(&self, side: usize, cx: &Context<'_>) -> io::Result<()> {
        if self.is_cut.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting[side] = Some(cx.waker().clone());
        Ok(())
    }
}

/// A stream, or half of one, that can be reset.
struct Wired<T> {
    stream: T,
    wire: Arc<Wire>,
}

/// From now on connections of `from` to `to` can be reset together with this wire.
fn wire(from: &str, to: &str) -> Arc<Wire> {
    let wire = Arc::new(Wire::default());
    WIRES.with_borrow_mut(|wires| {
        wires.retain(|(_, _, wire)| wire.strong_count() > 0);
        wires.push((from.to_owned(), to.to_owned(), Arc::downgrade(&wire)));
    });
    wire
}

impl<T: AsyncRead + Unpin> AsyncRead for Wired<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.wire.check(0, cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wired<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.wire.check(1, cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.check(1, cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection, as a kernel would make it; it may take for ever.
async fn connect(me: &str, address: &str) -> io::Result<TcpStream> {
    let peer = machine(address);
    loop {
        while is_cut(me, peer) {
            sleep(SYN_AGAIN).await;
        }
        if DOWN.with_borrow(|machines| machines.contains(peer)) {
            sleep(REFUSED_AFTER).await;
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        match TcpStream::connect(address).await {
            // It was cut while the SYN was under way.
            Err(_) if is_cut(me, peer) => {}
            connected => return connected,
        }
    }
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
            match timeout(within, connect(&me, &address)).await {
                Ok(Ok(stream)) => {
                    let peer = machine(&address);
                    open(stream, &wire(&me, peer)).map_err(silent)
                }
                Ok(Err(why)) => Err(unconnected(&why)),
                Err(_) => Err(Unconnected::Silent(format!("no answer from {address}"))),
            }
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

fn open(stream: TcpStream, wire: &Arc<Wire>) -> io::Result<Stream> {
    let remote = stream.peer_addr()?;
    let (reader, writer) = stream.into_split();
    Ok(Stream {
        reader: Box::new(Wired {
            stream: reader,
            wire: wire.clone(),
        }),
        writer: Box::new(Wired {
            stream: writer,
            wire: wire.clone(),
        }),
        remote,
        proof: None,
    })
}

fn machine(address: &str) -> &str {
    address.split(':').next().unwrap_or_default()
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
                open: Box::new(move || open(stream, &Arc::default())),
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
                let stream = connect(&me, REGISTRY).await?;
                let wire = wire(&me, machine(REGISTRY));
                Ok::<_, io::Error>(TokioIo::new(Wired { stream, wire }))
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
