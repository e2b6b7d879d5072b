//! What the ledger promises, as sentences, and random histories against a model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{in_line as stands_in_line, *};
use crate::id::Incarnation;
use crate::master::record::Snapshot;

const EPOCH: Epoch = Epoch {
    generation: crate::id::Generation(1),
    revision: 5,
};

fn ledger() -> Ledger {
    Ledger::new(LedgerSettings {
        max_queued: 100,
        max_queued_bytes: 10_000,
        keep_finished: 50,
        keep_finished_for: Duration::from_secs(6000),
        keep_finished_bytes: 1_000_000,
        retry_wait: Duration::from_secs(1),
        max_kills: 3,
        window: Duration::from_secs(600),
        keep_ids: 50,
    })
}

fn id(n: u128) -> TaskId {
    TaskId(uuid::Uuid::from_u128(n))
}

fn spec(n: u128) -> TaskSpec {
    TaskSpec {
        id: id(n),
        job: "multiply".into(),
        input: Bytes::from_static(b"{}"),
        meta: Default::default(),
        durable: false,
        timeout_ms: 1000,
        max_attempts: 3,
        priority: 0,
        require: Default::default(),
        created_ms: 0,
        not_before_ms: 0,
    }
}

fn worker(n: u128) -> WorkerId {
    WorkerId {
        id: NodeId(n),
        incarnation: Incarnation(n as i64),
    }
}

fn result(attempt: AttemptId, outcome: Outcome) -> TaskResult {
    TaskResult {
        attempt,
        outcome,
        started_ms: 1,
        finished_ms: 2,
        spec: None,
    }
}

fn done(attempt: AttemptId) -> TaskResult {
    result(attempt, Outcome::Done(Bytes::from_static(b"1")))
}

/// What is ready, best first.
fn in_line(ledger: &mut Ledger, now: Instant) -> Vec<TaskId> {
    ledger.ripen(now);
    let mut heads = Vec::new();
    for line in ledger.busy_lines() {
        let first = ledger
            .first(line)
            .map(|(place, task)| (place, task.spec.id));
        heads.extend(first);
    }
    let best = heads.into_iter().min().map(|(_, id)| id);
    let waits = |id: &TaskId| stands_in_line(&ledger.tasks, *id);
    let ids: BTreeSet<TaskId> = ledger.lines.some().filter(waits).collect();
    let mut all: Vec<_> = ids
        .iter()
        .map(|id| (ledger.tasks[id].place(), *id))
        .collect();
    all.sort();
    assert_eq!(best, all.first().map(|(_, id)| *id));
    all.into_iter().map(|(_, id)| id).collect()
}

#[test]
fn a_task_is_handed_out_and_recorded_once() {
    let now = Instant::now();
    let mut ledger = ledger();
    ledger.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
    assert_eq!(ledger.lease(id(1), worker(2), EPOCH, now), None);
    assert_eq!(
        ledger.result(NodeId(1), &done(a.attempt), now),
        Verdict::Recorded
    );
    let again = ledger.result(NodeId(1), &done(a.attempt), now);
    assert_eq!(again, Verdict::Repeated);
    let other = ledger.result(NodeId(2), &done(a.attempt), now);
    assert_eq!(other, Verdict::Refused("the task is already finished"));
    let repeated = ledger.result(NodeId(2), &done(a.attempt), now);
    assert_eq!(repeated, Verdict::Repeated);
    assert_eq!(ledger.get(id(1)).unwrap().refused().len(), 1);
}

#[test]
fn a_lost_worker_queues_its_tasks_again_and_its_late_result_is_refused() {
    let now = Instant::now();
    let mut ledger = ledger();
    ledger.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    let first = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
    let lost = ledger.lose_worker(worker(1), 9, now);
    assert_eq!(
        lost,
        vec![(first.attempt, Verdict::Requeued("its worker is gone"))]
    );
    let second = ledger.lease(id(1), worker(2), EPOCH, now).unwrap();
    assert!(second.attempt.attempt > first.attempt.attempt);
    let late = ledger.result(NodeId(1), &done(first.attempt), now);
    assert_eq!(late, Verdict::Refused("a newer attempt superseded it"));
    assert_eq!(
        ledger.result(NodeId(2), &done(second.attempt), now),
        Verdict::Recorded
    );
}

