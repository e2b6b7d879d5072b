//! The table of wanted peers × sessions × dials: when to dial, which of two sessions stays, what must be closed.
//!
//! | a session with the same peer comes up while one is there                        | which stays                      |
//! |----------------------------------------------------------------------------------|----------------------------------|
//! | it speaks for a newer incarnation                                                | the new one                      |
//! | it speaks for an older incarnation (or older than the view's)                    | refused: `Stale`                 |
//! | the same side dialled both                                                       | the one dialled later            |
//! | the peer dialled the new one after it had welcomed the old: it has lost the old  | the new one                      |
//! | both dialled at once                                                             | the one dialled by the lower id  |
//!
//! While the lower id's own hello is under way it refuses the other's (`Duplicate`), so that nothing comes up only to be
//! replaced. "After" and "at once" are read off the hybrid clock stamps in hello and welcome, so both sides read the same.
//!
//! Dials: at once when a peer becomes wanted, changes, or its session breaks; a refused dial is repeated a few times at
//! the shortest wait, everything else backs off exponentially, with jitter. A peer whose sessions keep breaking young
//! is dialled with back-off too. No dial before this node is registered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::handshake::RefusalKind;
use super::{Incarnated, PeerSpec};
use crate::id::{Generation, Incarnation, NodeId};
use crate::wire::Hlc;

/// Sessions kept with nodes that are not in the view: joiners that we do not know yet. Bounds what strangers can hold open.
pub const MAX_GUESTS: usize = 1024;
/// Refused dials repeated at the shortest wait: a process that restarts is back within a few.
const QUICK_RETRIES: u32 = 3;
/// A session that lived shorter than this counts as a failure to keep one.
const YOUNG: Duration = Duration::from_secs(1);

/// Names one session for good; never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey(pub u64);

/// Names one dial within a life of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DialToken(pub u64);

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Dial this peer for a session.
    Dial {
        /// To be handed back with the outcome.
        token: DialToken,
        /// Whom.
        spec: PeerSpec,
    },
    /// Give this dial up; its outcome is of no interest any more.
    Abandon(DialToken),
    /// Close this session; the table has forgotten it.
    Close(Closed),
}

/// A session that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Which.
    pub key: SessionKey,
    /// With whom.
    pub id: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Why, in words.
    pub why: String,
}

/// A session whose handshake fits and that could come up now.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Its name when it does.
    pub key: SessionKey,
    /// With whom.
    pub id: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The peer's stamp in its hello or welcome.
    pub stamp: Hlc,
    /// Who dialled.
    pub dialled: Dialled,
}

/// Who dialled a session that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// This node, by this dial.
    ByUs(DialToken),
    /// The peer. `our_hello_is_out`: a dial of ours to the same peer has got as far as saying hello.
    ByPeer {
        /// See above.
        our_hello_is_out: bool,
    },
}

/// Why an offered session must not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Why.
    pub kind: RefusalKind,
    /// Why, in words.
    pub words: String,
}

#[derive(Debug)]
struct Wanted {
    spec: PeerSpec,
    dial: Dial,
    /// Dials that failed since the last session.
    failures: u32,
    /// Sessions in a row that broke young.
    breaks: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Dial {
    Idle,
    InFlight(DialToken),
    Waiting(Instant),
}

#[derive(Debug)]
struct Session {
    key: SessionKey,
    incarnation: Incarnation,
    stamp: Hlc,
    by_us: bool,
    since: Instant,
}

/// The table. Time and randomness are passed in; it answers with actions.
#[derive(Debug)]
pub struct SessionTable {
    me: NodeId,
    incarnation: Incarnation,
    generation: Generation,
    redial_min: Duration,
    redial_max: Duration,
    wanted: BTreeMap<NodeId, Wanted>,
    sessions: BTreeMap<NodeId, Session>,
    last_token: u64,
}

impl SessionTable {
    /// Nobody wanted, not registered.
    pub fn new(me: NodeId, redial_min: Duration, redial_max: Duration) -> Self {
        Self {
            me,
            incarnation: Incarnation::NONE,
            generation: Generation::default(),
            redial_min,
            redial_max: redial_max.max(redial_min),
            wanted: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_token: 0,
        }
    }

