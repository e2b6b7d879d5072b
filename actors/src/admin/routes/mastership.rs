//! Who leads, and making somebody else lead.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::json;

use super::{IsCarried, escape};
use crate::admin::audit::caller;
use crate::admin::office::{Intent, Office, Where, master_view, pass_on, read_json};
use crate::admin::relay::Call;
use crate::admin::reply::{Answer, ApiError, ok};
use crate::discovery::{NewMaster, StepDown, StepDownError};
use crate::master::{AskMaster, MasterSnapshot};

/// `GET /v1/master`: from the picture, no actor is asked.
pub(super) async fn master(State(office): State<Arc<Office>>) -> Answer {
    match master_view(&office.picture()) {
        Some(master) => ok(master),
        None => Err(ApiError::missing(
            "no_master",
            "nobody leads the cluster now",
        )),
    }
}

/// `GET /v1/master/ledger`: the master's counts (`MasterSnapshot`), from whichever node is asked.
pub(super) async fn ledger(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
) -> Answer {
    let within = office.seed.settings.relay_timeout;
    ok(ledger_within(&office, carried, within).await?)
}

/// The master's counts, with a deadline of the caller's.
pub(super) async fn ledger_within(
    office: &Office,
    carried: bool,
    within: Duration,
) -> Result<MasterSnapshot, ApiError> {
    let call = |_| Call::get("/v1/master/ledger");
    let local = |_| office.ask("master", &office.seed.ask_master, AskMaster);
    let asked = office.at_master(carried, Intent::Read, within, call, read_json, local);
    asked.await
}

/// `POST /v1/master/step-down`.
pub(super) async fn step_down(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
) -> Answer {
    hand_over(&office, carried, None, "/v1/master/step-down".to_owned()).await
}

/// `POST /v1/members/{name}/promote`.
pub(super) async fn promote(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Path(name): Path<String>,
) -> Answer {
    let heir = match office.whose(Some(&name))? {
        Where::Here => office.me(),
        Where::There { id, .. } => id,
    };
    let picture = office.picture();
    let leads = picture.cluster.master.as_ref();
    if let Some(master) = leads.filter(|m| m.record.id == heir) {
        return ok(NewMaster {
            name: picture.name_of(heir),
            epoch: master.epoch.to_string(),
            handed_over: 0,
            masterless_ms: 0.0,
        });
    }
    let path = format!("/v1/members/{}/promote", escape(&heir.to_string()));
    hand_over(&office, carried, Some(heir.to_string()), path).await
}

async fn hand_over(office: &Office, carried: bool, heir: Option<String>, path: String) -> Answer {
    let within = office.seed.settings.step_down_timeout;
    let call = |_| Call::post(path.clone(), "");
    let local = |left| {
        let request = StepDown {
            heir: heir.clone(),
            why: "an operator asked for it".to_owned(),
        };
        async move {
            let caller = caller();
            log::info!(target: "admin", event = "admin.step_down", heir = heir_or_any(&request), by = caller.by.as_str(), from = caller.from.as_str(); "an operator asks this master to step down");
            let to = &office.seed.step_down;
            let outcome = office.ask_within(left, "discovery", to, request).await?;
            outcome.map_err(refusal).and_then(ok)
        }
    };
    let asked = office.at_master(carried, Intent::Write, within, call, pass_on, local);
    asked.await
}

fn heir_or_any(request: &StepDown) -> &str {
    request.heir.as_deref().unwrap_or("any")
}

fn refusal(why: StepDownError) -> ApiError {
    let (status, code) = match &why {
        StepDownError::NotMaster => return ApiError::not_master(),
        StepDownError::NoHeir(_) => (StatusCode::CONFLICT, "no_heir"),
        StepDownError::HeirSilent(_) => (StatusCode::GATEWAY_TIMEOUT, "heir_silent"),
    };
    ApiError::new(status, code, &why).with("leads_on", json!(true))
}
