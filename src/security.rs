//! By what a node shows who it is: the cluster secret, made by `troupe keygen`, or certificates of an authority of your own; read
//! from files, of which those that are secret may be read by nobody but their owner.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use troupe_actors::admin::tls::ServerTls;
use troupe_actors::admin::{self, Token};
use troupe_actors::id::NodeId;
use troupe_actors::registry::embedded;
use troupe_actors::registry::etcd::{Access, Certificate, Identity, TlsOptions};
use troupe_actors::transport::tls::{Credentials, OwnCertificates, Secret, Tls, TlsError};
use troupe_actors::transport::trust::Subject;

use crate::config::Config;

/// A secret is 65 bytes; a wrong path must not make us read a disk.
const MAX_FILE: u64 = 4096;
/// An RSA key of 16,384 bits is 13 KB.
const MAX_KEY: u64 = 65_536;

/// Secrets accepted at one time.
const MAX_SECRETS: usize = 4;
/// What systemd's LoadCredential= is to call the secret.
const CREDENTIAL: &str = "troupe-secret";
/// An open node says so this often.
const SHOUT_EVERY: Duration = Duration::from_secs(600);

/// TLS as configured; `None` where there is neither a secret nor a certificate.
///
/// # Errors
/// What is wrong with which file, in words.
pub fn tls(config: &Config, id: NodeId) -> Result<Option<Arc<Tls>>, String> {
    let Some(credentials) = credentials(config)? else {
        return Ok(None);
    };
    let tls = Tls::new(credentials, &config.cluster, id).map_err(|why| about(config, &why))?;
    if let Subject::Name(named) = tls.holder().subject {
        // Whoever rolls a name, or has another one, would be refused by every other node.
        if config.node.name.as_ref() != Some(&named) {
            return Err(format!(
                "security.cert_file names the node {named:?}: node.name must be the same"
            ));
        }
    }
    Ok(Some(Arc::new(tls)))
}

fn about(config: &Config, why: &TlsError) -> String {
    match &config.security.cert_file {
        Some(file) => format!("security.cert_file = {file:?}: {why}"),
        None => why.to_string(),
    }
}

/// By what this node shows who it is, read from its files.
fn credentials(config: &Config) -> Result<Option<Credentials>, String> {
    let security = &config.security;
    if let (Some(cert), Some(key), Some(ca)) =
        (&security.cert_file, &security.key_file, &security.ca_file)
    {
        let wrong = |setting: &str, file: &str, why: String| {
            format!("security.{setting} = {file:?}: {why}")
        };
        let public = |setting: &str, file: &String| {
            let read = std::fs::read(file);
            read.map_err(|why| wrong(setting, file, format!("cannot be read: {why}")))
        };
        let key = private(Path::new(key), MAX_KEY).map_err(|why| wrong("key_file", key, why))?;
        return Ok(Some(Credentials::Own(OwnCertificates {
            chain: public("cert_file", cert)?,
            key: key.into_bytes(),
            authority: public("ca_file", ca)?,
        })));
    }
    let files = [
        ("security.secret_file", &security.secret_file),
        ("security.accept_secret_file", &security.accept_secret_file),
    ];
    let mut all = Vec::new();
    for (key, file) in files {
        if let Some(file) = file {
            let read = secrets(Path::new(file));
            all.extend(read.map_err(|why| format!("{key} = {file:?}: {why}"))?);
        }
    }
    let lent = credential().filter(|_| all.is_empty() && !security.insecure);
    if let Some(file) = lent {
        let read = secrets(&file);
        all.extend(read.map_err(|why| format!("credential {}: {why}", file.display()))?);
    }
    if all.len() > MAX_SECRETS {
        return Err(format!(
            "security.secret_file and security.accept_secret_file hold {} secrets: at most {MAX_SECRETS} are accepted at one time",
            all.len()
        ));
    }
    Ok((!all.is_empty()).then_some(Credentials::Secrets(all)))
}

/// The secret that systemd gives to the service.
fn credential() -> Option<PathBuf> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let file = PathBuf::from(dir).join(CREDENTIAL);
    file.exists().then_some(file)
}

/// Whether a node without credentials may start: where only this machine reaches it, or where it is told to.
///
/// # Errors
/// What to do, in words.
pub fn may_be_plain(config: &Config, bind: SocketAddr, advertised: &str) -> Result<(), String> {
    let here = match advertised.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => advertised == "localhost",
    };
    if (bind.ip().is_loopback() && here) || config.security.insecure {
        return Ok(());
    }
    Err(format!(
        "there is no cluster secret, and this node (node.bind {bind}, advertised as {advertised}) can be reached from other machines: whoever reaches it could join and read everything. \
         Make a secret once with `troupe keygen /etc/troupe/secret`, give every node the same file and set security.secret_file to it; \
         for a node of this machine alone set --bind 127.0.0.1:{}; to go without, --insecure",
        bind.port()
    ))
}

