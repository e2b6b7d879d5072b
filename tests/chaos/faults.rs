//! How each fault begins and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::schedule::Fault;
use crate::support::net::Net;
use crate::world::World;

/// Busy loops of [`Fault::Starved`].
pub const LOOPS: usize = 8;
/// A burst of resets, and the rest before the next.
const BURST: Duration = Duration::from_millis(60);
const REST: Duration = Duration::from_millis(240);
/// A drained node may take so long: `node.drain` and a slow registry.
const DRAINED: Duration = Duration::from_secs(8);

/// A fault that has begun.
pub struct Struck {
    pub fault: Fault,
    number: usize,
    /// The host it turned out to be, from 0.
    pub host: Option<usize>,
    files: Option<(Pid, Rlimit)>,
    loops: Option<Loops>,
    /// Bursts of resets: when the next step is due, and whether a burst is on.
    burst: Option<(Duration, bool)>,
}

impl Struck {
    /// Does it; `None` when there is nothing to do it to.
    pub fn begin(world: &mut World, number: usize, fault: Fault) -> Option<Self> {
        let host = match fault {
            Fault::KillMaster
            | Fault::FreezeMaster
            | Fault::UnplugMaster
            | Fault::MuteMaster
            | Fault::StepDown => Some(world.master()?),
            Fault::Kill(n)
            | Fault::Freeze(n)
            | Fault::Unplug(n)
            | Fault::OneWay(n, _)
            | Fault::Cut(n, _)
            | Fault::NoRegistry(n)
            | Fault::Resets(n)
            | Fault::ClockJump(n, _)
            | Fault::FewFiles(n)
            | Fault::Panic(n, _)
            | Fault::Drain(n) => Some(n - 1),
            _ => None,
        };
        let mut struck = Self {
            fault,
            number,
            host,
            files: None,
            loops: None,
            burst: None,
        };
        match host {
            Some(at) => struck.strike_host(world, at),
            None => struck.strike_others(world),
        }
        Some(struck)
    }

    fn strike_host(&mut self, world: &mut World, at: usize) {
        let number = self.number;
        match self.fault {
            Fault::KillMaster | Fault::Kill(_) => {
                world.excuse(number, at);
                world.kill(at);
            }
            Fault::FreezeMaster | Fault::Freeze(_) => {
                world.excuse(number, at);
                world.freeze(at);
            }
            Fault::UnplugMaster | Fault::Unplug(_) => {
                world.excuse(number, at);
                world.pull_cable(at);
            }
            Fault::MuteMaster => {
                world.excuse(number, at);
                world.filter(number, at, vec![mute("in"), mute("out")]);
            }
            Fault::OneWay(from, to) => {
                world.filter(number, to - 1, vec![deaf_to(&Net::ip(from))]);
            }
            Fault::Cut(a, b) => {
                world.filter(number, a - 1, vec![deaf_to(&Net::ip(b))]);
                world.filter(number, b - 1, vec![deaf_to(&Net::ip(a))]);
            }
            Fault::NoRegistry(_) => {
                let registry = world.store.addresses();
                let rules = registry.iter().map(|ip| deaf_to(ip)).collect();
                world.filter(number, at, rules);
            }
            Fault::Resets(_) => self.burst = Some((Duration::ZERO, false)),
            Fault::ClockJump(_, seconds) => world.hosts[at].set_clock(seconds),
            Fault::FewFiles(_) => self.files = few_files(world, at),
            Fault::Panic(_, actor) => {
                let path = format!("/v1/actors/{actor}/kill");
                post(world, at, path, "{\"how\":\"panic\"}");
            }
            Fault::StepDown => post(world, at, "/v1/master/step-down".to_owned(), ""),
            Fault::Drain(_) => {
                world.excuse(number, at);
                world.hosts[at].signal(Signal::TERM);
            }
            _ => {}
        }
    }

