//! The admin API and the embedded registry of real processes: who is let in, what is told of it, and what is refused in words.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use support::secure::certificates;
use support::{LONG, Node, Process, TROUPE, clean_env, event, free_port, free_ports, on_disk};

/// Files of one test.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A new secret or token.
    fn keygen(&self, name: &str) -> String {
        let output = troupe(&["keygen", &self.text(name)]);
        assert!(output.status.success(), "{output:?}");
        self.text(name)
    }
}

fn troupe(args: &[&str]) -> Output {
    let mut command = Command::new(TROUPE);
    clean_env(&mut command);
    command.args(args).output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String) {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), err)
}

/// `troupe run` with these settings, which it must refuse; answers what it says.
fn refused(settings: &[String]) -> String {
    let mut words = vec!["run", "--registry", "http://127.0.0.1:1"];
    words.extend(["--bind", "127.0.0.1:0"]);
    for set in settings {
        words.extend(["--set", set]);
    }
    let (code, words) = said(&troupe(&words));
    assert_eq!(code, Some(78), "{words}");
    words
}

#[test]
fn beyond_loopback_the_api_starts_with_tls_and_a_token_alone() {
    let files = Files::new();
    let everywhere = || "node.admin=0.0.0.0:0".to_owned();
    let secret = format!("security.secret_file={}", files.keygen("secret"));
    let token = format!("admin.token_file={}", files.keygen("token"));
    for settings in [
        vec![everywhere()],
        vec![everywhere(), secret.clone()],
        vec![everywhere(), token.clone()],
    ] {
        let words = refused(&settings);
        for word in ["node.admin", "admin.token_file", "TLS", "0.0.0.0:0"] {
            assert!(words.contains(word), "{word} in {words}");
        }
    }
    let words = refused(&[format!("admin.read_token_file={}", files.text("token"))]);
    assert!(words.contains("needs admin.token_file"), "{words}");
    std::fs::write(files.path("short"), "hunter2\n").unwrap();
    std::fs::set_permissions(files.path("short"), PermissionsExt::from_mode(0o600)).unwrap();
    let words = refused(&[format!("admin.token_file={}", files.text("short"))]);
    assert!(words.contains("32 to 512"), "{words}");
    std::fs::set_permissions(files.path("token"), PermissionsExt::from_mode(0o640)).unwrap();
    let words = refused(&[token]);
    assert!(
        words.contains("admin.token_file") && words.contains("600"),
        "{words}"
    );
}

/// Two nodes whose API is on every address, and how they are asked.
struct Guarded {
    files: Files,
    nodes: Vec<Node>,
    _registry: Process,
}

impl Guarded {
    fn start() -> Self {
        let files = Files::new();
        let secret = files.keygen("secret");
        let (token, reader) = (files.keygen("token"), files.keygen("reader"));
        let port = free_port();
        let registry = on_disk(&files.path("registry"), port);
        let url = format!("http://127.0.0.1:{port}");
        let nodes = ["a", "b"].map(|name| {
            let port = free_ports(2);
            let sets = [
                format!("security.secret_file={secret}"),
                format!("admin.token_file={token}"),
                format!("admin.read_token_file={reader}"),
                "admin.header_timeout=1s".to_owned(),
            ];
            let mut more = support::FAST.to_vec();
            let admin = format!("0.0.0.0:{}", port + 1);
            more.extend(["--admin", &admin]);
            more.extend(sets.iter().flat_map(|set| ["--set", set.as_str()]));
            let node = Node::start_admin(None, "127.0.0.1", name, &url, port, &more);
            node.wait("master.changed", |l| event(l, "master.changed"));
            node
        });
        let made = troupe(&["ca", &secret]);
        assert!(made.status.success(), "{made:?}");
        std::fs::write(files.path("ca.pem"), made.stdout).unwrap();
        Self {
            files,
            nodes: nodes.into(),
            _registry: registry,
        }
    }

    fn url(&self) -> String {
        format!("https://{}", self.nodes[0].admin())
    }

    /// Asks node a with the token in this file.
    fn ask(&self, token: &str, args: &[&str]) -> Output {
        let (url, ca) = (self.url(), self.files.text("ca.pem"));
        let token = self.files.text(token);
        let access = ["--api", &url, "--ca", &ca, "--token-file", &token];
        troupe(&[&access[..], args].concat())
    }
}

