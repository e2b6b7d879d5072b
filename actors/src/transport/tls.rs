//! TLS 1.3 between nodes, mutual, from one shared secret or from certificates of an authority of your own.
//!
//! Version 1 of the derivation: `HKDF-SHA256(salt = "troupe cluster secret v1", ikm = the 32 bytes of the secret,
//! info = "ca ed25519 " + cluster)` gives 32 bytes, the seed of the Ed25519 key of the cluster's certificate authority.
//! Every node derives it, so the authority needs no place to live; another secret or another cluster is another authority.
//! Each node issues itself a certificate for a fresh key that names its cluster, id and incarnation ([`super::trust`]): one when
//! it starts, another when it is registered, and the next one long before one ends. A peer that fails is refused before a
//! byte of the hello is read. Without 0-RTT and tickets nothing recorded can be replayed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, OtherError, ServerConfig, ServerConnection,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, split};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificate::{Configs, NAME, configs, named};
pub use super::certificate::{Credentials, OwnCertificates, Secret, TlsError};
use super::trust::{BINDING, Distrust, Holder, Proof, Reason, Subject, stranger};
use super::{Dialing, Network, Stream, Unconnected};
use crate::id::{Incarnation, NodeId};

/// The next one is issued after this.
const RENEW: Duration = Duration::from_secs(6 * 3600);
/// Bytes that are taken from somebody who has not shown yet who it is; a chain of a few certificates fits.
const BEFORE_TRUST: usize = 32 * 1024;
/// A TLS record (RFC 8446, 5.1): its head, with its kind first and its length last; kinds; the longest.
const RECORD_HEAD: usize = 5;
const RECORD_KINDS: std::ops::RangeInclusive<u8> = 20..=24;
const LONGEST_RECORD: usize = (1 << 14) + 256;
/// The values that bind greetings to their session: RFC 5705 exporters, one for each side.
const BINDINGS: [&[u8]; 2] = [b"EXPORTER-troupe-hello-v1", b"EXPORTER-troupe-welcome-v1"];

struct Current {
    credentials: Credentials,
    configs: Configs,
}

/// What is to be said next, whether the handshake goes on, and what was not taken: it comes after the handshake.
type Step = (Vec<u8>, Result<(), rustls::Error>, Vec<u8>);

/// This node's side of TLS: its own certificate, and whom it accepts.
pub struct Tls {
    cluster: String,
    id: NodeId,
    current: Mutex<Current>,
    /// Of handshakes with strangers, one computes at a time.
    turn: Arc<Semaphore>,
}

impl Tls {
    /// As a node that is not registered yet.
    ///
    /// # Errors
    /// When there is no certificate that others would accept.
    pub fn new(credentials: Credentials, cluster: &str, id: NodeId) -> Result<Self, TlsError> {
        let me = life(cluster, id, Incarnation::NONE);
        let configs = configs(&credentials, me)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            id,
            current: Mutex::new(Current {
                credentials,
                configs,
            }),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// We are registered as this incarnation: from now on our certificate names it.
    pub fn set_incarnation(&self, incarnation: Incarnation) {
        let mut current = self.lock();
        let me = life(&self.cluster, self.id, incarnation);
        let issues = matches!(current.credentials, Credentials::Secrets(_));
        if issues && current.configs.holder != me {
            renew(&mut current, me);
        }
    }

    /// From now on other credentials; sessions that are up stay. Answers whom our certificate names.
    ///
    /// # Errors
    /// When they are of no use; those that were before stay.
    pub fn replace(&self, credentials: Credentials) -> Result<Holder, TlsError> {
        let mut current = self.lock();
        let incarnation = match current.configs.holder.subject {
            Subject::Life(_, incarnation) => incarnation,
            _ => Incarnation::NONE,
        };
        let configs = configs(&credentials, life(&self.cluster, self.id, incarnation))?;
        let holder = configs.holder.clone();
        *current = Current {
            credentials,
            configs,
        };
        Ok(holder)
    }

    /// Whom our certificate names.
    pub fn holder(&self) -> Holder {
        self.lock().configs.holder.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configs(&self) -> (Holder, Arc<ClientConfig>, Arc<ServerConfig>) {
        let mut current = self.lock();
        let issues = matches!(current.credentials, Credentials::Secrets(_));
        if issues && current.configs.issued.elapsed() >= RENEW {
            let me = current.configs.holder.clone();
            renew(&mut current, me);
        }
        let configs = &current.configs;
        (
            configs.holder.clone(),
            Arc::clone(&configs.client),
            Arc::clone(&configs.server),
        )
    }

    /// The handshake with somebody who dialled us.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn accept(&self, stream: Stream, until: Instant) -> Result<Stream, Distrust> {
        let (own, _, config) = self.configs();
        let remote = stream.remote;
        let accepting = self.shake(config, Joined::bounded(stream));
        match timeout_at(until, accepting).await {
            Ok(Ok(mut tls)) => {
                tls.get_mut().0.left = None;
                let connection = tls.get_ref().1;
                let mut proof = prove(own, connection.peer_certificates(), &self.cluster)?;
                for (binding, label) in proof.bindings.iter_mut().zip(BINDINGS) {
                    export(connection.export_keying_material(binding, label, None))?;
                }
                Ok(apart(tls, remote, proof))
            }
            Ok(Err(why)) => Err(explain_io(&why)),
            Err(_) => {
                let words = "no TLS handshake in time".to_owned();
                Err(Distrust::new(Reason::Late, words))
            }
        }
    }

    /// The handshake itself, with [`Self::compute`] for what costs.
    async fn shake(
        &self,
        config: Arc<ServerConfig>,
        mut stream: Joined,
    ) -> io::Result<TlsStream<Joined>> {
        let mut connection =
            ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
        let (mut buffer, mut heard) = (vec![0; 4096], Vec::new());
        while connection.is_handshaking() {
            match stream.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => heard.extend_from_slice(&buffer[..n]),
            }
            let whole = records(&heard);
            if whole == 0 {
                continue;
            }
            let rest = heard.split_off(whole);
            let step;
            (connection, step) = self.compute(connection, heard).await?;
            let (said, outcome, left) = step;
            heard = [left, rest].concat();
            let told = async {
                stream.write_all(&said).await?;
                stream.flush().await
            };
            let told = told.await;
            // Why it is refused matters more than whether it could be told.
            outcome.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
            told?;
        }
        // What comes after a handshake is read by those who read sessions.
        stream.unread = heard;
        let done = |fresh: &mut ServerConnection| *fresh = connection;
        TlsAcceptor::from(config).accept_with(stream, done).await
    }

