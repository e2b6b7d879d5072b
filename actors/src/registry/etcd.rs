//! The backend that talks to etcd, or to anything that speaks its protocol, such as the embedded registry.
//!
//! What it adds to the client crate, each for a measured reason:
//!
//! * **Several endpoints.** The crate balances over all of them, so with one dead a third of the calls fail. Here each call
//!   goes to the endpoint that worked last and moves on when that fails, at most two rounds, inside one time-out.
//! * **Unknown outcomes.** A read, a renewal or a revocation is tried again on any failure of the transport. A transaction
//!   that writes is tried again only when no connection was made, so it surely never left; otherwise the caller is told
//!   [`RegistryError::Unreachable`] and re-sends its *condition*, which is safe.
//! * **Time-outs on everything.** A frozen server accepts connections and never answers.
//! * **No stream is kept.** Watches and keep-alive streams of a client never recover: each call makes a new one.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::proto::{
    PbKeyValue, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbTxnOpResponse,
};
use etcd_client::{
    Channel as ClientChannel, Client, CompareOp, ConnectOptions, Error as EtcdError, GetOptions,
    ResponseHeader, TlsOptions, WatchOptions,
};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, timeout};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Status as GrpcStatus};
use tonic_prost::ProstCodec;

use super::{
    Backend, Change, Compare, Kv, Lease, Listing, Op, RegistryError, Stamp, Status, Timeouts, Txn,
    TxnOutcome, WatchBatch, WatchStream,
};

/// Replies up to this are taken (tonic's default is 4 MiB); a page that is larger is asked for again, smaller.
const REPLY_BYTES: usize = 16 << 20;
/// Keys of a first page: any cluster of usual size in one round trip.
const FIRST_PAGE: i64 = 100;
/// Keys of a page at the most.
const LARGEST_PAGE: i64 = 1000;
/// Pages after the first are as many keys as are likely to fill this.
const PAGE_BYTES: usize = 2 << 20;
/// How often each endpoint is tried in one call: the second time over a new connection, because the first may have been
/// standing since before the server restarted.
const ROUNDS: usize = 2;
/// How often a listing begins anew because its revision was compacted between two pages.
const LISTINGS: usize = 3;

/// A registry that speaks etcd's protocol. Cheap to clone; clones share their connections.
///
/// Making one does nothing on the network and needs no runtime. Connections are made at the first call and are driven by
/// tasks of the runtime that made that call; when that runtime is gone, the next failing call makes new ones on its own.
#[derive(Clone)]
pub struct EtcdBackend {
    inner: Arc<Inner>,
}

/// Makes the channel of an endpoint; replaced in simulations, where the network is not the machine's.
pub type Dial = Arc<dyn Fn(&Endpoint) -> Channel + Send + Sync>;

struct Inner {
    slots: Vec<Slot>,
    /// The endpoint that worked last.
    current: AtomicUsize,
    names: String,
    timeouts: Timeouts,
    dial: Dial,
}

struct Slot {
    endpoint: Endpoint,
    link: Mutex<Option<Link>>,
}

/// A connection, or the promise of one.
#[derive(Clone)]
struct Link {
    id: Arc<()>,
    channel: Channel,
    client: Client,
}

impl EtcdBackend {
    /// A backend over `http://host:port` endpoints (the scheme may be left out).
    ///
    /// # Errors
    /// No endpoint, or one that is not a URL.
    pub fn new(endpoints: Vec<String>, timeouts: Timeouts) -> Result<Self, RegistryError> {
        Self::build(&endpoints, timeouts, None, Arc::new(Endpoint::connect_lazy))
    }

    /// As [`EtcdBackend::new`], over TLS.
    ///
    /// # Errors
    /// No endpoint, one that is not a URL, or certificates that cannot be used.
    pub fn with_tls(
        endpoints: Vec<String>,
        timeouts: Timeouts,
        tls: TlsOptions,
    ) -> Result<Self, RegistryError> {
        let dial: Dial = Arc::new(Endpoint::connect_lazy);
        Self::build(&endpoints, timeouts, Some(&tls), dial)
    }