#[test]
fn over_tls_readers_read_operators_act_and_every_change_is_told_with_who_and_from_where() {
    let cluster = Guarded::start();
    let [a, b] = &cluster.nodes[..] else { panic!() };
    support::until("both are members, for a reader", LONG, || {
        let output = cluster.ask("reader", &["--json", "members"]);
        let view: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let members = view["members"].as_array().map_or(0, Vec::len);
        if members == 2 {
            Ok(())
        } else {
            Err(format!("{output:?}"))
        }
    });
    let (code, words) = said(&cluster.ask("reader", &["kill", "worker", "--node", "b"]));
    assert_eq!(code, Some(1));
    assert!(words.contains("[read_only]"), "{words}");
    let audit = a.wait_event(0, "admin.audit", LONG).1;
    assert_eq!(
        (&audit["by"], &audit["outcome"]),
        (&"reader".into(), &"refused".into())
    );

    let mark = (a.process.lines.mark(), b.process.lines.mark());
    let killed = cluster.ask("token", &["kill", "worker", "--node", "b"]);
    assert!(killed.status.success(), "{killed:?}");
    // Carried to b, which is told on whose behalf.
    let kill = b.wait_event(mark.1, "admin.kill", LONG).1;
    assert_eq!(
        (&kill["by"], &kill["from"]),
        (&"operator".into(), &"127.0.0.1".into())
    );
    let audit = a.wait_event(mark.0, "admin.audit", LONG).1;
    for (key, value) in [
        ("by", "operator"),
        ("from", "127.0.0.1"),
        ("method", "POST"),
        ("path", "/v1/actors/worker/kill?node=b"),
        ("outcome", "done"),
    ] {
        assert_eq!(audit[key], value, "{audit}");
    }
    let set = cluster.ask("token", &["set", "b", "weight=5"]);
    assert!(set.status.success(), "{set:?}");
    let set = b.wait_event(mark.1, "admin.set", LONG).1;
    assert_eq!(
        (&set["by"], &set["from"], &set["keys"]),
        (
            &"operator".into(),
            &"127.0.0.1".into(),
            &"discovery.weight".into()
        )
    );
    let submitted = cluster.ask("token", &["submit", "noop", "1", "--wait"]);
    assert!(submitted.status.success(), "{submitted:?}");
    let audit = a.wait_event(mark.0, "audit.submit", LONG).1;
    assert_eq!(
        (&audit["by"], &audit["accepted"]),
        (&"operator".into(), &1.into())
    );
    let events = cluster.ask("reader", &["--json", "events"]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(events.contains("admin.audit"), "{events}");
    // What is registered is what others can ask by.
    let serving = a.wait_event(0, "admin.serving", LONG).1;
    assert!(
        serving["url"].as_str().unwrap().starts_with("https://"),
        "{serving}"
    );
    assert_eq!(serving["fingerprint"].as_str().unwrap().len(), 95);
}

#[test]
fn without_the_authority_or_a_token_nothing_is_told_and_the_words_say_what_is_missing() {
    let cluster = Guarded::start();
    let url = cluster.url();
    let (code, words) = said(&troupe(&["--api", &url, "members"]));
    assert!(code == Some(2) && words.contains("--ca"), "{words}");
    let other = cluster.files.keygen("other");
    let stranger = cluster.files.text("stranger.pem");
    std::fs::write(&stranger, troupe(&["ca", &other]).stdout).unwrap();
    let (code, words) = said(&troupe(&["--api", &url, "--ca", &stranger, "members"]));
    assert!(code == Some(69) && words.contains("TLS"), "{words}");
    let ca = cluster.files.text("ca.pem");
    let (code, words) = said(&troupe(&["--api", &url, "--ca", &ca, "members"]));
    assert!(code == Some(1) && words.contains("--token-file"), "{words}");
    let (code, words) = said(&cluster.ask("other", &["members"]));
    assert!(
        code == Some(1) && words.contains("[wrong_token]"),
        "{words}"
    );
    let token = cluster.files.text("token");
    let plain = [
        "--api",
        "http://10.0.0.9:22223",
        "--token-file",
        &token,
        "members",
    ];
    let (code, words) = said(&troupe(&plain));
    assert!(code == Some(2) && words.contains("in the clear"), "{words}");

    // Half-open connections in numbers: each is cut off, and the API answers again when they are.
    let a = &cluster.nodes[0];
    let address = a.admin();
    let held: Vec<_> = (0..700)
        .filter_map(|_| TcpStream::connect(&address).ok())
        .collect();
    assert!(held.len() > 500, "{}", held.len());
    let began = Instant::now();
    let answered = cluster.ask("reader", &["status"]);
    assert!(answered.status.success(), "{answered:?}");
    eprintln!(
        "answered after {:?} beside {} half-open connections",
        began.elapsed(),
        held.len()
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    a.wait_event(0, "admin.refused", LONG);
    drop(held);
    // In the clear nobody is answered.
    let mut plain = TcpStream::connect(&address).unwrap();
    plain
        .write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).ok();
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"));
}

fn registry(files: &Files, port: u16, data: &Path) -> Process {
    let mut command = Command::new(TROUPE);
    clean_env(&mut command);
    command.args(["registry", "serve", "--listen", &format!("0.0.0.0:{port}")]);
    command.arg("--data-dir").arg(data);
    for (flag, file) in [
        ("--cert", "server.pem"),
        ("--key", "server.key"),
        ("--client-ca", "ca.pem"),
    ] {
        command.arg(flag).arg(files.path(file));
    }
    let process = Process::start(&mut command);
    process.lines.wait_from(0, "registry.serving", LONG, |l| {
        event(l, "registry.serving")
    });
    process
}

#[test]
fn beyond_loopback_the_embedded_registry_serves_over_tls_alone_and_nodes_and_copies_get_in() {
    let files = Files::new();
    let (code, words) = said(&troupe(&["registry", "serve", "--listen", "0.0.0.0:0"]));
    assert!(code == Some(78) && words.contains("--cert"), "{words}");
    certificates(files.0.path(), &["127.0.0.1"]);
    std::fs::write(files.path("none.pem"), "nothing").unwrap();
    let (none, key) = (files.text("none.pem"), files.text("server.key"));
    let serve = [
        "registry",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--cert",
        &none,
        "--key",
        &key,
    ];
    let (code, words) = said(&troupe(&serve));
    assert!(code == Some(78) && words.contains("--cert"), "{words}");

    let port = free_port();
    let serving = registry(&files, port, &files.path("one"));
    let url = format!("https://127.0.0.1:{port}");
    let access: Vec<String> = [
        ("ca", "ca.pem"),
        ("cert", "client.pem"),
        ("key", "client.key"),
    ]
    .map(|(key, file)| format!("{key}_file={}", files.text(file)))
    .into();
    let sets: Vec<String> = access.iter().map(|set| format!("registry.{set}")).collect();
    let mut more = support::FAST.to_vec();
    more.extend(sets.iter().flat_map(|set| ["--set", set.as_str()]));
    let mut node = Node::start_with("a", &url, &more);
    node.wait("master.promoted", |l| event(l, "master.promoted"));
    // Without a certificate of the authority nobody comes in.
    let stranger = Node::start_with("b", &url, &["--set", &sets[0]]);
    stranger.wait("registry.lost", |l| event(l, "registry.lost"));
    // A durable task, and then a copy of it.
    let submitted = node.cli(&["submit", "noop", "1", "--wait"]);
    assert!(submitted.status.success(), "{submitted:?}");
    node.process.signal(rustix::process::Signal::TERM);
    assert_eq!(node.process.wait(LONG), Some(0));
    let other = free_port();
    let _other = registry(&files, other, &files.path("two"));
    let to = format!("https://127.0.0.1:{other}");
    let mut copy = vec!["registry", "copy", "--from", &url, "--to", &to];
    for set in &access {
        copy.extend(["--from-access", set, "--to-access", set]);
    }
    let copied = troupe(&copy);
    let out = String::from_utf8_lossy(&copied.stdout).into_owned();
    assert!(
        copied.status.success() && out.contains("segments"),
        "{copied:?}"
    );
    let (code, words) = said(&troupe(&copy[..6]));
    assert!(
        code == Some(2) && words.contains("registry.ca_file"),
        "{words}"
    );
    drop(serving);
}
