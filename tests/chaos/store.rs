//! The registry under chaos: one etcd, three, or the embedded one on disk; each member a process that can be broken.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::schedule::Registry;
use crate::support::net::Net;
use crate::support::secure::{SECURE, certificates};
use crate::support::{LONG, Process, TROUPE, clean_env, free_port, inside};

/// Room for what a round writes. etcd takes 64 MB for each of two segments of its log in advance.
const SMALL_ETCD: &str = "size=144m";
const SMALL_EMBEDDED: &str = "size=12m";

pub struct Store {
    pub kind: Registry,
    members: Vec<Member>,
    /// Of the embedded one beyond loopback, where it serves over TLS alone.
    certificates: Option<tempfile::TempDir>,
}

/// Dropped in this order: the process, its disk, the folder that the disk is mounted on.
struct Member {
    process: Option<Process>,
    disk: Option<Mount>,
    dir: tempfile::TempDir,
    netns: Option<String>,
    ip: String,
    port: u16,
    peer_port: u16,
    frozen: usize,
}

/// A small disk of its own.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

impl Store {
    /// Starts all members; hosts of the network after the nodes' are theirs. `small_disk` is a member's number.
    pub fn start(
        kind: Registry,
        net: Option<&Net>,
        nodes: usize,
        small_disk: Option<usize>,
    ) -> Self {
        let member = |n: usize| {
            let dir = tempfile::tempdir().unwrap();
            let size = match kind {
                Registry::Disk => SMALL_EMBEDDED,
                _ => SMALL_ETCD,
            };
            Member {
                netns: net.map(|net| net.ns(nodes + 1 + n)),
                ip: net.map_or("127.0.0.1".to_owned(), |_| Net::ip(nodes + 1 + n)),
                port: net.map_or_else(free_port, |_| 2379),
                peer_port: net.map_or_else(free_port, |_| 2380),
                disk: (small_disk == Some(n)).then(|| mount(dir.path(), size)),
                dir,
                process: None,
                frozen: 0,
            }
        };
        let members: Vec<Member> = (0..kind.size()).map(member).collect();
        let certificates = (kind == Registry::Disk && net.is_some()).then(|| {
            let dir = tempfile::tempdir().unwrap();
            certificates(dir.path(), &[&members[0].ip]);
            dir
        });
        let mut store = Self {
            kind,
            members,
            certificates,
        };
        for n in 0..store.members.len() {
            store.start_member(n);
        }
        store.wait_up();
        store
    }

