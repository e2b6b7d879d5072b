//! What is beyond loopback: the admin API, asked over TLS by the cluster's authority and with the token, and certificates for
//! the embedded registry.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{TROUPE, keygen, secret_file};

/// How such an address begins.
pub const SECURE: &str = "https://";

/// The operator's token of the nodes of this test binary that are not on loopback.
pub fn token_file() -> &'static str {
    static TOKEN: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    let (_, path) = TOKEN.get_or_init(keygen);
    path
}

/// The header that shows it.
pub fn bearer() -> &'static str {
    static BEARER: OnceLock<String> = OnceLock::new();
    BEARER.get_or_init(|| {
        let token = std::fs::read_to_string(token_file()).unwrap();
        format!("authorization: Bearer {}\r\n", token.trim())
    })
}

/// TLS over a connection with the node at this address; the handshake comes with the first byte.
pub fn over_tls(
    address: SocketAddr,
    stream: TcpStream,
) -> Option<StreamOwned<ClientConnection, TcpStream>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let made = Command::new(TROUPE).args(["ca", secret_file()]).output();
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(&made.unwrap().stdout);
        roots.add(authority.unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    });
    let name = address.ip().into();
    let connection = ClientConnection::new(Arc::clone(config), name).ok()?;
    Some(StreamOwned::new(connection, stream))
}

/// An authority with a server's and a client's certificate for these addresses: `ca.pem`, `server.pem`, `server.key` and so on.
pub fn certificates(dir: &Path, addresses: &[&str]) {
    let write = |name: String, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).unwrap();
    write("ca.pem".to_owned(), own.pem());
    let issuer = Issuer::new(params, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let issued = params.signed_by(&key, &issuer).unwrap();
        write(format!("{name}.pem"), issued.pem());
        write(format!("{name}.key"), key.serialize_pem());
    }
}
