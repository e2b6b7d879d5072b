//! What fuzzing calls in this package: the texts of an operator. The parsers of what other machines send are in
//! `troupe_actors::testkit::fuzz`, which also says how a target is to behave.

use std::path::Path;

use toml::Value;
use troupe_actors::testkit::fuzz::Target;

use crate::advertise;
use crate::config::{Config, Origin, Told};

/// Everything in this package that parses texts from outside.
pub const TARGETS: &[Target] = &[
    Target {
        name: "config",
        what: "config.toml",
        before_authentication: false,
        memory: 8 << 20,
        run: config,
    },
    Target {
        name: "settings",
        what: "--set key=value and TROUPE_* variables, with addresses, networks and durations in them",
        before_authentication: false,
        memory: 8 << 20,
        run: settings,
    },
];

/// The target of this name.
pub fn target(name: &str) -> &'static Target {
    troupe_actors::testkit::fuzz::named(TARGETS, name)
}

/// What is shown of a configuration can be read, and is the same configuration.
fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let path = Path::new("config.toml");
    match Config::of_text(path, text) {
        Err(why) => assert!(!why.to_string().is_empty()),
        Ok(config) => {
            let shown = config.shown();
            // An empty text stands for "not set", which nobody sets.
            let said = shown.iter().filter(|(_, value, _)| value != "\"\"");
            let again: String = said
                .map(|(key, value, _)| format!("{key} = {value}\n"))
                .collect();
            let read = Config::of_text(path, &again)
                .unwrap_or_else(|why| panic!("what was shown is not read: {why}\n{again}"));
            let plain = |config: &Config| -> Vec<(String, String)> {
                let all = config.shown().into_iter();
                all.map(|(key, value, _)| (key, value)).collect()
            };
            assert_eq!(plain(&config), plain(&read));
        }
    }
}

/// Lines of `key=value` as flags; those that begin with `TROUPE_` as variables.
fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut told = Told {
        file: Some("/dev/null".into()),
        values: Vec::new(),
    };
    let mut env = Vec::new();
    for line in text.lines().take(16) {
        match crate::cli::pair(line) {
            Ok((name, value)) if name.starts_with("TROUPE_") => env.push((name, value)),
            Ok((key, value)) => {
                told.values
                    .push((key, Value::String(value), "--set".to_owned()));
            }
            Err(why) => assert!(!why.is_empty()),
        }
    }
    match crate::config::load(&told, env.into_iter()) {
        Err(why) => assert!(!why.to_string().is_empty()),
        Ok(config) => {
            let interfaces = [
                ("eth0".to_owned(), [10, 0, 2, 15].into()),
                ("eth1".to_owned(), [192, 168, 56, 2].into()),
            ];
            let port = config.node.bind.port();
            advertise::choose(&config.node, port, &interfaces).ok();
            for (key, ..) in &told.values {
                assert!(matches!(config.origin(key), Origin::Flag(_)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use troupe_actors::testkit::fuzz::mutate::Mutator;

    use super::*;

    /// As in `actors/tests/fuzz.rs`, but that nobody counts memory here.
    #[test]
    fn no_text_makes_a_parser_panic() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
        let seconds = std::env::var("FUZZ_SECONDS").map_or(0.5, |s| s.parse().expect("a number"));
        for target in TARGETS {
            let binary = root.join(format!("targets/{}.rs", target.name));
            assert!(binary.exists(), "{binary:?}");
            let mut corpus: Vec<_> = std::fs::read_dir(root.join("corpus").join(target.name))
                .expect("a corpus")
                .map(|entry| entry.expect("an entry").path())
                .collect();
            corpus.sort();
            let corpus: Vec<Vec<u8>> = corpus
                .iter()
                .map(|path| std::fs::read(path).expect("a file"))
                .collect();
            for data in &corpus {
                target.run(data);
            }
            let mut mutator = Mutator::new(corpus, 1);
            let until = Instant::now() + Duration::from_secs_f64(seconds);
            let mut made = 0u64;
            while Instant::now() < until {
                let data = mutator.next_input();
                made += 1;
                let outcome = std::panic::catch_unwind(|| target.run(&data));
                let text = String::from_utf8_lossy(&data);
                assert!(outcome.is_ok(), "{}, input {made}: {text:?}", target.name);
            }
            println!("{}: {made} inputs", target.name);
        }
    }
}
