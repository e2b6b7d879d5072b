//! Master and workers as they meet: real actors, a network in memory, and a clock that jumps. Nothing here sleeps for real.

mod memory;
mod stage;

use actix::Actor;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use troupe_actors::id::{AttemptId, Epoch, Incarnation, NodeId, TaskId};
use troupe_actors::master::actor::MasterActor;
use troupe_actors::master::{
    BalancerKind, GeneratorSettings, HandOverTo, Lead, MasterWorks, StandDown, Submission, Submit,
    SubmitError,
};
use troupe_actors::transport::Send;
use troupe_actors::wire::{Assign, Assignment, MAX_PAYLOAD, Message, TaskSpec};
use troupe_actors::worker::DrainWorker;

use stage::*;

// ---- work ----

#[actix_rt::test]
async fn the_masters_tasks_come_back_times_three_from_the_others() {
    let mut stage = Stage::new();
    stage.generator = GeneratorSettings {
        enabled: true,
        every: Duration::from_secs(10),
        min: 30,
        max: 60,
    };
    let stage = stage.with(3).await;
    tokio::time::sleep(Duration::from_secs(1005)).await;
    let tasks = stage.tasks().await;
    assert_eq!(tasks.len(), 100);
    for task in tasks {
        assert_eq!(task.state, "done");
        let number = task.input["number"].as_u64().unwrap();
        assert!((30..=60).contains(&number));
        assert_eq!(task.output.unwrap()["result"], number * 3);
        // An assignment may cross a report; then it goes out again, under the next number.
        let executed: Vec<_> = task
            .attempts
            .iter()
            .filter(|a| a.outcome != "returned")
            .collect();
        assert_eq!(executed.len(), 1, "{:?}", task.attempts);
        assert_ne!(executed[0].node, "node-1", "the master leaves it to others");
        assert!(executed[0].started.is_some() && executed[0].finished.is_some());
    }
}

#[actix_rt::test]
async fn a_lone_master_works_itself_until_another_comes() {
    let mut stage = Stage::new().with(1).await;
    stage.submit(vec![submission("noop", "1"); 5]).await;
    stage.until("done", 5).await;
    assert_eq!(stage.share().await, BTreeMap::from([(name(1), 5)]));
    stage.join(2);
    stage.publish().await;
    stage.submit(vec![submission("noop", "1"); 3]).await;
    stage.until("done", 8).await;
    let expected = BTreeMap::from([(name(1), 5), (name(2), 3)]);
    assert_eq!(stage.share().await, expected);
}

#[actix_rt::test]
async fn without_a_worker_tasks_wait_and_run_when_one_comes() {
    let mut stage = Stage::new();
    stage.settings.master_works = MasterWorks::Never;
    let mut stage = stage.with(1).await;
    stage.submit(vec![submission("noop", "1"); 3]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.count("queued").await, 3);
    stage.join(2);
    stage.publish().await;
    stage.until("done", 3).await;
}

#[actix_rt::test]
async fn each_balancer_shares_in_its_way() {
    tokio::time::pause();
    for (kind, range) in [
        (BalancerKind::Random, 70..130),
        (BalancerKind::RoundRobin, 100..101),
        (BalancerKind::LeastLoaded, 100..101),
        (BalancerKind::TwoChoices, 85..116),
    ] {
        let mut stage = Stage::again();
        stage.settings.balancer = kind;
        stage.capacity = 1000;
        let stage = stage.with(4).await;
        stage.submit(gates(300)).await;
        stage.until("leased", 300).await;
        let share = stage.share().await;
        assert_eq!(share.len(), 3, "{kind:?}: {share:?}");
        let fits = share.values().all(|n| range.contains(n));
        assert!(fits, "{kind:?}: {share:?}");
    }
}

#[actix_rt::test]
async fn nobody_holds_more_than_it_granted_and_all_gets_done() {
    let stage = Stage::new().with(3).await;
    stage.submit(gates(50)).await;
    stage.until("leased", 8).await;
    assert_eq!(stage.count("queued").await, 42);
    for n in [2, 3] {
        assert_eq!(stage.worker(n).await.running.len(), 4);
    }
    stage.gate.send_replace(true);
    stage.until("done", 50).await;
    assert_eq!(stage.said("HandBack"), 0);
    assert!(stage.executions().values().all(|n| *n == 1));
}

