//! What a node reads out of the registry: the folded keys, the view they amount to, and how a leftover is judged. Pure.
//!
//! A watch is a hint: late, repeated or missing changes must not matter. So [`Mirror`] ignores what is older than what
//! it knows, and a fresh listing replaces everything.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Change, Compare, Kv, Listing, Op, Txn, WatchBatch};
use crate::cluster::{Master, MasterRecord, Registration};
use crate::id::{Epoch, Generation, Incarnation, NodeId};
use crate::planted;

/// The keys of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys under `/<cluster>/`.
    pub fn new(cluster: &str) -> Self {
        Self {
            prefix: format!("/{cluster}/"),
        }
    }

    /// `/<cluster>/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where registrations are.
    pub fn services(&self) -> String {
        format!("{}services/", self.prefix)
    }

    /// The registration of `host:port`.
    pub fn service(&self, address: &str) -> String {
        format!("{}services/{address}", self.prefix)
    }

    /// Where names are claimed.
    pub fn names(&self) -> String {
        format!("{}names/", self.prefix)
    }

    /// The claim of a name.
    pub fn name(&self, name: &str) -> String {
        format!("{}names/{name}", self.prefix)
    }

    /// Mastership.
    pub fn master(&self) -> String {
        format!("{}master", self.prefix)
    }

    /// Which life of the registry.
    pub fn generation(&self) -> String {
        format!("{}generation", self.prefix)
    }

    /// Where challenges are put.
    pub fn challenges(&self) -> String {
        format!("{}challenge/", self.prefix)
    }

    /// The challenge to one incarnation.
    pub fn challenge(&self, incarnation: Incarnation) -> String {
        format!("{}challenge/{incarnation}", self.prefix)
    }

    /// Where durable tasks are recorded.
    pub fn journal(&self) -> String {
        format!("{}journal/", self.prefix)
    }

    /// What is watched: everything but names (claimed, never followed) and the journal (bulk).
    pub fn watched(&self) -> [String; 4] {
        [
            self.services(),
            self.master(),
            self.generation(),
            self.challenges(),
        ]
    }

    /// One transaction that reads all of it, with names, at one revision.
    pub fn read_all(&self) -> Txn {
        Txn {
            then: vec![
                Op::List(self.services()),
                Op::Get(self.master()),
                Op::Get(self.generation()),
                Op::List(self.challenges()),
                Op::List(self.names()),
            ],
            ..Txn::default()
        }
    }
}

/// A member as registered.
#[derive(Clone, Debug, PartialEq)]
pub struct Registered {
    /// What it registered.
    pub registration: Registration,
    /// Which life of it.
    pub incarnation: Incarnation,
}

/// The registered members and mastership at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The registry revision.
    pub revision: i64,
    /// Which life of the registry; 0 while unknown.
    pub generation: Generation,
    /// Sorted by incarnation.
    pub members: Vec<Registered>,
    /// The master key, whoever holds it.
    pub master: Option<Master>,
    /// Incarnations with an open challenge.
    pub challenged: Vec<Incarnation>,
}

impl View {
    /// The member with this id and incarnation.
    pub fn member(&self, id: NodeId, incarnation: Incarnation) -> Option<&Registered> {
        self.members
            .iter()
            .find(|m| m.registration.id == id && m.incarnation == incarnation)
    }

    /// The master, when the life that holds the key is registered; otherwise mastership is vacant.
    pub fn seated(&self) -> Option<&Master> {
        self.master
            .as_ref()
            .filter(|m| self.member(m.record.id, m.record.incarnation).is_some())
    }

    /// What a claim has to compare the master key's `mod_revision` with: 0 when it is absent.
    pub fn master_revision(&self) -> i64 {
        self.master.as_ref().map_or(0, |m| m.epoch.revision)
    }
}

/// Every watched key as last heard of.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    revision: i64,
    cluster_id: u64,
    kvs: BTreeMap<String, Kv>,
    /// Revisions of deletions since the last listing, so that a late put does not bring a key back.
    deleted: BTreeMap<String, i64>,
}

/// What a listing says of the registry behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// The registry we knew, or the first listing.
    Same,
    /// It was read before something we know by now: nothing was taken from it, read again.
    Outrun,
    /// Another cluster id, or a revision that fell: it was replaced or restored.
    Replaced,
}

