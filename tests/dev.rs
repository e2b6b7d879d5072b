//! `troupe dev`: one command, a local cluster, as a newcomer sees it.

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::{LONG, Process, TROUPE, clean_env, event, free_port, free_ports, request, until};

/// A `troupe dev --fast` on ports of its own.
struct Dev {
    process: Process,
    base: u16,
    started: Instant,
}

impl Dev {
    fn start(nodes: usize) -> Self {
        // Node i takes base + 10 i and the port after it.
        let base = free_ports(10 * nodes as u16);
        let mut command = Command::new(TROUPE);
        command
            .args(["dev", "--fast", "--nodes", &nodes.to_string()])
            .args(["--port", &base.to_string()])
            .args(["--registry-port", &free_port().to_string()]);
        clean_env(&mut command);
        let started = Instant::now();
        let process = Process::start(&mut command);
        Self {
            process,
            base,
            started,
        }
    }

    fn api(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.base + 10 * node as u16 + 1)
    }

    fn members(&self, node: usize) -> Vec<Value> {
        let answer = request(&self.api(node), "GET", "/v1/members", "");
        answer
            .and_then(|(_, v)| v["members"].as_array().cloned())
            .unwrap_or_default()
    }
}

#[test]
fn three_nodes_are_members_and_finish_a_task_within_seconds() {
    let dev = Dev::start(3);
    until("three members and a master", Duration::from_secs(2), || {
        let members = dev.members(0);
        let alive = members.iter().filter(|m| m["state"] == "alive").count();
        let leads = members.iter().filter(|m| m["master"] == true).count();
        (alive == 3 && leads == 1)
            .then_some(())
            .ok_or_else(|| format!("{members:?}"))
    });
    let whole = dev.started.elapsed();
    let (at, line) = dev
        .process
        .lines
        .wait_from(0, "task.finished", LONG, |l| event(l, "task.finished"));
    println!(
        "three members and a master after {whole:?}, the first task finished after {:?}: {line}",
        at - dev.started
    );
    assert!(at - dev.started < Duration::from_secs(3));
}

#[test]
fn everything_is_drained_on_a_signal_and_nothing_is_left() {
    let mut dev = Dev::start(3);
    until("three members", LONG, || {
        (dev.members(0).len() == 3)
            .then_some(())
            .ok_or("not yet".to_owned())
    });
    let pids: BTreeSet<u64> = dev
        .members(0)
        .iter()
        .filter_map(|m| m["pid"].as_u64())
        .collect();
    dev.process.signal(Signal::TERM);
    assert_eq!(dev.process.wait(LONG), Some(0));
    for pid in pids {
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "{pid} is left"
        );
    }
}

#[test]
fn nothing_outlives_a_launcher_that_is_killed() {
    let mut dev = Dev::start(2);
    until("two members", LONG, || {
        (dev.members(0).len() == 2)
            .then_some(())
            .ok_or("not yet".to_owned())
    });
    let pids: Vec<u64> = dev
        .members(0)
        .iter()
        .filter_map(|m| m["pid"].as_u64())
        .collect();
    dev.process.kill();
    for pid in pids {
        until("the node is gone", LONG, || {
            let left = std::path::Path::new(&format!("/proc/{pid}")).exists();
            (!left)
                .then_some(())
                .ok_or_else(|| format!("{pid} is left"))
        });
    }
}