#[actix_rt::test]
async fn a_task_goes_only_where_its_tags_are_and_holds_up_nobody() {
    let stage = Stage::new().with(3).await;
    let to = |node: u128| Submission {
        require: BTreeMap::from([("node".to_owned(), name(node))]),
        priority: 5,
        ..submission("noop", "1")
    };
    let mut submissions = vec![to(9); 2000];
    submissions.extend(vec![to(3); 10]);
    stage.submit(submissions).await;
    stage.until("done", 10).await;
    assert_eq!(stage.count("queued").await, 2000);
    assert_eq!(stage.worker(3).await.started, 10);
}

#[actix_rt::test]
async fn the_largest_inputs_travel_in_frames_that_fit() {
    let mut stage = Stage::new();
    stage.capacity = 16;
    let stage = stage.with(2).await;
    let large = format!("\"{}\"", "x".repeat(MAX_PAYLOAD - 2));
    stage.submit(vec![submission("gate", &large); 12]).await;
    stage.until("leased", 12).await;
    // A new session: all of it is reported, in parts.
    stage.cut(1, 2).await;
    stage.mend(1, 2).await;
    stage.gate.send_replace(true);
    stage.until("done", 12).await;
    assert!(stage.executions().values().all(|n| *n == 1));
}

// ---- what goes wrong in a job ----

#[actix_rt::test]
async fn a_panic_in_a_job_is_tried_again_and_then_dead_in_words() {
    let stage = Stage::new().with(2).await;
    let id = stage.submit(vec![submission("panics", "1")]).await[0];
    stage.until("dead", 1).await;
    let task = stage.task(id).await;
    assert_eq!(task.attempts.len(), 3);
    assert!(task.error.unwrap().contains("panicked"));
    assert!(task.finished.is_some());
    // The worker is none the worse.
    stage.submit(vec![submission("noop", "1")]).await;
    stage.until("done", 1).await;
}

#[actix_rt::test]
async fn bad_input_fails_in_words_and_is_not_tried_again() {
    let stage = Stage::new().with(2).await;
    let bad = submission("multiply", r#"{"number": "seven"}"#);
    let id = stage.submit(vec![bad]).await[0];
    stage.until("failed", 1).await;
    let task = stage.task(id).await;
    assert_eq!(task.attempts.len(), 1);
    assert!(task.error.unwrap().contains("number"));
}

#[actix_rt::test]
async fn what_overruns_its_time_is_stopped_and_in_the_end_dead() {
    let stage = Stage::new().with(2).await;
    let slow = Submission {
        timeout: Some(Duration::from_secs(1)),
        ..submission("gate", "1")
    };
    let id = stage.submit(vec![slow]).await[0];
    stage.until("dead", 1).await;
    let task = stage.task(id).await;
    assert!(task.attempts.iter().all(|a| a.outcome == "timed-out"));
    assert!(stage.worker(2).await.running.is_empty());
}

#[actix_rt::test]
async fn what_cannot_be_accepted_is_refused_in_words() {
    let mut stage = Stage::new();
    stage.settings.max_queued = 5;
    let stage = stage.with(2).await;
    let good = submission("gate", "1");
    let many: BTreeMap<_, _> = (0..1000)
        .map(|n| (n.to_string(), "x".repeat(100)))
        .collect();
    for bad in [
        submission("noop", "{"),
        submission("", "1"),
        Submission {
            meta: many,
            ..good.clone()
        },
        Submission {
            timeout: Some(Duration::MAX),
            ..good.clone()
        },
        Submission {
            max_attempts: Some(0),
            ..good.clone()
        },
    ] {
        let answer = stage.leader().master.send(Submit(vec![bad])).await.unwrap();
        assert!(
            matches!(answer[0], Err(SubmitError::Invalid(_))),
            "{answer:?}"
        );
    }
    let ids = stage.submit(vec![good.clone(); 5]).await;
    let answers = stage
        .leader()
        .master
        .send(Submit(vec![good.clone(); 5]))
        .await
        .unwrap();
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 4);
    assert!(matches!(
        answers[4],
        Err(SubmitError::Busy { queued: 5, .. })
    ));
    // The same id is the same task.
    let again = Submission {
        id: Some(ids[0]),
        ..good
    };
    let answer = stage
        .leader()
        .master
        .send(Submit(vec![again.clone()]))
        .await
        .unwrap();
    assert_eq!(answer[0].as_ref().unwrap().id, ids[0]);
    let elsewhere = stage.nodes[&2]
        .master
        .send(Submit(vec![again]))
        .await
        .unwrap();
    assert_eq!(elsewhere, [Err(SubmitError::NotMaster)]);
}

