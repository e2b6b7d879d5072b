//! Certificates: how one shared secret becomes an authority, what a node issues to itself, and how those of others are checked.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::time::Instant;

use super::tls::explain;
use super::trust::{Distrust, Holder, Reason, Subject, other_cluster, stranger};

/// What is asked for and what nobody looks at: which cluster and which node is settled by the certificate's URI.
pub(super) const NAME: &str = "node.troupe.internal";
/// How long a certificate is valid; also how long it was valid before it was made, for clocks that differ.
const LIFE: Duration = Duration::from_secs(24 * 3600);
const SKEW: Duration = Duration::from_secs(3600);
/// Why there is no TLS; nothing was started or changed. The operator's to mend.
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
    /// Something else than PEM with what it should hold.
    #[error("{what} cannot be read: {why}")]
    Pem {
        /// Which of the three.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Other nodes would not accept our certificate.
    #[error("the certificate of this node is of no use: {0}")]
    Own(Distrust),
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

    /// The authority of the cluster of this name.
    pub(crate) fn authority(
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

/// By what a node shows who it is.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// The first secret issues our certificate; those of every one are accepted, for rotation.
    Secrets(Vec<Secret>),
    /// By an authority of your own.
    Own(OwnCertificates),
}

/// Certificates of an authority of your own, PEM. The certificate is for servers and clients, and names the cluster
/// ([`super::trust`]).
#[derive(Clone)]
pub struct OwnCertificates {
    /// Ours, and those between it and the authority's.
    pub chain: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// The authority's.
    pub authority: Vec<u8>,
}

impl std::fmt::Debug for OwnCertificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnCertificates(..)")
    }
}

/// What rustls works by, and since when.
pub(super) struct Configs {
    pub(super) issued: Instant,
    pub(super) holder: Holder,
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

/// What a node shows, and by what it checks the others.
pub(super) struct Papers {
    holder: Holder,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
}

/// Makes or reads our certificate and sets both sides up.
pub(super) fn configs(credentials: &Credentials, me: Holder) -> Result<Configs, TlsError> {
    let cluster = me.cluster.clone();
    let papers = match credentials {
        Credentials::Secrets(secrets) => {
            let now = time::OffsetDateTime::now_utc();
            issue(secrets, me, (now - SKEW, now + LIFE))?
        }
        Credentials::Own(own) => own.papers(&cluster)?,
    };
    let issues = matches!(credentials, Credentials::Secrets(_));
    set_up(papers, &cluster, issues)
}

/// A certificate for this life of this node, signed by the first secret.
pub(super) fn issue(
    secrets: &[Secret],
    me: Holder,
    (not_before, not_after): (time::OffsetDateTime, time::OffsetDateTime),
) -> Result<Papers, TlsError> {
    let first = secrets.first().ok_or(TlsError::BadSecret)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
    let uri = SanType::URI(me.to_string().try_into()?);
    params.subject_alt_names.push(uri);
    if let Subject::Life(id, _) = me.subject {
        let name = id.to_string();
        params.distinguished_name.push(DnType::CommonName, name);
    }
    (params.not_before, params.not_after) = (not_before, not_after);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, &first.authority(&me.cluster)?.0)?;
    let mut roots = RootCertStore::empty();
    for secret in secrets {
        let (_, ca) = secret.authority(&me.cluster)?;
        roots.add(ca.der().clone()).map_err(set_up_failed)?;
    }
    Ok(Papers {
        holder: me,
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        roots,
    })
}

impl OwnCertificates {
    fn papers(&self, cluster: &str) -> Result<Papers, TlsError> {
        let pem = |what| {
            move |why: rustls::pki_types::pem::Error| TlsError::Pem {
                what,
                why: why.to_string(),
            }
        };
        let certificates = |pem_bytes, what| {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem_bytes).collect();
            let all = all.map_err(pem(what))?;
            if all.is_empty() {
                let why = "there is no certificate in it".to_owned();
                return Err(TlsError::Pem { what, why });
            }
            Ok(all)
        };
        let chain = certificates(&self.chain, "the certificate")?;
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.authority, "the authority's certificate")? {
            roots.add(ca).map_err(set_up_failed)?;
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(pem("the key"))?;
        let holder = chain.first().and_then(|own| named(own, cluster));
        let holder = holder.ok_or_else(|| {
            let words = format!(
                "it names no node of a troupe; it needs the URI troupe://{cluster} or troupe://{cluster}/name/<name of the node> among its alternative names"
            );
            TlsError::Own(Distrust::new(Reason::ForeignCertificate, words))
        })?;
        Ok(Papers {
            holder,
            chain,
            key,
            roots,
        })
    }
}

