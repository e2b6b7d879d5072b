//! What is done to a cluster and when: all of it from a seed. Pure.

use std::time::Duration;

/// SplitMix64: a schedule needs little, and the same seed must give the same one for ever.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.next() % (to - from + 1))
    }
}

/// What the nodes register in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registry {
    Etcd,
    ThreeEtcds,
    Disk,
}

impl Registry {
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ThreeEtcds => "etcd of three",
            Self::Disk => "embedded, on disk",
        }
    }

    /// Its processes.
    pub fn size(self) -> usize {
        match self {
            Self::Etcd | Self::Disk => 1,
            Self::ThreeEtcds => 3,
        }
    }
}

/// One thing that is done; hosts count from 1, members of the registry from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of the master.
    KillMaster,
    /// SIGSTOP of the master.
    FreezeMaster,
    /// The master's cable is pulled: it hears and is heard by nobody, the registry included.
    UnplugMaster,
    /// The same by a filter on its machine, which drops all that comes and all that goes.
    MuteMaster,
    Kill(usize),
    Freeze(usize),
    Unplug(usize),
    /// Nothing from the one reaches the other; the way back is fine.
    OneWay(usize, usize),
    /// Two hosts do not hear each other.
    Cut(usize, usize),
    /// A host and the registry do not hear each other.
    NoRegistry(usize),
    /// Bursts in which every segment that reaches a host on a standing connection is answered by a reset.
    Resets(usize),
    MemberKilled(usize),
    MemberFrozen(usize),
    MemberUnplugged(usize),
    /// All members are killed, and come back on their data.
    RegistryKilled,
    /// All members are stopped in their tracks.
    RegistryFrozen,
    /// The disk of a member has no room left.
    DiskFull(usize),
    /// Eight busy loops.
    Starved,
    /// A host's wall clock jumps by so many seconds, and back at the end.
    ClockJump(usize, i64),
    /// A process may open one more file and no further.
    FewFiles(usize),
    /// An actor panics.
    Panic(usize, &'static str),
    StepDown,
    /// A node is told to stop, and is started again.
    Drain(usize),
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::KillMaster => "kill -9 of the master",
            Self::FreezeMaster => "SIGSTOP of the master",
            Self::UnplugMaster | Self::MuteMaster => "partition of the master",
            Self::Kill(_) => "kill -9 of a node",
            Self::Freeze(_) => "SIGSTOP of a node",
            Self::Unplug(_) => "link down",
            Self::OneWay(..) => "one-way drop",
            Self::Cut(..) => "cut between two",
            Self::NoRegistry(_) => "cut from the registry",
            Self::Resets(_) => "reset storm",
            Self::MemberKilled(_) => "kill -9 of one of three etcds",
            Self::MemberFrozen(_) => "SIGSTOP of one of three etcds",
            Self::MemberUnplugged(_) => "link down of one of three etcds",
            Self::RegistryKilled => "whole registry killed",
            Self::RegistryFrozen => "whole registry stopped",
            Self::DiskFull(_) => "full disk of the registry",
            Self::Starved => "8 busy loops",
            Self::ClockJump(..) => "wall clock jump",
            Self::FewFiles(_) => "no more open files",
            Self::Panic(..) => "actor panic",
            Self::StepDown => "step-down",
            Self::Drain(_) => "drain",
        }
    }
}

/// A fault with its moment, counted from the beginning of its phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    pub fault: Fault,
    pub at: Duration,
    pub lasting: Duration,
}

/// From a whole cluster: the master is struck and its successor timed, others follow and overlap, all is mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    pub first: Fault,
    /// How long the first lasts once there is another master.
    pub lasting: Duration,
    pub drawn: Vec<Drawn>,
}

/// What is there to be broken.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Hosts have networks of their own.
    pub net: bool,
    /// libfaketime is installed.
    pub clocks: bool,
}

/// A round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub hosts: usize,
    pub registry: Registry,
    /// Hosts whose wall clock can be moved.
    pub clocks: Vec<usize>,
    /// The member of the registry whose data is on a disk that can be filled.
    pub small_disk: Option<usize>,
    pub phases: Vec<Phase>,
}

