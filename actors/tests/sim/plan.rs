//! What one seed does: how many nodes, which faults and when, how much work. Every choice comes from the seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use troupe_actors::discovery::verdict::WITNESSES;
use troupe_actors::supervisor::How;
use troupe_actors::testkit::coverage::EQUAL_HALVES;

use troupe_actors::testkit::machine::{Make, WRONG_MS};

/// How a link fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What is sent waits, and arrives when the link is back: TCP sends again.
    Hold,
    /// What is sent is lost, and streams that lost something stay stuck: a firewall that forgot them.
    Drop,
}

/// How news of the registry go astray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misnews {
    /// They come when it is over.
    Late,
    /// Some come again, and with them older ones.
    Again,
    /// Some never come.
    Missed,
}

/// What goes wrong; `usize` is a node, by its number.
#[derive(Clone, Debug)]
pub enum Fault {
    /// kill -9: the kernel closes the sockets.
    Crash { node: usize, down: Duration },
    /// The machine is gone: nobody closes anything.
    PowerLoss { node: usize, down: Duration },
    /// These nodes on one side, all others on the other.
    Split {
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
    NoRegistry {
        nodes: Vec<usize>,
        way: Way,
        lasting: Duration,
    },
    /// The registry's process ends; a new, empty one takes its place.
    RegistryDown { lasting: Duration },
    /// The registry's machine loses its power, and comes back with what its disk has kept, if there is one.
    RegistryRestart { lasting: Duration },
    /// The registry drops its history while the watches of all nodes are this much behind.
    Compact { behind: Duration },
    /// News of the registry go astray.
    Misnews { how: Misnews, lasting: Duration },
    /// Of a hundred transactions so many are not answered: done, not done, or done later.
    LostReplies { share: u32, lasting: Duration },
    /// A lease is ended behind its owner's back.
    Revoke { node: usize },
    /// A registration is deleted behind its owner's back, as by a wrongful verdict.
    Unregister { node: usize },
    /// Another node has found the registry restored: there is a new generation.
    NewGeneration,
    /// An actor fails, so many times, so long apart.
    Kill {
        node: usize,
        actor: &'static str,
        how: How,
        times: u32,
        apart: Duration,
    },
    /// The master is killed, and then whoever is promoted after it, so many times, so long after the promotion: the process,
    /// or MasterActor alone.
    NewMasters {
        times: u32,
        after: Duration,
        whole: bool,
        down: Duration,
    },
    /// Mastership is given up.
    StepDown { node: usize },
    /// SIGTERM; another process later.
    Drain { node: usize },
    /// Two sides that do not hear each other, and one node that hears both.
    Bridge {
        bridge: usize,
        side: Vec<usize>,
        way: Way,
        lasting: Duration,
    },
    /// The connections of a node are reset, so many times, so long apart: to the registry, or to the other nodes.
    Resets {
        node: usize,
        registry: bool,
        times: u32,
        apart: Duration,
    },
    /// A node's wall clock jumps to being wrong by so much.
    Clock { node: usize, to_ms: i64 },
    /// A slow link.
    Slow {
        a: usize,
        b: usize,
        by: Duration,
        lasting: Duration,
    },
}

impl Fault {
    /// Its kind in this plan, for the count of faults; empty when it does nothing here, or is counted by what it sets off.
    pub fn kind(&self, plan: &Plan) -> &'static str {
        match self {
            Self::Crash { .. } => "kill -9",
            Self::PowerLoss { .. } => "power loss",
            Self::Split { side, .. } if side.len() == plan.nodes => "",
            Self::Split { side, .. } if side.len() * 2 == plan.nodes => EQUAL_HALVES,
            Self::Split { .. } => "split",
            Self::Bridge { .. } if plan.nodes < 3 => "",
            Self::Bridge { .. } => "bridge node",
            Self::OneWay { from, to, .. } if from == to => "",
            Self::OneWay { .. } => "one-way cut",
            Self::NoRegistry { .. } => "no registry",
            Self::RegistryRestart { .. } if plan.disk.is_some() => {
                "registry without power, then back on its data"
            }
            Self::RegistryDown { .. } | Self::RegistryRestart { .. } => {
                "registry replaced by an empty one"
            }
            Self::Compact { .. } => "history compacted, watches behind",
            Self::Misnews {
                how: Misnews::Late, ..
            } => "watch events late",
            Self::Misnews {
                how: Misnews::Again,
                ..
            } => "watch events repeated",
            Self::Misnews {
                how: Misnews::Missed,
                ..
            } => "watch events missing",
            Self::LostReplies { .. } => "replies of transactions lost",
            Self::Revoke { .. } => "lease revoked",
            Self::Unregister { .. } => "registration deleted",
            Self::NewGeneration => "new generation",
            Self::Kill { .. } | Self::NewMasters { .. } | Self::Resets { .. } => "",
            Self::StepDown { .. } => "step-down",
            Self::Drain { .. } => "drain",
            Self::Clock { .. } => "wall clock jumps",
            Self::Slow { a, b, .. } if a == b => "",
            Self::Slow { .. } => "slow link",
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub make: Make,
    /// The longest sync of the registry's disk; none when it keeps its data in memory.
    pub disk: Option<Duration>,
    /// How far each node's wall clock is off at the start, milliseconds.
    pub clocks: Vec<i64>,
    pub latency: (Duration, Duration),
    /// How finely the world is cut: what is sent arrives at the next cut at the earliest.
    pub tick: Duration,
    pub random_order: bool,
    /// Nodes that start later than the others.
    pub starts: Vec<Duration>,
    /// Since the safety phase began.
    pub faults: Vec<(Duration, Fault)>,
    /// Tasks handed in during the safety phase: when, and at which node.
    pub submits: Vec<(Duration, usize)>,
    /// Whether clients ask again, cancel and retry meanwhile, and some tasks always fail.
    pub clients: bool,
    pub safety: Duration,
    /// There is one fault and nothing else.
    pub single: bool,
    /// How long nothing is wrong at the end, to see that nothing happens.
    pub calm: Duration,
}

/// A node that was condemned by mistake waits for a second before it comes back.
const AGREED_WITHIN: Duration = Duration::from_secs(4);

/// When a fault that is alone comes.
const ALONE_AT: Duration = Duration::from_secs(4);

/// Kinds of faults that are drawn, see [`fault`].
const KINDS: u32 = 21;

const ACTORS: [&str; 5] = ["registry", "transport", "discovery", "worker", "master"];

fn ms(rng: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.random_range(from..=to))
}

/// From a millisecond to `most`, short ones as likely as long ones.
fn span(rng: &mut StdRng, most: u64) -> Duration {
    let exponent = rng.random_range(0.0..=(most as f64).ln());
    Duration::from_secs_f64(exponent.exp() / 1000.0)
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = [1, 2, 3, 3, 3, 4, 5, 5, 6, 7][rng.random_range(0..10)];
        let safety = ms(&mut rng, 5_000, 20_000);
        // A swarm: each kind of fault is in or out, and how many there are is drawn too.
        let kinds: Vec<u32> = (0..KINDS).filter(|_| rng.random_bool(0.5)).collect();
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
                    at + span(&mut rng, 300)
                } else {
                    ms(&mut rng, 0, safety.as_millis() as u64)
                };
                (at, fault(kind, nodes, &mut rng))
            })
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        // One run in four has one fault and nothing else, for what must happen in time or not at all; or a change that the news
        // of do not come.
        let calm = rng.random_bool(0.25);
        if calm {
            faults = match rng.random_range(0..KINDS + 4) {
                kind if kind < KINDS => vec![(ALONE_AT, alone(fault(kind, nodes, &mut rng)))],
                kind => untold(kind - KINDS, nodes, &mut rng),
            };
        }
        let single = calm && faults.len() == 1;
        let safety = if calm {
            Duration::from_secs(13)
        } else {
            safety
        };
        let submits = (0..rng.random_range(0..=20))
            .map(|_| {
                (
                    ms(&mut rng, 0, safety.as_millis() as u64),
                    rng.random_range(0..nodes),
                )
            })
            .collect();
        let least = ms(&mut rng, 1, 3);
        let capacity = rng.random_range(1..=4);
        let longest_job = ms(&mut rng, 10, 4000);
        // On average at most half of what there is to work with.
        let workers = (nodes as u32 - 1).max(1);
        let bearable = longest_job / (capacity * workers);
        let every = bearable + ms(&mut rng, 100, 1500);
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
            disk: rng
                .random_bool(0.6)
                .then(|| Duration::from_micros(rng.random_range(200..=30_000))),
            clocks: clocks(nodes, &mut rng),
            latency: (least, least + ms(&mut rng, 0, 30)),
            tick: Duration::from_millis([2, 5, 5, 5][rng.random_range(0..4)]),
            random_order: rng.random_bool(0.5),
            starts: (0..nodes)
                .map(|_| {
                    if rng.random_bool(0.7) {
                        Duration::ZERO
                    } else {
                        ms(&mut rng, 0, 3000)
                    }
                })
                .collect(),
            faults,
            single,
            submits,
            clients: true,
            safety,
            calm: if rng.random_bool(0.1) {
                Duration::from_secs(35)
            } else {
                Duration::from_secs(1)
            },
        }
    }
}

