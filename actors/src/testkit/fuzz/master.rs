//! A reign under whatever workers and former masters say, and on whatever journal it finds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{epoch, parts};
use crate::cluster::{Cluster, Member, MemberState, Registration};
use crate::id::{Incarnation, NodeId};
use crate::master::balancer::Balancer;
use crate::master::journal::{Journal, replay};
use crate::master::ledger::WorkerId;
use crate::master::legacy::Legacy;
use crate::master::reign::Reign;
use crate::master::view::view;
use crate::master::{BalancerKind, GeneratorSettings, MasterSettings, MasterWorks};
use crate::registry::Kv;
use crate::wire::Message;

/// The wall clock, unix ms.
const NOW_MS: u64 = 1_700_000_100_000;

/// Each part is `what u8 | body`: a message, or time that passes.
pub(super) fn master(data: &[u8]) {
    let mut stage = Stage::new(VecDeque::new());
    for part in parts(data) {
        stage.play(part);
    }
    stage.close();
}

/// Each part is a segment. What was read leads on: handed out, reported, copied forward, and read again as it was.
pub(super) fn journal(data: &[u8]) {
    let segments: Vec<Kv> = parts(data)
        .into_iter()
        .enumerate()
        .map(|(n, value)| Kv {
            key: format!("/troupe/journal/0/{n:016x}"),
            value: Bytes::copy_from_slice(value),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 0,
        })
        .collect();
    let mut replayed = match replay(&segments) {
        Ok(replayed) => replayed,
        Err((key, why)) => {
            assert!(segments.iter().any(|kv| kv.key == key) && !why.to_string().is_empty());
            return;
        }
    };
    let (tasks, ids) = (replayed.tasks.len(), replayed.ids.len());
    assert_eq!(
        replayed
            .segments
            .iter()
            .map(|s| s.homes.len())
            .sum::<usize>(),
        tasks + ids,
        "each task has one home"
    );
    let mut stage = Stage::new(std::mem::take(&mut replayed.segments));
    stage.reign.restore(replayed, NOW_MS, stage.now);
    for byte in [200, 201, 0, 1, 202, 203] {
        stage.play(&[byte]);
    }
    stage.close();
}

struct Stage {
    reign: Reign,
    legacy: Legacy,
    cluster: Cluster,
    balancer: Balancer,
    rng: SmallRng,
    now: Instant,
}

impl Stage {
    fn new(segments: VecDeque<crate::master::journal::Segment>) -> Self {
        let now = Instant::now();
        let journal = Journal::new("/troupe/journal/", "/troupe/master", epoch(42), segments);
        let settings = MasterSettings {
            max_queued: 64,
            keep_finished: 8,
            keep_ids: 8,
            ..MasterSettings::default()
        };
        let generator = GeneratorSettings::default();
        let mut cluster = Cluster::empty(NodeId(7));
        cluster.epoch = epoch(42);
        cluster.members = [NodeId(7), NodeId(8)].map(member).to_vec();
        Self {
            reign: Reign::new(epoch(42), &settings, generator, journal, now),
            legacy: Legacy::default(),
            cluster,
            balancer: Balancer::new(BalancerKind::TwoChoices),
            rng: SmallRng::seed_from_u64(1),
            now,
        }
    }

    fn play(&mut self, part: &[u8]) {
        let Some((what, body)) = part.split_first() else {
            return;
        };
        match Message::decode_body(u16::from(*what), body) {
            Ok(Some(message)) => self.hear(message, body.len()),
            _ => self.pass(*what),
        }
        assert!(self.reign.ledger.queued() <= self.reign.ledger.open());
    }

    fn hear(&mut self, message: Message, n: usize) {
        let worker = worker(7 + n as u128 % 2);
        let (reign, now) = (&mut self.reign, self.now);
        match message {
            Message::Report(report) => {
                let named = report.running.len() + report.results.len();
                let heard = reign.reported(worker, report, NOW_MS, now);
                assert!(heard.adopted.len() + heard.stray.len() <= named);
            }
            Message::Results(results) => {
                let count = results.results.len();
                assert_eq!(reign.results(worker, results, now).len(), count);
            }
            Message::HandBack(back) => {
                for attempt in back.attempts {
                    reign.ledger.take_back(attempt, now);
                }
            }
            Message::Started(started) => {
                for attempt in started.attempts {
                    reign.ledger.started(attempt, NOW_MS);
                }
            }
            Message::Progress(told) => {
                reign.ledger.progress(told.attempt, Some(&told.told), now);
            }
            Message::Shadow(shadow) => self.legacy.shadow("old".to_owned(), shadow),
            Message::HandOver(part) => drop(self.legacy.part("old".to_owned(), part)),
            _ => {}
        }
    }

