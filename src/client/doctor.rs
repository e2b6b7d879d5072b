//! `troupe doctor`: what is wrong with this cluster, in words, and what its configuration promises at worst.
//!
//! The checks and the windows are pure functions of what the nodes say; only [`doctor`] asks.
//!
//! | check | finds |
//! |---|---|
//! | master | nobody leads |
//! | members | who is not alive, or has no session; alone cut-off members; a node that is asked and is no member |
//! | security | who was started with --insecure |
//! | addresses | who advertises loopback or VirtualBox's 10.0.2.15 while others are elsewhere |
//! | registry | away at some node; versions with known defects; a lease that is not renewed |
//! | clocks | who is off by more than a second |
//! | slow | timers that fire late |
//! | actors | restarts, hung or stopped actors |
//! | work | tasks queued and nobody alive to do them |
//! | dial-back | a peer could not reach an address where a member says it is |
//! | etcd | alarms, its quota, a history that nobody compacts |

mod etcd;
mod measured;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Map, Value, json};
use troupe_actors::admin::{
    ActorsView, ConfigView, MemberView, MembersView, RecordsView, StatusView,
};

use self::measured::Measured;

use super::api::{Api, Failure, query};
use super::read;
use super::say::{Screen, Table, Text};
use crate::cli::SettingArgs;
use crate::config::{self, Config};

/// Clocks further apart than this confuse whoever reads times; order does not depend on them.
const CLOCK_OFF: Duration = Duration::from_secs(1);
/// How long discovery waits for an heir.
const HEIR_PATIENCE: Duration = Duration::from_secs(2);
/// Timers that fire later than this make a node doubt itself.
const LATE: Duration = Duration::from_millis(100);

/// What was found.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    detail: String,
}

/// A bound that follows from the configuration.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Window {
    window: &'static str,
    at_worst_ms: u128,
    /// The longest that the nodes' records tell of.
    measured_ms: Option<u128>,
    because: String,
}

/// `troupe doctor`: exit 1 when something is wrong.
pub(super) async fn doctor(api: &Api, screen: &Screen, args: &SettingArgs) -> Result<(), Failure> {
    let told = args.told().map_err(Failure::Usage)?;
    let config = config::load(&told, std::env::vars());
    let config = config.map_err(|why| Failure::Usage(why.to_string()))?;
    let members: MembersView = read(api.get("/v1/members").await?)?;
    let actors: ActorsView = read(api.get("/v1/actors").await?)?;
    let asked: StatusView = read(api.get("/v1/status").await?)?;
    let mut findings = of_the_members(&members.members);
    findings.extend(stranger(&asked, &members.members));
    findings.extend(of_the_actors(&actors));
    let mut endpoints = BTreeSet::new();
    let mut compacts = false;
    for member in &members.members {
        let path = query("/v1/config", &[("node", Some(&member.name))]);
        if let Ok(used) = api.get(&path).await.and_then(read::<ConfigView>) {
            let compact = used.settings.get("registry.compact");
            compacts |= compact.is_some_and(|c| c.value == Value::Bool(true));
        }
        let asked = SystemTime::now();
        let path = query("/v1/status", &[("node", Some(&member.name))]);
        match api.get(&path).await.and_then(read::<StatusView>) {
            Ok(status) => {
                let took = asked.elapsed().unwrap_or_default();
                // The embedded registry has no quota and no alarms.
                let of_etcd = status.registry.iter().filter(|r| {
                    let version = r.version.as_deref().unwrap_or("");
                    r.up && !version.contains("troupe")
                });
                endpoints.extend(of_etcd.flat_map(|r| r.endpoints.clone()));
                findings.extend(of_the_status(&status, asked + took / 2, took));
            }
            Err(failure) => findings.push(bad(
                "reach",
                format!(
                    "{} does not answer: {}",
                    member.name,
                    failure.words().unwrap_or_default()
                ),
            )),
        }
    }
    for endpoint in endpoints {
        let health = etcd::ask(&endpoint).await;
        findings.extend(etcd::findings(&endpoint, health.as_ref(), compacts));
    }
    let records = records(api).await;
    findings.extend(unreachable(&members.members, &records));
    let windows = windows(&config, &measured::measure(&records));
    let well = findings.iter().all(|f| f.ok);
    let value = json!({ "ok": well, "findings": findings, "windows": windows });
    screen.value(&value, || {
        Text::Parts(vec![
            findings_table(&findings).into(),
            String::new().into(),
            windows_table(&windows).into(),
        ])
    })?;
    if well { Ok(()) } else { Err(Failure::Failed) }
}

