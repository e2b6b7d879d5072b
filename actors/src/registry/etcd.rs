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

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse};
use etcd_client::{Error as EtcdError, GetOptions, ResponseHeader, WatchOptions};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, StreamExt};
use tonic::Status as GrpcStatus;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{
    Backend, Kv, Lease, Listing, RegistryError, Stamp, Status, Timeouts, Txn, TxnOutcome,
    WatchBatch, WatchStream,
};

mod convert;
mod links;

pub use etcd_client::{Certificate, Identity, TlsOptions};
pub use links::Dial;

use convert::{batch, etcd_txn, kv, prefix_range, read_of, seconds_of, stamp};
use links::{Again, Failure, Links, classify};

/// Replies up to this are taken (tonic's default is 4 MiB); a page that is larger is asked for again, smaller.
const REPLY_BYTES: usize = 16 << 20;
/// Keys of a first page: any cluster of usual size in one round trip.
const FIRST_PAGE: i64 = 100;
/// Keys of a page at the most.
const LARGEST_PAGE: i64 = 1000;
/// Pages after the first are as many keys as are likely to fill this.
const PAGE_BYTES: usize = 2 << 20;
/// How often a listing begins anew because its revision was compacted between two pages.
const LISTINGS: usize = 3;
/// How a registry lets us in; by default in the clear, without a user.
#[derive(Clone, Default)]
pub struct Access {
    /// The certificates, for `https://` endpoints.
    pub tls: Option<TlsOptions>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

/// A registry that speaks etcd's protocol. Cheap to clone; clones share their connections.
///
/// Making one does nothing on the network and needs no runtime. Connections are made at the first call and are driven by
/// tasks of the runtime that made that call; when that runtime is gone, the next failing call makes new ones on its own.
#[derive(Clone)]
pub struct EtcdBackend {
    links: Arc<Links>,
}

impl EtcdBackend {
    /// A backend over `http://host:port` endpoints (the scheme may be left out).
    ///
    /// # Errors
    /// No endpoint, or one that is not a URL.
    pub fn new(endpoints: Vec<String>, timeouts: Timeouts) -> Result<Self, RegistryError> {
        Self::with_access(endpoints, timeouts, Access::default())
    }

    /// As [`EtcdBackend::new`], over TLS or as a user.
    ///
    /// # Errors
    /// No endpoint, one that is not a URL, or certificates that cannot be used.
    pub fn with_access(
        endpoints: Vec<String>,
        timeouts: Timeouts,
        access: Access,
    ) -> Result<Self, RegistryError> {
        let dial: Dial = Arc::new(Endpoint::connect_lazy);
        Self::build(&endpoints, timeouts, access, dial)
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
        Self::build(&endpoints, timeouts, Access::default(), dial)
    }

    fn build(
        endpoints: &[String],
        timeouts: Timeouts,
        access: Access,
        dial: Dial,
    ) -> Result<Self, RegistryError> {
        let links = Links::new(endpoints, timeouts, access, dial)?;
        Ok(Self {
            links: Arc::new(links),
        })
    }

    fn run<T, F>(
        &self,
        f: impl FnOnce(Arc<Links>) -> F,
    ) -> BoxFuture<'static, Result<T, RegistryError>>
    where
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
    {
        f(Arc::clone(&self.links)).boxed()
    }
}

impl Backend for EtcdBackend {
    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing, RegistryError>> {
        let prefix = prefix.as_bytes().to_vec();
        self.run(|links| async move { links.list(prefix).await })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'static, Result<TxnOutcome, RegistryError>> {
        self.run(|links| async move { links.txn(txn).await })
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'static, Result<Lease, RegistryError>> {
        self.run(move |links| async move { links.grant(ttl).await })
    }

    fn renew(&self, lease: i64) -> BoxFuture<'static, Result<Duration, RegistryError>> {
        self.run(move |links| async move { links.renew(lease).await })
    }

    fn remaining(&self, lease: i64) -> BoxFuture<'static, Result<Duration, RegistryError>> {
        self.run(move |links| async move { links.remaining(lease).await })
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'static, Result<(), RegistryError>> {
        self.run(move |links| async move { links.revoke(lease).await })
    }

    fn watch(
        &self,
        prefix: &str,
        revision: i64,
    ) -> BoxFuture<'static, Result<WatchStream, RegistryError>> {
        let prefix = prefix.as_bytes().to_vec();
        self.run(move |links| links.watch(prefix, revision))
    }

    fn compact(&self, revision: i64) -> BoxFuture<'static, Result<(), RegistryError>> {
        self.run(move |links| async move { links.compact(revision).await })
    }

    fn status(&self) -> BoxFuture<'static, Result<Status, RegistryError>> {
        self.run(|links| async move { links.status().await })
    }
}

impl Links {
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
        let (mut next, end) = prefix_range(prefix);
        let mut limit = FIRST_PAGE;
        let mut stamp = None;
        let mut kvs = Vec::new();
        loop {
            let revision = stamp.map_or(0, |stamp: Stamp| stamp.revision);
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
            let stamp = *stamp.get_or_insert(page.stamp);
            kvs.extend(page.kvs);
            if !page.more {
                return Ok(Listing { stamp, kvs });
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
            .await
            .map_err(|error| self.done_but_unread(error))?;
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

    /// A transaction whose reply was too large to read was done, so it was not refused.
    fn done_but_unread(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Refused { why } if is_too_large(&why) => self.unreachable(why),
            other => other,
        }
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
            let (links, mut watch) = running?;
            match watch.message().await {
                Ok(None) => None,
                Ok(Some(response)) => match batch(response) {
                    Ok(batch) => Some((Ok(batch), Some((links, watch)))),
                    Err(error) => Some((Err(error), None)),
                },
                Err(error) => {
                    let error = match classify(error, 0) {
                        Failure::Answered(error) => error,
                        Failure::NeverLeft(why) | Failure::Unknown(why) => links.unreachable(why),
                    };
                    Some((Err(error), None))
                }
            }
        })
    }

    async fn compact(&self, revision: i64) -> Result<(), RegistryError> {
        let compacted = self
            .call(Again::Always, 0, |link| async move {
                link.client.kv_client().compact(revision, None).await
            })
            .await;
        match compacted {
            Ok(_) | Err(RegistryError::Compacted { .. }) => Ok(()),
            Err(error) => Err(error),
        }
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

/// tonic's words on this side for a reply beyond [`REPLY_BYTES`]; a server says the same of requests, with its own limit.
fn is_too_large(why: &str) -> bool {
    why.contains(&format!("the limit is: {REPLY_BYTES} bytes"))
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
