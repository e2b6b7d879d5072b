//! Leases: a time to live, a deadline and the keys that die with it. Pure: it is told the time.
//!
//! Absences: no lease expires here by itself, [`super::store::Store::tick`] asks for those that are due; and nobody is
//! punished for the server's own sleep, [`Leases::forgive`] moves every deadline by the time it was away, as etcd's new
//! leader does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::Refusal;

/// etcd's least time to live with its default election time-out (3/2 of 1 s, rounded up).
pub(crate) const MIN_TTL: i64 = 2;
/// etcd's greatest time to live, in seconds.
pub(crate) const MAX_TTL: i64 = 9_000_000_000;
/// A node needs one lease; this many is a client that leaks.
pub(crate) const MAX_LEASES: usize = 100_000;

#[derive(Clone, Debug)]
struct Lease {
    /// Seconds.
    granted: i64,
    deadline: Instant,
    keys: BTreeSet<Bytes>,
}

/// What a client may know of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseInfo {
    /// Seconds granted.
    pub(crate) granted: i64,
    /// Whole seconds that remain.
    pub(crate) remaining: i64,
    /// The keys on it, sorted.
    pub(crate) keys: Vec<Bytes>,
}

/// All leases of a store.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_id: BTreeMap<i64, Lease>,
    by_deadline: BTreeSet<(Instant, i64)>,
}

impl Leases {
    /// Grants `id` (never 0) for `ttl` seconds, at least [`MIN_TTL`]; answers what was granted.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Instant) -> Result<i64, Refusal> {
        if id == 0 {
            return Err(Refusal::LeaseNotFound);
        }
        if ttl > MAX_TTL {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        if self.by_id.contains_key(&id) {
            return Err(Refusal::LeaseExists);
        }
        if self.by_id.len() >= MAX_LEASES {
            return Err(Refusal::TooManyRequests);
        }
        let granted = ttl.max(MIN_TTL);
        let deadline = after(now, granted);
        self.by_deadline.insert((deadline, id));
        self.by_id.insert(
            id,
            Lease {
                granted,
                deadline,
                keys: BTreeSet::new(),
            },
        );
        Ok(granted)
    }

    /// Starts the lease's time anew; answers its time to live, `None` when it is gone.
    pub(crate) fn renew(&mut self, id: i64, now: Instant) -> Option<i64> {
        let lease = self.by_id.get_mut(&id)?;
        self.by_deadline.remove(&(lease.deadline, id));
        lease.deadline = after(now, lease.granted);
        self.by_deadline.insert((lease.deadline, id));
        Some(lease.granted)
    }

    /// Ends a lease; answers its keys, sorted.
    pub(crate) fn remove(&mut self, id: i64) -> Result<Vec<Bytes>, Refusal> {
        let lease = self.by_id.remove(&id).ok_or(Refusal::LeaseNotFound)?;
        self.by_deadline.remove(&(lease.deadline, id));
        Ok(lease.keys.into_iter().collect())
    }

    /// What is known of a lease.
    pub(crate) fn info(&self, id: i64, now: Instant) -> Option<LeaseInfo> {
        let lease = self.by_id.get(&id)?;
        let remaining = lease.deadline.saturating_duration_since(now).as_secs();
        Some(LeaseInfo {
            granted: lease.granted,
            remaining: i64::try_from(remaining).unwrap_or(i64::MAX),
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    /// All ids, the one that ends first at the front (as etcd lists them).
    pub(crate) fn ids(&self) -> Vec<i64> {
        self.by_deadline.iter().map(|(_, id)| *id).collect()
    }

    /// Whether the lease exists.
    pub(crate) fn contains(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Hangs a key on a lease; 0 is no lease.
    pub(crate) fn attach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    /// Takes a key off a lease; 0 is no lease.
    pub(crate) fn detach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// The leases whose time is over.
    pub(crate) fn due(&self, now: Instant) -> Vec<i64> {
        self.by_deadline
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .map(|(_, id)| *id)
            .collect()
    }

    /// When the next lease ends.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// Moves every deadline by the time the server itself was away.
    pub(crate) fn forgive(&mut self, away: Duration) {
        for lease in self.by_id.values_mut() {
            lease.deadline += away;
        }
        self.by_deadline = self
            .by_id
            .iter()
            .map(|(id, lease)| (lease.deadline, *id))
            .collect();
    }
}

fn after(now: Instant, seconds: i64) -> Instant {
    now + Duration::from_secs(seconds.max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_two_seconds_at_the_least() {
        let now = Instant::now();
        let mut leases = Leases::default();
        assert_eq!(leases.grant(1, 0, now), Ok(2));
        assert_eq!(leases.grant(2, -5, now), Ok(2));
        assert_eq!(leases.grant(3, 60, now), Ok(60));
        assert_eq!(leases.next_deadline(), Some(now + Duration::from_secs(2)));
    }

    #[test]
    fn what_cannot_be_granted_is_refused_in_etcds_words() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.grant(7, 5, now).unwrap();
        for (id, ttl, words) in [
            (7, 5, "etcdserver: lease already exists"),
            (8, MAX_TTL + 1, "etcdserver: too large lease TTL"),
            (0, 5, "etcdserver: requested lease not found"),
        ] {
            assert_eq!(leases.grant(id, ttl, now).unwrap_err().to_string(), words);
        }
    }

    #[test]
    fn a_renewed_lease_outlives_its_first_deadline() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut leases = Leases::default();
        leases.grant(1, 5, start).unwrap();
        assert_eq!(leases.renew(1, at(4)), Some(5));
        assert!(leases.due(at(8)).is_empty());
        assert_eq!(leases.due(at(9)), vec![1]);
        assert_eq!(leases.renew(2, at(4)), None);
    }

    #[test]
    fn leases_are_listed_by_the_time_they_have_left() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.grant(1, 60, now).unwrap();
        leases.grant(2, 5, now).unwrap();
        assert_eq!(leases.ids(), vec![2, 1]);
    }

    #[test]
    fn a_sleep_of_the_server_is_not_held_against_a_lease() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut leases = Leases::default();
        leases.grant(1, 5, start).unwrap();
        leases.forgive(Duration::from_secs(30));
        assert!(leases.due(at(34)).is_empty());
        assert_eq!(leases.due(at(35)), vec![1]);
        assert_eq!(leases.info(1, at(30)).unwrap().remaining, 5);
    }
}