/// What was decided, and what the newest records tell of tasks, in one order; nothing when it cannot be had.
async fn records(api: &Api) -> Vec<Map<String, Value>> {
    let mut all = Vec::new();
    for more in ["&decisions=true", ""] {
        let path = format!("/v1/logs?follow=false&limit=10000{more}");
        let view = api.get(&path).await.and_then(read::<RecordsView>);
        all.extend(view.map(|view| view.records).unwrap_or_default());
    }
    let stamp = |record: &Map<String, Value>| {
        let text = |key: &str| record.get(key).map(Value::to_string).unwrap_or_default();
        (text("hlc"), text("node_id"), text("seq"))
    };
    all.sort_by_key(stamp);
    all.dedup_by_key(|record| stamp(record));
    all
}

/// That the node that is asked is none of the members that it names.
fn stranger(asked: &StatusView, members: &[MemberView]) -> Option<Finding> {
    if members.iter().any(|m| m.id == asked.id) {
        return None;
    }
    let name = &asked.node;
    let back = match (asked.registry.as_ref().is_some_and(|r| r.up), &asked.master) {
        (false, _) => "it comes back once the registry answers".to_owned(),
        (true, Some(master)) => format!(
            "it comes back once it reaches the master {} at {}",
            master.name, master.address
        ),
        (true, None) => "it comes back once somebody leads".to_owned(),
    };
    let words = format!(
        "{name}, the node that is asked, is no member: {back}; `troupe why node {name}` tells more"
    );
    Some(bad("members", words))
}

/// Members of this life whose address a peer could not dial back.
fn unreachable(members: &[MemberView], records: &[Map<String, Value>]) -> Vec<Finding> {
    let text = |record: &Map<String, Value>, key: &str| {
        let text = record.get(key).and_then(Value::as_str);
        text.unwrap_or("").to_owned()
    };
    let told = records
        .iter()
        .filter(|record| text(record, "event") == "node.unreachable");
    let mut wrong: Vec<String> = Vec::new();
    for record in told {
        let id = text(record, "node_id");
        if let Some(member) = members.iter().find(|m| m.id.to_string() == id) {
            let (address, why) = (text(record, "address"), text(record, "reason"));
            let words = format!("{} says it is at {address}: {why}", member.name);
            if !wrong.contains(&words) {
                wrong.push(words);
            }
        }
    }
    let fine = "peers reach every member where it says it is".to_owned();
    all_or("dial-back", wrong, fine)
}

fn good(check: &'static str, detail: impl Into<String>) -> Finding {
    Finding {
        check,
        ok: true,
        detail: detail.into(),
    }
}

fn bad(check: &'static str, detail: impl Into<String>) -> Finding {
    Finding {
        check,
        ok: false,
        detail: detail.into(),
    }
}

/// The findings of one check, or that it is fine.
fn all_or(check: &'static str, wrong: Vec<String>, fine: String) -> Vec<Finding> {
    match wrong.is_empty() {
        true => vec![good(check, fine)],
        false => wrong.into_iter().map(|detail| bad(check, detail)).collect(),
    }
}

