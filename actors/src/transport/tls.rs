//! TLS 1.3 between nodes, mutual, from one shared secret.
//!
//! Version 1 of the derivation: `HKDF-SHA256(salt = "troupe cluster secret v1", ikm = the 32 bytes of the secret,
//! info = "ca ed25519 " + cluster)` gives 32 bytes, the seed of the Ed25519 key of the cluster's certificate authority.
//! Every node derives it, so the authority needs no place to live; another secret or another cluster is another authority.
//! Each node issues itself a certificate for a fresh key that names its node id, and issues the next one long before
//! the old one ends. A peer that fails is refused before a byte of the hello is read. Without 0-RTT and tickets nothing
//! recorded can be replayed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, split};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Dialing, Network, Stream, Unconnected};
use crate::id::NodeId;

/// The name every node of a cluster answers to; which cluster is settled by the authority.
const NAME: &str = "node.troupe.internal";
/// How long a certificate is valid; also how long it was valid before it was made, for clocks that differ.
const LIFE: Duration = Duration::from_secs(24 * 3600);
const SKEW: Duration = Duration::from_secs(3600);
/// The next one is issued after this.
const RENEW: Duration = Duration::from_secs(6 * 3600);

/// Why there is no TLS; nothing was started. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The secret is not what `troupe keygen` makes.
    #[error("the cluster secret must be 64 hexadecimal digits, as `troupe keygen` makes it")]
    BadSecret,
    /// A key or certificate could not be made.
    #[error("a certificate could not be issued: {0}")]
    Issue(#[from] rcgen::Error),
    /// rustls refused what was made.
    #[error("TLS could not be set up: {0}")]
    Setup(String),
}

/// The cluster's secret. It shows itself to nobody.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// From random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From the text of a secret file; white space around it is ignored.
    ///
    /// # Errors
    /// When it is not 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, TlsError> {
        let digits = text.trim().as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(TlsError::BadSecret);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let value = |d: u8| {
                char::from(d)
                    .to_digit(16)
                    .and_then(|v| u8::try_from(v).ok())
            };
            *byte = match (value(pair[0]), value(pair[1])) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(TlsError::BadSecret),
            };
        }
        Ok(Self(bytes))
    }

    /// The text of a secret file.
    pub fn reveal(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn authority(
        &self,
        cluster: &str,
    ) -> Result<(Issuer<'static, KeyPair>, rcgen::Certificate), TlsError> {
        // PKCS#8 version 1 of an Ed25519 key, up to its seed (RFC 8410).
        const PKCS8: [u8; 16] = [
            0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
        ];
        let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"troupe cluster secret v1");
        let mut seed = [0; 32];
        salt.extract(&self.0)
            .expand(
                &[b"ca ed25519 ", cluster.as_bytes()],
                ring::hkdf::HKDF_SHA256,
            )
            .and_then(|okm| okm.fill(&mut seed))
            .map_err(|_| TlsError::Setup("the secret gives no key".to_owned()))?;
        let der = PrivatePkcs8KeyDer::from([&PKCS8[..], &seed].concat());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("troupe cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?;
        Ok((Issuer::new(params, key), certificate))
    }
}

struct Configs {
    issued: Instant,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// This node's side of TLS: its own certificate, and whom it accepts.
pub struct Tls {
    secrets: Vec<Secret>,
    cluster: String,
    id: NodeId,
    current: Mutex<Configs>,
}

impl Tls {
    /// The first secret issues our certificate; certificates of every one are accepted, for rotation.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn new(secrets: Vec<Secret>, cluster: &str, id: NodeId) -> Result<Self, TlsError> {
        let current = Mutex::new(issue(&secrets, cluster, id, LIFE)?);
        let cluster = cluster.to_owned();
        Ok(Self {
            secrets,
            cluster,
            id,
            current,
        })
    }

    fn configs(&self) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.issued.elapsed() >= RENEW {
            match issue(&self.secrets, &self.cluster, self.id, LIFE) {
                Ok(next) => *current = next,
                Err(why) => {
                    log::error!(target: "transport", event = "security.not_renewed", err:display = why; "the certificate of this node was not renewed")
                }
            }
        }
        (Arc::clone(&current.client), Arc::clone(&current.server))
    }

    /// The handshake with somebody who dialled us.
    ///
    /// # Errors
    /// Why it is refused, in words.
    pub async fn accept(&self, stream: Stream, within: Duration) -> Result<Stream, String> {
        let remote = stream.remote;
        let acceptor = TlsAcceptor::from(self.configs().1);
        match timeout(within, acceptor.accept(Joined(stream))).await {
            Ok(Ok(tls)) => Ok(apart(tls, remote)),
            Ok(Err(why)) => Err(why.to_string()),
            Err(_) => Err(format!("no TLS handshake within {within:?}")),
        }
    }

    async fn connect(&self, stream: Stream) -> io::Result<Stream> {
        let remote = stream.remote;
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let connector = TlsConnector::from(self.configs().0);
        let tls = connector.connect(name, Joined(stream)).await?;
        Ok(apart(tls, remote))
    }
}