impl Plan {
    /// Whether nothing in it is a reason to condemn a process that runs.
    pub fn is_harmless(&self) -> bool {
        let harmless = |fault: &Fault| match fault {
            Fault::OneWay { .. } => self.nodes >= 3,
            Fault::Slow { .. }
            | Fault::NoRegistry { .. }
            | Fault::StepDown { .. }
            | Fault::Kill { .. }
            | Fault::RegistryDown { .. }
            | Fault::Revoke { .. }
            | Fault::Unregister { .. }
            | Fault::RegistryRestart { .. }
            | Fault::Compact { .. }
            | Fault::Misnews { .. }
            | Fault::LostReplies { .. }
            | Fault::Resets { .. }
            | Fault::Clock { .. }
            | Fault::NewGeneration => true,
            // Whoever suspects asks all others then, and one of them hears the peer. Of more nodes it asks some.
            Fault::Bridge { .. } => self.nodes <= WITNESSES + 2,
            // The registry still carries challenges to the other side.
            Fault::Split { .. } => self.nodes == 2,
            Fault::Crash { .. }
            | Fault::PowerLoss { .. }
            | Fault::NewMasters { .. }
            | Fault::Drain { .. } => false,
        };
        self.single && self.faults.iter().all(|(_, fault)| harmless(fault))
    }

