//! What a guard publishes of its actor, in atomics, so that it can be read from any thread while the actor's own is stuck.

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{ActorReport, ActorState};

/// Zero of all times in a pulse: the first use in this process.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Real time since [`EPOCH`], in microseconds and never 0, which stands for "not".
pub(super) fn now_us() -> u64 {
    u64::try_from(EPOCH.elapsed().as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}

thread_local! {
    /// Whose turn it is on this thread.
    static TURN: RefCell<Option<Arc<Pulse>>> = const { RefCell::new(None) };
}

/// Says which message the actor whose turn it is handles from now on: what a watchdog names when the handler does not return.
/// Called first in each handler of the tree; actix does not tell what is in its envelopes.
pub fn handling<M>() {
    let name = std::any::type_name::<M>();
    handling_part(name.rsplit("::").next().unwrap_or(name));
}

/// The same of a part of a message, such as a message of another node.
pub fn handling_part(name: &'static str) {
    TURN.with_borrow(|turn| {
        if let Some(pulse) = turn {
            *pulse
                .handling
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = name;
        }
    });
}

/// One actor's vital signs. Written by its guard, and `hung` by the watchdog; each number stands for itself.
#[derive(Debug)]
pub(super) struct Pulse {
    pub(super) name: &'static str,
    state: AtomicU8,
    /// When the present turn began; 0 between turns.
    busy_since: AtomicU64,
    /// When the present life began; 0 while there is none.
    alive_since: AtomicU64,
    turns: AtomicU64,
    handled: AtomicU64,
    restarts: AtomicU64,
    mailbox: AtomicUsize,
    /// `busy_since` of the turn the watchdog found hung; 0 for none.
    hung_since: AtomicU64,
    /// An operator's kill is on its way: there is at most one at a time.
    pub(super) kill_pending: AtomicBool,
    last_failure: Mutex<Option<String>>,
    /// The message that is handled now; empty for a timer or a future of the actor's own.
    handling: Mutex<&'static str>,
    /// Of the last panic; a later failure without one leaves it.
    trace: Mutex<Option<Arc<Backtrace>>>,
}

/// Characters of a trace that are told: more than any has, and well below what a frame carries to another node.
const MAX_TRACE: usize = 64 * 1024;

const RUNNING: u8 = 0;
const RESTARTING: u8 = 1;
const STOPPED: u8 = 2;

impl Pulse {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            state: AtomicU8::new(STOPPED),
            busy_since: AtomicU64::new(0),
            alive_since: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            mailbox: AtomicUsize::new(0),
            hung_since: AtomicU64::new(0),
            kill_pending: AtomicBool::new(false),
            last_failure: Mutex::new(None),
            handling: Mutex::new(""),
            trace: Mutex::new(None),
        }
    }

    /// A life begins; every one after the first is a restart.
    pub(super) fn born(&self, life: u64) {
        self.restarts.store(life.saturating_sub(1), Relaxed);
        self.alive_since.store(now_us(), Relaxed);
        self.state.store(RUNNING, SeqCst);
    }

    /// The calls that led to a panic.
    pub(super) fn keep_trace(&self, trace: Option<Arc<Backtrace>>) {
        *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = trace;
    }

    /// The calls that led to the last panic, by their names.
    pub(super) fn trace(&self) -> Option<String> {
        let trace = self
            .trace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()?;
        Some(trace.to_string().chars().take(MAX_TRACE).collect())
    }

    /// A life ended, and whether there will be another is not known yet.
    pub(super) fn died(&self, failure: Option<&str>) {
        if let Some(failure) = failure {
            *self
                .last_failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(failure.to_owned());
        }
        self.alive_since.store(0, Relaxed);
        self.state.store(RESTARTING, SeqCst);
    }

    /// There will be no other life.
    pub(super) fn ended(&self) {
        self.alive_since.store(0, Relaxed);
        self.state.store(STOPPED, SeqCst);
    }

    /// A turn of this actor begins on this thread.
    pub(super) fn begin_turn(self: &Arc<Self>) {
        TURN.set(Some(Arc::clone(self)));
        handling_part("");
        self.busy_since.store(now_us(), SeqCst);
    }

    /// What is being handled, as far as its handler said.
    pub(super) fn handling(&self) -> &'static str {
        match *self.handling.lock().unwrap_or_else(PoisonError::into_inner) {
            "" => "a timer or a future of its own",
            name => name,
        }
    }

    pub(super) fn end_turn(&self, handled: u64, mailbox: usize) {
        self.turns.fetch_add(1, Relaxed);
        self.handled.store(handled, Relaxed);
        self.mailbox.store(mailbox, Relaxed);
        self.busy_since.store(0, SeqCst);
        TURN.set(None);
    }

    /// When the present turn began, in microseconds; 0 between turns.
    pub(super) fn busy_since(&self) -> u64 {
        self.busy_since.load(SeqCst)
    }

    pub(super) fn mark_hung(&self, since: u64) {
        self.hung_since.store(since, SeqCst);
    }

    /// Whether the turn that the watchdog found hung is still going on.
    pub(super) fn is_hung(&self) -> bool {
        let since = self.hung_since.load(SeqCst);
        since != 0 && since == self.busy_since()
    }

    pub(super) fn state(&self) -> ActorState {
        if self.is_hung() {
            return ActorState::Hung;
        }
        match self.state.load(SeqCst) {
            RUNNING => ActorState::Running,
            RESTARTING => ActorState::Restarting,
            _ => ActorState::Stopped,
        }
    }

    pub(super) fn report(&self) -> ActorReport {
        let state = self.state();
        let since = |moment: u64| match moment {
            0 => Duration::ZERO,
            then => Duration::from_micros(now_us().saturating_sub(then)),
        };
        ActorReport {
            name: self.name,
            state,
            restarts: self.restarts.load(Relaxed),
            last_failure: self
                .last_failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            mailbox: (state == ActorState::Running).then(|| self.mailbox.load(Relaxed)),
            handled: self.handled.load(Relaxed),
            turns: self.turns.load(Relaxed),
            uptime: since(self.alive_since.load(Relaxed)),
            busy_for: since(self.busy_since()),
            busy_with: (state == ActorState::Hung).then(|| self.handling()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_the_story_of_a_life() {
        let pulse = Arc::new(Pulse::new("worker"));
        assert_eq!(pulse.state(), ActorState::Stopped);
        pulse.born(1);
        pulse.begin_turn();
        assert_eq!(pulse.state(), ActorState::Running);
        pulse.end_turn(3, 2);
        pulse.died(Some("boom"));
        assert_eq!(pulse.state(), ActorState::Restarting);
        assert_eq!(pulse.report().uptime, Duration::ZERO);
        pulse.born(2);
        let report = pulse.report();
        assert_eq!(
            (report.name, report.state, report.restarts),
            ("worker", ActorState::Running, 1)
        );
        assert_eq!(
            (report.handled, report.turns, report.mailbox),
            (3, 1, Some(2))
        );
        assert_eq!(report.last_failure.as_deref(), Some("boom"));
        pulse.ended();
        assert_eq!(pulse.state(), ActorState::Stopped);
    }

    struct Question;

    #[test]
    fn a_hung_turn_stops_being_hung_when_it_ends_and_the_next_is_not_blamed_for_it() {
        let pulse = Arc::new(Pulse::new("worker"));
        pulse.born(1);
        pulse.begin_turn();
        handling::<Question>();
        pulse.mark_hung(pulse.busy_since());
        assert_eq!(pulse.state(), ActorState::Hung);
        assert_eq!(pulse.report().mailbox, None);
        assert_eq!(pulse.report().busy_with, Some("Question"));
        pulse.end_turn(0, 0);
        assert_eq!(pulse.state(), ActorState::Running);
        assert_eq!(pulse.report().busy_with, None);
    }
}
