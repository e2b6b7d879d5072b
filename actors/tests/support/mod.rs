//! A real etcd as a child process, for the tests that compare with it.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A running etcd; it is killed when this is dropped.
pub(crate) struct Etcd {
    child: Child,
    data: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    progress: &'static str,
}

#[allow(dead_code)]
impl Etcd {
    /// Starts one on free ports and waits until it answers. Watches get a progress notice every second.
    pub(crate) async fn start() -> Self {
        Self::start_with("1s").await
    }

    /// As a default etcd: quiet watches stay quiet for ten minutes.
    pub(crate) async fn start_quiet() -> Self {
        Self::start_with("10m").await
    }

    async fn start_with(progress: &'static str) -> Self {
        let data = TempDir::new().expect("a temporary directory");
        let (client, peer) = (free_address(), free_address());
        let child = launch(&data, client, peer, progress);
        let etcd = Self {
            child,
            data,
            client,
            peer,
            progress,
        };
        etcd.wait_until_it_answers().await;
        etcd
    }

    /// `http://…` of its client port.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("etcd is killed");
        self.child.wait().expect("etcd has ended");
    }

    /// Starts it again on the same ports and data.
    pub(crate) async fn restart(&mut self) {
        self.child = launch(&self.data, self.client, self.peer, self.progress);
        self.wait_until_it_answers().await;
    }

    /// Stops it in its tracks: sockets stay open, nothing is answered.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status();
        assert!(status.expect("kill runs").success());
    }

    async fn wait_until_it_answers(&self) {
        use troupe_actors::registry::{Backend, Timeouts, etcd::EtcdBackend};
        let backend = EtcdBackend::new(vec![self.url()], Timeouts::default()).expect("a backend");
        let mut last = None;
        for _ in 0..300 {
            match backend.list("/").await {
                Ok(_) => return,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not answer: {last:?}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have been killed by the test.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// By environment only: Debian's etcd refuses flags that its environment also sets.
fn launch(data: &TempDir, client: SocketAddr, peer: SocketAddr, progress: &str) -> Child {
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    Command::new("etcd")
        .env("ETCD_NAME", "test")
        .env("ETCD_DATA_DIR", data.path())
        .env("ETCD_LISTEN_CLIENT_URLS", &client)
        .env("ETCD_ADVERTISE_CLIENT_URLS", &client)
        .env("ETCD_LISTEN_PEER_URLS", &peer)
        .env("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peer)
        .env("ETCD_INITIAL_CLUSTER", format!("test={peer}"))
        .env("ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL", progress)
        .env("ETCD_LOGGER", "zap")
        .env("ETCD_LOG_LEVEL", "error")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| {
            panic!("etcd could not be started ({e}): these tests need it on the PATH (Debian: apt install etcd-server etcd-client)")
        })
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}
