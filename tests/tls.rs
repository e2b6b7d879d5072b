//! TLS between real nodes: one secret lets in and another one does not, a node without any stays on its machine unless it is told
//! otherwise, and secrets and certificates are replaced while the cluster works.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustix::process::Signal;
use support::{Etcd, FAST, LONG, Node, TROUPE, clean_env, event, free_ports, request};

fn keygen(path: &Path) -> String {
    let made = Command::new(TROUPE).arg("keygen").arg(path).status();
    assert!(made.unwrap().success());
    std::fs::read_to_string(path).unwrap()
}

fn secret(dir: &tempfile::TempDir, name: &str) -> String {
    let path = dir.path().join(name);
    keygen(&path);
    format!("security.secret_file={}", path.display())
}

fn node(name: &str, etcd: &Etcd, sets: &[&str]) -> Node {
    let mut more = FAST.to_vec();
    for set in sets {
        more.extend(["--set", set]);
    }
    Node::start_with(name, &etcd.url(), &more)
}

fn count(node: &Node, name: &str) -> usize {
    let lines = node.process.lines.all();
    lines.iter().filter(|(_, line)| event(line, name)).count()
}

/// A node that is expected not to start.
fn refused(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(TROUPE);
    clean_env(&mut command);
    let registry = ["run", "--registry", "http://127.0.0.1:1"];
    let Output { status, stderr, .. } = command.args(registry).args(args).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn nodes_of_one_secret_work_together_and_one_of_another_gets_no_session() {
    let (dir, etcd) = (tempfile::tempdir().unwrap(), Etcd::start());
    let (ours, other) = (secret(&dir, "ours"), secret(&dir, "other"));
    let a = node("a", &etcd, &[&ours]);
    a.wait("master.promoted", |l| event(l, "master.promoted"));
    let b = node("b", &etcd, &[&ours]);
    a.wait_members(&["a", "b"], LONG);
    let mark = a.process.lines.mark();
    a.wait_event(mark, "task.finished", LONG);
    let c = node("c", &etcd, &[&other]);
    // Both sides say why, in words; whoever is called says so now and then, however often it is called.
    let words = |line: &serde_json::Value| line["reason"].as_str().unwrap_or("").to_owned();
    let told = c.wait_event(0, "session.refused", LONG).1;
    assert!(words(&told).contains("secret"), "{told}");
    let stranger = a.process.lines.wait_from(0, "a stranger", LONG, |line| {
        event(line, "session.refused") && line["kind"] == "distrusts_us"
    });
    assert!(stranger.1["refused"].as_u64() > Some(0), "{stranger:?}");
    let mark = a.process.lines.mark();
    a.wait_event(mark, "task.finished", LONG);
    assert!(count(&b, "session.opened") > 0);
    assert_eq!(count(&c, "session.opened"), 0);
    let (_, page) = a.get("/metrics").unwrap();
    let counted = "troupe_refused_total{reason=\"distrusts_us\"}";
    assert!(page.as_str().unwrap().contains(counted), "{page}");
}

#[test]
fn a_secret_that_others_may_read_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let set = secret(&dir, "open");
    let path = dir.path().join("open");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, words) = refused(&["--bind", "127.0.0.1:0", "--set", &set]);
    assert_eq!(code, Some(78), "{words}");
    assert!(words.contains("security.secret_file"), "{words}");
    assert!(words.contains("600"), "{words}");
}

#[test]
fn without_a_secret_a_node_starts_on_loopback_only_and_says_what_to_do() {
    for reachable in [
        &["--bind", "0.0.0.0:0", "--advertise", "127.0.0.1:9"][..],
        &["--bind", "127.0.0.1:0", "--advertise", "10.9.8.7:9"],
    ] {
        let (code, words) = refused(reachable);
        assert_eq!(code, Some(78), "{words}");
        for word in [
            "troupe keygen",
            "security.secret_file",
            "--bind 127.0.0.1",
            "--insecure",
        ] {
            assert!(words.contains(word), "{words}");
        }
    }
}

#[test]
fn an_insecure_node_starts_and_nobody_can_overlook_it() {
    let etcd = Etcd::start();
    let port = free_ports(2);
    let advertise = format!("127.0.0.1:{port}");
    let bind = format!("0.0.0.0:{port}");
    // What --set says goes before the --bind on loopback that every node of these tests has.
    let args = [
        "--insecure",
        "--set",
        &format!("node.bind={bind}"),
        "--advertise",
        &advertise,
    ];
    let a = Node::start_at("a", &etcd.url(), port, &args);
    a.wait_event(0, "security.insecure", LONG);
    a.wait_members(&["a"], LONG);
    let (_, members) = a.get("/v1/members").unwrap();
    assert_eq!(members["members"][0]["insecure"], true, "{members}");
    let table = String::from_utf8(a.cli(&["members"]).stdout).unwrap();
    assert!(table.contains("INSECURE"), "{table}");
    let doctor = a.cli(&["doctor"]);
    let words = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{words}");
    assert!(words.contains("--insecure"), "{words}");
}

