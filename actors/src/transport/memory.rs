//! A network within one process, for tests: the same greetings, frames and decisions, without sockets.
//!
//! Every message is still encoded and decoded. An address is just a name; nobody listening is *refused*, a cut host is *silent*.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{duplex, split};
use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;

use super::{ACCEPT_QUEUE, Dialing, Incoming, Listener, Network, Port, Stream, Unconnected};

/// Bytes in flight on one connection, in each direction; a socket's buffer.
const IN_FLIGHT: usize = 64 * 1024;

/// The network; cheap to clone, all clones are the same one.
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<StdMutex<Wires>>);

#[derive(Default)]
struct Wires {
    listening: BTreeMap<String, (u64, mpsc::Sender<Incoming>)>,
    silent: BTreeSet<String>,
    made: u64,
}

/// Takes the name off the network when the listener is gone.
struct Held {
    network: MemoryNetwork,
    address: String,
    made: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut wires = self.network.wires();
        let listening = wires.listening.get(&self.address);
        if listening.is_some_and(|(made, _)| *made == self.made) {
            wires.listening.remove(&self.address);
        }
    }
}

impl MemoryNetwork {
    /// Listens at `address` until the last clone of the listener is dropped. A name listens once; the newest does.
    pub fn listen(&self, address: &str) -> Listener {
        let (queue, incoming) = mpsc::channel(ACCEPT_QUEUE);
        let mut wires = self.wires();
        wires.made += 1;
        let made = wires.made;
        wires.listening.insert(address.to_owned(), (made, queue));
        Listener {
            local: name(made),
            incoming: Arc::new(Mutex::new(incoming)),
            port: Arc::new(Port {
                accepting: None,
                _held: Some(Box::new(Held {
                    network: self.clone(),
                    address: address.to_owned(),
                    made,
                })),
            }),
        }
    }

    /// From now on dials to `address` get no answer (or do again). Connections stay.
    pub fn set_silent(&self, address: &str, silent: bool) {
        let mut wires = self.wires();
        if silent {
            wires.silent.insert(address.to_owned());
        } else {
            wires.silent.remove(address);
        }
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, address: &str) -> Result<(mpsc::Sender<Incoming>, u64), Unconnected> {
        let mut wires = self.wires();
        if wires.silent.contains(address) {
            return Err(Unconnected::Silent(format!("no answer from {address}")));
        }
        wires.made += 1;
        let made = wires.made;
        match wires.listening.get(address) {
            Some((_, queue)) => Ok((queue.clone(), made)),
            None => Err(Unconnected::Refused),
        }
    }
}

/// Something that looks like an address, for logs.
fn name(made: u64) -> SocketAddr {
    let port = u16::try_from(made % 65_536).unwrap_or(0);
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Network for MemoryNetwork {
    fn dial(&self, address: &str, within: Duration) -> Dialing {
        let connected = self.connect(address);
        Box::pin(async move {
            let (queue, made) = match connected {
                Err(silent @ Unconnected::Silent(_)) => {
                    sleep(within).await;
                    return Err(silent);
                }
                connected => connected?,
            };
            let (here, there) = duplex(IN_FLIGHT);
            let stream = move |end, remote| {
                let (reader, writer) = split(end);
                Stream {
                    reader: Box::new(reader),
                    writer: Box::new(writer),
                    remote,
                    proof: None,
                }
            };
            let incoming = Incoming {
                remote: name(made),
                open: Box::new(move || Ok(stream(there, name(made)))),
            };
            let queued = queue.send(incoming).await;
            queued.map_err(|_| Unconnected::Refused)?;
            Ok(stream(here, name(made)))
        })
    }
}
