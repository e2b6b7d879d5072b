//! A headless Chromium, spoken to over pipes in the DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::LONG;

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// One browser with one page. Messages are JSON that ends with a zero byte.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: String,
    next: u64,
    /// What the page complained about.
    pub errors: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Opens the page; `None`, said in words, when no browser is installed.
    pub fn start(url: &str) -> Option<Self> {
        let found = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
        let Some(program) = BROWSERS.iter().find(found) else {
            eprintln!("skipped: no Chromium is installed here");
            return None;
        };
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
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
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

    /// One call of the protocol.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
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

    /// What a script is worth.
    pub fn eval(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true });
        self.call("Runtime.evaluate", params)["result"]["value"].clone()
    }

    /// The words on the page.
    pub fn text(&mut self) -> String {
        let text = self.eval("document.body.innerText");
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Until a script is true; answers how long that took.
    pub fn wait(&mut self, within: Duration, what: &str, script: &str) -> Duration {
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

    /// Goes to a page and waits for words on it.
    pub fn open(&mut self, page: &str, words: &str) {
        self.eval(&format!("location.hash = '{page}'"));
        let there = format!(
            "document.getElementById('page').innerText.includes({})",
            json!(words)
        );
        self.wait(LONG, &format!("{words:?} on {page}"), &there);
        self.fits_a_phone(page);
    }

    /// A picture of what is seen, the first of this name, where `TROUPE_SHOTS` says.
    pub fn keep(&mut self, name: &str) {
        let Ok(dir) = std::env::var("TROUPE_SHOTS") else {
            return;
        };
        let file = format!("{dir}/{name}.png");
        if std::path::Path::new(&file).exists() {
            return;
        }
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

    /// Presses the first enabled button of the page with this label or text, as a person would.
    pub fn press(&mut self, label: &str) {
        let script = format!(
            "(() => {{ const named = (b) => [b.getAttribute('aria-label'), b.textContent].includes({});
              const all = [...document.querySelectorAll('main button, .scrub button')];
              const button = all.find((b) => named(b) && !b.disabled); button?.click(); return !!button; }})()",
            json!(label)
        );
        self.wait(LONG, &format!("a button {label:?}"), &script);
    }

    /// Answers the question that is asked.
    pub fn answer(&mut self, yes: bool) {
        self.wait(LONG, "a question", "document.getElementById('ask').open");
        let value = if yes { "yes" } else { "no" };
        self.eval(&format!(
            "document.querySelector('#ask button[value={value}]').click()"
        ));
    }

    /// Waits for what the page says of the last action.
    pub fn told(&mut self, words: &str) {
        let script = format!(
            "!document.getElementById('toast').hidden && document.getElementById('toast').textContent.includes({})",
            json!(words)
        );
        self.wait(LONG, &format!("{words:?}"), &script);
        self.eval("document.getElementById('toast').hidden = true");
    }

    /// One key, down and up.
    pub fn key(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            other => panic!("no code is known for {other}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event);
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