#[test]
fn the_secret_that_systemd_lends_is_used_when_nothing_else_is_said() {
    let (dir, etcd) = (tempfile::tempdir().unwrap(), Etcd::start());
    let lent = dir.path().join("troupe-secret");
    keygen(&lent);
    // As where systemd gives access by a list: the mode shows the owner of it as the group.
    std::fs::set_permissions(&lent, std::fs::Permissions::from_mode(0o440)).unwrap();
    let port = free_ports(2);
    let start = || {
        let mut command = Command::new(TROUPE);
        clean_env(&mut command);
        command
            .args([
                "run",
                "--name",
                "a",
                "--registry",
                &etcd.url(),
                "--log-format",
                "json",
            ])
            .args(["--bind", &format!("0.0.0.0:{port}")])
            .args(["--advertise", &format!("127.0.0.1:{port}")])
            .args(["--admin", &format!("127.0.0.1:{}", port + 1)])
            .env("CREDENTIALS_DIRECTORY", dir.path());
        command
    };
    let a = support::Process::start(&mut start());
    a.lines
        .wait_from(0, "master.promoted", LONG, |l| event(l, "master.promoted"));
    drop(a);
    std::fs::set_permissions(&lent, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::write(&lent, "no secret").unwrap();
    let output = start().output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(
        words.contains("credential") && words.contains("64 hex"),
        "{words}"
    );
}

#[test]
fn a_throw_away_secret_of_dev_is_a_file_of_its_own_and_goes_with_it() {
    let mut command = Command::new(TROUPE);
    clean_env(&mut command);
    command.args(["dev", "--nodes", "2", "--fast", "--log-format", "json"]);
    command.args(["--port", &free_ports(20).to_string()]);
    command.args(["--registry-port", &support::free_port().to_string()]);
    let mut dev = support::Process::start(&mut command);
    let started = dev
        .lines
        .wait_from(0, "dev.started", LONG, |l| event(l, "dev.started"));
    let file = PathBuf::from(started.1["secret_file"].as_str().unwrap());
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = std::fs::read_to_string(&file).unwrap();
    dev.lines
        .wait_from(0, "a task", LONG, |l| event(l, "task.finished"));
    // Neither a flag nor an environment variable nor a line shows it.
    let output = Command::new("ps")
        .args(["-eww", "-o", "args", "e"])
        .output();
    if let Ok(output) = output {
        assert!(!String::from_utf8_lossy(&output.stdout).contains(secret.trim()));
    }
    dev.signal(Signal::TERM);
    assert_eq!(dev.wait(LONG), Some(0));
    assert!(!file.exists());
    let said = dev.lines.all();
    assert!(
        !said
            .iter()
            .any(|(_, l)| l.to_string().contains(secret.trim()))
    );
}

// --- rotation ------------------------------------------------------------------------------------------------------

/// Sends durable tasks until told to stop; answers how many were accepted and their ids.
struct Load {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(admin: String) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut accepted = Vec::new();
            while !told.load(std::sync::atomic::Ordering::Relaxed) {
                let body = r#"{"job":"noop","input":1,"durable":true}"#;
                match request(&admin, "POST", "/v1/tasks", body) {
                    Some((status, task)) if status < 300 => {
                        accepted.push(task["id"].as_str().unwrap().to_owned());
                    }
                    answer => println!("not accepted: {answer:?}"),
                }
            }
            accepted
        });
        Self { stop, thread }
    }

    fn stop(self) -> Vec<String> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Replaces what a file holds, in one step, with nobody else able to read it.
fn put(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&next, path).unwrap();
}

