//! ⇄ A command of the operator's as a job: input JSON on stdin, output JSON on stdout, stderr and exit code explain a failure.
//!
//! The command comes from `config.toml` alone; nothing that a task brings becomes part of a command line. It runs under a guard,
//! a second life of this binary that leads a process group of its own: on time-out, cancel, too much output, the end of the
//! node and also when the node is killed with -9, the whole group is ended, first asked, then killed.
//!
//! | how it ends | the task |
//! |---|---|
//! | exit 0, JSON (or nothing) on stdout | done |
//! | exit 0, something else on stdout; more than `max_output` | failed |
//! | an exit code of `retry_on` (75, EX_TEMPFAIL), or a signal | tried again |
//! | any other exit code | failed, with the end of stderr |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::{Job, JobContext, JobError};
use crate::id::AttemptId;
use crate::trace::{TRACEPARENT, TRACESTATE};
use crate::wire::MAX_PAYLOAD;

/// Of stderr the end is kept: what went wrong is usually said last.
const STDERR_TAIL: usize = 4 * 1024;
/// Variables of the node's own environment that a command sees.
const PASSED_ON: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// What of `meta` a command sees, and under which names.
const TRACE: [(&str, &str); 2] = [(TRACEPARENT, "TRACEPARENT"), (TRACESTATE, "TRACESTATE")];
/// A guard that was asked to end its group is killed after this.
const GUARD_GRACE: Duration = Duration::from_secs(5);

/// One `[jobs.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSettings {
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// Where it runs; the node's own directory when absent.
    pub cwd: Option<PathBuf>,
    /// Variables it sees beside `PATH`, `HOME`, `LANG`, `LC_ALL`, `TZ`, `TMPDIR` and those of this page.
    pub env: BTreeMap<String, String>,
    /// How long one run may take, if that is shorter than the task's own time-out.
    pub timeout: Option<Duration>,
    /// Bytes of stdout; beyond, it is ended and the task has failed.
    pub max_output: usize,
    /// Runs side by side on this node.
    pub concurrency: usize,
    /// Exit codes after which another try may help.
    pub retry_on: Vec<i32>,
}

impl Default for ExecSettings {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            cwd: None,
            env: BTreeMap::new(),
            timeout: None,
            max_output: MAX_PAYLOAD,
            concurrency: 1024,
            retry_on: vec![75],
        }
    }
}

/// See the module page.
#[derive(Clone, Debug)]
pub struct Exec {
    name: String,
    settings: Arc<ExecSettings>,
    /// This binary and the words that make it the guard.
    guard: Arc<[String]>,
}

impl Exec {
    /// `guard` is a command line that runs [`guard`] on the words after it.
    pub fn new(name: &str, settings: ExecSettings, guard: &[String]) -> Self {
        Self {
            name: name.to_owned(),
            settings: Arc::new(settings),
            guard: guard.into(),
        }
    }
}

impl Job for Exec {
    fn name(&self) -> &str {
        &self.name
    }

    fn concurrency(&self) -> Option<usize> {
        Some(self.settings.concurrency)
    }

    fn run(
        &self,
        input: Bytes,
        context: JobContext,
    ) -> BoxFuture<'static, Result<Bytes, JobError>> {
        let this = self.clone();
        Box::pin(async move {
            let limit = this.settings.timeout.unwrap_or(Duration::MAX);
            let mut group = Group(Some(this.spawn(&context)?));
            match tokio::time::timeout(limit, this.converse(&mut group, input)).await {
                Ok(ended) => ended,
                Err(_) => Err(JobError::Retry(format!(
                    "it ran longer than its {limit:?} and was ended"
                ))),
            }
        })
    }
}

impl Exec {
    fn spawn(&self, context: &JobContext) -> Result<Child, JobError> {
        let settings = &self.settings;
        let cannot = |why: String| JobError::Failed(format!("{}: {why}", self.name));
        let (program, words) = self
            .guard
            .split_first()
            .ok_or_else(|| cannot("there is no guard to run it under".to_owned()))?;
        let AttemptId { task, attempt } = context.attempt();
        let mut command = Command::new(program);
        command
            .args(words)
            .args(&settings.command)
            .env_clear()
            .envs(
                PASSED_ON
                    .iter()
                    .filter_map(|key| Some((key, std::env::var_os(key)?))),
            )
            .envs(&settings.env)
            .env("TROUPE_TASK", task.to_string())
            .env("TROUPE_ATTEMPT", attempt.n.to_string())
            .env("TROUPE_FENCE", context.fence())
            .env(
                "TROUPE_TIMEOUT_MS",
                context.timeout().as_millis().to_string(),
            )
            // The usual names of a trace context that is handed to a process.
            .envs(TRACE.iter().filter_map(|(key, variable)| {
                let value = context.meta().get(*key)?;
                Some((*variable, value))
            }))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(cwd) = &settings.cwd {
            command.current_dir(cwd);
        }
        let cwd = settings
            .cwd
            .as_deref()
            .map_or(String::new(), |cwd| format!(" in {}", cwd.display()));
        command
            .spawn()
            .map_err(|err| cannot(format!("cannot be started{cwd}: {err}")))
    }

