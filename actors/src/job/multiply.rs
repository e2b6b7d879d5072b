//! The article's job: waits a while, then multiplies by three.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::{Job, JobContext, JobError};

/// `{"number": N}` becomes `{"number": N, "result": 3 N}` after a random wait.
#[derive(Clone, Copy, Debug)]
pub struct Multiply {
    delay_min: Duration,
    delay_max: Duration,
}

impl Multiply {
    /// Waits between these two (inclusive).
    pub fn new(delay_min: Duration, delay_max: Duration) -> Self {
        Self {
            delay_min,
            delay_max: delay_max.max(delay_min),
        }
    }
}

#[derive(Deserialize)]
struct Input {
    number: u64,
}

#[derive(Serialize)]
struct Output {
    number: u64,
    result: u64,
}

fn multiply(input: &[u8]) -> Result<Bytes, JobError> {
    let Input { number } = serde_json::from_slice(input).map_err(|err| {
        JobError::Failed(format!("the input must be like {{\"number\": 42}}: {err}"))
    })?;
    let result = number
        .checked_mul(3)
        .ok_or_else(|| JobError::Failed(format!("3 × {number} does not fit 64 bits")))?;
    let output = serde_json::to_vec(&Output { number, result });
    output
        .map(Bytes::from)
        .map_err(|err| JobError::Failed(err.to_string()))
}

impl Job for Multiply {
    fn name(&self) -> &str {
        "multiply"
    }

    fn run(&self, input: Bytes, _: JobContext) -> BoxFuture<'static, Result<Bytes, JobError>> {
        let wait = rand::rng().random_range(self.delay_min..=self.delay_max);
        Box::pin(async move {
            let output = multiply(&input)?;
            tokio::time::sleep(wait).await;
            Ok(output)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_multiplied_by_three() {
        let output = multiply(br#"{"number": 42}"#).unwrap();
        assert_eq!(&output[..], br#"{"number":42,"result":126}"#);
    }

    #[test]
    fn what_is_no_number_or_too_large_a_one_fails_in_words() {
        for input in [
            "",
            "{}",
            r#"{"number": -1}"#,
            r#"{"number": 18446744073709551615}"#,
        ] {
            let failed = multiply(input.as_bytes());
            assert!(matches!(failed, Err(JobError::Failed(_))), "{input}");
        }
    }
}
