//! What one seed does: how many nodes, which clocks, which faults and when, how much work. Every choice comes from the seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use troupe_actors::discovery::verdict::WITNESSES;
use troupe_actors::supervisor::How;
use troupe_actors::testkit::coverage::EQUAL_HALVES;

use troupe_actors::testkit::machine::{Make, WRONG_MS};

/// Whom a fault hits: one node by its number, or whoever leads when it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Node(usize),
    Master,
}

/// How a link fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What is sent waits, and arrives when TCP tries again.
    Hold,
    /// When the link is back, its connections are reset.
    Reset,
    /// When the link is back, its connections carry nothing any more: a firewall has forgotten them.
    Forget,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// kill -9: the machine closes the sockets and refuses.
    Crash { who: Who, down: Duration },
    /// The machine is gone: nobody closes anything.
    PowerLoss { who: Who, down: Duration },
    /// SIGSTOP: its timers are late afterwards, and what was sent to it waits.
    Pause { who: Who, lasting: Duration },
    /// The machine stands still, its clock too.
    Freeze { who: Who, lasting: Duration },
    /// So many short pauses, one after the other: a starved machine.
    Starve {
        who: Who,
        times: u32,
        each: Duration,
        apart: Duration,
    },
    /// Its clock goes at another rate.
    Rate {
        who: Who,
        rate: f64,
        lasting: Duration,
    },
    /// Its wall clock jumps, to be wrong by so many ms.
    Wall { who: Who, to_ms: i64 },
    /// These nodes on one side, all others on the other; the registry with both.
    Split {
        side: Vec<usize>,
        way: Way,
        lasting: Duration,
    },
    /// As a split, and one node that reaches both sides.
    Bridge {
        side: Vec<usize>,
        over: usize,
        way: Way,
        lasting: Duration,
    },
    /// One side, with the registry out of its reach too.
    Island {
        side: Vec<usize>,
        way: Way,
        lasting: Duration,
    },
    /// Nothing goes from one to the other; the way back is fine.
    OneWay {
        from: usize,
        to: usize,
        lasting: Duration,
    },
    /// These nodes lose the registry and nothing else.
    NoRegistry { side: Vec<usize>, lasting: Duration },
    /// A slow link.
    Slow {
        a: usize,
        b: usize,
        by: Duration,
        lasting: Duration,
    },
    /// So many connections are reset, one after the other.
    Resets { times: u32, apart: Duration },
    /// The registry's process ends; another takes its place, with the disk of the one before or empty.
    RegistryDown { lasting: Duration },
    /// It is stopped.
    RegistryPause { lasting: Duration },
    /// Calls or answers are lost.
    Unknown { of: f64, lasting: Duration },
    /// Calls take longer to arrive, beyond the patience of who made them.
    Late { by: Duration, lasting: Duration },
    /// Watches tell late, again, or not at all.
    Watch {
        late: Duration,
        again: f64,
        missing: f64,
        lasting: Duration,
    },
    /// The history is dropped.
    Compact,
    /// The history is dropped while these cannot be told of it: their watches are behind.
    Behind { side: Vec<usize>, lasting: Duration },
    /// Whoever leads is killed, and so is its successor, or the successor's MasterActor, this much after it was promoted.
    Ambush { actor: bool, after: Duration },
    /// A lease is ended behind its owner's back.
    Revoke { who: Who },
    /// A registration is deleted behind its owner's back, as by a wrongful verdict.
    Unregister { who: Who },
    /// Somebody has found the registry restored: there is a new generation.
    NewGeneration,
    /// An actor fails, so many times, so long apart.
    Kill {
        who: Who,
        actor: &'static str,
        how: How,
        times: u32,
        apart: Duration,
    },
    /// Mastership is given up.
    StepDown,
    /// SIGTERM; another process later.
    Drain { who: Who },
}

