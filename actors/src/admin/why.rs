//! ● What the recorded decisions say of a node, or of the master, in words. Pure: it reads records that were gathered.
//!
//! | event | said of a node | said of the master |
//! |---|---|---|
//! | `peer.suspected`, `peer.cleared`, `peer.challenged` | who doubted it, after how much silence | – |
//! | `peer.condemned` | the verdict with its evidence | when it led |
//! | `peer.added`, `peer.removed` | who saw it come and go | – |
//! | `session.*` | closed, refused, cannot be dialled back, and why | – |
//! | `node.*`, `registry.*`, `actor.*`, `admin.*` | what it says of itself | – |
//! | `master.*` | what it did as a candidate or master | all of them |

use serde_json::{Map, Value};

type Fields = Map<String, Value>;

/// Sentences in one answer: the newest ones, since an operator asks about now.
const MAX_SENTENCES: usize = 60;

/// Whether a record is about this node: said by it of itself, or by another of it.
pub(crate) fn concerns(record: &Fields, node: &str) -> bool {
    let of_itself = text(record, "node") == node && !event(record).starts_with("peer.");
    let own = of_itself && !event(record).starts_with("session.");
    own || text(record, "peer") == node
}

/// Whether a record is about mastership.
pub(crate) fn of_the_master(record: &Fields) -> bool {
    let lost = record.get("was_master") == Some(&Value::Bool(true));
    event(record).starts_with("master.") || lost
}

/// The records as sentences, the newest of them, in their order. What several nodes saw alike is said once.
pub(crate) fn sentences(records: &[Fields]) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    let mut last: Option<(String, Vec<String>, String)> = None;
    for record in records {
        let (who, what) = (text(record, "node").to_owned(), words(record));
        match &mut last {
            Some((_, seen_by, same)) if *same == what => seen_by.push(who),
            _ => {
                said.extend(last.take().map(sentence));
                last = Some((text(record, "ts").to_owned(), vec![who], what));
            }
        }
    }
    said.extend(last.map(sentence));
    said.split_off(said.len().saturating_sub(MAX_SENTENCES))
}

fn sentence((at, mut seen_by, what): (String, Vec<String>, String)) -> String {
    seen_by.dedup();
    let time = at.get(11..23).unwrap_or(&at);
    format!("{time} {}: {what}", seen_by.join(", "))
}

fn words(record: &Fields) -> String {
    let get = |key| text(record, key);
    let n = |key| number(record, key);
    let peer = get("peer");
    match event(record) {
        "peer.suspected" => format!(
            "suspects {peer}: silent for {} ms, ordinary are at most {} ms",
            n("duration_ms"),
            n("patience_ms")
        ),
        "peer.cleared" => format!("heard {peer} again and withdraws its suspicion"),
        "peer.challenged" => format!(
            "asks {peer} through the registry whether it lives, since neither it nor a witness hears it"
        ),
        "peer.condemned" => format!(
            "condemned {peer}: {} ({} ms of silence, {} witnesses, the accuser reached {} of {} members, view {})",
            get("reason"),
            n("duration_ms"),
            n("witnesses"),
            n("reached"),
            n("of"),
            n("revision")
        ),
        "peer.condemn_failed" => format!("its verdict on {peer} is not recorded: {}", get("err")),
        "peer.added" => format!("sees {peer} join from {}", get("address")),
        "peer.removed" => format!("{peer} is no longer registered"),
        "master.promoted" => format!(
            "became master under {}, reaching {} of {} members; ranked: {}",
            get("epoch"),
            n("reached"),
            n("of"),
            get("candidates")
        ),
        "master.demoted" | "master.stood_down" => {
            format!("no longer leads under {}: {}", get("epoch"), get("reason"))
        }
        "master.handing_over" => format!("hands mastership to {peer}: {}", get("reason")),
        "master.offered" => format!("is offered mastership: {}", get("reason")),
        "master.changed" => format!("sees {peer} lead under {}", get("epoch")),
        "master.claim_failed" => format!("could not claim mastership: {}", get("err")),
        "node.unreachable" => format!(
            "others cannot reach it at {}: {}",
            get("address"),
            get("reason")
        ),
        "session.dial_back_failed" => {
            format!("cannot reach {peer} where it says it is: {}", get("reason"))
        }
        "session.refused" => format!("refused a session with {peer}: {}", get("reason")),
        "session.closed" => format!("its session with {peer} ended: {}", get("reason")),
        "registry.lost" => format!("the registry does not answer: {}", get("err")),
        "actor.failed" => format!(
            "its {} actor failed: {}",
            get("actor"),
            either_of(record, "err", "reason")
        ),
        "actor.restarted" => format!(
            "its {} actor was restarted (number {})",
            get("actor"),
            n("restarts")
        ),
        "actor.hung" => format!(
            "its {} actor hangs since {} ms{}",
            either_of(record, "hung", "actor"),
            n("duration_ms"),
            match get("message") {
                "" => String::new(),
                message => format!(", in {message}"),
            }
        ),
        "actor.gave_up" => format!("its supervisor gave up: {}", get("err")),
        other => match either(record) {
            "" => format!("{} ({other})", get("msg")),
            why => format!("{} ({other}: {why})", get("msg")),
        },
    }
}

