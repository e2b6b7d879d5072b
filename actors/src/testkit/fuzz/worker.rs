//! A worker's desk under whatever a master says.

use std::time::Duration;

use super::{epoch, parts};
use crate::wire::{Message, Outcome, TaskResult};
use crate::worker::intake::{Desk, Intake};

const CAPACITY: u32 = 4;

/// Each part is `what u8 | body`: a message of a master, or something that happens here.
pub(super) fn worker(data: &[u8]) {
    let mut desk = Desk::new(CAPACITY, 8);
    let mut ran = Vec::new();
    desk.report(epoch(42));
    for part in parts(data) {
        let Some((what, body)) = part.split_first() else {
            continue;
        };
        match what {
            21 | 23 | 24 => {
                let Ok(Some(message)) = Message::decode_body(u16::from(*what), body) else {
                    continue;
                };
                hear(&mut desk, message);
            }
            0..=9 => {
                while let Some(assignment) =
                    desk.start(u64::from(*what), |job| (job.len() == 1).then_some(1))
                {
                    let attempt = assignment.attempt;
                    assert!(!ran.contains(&attempt), "started twice: {attempt:?}");
                    ran.push(attempt);
                }
            }
            10..=12 => {
                let Some(attempt) = desk.running().first().copied() else {
                    continue;
                };
                desk.finished(TaskResult {
                    attempt,
                    outcome: Outcome::Cancelled,
                    started_ms: 1,
                    finished_ms: 2,
                    spec: None,
                });
                desk.measured(Duration::from_micros(u64::from(*what) << (body.len() % 32)));
            }
            13 => drop(desk.abandon_waiting()),
            14 => drop(desk.abandon()),
            15 => desk.unserve(),
            _ => {
                let parts = desk.report(epoch(42));
                assert_eq!(parts.iter().filter(|r| !r.more).count(), 1);
            }
        }
        let executing = desk.running().iter().filter(|a| ran.contains(a)).count();
        assert!(executing <= CAPACITY as usize, "{executing} run");
    }
}

fn hear(desk: &mut Desk, message: Message) {
    match message {
        Message::Assign(mut assign) => {
            // As if it were of the master it serves, or nothing would ever be taken.
            assign.report = desk.serial();
            assign.epoch = desk.serving().unwrap_or(assign.epoch);
            let count = assign.assignments.len();
            let credit = desk.credit();
            if let Ok(taken) = desk.assign(assign) {
                assert_eq!(taken.len(), count);
                let taken = taken.iter().filter(|t| matches!(t, Intake::Taken(_)));
                assert!(taken.count() <= 2 * 4096 + CAPACITY as usize + credit as usize);
            }
        }
        Message::Acknowledge(ack) => {
            for (attempt, _) in ack.attempts {
                desk.acknowledged(attempt);
            }
        }
        Message::Cancel(cancel) => {
            for attempt in cancel.attempts {
                desk.drop_waiting(attempt);
            }
        }
        _ => {}
    }
}
