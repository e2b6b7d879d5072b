//! Reception: takes connections from the port, lets as many as [`super::admission`] admits show who they are, and hands on
//! those that said hello. Whoever is refused here has been heard by TLS and the greeting's parser, and by nobody else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use actix::Recipient;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::admission::{Admission, Admissions, Ticket};
use super::handshake::{Greeting, HandshakeError, Hello};
use super::session::{self, GreetingError};
use super::tls::Tls;
use super::trust::{Distrust, Reason, Refusals};
use super::{Incoming, Stream, TransportSettings};
use crate::time::now;

/// Strangers are spoken of this often, for each reason.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Somebody said hello (or did so in another version).
#[derive(actix::Message)]
#[rtype(result = "()")]
pub(super) struct Caller {
    pub(super) hello: Result<Hello, u16>,
    pub(super) stream: Stream,
    pub(super) remote: SocketAddr,
    /// Given back when the answer is out; bounds how many wait in the mailbox.
    pub(super) slot: OwnedSemaphorePermit,
}

/// What came of a handshake: handed on, or who was refused and why.
type Heard = Result<(), (IpAddr, Distrust)>;

/// Who comes in.
pub(super) struct Reception {
    within: Duration,
    to: Recipient<Caller>,
    tls: Option<Arc<Tls>>,
    answers: Arc<Semaphore>,
    admissions: Admissions,
    handshakes: JoinSet<Heard>,
    places: BTreeMap<Id, Ticket>,
    running: BTreeMap<Ticket, AbortHandle>,
    strangers: Strangers,
}

impl Reception {
    pub(super) fn new(
        settings: &TransportSettings,
        to: Recipient<Caller>,
        tls: Option<Arc<Tls>>,
        refusals: Refusals,
    ) -> Self {
        let (places, share) = (settings.max_handshakes, settings.max_handshakes_per_address);
        Self {
            within: settings.handshake_timeout,
            to,
            tls,
            answers: Arc::new(Semaphore::new(places.max(1))),
            admissions: Admissions::new(places, share),
            handshakes: JoinSet::new(),
            places: BTreeMap::new(),
            running: BTreeMap::new(),
            strangers: Strangers {
                refusals,
                said: BTreeMap::new(),
            },
        }
    }

    /// Until the port is gone.
    pub(super) async fn receive(mut self, port: Arc<Mutex<mpsc::Receiver<Incoming>>>) {
        // The life before may still hold it for a moment.
        let mut port = port.lock().await;
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.handshakes.join_next_with_id() => self.ended(ended),
                Some(incoming) = port.recv() => self.called(incoming),
                else => return,
            }
        }
    }

    fn called(&mut self, incoming: Incoming) {
        let from = incoming.remote.ip();
        match self.admissions.call(from, now()) {
            Admission::TurnedAway => {
                let words = "too many are in the middle of a handshake, or it came too often";
                let crowded = Distrust::new(Reason::Crowded, words);
                self.strangers.refused(from, &crowded);
            }
            Admission::Admitted(ticket, instead) => {
                if let Some(handshake) = instead.and_then(|old| self.running.remove(&old)) {
                    handshake.abort();
                }
                let handshake = self.handshakes.spawn_local(listen_to(
                    incoming,
                    Instant::now() + self.within,
                    self.to.clone(),
                    self.tls.clone(),
                    Arc::clone(&self.answers),
                ));
                self.places.insert(handshake.id(), ticket);
                self.running.insert(ticket, handshake);
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, Heard), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(cancelled) => cancelled.id(),
        };
        if let Some(ticket) = self.places.remove(&id) {
            self.running.remove(&ticket);
            self.admissions.done(ticket);
        }
        match ended {
            Ok((_, Err((from, distrust)))) => self.strangers.refused(from, &distrust),
            Ok((_, Ok(()))) => {}
            // It had to make room for another.
            Err(_) => {
                self.strangers.refusals.count(Reason::Late);
            }
        }
    }
}

/// Counts strangers, and says so now and then: they may come as often as they like.
struct Strangers {
    refusals: Refusals,
    said: BTreeMap<Reason, Instant>,
}

impl Strangers {
    fn refused(&mut self, from: IpAddr, stranger: &Distrust) {
        let count = self.refusals.count(stranger.reason);
        // Who only looks whether the port is open, as probes and a peer that changes its mind do, is nobody's concern.
        if stranger.reason == Reason::BrokenOff {
            log::debug!(target: "transport", address:display = from, reason = stranger.words.as_str(); "a caller left before it was heard");
            return;
        }
        let now = Instant::now();
        let said = self.said.get(&stranger.reason);
        if said.is_none_or(|at| now - *at >= SAY_EVERY) {
            self.said.insert(stranger.reason, now);
            log::warn!(target: "transport", event = "session.refused", peer:display = from, reason = stranger.words.as_str(), kind = stranger.reason.as_str(), refused = count; "a caller was refused before it was heard");
        }
    }
}

async fn listen_to(
    incoming: Incoming,
    until: Instant,
    to: Recipient<Caller>,
    tls: Option<Arc<Tls>>,
    answers: Arc<Semaphore>,
) -> Heard {
    let remote = incoming.remote;
    let Ok(mut stream) = (incoming.open)() else {
        return Ok(());
    };
    let refused = |distrust| (remote.ip(), distrust);
    if let Some(tls) = tls {
        stream = tls.accept(stream, until).await.map_err(refused)?;
    }
    let left = until.saturating_duration_since(Instant::now());
    let hello = match session::read_greeting(&mut stream.reader, left).await {
        Ok(Greeting::Hello(hello)) => Ok(hello),
        Err(GreetingError::Bad(HandshakeError::OtherVersion { theirs })) => Err(theirs),
        Ok(Greeting::Welcome(_) | Greeting::Refusal(_)) => {
            let words = "it said something else than a hello";
            return Err(refused(Distrust::new(Reason::NoHello, words)));
        }
        Err(why) => return Err(refused(unheard(&why))),
    };
    let Ok(slot) = answers.try_acquire_owned() else {
        let words = "too many wait for an answer to their hello";
        return Err(refused(Distrust::new(Reason::Crowded, words)));
    };
    to.do_send(Caller {
        hello,
        stream,
        remote,
        slot,
    });
    Ok(())
}

/// Why no hello was heard.
fn unheard(why: &GreetingError) -> Distrust {
    let reason = match why {
        GreetingError::Closed => Reason::BrokenOff,
        GreetingError::Late(_) => Reason::Late,
        GreetingError::Bad(_) => Reason::NoHello,
        // A caller that does not like our certificate says so when it reads it, which is after its own handshake.
        GreetingError::Io(io) => {
            let distrust = super::tls::distrust(io);
            return distrust.unwrap_or_else(|| Distrust::new(Reason::BrokenOff, why.to_string()));
        }
    };
    Distrust::new(reason, why.to_string())
}
