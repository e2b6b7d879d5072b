//! Carrying a request to another node over its session, and matching the answer by nonce.
//!
//! Bounded: at most `max_carried` requests wait at one time, each has a deadline, and its entry goes with its future.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::Recipient;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::audit::caller;
use crate::id::NodeId;
use crate::transport::{Send, SendError};
use crate::wire::{ApiRequest, ApiResponse};

/// A request to carry.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) body: bytes::Bytes,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            body: bytes::Bytes::new(),
        }
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self {
            method: "DELETE",
            path: path.into(),
            body: bytes::Bytes::new(),
        }
    }

    pub(crate) fn post(path: impl Into<String>, body: impl Into<bytes::Bytes>) -> Self {
        Self {
            method: "POST",
            path: path.into(),
            body: body.into(),
        }
    }
}

/// Why no answer came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CarryError {
    /// Nothing was sent.
    #[error("{0}")]
    NotSent(SendError),
    /// Nothing was sent: too many requests wait already.
    #[error("too many carried requests are waiting")]
    Crowded,
    /// Nothing was sent, as far as known: TransportActor did not take it.
    #[error("the transport does not answer")]
    Transport,
    /// It was sent; whether it was done is unknown.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// It was sent and the node left the view before it answered; whether it was done is unknown.
    #[error("the node left before it answered")]
    Left,
}

impl CarryError {
    /// Whether the other node may have done what was asked.
    pub(crate) fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Left | Self::Transport)
    }
}

/// The requests under way.
pub(crate) struct Relay {
    send: Recipient<Send>,
    bound: usize,
    pending: Mutex<Pending>,
}

struct Pending {
    next: u64,
    waiting: BTreeMap<u64, (NodeId, oneshot::Sender<ApiResponse>)>,
}

impl Relay {
    /// `first` should differ from life to life, so that a late answer to an earlier life matches nothing.
    pub(crate) fn new(send: Recipient<Send>, bound: usize, first: u64) -> Self {
        let pending = Pending {
            next: first,
            waiting: BTreeMap::new(),
        };
        Self {
            send,
            bound,
            pending: Mutex::new(pending),
        }
    }

    /// Carries `call` to `to` and waits for its answer at most `within`.
    pub(crate) async fn carry(
        &self,
        to: NodeId,
        call: Call,
        within: Duration,
    ) -> Result<ApiResponse, CarryError> {
        let (entry, answer) = self.register(to)?;
        let request = ApiRequest {
            nonce: entry.nonce,
            method: call.method.to_owned(),
            path: call.path,
            body: call.body,
            by: caller().to_wire(),
        };
        let exchange = async {
            let message = request.into();
            match self.send.send(Send { to, message }).await {
                Ok(Ok(())) => answer.await.map_err(|_| CarryError::Left),
                Ok(Err(why)) => Err(CarryError::NotSent(why)),
                Err(_) => Err(CarryError::Transport),
            }
        };
        timeout(within, exchange)
            .await
            .unwrap_or(Err(CarryError::Silent(within)))
    }

    /// An answer came. One that nobody waits for (any more), or from another node than was asked, is dropped.
    pub(crate) fn answered(&self, from: NodeId, response: ApiResponse) {
        let mut pending = self.lock();
        let expected = pending.waiting.get(&response.nonce);
        if expected.is_some_and(|(to, _)| *to == from)
            && let Some((_, waiter)) = pending.waiting.remove(&response.nonce)
        {
            // The waiter may just have given up.
            waiter.send(response).ok();
        }
    }

    fn register(
        &self,
        to: NodeId,
    ) -> Result<(Entry<'_>, oneshot::Receiver<ApiResponse>), CarryError> {
        let mut pending = self.lock();
        if pending.waiting.len() >= self.bound {
            return Err(CarryError::Crowded);
        }
        let nonce = pending.next;
        pending.next = nonce.wrapping_add(1);
        let (waiter, answer) = oneshot::channel();
        pending.waiting.insert(nonce, (to, waiter));
        Ok((Entry { relay: self, nonce }, answer))
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes its line out of the table when the request ends, however it ends.
struct Entry<'a> {
    relay: &'a Relay,
    nonce: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.relay.lock().waiting.remove(&self.nonce);
    }
}
