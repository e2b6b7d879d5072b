//! The dashboard in a real headless browser: its pages, live update after a kill, lost contact, no error in the console.
//!
//! Skipped, and said so, where no Chromium is installed. `TROUPE_SHOTS=DIR` also takes a picture of each page.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Cluster, LONG};

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// A browser, spoken to over pipes in the DevTools protocol: JSON messages that end with a zero byte.
struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: String,
    next: u64,
    errors: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None` when there is none.
    fn start(url: &str) -> Option<Self> {
        let found = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
        let program = BROWSERS.iter().find(found)?;
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args([
                "-c",
                "exec \"$@\" 3<&0 4>&1 0</dev/null 1>&2",
                "sh",
                program,
            ])
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
                "--window-size=1200,900",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (tell, from) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while matches!(out.read_until(0, &mut message), Ok(n) if n > 0) {
                message.pop();
                let value = serde_json::from_slice(&message).unwrap_or_default();
                message.clear();
                if tell.send(value).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            to: child.stdin.take().unwrap(),
            child,
            from,
            session: String::new(),
            next: 0,
            errors: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached = browser.call(
            "Target.attachToTarget",
            json!({ "targetId": target["targetId"], "flatten": true }),
        );
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        browser.call("Runtime.enable", json!({}));
        browser.call("Log.enable", json!({}));
        browser.call("Page.enable", json!({}));
        browser.call("Page.navigate", json!({ "url": url }));
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(&[0]).unwrap();
        loop {
            let answer = self.from.recv_timeout(LONG).expect("the browser answers");
            if answer["id"] == json!(id) {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    /// What the page complains about; requests that fail because a node is gone are none of its faults.
    fn note(&mut self, message: &Value) {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.errors.push(params.to_string()),
            Some("Log.entryAdded")
                if params["entry"]["level"] == "error"
                    && params["entry"]["source"] != "network" =>
            {
                self.errors.push(params.to_string());
            }
            _ => {}
        }
    }

    fn eval(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true });
        self.call("Runtime.evaluate", params)["result"]["value"].clone()
    }

    fn text(&mut self) -> String {
        let text = self.eval("document.body.innerText");
        text.as_str().unwrap_or_default().to_owned()
    }

    fn wait(&mut self, within: Duration, what: &str, script: &str) -> Duration {
        let start = Instant::now();
        while self.eval(script) != json!(true) {
            assert!(
                start.elapsed() < within,
                "not within {within:?}: {what}\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        start.elapsed()
    }

    fn open(&mut self, page: &str, words: &str) {
        self.eval(&format!("location.hash = '{page}'"));
        let there = format!(
            "document.getElementById('page').innerText.includes({})",
            json!(words)
        );
        self.wait(LONG, &format!("{words:?} on {page}"), &there);
        self.fits_a_phone(page);
        // The first look at a page is kept, before the test has left its marks there.
        let file = std::env::var("TROUPE_SHOTS").map(|dir| format!("{dir}/{page}.png"));
        if let Some(file) = file.ok().filter(|f| !std::path::Path::new(f).exists()) {
            let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
            let decoded = Command::new("base64")
                .arg("-d")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let mut decoded = decoded.unwrap();
            let mut to = decoded.stdin.take().unwrap();
            let data = shot["data"].as_str().unwrap().to_owned();
            let writer = std::thread::spawn(move || to.write_all(data.as_bytes()).unwrap());
            let png = decoded.wait_with_output().unwrap().stdout;
            writer.join().unwrap();
            std::fs::write(file, png).unwrap();
        }
    }

    /// At 320 px nothing but tables (which scroll by themselves) is wider than the screen.
    fn fits_a_phone(&mut self, page: &str) {
        let size = |width: u32| json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size(320));
        let width = self.eval("document.documentElement.scrollWidth");
        assert!(
            width.as_u64().unwrap() <= 320,
            "{page} is {width} px wide on a phone"
        );
        self.call("Emulation.clearDeviceMetricsOverride", json!({}));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn the_dashboard_asks_for_the_token_and_shows_nothing_before() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let token = token.to_str().unwrap();
    let made = Command::new(support::TROUPE)
        .args(["keygen", token])
        .status();
    assert!(made.unwrap().success());
    let port = support::free_port();
    let _registry = support::on_disk(&dir.path().join("registry"), port);
    let set = format!("admin.token_file={token}");
    let more = [&support::FAST[..], &["--set", &set]].concat();
    let node = support::Node::start_with("n1", &format!("http://127.0.0.1:{port}"), &more);
    let Some(mut browser) = Browser::start(&format!("http://{}/", node.admin())) else {
        eprintln!("skipped: no Chromium is installed here");
        return;
    };
    let asked = "document.getElementById('login').open";
    browser.wait(LONG, "the question for the token", asked);
    assert!(!browser.text().contains("n1"));
    let show = |text: &str| {
        format!(
            "document.getElementById('token').value = '{text}'; document.querySelector('#login form').requestSubmit()"
        )
    };
    browser.eval(&show("not-the-token"));
    let wrong = format!(
        "{asked} && document.getElementById('why').textContent.includes('no token of this node')"
    );
    browser.wait(LONG, "the question again", &wrong);
    let text = std::fs::read_to_string(token).unwrap();
    browser.eval(&show(text.trim()));
    let live = "document.getElementById('link')?.textContent === 'live'";
    browser.wait(LONG, "contact", live);
    browser.open("cluster", "n1");
    browser.open("logs", "actor started");
    assert_eq!(browser.errors, Vec::<String>::new(), "the page complains");
}

#[test]
fn the_dashboard_shows_the_cluster_live_and_says_when_it_lost_touch() {
    let mut cluster = Cluster::start(3);
    let url = format!("http://{}/", cluster.node("n2").admin());
    let Some(mut browser) = Browser::start(&url) else {
        eprintln!("skipped: no Chromium is installed here");
        return;
    };
    browser.wait(
        LONG,
        "contact",
        "document.getElementById('link')?.textContent === 'live'",
    );
    browser.open("cluster", "Who hears whom");
    browser.wait(
        LONG,
        "a full matrix",
        "document.querySelectorAll('table.matrix td.ok').length === 6",
    );
    browser.open("actors", "discovery");
    browser.open("registry", "services/");
    browser.open("events", "master.promoted");
    browser.open("logs", "actor started");
    browser.open("tasks", "Submit");
    browser.wait(
        LONG,
        "a bar in the lanes",
        "document.querySelectorAll('rect.bar').length > 0",
    );
    browser.eval("document.querySelector('#page form').requestSubmit()");
    browser.wait(
        LONG,
        "the receipt of a task",
        "document.body.innerText.includes('the same id is the same task')",
    );

    browser.open("cluster", "n1");
    let lead = "document.querySelector('.cards .card b').textContent";
    assert_eq!(browser.eval(lead), "n1");
    cluster.node_mut("n1").process.kill();
    let took = browser.wait(
        Duration::from_secs(5),
        "another master",
        &format!("!['n1', 'nobody leads'].includes({lead})"),
    );
    eprintln!(
        "the browser showed the new master {} ms after the kill",
        took.as_millis()
    );

    cluster.node_mut("n2").process.kill();
    browser.wait(
        LONG,
        "lost contact",
        "!document.getElementById('lost').hidden && document.body.classList.contains('stale')",
    );
    assert_eq!(browser.errors, Vec::<String>::new(), "the page complains");
}
