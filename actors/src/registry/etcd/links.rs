//! Connections to several endpoints, one call over them, and what its failure means.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{
    Channel as ClientChannel, Client, ConnectOptions, Error as EtcdError, TlsOptions,
};
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Status as GrpcStatus};

use super::super::{RegistryError, Timeouts};
use super::Access;

/// How often each endpoint is tried in one call: the second time over a new connection, because the first may have been
/// standing since before the server restarted.
const ROUNDS: usize = 2;

/// Pings are at least this far apart. etcd takes three that come faster than every 5 s (`--grpc-keepalive-min-time`) for a
/// flood and closes the connection, with every quiet watch on it; measured with 1 s against 3.4.
const PINGS_APART: Duration = Duration::from_millis(5500);

/// Makes the channel of an endpoint; replaced in simulations, where the network is not the machine's.
pub type Dial = Arc<dyn Fn(&Endpoint) -> Channel + Send + Sync>;

pub(super) struct Links {
    slots: Vec<Slot>,
    /// The endpoint that worked last.
    current: AtomicUsize,
    names: String,
    timeouts: Timeouts,
    user: Option<(String, String)>,
    dial: Dial,
}

struct Slot {
    endpoint: Endpoint,
    link: Mutex<Option<Link>>,
}

/// A connection, or the promise of one.
#[derive(Clone)]
pub(super) struct Link {
    id: Arc<()>,
    pub(super) channel: Channel,
    pub(super) client: Client,
}

impl Slot {
    fn new(url: &str, timeouts: Timeouts, tls: Option<&TlsOptions>) -> Result<Self, RegistryError> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let full = if url.contains("://") {
            url.to_owned()
        } else {
            format!("{scheme}://{url}")
        };
        if full.starts_with("https://") != tls.is_some() {
            return Err(refused(format!(
                "endpoint {url} and the TLS settings contradict each other"
            )));
        }
        let bad = |e: tonic::transport::Error| refused(format!("endpoint {url}: {e}"));
        let mut endpoint = Endpoint::from_shared(full)
            .map_err(bad)?
            .connect_timeout(timeouts.connect)
            .http2_keep_alive_interval(timeouts.keep_alive.max(PINGS_APART))
            .keep_alive_timeout(timeouts.keep_alive)
            // Without a stream etcd allows no pings at all.
            .keep_alive_while_idle(false);
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(bad)?;
        }
        Ok(Self {
            endpoint,
            link: Mutex::new(None),
        })
    }

    async fn link(&self, dial: &Dial, user: Option<&(String, String)>) -> Result<Link, EtcdError> {
        if let Some(link) = self.held().clone() {
            return Ok(link);
        }
        let channel = dial(&self.endpoint);
        // Without a user this waits for nothing, with one for its token.
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let Some((name, password)) = user {
            options = options.with_user(name, password);
        }
        let client =
            Client::from_channel(ClientChannel::Tonic(channel.clone()), Some(options)).await?;
        let link = Link {
            id: Arc::new(()),
            channel,
            client,
        };
        // Two first calls may both have made one: the first stays.
        Ok(self.held().get_or_insert(link).clone())
    }

    /// A link that failed is not used again, unless another call has replaced it already.
    fn forget(&self, link: &Link) {
        let mut held = self.held();
        if held.as_ref().is_some_and(|h| Arc::ptr_eq(&h.id, &link.id)) {
            *held = None;
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a call may be sent a second time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// It does the same twice, or nothing.
    Always,
    /// It writes under a condition: only when it surely never left.
    IfNeverLeft,
}

/// Why one try failed.
pub(super) enum Failure {
    /// The registry answered; trying again would not help.
    Answered(RegistryError),
    /// No connection was made.
    NeverLeft(String),
    /// It may have arrived.
    Unknown(String),
}

impl Links {
    pub(super) fn new(
        endpoints: &[String],
        timeouts: Timeouts,
        access: Access,
        dial: Dial,
    ) -> Result<Self, RegistryError> {
        if endpoints.is_empty() {
            return Err(refused("no endpoint is configured"));
        }
        let slots = endpoints
            .iter()
            .map(|url| Slot::new(url, timeouts, access.tls.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            slots,
            current: AtomicUsize::new(0),
            names: endpoints.join(","),
            timeouts,
            user: access.user,
            dial,
        })
    }

    /// Tries the endpoints in turn, inside one time-out. `lease` is the one that "lease not found" would be about.
    pub(super) async fn call<T, F>(
        &self,
        again: Again,
        lease: i64,
        op: impl Fn(Link) -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let deadline = Instant::now() + self.timeouts.request;
        let first = self.current.load(Ordering::Relaxed);
        let mut last = String::from("no time left");
        for n in 0..self.slots.len() * ROUNDS {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let at = (first + n) % self.slots.len();
            let share = self.share(again, left, n);
            match self.try_once(&self.slots[at], share, lease, &op).await {
                Ok(answer) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Failure::Answered(error)) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Err(error);
                }
                Err(Failure::NeverLeft(why)) => last = why,
                Err(Failure::Unknown(why)) => {
                    last = why;
                    if again == Again::IfNeverLeft {
                        // The caller sends it again; not to the one that has just failed.
                        let next = (at + 1) % self.slots.len();
                        self.current.store(next, Ordering::Relaxed);
                        break;
                    }
                }
            }
        }
        Err(self.unreachable(last))
    }

    /// How long the n-th try may take: what can be tried elsewhere leaves time for those not tried yet.
    fn share(&self, again: Again, left: Duration, n: usize) -> Duration {
        let untried = self.slots.len().saturating_sub(n).max(1);
        match again {
            Again::Always => left / u32::try_from(untried).unwrap_or(u32::MAX),
            Again::IfNeverLeft => left,
        }
    }

    async fn try_once<T, F>(
        &self,
        slot: &Slot,
        share: Duration,
        lease: i64,
        op: impl Fn(Link) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let link = match timeout(share, slot.link(&self.dial, self.user.as_ref())).await {
            Ok(Ok(link)) => link,
            // Whatever became of our greeting, the call itself was not made.
            Ok(Err(error)) => {
                return Err(match classify(error, lease) {
                    Failure::Unknown(why) => Failure::NeverLeft(why),
                    other => other,
                });
            }
            Err(_) => return Err(Failure::NeverLeft(format!("no token within {share:?}"))),
        };
        let failure = match timeout(share, op(link.clone())).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => classify(error, lease),
            Err(_) => Failure::Unknown(format!("no answer within {share:?}")),
        };
        if !matches!(failure, Failure::Answered(_)) {
            slot.forget(&link);
        }
        Err(failure)
    }

    pub(super) fn unreachable(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Unreachable {
            endpoints: self.names.clone(),
            why: why.into(),
        }
    }
}

