//! Who is restarted when a child exits: Erlang/OTP's `supervisor` rules as a pure function of the exit and the time.
//!
//! What the restart type says about one exit:
//!
//! | restart     | `Normal` | `Stopped` | `Panic` | `ArbiterDied` |
//! |-------------|----------|-----------|---------|---------------|
//! | `Permanent` | restart  | restart   | restart | give up       |
//! | `Transient` | retire   | retire    | restart | give up       |
//! | `Temporary` | remove   | remove    | remove  | remove        |
//!
//! *Retire*: it stays down, but comes back if a sibling's failure restarts the whole group (as in OTP, where its spec stays).
//! *Remove*: it is forgotten. *Give up* at once on a dead arbiter, since the mailbox died with it and a new one would
//! leave every address out there pointing at nothing.
//!
//! What the strategy says about a restart of child `i`:
//!
//! | strategy     | stopped first, in reverse order     | started, in start order                   |
//! |--------------|-------------------------------------|-------------------------------------------|
//! | `OneForOne`  | nobody                              | `i`                                       |
//! | `OneForAll`  | everybody else                      | everybody                                 |
//! | `RestForOne` | everybody after `i`                 | `i` and everybody after it                |
//!
//! A temporary sibling stopped that way is removed and not started again. One decision counts as one restart, however many
//! children it moves. At most `max_restarts` are allowed in any window of `within`, whose far end is included: a
//! restart exactly `within` ago still counts (OTP's `in_period`). One more, and the supervisor gives up; after that
//! nothing is restarted any more.
//!
//! The first restart of a window is immediate, the next ones wait for the back-off.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::planted;
use rand::Rng;

use crate::backoff::Backoff;

/// Whom one failure takes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Only the child that failed is restarted.
    #[default]
    OneForOne,
    /// All children are restarted.
    OneForAll,
    /// The child that failed and those started after it are restarted.
    RestForOne,
}

/// Which exits of a child lead to a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Every exit.
    #[default]
    Permanent,
    /// Only a failure.
    Transient,
    /// None.
    Temporary,
}

/// How far a supervisor goes before it gives up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SupervisionSettings {
    /// Whom one failure takes along.
    pub strategy: Strategy,
    /// Restarts allowed in a window; `u32::MAX` for as many as it takes.
    pub max_restarts: u32,
    /// Length of the window.
    pub within: Duration,
    /// Delays of the second and later restarts of a window.
    pub backoff: Backoff,
}

impl Default for SupervisionSettings {
    /// One for one, 5 restarts in 10 s, from 10 ms doubling to 1 s: the delays of all five sum up to 0.15 s, so that a
    /// child that fails at once uses up the window instead of hiding behind the back-off.
    fn default() -> Self {
        Self {
            strategy: Strategy::OneForOne,
            max_restarts: 5,
            within: Duration::from_secs(10),
            backoff: Backoff::new(Duration::from_millis(10), Duration::from_secs(1)),
        }
    }
}

/// Why a child is no longer running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It stopped itself.
    Normal,
    /// It panicked, with this message.
    Panic(String),
    /// It was told to stop from outside.
    Stopped,
    /// The arbiter it ran on is gone, and its mailbox with it.
    ArbiterDied,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("stopped itself"),
            Self::Panic(message) => write!(f, "panicked: {message}"),
            Self::Stopped => f.write_str("was told to stop"),
            Self::ArbiterDied => f.write_str("its arbiter died"),
        }
    }
}

/// What the shell has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop these one after the other, each within its deadline.
    Stop(Vec<usize>),
    /// This child stays down; messages to it fail.
    Retire(usize),
    /// This child is forgotten; its mailbox closes.
    Remove(usize),
    /// Start these in this order after a delay, instead of whatever starts were still due for them.
    Start {
        /// In start order.
        children: Vec<usize>,
        /// Zero for the first restart of a window.
        after: Duration,
    },
    /// Escalate: this failure was one too many.
    GiveUp {
        /// Whose failure it was.
        child: usize,
        /// In words.
        failure: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// Running, or about to.
    Up,
    /// Down until a sibling's failure restarts the group.
    Retired,
    /// Forgotten.
    Removed,
}

/// The rules with their memory: who is there, and when restarts happened.
#[derive(Debug)]
pub struct Policy {
    settings: SupervisionSettings,
    children: Vec<(Restart, Presence)>,
    /// Times of the restarts inside the window, oldest first; never longer than `max_restarts` + 1.
    restarts: VecDeque<Duration>,
    gave_up: bool,
}

