//! A node with jobs of its own: `cargo run --example own_job -- dev`, and then, from another terminal,
//! `cargo run -- submit word-count '"to be or not to be"' --wait` and `cargo run -- submit primes 100000 --wait`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use troupe::job::{JobContext, JobError, Jobs, blocking, from_fn};

fn main() -> ExitCode {
    let jobs = Jobs::default()
        .with(from_fn("word-count", word_count))
        .with(blocking("primes", primes));
    troupe::main(jobs)
}

/// Input and output are any types that serde knows.
async fn word_count(text: String, _: JobContext) -> Result<BTreeMap<String, usize>, JobError> {
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    Ok(counts)
}

/// Computes on a thread of its own: heartbeats go on. It says how far it is, and ends soon when it is cancelled.
fn primes(limit: u64, context: JobContext) -> Result<u64, JobError> {
    let mut found = 0;
    for n in 2..=limit {
        if n % 1000 == 0 {
            if context.is_cancelled() {
                return Err(JobError::Failed("cancelled".to_owned()));
            }
            context.progress(format!("{n} of {limit}"));
        }
        found += u64::from((2..).take_while(|d| d * d <= n).all(|d| n % d != 0));
    }
    Ok(found)
}
