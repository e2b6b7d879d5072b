//! etcd's Watch service: one task per client stream, which sleeps until the client speaks, the store changes, a progress
//! notice is due or the server closes.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::shared::Shared;
use super::watches::{Notice, WatchRequest, Watches};

/// Responses on their way to a client. When it does not take them the task waits here and the watch falls behind in the
/// store's log, which is what bounds it.
const RESPONSES: usize = 8;

pub(super) struct WatchService(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl PbWatchService for WatchService {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, stream) = mpsc::channel(RESPONSES);
        let session = Session {
            shared: Arc::clone(&self.0),
            watches: Watches::default(),
            responses,
        };
        let requests = request.into_inner();
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = shared.closed() => {}
                _ = session.run(requests) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// The client no longer listens.
struct Gone;

struct Session {
    shared: Arc<Shared>,
    watches: Watches,
    responses: mpsc::Sender<Result<PbWatchResponse, Status>>,
}

impl Session {
    async fn run(mut self, mut requests: Streaming<PbWatchRequest>) -> Result<(), Gone> {
        let mut changes = self.shared.changes();
        let mut asks = true;
        let every = self.shared.progress_every.max(Duration::from_millis(100));
        let mut progress = tokio::time::interval(every);
        progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.responses.closed() => return Err(Gone),
                request = requests.message(), if asks => match request {
                    Ok(Some(request)) => self.answer(request).await?,
                    // A client that asks no more still listens; etcd goes on too.
                    Ok(None) => asks = false,
                    Err(_) => return Err(Gone),
                },
                // News that was missed is news too.
                _ = changes.recv() => {}
                _ = progress.tick() => {}
            }
            changes = changes.resubscribe();
            self.catch_up().await?;
        }
    }

    async fn answer(&mut self, request: PbWatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(c)) => {
                let key = if c.key.is_empty() { vec![0] } else { c.key };
                self.create(WatchRequest {
                    keys: convert::key_range(key, c.range_end),
                    start: c.start_revision,
                    id: c.watch_id,
                    progress: c.progress_notify,
                    prev_kv: c.prev_kv,
                    fragment: c.fragment,
                    no_put: c.filters.contains(&0),
                    no_delete: c.filters.contains(&1),
                })
                .await
            }
            Some(PbWatchRequestUnion::CancelRequest(c)) => {
                let Self {
                    shared, watches, ..
                } = self;
                match shared.with(|store, _| watches.cancel(c.watch_id, store)) {
                    Some(notice) => self.tell(notice).await,
                    None => Ok(()),
                }
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                let progress = self.catch_up().await?;
                self.tell(progress).await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: WatchRequest) -> Result<(), Gone> {
        let Self {
            shared, watches, ..
        } = self;
        let notice = shared.with(|store, now| watches.create(request, store, now));
        self.shared.synced().await.map_err(|_| Gone)?;
        self.tell(notice).await
    }

    /// Tells all watches all they have not been told. Answers how far the stream then is, as found under the same lock in
    /// which nothing more was to be told; another write may have come since.
    async fn catch_up(&mut self) -> Result<Notice, Gone> {
        loop {
            let Self {
                shared, watches, ..
            } = self;
            let every = shared.progress_every;
            let (notices, behind, progress) = shared.with(|store, now| {
                let (notices, behind) = watches.pull(store, now, every);
                (notices, behind, watches.progress(store))
            });
            // What is not on disk has not happened.
            self.shared.synced().await.map_err(|_| Gone)?;
            for notice in notices {
                self.tell(notice).await?;
            }
            if !behind {
                return Ok(progress);
            }
        }
    }

    async fn tell(&self, notice: Notice) -> Result<(), Gone> {
        let response = response(&self.shared, notice);
        self.responses.send(Ok(response)).await.map_err(|_| Gone)
    }
}

fn response(shared: &Shared, notice: Notice) -> PbWatchResponse {
    let at = |watch_id, revision| PbWatchResponse {
        header: shared.header(revision),
        watch_id,
        ..PbWatchResponse::default()
    };
    match notice {
        Notice::Created { id, revision } => PbWatchResponse {
            created: true,
            ..at(id, revision)
        },
        Notice::Refused { revision, why } => PbWatchResponse {
            created: true,
            canceled: true,
            cancel_reason: why.to_owned(),
            ..at(-1, revision)
        },
        Notice::Events {
            id,
            revision,
            events,
            fragment,
        } => PbWatchResponse {
            events: events.iter().map(convert::event).collect(),
            fragment,
            ..at(id, revision)
        },
        Notice::Cancelled { id, revision } => PbWatchResponse {
            canceled: true,
            ..at(id, revision)
        },
        Notice::Compacted {
            id,
            revision,
            compacted,
        } => PbWatchResponse {
            canceled: true,
            compact_revision: compacted,
            ..at(id, revision)
        },
        Notice::Progress { id, revision } => at(id, revision),
    }
}