impl Fault {
    /// Its kind in a cluster of so many nodes, for the count of faults.
    pub fn kind(&self, nodes: usize) -> &'static str {
        match self {
            Self::Crash { .. } => "kill -9",
            Self::PowerLoss { .. } => "power loss",
            Self::Pause { .. } => "pause",
            Self::Freeze { .. } => "machine stands still",
            Self::Starve { .. } => "starved machine",
            Self::Rate { .. } => "clock rate",
            Self::Wall { .. } => "wall clock jumps",
            Self::Split { side, .. } if 2 * side.len() == nodes => EQUAL_HALVES,
            Self::Split { .. } => "split",
            Self::Bridge { .. } => "bridge node",
            Self::Island { .. } => "island without registry",
            Self::OneWay { .. } => "one-way cut",
            Self::NoRegistry { .. } => "registry out of reach",
            Self::Slow { .. } => "slow link",
            Self::Resets { .. } => "connections reset",
            Self::RegistryDown { .. } => "registry restarted or replaced",
            Self::RegistryPause { .. } => "registry paused",
            Self::Unknown { .. } => "answers of the registry lost",
            Self::Late { .. } => "calls to the registry late",
            Self::Watch { .. } => "watch events late, repeated, missing",
            Self::Compact => "compaction",
            Self::Behind { .. } => "compaction past a watch",
            Self::Ambush { .. } => "kill -9 twice: the successor too",
            Self::Revoke { .. } => "lease revoked",
            Self::Unregister { .. } => "registration deleted",
            Self::NewGeneration => "new generation",
            Self::Kill { .. } => "an actor killed",
            Self::StepDown => "step-down",
            Self::Drain { .. } => "drain",
        }
    }
}

const KINDS: u32 = 28;
const ACTORS: [&str; 5] = ["registry", "transport", "discovery", "worker", "master"];

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub make: Make,
    pub latency: (Duration, Duration),
    /// How fast each clock goes, the registry's last.
    pub rates: Vec<f64>,
    /// How wrong each wall clock is, ms.
    pub walls: Vec<i64>,
    /// How often the registry's disk is synced; without one it forgets all when it ends.
    pub disk: Option<Duration>,
    /// Nodes that start later than the others.
    pub starts: Vec<Duration>,
    /// Since the safety phase began.
    pub faults: Vec<(Duration, Fault)>,
    /// Tasks handed in during the safety phase: when, and at which node.
    pub submits: Vec<(Duration, usize)>,
    pub safety: Duration,
    /// There is one fault and nothing else.
    pub single: bool,
    /// How long nothing is wrong at the end, to see that nothing happens.
    pub calm: Duration,
}

fn ms(rng: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.random_range(from..=to))
}

/// From a millisecond to `most`, short ones as likely as long ones.
fn span(rng: &mut StdRng, most: u64) -> Duration {
    let exponent = rng.random_range(0.0..=(most as f64).ln());
    Duration::from_secs_f64(exponent.exp() / 1000.0)
}