#[test]
fn secrets_are_rotated_under_load_without_a_lost_task_or_a_refused_session() {
    let (dir, etcd) = (tempfile::tempdir().unwrap(), Etcd::start());
    let old = keygen(&dir.path().join("old"));
    let new = keygen(&dir.path().join("new"));
    let names = ["a", "b", "c"];
    let files: Vec<PathBuf> = names.iter().map(|n| dir.path().join(n)).collect();
    let mut nodes = Vec::new();
    for (name, file) in names.iter().zip(&files) {
        put(file, &old);
        let set = format!("security.secret_file={}", file.display());
        let quiet = "generator.enabled=false";
        nodes.push(node(name, &etcd, &[&set, quiet]));
        nodes[0].wait("master.promoted", |l| event(l, "master.promoted"));
    }
    for node in &nodes {
        node.wait_members(&names, LONG);
    }
    let load = Load::start(nodes[0].admin());
    let steps = [
        ("old, new", format!("{old}{new}")),
        ("new, old", format!("{new}{old}")),
        ("new", new.clone()),
    ];
    let began = Instant::now();
    let say = |node: &str, file: &str, words: String| {
        let at = began.elapsed().as_secs_f64();
        println!("{at:5.1} s  {node:4}  {file:8}  {words}");
    };
    say(
        "all",
        "old",
        "three nodes, durable tasks one after the other".to_owned(),
    );
    for (what, text) in steps {
        for (node, file) in nodes.iter().zip(&files) {
            put(file, &text);
            let mark = node.process.lines.mark();
            node.process.signal(Signal::HUP);
            let line = node.wait_event(mark, "security.reloaded", LONG).1;
            assert!(line["certificate"].is_string(), "{line}");
            // Sessions that are up would stay: every one is made anew, so that each step meets every other.
            let mark = node.process.lines.mark();
            assert!(node.cli(&["kill", "transport"]).status.success());
            for _ in 1..names.len() {
                node.wait_event(mark, "session.opened", LONG);
            }
            for node in &nodes {
                node.wait_members(&names, LONG);
            }
            let refused: usize = nodes.iter().map(|n| count(n, "session.refused")).sum();
            let words = format!(
                "SIGHUP: {} accepted; both sessions made anew, {refused} refused, all see all",
                line["accepted"]
            );
            say(&node.name, what, words);
        }
    }
    let accepted = load.stop();
    assert!(accepted.len() > 10, "{}", accepted.len());
    for id in &accepted {
        let path = format!("/v1/tasks/{id}?wait=20s");
        let (_, task) = nodes[0].get(&path).unwrap();
        assert_eq!(task["state"], "done", "{task}");
    }
    for node in &nodes {
        assert_eq!(count(node, "session.refused"), 0, "{}", node.name);
        assert_eq!(count(node, "peer.removed"), 0, "{}", node.name);
    }
    let words = format!("{} durable tasks accepted, all done", accepted.len());
    say("all", "new", words);
    // The old one is worth nothing any more.
    let late = dir.path().join("late");
    put(&late, &old);
    let set = format!("security.secret_file={}", late.display());
    let d = node("d", &etcd, &[&set]);
    let line = d.wait_event(0, "session.refused", LONG).1;
    let reason = line["reason"].as_str().unwrap_or("?");
    say("d", "old", format!("session.refused: {reason}"));
    // And a mistake changes nothing.
    put(&files[0], "no secret\n");
    let mark = nodes[0].process.lines.mark();
    nodes[0].process.signal(Signal::HUP);
    nodes[0].wait_event(mark, "security.not_reloaded", LONG);
    nodes[0].wait_members(&["a", "b", "c"], LONG);
    say(
        "a",
        "mistake",
        "SIGHUP: security.not_reloaded, all see all".to_owned(),
    );
}

// --- an authority of one's own -------------------------------------------------------------------------------------

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// The settings of a node whose certificate names this.
    fn issue(&self, dir: &Path, name: &str, uri: &str) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.to_owned().try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str, text: &str| {
            let path = dir.join(format!("{name}.{kind}"));
            put(&path, text);
            format!("security.{kind}_file={}", path.display())
        };
        vec![
            file("cert", &certificate.pem()),
            file("key", &key.serialize_pem()),
            file("ca", &self.pem),
        ]
    }
}

#[test]
fn certificates_of_an_authority_of_ones_own_let_in_whom_they_name() {
    let (dir, etcd) = (tempfile::tempdir().unwrap(), Etcd::start());
    let ours = Authority::new();
    let start = |name: &str, sets: &[String]| {
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        node(name, &etcd, &sets)
    };
    let a = start("a", &ours.issue(dir.path(), "a", "troupe://troupe/name/a"));
    a.wait("master.promoted", |l| event(l, "master.promoted"));
    let b = start("b", &ours.issue(dir.path(), "b", "troupe://troupe"));
    a.wait_members(&["a", "b"], LONG);
    let mark = a.process.lines.mark();
    a.wait_event(mark, "task.finished", LONG);
    // A certificate that was renewed is read again.
    ours.issue(dir.path(), "b", "troupe://troupe/name/b");
    let mark = b.process.lines.mark();
    b.process.signal(Signal::HUP);
    let line = b.wait_event(mark, "security.reloaded", LONG).1;
    assert_eq!(line["certificate"], "troupe://troupe/name/b");
    // Whoever has another node's certificate is not let start under its own name…
    let taken = ours.issue(dir.path(), "taken", "troupe://troupe/name/a");
    let sets: Vec<&str> = taken.iter().flat_map(|s| ["--set", s]).collect();
    let (code, words) =
        refused(&[&["--bind", "127.0.0.1:0", "--name", "mallory"], &sets[..]].concat());
    assert_eq!(code, Some(78), "{words}");
    assert!(words.contains("node.name"), "{words}");
    // …and another authority's is refused by everybody.
    let foreign = Authority::new().issue(dir.path(), "c", "troupe://troupe/name/c");
    let c = start("c", &foreign);
    c.wait_event(0, "session.refused", LONG);
    assert_eq!(count(&c, "session.opened"), 0);
    let mark = a.process.lines.mark();
    a.wait_event(mark, "task.finished", LONG);
}