fn of_the_members(members: &[MemberView]) -> Vec<Finding> {
    let mut found = Vec::new();
    let master = members.iter().find(|m| m.master);
    found.push(match master {
        Some(m) => good("master", format!("{} leads", m.name)),
        None if members.iter().any(|m| m.eligible) => bad(
            "master",
            "nobody leads; `troupe why master` tells what was tried",
        ),
        None => bad(
            "master",
            "nobody leads, and no member is eligible: start one without --not-eligible",
        ),
    });
    let wrong = members.iter().filter_map(unwell).collect();
    found.extend(all_or(
        "members",
        wrong,
        format!("{} members, all alive", members.len()),
    ));
    let open = members.iter().filter(|m| m.insecure);
    let wrong = open.map(|m| format!("{} was started with --insecure: whoever reaches {} can join, read and change everything; give every node one secret (`troupe keygen`, security.secret_file)", m.name, m.address));
    found.extend(all_or(
        "security",
        wrong.collect(),
        "no node was started with --insecure".to_owned(),
    ));
    let wrong = members.iter().filter_map(|m| address(m, members)).collect();
    found.extend(all_or(
        "addresses",
        wrong,
        "advertised addresses make sense".to_owned(),
    ));
    let late = members
        .iter()
        .filter(|m| u128::from(m.lag_us) > LATE.as_micros());
    let wrong = late.map(|m| {
        format!(
            "the timers of {} fire {} ms late: its machine is overloaded or was paused",
            m.name,
            m.lag_us / 1000
        )
    });
    found.extend(all_or(
        "slow",
        wrong.collect(),
        "timers fire in time".to_owned(),
    ));
    if !members.iter().any(|m| m.state == "alive" && m.capacity > 0) {
        found.push(bad("work", "no member takes work: tasks stay queued"));
    }
    found
}

fn unwell(member: &MemberView) -> Option<String> {
    let name = &member.name;
    if member.state != "alive" {
        return Some(match member.state.as_str() {
            "cut-off" => format!(
                "{name} answers through the registry but not between nodes: something on the network between them drops its traffic"
            ),
            "joining" => format!(
                "{name} is registered at {} and nobody has a session with it: is that address right, and its port open?",
                member.address
            ),
            state => format!(
                "{name} is {state} since {}; `troupe why node {name}` tells the evidence",
                member.since
            ),
        });
    }
    if !member.unheard.is_empty() {
        return Some(format!(
            "{name} does not hear {}",
            member.unheard.join(", ")
        ));
    }
    (!member.registry).then(|| format!("{name} does not reach the registry"))
}

fn address(member: &MemberView, all: &[MemberView]) -> Option<String> {
    let elsewhere = all.iter().any(|m| m.host != member.host);
    let (ip, _) = member.address.rsplit_once(':')?;
    let ip = ip.trim_matches(['[', ']']);
    let loopback = ip.starts_with("127.") || ip == "::1";
    let why = match ip {
        _ if loopback && elsewhere => "other machines cannot reach a loopback address",
        "10.0.2.15" if elsewhere => {
            "every VirtualBox guest has this address on its first interface"
        }
        _ => return None,
    };
    Some(format!(
        "{} advertises {ip}: {why}; set node.advertise, node.interface or --advertise",
        member.name
    ))
}

fn of_the_actors(view: &ActorsView) -> Vec<Finding> {
    let mut wrong = Vec::new();
    for node in &view.nodes {
        if let Some(error) = &node.error {
            wrong.push(format!(
                "{} does not tell of its actors: {error}",
                node.node
            ));
        }
        for actor in &node.actors {
            let last = actor
                .last_failure
                .as_deref()
                .unwrap_or("?")
                .lines()
                .next()
                .unwrap_or("?");
            let (name, node) = (&actor.name, &node.node);
            if actor.state != "running" {
                wrong.push(format!(
                    "the {name} actor of {node} is {}; last failure: {last}",
                    actor.state
                ));
            } else if actor.restarts >= 3 && actor.uptime_s < 600.0 {
                wrong.push(format!(
                    "the {name} actor of {node} flaps: {} restarts, the last {:.0} s ago: {last}",
                    actor.restarts, actor.uptime_s
                ));
            }
        }
    }
    all_or("actors", wrong, "all actors run".to_owned())
}

