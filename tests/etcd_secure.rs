//! A real etcd behind TLS with client certificates, users and a role that may do no more than a cluster needs.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use support::{LONG, Node, Process, TROUPE, event, free_ports, until};
use troupe_actors::registry::contract::{CHECKS, COMPACTING, Subject};
use troupe_actors::registry::etcd::{Access, Certificate, EtcdBackend, Identity, TlsOptions};
use troupe_actors::registry::{Backend, Timeouts};

const PASSWORD: &str = "correct horse";

/// An etcd that lets nobody in without a certificate of its authority and, once users are set up, a password.
struct Guarded {
    _process: Process,
    dir: tempfile::TempDir,
    port: u16,
}

impl Guarded {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let port = free_ports(2);
        let (client, peer) = (
            format!("https://127.0.0.1:{port}"),
            format!("http://127.0.0.1:{}", port + 1),
        );
        let path = |name: &str| dir.path().join(name);
        let mut command = Command::new("etcd");
        command
            .env("ETCD_NAME", "guarded")
            .env("ETCD_DATA_DIR", path("data"))
            .env("ETCD_LISTEN_CLIENT_URLS", &client)
            .env("ETCD_ADVERTISE_CLIENT_URLS", &client)
            .env("ETCD_LISTEN_PEER_URLS", &peer)
            .env("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peer)
            .env("ETCD_INITIAL_CLUSTER", format!("guarded={peer}"))
            .env("ETCD_CERT_FILE", path("server.pem"))
            .env("ETCD_KEY_FILE", path("server.key"))
            .env("ETCD_TRUSTED_CA_FILE", path("ca.pem"))
            .env("ETCD_CLIENT_CERT_AUTH", "true")
            .env("ETCD_UNSAFE_NO_FSYNC", "true")
            .env("ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL", "1s")
            // Tokens end soon, so that the tests see it.
            .env("ETCD_AUTH_TOKEN_TTL", "3")
            .env("ETCD_LOGGER", "zap");
        let etcd = Self {
            _process: Process::start(&mut command),
            dir,
            port,
        };
        until("etcd answers", LONG, || {
            let health = etcd.try_ctl(&["endpoint", "health"]);
            if health.status.success() {
                Ok(())
            } else {
                Err(format!("{health:?}"))
            }
        });
        etcd.ctl(&["user", "add", &format!("root:{PASSWORD}")]);
        etcd.ctl(&["user", "grant-role", "root", "root"]);
        etcd.ctl(&["user", "add", &format!("troupe:{PASSWORD}")]);
        etcd.ctl(&["role", "add", "troupe"]);
        etcd.permit("grant-permission");
        etcd.ctl(&["user", "grant-role", "troupe", "troupe"]);
        etcd.ctl(&["auth", "enable"]);
        etcd
    }

    /// All that a cluster called `troupe` needs.
    fn permit(&self, how: &str) {
        match how {
            "grant-permission" => {
                self.ctl(&["role", how, "troupe", "--prefix", "readwrite", "/troupe/"])
            }
            _ => self.ctl(&["role", how, "troupe", "--prefix", "/troupe/"]),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn try_ctl(&self, args: &[&str]) -> std::process::Output {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url()])
            .arg("--cacert")
            .arg(self.path("ca.pem"))
            .arg("--cert")
            .arg(self.path("client.pem"))
            .arg("--key")
            .arg(self.path("client.key"))
            .args(args)
            .output()
            .unwrap()
    }

    /// As root, whether users are enabled already or not.
    fn ctl(&self, args: &[&str]) {
        let user = format!("root:{PASSWORD}");
        let as_root: Vec<&str> = ["--user", &user]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let done = self.try_ctl(args);
        if !done.status.success() {
            let done = self.try_ctl(&as_root);
            assert!(done.status.success(), "{args:?}: {done:?}");
        }
    }

    fn backend(&self, user: &str) -> Arc<EtcdBackend> {
        let read = |name: &str| std::fs::read(self.path(name)).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")))
            .identity(Identity::from_pem(read("client.pem"), read("client.key")));
        let access = Access {
            tls: Some(tls),
            user: Some((user.to_owned(), PASSWORD.to_owned())),
        };
        let timeouts = Timeouts {
            request: Duration::from_secs(10),
            ..Timeouts::default()
        };
        Arc::new(EtcdBackend::with_access(vec![self.url()], timeouts, access).unwrap())
    }
}

