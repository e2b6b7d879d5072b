//! The cluster secret: made by `troupe keygen`, read from a file that nobody but its owner may read.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rand::RngExt;
use troupe_actors::id::NodeId;
use troupe_actors::registry::etcd::{Access, Certificate, Identity, TlsOptions};
use troupe_actors::transport::tls::{Secret, Tls};

use crate::config::Config;

/// A secret file is 65 bytes; a wrong path must not make us read a disk.
const MAX_FILE: u64 = 4096;

/// TLS as configured; `None` without a secret.
///
/// # Errors
/// What is wrong with which file, in words.
pub fn tls(config: &Config, id: NodeId) -> Result<Option<Arc<Tls>>, String> {
    let security = &config.security;
    let files = [
        ("security.secret_file", &security.secret_file),
        ("security.accept_secret_file", &security.accept_secret_file),
    ];
    let mut secrets = Vec::new();
    for (key, file) in files {
        if let Some(file) = file {
            secrets.push(read(Path::new(file)).map_err(|why| format!("{key} = {file:?}: {why}"))?);
        }
    }
    if secrets.is_empty() {
        return Ok(None);
    }
    let tls = Tls::new(secrets, &config.cluster, id).map_err(|why| why.to_string())?;
    Ok(Some(Arc::new(tls)))
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
        let read = private(Path::new(file));
        read.map_err(|why| about("password_file", file, why))
    });
    let password = password.transpose()?.map(|text| text.trim_end().to_owned());
    Ok(Access {
        tls,
        user: files.user.clone().zip(password),
    })
}

fn read(path: &Path) -> Result<Secret, String> {
    let text = private(path)?;
    Secret::parse(&text).map_err(|why| why.to_string())
}

/// A small file that nobody else may read.
fn private(path: &Path) -> Result<String, String> {
    let about = std::fs::metadata(path).map_err(|why| format!("cannot be read: {why}"))?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "others may read it (mode {mode:o}): must be 600 or 400; chmod 600, and replace what is in it if somebody did"
        ));
    }
    if !about.is_file() || about.len() > MAX_FILE {
        return Err("must be a file with one secret, such as `troupe keygen` makes".to_owned());
    }
    std::fs::read_to_string(path).map_err(|why| format!("cannot be read: {why}"))
}

/// `troupe keygen FILE`: a new secret in a new file; an existing one is never overwritten. Answers the exit code.
pub fn keygen(path: &Path) -> u8 {
    let secret = Secret::new(rand::rng().random());
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            writeln!(file, "{}", secret.reveal())?;
            file.sync_all()
        });
    match made {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("troupe keygen: {}: {why}", path.display());
            1
        }
    }
}
