//! ● Who may be in the middle of a handshake: a bounded number at all, of one address, and in one second.
//!
//! Before anybody has shown who it is, all that tells callers apart is where they come from. An address is an IPv4 address or
//! an IPv6 network of 64 bits.
//!
//! | somebody calls, and                                      | answer                                             |
//! |----------------------------------------------------------|----------------------------------------------------|
//! | its address, or everybody, came too often this second    | turned away                                        |
//! | its address has its share, the oldest of them is old     | admitted instead of that one                       |
//! | its address has its share, all of them are young         | turned away                                        |
//! | all places are taken, and the address with most has an old one | admitted instead of that one                 |
//! | all places are taken by young ones                       | turned away                                        |
//! | otherwise                                                | admitted                                           |
//!
//! *Old* is older than a handshake takes: whoever opens connections and says nothing loses them first, and cannot keep others
//! out. Young ones are left alone, lest a crowd of honest nodes push each other out before any of them is done.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long a handshake may take before it can be sacrificed; a good one takes a few milliseconds.
const YOUNG: Duration = Duration::from_millis(250);
/// Callers of one address in a second: a hundred nodes of one machine that all come at once are done in two.
const OF_ONE: u32 = 200;
/// Callers in a second: at 0.5 ms of CPU for each, the most that is spent on strangers is one thread.
const OF_ALL: u32 = 2_000;

/// A place in the middle of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The answer to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may begin; the one that loses its place for it, if any, is to be cut off.
    Admitted(Ticket, Option<Ticket>),
    /// It is closed at once.
    TurnedAway,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    from: IpAddr,
    since: Instant,
}

/// Who is in the middle of a handshake.
#[derive(Debug)]
pub struct Admissions {
    places: usize,
    share: usize,
    taken: BTreeMap<Ticket, Place>,
    last: u64,
    second: Option<Instant>,
    came: BTreeMap<IpAddr, u32>,
    all_came: u32,
}

impl Admissions {
    /// So many places, and of them so many for one address.
    pub fn new(places: usize, share: usize) -> Self {
        Self {
            places: places.max(1),
            share: share.clamp(1, places.max(1)),
            taken: BTreeMap::new(),
            last: 0,
            second: None,
            came: BTreeMap::new(),
            all_came: 0,
        }
    }

    /// Somebody calls.
    pub fn call(&mut self, from: IpAddr, now: Instant) -> Admission {
        let from = source(from);
        if !self.is_in_time(from, now) {
            return Admission::TurnedAway;
        }
        let own: Vec<Ticket> = self.of(from).collect();
        let instead = if own.len() >= self.share {
            own.first().copied()
        } else if self.taken.len() >= self.places {
            self.of(self.greediest()).next()
        } else {
            return Admission::Admitted(self.take(from, now), None);
        };
        let old = |ticket: &Ticket| {
            let place = self.taken.get(ticket);
            place.is_some_and(|p| now.saturating_duration_since(p.since) >= YOUNG)
        };
        let Some(instead) = instead.filter(old) else {
            return Admission::TurnedAway;
        };
        self.done(instead);
        Admission::Admitted(self.take(from, now), Some(instead))
    }

    /// Its handshake is over.
    pub fn done(&mut self, ticket: Ticket) {
        self.taken.remove(&ticket);
    }

    fn take(&mut self, from: IpAddr, now: Instant) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        self.taken.insert(ticket, Place { from, since: now });
        ticket
    }

    /// Oldest first: tickets are numbered as they are given.
    fn of(&self, from: IpAddr) -> impl Iterator<Item = Ticket> {
        let own = self.taken.iter().filter(move |(_, p)| p.from == from);
        own.map(|(ticket, _)| *ticket)
    }

    /// The address with the most places.
    fn greediest(&self) -> IpAddr {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for place in self.taken.values() {
            *counts.entry(place.from).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |(from, _)| from)
    }

    fn is_in_time(&mut self, from: IpAddr, now: Instant) -> bool {
        let began = self.second.get_or_insert(now);
        if now.saturating_duration_since(*began) >= Duration::from_secs(1) {
            *began = now;
            self.came.clear();
            self.all_came = 0;
        }
        if self.all_came >= OF_ALL {
            return false;
        }
        // At most as many addresses as callers of one second are held.
        let came = self.came.entry(from).or_default();
        let in_time = *came < OF_ONE;
        if in_time {
            *came += 1;
            self.all_came += 1;
        }
        in_time
    }
}

/// What counts as one address: whoever has one IPv6 address has a network of them.
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(ip) => {
            let network = ip.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    struct Door {
        admissions: Admissions,
        start: Instant,
    }

    impl Door {
        fn new(places: usize, share: usize) -> Self {
            Self {
                admissions: Admissions::new(places, share),
                start: Instant::now(),
            }
        }

        fn call(&mut self, from: u8, ms: u64) -> Admission {
            let now = self.start + Duration::from_millis(ms);
            self.admissions.call(ip(from), now)
        }

        fn admitted(&mut self, from: u8, ms: u64) -> Ticket {
            match self.call(from, ms) {
                Admission::Admitted(ticket, None) => ticket,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_address_that_says_nothing_loses_its_oldest_and_keeps_nobody_out() {
        let mut door = Door::new(8, 4);
        let first = door.admitted(1, 0);
        let second = door.admitted(1, 1);
        door.admitted(1, 2);
        door.admitted(1, 3);
        assert_eq!(door.call(1, 100), Admission::TurnedAway, "all are young");
        door.admitted(2, 100);
        let Admission::Admitted(_, Some(instead)) = door.call(1, 250) else {
            panic!("the oldest is old by now");
        };
        assert_eq!(instead, first);
        door.admissions.done(second);
        door.admitted(1, 251);
    }

    #[test]
    fn when_all_places_are_taken_the_greediest_address_gives_one() {
        let mut door = Door::new(4, 3);
        let first = door.admitted(1, 0);
        door.admitted(1, 0);
        door.admitted(1, 0);
        door.admitted(2, 0);
        assert_eq!(door.call(3, 100), Admission::TurnedAway, "all are young");
        let Admission::Admitted(_, instead) = door.call(3, 300) else {
            panic!("an old one gives way");
        };
        assert_eq!(instead, Some(first));
    }

    #[test]
    fn an_address_may_come_200_times_in_a_second_and_everybody_2000_times() {
        let mut door = Door::new(100_000, 100_000);
        for _ in 0..OF_ONE {
            door.admitted(1, 0);
        }
        assert_eq!(door.call(1, 500), Admission::TurnedAway);
        door.admitted(2, 500);
        door.admitted(1, 1000);
        let mut door = Door::new(100_000, 100_000);
        for caller in 0..OF_ALL {
            door.admitted(u8::try_from(caller / OF_ONE).unwrap(), 0);
        }
        assert_eq!(door.call(99, 0), Admission::TurnedAway);
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_address() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), ip(1));
    }
}