impl Policy {
    /// Rules for these children, in start order, all of them up.
    pub fn new(settings: SupervisionSettings, children: impl IntoIterator<Item = Restart>) -> Self {
        Self {
            settings,
            children: children
                .into_iter()
                .map(|restart| (restart, Presence::Up))
                .collect(),
            restarts: VecDeque::new(),
            gave_up: false,
        }
    }

    /// A child exited by itself, at `now` since any fixed moment.
    pub fn exited<R: Rng + ?Sized>(
        &mut self,
        child: usize,
        exit: &Exit,
        now: Duration,
        rng: &mut R,
    ) -> Vec<Action> {
        match (self.children[child].0, exit) {
            _ if self.children[child].1 == Presence::Removed => Vec::new(),
            (Restart::Temporary, _) => vec![self.remove(child)],
            (Restart::Transient, Exit::Normal | Exit::Stopped) => vec![self.retire(child)],
            (_, Exit::ArbiterDied) => self.give_up(child, exit.to_string()),
            (_, Exit::Normal | Exit::Stopped | Exit::Panic(_)) => {
                self.restart(child, exit, now, rng)
            }
        }
    }

    /// A child that had to stop for a group restart did not, not even by force: there can be no second one beside it.
    pub fn would_not_stop(&mut self, child: usize) -> Vec<Action> {
        self.give_up(child, "did not stop within its deadline".to_owned())
    }

    fn restart<R: Rng + ?Sized>(
        &mut self,
        child: usize,
        exit: &Exit,
        now: Duration,
        rng: &mut R,
    ) -> Vec<Action> {
        if self.gave_up {
            return vec![self.retire(child)];
        }
        let earlier = self.count_restart(now);
        let allowed = self.settings.max_restarts + u32::from(planted::is("one-restart-too-many"))
            - u32::from(planted::is("one-restart-too-few"));
        if earlier >= allowed {
            let SupervisionSettings {
                max_restarts,
                within,
                ..
            } = self.settings;
            return self.give_up(
                child,
                format!("{exit}; more than {max_restarts} restarts in {within:?}"),
            );
        }
        let after = match earlier {
            0 => Duration::ZERO,
            n => self.settings.backoff.delay(n - 1, rng),
        };
        self.restart_group(child, after)
    }

    /// Notes a restart and answers how many others the window holds.
    fn count_restart(&mut self, now: Duration) -> u32 {
        while self
            .restarts
            .front()
            .is_some_and(|&then| now.saturating_sub(then) > self.settings.within)
        {
            self.restarts.pop_front();
        }
        let earlier = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
        self.restarts.push_back(now);
        earlier
    }

    fn restart_group(&mut self, child: usize, after: Duration) -> Vec<Action> {
        let group = match self.settings.strategy {
            Strategy::OneForOne => child..child + 1,
            Strategy::OneForAll => 0..self.children.len(),
            Strategy::RestForOne => child..self.children.len(),
        };
        if planted::is("restart-forgotten") && self.restarts.len().is_multiple_of(3) {
            return Vec::new();
        }
        let mut actions = Vec::new();
        let others: Vec<_> = group
            .clone()
            .rev()
            .filter(|&i| i != child && self.is_up(i))
            .collect();
        if !others.is_empty() {
            actions.push(Action::Stop(others));
        }
        for i in group.clone() {
            if self.children[i] == (Restart::Temporary, Presence::Up) {
                actions.push(self.remove(i));
            }
        }
        let children: Vec<_> = group
            .filter(|&i| self.children[i].1 != Presence::Removed)
            .collect();
        for &i in &children {
            self.children[i].1 = Presence::Up;
        }
        actions.push(Action::Start { children, after });
        actions
    }

    fn is_up(&self, child: usize) -> bool {
        self.children[child].1 == Presence::Up
    }

    fn retire(&mut self, child: usize) -> Action {
        self.children[child].1 = Presence::Retired;
        Action::Retire(child)
    }

    fn remove(&mut self, child: usize) -> Action {
        self.children[child].1 = Presence::Removed;
        Action::Remove(child)
    }

