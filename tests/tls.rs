//! TLS between real nodes: the secret lets in, another one does not, and a secret others may read is refused.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use support::{Etcd, FAST, LONG, Node, TROUPE, event};

fn secret(dir: &tempfile::TempDir, name: &str) -> String {
    let path = dir.path().join(name).to_str().unwrap().to_owned();
    let made = Command::new(TROUPE).args(["keygen", &path]).status();
    assert!(made.unwrap().success());
    format!("security.secret_file={path}")
}

fn node(name: &str, etcd: &Etcd, secret: &str) -> Node {
    let mut more = FAST.to_vec();
    more.extend(["--log-level", "debug", "--set", secret]);
    Node::start_with(name, &etcd.url(), &more)
}

#[test]
fn nodes_of_one_secret_work_together_and_one_of_another_gets_no_session() {
    let (dir, etcd) = (tempfile::tempdir().unwrap(), Etcd::start());
    let (ours, other) = (secret(&dir, "ours"), secret(&dir, "other"));
    let a = node("a", &etcd, &ours);
    a.wait("master.promoted", |l| event(l, "master.promoted"));
    let b = node("b", &etcd, &ours);
    a.wait_members(&["a", "b"], LONG);
    let mark = a.process.lines.mark();
    a.wait_event(mark, "task.finished", LONG);
    let c = node("c", &etcd, &other);
    // Whoever is called says so, now and then, however often it is called.
    let stranger = a.wait_event(0, "security.stranger", LONG).1;
    assert!(stranger["refused"].as_u64() > Some(0), "{stranger}");
    c.wait("a refused handshake", |l| event(l, "security.stranger"));
    let mark = a.process.lines.mark();
    a.wait_event(mark, "task.finished", LONG);
    let opened = |n: &Node| {
        n.process
            .lines
            .all()
            .iter()
            .filter(|(_, l)| event(l, "session.opened"))
            .count()
    };
    assert!(opened(&b) > 0);
    assert_eq!(opened(&c), 0);
}

#[test]
fn a_secret_that_others_may_read_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let set = secret(&dir, "open");
    let path = dir.path().join("open");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = Command::new(TROUPE)
        .args([
            "run",
            "--bind",
            "127.0.0.1:0",
            "--registry",
            "http://127.0.0.1:1",
            "--set",
            &set,
        ])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(
        words.contains("security.secret_file") && words.contains("600"),
        "{words}"
    );
}
