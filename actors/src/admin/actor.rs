//! ▶ AdminActor: serves the API and answers what other nodes carry here.
//!
//! It holds no truth: the picture comes from discovery, everything else is asked for. So a new life starts empty, asks for
//! the picture, and serves the same listener again.

use std::sync::Arc;

use actix::{Actor, ActorContext, Context, Handler, Supervised};
use axum::Router;
use tokio::net::TcpListener;
use tokio::time::{Duration, sleep};

use super::AdminSeed;
use super::office::{Life, Office};
use super::routes::{answer_carried, router, too_large};
use super::serve::serve;
use crate::cluster::ClusterChanged;
use crate::discovery::Reborn;
use crate::id::NodeId;
use crate::supervisor::{handling, handling_part};
use crate::transport::{Inbound, Send, SendError};
use crate::wire::{ApiRequest, ApiResponse, Message};

/// Pause before an answer is put to a full queue again; after ten of them whoever asked has given up.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(100);

/// The admin API of a node.
pub struct AdminActor {
    seed: AdminSeed,
    office: Arc<Office>,
    router: Router,
    /// Ends streams and connections when this life is dropped.
    _life: Life,
}

impl AdminActor {
    /// A life that knows nothing yet.
    pub fn new(seed: AdminSeed) -> Self {
        let (office, life) = Office::new(seed.clone());
        Self {
            router: router(Arc::clone(&office)),
            seed,
            office,
            _life: life,
        }
    }

    /// The routes of this life, to be asked without a connection.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    fn open(&self) -> std::io::Result<()> {
        let listener = self.seed.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let server = serve(listener, Arc::clone(&self.office), self.router.clone());
        actix_rt::spawn(server);
        Ok(())
    }

    fn answer(&self, from: NodeId, request: ApiRequest) {
        let (office, router) = (Arc::clone(&self.office), self.router.clone());
        actix_rt::spawn(async move {
            let answer = answer_carried(&office, router, request).await;
            send_back(&office, from, answer).await;
        });
    }
}

impl Actor for AdminActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match self.open() {
            Ok(()) => self.seed.reborn.do_send(Reborn),
            Err(why) => {
                log::error!(target: "admin", event = "admin.not_served", err:% = why; "cannot serve the admin listener");
                ctx.stop();
            }
        }
    }
}

impl Supervised for AdminActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        *self = Self::new(self.seed.clone());
    }
}

impl Handler<ClusterChanged> for AdminActor {
    type Result = ();

    fn handle(&mut self, ClusterChanged(cluster): ClusterChanged, _: &mut Self::Context) {
        handling::<ClusterChanged>();
        self.office.show(cluster);
    }
}

impl Handler<Inbound> for AdminActor {
    type Result = ();

    fn handle(&mut self, inbound: Inbound, _: &mut Self::Context) {
        handling::<Inbound>();
        for envelope in inbound.envelopes {
            handling_part(envelope.message.name());
            match envelope.message {
                Message::ApiRequest(request) => self.answer(inbound.from, request),
                Message::ApiResponse(response) => self.office.answered(inbound.from, response),
                other => {
                    log::debug!(target: "admin", message = other.name(); "a message for another desk is dropped");
                }
            }
        }
    }
}

async fn send_back(office: &Office, to: NodeId, answer: ApiResponse) {
    let nonce = answer.nonce;
    let mut message = Message::from(answer);
    for _ in 0..10 {
        let again = Send {
            to,
            message: message.clone(),
        };
        match office.ask("transport", &office.seed.send, again).await {
            Ok(Err(SendError::TooLarge)) => message = too_large(nonce).into(),
            Ok(Err(SendError::Full)) => sleep(QUEUE_FULL_PAUSE).await,
            // Sent; or no session, and then whoever asked sees that too.
            Ok(Ok(()) | Err(SendError::NoSession)) | Err(_) => return,
        }
    }
}
