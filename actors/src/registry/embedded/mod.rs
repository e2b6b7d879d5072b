//! The embedded registry: a server inside the binary that speaks etcd's v3 gRPC.
//!
//! It is for a cluster that does without etcd: one node (or a small process of its own) carries it, all others use it
//! through the same [`super::etcd::EtcdBackend`] as a real etcd, and `etcdctl` works on it. It passes the same contract.
//! (`etcdctl endpoint status` needs its `--endpoints` without `http://`: with it, etcdctl 3.4 sends the whole URL as
//! HTTP/2's authority, and the HTTP library here takes that for a protocol error.)
//!
//! What it promises: etcd's semantics of KV (multi-version), Lease and Watch, with etcd's codes and words; one writer at
//! a time, so everything is linearizable; a lease never ends because the *server* slept. What it does **not**: survive
//! its process unless it has a data directory (in memory it says so by a new cluster id and by revisions that start at unix
//! microseconds, so they keep rising over restarts), replicate, know users: whoever reaches it, or has a certificate of the
//! authority that it asks for, may do everything. With a data directory (`disk`) every write is
//! synced before it is answered or seen, and a restart is the same registry: same cluster id, same keys, leases begun anew.
//!
//! ```text
//! kv · leases · watch · status   the gRPC services
//!          │ shared              one lock, the clock, the news
//!          ▼
//!          │ disk                what is to be synced before it is answered
//! ✎ platter trouble          a disk and an ill will, for simulations
//! ● store  txn  check  lease  watches  range  error  pure, told the time
//! ```
//!
//! Bounds: history by revisions and bytes ([`Limits`]); live bytes; a request by etcd's 1.5 MiB; a transaction by 128
//! operations; leases and watches by number; responses under way per watch stream by 8. **A slow watcher** costs
//! nothing: it reads from the history when it can, and when the history has moved past it, it is cancelled as compacted.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_client::proto::{
    PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer,
};
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tonic::transport::ServerTlsConfig;
use tonic::transport::server::{Connected, Router, TcpIncoming};
use tonic::transport::{Certificate, Identity};

mod check;
mod convert;
#[cfg(feature = "testkit")]
pub mod direct;
mod disk;
mod error;
#[cfg(feature = "testkit")]
pub(crate) mod fuzz;
mod kv;
mod lease;
mod leases;
#[cfg(test)]
mod model;
#[cfg(feature = "testkit")]
mod platter;
mod range;
mod shared;
mod status;
mod store;
#[cfg(test)]
mod tests;
pub mod trouble;
mod txn;
mod watch;
mod watches;

pub use disk::DiskError;
#[cfg(feature = "testkit")]
pub use platter::Platter;
pub use store::Limits;

use shared::Shared;

/// Requests may be this much larger than what is accepted, so that a refusal can be in etcd's words (etcd's
/// `grpcOverheadBytes`).
const GRPC_OVERHEAD: usize = 512 << 10;
/// A client that says nothing for this long is pinged, and given up after as much again.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Clients have this long to take their leave when the server ends; a frozen one would keep it for ever.
const GRACE: Duration = Duration::from_secs(2);
/// A TLS handshake must be done within this.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Calls under way on one connection.
const STREAMS_PER_CONNECTION: u32 = 4096;

/// What an embedded registry starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The revision before the first write. Must be above all that an earlier life of this registry gave out.
    pub start_revision: i64,
    /// Tells this life of the registry from others; not 0.
    pub cluster_id: u64,
    /// How often a watch that asked for it is told that nothing happened.
    pub progress: Duration,
    /// Bounds of the store.
    pub limits: Limits,
}

impl Config {
    /// A new life: revisions from unix microseconds (milliseconds would fall behind above 1,000 writes a second), a random
    /// cluster id, a progress notice every 5 s.
    pub fn new_life() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = since.map_or(1, |since| since.as_micros());
        Self {
            start_revision: i64::try_from(micros).unwrap_or(1),
            cluster_id: rand::random::<u64>().max(1),
            progress: Duration::from_secs(5),
            limits: Limits::default(),
        }
    }
}

/// By what the server shows itself, and whom it lets in. PEM.
pub struct Tls {
    /// Its certificate, with those between it and the authority's.
    pub certificate: Vec<u8>,
    /// The key of it.
    pub key: Vec<u8>,
    /// The authority of those who may come in; without one everybody may.
    pub client_authority: Option<Vec<u8>>,
}

/// An embedded registry that has its address but answers nobody yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    service: Service,
}

