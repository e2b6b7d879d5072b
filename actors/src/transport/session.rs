//! The life of one connection: the greeting, then a reader and a writer.
//!
//! The writer ends when its queues close, and writes what they held; the reader ends by itself or is stopped by the owner of
//! the [`Link`]. Whatever ends either is told once, by dropping a [`Report`], so that not even a panic is overlooked.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use actix::Recipient;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::frame::{self, Decoded, Decoder};
use super::handshake::{self, Greeting, HandshakeError, Hello, Prefix, Purpose, Refusal, Welcome};
use super::hlc::HybridClock;
use super::lanes::{Lanes, Stop};
use super::sessions::SessionKey;
use super::trust::{Distrust, Proof, Side};
use super::{DialOutcome, Heard, Network, Stream, TransportSettings, Unconnected};
use crate::cluster::Fence;
use crate::discovery::EpochSeen;
use crate::id::Incarnation;
use crate::wire::{Class, Desk, Envelope, Header, Message, Unknown};

/// A write gathers up to this much.
const WRITE_CHUNK: usize = 64 * 1024;
/// A read brings about this much while there is much to read…
const READ_CHUNK: usize = 64 * 1024;
/// …and this much otherwise, so that a thousand quiet sessions cost a few megabytes.
const QUIET_CHUNK: usize = 4 * 1024;
/// Bytes of bulk queued for one session; a few times what is in flight on a fast link with a long way.
const BULK_BYTES: usize = 16 * 1024 * 1024;
/// Bytes queued for one session at all; only carried API requests come near it.
const QUEUED_BYTES: usize = 32 * 1024 * 1024;
/// When a session ends, its last messages may take this long to reach their desks (or the wire), then they are lost.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Unknown kinds answered per session; each once.
const MAX_UNKNOWN: usize = 64;

/// Sends its message when dropped, however its task ends.
pub(super) struct Report<M>
where
    M: actix::Message<Result = ()> + Send + 'static,
{
    to: Recipient<M>,
    message: Option<M>,
}

impl<M> Report<M>
where
    M: actix::Message<Result = ()> + Send + 'static,
{
    pub(super) fn new(to: Recipient<M>, unless_told: M) -> Self {
        Self {
            to,
            message: Some(unless_told),
        }
    }

    pub(super) fn tell(mut self, message: M) {
        self.message = Some(message);
    }
}

impl<M> Drop for Report<M>
where
    M: actix::Message<Result = ()> + Send + 'static,
{
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.to.do_send(message);
        }
    }
}

/// A session has ended by itself.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub(super) struct SessionEnded {
    pub(super) key: SessionKey,
    pub(super) why: String,
}

/// What everything that arrives has in common, whatever session brings it.
#[derive(Clone)]
pub(super) struct Senses {
    pub(super) fence: Fence,
    pub(super) epoch_seen: Recipient<EpochSeen>,
    pub(super) clock: HybridClock,
    pub(super) unix_ms: fn() -> u64,
}

impl Senses {
    /// The header of a message that leaves now.
    pub(super) fn header(&self) -> Header {
        Header {
            epoch: self.fence.current(),
            hlc: self.clock.tick((self.unix_ms)()),
            trace: None,
        }
    }

    /// An epoch was heard; discovery is told when it is the highest so far.
    pub(super) fn hear_epoch(&self, epoch: crate::id::Epoch) {
        if self.fence.raise(epoch) {
            self.epoch_seen.do_send(EpochSeen(epoch));
        }
    }

    fn hear(&self, header: &Header) {
        self.hear_epoch(header.epoch);
        self.clock.merge(header.hlc, (self.unix_ms)());
    }
}

/// A queue is full; nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFull(pub(super) Class);

/// What waits to be written, control apart from bulk.
pub(super) struct Outbox {
    control: mpsc::Sender<Bytes>,
    bulk: mpsc::Sender<Bytes>,
    queued: Arc<AtomicUsize>,
}

struct Outgoing {
    control: mpsc::Receiver<Bytes>,
    bulk: mpsc::Receiver<Bytes>,
    queued: Arc<AtomicUsize>,
}

impl Outbox {
    fn new(settings: &TransportSettings) -> (Self, Outgoing) {
        let (control, control_out) = mpsc::channel(settings.control_queue.max(1));
        let (bulk, bulk_out) = mpsc::channel(settings.bulk_queue.max(1));
        let queued = Arc::new(AtomicUsize::new(0));
        let outgoing = Outgoing {
            control: control_out,
            bulk: bulk_out,
            queued: Arc::clone(&queued),
        };
        let outbox = Self {
            control,
            bulk,
            queued,
        };
        (outbox, outgoing)
    }

