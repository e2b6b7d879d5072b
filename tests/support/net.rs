//! Hosts of a test's own: network namespaces on a bridge, made and removed by the test, with links that can be cut.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Etcd, FAST, LONG, Node, event};

/// A bridge in a namespace of its own, and one namespace per host.
pub struct Net {
    tag: String,
    hosts: usize,
}

/// Runs a command and panics with its words when it fails.
fn run(words: &str) {
    let mut words_iter = words.split_whitespace();
    let program = words_iter.next().unwrap();
    let output = Command::new(program)
        .args(words_iter)
        .output()
        .unwrap_or_else(|err| panic!("{words}: {err}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}: {stderr}");
}

impl Net {
    /// `None`, with words on stderr, where namespaces are not permitted.
    pub fn new(hosts: usize) -> Option<Self> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let tag = format!("tr{:x}n{n}", std::process::id());
        let probe = Command::new("ip")
            .args(["netns", "add", &format!("{tag}b")])
            .output();
        if !probe.as_ref().is_ok_and(|o| o.status.success()) {
            eprintln!("SKIPPED: network namespaces are not permitted here ({probe:?})");
            return None;
        }
        let net = Self { tag, hosts };
        net.build();
        Some(net)
    }

    fn build(&self) {
        let b = self.bridge();
        run(&format!("ip -n {b} link add br0 type bridge"));
        run(&format!("ip -n {b} addr add 10.99.0.1/24 dev br0"));
        run(&format!("ip -n {b} link set br0 up"));
        run(&format!("ip -n {b} link set lo up"));
        for host in 1..=self.hosts {
            let ns = self.ns(host);
            run(&format!("ip netns add {ns}"));
            run(&format!(
                "ip -n {b} link add p{host} type veth peer name eth0 netns {ns}"
            ));
            run(&format!("ip -n {b} link set p{host} master br0 up"));
            run(&format!(
                "ip -n {ns} addr add {}/24 dev eth0",
                Self::ip(host)
            ));
            run(&format!("ip -n {ns} link set eth0 up"));
            run(&format!("ip -n {ns} link set lo up"));
            run(&format!("ip netns exec {ns} nft add table inet cut"));
            for (chain, hook) in [("in", "input"), ("out", "output")] {
                let what = format!("{{ type filter hook {hook} priority 0 ; }}");
                run(&format!(
                    "ip netns exec {ns} nft add chain inet cut {chain} {what}"
                ));
            }
        }
    }

    /// The namespace that holds the bridge; etcd runs there.
    pub fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }

    /// The namespace of a host, from 1.
    pub fn ns(&self, host: usize) -> String {
        format!("{}h{host}", self.tag)
    }

    /// The address of a host.
    pub fn ip(host: usize) -> String {
        format!("10.99.0.{}", 10 + host)
    }

    /// From now on `a` and `b` do not hear each other.
    pub fn cut(&self, a: usize, b: usize) {
        self.drop_from(a, &Self::ip(b));
        self.drop_from(b, &Self::ip(a));
    }

    /// From now on `host` hears nothing from this address; what it says itself still arrives there.
    pub fn drop_from(&self, host: usize, address: &str) {
        let ns = self.ns(host);
        run(&format!(
            "ip netns exec {ns} nft add rule inet cut in ip saddr {address} drop"
        ));
    }

    /// In one step, from now on these are the rules of a host and no others: (`in` or `out`, the rule in nft's words).
    pub fn set_rules(&self, host: usize, rules: &[(&str, String)]) {
        let mut script = "flush chain inet cut in\nflush chain inet cut out\n".to_owned();
        for (chain, rule) in rules {
            script += &format!("add rule inet cut {chain} {rule}\n");
        }
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.ns(host), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = nft.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).unwrap();
        drop(stdin);
        assert!(nft.wait().unwrap().success(), "nft refused:\n{script}");
    }

    /// From now on this thread, and those it starts, are in the bridge's network: they can call every host.
    pub fn enter(&self) {
        let path = format!("/var/run/netns/{}", self.bridge());
        let bridge = std::fs::File::open(&path).unwrap_or_else(|err| panic!("{path}: {err}"));
        move_into_link_name_space(bridge.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Pulls the cable of a host, or puts it back.
    pub fn set_link(&self, host: usize, up: bool) {
        let state = if up { "up" } else { "down" };
        run(&format!("ip -n {} link set p{host} {state}", self.bridge()));
    }

    /// Everybody hears everybody again.
    pub fn heal(&self) {
        for host in 1..=self.hosts {
            run(&format!(
                "ip netns exec {} nft flush chain inet cut in",
                self.ns(host)
            ));
        }
    }

    /// An etcd on the bridge.
    pub fn etcd(&self) -> Etcd {
        Etcd::start_in(Some(self.bridge()), "10.99.0.1")
    }

    /// A fast node `n<host>` on each host; `n1` leads.
    pub fn nodes(&self, etcd: &Etcd) -> Vec<Node> {
        self.nodes_with(etcd, &FAST)
    }

    /// A node `n<host>` with these further arguments on each host; `n1` leads.
    pub fn nodes_with(&self, etcd: &Etcd, more: &[&str]) -> Vec<Node> {
        let mut nodes = Vec::new();
        for host in 1..=self.hosts {
            let name = format!("n{host}");
            let node = Node::start_in(
                Some(self.ns(host)),
                &Self::ip(host),
                &name,
                &etcd.url(),
                22222,
                more,
            );
            if host == 1 {
                node.wait("master.promoted", |l| event(l, "master.promoted"));
            }
            nodes.push(node);
        }
        let names: Vec<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
        for node in &nodes {
            node.wait_members(&names, LONG);
        }
        nodes
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in 1..=self.hosts {
            Command::new("ip")
                .args(["netns", "del", &self.ns(host)])
                .output()
                .ok();
        }
        Command::new("ip")
            .args(["netns", "del", &self.bridge()])
            .output()
            .ok();
    }
}