fn set_up_failed(why: impl std::fmt::Display) -> TlsError {
    TlsError::Setup(why.to_string())
}

pub(super) fn set_up(papers: Papers, cluster: &str, issues: bool) -> Result<Configs, TlsError> {
    let Papers {
        holder,
        chain,
        key,
        roots,
    } = papers;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(roots);
    let callers =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(set_up_failed)?;
    let verifier = Arc::new(Verifier {
        cluster: cluster.to_owned(),
        issues,
        roots,
        callers,
        provider: Arc::clone(&provider),
    });
    if !issues {
        // What others would refuse is better refused here, in words.
        let (own, between) = chain.split_first().ok_or(TlsError::BadSecret)?;
        let verified = verifier.verify_client_cert(own, between, UnixTime::now());
        verified.map_err(|why| TlsError::Own(explain(&why)))?;
    }
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(set_up_failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .map_err(set_up_failed)?;
    // Every session proves itself anew: no tickets, no early data.
    client.resumption = rustls::client::Resumption::disabled();
    client.enable_sni = false;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(set_up_failed)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(set_up_failed)?;
    server.send_tls13_tickets = 0;
    Ok(Configs {
        issued: Instant::now(),
        holder,
        client: Arc::new(client),
        server: Arc::new(server),
    })
}

/// Checks either side alike: a certificate of our authority, in its time, that names this cluster.
#[derive(Debug)]
struct Verifier {
    cluster: String,
    /// Whether nodes issue their own: then each certificate names one life of one node.
    issues: bool,
    roots: Arc<RootCertStore>,
    callers: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn judge(
        &self,
        verified: Result<(), rustls::Error>,
        certificate: &CertificateDer<'_>,
    ) -> Result<(), rustls::Error> {
        let holder = named(certificate, &self.cluster);
        let distrust = match (verified, holder) {
            (Err(why), holder) => self.distrust(&why, holder.as_ref()),
            (Ok(()), Some(holder)) if holder.cluster != self.cluster => {
                other_cluster(&holder.cluster, &self.cluster)
            }
            (Ok(()), Some(holder))
                if self.issues && !matches!(holder.subject, Subject::Life(..)) =>
            {
                let words = format!("its certificate is for {holder}, which is no single node");
                Distrust::new(Reason::ForeignCertificate, words)
            }
            (Ok(()), Some(_)) => return Ok(()),
            (Ok(()), None) => {
                let words = format!(
                    "its certificate names no node of a troupe: it needs the URI troupe://{} or troupe://{0}/name/<name of the node>",
                    self.cluster
                );
                Distrust::new(Reason::ForeignCertificate, words)
            }
        };
        let other = OtherError(Arc::new(distrust));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(
            other,
        )))
    }

    fn distrust(&self, why: &rustls::Error, claims: Option<&Holder>) -> Distrust {
        use CertificateError::{
            BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer,
        };
        match why {
            rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
                stranger(claims, &self.cluster)
            }
            rustls::Error::InvalidCertificate(
                Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
            ) => {
                let words = format!("{why}: one of the two clocks is off, or it was not renewed");
                Distrust::new(Reason::Expired, words)
            }
            why => Distrust::new(Reason::BadCertificate, why.to_string()),
        }
    }

    fn signed(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }
}

/// Only TLS 1.3 is spoken.
fn never_before_13() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = ParsedCertificate::try_from(certificate).and_then(|parsed| {
            let algorithms = self.provider.signature_verification_algorithms.all;
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                between,
                now,
                algorithms,
            )
        });
        self.judge(verified, certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never_before_13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.callers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whose certificate would do is nobody's business before it has shown one.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.callers.verify_client_cert(certificate, between, now);
        self.judge(verified.map(drop), certificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never_before_13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.callers.supported_verify_schemes()
    }
}

/// Whom a certificate names: of our own cluster, if it names several.
pub(super) fn named(certificate: &CertificateDer<'_>, cluster: &str) -> Option<Holder> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut holders = certificate.valid_uri_names().filter_map(Holder::parse);
    let first = holders.next()?;
    if first.cluster == cluster {
        return Some(first);
    }
    holders
        .find(|holder| holder.cluster == cluster)
        .or(Some(first))
}
