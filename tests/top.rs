//! `troupe top` in a pseudo terminal: the kill of the master is on the screen within a second, and `q` leaves.
//!
//! `script` (bsdutils, essential in Debian) makes the terminal. What is drawn is kept in docs/top.txt:
//! `UPDATE_TOP=1 cargo test --test top`.

mod support;

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Cluster, LONG, Node, TROUPE, clean_env, turn, until};

const WIDTH: usize = 120;
const HEIGHT: usize = 30;
/// A change must be seen this soon.
const LIVE: Duration = Duration::from_secs(1);

/// What stands on a terminal, by the few sequences that are sent to it: go to, erase, and what changes no character.
struct Glass {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// What came and is not a whole sequence, or a whole character, yet.
    rest: Vec<u8>,
}

impl Glass {
    fn new() -> Self {
        Self {
            cells: vec![vec![' '; WIDTH]; HEIGHT],
            row: 0,
            column: 0,
            rest: Vec::new(),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.len(),
            Err(why) => why.valid_up_to(),
        };
        let text = String::from_utf8_lossy(&self.rest[..whole]).into_owned();
        let mut left = text.as_str();
        while let Some(c) = left.chars().next() {
            match c {
                '\x1b' => match sequence(left) {
                    Some((end, arguments, rest)) => {
                        self.obey(end, arguments);
                        left = rest;
                        continue;
                    }
                    None => break,
                },
                '\r' => self.column = 0,
                '\n' => self.row = (self.row + 1).min(HEIGHT - 1),
                c => {
                    if let Some(cell) = self.cells[self.row].get_mut(self.column) {
                        *cell = c;
                    }
                    self.column += 1;
                }
            }
            left = &left[c.len_utf8()..];
        }
        self.rest.drain(..whole - left.len());
    }

    fn obey(&mut self, end: char, arguments: &str) {
        let mut numbers = arguments
            .split(';')
            .map(|n| n.parse::<usize>().unwrap_or(1));
        match end {
            'H' => {
                self.row = (numbers.next().unwrap_or(1) - 1).min(HEIGHT - 1);
                self.column = numbers.next().unwrap_or(1) - 1;
            }
            'J' => self.cells = vec![vec![' '; WIDTH]; HEIGHT],
            _ => {}
        }
    }

    fn text(&self) -> String {
        let lines = self.cells.iter().map(|l| l.iter().collect::<String>());
        let lines: Vec<_> = lines.map(|l| l.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    }
}

/// The last character, the arguments and what follows a control sequence; `None` while it is not whole.
fn sequence(text: &str) -> Option<(char, &str, &str)> {
    let body = text.strip_prefix('\x1b')?;
    let first = body.chars().next()?;
    let Some(body) = body.strip_prefix('[') else {
        return Some((first, "", &body[first.len_utf8()..]));
    };
    let end = body.find(|c: char| ('@'..='~').contains(&c))?;
    let last = body[end..].chars().next()?;
    Some((last, &body[..end], &body[end + 1..]))
}

/// A command on a terminal of its own.
struct Tty {
    child: Child,
    keys: ChildStdin,
    glass: Arc<Mutex<Glass>>,
}

impl Tty {
    fn top(node: &Node) -> Self {
        let command = format!(
            "stty cols {WIDTH} rows {HEIGHT}; exec {TROUPE} --api http://{} top",
            node.admin()
        );
        let mut script = Command::new("script");
        clean_env(&mut script);
        let mut child = script
            .args([
                "--quiet",
                "--return",
                "--flush",
                "--command",
                &command,
                "/dev/null",
            ])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script (Debian: bsdutils)");
        let glass = Arc::new(Mutex::new(Glass::new()));
        let mut out = child.stdout.take().unwrap();
        let shown = Arc::clone(&glass);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut bytes) {
                shown.lock().unwrap().write(&bytes[..n]);
            }
        });
        Self {
            keys: child.stdin.take().unwrap(),
            child,
            glass,
        }
    }

    fn text(&self) -> String {
        self.glass.lock().unwrap().text()
    }

    fn wait(&self, what: &str, within: Duration, fits: impl Fn(&str) -> bool) {
        until(what, within, || {
            let text = self.text();
            fits(&text).then_some(()).ok_or(text)
        });
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn the_kill_of_the_master_is_on_the_screen_within_a_second() {
    let _turn = turn();
    let mut cluster = Cluster::start(3);
    let mut tty = Tty::top(cluster.node("n2"));
    tty.wait("a whole cluster", LONG, |text| {
        text.contains("master n1") && text.matches(" alive ").count() == 3
    });
    cluster.node_mut("n1").process.kill();
    let killed = Instant::now();
    tty.wait(
        "another master, two nodes, and the verdict among the events",
        LIVE,
        |text| {
            let alive = text.matches(" alive ").count();
            let led = text.contains("master n2") || text.contains("master n3");
            led && alive == 2 && text.contains("peer.removed")
        },
    );
    eprintln!(
        "after the kill `troupe top` showed it after {} ms",
        killed.elapsed().as_millis()
    );
    if std::env::var_os("UPDATE_TOP").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/top.txt");
        std::fs::write(file, tty.text()).unwrap();
    }
    tty.keys.write_all(b"q").unwrap();
    let left = until("q leaves", LONG, || {
        tty.child.try_wait().unwrap().ok_or_else(|| tty.text())
    });
    assert!(left.success(), "{left}");
}
