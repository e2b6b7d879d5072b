//! What the service manager is told over `NOTIFY_SOCKET` (sd_notify(3)); nothing where there is none.
//!
//! `READY=1` once, when the node has joined: it is registered and knows a master. `STATUS=` whenever its role, epoch or company
//! changes. `WATCHDOG=1` three times within `WATCHDOG_USEC`, each time after the supervisor has answered; so a process that is
//! stopped, or whose control plane hangs, is restarted from outside. `STOPPING=1` when a drain begins, with the time it may take.

use std::time::Duration;

use actix::{Actor, Context, Handler};
use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};
use troupe_actors::cluster::{Cluster, ClusterChanged};
use troupe_actors::id::Incarnation;
use troupe_actors::supervisor::SupervisorHandle;

/// Tells what becomes of the node as discovery sees it.
#[derive(Debug, Default)]
pub struct Herald {
    ready: bool,
    status: String,
}

impl Herald {
    /// What is news in this picture.
    fn news(&mut self, cluster: &Cluster) -> (bool, Option<String>) {
        let is_joined = cluster.incarnation != Incarnation::NONE && cluster.master.is_some();
        let became_ready = is_joined && !self.ready;
        self.ready |= is_joined;
        let status = status(cluster);
        let is_new = status != self.status;
        self.status.clone_from(&status);
        (became_ready, is_new.then_some(status))
    }
}

impl Actor for Herald {
    type Context = Context<Self>;
}

impl Handler<ClusterChanged> for Herald {
    type Result = ();

    fn handle(&mut self, ClusterChanged(cluster): ClusterChanged, _: &mut Self::Context) {
        let (became_ready, status) = self.news(&cluster);
        let ready = became_ready.then_some(NotifyState::Ready);
        let status = status.as_deref().map(NotifyState::Status);
        let states: Vec<_> = ready.into_iter().chain(status).collect();
        if !states.is_empty() {
            tell(&states);
        }
    }
}

/// One line for `systemctl status`.
fn status(cluster: &Cluster) -> String {
    let role = match &cluster.master {
        _ if cluster.incarnation == Incarnation::NONE => "not registered".to_owned(),
        _ if cluster.leading => format!("master under {}", cluster.epoch),
        Some(master) => {
            let member = cluster.member(master.record.id);
            let name = member.map_or(&master.record.address, |m| &m.registration.name);
            format!("follows {name} under {}", master.epoch)
        }
        None => "nobody leads".to_owned(),
    };
    let members = match cluster.members.len() {
        1 => "1 member".to_owned(),
        n => format!("{n} members"),
    };
    let away = match cluster.registry {
        true => "",
        false => "; the registry does not answer",
    };
    format!("{role}; {members}{away}")
}

/// A drain has begun, and may take this long.
pub fn stopping(why: &str, within: Duration) {
    let within = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
    let status = format!("draining: {why}");
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status(&status),
        NotifyState::ExtendTimeoutUsec(within),
    ]);
}

/// Feeds the watchdog for as long as the supervisor answers; ends at once where there is no watchdog.
pub async fn feed_watchdog(supervisor: SupervisorHandle) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Two may be late before the third is missed.
    let every = limit / 3;
    let mut answered = true;
    loop {
        let answers = timeout(every, supervisor.answers()).await == Ok(true);
        if answers {
            tell(&[NotifyState::Watchdog]);
        } else if answered {
            log::error!(target: "node", event = "watchdog.not_fed", limit_ms = limit.as_millis() as u64; "the supervisor does not answer: systemd's watchdog is not fed");
        }
        answered = answers;
        sleep(every).await;
    }
}

/// The service manager may be gone; the node goes on without it.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(states) {
        log::debug!(target: "node", err:% = err; "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use troupe_actors::cluster::{Master, MasterRecord};
    use troupe_actors::id::{Epoch, NodeId};

    use super::*;

    fn joined() -> Cluster {
        let me = NodeId::random(&mut rand::rng());
        let record = MasterRecord {
            id: me,
            incarnation: Incarnation(7),
            address: "10.0.0.7:22222".to_owned(),
        };
        Cluster {
            incarnation: Incarnation(7),
            registry: true,
            leading: true,
            master: Some(Master {
                record,
                epoch: Epoch::NONE,
            }),
            ..Cluster::empty(me)
        }
    }

    #[test]
    fn ready_is_said_once_and_only_when_registered_with_a_master() {
        let joined = joined();
        let registered = Cluster {
            master: None,
            ..joined.clone()
        };
        let nobody = Cluster::empty(joined.me);
        let mut herald = Herald::default();
        let said = [&nobody, &registered, &joined, &nobody, &joined];
        let said = said.map(|cluster| herald.news(cluster).0);
        assert_eq!(said, [false, false, true, false, false]);
    }

    #[test]
    fn a_status_is_said_when_it_changes() {
        let joined = joined();
        let away = Cluster {
            registry: false,
            ..joined.clone()
        };
        let mut herald = Herald::default();
        let said = [&joined, &joined, &away].map(|cluster| herald.news(cluster).1);
        let first = format!("master under {}; 0 members", Epoch::NONE);
        let third = format!("{first}; the registry does not answer");
        assert_eq!(said, [Some(first), None, Some(third)]);
    }
}
