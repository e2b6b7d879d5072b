//! The network between nodes: connections as a kernel keeps them, so that a process that is stopped still receives, one that
//! is gone is refused or reset by its machine, and a machine without power says nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::Sender;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use troupe_actors::transport::{
    ACCEPT_QUEUE, Dialing, Incoming, Listener, Network, Stream, Unconnected,
};

use crate::hub::{Hub, hub};

/// Bytes that one side may have on the way and unread by the other.
const WINDOW: usize = 256 * 1024;

/// What a dial is told.
type Answer = oneshot::Sender<Result<u64, Unconnected>>;

/// All connections of a run.
#[derive(Default)]
pub struct Conns {
    made: u64,
    open: BTreeMap<u64, Conn>,
    /// Dials that nobody will ever answer.
    forgotten: Vec<Answer>,
}

struct Conn {
    /// Who dialled, who was dialled.
    ends: [End; 2],
    /// Its segments are lost for ever: a firewall has forgotten it.
    stuck: bool,
}

struct End {
    node: usize,
    life: u32,
    /// The process holds it; both halves apart.
    halves: u8,
    closed: bool,
    broken: bool,
    /// What has come and is not read.
    inbox: VecDeque<u8>,
    finished: bool,
    /// Bytes that it has sent and the other has not read.
    unread: usize,
    /// When what it sent last arrives.
    last: Duration,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn new(node: usize, life: u32) -> Self {
        Self {
            node,
            life,
            halves: 2,
            closed: false,
            broken: false,
            inbox: VecDeque::new(),
            finished: false,
            unread: 0,
            last: Duration::ZERO,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

impl Hub {
    fn syn(&mut self, from: usize, to: usize, answer: Answer) {
        let life = self.machines[from].life;
        let act = move |hub: &mut Hub| hub.syn_arrives((from, life), to, answer);
        self.send(from, to, Duration::ZERO, Box::new(act));
    }

    fn syn_arrives(&mut self, (from, life): (usize, u32), to: usize, answer: Answer) {
        let machine = &self.machines[to];
        if machine.dark {
            self.conns.forgotten.push(answer);
            return;
        }
        let listens = machine.listens.clone().filter(|_| machine.up);
        let there = machine.life;
        let found = match listens {
            None => Err(Unconnected::Refused),
            Some(queue) => match self.accept((from, life), (to, there), &queue) {
                Some(conn) => Ok(conn),
                None => {
                    self.conns.forgotten.push(answer);
                    return;
                }
            },
        };
        let conn = found.as_ref().ok().copied();
        let act = move |hub: &mut Hub| {
            if let (Err(_), Some(conn)) = (answer.send(found), conn) {
                // Whoever dialled has lost patience.
                hub.close(conn, 0);
            }
        };
        let arrives = self.send(to, from, Duration::ZERO, Box::new(act));
        if let (Some(arrives), Some(conn)) = (arrives, conn)
            && let Some(conn) = self.conns.open.get_mut(&conn)
        {
            conn.ends[1].last = arrives;
        }
    }

    /// `None` when the queue of connections is full: the kernel drops the SYN.
    fn accept(
        &mut self,
        from: (usize, u32),
        to: (usize, u32),
        queue: &Sender<Incoming>,
    ) -> Option<u64> {
        self.conns.made += 1;
        let number = self.conns.made;
        let remote = address(from.0);
        let incoming = Incoming {
            remote,
            open: Box::new(move || Ok(stream(number, 1, remote))),
        };
        queue.try_send(incoming).ok()?;
        let conn = Conn {
            ends: [End::new(from.0, from.1), End::new(to.0, to.1)],
            stuck: false,
        };
        self.conns.open.insert(number, conn);
        Some(number)
    }

    /// From one end to the other, after all that it sent before.
    fn segment(&mut self, number: u64, end: usize, act: crate::hub::Act) {
        let Some(conn) = self.conns.open.get(&number) else {
            return;
        };
        if conn.stuck {
            return;
        }
        let (from, to) = (conn.ends[end].node, conn.ends[1 - end].node);
        let after = conn.ends[end].last;
        let arrives = self.send(from, to, after, act);
        if let (Some(arrives), Some(conn)) = (arrives, self.conns.open.get_mut(&number)) {
            conn.ends[end].last = arrives;
        }
    }

    fn arrives(&mut self, number: u64, end: usize, data: &[u8]) {
        if !self.answers(number, end) {
            return;
        }
        if let Some(conn) = self.conns.open.get_mut(&number) {
            conn.ends[end].inbox.extend(data);
            if let Some(waker) = conn.ends[end].reader.take() {
                waker.wake();
            }
        }
    }

    /// Whether a process holds this end; if not, its machine says so, when it can.
    fn answers(&mut self, number: u64, end: usize) -> bool {
        let Some(conn) = self.conns.open.get(&number) else {
            return false;
        };
        let this = &conn.ends[end];
        let machine = &self.machines[this.node];
        if machine.dark {
            return false;
        }
        let held = machine.up && machine.life == this.life && !this.closed;
        if !held {
            self.segment(
                number,
                end,
                Box::new(move |hub| hub.breaks(number, 1 - end)),
            );
        }
        held
    }

    /// RST.
    pub fn breaks(&mut self, number: u64, end: usize) {
        if let Some(conn) = self.conns.open.get_mut(&number) {
            conn.ends[end].broken = true;
            conn.ends[end].wake();
        }
    }

    fn finishes(&mut self, number: u64, end: usize) {
        if !self.answers(number, end) {
            return;
        }
        if let Some(conn) = self.conns.open.get_mut(&number) {
            conn.ends[end].finished = true;
            conn.ends[end].wake();
        }
    }

    fn shut(&mut self, number: u64, end: usize) {
        self.segment(
            number,
            end,
            Box::new(move |hub| hub.finishes(number, 1 - end)),
        );
    }

    /// The process lets go of it; what it has not read is lost, and the other side is told so.
    fn close(&mut self, number: u64, end: usize) {
        let Some(conn) = self.conns.open.get_mut(&number) else {
            return;
        };
        let this = &mut conn.ends[end];
        if std::mem::replace(&mut this.closed, true) {
            return;
        }
        let (lost, dark) = (!this.inbox.is_empty(), self.machines[this.node].dark);
        let over = conn.ends[1 - end].closed;
        if !dark {
            match lost {
                true => self.segment(
                    number,
                    end,
                    Box::new(move |hub| hub.breaks(number, 1 - end)),
                ),
                false => self.shut(number, end),
            }
        }
        if over {
            self.conns.open.remove(&number);
        }
    }

    fn drop_half(&mut self, number: u64, end: usize) {
        let Some(conn) = self.conns.open.get_mut(&number) else {
            return;
        };
        conn.ends[end].halves -= 1;
        if conn.ends[end].halves == 0 {
            self.close(number, end);
        }
    }

    /// The process is gone: its machine closes all that it held, also what it had not accepted yet.
    pub fn close_all(&mut self, node: usize, life: u32) {
        let held: Vec<(u64, usize)> = self.ends(|end| end.node == node && end.life == life);
        for (number, end) in held {
            self.close(number, end);
        }
    }

    fn ends(&self, wanted: impl Fn(&End) -> bool) -> Vec<(u64, usize)> {
        let all = self.conns.open.iter();
        all.flat_map(|(number, conn)| [(*number, 0, &conn.ends[0]), (*number, 1, &conn.ends[1])])
            .filter(|(_, _, end)| wanted(end))
            .map(|(number, end, _)| (number, end))
            .collect()
    }

    /// Connections that are open between two processes.
    pub fn connections(&self) -> Vec<u64> {
        let open = self.conns.open.iter();
        open.filter(|(_, conn)| conn.ends.iter().all(|end| !end.closed && !end.broken))
            .map(|(number, _)| *number)
            .collect()
    }

    /// Somebody on the way resets a connection: both ends are told at once.
    pub fn reset(&mut self, number: u64) {
        self.breaks(number, 0);
        self.breaks(number, 1);
    }

    /// A firewall forgets all connections between these two: half of them are reset, the others carry nothing any more.
    pub fn forget(&mut self, a: usize, b: usize, reset: bool) {
        let between: Vec<u64> = {
            let open = self.conns.open.iter();
            let pair = |conn: &Conn| {
                let (x, y) = (conn.ends[0].node, conn.ends[1].node);
                (x, y) == (a, b) || (x, y) == (b, a)
            };
            open.filter(|(_, conn)| pair(conn))
                .map(|(n, _)| *n)
                .collect()
        };
        for number in between {
            if reset {
                self.reset(number);
            } else if let Some(conn) = self.conns.open.get_mut(&number) {
                conn.stuck = true;
            }
        }
    }

    fn poll_read(
        &mut self,
        (number, end): (u64, usize),
        context: &Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(conn) = self.conns.open.get_mut(&number) else {
            return Poll::Ready(Ok(()));
        };
        let this = &mut conn.ends[end];
        if this.inbox.is_empty() {
            if this.broken {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if this.finished {
                return Poll::Ready(Ok(()));
            }
            this.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let before = into.filled().len();
        let (front, _) = this.inbox.as_slices();
        let take = front.len().min(into.remaining());
        into.put_slice(&front[..take]);
        this.inbox.drain(..take);
        let read = into.filled().len() - before;
        // Only somebody who waits for room must hear of it in time.
        if conn.ends[1 - end].writer.is_none() {
            self.is_read(number, 1 - end, read);
        } else {
            let act = move |hub: &mut Hub| hub.is_read(number, 1 - end, read);
            self.segment(number, end, Box::new(act));
        }
        Poll::Ready(Ok(()))
    }

    /// There is room for as much more.
    fn is_read(&mut self, number: u64, end: usize, bytes: usize) {
        if let Some(conn) = self.conns.open.get_mut(&number) {
            let this = &mut conn.ends[end];
            this.unread = this.unread.saturating_sub(bytes);
            if let Some(waker) = this.writer.take() {
                waker.wake();
            }
        }
    }

    fn poll_write(
        &mut self,
        (number, end): (u64, usize),
        context: &Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(conn) = self.conns.open.get_mut(&number) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let this = &mut conn.ends[end];
        if this.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let take = from.len().min(WINDOW.saturating_sub(this.unread));
        if take == 0 && !from.is_empty() {
            this.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        this.unread += take;
        let data = from[..take].to_vec();
        let act = move |hub: &mut Hub| hub.arrives(number, 1 - end, &data);
        self.segment(number, end, Box::new(act));
        Poll::Ready(Ok(take))
    }
}

/// Something that looks like an address, for logs.
fn address(node: usize) -> SocketAddr {
    let last = u8::try_from(node + 1).unwrap_or(u8::MAX);
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, last), 22222))
}

/// `n3:22222` is node 2.
fn node_at(address: &str) -> Option<usize> {
    let (name, _) = address.split_once(':')?;
    name.strip_prefix('n')?
        .parse::<usize>()
        .ok()?
        .checked_sub(1)
}

fn stream(number: u64, end: usize, remote: SocketAddr) -> Stream {
    Stream {
        reader: Box::new(Half { number, end }),
        writer: Box::new(Half { number, end }),
        remote,
        proof: None,
    }
}

/// One direction of a connection, as its process holds it.
struct Half {
    number: u64,
    end: usize,
}

impl Drop for Half {
    fn drop(&mut self) {
        hub(|hub| hub.drop_half(self.number, self.end));
    }
}

impl AsyncRead for Half {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        hub(|hub| hub.poll_read((self.number, self.end), context, into))
    }
}

impl AsyncWrite for Half {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        hub(|hub| hub.poll_write((self.number, self.end), context, from))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        hub(|hub| hub.shut(self.number, self.end));
        Poll::Ready(Ok(()))
    }
}

/// The network as one node sees it.
pub struct Wire {
    pub me: usize,
}

impl Network for Wire {
    fn dial(&self, to: &str, within: Duration) -> Dialing {
        let (me, to) = (self.me, to.to_owned());
        Box::pin(async move {
            let known = hub(|hub| node_at(&to).filter(|node| *node < hub.machines.len()));
            let node = known.ok_or_else(|| Unconnected::Silent(format!("no such name: {to}")))?;
            let (answer, told) = oneshot::channel();
            hub(|hub| hub.syn(me, node, answer));
            match timeout(within, told).await {
                Ok(Ok(found)) => Ok(stream(found?, 0, address(node))),
                Ok(Err(_)) | Err(_) => Err(Unconnected::Silent(format!("no answer from {to}"))),
            }
        })
    }
}

/// The port of a node.
pub fn listen(node: usize) -> Listener {
    let (queue, incoming) = mpsc::channel(ACCEPT_QUEUE);
    hub(|hub| hub.machines[node].listens = Some(queue));
    Listener::fed(address(node), incoming, Box::new(()))
}