    /// As [`EtcdBackend::new`], with another way to connect.
    ///
    /// # Errors
    /// No endpoint, or one that is not a URL.
    pub fn with_dial(
        endpoints: Vec<String>,
        timeouts: Timeouts,
        dial: Dial,
    ) -> Result<Self, RegistryError> {
        Self::build(&endpoints, timeouts, None, dial)
    }

    fn build(
        endpoints: &[String],
        timeouts: Timeouts,
        tls: Option<&TlsOptions>,
        dial: Dial,
    ) -> Result<Self, RegistryError> {
        if endpoints.is_empty() {
            return Err(refused("no endpoint is configured"));
        }
        let slots = endpoints
            .iter()
            .map(|url| Slot::new(url, timeouts, tls))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            inner: Arc::new(Inner {
                slots,
                current: AtomicUsize::new(0),
                names: endpoints.join(","),
                timeouts,
                dial,
            }),
        })
    }

    fn run<T, F>(
        &self,
        f: impl FnOnce(Arc<Inner>) -> F,
    ) -> BoxFuture<'static, Result<T, RegistryError>>
    where
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
    {
        f(Arc::clone(&self.inner)).boxed()
    }
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
            .http2_keep_alive_interval(timeouts.keep_alive)
            .keep_alive_timeout(timeouts.keep_alive)
            .keep_alive_while_idle(false);
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(bad)?;
        }
        Ok(Self {
            endpoint,
            link: Mutex::new(None),
        })
    }

    async fn link(&self, dial: &Dial) -> Result<Link, EtcdError> {
        if let Some(link) = self.held().clone() {
            return Ok(link);
        }
        let channel = dial(&self.endpoint);
        // Without a user this does not wait for anything.
        let options = ConnectOptions::new().with_require_leader(true);
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
enum Again {
    /// It does the same twice, or nothing.
    Always,
    /// It writes under a condition: only when it surely never left.
    IfNeverLeft,
}

/// Why one try failed.
enum Failure {
    /// The registry answered; trying again would not help.
    Answered(RegistryError),
    /// No connection was made.
    NeverLeft(String),
    /// It may have arrived.
    Unknown(String),
}

impl Inner {
    /// Tries the endpoints in turn, inside one time-out.
    async fn call<T, F>(
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
        let tries = self.slots.len() * ROUNDS;
        let mut last = String::from("no time left");
        for n in 0..tries {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let at = (first + n) % self.slots.len();
            let share = match again {
                Again::Always => {
                    left / u32::try_from(self.slots.len() - n.min(self.slots.len() - 1))
                        .unwrap_or(1)
                }
                Again::IfNeverLeft => left,
            };
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
                        self.current
                            .store((at + 1) % self.slots.len(), Ordering::Relaxed);
                        break;
                    }
                }
            }
        }
        Err(self.unreachable(last))
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
        let link = slot
            .link(&self.dial)
            .await
            .map_err(|e| Failure::NeverLeft(e.to_string()))?;
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

    fn unreachable(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Unreachable {
            endpoints: self.names.clone(),
            why: why.into(),
        }
    }

    async fn list(&self, prefix: Vec<u8>) -> Result<Listing, RegistryError> {
        let mut last = None;
        for _ in 0..LISTINGS {
            match self.list_once(&prefix).await {
                Err(error @ RegistryError::Compacted { .. }) => last = Some(error),
                settled => return settled,
            }
        }
        Err(last.unwrap_or_else(|| self.unreachable("no listing was made")))
    }

    /// All pages at the revision of the first.
    async fn list_once(&self, prefix: &[u8]) -> Result<Listing, RegistryError> {
        let (first, end) = prefix_range(prefix);
        let mut next = first;
        let mut limit = FIRST_PAGE;
        let mut listing: Option<Listing> = None;
        loop {
            let revision = listing.as_ref().map_or(0, |l| l.stamp.revision);
            let page = match self.page(&next, &end, revision, limit).await {
                Err(RegistryError::Refused { why }) if limit > 1 && is_too_large(&why) => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                settled => settled?,
            };
            limit = next_limit(&page.kvs);
            if let Some(last) = page.kvs.last() {
                next = after(&last.key);
            }
            let listing = listing.get_or_insert_with(|| Listing {
                stamp: page.stamp,
                kvs: Vec::new(),
            });
            listing.kvs.extend(page.kvs);
            if !page.more {
                return Ok(listing.clone());
            }
        }
    }

    async fn page(
        &self,
        from: &[u8],
        end: &[u8],
        revision: i64,
        limit: i64,
    ) -> Result<Page, RegistryError> {
        let options = GetOptions::new()
            .with_range(end)
            .with_limit(limit)
            .with_revision(revision);
        let mut response = self
            .call(Again::Always, 0, |link| {
                let (from, options) = (from.to_vec(), options.clone());
                async move {
                    let kv = link.client.kv_client();
                    let mut kv = kv.max_decoding_message_size(REPLY_BYTES);
                    kv.get(from, Some(options)).await
                }
            })
            .await?;
        let kvs = std::mem::take(&mut response.0.kvs);
        Ok(Page {
            stamp: stamp(response.header()),
            more: response.more() && !kvs.is_empty(),
            kvs: kvs.into_iter().map(kv).collect::<Result<_, _>>()?,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, RegistryError> {
        let lease = txn.lease();
        let again = if txn.writes() {
            Again::IfNeverLeft
        } else {
            Again::Always
        };
        let request = etcd_txn(txn);
        let response = self
            .call(again, lease, |link| {
                let request = request.clone();
                async move {
                    let kv = link.client.kv_client();
                    kv.max_decoding_message_size(REPLY_BYTES).txn(request).await
                }
            })
            .await?;
        let stamp = stamp(response.header());
        let succeeded = response.succeeded();
        let reads = response.0.responses.into_iter();
        Ok(TxnOutcome {
            succeeded,
            stamp,
            reads: reads
                .map(|op| read_of(op.response))
                .collect::<Result<_, _>>()?,
        })
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, RegistryError> {
        // Whole seconds, rounded up. Sent twice it leaves a lease without keys behind, which ends by itself.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let granted = self
            .call(Again::Always, 0, |link| async move {
                link.client.lease_client().grant(seconds, None).await
            })
            .await?;
        Ok(Lease {
            id: granted.id(),
            ttl: seconds_of(granted.ttl()),
        })
    }

    async fn renew(&self, id: i64) -> Result<Duration, RegistryError> {
        let ttl = self
            .call(Again::Always, id, |link| keep_alive(link.channel, id))
            .await?;
        if ttl <= 0 {
            return Err(RegistryError::LeaseLost { id });
        }
        Ok(seconds_of(ttl))
    }

    async fn remaining(&self, id: i64) -> Result<Duration, RegistryError> {
        let lease = self
            .call(Again::Always, id, |link| async move {
                link.client.lease_client().time_to_live(id, None).await
            })
            .await?;
        if lease.ttl() < 0 {
            return Err(RegistryError::LeaseLost { id });
        }
        Ok(seconds_of(lease.ttl()))
    }

    async fn revoke(&self, id: i64) -> Result<(), RegistryError> {
        let revoked = self
            .call(Again::Always, id, |link| async move {
                link.client.lease_client().revoke(id).await
            })
            .await;
        match revoked {
            Ok(_) | Err(RegistryError::LeaseLost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn watch(
        self: Arc<Self>,
        prefix: Vec<u8>,
        revision: i64,
    ) -> Result<WatchStream, RegistryError> {
        let (first, end) = prefix_range(&prefix);
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(revision)
            .with_progress_notify();
        let (watch, confirmed) = self
            .call(Again::Always, 0, |link| {
                let (first, options) = (first.clone(), options.clone());
                async move {
                    let watch = link.client.watch_client();
                    let mut watch = watch.max_decoding_message_size(REPLY_BYTES);
                    let mut stream = watch.watch(first, Some(options)).await?;
                    let confirmed = stream.message().await?;
                    Ok((stream, confirmed))
                }
            })
            .await?;
        let confirmed = confirmed.ok_or_else(|| self.unreachable("the watch was not confirmed"))?;
        let early = batch(confirmed)?;
        let early = (!early.changes.is_empty()).then_some(early);
        Ok(stream::iter(early.map(Ok))
            .chain(self.follow(watch))
            .boxed())
    }

    /// The watch after its confirmation; an error is its last word.
    fn follow(
        self: Arc<Self>,
        watch: etcd_client::WatchStream,
    ) -> impl stream::Stream<Item = Result<WatchBatch, RegistryError>> + Send {
        stream::unfold(Some((self, watch)), |running| async move {
            let (inner, mut watch) = running?;
            match watch.message().await {
                Ok(None) => None,
                Ok(Some(response)) => match batch(response) {
                    Ok(batch) => Some((Ok(batch), Some((inner, watch)))),
                    Err(error) => Some((Err(error), None)),
                },
                Err(error) => {
                    let error = match classify(error, 0) {
                        Failure::Answered(error) => error,
                        Failure::NeverLeft(why) | Failure::Unknown(why) => inner.unreachable(why),
                    };
                    Some((Err(error), None))
                }
            }
        })
    }

    async fn status(&self) -> Result<Status, RegistryError> {
        let status = self
            .call(Again::Always, 0, |link| async move {
                link.client.maintenance_client().status().await
            })
            .await?;
        Ok(Status {
            version: status.version().to_owned(),
            db_size: u64::try_from(status.db_size()).unwrap_or(0),
            revision: status.header().map_or(0, ResponseHeader::revision),
        })
    }
}

impl Backend for EtcdBackend {
    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing, RegistryError>> {
        let prefix = prefix.as_bytes().to_vec();
        self.run(|inner| async move { inner.list(prefix).await })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'static, Result<TxnOutcome, RegistryError>> {
        self.run(|inner| async move { inner.txn(txn).await })
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'static, Result<Lease, RegistryError>> {
        self.run(move |inner| async move { inner.grant(ttl).await })
    }

    fn renew(&self, lease: i64) -> BoxFuture<'static, Result<Duration, RegistryError>> {
        self.run(move |inner| async move { inner.renew(lease).await })
    }

    fn remaining(&self, lease: i64) -> BoxFuture<'static, Result<Duration, RegistryError>> {
        self.run(move |inner| async move { inner.remaining(lease).await })
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'static, Result<(), RegistryError>> {
        self.run(move |inner| async move { inner.revoke(lease).await })
    }

    fn watch(
        &self,
        prefix: &str,
        revision: i64,
    ) -> BoxFuture<'static, Result<WatchStream, RegistryError>> {
        let prefix = prefix.as_bytes().to_vec();
        self.run(move |inner| inner.watch(prefix, revision))
    }

    fn status(&self) -> BoxFuture<'static, Result<Status, RegistryError>> {
        self.run(|inner| async move { inner.status().await })
    }
}

struct Page {
    stamp: Stamp,
    kvs: Vec<Kv>,
    more: bool,
}

/// One renewal over a stream of its own. By hand, because the client crate swallows the time to live of the first answer.
async fn keep_alive(channel: Channel, id: i64) -> Result<i64, EtcdError> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|e| GrpcStatus::from_error(Box::new(e)))?;
    let requests = stream::iter([PbLeaseKeepAliveRequest { id }]);
    let codec = ProstCodec::<PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse>::default();
    let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
    let answers = grpc
        .streaming(tonic::Request::new(requests), path, codec)
        .await?;
    match answers.into_inner().message().await? {
        Some(answer) => Ok(answer.ttl),
        None => {
            Err(GrpcStatus::unavailable("the keep-alive stream ended without an answer").into())
        }
    }
}