fn issue(
    secrets: &[Secret],
    cluster: &str,
    id: NodeId,
    life: Duration,
) -> Result<Configs, TlsError> {
    let setup = |why: &dyn std::fmt::Display| TlsError::Setup(why.to_string());
    let first = secrets.first().ok_or(TlsError::BadSecret)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let mut params = CertificateParams::new(vec![NAME.to_owned(), format!("{id}.{NAME}")])?;
    params
        .distinguished_name
        .push(DnType::CommonName, id.to_string());
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + life;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, &first.authority(cluster)?.0)?;
    let mut roots = RootCertStore::empty();
    for secret in secrets {
        let (_, ca) = secret.authority(cluster)?;
        roots.add(ca.der().clone()).map_err(|why| setup(&why))?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![certificate.der().clone()];
    let private = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|why| setup(&why))?
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(chain.clone(), private())
        .map_err(|why| setup(&why))?;
    // Every session proves itself anew: no tickets, no early data.
    client.resumption = rustls::client::Resumption::disabled();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|why| setup(&why))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|why| setup(&why))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private())
        .map_err(|why| setup(&why))?;
    server.send_tls13_tickets = 0;
    Ok(Configs {
        issued: Instant::now(),
        client: Arc::new(client),
        server: Arc::new(server),
    })
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
                        return Err(Unconnected::Silent(format!(
                            "TLS with {address} failed: {why}"
                        )));
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
) -> Stream {
    let (reader, writer) = split(tls);
    Stream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        remote,
    }
}

/// Both halves as one.
struct Joined(Stream);

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.writer).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.writer).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.writer).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryNetwork;
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const WITHIN: Duration = Duration::from_secs(5);

    fn tls(secrets: &[u8], cluster: &str) -> Arc<Tls> {
        let secrets = secrets.iter().map(|b| Secret::new([*b; 32])).collect();
        Arc::new(Tls::new(secrets, cluster, NodeId(7)).unwrap())
    }

    /// Whether a word of the dialler reaches the acceptor.
    async fn talk(dialler: Arc<Tls>, acceptor: Arc<Tls>) -> bool {
        let memory = MemoryNetwork::default();
        let listener = memory.listen("there");
        let network = TlsNetwork::new(Arc::new(memory), dialler);
        let answering = async {
            let incoming = listener.incoming.lock().await.recv().await.unwrap();
            let mut stream = acceptor
                .accept((incoming.open)().unwrap(), WITHIN)
                .await
                .ok()?;
            let mut word = [0; 4];
            stream.reader.read_exact(&mut word).await.ok()?;
            Some(word)
        };
        let asking = async {
            let mut stream = network.dial("there", WITHIN).await.ok()?;
            stream.writer.write_all(b"word").await.ok()?;
            stream.writer.flush().await.ok()?;
            Some(stream)
        };
        tokio::pin!(asking);
        tokio::select! {
            biased;
            heard = answering => heard == Some(*b"word"),
            () = async { let _kept = asking.await; std::future::pending::<()>().await } => false,
        }
    }

    #[actix_rt::test]
    async fn nodes_of_one_secret_and_cluster_talk() {
        assert!(talk(tls(&[1], "a"), tls(&[1], "a")).await);
    }

    #[actix_rt::test]
    async fn another_secret_or_another_cluster_is_refused_in_the_handshake() {
        assert!(!talk(tls(&[1], "a"), tls(&[2], "a")).await);
        assert!(!talk(tls(&[1], "a"), tls(&[1], "b")).await);
    }

    #[actix_rt::test]
    async fn while_a_secret_is_rotated_both_are_accepted() {
        assert!(talk(tls(&[1, 2], "a"), tls(&[2, 1], "a")).await);
        assert!(talk(tls(&[2, 1], "a"), tls(&[1, 2], "a")).await);
    }

    #[test]
    fn a_secret_is_read_as_it_was_written_and_nothing_else_is_one() {
        let secret = Secret::new([0xa5; 32]);
        assert_eq!(
            Secret::parse(&format!("{}\n", secret.reveal())).unwrap().0,
            secret.0
        );
        assert!(Secret::parse("short").is_err());
        assert!(Secret::parse(&"é".repeat(32)).is_err());
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
