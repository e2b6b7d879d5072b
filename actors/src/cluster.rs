//! What every actor may know of the cluster: one immutable picture, published by DiscoveryActor at each change.
//!
//! Nobody but discovery computes any of it; everybody else receives [`ClusterChanged`] and reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Generation, Incarnation, NodeId};

/// The value of a registration key, `/<cluster>/services/<advertise ip>:<port>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// Identity of the process.
    pub id: NodeId,
    /// Its label, unique in the cluster.
    pub name: String,
    /// Advertised IP address or DNS name.
    pub ip: String,
    /// Advertised port.
    pub port: u16,
    /// Address of its admin API.
    pub admin: String,
    /// Host name of its machine.
    pub host: String,
    /// Boot id of its machine, empty where there is none.
    #[serde(default)]
    pub boot: String,
    /// Process id on that machine.
    pub pid: u32,
    /// Version of the binary.
    pub version: String,
    /// Protocol version it speaks.
    pub protocol: u16,
    /// Preference at an election; higher first.
    pub weight: i32,
    /// Whether it may be master.
    pub eligible: bool,
    /// `worker` when it takes work.
    pub roles: Vec<String>,
    /// Kinds of work it knows.
    pub jobs: Vec<String>,
    /// Attempts it runs side by side.
    pub capacity: u32,
    /// Labels for placement.
    pub tags: BTreeMap<String, String>,
    /// Start of the process, unix ms.
    pub started_at: u64,
    /// Whether it lets in whoever reaches its port (`--insecure`).
    #[serde(default)]
    pub insecure: bool,
}

impl Registration {
    /// `ip:port`, with brackets around an IPv6 address.
    pub fn address(&self) -> String {
        join_host_port(&self.ip, self.port)
    }

    /// Whether it takes work.
    pub fn is_worker(&self) -> bool {
        self.roles.iter().any(|role| role == "worker")
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The value of the master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterRecord {
    /// The master's identity.
    pub id: NodeId,
    /// Which life of it; when that is not registered, mastership is vacant.
    pub incarnation: Incarnation,
    /// Where it listens.
    pub address: String,
}

/// Who leads, under which epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// The record.
    pub record: MasterRecord,
    /// The fence it acts under.
    pub epoch: Epoch,
}

/// How a member stands, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// Registered, and heard lately.
    Alive,
    /// Registered, not heard for longer than its suspicion time.
    Suspect,
    /// Registered and answering challenges through the registry, but not heard: no verdict.
    CutOff,
    /// Registered, no session yet.
    Joining,
    /// Alive and taking no more work.
    Draining,
}

impl MemberState {
    /// Its name in the API and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::CutOff => "cut-off",
            Self::Joining => "joining",
            Self::Draining => "draining",
        }
    }
}

/// A member of the view.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// What it registered.
    pub registration: Registration,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// How it stands.
    pub state: MemberState,
    /// Whether a session to it is up now.
    pub session: bool,
    /// Smoothed round-trip time, when measured.
    pub rtt: Option<Duration>,
    /// Its own timer lag, as it says.
    pub lag: Duration,
    /// Whether it says that it reaches the registry.
    pub registry: bool,
    /// Members it does not hear, as it says.
    pub unheard: Vec<NodeId>,
}

/// The picture: the view at one registry revision, with liveness and mastership as seen from this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// This node.
    pub me: NodeId,
    /// This node's incarnation; NONE while unregistered.
    pub incarnation: Incarnation,
    /// Registry revision of the view.
    pub revision: i64,
    /// Which life of the registry.
    pub generation: Generation,
    /// Whether the registry answers now.
    pub registry: bool,
    /// The highest epoch seen.
    pub epoch: Epoch,
    /// Who leads; `None` while vacant.
    pub master: Option<Master>,
    /// Whether this node leads.
    pub leading: bool,
    /// Sorted by incarnation, this node included while registered.
    pub members: Vec<Member>,
}

impl Cluster {
    /// Before anything is known.
    pub fn empty(me: NodeId) -> Self {
        Self {
            me,
            incarnation: Incarnation::NONE,
            revision: 0,
            generation: Generation::default(),
            registry: false,
            epoch: Epoch::NONE,
            master: None,
            leading: false,
            members: Vec::new(),
        }
    }

    /// The member with this id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().find(|m| m.registration.id == id)
    }

    /// Whether this picture differs from another in what must be told at once; round-trip times and lag may wait.
    pub fn differs_decisively(&self, other: &Self) -> bool {
        decisive(self) != decisive(other)
    }

    /// The member with this name.
    pub fn named(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.registration.name == name)
    }
}

fn decisive(c: &Cluster) -> impl PartialEq + use<> {
    let members: Vec<_> = c
        .members
        .iter()
        .map(|m| {
            let r = &m.registration;
            (
                r.id,
                (r.weight, r.eligible, r.tags.clone()),
                m.incarnation,
                m.state,
                m.session,
                m.registry,
                m.unheard.clone(),
            )
        })
        .collect();
    (
        members,
        c.master.clone(),
        c.epoch,
        c.leading,
        c.registry,
        c.incarnation,
        c.generation,
    )
}

/// The picture has changed.
#[derive(Clone, Debug, actix::Message)]
#[rtype(result = "()")]
pub struct ClusterChanged(pub Arc<Cluster>);

/// A member is no longer registered: it left, was condemned, or its lease ended. Its attempts are lost.
#[derive(Clone, Debug, actix::Message)]
#[rtype(result = "()")]
pub struct MemberRemoved {
    /// Who.
    pub id: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its name.
    pub name: String,
    /// Why, in words.
    pub why: String,
}

/// The highest epoch this node has seen: the fence that every actor reads and only raises.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Epoch>>);

impl Fence {
    /// The highest epoch seen.
    pub fn current(&self) -> Epoch {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the fence; answers whether it rose.
    pub fn raise(&self, epoch: Epoch) -> bool {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rises = epoch > *current;
        if rises {
            *current = epoch;
        }
        rises
    }
}

/// Who this node is; fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// Identity of the process.
    pub id: NodeId,
    /// Its label as claimed in the registry (a rolled one may change before registration is done).
    pub name: Arc<Mutex<String>>,
    /// What is advertised to others, `host:port`.
    pub address: String,
}

impl Identity {
    /// The label as of now.
    pub fn name(&self) -> String {
        self.name
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