// ---- what goes wrong between nodes ----

#[actix_rt::test]
async fn a_removed_workers_tasks_finish_elsewhere_and_its_late_results_are_refused() {
    let mut stage = Stage::new();
    stage.settings.master_works = MasterWorks::Always;
    let mut stage = stage.with(2).await;
    let to_two = Submission {
        require: BTreeMap::from([("node".to_owned(), name(2))]),
        ..submission("gate", "1")
    };
    stage.submit(gates(3)).await;
    let id = stage.submit(vec![to_two]).await[0];
    stage.until("leased", 4).await;
    assert_eq!(stage.task(id).await.attempts[0].node, "node-2");
    // It is condemned, and does not know; then it comes back under another incarnation, with what it ran.
    stage.cut(1, 2).await;
    let old = stage.nodes[&2].incarnation;
    stage.condemn(&stage.nodes[&2]);
    stage.nodes.get_mut(&2).unwrap().incarnation = Incarnation(99);
    stage.join(3);
    stage.publish().await;
    let lost = stage.task(id).await;
    assert_eq!(
        (lost.state.as_str(), lost.attempts[0].outcome.as_str()),
        ("queued", "lost")
    );
    stage.gate.send_replace(true);
    stage.until("done", 3).await;
    assert_ne!(old, Incarnation(99));
    stage
        .net
        .borrow_mut()
        .desks
        .get_mut(&NodeId(2))
        .unwrap()
        .incarnation = Incarnation(99);
    stage.mend(1, 2).await;
    stage.until("done", 4).await;
    let refused: usize = stage.tasks().await.iter().map(|t| t.refused.len()).sum();
    let elsewhere = stage
        .tasks()
        .await
        .iter()
        .filter(|t| t.attempts.len() > 1)
        .count();
    assert_eq!(
        refused, elsewhere,
        "each task that was run again has one result refused"
    );
    assert_eq!(
        stage.worker(2).await.unacknowledged,
        0,
        "it may drop them all the same"
    );
    // Its own task waited for it, so its result was still the newest.
    assert_eq!(stage.task(id).await.attempts.len(), 1);
}

#[actix_rt::test]
async fn a_broken_session_alone_runs_nothing_again() {
    let stage = Stage::new().with(2).await;
    stage.submit(gates(4)).await;
    stage.until("leased", 4).await;
    stage.cut(1, 2).await;
    stage.gate.send_replace(true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.count("leased").await, 4);
    stage.mend(1, 2).await;
    stage.until("done", 4).await;
    assert!(stage.executions().values().all(|n| *n == 1));
    assert_eq!(stage.said("Cancel"), 0);
}

#[actix_rt::test]
async fn what_was_lost_on_the_way_is_found_out_and_held_against_nobody() {
    tokio::time::pause();
    for kind in ["Assign", "Results", "Acknowledge", "Report", "Started"] {
        let stage = Stage::again().with(2).await;
        stage.gate.send_replace(true);
        stage.net.borrow_mut().vanish.insert(kind);
        stage.submit(gates(3)).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        stage.net.borrow_mut().vanish.clear();
        stage.until("done", 3).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(stage.executions().values().all(|n| *n == 1), "{kind}");
        assert_eq!(stage.worker(2).await.unacknowledged, 0, "{kind}");
        assert_eq!(stage.snapshot().await.refused, BTreeMap::new(), "{kind}");
        for task in stage.tasks().await {
            let returned = |a: &&troupe_actors::master::AttemptView| a.outcome == "returned";
            let returned = task.attempts.iter().filter(returned).count();
            assert_eq!(returned + 1, task.attempts.len(), "{kind}: {task:?}");
        }
    }
}

#[actix_rt::test]
async fn a_full_queue_is_waited_for_and_held_against_nobody() {
    let stage = Stage::new().with(2).await;
    stage.gate.send_replace(true);
    stage.net.borrow_mut().full.insert(NodeId(2));
    let id = stage.submit(gates(1)).await[0];
    tokio::time::sleep(Duration::from_secs(60)).await;
    let task = stage.task(id).await;
    assert_eq!(task.state, "queued");
    assert!(task.attempts.len() <= 100, "the receipt is bounded");
    stage.net.borrow_mut().full.clear();
    stage.until("done", 1).await;
    assert_eq!(stage.executions()[&id], 1);
}