    /// One step of a handshake: what is to be said next, and whether it goes on. It is half a millisecond of processor time that
    /// any stranger can ask for, so it is spent on another thread, one step after the other: our sessions do not wait for it.
    async fn compute(
        &self,
        mut connection: ServerConnection,
        heard: Vec<u8>,
    ) -> io::Result<(ServerConnection, Step)> {
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let computed = spawn_blocking(move || {
            let (outcome, left) = take(&mut connection, &heard);
            let left = left.to_vec();
            let mut said = Vec::new();
            while connection.wants_write() && connection.write_tls(&mut said).is_ok() {}
            drop(turn);
            (connection, (said, outcome, left))
        });
        computed.await.map_err(io::Error::other)
    }

    async fn connect(&self, stream: Stream) -> io::Result<Stream> {
        let (own, config, _) = self.configs();
        let remote = stream.remote;
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let connector = TlsConnector::from(config);
        let mut tls = connector.connect(name, Joined::bounded(stream)).await?;
        tls.get_mut().0.left = None;
        let connection = tls.get_ref().1;
        let proof = prove(own, connection.peer_certificates(), &self.cluster);
        let mut proof = proof.map_err(io::Error::other)?;
        for (binding, label) in proof.bindings.iter_mut().zip(BINDINGS) {
            export(connection.export_keying_material(binding, label, None))
                .map_err(io::Error::other)?;
        }
        Ok(apart(tls, remote, proof))
    }
}

/// How many bytes are whole records, or no records at all: with the rest alone nothing could be computed.
fn records(heard: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&[kind, _, _, high, low]) = heard.get(at..at + RECORD_HEAD) {
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !RECORD_KINDS.contains(&kind) || length > LONGEST_RECORD {
            return heard.len();
        }
        let end = at + RECORD_HEAD + length;
        if end > heard.len() {
            break;
        }
        at = end;
    }
    at
}

/// Hands over what was heard, until the handshake is over; answers whether it goes on, and what was not taken.
fn take<'a>(
    connection: &mut ServerConnection,
    mut heard: &'a [u8],
) -> (Result<(), rustls::Error>, &'a [u8]) {
    while !heard.is_empty() && connection.is_handshaking() {
        let taken = match connection.read_tls(&mut heard) {
            Ok(taken) => taken,
            Err(full) => return (Err(rustls::Error::General(full.to_string())), heard),
        };
        if let Err(why) = connection.process_new_packets() {
            return (Err(why), heard);
        }
        // Nothing is taken of somebody who has said goodbye.
        if taken == 0 {
            break;
        }
    }
    (Ok(()), heard)
}

fn life(cluster: &str, id: NodeId, incarnation: Incarnation) -> Holder {
    Holder {
        cluster: cluster.to_owned(),
        subject: Subject::Life(id, incarnation),
    }
}

fn renew(current: &mut Current, me: Holder) {
    match configs(&current.credentials, me) {
        Ok(next) => current.configs = next,
        Err(why) => {
            log::error!(target: "transport", event = "security.not_renewed", err:display = why; "the certificate of this node was not renewed")
        }
    }
}

