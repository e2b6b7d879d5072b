//! TLS of the admin API: by files of one's own, or by a certificate that the cluster's authority issues.
//!
//! Whoever has the authority's certificate (`troupe ca` makes it of the cluster secret) can check the node's; a browser, which
//! does not know it, warns. The key is ECDSA P-256, which browsers take; the authority's is Ed25519.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::transport::tls::{Secret, TlsError};

/// How long an issued certificate is valid; also how long it was valid before it was made, for clocks that differ.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const SKEW: Duration = Duration::from_secs(3600);
/// The next one is issued after this; its key lives in memory alone.
const RENEW: Duration = Duration::from_secs(10 * 24 * 3600);

/// The server's side.
pub struct ServerTls {
    issuer: Option<Issuer>,
    current: Mutex<Current>,
}

struct Issuer {
    secret: Secret,
    cluster: String,
    names: Vec<String>,
}

struct Current {
    since: Instant,
    config: Arc<ServerConfig>,
    fingerprint: String,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls(..)")
    }
}

impl ServerTls {
    /// By a certificate (with those between it and its authority's) and its key, PEM.
    ///
    /// # Errors
    /// Which of them cannot be used.
    pub fn own(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|why| TlsError::Setup(format!("the key: {why}")))?;
        Ok(Self {
            issuer: None,
            current: Mutex::new(current(chain, key)?),
        })
    }

    /// By a certificate of the cluster's authority for these names and addresses, replaced long before it ends.
    ///
    /// # Errors
    /// When none can be issued.
    pub fn issued(secret: Secret, cluster: &str, names: Vec<String>) -> Result<Self, TlsError> {
        let issuer = Issuer {
            secret,
            cluster: cluster.to_owned(),
            names,
        };
        let current = Mutex::new(issuer.issue()?);
        Ok(Self {
            issuer: Some(issuer),
            current,
        })
    }

    /// SHA-256 of the certificate that is shown, as browsers write it.
    pub fn fingerprint(&self) -> String {
        self.current().fingerprint.clone()
    }

    /// The handshake with somebody who dialled us.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.current().config);
        TlsAcceptor::from(config).accept(stream).await
    }

    /// The certificate, a new one when it is time.
    fn current(&self) -> MutexGuard<'_, Current> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(issuer) = &self.issuer
            && current.since.elapsed() >= RENEW
        {
            match issuer.issue() {
                Ok(next) => *current = next,
                Err(why) => {
                    log::error!(target: "admin", event = "security.not_renewed", err:% = why; "the certificate of the admin API was not renewed")
                }
            }
        }
        current
    }
}

impl Issuer {
    fn issue(&self) -> Result<Current, TlsError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(self.names.clone())?;
        let name = format!("admin API of a node of {}", self.cluster);
        params.distinguished_name.push(DnType::CommonName, name);
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - SKEW;
        params.not_after = now + LIFE;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (authority, _) = self.secret.authority(&self.cluster)?;
        let certificate = params.signed_by(&key, &authority)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        current(vec![certificate.der().clone()], key)
    }
}

fn current(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Current, TlsError> {
    let shown = chain.first().map_or(&[][..], |own| own.as_ref());
    let digest = ring::digest::digest(&ring::digest::SHA256, shown);
    let bytes = digest.as_ref().iter().map(|byte| format!("{byte:02X}"));
    let fingerprint = bytes.collect::<Vec<_>>().join(":");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(set_up)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(set_up)?;
    Ok(Current {
        since: Instant::now(),
        config: Arc::new(config),
        fingerprint,
    })
}

/// The client's side: whom it believes.
#[derive(Clone)]
pub struct ClientTls(TlsConnector);

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls(..)")
    }
}

impl ClientTls {
    /// Believes certificates of these authorities, PEM.
    ///
    /// # Errors
    /// When there is none in it.
    pub fn new(authorities: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities)? {
            roots.add(authority).map_err(set_up)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(set_up)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// The handshake with whoever must be `host`.
    ///
    /// # Errors
    /// It is another, or nobody that is believed.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

/// The certificate of a cluster's authority, PEM: what `--ca` takes.
///
/// # Errors
/// When it cannot be made.
pub fn authority(secret: &Secret, cluster: &str) -> Result<String, TlsError> {
    Ok(secret.authority(cluster)?.1.pem())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(TlsError::Setup("there is no certificate in it".to_owned())),
        Err(why) => Err(TlsError::Setup(format!("the certificate: {why}"))),
    }
}

fn set_up(why: rustls::Error) -> TlsError {
    TlsError::Setup(why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    async fn talk(server: &ServerTls, client: &ClientTls, host: &str) -> Result<(), String> {
        let (ours, theirs) = duplex(16 * 1024);
        let serving = async {
            let mut stream = server.accept(ours).await.map_err(|why| why.to_string())?;
            stream
                .write_all(b"word")
                .await
                .map_err(|why| why.to_string())?;
            stream.shutdown().await.map_err(|why| why.to_string())
        };
        let asking = async {
            let stream = client.connect(host, theirs).await;
            let mut stream = stream.map_err(|why| why.to_string())?;
            let mut word = String::new();
            let read = stream.read_to_string(&mut word).await;
            read.map_err(|why| why.to_string())?;
            assert_eq!(word, "word");
            Ok(())
        };
        let (_, asked) = tokio::join!(serving, asking);
        asked
    }

    #[tokio::test]
    async fn whoever_has_the_secret_can_check_the_certificate_and_the_name_in_it() {
        let secret = |byte| Secret::new([byte; 32]);
        let names = vec!["127.0.0.1".to_owned(), "node-a".to_owned()];
        let server = ServerTls::issued(secret(1), "troupe", names).unwrap();
        let client = |secret: Secret, cluster: &str| {
            ClientTls::new(authority(&secret, cluster).unwrap().as_bytes()).unwrap()
        };
        let ours = client(secret(1), "troupe");
        talk(&server, &ours, "127.0.0.1").await.unwrap();
        talk(&server, &ours, "node-a").await.unwrap();
        assert!(talk(&server, &ours, "10.0.0.1").await.is_err());
        assert!(
            talk(&server, &client(secret(2), "troupe"), "node-a")
                .await
                .is_err()
        );
        assert!(
            talk(&server, &client(secret(1), "other"), "node-a")
                .await
                .is_err()
        );
        assert_eq!(server.fingerprint().len(), 95);
    }

    #[test]
    fn what_is_no_certificate_is_refused_in_words() {
        let why = ServerTls::own(b"hello", b"world").unwrap_err().to_string();
        assert!(why.contains("no certificate"), "{why}");
        assert!(ClientTls::new(b"").is_err());
    }
}
