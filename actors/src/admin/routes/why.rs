//! Why a node or the master is as it is: the recorded decisions of all members, in words and as they were recorded.

use std::sync::Arc;

use axum::extract::{Path, State};

use super::records;
use crate::admin::WhyView;
use crate::admin::office::{Office, master_view};
use crate::admin::reply::{Answer, ApiError, ok};
use crate::admin::why;

/// `GET /v1/why/node/{name}`.
pub(super) async fn node(State(office): State<Arc<Office>>, Path(name): Path<String>) -> Answer {
    let gathered = records::decisions(&office).await;
    let mut found = gathered.records;
    found.retain(|record| why::concerns(record, &name));
    let picture = office.picture();
    let now = match picture.cluster.named(&name) {
        Some(member) => format!(
            "now: {} sees {name} {}{}",
            office.seed.identity.name(),
            member.state.as_str(),
            match member.state {
                crate::cluster::MemberState::CutOff =>
                    ": it answers through the registry, but its sessions do not work; look at the network between them",
                _ => "",
            }
        ),
        None if found.is_empty() => {
            let message = format!("nothing is recorded of a node called {name}");
            return Err(ApiError::missing("no_such_node", message));
        }
        None => format!("now: {name} is no member"),
    };
    let mut answer = why::sentences(&found);
    answer.push(now);
    ok(WhyView {
        question: format!("why is node {name} as it is?"),
        answer,
        records: found,
        missing: gathered.missing,
    })
}

/// `GET /v1/why/master`.
pub(super) async fn master(State(office): State<Arc<Office>>) -> Answer {
    let gathered = records::decisions(&office).await;
    let mut found = gathered.records;
    found.retain(why::of_the_master);
    let mut answer = why::sentences(&found);
    answer.push(match master_view(&office.picture()) {
        Some(master) => format!("now: {} leads under {}", master.name, master.epoch),
        None => "now: nobody leads".to_owned(),
    });
    ok(WhyView {
        question: "why does this node lead?".to_owned(),
        answer,
        records: found,
        missing: gathered.missing,
    })
}