/// Why a server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be taken.
    #[error("cannot listen on {0}: {1}")]
    Address(SocketAddr, io::Error),
    /// The data directory cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Server {
    /// As [`Server::bind`], with its data in this directory, which is made when it is not there.
    ///
    /// # Errors
    /// The address cannot be taken, or the data cannot be used.
    pub async fn bind_durable(addr: SocketAddr, dir: &Path) -> Result<Self, BindError> {
        let at = |why| BindError::Address(addr, why);
        let listener = TcpListener::bind(addr).await.map_err(at)?;
        let address = listener.local_addr().map_err(at)?;
        let service = Service::open(Config::new_life(), dir, Some(address))?;
        Ok(Self {
            listener,
            address,
            service,
        })
    }

    /// Takes the address; port 0 takes a free one.
    ///
    /// # Errors
    /// The address cannot be taken.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        Self::bind_with(addr, Config::new_life()).await
    }

    /// As [`Server::bind`], with a chosen start.
    ///
    /// # Errors
    /// The address cannot be taken.
    pub async fn bind_with(addr: SocketAddr, config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            service: Service::new(config, Some(address)),
        })
    }

    /// The same, over TLS.
    ///
    /// # Errors
    /// What cannot be used, in words.
    pub fn over_tls(mut self, tls: Tls) -> Result<Self, String> {
        let identity = Identity::from_pem(tls.certificate, tls.key);
        let config = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE);
        let config = match tls.client_authority {
            Some(pem) => config.client_ca_root(Certificate::from_pem(pem)),
            None => config,
        };
        let tried = tonic::transport::Server::builder().tls_config(config.clone());
        tried.map_err(|why| in_full(&why))?;
        self.service.tls = Some(config);
        Ok(self)
    }

    /// Where it will answer.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` is done; then ends all streams, lets the calls under way finish and returns. Dropped, it
    /// stops too, without waiting.
    ///
    /// # Errors
    /// The listener failed for good.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> io::Result<()> {
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        self.service.serve(incoming, shutdown).await
    }

    /// Serves in a task of its own until the handle is stopped or dropped. For tests, and for a node that carries the
    /// registry beside its other work.
    pub fn spawn(self) -> Running {
        let address = self.address;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(self.serve(async {
            // A dropped handle stops the server as well.
            stopped.await.ok();
        }));
        Running {
            address,
            stop: Some(stop),
            task,
        }
    }
}

/// A server that runs in a task.
pub struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Running {
    /// Where it answers.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Ends it and waits until it has ended.
    ///
    /// # Errors
    /// What ended it before, if anything.
    pub async fn stop(mut self) -> io::Result<()> {
        drop(self.stop.take());
        match self.task.await {
            Ok(served) => served,
            Err(join) => Err(io::Error::other(join)),
        }
    }
}

/// The registry without a socket: for a transport other than TCP, such as a simulated network.
pub struct Service {
    shared: Arc<Shared>,
    address: Option<SocketAddr>,
    tls: Option<ServerTlsConfig>,
}

impl Service {
    /// A new, empty store. `address` is what it tells clients that ask for its members.
    pub fn new(config: Config, address: Option<SocketAddr>) -> Self {
        let now = tokio::time::Instant::now().into_std();
        let store = store::Store::new(config.start_revision, config.limits, now);
        let shared = Shared::new(store, None, config.cluster_id, config.progress);
        Self {
            shared: Arc::new(shared),
            address,
            tls: None,
        }
    }

    /// The store in this directory. What `config` says of revision and cluster id is for one that begins here.
    ///
    /// # Errors
    /// The data cannot be used.
    pub fn open(
        config: Config,
        dir: &Path,
        address: Option<SocketAddr>,
    ) -> Result<Self, DiskError> {
        let (disk, found) = disk::Disk::open(dir, config.cluster_id, config.start_revision)?;
        let cluster_id = found.cluster_id;
        let now = tokio::time::Instant::now().into_std();
        let store = store::Store::restored(found, config.limits, now);
        let shared = Shared::new(store, Some(Box::new(disk)), cluster_id, config.progress);
        Ok(Self {
            shared: Arc::new(shared),
            address,
            tls: None,
        })
    }

    /// The store on a simulated disk; as with [`Service::open`], what is there counts.
    #[cfg(feature = "testkit")]
    pub fn on_platter(config: Config, platter: &Platter) -> Self {
        let found = platter.found();
        let cluster_id = found.cluster_id;
        let now = tokio::time::Instant::now().into_std();
        let store = store::Store::restored(found, config.limits, now);
        let disk = Some(Box::new(platter.spin()) as _);
        let shared = Shared::new(store, disk, cluster_id, config.progress);
        Self {
            shared: Arc::new(shared),
            address: None,
            tls: None,
        }
    }

    /// Serves what comes in until `shutdown`.
    ///
    /// # Errors
    /// The source of connections failed for good.
    pub async fn serve<I, C, E>(
        self,
        incoming: I,
        shutdown: impl Future<Output = ()> + Send,
    ) -> io::Result<()>
    where
        I: Stream<Item = Result<C, E>> + Send,
        C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        C::ConnectInfo: Clone + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let shared = Arc::clone(&self.shared);
        // Connections are tasks that outlive this future; when it is dropped, their streams end.
        let _close_on_drop = CloseOnDrop(Arc::clone(&shared));
        let ending = async {
            shutdown.await;
            shared.close();
        };
        let too_late = async {
            shared.closed().await;
            tokio::time::sleep(GRACE).await;
        };
        let router = self.router().map_err(io::Error::other)?;
        tokio::select! {
            biased;
            served = router.serve_with_incoming_shutdown(incoming, ending) => served.map_err(io::Error::other),
            () = too_late => Ok(()),
            why = self.shared.broken() => Err(io::Error::other(why)),
            () = self.shared.keep_time() => Ok(()),
        }
    }

    fn router(&self) -> Result<Router, tonic::transport::Error> {
        let limit = convert::MAX_REQUEST_BYTES + GRPC_OVERHEAD;
        let shared = || Arc::clone(&self.shared);
        let status = || status::StatusService {
            shared: shared(),
            address: self.address,
        };
        let mut server = tonic::transport::Server::builder();
        if let Some(tls) = &self.tls {
            server = server.tls_config(tls.clone())?;
        }
        Ok(server
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_service(PbKvServer::new(kv::KvService(shared())).max_decoding_message_size(limit))
            .add_service(PbLeaseServer::new(leases::LeaseService(shared())))
            .add_service(PbWatchServer::new(watch::WatchService(shared())))
            .add_service(PbMaintenanceServer::new(status()))
            .add_service(PbClusterServer::new(status())))
    }
}

/// tonic's errors say what happened only in their causes.
fn in_full(why: &dyn std::error::Error) -> String {
    let mut words = why.to_string();
    let mut source = why.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