impl Mirror {
    /// Replaces everything by a listing at one revision. `asked_at` is the revision we knew when it was asked for: only one
    /// below that has fallen, since our own transactions may have outrun the answer.
    pub fn replace(&mut self, listing: Listing, asked_at: i64) -> Continuity {
        let known = self.cluster_id != 0;
        let same = listing.stamp.cluster_id == self.cluster_id;
        if known && same && (asked_at..self.revision).contains(&listing.stamp.revision) {
            return Continuity::Outrun;
        }
        let same = same && listing.stamp.revision >= asked_at;
        self.revision = listing.stamp.revision;
        self.cluster_id = listing.stamp.cluster_id;
        self.kvs = listing
            .kvs
            .into_iter()
            .map(|kv| (kv.key.clone(), kv))
            .collect();
        self.deleted.clear();
        if known && !same {
            Continuity::Replaced
        } else {
            Continuity::Same
        }
    }

    /// Folds changes in; answers whether anything changed.
    pub fn apply(&mut self, batch: WatchBatch) -> bool {
        self.revision = self.revision.max(batch.stamp.revision);
        let mut changed = false;
        for change in batch.changes {
            changed |= match change {
                Change::Put(kv) => self.put(kv),
                Change::Delete { key, revision } => self.delete(&key, revision),
            };
        }
        changed
    }

    /// A put that we did ourselves or were told of.
    pub fn put(&mut self, kv: Kv) -> bool {
        let known = self.kvs.get(&kv.key).map_or(0, |old| old.mod_revision);
        let gone = self.deleted.get(&kv.key).copied().unwrap_or(0);
        if kv.mod_revision <= known.max(gone) {
            return false;
        }
        self.revision = self.revision.max(kv.mod_revision);
        self.kvs.insert(kv.key.clone(), kv);
        true
    }

    /// A deletion that we did ourselves or were told of.
    pub fn delete(&mut self, key: &str, revision: i64) -> bool {
        if planted::is("deletes-ignored") {
            return false;
        }
        if self
            .kvs
            .get(key)
            .is_some_and(|kv| kv.mod_revision > revision)
        {
            return false;
        }
        self.revision = self.revision.max(revision);
        self.deleted.insert(key.to_owned(), revision);
        self.kvs.remove(key).is_some()
    }

    /// The key as last heard of.
    pub fn get(&self, key: &str) -> Option<&Kv> {
        self.kvs.get(key)
    }

    /// Last revision heard of.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Every key under a prefix.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Kv> + 'a {
        self.kvs
            .range(prefix.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, kv)| kv)
    }

    /// What the keys amount to. Values that are not what they should be are left out and named.
    pub fn view(&self, keys: &Keys) -> (View, Vec<String>) {
        let mut bad = Vec::new();
        let generation = self.generation(keys);
        let mut members: Vec<Registered> = self
            .under(&keys.services())
            .filter_map(|kv| match serde_json::from_slice(&kv.value) {
                Ok(registration) => Some(Registered {
                    registration,
                    incarnation: Incarnation(kv.create_revision),
                }),
                Err(err) => {
                    bad.push(format!("{}: {err}", kv.key));
                    None
                }
            })
            .collect();
        members.sort_by_key(|m| m.incarnation);
        let master = self.get(&keys.master()).map(|kv| {
            let record = serde_json::from_slice::<MasterRecord>(&kv.value)
                .map_err(|err| bad.push(format!("{}: {err}", kv.key)))
                .ok()
                .unwrap_or_else(|| MasterRecord {
                    // An unreadable master key is vacant, and must still be compared with when it is taken over.
                    id: NodeId(0),
                    incarnation: Incarnation::NONE,
                    address: String::new(),
                });
            Master {
                record,
                epoch: Epoch {
                    generation,
                    revision: if planted::is("create-revision-as-epoch") {
                        kv.create_revision
                    } else {
                        kv.mod_revision
                    },
                },
            }
        });
        let challenges = keys.challenges();
        let challenged = self
            .under(&challenges)
            .filter_map(|kv| kv.key.strip_prefix(&challenges)?.parse().ok())
            .map(Incarnation)
            .collect();
        let view = View {
            revision: self.revision,
            generation,
            members,
            master,
            challenged,
        };
        (view, bad)
    }

    /// Which life of the registry; 0 when the key is absent or unreadable.
    pub fn generation(&self, keys: &Keys) -> Generation {
        let seconds = self
            .get(&keys.generation())
            .and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok());
        Generation(seconds.unwrap_or(0))
    }

    /// The registration at an address, with its key's facts.
    pub fn registered_at(&self, keys: &Keys, address: &str) -> Option<(&Kv, Option<Registration>)> {
        let kv = self.get(&keys.service(address))?;
        Some((kv, serde_json::from_slice(&kv.value).ok()))
    }
}