fn event(record: &Fields) -> &str {
    text(record, "event")
}

fn either(record: &Fields) -> &str {
    either_of(record, "reason", "err")
}

fn either_of<'a>(record: &'a Fields, first: &str, second: &str) -> &'a str {
    match text(record, first) {
        "" => text(record, second),
        text => text,
    }
}

fn text<'a>(record: &'a Fields, key: &str) -> &'a str {
    record.get(key).and_then(Value::as_str).unwrap_or("")
}

fn number(record: &Fields, key: &str) -> String {
    record
        .get(key)
        .map_or_else(|| "?".to_owned(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(value: Value) -> Fields {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_verdict_is_told_with_its_evidence_and_what_two_saw_is_said_once() {
        let records = [
            record(
                json!({"ts": "2026-01-01T10:00:00.100000Z", "node": "n1", "event": "peer.condemned", "peer": "n3",
                "reason": "its machine refuses connections", "duration_ms": 12, "witnesses": 1, "reached": 2, "of": 3, "revision": 9}),
            ),
            record(
                json!({"ts": "2026-01-01T10:00:00.200000Z", "node": "n1", "event": "peer.removed", "peer": "n3"}),
            ),
            record(
                json!({"ts": "2026-01-01T10:00:00.201000Z", "node": "n2", "event": "peer.removed", "peer": "n3"}),
            ),
        ];
        let said = sentences(&records);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].starts_with("10:00:00.100 n1: condemned n3: its machine refuses connections")
        );
        assert!(said[0].contains("12 ms of silence, 1 witnesses, the accuser reached 2 of 3"));
        assert_eq!(said[1], "10:00:00.200 n1, n2: n3 is no longer registered");
    }

    #[test]
    fn a_record_concerns_whom_it_is_about_and_who_says_it_of_itself() {
        for (value, is) in [
            (
                json!({"event": "peer.suspected", "node": "n1", "peer": "n3"}),
                true,
            ),
            (
                json!({"event": "peer.suspected", "node": "n3", "peer": "n1"}),
                false,
            ),
            (json!({"event": "actor.failed", "node": "n3"}), true),
            (json!({"event": "registry.lost", "node": "n1"}), false),
        ] {
            assert_eq!(concerns(&record(value.clone()), "n3"), is, "{value}");
        }
    }

    #[test]
    fn the_loss_of_a_master_belongs_to_the_story_of_mastership() {
        let condemned = json!({"event": "peer.condemned", "was_master": true});
        assert!(of_the_master(&record(condemned)));
        let other = json!({"event": "peer.condemned", "was_master": false});
        assert!(!of_the_master(&record(other)));
    }
}
