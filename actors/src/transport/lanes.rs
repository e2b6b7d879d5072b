//! From a session to the desks: one lane per desk, so that a desk that does not keep up holds up nobody but its own.
//!
//! A lane is a bounded queue and a task that hands batches to the desk's actor and waits for each. When a lane is full:
//! * discovery's: the session breaks, since control that waits is worse than control that is said again;
//! * any other: the session is *stalled*: the reader pauses, and TCP holds the sender back. What the peer says meanwhile is not
//!   heard, and that is our fault, not its: the reader keeps marking it as heard. After [`STALL_LIMIT`] the session breaks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::Recipient;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Desks, Heard, Inbound};
use crate::id::{Incarnation, NodeId};
use crate::wire::{Desk, Envelope};

/// How long a desk may hold up its session.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(2);
/// Within a stall the peer is marked as heard this often; below every suspicion floor.
const STALL_MARK: Duration = Duration::from_millis(100);
/// Batches waiting for one desk; a batch is what one read brought.
const LANE_BATCHES: usize = 1024;
/// Bytes (as on the wire) waiting for one desk: some hundred messages of the largest payload.
const LANE_BYTES: usize = 16 * 1024 * 1024;
/// Messages handed over in one actor message: enough to pay for the hop, few enough not to hog the desk.
const MAX_BATCH: usize = 1024;

struct Parcel {
    incarnation: Incarnation,
    envelopes: Vec<Envelope>,
    /// Given back when the desk has taken the parcel.
    _room: OwnedSemaphorePermit,
}

struct Lane {
    queue: mpsc::Sender<Parcel>,
    room: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Stops all lanes of a session at once: after it is dropped, not one more message reaches a desk.
pub(super) struct Stop(Arc<Mutex<Vec<AbortHandle>>>);

impl Drop for Stop {
    fn drop(&mut self) {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

/// The lanes of one session (or of this node's messages to itself); made when first needed.
pub(super) struct Lanes {
    from: NodeId,
    desks: Desks,
    lanes: [Option<Lane>; 4],
    /// For [`Stop`]; one per lane.
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
}

/// A lane is full.
#[derive(Debug)]
pub(super) struct LaneFull;

impl Lanes {
    pub(super) fn new(from: NodeId, desks: Desks) -> Self {
        Self {
            from,
            desks,
            lanes: [const { None }; 4],
            tasks: Arc::default(),
        }
    }

    /// What stops them from outside.
    pub(super) fn stop(&self) -> Stop {
        Stop(Arc::clone(&self.tasks))
    }

    /// Queues without waiting.
    pub(super) fn try_push(
        &mut self,
        desk: Desk,
        incarnation: Incarnation,
        envelopes: Vec<Envelope>,
        bytes: usize,
    ) -> Result<(), LaneFull> {
        let Some(lane) = self.lane(desk) else {
            return Ok(());
        };
        let room = Arc::clone(&lane.room).try_acquire_many_owned(permits(bytes));
        let (Ok(slot), Ok(room)) = (lane.queue.try_reserve(), room) else {
            return Err(LaneFull);
        };
        slot.send(Parcel {
            incarnation,
            envelopes,
            _room: room,
        });
        Ok(())
    }

    /// Queues; waits while a lane other than discovery's is full. `Err` says why the session must break.
    pub(super) async fn push(
        &mut self,
        desk: Desk,
        incarnation: Incarnation,
        envelopes: Vec<Envelope>,
        bytes: usize,
        heard: &Heard,
    ) -> Result<(), String> {
        if desk == Desk::Discovery {
            return self
                .try_push(desk, incarnation, envelopes, bytes)
                .map_err(|LaneFull| "discovery does not keep up with it".to_owned());
        }
        let Some(lane) = self.lane(desk) else {
            return Ok(());
        };
        let room = Arc::clone(&lane.room);
        let queue = lane.queue.clone();
        let admitted = async move {
            let room = room.acquire_many_owned(permits(bytes)).await.ok();
            Some((room?, queue.reserve_owned().await.ok()?))
        };
        let Some((room, slot)) = within_a_stall(admitted, heard).await else {
            return Err(format!(
                "the {desk:?} desk took nothing for {STALL_LIMIT:?}"
            ));
        };
        slot.send(Parcel {
            incarnation,
            envelopes,
            _room: room,
        });
        Ok(())
    }

    /// No more will come: waits until the desks have taken what is queued, at most until `deadline`.
    pub(super) async fn finish(mut self, deadline: Instant) {
        for lane in self.lanes.iter_mut().filter_map(Option::take) {
            let (closed, _) = mpsc::channel(1);
            let mut lane = lane;
            lane.queue = closed;
            // Late or not, the session is over; what is left is lost, as with any break.
            timeout_at(deadline, &mut lane.task).await.ok();
        }
    }

    fn lane(&mut self, desk: Desk) -> Option<&Lane> {
        let (place, recipient) = match desk {
            Desk::Discovery => (0, &self.desks.discovery),
            Desk::Master => (1, &self.desks.master),
            Desk::Worker => (2, &self.desks.worker),
            Desk::Admin => (3, &self.desks.admin),
            Desk::Transport => return None,
        };
        let lane = self.lanes.get_mut(place)?;
        Some(lane.get_or_insert_with(|| {
            let lane = open(self.from, recipient.clone());
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.push(lane.task.abort_handle());
            lane
        }))
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(LANE_BYTES)).unwrap_or(u32::MAX)
}

fn open(from: NodeId, desk: Recipient<Inbound>) -> Lane {
    let (queue, parcels) = mpsc::channel(LANE_BATCHES);
    Lane {
        queue,
        room: Arc::new(Semaphore::new(LANE_BYTES)),
        task: actix_rt::spawn(deliver(from, desk, parcels)),
    }
}

/// Hands over what is there, merged into one message, and waits until it is taken.
async fn deliver(from: NodeId, desk: Recipient<Inbound>, mut parcels: mpsc::Receiver<Parcel>) {
    let mut carried = None;
    loop {
        let next = match carried.take() {
            Some(parcel) => Some(parcel),
            None => parcels.recv().await,
        };
        let Some(first) = next else {
            return;
        };
        let mut rooms = vec![first._room];
        let mut inbound = Inbound {
            from,
            incarnation: first.incarnation,
            envelopes: first.envelopes,
        };
        while inbound.envelopes.len() < MAX_BATCH {
            match parcels.try_recv() {
                Ok(parcel) if parcel.incarnation == inbound.incarnation => {
                    inbound.envelopes.extend(parcel.envelopes);
                    rooms.push(parcel._room);
                }
                Ok(parcel) => {
                    carried = Some(parcel);
                    break;
                }
                Err(_) => break,
            }
        }
        if let Err(why) = desk.send(inbound).await {
            log::debug!(target: "transport", err:display = why; "a desk is closed; its messages are dropped");
        }
    }
}

/// Waits for `admitted` as long as a stall may last; the peer counts as heard meanwhile.
async fn within_a_stall<T>(admitted: impl Future<Output = Option<T>>, heard: &Heard) -> Option<T> {
    let limit = Instant::now() + STALL_LIMIT;
    tokio::pin!(admitted);
    loop {
        let mark = (Instant::now() + STALL_MARK).min(limit);
        tokio::select! {
            biased;
            admitted = &mut admitted => return admitted,
            () = sleep_until(mark) => {}
        }
        let now = Instant::now();
        if now >= limit {
            return None;
        }
        heard.mark(now.into_std());
    }
}
