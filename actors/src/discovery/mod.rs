//! Discovery: heartbeats, suspicion, verdicts, election.
//!
//! This page is the contract of the folder. Promises: one immutable [`crate::cluster::Cluster`] at each change; a verdict
//! only on evidence (DESIGN 3.2); at most one owner per epoch; a change of membership disturbs nobody else.

pub mod actor;
pub mod election;
pub mod membership;
pub mod ports;
pub mod suspicion;
pub mod verdict;

use std::time::Duration;

use actix::Message;
use serde::{Deserialize, Serialize};

use crate::id::Epoch;

/// Knobs of discovery, `[discovery]` in `config.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct DiscoverySettings {
    /// A heartbeat to every session this often.
    pub heartbeat: Duration,
    /// Nobody is suspected before this much silence…
    pub suspect_floor: Duration,
    /// …and everybody after this much.
    pub suspect_ceiling: Duration,
    /// How long an indirect probe may take.
    pub probe_timeout: Duration,
    /// How long a peer has to answer a challenge through the registry.
    pub challenge_window: Duration,
    /// Candidate of rank r waits r × this at a vacancy.
    pub stagger: Duration,
    /// Whoever stepped down abstains this long, unless alone.
    pub abstain: Duration,
    /// Up to this many members everybody keeps a session with everybody.
    pub mesh: usize,
    /// Beyond, each node watches this many ring successors.
    pub ring: usize,
    /// A master whose last turn is older than this resigns and exits 70.
    pub master_turn_limit: Duration,
    /// Whether this node doubts itself first when its own timers are late.
    pub local_health: bool,
    /// Preference at an election; higher first.
    pub weight: i32,
    /// Whether this node may be master.
    pub eligible: bool,
}

impl Default for DiscoverySettings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            suspect_floor: Duration::from_secs(1),
            suspect_ceiling: Duration::from_secs(10),
            probe_timeout: Duration::from_millis(300),
            challenge_window: Duration::from_secs(1),
            stagger: Duration::from_millis(50),
            abstain: Duration::from_secs(10),
            mesh: 64,
            ring: 8,
            master_turn_limit: Duration::from_secs(2),
            local_health: true,
            weight: 0,
            eligible: true,
        }
    }
}

/// Give up mastership. Answers who leads then.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<NewMaster, StepDownError>")]
pub struct StepDown {
    /// To this node (name or id); the best candidate when absent.
    pub heir: Option<String>,
    /// Why, in words.
    pub why: String,
}

/// Who leads after a step-down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewMaster {
    /// Name.
    pub name: String,
    /// Its epoch.
    pub epoch: String,
    /// Open ephemeral tasks that went over; durable ones are in the registry.
    pub handed_over: usize,
    /// For how long nobody led, as the master before it saw: from its last act to the first sign of the new epoch.
    #[serde(default)]
    pub masterless_ms: f64,
}

/// Why nobody else leads now; mastership is as it was unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum StepDownError {
    /// This node does not lead.
    #[error("this node does not lead")]
    NotMaster,
    /// No other eligible member has a session with us.
    #[error("nobody else can lead: {0}")]
    NoHeir(String),
    /// The heir did not take over in time; we lead on.
    #[error("{0} did not take over in time; this node leads on")]
    HeirSilent(String),
}

/// Other knobs from now on. Weight and eligibility are what the registration says; mesh and ring take effect with the next view.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Reconfigure(pub DiscoverySettings);

/// Leave for good: hand over mastership if we hold it; nothing else is claimed from now on.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Retired")]
pub struct Retire;

/// What became of mastership when a node retired.
#[derive(Clone, Debug, PartialEq, actix::MessageResponse)]
pub enum Retired {
    /// It did not lead.
    Follower,
    /// Another leads now.
    HandedOver(NewMaster),
    /// It led, and nobody took over in time; it leads until it is gone.
    NoHeir(StepDownError),
}

/// The epoch somebody was refused under, or answered us with: a higher one may exist.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct EpochSeen(pub Epoch);

/// From a new life of any actor that lives by the picture: tell it again.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Reborn;
