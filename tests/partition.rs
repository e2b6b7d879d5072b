//! Links that are cut between hosts of their own (network namespaces), while everybody still reaches etcd.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use support::net::Net;
use support::{LONG, event, until};

/// Epochs that were ever claimed, by everybody's word.
fn epochs(nodes: &[support::Node]) -> BTreeSet<String> {
    let lines = nodes.iter().flat_map(|n| n.process.lines.all());
    lines
        .filter(|(_, l)| event(l, "master.promoted"))
        .filter_map(|(_, l)| l["epoch"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn two_nodes_cut_from_each_other_keep_their_master_and_condemn_nobody() {
    let _turn = support::turn();
    let Some(net) = Net::new(2) else { return };
    let etcd = net.etcd();
    let nodes = net.nodes(&etcd);
    net.cut(1, 2);
    for node in &nodes {
        let other = if node.name == "n1" { "n2" } else { "n1" };
        until("the other is cut off", LONG, || {
            match node.members().get(other) {
                Some(state) if state == "cut-off" => Ok(()),
                seen => Err(format!("{}: {seen:?}", node.name)),
            }
        });
        assert_eq!(node.master().map(|m| m.0), Some("n1".to_owned()));
    }
    net.heal();
    for node in &nodes {
        node.wait_members(&["n1", "n2"], LONG);
    }
    assert_eq!(epochs(&nodes).len(), 1);
    let mark = nodes[0].process.lines.mark();
    nodes[0].wait_event(mark, "task.finished", LONG);
}

#[test]
fn equal_halves_that_both_reach_etcd_settle_with_at_most_two_epochs() {
    let _turn = support::turn();
    let Some(net) = Net::new(4) else { return };
    let etcd = net.etcd();
    let nodes = net.nodes(&etcd);
    let cut = Instant::now();
    for (a, b) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
        net.cut(a, b);
    }
    for node in &nodes {
        let far: [&str; 2] = match node.name.as_str() {
            "n1" | "n2" => ["n3", "n4"],
            _ => ["n1", "n2"],
        };
        until("the other half is cut off", LONG, || {
            let members = node.members();
            let settled = far
                .iter()
                .all(|n| members.get(*n).is_some_and(|s| s == "cut-off"));
            settled
                .then_some(())
                .ok_or_else(|| format!("{}: {members:?}", node.name))
        });
    }
    let settled = cut.elapsed();
    println!(
        "equal halves settled after {settled:?} with epochs {:?}",
        epochs(&nodes)
    );
    assert!(settled < Duration::from_secs(10), "{settled:?}");
    assert!(epochs(&nodes).len() <= 2);
    net.heal();
    for node in &nodes {
        node.wait_members(&["n1", "n2", "n3", "n4"], LONG);
    }
    assert!(epochs(&nodes).len() <= 2);
}

#[test]
fn a_master_cut_from_the_majority_is_replaced_and_comes_back_as_a_worker() {
    let _turn = support::turn();
    let Some(net) = Net::new(3) else { return };
    let etcd = net.etcd();
    let nodes = net.nodes(&etcd);
    net.cut(1, 2);
    net.cut(1, 3);
    nodes[1].wait_master_other_than("n1", LONG);
    net.heal();
    for node in &nodes {
        node.wait_members(&["n1", "n2", "n3"], LONG);
    }
    let (name, _) = nodes[0].master().unwrap();
    assert_ne!(name, "n1");
}
