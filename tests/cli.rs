//! What each command prints, held against tests/golden/cli.txt: the command, its exit code, and both outputs.
//!
//! `UPDATE_GOLDEN=1 cargo test --test cli` writes it anew, and the diff is the review. What differs from run to run is
//! blotted out: ids, times, addresses and all numbers, but for those of names.

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{LONG, Node, TROUPE, clean_env, event, free_port, on_disk, until};

const QUIET: [&str; 6] = [
    "--set",
    "generator.enabled=false",
    "--set",
    "worker.delay_min=0ms",
    "--set",
    "worker.delay_max=0ms",
];

/// Words that stand for what differs.
struct Blot {
    words: Vec<(String, String)>,
    host: String,
}

impl Blot {
    fn new(nodes: &[&Node], registry: &str) -> Self {
        let mut words = vec![(registry.to_owned(), "<registry>".to_owned())];
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy().into_owned();
        for node in nodes {
            words.push((node.admin(), format!("<admin of {}>", node.name)));
            let address = format!("127.0.0.1:{}", node.port);
            words.push((address, format!("<{}>", node.name)));
        }
        words.push((std::env::consts::ARCH.to_owned(), "<arch>".to_owned()));
        Self { words, host }
    }

    fn out(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (word, instead) in &self.words {
            text = text.replace(word, instead);
        }
        // A host may be called like anything else here: a word of its own, and not the first of a line.
        let host = format!("  {}  ", self.host);
        text = text.replace(&host, "  <host>  ");
        let lines = text.lines().map(|line| blank(line).trim_end().to_owned());
        lines.map(|line| line + "\n").collect()
    }
}