    /// When all must agree again after a fault that is over at once.
    pub fn agreed_by(&self) -> Option<Duration> {
        let (at, fault) = self.faults.first().filter(|_| self.single)?;
        let brief = matches!(
            fault,
            Fault::StepDown { .. }
                | Fault::Kill { .. }
                | Fault::Revoke { .. }
                | Fault::Unregister { .. }
                | Fault::Compact { .. }
                | Fault::Clock { .. }
                | Fault::NewGeneration
        );
        brief.then_some(*at + AGREED_WITHIN)
    }

    /// Whether a stream between two nodes may lose a segment, which this network never sends again.
    pub fn loses_segments(&self) -> bool {
        self.faults.iter().any(|(_, fault)| {
            matches!(
                fault,
                Fault::PowerLoss { .. }
                    | Fault::OneWay { .. }
                    | Fault::Bridge { way: Way::Drop, .. }
                    | Fault::Split { way: Way::Drop, .. }
            )
        })
    }
}

/// Something happens that the registry's news do not tell of in time.
fn untold(kind: u32, nodes: usize, rng: &mut StdRng) -> Vec<(Duration, Fault)> {
    let (node, lasting) = (rng.random_range(0..nodes), Duration::from_secs(6));
    let (how, what) = match kind {
        // A registration goes and comes, and some miss that.
        0 => (Some(Misnews::Missed), Fault::Unregister { node }),
        // All miss it, and then the history is dropped.
        1 => (None, Fault::Unregister { node }),
        // One is cut off from the others, and does not hear that they go on without it.
        _ => {
            let (side, way) = (vec![node], Way::Hold);
            (Some(Misnews::Late), Fault::Split { side, way, lasting })
        }
    };
    let behind = Duration::from_millis(1_500);
    let untold = how.map_or(Fault::Compact { behind }, |how| Fault::Misnews {
        how,
        lasting,
    });
    let after = ms(rng, 10, 500);
    vec![(ALONE_AT, untold), (ALONE_AT + after, what)]
}