    fn strike_others(&mut self, world: &mut World) {
        match self.fault {
            Fault::MemberKilled(n) => world.store.kill(n),
            Fault::MemberFrozen(n) => world.store.freeze(n),
            Fault::MemberUnplugged(n) => link_of_member(world, n, false),
            Fault::RegistryKilled => (0..world.store.kind.size()).for_each(|n| world.store.kill(n)),
            Fault::RegistryFrozen => {
                (0..world.store.kind.size()).for_each(|n| world.store.freeze(n));
            }
            Fault::DiskFull(n) => world.store.fill(n),
            Fault::Starved => self.loops = Some(Loops::start(LOOPS)),
            _ => {}
        }
    }

    /// What a fault does while it lasts.
    pub fn go_on(&mut self, world: &mut World) {
        let (Some((due, on)), Some(at)) = (self.burst, self.host) else {
            return;
        };
        if world.now() < due {
            return;
        }
        if on {
            world.unfilter(self.number);
            self.burst = Some((world.now() + REST, false));
        } else {
            let rule = "tcp flags & syn == 0 reject with tcp reset".to_owned();
            world.filter(self.number, at, vec![("in", rule)]);
            self.burst = Some((world.now() + BURST, true));
        }
    }

    /// Mends it.
    pub fn end(mut self, world: &mut World) {
        drop(self.loops.take());
        match (self.fault, self.host) {
            (Fault::KillMaster | Fault::Kill(_), Some(at)) => world.start_host(at),
            (Fault::FreezeMaster | Fault::Freeze(_), Some(at)) => world.thaw(at),
            (Fault::UnplugMaster | Fault::Unplug(_), Some(at)) => world.plug_in(at),
            (Fault::ClockJump(..), Some(at)) => world.hosts[at].set_clock(0),
            (Fault::Drain(_), Some(at)) => {
                world.thaw(at);
                world.wait_left(at, DRAINED);
                world.kill(at);
                world.start_host(at);
            }
            (Fault::MemberKilled(n), _) => world.store.start_member(n),
            (Fault::MemberFrozen(n), _) => world.store.thaw(n),
            (Fault::MemberUnplugged(n), _) => link_of_member(world, n, true),
            (Fault::RegistryKilled, _) => {
                (0..world.store.kind.size()).for_each(|n| world.store.start_member(n));
            }
            (Fault::RegistryFrozen, _) => {
                (0..world.store.kind.size()).for_each(|n| world.store.thaw(n));
            }
            (Fault::DiskFull(n), _) => {
                world.store.make_room(n);
                // An init system's part: who cannot write leaves.
                world.store.start_member(n);
            }
            _ => {}
        }
        if let Some((pid, before)) = self.files {
            // It may have been killed meanwhile.
            prlimit(Some(pid), Resource::Nofile, before).ok();
        }
        world.unfilter(self.number);
        world.no_excuse(self.number);
    }
}

fn mute(chain: &'static str) -> (&'static str, String) {
    let interface = if chain == "in" { "iifname" } else { "oifname" };
    (chain, format!("{interface} != \"lo\" drop"))
}

fn deaf_to(ip: &str) -> (&'static str, String) {
    ("in", format!("ip saddr {ip} drop"))
}

fn link_of_member(world: &World, n: usize, up: bool) {
    if let Some(net) = &world.net {
        net.set_link(world.hosts.len() + 1 + n, up);
    }
}

/// One more file, and no further.
fn few_files(world: &World, at: usize) -> Option<(Pid, Rlimit)> {
    let id = world.hosts[at].process.as_ref()?.pid();
    let pid = Pid::from_raw(id as i32)?;
    let open = std::fs::read_dir(format!("/proc/{id}/fd")).ok()?.count() as u64;
    let limit = Rlimit {
        current: Some(open + 1),
        ..getrlimit(Resource::Nofile)
    };
    let before = prlimit(Some(pid), Resource::Nofile, limit);
    before.ok().map(|before| (pid, before))
}

/// Asks a node to do something; nobody waits for its answer.
fn post(world: &World, at: usize, path: String, body: &'static str) {
    let address = world.hosts[at].admin();
    std::thread::spawn(move || {
        let patience = Duration::from_secs(2);
        let what = ("application/json", body);
        crate::support::request_within(patience, &address, ("POST", &path), what);
    });
}

/// Threads that do nothing, all the time.
pub struct Loops {
    stop: Arc<AtomicBool>,
}

impl Loops {
    pub fn start(n: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..n {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self { stop }
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