    /// Which life of this node.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Which life of the registry.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The session with this node.
    pub fn session(&self, id: NodeId) -> Option<SessionKey> {
        self.sessions.get(&id).map(|session| session.key)
    }

    /// The dial to this node that is under way.
    pub fn dial_to(&self, id: NodeId) -> Option<DialToken> {
        match self.wanted.get(&id)?.dial {
            Dial::InFlight(token) => Some(token),
            Dial::Idle | Dial::Waiting(_) => None,
        }
    }

    /// What is wanted of this node, and its dial when it is this one.
    pub fn dialled(&self, token: DialToken) -> Option<&PeerSpec> {
        let in_flight = |wanted: &&Wanted| wanted.dial == Dial::InFlight(token);
        self.wanted.values().find(in_flight).map(|w| &w.spec)
    }

    /// Exactly these are wanted from now on. Unchanged ones keep session, dial and back-off.
    pub fn set_peers(&mut self, peers: Vec<PeerSpec>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut before = std::mem::take(&mut self.wanted);
        let me = self.me;
        for spec in peers.into_iter().filter(|spec| spec.id != me) {
            let id = spec.id;
            let kept = before.remove(&id);
            let wanted = self.still_wanted(kept, spec, &mut actions);
            self.wanted.insert(id, wanted);
        }
        for (id, gone) in before {
            if let Dial::InFlight(token) = gone.dial {
                actions.push(Action::Abandon(token));
            }
            actions.extend(self.close(id, "it is no longer wanted"));
        }
        actions.extend(self.due(now));
        actions
    }

    fn still_wanted(
        &mut self,
        kept: Option<Wanted>,
        spec: PeerSpec,
        actions: &mut Vec<Action>,
    ) -> Wanted {
        let ended = self.sessions.get(&spec.id).map(|s| s.incarnation);
        if ended.is_some_and(|incarnation| incarnation < spec.incarnation) {
            actions.extend(self.close(spec.id, "the peer has registered anew"));
        }
        match kept {
            Some(kept) if same_target(&kept.spec, &spec) => Wanted { spec, ..kept },
            kept => {
                if let Some(Dial::InFlight(token)) = kept.map(|wanted| wanted.dial) {
                    actions.push(Action::Abandon(token));
                }
                Wanted {
                    spec,
                    dial: Dial::Idle,
                    failures: 0,
                    breaks: 0,
                }
            }
        }
    }

    /// This node is registered as this now. A change closes every session and gives up every dial; each is made anew.
    pub fn set_incarnation(&mut self, registered: Incarnated, now: Instant) -> Vec<Action> {
        let Incarnated {
            incarnation,
            generation,
        } = registered;
        if (incarnation, generation) == (self.incarnation, self.generation) {
            return Vec::new();
        }
        // A generation that becomes known changes nothing for a session of the same incarnations.
        let learnt = incarnation == self.incarnation && self.generation.0 == 0;
        (self.incarnation, self.generation) = (incarnation, generation);
        if learnt {
            return Vec::new();
        }
        let mut actions = Vec::new();
        for wanted in self.wanted.values_mut() {
            if let Dial::InFlight(token) = wanted.dial {
                actions.push(Action::Abandon(token));
            }
            (wanted.dial, wanted.failures) = (Dial::Idle, 0);
        }
        let ids: Vec<NodeId> = self.sessions.keys().copied().collect();
        for id in ids {
            actions.extend(self.close(id, "this node has registered anew"));
        }
        actions.extend(self.due(now));
        actions
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        self.due(now)
    }

