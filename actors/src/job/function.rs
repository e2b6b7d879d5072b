//! A function as a job, typed by serde.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Job, JobContext, JobError};

/// An async function from `I` to `O`, both as JSON, as a job. It must not block its thread; see [`blocking`].
pub fn from_fn<I, O, F, R>(name: &str, function: F) -> impl Job
where
    I: DeserializeOwned + Send + 'static,
    O: Serialize + 'static,
    F: Fn(I, JobContext) -> R + Send + Sync + 'static,
    R: Future<Output = Result<O, JobError>> + Send + 'static,
{
    let run = move |input: Bytes, context| match read(&input) {
        Ok(input) => function(input, context)
            .map(|output| write(&output?))
            .boxed(),
        Err(why) => std::future::ready(Err(why)).boxed(),
    };
    Function {
        name: name.to_owned(),
        run,
    }
}

/// A function that computes or blocks, from `I` to `O`, both as JSON, as a job: it runs on a thread of its own, and heartbeats go on.
/// Nobody can stop a thread: look at [`JobContext::is_cancelled`] now and then. When the attempt's time is over its output is
/// not waited for, but the thread goes on.
pub fn blocking<I, O, F>(name: &str, function: F) -> impl Job
where
    I: DeserializeOwned + Send + 'static,
    O: Serialize + 'static,
    F: Fn(I, JobContext) -> Result<O, JobError> + Send + Sync + 'static,
{
    let function = Arc::new(function);
    let typed = PhantomData::<fn(I) -> O>;
    let run = move |input: Bytes, context| {
        let function = Arc::clone(&function);
        let _ = typed;
        let thread = tokio::task::spawn_blocking(move || write(&function(read(&input)?, context)?));
        async move {
            match thread.await {
                Ok(ended) => ended,
                Err(err) => match err.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(err) => Err(JobError::Retry(err.to_string())),
                },
            }
        }
        .boxed()
    };
    Function {
        name: name.to_owned(),
        run,
    }
}

fn read<I: DeserializeOwned>(input: &[u8]) -> Result<I, JobError> {
    let wrong = |err| JobError::Failed(format!("the input does not fit this job: {err}"));
    serde_json::from_slice(input).map_err(wrong)
}

fn write(output: &impl Serialize) -> Result<Bytes, JobError> {
    let wrong = |err: serde_json::Error| JobError::Failed(format!("the output is no JSON: {err}"));
    serde_json::to_vec(output).map(Bytes::from).map_err(wrong)
}

struct Function<F> {
    name: String,
    run: F,
}

impl<F> Job for Function<F>
where
    F: Fn(Bytes, JobContext) -> BoxFuture<'static, Result<Bytes, JobError>> + Send + Sync + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn run(
        &self,
        input: Bytes,
        context: JobContext,
    ) -> BoxFuture<'static, Result<Bytes, JobError>> {
        (self.run)(input, context)
    }
}