fn of_the_status(status: &StatusView, asked: SystemTime, took: Duration) -> Vec<Finding> {
    let node = &status.node;
    let mut found = Vec::new();
    if !status.unanswered.is_empty() {
        found.push(bad(
            "actors",
            format!(
                "{node}: {} did not answer in time",
                status.unanswered.join(", ")
            ),
        ));
    }
    if let Some(registry) = &status.registry {
        if !registry.up {
            let why = registry
                .last_error
                .as_deref()
                .unwrap_or("it does not answer");
            found.push(bad(
                "registry",
                format!(
                    "{node} does not reach {} since {} s: {why}",
                    registry.endpoints.join(","),
                    registry.since_s
                ),
            ));
        }
        let version = registry.version.as_deref();
        if let Some(defects) = version.and_then(known_defects) {
            found.push(bad(
                "registry",
                format!("{node}: version {} {defects}", version.unwrap_or("?")),
            ));
        }
    }
    if let Ok(theirs) = humantime::parse_rfc3339(&status.now) {
        let off = theirs
            .duration_since(asked)
            .unwrap_or_else(|early| early.duration());
        if off > CLOCK_OFF + took {
            found.push(bad(
                "clocks",
                format!(
                    "the clock of {node} is off by {} ms against this machine",
                    off.as_millis()
                ),
            ));
        }
    }
    if found.is_empty() {
        found.push(good(
            "node",
            format!("{node} answers, its registry and its clock are fine"),
        ));
    }
    found
}

/// What is known to be wrong with a version of etcd, from its change log.
fn known_defects(version: &str) -> Option<&'static str> {
    // The embedded registry names the version of the protocol that it speaks; it is not that program.
    if version.contains("troupe") {
        return None;
    }
    let mut parts = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next()?, parts.next()?, parts.next()?);
    match version {
        (3, 4, patch) if patch < 30 => Some(
            "of etcd may lose or double watch events around a compaction and revoke live leases after a leader was paused (fixed later in 3.4); every decision here is a compare-transaction, so that costs time, not safety",
        ),
        (3, 5, patch) if patch < 3 => Some(
            "of etcd can corrupt its data when it is killed under load (3.5.0 to 3.5.2): upgrade",
        ),
        (3, minor, _) if (1..4).contains(&minor) => {
            Some("of etcd is no longer maintained: upgrade")
        }
        _ => None,
    }
}

/// What follows from the settings, as DESIGN derives it.
fn windows(config: &Config, measured: &Measured) -> Vec<Window> {
    let d = &config.discovery;
    let request = config.registry.timeouts.request;
    let soft = d.suspect_ceiling + d.probe_timeout + d.challenge_window;
    let window = |window, at_worst: Duration, because: String| Window {
        window,
        at_worst_ms: at_worst.as_millis(),
        measured_ms: None,
        because,
    };
    let seen = |window: Window, measured: Option<Duration>| Window {
        measured_ms: measured.map(|d| d.as_millis()),
        ..window
    };
    let election = d.stagger + 2 * request;
    vec![
        seen(window("detection, process gone", config.transport.dial_timeout + request, "the broken session, a refused re-dial, one transaction; milliseconds when nothing is slow".to_owned()), measured.detection_gone),
        seen(window("detection, machine silent", soft + request, format!("suspect_ceiling {:?} + probe_timeout {:?} + challenge_window {:?} + one transaction; ordinarily from suspect_floor {:?} on", d.suspect_ceiling, d.probe_timeout, d.challenge_window, d.suspect_floor)), measured.detection_silent),
        seen(window("no master, after a silent one", soft + request + election, format!("detection + stagger {:?} + two transactions", d.stagger)), measured.masterless_lost),
        seen(window("no master, handed over", HEIR_PATIENCE, "an heir that does not take over by then is given up, and the master leads on".to_owned()), measured.masterless_handed),
        seen(window("a lost attempt runs again", soft + request + config.master.retry_wait, format!("detection + retry_wait {:?}", config.master.retry_wait)), measured.again),
        window("a hung attempt runs again", config.master.task_timeout + config.master.retry_wait, format!("task_timeout {:?} + retry_wait", config.master.task_timeout)),
        window("a new master answers for tasks", election + config.master.recovery_wait, format!("the take-over + recovery_wait {:?}", config.master.recovery_wait)),
        window("registration of the dead goes, if nobody is left to condemn", config.registry.ttl + Duration::from_secs(1), format!("ttl {:?}, seen up to a second late", config.registry.ttl)),
    ]
}

