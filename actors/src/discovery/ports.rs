//! What a DiscoveryActor is made of: its knobs, and the addresses of those it talks to. No state.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use actix::Recipient;

use super::DiscoverySettings;
use crate::cluster::{ClusterChanged, Fence, Identity, MemberRemoved};
use crate::master::{HandOverTo, Lead, MasterPulse, StandDown};
use crate::registry::actor::{Challenge, Claim, Condemn, Relist, Resend, Resign};
use crate::transport::{AskSessions, Broadcast, Dial, Incarnated, Peers, Send};

/// What a DiscoveryActor is made of.
#[derive(Clone)]
pub struct DiscoverySeed {
    /// Knobs.
    pub settings: DiscoverySettings,
    /// Who we are.
    pub identity: Identity,
    /// The highest epoch seen.
    pub fence: Fence,
    /// To RegistryActor.
    pub registry: RegistryPorts,
    /// To TransportActor.
    pub transport: TransportPorts,
    /// To MasterActor.
    pub master: MasterPorts,
    /// Who is told of each new picture.
    pub cluster: Vec<Recipient<ClusterChanged>>,
    /// Who is told of each removed member.
    pub removed: Vec<Recipient<MemberRemoved>>,
    /// This node is leaving; it does not come back because an actor crashed.
    pub leaving: Arc<AtomicBool>,
    /// The master hangs: the key is given back, the process must go (70).
    pub hung: Arc<dyn Fn(String) + std::marker::Send + Sync>,
}

/// To RegistryActor.
#[derive(Clone)]
pub struct RegistryPorts {
    /// Claims.
    pub claim: Recipient<Claim>,
    /// Verdicts.
    pub condemn: Recipient<Condemn>,
    /// Challenges.
    pub challenge: Recipient<Challenge>,
    /// Giving the key back.
    pub resign: Recipient<Resign>,
    /// Doubts.
    pub relist: Recipient<Relist>,
    /// A new life's question.
    pub resend: Recipient<Resend>,
}

/// To TransportActor.
#[derive(Clone)]
pub struct TransportPorts {
    /// Sessions to keep.
    pub peers: Recipient<Peers>,
    /// Who we are now.
    pub incarnated: Recipient<Incarnated>,
    /// One message.
    pub send: Recipient<Send>,
    /// One message to all.
    pub broadcast: Recipient<Broadcast>,
    /// Looks for a witness.
    pub dial: Recipient<Dial>,
    /// A new life's question.
    pub sessions: Recipient<AskSessions>,
}

/// To MasterActor.
#[derive(Clone)]
pub struct MasterPorts {
    /// A reign begins.
    pub lead: Recipient<Lead>,
    /// It ends.
    pub stand_down: Recipient<StandDown>,
    /// It goes to another.
    pub hand_over: Recipient<HandOverTo>,
    /// When MasterActor last had a turn.
    pub pulse: MasterPulse,
}