/// Says at the start and now and then that anybody can join.
pub fn shout(bind: SocketAddr) {
    actix_rt::spawn(async move {
        loop {
            log::warn!(target: "node", event = "security.insecure", address = bind.to_string(), key = "security.insecure"; "THIS NODE IS OPEN: whoever reaches its port can join the cluster, read and change everything; make a secret with troupe keygen and set security.secret_file");
            tokio::time::sleep(SHOUT_EVERY).await;
        }
    });
}

/// Reads secrets and certificates again. What is wrong changes nothing; sessions that are up stay.
///
/// # Errors
/// What is wrong with which file, in words; it is logged too.
pub fn read_again(config: &Config, tls: &Tls) -> Result<(), String> {
    let read = credentials(config);
    let read = read.and_then(|c| c.ok_or_else(|| "the secret is gone".to_owned()));
    let accepted = match &read {
        Ok(Credentials::Secrets(all)) => all.len(),
        _ => 1,
    };
    let replaced = read.and_then(|c| tls.replace(c).map_err(|why| about(config, &why)));
    match replaced {
        Ok(holder) => {
            log::info!(target: "node", event = "security.reloaded", certificate:display = holder, accepted = accepted; "secrets and certificates are read again; sessions that are up stay");
            Ok(())
        }
        Err(why) => {
            log::error!(target: "node", event = "security.not_reloaded", reason = why.as_str(); "secrets and certificates stay as they were");
            Err(why)
        }
    }
}

/// How the registry lets us in, as configured.
///
/// # Errors
/// What is wrong with which file, in words.
pub fn registry_access(config: &Config) -> Result<Access, String> {
    let files = &config.access;
    let about = |key: &str, file: &str, why: String| format!("registry.{key} = {file:?}: {why}");
    let pem = |key: &str, file: &Option<String>| match file {
        None => Ok(None),
        Some(file) => match std::fs::read(file) {
            Ok(pem) if pem.starts_with(b"-----BEGIN") => Ok(Some(pem)),
            Ok(_) => Err(about(key, file, "must be PEM".to_owned())),
            Err(why) => Err(about(key, file, format!("cannot be read: {why}"))),
        },
    };
    let ca = pem("ca_file", &files.ca_file)?;
    let identity = pem("cert_file", &files.cert_file)?.zip(pem("key_file", &files.key_file)?);
    let tls = ca.map(|ca| {
        let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
        match identity {
            Some((cert, key)) => tls.identity(Identity::from_pem(cert, key)),
            None => tls,
        }
    });
    let password = files.password_file.as_ref().map(|file| {
        let read = private(Path::new(file), MAX_FILE);
        read.map_err(|why| about("password_file", file, why))
    });
    let password = password.transpose()?.map(|text| text.trim_end().to_owned());
    Ok(Access {
        tls,
        user: files.user.clone().zip(password),
    })
}

/// The secrets of a file, a line each.
fn secrets(path: &Path) -> Result<Vec<Secret>, String> {
    let text = private(path, MAX_FILE)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let secrets: Result<Vec<_>, _> = lines.map(Secret::parse).collect();
    match secrets {
        Ok(secrets) if secrets.is_empty() => Err(TlsError::BadSecret.to_string()),
        secrets => secrets.map_err(|why| why.to_string()),
    }
}