/// A fault that is alone lasts: long enough for all that follows from it.
fn alone(mut fault: Fault) -> Fault {
    match &mut fault {
        Fault::Crash { down, .. } | Fault::PowerLoss { down, .. } => *down = Duration::from_secs(8),
        Fault::Kill { times, .. } => *times = 1,
        _ => {}
    }
    fault
}

/// Most clocks are about right; some are minutes off.
fn clocks(nodes: usize, rng: &mut StdRng) -> Vec<i64> {
    (0..nodes)
        .map(|_| match rng.random_range(0..10) {
            0..5 => rng.random_range(-50..=50),
            5..9 => rng.random_range(-300_000..=300_000),
            _ => rng.random_range(-WRONG_MS..=WRONG_MS),
        })
        .collect()
}

/// One side of a split: of an even number of nodes every other time just half.
fn side(nodes: usize, rng: &mut StdRng) -> Vec<usize> {
    if nodes % 2 == 1 || rng.random_bool(0.5) {
        return some(nodes, rng);
    }
    let mut all: Vec<usize> = (0..nodes).collect();
    for at in (1..nodes).rev() {
        all.swap(at, rng.random_range(0..=at));
    }
    all.truncate(nodes / 2);
    all.sort_unstable();
    all
}

fn some(nodes: usize, rng: &mut StdRng) -> Vec<usize> {
    let mut side: Vec<usize> = (0..nodes).filter(|_| rng.random_bool(0.4)).collect();
    if side.is_empty() {
        side.push(rng.random_range(0..nodes));
    }
    side
}

fn fault(kind: u32, nodes: usize, rng: &mut StdRng) -> Fault {
    let node = rng.random_range(0..nodes);
    // Another one, if there is any.
    let other = (node + rng.random_range(1..nodes.max(2))) % nodes;
    let way = if rng.random_bool(0.5) {
        Way::Hold
    } else {
        Way::Drop
    };
    let down = span(rng, 8_000);
    let lasting = span(rng, 9_000);
    match kind {
        0 => Fault::Crash { node, down },
        1 => Fault::PowerLoss { node, down },
        2 => Fault::Split {
            side: side(nodes, rng),
            way,
            lasting,
        },
        3 => Fault::OneWay {
            from: node,
            to: other,
            lasting,
        },
        4 => Fault::NoRegistry {
            nodes: some(nodes, rng),
            way,
            lasting,
        },
        5 => Fault::RegistryDown { lasting },
        6 => Fault::Revoke { node },
        7 => {
            let actor = ACTORS[rng.random_range(0..ACTORS.len())];
            let how = if rng.random_bool(0.5) {
                How::Panic
            } else {
                How::Stop
            };
            Fault::Kill {
                node,
                actor,
                how,
                times: if rng.random_bool(0.3) {
                    rng.random_range(2..=8)
                } else {
                    1
                },
                apart: span(rng, 3_000),
            }
        }
        8 => Fault::StepDown { node },
        9 => Fault::Drain { node },
        10 => Fault::Unregister { node },
        11 => Fault::NewGeneration,
        12 => Fault::RegistryRestart { lasting },
        13 => Fault::Compact {
            behind: span(rng, 2_000),
        },
        14 => Fault::Misnews {
            how: [Misnews::Late, Misnews::Again, Misnews::Missed][rng.random_range(0..3)],
            lasting,
        },
        15 => Fault::LostReplies {
            share: rng.random_range(5..=60),
            lasting,
        },
        16 => Fault::NewMasters {
            times: rng.random_range(1..=3),
            after: span(rng, 200),
            whole: rng.random_bool(0.6),
            down,
        },
        17 => Fault::Bridge {
            bridge: node,
            side: some(nodes, rng),
            way,
            lasting,
        },
        18 => Fault::Resets {
            node,
            registry: rng.random_bool(0.3),
            times: rng.random_range(1..=12),
            apart: span(rng, 600),
        },
        19 => Fault::Clock {
            node,
            to_ms: if rng.random_bool(0.5) {
                rng.random_range(-10_000..=10_000)
            } else {
                rng.random_range(-WRONG_MS..=WRONG_MS)
            },
        },
        _ => Fault::Slow {
            a: node,
            b: other,
            by: ms(rng, 50, 700),
            lasting,
        },
    }
}