/// What stands at our own address when we come to register.
#[derive(Clone, Debug, PartialEq)]
pub enum Seat {
    /// Nothing.
    Free,
    /// Our own registration: an earlier life of RegistryActor put it, or a transaction whose answer was lost.
    Ours {
        /// Our incarnation.
        incarnation: Incarnation,
        /// The lease it hangs on.
        lease: i64,
    },
    /// The registration of a process that is certainly gone: same machine, and its pid is not alive.
    Dead(Box<Leftover>),
    /// The registration of a process that may be alive elsewhere.
    Doubtful(Box<Leftover>),
}

/// Somebody else's registration at our address.
#[derive(Clone, Debug, PartialEq)]
pub struct Leftover {
    /// What it says; `None` when unreadable.
    pub registration: Option<Registration>,
    /// Which life.
    pub incarnation: Incarnation,
    /// `mod_revision` of the key.
    pub revision: i64,
}

/// Judges what stands at our address. `alive` answers whether a pid of this machine lives.
pub fn judge_seat(
    mirror: &Mirror,
    keys: &Keys,
    me: &Registration,
    alive: impl Fn(u32) -> bool,
) -> Seat {
    let Some((kv, registration)) = mirror.registered_at(keys, &me.address()) else {
        return Seat::Free;
    };
    let incarnation = Incarnation(kv.create_revision);
    if registration.as_ref().is_some_and(|r| r.id == me.id) {
        return Seat::Ours {
            incarnation,
            lease: kv.lease,
        };
    }
    let same_machine = |r: &Registration| r.host == me.host && r.boot == me.boot;
    let gone = registration
        .as_ref()
        .is_some_and(|r| same_machine(r) && (r.pid == me.pid || !alive(r.pid)));
    let leftover = Box::new(Leftover {
        registration,
        incarnation,
        revision: kv.mod_revision,
    });
    if gone {
        Seat::Dead(leftover)
    } else {
        Seat::Doubtful(leftover)
    }
}

/// Deletes a registration with its name, and mastership if it held it, each by its `mod_revision`. It is deleted, never
/// overwritten: an overwrite would inherit the dead one's incarnation.
pub fn clear_leftover(mirror: &Mirror, keys: &Keys, address: &str) -> Txn {
    let Some((kv, registration)) = mirror.registered_at(keys, address) else {
        return Txn::default();
    };
    let mut txn = Txn::default();
    let mut drop_key = |kv: &Kv| {
        txn.when
            .push(Compare::Modified(kv.key.clone(), kv.mod_revision));
        txn.then.push(Op::Delete(kv.key.clone()));
    };
    drop_key(kv);
    if let Some(registration) = registration {
        let name = mirror.get(&keys.name(&registration.name));
        if let Some(name) = name.filter(|name| owner_of(name) == Some(registration.id)) {
            drop_key(name);
        }
        let master = mirror.get(&keys.master()).filter(|master| {
            serde_json::from_slice::<MasterRecord>(&master.value)
                .is_ok_and(|record| record.id == registration.id)
        });
        if let Some(master) = master {
            drop_key(master);
        }
    }
    txn
}

/// The id that claimed a name.
pub fn owner_of(name: &Kv) -> Option<NodeId> {
    std::str::from_utf8(&name.value).ok()?.parse().ok()
}