    /// What the nodes are told.
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> = self.members.iter().map(Member::client_url).collect();
        match self.certificates {
            Some(_) => urls.join(",").replace("http://", SECURE),
            None => urls.join(","),
        }
    }

    /// How the nodes are let in, `key=value`.
    pub fn access(&self) -> Vec<String> {
        let dir = self.certificates.iter();
        let of = |dir: &tempfile::TempDir| {
            let files = [
                ("ca_file", "ca.pem"),
                ("cert_file", "client.pem"),
                ("key_file", "client.key"),
            ];
            files.map(|(key, file)| format!("registry.{key}={}", dir.path().join(file).display()))
        };
        dir.flat_map(of).collect()
    }

    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|m| m.ip.clone()).collect()
    }

    pub fn kill(&mut self, n: usize) {
        self.members[n].process = None;
        self.members[n].frozen = 0;
    }

    /// Starts it on its data, unless it runs.
    pub fn start_member(&mut self, n: usize) {
        if self.members[n].process.as_mut().is_some_and(Process::runs) {
            return;
        }
        let mut command = match self.kind {
            Registry::Disk => self.embedded(n),
            Registry::Etcd | Registry::ThreeEtcds => self.etcd(n),
        };
        clean_env(&mut command);
        self.members[n].process = Some(Process::start(&mut command));
    }

    pub fn freeze(&mut self, n: usize) {
        let member = &mut self.members[n];
        member.frozen += 1;
        if let Some(process) = &member.process {
            process.signal(Signal::STOP);
        }
    }

    pub fn thaw(&mut self, n: usize) {
        let member = &mut self.members[n];
        member.frozen = member.frozen.saturating_sub(1);
        if let Some(process) = member.process.as_ref().filter(|_| member.frozen == 0) {
            process.signal(Signal::CONT);
        }
    }

    /// Writes until there is no room left.
    pub fn fill(&self, n: usize) {
        let Some(Mount(disk)) = &self.members[n].disk else {
            return;
        };
        let zeros = vec![0_u8; 64 * 1024];
        let mut file = std::fs::File::create(disk.join("fill")).unwrap();
        for size in [zeros.len(), 4096, 1] {
            while std::io::Write::write_all(&mut file, &zeros[..size]).is_ok() {}
        }
    }

    pub fn make_room(&self, n: usize) {
        if let Some(Mount(disk)) = &self.members[n].disk {
            std::fs::remove_file(disk.join("fill")).ok();
        }
    }

    /// Everything runs again; the nodes find out by themselves.
    pub fn mend(&mut self) {
        for n in 0..self.members.len() {
            self.make_room(n);
            self.members[n].frozen = 1;
            self.thaw(n);
            self.start_member(n);
        }
    }

    /// What its processes said that is not routine, for the logs of a failed round.
    pub fn said(&self) -> Vec<String> {
        let processes = self.members.iter().filter_map(|m| m.process.as_ref());
        let lines = processes.flat_map(|p| p.lines.all());
        lines.map(|(_, line)| line.to_string()).collect()
    }

    pub fn wait_up(&self) {
        let deadline = Instant::now() + LONG;
        for member in &self.members {
            while std::net::TcpStream::connect((member.ip.as_str(), member.port)).is_err() {
                assert!(Instant::now() < deadline, "the registry does not come up");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn embedded(&self, n: usize) -> Command {
        let member = &self.members[n];
        let mut command = inside(member.netns.as_deref(), TROUPE);
        let listen = format!("{}:{}", member.ip, member.port);
        command.args(["registry", "serve", "--listen", &listen, "--data-dir"]);
        command.arg(member.dir.path());
        if let Some(dir) = &self.certificates {
            for (flag, file) in [
                ("--cert", "server.pem"),
                ("--key", "server.key"),
                ("--client-ca", "ca.pem"),
            ] {
                command.arg(flag).arg(dir.path().join(file));
            }
        }
        command
    }

    fn etcd(&self, n: usize) -> Command {
        let member = &self.members[n];
        let peers = self.members.iter().enumerate();
        let peers: Vec<String> = peers
            .map(|(n, m)| format!("m{n}={}", m.peer_url()))
            .collect();
        let mut command = inside(member.netns.as_deref(), "etcd");
        command
            .env("ETCD_NAME", format!("m{n}"))
            .env("ETCD_DATA_DIR", member.dir.path().join("data"))
            .env("ETCD_LISTEN_CLIENT_URLS", member.client_url())
            .env("ETCD_ADVERTISE_CLIENT_URLS", member.client_url())
            .env("ETCD_LISTEN_PEER_URLS", member.peer_url())
            .env("ETCD_INITIAL_ADVERTISE_PEER_URLS", member.peer_url())
            .env("ETCD_INITIAL_CLUSTER", peers.join(","))
            // On one machine a leader is missed sooner.
            .env("ETCD_HEARTBEAT_INTERVAL", "50")
            .env("ETCD_ELECTION_TIMEOUT", "500")
            .env("ETCD_LOG_LEVEL", "error")
            .env("ETCD_UNSAFE_NO_FSYNC", "true");
        command
    }
}

impl Member {
    fn client_url(&self) -> String {
        format!("http://{}:{}", self.ip, self.port)
    }

    fn peer_url(&self) -> String {
        format!("http://{}:{}", self.ip, self.peer_port)
    }
}

fn mount(dir: &Path, size: &str) -> Mount {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", size, "none"])
        .arg(dir)
        .status();
    assert!(
        status.is_ok_and(|s| s.success()),
        "no tmpfs at {}",
        dir.display()
    );
    Mount(dir.to_owned())
}