/// What an error of the client crate means for the caller.
fn classify(error: EtcdError, lease: i64) -> Failure {
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
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
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

fn refused(why: impl Into<String>) -> RegistryError {
    RegistryError::Refused { why: why.into() }
}

/// tonic's words for a reply beyond [`REPLY_BYTES`].
fn is_too_large(why: &str) -> bool {
    why.contains("decoded message length too large")
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn stamp(header: Option<&ResponseHeader>) -> Stamp {
    Stamp {
        cluster_id: header.map_or(0, ResponseHeader::cluster_id),
        revision: header.map_or(0, ResponseHeader::revision),
    }
}

/// First key and end of all that starts with `prefix`; an empty one is everything.
fn prefix_range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    if prefix.is_empty() {
        return (vec![0], vec![0]);
    }
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (prefix.to_vec(), end);
        }
    }
    (prefix.to_vec(), vec![0])
}

/// The key after `key`.
fn after(key: &str) -> Vec<u8> {
    let mut next = key.as_bytes().to_vec();
    next.push(0);
    next
}

/// As many keys as are likely to fill [`PAGE_BYTES`].
fn next_limit(page: &[Kv]) -> i64 {
    let bytes: usize = page.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
    let mean = bytes / page.len().max(1) + 1;
    let keys = i64::try_from(PAGE_BYTES / mean).unwrap_or(LARGEST_PAGE);
    keys.clamp(1, LARGEST_PAGE)
}