    /// Queues one frame.
    pub(super) fn push(&self, class: Class, frame: Bytes) -> Result<(), QueueFull> {
        let (queue, limit) = match class {
            Class::Control => (&self.control, QUEUED_BYTES),
            Class::Bulk => (&self.bulk, BULK_BYTES),
        };
        let length = frame.len();
        let queued = self.queued.load(Ordering::Relaxed);
        // One frame always fits, however large a frame may be.
        if queued > 0 && queued + length > limit {
            return Err(QueueFull(class));
        }
        self.queued.fetch_add(length, Ordering::Relaxed);
        queue.try_send(frame).map_err(|_| {
            self.queued.fetch_sub(length, Ordering::Relaxed);
            QueueFull(class)
        })
    }
}

impl Outgoing {
    /// Fills `chunk` with the next frames, control first; `false` when the queues are closed and empty.
    async fn gather(&mut self, chunk: &mut Vec<u8>) -> bool {
        let first = tokio::select! {
            biased;
            Some(frame) = self.control.recv() => frame,
            Some(frame) = self.bulk.recv() => frame,
            else => return false,
        };
        self.take(&first, chunk);
        while chunk.len() < WRITE_CHUNK {
            let next = self.control.try_recv().or_else(|_| self.bulk.try_recv());
            match next {
                Ok(frame) => self.take(&frame, chunk),
                Err(_) => break,
            }
        }
        true
    }

    fn take(&self, frame: &Bytes, chunk: &mut Vec<u8>) {
        self.queued.fetch_sub(frame.len(), Ordering::Relaxed);
        chunk.extend_from_slice(frame);
    }
}

/// A live session. Dropping it closes the session: what is queued is still written, nothing more is delivered.
pub(super) struct Link {
    pub(super) outbox: Outbox,
    reader: AbortHandle,
    _lanes: Stop,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What a session needs to live.
pub(super) struct Birth {
    pub(super) key: SessionKey,
    pub(super) incarnation: Incarnation,
    pub(super) stream: Stream,
    /// Written before everything else: the welcome, from the side that was dialled.
    pub(super) first: Vec<u8>,
    pub(super) heard: Heard,
    pub(super) lanes: Lanes,
    pub(super) senses: Senses,
    pub(super) ended: Recipient<SessionEnded>,
}

/// Brings a session to life on the current thread.
pub(super) fn start(birth: Birth, settings: &TransportSettings) -> Link {
    let (outbox, outgoing) = Outbox::new(settings);
    let Stream { reader, writer, .. } = birth.stream;
    let report = |what: &str| {
        let why = format!("its {what} failed");
        Report::new(
            birth.ended.clone(),
            SessionEnded {
                key: birth.key,
                why,
            },
        )
    };
    let (key, idle) = (birth.key, settings.idle_timeout);
    let writer_report = report("writer");
    actix_rt::spawn(async move {
        if let Err(why) = write(birth.first, outgoing, writer, idle).await {
            // The reader may still hold what the peer said last, and notices the end by itself.
            sleep(LAST_WORDS).await;
            writer_report.tell(SessionEnded { key, why });
        }
    });
    let reader_report = report("reader");
    let stop = birth.lanes.stop();
    let mut reading = Reading {
        incarnation: birth.incarnation,
        idle,
        heard: birth.heard,
        lanes: birth.lanes,
        senses: birth.senses,
        decoder: Decoder::new(settings.max_frame),
        answers: outbox.control.downgrade(),
        queued: Arc::clone(&outbox.queued),
        unknown: BTreeSet::new(),
        max_frame: settings.max_frame,
    };
    let reader = actix_rt::spawn(async move {
        let why = reading.read(reader).await;
        reading.lanes.finish(Instant::now() + LAST_WORDS).await;
        reader_report.tell(SessionEnded { key, why });
    });
    Link {
        outbox,
        reader: reader.abort_handle(),
        _lanes: stop,
    }
}

/// Writes until the queues are closed and empty.
async fn write(
    first: Vec<u8>,
    mut outgoing: Outgoing,
    mut writer: impl AsyncWrite + Unpin,
    limit: Duration,
) -> Result<(), String> {
    let mut chunk = first;
    loop {
        if !chunk.is_empty() {
            // Under TLS what is written may stay in a buffer until it is flushed.
            let writing = async {
                writer.write_all(&chunk).await?;
                writer.flush().await
            };
            match timeout(limit, writing).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => return Err(format!("writing failed: {why}")),
                Err(_) => return Err(format!("it took no byte for {limit:?}")),
            }
        }
        // Large frames are rare; what held them is not kept.
        chunk.clear();
        chunk.shrink_to(2 * WRITE_CHUNK);
        if !outgoing.gather(&mut chunk).await {
            break;
        }
    }
    // A peer that is gone has no use for the end of the stream.
    timeout(LAST_WORDS, writer.shutdown()).await.ok();
    Ok(())
}