/// Registers under a lease, unless the address or the name is taken.
pub fn register(keys: &Keys, me: &Registration, lease: i64) -> Result<Txn, serde_json::Error> {
    let service = keys.service(&me.address());
    let name = keys.name(&me.name);
    let value = Bytes::from(serde_json::to_vec(me)?);
    Ok(Txn {
        when: if planted::is("registration-overwritten") {
            Vec::new()
        } else {
            vec![
                Compare::Created(service.clone(), 0),
                Compare::Created(name.clone(), 0),
            ]
        },
        then: vec![
            Op::Put {
                key: service.clone(),
                value,
                lease,
            },
            Op::Put {
                key: name.clone(),
                value: Bytes::from(me.id.to_string()),
                lease,
            },
        ],
        otherwise: vec![Op::Get(service), Op::Get(name)],
    })
}

/// Puts what we registered again, with other words, as long as this life of it stands: it keeps its incarnation and its lease.
pub fn amend(
    keys: &Keys,
    me: &Registration,
    incarnation: Incarnation,
    lease: i64,
) -> Result<Txn, serde_json::Error> {
    let service = keys.service(&me.address());
    Ok(Txn {
        when: vec![Compare::Created(service.clone(), incarnation.0)],
        then: vec![Op::Put {
            key: service.clone(),
            value: Bytes::from(serde_json::to_vec(me)?),
            lease,
        }],
        otherwise: vec![Op::Get(service)],
    })
}

/// Claims the master key, or takes it over: `expected` is its `mod_revision` as last seen, 0 when absent.
pub fn claim(
    keys: &Keys,
    expected: i64,
    record: &MasterRecord,
    lease: i64,
) -> Result<Txn, serde_json::Error> {
    let master = keys.master();
    let compare = if expected == 0 {
        Compare::Created(master.clone(), 0)
    } else {
        Compare::Modified(master.clone(), expected)
    };
    let mut txn = Txn {
        when: vec![
            compare,
            Compare::Created(keys.service(&record.address), record.incarnation.0),
        ],
        then: vec![Op::Put {
            key: master.clone(),
            value: Bytes::from(serde_json::to_vec(record)?),
            lease,
        }],
        otherwise: vec![Op::Get(master)],
    };
    if planted::is("claim-without-compare") {
        txn.when.remove(0);
    }
    if planted::is("claim-unregistered") {
        txn.when.truncate(1);
    }
    Ok(txn)
}

