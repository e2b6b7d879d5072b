//! The cluster as the answering node sees it: status, members.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;

use super::mastership::ledger_within;
use super::{AtNode, IsCarried, Params};
use crate::admin::office::{Office, master_view};
use crate::admin::picture::Picture;
use crate::admin::relay::Call;
use crate::admin::reply::{Answer, ok};
use crate::admin::{DebugView, MemberView, MembersView, StatusView, WorkerView, process};
use crate::cluster::Member;
use crate::master::{AskMaster, MasterSnapshot};
use crate::registry::AskRegistry;
use crate::time::{rfc3339, unix_ms};
use crate::wire::PROTOCOL_VERSION;
use crate::worker::{AskWorker, WorkerSnapshot};

/// How long a summary waits for the master's counts; it is useful without them.
const COUNTS_WITHIN: Duration = Duration::from_secs(1);

/// `GET /v1/status[?node=]`.
pub(super) async fn status(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(at): Params<AtNode>,
) -> Answer {
    let call = |_| Call::get("/v1/status");
    let local = async { ok(status_here(&office).await) };
    office
        .at_node(carried, at.node.as_deref(), call, local)
        .await
}

async fn status_here(office: &Office) -> StatusView {
    let seed = &office.seed;
    let picture = office.picture();
    let cluster = &picture.cluster;
    let (registry, worker, counts) = tokio::join!(
        office.ask("registry", &seed.ask_registry, AskRegistry),
        office.ask("worker", &seed.ask_worker, AskWorker),
        counts(office),
    );
    let answered = [
        ("registry", registry.is_ok()),
        ("worker", worker.is_ok()),
        ("master", counts.is_some()),
    ];
    let silent = answered.iter().filter(|(_, ok)| !ok);
    StatusView {
        node: seed.identity.name(),
        id: seed.identity.id,
        cluster: seed.identity.cluster.clone(),
        address: seed.identity.address.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: rfc3339(seed.started_at),
        uptime_s: seed.started.elapsed().as_secs(),
        now: rfc3339(unix_ms()),
        incarnation: cluster.incarnation.0,
        revision: cluster.revision,
        epoch: cluster.epoch.to_string(),
        master: master_view(&picture),
        leading: cluster.leading,
        members: by_state(&cluster.members),
        registry: registry.ok(),
        // While the journal is being read nobody can tell.
        journal: counts.as_ref().map(|c| c.journal.clone()),
        tasks: counts.filter(|c| c.leading.is_some()).map(|c| c.tasks),
        worker: worker.ok().map(worker_view),
        unanswered: silent.map(|(name, _)| (*name).to_owned()).collect(),
    }
}

fn by_state(members: &[Member]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for member in members {
        *counts.entry(member.state.as_str().to_owned()).or_default() += 1;
    }
    counts
}

fn worker_view(worker: WorkerSnapshot) -> WorkerView {
    WorkerView {
        running: worker.running.len(),
        unacknowledged: worker.unacknowledged,
        capacity: worker.capacity,
        started: worker.started,
        finished: worker.finished,
        epoch: worker.epoch.to_string(),
    }
}

/// The master's counts; `None` when nobody leads or it does not say in time.
async fn counts(office: &Office) -> Option<MasterSnapshot> {
    // A vacancy is plain from the picture: no reason to wait for its end.
    office.picture().cluster.master.as_ref()?;
    ledger_within(office, false, COUNTS_WITHIN).await.ok()
}

/// `GET /v1/members[?node=]`: the view of the node that is asked, or of another one.
pub(super) async fn members(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(at): Params<AtNode>,
) -> Answer {
    let call = |_| Call::get("/v1/members");
    let local = members_here(&office, carried);
    office
        .at_node(carried, at.node.as_deref(), call, local)
        .await
}

async fn members_here(office: &Office, carried: bool) -> Answer {
    // Whoever carried this here has the counts from the master.
    let counts = if carried { None } else { counts(office).await };
    let picture = office.picture();
    let members = picture.cluster.members.iter();
    ok(MembersView {
        revision: picture.cluster.revision,
        members: members
            .map(|member| member_view(&picture, member, counts.as_ref()))
            .collect(),
    })
}

fn member_view(picture: &Picture, member: &Member, counts: Option<&MasterSnapshot>) -> MemberView {
    let who = member.registration.clone();
    let master = picture.cluster.master.as_ref();
    let outstanding = |c: &MasterSnapshot| c.outstanding.get(&who.name).copied().unwrap_or(0);
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    MemberView {
        address: who.address(),
        running: counts.map(outstanding),
        name: who.name,
        id: who.id,
        admin: who.admin,
        incarnation: member.incarnation.0,
        state: member.state.as_str().to_owned(),
        master: master.is_some_and(|m| m.record.id == who.id),
        weight: who.weight,
        eligible: who.eligible,
        jobs: who.jobs,
        tags: who.tags,
        capacity: who.capacity,
        version: who.version,
        host: who.host,
        pid: who.pid,
        since: rfc3339(picture.member_since(who.id)),
        started_at: rfc3339(who.started_at),
        insecure: who.insecure,
        session: member.session,
        rtt_us: member.rtt.map(micros),
        lag_us: micros(member.lag),
        registry: member.registry,
        unheard: member
            .unheard
            .iter()
            .map(|id| picture.name_of(*id))
            .collect(),
    }
}

/// `GET /v1/debug[?node=]`: what a node says of itself for a debug bundle.
pub(super) async fn debug(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(at): Params<AtNode>,
) -> Answer {
    let call = |_| Call::get("/v1/debug");
    let local = async {
        let seed = &office.seed;
        let picture = office.picture();
        let members = picture.cluster.members.iter();
        let members: Vec<_> = members.map(|m| member_view(&picture, m, None)).collect();
        let (status, ledger) = tokio::join!(
            status_here(&office),
            office.ask("master", &seed.ask_master, AskMaster),
        );
        ok(DebugView {
            status,
            actors: seed.actors.report(),
            members: serde_json::to_value(members).unwrap_or_default(),
            config: seed.config.show(),
            process: process::everything(),
            ledger: ledger.ok(),
            followers: office.following() as u64,
            log_records: seed.events.newest(),
            protocol: PROTOCOL_VERSION,
        })
    };
    office
        .at_node(carried, at.node.as_deref(), call, local)
        .await
}
