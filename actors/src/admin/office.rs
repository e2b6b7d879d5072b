//! What all handlers share: the newest picture, questions to actors with a deadline, and who a request belongs to.
//!
//! | belongs to | asked here | carried here |
//! |---|---|---|
//! | the master, and that is us | done here | done here |
//! | the master, another node | carried there; again when it says `not_master` or mastership moves | refused `not_master` |
//! | the master, nobody leads | waits `master_wait`, then 503 `no_master` | refused `not_master` |
//! | node X, and that is us | done here | done here |
//! | node X, another one | carried there | refused `misdirected` |

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use actix::{MailboxError, Recipient};
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::AdminSeed;
use super::gazette::Gazette;
use super::picture::Picture;
use super::relay::{Call, CarryError, Relay};
use super::reply::{Answer, ApiError, NOT_MASTER};
use crate::cluster::Cluster;
use crate::id::{Epoch, NodeId};
use crate::time::{rfc3339, unix_ms};
use crate::transport::SendError;
use crate::wire::ApiResponse;

/// Wait before a request for the master is tried again when nothing else has changed.
const AGAIN: Duration = Duration::from_millis(50);
/// The code of an actor that does not answer in time.
const HUNG: &str = "actor_hung";

/// What all handlers of one life of AdminActor share.
pub struct Office {
    pub(crate) seed: AdminSeed,
    pub(crate) relay: Relay,
    pub(crate) gazette: Gazette,
    pub(crate) uploads: Semaphore,
    pub(crate) followers: Arc<Semaphore>,
    pub(crate) relayed: Semaphore,
    picture: watch::Sender<Arc<Picture>>,
    life: watch::Receiver<()>,
}

/// While this is kept, the office is open; once it is dropped, its streams and connections end.
pub struct Life {
    _open: watch::Sender<()>,
}

/// Whether doing it twice is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
}

/// Where a request for a node is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Here,
    There { id: NodeId, name: String },
}

/// What became of one try at the master.
enum Try<T> {
    Done(Result<T, ApiError>),
    /// It was not done, or doing it again is harmless; this is the answer when time is up.
    Again(ApiError),
}

impl Office {
    /// An office that knows nothing of the cluster yet.
    pub fn new(seed: AdminSeed) -> (Arc<Self>, Life) {
        let (open, life) = watch::channel(());
        let picture = Picture::new(Cluster::empty(seed.identity.id), unix_ms());
        let settings = &seed.settings;
        let relay = Relay::new(seed.send.clone(), settings.max_carried, rand::random());
        let office = Self {
            relay,
            gazette: Gazette::new(),
            uploads: Semaphore::new(settings.max_uploads),
            followers: Arc::new(Semaphore::new(settings.max_followers)),
            relayed: Semaphore::new(settings.max_relayed),
            picture: watch::Sender::new(Arc::new(picture)),
            life,
            seed,
        };
        (Arc::new(office), Life { _open: open })
    }

    /// The cluster looks like this now.
    pub fn show(&self, cluster: Arc<Cluster>) {
        self.picture
            .send_modify(|picture| *picture = Arc::new(picture.next(cluster, unix_ms())));
    }

    /// The node whose request was carried here has its answer.
    pub fn answered(&self, from: NodeId, response: ApiResponse) {
        self.relay.answered(from, response);
    }

    /// Followers of events and logs now.
    pub(crate) fn following(&self) -> usize {
        let room = self.followers.available_permits();
        self.seed.settings.max_followers.saturating_sub(room)
    }

    pub(crate) fn picture(&self) -> Arc<Picture> {
        Arc::clone(&self.picture.borrow())
    }

    pub(crate) fn me(&self) -> NodeId {
        self.seed.identity.id
    }

    /// Resolves when this life of AdminActor is over.
    pub(crate) async fn closed(&self) {
        let mut life = self.life.clone();
        while life.changed().await.is_ok() {}
    }

    /// Asks an actor of this node, with a deadline.
    pub(crate) async fn ask<M>(
        &self,
        actor: &str,
        to: &Recipient<M>,
        message: M,
    ) -> Result<M::Result, ApiError>
    where
        M: actix::Message + Send + 'static,
        M::Result: Send,
    {
        self.ask_within(self.seed.settings.ask_timeout, actor, to, message)
            .await
    }

    /// Asks an actor of this node for a change. When it does not answer in time nobody knows whether it was done.
    pub(crate) async fn ask_for<M>(
        &self,
        actor: &str,
        to: &Recipient<M>,
        message: M,
    ) -> Result<M::Result, ApiError>
    where
        M: actix::Message + Send + 'static,
        M::Result: Send,
    {
        let within = self.seed.settings.relay_timeout;
        let answer = self.ask_within(within, actor, to, message).await;
        answer.map_err(|error| match error.code.as_str() {
            HUNG => ApiError::unavailable(
                "unknown",
                format!("{}; whether it was done is unknown", error.message),
                1,
            ),
            _ => error,
        })
    }