/// One line without its ids, times and numbers, and with its columns two spaces apart.
fn blank(line: &str) -> String {
    let mut said = String::new();
    let word = |c: char| c.is_ascii_alphanumeric() || "-:.µ_".contains(c);
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if c == ' ' {
            let spaces = rest.len() - rest.trim_start_matches(' ').len();
            // The indent stays; what is between columns depends on what is in them.
            let kept = if said.is_empty() {
                spaces
            } else {
                spaces.min(2)
            };
            said.push_str(&" ".repeat(kept));
            rest = &rest[spaces..];
        } else if word(c) {
            let end = rest.find(|c: char| !word(c)).unwrap_or(rest.len());
            said.push_str(&blank_word(&rest[..end]));
            rest = &rest[end..];
        } else {
            said.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    said
}

fn blank_word(word: &str) -> String {
    let bare = word.trim_end_matches(['.', ':', '-']);
    let hex = |c: char| c.is_ascii_hexdigit() || c == '-';
    let id = bare.len() >= 8 && bare.chars().all(|c| c.is_ascii_hexdigit());
    let instead = if bare.len() >= 32 && bare.chars().all(hex)
        || id && bare.contains(|c: char| c.is_ascii_digit())
    {
        "<id>"
    } else if bare.contains('T')
        && bare.ends_with('Z')
        && bare.starts_with(|c: char| c.is_ascii_digit())
    {
        "<time>"
    } else if bare.starts_with(|c: char| c.is_ascii_digit()) {
        let unit = bare.trim_start_matches(|c: char| c.is_ascii_digit() || ".-:".contains(c));
        match unit {
            "" if bare.contains(':') => "<time>",
            "" if bare.contains('-') => "<epoch>",
            "" => "N",
            "ms" | "µs" | "us" | "s" | "m" | "h" | "ns" => "<span>",
            _ => return word.to_owned(),
        }
    } else {
        return word.to_owned();
    };
    instead.to_owned() + &word[bare.len()..]
}

/// A command, what it answers with, and what it prints.
fn run(blot: &Blot, node: &Node, args: &[&str], shown: &str) -> String {
    let mut command = Command::new(TROUPE);
    clean_env(&mut command);
    let output = command
        .args(["--api", &format!("http://{}", node.admin())])
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| blot.out(&String::from_utf8_lossy(bytes));
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    let code = output.status.code().unwrap();
    // A busy machine is late, and doctor says so.
    let late = |line: &&str| args == ["doctor"] && line.split_whitespace().nth(1) == Some("slow");
    let excused = out.lines().filter(late).any(|l| l.starts_with("WRONG"));
    let code = if code == 0 || excused {
        String::new()
    } else {
        format!("  # exit {code}")
    };
    let out: String = out
        .lines()
        .filter(|l| !late(l))
        .map(|l| format!("{l}\n"))
        .collect();
    let err: String = err.lines().map(|line| format!("! {line}\n")).collect();
    format!("$ troupe {shown}{code}\n{out}{err}\n")
}

#[test]
fn each_command_prints_what_it_did_when_it_was_last_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let _registry = on_disk(dir.path(), port);
    let registry = format!("127.0.0.1:{port}");
    let url = format!("http://{registry}");
    let n1 = Node::start_with("n1", &url, &QUIET);
    n1.wait("master.promoted", |l| event(l, "master.promoted"));
    let n2 = Node::start_with("n2", &url, &QUIET);
    for node in [&n1, &n2] {
        node.wait_members(&["n1", "n2"], LONG);
    }
    until("the round trip is measured", LONG, || {
        let (_, view) = n1.get("/v1/members").ok_or("no answer")?;
        let known = view["members"]
            .as_array()
            .unwrap()
            .iter()
            .any(|m| m["rtt_us"].is_u64());
        known.then_some(()).ok_or_else(|| view.to_string())
    });
    let blot = Blot::new(&[&n1, &n2], &registry);
    let submit = |job: &str, input: Value| {
        let body = json!({ "job": job, "input": input }).to_string();
        let (_, taken) = n1.post("/v1/tasks", &body).unwrap();
        taken["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{taken}"))
            .to_owned()
    };
    let (done, waits) = (
        submit("multiply", json!({ "number": 14 })),
        submit("paint", json!("a wall")),
    );
    until("a task is done", LONG, || {
        let (_, task) = n1.get(&format!("/v1/tasks/{done}?wait=5s")).unwrap();
        (task["state"] == "done")
            .then_some(())
            .ok_or_else(|| task.to_string())
    });
    let mut all = String::new();
    let plain: [&[&str]; 14] = [
        &["members"],
        &["status"],
        &["master"],
        &["actors"],
        &["actors", "worker"],
        &["tasks", "ls"],
        &["tasks", "get", "nonsense"],
        &["registry", "ls", "names/"],
        &["registry", "put", "names/n1", "x"],
        &["doctor"],
        &["kill", "cook"],
        &["why", "node", "n9"],
        &["config", "check"],
        &["version"],
    ];
    for args in plain {
        all += &run(&blot, &n1, args, &args.join(" "));
    }
    for (id, name) in [(&done, "DONE"), (&waits, "WAITS")] {
        all += &run(
            &blot,
            &n1,
            &["tasks", "get", id],
            &format!("tasks get {name}"),
        );
        all += &run(
            &blot,
            &n1,
            &["why", "task", id],
            &format!("why task {name}"),
        );
    }
    all += &run(
        &blot,
        &n1,
        &["tasks", "cancel", &waits],
        "tasks cancel WAITS",
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cli.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &all).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&file).unwrap();
    let differs = kept.lines().zip(all.lines()).find(|(a, b)| a != b);
    assert!(
        kept == all,
        "first where it differs: {differs:?}; if that is as it should be: UPDATE_GOLDEN=1 cargo test --test cli\n{all}"
    );
}

#[test]
fn completions_know_every_command() {
    for (shell, begins) in [
        ("bash", "_troupe()"),
        ("zsh", "#compdef troupe"),
        ("fish", "# Print an optspec"),
    ] {
        let output = Command::new(TROUPE)
            .args(["completions", shell])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && text.starts_with(begins),
            "{shell}: {}",
            &text[..60]
        );
        for command in ["members", "submit", "registry", "doctor", "top"] {
            assert!(text.contains(command), "{shell}: {command}");
        }
    }
}