#[test]
fn a_retry_waits_twice_as_long_each_time_and_the_last_one_is_dead() {
    let mut now = Instant::now();
    let mut ledger = ledger();
    ledger.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    for (n, wait) in [1, 2].into_iter().enumerate() {
        assert_eq!(in_line(&mut ledger, now), vec![id(1)], "attempt {n}");
        let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        let retry = result(a.attempt, Outcome::Retry("no".to_owned()));
        assert!(matches!(
            ledger.result(NodeId(1), &retry, now),
            Verdict::Requeued(_)
        ));
        let wait = Duration::from_secs(wait);
        assert_eq!(in_line(&mut ledger, now + wait.mul_f32(0.799)), vec![]);
        now += wait.mul_f32(1.201);
    }
    ledger.ripen(now);
    let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
    let retry = result(a.attempt, Outcome::Retry("no".to_owned()));
    assert_eq!(ledger.result(NodeId(1), &retry, now), Verdict::Dead);
    assert_eq!(ledger.get(id(1)).unwrap().state, State::Dead("no".into()));
}

#[test]
fn what_could_not_be_sent_is_no_attempt_but_its_number_is_used() {
    let now = Instant::now();
    let mut ledger = ledger();
    ledger.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    for n in 1..10 {
        let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        assert_eq!(a.attempt.attempt.n, n);
        assert!(ledger.take_back(a.attempt, now));
    }
    assert_eq!(ledger.queued(), 1);
}

#[test]
fn a_journal_with_the_highest_number_of_attempts_can_be_led_on() {
    let now = Instant::now();
    let mut ledger = ledger();
    let before = Try {
        attempt: Attempt {
            epoch: Epoch::NONE,
            n: u32::MAX,
        },
        worker: worker(1),
        started_ms: 1,
        finished_ms: 2,
        ending: Ending::Lost,
        spent: false,
        blamed: false,
    };
    let snapshot = Snapshot {
        tries: vec![(&before).into()],
        ..Snapshot::new(TaskSpec {
            durable: true,
            ..spec(1)
        })
    };
    ledger.restore(snapshot, 0, now);
    ledger.release(0, now);
    let again = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
    assert!(again.attempt.attempt > before.attempt);
}

#[test]
fn an_adopted_attempt_keeps_its_token_and_finishes_once() {
    let now = Instant::now();
    let mut old = ledger();
    old.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    let running = old.lease(id(1), worker(1), EPOCH, now).unwrap();
    let mut new = ledger();
    new.adopt(worker(1), &running, 7, EPOCH, now).unwrap();
    assert_eq!(new.queued(), 0);
    assert_eq!(
        new.result(NodeId(1), &done(running.attempt), now),
        Verdict::Recorded
    );
    let again = new.adopt(worker(1), &running, 7, EPOCH, now);
    assert_eq!(again, Err("the task is already finished"));
}

#[test]
fn an_older_attempt_is_not_adopted_over_a_newer_one() {
    let now = Instant::now();
    let mut old = ledger();
    old.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    let first = old.lease(id(1), worker(1), EPOCH, now).unwrap();
    old.take_back(first.attempt, now);
    let second = old.lease(id(1), worker(2), EPOCH, now).unwrap();
    let mut new = ledger();
    new.adopt(worker(2), &second, 0, EPOCH, now).unwrap();
    assert_eq!(
        new.adopt(worker(1), &first, 0, EPOCH, now),
        Err("a newer attempt superseded it")
    );
    let mut other_order = ledger();
    other_order.adopt(worker(1), &first, 0, EPOCH, now).unwrap();
    other_order
        .adopt(worker(2), &second, 0, EPOCH, now)
        .unwrap();
    let late = other_order.result(NodeId(1), &done(first.attempt), now);
    assert!(matches!(late, Verdict::Refused(_)));
}