/// Who may use the admin API, and its certificate for these names; as configured.
///
/// # Errors
/// What is wrong with which file, in words.
pub fn admin(
    config: &Config,
    names: &[String],
) -> Result<(admin::Access, Option<Arc<ServerTls>>), String> {
    let files = &config.admin_access;
    let about = |key: &str, file: &str, why: String| format!("{key} = {file:?}: {why}");
    let token = |key: &str, file: &Option<String>| {
        let token = file.as_ref().map(|file| {
            let text = private(Path::new(file), MAX_FILE).map_err(|why| about(key, file, why))?;
            Token::parse(&text).map_err(|why| about(key, file, why.to_string()))
        });
        token.transpose()
    };
    let access = admin::Access {
        operator: token("admin.token_file", &files.token_file)?,
        reader: token("admin.read_token_file", &files.read_token_file)?,
        hosts: names.to_vec(),
    };
    if !config.admin_tls() {
        return Ok((access, None));
    }
    let own = files.cert_file.as_ref().zip(files.key_file.as_ref());
    let tls = match (own, credentials(config)?) {
        (Some((cert, key)), _) => {
            let pem = std::fs::read(cert);
            let pem = pem.map_err(|why| about("admin.cert_file", cert, why.to_string()))?;
            let private = private(Path::new(key), MAX_KEY);
            let private = private.map_err(|why| about("admin.key_file", key, why))?;
            let tls = ServerTls::own(&pem, private.as_bytes());
            tls.map_err(|why| about("admin.cert_file", cert, why.to_string()))?
        }
        (None, Some(Credentials::Secrets(secrets))) => {
            let secret = secrets.into_iter().next().ok_or("there is no secret")?;
            let tls = ServerTls::issued(secret, &config.cluster, names.to_vec());
            tls.map_err(|why| why.to_string())?
        }
        (None, _) => {
            return Err(format!(
                "node.admin = \"{}\": beyond loopback the admin API needs admin.token_file and TLS: set admin.cert_file and admin.key_file, or give the cluster a secret (security.secret_file), whose authority issues a certificate",
                config.admin_at()
            ));
        }
    };
    Ok((access, Some(Arc::new(tls))))
}

/// By what the embedded registry shows itself, and whom it lets in.
///
/// # Errors
/// What is wrong with which file, in words.
pub fn registry_tls(
    cert: &Path,
    key: &Path,
    client_ca: Option<&Path>,
) -> Result<embedded::Tls, String> {
    let about = |flag: &str, file: &Path, why: String| format!("{flag} {}: {why}", file.display());
    let pem = |flag: &str, file: &Path| {
        let pem = std::fs::read(file);
        pem.map_err(|why| about(flag, file, format!("cannot be read: {why}")))
    };
    let private = private(key, MAX_KEY).map_err(|why| about("--key", key, why))?;
    let client_authority = client_ca.map(|file| pem("--client-ca", file));
    Ok(embedded::Tls {
        certificate: pem("--cert", cert)?,
        key: private.into_bytes(),
        client_authority: client_authority.transpose()?,
    })
}

/// `troupe ca FILE`: the certificate of the cluster's authority, on stdout. Answers the exit code.
pub fn print_authority(path: &Path, cluster: &str) -> u8 {
    let made = first_secret(path).and_then(|secret| {
        let made = admin::tls::authority(&secret, cluster);
        made.map_err(|why| why.to_string())
    });
    match made {
        Ok(pem) => {
            crate::client::say(pem.trim_end());
            0
        }
        Err(why) => {
            eprintln!("troupe ca: {}: {why}", path.display());
            1
        }
    }
}

/// The token in a file.
///
/// # Errors
/// What is wrong with it, in words.
pub fn token(path: &Path) -> Result<String, String> {
    let text = private(path, MAX_FILE)?.trim().to_owned();
    Token::parse(&text).map_err(|why| why.to_string())?;
    Ok(text)
}

/// A small file that nobody else may read.
fn private(path: &Path, most: u64) -> Result<String, String> {
    let about = std::fs::metadata(path).map_err(|why| format!("cannot be read: {why}"))?;
    let mode = about.permissions().mode() & 0o777;
    // What systemd lends to a service is its own to protect: where it uses access lists, the mode shows them as a group's.
    let lent = std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| path.starts_with(dir));
    if mode & (if lent { 0o007 } else { 0o077 }) != 0 {
        return Err(format!(
            "others may read it (mode {mode:o}): must be 600 or 400; chmod 600, and replace what is in it if somebody did"
        ));
    }
    if !about.is_file() || about.len() > most {
        return Err(format!("must be a file of at most {most} bytes"));
    }
    std::fs::read_to_string(path).map_err(|why| format!("cannot be read: {why}"))
}

/// `troupe keygen FILE`: a new secret in a new file; an existing one is never overwritten. Answers the exit code.
pub fn keygen(path: &Path) -> u8 {
    match new_secret(path) {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("troupe keygen: {}: {why}", path.display());
            1
        }
    }
}

/// A new secret in a new file that only its owner may read.
pub fn new_secret(path: &Path) -> std::io::Result<()> {
    let secret = Secret::new(rand::rng().random());
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            writeln!(file, "{}", secret.reveal())?;
            file.sync_all()
        })
}

/// The secret of a file, for those who measure.
pub fn first_secret(path: &Path) -> Result<Secret, String> {
    let mut all = secrets(path)?;
    Ok(all.swap_remove(0))
}