    async fn converse(&self, group: &mut Group, input: Bytes) -> Result<Bytes, JobError> {
        let broken = |err: std::io::Error| JobError::Retry(format!("its pipes broke: {err}"));
        let Some(child) = group.0.as_mut() else {
            return Err(JobError::Retry("it is gone".to_owned()));
        };
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A command that does not read its input is none the worse for it.
                stdin.write_all(&input).await.ok();
            }
        };
        let limit = self.settings.max_output;
        let read = read_to(stdout, limit);
        let (_, output, errors) = tokio::join!(write, read, read_tail(stderr));
        let output = output.map_err(broken)?;
        if output.len() > limit {
            let why = format!("it printed more than {limit} bytes and was ended");
            return Err(JobError::Failed(why));
        }
        let status = child.wait().await.map_err(broken)?;
        // It ended by itself: nobody is to be ended.
        group.0 = None;
        self.judge(status.code(), &output, &errors)
    }

    fn judge(&self, code: Option<i32>, output: &[u8], errors: &str) -> Result<Bytes, JobError> {
        let said = if errors.is_empty() {
            String::new()
        } else {
            format!("; it said: {errors}")
        };
        match code {
            Some(0) => json_of(output),
            Some(code) if self.settings.retry_on.contains(&code) => {
                Err(JobError::Retry(format!("it ended with {code}{said}")))
            }
            Some(code @ 129..=192) => {
                let signal = code - 128;
                Err(JobError::Retry(format!("signal {signal} ended it{said}")))
            }
            Some(code) => Err(JobError::Failed(format!("it ended with {code}{said}"))),
            None => Err(JobError::Retry(format!("a signal ended its guard{said}"))),
        }
    }
}

fn json_of(output: &[u8]) -> Result<Bytes, JobError> {
    let text = output.trim_ascii();
    if text.is_empty() {
        return Ok(Bytes::from_static(b"null"));
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(text) {
        Ok(_) => Ok(Bytes::copy_from_slice(text)),
        Err(why) => Err(JobError::Failed(format!("its output is not JSON: {why}"))),
    }
}

/// Up to one byte more than `limit`.
async fn read_to(from: Option<impl AsyncRead + Unpin>, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// All of it is read, the end is kept.
async fn read_tail(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut tail = Vec::new();
    let mut chunk = [0; 4096];
    if let Some(mut from) = from {
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            tail.extend_from_slice(&chunk[..read]);
            let too_many = tail.len().saturating_sub(STDERR_TAIL);
            tail.drain(..too_many);
        }
    }
    String::from_utf8_lossy(&tail).trim().to_owned()
}

/// Once dropped before its end, it is ended: asked, and after a while killed.
struct Group(Option<Child>);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else {
            return;
        };
        if let Some(pid) = child.id().and_then(pid) {
            // It may have ended already.
            kill_process(pid, Signal::TERM).ok();
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if tokio::time::timeout(GUARD_GRACE, child.wait())
                    .await
                    .is_err()
                {
                    child.kill().await.ok();
                }
            });
        }
    }
}

fn pid(raw: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(raw).ok()?)
}

/// The guard: runs a command in a process group of its own, and ends the group when it is asked to, or when its parent has died.
pub mod guard {
    use std::process::Stdio;
    use std::time::Duration;

    use rustix::process::{
        Signal, getppid, kill_process, kill_process_group, set_child_subreaper,
        set_parent_process_death_signal,
    };
    use tokio::process::Command;
    use tokio::signal::unix::{SignalKind, signal};

    use super::pid;

    /// Between asking a group to end and killing it.
    const GRACE: Duration = Duration::from_secs(1);
    /// As a shell says that there is no such command, or that it cannot be run.
    const NOT_STARTED: i32 = 127;

    /// Runs these words; answers the exit code: the command's own, or 128 and the signal that ended it.
    pub async fn run(words: &[String]) -> i32 {
        let Some((program, arguments)) = words.split_first() else {
            return NOT_STARTED;
        };
        let (Ok(mut term), Ok(mut int)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            return NOT_STARTED;
        };
        let parent = getppid();
        // When the node dies, however it dies, we are asked to end.
        let bound = set_parent_process_death_signal(Some(Signal::TERM)).is_ok();
        // What the command leaves behind becomes ours, and is found.
        let reaper = rustix::process::getpid();
        set_child_subreaper(Some(reaper)).ok();
        if !bound || getppid() != parent {
            return NOT_STARTED;
        }
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::inherit())
            .process_group(0)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(err) => {
                eprintln!("{program}: {err}");
                return NOT_STARTED;
            }
        };
        let group = child.id().and_then(pid);
        let ended = tokio::select! {
            biased;
            ended = child.wait() => Some(ended),
            _ = term.recv() => None,
            _ = int.recv() => None,
        };
        if let Some(group) = group {
            // Whoever it left behind in its group goes with it.
            kill_process_group(group, Signal::TERM).ok();
            if ended.is_none() && tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                kill_process_group(group, Signal::KILL).ok();
            }
            kill_process_group(group, Signal::KILL).ok();
        }
        end_orphans();
        match ended {
            Some(Ok(status)) => code_of(status),
            Some(Err(_)) | None => 128 + 15,
        }
    }

    fn code_of(status: std::process::ExitStatus) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let signal = status.signal().map(|signal| 128 + signal);
        status.code().or(signal).unwrap_or(NOT_STARTED)
    }

    /// Those that left the group became our children when their parent died.
    fn end_orphans() {
        let me = std::process::id().to_string();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(raw) = name.parse::<u32>() else {
                continue;
            };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat
                .rsplit(')')
                .next()
                .and_then(|s| s.split_whitespace().nth(1));
            if parent == Some(&me)
                && let Some(orphan) = pid(raw)
            {
                kill_process(orphan, Signal::KILL).ok();
            }
        }
    }
}