    /// Asks an actor of this node, with this deadline.
    pub(crate) async fn ask_within<M>(
        &self,
        within: Duration,
        actor: &str,
        to: &Recipient<M>,
        message: M,
    ) -> Result<M::Result, ApiError>
    where
        M: actix::Message + Send + 'static,
        M::Result: Send,
    {
        let error = match timeout(within, to.send(message)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(MailboxError::Closed)) => ApiError::unavailable(
                "actor_failed",
                format!("the {actor} actor failed while it held this request, or is stopped"),
                1,
            ),
            Ok(Err(MailboxError::Timeout)) | Err(_) => ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                HUNG,
                format!("the {actor} actor did not answer within {within:?}"),
            ),
        };
        let node = self.seed.identity.name();
        Err(error
            .with("actor", json!(actor))
            .with("node", json!(node.as_str())))
    }

    /// Whose a request for `node` (a name, an id, or nobody in particular) is.
    pub(crate) fn whose(&self, node: Option<&str>) -> Result<Where, ApiError> {
        let Some(node) = node else {
            return Ok(Where::Here);
        };
        let picture = self.picture();
        let id = node.parse::<NodeId>().ok();
        if node == self.seed.identity.name() || id == Some(self.me()) {
            return Ok(Where::Here);
        }
        let cluster = &picture.cluster;
        let member = cluster
            .named(node)
            .or_else(|| id.and_then(|id| cluster.member(id)));
        let Some(member) = member else {
            let names = cluster.members.iter().map(|m| &m.registration.name);
            let names: Vec<_> = names.collect();
            return Err(
                ApiError::missing("no_such_node", format!("no member is called {node}"))
                    .with("members", json!(names)),
            );
        };
        Ok(Where::There {
            id: member.registration.id,
            name: member.registration.name.clone(),
        })
    }

    /// Does it here when it belongs here, or carries the call (made from the id of the node) to whose it is.
    pub(crate) async fn at_node(
        &self,
        relayed: bool,
        node: Option<&str>,
        call: impl FnOnce(NodeId) -> Call,
        local: impl Future<Output = Answer>,
    ) -> Answer {
        let within = self.seed.settings.relay_timeout;
        self.at_node_within(within, relayed, node, call, local)
            .await
    }

    /// The same, with a deadline for the other node.
    pub(crate) async fn at_node_within(
        &self,
        within: Duration,
        relayed: bool,
        node: Option<&str>,
        call: impl FnOnce(NodeId) -> Call,
        local: impl Future<Output = Answer>,
    ) -> Answer {
        match self.whose(node)? {
            Where::Here => local.await,
            Where::There { name, .. } if relayed => Err(ApiError::new(
                StatusCode::MISDIRECTED_REQUEST,
                "misdirected",
                format!("this request was carried to the wrong node; it is for {name}"),
            )),
            Where::There { id, name } => match self.carry(id, call(id), within).await {
                Ok(answer) => pass_on(answer),
                Err(why) => Err(unreachable(&name, &why)),
            },
        }
    }

    /// Does it here when this node leads, or carries the call (made from the time left) to who does and `read`s the answer.
    pub(crate) async fn at_master<T, F>(
        &self,
        relayed: bool,
        intent: Intent,
        within: Duration,
        call: impl Fn(Duration) -> Call,
        read: impl Fn(ApiResponse) -> Result<T, ApiError>,
        local: impl Fn(Duration) -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let mut pictures = self.picture.subscribe();
        let start = Instant::now();
        let deadline = start + within;
        let patience = deadline.min(start + self.seed.settings.master_wait);
        loop {
            let picture = Arc::clone(&pictures.borrow_and_update());
            let left = deadline.saturating_duration_since(Instant::now());
            let leader = picture.cluster.master.as_ref();
            let (outcome, until) = match leader.map(|m| (m.record.id, m.epoch)) {
                Some((id, _)) if id == self.me() => (settle(local(left).await), deadline),
                _ if relayed => return Err(ApiError::not_master()),
                Some((id, epoch)) => {
                    let name = picture.name_of(id);
                    let carried = self.carry(id, call(left), left);
                    let outcome = match intent {
                        Intent::Write => judge(intent, &name, carried.await, &read),
                        Intent::Read => tokio::select! {
                            biased;
                            answer = carried => judge(intent, &name, answer, &read),
                            () = self.mastership_moved(epoch) => Try::Again(ApiError::not_master()),
                        },
                    };
                    (outcome, deadline)
                }
                None => (Try::Again(no_master()), patience),
            };
            match outcome {
                Try::Done(answer) => return answer,
                Try::Again(why) if relayed || Instant::now() >= until => return Err(why),
                Try::Again(_) => {
                    let pause = until.min(Instant::now() + AGAIN);
                    // Nothing changed within the pause: look again all the same.
                    timeout_at(pause, pictures.changed()).await.ok();
                }
            }
        }
    }

    /// Carries a call to a node and waits; gives up early when the node leaves the view.
    pub(crate) async fn carry(
        &self,
        to: NodeId,
        call: Call,
        within: Duration,
    ) -> Result<ApiResponse, CarryError> {
        tokio::select! {
            biased;
            answer = self.relay.carry(to, call, within) => answer,
            () = self.member_left(to) => Err(CarryError::Left),
        }
    }

    async fn member_left(&self, id: NodeId) {
        let known = self.picture().cluster.member(id).map(|m| m.incarnation);
        self.picture_that(|picture| {
            known.is_some() && picture.cluster.member(id).map(|m| m.incarnation) != known
        })
        .await;
    }

    async fn mastership_moved(&self, from: Epoch) {
        self.picture_that(|picture| picture.cluster.master.as_ref().map(|m| m.epoch) != Some(from))
            .await;
    }

    async fn picture_that(&self, wanted: impl Fn(&Picture) -> bool) {
        let mut pictures = self.picture.subscribe();
        // The sender lives in `self`, so this ends only with the wanted picture.
        pictures.wait_for(|picture| wanted(picture)).await.ok();
    }
}