    /// When to call [`Self::tick`] next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.wanted.values().filter_map(|wanted| match wanted.dial {
            Dial::Waiting(until) => Some(until),
            Dial::Idle | Dial::InFlight(_) => None,
        });
        waiting.min()
    }

    /// Whether this session may come up. When it does, the table counts it; what it replaces is in the actions.
    pub fn offer(&mut self, offer: &Offer, now: Instant) -> Result<Vec<Action>, Unfit> {
        self.weigh(offer)?;
        let mut actions = Vec::new();
        actions.extend(self.close(offer.id, "a newer session takes its place"));
        if let Some(wanted) = self.wanted.get_mut(&offer.id) {
            let by_us = matches!(offer.dialled, Dialled::ByUs(_));
            wanted.failures = 0;
            let hello_is_out = offer.dialled
                == Dialled::ByPeer {
                    our_hello_is_out: true,
                };
            match wanted.dial {
                // The tie is broken when its answer comes.
                Dial::InFlight(_) if hello_is_out => {}
                Dial::InFlight(token) if !by_us => {
                    actions.push(Action::Abandon(token));
                    wanted.dial = Dial::Idle;
                }
                _ => wanted.dial = Dial::Idle,
            }
        }
        let session = Session {
            key: offer.key,
            incarnation: offer.incarnation,
            stamp: offer.stamp,
            by_us: matches!(offer.dialled, Dialled::ByUs(_)),
            since: now,
        };
        self.sessions.insert(offer.id, session);
        Ok(actions)
    }

    fn weigh(&self, offer: &Offer) -> Result<(), Unfit> {
        let by_us = matches!(offer.dialled, Dialled::ByUs(_));
        let wanted = self.wanted.get(&offer.id);
        let known = wanted.map_or(Incarnation::NONE, |wanted| wanted.spec.incarnation);
        let old = self.sessions.get(&offer.id);
        let newest = old.map_or(known, |old| old.incarnation.max(known));
        if offer.incarnation < newest {
            return Err(Unfit {
                kind: RefusalKind::Stale,
                words: format!(
                    "incarnation {} of node id {} has ended: incarnation {newest} is known",
                    offer.incarnation, offer.id
                ),
            });
        }
        let Some(old) = old else {
            return self.weigh_first(offer, by_us, wanted.is_some());
        };
        if offer.incarnation > old.incarnation {
            return Ok(());
        }
        let later = offer.stamp > old.stamp;
        let keep_new = match (by_us, old.by_us) {
            (true, true) | (false, false) => later,
            // Its hello is later than its welcome to our dial: it has lost the session that we still see.
            (false, true) => later || offer.id < self.me,
            (true, false) => self.me < offer.id,
        };
        if keep_new { Ok(()) } else { Err(duplicate()) }
    }

    fn weigh_first(&self, offer: &Offer, by_us: bool, wanted: bool) -> Result<(), Unfit> {
        let ours_is_coming = offer.dialled
            == Dialled::ByPeer {
                our_hello_is_out: true,
            };
        if ours_is_coming && self.me < offer.id {
            return Err(duplicate());
        }
        if !by_us && !wanted && self.guests() >= MAX_GUESTS {
            return Err(Unfit {
                kind: RefusalKind::Crowded,
                words: format!("{MAX_GUESTS} nodes that are not in the view have sessions already"),
            });
        }
        Ok(())
    }

    fn guests(&self) -> usize {
        let stranger = |id: &&NodeId| !self.wanted.contains_key(id);
        self.sessions.keys().filter(stranger).count()
    }

    /// A dial has failed. Answers whom it was to, unless it was given up before.
    pub fn dial_failed(
        &mut self,
        token: DialToken,
        failure: DialFailure,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<PeerSpec> {
        let in_flight = |wanted: &&mut Wanted| wanted.dial == Dial::InFlight(token);
        let (min, max) = (self.redial_min, self.redial_max);
        let wanted = self.wanted.values_mut().find(in_flight)?;
        if self.sessions.contains_key(&wanted.spec.id) {
            wanted.dial = Dial::Idle;
            return Some(wanted.spec.clone());
        }
        let doublings = match failure {
            DialFailure::Duplicate => 0,
            DialFailure::Refused => wanted.failures.saturating_sub(QUICK_RETRIES - 1),
            DialFailure::Other => wanted.failures,
        };
        if failure != DialFailure::Duplicate {
            wanted.failures = wanted.failures.saturating_add(1);
        }
        wanted.dial = Dial::Waiting(now + wait(doublings, min, max, rng));
        Some(wanted.spec.clone())
    }

    /// A session has ended by itself. `None` when the table knew of its end.
    pub fn ended(
        &mut self,
        key: SessionKey,
        why: String,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<(Closed, Vec<Action>)> {
        let (id, session) = self.sessions.iter().find(|(_, s)| s.key == key)?;
        let (id, incarnation) = (*id, session.incarnation);
        let young = now.saturating_duration_since(session.since) < YOUNG;
        self.sessions.remove(&id);
        if let Some(wanted) = self.wanted.get_mut(&id) {
            wanted.breaks = if young {
                wanted.breaks.saturating_add(1)
            } else {
                0
            };
            if wanted.breaks > QUICK_RETRIES && wanted.dial == Dial::Idle {
                let doublings = wanted.breaks - QUICK_RETRIES;
                let wait = wait(doublings, self.redial_min, self.redial_max, rng);
                wanted.dial = Dial::Waiting(now + wait);
            }
        }
        let closed = Closed {
            key,
            id,
            incarnation,
            why,
        };
        Some((closed, self.due(now)))
    }

    fn close(&mut self, id: NodeId, why: &str) -> Option<Action> {
        let session = self.sessions.remove(&id)?;
        Some(Action::Close(Closed {
            key: session.key,
            id,
            incarnation: session.incarnation,
            why: why.to_owned(),
        }))
    }

    /// Dials whose time has come.
    fn due(&mut self, now: Instant) -> Vec<Action> {
        if self.incarnation == Incarnation::NONE {
            return Vec::new();
        }
        let mut actions = Vec::new();
        for (id, wanted) in &mut self.wanted {
            let is_due = match wanted.dial {
                Dial::Idle => true,
                Dial::Waiting(until) => until <= now,
                Dial::InFlight(_) => false,
            };
            if self.sessions.contains_key(id) || !is_due {
                continue;
            }
            self.last_token += 1;
            let token = DialToken(self.last_token);
            wanted.dial = Dial::InFlight(token);
            actions.push(Action::Dial {
                token,
                spec: wanted.spec.clone(),
            });
        }
        actions
    }
}

/// How a dial failed, as far as the next one depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// The peer refused it in favour of another session of the two.
    Duplicate,
    /// Nothing listens there.
    Refused,
    /// Everything else.
    Other,
}