/// An authority, and certificates for the server and for a client without a name that etcd would take for a user.
fn certificates(dir: &Path) {
    let write = |name: &str, pem: String| std::fs::write(dir.join(name), pem).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "test authority");
    write("ca.pem", params.self_signed(&key).unwrap().pem());
    let issuer = Issuer::new(params, key);
    for (name, alternatives) in [("server", vec!["127.0.0.1".to_owned()]), ("client", vec![])] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(alternatives).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_the_contract_behind_tls_for_a_user_of_one_prefix() {
    let etcd = Guarded::start();
    let root = etcd.backend("root");
    let subject = Subject {
        backend: etcd.backend("troupe"),
        other: etcd.backend("troupe"),
        prefix: String::new(),
        compact: Arc::new(move |revision| {
            let root = Arc::clone(&root);
            Box::pin(async move { root.compact(revision).await.expect("compacted") })
        }),
    };
    // Those that compact run one by one, since that concerns all.
    let rounds = std::iter::once(CHECKS).chain(COMPACTING.chunks(1));
    let mut failed = Vec::new();
    for checks in rounds {
        let mut running = Vec::new();
        for (name, check) in checks {
            let subject = Subject {
                prefix: format!("/troupe/{name}/"),
                ..subject.clone()
            };
            let check = tokio::spawn(async move { check(&subject).await });
            running.push((name, check));
        }
        for (name, check) in running {
            if let Err(error) = check.await {
                failed.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(failed.is_empty(), "not kept: {failed:#?}");
    // What is outside of the prefix is refused in words, and a user with another password is not let in.
    let outside = subject
        .backend
        .list("/other/")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        outside.contains("permission denied") && outside.contains("its role"),
        "{outside}"
    );
}

fn settings(etcd: &Guarded) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;
    let password = etcd.path("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = |key: &str, name: &str| format!("registry.{key}={}", etcd.path(name).display());
    let set = [
        file("ca_file", "ca.pem"),
        file("cert_file", "client.pem"),
        file("key_file", "client.key"),
        "registry.user=troupe".to_owned(),
        file("password_file", "password"),
        "generator.every=200ms".to_owned(),
        "worker.delay_min=0ms".to_owned(),
        "worker.delay_max=100ms".to_owned(),
    ];
    set.into_iter()
        .flat_map(|set| ["--set".to_owned(), set])
        .collect()
}

#[test]
fn nodes_work_as_a_user_and_say_in_words_when_its_permission_is_revoked() {
    let etcd = Guarded::start();
    let settings = settings(&etcd);
    let more: Vec<&str> = settings.iter().map(String::as_str).collect();
    let nodes = ["n1", "n2"].map(|name| Node::start_with(name, &etcd.url(), &more));
    nodes[0].wait_members(&["n1", "n2"], LONG);
    let submit = || nodes[0].post("/v1/tasks", r#"{"job": "noop", "input": 1}"#);
    until("a durable task is recorded", LONG, || match submit() {
        Some((200..=202, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Longer than a token lives; what needs the registry goes on.
    std::thread::sleep(Duration::from_secs(5));
    let (status, answer) = submit().unwrap();
    assert!(status < 300, "{status}: {answer}");
    etcd.permit("revoke-permission");
    let refused = until("it is refused", LONG, || match submit() {
        Some((503, answer)) => Ok(answer.to_string()),
        other => Err(format!("{other:?}")),
    });
    assert!(refused.contains("not_recorded"), "{refused}");
    let said = |line: &serde_json::Value| {
        line.to_string().contains("permission denied") && line.to_string().contains("its role")
    };
    let master = nodes
        .iter()
        .find(|n| n.master().is_some_and(|m| m.0 == n.name))
        .unwrap();
    let (_, line) = master.wait("the reason", said);
    println!("{line}");
    etcd.permit("grant-permission");
    until("it goes on", LONG, || match submit() {
        Some((200..=202, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(!nodes.iter().any(|n| {
        n.process
            .lines
            .all()
            .iter()
            .any(|l| event(&l.1, "peer.condemned"))
    }));
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let etcd = Guarded::start();
    let settings = settings(&etcd);
    let url = etcd.url();
    let check = |registry: &str, more: &[&str]| {
        let output = Command::new(TROUPE)
            .args(["run", "--bind", "127.0.0.1:0", "--registry", registry])
            .args(&settings)
            .args(more)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let no_ca = ["--set", "registry.ca_file=/nowhere.pem"];
    let plain = "http://127.0.0.1:1";
    for (registry, more, words) in [
        (
            url.as_str(),
            &no_ca[..],
            ["registry.ca_file", "/nowhere.pem"],
        ),
        (plain, &[], ["registry.ca_file", "https://"]),
    ] {
        let said = check(registry, more);
        for word in words {
            assert!(said.contains(word), "{said}");
        }
    }
    std::fs::set_permissions(
        etcd.path("password"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let said = check(&url, &[]);
    assert!(
        said.contains("registry.password_file") && said.contains("644"),
        "{said}"
    );
}