#[test]
fn an_attempt_without_a_word_is_given_up_after_its_time_and_a_grace() {
    let now = Instant::now();
    let mut ledger = ledger();
    ledger.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
    let due = now + Duration::from_secs(1) + GRACE;
    assert!(ledger.overdue(9, due - Duration::from_millis(1)).is_empty());
    assert_eq!(ledger.overdue(9, due).len(), 1);
}

#[test]
fn higher_priority_goes_first_and_equals_in_order() {
    let now = Instant::now();
    let mut ledger = ledger();
    for (n, priority) in [(1, 0), (2, 5), (3, 0), (4, 5)] {
        let spec = TaskSpec {
            priority,
            ..spec(n)
        };
        ledger.accept(spec, Duration::ZERO, 0, now).unwrap();
    }
    assert_eq!(in_line(&mut ledger, now), [2, 4, 1, 3].map(id).to_vec());
}

#[test]
fn the_queue_is_bounded_by_count_and_bytes_and_finished_tasks_by_count_and_age() {
    let now = Instant::now();
    let mut ledger = ledger();
    for n in 0..100 {
        ledger.accept(spec(n), Duration::ZERO, 0, now).unwrap();
    }
    assert_eq!(
        ledger.accept(spec(100), Duration::ZERO, 0, now),
        Err(Full::Count(100))
    );
    for n in 0..100 {
        let a = ledger.lease(id(n), worker(1), EPOCH, now).unwrap();
        ledger.result(NodeId(1), &done(a.attempt), now);
    }
    assert_eq!(ledger.counts()["done"], 50);
    let big = TaskSpec {
        input: Bytes::from(vec![0; 10_001]),
        ..spec(200)
    };
    assert_eq!(
        ledger.accept(big, Duration::ZERO, 0, now),
        Err(Full::Bytes(0))
    );
    let late = now + Duration::from_secs(6001);
    ledger.accept(spec(201), Duration::ZERO, 0, late).unwrap();
    let a = ledger.lease(id(201), worker(1), EPOCH, late).unwrap();
    ledger.result(NodeId(1), &done(a.attempt), late);
    assert_eq!(ledger.counts()["done"], 1);
}

#[test]
fn an_attempt_adopted_over_an_older_one_leaves_nothing_with_the_older_worker() {
    let now = Instant::now();
    let mut old = ledger();
    old.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    let first = old.lease(id(1), worker(1), EPOCH, now).unwrap();
    old.take_back(first.attempt, now);
    let second = old.lease(id(1), worker(2), EPOCH, now).unwrap();
    let mut new = ledger();
    new.adopt(worker(1), &first, 0, EPOCH, now).unwrap();
    new.adopt(worker(2), &second, 0, EPOCH, now).unwrap();
    assert_eq!(new.leased_to(worker(1)), vec![]);
    assert_eq!(new.lose_worker(worker(1), 9, now), vec![]);
    assert_eq!(new.leased_to(worker(2)), vec![second.attempt]);
    assert_eq!(
        new.get(id(1)).unwrap().tries()[0].ending,
        Ending::Superseded
    );
}

#[test]
fn a_token_that_no_master_can_have_handed_out_is_not_adopted() {
    let now = Instant::now();
    let mut other = ledger();
    other.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    let genuine = other.lease(id(1), worker(1), EPOCH, now).unwrap();
    let above = Epoch {
        revision: EPOCH.revision + 1,
        ..EPOCH
    };
    let forged = [(above, 1), (EPOCH, u32::MAX)].map(|(epoch, n)| {
        let attempt = Attempt { epoch, n };
        let attempt = AttemptId {
            task: id(1),
            attempt,
        };
        Assignment {
            attempt,
            ..genuine.clone()
        }
    });
    for forged in forged {
        let mut ledger = ledger();
        assert!(ledger.adopt(worker(1), &forged, 0, EPOCH, now).is_err());
        assert_eq!(ledger.open(), 0);
    }
}