fn findings_table(findings: &[Finding]) -> Table {
    let mut table = Table::new(["", "CHECK", "FOUND"]);
    for finding in findings {
        let mark = if finding.ok { "ok" } else { "WRONG" };
        table.row([
            mark.to_owned(),
            finding.check.to_owned(),
            finding.detail.clone(),
        ]);
    }
    table
}

fn windows_table(windows: &[Window]) -> Table {
    let mut table = Table::new(["AT WORST", "MEASURED", "WINDOW", "BECAUSE"]);
    for window in windows {
        let ms = window.at_worst_ms;
        table.row([
            format!("{ms} ms"),
            window
                .measured_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
            window.window.to_owned(),
            window.because.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(state: &str, address: &str, host: &str) -> MemberView {
        serde_json::from_value(json!({"name": "n1", "id": "00000000000000000000000000000001", "address": address, "admin": "", "incarnation": 1,
            "state": state, "master": true, "weight": 0, "eligible": true, "jobs": [], "tags": {}, "capacity": 1, "running": 0, "version": "1", "host": host,
            "pid": 1, "since": "S", "started_at": "S", "session": true, "rtt_us": null, "lag_us": 0, "registry": true, "unheard": []}))
        .unwrap()
    }

    fn wrong(members: &[MemberView]) -> Vec<String> {
        let found = of_the_members(members).into_iter().filter(|f| !f.ok);
        found.map(|f| f.detail).collect()
    }

    #[test]
    fn each_planted_situation_is_named_in_words() {
        let fine = member("alive", "10.0.0.1:22222", "a");
        assert_eq!(wrong(std::slice::from_ref(&fine)), Vec::<String>::new());
        let other = MemberView {
            host: "b".to_owned(),
            master: false,
            ..fine.clone()
        };
        for (planted, words) in [
            (member("cut-off", "10.0.0.1:1", "a"), "drops its traffic"),
            (
                member("joining", "10.0.0.1:1", "a"),
                "is that address right",
            ),
            (member("alive", "127.0.0.1:1", "a"), "loopback"),
            (
                MemberView {
                    insecure: true,
                    ..fine.clone()
                },
                "--insecure",
            ),
            (member("alive", "10.0.2.15:1", "a"), "VirtualBox"),
            (
                MemberView {
                    registry: false,
                    ..fine.clone()
                },
                "does not reach the registry",
            ),
            (
                MemberView {
                    lag_us: 400_000,
                    ..fine.clone()
                },
                "400 ms late",
            ),
            (
                MemberView {
                    master: false,
                    ..fine.clone()
                },
                "nobody leads",
            ),
        ] {
            let found = wrong(&[planted, other.clone()]);
            assert!(
                found.iter().any(|f| f.contains(words)),
                "{words}: {found:?}"
            );
        }
    }

    #[test]
    fn versions_with_known_defects_are_named_and_others_are_not() {
        for (version, known) in [
            ("3.4.23", true),
            ("3.4.30", false),
            ("3.5.1", true),
            ("3.5.9", false),
            ("3.6.0", false),
            ("3.4.0+troupe", false),
        ] {
            assert_eq!(known_defects(version).is_some(), known, "{version}");
        }
    }
}