fn rate(rng: &mut StdRng) -> f64 {
    match rng.random_range(0..4) {
        0 | 1 => 1.0,
        2 => rng.random_range(0.97..1.03),
        _ => rng.random_range(0.9..1.1),
    }
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = [1, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7][rng.random_range(0..11)];
        let single = rng.random_bool(0.25);
        let safety = if single {
            Duration::from_secs(10)
        } else {
            ms(&mut rng, 4_000, 12_000)
        };
        let faults = if single {
            let kind = rng.random_range(0..KINDS);
            vec![(Duration::from_secs(2), alone(fault(kind, nodes, &mut rng)))]
        } else {
            swarm(nodes, safety, &mut rng)
        };
        let submits = (0..rng.random_range(0..=20))
            .map(|_| {
                let at = ms(&mut rng, 0, safety.as_millis() as u64);
                (at, rng.random_range(0..nodes))
            })
            .collect();
        let least = Duration::from_millis([4, 8, 8, 16][rng.random_range(0..4)]);
        let capacity = rng.random_range(1..=4);
        let longest_job = ms(&mut rng, 10, 2500);
        // On average at most half of what there is to work with.
        let workers = (nodes as u32 - 1).max(1);
        let every = longest_job / (capacity * workers) + ms(&mut rng, 100, 1500);
        let odd_clocks = !single && rng.random_bool(0.5);
        let rates = (0..=nodes)
            .map(|_| if odd_clocks { rate(&mut rng) } else { 1.0 })
            .collect();
        let walls = (0..nodes)
            .map(|_| match rng.random_range(0..6) {
                0 => rng.random_range(-5_000..5_000),
                1 => rng.random_range(-WRONG_MS..WRONG_MS),
                _ => 0,
            })
            .collect();
        Self {
            seed,
            nodes,
            make: Make {
                capacity,
                ttl: Duration::from_secs([4, 10, 120][rng.random_range(0..3)]),
                relist: Duration::from_secs([3, 30][rng.random_range(0..2)]),
                generator: rng.random_bool(0.7).then_some(every),
                longest_job,
            },
            latency: (least, least + ms(&mut rng, 0, 30)),
            rates,
            walls,
            disk: rng.random_bool(0.5).then(|| ms(&mut rng, 1, 20)),
            starts: (0..nodes)
                .map(|_| {
                    if rng.random_bool(0.7) {
                        Duration::ZERO
                    } else {
                        ms(&mut rng, 0, 2000)
                    }
                })
                .collect(),
            faults,
            single,
            submits,
            safety,
            calm: if rng.random_bool(0.1) {
                Duration::from_secs(35)
            } else {
                Duration::from_secs(1)
            },
        }
    }

    /// Whether a connection may carry nothing until its idle time is over.
    pub fn may_be_stuck(&self) -> bool {
        self.faults.iter().any(|(_, fault)| {
            matches!(
                fault,
                Fault::PowerLoss { .. }
                    | Fault::Split {
                        way: Way::Forget,
                        ..
                    }
                    | Fault::Bridge {
                        way: Way::Forget,
                        ..
                    }
                    | Fault::Island {
                        way: Way::Forget,
                        ..
                    }
            )
        })
    }

    /// Whether nothing in it is a reason to condemn a process that runs.
    pub fn is_harmless(&self) -> bool {
        let brief = |d: &Duration| *d < Duration::from_millis(500);
        let harmless = |fault: &Fault| match fault {
            Fault::OneWay { .. } => self.nodes >= 3,
            // The registry still carries challenges to the other side.
            Fault::Split { .. } => self.nodes == 2,
            // Whoever suspects asks all others then, and one of them hears the peer. Of more nodes it asks some.
            Fault::Bridge { .. } => self.nodes <= WITNESSES + 2,
            Fault::Pause { lasting, .. } => brief(lasting),
            // A lease that ends meanwhile takes a registration whose owner does not know the next one yet.
            Fault::Unknown { lasting, .. } => *lasting < self.make.ttl / 2,
            Fault::Starve { each, .. } => brief(each),
            Fault::Wall { .. }
            | Fault::Slow { .. }
            | Fault::Resets { .. }
            | Fault::NoRegistry { .. }
            | Fault::StepDown
            | Fault::Kill { .. }
            | Fault::RegistryDown { .. }
            | Fault::RegistryPause { .. }
            | Fault::Late { .. }
            | Fault::Watch { .. }
            | Fault::Compact
            | Fault::Behind { .. }
            | Fault::Revoke { .. }
            | Fault::Unregister { .. }
            | Fault::NewGeneration => true,
            Fault::Crash { .. }
            | Fault::Ambush { .. }
            | Fault::PowerLoss { .. }
            | Fault::Freeze { .. }
            | Fault::Rate { .. }
            | Fault::Island { .. }
            | Fault::Drain { .. } => false,
        };
        self.single && self.faults.iter().all(|(_, fault)| harmless(fault))
    }
}

