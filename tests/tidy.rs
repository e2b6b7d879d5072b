//! Rules that nobody should have to remember: the layers, the headers, README's tree, `config.toml`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files that decide: they know no clock, no socket, no runtime, no actor and no logger; they are told.
const CORES: &[&str] = &[
    "actors/src/admin/access.rs",
    "actors/src/admin/why.rs",
    "actors/src/backoff.rs",
    "actors/src/discovery/election.rs",
    "actors/src/discovery/membership.rs",
    "actors/src/discovery/suspicion.rs",
    "actors/src/discovery/verdict.rs",
    "actors/src/master/balancer/least_loaded.rs",
    "actors/src/master/balancer/mod.rs",
    "actors/src/master/balancer/random.rs",
    "actors/src/master/balancer/round_robin.rs",
    "actors/src/master/balancer/two_choices.rs",
    "actors/src/master/generator.rs",
    "actors/src/master/journal.rs",
    "actors/src/master/ledger.rs",
    "actors/src/master/ledger/handing.rs",
    "actors/src/master/ledger/keeping.rs",
    "actors/src/master/ledger/reading.rs",
    "actors/src/master/ledger/wishes.rs",
    "actors/src/master/legacy.rs",
    "actors/src/master/lines.rs",
    "actors/src/master/record.rs",
    "actors/src/master/reign.rs",
    "actors/src/master/roster.rs",
    "actors/src/master/task.rs",
    "actors/src/master/view.rs",
    "actors/src/master/waits.rs",
    "actors/src/registry/embedded/lease.rs",
    "actors/src/registry/embedded/store.rs",
    "actors/src/registry/session.rs",
    "actors/src/sample.rs",
    "actors/src/supervisor/policy.rs",
    "actors/src/transport/admission.rs",
    "actors/src/transport/frame.rs",
    "actors/src/transport/handshake.rs",
    "actors/src/transport/hlc.rs",
    "actors/src/transport/sessions.rs",
    "actors/src/transport/trust.rs",
    "actors/src/worker/intake.rs",
    "src/advertise.rs",
];

const NOT_IN_CORES: &[&str] = &[
    "actix",
    "tokio::",
    "log::",
    "etcd_client",
    "Instant::now()",
    "SystemTime::now()",
    "rand::rng()",
    "TcpStream",
    "TcpListener",
    "std::fs",
    "std::env",
];

/// Longer than this, a file is about more than one thing.
const MAX_LINES: usize = 1024;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// Files that git knows or would, by ending.
fn files(ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(&root(), &root(), ending, &mut found);
    found.sort();
    found
}

fn walk(root: &Path, dir: &Path, ending: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "target" || name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, ending, found);
        } else if name.ends_with(ending) {
            let relative = path.strip_prefix(root).unwrap();
            found.push(relative.to_string_lossy().into_owned());
        }
    }
}

/// The part of a file that is not its unit tests.
fn code(path: &str) -> String {
    let text = read(path);
    text.split("#[cfg(test)]").next().unwrap_or("").to_owned()
}

#[test]
fn cores_know_no_clock_no_socket_no_runtime_no_actor_and_no_logger() {
    for path in CORES {
        let code = code(path);
        let lines = code.lines().filter(|l| !l.trim_start().starts_with("//"));
        for (n, line) in lines.enumerate() {
            for word in NOT_IN_CORES {
                assert!(
                    !line.contains(word),
                    "{path}, about line {n}: {word}: {line}"
                );
            }
        }
    }
}

#[test]
fn nothing_sleeps_on_an_arbiter() {
    for path in files(".rs") {
        if !path.starts_with("src/") && !path.starts_with("actors/src/") {
            continue;
        }
        let code = code(&path);
        // The guard's hang is on purpose.
        let allowed = path == "actors/src/supervisor/guard.rs";
        assert!(
            allowed || !code.contains("thread::sleep"),
            "{path} holds up its thread"
        );
    }
}