#[actix_rt::test]
async fn a_drained_worker_finishes_what_it_can_and_hands_back_the_rest() {
    let stage = Stage::new().with(3).await;
    stage.submit(gates(8)).await;
    stage.until("leased", 8).await;
    let within = Duration::from_secs(1);
    let drained = stage.nodes[&2]
        .worker
        .send(DrainWorker { within })
        .await
        .unwrap();
    assert_eq!((drained.finished, drained.handed_back), (0, 4));
    settle().await;
    assert!(stage.worker(2).await.running.is_empty());
    let within = Duration::from_secs(30);
    let other = stage.nodes[&3].worker.send(DrainWorker { within });
    let (drained, ()) = tokio::join!(other, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stage.gate.send_replace(true);
    });
    let drained = drained.unwrap();
    assert_eq!((drained.finished, drained.handed_back), (4, 0));
    assert_eq!(stage.count("done").await, 4);
    assert_eq!(stage.count("queued").await, 4);
}

// ---- masters come and go ----

#[actix_rt::test]
async fn a_new_master_adopts_what_runs_and_each_finishes_exactly_once() {
    let mut stage = Stage::new().with(4).await;
    let ids = stage.submit(gates(10)).await;
    stage.until("leased", 10).await;
    stage.kill(1).await;
    stage.lead(2).await;
    let snapshot = stage.snapshot().await;
    assert!(!snapshot.recovering, "{snapshot:?}");
    assert_eq!((snapshot.adopted, stage.count("leased").await), (10, 10));
    stage.gate.send_replace(true);
    stage.until("done", 10).await;
    assert_eq!(stage.executions().len(), 10);
    assert!(stage.executions().values().all(|n| *n == 1));
    for id in ids {
        let task = stage.task(id).await;
        assert_eq!(task.attempts.len(), 1, "it keeps its token");
        assert_ne!(task.attempts[0].epoch, stage.epoch.to_string());
    }
    assert_eq!(stage.snapshot().await.refused, BTreeMap::new());
}