/// What an error of the client crate means for the caller.
pub(super) fn classify(error: EtcdError, lease: i64) -> Failure {
    let status = match error {
        EtcdError::GRpcStatus(status) => status,
        other => return Failure::Unknown(other.to_string()),
    };
    let why = describe(&status);
    match status.code() {
        Code::NotFound if why.contains("lease not found") => {
            Failure::Answered(RegistryError::LeaseLost { id: lease })
        }
        // The oldest revision is not told here; a listing begins anew anyway.
        Code::OutOfRange if why.contains("has been compacted") => {
            Failure::Answered(RegistryError::Compacted { oldest: 0 })
        }
        // Tokens end, also with a restart of the server: the next try asks for another.
        Code::Unauthenticated if why.contains("invalid auth token") => Failure::NeverLeft(why),
        Code::PermissionDenied => Failure::Answered(refused(format!(
            "{why}: the user may not do this; its role needs to read and write the cluster's prefix"
        ))),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Unauthenticated
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => Failure::Answered(RegistryError::Refused { why }),
        _ if never_connected(&status) => Failure::NeverLeft(why),
        _ => Failure::Unknown(why),
    }
}

/// Whether the connection itself could not be made, so that nothing was sent.
fn never_connected(status: &GrpcStatus) -> bool {
    causes(status).any(|cause| cause.is::<ConnectError>())
}

/// The status with the last cause, which is the one a person understands ("connection refused").
fn describe(status: &GrpcStatus) -> String {
    match causes(status).last().map(ToString::to_string) {
        Some(root) if !status.message().contains(&root) => format!("{}: {root}", status.message()),
        _ => status.message().to_owned(),
    }
}

fn causes<'a>(
    status: &'a GrpcStatus,
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> + use<'a> {
    let first: Option<&(dyn StdError + 'static)> = status.source();
    std::iter::successors(first, |cause: &&(dyn StdError + 'static)| {
        StdError::source(*cause)
    })
}

pub(super) fn refused(why: impl Into<String>) -> RegistryError {
    RegistryError::Refused { why: why.into() }
}