fn same_target(a: &PeerSpec, b: &PeerSpec) -> bool {
    a.incarnation == b.incarnation && a.address == b.address
}

fn duplicate() -> Unfit {
    Unfit {
        kind: RefusalKind::Duplicate,
        words: "another session of the same two nodes stays".to_owned(),
    }
}

/// `min` doubled so many times, at most `max`, and up to a fifth less, so that many who lost one peer do not dial in step.
fn wait(doublings: u32, min: Duration, max: Duration, rng: &mut impl Rng) -> Duration {
    let factor = 2u32.saturating_pow(doublings.min(16));
    let full = min.saturating_mul(factor).min(max);
    full.mul_f64(rng.random_range(0.8..=1.0)).max(min.min(full))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const MIN: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(5);

    struct Bench {
        table: SessionTable,
        start: Instant,
        rng: StdRng,
        keys: u64,
    }

    impl Bench {
        fn new(me: u128) -> Self {
            let mut bench = Self {
                table: SessionTable::new(NodeId(me), MIN, MAX),
                start: Instant::now(),
                rng: StdRng::seed_from_u64(1),
                keys: 0,
            };
            bench.register(1);
            bench
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn register(&mut self, incarnation: i64) -> Vec<Action> {
            let registered = Incarnated {
                incarnation: Incarnation(incarnation),
                generation: Generation(1),
            };
            self.table.set_incarnation(registered, self.start)
        }

        fn want(&mut self, peers: &[(u128, i64)]) -> Vec<Action> {
            let peers = peers
                .iter()
                .map(|(id, incarnation)| spec(*id, *incarnation));
            self.table.set_peers(peers.collect(), self.start)
        }

        fn offer(
            &mut self,
            id: u128,
            incarnation: i64,
            stamp: u64,
            dialled: Dialled,
        ) -> Result<Vec<Action>, RefusalKind> {
            self.keys += 1;
            let offer = Offer {
                key: SessionKey(self.keys),
                id: NodeId(id),
                incarnation: Incarnation(incarnation),
                stamp: Hlc(stamp),
                dialled,
            };
            let now = self.start;
            self.table.offer(&offer, now).map_err(|unfit| unfit.kind)
        }

        fn fail(&mut self, token: DialToken, failure: DialFailure, ms: u64) -> Duration {
            let now = self.at(ms);
            self.table
                .dial_failed(token, failure, now, &mut self.rng)
                .unwrap();
            self.table.next_deadline().unwrap() - now
        }
    }

    fn spec(id: u128, incarnation: i64) -> PeerSpec {
        PeerSpec {
            id: NodeId(id),
            incarnation: Incarnation(incarnation),
            name: format!("n{id}"),
            address: format!("10.0.0.{id}:1"),
        }
    }

    fn dials(actions: &[Action]) -> Vec<(u128, DialToken)> {
        let dial = |action: &Action| match action {
            Action::Dial { token, spec } => Some((spec.id.0, *token)),
            Action::Abandon(_) | Action::Close(_) => None,
        };
        actions.iter().filter_map(dial).collect()
    }

    fn closes(actions: &[Action]) -> Vec<u64> {
        let close = |action: &Action| match action {
            Action::Close(closed) => Some(closed.key.0),
            Action::Dial { .. } | Action::Abandon(_) => None,
        };
        actions.iter().filter_map(close).collect()
    }

    const INBOUND: Dialled = Dialled::ByPeer {
        our_hello_is_out: false,
    };
    const CROSSING: Dialled = Dialled::ByPeer {
        our_hello_is_out: true,
    };

    #[test]
    fn nobody_is_dialled_before_this_node_is_registered() {
        let mut table = SessionTable::new(NodeId(1), MIN, MAX);
        let now = Instant::now();
        assert_eq!(table.set_peers(vec![spec(2, 1)], now), []);
        let registered = Incarnated {
            incarnation: Incarnation(1),
            generation: Generation(1),
        };
        let actions = table.set_incarnation(registered, now);
        assert_eq!(dials(&actions), [(2, DialToken(1))]);
    }

    #[test]
    fn a_change_of_peers_leaves_the_unchanged_alone() {
        let mut bench = Bench::new(1);
        let actions = bench.want(&[(2, 1), (3, 1), (1, 1)]);
        assert_eq!(dials(&actions), [(2, DialToken(1)), (3, DialToken(2))]);
        bench.offer(2, 1, 1, Dialled::ByUs(DialToken(1))).unwrap();
        let actions = bench.want(&[(2, 1), (4, 1)]);
        assert_eq!(
            actions,
            [
                Action::Abandon(DialToken(2)),
                Action::Dial {
                    token: DialToken(3),
                    spec: spec(4, 1)
                }
            ]
        );
        let actions = bench.want(&[(4, 1)]);
        assert_eq!(closes(&actions), [1]);
        assert_eq!(bench.want(&[(4, 1)]), []);
    }

    #[test]
    fn a_peer_that_registered_anew_is_hung_up_on_and_dialled() {
        let mut bench = Bench::new(1);
        bench.want(&[(2, 1)]);
        bench.offer(2, 1, 1, Dialled::ByUs(DialToken(1))).unwrap();
        let actions = bench.want(&[(2, 5)]);
        assert_eq!(closes(&actions), [1]);
        assert_eq!(dials(&actions), [(2, DialToken(2))]);
        // The session of the new incarnation may be up before the view tells of it.
        let mut bench = Bench::new(1);
        bench.want(&[(2, 1)]);
        bench.offer(2, 5, 1, INBOUND).unwrap();
        assert_eq!(bench.want(&[(2, 5)]), []);
    }

    #[test]
    fn registering_anew_closes_and_dials_everything() {
        let mut bench = Bench::new(1);
        bench.want(&[(2, 1), (3, 1)]);
        bench.offer(2, 1, 1, Dialled::ByUs(DialToken(1))).unwrap();
        assert_eq!(bench.register(1), []);
        let actions = bench.register(9);
        assert!(actions.contains(&Action::Abandon(DialToken(2))));
        assert_eq!(closes(&actions), [1]);
        assert_eq!(dials(&actions), [(2, DialToken(3)), (3, DialToken(4))]);
    }

    /// The table in the module's documentation, row by row: (me, peer), the old session, the new one, whether the new stays.
    #[test]
    fn of_two_sessions_one_stays_by_the_table() {
        let ours = Dialled::ByUs(DialToken(1));
        type Session = (i64, u64, Dialled);
        type Row = (
            &'static str,
            (u128, u128),
            Session,
            Session,
            Result<(), RefusalKind>,
        );
        let rows: &[Row] = &[
            (
                "newer incarnation",
                (1, 2),
                (1, 5, ours),
                (2, 1, INBOUND),
                Ok(()),
            ),
            (
                "older incarnation",
                (1, 2),
                (2, 5, ours),
                (1, 9, INBOUND),
                Err(RefusalKind::Stale),
            ),
            (
                "same dialler, later",
                (1, 2),
                (1, 5, INBOUND),
                (1, 6, INBOUND),
                Ok(()),
            ),
            (
                "same dialler, delayed",
                (1, 2),
                (1, 5, INBOUND),
                (1, 4, INBOUND),
                Err(RefusalKind::Duplicate),
            ),
            (
                "it has lost the old one",
                (1, 2),
                (1, 5, ours),
                (1, 6, INBOUND),
                Ok(()),
            ),
            (
                "at once, we are lower",
                (1, 2),
                (1, 5, ours),
                (1, 4, INBOUND),
                Err(RefusalKind::Duplicate),
            ),
            (
                "at once, it is lower",
                (2, 1),
                (1, 5, ours),
                (1, 4, INBOUND),
                Ok(()),
            ),
            (
                "at once, ours answered last, we are lower",
                (1, 2),
                (1, 4, CROSSING),
                (1, 5, ours),
                Ok(()),
            ),
            (
                "at once, ours answered last, it is lower",
                (2, 1),
                (1, 4, CROSSING),
                (1, 5, ours),
                Err(RefusalKind::Duplicate),
            ),
        ];
        for (row, (me, peer), old, new, expected) in rows {
            let mut bench = Bench::new(*me);
            bench.want(&[(*peer, 1)]);
            // A crossing hello would be refused by the lower id; the row is about what if it came up before.
            let first = if old.2 == CROSSING { INBOUND } else { old.2 };
            bench.offer(*peer, old.0, old.1, first).unwrap();
            let answer = bench.offer(*peer, new.0, new.1, new.2);
            if let Ok(actions) = &answer {
                assert_eq!(closes(actions), [1], "{row}");
                assert_eq!(
                    bench.table.session(NodeId(*peer)),
                    Some(SessionKey(2)),
                    "{row}"
                );
            }
            assert_eq!(answer.map(|_| ()), *expected, "{row}");
        }
    }

    #[test]
    fn while_both_hellos_cross_the_lower_id_refuses_and_the_higher_accepts() {
        let mut lower = Bench::new(1);
        lower.want(&[(2, 1)]);
        assert_eq!(lower.offer(2, 1, 1, CROSSING), Err(RefusalKind::Duplicate));
        let mut higher = Bench::new(2);
        higher.want(&[(1, 1)]);
        assert_eq!(higher.offer(1, 1, 1, CROSSING), Ok(vec![]));
        let wait = {
            higher
                .table
                .ended(SessionKey(1), String::new(), higher.start, &mut higher.rng);
            higher.fail(DialToken(1), DialFailure::Duplicate, 0)
        };
        assert!(wait <= MIN);
    }

    #[test]
    fn a_dial_that_has_not_said_hello_is_given_up_for_an_inbound_session() {
        let mut bench = Bench::new(1);
        bench.want(&[(2, 1)]);
        let actions = bench.offer(2, 1, 1, INBOUND).unwrap();
        assert_eq!(actions, [Action::Abandon(DialToken(1))]);
        assert_eq!(bench.table.next_deadline(), None);
    }

    #[test]
    fn a_broken_session_is_dialled_at_once_and_then_with_back_off() {
        let mut bench = Bench::new(1);
        bench.want(&[(2, 1)]);
        bench.offer(2, 1, 1, Dialled::ByUs(DialToken(1))).unwrap();
        let now = bench.at(10_000);
        let ended = bench
            .table
            .ended(SessionKey(1), "eof".to_owned(), now, &mut bench.rng);
        let (closed, actions) = ended.unwrap();
        assert_eq!((closed.id, closed.why.as_str()), (NodeId(2), "eof"));
        assert_eq!(dials(&actions), [(2, DialToken(2))]);
        let again = bench
            .table
            .ended(SessionKey(1), "eof".to_owned(), now, &mut bench.rng);
        assert_eq!(again, None);

        let mut waits = Vec::new();
        for n in 0..14 {
            let wait = bench.fail(DialToken(2 + n), DialFailure::Refused, 20_000);
            waits.push(wait);
            let actions = bench.table.tick(bench.at(20_000) + wait);
            assert_eq!(dials(&actions), [(2, DialToken(3 + n))]);
        }
        assert!(waits[..3].iter().all(|wait| *wait == MIN), "{waits:?}");
        assert!(waits[3] > MIN, "{waits:?}");
        assert!(waits[13] > MAX / 2 && waits[13] <= MAX, "{waits:?}");
    }

    #[test]
    fn sessions_that_keep_breaking_young_are_dialled_with_back_off() {
        let mut bench = Bench::new(1);
        let mut actions = bench.want(&[(2, 1)]);
        let mut at_once = 0;
        for _ in 0..10 {
            let [(_, token)] = dials(&actions)[..] else {
                break;
            };
            at_once += 1;
            bench.offer(2, 1, 1, Dialled::ByUs(token)).unwrap();
            let key = SessionKey(bench.keys);
            let now = bench.at(1);
            let ended = bench.table.ended(key, String::new(), now, &mut bench.rng);
            actions = ended.unwrap().1;
        }
        assert!((3..=6).contains(&at_once), "{at_once}");
        assert!(bench.table.next_deadline().is_some());
    }

    #[test]
    fn strangers_are_bounded_and_members_are_not() {
        let mut bench = Bench::new(1);
        bench.want(&[(5_000, 1)]);
        for id in 0..MAX_GUESTS {
            bench.offer(10_000 + id as u128, 1, 1, INBOUND).unwrap();
        }
        assert_eq!(bench.offer(9_999, 1, 1, INBOUND), Err(RefusalKind::Crowded));
        assert!(bench.offer(5_000, 1, 1, INBOUND).is_ok());
    }

    #[test]
    fn a_late_outcome_of_an_abandoned_dial_changes_nothing() {
        let mut bench = Bench::new(1);
        bench.want(&[(2, 1)]);
        bench.want(&[]);
        let now = bench.start;
        let told = bench
            .table
            .dial_failed(DialToken(1), DialFailure::Refused, now, &mut bench.rng);
        assert_eq!(told, None);
    }

    proptest! {
        /// Two tables, both dial at once, their four greetings arrive in any order that causality allows: both end with the same session.
        #[test]
        fn both_sides_of_a_simultaneous_dial_keep_the_same_session(order in Just([0, 1, 2, 3]).prop_shuffle()) {
            let mut nodes = [Bench::new(1), Bench::new(2)];
            nodes[0].want(&[(2, 1)]);
            nodes[1].want(&[(1, 1)]);
            // Connection c is dialled by node c. Each node's stamps rise: hello 1, welcome 2.
            let mut hello_seen = [false; 2];
            let mut welcomed = [false; 2];
            let mut holds: [Option<usize>; 2] = [None, None];
            let mut todo: Vec<usize> = order.to_vec();
            let mut rounds = 0;
            while !todo.is_empty() && rounds < 20 {
                rounds += 1;
                let step = todo.remove(0);
                let connection = step % 2;
                let (dialler, acceptor) = (connection, 1 - connection);
                if step < 2 {
                    hello_seen[connection] = true;
                    let out = nodes[acceptor].table.dial_to(NodeId(dialler as u128 + 1)).is_some();
                    let answer = nodes[acceptor].offer(dialler as u128 + 1, 1, 1, Dialled::ByPeer { our_hello_is_out: out });
                    if answer.is_ok() {
                        welcomed[connection] = true;
                        holds[acceptor] = Some(connection);
                    }
                } else if !hello_seen[connection] {
                    todo.push(step);
                } else if welcomed[connection] {
                    let peer = acceptor as u128 + 1;
                    let answer = nodes[dialler].offer(peer, 1, 2, Dialled::ByUs(DialToken(1)));
                    if answer.is_ok() {
                        holds[dialler] = Some(connection);
                    }
                }
            }
            prop_assert_eq!(holds[0], holds[1]);
            prop_assert_eq!(holds[0], Some(0));
        }
    }
}
