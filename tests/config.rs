//! A wrong configuration is told in words that name where, key, value and rule; nothing starts, the exit code is 78.

mod support;

use std::process::Command;

use support::{TROUPE, clean_env};

/// Runs `troupe` with these words and this `config.toml`; answers exit code and stderr.
fn run(words: &[&str], file: &str, env: &[(&str, &str)]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(TROUPE);
    command.args(words);
    clean_env(&mut command);
    std::fs::write(dir.path().join("config.toml"), file).unwrap();
    let output = command
        .envs(env.iter().copied())
        .current_dir(dir.path())
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Command line, `config.toml`, environment, and what must be said.
type Case = (
    &'static [&'static str],
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

#[test]
fn what_is_wrong_is_named_with_its_place_and_its_rule() {
    let cases: &[Case] = &[
        (
            &["run"],
            "clutser = \"x\"\n",
            &[],
            &[
                "config.toml:1",
                "unknown key `clutser`",
                "did you mean `cluster`",
            ],
        ),
        (
            &["run"],
            "[discovery]\n\nheartbeat = 250\n",
            &[],
            &[
                "config.toml:3",
                "discovery.heartbeat",
                "250",
                "a duration with a unit",
            ],
        ),
        (
            &["run"],
            "[discovery]\nheartbeat = \"500ms\"\n",
            &[],
            &[
                "`discovery.heartbeat` = \"500ms\" (config.toml:2)",
                "3 × discovery.heartbeat",
            ],
        ),
        (
            &["run", "--set", "registry.ttl=1s"],
            "",
            &[],
            &["flag --set", "registry.ttl", "from 2s"],
        ),
        (
            &["run"],
            "",
            &[("TROUPE_MASTER_BALANCER", "best")],
            &["environment variable TROUPE_MASTER_BALANCER", "\"random\""],
        ),
        (
            &["run"],
            "",
            &[("TROUPE_CLUTSER", "x")],
            &["environment variable TROUPE_CLUTSER", "unknown key"],
        ),
        (
            &["run", "--bind", "nowhere"],
            "",
            &[],
            &["flag --bind", "node.bind", "an address with a port"],
        ),
        (
            &["run", "--interface", "no-such-if"],
            "",
            &[],
            &["node.interface", "no-such-if", "this machine has"],
        ),
        (
            &["run", "--registry", "10.0.0.1:2379"],
            "",
            &[],
            &["flag --registry", "http(s) URLs"],
        ),
        (
            &["config", "check"],
            "cluster = \n",
            &[],
            &["config.toml", "not TOML"],
        ),
        (
            &["config", "check", "--config", "nowhere.toml"],
            "",
            &[],
            &["nowhere.toml", "cannot be read"],
        ),
    ];
    for (words, file, env, said) in cases {
        let (code, stderr) = run(words, file, env);
        assert_eq!(code, Some(78), "{words:?} {file:?}: {stderr}");
        for word in *said {
            assert!(
                stderr.contains(word),
                "{words:?} {file:?} does not say {word:?}: {stderr}"
            );
        }
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_its_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stderr) = run(&["run", "--bind", &address], "", &[]);
    assert_eq!(code, Some(78));
    assert!(
        stderr.contains(&address) && stderr.contains("node.bind"),
        "{stderr}"
    );
}

#[test]
fn a_word_that_is_no_command_is_a_usage_error() {
    assert_eq!(run(&["no-such-command"], "", &[]).0, Some(2));
}

#[test]
fn the_shipped_file_is_fine() {
    let shipped =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml")).unwrap();
    assert_eq!(run(&["config", "check"], &shipped, &[]).0, Some(0));
}
