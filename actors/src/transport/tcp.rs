//! TCP: listen, dial, and tell *refused* from *silent*.
//!
//! Refused is evidence that a process is gone (DESIGN 3.2), so it is only said when every address that a name stands for
//! refused. A firewall that rejects with a reset looks the same; nothing on this side can tell.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::{ACCEPT_QUEUE, Dialing, Incoming, Listener, Network, Port, Stream, Unconnected};

/// What the kernel holds beyond our own queue while the actor restarts.
const BACKLOG: u32 = 1024;
/// Bytes the kernel takes off our hands: what is there can no longer be overtaken by control frames.
const SEND_BUFFER: u32 = 256 * 1024;
/// Addresses tried of one name; each gets its share of the time.
const MAX_ADDRESSES: usize = 4;
/// Wait after a failed accept (no descriptors left, say), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The operating system's TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNetwork;

impl Network for TcpNetwork {
    fn dial(&self, address: &str, within: Duration) -> Dialing {
        let address = address.to_owned();
        Box::pin(async move { dial(&address, within).await })
    }
}

async fn dial(address: &str, within: Duration) -> Result<Stream, Unconnected> {
    let deadline = Instant::now() + within;
    let addresses = resolve(address, within).await?;
    let mut silence = None;
    for (tried, target) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(1);
        match timeout(share, connect(*target)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(why)) if why.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(Err(why)) => silence = Some(format!("{target}: {why}")),
            Err(_) => silence = Some(format!("no answer from {target} within {share:?}")),
        }
    }
    Err(silence.map_or(Unconnected::Refused, Unconnected::Silent))
}

/// The socket addresses of `host:port`; at least one.
async fn resolve(address: &str, within: Duration) -> Result<Vec<SocketAddr>, Unconnected> {
    // Without a name there is nothing to look up, and no detour over the thread that looks names up.
    if let Ok(literal) = address.parse() {
        return Ok(vec![literal]);
    }
    let silent = |why: String| Unconnected::Silent(format!("{address} cannot be resolved: {why}"));
    let mut found: Vec<SocketAddr> = Vec::new();
    match timeout(within, lookup_host(address)).await {
        Ok(Ok(addresses)) => {
            for one in addresses.take(4 * MAX_ADDRESSES) {
                if !found.contains(&one) && found.len() < MAX_ADDRESSES {
                    found.push(one);
                }
            }
        }
        Ok(Err(why)) => return Err(silent(why.to_string())),
        Err(_) => return Err(silent(format!("no answer within {within:?}"))),
    }
    if found.is_empty() {
        return Err(silent("the name stands for no address".to_owned()));
    }
    Ok(found)
}

fn socket(target: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if target.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_send_buffer_size(SEND_BUFFER)?;
    Ok(socket)
}

async fn connect(target: SocketAddr) -> io::Result<Stream> {
    let connected = socket(target)?.connect(target).await?;
    // A dial to a free port of this machine's own ephemeral range may be connected to itself by the kernel: nobody listens.
    if connected.local_addr()? == connected.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    open(connected)
}

fn open(stream: TcpStream) -> io::Result<Stream> {
    // Writers coalesce by themselves; waiting for more would only delay heartbeats.
    stream.set_nodelay(true)?;
    let remote = stream.peer_addr()?;
    let (reader, writer) = stream.into_split();
    Ok(Stream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        remote,
        proof: None,
    })
}

/// Listens at the first address of the name that can be bound, and accepts from now on.
pub(super) async fn bind(address: &str) -> io::Result<Listener> {
    let mut problem = None;
    for target in lookup_host(address).await? {
        match listen(target) {
            Ok(listener) => return Ok(listener),
            Err(why) => problem = Some(why),
        }
    }
    Err(problem.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

fn listen(target: SocketAddr) -> io::Result<Listener> {
    let socket = socket(target)?;
    // A restarted process must get its port back although connections of the old one linger.
    socket.set_reuseaddr(true)?;
    socket.bind(target)?;
    let listener = socket.listen(BACKLOG)?;
    let local = listener.local_addr()?;
    let (queue, incoming) = mpsc::channel(ACCEPT_QUEUE);
    let accepting = actix_rt::spawn(accept(listener, queue));
    Ok(Listener {
        local,
        incoming: Arc::new(Mutex::new(incoming)),
        port: Arc::new(Port {
            accepting: Some(accepting.abort_handle()),
            _held: None,
        }),
    })
}

async fn accept(listener: tokio::net::TcpListener, queue: mpsc::Sender<Incoming>) {
    let mut failing = false;
    // Accept only what there is room for; the rest waits in the kernel.
    while let Ok(slot) = queue.reserve().await {
        match listener.accept().await.and_then(incoming) {
            Ok(incoming) => {
                failing = false;
                slot.send(incoming);
            }
            Err(why) => {
                if !failing {
                    log::warn!(target: "transport", event = "session.accept_failed", err:display = why; "a connection could not be accepted");
                }
                failing = true;
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn incoming((stream, remote): (TcpStream, SocketAddr)) -> io::Result<Incoming> {
    // The actor may live on another thread, with an event loop of its own: unbind here, bind there.
    let stream = stream.into_std()?;
    Ok(Incoming {
        remote,
        open: Box::new(move || TcpStream::from_std(stream).and_then(open)),
    })
}