#[test]
fn an_attempt_its_worker_never_began_is_not_held_against_the_task() {
    let now = Instant::now();
    let mut ledger = ledger();
    ledger.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    for _ in 0..5 {
        let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        let lost = ledger.unknown_to_worker(a.attempt, 9, now).unwrap();
        assert!(matches!(lost.1, Verdict::Requeued(_)));
    }
    for n in 0..3 {
        let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        ledger.started(a.attempt, 5);
        let (_, verdict) = ledger.unknown_to_worker(a.attempt, 9, now).unwrap();
        assert_eq!(verdict == Verdict::Dead, n == 2);
    }
    assert_eq!(ledger.get(id(1)).unwrap().finished_ms(), 9);
}

#[test]
fn a_retry_that_is_told_twice_is_heard_once() {
    let now = Instant::now();
    let mut ledger = ledger();
    ledger.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
    let retry = result(a.attempt, Outcome::Retry("no".to_owned()));
    assert!(matches!(
        ledger.result(NodeId(1), &retry, now),
        Verdict::Requeued(_)
    ));
    assert_eq!(ledger.result(NodeId(1), &retry, now), Verdict::Repeated);
    let again = ledger.adopt(worker(1), &a, 7, EPOCH, now);
    assert_eq!(again, Err("its result is known"));
    assert!(ledger.get(id(1)).unwrap().refused().is_empty());
}

#[test]
fn a_need_that_nobody_meets_holds_up_no_other_task() {
    let now = Instant::now();
    let mut ledger = ledger();
    for n in 0..50 {
        let require = BTreeMap::from([("gpu".to_owned(), "yes".to_owned())]).into();
        let spec = TaskSpec {
            require,
            priority: 9,
            ..spec(n)
        };
        ledger.accept(spec, Duration::ZERO, 0, now).unwrap();
    }
    ledger.accept(spec(99), Duration::ZERO, 0, now).unwrap();
    let lines = ledger.busy_lines();
    let heads: Vec<TaskId> = lines
        .into_iter()
        .filter_map(|line| Some(ledger.first(line)?.1.spec.id))
        .collect();
    assert_eq!(heads, [id(0), id(99)]);
}

#[test]
fn the_longest_time_out_does_not_overflow_the_clock() {
    let now = Instant::now();
    let mut ledger = ledger();
    let spec = TaskSpec {
        timeout_ms: u64::MAX,
        ..spec(1)
    };
    ledger.accept(spec, Duration::MAX, 0, now).unwrap();
    ledger.ripen(now + FAR);
    assert!(ledger.lease(id(1), worker(1), EPOCH, now).is_some());
}

#[test]
fn the_next_reign_keeps_what_is_finished_and_inherits_what_is_open() {
    let now = Instant::now();
    let mut ledger = ledger();
    for n in [1, 2, 3] {
        ledger.accept(spec(n), Duration::ZERO, 0, now).unwrap();
    }
    let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
    ledger.result(NodeId(1), &done(a.attempt), now);
    let b = ledger.lease(id(2), worker(1), EPOCH, now).unwrap();
    let (open, rest) = ledger.take_open();
    ledger = rest;
    assert_eq!((open.len(), ledger.open(), ledger.queued()), (2, 0, 0));
    assert_eq!(
        ledger.result(NodeId(1), &done(a.attempt), now),
        Verdict::Repeated
    );
    for entry in open {
        assert!(ledger.inherit(entry, Duration::ZERO, EPOCH, now));
    }
    let again = ledger.lease(id(2), worker(2), EPOCH, now).unwrap();
    assert!(again.attempt.attempt > b.attempt.attempt);
}

