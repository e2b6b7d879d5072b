//! The corpus of every fuzz target, and then what a seeded mutator makes of it for a while: no panic, every property of
//! `testkit::fuzz`, and no more memory than the target is allowed.
//!
//! `FUZZ_SECONDS=60 cargo test -p troupe-actors --test fuzz` for longer, `FUZZ_SEED=7` for other inputs, `FUZZ_TARGET=frame` for one;
//! `UPDATE_CORPUS=1` writes the inputs below that are missing in `tests/fuzz/corpus`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use troupe_actors::testkit::fuzz::mutate::Mutator;
use troupe_actors::testkit::fuzz::{PER_BYTE, TARGETS, Target};

#[path = "fuzz/seeds.rs"]
mod seeds;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn corpus(target: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../tests/fuzz/corpus").join(target)
}

fn kept(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus(target)).into_iter().flatten();
    let mut kept: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    kept.sort();
    kept
}

/// One input, with its bound on memory. Answers the most it took.
fn run(target: &Target, what: &str, data: &[u8]) -> usize {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let outcome = catch_unwind(AssertUnwindSafe(|| target.run(data)));
    let took = MEMORY.peak_usage().saturating_sub(before);
    if outcome.is_err() {
        let path = std::env::temp_dir().join(format!("troupe-fuzz-{}", target.name));
        std::fs::write(&path, data).unwrap();
        panic!(
            "{}: {what} breaks it. It is in {}; when it is mended, keep it in {}",
            target.name,
            path.display(),
            corpus(target.name).display()
        );
    }
    let allowed = target.memory + PER_BYTE * data.len();
    assert!(
        took <= allowed,
        "{}: {what} of {} bytes takes {took} bytes of memory, {allowed} are allowed",
        target.name,
        data.len()
    );
    took
}

fn number(name: &str) -> Option<f64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// One test: memory is counted for the whole process.
#[test]
fn no_input_makes_a_parser_panic_or_take_too_much_memory() {
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        return seeds::write(&corpus(""));
    }
    let seconds = number("FUZZ_SECONDS").unwrap_or(0.5);
    let seed = number("FUZZ_SEED").unwrap_or(1.0) as u64;
    let one = std::env::var("FUZZ_TARGET").ok();
    println!(
        "{:<10} {:>7} {:>10} {:>12}",
        "target", "corpus", "mutated", "most memory"
    );
    for target in TARGETS {
        if one.as_deref().is_some_and(|one| one != target.name) {
            continue;
        }
        // What is made once a thread, and is no input's fault.
        target.run(&[0]);
        let kept = kept(target.name);
        assert!(!kept.is_empty(), "{} has no corpus", target.name);
        let mut most = 0;
        for (name, data) in &kept {
            most = most.max(run(target, name, data));
        }
        let count = kept.len();
        let mut mutator = Mutator::new(kept.into_iter().map(|(_, data)| data).collect(), seed);
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let mut made = 0u64;
        while Instant::now() < until {
            let data = mutator.next_input();
            made += 1;
            most = most.max(run(target, &format!("input {made} of seed {seed}"), &data));
        }
        println!("{:<10} {count:>7} {made:>10} {most:>12}", target.name);
    }
}

#[test]
fn every_target_has_its_binary() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let path = format!("targets/{}.rs", target.name);
        assert!(manifest.contains(&format!("path = {path:?}")), "{path}");
        let text = std::fs::read_to_string(root.join(path)).unwrap();
        assert!(text.contains(&format!("target({:?})", target.name)));
    }
}