struct Reading {
    incarnation: Incarnation,
    idle: Duration,
    heard: Heard,
    lanes: Lanes,
    senses: Senses,
    decoder: Decoder,
    answers: mpsc::WeakSender<Bytes>,
    queued: Arc<AtomicUsize>,
    unknown: BTreeSet<u16>,
    max_frame: usize,
}

/// What one read brought for each desk.
#[derive(Default)]
struct Batches([(Vec<Envelope>, usize); 4]);

const DESKS: [Desk; 4] = [Desk::Discovery, Desk::Master, Desk::Worker, Desk::Admin];

impl Batches {
    fn add(&mut self, envelope: Envelope, bytes: usize) {
        let desk = envelope.message.desk();
        let place = DESKS.iter().position(|d| *d == desk);
        if let Some((envelopes, sum)) = place.and_then(|place| self.0.get_mut(place)) {
            envelopes.push(envelope);
            *sum += bytes;
        }
    }
}

impl Reading {
    /// Reads and delivers until the session ends; answers why.
    async fn read(&mut self, mut reader: impl AsyncRead + Unpin) -> String {
        let mut room = QUIET_CHUNK;
        loop {
            let space = self.decoder.space(room);
            match timeout(self.idle, reader.read_buf(space)).await {
                Ok(Ok(0)) => return "the peer closed it".to_owned(),
                Ok(Ok(read)) => {
                    room = if read < room { QUIET_CHUNK } else { READ_CHUNK };
                    self.heard.mark(Instant::now().into_std());
                }
                Ok(Err(why)) => return format!("reading failed: {why}"),
                Err(_) => return format!("no byte for {:?}", self.idle),
            }
            if let Err(why) = self.deliver().await {
                return why;
            }
        }
    }