    fn pass(&mut self, what: u8) {
        self.now += Duration::from_millis(u64::from(what) * 500);
        let (reign, now) = (&mut self.reign, self.now);
        match what % 6 {
            0 => {
                let works = MasterWorks::Always;
                let matched =
                    reign.hand_out(&self.cluster, works, &mut self.balancer, &mut self.rng, now);
                for (_, assign) in matched.assigns {
                    let attempts: Vec<_> = assign.assignments.iter().map(|a| a.attempt).collect();
                    assert!(attempts.iter().all(|a| a.attempt.n > 0));
                    if what.is_multiple_of(4) {
                        reign.not_sent(worker(8), &attempts, (false, assign.report), now);
                    }
                }
            }
            1 => drop(reign.ledger.overdue(NOW_MS, now)),
            2 => drop(reign.recover(&self.cluster, NOW_MS, now)),
            3 => {
                reign.write(now);
                while let Some(flight) = reign.journal.take_off(now) {
                    if what.is_multiple_of(4) {
                        reign.not_recorded(flight.n, now);
                    } else {
                        let kv = Kv {
                            key: "segment".to_owned(),
                            value: flight.value,
                            create_revision: 1,
                            mod_revision: 1,
                            version: 1,
                            lease: 0,
                        };
                        replay(&[kv]).expect("what a master writes can be read");
                        reign.landed(flight.n, now);
                    }
                }
            }
            4 => drop(reign.removed(worker(8), NOW_MS, now)),
            _ => {
                if let Some(will) = self.legacy.take(reign.epoch) {
                    reign.inherit(will, NOW_MS, now);
                }
            }
        }
    }

    /// Everything is shown, and everything can be written.
    fn close(&mut self) {
        self.pass(2);
        let ids: Vec<_> = {
            let newest = self.reign.ledger.newest_first(None, 64, |_| true);
            newest.into_iter().map(|task| task.spec.id).collect()
        };
        for id in ids {
            if let Some(task) = self.reign.ledger.get(id) {
                let shown = view(task, Some(&self.cluster), Duration::from_secs(3600));
                serde_json::to_vec(&shown).expect("it can be shown");
            }
            if let Some(copy) = self.reign.ledger.copy_forward(id) {
                let mut segment = crate::master::record::begin(0);
                crate::master::record::append(&mut segment, &copy);
                let read = crate::master::record::read(&segment);
                assert_eq!(read, Ok((0, vec![copy])));
            }
        }
        for byte in [0, 3, 9, 4, 1, 6] {
            self.pass(byte);
        }
        let shadow = self.reign.shadow();
        let entries = self.reign.entries();
        assert!(shadow.entries.len() <= entries.len());
    }
}

fn worker(n: u128) -> WorkerId {
    WorkerId {
        id: NodeId(n),
        incarnation: Incarnation(9),
    }
}

pub(super) fn member(id: NodeId) -> Member {
    Member {
        registration: Registration {
            id,
            name: format!("node-{}", id.0),
            ip: "10.0.0.1".to_owned(),
            port: 22222,
            admin: String::new(),
            host: "here".to_owned(),
            boot: String::new(),
            pid: 42,
            version: String::new(),
            protocol: 1,
            weight: 0,
            eligible: true,
            insecure: false,
            roles: vec!["worker".to_owned()],
            jobs: vec!["multiply".to_owned(), String::new()],
            capacity: 4,
            tags: [("disk".to_owned(), "ssd".to_owned())].into(),
            started_at: 0,
        },
        incarnation: Incarnation(9),
        state: MemberState::Alive,
        session: true,
        rtt: None,
        lag: Duration::ZERO,
        registry: true,
        unheard: Vec::new(),
    }
}
