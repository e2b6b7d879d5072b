//! Values in the registry: whoever may write there, an operator or another program, may write anything.

use bytes::Bytes;

use super::parts;
use crate::cluster::Registration;
use crate::id::{Incarnation, NodeId};
use crate::registry::session::{self, Keys, Mirror, Seat};
use crate::registry::{Change, Kv, Listing, Stamp, WatchBatch};

/// Pairs of key and value. The key's first byte says what it is a key of; the rest is its end.
pub(super) fn keys(data: &[u8]) {
    let keys = Keys::new("troupe");
    let me = myself();
    let list = parts(data);
    let mut kvs: Vec<Kv> = list
        .chunks(2)
        .enumerate()
        .map(|(n, pair)| kv(&keys, &me, n, pair))
        .collect();
    let later = kvs.split_off(kvs.len() / 2);
    let revision = i64::try_from(list.len()).unwrap_or(0) + 10;
    let stamp = Stamp {
        cluster_id: 5,
        revision,
    };
    let mut mirror = Mirror::default();
    mirror.replace(Listing { stamp, kvs }, 0);
    let deleted = later.first().map(|kv| Change::Delete {
        key: kv.key.clone(),
        revision: kv.mod_revision,
    });
    let changes = deleted
        .into_iter()
        .chain(later.into_iter().map(Change::Put))
        .collect();
    mirror.apply(WatchBatch { stamp, changes });

    let (view, bad) = mirror.view(&keys);
    let services = mirror.under(&keys.services()).count();
    assert!(view.members.len() <= services && bad.len() <= services + 1);
    assert!(view.members.is_sorted_by_key(|m| m.incarnation));
    let master = mirror.get(&keys.master());
    assert_eq!(
        view.master_revision(),
        master.map_or(0, |kv| kv.mod_revision),
        "an unreadable master key must still be compared with"
    );
    for member in &view.members {
        let json = serde_json::to_vec(&member.registration).expect("it can be written");
        assert_eq!(
            serde_json::from_slice::<Registration>(&json).ok().as_ref(),
            Some(&member.registration)
        );
        let id = member.registration.id;
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(!member.registration.address().is_empty());
    }
    for kv in mirror.under(&keys.names()) {
        if let Some(owner) = session::owner_of(kv) {
            let text = String::from_utf8_lossy(&kv.value);
            assert_eq!(owner.to_string(), text.to_ascii_lowercase());
        }
    }
    let seat = session::judge_seat(&mirror, &keys, &me, |pid| pid % 2 == 0);
    if !matches!(seat, Seat::Free) {
        let txn = session::clear_leftover(&mirror, &keys, &me.address());
        assert!((1..=3).contains(&txn.then.len()) && txn.when.len() == txn.then.len());
    }
    if let Some(peer) = view.members.first() {
        session::condemn(&keys, (&me.address(), Incarnation(3)), peer);
    }
    session::register(&keys, &me, 7).expect("we can always write ourselves");
}

fn kv(keys: &Keys, me: &Registration, n: usize, pair: &[&[u8]]) -> Kv {
    let (key, value) = (pair[0], pair.get(1).copied().unwrap_or(&[]));
    let (what, rest) = key.split_first().unwrap_or((&0, &[]));
    let rest = String::from_utf8_lossy(rest);
    let key = match what % 8 {
        0 | 1 => keys.service(&rest),
        2 => keys.service(&me.address()),
        3 => keys.name(&rest),
        4 => keys.master(),
        5 => keys.generation(),
        6 => format!("{}{rest}", keys.challenges()),
        _ => format!("{}{rest}", keys.prefix()),
    };
    let revision = i64::try_from(n).unwrap_or(0) + 1;
    Kv {
        key,
        value: Bytes::copy_from_slice(value),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: i64::from(*what),
    }
}

fn myself() -> Registration {
    Registration {
        id: NodeId(7),
        name: "brave-lion".to_owned(),
        ip: "10.0.0.1".to_owned(),
        port: 22222,
        admin: "127.0.0.1:22223".to_owned(),
        host: "here".to_owned(),
        boot: "boot".to_owned(),
        pid: 42,
        version: "0.1.0".to_owned(),
        protocol: 1,
        weight: 0,
        eligible: true,
        insecure: false,
        roles: vec!["worker".to_owned()],
        jobs: vec!["multiply".to_owned()],
        capacity: 4,
        tags: [("disk".to_owned(), "ssd".to_owned())].into(),
        started_at: 1_700_000_000_000,
    }
}