impl Plan {
    pub fn of(seed: u64, means: Means) -> Self {
        let mut dice = Dice(seed);
        let hosts = 3 + dice.below(3);
        let registry = [
            Registry::Etcd,
            Registry::ThreeEtcds,
            Registry::Disk,
            Registry::ThreeEtcds,
        ][dice.below(4)];
        let some: Vec<usize> = (1..=hosts).filter(|_| dice.below(2) == 0).collect();
        let clocks = if means.clocks && dice.below(2) == 0 {
            some
        } else {
            Vec::new()
        };
        let small = dice.below(2) == 0;
        let member = dice.below(registry.size());
        let mut plan = Self {
            seed,
            hosts,
            registry,
            clocks,
            small_disk: (means.net && small).then_some(member),
            phases: Vec::new(),
        };
        let cut_off = [Fault::UnplugMaster, Fault::MuteMaster][dice.below(2)];
        let mut firsts = vec![Fault::KillMaster, Fault::FreezeMaster];
        firsts.extend(means.net.then_some(cut_off));
        // Fisher and Yates.
        for last in (1..firsts.len()).rev() {
            firsts.swap(last, dice.below(last + 1));
        }
        for first in firsts {
            let lasting = dice.ms(0, 800);
            let count = 1 + dice.below(3);
            let drawn = (0..count).map(|_| plan.draw(means, &mut dice)).collect();
            plan.phases.push(Phase {
                first,
                lasting,
                drawn,
            });
        }
        plan.move_clocks(&mut Dice(!seed));
        plan
    }

    /// Where clocks can be moved, each phase moves one.
    fn move_clocks(&mut self, dice: &mut Dice) {
        let hosts = &self.clocks;
        for phase in self.phases.iter_mut().filter(|_| !hosts.is_empty()) {
            let host = hosts[dice.below(hosts.len())];
            let seconds = [-1200, -60, -2, 2, 60, 1200][dice.below(6)];
            phase.drawn.push(Drawn {
                fault: Fault::ClockJump(host, seconds),
                at: dice.ms(0, 500),
                // The library reads the file once a second.
                lasting: dice.ms(1200, 2500),
            });
        }
    }

    fn draw(&self, means: Means, dice: &mut Dice) -> Drawn {
        let host = 1 + dice.below(self.hosts);
        let other = 1 + (host + dice.below(self.hosts - 1)) % self.hosts;
        let member = dice.below(self.registry.size());
        let actor = [
            "registry",
            "transport",
            "discovery",
            "worker",
            "master",
            "admin",
        ][dice.below(6)];
        let seconds = [-1200, -60, -2, 2, 60, 1200][dice.below(6)];
        let clock = self.clocks.get(dice.below(self.clocks.len().max(1)));
        let mut may = vec![
            Fault::KillMaster,
            Fault::Kill(host),
            Fault::Freeze(host),
            Fault::RegistryKilled,
            Fault::RegistryFrozen,
            Fault::Starved,
            Fault::FewFiles(host),
            Fault::Panic(host, actor),
            Fault::StepDown,
            Fault::Drain(host),
        ];
        if means.net {
            may.extend([
                Fault::Unplug(host),
                Fault::OneWay(host, other),
                Fault::Cut(host, other),
                Fault::NoRegistry(host),
                Fault::Resets(host),
            ]);
        }
        if self.registry == Registry::ThreeEtcds {
            may.extend([Fault::MemberKilled(member), Fault::MemberFrozen(member)]);
            may.extend(means.net.then_some(Fault::MemberUnplugged(member)));
        }
        may.extend(self.small_disk.map(Fault::DiskFull));
        may.extend(clock.map(|host| Fault::ClockJump(*host, seconds)));
        Drawn {
            fault: may[dice.below(may.len())],
            at: dice.ms(0, 1500),
            lasting: dice.ms(300, 2500),
        }
    }
}

#[test]
fn a_seed_names_one_schedule_and_a_hundred_seeds_name_every_fault() {
    let means = Means {
        net: true,
        clocks: true,
    };
    let mut named = std::collections::BTreeSet::new();
    for seed in 1..=100 {
        let plan = Plan::of(seed, means);
        assert_eq!(plan, Plan::of(seed, means));
        for phase in &plan.phases {
            named.insert(phase.first.name());
            named.extend(phase.drawn.iter().map(|drawn| drawn.fault.name()));
        }
    }
    assert_eq!(named.len(), 22, "{named:?}");
}