/// The verdict: deletes a peer's registration and name if it is still that life of it, and we are still this one of ours.
pub fn condemn(keys: &Keys, me: (&str, Incarnation), peer: &Registered) -> Txn {
    let service = keys.service(&peer.registration.address());
    let mut txn = Txn {
        when: vec![
            Compare::Created(service.clone(), peer.incarnation.0),
            Compare::Created(keys.service(me.0), me.1.0),
        ],
        then: vec![
            Op::Delete(service.clone()),
            Op::Delete(keys.name(&peer.registration.name)),
        ],
        otherwise: vec![Op::Get(service)],
    };
    if planted::is("condemn-any-incarnation") {
        txn.when.clear();
    }
    txn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Stamp;

    fn kv(key: &str, value: &str, created: i64, modified: i64) -> Kv {
        Kv {
            key: key.to_owned(),
            value: Bytes::from(value.to_owned()),
            create_revision: created,
            mod_revision: modified,
            version: 1,
            lease: 7,
        }
    }

    fn stamp(revision: i64) -> Stamp {
        Stamp {
            cluster_id: 1,
            revision,
        }
    }

    pub(crate) fn registration(n: u128, port: u16) -> Registration {
        Registration {
            id: NodeId(n),
            name: format!("node-{n}"),
            ip: "10.0.0.1".to_owned(),
            port,
            admin: String::new(),
            host: "h".to_owned(),
            boot: "b".to_owned(),
            pid: 10,
            version: String::new(),
            protocol: 1,
            weight: 0,
            eligible: true,
            roles: vec!["worker".to_owned()],
            jobs: vec![],
            capacity: 1,
            tags: BTreeMap::new(),
            started_at: 0,
            insecure: false,
        }
    }

    fn mirror(kvs: Vec<Kv>, revision: i64) -> Mirror {
        let mut mirror = Mirror::default();
        let listing = Listing {
            stamp: stamp(revision),
            kvs,
        };
        mirror.replace(listing, 0);
        mirror
    }

    #[test]
    fn late_and_repeated_changes_do_not_matter() {
        let mut mirror = mirror(vec![kv("/t/master", "x", 5, 5)], 9);
        let old = WatchBatch {
            stamp: stamp(9),
            changes: vec![
                Change::Delete {
                    key: "/t/master".to_owned(),
                    revision: 4,
                },
                Change::Put(kv("/t/master", "old", 3, 3)),
            ],
        };
        assert!(!mirror.apply(old));
        assert!(mirror.delete("/t/master", 10));
        assert!(!mirror.put(kv("/t/master", "x", 5, 8)));
        assert!(mirror.put(kv("/t/master", "y", 11, 11)));
    }

    #[test]
    fn a_fallen_revision_or_another_cluster_id_is_another_registry() {
        let mut mirror = mirror(vec![], 9);
        let fallen = Listing {
            stamp: stamp(8),
            kvs: vec![],
        };
        assert_eq!(mirror.replace(fallen, 9), Continuity::Replaced);
        let other = Listing {
            stamp: Stamp {
                cluster_id: 2,
                revision: 99,
            },
            kvs: vec![],
        };
        assert_eq!(mirror.replace(other, 8), Continuity::Replaced);
    }

    #[test]
    fn a_listing_that_our_own_transaction_has_outrun_is_no_fallen_revision() {
        let mut mirror = mirror(vec![], 9);
        mirror.put(kv("/t/master", "us", 12, 12));
        let earlier = Listing {
            stamp: stamp(10),
            kvs: vec![],
        };
        assert_eq!(mirror.replace(earlier, 9), Continuity::Outrun);
        assert!(mirror.get("/t/master").is_some());
    }

    #[test]
    fn mastership_is_vacant_when_its_incarnation_is_not_registered() {
        let keys = Keys::new("t");
        let me = registration(1, 1);
        let record = MasterRecord {
            id: me.id,
            incarnation: Incarnation(3),
            address: me.address(),
        };
        let json = serde_json::to_string(&record).unwrap();
        let mut mirror = mirror(
            vec![
                kv(
                    &keys.service(&me.address()),
                    &serde_json::to_string(&me).unwrap(),
                    3,
                    3,
                ),
                kv(&keys.master(), &json, 4, 4),
            ],
            9,
        );
        assert!(mirror.view(&keys).0.seated().is_some());
        mirror.delete(&keys.service(&me.address()), 10);
        let (view, _) = mirror.view(&keys);
        assert_eq!((view.seated(), view.master_revision()), (None, 4));
    }

    #[test]
    fn a_leftover_is_dead_only_when_its_pid_on_this_very_machine_is() {
        let keys = Keys::new("t");
        let me = registration(1, 1);
        let stands = |other: &Registration, alive: bool| {
            let json = serde_json::to_string(other).unwrap();
            let mirror = mirror(vec![kv(&keys.service(&me.address()), &json, 3, 3)], 9);
            judge_seat(&mirror, &keys, &me, |_| alive)
        };
        let mut other = registration(2, 1);
        other.pid = 11;
        assert!(matches!(stands(&other, false), Seat::Dead(_)));
        assert!(matches!(stands(&other, true), Seat::Doubtful(_)));
        other.host = "elsewhere".to_owned();
        assert!(matches!(stands(&other, false), Seat::Doubtful(_)));
        assert!(matches!(stands(&me, true), Seat::Ours { .. }));
    }

    #[test]
    fn clearing_a_leftover_takes_its_name_and_mastership_along() {
        let keys = Keys::new("t");
        let dead = registration(2, 1);
        let record = MasterRecord {
            id: dead.id,
            incarnation: Incarnation(3),
            address: dead.address(),
        };
        let mirror = mirror(
            vec![
                kv(
                    &keys.service(&dead.address()),
                    &serde_json::to_string(&dead).unwrap(),
                    3,
                    3,
                ),
                kv(&keys.name(&dead.name), &dead.id.to_string(), 3, 3),
                kv(
                    &keys.master(),
                    &serde_json::to_string(&record).unwrap(),
                    4,
                    4,
                ),
            ],
            9,
        );
        let txn = clear_leftover(&mirror, &keys, &dead.address());
        assert_eq!(
            txn.then,
            vec![
                Op::Delete("/t/services/10.0.0.1:1".to_owned()),
                Op::Delete("/t/names/node-2".to_owned()),
                Op::Delete("/t/master".to_owned()),
            ]
        );
        assert_eq!(txn.when[2], Compare::Modified("/t/master".to_owned(), 4));
    }
}