#[test]
fn only_shells_drive_actors() {
    for path in files(".rs") {
        // What tests use stands in for shells.
        let others = ["actors/src/supervisor/", "actors/src/testkit/"];
        let in_library =
            path.starts_with("actors/src/") && !others.iter().any(|o| path.starts_with(o));
        let shell = path.ends_with("/actor.rs") || path.contains("/actor/");
        if in_library && !shell {
            let code = code(&path);
            assert!(
                !code.contains("Context<Self>"),
                "{path} is no shell, and drives actix"
            );
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_is_about_one_thing() {
    for path in files(".rs") {
        let text = read(&path);
        assert!(text.starts_with("//!"), "{path} has no //! header");
        let lines = text.lines().count();
        assert!(
            lines <= MAX_LINES || path.starts_with("actors/tests/"),
            "{path} has {lines} lines"
        );
    }
}

#[test]
fn every_setting_is_documented_and_every_documented_setting_is_known() {
    let output = Command::new(env!("CARGO_BIN_EXE_troupe"))
        .args(["config", "show", "--json", "--config", "/dev/null"])
        .output()
        .unwrap();
    let known: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&output.stdout).unwrap();
    let known: BTreeSet<String> = known.keys().cloned().collect();
    let mut documented = BTreeSet::new();
    let mut section = String::new();
    let mut before = "";
    let text = read("config.toml");
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = format!("{}.", header.trim_end_matches(']'));
        }
        let setting = line.strip_prefix("# ").and_then(|l| l.split_once(" = "));
        if let Some((key, _)) =
            setting.filter(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        {
            assert!(before.starts_with("# "), "{section}{key} is not explained");
            documented.insert(format!("{section}{key}"));
        }
        before = line;
    }
    assert_eq!(known, documented);
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let uncommented: String = read("config.toml")
        .lines()
        .map(|line| {
            let setting = line.strip_prefix("# ").filter(|l| {
                l.split_once(" = ")
                    .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            });
            // Examples, not defaults: what these are without a setting depends on the machine.
            let example = [
                "name =",
                "advertise",
                "interface",
                "admin =",
                "tags =",
                "data_dir =",
                "secret_file =",
                "ca_file =",
                "cert_file =",
                "key_file =",
                "user =",
                "password_file =",
                "token_file =",
                "read_token_file =",
                "accept_secret_file =",
            ];
            let setting = setting.filter(|l| !example.iter().any(|e| l.starts_with(e)));
            format!("{}\n", setting.unwrap_or(line))
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, uncommented).unwrap();
    let show = |path: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_troupe"))
            .args(["config", "show", "--config"])
            .arg(path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(show(&path), show(Path::new("/dev/null")));
}

/// Or the watchdog could not say which message hangs.
#[test]
fn every_handler_of_an_actor_says_first_what_it_handles() {
    for path in files(".rs")
        .iter()
        .filter(|p| p.starts_with("actors/src/") && !p.contains("/testkit/"))
    {
        let text = read(path);
        for begin in text.split("\nimpl Handler<").skip(1) {
            let (message, rest) = begin.split_once("> for ").unwrap();
            let body = rest.split("\n}").next().unwrap();
            let said = format!("{{\n        handling::<{message}>();");
            assert!(body.contains(&said), "{path}: Handler<{message}>");
        }
    }
}

/// The tree as README shows it: folders with their files, two levels of `src`.
fn tree() -> String {
    let mut lines = vec!["```".to_owned()];
    for dir in ["src", "actors/src"] {
        lines.push(format!("{dir}/"));
        let mut entries: Vec<PathBuf> = std::fs::read_dir(root().join(dir))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        entries.sort_by_key(|p| (p.is_dir(), p.clone()));
        let stem = |p: &Path| p.file_stem().unwrap().to_string_lossy().into_owned();
        let top: Vec<String> = entries
            .iter()
            .filter(|p| p.is_file())
            .map(|p| stem(p))
            .collect();
        lines.push(format!("  {}", top.join(" · ")));
        for folder in entries.iter().filter(|p| p.is_dir()) {
            let mut inside: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|e| {
                    let path = e.unwrap().path();
                    if path.is_dir() {
                        format!("{}/", stem(&path))
                    } else {
                        stem(&path)
                    }
                })
                .collect();
            inside.sort();
            inside.retain(|name| name != "mod");
            let name = format!("{}/", stem(folder));
            lines.push(format!("  {name:<12} {}", inside.join(" · ")));
        }
    }
    lines.push(format!("tests/         {}", tests_in("tests/")));
    lines.push(format!("actors/tests/  {}", tests_in("actors/tests/")));
    lines.push("```".to_owned());
    lines.join("\n")
}

/// Test programs: a file each, or a folder with a `main.rs`.
fn tests_in(folder: &str) -> String {
    let paths = files(".rs");
    let names = paths.iter().filter_map(|path| {
        let inside = path.strip_prefix(folder)?;
        match inside.strip_suffix("/main.rs") {
            Some(name) => Some(format!("{name}/")),
            None => inside.strip_suffix(".rs").map(str::to_owned),
        }
    });
    let own = |name: &String| !name.trim_end_matches('/').contains('/');
    names.filter(own).collect::<Vec<_>>().join(" · ")
}

#[test]
fn readme_shows_the_tree_as_it_is() {
    let readme = read("README.md");
    let shown = readme
        .split_once("<!-- tree -->\n")
        .and_then(|(_, rest)| rest.split_once("\n<!-- /tree -->"))
        .map(|(tree, _)| tree.to_owned());
    let tree = tree();
    assert_eq!(
        shown.as_deref(),
        Some(tree.as_str()),
        "README's tree should be:\n{tree}"
    );
}