fn settle<T>(answer: Result<T, ApiError>) -> Try<T> {
    match answer {
        Err(error) if error.code == NOT_MASTER => Try::Again(error),
        answer => Try::Done(answer),
    }
}

fn judge<T>(
    intent: Intent,
    master: &str,
    answer: Result<ApiResponse, CarryError>,
    read: impl Fn(ApiResponse) -> Result<T, ApiError>,
) -> Try<T> {
    match answer {
        Ok(response) => settle(read(response)),
        Err(why @ CarryError::NotSent(SendError::TooLarge)) => {
            Try::Done(Err(unreachable(master, &why)))
        }
        Err(why) if why.outcome_unknown() && intent == Intent::Write => {
            Try::Done(Err(ApiError::unavailable(
                "unknown",
                format!("{master}, the master: {why}; whether it was done is unknown"),
                1,
            )))
        }
        Err(why) => Try::Again(unreachable(master, &why)),
    }
}

fn no_master() -> ApiError {
    ApiError::unavailable("no_master", "nobody leads the cluster now", 1)
}

/// The refusal for a node that did not answer.
pub(crate) fn unreachable(name: &str, why: &CarryError) -> ApiError {
    match why {
        CarryError::NotSent(SendError::TooLarge) => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("too large to be carried to {name}; ask that node itself"),
        ),
        CarryError::Crowded | CarryError::NotSent(SendError::Full) => {
            ApiError::unavailable("busy", format!("{name}: {why}"), 1)
        }
        CarryError::Silent(_) => ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "unreachable",
            format!("{name}: {why}"),
        ),
        _ => ApiError::unavailable("unreachable", format!("{name}: {why}"), 1),
    }
    .with("node", json!(name))
}

/// Another node's answer as this node's.
pub(crate) fn pass_on(answer: ApiResponse) -> Answer {
    let garbled = || {
        ApiError::new(
            StatusCode::BAD_GATEWAY,
            "garbled",
            "the other node's answer makes no sense",
        )
    };
    let status = StatusCode::from_u16(answer.status).map_err(|_| garbled())?;
    if !status.is_success() {
        return Err(ApiError::from_answer(status, &answer.body));
    }
    let content_type = HeaderValue::try_from(answer.content_type).map_err(|_| garbled())?;
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// The master in a picture, as the API shows it.
pub(crate) fn master_view(picture: &Picture) -> Option<super::MasterView> {
    let master = picture.cluster.master.as_ref()?;
    Some(super::MasterView {
        name: picture.name_of(master.record.id),
        id: master.record.id,
        address: master.record.address.clone(),
        epoch: master.epoch.to_string(),
        since: rfc3339(picture.master_since()),
    })
}

/// Another node's answer, read as JSON.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
    answer: ApiResponse,
) -> Result<T, ApiError> {
    let body = answer.body.clone();
    pass_on(answer)?;
    serde_json::from_slice(&body)
        .map_err(|why| ApiError::new(StatusCode::BAD_GATEWAY, "garbled", why))
}
