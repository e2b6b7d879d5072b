//! Which verdicts were deserved: computed from what was done to whom, and when. Pure.

use std::time::Duration;

use troupe_actors::testkit::trace::Record;

/// Evidence may be this old when it condemns: suspicion, a probe, the transaction, on a machine that is busy.
const STALE: Duration = Duration::from_millis(2500);

/// While this lasted a node could not be heard, or did not run.
#[derive(Clone, Debug)]
pub struct Excuse {
    pub node: String,
    pub from: Duration,
    pub to: Option<Duration>,
}

/// Verdicts against a registration that stood and whose process ran all the time, was reachable and not paused.
pub fn undeserved(records: &[Record], excuses: &[Excuse]) -> Vec<String> {
    let verdicts = records.iter().filter(|r| r.event == "peer.condemned");
    let undeserved = verdicts.filter(|verdict| {
        let peer = verdict.get("peer");
        let excused = excuses.iter().any(|excuse| {
            let over = excuse.to.is_some_and(|to| to + STALE < verdict.at);
            excuse.node == peer && excuse.from <= verdict.at && !over
        });
        !excused && stands(records, verdict)
    });
    undeserved.map(Record::to_string).collect()
}

/// The registration that is condemned is the newest of that node: an older one is not harmed by a verdict.
fn stands(records: &[Record], verdict: &Record) -> bool {
    let registered = records.iter().filter(|r| {
        r.event == "node.registered" && r.node == verdict.get("peer") && r.at <= verdict.at
    });
    let newest = registered.map(|r| r.number("incarnation")).max();
    newest.is_none_or(|newest| newest <= verdict.number("incarnation"))
}

#[test]
fn a_verdict_is_deserved_by_who_was_away_then_and_not_long_before() {
    let at = Duration::from_secs;
    let condemned = |s| {
        let verdict = Record::new(at(s), "n1", 1, "peer.condemned");
        verdict.with("peer", "n2").with("incarnation", 7)
    };
    let registered = |s, incarnation| {
        Record::new(at(s), "n2", 1, "node.registered").with("incarnation", incarnation)
    };
    let excuse = |node: &str, from, to| Excuse {
        node: node.to_owned(),
        from: at(from),
        to: Some(at(to)),
    };
    let rows = [
        (1, vec![condemned(9)], vec![]),
        (0, vec![condemned(9)], vec![excuse("n2", 8, 9)]),
        (0, vec![condemned(9)], vec![excuse("n2", 3, 7)]),
        (1, vec![condemned(9)], vec![excuse("n2", 3, 6)]),
        (1, vec![condemned(9)], vec![excuse("n2", 10, 11)]),
        (1, vec![condemned(9)], vec![excuse("n1", 8, 9)]),
        (1, vec![registered(1, 7), condemned(9)], vec![]),
        (
            0,
            vec![registered(1, 7), registered(8, 9), condemned(9)],
            vec![],
        ),
    ];
    for (expected, records, excuses) in rows {
        let found = undeserved(&records, &excuses);
        assert_eq!(found.len(), expected, "{records:?} {excuses:?}");
    }
}
