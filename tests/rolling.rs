//! A rolling restart of all nodes under load: nothing is lost, the receipts add up, and for how long nobody led.
//!
//! Small by default. The whole of it: `TROUPE_TEST_ROLLING_RATE=5000 TROUPE_TEST_ROLLING_ROUNDS=5 TROUPE_TEST_MASTERLESS_MS=200
//! cargo test --release --test rolling -- --nocapture` on a quiet machine.

mod support;

use std::time::Instant;

use serde_json::Value;
use support::load::{Load, number};
use support::{Cluster, LONG, until};

#[test]
fn every_node_is_restarted_under_load_and_no_task_is_lost() {
    let _turn = support::turn();
    let rate = number("TROUPE_TEST_ROLLING_RATE", 500);
    let rounds = number("TROUPE_TEST_ROLLING_ROUNDS", 1);
    let bound = number("TROUPE_TEST_MASTERLESS_MS", 2000);
    let quiet = [
        "--set",
        "generator.enabled=false",
        "--set",
        "master.keep_finished=2000000",
        "--set",
        "master.keep_finished_bytes=1000000000",
        "--set",
        "master.balancer=least-loaded",
    ];
    let mut cluster = Cluster::start_with(3, &quiet);
    let addresses: Vec<String> = cluster.nodes.iter().map(support::Node::admin).collect();
    let load = Load::start(&addresses, rate, true);
    until("the first tasks are accepted", LONG, || {
        let some = !load.seen.accepted().is_empty();
        some.then_some(()).ok_or_else(|| "none yet".to_owned())
    });
    let began = Instant::now();
    let mut masterless: Vec<f64> = Vec::new();
    let names: Vec<String> = cluster.nodes.iter().map(|n| n.name.clone()).collect();
    for name in (0..rounds).flat_map(|_| names.clone()) {
        let led = cluster.node(&name).master().map(|(master, _)| master);
        let asked = cluster.nodes.iter().find(|n| n.name != name).unwrap();
        let output = asked.cli(&["--json", "drain", &name, "--wait"]);
        let receipt: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        println!("{receipt}");
        assert_eq!(output.status.code(), Some(0), "{receipt}");
        assert_eq!(
            (&receipt["lost"], &receipt["untold"]),
            (&0.into(), &0.into()),
            "{receipt}"
        );
        if led.as_deref() == Some(&name) {
            assert!(receipt["heir"].is_string(), "{receipt}");
        }
        masterless.extend(receipt["masterless_ms"].as_f64());
        let node = cluster.node_mut(&name);
        assert_eq!(node.process.wait(LONG), Some(0), "{name} leaves in order");
        node.restart();
        cluster.wait_whole();
    }
    let seen = load.finish();
    let accepted = seen.accepted();
    let took = began.elapsed();
    until("every accepted task is done", 4 * LONG, || {
        let (_, ledger) = cluster.nodes[0]
            .get("/v1/master/ledger")
            .ok_or("no answer")?;
        let tasks = &ledger["tasks"];
        let open = ["queued", "leased"]
            .iter()
            .filter_map(|s| tasks[s].as_u64());
        let (open, done) = (open.sum::<u64>(), tasks["done"].as_u64().unwrap_or(0));
        let all = open == 0 && done >= accepted.len() as u64;
        all.then_some(())
            .ok_or_else(|| format!("{} accepted: {tasks}", accepted.len()))
    });
    let worst = masterless.iter().copied().fold(0.0, f64::max);
    println!(
        "{} restarts in {took:.1?} under {rate} durable tasks/s: {} accepted, all done, 0 lost; {} bodies sent again; \
         longest without an acknowledgement {:?}; without a master {masterless:.1?} ms, worst {worst:.1} ms",
        3 * rounds,
        accepted.len(),
        seen.again(),
        seen.gap(),
    );
    assert!(!masterless.is_empty(), "somebody led and handed over");
    assert!(
        worst <= bound as f64,
        "{worst} ms without a master, at most {bound} are allowed"
    );
}