#[test]
fn a_receipt_of_many_returned_attempts_stays_small() {
    let now = Instant::now();
    let mut ledger = ledger();
    ledger.accept(spec(1), Duration::ZERO, 0, now).unwrap();
    for _ in 0..1000 {
        let a = ledger.lease(id(1), worker(1), EPOCH, now).unwrap();
        ledger.take_back(a.attempt, now);
    }
    let task = ledger.get(id(1)).unwrap();
    assert_eq!(task.tries().len(), MAX_TRIES);
    assert_eq!(task.tries().last().unwrap().attempt.n, 1000);
}

#[derive(Clone, Debug)]
enum Step {
    Accept(u128),
    Lease(u128, u128),
    Started(usize),
    Result(usize, u8),
    TakeBack(usize),
    Unknown(usize),
    Adopt(usize),
    Lose(u128),
    NextReign,
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..8u128).prop_map(Step::Accept),
        6 => (0..8u128, 1..4u128).prop_map(|(t, w)| Step::Lease(t, w)),
        2 => any::<usize>().prop_map(Step::Started),
        6 => (any::<usize>(), 0..4u8).prop_map(|(a, how)| Step::Result(a, how)),
        2 => any::<usize>().prop_map(Step::TakeBack),
        1 => any::<usize>().prop_map(Step::Unknown),
        2 => any::<usize>().prop_map(Step::Adopt),
        1 => (1..4u128).prop_map(Step::Lose),
        1 => Just(Step::NextReign),
        2 => (0..3000u64).prop_map(Step::Later),
    ]
}

fn how(n: u8) -> Outcome {
    match n {
        0 => Outcome::Retry("again".to_owned()),
        1 => Outcome::TimedOut,
        2 => Outcome::Failed("no".to_owned()),
        _ => Outcome::Done(Bytes::from_static(b"1")),
    }
}

/// What must hold of any ledger: each task in exactly one place, and every index tells the same.
fn check(ledger: &Ledger) -> Result<(), TestCaseError> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let (mut bytes, mut open) = (0, 0);
    for (id, task) in &ledger.tasks {
        *counts.entry(task.state.as_str().to_owned()).or_default() += 1;
        // An entry may stand in its line twice, or in vain.
        let stands = ledger.lines.some().any(|w| w == *id) && stands_in_line(&ledger.tasks, *id);
        let waits = usize::from(stands) + ledger.later.values().filter(|w| *w == id).count();
        let leased = ledger.leased.iter().filter(|(_, t)| t.contains(id));
        let holders: Vec<WorkerId> = leased.map(|(w, _)| *w).collect();
        let deadlines = ledger.deadlines.iter().filter(|(_, d)| d == id).count();
        let kept = ledger.finished.iter().chain(&ledger.dead);
        let done = kept.filter(|f| *f == id).count();
        let places = (waits, holders.len(), deadlines, done);
        let expected = match task.state {
            State::Queued => (1, 0, 0, 0),
            State::Leased => (0, 1, 1, 0),
            _ => (0, 0, 0, 1),
        };
        prop_assert_eq!(places, expected, "{:?}", task);
        open += usize::from(task.state.is_open());
        if let Some(holder) = holders.first() {
            prop_assert_eq!(task.tries().last().map(|t| t.worker), Some(*holder));
        }
        let tokens: Vec<Attempt> = task.tries().iter().map(|t| t.attempt).collect();
        prop_assert!(tokens.windows(2).all(|w| w[0] < w[1]), "attempts only rise");
        if task.state == State::Queued {
            bytes += task.spec.input.len();
        }
    }
    prop_assert_eq!(&counts, &ledger.counts());
    prop_assert_eq!(bytes, ledger.queued_bytes);
    prop_assert_eq!(open, ledger.open());
    prop_assert!(ledger.queued() <= ledger.settings.max_queued);
    Ok(())
}

