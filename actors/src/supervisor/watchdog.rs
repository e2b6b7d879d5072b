//! Names handlers that never return. It has a thread of its own, since whoever shares one with them cannot look.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::pulse::{Pulse, now_us};
use super::{ActorState, SupervisorHandle};

/// How often the watchdog looks and how long it is patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchdogSettings {
    /// Time between two looks.
    pub every: Duration,
    /// A turn longer than this is called hung.
    pub hung_after: Duration,
}

impl Default for WatchdogSettings {
    /// A look each 250 ms, hung after 4 s: a thousand times a long turn, and named within 5 s.
    fn default() -> Self {
        Self {
            every: Duration::from_millis(250),
            hung_after: Duration::from_secs(4),
        }
    }
}

/// What the watchdog saw change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// This actor has been in one turn for so long.
    Hung {
        /// Its name.
        actor: &'static str,
        /// Age of the turn.
        busy_for: Duration,
        /// The message that it handles.
        message: &'static str,
    },
    /// The turn of this actor came to an end after all.
    Recovered {
        /// Its name.
        actor: &'static str,
    },
}

/// Watches until dropped.
pub struct Watchdog {
    _stop: Sender<()>,
}

impl Watchdog {
    /// Starts the thread. Each finding is logged, then handed to `on_finding` (on that thread).
    ///
    /// # Errors
    /// If the system has no thread left to give.
    pub fn start(
        supervisor: &SupervisorHandle,
        settings: WatchdogSettings,
        mut on_finding: impl FnMut(Finding) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let mut watched: Vec<_> = supervisor.pulses().map(|pulse| (pulse, false)).collect();
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                // The thread ends when the `Watchdog` is dropped, which disconnects the channel.
                let mut looked = Instant::now();
                while stopped.recv_timeout(settings.every) == Err(RecvTimeoutError::Timeout) {
                    // The whole process was stopped: no turn is to blame. What hangs still does at the next look.
                    let away = looked.elapsed() > settings.every + settings.hung_after / 2;
                    looked = Instant::now();
                    if away {
                        continue;
                    }
                    for (pulse, known) in &mut watched {
                        if let Some(finding) = look(pulse, known, settings.hung_after, now_us()) {
                            log(finding);
                            on_finding(finding);
                        }
                    }
                }
            })?;
        Ok(Self { _stop: stop })
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").finish_non_exhaustive()
    }
}

/// One look at one pulse. `known` is whether its hang has been reported and not yet its end.
fn look(
    pulse: &Arc<Pulse>,
    known: &mut bool,
    hung_after: Duration,
    now_us: u64,
) -> Option<Finding> {
    let actor = pulse.name;
    if *known {
        return (pulse.state() != ActorState::Hung).then(|| {
            *known = false;
            Finding::Recovered { actor }
        });
    }
    let since = pulse.busy_since();
    let busy_for = Duration::from_micros(now_us.saturating_sub(since));
    (since != 0 && busy_for > hung_after).then(|| {
        pulse.mark_hung(since);
        *known = true;
        let message = pulse.handling();
        Finding::Hung {
            actor,
            busy_for,
            message,
        }
    })
}

fn log(finding: Finding) {
    match finding {
        Finding::Hung {
            actor,
            busy_for,
            message,
        } => log::error!(
            event = "actor.hung", actor, message, duration_ms = busy_for.as_millis();
            "a handler has not returned, and everything on its plane waits for it"
        ),
        Finding::Recovered { actor } => {
            log::info!(event = "actor.recovered", actor; "the handler that hung has returned");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn a_hang_is_reported_once_and_so_is_its_end() {
        let pulse = Arc::new(Pulse::new("worker"));
        let mut known = false;
        assert_eq!(
            look(&pulse, &mut known, LIMIT, now_us()),
            None,
            "idle since ever"
        );
        pulse.born(1);
        pulse.begin_turn();
        let limit_us = 5_000_000;
        let since = pulse.busy_since();
        assert_eq!(
            look(&pulse, &mut known, LIMIT, since + limit_us),
            None,
            "just in time"
        );
        let late = since + limit_us + 1;
        let busy_for = Duration::from_micros(limit_us + 1);
        assert_eq!(
            look(&pulse, &mut known, LIMIT, late),
            Some(Finding::Hung {
                actor: "worker",
                busy_for,
                message: "a timer or a future of its own",
            })
        );
        assert_eq!(look(&pulse, &mut known, LIMIT, late + 1), None, "once");
        pulse.end_turn(1, 0);
        assert_eq!(
            look(&pulse, &mut known, LIMIT, late + 2),
            Some(Finding::Recovered { actor: "worker" })
        );
        assert_eq!(look(&pulse, &mut known, LIMIT, late + 3), None, "once");
    }
}