    async fn deliver(&mut self) -> Result<(), String> {
        let mut batches = Batches::default();
        let problem = loop {
            match self.decoder.next_frame() {
                Ok(Some(Decoded::Envelope { envelope, bytes })) => {
                    self.senses.hear(&envelope.header);
                    self.note(&envelope.message);
                    batches.add(envelope, bytes);
                }
                Ok(Some(Decoded::Unknown { kind, header })) => {
                    self.senses.hear(&header);
                    self.answer_unknown(kind);
                }
                Ok(None) => break None,
                Err(why) => break Some(why.to_string()),
            }
        };
        for (desk, (envelopes, bytes)) in DESKS.into_iter().zip(batches.0) {
            if !envelopes.is_empty() {
                let (incarnation, heard) = (self.incarnation, &self.heard);
                self.lanes
                    .push(desk, incarnation, envelopes, bytes, heard)
                    .await?;
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// What is for the transport itself.
    fn note(&self, message: &Message) {
        if let Message::Unknown(Unknown { kind }) = message {
            log::warn!(target: "transport", event = "session.unknown_kind", kind = *kind; "the peer does not know messages of this kind");
        }
    }

    /// Once per kind; when the queue is full the peer goes without an answer.
    fn answer_unknown(&mut self, kind: u16) {
        if self.unknown.len() >= MAX_UNKNOWN || !self.unknown.insert(kind) {
            return;
        }
        let answer = Message::from(Unknown { kind });
        let frame = frame::encode(&self.senses.header(), &answer, self.max_frame);
        if let (Ok(frame), Some(answers)) = (frame, self.answers.upgrade()) {
            let length = frame.len();
            self.queued.fetch_add(length, Ordering::Relaxed);
            if answers.try_send(frame).is_err() {
                self.queued.fetch_sub(length, Ordering::Relaxed);
            }
        }
    }
}

/// Why a greeting was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    /// Nothing came: the connection was closed or reset before the first byte.
    #[error("the connection was closed before a word was said")]
    Closed,
    /// The connection broke.
    #[error("the handshake broke: {0}")]
    Io(#[from] io::Error),
    /// What came is no greeting.
    #[error(transparent)]
    Bad(#[from] HandshakeError),
    /// It took too long.
    #[error("no handshake within {0:?}")]
    Late(Duration),
}

/// Reads one greeting and not a byte more.
pub(super) async fn read_greeting(
    reader: &mut (impl AsyncRead + Unpin),
    within: Duration,
) -> Result<Greeting, GreetingError> {
    let reading = async {
        let mut prefix = [0; handshake::PREFIX];
        match reader.read(&mut prefix).await {
            Ok(0) => return Err(GreetingError::Closed),
            Err(why) if why.kind() == io::ErrorKind::ConnectionReset => {
                return Err(GreetingError::Closed);
            }
            Err(why) => return Err(why.into()),
            Ok(n) => reader.read_exact(&mut prefix[n..]).await?,
        };
        let prefix = Prefix::parse(prefix)?;
        let mut body = vec![0; prefix.body_length()];
        reader.read_exact(&mut body).await?;
        Ok(prefix.read(&body)?)
    };
    let answer = timeout(within, reading).await;
    answer.unwrap_or(Err(GreetingError::Late(within)))
}

/// Says one last greeting and hangs up; waits a little for the peer to do so first, lest a reset overtake the words.
pub(super) async fn say_and_hang_up(mut stream: Stream, greeting: &Greeting, within: Duration) {
    let Ok(bytes) = greeting.encode() else {
        return;
    };
    let saying = async {
        stream.writer.write_all(&bytes).await?;
        stream.writer.shutdown().await?;
        stream.reader.read(&mut [0; 64]).await
    };
    // Whether the words arrived is the caller's concern.
    timeout(within, saying).await.ok();
}

/// Why a dial brought no welcome.
#[derive(Debug)]
pub(super) enum Unwelcome {
    /// The other side refused us.
    Refusal(Refusal),
    /// Somebody answered who is not believed, or does not believe us.
    Distrust(Distrust),
    /// Nobody said anything that could be understood.
    Outcome(DialOutcome),
}

impl Unwelcome {
    pub(super) fn outcome(self) -> DialOutcome {
        match self {
            Self::Refusal(refusal) => refusal.outcome(),
            Self::Distrust(distrust) => DialOutcome::Turned(distrust.words),
            Self::Outcome(outcome) => outcome,
        }
    }
}

impl From<Unconnected> for Unwelcome {
    fn from(unconnected: Unconnected) -> Self {
        match unconnected {
            Unconnected::Refused => Self::Outcome(DialOutcome::Refused),
            Unconnected::Distrusted(distrust) => Self::Distrust(distrust),
            Unconnected::Silent(why) => silent(why),
        }
    }
}

fn silent(why: impl ToString) -> Unwelcome {
    Unwelcome::Outcome(DialOutcome::Silent(why.to_string()))
}

/// Dials, says hello, reads the answer. `hello_is_out` is set before the first byte is sent.
pub(super) async fn greet(
    network: &dyn Network,
    address: &str,
    mut hello: Hello,
    settings: &TransportSettings,
    hello_is_out: &AtomicBool,
) -> Result<(Welcome, Stream), Unwelcome> {
    let mut again = true;
    loop {
        let mut stream = network.dial(address, settings.dial_timeout).await?;
        if let Some(proof) = &stream.proof {
            if hello.purpose == Purpose::Session && proof.is_outlived(hello.incarnation) {
                return Err(silent("this node has registered anew meanwhile"));
            }
            hello.extension = proof.binding(Side::Dialler);
        }
        let said = Greeting::Hello(hello.clone()).encode().map_err(silent)?;
        hello_is_out.store(true, Ordering::Relaxed);
        let asked = async {
            let said = stream.writer.write_all(&said).await;
            if said.is_err() || stream.writer.flush().await.is_err() {
                return Err(GreetingError::Closed);
            }
            read_greeting(&mut stream.reader, settings.handshake_timeout).await
        };
        match asked.await {
            Ok(Greeting::Welcome(welcome)) => {
                let believed = believe(stream.proof.as_ref(), hello.purpose, &welcome);
                return match believed {
                    Ok(()) => Ok((welcome, stream)),
                    Err(distrust) => Err(Unwelcome::Distrust(distrust)),
                };
            }
            Ok(Greeting::Refusal(refusal)) => return Err(Unwelcome::Refusal(refusal)),
            Ok(Greeting::Hello(_)) => return Err(silent("it said hello to our hello")),
            // A process that dies takes its port with it a moment after its connections: look again at once.
            Err(GreetingError::Closed) if again => again = false,
            Err(GreetingError::Bad(why)) => {
                return Err(Unwelcome::Outcome(DialOutcome::Turned(why.to_string())));
            }
            Err(GreetingError::Io(why)) => {
                let distrust = super::tls::distrust(&why).map(Unwelcome::Distrust);
                return Err(distrust.unwrap_or_else(|| silent(GreetingError::Io(why))));
            }
            Err(why) => return Err(silent(why)),
        }
    }
}

/// Whether whoever welcomes us is whom its certificate names. A dial outside of any session asks who is there, not which
/// life of it.
fn believe(proof: Option<&Proof>, purpose: Purpose, welcome: &Welcome) -> Result<(), Distrust> {
    let Some(proof) = proof else {
        return Ok(());
    };
    let life = (purpose == Purpose::Session).then_some(welcome.incarnation);
    let (id, name) = (welcome.id, welcome.name.as_str());
    proof.vouches(Side::Acceptor, id, life, name, &welcome.extension)
}