#[actix_rt::test]
async fn results_that_ended_while_nobody_led_are_recorded_by_the_next_master() {
    let mut stage = Stage::new().with(3).await;
    stage.submit(gates(6)).await;
    stage.until("leased", 6).await;
    stage.kill(1).await;
    stage.gate.send_replace(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.lead(3).await;
    stage.until("done", 6).await;
    assert!(stage.executions().values().all(|n| *n == 1));
    for n in [2, 3] {
        assert_eq!(stage.worker(n).await.unacknowledged, 0);
    }
}

#[actix_rt::test]
async fn tasks_that_were_only_queued_at_a_dead_master_run_at_its_heir() {
    let mut stage = Stage::new().with(3).await;
    stage.submit(gates(20)).await;
    stage.until("leased", 8).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stage.kill(1).await;
    stage.lead(2).await;
    stage.gate.send_replace(true);
    stage.until("done", 20).await;
    assert_eq!(stage.executions().len(), 20);
    assert!(stage.executions().values().all(|n| *n == 1));
}

#[actix_rt::test]
async fn a_shadow_of_long_ago_is_not_run_again() {
    let mut stage = Stage::new().with(4).await;
    stage.submit(gates(20)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Node 2 holds the shadow; node 3 leads instead, and the tasks it learns of finish there.
    stage.net.borrow_mut().vanish.insert("Shadow");
    stage.kill(1).await;
    stage.lead(3).await;
    stage.gate.send_replace(true);
    stage.until("done", 12).await;
    stage.kill(3).await;
    stage.lead(2).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.executions().len(), 12);
    assert!(stage.executions().values().all(|n| *n == 1));
}

#[actix_rt::test]
async fn a_ledger_is_handed_over_whole_and_goes_on() {
    let mut stage = Stage::new().with(3).await;
    stage.net.borrow_mut().vanish.insert("Shadow");
    stage.submit(gates(600)).await;
    stage.until("leased", 8).await;
    let heir = NodeId(2);
    let epoch = stage.epoch;
    let handed = stage
        .leader()
        .master
        .send(HandOverTo { epoch, heir })
        .await
        .unwrap();
    assert_eq!(handed, 600);
    let old = stage.leader;
    stage.lead(2).await;
    stage.nodes[&old.unwrap()].master.do_send(StandDown {
        why: "handed over".to_owned(),
    });
    stage.gate.send_replace(true);
    stage.until("done", 600).await;
    assert_eq!(stage.executions().len(), 600);
    assert!(stage.executions().values().all(|n| *n == 1));
}

#[actix_rt::test]
async fn a_master_whose_heir_fails_leads_on_with_its_ledger() {
    let mut stage = Stage::new().with(3).await;
    stage.submit(gates(20)).await;
    stage.until("leased", 8).await;
    let (epoch, heir) = (stage.epoch, NodeId(2));
    let hand_over = HandOverTo { epoch, heir };
    assert_eq!(stage.leader().master.send(hand_over).await.unwrap(), 20);
    stage.gate.send_replace(true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.leader().master.do_send(Lead(epoch));
    stage.until("done", 20).await;
    assert!(stage.executions().values().all(|n| *n == 1));
    // What it left with the heir is void by now: handed over once more, nothing is open.
    assert_eq!(stage.leader().master.send(hand_over).await.unwrap(), 0);
    stage.lead(3).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(stage.executions().values().all(|n| *n == 1));
}

#[actix_rt::test]
async fn a_reborn_master_rebuilds_its_ledger_from_what_workers_report() {
    let mut stage = Stage::new().with(3).await;
    stage.submit(gates(8)).await;
    stage.until("leased", 8).await;
    let before = stage.net.borrow().reborn;
    let node = &stage.nodes[&1];
    let master = MasterActor::new(stage.master_seed(node.id, &node.fence)).start();
    stage
        .net
        .borrow_mut()
        .desks
        .get_mut(&NodeId(1))
        .unwrap()
        .master = master.clone();
    stage.nodes.get_mut(&1).unwrap().master = master;
    settle().await;
    assert_eq!(
        stage.net.borrow().reborn,
        before + 1,
        "it asks for its epoch"
    );
    stage.lead(1).await;
    assert_eq!(stage.count("leased").await, 8);
    stage.gate.send_replace(true);
    stage.until("done", 8).await;
    assert!(stage.executions().values().all(|n| *n == 1));
}

#[actix_rt::test]
async fn the_next_reign_of_the_same_master_keeps_queue_and_receipts() {
    let mut stage = Stage::new().with(3).await;
    let first = stage.submit(vec![submission("noop", "1"); 5]).await;
    stage.until("done", 5).await;
    stage.submit(gates(20)).await;
    stage.lead(1).await;
    stage.gate.send_replace(true);
    stage.until("done", 25).await;
    assert_eq!(stage.task(first[0]).await.attempts.len(), 1);
    assert!(stage.executions().values().all(|n| *n == 1));
}

#[actix_rt::test]
async fn a_deposed_master_has_no_effect_and_is_told() {
    let mut stage = Stage::new().with(3).await;
    // Node 1 sleeps while node 3 takes over, and wakes believing that it leads.
    let old = stage.epoch;
    stage.net.borrow_mut().cut.insert((NodeId(1), NodeId(3)));
    stage.net.borrow_mut().cut.insert((NodeId(1), NodeId(2)));
    stage.lead(3).await;
    stage.net.borrow_mut().cut.clear();
    let assign = Assign {
        epoch: old,
        assignments: vec![assignment(old)],
        report: 1,
    };
    let wire = Wire {
        me: NodeId(1),
        net: Rc::clone(&stage.net),
    };
    let sent = wire.start().send(Send {
        to: NodeId(2),
        message: assign.into(),
    });
    sent.await.unwrap().unwrap();
    settle().await;
    assert_eq!(stage.worker(2).await.started, 0);
    let net = stage.net.borrow();
    let fenced = net.said.iter().find_map(|(from, to, m)| match m {
        Message::Fenced(fenced) if (*from, *to) == (NodeId(2), NodeId(1)) => Some(fenced.clone()),
        _ => None,
    });
    let fenced = fenced.expect("it is answered");
    assert_eq!((fenced.epoch, fenced.refused), (stage.epoch, old));
    assert_eq!(fenced.what, "Assign");
}

#[actix_rt::test]
async fn a_master_that_has_seen_a_higher_epoch_hands_out_nothing_even_before_it_is_told() {
    let stage = Stage::new().with(2).await;
    let seen = Epoch {
        revision: stage.epoch.revision + 1,
        ..stage.epoch
    };
    stage.nodes[&1].fence.raise(seen);
    let answers = stage.leader().master.send(Submit(gates(1))).await.unwrap();
    assert_eq!(answers, [Err(SubmitError::NotMaster)]);
    settle().await;
    assert_eq!(stage.said("Assign"), 0);
}

fn assignment(epoch: Epoch) -> Assignment {
    let task = TaskId(uuid::Uuid::from_u128(7));
    let attempt = troupe_actors::id::Attempt { epoch, n: 1 };
    Assignment {
        attempt: AttemptId { task, attempt },
        spec: TaskSpec {
            id: task,
            job: "gate".into(),
            input: Bytes::from_static(b"1"),
            meta: Default::default(),
            durable: false,
            timeout_ms: 1000,
            max_attempts: 1,
            priority: 0,
            require: Default::default(),
            created_ms: 0,
            not_before_ms: 0,
        },
    }
}

// ---- anything goes ----

/// Sessions break, workers are condemned and replaced, mastership moves, messages vanish: in the end every task is done,
/// recorded once, and no attempt was started twice.
#[test]
fn whatever_happens_every_task_finishes_and_is_recorded_once() {
    for seed in 0..10 {
        println!("seed {seed}");
        actix_rt::System::new().block_on(anything(seed));
    }
}

async fn anything(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new();
    stage.settings.max_attempts = 50;
    stage.gate.send_replace(true);
    let mut stage = stage.with(4).await;
    let mut submitted = BTreeSet::new();
    let mut next = 5;
    for _ in 0..60 {
        let leader = stage.leader.unwrap();
        let others: Vec<u128> = stage
            .nodes
            .keys()
            .copied()
            .filter(|n| *n != leader)
            .collect();
        let other = others[rng.random_range(0..others.len())];
        match rng.random_range(0..8) {
            0 => stage.cut(leader, other).await,
            1 => {
                stage.kill(other).await;
                stage.join(next);
                stage.nodes[&next].fence.raise(stage.epoch);
                next += 1;
                stage.publish().await;
            }
            2 => hand_over(&mut stage, leader, other).await,
            3 => {
                let kinds = ["Assign", "Results", "Acknowledge", "Report", "HandBack"];
                let kind = kinds[rng.random_range(0..kinds.len())];
                stage.net.borrow_mut().vanish.insert(kind);
            }
            4 => mend_all(&stage).await,
            _ => {
                let gated = rng.random_range(1..10);
                let mut submissions = gates(gated);
                submissions.extend(vec![submission("noop", "1"); 3]);
                let ids = stage.submit(submissions).await;
                submitted.extend(ids.into_iter().take(gated));
            }
        }
        let pause = rng.random_range(1..400);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    mend_all(&stage).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let open = stage.count("queued").await + stage.count("leased").await;
    assert_eq!(open, 0, "seed {seed}: {:#?}", stage.snapshot().await);
    // Receipts stay with the master that recorded them: what is not here was recorded before a hand-over.
    for task in stage.tasks().await {
        assert_eq!(task.state, "done", "seed {seed}: {task:#?}");
        let recorded = task.attempts.iter().filter(|a| a.outcome == "done").count();
        assert_eq!(recorded, 1, "seed {seed}: {task:#?}");
    }
    let executed: BTreeSet<TaskId> = stage.executions().into_keys().collect();
    assert_eq!(executed, submitted, "seed {seed}: none is forgotten");
    for n in stage.nodes.keys() {
        let worker = stage.worker(*n).await;
        assert_eq!(
            (worker.unacknowledged, worker.running.len()),
            (0, 0),
            "seed {seed}"
        );
    }
}

async fn mend_all(stage: &Stage) {
    stage.net.borrow_mut().vanish.clear();
    let cut: Vec<(NodeId, NodeId)> = stage.net.borrow().cut.iter().copied().collect();
    for (a, b) in cut {
        if stage.nodes.contains_key(&a.0) && stage.nodes.contains_key(&b.0) {
            stage.mend(a.0, b.0).await;
        }
    }
}

async fn hand_over(stage: &mut Stage, from: u128, to: u128) {
    let pair = (NodeId(from.min(to)), NodeId(from.max(to)));
    if stage.net.borrow().cut.contains(&pair) {
        return;
    }
    let (epoch, heir) = (stage.epoch, NodeId(to));
    let hand_over = HandOverTo { epoch, heir };
    stage.nodes[&from].master.send(hand_over).await.unwrap();
    stage.lead(to).await;
    // The registry tells everybody in the end.
    for node in stage.nodes.values() {
        node.fence.raise(stage.epoch);
    }
    let why = "handed over".to_owned();
    stage.nodes[&from].master.do_send(StandDown { why });
    stage.publish().await;
}
