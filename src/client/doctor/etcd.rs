//! What etcd says of its own health: alarms, quota, compaction. Asked over its JSON gateway, from where doctor runs; pure but for [`ask`].

use serde_json::Value;

use super::{Finding, bad, good};
use crate::client::api::{Api, Pass};

/// This much of the quota in use is too much.
const FULL: f64 = 0.8;
/// A history this long, and never compacted, is one that nobody compacts.
const LONG_HISTORY: i64 = 100_000;

/// What could be read of one endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Health {
    alarms: Option<Vec<String>>,
    quota: Option<f64>,
    in_use: Option<f64>,
    revision: Option<i64>,
    compacted: Option<i64>,
}

/// Asks an endpoint; `None` when it cannot be read from here: another machine's loopback, TLS, a user.
pub(super) async fn ask(endpoint: &str) -> Option<Health> {
    let api = Api::new(endpoint, &Pass::default()).ok()?;
    let alarms = api.post("/v3/maintenance/alarm", r#"{"action":"GET"}"#.to_owned());
    let alarms = alarms.await.ok().map(|answer| alarms_in(&answer.0));
    let status = api.post("/v3/maintenance/status", "{}".to_owned()).await;
    let status = status.ok().map(|answer| answer.0);
    let page = api.text("/metrics").await.unwrap_or_default();
    let number = |value: &Value| value.as_str()?.parse().ok();
    let health = Health {
        alarms,
        quota: metric(&page, "etcd_server_quota_backend_bytes"),
        in_use: metric(&page, "etcd_mvcc_db_total_size_in_bytes"),
        revision: status
            .as_ref()
            .and_then(|s| number(&s["header"]["revision"])),
        compacted: metric(&page, "etcd_debugging_mvcc_compact_revision").map(|n| n as i64),
    };
    (health != Health::default()).then_some(health)
}

fn alarms_in(answer: &Value) -> Vec<String> {
    let alarms = answer["alarms"].as_array().into_iter().flatten();
    let names = alarms.filter_map(|alarm| alarm["alarm"].as_str());
    names.map(str::to_owned).collect()
}

/// The value of a series without labels.
fn metric(page: &str, name: &str) -> Option<f64> {
    let line = page
        .lines()
        .find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.parse().ok()
}

/// What is right and wrong with it. `compacts`: the nodes drop its history as durable work goes on.
pub(super) fn findings(endpoint: &str, health: Option<&Health>, compacts: bool) -> Vec<Finding> {
    let Some(health) = health else {
        return vec![good(
            "etcd",
            format!(
                "{endpoint} cannot be read from here: its alarms, quota and compaction are not looked at"
            ),
        )];
    };
    let mut wrong = Vec::new();
    for alarm in health.alarms.iter().flatten() {
        let what = match alarm.as_str() {
            "NOSPACE" => {
                "its quota is used up and it takes no writes: compact, defragment, then `etcdctl alarm disarm`"
            }
            "CORRUPT" => "its members differ: restore it from a snapshot",
            _ => "see `etcdctl alarm list`",
        };
        wrong.push(bad(
            "etcd",
            format!("{endpoint} raised the alarm {alarm}: {what}"),
        ));
    }
    let mib = |bytes: f64| bytes / 1024.0 / 1024.0;
    if let (Some(quota), Some(used)) = (health.quota, health.in_use)
        && used > quota * FULL
    {
        let words = format!(
            "{endpoint} uses {:.0} of its {:.0} MiB: compact and defragment it before it takes no writes",
            mib(used),
            mib(quota)
        );
        wrong.push(bad("etcd", words));
    }
    let never = health.compacted.is_some_and(|at| at <= 0);
    if never && !compacts && health.revision > Some(LONG_HISTORY) {
        let words = format!(
            "{endpoint} was never compacted and is at revision {}: set registry.compact, or etcd's --auto-compaction-retention",
            health.revision.unwrap_or(0)
        );
        wrong.push(bad("etcd", words));
    }
    if !wrong.is_empty() {
        return wrong;
    }
    let used = match (health.quota, health.in_use) {
        (Some(quota), Some(used)) => format!("{:.0} of {:.0} MiB", mib(used), mib(quota)),
        _ => "an unknown part of its quota".to_owned(),
    };
    let alarms = match &health.alarms {
        Some(_) => "no alarm",
        None => "alarms that cannot be read",
    };
    let compaction = match (compacts, health.compacted) {
        (true, _) => "compacted by the master",
        (false, Some(at)) if at > 0 => "compacted by others",
        (false, _) => "not compacted so far",
    };
    vec![good(
        "etcd",
        format!("{endpoint} uses {used}, {alarms}, {compaction}"),
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn alarms_a_full_quota_and_a_history_that_only_grows_are_named() {
        let well = Health {
            alarms: Some(Vec::new()),
            quota: Some(2_147_483_648.0),
            in_use: Some(20_480.0),
            revision: Some(500_000),
            compacted: Some(-1),
        };
        let alarm = json!({"alarms": [{"memberID": "1", "alarm": "NOSPACE"}]});
        let full = Health {
            alarms: Some(alarms_in(&alarm)),
            in_use: Some(2_000_000_000.0),
            ..well.clone()
        };
        let words = |health: Option<&Health>, compacts| {
            let found = findings("http://e:1", health, compacts);
            let ok = found.iter().all(|f| f.ok);
            let said = found.into_iter().map(|f| f.detail).collect::<Vec<_>>();
            (ok, said.join("\n"))
        };
        let (ok, said) = words(Some(&well), true);
        assert!(
            ok && said.contains("0 of 2048 MiB, no alarm, compacted by the master"),
            "{said}"
        );
        let (ok, said) = words(Some(&full), true);
        assert!(
            !ok && said.contains("NOSPACE") && said.contains("1907 of its 2048"),
            "{said}"
        );
        let (ok, said) = words(Some(&well), false);
        assert!(!ok && said.contains("never compacted"), "{said}");
        let (ok, said) = words(None, false);
        assert!(ok && said.contains("cannot be read from here"), "{said}");
    }

    #[test]
    fn a_series_is_found_by_its_whole_name() {
        let page =
            "# HELP x y\netcd_server_quota_backend_bytes 2.147483648e+09\netcd_server_quota 1\n";
        assert_eq!(
            metric(page, "etcd_server_quota_backend_bytes"),
            Some(2_147_483_648.0)
        );
        assert_eq!(metric(page, "etcd_server"), None);
    }
}