/// Each kind of fault is in or out, and how many there are is drawn too.
fn swarm(nodes: usize, safety: Duration, rng: &mut StdRng) -> Vec<(Duration, Fault)> {
    let kinds: Vec<u32> = (0..KINDS).filter(|_| rng.random_bool(0.35)).collect();
    let count = if kinds.is_empty() {
        0
    } else {
        rng.random_range(1..=10)
    };
    let mut at = Duration::ZERO;
    let mut faults: Vec<(Duration, Fault)> = (0..count)
        .map(|_| {
            let kind = kinds[rng.random_range(0..kinds.len())];
            // Every other one comes on the heels of the one before: races are between faults, not between calm moments.
            at = if rng.random_bool(0.5) {
                at + span(rng, 300)
            } else {
                ms(rng, 0, safety.as_millis() as u64)
            };
            (at, fault(kind, nodes, rng))
        })
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// A fault that is alone lasts: long enough for all that follows from it.
fn alone(mut fault: Fault) -> Fault {
    match &mut fault {
        Fault::Crash { down, .. } | Fault::PowerLoss { down, .. } => *down = Duration::from_secs(7),
        Fault::Kill { times, .. } => *times = 1,
        _ => {}
    }
    fault
}

fn some(nodes: usize, rng: &mut StdRng) -> Vec<usize> {
    // Two equal halves, as often as not where there can be any.
    if nodes.is_multiple_of(2) && rng.random_bool(0.5) {
        let first = rng.random_range(0..nodes);
        return (0..nodes / 2).map(|n| (first + n) % nodes).collect();
    }
    let mut side: Vec<usize> = (0..nodes).filter(|_| rng.random_bool(0.4)).collect();
    if side.is_empty() {
        side.push(rng.random_range(0..nodes));
    }
    side
}

fn fault(kind: u32, nodes: usize, rng: &mut StdRng) -> Fault {
    let a = rng.random_range(0..nodes);
    let b = (a + 1 + rng.random_range(0..nodes)) % nodes;
    let who = if rng.random_bool(0.5) {
        Who::Master
    } else {
        Who::Node(a)
    };
    let way = [Way::Hold, Way::Reset, Way::Forget][rng.random_range(0..3)];
    let lasting = span(rng, 9_000);
    match kind {
        0 | 1 => Fault::Crash {
            who,
            down: span(rng, 8_000),
        },
        2 => Fault::PowerLoss {
            who,
            down: span(rng, 8_000),
        },
        3 | 4 => Fault::Pause { who, lasting },
        5 => Fault::Freeze { who, lasting },
        6 => Fault::Starve {
            who,
            times: rng.random_range(3..40),
            each: ms(rng, 20, 450),
            apart: ms(rng, 1, 200),
        },
        7 => Fault::Rate {
            who,
            rate: rng.random_range(0.5..2.0),
            lasting,
        },
        8 => Fault::Wall {
            who,
            to_ms: rng.random_range(-WRONG_MS..WRONG_MS),
        },
        9 | 10 => Fault::Split {
            side: some(nodes, rng),
            way,
            lasting,
        },
        11 => Fault::Bridge {
            side: some(nodes, rng),
            over: b,
            way,
            lasting,
        },
        12 => Fault::Island {
            side: some(nodes, rng),
            way,
            lasting,
        },
        13 => Fault::OneWay {
            from: a,
            to: b,
            lasting,
        },
        14 => Fault::NoRegistry {
            side: some(nodes, rng),
            lasting,
        },
        15 => Fault::Slow {
            a,
            b,
            by: ms(rng, 50, 700),
            lasting,
        },
        16 => Fault::Resets {
            times: rng.random_range(1..30),
            apart: span(rng, 400),
        },
        17 => Fault::RegistryDown {
            lasting: span(rng, 6_000),
        },
        18 => Fault::RegistryPause {
            lasting: span(rng, 6_000),
        },
        19 => Fault::Unknown {
            of: rng.random_range(0.05..0.8),
            lasting,
        },
        20 => Fault::Late {
            by: ms(rng, 100, 4_000),
            lasting,
        },
        21 => Fault::Watch {
            late: span(rng, 2_000),
            again: rng.random_range(0.0..0.5),
            missing: rng.random_range(0.0..0.3),
            lasting,
        },
        22 => match rng.random_range(0..4) {
            0 => Fault::Compact,
            1 => Fault::Revoke { who },
            2 => Fault::Unregister { who },
            _ => Fault::NewGeneration,
        },
        23 => Fault::Kill {
            who,
            actor: ACTORS[rng.random_range(0..ACTORS.len())],
            how: if rng.random_bool(0.5) {
                How::Panic
            } else {
                How::Stop
            },
            times: if rng.random_bool(0.3) {
                rng.random_range(2..=8)
            } else {
                1
            },
            apart: span(rng, 3_000),
        },
        24 => Fault::StepDown,
        25 => Fault::Drain { who },
        26 => Fault::Behind {
            side: some(nodes, rng),
            lasting: ms(rng, 200, 1_900),
        },
        _ => Fault::Ambush {
            actor: rng.random_bool(0.5),
            after: span(rng, 1_500),
        },
    }
}