fn prove(
    own: Holder,
    chain: Option<&[CertificateDer<'_>]>,
    cluster: &str,
) -> Result<Proof, Distrust> {
    let certificate = chain.and_then(<[_]>::first);
    let holder = certificate.and_then(|certificate| named(certificate, cluster));
    let holder = holder.ok_or_else(|| stranger(None, cluster))?;
    Ok(Proof {
        holder,
        own,
        bindings: [[0; BINDING]; 2],
    })
}

fn export<T>(exported: Result<T, rustls::Error>) -> Result<T, Distrust> {
    exported.map_err(|why| Distrust::new(Reason::NoTls, why.to_string()))
}

// --- why it failed -------------------------------------------------------------------------------------------------

/// Why a connection broke, when TLS is why.
pub(super) fn distrust(why: &io::Error) -> Option<Distrust> {
    let inner = why.get_ref()?;
    if let Some(distrust) = inner.downcast_ref::<Distrust>() {
        return Some(distrust.clone());
    }
    Some(explain(inner.downcast_ref::<rustls::Error>()?))
}

fn explain_io(why: &io::Error) -> Distrust {
    distrust(why).unwrap_or_else(|| {
        Distrust::new(
            Reason::BrokenOff,
            format!("it left during the handshake: {why}"),
        )
    })
}

pub(super) fn explain(why: &rustls::Error) -> Distrust {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, DecryptError, UnknownCA, UnsupportedCertificate,
    };
    match why {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            let known = inner.downcast_ref::<Distrust>().cloned();
            known.unwrap_or_else(|| Distrust::new(Reason::BadCertificate, why.to_string()))
        }
        rustls::Error::InvalidCertificate(_) => {
            Distrust::new(Reason::BadCertificate, why.to_string())
        }
        rustls::Error::NoCertificatesPresented => Distrust::new(
            Reason::NoCertificate,
            "it has no certificate: it is no node of a troupe",
        ),
        rustls::Error::AlertReceived(
            alert @ (AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | DecryptError
            | UnknownCA
            | UnsupportedCertificate),
        ) => {
            let words = format!(
                "it does not accept the certificate of this node ({alert:?}): another secret or cluster, or one of the two clocks is off"
            );
            Distrust::new(Reason::DistrustsUs, words)
        }
        rustls::Error::InvalidMessage(_) => {
            let words = format!("it speaks no TLS, as a node without a secret does ({why})");
            Distrust::new(Reason::NoTls, words)
        }
        why => Distrust::new(Reason::NoTls, format!("it speaks another TLS: {why}")),
    }
}

/// Another network, with TLS over each connection. Refused and silent stay matters of the network below.
pub struct TlsNetwork {
    below: Arc<dyn Network>,
    tls: Arc<Tls>,
}

impl TlsNetwork {
    /// TLS over this network.
    pub fn new(below: Arc<dyn Network>, tls: Arc<Tls>) -> Self {
        Self { below, tls }
    }
}

impl Network for TlsNetwork {
    fn dial(&self, address: &str, within: Duration) -> Dialing {
        let (below, tls, address) = (
            Arc::clone(&self.below),
            Arc::clone(&self.tls),
            address.to_owned(),
        );
        Box::pin(async move {
            let mut again = true;
            loop {
                let stream = below.dial(&address, within).await?;
                match timeout(within, tls.connect(stream)).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    // A process that dies takes its port with it a moment after its connections: look again at once.
                    Ok(Err(why)) if again && hung_up(&why) => again = false,
                    Ok(Err(why)) => {
                        return Err(distrust(&why).map_or_else(
                            || Unconnected::Silent(format!("TLS with {address} failed: {why}")),
                            Unconnected::Distrusted,
                        ));
                    }
                    Err(_) => {
                        return Err(Unconnected::Silent(format!(
                            "no TLS handshake with {address} within {within:?}"
                        )));
                    }
                }
            }
        })
    }
}

fn hung_up(why: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        why.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

fn apart<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    tls: S,
    remote: std::net::SocketAddr,
    proof: Proof,
) -> Stream {
    let (reader, writer) = split(tls);
    Stream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        remote,
        proof: Some(proof),
    }
}

/// Both halves as one, and how much may still be read before the handshake is over.
struct Joined {
    stream: Stream,
    left: Option<usize>,
    /// Read already, to be read before all else.
    unread: Vec<u8>,
}

impl Joined {
    fn bounded(stream: Stream) -> Self {
        Self {
            stream,
            left: Some(BEFORE_TRUST),
            unread: Vec::new(),
        }
    }
}

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let taken = self.unread.len().min(buf.remaining());
            buf.put_slice(&self.unread[..taken]);
            self.unread.drain(..taken);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let answer = Pin::new(&mut self.stream.reader).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        let Some(left) = self.left else {
            return answer;
        };
        self.left = left.checked_sub(read);
        if self.left.is_none() {
            self.left = Some(0);
            let words =
                format!("it said more than {BEFORE_TRUST} bytes before it showed who it is");
            return Poll::Ready(Err(io::Error::other(Distrust::new(Reason::TooLong, words))));
        }
        answer
    }
}

impl AsyncWrite for Joined {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream.writer).poll_write(cx, buf)
    }
    /// Many records in one write; and what is said last, when a handshake fails, is tried but once.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream.writer).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.writer.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream.writer).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream.writer).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