fn kv(pb: PbKeyValue) -> Result<Kv, RegistryError> {
    Ok(Kv {
        key: text(pb.key)?,
        value: pb.value.into(),
        create_revision: pb.create_revision,
        mod_revision: pb.mod_revision,
        version: pb.version,
        lease: pb.lease,
    })
}

fn text(key: Vec<u8>) -> Result<String, RegistryError> {
    String::from_utf8(key).map_err(|e| refused(format!("a key is not UTF-8: {e}")))
}

fn batch(response: etcd_client::WatchResponse) -> Result<WatchBatch, RegistryError> {
    if response.canceled() {
        return Err(match response.compact_revision() {
            0 => refused(format!("watch cancelled: {}", response.cancel_reason())),
            oldest => RegistryError::Compacted { oldest },
        });
    }
    Ok(WatchBatch {
        stamp: stamp(response.header()),
        changes: response
            .0
            .events
            .into_iter()
            .filter_map(|event| event.kv.map(|kv| (event.r#type, kv)))
            .map(|(kind, pb)| change(kind, pb))
            .collect::<Result<_, _>>()?,
    })
}

fn change(kind: i32, pb: PbKeyValue) -> Result<Change, RegistryError> {
    const DELETE: i32 = etcd_client::EventType::Delete as i32;
    if kind == DELETE {
        return Ok(Change::Delete {
            revision: pb.mod_revision,
            key: text(pb.key)?,
        });
    }
    Ok(Change::Put(kv(pb)?))
}

fn read_of(response: Option<PbTxnOpResponse>) -> Result<Vec<Kv>, RegistryError> {
    match response {
        Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.into_iter().map(kv).collect(),
        _ => Ok(Vec::new()),
    }
}

impl Txn {
    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.then.iter().chain(&self.otherwise)
    }

    fn writes(&self) -> bool {
        self.ops().any(|op| !matches!(op, Op::Get(_) | Op::List(_)))
    }

    /// The lease it puts under: a node's own, so there is one at most.
    fn lease(&self) -> i64 {
        let leases = self.ops().filter_map(|op| match op {
            Op::Put { lease, .. } if *lease != 0 => Some(*lease),
            _ => None,
        });
        leases.last().unwrap_or(0)
    }
}

fn etcd_txn(txn: Txn) -> etcd_client::Txn {
    let ops = |ops: Vec<Op>| ops.into_iter().map(etcd_op).collect::<Vec<_>>();
    let when: Vec<_> = txn.when.into_iter().map(etcd_compare).collect();
    etcd_client::Txn::new()
        .when(when)
        .and_then(ops(txn.then))
        .or_else(ops(txn.otherwise))
}

fn etcd_compare(compare: Compare) -> etcd_client::Compare {
    match compare {
        Compare::Created(key, revision) => {
            etcd_client::Compare::create_revision(key, CompareOp::Equal, revision)
        }
        Compare::Modified(key, revision) => {
            etcd_client::Compare::mod_revision(key, CompareOp::Equal, revision)
        }
    }
}

fn etcd_op(op: Op) -> etcd_client::TxnOp {
    use etcd_client::{DeleteOptions, PutOptions, TxnOp};
    match op {
        Op::Put { key, value, lease } => {
            TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
        }
        Op::Delete(key) => TxnOp::delete(key, None),
        Op::DeletePrefix(prefix) => {
            let (first, end) = prefix_range(prefix.as_bytes());
            TxnOp::delete(first, Some(DeleteOptions::new().with_range(end)))
        }
        Op::Get(key) => TxnOp::get(key, None),
        Op::List(prefix) => {
            let (first, end) = prefix_range(prefix.as_bytes());
            TxnOp::get(first, Some(GetOptions::new().with_range(end)))
        }
    }
}