    fn give_up(&mut self, child: usize, failure: String) -> Vec<Action> {
        let retired = self.retire(child);
        if std::mem::replace(&mut self.gave_up, true) {
            return vec![retired];
        }
        vec![retired, Action::GiveUp { child, failure }]
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::Restart::{Permanent, Temporary, Transient};
    use super::Strategy::{OneForAll, OneForOne, RestForOne};
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn settings(strategy: Strategy) -> SupervisionSettings {
        SupervisionSettings {
            strategy,
            ..SupervisionSettings::default()
        }
    }

    fn panic() -> Exit {
        Exit::Panic("boom".to_owned())
    }

    fn exit(policy: &mut Policy, child: usize, exit: &Exit, now: Duration) -> Vec<Action> {
        policy.exited(child, exit, now, &mut StdRng::seed_from_u64(7))
    }

    fn start(children: &[usize]) -> Action {
        Action::Start {
            children: children.to_vec(),
            after: Duration::ZERO,
        }
    }

    fn gives_up(actions: &[Action]) -> bool {
        actions
            .iter()
            .any(|action| matches!(action, Action::GiveUp { .. }))
    }

    #[test]
    fn every_row_of_the_restart_table_holds_under_every_strategy() {
        enum Row {
            Restart,
            Retire,
            Remove,
            GiveUp,
        }
        use Row::{GiveUp, Remove, Restart as Again, Retire};
        let table = [
            (Permanent, Exit::Normal, Again),
            (Permanent, Exit::Stopped, Again),
            (Permanent, panic(), Again),
            (Permanent, Exit::ArbiterDied, GiveUp),
            (Transient, Exit::Normal, Retire),
            (Transient, Exit::Stopped, Retire),
            (Transient, panic(), Again),
            (Transient, Exit::ArbiterDied, GiveUp),
            (Temporary, Exit::Normal, Remove),
            (Temporary, Exit::Stopped, Remove),
            (Temporary, panic(), Remove),
            (Temporary, Exit::ArbiterDied, Remove),
        ];
        for strategy in [OneForOne, OneForAll, RestForOne] {
            for (restart, why, row) in &table {
                let mut policy = Policy::new(settings(strategy), [Permanent, *restart, Permanent]);
                let actions = exit(&mut policy, 1, why, s(0));
                let expected = match (row, strategy) {
                    (Again, OneForOne) => vec![start(&[1])],
                    (Again, OneForAll) => vec![Action::Stop(vec![2, 0]), start(&[0, 1, 2])],
                    (Again, RestForOne) => vec![Action::Stop(vec![2]), start(&[1, 2])],
                    (Retire, _) => vec![Action::Retire(1)],
                    (Remove, _) => vec![Action::Remove(1)],
                    (GiveUp, _) => {
                        let failure = "its arbiter died".to_owned();
                        vec![Action::Retire(1), Action::GiveUp { child: 1, failure }]
                    }
                };
                assert_eq!(actions, expected, "{restart:?} {why} {strategy:?}");
            }
        }
    }

    #[test]
    fn every_row_of_the_strategy_table_holds_for_every_position() {
        let table: [(Strategy, usize, &[usize], &[usize]); 9] = [
            (OneForOne, 0, &[], &[0]),
            (OneForOne, 1, &[], &[1]),
            (OneForOne, 2, &[], &[2]),
            (OneForAll, 0, &[2, 1], &[0, 1, 2]),
            (OneForAll, 1, &[2, 0], &[0, 1, 2]),
            (OneForAll, 2, &[1, 0], &[0, 1, 2]),
            (RestForOne, 0, &[2, 1], &[0, 1, 2]),
            (RestForOne, 1, &[2], &[1, 2]),
            (RestForOne, 2, &[], &[2]),
        ];
        for (strategy, child, stopped, started) in table {
            let mut policy = Policy::new(settings(strategy), [Permanent; 3]);
            let mut expected = vec![start(started)];
            if !stopped.is_empty() {
                expected.insert(0, Action::Stop(stopped.to_vec()));
            }
            assert_eq!(
                exit(&mut policy, child, &panic(), s(0)),
                expected,
                "{strategy:?} {child}"
            );
        }
    }

    #[test]
    fn a_temporary_sibling_stopped_with_its_group_is_removed_and_never_comes_back() {
        let mut policy = Policy::new(settings(OneForAll), [Permanent, Temporary, Permanent]);
        assert_eq!(
            exit(&mut policy, 0, &panic(), s(0)),
            [Action::Stop(vec![2, 1]), Action::Remove(1), start(&[0, 2])]
        );
        assert_eq!(
            exit(&mut policy, 1, &panic(), s(1)),
            [],
            "a late word of a removed child is nobody's business"
        );
        let again = exit(&mut policy, 2, &panic(), s(20));
        assert_eq!(again, [Action::Stop(vec![0]), start(&[0, 2])]);
    }

    #[test]
    fn a_retired_sibling_comes_back_with_its_group_but_not_alone() {
        let mut policy = Policy::new(settings(RestForOne), [Permanent, Transient]);
        assert_eq!(
            exit(&mut policy, 1, &Exit::Normal, s(0)),
            [Action::Retire(1)]
        );
        assert_eq!(exit(&mut policy, 0, &panic(), s(1)), [start(&[0, 1])]);
        let mut policy = Policy::new(settings(OneForOne), [Permanent, Transient]);
        assert_eq!(
            exit(&mut policy, 1, &Exit::Normal, s(0)),
            [Action::Retire(1)]
        );
        assert_eq!(exit(&mut policy, 0, &panic(), s(1)), [start(&[0])]);
    }

    #[test]
    fn five_restarts_in_the_window_are_allowed_and_the_sixth_gives_up() {
        let mut policy = Policy::new(settings(OneForOne), [Permanent]);
        for n in 0..5 {
            assert!(
                !gives_up(&exit(&mut policy, 0, &panic(), s(n))),
                "restart {n}"
            );
        }
        let failure = "panicked: boom; more than 5 restarts in 10s".to_owned();
        assert_eq!(
            exit(&mut policy, 0, &panic(), s(9)),
            [Action::Retire(0), Action::GiveUp { child: 0, failure }]
        );
    }

    #[test]
    fn a_restart_exactly_one_window_old_still_counts_and_a_nanosecond_later_it_does_not() {
        for (sixth, over) in [(s(10), true), (s(10) + Duration::from_nanos(1), false)] {
            let mut policy = Policy::new(settings(OneForOne), [Permanent]);
            for n in 0..5 {
                exit(&mut policy, 0, &panic(), s(n));
            }
            assert_eq!(
                gives_up(&exit(&mut policy, 0, &panic(), sixth)),
                over,
                "{sixth:?}"
            );
        }
    }

    #[test]
    fn the_window_slides() {
        let mut policy = Policy::new(settings(OneForOne), [Permanent]);
        for n in 0..100 {
            // One every 2.1 s: at most five in any ten seconds, for ever.
            assert!(
                !gives_up(&exit(
                    &mut policy,
                    0,
                    &panic(),
                    Duration::from_millis(2_100) * n
                )),
                "restart {n}"
            );
        }
    }

    #[test]
    fn no_restart_allowed_means_the_first_failure_gives_up() {
        let none = SupervisionSettings {
            max_restarts: 0,
            ..settings(OneForOne)
        };
        assert!(gives_up(&exit(
            &mut Policy::new(none, [Permanent]),
            0,
            &panic(),
            s(0)
        )));
    }

    #[test]
    fn children_share_one_window() {
        let mut policy = Policy::new(settings(OneForOne), [Permanent; 6]);
        for child in 0..5 {
            assert!(!gives_up(&exit(&mut policy, child, &panic(), s(0))));
        }
        assert!(gives_up(&exit(&mut policy, 5, &panic(), s(0))));
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_next_ones_back_off_within_the_window() {
        let settings = settings(OneForOne);
        let mut policy = Policy::new(settings, [Permanent]);
        let mut rng = StdRng::seed_from_u64(3);
        let mut now = Duration::ZERO;
        let mut delays = Vec::new();
        for _ in 0..5 {
            let actions = policy.exited(0, &panic(), now, &mut rng);
            let [Action::Start { after, .. }] = actions[..] else {
                panic!("{actions:?}")
            };
            delays.push(after);
            now += after;
        }
        assert_eq!(delays[0], Duration::ZERO);
        for (n, delay) in delays[1..].iter().enumerate() {
            let nominal = Duration::from_millis(10 << n);
            assert!(
                *delay <= nominal && *delay >= nominal.mul_f64(0.8),
                "{n}: {delay:?}"
            );
        }
        assert!(now < settings.within);
        assert!(gives_up(&policy.exited(0, &panic(), now, &mut rng)));
        let quiet = s(11);
        let mut policy = Policy::new(settings, [Permanent]);
        policy.exited(0, &panic(), s(0), &mut rng);
        assert_eq!(
            policy.exited(0, &panic(), quiet, &mut rng),
            [start(&[0])],
            "a quiet window starts over"
        );
    }

    #[test]
    fn it_gives_up_once_and_restarts_nothing_afterwards() {
        let mut policy = Policy::new(settings(OneForOne), [Permanent, Permanent]);
        assert!(gives_up(&policy.would_not_stop(1)));
        assert_eq!(exit(&mut policy, 0, &panic(), s(100)), [Action::Retire(0)]);
        assert_eq!(
            exit(&mut policy, 0, &Exit::ArbiterDied, s(100)),
            [Action::Retire(0)]
        );
    }
}