proptest! {
    /// Invariants 5 to 8, for whatever masters and workers may do, over several reigns: one recorded result a task,
    /// immutable; attempts only rise and a superseded one never records; each task in exactly one place; bounds hold.
    #[test]
    fn random_histories_keep_the_invariants(steps in prop::collection::vec(step(), 0..200)) {
        let mut now = Instant::now();
        let mut epoch = EPOCH;
        let mut ledger = ledger();
        // The model: what was handed out to whom, what was recorded, and the state it left.
        let mut given: Vec<(Assignment, WorkerId)> = Vec::new();
        let mut recorded: BTreeMap<TaskId, (Attempt, State)> = BTreeMap::new();
        for step in steps {
            let newest = |given: &[(Assignment, WorkerId)], task: TaskId| {
                given.iter().map(|(a, _)| a.attempt).filter(|a| a.task == task).map(|a| a.attempt).max()
            };
            let pick = |at: usize| given.get(at % given.len().max(1)).cloned();
            match step {
                Step::Accept(n) => {
                    let known = ledger.get(id(n)).map(|t| t.state.clone());
                    ledger.accept(spec(n), Duration::ZERO, 0, now).unwrap();
                    if let Some(known) = known {
                        prop_assert_eq!(&ledger.get(id(n)).unwrap().state, &known, "the same id is the same task");
                    }
                }
                Step::Lease(t, w) => {
                    ledger.ripen(now);
                    if let Some(a) = ledger.lease(id(t), worker(w), epoch, now) {
                        prop_assert!(newest(&given, id(t)).is_none_or(|before| a.attempt.attempt > before));
                        prop_assert!(!recorded.contains_key(&id(t)), "nothing recorded is handed out");
                        given.push((a, worker(w)));
                    }
                }
                Step::Started(at) => if let Some((a, _)) = pick(at) {
                    ledger.started(a.attempt, 5);
                },
                Step::Result(at, outcome) => if let Some((a, w)) = pick(at) {
                    let task = a.attempt.task;
                    let verdict = ledger.result(w.id, &result(a.attempt, how(outcome)), now);
                    if !matches!(verdict, Verdict::Refused(_) | Verdict::Repeated) {
                        prop_assert_eq!(newest(&given, task), Some(a.attempt.attempt), "only the newest records");
                    }
                    if verdict == Verdict::Recorded {
                        let state = ledger.get(task).unwrap().state.clone();
                        let before = recorded.insert(task, (a.attempt.attempt, state));
                        prop_assert!(before.is_none(), "recorded once");
                    }
                },
                Step::TakeBack(at) => if let Some((a, _)) = pick(at) {
                    ledger.take_back(a.attempt, now);
                },
                Step::Unknown(at) => if let Some((a, _)) = pick(at) {
                    ledger.unknown_to_worker(a.attempt, 9, now);
                },
                Step::Adopt(at) => if let Some((a, w)) = pick(at)
                    && ledger.adopt(w, &a, 5, epoch, now).is_ok()
                {
                    prop_assert_eq!(newest(&given, a.attempt.task), Some(a.attempt.attempt));
                    prop_assert!(!recorded.contains_key(&a.attempt.task), "what is recorded is not adopted");
                },
                Step::Lose(w) => drop(ledger.lose_worker(worker(w), 9, now)),
                Step::NextReign => {
                    epoch.revision += 1;
                    let (open, rest) = ledger.take_open();
                    ledger = rest;
                    for entry in open {
                        prop_assert!(ledger.inherit(entry, Duration::ZERO, epoch, now));
                    }
                }
                Step::Later(ms) => {
                    now += Duration::from_millis(ms);
                    ledger.overdue(9, now);
                }
            }
            check(&ledger)?;
            for (task, (_, state)) in &recorded {
                prop_assert_eq!(&ledger.get(*task).unwrap().state, state, "immutable");
            }
        }
    }
}
